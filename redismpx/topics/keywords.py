"""The keywords that a callback takes."""

from __future__ import annotations

__all__ = ["Keywords"]

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

_WARNED = 100  # keywords of one subscriber that are warned of: a publisher may send any


class Keywords:
    """Which keywords of a message a callback can be called with, besides the topic."""

    __slots__ = ("_taken", "_warned", "accepted")

    def __init__(self, callback: Callable[..., object]) -> None:
        """Read the parameters of a callback. One that does not tell them gets every keyword.

        Raises:
            TypeError: it cannot be called with the topic.
        """
        self.accepted: frozenset[str] | None = None
        """None: all but the name of the parameter that the topic is passed for."""
        self._taken = ""  # this name
        self._warned: set[str] = set()
        try:
            parameters = list(inspect.signature(callback).parameters.values())
        except Exception:  # noqa: BLE001, users' objects
            return
        first = parameters[0] if parameters else None
        if first is None or first.kind in (Parameter.KEYWORD_ONLY, Parameter.VAR_KEYWORD):
            raise TypeError(
                f"the callback is called as callback(topic, **message), but it takes no topic: {callback!r}"
            )
        if first.kind is Parameter.POSITIONAL_OR_KEYWORD:
            self._taken = first.name
        if not any(each.kind is Parameter.VAR_KEYWORD for each in parameters):
            named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
            self.accepted = frozenset([each.name for each in parameters if each.kind in named]) - {self._taken}

    def fit(self, message: dict[str, Any]) -> bool:
        """Tell whether the callback takes all keywords of a message."""
        return self._taken not in message if self.accepted is None else self.accepted.issuperset(message)

    def select(self, message: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Return the keywords that the callback takes, and of the others those that are to be warned of, each once."""
        accepted = self.accepted
        left_out = [name for name in message if (name == self._taken if accepted is None else name not in accepted)]
        new = [name for name in left_out if name not in self._warned][: _WARNED - len(self._warned)]
        self._warned.update(new)
        return {name: value for name, value in message.items() if name not in left_out}, new
