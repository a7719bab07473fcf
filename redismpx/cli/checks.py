"""What the answers of a server mean for redismpx, and what to do about them. No I/O."""

from __future__ import annotations

__all__ = ["Finding", "Verdict", "check_config", "check_info", "check_unsent", "cure_of", "explain_failure"]

import enum
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LEAST_BUFFER = 8 * 1024 * 1024  # bytes for the unsent messages of a subscriber; a payload has up to 1 MiB
_SHORTEST_IDLE = 60  # seconds


class Verdict(enum.Enum):
    """How a check ended."""

    WELL = "well"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(NamedTuple):
    """The result of one check: a line."""

    verdict: Verdict
    subject: str
    text: str
    cure: str = ""


_CURES = (
    ("DENIED", "login", "the server is in protected mode", "set a password, or bind it to an address of its own"),
    ("NOAUTH", "login", "the server needs a password", "put it into the URL: redis://user:password@host"),
    ("Authentication required", "login", "the server needs a password", "put it into the URL: redis://:password@host"),
    ("WRONGPASS", "login", "the user or the password is wrong, or the user is off", "see ACL LIST on the server"),
    ("invalid username-password", "login", "the user or the password is wrong, or the user is off", "see ACL LIST"),
    ("without any password configured", "login", "the URL has a password, and the server none", "leave it out"),
    ("max number of clients", "login", "the server has reached maxclients", "raise maxclients, or close connections"),
    ("DB index", "database", "the server has no database of this number", "use another number at the end of the URL"),
    ("LOADING", "loading", "the server still loads its data", "wait until it has started"),
    ("unknown command", "commands", "the server, or a proxy, lacks a command", "see rename-command in its file"),
    ("NOPERM", "rights", "the user has no right to do this", "see ACL SETUSER on the server"),
    ("no permissions", "rights", "the user has no right to do this", "see ACL SETUSER on the server"),
)
"""A piece of an error of the server; what it is about, what it means, and what to do."""


def explain_failure(error: BaseException, *, tls: bool) -> Finding:
    """Say why a server cannot be used. Nothing of an unknown text of the server is repeated: it may have a password."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if finding := _explain_network(each):
            return finding
    for each in chain:
        for piece, subject, text, cure in _CURES:
            if piece in str(each):
                return _failure(subject, text, cure)
    if any(isinstance(each, TimeoutError) or "imeout" in type(each).__name__ for each in chain):
        if tls:
            cure = "use redis://, or its port for TLS; check the address and firewalls"
            return _failure("TLS", "there is no reply in time", cure)
        return _failure("TCP", "there is no reply in time", "check the address, firewalls, and whether it is Redis")
    if any("Protocol" in type(each).__name__ or "InvalidResponse" in type(each).__name__ for each in chain):
        return _failure("protocol", "what listens there is not Redis", "check the port")
    if tls:
        return _failure("TLS", "the server closed the connection during TLS", "use redis://, or its port for TLS")
    return _failure("protocol", "the server closed the connection", "use rediss:// if the port is for TLS")


def cure_of(error: BaseException) -> str:
    """Say what to do if the server has rejected something that the library does."""
    if "unknown command" in str(error):
        return "see rename-command in the file of the server, or use a server or proxy that has it"
    return "; ".join(getattr(error, "__notes__", ())) or "see ACL SETUSER on the server"


def _explain_network(error: BaseException) -> Finding | None:
    """Say what an error of the system or of TLS means; None for another one."""
    if isinstance(error, socket.gaierror):
        return _failure("DNS", "the host has no address", "check the name of the host in the URL")
    if isinstance(error, ssl.SSLCertVerificationError):
        cure = "use the host of the certificate, or renew it; name its authority with ?ssl_ca_certs=PATH"
        return _failure("TLS", f"the certificate is not accepted: {error.verify_message}", cure)
    if isinstance(error, ssl.SSLError):
        return _failure("TLS", "the server does not speak TLS at this port", "use redis://, or its port for TLS")
    if isinstance(error, ConnectionRefusedError):
        return _failure("TCP", "nothing listens there", "check the port, and start the server")
    if isinstance(error, FileNotFoundError):
        return _failure("socket", "there is no such Unix socket", "check the path, and start the server")
    return None


def _failure(subject: str, text: str, cure: str) -> Finding:
    return Finding(Verdict.FAILURE, subject, text, cure)


def check_info(info: Mapping[str, object], cluster: Mapping[str, str]) -> list[Finding]:
    """Check version, role, cluster and memory, by INFO and CLUSTER INFO."""
    version = str(info.get("redis_version", "?"))
    found = [Finding(Verdict.WELL, "version", version)]
    if info.get("role") == "slave":
        cure = "connect to its primary, or by Sentinels with redis+sentinel://"
        found.append(_failure("role", "a replica: messages that are published here reach no other server", cure))
        if info.get("master_link_status") != "up":
            found.append(_failure("replication", "it is not connected to its primary", "start the primary"))
    else:
        found.append(Finding(Verdict.WELL, "role", "primary"))
    if cluster:
        served = cluster.get("cluster_slots_ok", "?")
        if cluster.get("cluster_state") != "ok" or served != "16384":
            text = f"{served} of 16384 slots are served"
            found.append(_failure("cluster", text, "assign all slots, and start the nodes that are down"))
        else:
            cure = "pass a RedisCluster client to use sharded channels"
            found.append(Finding(Verdict.WARNING, "cluster", "a URL leads to this node only", cure))
    most, used = int(str(info.get("maxmemory", 0))), int(str(info.get("used_memory", 0)))
    policy = str(info.get("maxmemory_policy", ""))
    if most and policy == "noeviction" and used >= most:
        found.append(_failure("memory", "maxmemory is reached: streams take no messages", "raise maxmemory"))
    elif most and policy != "noeviction":
        text = f"with maxmemory-policy {policy}, streams may be evicted"
        found.append(Finding(Verdict.WARNING, "memory", text, "set maxmemory-policy noeviction"))
    return found


def check_config(config: Mapping[str, str]) -> list[Finding]:
    """Check output buffers, timeouts and key events, by CONFIG GET."""
    found = []
    hard = _pubsub_limit(config)
    if 0 < hard < _LEAST_BUFFER:
        text = f"a subscriber with {hard:,} unsent bytes is disconnected"
        cure = "CONFIG SET client-output-buffer-limit 'pubsub 32mb 8mb 60'"
        found.append(Finding(Verdict.WARNING, "output buffer", text, cure))
    idle = int(config.get("timeout", "0"))
    if 0 < idle < _SHORTEST_IDLE:
        text = f"timeout {idle} closes connections that publish nothing for {idle} s"
        found.append(Finding(Verdict.WARNING, "timeout", text, "CONFIG SET timeout 0"))
    if not config.get("notify-keyspace-events"):
        cure = "for key subscriptions: CONFIG SET notify-keyspace-events KA"
        found.append(Finding(Verdict.WELL, "key events", "off", cure))
    return found


def check_unsent(config: Mapping[str, str], clients: Sequence[Mapping[str, str]]) -> list[Finding]:
    """Check whether a subscriber is about to be disconnected, because it does not read."""
    hard = _pubsub_limit(config)
    full = [client for client in clients if hard and int(client.get("omem", "0")) > hard // 2]
    cure = "make the subscriber faster, or raise client-output-buffer-limit"
    return [
        Finding(Verdict.WARNING, "slow subscriber", f"{client.get('addr')} has {client['omem']} unsent bytes", cure)
        for client in full
    ]


def _pubsub_limit(config: Mapping[str, str]) -> int:
    """Return the hard limit of client-output-buffer-limit for subscribers, in bytes."""
    words = config.get("client-output-buffer-limit", "").split()
    return int(words[words.index("pubsub") + 1]) if "pubsub" in words else 0
