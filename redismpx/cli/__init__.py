"""The command `redismpx`."""

__all__: list[str] = []
