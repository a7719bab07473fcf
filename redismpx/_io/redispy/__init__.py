"""The one door to redis-py."""
