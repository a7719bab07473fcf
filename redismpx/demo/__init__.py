"""`redismpx demo`: one page of chat clients, a live feed and promises, all on one Redis Pub/Sub connection.

`serve` starts and stops it, `app` routes to `chat` and `watch` (a `session` each), which speak the `vocabulary` with
the page and use the `backend`.
"""

__all__: list[str] = []
