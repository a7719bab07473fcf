"""What can go wrong in the demo through no fault of its own."""

from __future__ import annotations

__all__ = ["CannotStart", "Refused"]


class CannotStart(Exception):
    """The demo cannot start. The text says why, and what to do about it."""


class Refused(Exception):
    """The page asked for something that cannot be done. The text is shown there."""
