"""A caller's buffer is the caller's again when a call has ended, also by an error that is still being looked at.

An exception keeps the frames it came through, and what they hold; asyncio's transports empty their buffer in the very
`except` clause.
"""

from __future__ import annotations

import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Callable

import pytest

from tests.peers.host import PATIENCE_SECONDS, Host

if TYPE_CHECKING:
    import trustme

    from gsssocks.testing import TunnelPeer
    from tests.peers.dante import Dante

    Pair = tuple[socket.socket, TunnelPeer]

SENDING: dict[str, Callable[[socket.socket, bytearray], object]] = {
    "send": lambda sock, data: sock.send(data),
    "sendall": lambda sock, data: sock.sendall(data),
    "sendto": lambda sock, data: sock.sendto(data, ("127.0.0.1", 1)),
    "sendmsg": lambda sock, data: sock.sendmsg([data, data]),
}
RECEIVING: dict[str, Callable[[socket.socket, bytearray], object]] = {
    "recv_into": lambda sock, buffer: sock.recv_into(buffer),
    "recvfrom_into": lambda sock, buffer: sock.recvfrom_into(buffer),
    "recvmsg_into": lambda sock, buffer: sock.recvmsg_into([buffer, buffer]),
    "recv_into, too much": lambda sock, buffer: sock.recv_into(buffer, len(buffer) + 1),
    "recv_into, peeking": lambda sock, buffer: sock.recv_into(buffer, 0, socket.MSG_PEEK),
}


def error_of(call: Callable[[], object]) -> BaseException:
    """The error that the call, again and again, has in the end."""
    while True:
        try:
            call()
        except (OSError, ValueError) as error:
            return error


@pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)
@pytest.mark.parametrize("size", [1, 100_000])
def test_after_a_send_that_found_no_room(tight: Pair, send: Callable[..., Any], size: int) -> None:
    sock, _ = tight
    data = bytearray(size)
    error = error_of(lambda: send(sock, data))
    assert isinstance(error, BlockingIOError)
    data.clear()


@pytest.mark.parametrize("send", SENDING.values(), ids=SENDING)
@pytest.mark.parametrize("size", [1, 100_000])
def test_after_a_send_on_a_connection_that_was_reset(tight: Pair, send: Callable[..., Any], size: int) -> None:
    sock, peer = tight
    data = bytearray(size)
    error_of(lambda: send(sock, data))
    peer.reset()
    sock.settimeout(PATIENCE_SECONDS)
    error = error_of(lambda: send(sock, data))
    assert isinstance(error, ConnectionError)
    data.clear()


@pytest.mark.parametrize("receive", RECEIVING.values(), ids=RECEIVING)
def test_after_a_receive_that_found_nothing(pair: Pair, receive: Callable[..., Any]) -> None:
    sock, _ = pair
    buffer = bytearray(100)
    error = error_of(lambda: receive(sock, buffer))
    assert isinstance(error, (BlockingIOError, ValueError))
    buffer.clear()


def test_after_a_write_of_tls_that_failed(through_dante: Dante, trust: trustme.CA) -> None:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    trust.issue_cert("localhost").configure_cert(server)
    trust.configure_trust(client)
    over = threading.Event()

    def shake_hands(connection: socket.socket) -> None:
        with server.wrap_socket(connection, server_side=True):
            over.wait(PATIENCE_SECONDS)

    with Host(shake_hands) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as plain:
        with client.wrap_socket(plain, server_hostname="localhost") as encrypted:
            encrypted.setblocking(False)
            data = bytearray(100_000)
            error = error_of(lambda: encrypted.send(data))
            assert isinstance(error, ssl.SSLWantWriteError)
            data.clear()
        over.set()
