"""The rule of streams against a model of a server: what is delivered is what was appended, or a gap is in its place."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from redismpx._core import recovery
from redismpx._core.recovery import ZERO, Cursor, CursorState, HistoryGap, Page, PageRequest, Stream, id_key, verify

PAGE = 3  # entries of a page


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few live messages are kept, and few ids are remembered."""
    monkeypatch.setattr(recovery, "RECENT", 4)
    monkeypatch.setattr(recovery, "COVERED", 3)


class Entry(NamedTuple):
    """An entry that was appended once, whether or not it is still there."""

    id: bytes
    previous: bytes
    data: bytes
    is_foreign: bool
    before: int  # the number of the entry that was the last one when this was appended; -1: none


def new_page(
    last: bytes, entries: list[tuple[bytes, bytes, bytes]], *, anchored: bool = True, end: bool = True
) -> Page:
    """Return a page with entries, of which each is an id, the previous id and a payload."""
    ids, links, payloads = zip(*entries, strict=True) if entries else ((), (), ())
    return Page(last, anchored, end, ids, links, payloads)


class Server:
    """A stream of a server, and the subscribed connection to it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []  # kept ones
        self.last = ZERO
        self.last_number = -1
        self.all: dict[bytes, tuple[int, Entry]] = {}  # by payload
        self.skippable: set[int] = set()  # unseen entries at the end of a history that was flushed
        self.unseen: set[int] = set()  # entries whose live messages were never received
        self.clock = 100
        self.used: set[bytes] = set()
        self.frames: deque[bytes] = deque()
        self.is_connected = False
        self.lacks_last = False  # whether the last entry was deleted: an entry of others behind it would hide that

    def new_id(self) -> bytes:
        time, number = id_key(self.last)
        time, number = (self.clock, 0) if self.clock > time else (time, number + 1)
        while b"%d-%d" % (time, number) in self.used:  # the same id twice cannot be told apart
            number += 1
        return b"%d-%d" % (time, number)

    def append(self, *, is_foreign: bool) -> None:
        entry_id = self.new_id()
        self.used.add(entry_id)
        data = b"m%d" % len(self.all)
        entry = Entry(entry_id, b"" if is_foreign else self.last, data, is_foreign, self.last_number)
        number = len(self.all)
        self.all[data] = (number, entry)
        self.entries.append(entry)
        if is_foreign:
            self.unseen.add(number)
        elif self.is_connected:
            self.frames.append(b"%b %b %b" % (self.last, entry_id, data))
        self.last, self.last_number = entry_id, number
        self.lacks_last = False

    def flush(self) -> None:
        self.entries, self.last = [], ZERO
        numbers = sorted(range(len(self.all)), reverse=True)
        for number in numbers:  # nobody can know of these
            if number not in self.unseen:
                break
            self.skippable.add(number)

    def read(self, position: bytes | None) -> Page:
        if position is None:
            return new_page(self.last, [])
        behind = [e for e in self.entries if not position or id_key(e.id) > id_key(position)]
        anchored = any(e.id == position for e in self.entries)
        entries = [(entry.id, entry.previous, entry.data) for entry in behind[:PAGE]]
        return new_page(self.last, entries, anchored=anchored, end=len(behind) <= PAGE)


class Reader(Cursor):
    """A cursor, and what its consumer has got."""

    def __init__(self, stream: Stream, position: bytes | None, server: Server) -> None:
        super().__init__(stream, position)
        self.server = server
        self.got: list[Entry | HistoryGap] = []
        self.start = position

    def deliver(self, raw: bytes) -> None:
        previous, entry_id, data = raw.split(b" ", 2)
        _, entry = self.server.all[data]  # a forged message fails here
        assert entry.id == entry_id
        assert entry not in self.got, f"{entry} twice"
        if self.got and isinstance(gap := self.got[-1], HistoryGap):
            assert gap.before in (entry_id, None), f"{gap}, but then {entry}"
            assert gap.before is None or entry.is_foreign or previous != gap.after, f"{gap} without a loss"
            if gap.before is None:
                self.check_link(gap.position, entry)
        elif self.got:
            self.check_link(self.got[-1].id, entry)
        elif self.start:
            self.check_link(self.start, entry)
        self.got.append(entry)

    def check_link(self, last: bytes, entry: Entry) -> None:
        """Check that nothing was appended between the message before and this one."""
        before = entry.before
        while before in self.server.skippable and self.entry(before).id != last:
            before = self.entry(before).before
        known = ZERO if before < 0 else self.entry(before).id
        # A history that begins after a position without a message is new for everybody.
        assert last == known or (last == ZERO and entry.previous == ZERO), f"{last!r}, then {entry} without a gap"

    def entry(self, number: int) -> Entry:
        return list(self.server.all.values())[number][1]

    def miss(self, gap: HistoryGap) -> None:
        expected = self.start
        if self.got:
            last = self.got[-1]
            expected = last.position if isinstance(last, HistoryGap) else last.id
        assert not expected or gap.after == expected
        assert not (self.got and isinstance(self.got[-1], HistoryGap) and self.got[-1].before is not None)
        self.got.append(gap)


class Recovery(RuleBasedStateMachine):
    """Random losses, trims, flushes and failovers, and readers that come, lag and go."""

    @initialize()
    def begin(self) -> None:
        self.server = Server()
        self.wanted = 0
        self.stream = Stream(b"s", self.on_wanted)
        self.replies: list[tuple[PageRequest, Page]] = []
        self.looks: list[tuple[int, Page]] = []

    def on_wanted(self, stream: Stream) -> None:
        self.wanted += 1

    @property
    def readers(self) -> list[Reader]:
        return [cursor for cursor in self.stream.cursors if isinstance(cursor, Reader)]

    # --- the server

    @rule(count=st.integers(1, 5), is_foreign=st.sampled_from([False, False, False, True]))
    def append(self, count: int, is_foreign: bool) -> None:
        for _ in range(count):
            self.server.append(is_foreign=is_foreign and not self.server.lacks_last)

    @rule(count=st.integers(0, 4))
    def trim(self, count: int) -> None:
        self.server.entries = self.server.entries[len(self.server.entries) - count :] if count else []

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        entries = self.server.entries
        if entries:
            place = data.draw(st.integers(0, len(entries) - 1))
            if place + 1 == len(entries) or not entries[place + 1].is_foreign:  # that could not be noticed
                self.server.lacks_last |= place + 1 == len(entries)
                del entries[place]

    @rule()
    def flush(self) -> None:
        self.server.flush()

    @rule(change=st.integers(-60, 60))
    def change_clock(self, change: int) -> None:
        self.server.clock = max(1, self.server.clock + change)

    @rule(lost=st.integers(0, 4), change=st.integers(-50, 50))
    def fail_over(self, lost: int, change: int) -> None:
        """Let a replica take over that lacks the last entries, and has another clock."""
        self.lose_link()
        server = self.server
        server.clock = max(1, server.clock + change)
        if lost and lost < len(server.entries):
            del server.entries[-lost:]
            server.last = server.entries[-1].id
            server.last_number = server.all[server.entries[-1].data][0]

    # --- the link

    @rule()
    def lose_link(self) -> None:
        self.server.is_connected = False
        self.server.frames.clear()
        for reader in self.readers:
            reader.deactivate()

    @rule()
    def activate(self) -> None:
        self.server.is_connected = True
        for reader in self.readers:
            if reader.state is CursorState.WAITING:
                reader.activate()

    @rule(count=st.integers(1, 5))
    def receive(self, count: int) -> None:
        for _ in range(min(count, len(self.server.frames))):
            raw = self.server.frames.popleft()
            for reader in self.readers:
                if reader.state is not CursorState.WAITING and reader.take(raw):
                    reader.deliver(raw)

    @rule()
    def lose_frame(self) -> None:
        """Lose a live message on a connection that stays."""
        if self.server.frames:
            raw = self.server.frames.popleft()
            self.server.unseen.add(self.server.all[raw.split(b" ", 2)[2]][0])

    @rule(data=st.data())
    def forge(self, data: st.DataObject) -> None:
        """Publish a message that was not appended, and does not follow the last one."""
        ids = st.sampled_from([ZERO, b"1-1", b"999-0", b"x", *self.server.used])
        previous, entry_id = data.draw(ids), data.draw(ids)
        if self.server.is_connected and previous not in {reader.position for reader in self.readers}:
            raws = [raw.split(b" ", 2) for raw in self.server.frames]
            if previous not in [raw[1] for raw in raws] and previous != self.server.last:
                raw = b"%b %b forged" % (previous, entry_id)
                for reader in self.readers:
                    if reader.state is not CursorState.WAITING:
                        assert not reader.take(raw)

    # --- pages

    @precondition(lambda self: self.stream.wanted)
    @rule()
    def send(self) -> None:
        request = self.stream.next_request()
        if request is not None:
            self.replies.append((request, self.server.read(request.position)))

    @precondition(lambda self: self.replies)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        request, page = self.replies.pop(data.draw(st.integers(0, len(self.replies) - 1)))
        removed = data.draw(st.sampled_from([None, None, *self.readers]))
        for cursor, items in self.stream.answer(request, page):
            assert isinstance(cursor, Reader)
            self.hand(cursor, items)
            for raw in self.stream.go_on(cursor, request, page):
                cursor.deliver(raw)
            if removed is not None:
                removed.remove()

    def hand(self, reader: Reader, items: list[bytes | HistoryGap]) -> None:
        if reader.start is None:
            reader.start = reader.position
        for item in items:
            if isinstance(item, HistoryGap):
                reader.miss(item)
            else:
                reader.deliver(item)

    @precondition(lambda self: self.replies)
    @rule()
    def fail(self) -> None:
        request, _ = self.replies.pop()
        self.stream.fail(request)

    @rule()
    def ask_for_tail(self) -> None:
        self.looks.append((self.stream.frames, self.server.read(None)))

    @precondition(lambda self: self.looks)
    @rule()
    def look(self) -> None:
        self.stream.look(*self.looks.pop(0))

    # --- readers

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        if len(self.readers) < 4:
            position = data.draw(st.sampled_from([None, b"", ZERO, b"50-0", b"99999-0", *self.server.used]))
            reader = Reader(self.stream, position, self.server)
            if self.server.is_connected:
                reader.activate()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.readers)).remove()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def lag(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        if reader.position:
            reader.lag()

    @precondition(lambda self: any(r.state is CursorState.LAGGING for r in self.readers))
    @rule(data=st.data())
    def catch_up(self, data: st.DataObject) -> None:
        """Go on from a message that was delivered, or from the end of the last gap."""
        reader = data.draw(st.sampled_from([r for r in self.readers if r.state is CursorState.LAGGING]))
        while reader.got and isinstance(reader.got[-1], Entry) and data.draw(st.booleans()):
            if len(reader.got) > 1 and isinstance(reader.got[-2], HistoryGap):
                break
            reader.got.pop()
        if reader.got:
            last = reader.got[-1]
            reader.position = last.id if isinstance(last, Entry) else last.position
        else:
            reader.position = reader.start
        reader.read()

    # --- the end

    def teardown(self) -> None:
        """Check that each reader gets to the end of the stream, once nothing happens any more."""
        if not hasattr(self, "server"):
            return
        self.activate()
        for _ in range(1_000):
            self.receive(5)
            if self.stream.wanted:
                request = self.stream.next_request()
                if request is not None:
                    self.replies.append((request, self.server.read(request.position)))
            elif self.replies:
                request, page = self.replies.pop(0)
                for cursor, items in self.stream.answer(request, page):
                    assert isinstance(cursor, Reader)
                    self.hand(cursor, items)
                    for raw in self.stream.go_on(cursor, request, page):
                        cursor.deliver(raw)
            elif not self.server.frames:
                lagging = [reader for reader in self.readers if reader.state is CursorState.LAGGING]
                behind = [r for r in self.readers if self.server.last not in (ZERO, r.position)]
                if lagging:
                    for reader in lagging:
                        reader.read()
                elif behind:
                    self.stream.look(self.stream.frames, self.server.read(None))
                else:
                    break
        else:
            raise AssertionError("the readers do not get to the end")
        for reader in self.readers:
            assert reader.state is CursorState.LIVE
        assert self.stream.readers == 0
        assert not self.stream.recent


TestRecovery = Recovery.TestCase
TestRecovery.settings = settings(max_examples=300, stateful_step_count=60)


# --- one rule at a time


def frame(previous: int, number: int) -> bytes:
    return b"%d-0 %d-0 m%d" % (previous, number, number)


def page_of(*numbers: int, last: int, anchored: bool = True, end: bool = True) -> Page:
    """Entries of which each names the one before it; the first is preceded by the number before it."""
    entries = [(b"%d-0" % number, b"%d-0" % (number - 1), b"m%d" % number) for number in numbers]
    return new_page(b"%d-0" % last, entries, anchored=anchored, end=end)


class Reading:
    """A cursor that reads behind a position, and the request for its page."""

    def __init__(self, position: bytes | None = b"5-0") -> None:
        self.calls = 0
        self.stream = Stream(b"s", self.on_wanted)
        self.cursor = Cursor(self.stream, position)
        self.cursor.activate()
        self.request = self.send()

    def on_wanted(self, stream: Stream) -> None:
        self.calls += 1

    def send(self) -> PageRequest:
        request = self.stream.next_request()
        assert request is not None
        return request

    def answer(self, page: Page) -> list[bytes | HistoryGap]:
        """What the cursor gets of a page, and then at once of the live messages."""
        got: list[bytes | HistoryGap] = []
        for cursor, items in self.stream.answer(self.request, page):
            got += items
            got += self.stream.go_on(cursor, self.request, page)
        return got


def live() -> Reading:
    reading = Reading()
    assert reading.answer(page_of(last=5)) == []
    assert reading.cursor.state is CursorState.LIVE
    return reading


def test_a_message_that_links_is_delivered() -> None:
    """The previous id of a live message is the position: nothing is between, and the position moves."""
    reading = live()
    assert reading.cursor.take(frame(5, 6))
    assert reading.cursor.position == b"6-0"
    assert not reading.stream.wanted


@pytest.mark.parametrize("raw", [frame(7, 8), frame(0, 3), frame(4, 5)[:-1] + b"6", b"5-0 x m", b"5-0", b""])
def test_a_message_that_does_not_link_is_not_delivered(raw: bytes) -> None:
    """A message with another previous id, an id that is smaller, and what is no message leave the position as it is."""
    reading = live()
    assert not reading.cursor.take(raw)
    assert reading.cursor.position == b"5-0"


def test_a_broken_link_asks_for_a_page_also_with_a_smaller_id() -> None:
    """After a failover, the ids of new messages may be smaller than those before."""
    for raw in (frame(7, 8), frame(2, 3)):
        reading = live()
        reading.cursor.take(raw)
        assert list(reading.stream.wanted) == [b"5-0"]
        assert reading.cursor.state is CursorState.READING


def test_live_messages_wait_for_the_page() -> None:
    """They follow it at once, and only those that are behind it."""
    reading = Reading()
    for number in (6, 7, 8, 9):
        assert not reading.cursor.take(frame(number - 1, number))
    assert reading.answer(page_of(6, 7, last=7)) == [b"5-0 6-0 m6", b"6-0 7-0 m7", frame(7, 8), frame(8, 9)]
    assert (reading.cursor.state, reading.cursor.position) == (CursorState.LIVE, b"9-0")
    assert reading.cursor.take(frame(9, 10))


def test_a_page_that_was_faster_covers_the_messages_behind() -> None:
    """Live messages that are in the page already are ignored without another page."""
    reading = Reading()
    reading.cursor.take(frame(5, 6))
    assert len(reading.answer(page_of(6, 7, 8, last=8))) == 3
    assert not reading.cursor.take(frame(6, 7))
    assert not reading.cursor.take(frame(7, 8))
    assert not reading.stream.wanted
    assert reading.cursor.take(frame(8, 9))


def test_a_page_short_of_the_live_messages_is_not_the_last() -> None:
    """The messages that waited do not link to it, so another page is read."""
    for raws in ((frame(7, 8),), (frame(6, 7), frame(8, 9))):
        reading = Reading()
        for raw in raws:
            reading.cursor.take(raw)
        assert len(reading.answer(page_of(6, last=6))) == 1
        assert list(reading.stream.wanted) == [b"6-0"]


def test_a_message_behind_the_last_one_of_a_page_has_to_link() -> None:
    """The channel had the last message of the page too, but lost the one behind it: another page is read."""
    reading = Reading()
    reading.cursor.take(frame(4, 5))
    reading.cursor.take(frame(6, 7))
    assert reading.answer(page_of(last=5)) == []
    assert list(reading.stream.wanted) == [b"5-0"]


def test_a_page_with_more_behind_it_is_not_the_last() -> None:
    """The next page begins where it ended."""
    reading = Reading()
    assert len(reading.answer(page_of(6, 7, last=9, end=False))) == 2
    assert list(reading.stream.wanted) == [b"7-0"]


def test_cursors_at_one_position_share_a_page() -> None:
    """One request serves all of them; a cursor that comes after it was sent gets another one."""
    reading = Reading()
    late = Cursor(reading.stream, b"5-0")
    late.activate()
    others = [Cursor(reading.stream, b"5-0") for _ in range(3)]
    for other in others:
        other.activate()
    assert [cursor for cursor, _ in reading.stream.answer(reading.request, page_of(last=5))] == [reading.cursor]
    assert reading.send().cursors == [late, *others]
    assert not reading.stream.wanted


def test_a_page_from_before_a_loss_does_not_count() -> None:
    """It may have been read before the channel was subscribed again."""
    reading = Reading()
    reading.cursor.deactivate()
    reading.cursor.activate()
    assert reading.answer(page_of(6, last=6)) == []
    assert reading.cursor.position == b"5-0"
    assert reading.cursor.state is CursorState.READING


def test_a_cursor_that_reads_anew_does_not_go_on_from_a_page() -> None:
    """While the messages of a page are handled, the channel may be lost and come back. Another page is read then."""
    reading = Reading()
    page = page_of(6, last=6)
    for cursor, _ in reading.stream.answer(reading.request, page):
        cursor.deactivate()
        cursor.activate()
        assert reading.stream.go_on(cursor, reading.request, page) == []
    assert reading.cursor.state is CursorState.READING
    assert reading.cursor.request is not None


def test_live_messages_before_a_page_was_asked_for_do_not_follow() -> None:
    """The page has all of them, unless a failover has lost them: then nobody gets them."""
    reading = Reading()
    reading.cursor.take(frame(5, 6))
    reading.stream.fail(reading.request)
    reading.request = reading.send()
    assert reading.answer(page_of(last=5)) == []
    assert (reading.cursor.state, reading.cursor.position) == (CursorState.LIVE, b"5-0")


def test_each_broken_link_of_a_page_is_one_gap() -> None:
    """At its beginning, in the middle, and at its end, with the ids around it and a reason."""
    items, position = verify(b"5-0", page_of(7, 8, 10, last=12))
    assert items == [
        HistoryGap(b"5-0", b"7-0", "trimmed", b"6-0"),
        b"6-0 7-0 m7",
        b"7-0 8-0 m8",
        HistoryGap(b"8-0", b"10-0", "trimmed", b"9-0"),
        b"9-0 10-0 m10",
        HistoryGap(b"10-0", None, "trimmed", b"12-0"),
    ]
    assert position == b"12-0"


@pytest.mark.parametrize(("last", "reason"), [(9, "trimmed"), (3, "restarted"), (0, "expired")])
def test_an_empty_page_tells_why(last: int, reason: str) -> None:
    """The last id that was given out shows what became of the entries."""
    gap = HistoryGap(b"5-0", None, reason, b"%d-0" % last)
    assert verify(b"5-0", page_of(last=last)) == ([gap], gap.position)
    assert verify(b"", page_of(last=last)) == ([], gap.position)
    assert verify(None, page_of(last=last)) == ([], gap.position)


def test_an_entry_of_others_is_a_gap_unless_it_is_proven() -> None:
    """Its neighbour in the page, or the entry at the position, prove that nothing is between."""
    foreign = [(b"6-0", b"", b"x"), (b"7-0", b"", b"y")]
    proven = [b"5-0 6-0 x", b"6-0 7-0 y"]
    assert verify(b"5-0", new_page(b"7-0", foreign)) == (proven, b"7-0")
    gap = HistoryGap(b"5-0", b"6-0", "trimmed", b"6-0")
    assert verify(b"5-0", new_page(b"7-0", foreign, anchored=False)) == ([gap, *proven], b"7-0")
    assert verify(b"", new_page(b"7-0", foreign, anchored=False))[0] == [b"0-0 6-0 x", b"6-0 7-0 y"]


@pytest.mark.parametrize("link", [b"garbage", b"4-0 x", b"4-", b"-", b"4-0-0", b"9" * 42 + b"-0"])
def test_a_link_that_is_no_id_is_none(link: bytes) -> None:
    """An entry of others may have a field with the name of our link, and anything in it."""
    assert verify(b"5-0", new_page(b"6-0", [(b"6-0", link, b"x")])) == ([b"5-0 6-0 x"], b"6-0")
    assert verify(b"", new_page(b"6-0", [(b"6-0", link, b"x")], anchored=False)) == ([b"0-0 6-0 x"], b"6-0")


def test_a_new_history_is_no_gap_for_a_cursor_that_had_all() -> None:
    """The live message that began it proves that; its page must begin with the very same entry."""
    for first, gaps in ((8, 0), (9, 1)):
        reading = live()
        assert not reading.cursor.take(b"0-0 8-0 m")
        reading.request = reading.send()
        got = reading.answer(new_page(b"%d-0" % first, [(b"%d-0" % first, ZERO, b"m")], anchored=False))
        assert len([item for item in got if isinstance(item, HistoryGap)]) == gaps


def test_the_end_of_a_silent_stream_is_compared() -> None:
    """A cursor at another position reads on; not if a message arrived meanwhile, or if the stream is gone."""
    for frames, last, is_read in ((0, 6, True), (1, 6, False), (0, 5, False), (0, 0, False)):
        reading = live()
        reading.stream.look(frames, page_of(last=last))
        assert bool(reading.stream.wanted) is is_read


def test_few_messages_are_kept_for_a_page() -> None:
    """None while no cursor waits, and not more than the newest ones while one does."""
    reading = live()
    reading.cursor.take(frame(5, 6))
    assert not reading.stream.recent
    reading = Reading()
    for number in range(6, 100):
        reading.cursor.take(frame(number - 1, number))
    assert [raw for _, _, raw in reading.stream.recent] == [frame(number - 1, number) for number in range(96, 100)]
    reading.cursor.remove()
    assert (len(reading.stream.recent), reading.stream.readers, len(reading.stream.cursors)) == (0, 0, 0)


def test_a_page_that_failed_is_asked_for_again() -> None:
    """By those who still wait for it."""
    reading = Reading()
    reading.stream.fail(reading.request)
    assert list(reading.stream.wanted) == [b"5-0"]
    request = reading.send()
    reading.cursor.lag()
    reading.stream.fail(request)
    assert reading.stream.next_request() is None


@pytest.mark.parametrize("entry_id", [b"", b"7", b"7-", b"-7", b"7-x", b"7-0-0", b"+7-0", b"7-\xb2", b"7" * 41 + b"-0"])
def test_a_message_with_a_malformed_id_is_ignored(entry_id: bytes) -> None:
    """Also if it says that it follows the last one; the message that does is delivered."""
    reading = live()
    assert not reading.cursor.take(b"5-0 %b m" % entry_id)
    assert (reading.cursor.position, reading.cursor.state) == (b"5-0", CursorState.LIVE)
    assert reading.cursor.take(frame(5, 6))
