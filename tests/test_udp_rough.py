"""Ten thousand datagrams to a real Dante and back, through a network that loses, repeats, reorders and changes them."""

from __future__ import annotations

import hashlib
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from gsssocks import GSSSocket, Proxy, _endpoint, _udp
from tests.peers.datagrams import RoughNetwork, UDPEcho

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks._udp import Association
    from gsssocks.testing import Realm
    from tests.peers.dante import Dante

COUNT = 10_000
BURST = 25
PACE_SECONDS = 0.005
"""A pause after which the next burst is sent: the fewer datagrams no buffer has room for, the better."""


def made(number: int) -> bytes:
    """A datagram that says which one it is, and whether it is whole."""
    body = number.to_bytes(4, "big") * (1 + number % 300)
    return hashlib.sha256(body).digest() + body


def number_of(datagram: bytes) -> int:
    """Which one it is: the test fails if it is not whole."""
    digest, body = datagram[:32], datagram[32:]
    assert hashlib.sha256(body).digest() == digest
    return int.from_bytes(body[:4], "big")


class Detour:
    """Has the datagrams of the associations made from now on go through rough networks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.networks: list[RoughNetwork] = []
        self._associate = _udp.associate
        monkeypatch.setattr(_endpoint, "associate", self._by_detour)

    def _by_detour(self, *arguments: object) -> Association:
        association = self._associate(*arguments)  # type: ignore[arg-type]
        network = RoughNetwork(association.relay, seed=len(self.networks)).__enter__()
        self.networks.append(network)
        association.relay = network.address
        return association


@pytest.fixture
def detour(monkeypatch: pytest.MonkeyPatch) -> Iterator[Detour]:
    prepared = Detour(monkeypatch)
    yield prepared
    for network in prepared.networks:
        network.__exit__(None, None, None)


def arrived(sock: socket.socket, patience: float) -> list[int]:
    """Which datagrams there are, up to a pause of `patience` seconds."""
    found = []
    while select.select([sock], [], [], patience)[0]:
        with suppress(BlockingIOError):
            found.append(number_of(sock.recv(65535)))
    return found


@pytest.mark.default_python_only
def test_what_is_delivered_is_whole_and_delivered_once(realm: Realm, dante: Dante, detour: Detour) -> None:
    received: list[int] = []
    proxy = Proxy.from_url(dante.url(protection=dante.enctype))
    with realm.activate(), UDPEcho() as echo, GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=proxy) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setblocking(False)
        for number in range(COUNT):
            sock.sendto(made(number), echo.address)
            if number % BURST == BURST - 1:
                received += arrived(sock, PACE_SECONDS)
        (network,) = detour.networks
        network.stop()
        received += arrived(sock, 0)
        dropped = sock.dropped
    assert dropped is not None
    assert len(set(received)) == len(received)
    assert set(received) <= set(range(COUNT))
    assert received != sorted(received)
    assert len(received) == network.intact
    assert (dropped.repeated, dropped.damaged) == (network.repeated, network.damaged)
    assert min(network.lost, network.intact, network.repeated, network.damaged) > COUNT // 100
    assert (dropped.unprotected, dropped.fragments, dropped.foreign) == (0, 0, 0)
