"""What every deployment has: a session for channels and patterns, and a publisher. Never tests which one it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import Context
from itertools import chain
from typing import NamedTuple

from ..._core.entry import SubscriberState
from ..._core.wire import Kind
from ...errors import ConnectionLost
from ..publishing.publisher import Publisher
from ..redispy.client import AbstractBackoff
from ..redispy.connection import Address
from ..redispy.credentials import Follower, Login
from ..redispy.endpoint import Endpoint
from ..runtime.log import logger
from ..runtime.slices import Slices, Step, freeing
from ..session.delivery_probe import DeliveryProbe
from ..session.listener import Listener
from ..session.options import SessionOptions
from ..session.session import Session
from ..session.subscriber import Subscriber
from .keyspace import Keyspace, ServerKeyspace


class DeploymentOptions(NamedTuple):
    """The options of a multiplexer that concern its connections."""

    backoff: AbstractBackoff
    session: SessionOptions
    publish_timeout: float  # seconds
    delivery_probe: float | None  # seconds between two probes; None: no probe
    on_end: Callable[[], None]
    """Called when the session has ended, also when asyncio cancelled it."""
    slices: Slices
    """Does what takes long for very many names."""


class Deployment:
    """Where the servers are, and which of them owns a name."""

    stream_kind: Kind = Kind.CHANNEL
    """The kind of the channels of streams."""

    def __init__(self, new_endpoint: Callable[[], Endpoint], publisher: Publisher, options: DeploymentOptions) -> None:
        self._options = options
        self._tasks = options.session.tasks
        self._endpoint = new_endpoint()
        self._listeners: list[Listener] = []
        self._credentials: Follower | None = None
        self.publisher: Publisher = publisher
        self.main: Session = Session(
            self._endpoint, options.backoff, options.session, publisher.reached, self.doubt, on_end=options.on_end
        )
        """The session of channels and patterns; of shard channels too, if there is no cluster."""
        self.keyspace: Keyspace = ServerKeyspace(self.main, self._endpoint, self._tasks)
        """The subscribers to key events, each of which adds itself. Their names have the kind KEYS."""
        if options.delivery_probe is not None:
            interval, session = options.delivery_probe, self.main
            self._listen(DeliveryProbe(new_endpoint(), interval, lambda: session.is_behind, self.abandon))

    def _listen(self, listener: Listener) -> None:
        self._listeners.append(listener)
        self.main.registry.add(Kind.CHANNEL, (listener.channel,), listener)

    def start(self) -> None:
        """Start to dial, in the running loop."""
        if self._endpoint.skips_tls_verification:
            logger.warning(
                "TLS to Redis at %s is not verified, so any server can pretend to be it; leave out ssl_cert_reqs and "
                "ssl_check_hostname, and name the authority with ssl_ca_certs",
                self._endpoint,
            )
        self._credentials = self._endpoint.follow_credentials(self._log_in)
        self.main.start()
        for listener in self._listeners:
            self._tasks.start(listener.run(), listener.title, Context())

    def _log_in(self, login: Login) -> None:
        """Log in again with new credentials. Publishing dials again, which costs little; a session would have a gap."""
        self.publisher.abandon(None)
        for session in self.sessions:
            session.log_in(login)

    # --- what one connection shows about a server, for the others

    @property
    def sessions(self) -> Iterable[Session]:
        """All sessions."""
        return (self.main,)

    @property
    def addresses(self) -> set[Address]:
        """Where the connections for classic names and for publishing lead."""
        return self.publisher.addresses.union(filter(None, [self.main.address]))

    def abandon(self, reason: str, address: Address | None = None) -> None:
        """Leave a server that still answers, or the one at an address: dial again, and ask the endpoint where to."""
        if address in (None, self.main.address):
            self.main.abandon(reason)
        self.publisher.abandon(address)

    def doubt(self, address: Address) -> None:
        """Check all connections to an address, because one of them was lost.

        The server may be dead, or the address may lead to another server by now. Publishing dials again, which costs
        little. A session pings, because dialling again would be a gap.
        """
        self.publisher.abandon(address)
        for session in self.sessions:
            session.check(address)

    # --- subscriptions

    def add(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> None:
        """Subscribe to names for a subscriber."""
        self.main.add(kind, names, subscriber)

    def remove(self, kind: Kind, names: Collection[bytes], subscriber: Subscriber) -> int:
        """Unsubscribe a subscriber from names; return how many were active."""
        if kind is Kind.KEYS:
            return self.keyspace.remove(subscriber)
        return self.main.remove(kind, names, subscriber)

    def name_count(self, kind: Kind) -> int:
        """Return how many names of a kind have subscribers."""
        return self.main.registry.name_count(kind)

    def count_new(self, kind: Kind, names: Collection[bytes]) -> int:
        """Return how many of `names` have no subscriber yet."""
        return self.main.registry.count_new(kind, names)

    def is_active(self, kind: Kind, name: bytes, subscriber: Subscriber) -> bool:
        """Tell whether a subscriber gets the messages of a name now."""
        if kind is Kind.KEYS:
            return self.keyspace.is_active(subscriber)
        return self.main.registry.subscriber_state(kind, name, subscriber) is SubscriberState.ACTIVE

    def outage(self, kind: Kind) -> ConnectionLost | None:
        """Return why there is no connection for names of a kind now; None while there is one."""
        return self.keyspace.outage if kind is Kind.KEYS else self.main.outage

    def progress(self, kind: Kind) -> str:
        """Return the reason why some names of a kind are not active yet, for an error."""
        return self.main.progress

    @property
    def shard_count(self) -> int:
        """How many primaries of a cluster there are connections to, for shard channels."""
        return 0

    # --- the end

    async def unsubscribe_all(self) -> None:
        """Unsubscribe from every name, and wait until the server has confirmed it."""
        await self.main.unsubscribe_all()

    def close(self) -> Iterator[Step]:
        """End every connection, at once and for good.

        Return the steps that are left: they fail the calls of `publish()`, and free the names.
        """
        if self._credentials is not None:
            self._credentials.close()
        names = self.main.close()
        return chain(self.publisher.close(), freeing(names))
