"""Real peers for every test: a Kerberos realm, Dante in each of its modes, and targets behind it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import hypothesis
import pytest
import trustme

from gsssocks.testing import Realm, tunnelled_pair
from gsssocks.testing._loopback import ReservedPort
from tests.peers.dante import Dante
from tests.peers.routes import SameAsPlain, tunnelled
from tests.peers.targets import EchoServer, HTTPSServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from gsssocks.testing import TunnelPeer

# No test asserts a time. On a developer's machine each run tries other examples; in CI every run tries the same ones,
# so that a change is judged by what it changes.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(scope="session")
def realm() -> Iterator[Realm]:
    """A realm, not activated: alice has a ticket, socks/localhost a keytab."""
    with Realm() as started:
        yield started


@pytest.fixture
def in_the_realm(realm: Realm) -> Iterator[None]:
    """This process has the realm's configuration, alice's ticket and the proxy's keytab."""
    with realm.activate():
        yield


@pytest.fixture(scope="session")
def dante_confidentiality(realm: Realm) -> Iterator[Dante]:
    """Dante that accepts level 2 alone."""
    with Dante(realm, enctype="confidentiality") as started:
        yield started


@pytest.fixture(scope="session")
def dante_integrity(realm: Realm) -> Iterator[Dante]:
    """Dante that accepts level 1 alone."""
    with Dante(realm, enctype="integrity") as started:
        yield started


@pytest.fixture(scope="session")
def dante_clear(realm: Realm) -> Iterator[Dante]:
    """Dante that accepts level 0 alone, which RFC 1961 does not have."""
    with Dante(realm, enctype="clear") as started:
        yield started


@pytest.fixture(scope="session")
def dante_none(realm: Realm) -> Iterator[Dante]:
    """Dante without any authentication."""
    with Dante(realm, enctype=None) as started:
        yield started


@pytest.fixture(scope="session")
def dante_same_same(realm: Realm) -> Iterator[Dante]:
    """Dante that listens for BIND at ::1 for whoever comes to it there."""
    with Dante(realm, enctype="confidentiality", same_same=True) as started:
        yield started


@pytest.fixture(params=["integrity", "confidentiality"])
def dante(request: pytest.FixtureRequest) -> Dante:
    """Dante at each of the RFC's protection levels, one after the other."""
    started: Dante = request.getfixturevalue(f"dante_{request.param}")
    return started


@pytest.fixture(scope="session")
def echo() -> Iterator[EchoServer]:
    """An echo server on 127.0.0.1, its `address`, and on ::1."""
    with EchoServer() as started:
        yield started


@pytest.fixture
def nobody() -> Iterator[tuple[str, int]]:
    """An address of 127.0.0.1, with the same port at ::1, at which nobody listens or comes to listen meanwhile."""
    port = ReservedPort("127.0.0.1", "::1")
    yield "127.0.0.1", port.number
    port.release()


@pytest.fixture(scope="session")
def echo_ipv6() -> Iterator[EchoServer]:
    """An echo server on ::1 alone."""
    with EchoServer("::1") as started:
        yield started


@pytest.fixture(scope="session")
def trust() -> trustme.CA:
    """The certification authority of `https_server`."""
    return trustme.CA()


@pytest.fixture(scope="session")
def https_server(trust: trustme.CA) -> Iterator[HTTPSServer]:
    """An HTTPS server on 127.0.0.1, its `address`, and on ::1."""
    with HTTPSServer(trust) as started:
        yield started


@pytest.fixture
def through_dante(realm: Realm, dante_confidentiality: Dante) -> Iterator[Dante]:
    """gsssocks is installed: every TCP connection of this process goes through a Dante at level 2."""
    with tunnelled(realm, dante_confidentiality):
        yield dante_confidentiality


@pytest.fixture
def same_as_plain(realm: Realm, dante_confidentiality: Dante) -> SameAsPlain:
    """Calls a function without a proxy and with one; the outcome must be the same."""
    return SameAsPlain(realm, dante_confidentiality)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, TunnelPeer]]:
    """A tunnelled socket that does not wait, and its peer."""
    sock, peer = tunnelled_pair()
    sock.setblocking(False)
    with closing(sock), closing(peer):
        yield sock, peer


@pytest.fixture
def tight() -> Iterator[tuple[socket.socket, TunnelPeer]]:
    """The same with the smallest buffers there are: a full message leaves in many parts."""
    sock, peer = tunnelled_pair(buffers=1)
    sock.setblocking(False)
    with closing(sock), closing(peer):
        yield sock, peer
