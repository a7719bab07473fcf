"""`redismpx demo`: a web page with chat clients, a live feed and promises, all on one Redis Pub/Sub connection.

- `serve` starts and stops the web server and, if needed, an `embedded` Valkey server.
- `app` serves the page's files and accepts its WebSockets.
- `chat` and `watch` handle the two kinds of WebSocket; `websocket` is their common base.
- `protocol` describes and checks the messages between page and server.
- `backend` owns the multiplexer and a Redis client.
"""

__all__: list[str] = []
