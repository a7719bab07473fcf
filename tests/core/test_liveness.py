"""A connection is judged by its replies, for as long as this process keeps up with reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redismpx._core.liveness import GRACE, Liveness

INTERVAL, TIMEOUT = 10.0, 5.0

Events = st.lists(
    st.tuples(
        st.sampled_from(["reply", "quiet", "behind", "caught up", "arrival"]),
        st.sampled_from([0.5, 3.0, 8.0, 20.0]),  # seconds until the next event
    ),
    max_size=50,
)


class Life:
    """A connection whose server stops replying, and the looks at it."""

    def __init__(self, oldest: object = None) -> None:
        self.now = 100.0
        self.liveness = Liveness(INTERVAL, TIMEOUT, self.now)
        self.oldest = oldest
        self.next_look = self.now + INTERVAL
        self.loss: str | None = None
        self.pings = 0
        self.behind = False
        self.unread = False
        self.heard_for = 0.0  # seconds since the last reply in which the process kept up

    def step(self, event: str, seconds: float) -> None:
        if event == "reply":
            self.heard_for = 0.0
            if self.liveness.replied(self.now):
                self.next_look = self.now + INTERVAL
        elif event == "behind":
            self.behind = True
            self.liveness.fell_behind(self.now)
        elif event == "caught up":
            self.behind = self.unread = False
            self.liveness.caught_up(self.now)
        elif event == "arrival":
            self.unread = True
        end = self.now + seconds
        while self.loss is None and self.next_look <= end:
            self._wait(self.next_look)
            look = self.liveness.look(self.next_look, self.oldest, unread=self.unread)
            self.loss = look.loss
            self.pings += look.ping
            self.next_look += look.delay
            assert self.loss is None or not (self.behind or self.unread)
        self._wait(end)

    def _wait(self, until: float) -> None:
        if not self.behind and self.loss is None:
            self.heard_for += until - self.now
        self.now = until


@given(Events)
def test_only_silence_that_was_heard_is_a_loss(events: list[tuple[str, float]]) -> None:
    """A connection is lost only after ping_interval and ping_timeout without a reply, while the process kept up."""
    life = Life()
    for event in events:
        life.step(*event)
        if life.loss is not None:
            assert life.heard_for >= INTERVAL + TIMEOUT - 1e-6
            return


@given(Events)
def test_a_silent_server_is_found_in_time(events: list[tuple[str, float]]) -> None:
    """Once the process has caught up, a server that is silent is lost after ping_interval and ping_timeout."""
    life = Life()
    for event in events:
        life.step(*event)
    if life.loss is None:
        life.step("caught up", 0)
        life.step("quiet", INTERVAL + TIMEOUT + 3 * GRACE)
        assert life.loss == "no reply to PING within 5 s"
        assert life.pings


@given(Events)
def test_a_process_that_lags_passes_no_verdict(events: list[tuple[str, float]]) -> None:
    """While received data is not handled or not read, there is no verdict, however long that takes."""
    for lag in ("behind", "arrival"):
        life = Life(oldest="a command")
        for event in events:
            life.step(*event)
        if life.loss is None:
            life.step(lag, 1_000)
            assert life.loss is None


@given(st.floats(0.1, 4))
def test_a_command_without_a_reply_is_a_loss(pause: float) -> None:
    """One command gets no reply although others do: the connection is lost, and not before."""
    life = Life(oldest="a command")
    began = life.now
    while life.loss is None and life.now < began + 100:
        life.step("reply", pause)
    assert life.loss == "no reply to a command"
    assert INTERVAL + TIMEOUT <= life.now - began <= 2 * INTERVAL + TIMEOUT + 2 * pause + GRACE


def test_a_late_reply_to_a_command_is_no_loss() -> None:
    """A command that gets its reply between the two looks keeps the connection."""
    life = Life(oldest="a command")
    while life.liveness.state.value != "overdue":
        life.step("reply", 1)
    life.oldest = "the next command"
    life.step("reply", 1)
    assert (life.loss, life.liveness.state.value) == (None, "live")
