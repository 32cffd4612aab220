"""Reading a known number of octets: MSG_WAITALL does not wait on a socket that has a timeout."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` octets, fewer only if the stream ends."""
    received = bytearray()
    while len(received) < count and (piece := sock.recv(count - len(received))):
        received += piece
    return bytes(received)
