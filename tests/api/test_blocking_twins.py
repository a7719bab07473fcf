"""The blocking classes have the members, the signatures and the docstrings of the asyncio ones."""

from __future__ import annotations

import inspect
from typing import Any, get_overloads

import pytest

import redismpx
from redismpx import blocking, topics
from redismpx.blocking.described import as_blocking

TWINS = blocking.__all__

RENAMED = {"aclose": "close"}
"""Members of another name: close() of the blocking multiplexer waits as aclose() does."""

MORE = {
    "Multiplexer": ["apublish", "arequest", "arun", "publish_soon"],
    "ChannelSubscription": ["listen", "run"],
    "PatternSubscription": ["listen", "run"],
    "KeySubscription": ["listen", "run"],
    "StreamSubscription": ["dropped", "listen", "run"],
    "Promise": ["done"],
}
"""Members that only the blocking class has. Those of an asyncio future are not compared."""

OTHER_PARAMETERS = {
    "Multiplexer.serve": ("concurrency", "threads"),
    "Topics.serve": ("concurrency", "threads"),
    "Promise.get": ("", "timeout"),
} | {
    f"{name}.events": ("", "timeout")
    for name in ("ChannelSubscription", "PatternSubscription", "KeySubscription", "StreamSubscription")
}
"""The parameters that differ."""

OWN_WORDS = {
    "Multiplexer": ["apublish", "arequest", "arun", "publish_soon", "close", "drain", "new_channel_subscription",
                    "publish", "serve", "subscribe"],
    "ChannelSubscription": ["close", "events", "get", "get_nowait", "listen", "pending", "run"],
    "PatternSubscription": ["close", "events", "get", "get_nowait", "listen", "pending", "run"],
    "KeySubscription": ["close", "dropped", "events", "get", "get_nowait", "listen", "pending", "run"],
    "StreamSubscription": ["close", "dropped", "events", "get", "get_nowait", "listen", "pending", "position", "run"],
    "PromiseSubscription": ["clear", "new_promise"],
    "Promise": ["cancel", "done", "get", "set_exception", "set_result"],
    "Service": ["close", "in_flight"],
    "TopicReader": ["run"],
    "Topics": ["close", "every", "serve", "subscribe"],
}  # fmt: skip
"""Members whose docstring is not that of the asyncio member."""


def members(cls: type) -> dict[str, Any]:
    """The public members that the library defines, those of base classes included."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("redismpx"):
            found |= {name: member for name, member in vars(base).items() if not name.startswith("_")}
    return {name: getattr(member, "__func__", member) for name, member in found.items()}  # that of a class method


def asynchronous_class(name: str) -> Any:
    return getattr(redismpx, name, None) or getattr(topics, name)


def twins(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return members(asynchronous_class(name)), members(getattr(blocking, name))


def parameters(function: Any) -> list[tuple[object, ...]]:
    return [
        (parameter.name, parameter.kind, parameter.default, str(parameter.annotation).replace("_Encodable", "_S"))
        for parameter in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", TWINS)
def test_each_member_has_a_blocking_twin(name: str) -> None:
    """A method or property of the asyncio class is there in the blocking class, and the other way round."""
    theirs, ours = twins(name)
    assert {RENAMED.get(member, member) for member in theirs} | {*MORE.get(name, [])} == {*ours}
    for member, value in theirs.items():
        assert isinstance(value, property) == isinstance(ours[RENAMED.get(member, member)], property), member


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_signatures(name: str) -> None:
    """Parameters have the same names, kinds, defaults and types, in each overload too."""
    theirs, ours = twins(name)
    for member, value in theirs.items():
        if isinstance(value, property) or member == "aclose":
            continue
        twin = ours[member]
        without, own = OTHER_PARAMETERS.get(f"{name}.{member}", ("", ""))
        pairs = [(value, twin), *zip(get_overloads(value), get_overloads(twin), strict=True)]
        for each, other in pairs:
            left = [p for p in parameters(each) if p[0] != without]
            right = [p for p in parameters(other) if p[0] != own]
            if (name, member) == ("Multiplexer", "serve"):  # a blocking handler returns no awaitable
                left, right = ([p[:3] for p in side] for side in (left, right))
            assert left == right, member
        assert not inspect.iscoroutinefunction(twin), member
    assert parameters(redismpx.Multiplexer.__init__) == parameters(blocking.Multiplexer.__init__)


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_docstrings(name: str) -> None:
    """A blocking member has the docstring of the asyncio member, unless it is listed as different, and is."""
    theirs, ours = twins(name)
    own = OWN_WORDS[name]
    for member, value in ours.items():
        text = value.__doc__
        assert text, member
        assert "await " not in text.replace("await apublish() or arequest()", "") or member in ("apublish", "arun")
        asynchronous = theirs.get(member)
        if member not in own:
            assert text == as_blocking(asynchronous.__doc__), member
        elif asynchronous is not None:
            assert text != as_blocking(asynchronous.__doc__), member
    assert not {*own} - {*ours}


@pytest.mark.parametrize("name", TWINS)
def test_twins_have_the_same_protocols(name: str) -> None:
    """What is iterated or entered with `async` is iterated or entered without."""
    asynchronous, ours = asynchronous_class(name), getattr(blocking, name)
    for theirs, our in (("__aiter__", "__iter__"), ("__anext__", "__next__"), ("__aenter__", "__enter__")):
        assert hasattr(asynchronous, theirs) == hasattr(ours, our)
