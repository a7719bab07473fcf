"""Whether the Sentinels still have for master the server that the link is at.

Never leaves it because of what is published, which others could have done: the Sentinels themselves are asked.
"""

from __future__ import annotations

import asyncio

from redis.asyncio.sentinel import SentinelConnectionPool

from ...errors import SubscriptionRefused, plain
from ..redispy.dial import DIAL_TIMEOUT, ask_another_first
from ..runtime.log import logger
from ..runtime.notification import Notifier
from ..runtime.tasks import is_cancelling
from ..session.dispatcher import Deliver
from ..session.listener import Listener
from ..session.session import Session

QUESTIONS = 4  # until the next message: the Sentinel that leads a failover names the former master until it is over
PAUSE = 0.5  # seconds between two of them


class MasterWatch(Listener):
    """Listens to what the Sentinels tell each other, and has a former master left that goes on answering.

    They do so over each server that they watch, every two seconds and as soon as one of them has made another server
    the master (https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/). Only some ten seconds later
    they make the former one a replica, and disconnect its clients: until then nothing else tells.
    """

    def __init__(self, pool: SentinelConnectionPool, session: Session) -> None:
        self.title = "redismpx master watch"
        self.channel = b"__sentinel__:hello"
        self.deliver: Deliver = self._heard
        self._pool = pool
        self._service = pool.service_name.encode()
        self._session = session
        self._doubted = Notifier()
        self._was_refused = False

    async def run(self) -> None:
        """Ask who the master is whenever a Sentinel says that it is another one; leave the link if it is."""
        while not is_cancelling():
            await self._doubted.wait()
            for _ in range(QUESTIONS):
                await self._ask()
                await asyncio.sleep(PAUSE)

    async def _ask(self) -> None:
        address = self._session.address
        try:
            async with asyncio.timeout(DIAL_TIMEOUT):
                named = await self._pool.get_master_address()
        except TimeoutError:
            ask_another_first(self._pool)
        except Exception as error:  # noqa: BLE001, redis-py raises anything; dialling has it told where it matters
            logger.debug("no Sentinel says who the master is (%s)", plain(str(error)))
        else:
            if named != address and address == self._session.address:  # not another one in the meantime
                self._session.condemn("the Sentinels name another master, {}:{}".format(*named))

    def _heard(self, channel: bytes, data: bytes) -> None:
        # Of a Sentinel its host, port, id and epoch, of the master its name, host, port and epoch.
        service, *address = data.split(b",")[4:7] or [b""]
        ours = [str(part).encode() for part in self._session.address or ()]
        if service == self._service and address != ours:
            self._doubted.notify()

    def refuse(self, error: SubscriptionRefused) -> None:
        """Do without: a user may lack the right to this channel."""
        if not self._was_refused:
            self._was_refused = True
            logger.info("a former master that goes on answering is left late: %s", error)
