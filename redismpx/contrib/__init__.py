"""Adapters for frameworks, on the public API only. Each is a module of its own, with an extra of its name."""

__all__: list[str] = []
