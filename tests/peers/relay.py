"""A relay between a client and a server that counts how often they take turns, and keeps what they said."""

from __future__ import annotations

import selectors
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.peers.host import Host

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["CountingRelay"]

_PIECE = 1 << 18


class CountingRelay:
    """Passes octets on between each client and a server, up to the end of both streams.

    Attributes:
        flights: for each connection that has been made, in their order, who spoke: "client" or "server", once for all
            octets that one of them sent before the other did.
        said: for each connection, all octets from the client and all from the server.

    Args:
        server: address of the server.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.flights: list[list[str]] = []
        self.said: list[dict[str, bytearray]] = []
        self._server = server
        self._host = Host(self._relay)

    def __enter__(self) -> CountingRelay:
        self._host.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._host.__exit__(kind, error, traceback)

    @property
    def port(self) -> int:
        """Its TCP port on 127.0.0.1."""
        return self._host.address[1]

    def _relay(self, client: socket.socket) -> None:
        flights: list[str] = []
        said = {"client": bytearray(), "server": bytearray()}
        self.flights.append(flights)
        self.said.append(said)
        with socket.create_connection(self._server) as server, selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, ("client", server))
            selector.register(server, selectors.EVENT_READ, ("server", client))
            while selector.get_map():
                for key, _ in selector.select():
                    source = key.fileobj
                    assert isinstance(source, socket.socket)
                    speaker, sink = key.data
                    octets = _received(source)
                    if octets:
                        said[speaker] += octets
                        if flights[-1:] != [speaker]:
                            flights.append(speaker)
                        sink.sendall(octets)
                    else:
                        selector.unregister(source)
                        with suppress(OSError):
                            sink.shutdown(socket.SHUT_WR)


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(_PIECE)
    except ConnectionResetError:
        return b""  # a client that cannot agree with its proxy ends the connection so
