"""The master of a Sentinel service, and how a former master is noticed that still answers.

Never leaves a master because of a published message, which anybody may publish: it asks the Sentinels themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...errors import SubscriptionRefused, plain
from ..redispy.connection import Address
from ..redispy.sentinels import SentinelEndpoint
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import is_cancelling
from ..session.listener import Listener
from ..session.subscriber import Deliver
from .base import DeploymentOptions
from .standalone import Standalone

QUESTIONS = 4  # per message: the Sentinel that runs a failover names the former master until the failover is over
QUESTION_PAUSE = 0.5  # seconds between two of them
# Seconds that announcements are ignored after false ones, at most: anybody may publish them. About as long as Sentinels
# take to demote a former master, which ends its connections.
LONGEST_PAUSE = 10.0
LONGEST_HELLO = 1024  # bytes; two host names of 253 characters, and a name that an operator has chosen


class SentinelManaged(Standalone):
    """A master that Sentinels may replace at any time."""

    def __init__(self, endpoint: SentinelEndpoint, options: DeploymentOptions) -> None:
        super().__init__(endpoint, options)
        self._listen(MasterWatch(endpoint, lambda: self.addresses, self.abandon))


class MasterWatch(Listener):
    """Listens to the messages of the Sentinels, and abandons a former master that still answers.

    Sentinels publish on each server that they watch, every two seconds and as soon as one of them has made another
    server the master (https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/). Only some ten seconds
    later they make the former master a replica, and disconnect its clients. Until then nothing else shows the failover.
    """

    def __init__(
        self,
        endpoint: SentinelEndpoint,
        addresses: Callable[[], set[Address]],
        abandon: Callable[[str, Address], None],
    ) -> None:
        self.title = "redismpx master watch"
        self.channel = b"__sentinel__:hello"
        self.deliver: Deliver = self._heard
        self._endpoint = endpoint
        self._addresses = addresses
        self._abandon = abandon
        self._doubted = Notifier()
        self._was_refused = False

    async def run(self) -> None:
        """Ask for the master whenever a Sentinel names another one; abandon connections elsewhere if they agree."""
        clock = asyncio.get_running_loop().time
        pause = 0.0
        while not is_cancelling():
            since = clock()
            await self._doubted.wait()
            if clock() > since + LONGEST_PAUSE:
                pause = 0.0
            if await self._is_confirmed():
                pause = 0.0
            else:
                await asyncio.sleep(pause)
                pause = min(max(2 * pause, QUESTION_PAUSE), LONGEST_PAUSE)

    async def _is_confirmed(self) -> bool:
        """Ask several times; return whether a connection was abandoned."""
        for _ in range(QUESTIONS):
            if await self._ask():
                return True
            await asyncio.sleep(QUESTION_PAUSE)
        return False

    async def _ask(self) -> bool:
        """Ask for the master, and abandon connections elsewhere; return whether there are any."""
        addresses = self._addresses()
        try:
            named = await self._endpoint.master()
        except Exception as error:  # noqa: BLE001, redis-py raises anything; the next dial reports it
            logger.debug("no Sentinel names the master (%s)", plain(str(error)))
            return False
        if named is None:
            return False
        wrong = addresses & self._addresses() - {named}  # not those dialled in the meantime
        for address in wrong:
            self._abandon("the Sentinels name another master, {}:{}".format(*named), address)
        return bool(wrong)

    def _heard(self, channel: bytes, data: bytes) -> None:
        if len(data) > LONGEST_HELLO:
            return
        # The Sentinel's host, port, id and epoch, then the master's name, host, port and epoch.
        service, *named = data.split(b",", 8)[4:7] or [b""]
        if service == self._endpoint.service and not all(
            self._endpoint.is_named(address, named) for address in self._addresses()
        ):
            self._doubted.notify()

    def refuse(self, error: SubscriptionRefused) -> None:
        """Go on without: a user may lack the right to this channel."""
        if not self._was_refused:
            self._was_refused = True
            logger.info("the Sentinels cannot announce a new master, so a former master is left late: %s", error)
