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
        while not is_cancelling():
            await self._doubted.wait()
            for _ in range(QUESTIONS):
                await self._ask()
                await asyncio.sleep(QUESTION_PAUSE)

    async def _ask(self) -> None:
        addresses = self._addresses()
        try:
            named = await self._endpoint.master()
        except Exception as error:  # noqa: BLE001, redis-py raises anything; the next dial reports it
            logger.debug("no Sentinel names the master (%s)", plain(str(error)))
        else:
            if named is not None:
                for address in addresses & self._addresses() - {named}:  # not those dialled in the meantime
                    self._abandon("the Sentinels name another master, {}:{}".format(*named), address)

    def _heard(self, channel: bytes, data: bytes) -> None:
        # The Sentinel's host, port, id and epoch, then the master's name, host, port and epoch.
        service, *named = data.split(b",")[4:7] or [b""]
        ours = [[host.encode(), b"%d" % port] for host, port in self._addresses()]
        if service == self._endpoint.service and any(address != named for address in ours):
            self._doubted.notify()

    def refuse(self, error: SubscriptionRefused) -> None:
        """Go on without: a user may lack the right to this channel."""
        if not self._was_refused:
            self._was_refused = True
            logger.info("a former master that still answers is left late: %s", error)
