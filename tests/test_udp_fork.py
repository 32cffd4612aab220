"""A UDP socket after fork(): parent and child may both go on with it, as with a plain one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from gsssocks import Proxy
from gsssocks.server import ProxyServer
from tests.peers.datagrams import UDPEcho
from tests.test_fork import Child, lasting_child
from tests.test_udp import Cutter, through, udp

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante

pytestmark = pytest.mark.usefixtures("in_the_realm")


@pytest.fixture
def echo() -> Iterator[UDPEcho]:
    with UDPEcho() as started:
        yield started


@pytest.fixture
def strict(realm: Realm) -> Iterator[Proxy]:
    """A proxy that drops a datagram whose number it has seen before: Dante does not."""
    with ProxyServer("localhost", keytab=realm.keytab) as server:
        yield Proxy.from_url(server.url())


def exchange(sock: socket.socket, data: bytes, echo: UDPEcho) -> bytes:
    sock.sendto(data, echo.address)
    return sock.recv(100)


def test_both_send_and_nothing_is_lost(strict: Proxy, echo: UDPEcho) -> None:
    with udp(strict) as sock:
        exchange(sock, b"before", echo)
        for number in range(2):
            child = b"child %d" % number
            assert Child(lambda child=child: exchange(sock, child, echo)).result() == child  # type: ignore[misc]
        assert exchange(sock, b"parent", echo) == b"parent"


def test_child_receives_what_its_parent_has_asked_for(dante_confidentiality: Dante, echo: UDPEcho) -> None:
    with udp(through(dante_confidentiality)) as sock:
        sock.connect(echo.address)
        sock.send(b"parent")
        before = dante_confidentiality.associations()
        assert Child(lambda: sock.recv(100)).result() == b"parent"
        assert dante_confidentiality.associations() == before


def test_association_ends_with_the_parents_socket_though_a_child_lives(dante_integrity: Dante, echo: UDPEcho) -> None:
    with Cutter(dante_integrity) as cutter:
        sock = udp(replace(through(dante_integrity), port=cutter.port))
        sock.sendto(b"not answered yet", echo.address)
        sock.close()
        with lasting_child():
            assert cutter.ended_by_client()
