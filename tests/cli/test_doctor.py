"""`redismpx doctor` against broken set-ups: each is named, with what to do, and without a secret."""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trustme

from redismpx.cli.checks import Verdict, check_info, check_unsent
from redismpx.cli.main import main

from ..helpers.command import run
from ..helpers.flavours import FLAVOURS, start_server
from ..helpers.servers import SentinelServer, Server, TLSServer, find_binary, free_port

# redis-py leaves a connection open when its handshake of TLS fails.
pytestmark = [
    pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]


@contextmanager
def server(*options: str) -> Iterator[Server]:
    started = start_server(FLAVOURS[0], *options)
    try:
        yield started
    finally:
        started.remove()


def diagnose(capsys: pytest.CaptureFixture[str], url: str) -> tuple[int, str]:
    """Run the command; nothing may reach stderr, and no secret may be shown."""
    code = main(["doctor", url])
    gc.collect()  # of the connections that redis-py leaves open, within the test that made them
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "s3cret" not in output
    return code, output


def test_a_good_server_is_well(target: Server) -> None:
    """As a program: every right is there, no line is a failure, and the exit status is 0."""
    code, output, errors = run("doctor", target.admin_url)
    assert (code, errors) == (0, "")
    assert "well     connection: connected and logged in\n" in output
    assert output.count("well     right to ") == 5
    assert "failure" not in output


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://:s3cret@localhost", "failure  URL: the Redis URL cannot be used"),
        ("redis://no-such-host.invalid", "failure  DNS: the host has no address; check the name"),
        (f"redis://:s3cret@127.0.0.1:{free_port()}", "failure  TCP: nothing listens there; check the port"),
        ("unix:///no/socket", "failure  socket: there is no such Unix socket; check the path"),
    ],
    ids=["scheme", "host", "port", "socket"],
)
def test_a_wrong_address_is_named(url: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong scheme, host, port and path are four different failures."""
    code, output = diagnose(capsys, url)
    assert code == 1
    assert output.startswith(line)


def test_another_kind_of_server_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A web server is not Redis."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    peer.close()

        threading.Thread(target=reply, daemon=True).start()
        assert (
            "what listens there is not Redis" in diagnose(capsys, f"redis://127.0.0.1:{listener.getsockname()[1]}")[1]
        )
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("options", "user", "line"),
    [
        (["--requirepass", "s3cret"], "", "failure  login: the server needs a password"),
        (["--requirepass", "s3cret"], ":s3cretwrong@", "failure  login: the user or the password is wrong"),
        (["--databases", "1"], "", "failure  database: the server has no database"),
        (["--timeout", "1"], "", "warning  timeout: timeout 1 closes connections"),
        (["--client-output-buffer-limit", "pubsub 1mb 0 0"], "", "warning  output buffer: a subscriber with 1,048,576"),
        (["--maxmemory", "1mb"], "", "failure  memory: maxmemory is reached"),
        (["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "", "warning  memory: with maxmemory-policy"),
        (["--replicaof", "127.0.0.1 1"], "", "failure  replication: it is not connected to its primary"),
        (["--cluster-enabled", "yes"], "", "failure  cluster: 0 of 16384 slots are served"),
        (["--user", "u on >s3cret ~* &no +@all"], "u:s3cret@", "warning  right to publish: "),
        (["--user", "u on >s3cret ~* &* +@all -psubscribe"], "u:s3cret@", "warning  right to subscribe to patterns: "),
        (["--user", "u on >s3cret &* +@all"], "u:s3cret@", "warning  right to append to streams: "),
    ],
)
def test_a_broken_server_is_named(options: list[str], user: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong setting is a line that begins with what is wrong, and goes on with what to do."""
    database = "/7" if "--databases" in options else ""
    words = options
    if options[0] == "--user":
        words = ["--user", *options[1].split()]
    if "--cluster-enabled" in options:
        words = [*options, "--cluster-port", str(free_port())]
    with server(*words) as broken:
        code, output = diagnose(capsys, f"redis://{user}127.0.0.1:{broken.port}{database}")
    assert line in output
    assert code == int("failure" in line)
    assert all("; " in each or "(" in each for each in output.splitlines() if each.startswith(line))


@pytest.mark.parametrize("trouble", ["unknown authority", "other host", "plain port", "TLS port"])
def test_trouble_with_tls_is_named(trouble: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate that is not accepted, and TLS at only one of the two ends, are told apart."""
    binary = find_binary("redis")  # the Valkey of the package has no TLS
    assert binary is not None
    authority = trustme.CA()
    pem = authority.issue_cert("elsewhere.example").private_key_and_cert_chain_pem.bytes()
    broken = TLSServer(binary, pem)
    broken.start()
    try:
        with authority.cert_pem.tempfile() as path:
            trusting = f"rediss://127.0.0.1:{broken.tls_port}?ssl_ca_certs={path}"
            url, line = {
                "unknown authority": (f"rediss://127.0.0.1:{broken.tls_port}", "failure  TLS: the certificate is not"),
                "other host": (trusting, "failure  TLS: the certificate is not accepted: IP address mismatch"),
                "plain port": (f"rediss://127.0.0.1:{broken.port}", "failure  TLS: "),
                "TLS port": (f"redis://127.0.0.1:{broken.tls_port}", "failure  protocol: "),
            }[trouble]
            code, output = diagnose(capsys, url)
    finally:
        broken.remove()
    assert code == 1
    assert output.startswith(line)


def test_a_dead_sentinel_and_a_wrong_service_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A Sentinel that does not answer is a warning, and a service that none knows a failure."""
    with server() as primary:
        sentinel = SentinelServer(primary.binary, primary)
        sentinel.start()
        try:
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
            code, output = diagnose(capsys, f"redis+sentinel://{hosts}/main")
            assert code == 0
            assert output.count("nothing listens there; start it") == 1
            code, output = diagnose(capsys, f"redis+sentinel://{hosts}/other")
            assert code == 1
            assert "failure  Sentinels: no Sentinel names the primary" in output
        finally:
            sentinel.remove()


def test_a_slow_subscriber_is_named() -> None:
    """A connection with more than half of the limit unsent is a warning with its address."""
    config = {"client-output-buffer-limit": "normal 0 0 0 slave 1 1 1 pubsub 1000 0 0"}
    clients = [{"addr": "10.0.0.1:5", "omem": "501"}, {"addr": "10.0.0.2:5", "omem": "500"}]
    (finding,) = check_unsent(config, clients)
    assert (finding.verdict, finding.text) == (Verdict.WARNING, "10.0.0.1:5 has 501 unsent bytes")
    assert not check_unsent({}, clients)


def test_a_primary_of_a_whole_cluster_is_a_warning() -> None:
    """A node of a cluster that works is a warning: a URL leads to one node."""
    *_, finding = check_info({"role": "master"}, {"cluster_state": "ok"})
    assert (finding.verdict, finding.subject) == (Verdict.WARNING, "cluster")
