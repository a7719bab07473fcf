"""RESP, as far as it is used here: commands to bytes, and the meaning of replies. No I/O, no state."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

import hiredis

from .bisection import Probe

MESSAGE = b"message"
PMESSAGE = b"pmessage"
SMESSAGE = b"smessage"
PONG = b"pong"  # the reply to PING on a RESP2 connection that has subscriptions

NOT_ENOUGH = object()
"""A parser returns this when it has no complete reply left."""


class IdentityEnum(enum.Enum):
    """An enum that is hashed by identity, in C. `enum.Enum` hashes in Python, which is slow with 100,000 names."""


IdentityEnum.__hash__ = object.__hash__  # type: ignore[method-assign]


class Kind(IdentityEnum):
    """What a name stands for. The same bytes of two kinds are two names."""

    CHANNEL = "channel"
    PATTERN = "pattern"
    SHARD_CHANNEL = "shard channel"
    KEYS = "key pattern"  # only for a deployment: on the wire, it is a pattern or a channel at each primary


class Verb(IdentityEnum):
    """The commands that are sent. A confirmation begins with the command's name in lower case."""

    SUBSCRIBE = b"subscribe", Kind.CHANNEL, True
    UNSUBSCRIBE = b"unsubscribe", Kind.CHANNEL, False
    PSUBSCRIBE = b"psubscribe", Kind.PATTERN, True
    PUNSUBSCRIBE = b"punsubscribe", Kind.PATTERN, False
    SSUBSCRIBE = b"ssubscribe", Kind.SHARD_CHANNEL, True
    SUNSUBSCRIBE = b"sunsubscribe", Kind.SHARD_CHANNEL, False
    PING = b"ping", Kind.CHANNEL, False
    AUTH = b"auth", Kind.CHANNEL, False

    def __init__(self, command: bytes, kind: Kind, subscribes: bool) -> None:
        self.command = command
        self.kind = kind
        """The kind of the names in the command."""
        self.subscribes = subscribes
        """Whether the command subscribes; the others unsubscribe, but for PING and AUTH."""


NAMELESS = frozenset({Verb.PING, Verb.AUTH})
"""The commands without names: each has one reply."""

SUBSCRIBE_VERBS = {verb.kind: verb for verb in Verb if verb.subscribes}
UNSUBSCRIBE_VERBS = {verb.kind: verb for verb in Verb if not (verb.subscribes or verb in NAMELESS)}

CONFIRMATIONS = {verb.command: verb for verb in Verb if verb not in NAMELESS}
"""The first element of a confirmation, to the command that it confirms."""


@dataclass(slots=True)
class Command:
    """One command, and how many of its names are confirmed: the server confirms them one by one, in order."""

    verb: Verb
    names: tuple[bytes, ...] = ()
    confirmed: int = 0
    probe: Probe | None = None  # of a search for forbidden names; an ordinary command has none

    @property
    def name_bytes(self) -> int:
        """The bytes of all its names."""
        return sum(map(len, self.names))

    @property
    def held_back(self) -> tuple[bytes, ...]:
        """The names of its search that wait for its reply."""
        return () if self.probe is None else self.probe.held_back

    def as_probe(self) -> Probe:
        """Return the names without a reply as a probe."""
        names = self.names[self.confirmed :]
        return Probe(names) if self.probe is None else self.probe._replace(names=names)

    def __bytes__(self) -> bytes:
        return pack(self.verb.command.upper(), *self.names)


def login_command(*credentials: str) -> bytes:
    """Return the bytes of AUTH with a user and a password, or with only a password. No `Command` holds them."""
    return pack(b"AUTH", *credentials)


def pack(*words: bytes | str) -> bytes:
    """Return the bytes of a command. Each word has a length prefix, so it may have any bytes."""
    return bytes(hiredis.pack_command(words))  # type: ignore[arg-type]


class ProtocolViolation(Exception):
    """The server sent a reply that no command asked for. So what it has subscribed is not known any more."""


class ErrorKind(enum.Enum):
    """What an error reply is about."""

    REJECTED = "rejected"  # the names in the command
    TRANSIENT = "transient"  # the server, which is busy or starting
    FATAL = "fatal"  # the connection
    MOVED = "moved"  # the slot of the names, which another node of the cluster has


TRANSIENT_ERRORS = frozenset({"BUSY", "LOADING", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"})
FATAL_ERRORS = frozenset({"NOAUTH", "WRONGPASS"})


def classify_error(error: Exception) -> tuple[ErrorKind, str]:
    """Return what an error reply is about, and its text with the code. redis-py strips the code from some texts."""
    code = getattr(error, "status_code", None)
    text = str(error) if code is None else f"{code} {error}"
    word = text.partition(" ")[0]
    if word in TRANSIENT_ERRORS:
        return ErrorKind.TRANSIENT, text
    if word in FATAL_ERRORS:
        return ErrorKind.FATAL, text
    if word == "MOVED":
        return ErrorKind.MOVED, text
    return ErrorKind.REJECTED, text


class Redirection(NamedTuple):
    """The address of the node that has a slot now."""

    slot: int
    host: str  # empty: the host of the node that sent the error
    port: int


def parse_redirection(text: str) -> Redirection | None:
    """Parse `MOVED slot host:port`; return None for any other text."""
    try:
        word, slot, address = text.split(" ")
        host, _, port = address.rpartition(":")
        return Redirection(int(slot), host, int(port)) if word == "MOVED" else None
    except ValueError:
        return None


def new_parser() -> hiredis.Reader:
    """Return a parser of replies. Bytes stay bytes, and an error reply becomes an exception object."""
    return hiredis.Reader(notEnoughData=NOT_ENOUGH)


GLOB_CHARACTERS = frozenset(b"\\*?[")  # no other character has a meaning in a Redis glob


def escape_glob(name: bytes) -> bytes:
    """Return the pattern that matches `name` and nothing else."""
    return b"".join(b"\\%c" % byte if byte in GLOB_CHARACTERS else b"%c" % byte for byte in name)
