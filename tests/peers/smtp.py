"""A small SMTP server with STARTTLS: enough of RFC 5321 and RFC 3207 for a client to leave one message."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    import socket
    from typing import BinaryIO

__all__ = ["smtp_script"]


def smtp_script(context: ssl.SSLContext) -> Callable[[socket.socket], bytes]:
    """For a `Host`: answers one client; its result is the message that came after STARTTLS, as it came."""

    def serve(connection: socket.socket) -> bytes:
        connection.sendall(b"220 localhost ESMTP\r\n")
        with connection.makefile("rb") as lines:
            _converse(connection, lines, until=b"STARTTLS")
        connection.sendall(b"220 go ahead\r\n")
        with context.wrap_socket(connection, server_side=True) as encrypted, encrypted.makefile("rb") as lines:
            _converse(encrypted, lines, until=b"DATA")
            encrypted.sendall(b"354 end with a dot\r\n")
            message = b""
            while (line := lines.readline()) != b".\r\n":
                assert line, "the client went away in the middle of its message"
                message += line
            encrypted.sendall(b"250 kept\r\n")
            _converse(encrypted, lines, until=b"QUIT")
            encrypted.sendall(b"221 bye\r\n")
            return message

    return serve


def _converse(connection: socket.socket, lines: BinaryIO, *, until: bytes) -> None:
    while (line := lines.readline().strip().upper()) != until:
        assert line, f"the client went away without {until.decode()}"
        greeting = line.startswith(b"EHLO") and not isinstance(connection, ssl.SSLSocket)
        connection.sendall(b"250-localhost\r\n250 STARTTLS\r\n" if greeting else b"250 fine\r\n")
