"""Whether a published message arrives: the multiplexer publishes one to itself, now and then.

Never abandons a link on a guess: only a message that Redis accepted, and that then did not arrive, counts. While the
link is behind, the message may wait unread, so no time passes.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress

from ...errors import ConnectionLost, SubscriptionRefused, plain
from ..redispy.endpoint import Endpoint
from ..redispy.errors import ResponseError
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import is_cancelling
from .listener import Listener
from .subscriber import Deliver

LONGEST_WAIT = 10  # intervals between two probes, when one after the other abandons a link
LOOKS = 10  # how often in an interval a message is looked for; a look at a link that is behind does not count


class DeliveryProbe(Listener):
    """Publishes to a channel of its own, subscribed like any other, and notices a message that does not arrive.

    PING does not show it: a former master answers PING, but nothing is published there any more. So each probe goes
    over a new connection, to the server that the endpoint names by then.
    """

    def __init__(
        self, endpoint: Endpoint, interval: float, is_behind: Callable[[], bool], abandon: Callable[[str], None]
    ) -> None:
        self.title = "redismpx delivery probe"
        self.channel = b"__mpx_probe:" + secrets.token_hex(16).encode()
        self.wait = interval
        """Seconds to the next probe: doubled with each link that is abandoned, until one proves good."""
        self.deliver: Deliver = self._arrived
        self._endpoint = endpoint
        self._interval = interval
        self._is_behind = is_behind
        self._abandon = abandon
        self._activations = 0
        self._is_active = False
        self._awaited: bytes | None = None  # the token of the probe that has not arrived yet
        self._changed = Notifier()
        self._warned = False

    async def run(self) -> None:
        """Probe again and again."""
        while not is_cancelling():
            await asyncio.sleep(self.wait)
            activations, token = self._activations, secrets.token_hex(8).encode()
            self._awaited = token
            if not self._is_active or not await self._publish(token):
                continue
            looks = 0
            while self._awaited is not None and self._is_active and looks < LOOKS:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._interval / LOOKS):
                        await self._changed.wait()
                looks += not self._is_behind()
            if self._awaited is None:
                self.wait = self._interval
            elif self._is_active and self._activations == activations:
                self.wait = min(self.wait * 2, self._interval * LONGEST_WAIT)
                self._abandon("a delivery probe was published and did not arrive")

    async def _publish(self, token: bytes) -> bool:
        """Publish over a connection of its own; return whether Redis accepted the message."""
        try:
            await self._endpoint.call("PUBLISH", self.channel, token)
        except ResponseError as error:
            self._warn("publish", error)
        except Exception as error:  # noqa: BLE001, dialling raises anything; an outage is reported by the session
            logger.debug("the delivery probe was not sent (%s)", plain(str(error)))
        else:
            return True
        finally:
            self._endpoint.failed()  # in a cluster each probe goes to another node: any of them may be outdated
        return False

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the delivery probe has no effect: the user lacks the right to %s (%s); grant +publish, +subscribe and "
                "&__mpx_probe:*",
                what,
                plain(str(error)),
            )

    # --- events

    def _arrived(self, channel: bytes, data: bytes) -> None:
        if data == self._awaited:  # not that of another process: a fork copies the channel too
            self._awaited = None
            self._changed.notify()

    def activate(self, name: bytes) -> None:
        """Take note that there is a link to probe."""
        self._activations += 1
        self._is_active = True

    def disconnect(self, error: ConnectionLost, lost: Iterable[bytes] | None = None) -> None:
        """Take note that there is none."""
        self._is_active = False
        self._changed.notify()

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that there will be none."""
        self._warn("subscribe", error)
