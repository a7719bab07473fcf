"""A program that publishes on channel `a` as fast as the server accepts. Arguments: the port, how many messages."""

from __future__ import annotations

FLOOD = """
import hiredis, socket, sys
port, total = map(int, sys.argv[1:])
with socket.create_connection(("127.0.0.1", port)) as peer:
    for start in range(0, total, 500):
        numbers = range(start, start + 500)
        peer.sendall(b"".join(hiredis.pack_command((b"PUBLISH", b"a", str(number))) for number in numbers))
        answers = 0
        while answers < 500:
            answers += peer.recv(65536).count(b"\\n")
"""
