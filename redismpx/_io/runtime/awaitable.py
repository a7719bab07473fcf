"""Whether an object can be awaited. Never calls the object: a proxy of something that is gone raises for anything."""

from __future__ import annotations

from collections.abc import Awaitable
from inspect import CO_ITERABLE_COROUTINE
from types import CoroutineType, GeneratorType
from typing import Any, TypeGuard


def is_awaitable(result: Any) -> TypeGuard[Awaitable[Any]]:
    """Tell whether `await result` works, as `inspect.isawaitable()` does, but by the type of the object only."""
    kind = type(result)
    if result is None or kind is CoroutineType:  # the two most common results of a callback
        return result is not None
    if kind is GeneratorType:
        return bool(result.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return any("__await__" in vars(base) for base in type.mro(kind))
