"""A master that the Sentinels of a URL name."""

from __future__ import annotations

import pytest

from redismpx import Multiplexer
from redismpx.testing import Checker

from ..helpers.backoffs import QUICK
from ..helpers.flavours import FLAVOURS, binary_of
from ..helpers.sentinel import MASTER, Sentinels
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

PATIENCE = 30.0  # seconds for what Sentinels do among themselves


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_url_leads_to_the_master_that_sentinels_name(flavour: str, caplog: pytest.LogCaptureFixture) -> None:
    """A URL finds the master, and the new one after a failover; the two passwords are not mixed up, and stay secret."""
    binary_of(flavour)
    sentinels = await Sentinels.start(flavour, passwords=("servers-secret", "sentinels-secret"))
    hosts = ",".join(f"{host}:{port}" for host, port in sentinels.addresses)
    url = f"valkey+sentinel://:servers-secret@{hosts}/{MASTER}?socket_timeout=1"
    try:
        async with (
            Multiplexer(url, sentinel_password="sentinels-secret", backoff=QUICK) as mpx,
            Multiplexer(url, backoff=QUICK) as stranger,
        ):
            checker = Checker()
            sub = mpx.new_channel_subscription(*checker.callbacks)
            sub.add("a")
            await sub.wait_for_activation(timeout=PATIENCE)
            assert await mpx.publish("a", "1") == 1
            await until(lambda: checker.messages == 1)
            await sentinels.failover()
            await until(lambda: checker.activations == 2, PATIENCE)
            assert await mpx.publish("a", "2") == 1
            await until(lambda: checker.messages == 2)
            stranger.new_pattern_subscription("*", print)
            await until(lambda: stranger.stats().last_error is not None)
            error = str(stranger.stats().last_error)
        assert "AuthenticationError" in error
        assert not checker.faults
        assert "secret" not in error + caplog.text + repr(mpx)
    finally:
        await sentinels.stop()
