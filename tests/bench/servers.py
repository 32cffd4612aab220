"""Source, sink and echo in one process, on 127.0.0.1. They do as little as possible, since the clock is the client's.

A connection begins with a command (`command`): a letter and two numbers. After a download or an upload another may
follow.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from typing import Callable

__all__ = ["COMMAND_LENGTH", "DOWNLOAD", "ECHO", "UPLOAD", "command", "parsed", "receive_exactly", "serve"]

DOWNLOAD, UPLOAD, ECHO = b"D", b"U", b"E"

_COMMAND = struct.Struct("!cQQ")
COMMAND_LENGTH = _COMMAND.size
_PIECE = bytes(256 * 1024)


def command(kind: bytes, first: int = 0, second: int = 0) -> bytes:
    """The octets of a command."""
    return _COMMAND.pack(kind, first, second)


def parsed(octets: bytes) -> tuple[bytes, int, int]:
    """A command's letter and numbers."""
    kind, first, second = _COMMAND.unpack(octets)
    return kind, first, second


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` octets, fewer only at the end of the stream."""
    octets = b""
    while len(octets) < size:
        part = sock.recv(size - len(octets))
        if not part:
            break
        octets += part
    return octets


def serve(handle: Callable[[socket.socket], None]) -> None:
    """Listens, prints the port, and hands each connection to `handle` in its own thread, until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    threading.Thread(target=_accept, args=(listener, handle), daemon=True).start()
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


def _accept(listener: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    def run(connection: socket.socket) -> None:
        with connection:
            try:
                handle(connection)
            except ConnectionError:
                return  # the client has what it wanted

    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=run, args=(connection,), daemon=True).start()


def _obey(connection: socket.socket) -> None:
    scratch = bytearray(len(_PIECE))
    while octets := receive_exactly(connection, COMMAND_LENGTH):
        kind, size, _ = parsed(octets)
        if kind == DOWNLOAD:
            _send(connection, size)
        elif kind == UPLOAD:
            _swallow(connection, size, memoryview(scratch))
            connection.sendall(b"!")
        else:
            _echo(connection)


def _send(connection: socket.socket, size: int) -> None:
    while size:
        piece = min(size, len(_PIECE))
        connection.sendall(memoryview(_PIECE)[:piece])
        size -= piece


def _swallow(connection: socket.socket, size: int, scratch: memoryview) -> None:
    while size:
        taken = connection.recv_into(scratch[:size])
        if not taken:
            raise ConnectionResetError
        size -= taken


def _echo(connection: socket.socket) -> None:
    while piece := connection.recv(65536):
        connection.sendall(piece)


if __name__ == "__main__":
    serve(_obey)
