"""The errors of the demo that are shown to its user."""

from __future__ import annotations

__all__ = ["CannotStart", "RequestRejected"]


class CannotStart(Exception):
    """The demo cannot start. The command line shows the text, which says why and what to do."""


class RequestRejected(Exception):
    """A request of the page is invalid or cannot be carried out. The page shows the text."""
