"""Streams: the pages that subscriptions read, the messages that they get, and the positions that are saved."""
