"""A single server."""

from __future__ import annotations

from ..publishing.publisher import Publisher
from ..redispy.endpoint import Endpoint
from ..session.options import SessionOptions
from .base import Deployment, DeploymentOptions


class Standalone(Deployment):
    """A single server, which may be a node of a cluster although its client does not know that."""

    def __init__(self, endpoint: Endpoint, options: DeploymentOptions) -> None:
        session: SessionOptions = options.session
        publisher = Publisher(endpoint, options.publish_timeout, session.tasks, session.counters, self.doubt)
        super().__init__(lambda: endpoint, publisher, options)
