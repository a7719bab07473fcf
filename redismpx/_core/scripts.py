"""The scripts that append to a stream and read it, and the keys beside it. No I/O.

An entry has the fields `prev`, the id that the stream had given out last before it, and `data`, the payload. A live
message is `<previous id> <id> <payload>` on the channel with the name of the stream. Each script is one atomic step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from typing import NamedTuple

from .wire import pack

SLOTS = 16_384


class Script:
    """The text of a script, and the digest by which a server knows it."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text: bytes = text.strip().encode()
        self.digest: bytes = sha1(self.text, usedforsecurity=False).hexdigest().encode()


class Evaluation(NamedTuple):
    """A script with its arguments."""

    script: Script
    words: tuple[bytes, ...]
    """The number of the keys, the keys, and the arguments."""

    @property
    def by_digest(self) -> bytes:
        """The command for a server that has the script."""
        return pack(b"EVALSHA", self.script.digest, *self.words)

    @property
    def by_text(self) -> bytes:
        """The command for any server."""
        return pack(b"EVAL", self.script.text, *self.words)


def evaluate(script: Script, keys: tuple[bytes, ...], *arguments: bytes) -> Evaluation:
    """Return a script with its arguments."""
    return Evaluation(script, (b"%d" % len(keys), *keys, *arguments))


_LAST = """
local last, added, length = '0-0', false, 0
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1]
    elseif info[i] == 'entries-added' then added = info[i + 1]
    elseif info[i] == 'length' then length = info[i + 1] end
  end
end
"""

APPEND = Script(
    """
if redis.acl_check_cmd and not redis.acl_check_cmd(ARGV[1], KEYS[1], '') then
  return redis.error_reply('NOPERM No permissions to publish on the channel of this stream')
end
if KEYS[2] then
  local known = redis.call('GET', KEYS[2])
  if known then return known end
end
"""
    + _LAST
    + """
local id
if ARGV[3] ~= '' then
  id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[3], '*', 'prev', last, 'data', ARGV[2])
else
  id = redis.call('XADD', KEYS[1], '*', 'prev', last, 'data', ARGV[2])
end
if ARGV[4] ~= '' then
  local oldest = math.max(0, tonumber(string.match(id, '%d+')) - tonumber(ARGV[4]))
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', oldest))
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
else
  redis.call('PERSIST', KEYS[1])
end
if KEYS[2] then redis.call('SET', KEYS[2], id, 'EX', 600) end
redis.call(ARGV[1], KEYS[1], last .. ' ' .. id .. ' ' .. ARGV[2])
return id
"""
)
"""Keys: the stream; perhaps the key that makes it idempotent. Arguments: PUBLISH or SPUBLISH, the payload, the number
of entries to keep, their age in milliseconds. Replies with the id of the entry."""

_ENTRIES = """
local after, limit, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local from, is_anchored, is_end = after == '' and '-' or after, 0, 0
local n, ids, links, page = 0, {}, {}, {}
while is_end == 0 and n < limit and room > 0 do
  local count = math.min(limit - n, n + 16, 128)
  local entries = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', from == after and count + 1 or count)
  if from == after then
    if entries[1] and entries[1][1] == after then
      is_anchored = 1
      table.remove(entries, 1)
    elseif entries[count + 1] then
      table.remove(entries)
    end
  end
  for i = 1, #entries do
    local link, data, fields = '', '', entries[i][2]
    if fields[1] == 'prev' and fields[3] == 'data' and not fields[5] then
      link, data = fields[2], fields[4]
    else
      for f = 1, #fields, 2 do
        if fields[f] == 'data' then data = fields[f + 1] elseif fields[f] == 'prev' then link = fields[f + 1] end
      end
    end
    n, room = n + 1, room - #data
    ids[n], links[n], page[n] = entries[i][1], link, data
    if room <= 0 then break end
  end
  if n > 0 then from = '(' .. ids[n] end
  if from == '(' .. last or room > 0 and #entries < count then is_end = 1 end
end
"""
"""Reads the entries behind an id, in batches. They grow, because each call takes time. A batch is read whole before its
bytes are counted, so the first has few entries, which may be large, and none has more than 128."""

PAGE = Script(
    _LAST
    + """
if ARGV[2] == '0' or last == '0-0' then return {last, 0, 1, '', {}, {}} end
"""
    + _ENTRIES
    + """
if after == '0-0' and added == length then is_anchored = 1 end
return {last, is_anchored, is_end, table.concat(ids, ' '), links, page}
"""
)
"""Key: the stream. Arguments: the id before the page, empty for the oldest entry that is kept; the number of entries;
their bytes. Replies with the last id that was given out, whether the id before the page is there, whether no entry
follows, and then the ids of the entries with a space between two of them, the previous id of each, and the payloads."""

HISTORY = Script(
    """
local last = '18446744073709551615-18446744073709551615'
"""
    + _ENTRIES
    + """
return {is_end, table.concat(ids, ' '), page}
"""
)
"""The same key and arguments, for a reader that follows no links: half of the values to parse. Replies with whether no
entry follows, the ids, and the payloads."""

LOAD = Script("return redis.call('HGET', KEYS[1], ARGV[1])")
"""Key: the hash of positions. Argument: the name of the position. Replies with an id, or with nothing."""

SAVE = Script(
    """
local known = redis.call('HGET', KEYS[1], ARGV[1])
if known and ARGV[3] == '' then
  local a, b = string.match(known, '(%d+)-(%d+)')
  local c, d = string.match(ARGV[2], '(%d+)-(%d+)')
  if a == c then a, c = b, d end
  if #a > #c or #a == #c and a >= c then return known end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return ARGV[2]
"""
)
"""Key: the hash of positions. Arguments: the name of the position, the id, and a word that lets it go back. Replies
with the id that is saved."""

DELETE = Script("return tostring(redis.call('HDEL', KEYS[1], ARGV[1]))")
"""Key: the hash of positions. Argument: the name of the position. Replies with the number of deleted positions, in
digits."""


def positions_key(name: bytes, slot_of: Callable[[bytes], int]) -> bytes:
    """Return the key of the hash with the positions in a stream."""
    return beside(name, slot_of) + b":mpx:positions"


def once_key(name: bytes, key: bytes, slot_of: Callable[[bytes], int]) -> bytes:
    """Return the key that makes an append idempotent."""
    return beside(name, slot_of) + b":mpx:key:" + key


@lru_cache(1_024)
def beside(name: bytes, slot_of: Callable[[bytes], int]) -> bytes:
    """Return the beginning of keys in the slot of a name. Most often it begins with the name, as rights may need."""
    tag = name.partition(b"{")[2].partition(b"}")
    if tag[0] and tag[1]:
        return name
    if name and b"{" not in name and b"}" not in name:
        return b"%b{%b}" % (name, name)
    slot = slot_of(name)  # no tag can be made of the name itself
    numbers = (b"%d" % number for number in range(100 * SLOTS))
    return b"{%b}%b" % (next(number for number in numbers if slot_of(number) == slot), name)
