"""The Pub/Sub of a Redis server: who is subscribed to what, and the replies to commands. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final

import hiredis

_ERRORS = {
    "denied": "NOPERM User default has no permissions to run the '{}' command",
    "channel": "NOPERM No permissions to access a channel",
    "arguments": "ERR wrong number of arguments for '{}' command",
    "context": "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed"
    " in this context",
    "unknown": "ERR unknown command '{}': MemoryServer has Pub/Sub only; use redismpx.embedded.Server",
}
_SUBSCRIBES: Final = {"subscribe": "channel", "psubscribe": "pattern", "ssubscribe": "shard"}
_UNSUBSCRIBES: Final = {"unsubscribe": "channel", "punsubscribe": "pattern", "sunsubscribe": "shard"}
_BESIDE = {*_SUBSCRIBES, *_UNSUBSCRIBES, "ping", "quit", "reset"}
_CONTAINERS = {"client", "pubsub"}
_ALWAYS = {"hello", "quit", "reset"}
_COMMANDS = {*_BESIDE, "hello", "client", "echo", "select", "publish", "spublish", "pubsub", "info", "role"}
_LEAST = dict.fromkeys([*_SUBSCRIBES, "pubsub", "client", "echo"], 1) | {"publish": 2, "spublish": 2}
_INFO = b"role:master\r\nconnected_slaves:0\r\nrepl_backlog_active:0\r\ncluster_enabled:0\r\n"


class Push(list[Any]):
    """A message or a confirmation, which RESP3 marks as such."""


class Failure(Exception):
    """An error reply."""


def fail(kind: str, command: str = "") -> Failure:
    """Return the error reply of a kind, about a command."""
    return Failure(_ERRORS[kind].format(command))


class Rights:
    """What the clients may do: the rules of ACL SETUSER about commands and channels."""

    def __init__(self) -> None:
        self._everything = True
        self._others: set[str] = set()  # commands for which it is the other way round
        self.channels: list[bytes] | None = None
        """The patterns of channels that are permitted; None: all."""

    def apply(self, rules: Iterable[str]) -> None:
        """Change the rights. ValueError: no such rule, or one about more than commands and channels."""
        for rule in rules:
            if rule in ("+@all", "allcommands", "-@all", "nocommands"):
                self._everything, self._others = rule in ("+@all", "allcommands"), set()
            elif rule in ("allchannels", "&*"):
                self.channels = None
            elif rule == "resetchannels":
                self.channels = []
            elif rule[:1] == "&":
                self.channels = [*(self.channels or []), rule[1:].encode()]
            elif rule[:1] in ("+", "-") and rule[1:].lower() in _COMMANDS:
                change = self._others.discard if (rule[0] == "+") == self._everything else self._others.add
                change(rule[1:].lower())
            else:
                raise ValueError(f"the server rejects the rules {rule}: MemoryServer has commands and channels only")

    def permit(self, command: str) -> bool:
        """Tell whether the clients may run a command."""
        return command in _ALWAYS or (command not in self._others) == self._everything

    def permit_name(self, name: bytes, *, pattern: bool = False) -> bool:
        """Tell whether the clients may use a channel, or a pattern, which is compared as a text."""
        if self.channels is None:
            return True
        return any(name == each if pattern else translate(each).fullmatch(name) for each in self.channels)


def translate(glob: bytes) -> re.Pattern[bytes]:
    """Return a glob pattern of Redis as a regular expression."""
    parts = re.findall(rb"\\.|\[\^?(?:\\.|[^\]\\])*\]|.", glob, re.DOTALL)
    return re.compile(b"".join(map(_translate_part, parts)), re.DOTALL)


def _translate_part(part: bytes) -> bytes:
    if part in (b"*", b"?"):
        return {b"*": b".*", b"?": b"."}[part]
    if len(part) > 1 and part[:1] == b"[":
        inside = part[1:-1]
        negated = inside[:1] == b"^"
        inside = re.sub(rb"([\[&~|])", rb"\\\1", inside[negated:])
        return b"[" + b"^" * negated + inside + b"]" if inside else b"."[:negated] or b"(?!)"
    return re.escape(part[1:] if len(part) > 1 else part)


class PubSub:
    """Who is subscribed to what."""

    def __init__(self) -> None:
        self.rights: Rights = Rights()
        self.dropped: set[bytes] = set()
        """The channels whose messages are lost on their way to subscribers."""
        self.names: dict[str, dict[bytes, dict[PubSubClient, None]]] = {"channel": {}, "pattern": {}, "shard": {}}
        """The subscribers of each name, by its kind, in the order in which they came."""
        self._globs: dict[bytes, re.Pattern[bytes]] = {}

    def add(self, kind: str, name: bytes, session: PubSubClient) -> None:
        """Subscribe a client to a name."""
        self.names[kind].setdefault(name, {})[session] = None
        if kind == "pattern" and name not in self._globs:
            self._globs[name] = translate(name)

    def remove(self, kind: str, name: bytes, session: PubSubClient) -> None:
        """Unsubscribe a client from a name."""
        subscribers = self.names[kind].get(name, {})
        subscribers.pop(session, None)
        if not subscribers:
            self.names[kind].pop(name, None)
            if kind == "pattern":
                self._globs.pop(name, None)

    def publish(self, kind: str, channel: bytes, data: bytes) -> int:
        """Send a message to the subscribers; return how many times it was sent."""
        word = b"message" if kind == "channel" else b"smessage"
        sent = [(session, Push([word, channel, data])) for session in self.names[kind].get(channel, ())]
        if kind == "channel":
            for pattern, subscribers in self.names["pattern"].items():
                if self._globs[pattern].fullmatch(channel):
                    sent += [(session, Push([b"pmessage", pattern, channel, data])) for session in subscribers]
        if channel not in self.dropped:
            for session, message in sent:
                session.send(message)
        return len(sent)

    def without_rights(self) -> list[PubSubClient]:
        """Return the clients that are subscribed to what they may not be any more."""
        return [
            session
            for kind, names in self.names.items()
            for name, subscribers in names.items()
            if not self.rights.permit_name(name, pattern=kind == "pattern")
            for session in subscribers
        ]


class PubSubClient:
    """One client's connection, as the server sees it.

    Args:
        pubsub: what it is a client of.
        write: sends bytes to the client; None closes the connection.
    """

    def __init__(self, pubsub: PubSub, write: Callable[[bytes | None], object]) -> None:
        self._pubsub = pubsub
        self.write = write
        self._reader = hiredis.Reader()
        self._protocol = 2
        self._names: dict[str, dict[bytes, None]] = {"channel": {}, "pattern": {}, "shard": {}}

    def receive(self, data: bytes) -> None:
        """Run the commands that are complete."""
        self._reader.feed(data)
        while (command := self._reader.gets()) is not False:
            try:
                replies = self._run(command[0].decode().lower(), command[1:])
            except Failure as error:
                replies = [error]
            for reply in replies:
                self.send(reply)

    def send(self, reply: Any) -> None:
        """Send one reply or message."""
        self.write(_encode(reply, self._protocol))

    def end(self) -> None:
        """Forget what the client is subscribed to."""
        for kind, names in self._names.items():
            for name in names:
                self._pubsub.remove(kind, name, self)
            names.clear()

    def _run(self, command: str, words: list[bytes]) -> list[Any]:
        rights, is_subscribed = self._pubsub.rights, any(self._names.values())
        if command not in _COMMANDS:
            raise fail("unknown", command)
        if not rights.permit(command):
            raise fail("denied", command)
        if len(words) < _LEAST.get(command, 0):
            raise fail("arguments", command)
        if is_subscribed and self._protocol == 2 and command not in _BESIDE:
            raise fail("context", f"{command}|{words[0].decode().lower()}" if command in _CONTAINERS else command)
        if command in _SUBSCRIBES:
            return self._subscribe(command, _SUBSCRIBES[command], words)
        if command in _UNSUBSCRIBES:
            return self._unsubscribe(command, _UNSUBSCRIBES[command], words)
        if command in ("publish", "spublish"):
            if not rights.permit_name(words[0]):
                raise fail("channel")
            return [self._pubsub.publish("channel" if command == "publish" else "shard", words[0], words[1])]
        if command == "ping" and is_subscribed and self._protocol == 2:
            return [[b"pong", words[0] if words else b""]]
        reply: list[Any] = (self._ask_pubsub if command == "pubsub" else getattr(self, f"_{command}"))(*words)
        return reply

    # --- subscriptions

    def _subscribe(self, command: str, kind: str, names: list[bytes]) -> list[Any]:
        if not all(self._pubsub.rights.permit_name(name, pattern=kind == "pattern") for name in names):
            raise fail("channel")
        replies = []
        for name in names:
            self._names[kind][name] = None
            self._pubsub.add(kind, name, self)
            replies.append(Push([command.encode(), name, self._count(kind)]))
        return replies

    def _unsubscribe(self, command: str, kind: str, names: list[bytes]) -> list[Any]:
        replies: list[Any] = []
        every: list[Any] = names or list(self._names[kind]) or [None]
        for name in every:
            if name is not None:
                self._names[kind].pop(name, None)
                self._pubsub.remove(kind, name, self)
            replies.append(Push([command.encode(), name, self._count(kind)]))
        return replies

    def _count(self, kind: str) -> int:
        if kind == "shard":
            return len(self._names["shard"])
        return len(self._names["channel"]) + len(self._names["pattern"])

    # --- other commands

    def _hello(self, protocol: bytes = b"", *options: bytes) -> list[Any]:
        if protocol not in (b"", b"2", b"3"):
            raise Failure("NOPROTO unsupported protocol version")
        self._protocol = int(protocol or self._protocol)
        return [{b"server": b"redis", b"version": b"7.4.0", b"proto": self._protocol, b"id": 1, b"mode": b"standalone",
                 b"role": b"master", b"modules": []}]  # fmt: skip

    def _client(self, *words: bytes) -> list[Any]:
        return ["OK"]

    def _ping(self, *words: bytes) -> list[Any]:
        return [words[0] if words else "PONG"]

    def _echo(self, word: bytes) -> list[Any]:
        return [word]

    def _select(self, *words: bytes) -> list[Any]:
        return ["OK"]

    def _quit(self) -> list[Any]:
        self.send("OK")
        self.write(None)
        return []

    def _reset(self) -> list[Any]:
        self.end()
        self._protocol = 2
        return ["RESET"]

    def _info(self, *sections: bytes) -> list[Any]:
        return [_INFO]

    def _role(self) -> list[Any]:
        return [[b"master", 0, []]]

    def _ask_pubsub(self, *words: bytes) -> list[Any]:
        kind = "shard" if words[0][:5].lower() == b"shard" else "channel"
        names = self._pubsub.names[kind]
        match words[0].lower().removeprefix(b"shard"):
            case b"channels":
                matches = translate(words[1] if len(words) > 1 else b"*").fullmatch
                return [[name for name in names if matches(name)]]
            case b"numsub":
                return [[each for name in words[1:] for each in (name, len(names.get(name, ())))]]
            case b"numpat":
                return [len(self._pubsub.names["pattern"])]
        raise Failure("ERR unknown subcommand of PUBSUB")


def _encode(reply: Any, protocol: int) -> bytes:
    match reply:
        case None:
            return b"_\r\n" if protocol == 3 else b"$-1\r\n"
        case str():
            return b"+%s\r\n" % reply.encode()
        case Failure():
            return b"-%s\r\n" % str(reply).encode()
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(reply), reply)
        case dict():
            pairs = [_encode(each, protocol) for pair in reply.items() for each in pair]
            return (b"%%%d\r\n" % len(reply) if protocol == 3 else b"*%d\r\n" % len(pairs)) + b"".join(pairs)
    mark = b">" if protocol == 3 and isinstance(reply, Push) else b"*"
    return mark + b"%d\r\n" % len(reply) + b"".join(_encode(each, protocol) for each in reply)
