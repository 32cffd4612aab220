"""TLS for tests that look below it, or put one into another."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Callable, Protocol, TypeVar

__all__ = ["ByteStream", "LayeredTLS", "is_nothing_but_tls"]

T = TypeVar("T")

_RECORD_TYPES = {20, 21, 22, 23}  # change_cipher_spec, alert, handshake, application_data (RFC 8446, section 5.1)


class ByteStream(Protocol):
    """What TLS can run over."""

    def sendall(self, data: bytes, /) -> None: ...

    def recv(self, size: int, /) -> bytes: ...


class LayeredTLS:
    """TLS in memory, over any byte stream; it can carry another one.

    Args:
        below: what it runs over.
        context: how.
        server_hostname: the server's name; None is the server itself.

    Attributes:
        heard: every octet received from below.
    """

    def __init__(self, below: ByteStream, context: ssl.SSLContext, *, server_hostname: str | None = None) -> None:
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_hostname is None, server_hostname=server_hostname
        )
        self.heard = bytearray()

    def do_handshake(self) -> None:
        self._run(self._tls.do_handshake)

    def sendall(self, data: bytes, /) -> None:
        self._run(lambda: self._tls.write(data))

    def recv(self, size: int, /) -> bytes:
        """At most `size` octets; none at the end, with or without close_notify."""
        try:
            return self._run(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def hear_until_end(self) -> bytes:
        """Reads from below up to the end of the stream, whatever it is; returns `heard`."""
        while piece := self._below.recv(65536):
            self.heard += piece
        return bytes(self.heard)

    def farewell(self, data: bytes) -> bytes:
        """Writes `data` and close_notify; returns the octets, which have not been sent."""
        self._tls.write(data)
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def _run(self, operation: Callable[[], T]) -> T:
        while True:
            try:
                result = operation()
            except ssl.SSLWantReadError:
                self._send_pending()
                piece = self._below.recv(65536)
                self.heard += piece
                if piece:
                    self._incoming.write(piece)
                else:
                    self._incoming.write_eof()
            else:
                self._send_pending()
                return result

    def _send_pending(self) -> None:
        if self._outgoing.pending:
            self._below.sendall(self._outgoing.read())


def is_nothing_but_tls(octets: bytes) -> bool:
    """Whether `octets` are a sequence of whole TLS records and nothing else."""
    while octets:
        if len(octets) < 5 or octets[0] not in _RECORD_TYPES or octets[1] != 3:
            return False
        length = int.from_bytes(octets[3:5], "big")
        if len(octets) < 5 + length:
            return False
        octets = octets[5 + length :]
    return True
