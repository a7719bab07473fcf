"""RESP as this library speaks it: commands to bytes, replies to what they answer. No I/O, no state."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import hiredis

from .bisection import Probe

MESSAGE = b"message"
PMESSAGE = b"pmessage"
SMESSAGE = b"smessage"
PONG = b"pong"  # the answer to PING on a RESP2 connection that has subscriptions

NOT_ENOUGH = object()
"""What a parser returns when no complete reply is left in it."""


class IdentityEnum(enum.Enum):
    """An enum that is hashed by identity, in C; enum.Enum hashes its name in Python, which shows with 100,000 names."""


IdentityEnum.__hash__ = object.__hash__  # type: ignore[method-assign]


class Kind(IdentityEnum):
    """What a name stands for. The same bytes may be wanted as each of them, independently."""

    CHANNEL = "channel"
    PATTERN = "pattern"
    SHARD_CHANNEL = "shard channel"


class Verb(IdentityEnum):
    """The commands that are ever sent. A confirmation begins with the command's name in lower case."""

    SUBSCRIBE = b"subscribe", Kind.CHANNEL, True
    UNSUBSCRIBE = b"unsubscribe", Kind.CHANNEL, False
    PSUBSCRIBE = b"psubscribe", Kind.PATTERN, True
    PUNSUBSCRIBE = b"punsubscribe", Kind.PATTERN, False
    SSUBSCRIBE = b"ssubscribe", Kind.SHARD_CHANNEL, True
    SUNSUBSCRIBE = b"sunsubscribe", Kind.SHARD_CHANNEL, False
    PING = b"ping", Kind.CHANNEL, False

    def __init__(self, command: bytes, kind: Kind, joins: bool) -> None:
        self.command = command
        self.kind = kind
        """The kind of the names that this command carries."""
        self.joins = joins
        """Whether the command asks for names rather than giving them up."""


JOIN = {verb.kind: verb for verb in Verb if verb.joins}
LEAVE = {verb.kind: verb for verb in Verb if not (verb.joins or verb is Verb.PING)}

CONFIRMATIONS = {verb.command: verb for verb in Verb if verb is not Verb.PING}
"""The first element of a confirmation, to the command that it confirms."""


@dataclass(slots=True)
class Command:
    """One command, and how far it is answered: the server confirms its names one by one, in order."""

    verb: Verb
    names: tuple[bytes, ...] = ()
    answered: int = 0
    probe: Probe | None = None  # of a search for forbidden names; None for an ordinary command

    def as_probe(self) -> Probe:
        """Return the names without a reply as a probe."""
        names = self.names[self.answered :]
        return Probe(names) if self.probe is None else self.probe._replace(names=names)

    def __bytes__(self) -> bytes:
        # Length-prefixed arguments only, so a name is data whatever bytes it has.
        return bytes(hiredis.pack_command((self.verb.command.upper(), *self.names)))  # type: ignore[arg-type]


class ProtocolViolation(Exception):
    """The server said something that answers nothing which was sent; what it holds is unknowable."""


# Errors about the server's moment rather than about the names in the command.
_PASSING = frozenset({"BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
# Errors about the connection as a whole.
_FATAL = frozenset({"NOAUTH", "WRONGPASS"})


class Refusal(enum.Enum):
    """What an error reply to a command means for it."""

    NAMES = "names"
    PASSING = "passing"
    FATAL = "fatal"
    MOVED = "moved"  # another node of the cluster owns the slot of the names


def read_refusal(error: Exception) -> tuple[Refusal, str]:
    """Tell what an error reply means, and its text. `redis-py` strips the code from some texts; hiredis does not."""
    code = getattr(error, "status_code", None)
    text = str(error) if code is None else f"{code} {error}"
    word = text.partition(" ")[0]
    if word in _PASSING:
        return Refusal.PASSING, text
    if word in _FATAL:
        return Refusal.FATAL, text
    if word == "MOVED":
        return Refusal.MOVED, text
    return Refusal.NAMES, text


class Redirection(NamedTuple):
    """Where a slot of a cluster is now."""

    slot: int
    host: str  # empty: that of the node that says so
    port: int


def read_redirection(text: str) -> Redirection | None:
    """Take `MOVED slot host:port` apart; None if it is anything else."""
    try:
        word, slot, address = text.split(" ")
        host, _, port = address.rpartition(":")
        return Redirection(int(slot), host, int(port)) if word == "MOVED" else None
    except ValueError:
        return None


def new_parser() -> hiredis.Reader:
    """Build a parser of replies: bytes stay bytes, an error reply comes out as an exception object."""
    return hiredis.Reader(notEnoughData=NOT_ENOUGH)


_GLOB = frozenset(b"\\*?[")  # the characters that mean something in a Redis glob; no others do


def escape_glob(name: bytes) -> bytes:
    """Return the pattern that matches `name` and nothing else."""
    return b"".join(b"\\%c" % byte if byte in _GLOB else b"%c" % byte for byte in name)
