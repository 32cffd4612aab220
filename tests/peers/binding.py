"""A listening socket and its peer, when the one is at a proxy and the other is not."""

from __future__ import annotations

import select
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import GSSSocket
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from gsssocks import Proxy

__all__ = [
    "SOON",
    "accepted",
    "await_refusal",
    "exchange",
    "handshake",
    "listening",
    "peer_of",
    "readable",
    "server_context",
]

SOON = 0.05
"""Seconds for which nothing may happen."""


@contextmanager
def listening(proxy: Proxy | str, port: int = 0) -> Iterator[GSSSocket]:
    with GSSSocket(proxy=proxy) as sock:
        sock.settimeout(PATIENCE_SECONDS)
        sock.bind(("", port))
        sock.listen()
        yield sock


def peer_of(listener: socket.socket) -> socket.socket:
    """A plain connection to where it listens."""
    return socket.create_connection(listener.getsockname()[:2], PATIENCE_SECONDS)


@contextmanager
def accepted(listener: socket.socket) -> Iterator[tuple[socket.socket, socket.socket]]:
    """An accepted connection, and its peer."""
    with peer_of(listener) as peer:
        sock, address = listener.accept()
        with sock:
            assert address[:2] == peer.getsockname()[:2]
            yield sock, peer


def await_refusal(address: tuple[str, int]) -> None:
    """Waits until nobody listens there any more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(address, PATIENCE_SECONDS).close()
        except OSError:
            return
        assert time.monotonic() < deadline, "somebody still listens"
        time.sleep(0.01)


def exchange(sock: socket.socket, peer: socket.socket) -> None:
    """Data goes both ways."""
    peer.sendall(b"from the peer")
    assert receive_exactly(sock, 13) == b"from the peer"
    sock.sendall(b"to the peer")
    assert receive_exactly(peer, 11) == b"to the peer"


def readable(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def server_context(trust: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.issue_cert("localhost").configure_cert(context)
    return context


def handshake(serve: Callable[[ssl.SSLContext], Any], peer: socket.socket, trust: trustme.CA) -> None:
    """Both ends shake hands, and data goes both ways."""
    client_context = ssl.create_default_context()
    trust.configure_trust(client_context)
    with ThreadPoolExecutor() as threads:
        server = threads.submit(serve, server_context(trust))
        with client_context.wrap_socket(peer, server_hostname="localhost") as client, server.result() as sock:
            exchange(sock, client)
