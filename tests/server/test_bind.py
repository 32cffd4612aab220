"""BIND: the proxy listens for the client's peer, and answers twice."""

from __future__ import annotations

import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from gsssocks._protocol import Address
from gsssocks.server import ProxyServer
from tests.peers.binding import accepted, exchange, listening
from tests.peers.by_hand import (
    LIMIT,
    RESET,
    ByHand,
    Target,
    both_families,
    last_session,
    received,
    request_for,
    server_threads,
    serving,
    until,
)
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.default_python_only

ANYBODY = ("0.0.0.0", 0)
BIND = 2


def address_in(reply: bytes) -> tuple[str, int]:
    """BND.ADDR and BND.PORT of a reply (RFC 1928, section 6)."""
    version, code, reserved, kind = reply[:4]
    assert (version, code, reserved) == (5, 0, 0)
    family = {1: socket.AF_INET, 4: socket.AF_INET6}[kind]
    (port,) = struct.unpack("!H", reply[-2:])
    return socket.inet_ntop(family, reply[4:-2]), port


def listen(client: ByHand, expected: tuple[str, int] = ANYBODY, level: int = 2) -> tuple[str, int]:
    """Asks for BIND; where the proxy listens."""
    client.agree(level)
    client.send_data(request_for(expected, BIND), encrypt=level != 1)
    return address_in(client.receive_data())


@contextmanager
def peer_of(address: tuple[str, int], source: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_connection(address, LIMIT, source_address=(source, 0)) as peer:
        yield peer


def turn_away(address: tuple[str, int]) -> None:
    """Sees a stranger reset, perhaps as soon as it has connected."""
    with pytest.raises(ConnectionResetError), peer_of(address, "127.0.0.3") as stranger:
        stranger.recv(1)


class TestBind:
    @pytest.mark.parametrize("level", [1, 2, 3])
    def test_answers_twice_and_then_carries_data_both_ways(self, proxy: ProxyServer, level: int) -> None:
        with ByHand(proxy) as client:
            address = listen(client, level=level)
            with peer_of(address) as peer:
                assert address_in(client.receive_data()) == peer.getsockname()
                client.send_data(b"from the client", encrypt=level != 1)
                assert peer.recv(100) == b"from the client"
                peer.sendall(b"from the peer")
                assert client.receive_data() == b"from the peer"
                peer.shutdown(socket.SHUT_WR)
                assert client.stream.recv(1) == b""
        session = last_session(proxy)
        assert (session.command, session.reply, session.error) == ("bind", 0, None)
        assert (str(session.bound), str(session.destination)) == ("{}:{}".format(*address), "0.0.0.0:0")
        assert (session.octets_received, session.octets_sent) == (15, 13)

    def test_at_level_none(self) -> None:
        with serving(levels=["none"]) as proxy, ByHand(proxy) as client:
            client.agree(0)
            client.send(request_for(ANYBODY, BIND))
            with peer_of(address_in(client.receive(10))) as peer:
                assert address_in(client.receive(10)) == peer.getsockname()
                peer.sendall(b"bare")
                assert client.receive(4) == b"bare"

    def test_much_data_and_its_end(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client, peer_of(listen(client)) as peer, ThreadPoolExecutor() as pool:
            client.receive_data()
            hearing = pool.submit(received, peer)
            for start in range(0, 1_000_000, 50_000):
                client.send_data(octets(50_000, start))
            client.stream.shutdown(socket.SHUT_WR)
            assert hearing.result() == octets(1_000_000)

    def test_what_the_client_says_before_its_peer_comes_arrives(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            address = listen(client)
            client.send_data(b"early")
            with peer_of(address) as peer:
                assert peer.recv(100) == b"early"

    def test_over_ipv6(self) -> None:
        with ProxyServer("::1") as proxy, ByHand(proxy) as client:
            client.agree()
            client.send_data(b"\x05\x02\x00\x04" + bytes(18))
            address = address_in(client.receive_data())
            assert address[0] == "::1"
            with peer_of(address, "::1") as peer:
                assert address_in(client.receive_data()) == peer.getsockname()[:2]

    def test_of_a_client_of_ipv4_at_a_socket_of_both_families(self) -> None:
        with serving(listeners=[both_families()]) as proxy, ByHand(proxy) as client:
            address = listen(client)
            assert address[0] == "127.0.0.1"
            with peer_of(address) as peer:
                assert address_in(client.receive_data()) == peer.getsockname()
            assert proxy.sessions[-1].client.host == "127.0.0.1"

    def test_a_reset_by_the_peer_reaches_the_client(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            with peer_of(listen(client)) as peer:
                client.receive_data()
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with pytest.raises(ConnectionResetError):
                client.stream.recv(1)

    def test_only_one_peer(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            address = listen(client)
            with peer_of(address):
                client.receive_data()
                with pytest.raises(ConnectionRefusedError), peer_of(address):
                    pass


class TestOurOwnClient:
    @pytest.mark.parametrize("level", ["none", "integrity", "confidentiality", "selective"])
    def test_data_goes_both_ways(self, level: str) -> None:
        with serving(levels=[level]) as proxy, listening(proxy.url(protection=level)) as listener:
            with accepted(listener) as (sock, peer):
                exchange(sock, peer)
            assert last_session(proxy).bound == Address(*listener.getsockname())

    def test_a_level_offered_instead(self) -> None:
        with serving(levels=["confidentiality"], counter_offer=True) as proxy:
            with listening(proxy.url(protection="integrity")) as listener, accepted(listener) as (sock, peer):
                exchange(sock, peer)
            assert last_session(proxy).protection == "confidentiality"


class TestPeer:
    """Where the request names a peer, nobody else is let in."""

    def test_the_one_expected_is_let_in(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client, peer_of(listen(client, ("127.0.0.2", 21)), "127.0.0.2") as peer:
            assert address_in(client.receive_data()) == peer.getsockname()

    def test_a_stranger_is_reset_and_the_wait_goes_on(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            address = listen(client, ("127.0.0.2", 0))
            turn_away(address)
            with peer_of(address, "127.0.0.2") as peer:
                assert address_in(client.receive_data()) == peer.getsockname()

    def test_the_address_is_the_one_by_which_the_peer_is_reached(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.agree()
            client.send_data(b"\x05\x02\x00\x04" + socket.inet_pton(socket.AF_INET6, "::1") + bytes(2))
            assert address_in(client.receive_data())[0] == "::1"

    def test_expected_by_name(self) -> None:
        with serving(hosts={"peer.test": "127.0.0.2"}) as proxy, ByHand(proxy) as client:
            client.agree()
            client.send_data(b"\x05\x02\x00\x03\x09peer.test\x00\x15")
            address = address_in(client.receive_data())
            with peer_of(address, "127.0.0.2") as peer:
                assert address_in(client.receive_data()) == peer.getsockname()

    def test_expected_by_a_name_of_both_families(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.agree()
            client.send_data(b"\x05\x02\x00\x03\x09localhost\x00\x15")
            address = address_in(client.receive_data())
            assert address[0] == "127.0.0.1"
            with peer_of(address):
                client.receive_data()

    def test_an_unknown_name_is_answered_by_4(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            assert client.ask(b"\x05\x02\x00\x03\x0cname.invalid\x00\x15") == 4

    def test_the_rules_judge_the_one_that_comes(self) -> None:
        with serving(rules=["deny to=127.0.0.3", "allow command=bind"]) as proxy, ByHand(proxy) as client:
            address = listen(client)
            turn_away(address)
            with peer_of(address, "127.0.0.2"):
                client.receive_data()

    def test_the_rules_judge_the_one_expected(self) -> None:
        with serving(rules=["deny to=127.0.0.3", "allow"]) as proxy, ByHand(proxy) as client:
            assert client.ask(request_for(("127.0.0.3", 21), BIND)) == 2

    @pytest.mark.parametrize("rules", [[], ["allow command=connect,udp"], ["deny command=bind", "allow"]])
    def test_not_allowed_at_all(self, rules: list[str]) -> None:
        with serving(rules=rules) as proxy, ByHand(proxy) as client:
            assert client.ask(request_for(ANYBODY, BIND)) == 2
            assert client.ending() == b""


class TestWaiting:
    def test_ends_with_a_second_answer_when_nobody_comes(self) -> None:
        with serving(bind_timeout=0.2) as proxy, ByHand(proxy) as client:
            address = listen(client)
            assert client.receive_data()[1] == 6
            assert client.ending() == b""
            assert_closed(address)
            assert last_session(proxy).reply == 6

    def test_strangers_do_not_prolong_it(self) -> None:
        with serving(bind_timeout=0.5) as proxy, ByHand(proxy) as client:
            address = listen(client, ("127.0.0.2", 0))

            def insist() -> None:
                while True:
                    turn_away(address)

            with pytest.raises(ConnectionRefusedError):
                insist()
            assert client.receive_data()[1] == 6

    @pytest.mark.parametrize("reset", [False, True])
    def test_ends_when_the_client_leaves(self, proxy: ProxyServer, *, reset: bool) -> None:
        with ByHand(proxy) as client:
            address = listen(client)
            if reset:
                client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        assert isinstance(last_session(proxy).error, ConnectionError)
        assert_closed(address)

    def test_ends_when_the_proxy_stops(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            address = listen(client)
            proxy.stop()
            assert not server_threads()
            assert_closed(address)
            assert client.stream.recv(1) == b""

    def test_a_flood_of_connections_leaves_nothing(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            address = listen(client, ("127.0.0.2", 0))
            for _ in range(200):
                # The reset may come as soon as that.
                with suppress(ConnectionResetError), peer_of(address, "127.0.0.3"):
                    pass
        last_session(proxy)
        until(lambda: server_threads() == ["gsssocks-server"])


def assert_closed(address: tuple[str, int]) -> None:
    """Nobody listens there any more, and the port is free again."""
    with socket.socket() as again:
        again.bind(address)


def test_a_target_of_connect_is_not_bothered(proxy: ProxyServer) -> None:
    """The expected peer is not connected to."""
    with Target() as target, ByHand(proxy) as client:
        listen(client, target.address)
        client.stream.close()
        last_session(proxy)
        target._listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            target.accept()
