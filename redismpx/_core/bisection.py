"""The search for the forbidden names of a rejected command. Pure: it knows names and no server, and sends nothing.

Redis rejects a SUBSCRIBE as a whole when one of its names is forbidden, and does not say which one. A search sends
probes: commands with a part of the rejected names. In a search, each name is in one of three states:

    probed      the name is in the probe.
    suspect     the name was rejected together with the probed names. A forbidden name is among both.
    postponed   the name was rejected too, and nothing else is known about it.

The reply to a probe changes them:

    rejected, several names   Half of the probed names are probed next. The other half become suspects, and the former
                              suspects are postponed.
    rejected, one name        The name is forbidden. All other names are released.
    accepted, with suspects   Half of the suspects are probed next. The other half stay suspects.
    accepted, no suspects     The postponed names are released: no name is forbidden any more.

A released name leaves the search, and is sent again in an ordinary command. So the accepted halves cost one command
together, and one forbidden name among n costs log2(n) + 2 commands. A search costs most where many names are forbidden.
After MANY_FORBIDDEN of them, both halves of a rejected command are probed at once: about 2 commands for each name.
"""

from __future__ import annotations

from typing import NamedTuple

MANY_FORBIDDEN = 4  # forbidden names, found since the last large command was accepted
LARGE_COMMAND = 129  # names; accepting as many shows that few names are forbidden


class Probe(NamedTuple):
    """A part of a rejected command that is sent in a command of its own, and the names that wait for its reply."""

    names: tuple[bytes, ...]
    suspects: tuple[bytes, ...] = ()
    postponed: tuple[bytes, ...] = ()

    @property
    def held_back(self) -> tuple[bytes, ...]:
        """The names of the search that are not in the probe."""
        return self.suspects + self.postponed


class NextStep(NamedTuple):
    """What to do after a reply."""

    probes: tuple[Probe, ...] = ()
    released: tuple[bytes, ...] = ()


NO_STEP = NextStep()


class Bisection:
    """Decides how searches go on. It keeps no search: each probe carries the state of its own."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found = 0  # forbidden names, since the last large command was accepted

    def rejected(self, probe: Probe) -> NextStep:
        """Go on after the server rejected a probe, or an ordinary command: that is a probe which holds nothing back.

        The name of a probe with one name is forbidden.
        """
        if len(probe.names) == 1:
            self._found += 1
            return NextStep(released=probe.held_back)
        if self._found < MANY_FORBIDDEN:
            return NextStep(probes=(_first_half(probe.names, probe.held_back),))
        half = _first_half(probe.names, ())
        return NextStep(probes=(Probe(half.names), Probe(half.suspects)), released=probe.held_back)

    def accepted(self, size: int, probe: Probe | None = None) -> NextStep:
        """Go on after the server accepted a command of so many names; `probe` is None for an ordinary command."""
        if size >= LARGE_COMMAND:
            self._found = 0
        if probe is None:
            return NO_STEP
        if probe.suspects:
            return NextStep(probes=(_first_half(probe.suspects, probe.postponed),))
        return NextStep(released=probe.postponed)


def _first_half(names: tuple[bytes, ...], postponed: tuple[bytes, ...]) -> Probe:
    """Return a probe of the first half of `names`; the second half are its suspects."""
    middle = (len(names) + 1) // 2
    return Probe(names[:middle], names[middle:], postponed)
