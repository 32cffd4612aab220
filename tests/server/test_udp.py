"""UDP ASSOCIATE: a relay of datagrams, each one message, for one client."""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from gsssocks._protocol import Address, Datagram
from gsssocks.server import ProxyServer, _udp
from tests.peers.by_hand import (
    LIMIT,
    RESET,
    ByHand,
    SlowHosts,
    both_families,
    last_session,
    server_threads,
    serving,
    until,
)
from tests.peers.datagrams import UDPEcho

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.server import Session

pytestmark = pytest.mark.default_python_only

ASSOCIATE = b"\x05\x03\x00\x01" + bytes(6)


class Associated:
    """A client with an association, by hand.

    Args:
        local: where it sends its datagrams from.
    """

    def __init__(self, proxy: ProxyServer, *, level: int = 2, local: str = "127.0.0.1") -> None:
        self.level = level
        self.control = ByHand(proxy, sequence=False)
        self.control.agree(level)
        if level:
            self.control.send_data(ASSOCIATE, encrypt=level != 1)
            reply = self.control.receive_data()
        else:
            self.control.send(ASSOCIATE)
            reply = self.control.receive(10)
        assert reply[:2] == b"\x05\x00"
        bound = Address.decode(reply[3:])
        self.relay = (bound.host, bound.port)
        self.socket = socket.socket(socket.AF_INET6 if ":" in bound.host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((local, 0))
        self.socket.settimeout(LIMIT)

    def __enter__(self) -> Associated:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.control.stream.close()

    def message(self, target: tuple[str, int], data: bytes, *, fragment: int = 0) -> bytes:
        return self.sealed(Datagram(Address(*target), data, fragment).encode())

    def sealed(self, octets: bytes, *, encrypt: bool | None = None) -> bytes:
        if not self.level:
            return octets
        token = self.control.wrap(octets, encrypt=self.level != 1 if encrypt is None else encrypt)
        return struct.pack("!BBH", 1, 3, len(token)) + token

    def send(self, target: tuple[str, int], data: bytes) -> None:
        self.socket.sendto(self.message(target, data), self.relay)

    def receive(self) -> tuple[tuple[str, int], bytes]:
        message, sender = self.socket.recvfrom(65536)
        assert sender[:2] == self.relay
        if self.level:
            version, kind, length = struct.unpack("!BBH", message[:4])
            assert (version, kind, length) == (1, 3, len(message) - 4)
            unwrapped = self.control.context.unwrap(message[4:])
            assert unwrapped.encrypted == (self.level != 1)
            message = unwrapped.message
        datagram = Datagram.decode(message)
        assert datagram.fragment == 0
        return (datagram.address.host, datagram.address.port), datagram.data

    def asks(self, target: tuple[str, int], data: bytes = b"data") -> None:
        """Sends, and receives the same from there."""
        self.send(target, data)
        assert self.receive() == (target, data)


@contextmanager
def plain(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.settimeout(LIMIT)
        yield sock


@pytest.fixture
def target() -> Iterator[tuple[str, int]]:
    with UDPEcho() as started:
        yield started.address


def drops(session: Session, reason: str, count: int = 1) -> None:
    """Waits until as many datagrams have been dropped for this reason, and sees that none was for another."""
    until(lambda: session.dropped[reason] >= count)
    assert session.dropped == {reason: count}


FATES = ("whole", "lost", "repeated", "damaged")


def met(message: bytes, fate: str) -> list[bytes]:
    """What is left of a message that has met with this."""
    damaged = message[:-1] + bytes([message[-1] ^ 1])
    return {"whole": [message], "lost": [], "repeated": [message, message], "damaged": [damaged]}[fate]


class TestAssociation:
    @pytest.mark.parametrize("level", [0, 1, 2, 3])
    def test_datagrams_go_there_and_back(self, target: tuple[str, int], level: int) -> None:
        with serving(levels=["none", "integrity", "confidentiality", "selective"]) as proxy:
            with Associated(proxy, level=level) as client:
                for size in (0, 1, 1000, 20_000):
                    client.asks(target, bytes(size))
            session = last_session(proxy)
        assert (session.command, session.reply, session.error) == ("udp", 0, None)
        assert (session.datagrams_received, session.datagrams_sent) == (4, 4)
        assert session.octets_received == session.octets_sent == 21_001
        assert not session.dropped
        assert str(session.bound) == "{}:{}".format(*client.relay)

    def test_several_targets_of_both_families_and_by_name(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with UDPEcho() as second, UDPEcho() as third, Associated(proxy) as client:
            for address in (target, second.address, third.address6[:2], target):
                client.asks(address)
            client.send(("localhost", target[1]), b"data")
            assert client.receive() == (target, b"data")

    def test_over_ipv6(self, target: tuple[str, int]) -> None:
        with ProxyServer("::1") as proxy, Associated(proxy, local="::1") as client:
            assert client.relay[0] == "::1"
            client.asks(target)

    def test_of_a_client_of_ipv4_at_a_socket_of_both_families(self, target: tuple[str, int]) -> None:
        with serving(listeners=[both_families()]) as proxy, Associated(proxy) as client:
            assert client.relay[0] == "127.0.0.1"
            client.asks(target)

    def test_anybody_may_answer_whom_the_rules_allow(self, proxy: ProxyServer) -> None:
        """As with a socket of one's own: not only who has been written to."""
        with Associated(proxy) as client, plain() as first, plain("127.0.0.9") as second:
            client.send(first.getsockname(), b"question")
            _, outward = first.recvfrom(100)
            second.sendto(b"answer", outward)
            assert client.receive() == (second.getsockname(), b"answer")

    def test_datagrams_may_be_lost_and_overtake_each_other(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with Associated(proxy) as client:
            messages = [client.message(target, bytes([number])) for number in range(20)]
            for message in [*messages[:16:5], *messages[16:], *messages[1:16:5]]:
                client.socket.sendto(message, client.relay)
            got = {client.receive()[1][0] for _ in range(11)}
            assert got == {0, 5, 10, 15, 16, 17, 18, 19, 1, 6, 11}

    def test_on_a_rough_way_each_datagram_comes_once_or_never(
        self, proxy: ProxyServer, target: tuple[str, int]
    ) -> None:
        chance = random.Random(1961)
        with Associated(proxy) as client:
            session = proxy.sessions[-1]
            fates = Counter[str]()
            # In bursts: there is only so much that the kernel keeps.
            for _ in range(100):
                burst = {chance.randbytes(20): chance.choices(FATES, [80, 6, 8, 6])[0] for _ in range(20)}
                fates.update(burst.values())
                on_the_way = [m for data, fate in burst.items() for m in met(client.message(target, data), fate)]
                chance.shuffle(on_the_way)
                for message in on_the_way:
                    client.socket.sendto(message, client.relay)
                expected = {data for data, fate in burst.items() if fate in ("whole", "repeated")}
                assert {client.receive()[1] for _ in expected} == expected
            until(lambda: session.dropped == {"replayed": fates["repeated"], "forged": fates["damaged"]})
            until(lambda: session.datagrams_sent == fates["whole"] + fates["repeated"])
            assert session.datagrams_received == session.datagrams_sent

    def test_each_client_has_its_own(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with Associated(proxy) as first, Associated(proxy) as second:
            first.send(target, b"first")
            second.send(target, b"second")
            assert first.receive()[1] == b"first"
            assert second.receive()[1] == b"second"

    def test_ends_with_the_clients_connection(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with Associated(proxy) as client:
            client.asks(target)
            client.control.stream.close()
            assert last_session(proxy).error is None
            assert_closed(client.relay)

    def test_ends_with_a_reset_of_the_clients_connection(self, proxy: ProxyServer) -> None:
        with Associated(proxy) as client:
            client.control.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.control.stream.close()
            assert isinstance(last_session(proxy).error, ConnectionResetError)
            assert_closed(client.relay)

    @pytest.mark.parametrize("how", ["in order", "by a reset"])
    def test_ends_with_the_clients_connection_while_a_name_is_looked_up(
        self, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        monkeypatch.setattr(_udp, "LOOKUP_SECONDS", 10 * LIMIT)
        hosts = SlowHosts()
        with serving(hosts=hosts) as proxy, Associated(proxy) as client:
            client.send(("slow.test", 53), b"x")
            assert hosts.asked.wait(LIMIT)
            if how == "by a reset":
                client.control.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.control.stream.close()
            assert isinstance(last_session(proxy).error, ConnectionResetError) == (how == "by a reset")
            assert "gsssocks-wait" in server_threads()  # it still is
            hosts.answer.set()

    def test_name_is_looked_up_whatever_the_client_says_on_its_connection(self, target: tuple[str, int]) -> None:
        hosts = SlowHosts()
        with serving(hosts=hosts) as proxy, Associated(proxy) as client:
            client.send(("localhost", target[1]), b"x")
            assert hosts.asked.wait(LIMIT)
            client.control.send(b"nothing in particular" * 1000)
            hosts.answer.set()
            assert client.receive() == (target, b"x")

    def test_ends_when_the_proxy_stops(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with Associated(proxy) as client:
            client.asks(target)
            proxy.stop()
            assert not server_threads()
            assert_closed(client.relay)
            with pytest.raises(ConnectionResetError):
                client.control.stream.recv(1)

    def test_lasts_whatever_the_client_says_on_its_connection(
        self, proxy: ProxyServer, target: tuple[str, int]
    ) -> None:
        with Associated(proxy) as client:
            client.control.send(b"nothing in particular" * 1000)
            client.asks(target)

    def test_a_target_that_nobody_is_at_does_no_harm(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with UDPEcho() as gone:
            pass
        with Associated(proxy) as client:
            client.send(gone.address, b"x")
            client.asks(target)


class TestHostile:
    """What is not the client's, or not as it should be, is dropped and counted, and the association goes on."""

    @pytest.fixture
    def client(self, proxy: ProxyServer) -> Iterator[Associated]:
        with Associated(proxy) as associated:
            yield associated

    def test_a_repeated_datagram(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        message = client.message(target, b"once")
        for _ in range(3):
            client.socket.sendto(message, client.relay)
        drops(proxy.sessions[-1], "replayed", 2)
        assert client.receive()[1] == b"once"
        client.asks(target)

    def test_a_datagram_too_old_to_tell(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        old = client.message(target, b"old")
        for number in range(100):
            client.asks(target, bytes([number]))
        client.socket.sendto(old, client.relay)
        drops(proxy.sessions[-1], "replayed")

    def test_every_octet_changed(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        message = client.message(target, b"data")
        for index in range(4, len(message)):
            damaged = bytearray(message)
            damaged[index] ^= 0x40
            client.socket.sendto(damaged, client.relay)
        drops(proxy.sessions[-1], "forged", len(message) - 4)
        client.socket.sendto(message, client.relay)
        assert client.receive()[1] == b"data"

    @pytest.mark.parametrize(
        "message",
        [b"", b"\x01", b"\x01\x03\x00", b"\x01\x03\x00\x05abcd", b"\x01\x03\x00\x03abcd", b"\x01\xff", b"\x05\x00"],
        ids=lambda message: message.hex() or "empty",
    )
    def test_what_is_no_message(
        self, proxy: ProxyServer, client: Associated, target: tuple[str, int], message: bytes
    ) -> None:
        client.socket.sendto(message, client.relay)
        drops(proxy.sessions[-1], "malformed")
        client.asks(target)

    @pytest.mark.parametrize("kind", [0, 1, 2, 4])
    def test_a_message_of_another_type(
        self, proxy: ProxyServer, client: Associated, target: tuple[str, int], kind: int
    ) -> None:
        message = bytearray(client.message(target, b"data"))
        message[1] = kind
        client.socket.sendto(message, client.relay)
        drops(proxy.sessions[-1], "malformed")

    @pytest.mark.parametrize(
        "octets",
        [
            b"",
            b"\x00\x00\x00",
            b"\x00\x00\x00\x01\x7f\x00",
            b"\x00\x01\x00\x01" + bytes(6),
            b"\x00\x00\x00\x02abcdef",
            b"\x00\x00\x00\x03\x03a\\b\x00\x50",
        ],
        ids=lambda octets: octets.hex() or "empty",
    )
    def test_a_header_that_is_none(self, proxy: ProxyServer, client: Associated, octets: bytes) -> None:
        client.socket.sendto(client.sealed(octets), client.relay)
        drops(proxy.sessions[-1], "malformed")

    def test_a_datagram_that_is_not_encrypted_at_level_2(
        self, proxy: ProxyServer, client: Associated, target: tuple[str, int]
    ) -> None:
        octets = Datagram(Address(*target), b"open").encode()
        client.socket.sendto(client.sealed(octets, encrypt=False), client.relay)
        drops(proxy.sessions[-1], "not encrypted")

    def test_a_fragment(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        for fragment in (1, 0x7F, 0x80, 0xFF):
            client.socket.sendto(client.message(target, b"part", fragment=fragment), client.relay)
        drops(proxy.sessions[-1], "fragment", 4)
        client.asks(target)

    def test_a_stranger(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.2", 0))
            stranger.sendto(client.message(target, b"stolen"), client.relay)
            drops(proxy.sessions[-1], "stranger")

    def test_another_port_once_one_is_proven(
        self, proxy: ProxyServer, client: Associated, target: tuple[str, int]
    ) -> None:
        client.asks(target)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(client.message(target, b"stolen"), client.relay)
            drops(proxy.sessions[-1], "stranger")

    def test_a_port_is_not_proven_by_garbage(
        self, proxy: ProxyServer, client: Associated, target: tuple[str, int]
    ) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"\x01\x03\x00\x04abcd", client.relay)
            drops(proxy.sessions[-1], "forged")
        client.asks(target)

    def test_another_clients_datagram(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        session = proxy.sessions[-1]
        with Associated(proxy) as second:
            client.socket.sendto(second.message(target, b"data"), client.relay)
            drops(session, "forged")

    def test_a_name_that_is_unknown(self, proxy: ProxyServer, client: Associated, target: tuple[str, int]) -> None:
        client.send(("name.invalid", 53), b"x")
        drops(proxy.sessions[-1], "unknown name")
        client.asks(target)

    @pytest.mark.parametrize("host", ["255.255.255.255", "::ffff:127.0.0.1"])
    def test_an_address_that_cannot_be_sent_to(self, proxy: ProxyServer, client: Associated, host: str) -> None:
        client.socket.sendto(client.sealed(b"\x00\x00\x00" + Address(host, 53).encode() + b"x"), client.relay)
        drops(proxy.sessions[-1], "unreachable")

    def test_before_anything_is_proven_nobody_is_sent_to(self, proxy: ProxyServer, client: Associated) -> None:
        """Whoever finds the port is not answered."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(bytes(100), client.relay)
            drops(proxy.sessions[-1], "malformed")
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)

    def test_a_flood_does_not_hold_up_stop(self, proxy: ProxyServer, client: Associated) -> None:
        for _ in range(2000):
            client.socket.sendto(b"\x01\x03\x00\x04abcd", client.relay)
        proxy.stop()
        assert not server_threads()


class TestRules:
    def test_each_destination_is_judged(self, target: tuple[str, int]) -> None:
        rules = [f"deny to=127.0.0.1:{target[1]}", "allow"]
        with serving(rules=rules) as proxy, Associated(proxy) as client, UDPEcho() as other:
            client.send(target, b"x")
            client.send(("localhost", target[1]), b"x")
            drops(proxy.sessions[-1], "not allowed", 2)
            client.asks(other.address)

    def test_this_machine_is_denied_under_every_address_it_has(self, target: tuple[str, int]) -> None:
        with serving(rules=["deny to=@self", "allow"]) as proxy, Associated(proxy) as client:
            for host in ("127.0.0.1", "127.8.8.8", "localhost"):
                client.send((host, target[1]), b"x")
            drops(proxy.sessions[-1], "not allowed", 3)

    def test_this_machine_may_not_answer_unasked(self) -> None:
        rules = ["allow to=127.0.0.1", "deny to=@self", "allow"]
        with serving(rules=rules) as proxy, Associated(proxy) as client, plain() as first:
            client.send(first.getsockname(), b"question")
            _, outward = first.recvfrom(100)
            with plain("127.0.0.9") as second:
                second.sendto(b"injected", outward)
            drops(proxy.sessions[-1], "not allowed")

    def test_a_name_that_is_allowed_may_answer(self, target: tuple[str, int]) -> None:
        hosts = {"inside.test": "127.0.0.1"}
        with serving(rules=["allow to=inside.test"], hosts=hosts) as proxy, Associated(proxy) as client:
            client.send(("inside.test", target[1]), b"data")
            assert client.receive() == (target, b"data")

    def test_a_source_that_is_not_allowed_is_not_passed_on(self) -> None:
        with serving(rules=["deny to=127.0.0.9", "allow"]) as proxy, Associated(proxy) as client, plain() as first:
            client.send(first.getsockname(), b"question")
            _, outward = first.recvfrom(100)
            with plain("127.0.0.9") as second:
                second.sendto(b"injected", outward)
            drops(proxy.sessions[-1], "not allowed")
            first.sendto(b"answer", outward)
            assert client.receive()[1] == b"answer"

    @pytest.mark.parametrize("rules", [[], ["allow command=connect,bind"]])
    def test_not_allowed_at_all(self, rules: list[str]) -> None:
        with serving(rules=rules) as proxy, ByHand(proxy) as client:
            assert client.ask(ASSOCIATE) == 2


class TestSize:
    def test_the_largest_that_fits(self, proxy: ProxyServer, target: tuple[str, int]) -> None:
        with Associated(proxy) as client:
            client.asks(target, bytes(65_400))

    def test_an_answer_that_fits_no_message_is_dropped(self, proxy: ProxyServer) -> None:
        with Associated(proxy) as client, plain() as large:
            client.send(large.getsockname(), b"question")
            _, outward = large.recvfrom(100)
            large.sendto(bytes(65_507), outward)
            large.sendto(bytes(65_450), outward)
            drops(proxy.sessions[-1], "too large", 2)
            large.sendto(b"answer", outward)
            assert client.receive()[1] == b"answer"


def assert_closed(relay: tuple[str, int]) -> None:
    """Nobody is there any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(relay)
