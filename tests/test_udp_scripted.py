"""What a client of UDP says to a proxy, octet by octet, and what it makes of every kind of answer."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Callable

import pytest

import gsssocks
from gsssocks import GSSSocket, _udp
from gsssocks._protocol import Address, Command, Datagram, MessageType, TokenMessage
from gsssocks.testing import ScriptedProxy
from tests.peers.datagrams import udp_socket
from tests.peers.host import PATIENCE_SECONDS
from tests.test_udp import await_end

if TYPE_CHECKING:
    from types import TracebackType

    from gsssocks._protocol import Request
    from gsssocks._udp import Dropped
    from gsssocks.testing import Conversation

pytestmark = pytest.mark.usefixtures("in_the_realm")

TARGET = Address("192.0.2.53", 53)


class Relay:
    """A proxy with one association, whose relay the test plays, and the client's socket.

    Args:
        host: what the proxy calls the relay's host.
        then: what the proxy does when it has granted the association.
        options: of the proxy's URL.
    """

    def __init__(
        self, host: str = "127.0.0.1", then: Callable[[Conversation], None] | None = None, **options: object
    ) -> None:
        self._host = host
        self._then = then or (lambda client: client.stay_silent())
        self._options = options
        self._udp = udp_socket()
        self._udp.settimeout(PATIENCE_SECONDS)
        self._proxy = ScriptedProxy(self._grant)
        self.requests: list[Request] = []

    def __enter__(self) -> Relay:
        self._proxy.__enter__()
        self.sock = GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=self._proxy.url(**self._options))
        self.sock.settimeout(PATIENCE_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.sock.close()
        self._proxy.__exit__(kind, error, traceback)
        self._udp.close()

    def _grant(self, client: Conversation) -> None:
        client.choose_method()
        client.establish_context()
        client.grant_level()
        self.requests.append(client.hear_request())
        client.reply(0, self._host, self._udp.getsockname()[1])
        self._then(client)

    @property
    def client(self) -> Conversation:
        return self._proxy.conversations[-1]

    @property
    def dropped(self) -> Dropped:
        dropped = self.sock.dropped
        assert dropped is not None
        return dropped

    def hear(self) -> bytes:
        """The client's next datagram, as it was on the wire."""
        octets, self._address = self._udp.recvfrom(65535)
        return octets

    def say(self, octets: bytes) -> None:
        """Sends the client octets as they are."""
        self._udp.sendto(octets, self._address)

    def greet(self) -> None:
        """Learns where the client is."""
        self.sock.sendto(b"hello", (TARGET.host, TARGET.port))
        self.hear()

    def message(self, data: bytes, *, confidential: bool = True, sender: Address = TARGET, fragment: int = 0) -> bytes:
        """A datagram from a sender, in an honest message."""
        token = self.client.wrap(Datagram(sender, data, fragment).encode(), confidential=confidential)
        return TokenMessage(MessageType.ENCAPSULATED, token).encode()

    def next_received(self) -> bytes:
        """What the client receives, when an honest datagram follows all that was said."""
        self.say(self.message(b"the next"))
        return self.sock.recv(65535)


class TestOutwards:
    def test_association_is_asked_for_without_an_address(self) -> None:
        with Relay() as relay:
            relay.greet()
        (request,) = relay.requests
        assert (request.command, request.address) == (Command.UDP_ASSOCIATE, Address("0.0.0.0", 0))

    def test_context_is_one_without_sequence(self) -> None:
        with Relay() as relay:
            relay.greet()
            granted = relay.client.context.granted
        assert (granted.sequence, granted.replay, granted.mutual) == (False, True, True)

    @pytest.mark.parametrize("level", ["integrity", "confidentiality", "selective"])
    def test_datagram_is_one_message(self, level: str) -> None:
        with Relay(protection=level) as relay:
            relay.sock.sendto(b"hello", (TARGET.host, TARGET.port))
            octets = relay.hear()
            assert octets[:2] == b"\x01\x03"
            assert int.from_bytes(octets[2:4], "big") == len(octets) - 4
            unwrapped = relay.client.context.unwrap_datagram(octets[4:])
        assert unwrapped is not None
        assert unwrapped.confidential == (level != "integrity")
        assert unwrapped.data == b"\0\0\0\1\xc0\x00\x02\x35\x00\x35hello"

    def test_name_goes_to_the_proxy_as_it_is(self) -> None:
        with Relay() as relay:
            relay.sock.sendto(b"hello", ("target.invalid", 53))
            unwrapped = relay.client.context.unwrap_datagram(relay.hear()[4:])
        assert unwrapped is not None
        assert Datagram.decode(unwrapped.data) == Datagram(Address("target.invalid", 53), b"hello")

    def test_without_protection_the_datagram_is_bare(self) -> None:
        with Relay(protection="none") as relay:
            relay.sock.sendto(b"hello", (TARGET.host, TARGET.port))
            assert relay.hear() == Datagram(TARGET, b"hello").encode()
            relay.say(Datagram(TARGET, b"back").encode())
            assert relay.sock.recvfrom(100) == (b"back", (TARGET.host, TARGET.port))

    @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "localhost"])
    def test_relay_is_where_the_reply_says(self, host: str) -> None:
        with Relay(host) as relay:
            relay.greet()
            relay.say(relay.message(b"back"))
            assert relay.sock.recv(100) == b"back"


class TestInwards:
    def test_sender_is_who_the_header_says(self) -> None:
        with Relay() as relay:
            relay.greet()
            for sender in (TARGET, Address("192.0.2.1", 1), Address("2001:db8::1", 2), Address("named.invalid", 3)):
                relay.say(relay.message(b"back", sender=sender))
                assert relay.sock.recvfrom(100) == (b"back", (sender.host, sender.port))

    @pytest.mark.parametrize("level", ["integrity", "selective"])
    def test_unencrypted_where_that_was_agreed(self, level: str) -> None:
        with Relay(protection=level) as relay:
            relay.greet()
            relay.say(relay.message(b"open", confidential=False))
            assert relay.sock.recv(100) == b"open"

    def test_unencrypted_where_it_was_not(self) -> None:
        with Relay() as relay:
            relay.greet()
            relay.say(relay.message(b"open", confidential=False))
            assert relay.next_received() == b"the next"
            assert relay.dropped.unprotected == 1

    def test_fragment(self) -> None:
        with Relay() as relay:
            relay.greet()
            for fragment in (1, 0x7F, 0x81):
                relay.say(relay.message(b"a part", fragment=fragment))
            assert relay.next_received() == b"the next"
            assert relay.dropped.fragments == 3

    def test_lost(self) -> None:
        with Relay() as relay:
            relay.greet()
            for number in range(200):
                message = relay.message(b"%d" % number)
                if number % 3 == 0:
                    relay.say(message)
                    assert relay.sock.recv(100) == b"%d" % number

    def test_overtaken(self) -> None:
        with Relay() as relay:
            relay.greet()
            messages = [relay.message(b"%d" % number) for number in range(50)]
            for number in reversed(range(50)):
                relay.say(messages[number])
                assert relay.sock.recv(100) == b"%d" % number

    def test_repeated(self) -> None:
        with Relay() as relay:
            relay.greet()
            message = relay.message(b"once")
            for _ in range(3):
                relay.say(message)
            assert relay.sock.recv(100) == b"once"
            assert relay.next_received() == b"the next"
            assert relay.dropped.repeated == 2

    def test_too_old_to_tell(self) -> None:
        with Relay() as relay:
            relay.greet()
            old = relay.message(b"old")
            for _ in range(100):
                assert relay.next_received() == b"the next"
            relay.say(old)
            assert relay.next_received() == b"the next"
            assert (relay.dropped.repeated, relay.dropped.damaged) == (1, 0)

    def test_damaged(self) -> None:
        with Relay() as relay:
            relay.greet()
            message = relay.message(b"intact")
            damaged = [
                b"",
                b"\x01",
                b"\x01\x03",
                b"\x01\x03\x00\x00",
                message[:-1],
                message + b"\0",
                b"\x02" + message[1:],
                b"\x01\x01" + message[2:],
                b"\x01\xff",
                message[:4],
                message[:-1] + bytes([message[-1] ^ 1]),
                Datagram(TARGET, b"bare").encode(),
                TokenMessage(MessageType.ENCAPSULATED, relay.client.wrap(b"no header")).encode(),
                TokenMessage(MessageType.ENCAPSULATED, relay.client.wrap(b"")).encode(),
                TokenMessage(MessageType.ENCAPSULATED, relay.client.wrap(b"\0\0\0\x03\xffshort")).encode(),
            ]
            for octets in damaged:
                relay.say(octets)
            assert relay.next_received() == b"the next"
            assert relay.dropped.damaged == len(damaged)

    def test_from_elsewhere_though_honest(self) -> None:
        with Relay() as relay:
            relay.greet()
            elsewhere = udp_socket()
            elsewhere.sendto(relay.message(b"stolen"), ("127.0.0.1", relay.sock.getsockname()[1]))
            elsewhere.close()
            assert relay.next_received() == b"the next"
            assert relay.dropped.foreign == 1

    def test_from_another_than_the_peer(self) -> None:
        with Relay() as relay:
            relay.sock.connect((TARGET.host, TARGET.port))
            relay.greet()
            for stranger in (Address(TARGET.host, 54), Address("192.0.2.54", 53), Address("named.invalid", 53)):
                relay.say(relay.message(b"not asked", sender=stranger))
            assert relay.next_received() == b"the next"
            assert relay.dropped.foreign == 3

    def test_peer_with_a_name_is_known_by_its_port(self) -> None:
        with Relay() as relay:
            relay.sock.connect(("target.invalid", 53))
            relay.greet()
            relay.say(relay.message(b"another port", sender=Address("192.0.2.1", 54)))
            relay.say(relay.message(b"answer", sender=Address("192.0.2.1", 53)))
            assert relay.sock.recvfrom(100) == (b"answer", ("192.0.2.1", 53))
            assert relay.dropped.foreign == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("code", "error"),
        [(1, ConnectionAbortedError), (2, PermissionError), (7, gsssocks.ReplyError), (8, gsssocks.ReplyError)],
    )
    def test_association_that_is_not_granted(self, code: int, error: type[OSError]) -> None:
        def refuse(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            client.hear_request()
            client.reply(code)

        with ScriptedProxy(refuse) as proxy, GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=proxy.url()) as sock:
            for _ in range(2):
                with pytest.raises(error):
                    sock.sendto(b"hello", (TARGET.host, TARGET.port))

    def test_relay_without_a_port(self) -> None:
        def grant(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            client.hear_request()
            client.reply(0, "127.0.0.1", 0)

        with Relay() as relay, ScriptedProxy(grant) as proxy:
            relay.sock.set_proxy(2, proxy.host, proxy.port)
            with pytest.raises(gsssocks.ProtocolError, match="named no relay"):
                relay.sock.sendto(b"hello", (TARGET.host, TARGET.port))

    def test_timeout_covers_the_association(self) -> None:
        with Relay() as relay, ScriptedProxy(lambda client: client.stay_silent()) as silent:
            relay.sock.set_proxy(2, silent.host, silent.port)
            relay.sock.settimeout(0.05)
            with pytest.raises(socket.timeout, match="timed out while waiting for the proxy"):
                relay.greet()

    def test_proxy_that_talks_on_the_control_connection_has_ended_the_association(self) -> None:
        def babble(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            client.hear_request()
            client.reply(0, "127.0.0.1", 9)
            client.send_data(b"babble")
            client.stay_silent()

        with ScriptedProxy(babble) as proxy, GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=proxy.url()) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


TCP_REPAIR = 19  # linux/tcp.h: a connection that is closed then ends without a word to its peer


def may_repair() -> bool:
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        except OSError:
            return False
    return True


@pytest.mark.skipif(not may_repair(), reason="takes CAP_NET_ADMIN, on Linux")
def test_proxy_whose_host_has_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_udp, "KEEPALIVE", dict.fromkeys(_udp.KEEPALIVE, 1))
    gone = threading.Event()

    def vanish(client: Conversation) -> None:
        gone.wait(PATIENCE_SECONDS)
        client._connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        client._connection.close()

    with Relay(then=vanish) as relay:
        relay.greet()
        gone.set()
        await_end(relay.sock)
        with pytest.raises(ConnectionResetError):
            relay.sock.sendto(b"lost", (TARGET.host, TARGET.port))


class TestRefused:
    """By a proxy that ends each connection: how often it is asked."""

    def test_who_does_not_wait_is_told_again_without_asking(self) -> None:
        with ScriptedProxy(lambda client: client.end()) as proxy:
            for _ in range(3):
                with pytest.raises(gsssocks.ProxyError):
                    send(proxy, timeout=0)
            assert len(proxy.conversations) == 1

    def test_who_waits_has_it_asked(self) -> None:
        with ScriptedProxy(lambda client: client.end()) as proxy:
            for timeout in (0, PATIENCE_SECONDS):
                with pytest.raises(gsssocks.ProxyError):
                    send(proxy, timeout)
            assert len(proxy.conversations) == 2

    def test_who_does_not_wait_learns_that_it_grants_again(self) -> None:
        def refuse_once(client: Conversation) -> None:
            if len(proxy.conversations) == 1:
                client.end()
            client.choose_method()
            client.establish_context()
            client.grant_level()
            client.hear_request()
            client.reply(0, "127.0.0.1", 9)
            client.stay_silent()

        with ScriptedProxy(refuse_once) as proxy:
            with pytest.raises(gsssocks.ProxyError):
                send(proxy, timeout=0)
            for timeout in (PATIENCE_SECONDS, 0):
                send(proxy, timeout)


def send(proxy: ScriptedProxy, timeout: float) -> None:
    with GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=proxy.url()) as sock:
        sock.settimeout(timeout)
        sock.sendto(b"hello", (TARGET.host, TARGET.port))
