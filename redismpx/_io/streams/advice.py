"""What to do about the errors that a server replies to `append()`. No I/O."""

from __future__ import annotations

from ..redispy.errors import ResponseError

_NOTES = (
    ("OOM ", "Redis has reached maxmemory: raise it, or keep less with max_length and max_age"),
    ("WRONGTYPE", "the key with this name holds another type: choose a name that no other key has"),
    ("READONLY", "this server is a replica: the multiplexer connects again, and the call may be repeated"),
    ("MOVED ", "this is one node of a cluster: give the multiplexer a redis.asyncio.RedisCluster client"),
    ("CROSSSLOT", "the keys of the stream are in several slots, which is a fault of this library"),
    ("NOPERM", "see ACL SETUSER ... ~key &channel +eval +evalsha +xadd +xtrim +xinfo|stream +publish and others"),
)


def advise(error: ResponseError) -> None:
    """Add a note to an error of `append()` that says what to do."""
    text = str(error)
    for word, advice in _NOTES:
        if word in text or type(error).__name__ == {"OOM ": "OutOfMemoryError", "NOPERM": "NoPermissionError"}.get(
            word
        ):
            error.add_note(advice)
            return
