"""Keyspace notifications: the names of their channels, what a message says, and the setting of a server. No I/O.

https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/, and for subkeys
https://redis.io/docs/latest/develop/pubsub/subkeyspace-notifications/. Each event has a channel of its key:

    __keyspace@<db>__:<key>       <event>
    __subkeyspace@<db>__:<key>    <event>|<length>:<subkey>,<length>:<subkey>...

Keys and subkeys are any bytes. An event with a `|` has no message in the second form.
"""

from __future__ import annotations

from typing import NamedTuple

from .wire import GLOB_CHARACTERS, Kind

NOTIFICATIONS = b"__key", b"__subkey"
"""The beginnings of the names of all keyspace notifications."""


_MOST_DIGITS = 10  # of the length of a subkey, which has at most 512 MB


class KeyName(NamedTuple):
    """The name under which a server publishes the events of some keys."""

    pattern: bytes
    """The keys, as a glob pattern."""
    name: bytes
    """What to subscribe to."""
    kind: Kind
    """A channel if the pattern matches one key only, otherwise a pattern."""
    key: bytes | None
    """The key, if the pattern matches one only."""
    has_subkeys: bool
    """Whether the messages name subkeys."""

    def event_of(self, data: bytes) -> bytes:
        """Return the event in a payload."""
        return data.partition(b"|")[0] if self.has_subkeys else data


def new_key_name(pattern: bytes, db: int, *, has_subkeys: bool = False) -> KeyName:
    """Return the name for the keys of one database that match a glob pattern."""
    prefix = b"__%s@%d__:" % (b"subkeyspace" if has_subkeys else b"keyspace", db)
    key = exact_key(pattern)
    if key is None:
        return KeyName(pattern, prefix + pattern, Kind.PATTERN, None, has_subkeys)
    return KeyName(pattern, prefix + key, Kind.CHANNEL, key, has_subkeys)


def exact_key(pattern: bytes) -> bytes | None:
    """Return the only key that a glob pattern matches; None if it may match several."""
    key = bytearray()
    bytes_left = iter(pattern)
    for byte in bytes_left:
        if byte == 0x5C:  # a backslash escapes the next byte; at the end, it stands for itself
            byte = next(bytes_left, byte)
        elif byte in GLOB_CHARACTERS:
            return None
        key.append(byte)
    return bytes(key)


class ParsedKeyEvent(NamedTuple):
    """What one message says."""

    key: bytes
    event: bytes
    db: int
    subkeys: tuple[bytes, ...]


def parse_key_event(channel: bytes, data: bytes) -> ParsedKeyEvent:
    """Parse a message on a channel of `new_key_name()`. Subkeys that are not well-formed are left out, all of them."""
    prefix, _, key = channel.partition(b"__:")  # the prefix has no such bytes, whatever the key has
    db = int(prefix.rpartition(b"@")[2])
    if not channel.startswith(b"__sub"):
        return ParsedKeyEvent(key, data, db, ())
    event, _, rest = data.partition(b"|")
    return ParsedKeyEvent(key, event, db, _parse_subkeys(rest))


def _parse_subkeys(text: bytes) -> tuple[bytes, ...]:
    subkeys: list[bytes] = []
    position = 0
    while position < len(text):
        colon = text.find(b":", position)
        digits = text[position:colon]
        if colon < 0 or not digits.isdigit() or len(digits) > _MOST_DIGITS:
            return ()
        position = colon + 1 + int(digits)
        if text[position : position + 1] not in (b",", b"") or position > len(text):
            return ()
        subkeys.append(text[colon + 1 : position])
        position += 1
    return tuple(subkeys)


# --- the setting `notify-keyspace-events`

ALL_CLASSES = "g$lshzxetd"
"""The classes of events that the letter A stands for."""

CLASSES_OF_EVENTS = {
    event.encode(): letter
    for letter, events in {
        "g": "del rename_from rename_to copy_to move_from move_to restore expire persist",
        "$": "set setrange incrby incrbyfloat append",
        "l": "lpush rpush lpop rpop linsert lset lrem ltrim sortstore",
        "s": "sadd srem spop sinterstore sunionstore sdiffstore",
        "h": "hset hincrby hincrbyfloat hdel hexpire hexpired hpersist",
        "z": "zadd zincr zrem zrembyscore zrembyrank zdiffstore zinterstore zunionstore",
        "t": "xadd xdel xtrim xsetid",
        "x": "expired",
        "e": "evicted",
        "n": "new",
        "m": "keymiss",
    }.items()
    for event in events.split()
}
"""The letter that turns on an event. Servers and their modules have more events."""


def missing_flags(flags: str, name: KeyName, events: frozenset[bytes] | None) -> str:
    """Return the letters that the setting of a server lacks for these events; None stands for any events."""
    channels = "S" if name.has_subkeys else "K"
    enabled = set(flags) | set(ALL_CLASSES if "A" in flags else "")
    if events is None:
        any_class = enabled & {*ALL_CLASSES, "n", "m", "o", "c"}
        wanted = [channels] if any_class else [channels, "A"]
    else:
        wanted = [channels, *sorted({CLASSES_OF_EVENTS[event] for event in events if event in CLASSES_OF_EVENTS})]
    return "".join([letter for letter in wanted if letter not in enabled])
