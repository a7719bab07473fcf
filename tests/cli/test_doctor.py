"""`redismpx doctor` against broken set-ups: each is named, with what to do, and without a secret.

The set-ups, each a real server or address:

1. a wrong scheme; 2. host; 3. port; 4. path of a socket; 5. another kind of server
6. no password; 7. a wrong password; 8. a wrong database
9. `timeout 1`; 10. a small output buffer; 11. a full output buffer
12. no memory left; 13. streams that may be evicted
14. a replica, and one without its primary; 15. a node without slots; 16. half a cluster, with and without full coverage
17. no right to publish, 18. to patterns, 19. to streams, 20. to requests, 21. to keys
22. PUBLISH renamed; 23. CLIENT and CONFIG renamed; 24. HELLO refused
25. a certificate of an unknown authority; 26. of another host; 27. an expired one; 28., 29. TLS at one end only
30. a dead Sentinel; 31. a service that no Sentinel knows; 32. Sentinels that name different primaries
"""

from __future__ import annotations

import contextlib
import gc
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from redis import Redis

from redismpx.cli.checks import Verdict, check_info, check_unsent, cure_of
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
    assert output.count("well     right to ") == 7
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
        (["--user", "u on >s3cret ~* &__mpx_doctor* +@all"], "u:s3cret@", "warning  right to send requests: "),
        (["--user", "u on >s3cret ~* &__mpx_doctor* +@all"], "u:s3cret@", "warning  right to listen to keys: "),
        (["--rename-command", "HELLO "], "", "warning  HELLO: rejected: each connection"),
        (["--rename-command", "PUBLISH other"], "", "warning  right to publish: "),
        (["--rename-command", "CLIENT "], "", "failure  commands: the server, or a proxy, lacks a command; see rename"),
        (["--rename-command", "CONFIG "], "", "well     settings: not checked: the user may not ask for it, or CONFIG"),
    ],
)
def test_a_broken_server_is_named(options: list[str], user: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each wrong setting is a line that begins with what is wrong, and goes on with what to do."""
    database = "/7" if "--databases" in options else ""
    words = options
    if options[0] in ("--user", "--rename-command"):
        words = [options[0], *options[1].split(" ")]
    with server(*words) as broken:
        code, output = diagnose(capsys, f"redis://{user}127.0.0.1:{broken.port}{database}")
    assert line in output
    assert code == int("failure" in line)
    assert all("; " in each or "(" in each for each in output.splitlines() if each.startswith(line))


@pytest.mark.parametrize("coverage", ["yes", "no"])
def test_half_a_cluster_is_named(coverage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A node whose cluster has half of the slots is a failure, also if the cluster goes on without the others."""
    port = str(free_port())
    options = ("--cluster-enabled", "yes", "--cluster-port", port, "--cluster-require-full-coverage", coverage)
    with server(*options) as broken, Redis.from_url(broken.admin_url) as admin:
        admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
        state = {"yes": "fail", "no": "ok"}[coverage]
        give_up = time.monotonic() + 20
        while dict(admin.execute_command("CLUSTER INFO"))["cluster_state"] != state:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        code, output = diagnose(capsys, broken.admin_url)
    assert code == 1
    line = "failure  cluster: 8192 of 16384 slots are served; assign all slots, and start the nodes that are down\n"
    assert line in output


def test_a_full_output_buffer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A subscriber that reads nothing, and is about to be disconnected, is a warning with its address."""
    with (
        server("--client-output-buffer-limit", "pubsub 16mb 0 0") as target,
        Redis.from_url(target.admin_url) as admin,
        socket.socket() as lazy,
    ):
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", target.port))
        lazy.sendall(b"SUBSCRIBE big\r\n")
        while not lazy.recv(100).endswith(b":1\r\n"):
            pass
        for _ in range(100):  # 14 MB, of which the system buffers some; Valkey 9 does not count large payloads
            with admin.pipeline(transaction=False) as pipeline:
                for _ in range(16):
                    pipeline.publish("big", bytes(9_000))
                pipeline.execute()
        code, output = diagnose(capsys, target.admin_url)
        address = "{}:{}".format(*lazy.getsockname())
    assert code == 0
    assert f"warning  slow subscriber: {address} has " in output
    assert "unsent bytes; make the subscriber faster, or raise client-output-buffer-limit\n" in output


@pytest.mark.parametrize("trouble", ["unknown authority", "other host", "expired", "plain port", "TLS port"])
def test_trouble_with_tls_is_named(trouble: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate that is not accepted, and TLS at only one of the two ends, are told apart."""
    binary = find_binary("redis")  # the Valkey of the package has no TLS
    assert binary is not None
    authority = trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1) if trouble == "expired" else None
    host = "127.0.0.1" if trouble == "expired" else "elsewhere.example"
    pem = authority.issue_cert(host, not_after=past).private_key_and_cert_chain_pem.bytes()
    broken = TLSServer(binary, pem)
    broken.start()
    try:
        with authority.cert_pem.tempfile() as path:
            trusting = f"rediss://127.0.0.1:{broken.tls_port}?ssl_ca_certs={path}"
            url, line = {
                "unknown authority": (f"rediss://127.0.0.1:{broken.tls_port}", "failure  TLS: the certificate is not"),
                "other host": (trusting, "failure  TLS: the certificate is not accepted: IP address mismatch"),
                "expired": (
                    trusting,
                    "failure  TLS: the certificate is not accepted: certificate has expired; use the",
                ),
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


def test_sentinels_that_disagree_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Two Sentinels that name different primaries are a failure: half of the programs would use the wrong one."""
    with server() as one, server() as other:
        sentinels = [SentinelServer(primary.binary, primary) for primary in (one, other)]
        try:
            for sentinel in sentinels:
                sentinel.start()
            hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
            code, output = diagnose(capsys, f"redis+sentinel://{hosts}/main")
        finally:
            for sentinel in sentinels:
                sentinel.remove()
    assert code == 1
    assert output.count("it names a primary\n") == 2
    assert "failure  Sentinels: the Sentinels name different primaries; check the service, and SENTINEL MAST" in output


def test_a_slow_subscriber_is_named() -> None:
    """A connection with more than half of the limit unsent is a warning with its address."""
    config = {"client-output-buffer-limit": "normal 0 0 0 slave 1 1 1 pubsub 1000 0 0"}
    clients = [{"addr": "10.0.0.1:5", "omem": "501"}, {"addr": "10.0.0.2:5", "omem": "500"}]
    (finding,) = check_unsent(config, clients)
    assert (finding.verdict, finding.text) == (Verdict.WARNING, "10.0.0.1:5 has 501 unsent bytes")
    assert not check_unsent({}, clients)


def test_a_renamed_command_has_a_cure_of_its_own() -> None:
    """It is not a matter of rights."""
    assert cure_of(ValueError("unknown command 'PUBLISH', with args")).startswith("see rename-command")
    assert cure_of(ValueError("NOPERM")).startswith("see ACL SETUSER")


def test_a_primary_of_a_whole_cluster_is_a_warning() -> None:
    """A node of a cluster that works is a warning: a URL leads to one node."""
    *_, finding = check_info({"role": "master"}, {"cluster_state": "ok", "cluster_slots_ok": "16384"})
    assert (finding.verdict, finding.subject) == (Verdict.WARNING, "cluster")
