"""Exceptions of users that raise when they are asked for something."""

from __future__ import annotations

from typing import Any

import pytest


class Liar(Exception):
    """An exception that raises when it is asked for its class."""

    @property
    def __class__(self) -> Any:
        raise ValueError("no class")


class Unhashable(type):
    """A class of exceptions that cannot be in a dictionary, and has no usable name."""

    def __hash__(cls) -> int:
        raise ValueError("no hash")

    @property
    def __name__(cls) -> str:
        raise ValueError("no name")


class Nameless(Exception, metaclass=Unhashable):
    """An exception of such a class."""


class Speechless(Exception):
    """An exception that has no text."""

    def __str__(self) -> str:
        raise ValueError("no text")


odd_exceptions = pytest.mark.parametrize("odd", [Liar, Nameless, Speechless], ids=["liar", "nameless", "speechless"])
