"""Whether what is published arrives here: a message to ourselves, now and then.

Never condemns a link on a guess: only a message that Redis took, and that then did not come, counts.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress

from redis.exceptions import ResponseError

from ...errors import ConnectionLost, SubscriptionRefused, plain
from ..redispy.dial import DIAL_TIMEOUT, dial
from ..redispy.endpoint import Endpoint
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import is_cancelling
from .dispatcher import Deliver
from .listener import Listener

LONGEST_WAIT = 10  # intervals between two probes, when one after the other condemns a link


class DeliveryProbe(Listener):
    """Publishes to a channel of its own, which is subscribed like any other, and misses what does not come.

    PING cannot tell: a former master answers it, and nobody publishes there any more. So each probe goes over a new
    connection, for which it is asked again where the server is.
    """

    def __init__(self, endpoint: Endpoint, interval: float, condemn: Callable[[str], None]) -> None:
        self.title = "redismpx delivery probe"
        self.channel = b"__mpx_probe:" + secrets.token_hex(16).encode()
        self.wait = interval
        """Seconds to the next probe: doubled with each link that is condemned, until one proves good."""
        self.deliver: Deliver = self._arrived
        self._endpoint = endpoint
        self._interval = interval
        self._condemn = condemn
        self._activations = 0
        self._is_active = False
        self._awaited: bytes | None = None  # the probe that is on its way
        self._moved = Notifier()
        self._warned = False

    async def run(self) -> None:
        """DeliveryProbe again and again."""
        while not is_cancelling():
            await asyncio.sleep(self.wait)
            activations, token = self._activations, secrets.token_hex(8).encode()
            self._awaited = token
            if not self._is_active or not await self._publish(token):
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    while self._awaited is not None and self._is_active:
                        await self._moved.wait()
            if self._awaited is None:
                self.wait = self._interval
            elif self._is_active and self._activations == activations:
                self.wait = min(self.wait * 2, self._interval * LONGEST_WAIT)
                self._condemn("what is published does not arrive: a delivery probe was accepted and did not come back")

    async def _publish(self, token: bytes) -> bool:
        """Publish past the link; tell whether Redis took it."""
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                connection = await dial(await self._endpoint.find())
                self._endpoint.failed()  # in a cluster each probe goes to another node: any of them may be outdated
                try:
                    await connection.send_command("PUBLISH", self.channel, token)
                    await connection.read_response()
                finally:
                    await connection.disconnect(nowait=True)
        except ResponseError as error:
            self._warn("publish", error)
        except Exception as error:  # noqa: BLE001, dialling raises anything; whether there is a server is the link's affair
            self._endpoint.failed()
            logger.debug("the delivery probe could not be sent (%s)", plain(str(error)))
        else:
            return True
        return False

    def _warn(self, what: str, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("the delivery probe can tell nothing: it must not %s (%s)", what, plain(str(error)))

    # --- events

    def _arrived(self, channel: bytes, data: bytes) -> None:
        if data == self._awaited:  # not that of another process: a fork copies the channel too
            self._awaited = None
            self._moved.notify()

    def activate(self, name: bytes) -> None:
        """Take note that there is a link to probe."""
        self._activations += 1
        self._is_active = True

    def disconnect(self, error: ConnectionLost) -> None:
        """Take note that there is none."""
        self._is_active = False
        self._moved.notify()

    def refuse(self, error: SubscriptionRefused) -> None:
        """Take note that there will be none."""
        self._warn("subscribe", error)
