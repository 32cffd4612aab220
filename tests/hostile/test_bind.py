"""What proxies do wrong when they are asked to listen, or while they do."""

from __future__ import annotations

import errno
import itertools
import socket
import threading
from typing import TYPE_CHECKING, Callable

import pytest

from gsssocks import GSSSocket, ProtectionError, ProtocolError, ReplyError
from gsssocks.testing import ScriptedProxy
from tests.peers.binding import SOON, listening, peer_of, readable
from tests.peers.dante import Dante
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from gsssocks.testing import Conversation, Realm


def hear_bind(client: Conversation) -> None:
    """Up to the request."""
    client.choose_method()
    client.establish_context()
    client.grant_level()
    client.hear_request()


def after_first_reply(answer: Callable[[Conversation], None]) -> Callable[[Conversation], None]:
    """A script that listens, and then does as `answer` says."""

    def script(client: Conversation) -> None:
        hear_bind(client)
        client.reply(0, "192.0.2.7", 4711)
        answer(client)

    return script


def second_reply(code: int = 0, host: str = "192.0.2.1", port: int = 5) -> Callable[[Conversation], None]:
    return after_first_reply(lambda client: client.reply(code, host, port))


def reply_naming(name: bytes) -> bytes:
    """A reply that grants, with this as the name bound."""
    return b"\x05\0\0\x03" + bytes([len(name)]) + name + b"\0\x07"


FORGED = pytest.mark.parametrize(
    "name", [b"x\ngsssocks connected to bank.example:443 through proxy", b"x\x1b[2J"], ids=["line", "escape"]
)


class TestRequest:
    @pytest.mark.parametrize(("code", "number"), [(2, errno.EACCES), (7, errno.EOPNOTSUPP)])
    def test_refusal(self, code: int, number: int) -> None:
        def refuse(client: Conversation) -> None:
            hear_bind(client)
            client.reply(code)

        with ScriptedProxy(refuse) as proxy, GSSSocket(proxy=proxy.url()) as sock:
            with pytest.raises(ReplyError) as caught:
                sock.listen()
            assert caught.value.errno == number
            assert sock.getsockname()[1] == 0

    def test_a_socket_that_could_not_listen_can_connect(self) -> None:
        def refuse_once(client: Conversation) -> None:
            hear_bind(client)
            if len(scripted.conversations) == 1:
                client.reply(2)
            client.reply()

        with ScriptedProxy(refuse_once) as scripted, GSSSocket(proxy=scripted.url()) as sock:
            with pytest.raises(PermissionError):
                sock.listen()
            sock.connect(("target.example", 80))
            assert sock.getpeername() == ("target.example", 80)

    def test_timeout(self) -> None:
        with ScriptedProxy(lambda client: client.stay_silent()) as proxy, GSSSocket(proxy=proxy.url()) as sock:
            sock.settimeout(SOON)
            with pytest.raises(socket.timeout):
                sock.listen()

    @pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")])
    def test_it_names_no_peer_and_the_port_that_was_bound(self, family: int, host: str) -> None:
        requests = []

        def script(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            requests.append(client.hear_request())
            client.reply(0, "192.0.2.7", 4711)

        for port in (0, 4711):
            with ScriptedProxy(script) as proxy, GSSSocket(family, proxy=proxy.url()) as sock:
                sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", port))
                sock.listen()
        assert [(request.command, request.address.host, request.address.port) for request in requests] == [
            (2, host, 0),
            (2, host, 4711),
        ]

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_unspecified_address_is_the_proxys_own(self, host: str) -> None:
        def script(client: Conversation) -> None:
            hear_bind(client)
            client.reply(0, host, 4711)

        with ScriptedProxy(script) as proxy, listening(proxy.url()) as listener:
            assert listener.getsockname() == ("127.0.0.1", 4711)

    @FORGED
    def test_a_name_that_would_forge_a_line_of_the_log(self, name: bytes, caplog: pytest.LogCaptureFixture) -> None:
        def script(client: Conversation) -> None:
            hear_bind(client)
            client.send_data(reply_naming(name))

        caplog.set_level("DEBUG", "gsssocks")
        with ScriptedProxy(script) as proxy, GSSSocket(proxy=proxy.url()) as sock:
            with pytest.raises(ProtocolError, match="the peer sent a host name with characters that none has"):
                sock.listen()
            assert sock.getsockname()[1] == 0
        assert all(record.getMessage().isprintable() for record in caplog.records)

    def test_no_port(self) -> None:
        def script(client: Conversation) -> None:
            hear_bind(client)
            client.reply(0, "192.0.2.7", 0)

        with ScriptedProxy(script) as proxy, GSSSocket(proxy=proxy.url()) as sock:
            with pytest.raises(ProtocolError, match="not at which port"):
                sock.listen()
            assert sock.getsockname()[1] == 0


class TestSecondReply:
    @pytest.mark.parametrize("protection", ["integrity", "confidentiality"])
    @pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 10])
    def test_in_pieces(self, size: int, protection: str) -> None:
        def answer(client: Conversation) -> None:
            reply = client.reply_octets(0, "192.0.2.1", 5)
            for start in range(0, len(reply), size):
                client.send_data(reply[start : start + size])
                client.send_data(b"")
            client.send_data(b"data")

        with (
            ScriptedProxy(after_first_reply(answer)) as proxy,
            listening(proxy.url(protection=protection)) as listener,
        ):
            sock, address = listener.accept()
            with sock:
                assert address == ("192.0.2.1", 5)
                assert receive_exactly(sock, 100) == b"data"

    @FORGED
    def test_a_name_that_would_forge_a_line_of_the_log(self, name: bytes, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG", "gsssocks")
        script = after_first_reply(lambda client: client.send_data(reply_naming(name)))
        refused = pytest.raises(ProtocolError, match="the peer sent a host name with characters that none has")
        with ScriptedProxy(script) as proxy, listening(proxy.url()) as listener, refused:
            listener.accept()
        assert all(record.getMessage().isprintable() for record in caplog.records)

    def test_in_one_message_with_the_first_and_with_data(self) -> None:
        def script(client: Conversation) -> None:
            hear_bind(client)
            client.send_data(
                client.reply_octets(0, "192.0.2.7", 4711) + client.reply_octets(0, "192.0.2.1", 5) + b"data"
            )

        with ScriptedProxy(script) as proxy, listening(proxy.url()) as listener:
            assert readable(listener, PATIENCE_SECONDS)
            sock, address = listener.accept()
            with sock:
                assert (listener.getsockname(), address) == (("192.0.2.7", 4711), ("192.0.2.1", 5))
                assert readable(sock, PATIENCE_SECONDS)
                assert receive_exactly(sock, 100) == b"data"

    def test_a_part_of_it_is_no_connection_yet(self) -> None:
        whole = threading.Event()

        def answer(client: Conversation) -> None:
            reply = client.reply_octets(0, "192.0.2.1", 5)
            client.send_data(reply[:3])
            assert whole.wait(PATIENCE_SECONDS)
            client.send_data(reply[3:])

        with ScriptedProxy(after_first_reply(answer)) as proxy, listening(proxy.url()) as listener:
            listener.setblocking(False)
            assert readable(listener, PATIENCE_SECONDS)
            with pytest.raises(BlockingIOError):
                listener.accept()
            assert not readable(listener, SOON)
            whole.set()
            assert readable(listener, PATIENCE_SECONDS)
            sock, address = listener.accept()
            sock.close()
            assert address == ("192.0.2.1", 5)

    def test_peer_with_a_name(self) -> None:
        with ScriptedProxy(second_reply(host="peer.example")) as proxy, listening(proxy.url()) as listener:
            sock, address = listener.accept()
            with sock:
                assert address == sock.getpeername() == ("peer.example", 5)

    @pytest.mark.parametrize(
        ("code", "number"),
        [
            (1, errno.ECONNABORTED),
            (2, errno.EACCES),
            (3, errno.ENETUNREACH),
            (4, errno.EHOSTUNREACH),
            (5, errno.ECONNREFUSED),
            (6, errno.ETIMEDOUT),
            (7, errno.EOPNOTSUPP),
            (8, errno.EAFNOSUPPORT),
            (99, errno.EPROTO),
        ],
    )
    def test_refusal(self, code: int, number: int) -> None:
        with ScriptedProxy(second_reply(code)) as proxy, listening(proxy.url()) as listener:
            with pytest.raises(ReplyError, match=r"192\.0\.2\.7:4711") as caught:
                listener.accept()
            assert (caught.value.code, caught.value.errno) == (code, number)
            self.is_over(listener)

    def test_dante_refuses_the_peer(self, realm: Realm) -> None:
        with Dante(realm, enctype="confidentiality", bind_replies=False) as dante, listening(dante.url()) as listener:
            with peer_of(listener), pytest.raises(PermissionError, match="not allowed by the proxy's rules"):
                listener.accept()
            self.is_over(listener)

    @pytest.mark.parametrize("garbage", [b"\x04\x00", b"\x05\x00\x00\x02", bytes(range(255, 200, -1))])
    def test_garbage(self, garbage: bytes) -> None:
        with (
            ScriptedProxy(after_first_reply(lambda client: client.send_data(garbage))) as proxy,
            listening(proxy.url()) as listener,
        ):
            with pytest.raises(ProtocolError):
                listener.accept()
            self.is_over(listener)

    def test_damaged_message(self) -> None:
        def answer(client: Conversation) -> None:
            token = client.wrap(client.reply_octets())
            client.send_message(3, token[:-1] + bytes([token[-1] ^ 1]))

        with ScriptedProxy(after_first_reply(answer)) as proxy, listening(proxy.url()) as listener:
            with pytest.raises(ProtectionError):
                listener.accept()
            self.is_over(listener)

    def test_unencrypted_message(self) -> None:
        def answer(client: Conversation) -> None:
            client.send_message(3, client.wrap(client.reply_octets(), confidential=False))

        with ScriptedProxy(after_first_reply(answer)) as proxy, listening(proxy.url()) as listener:
            with pytest.raises(ProtectionError, match="unencrypted"):
                listener.accept()
            self.is_over(listener)

    def test_end_after_each_octet_of_its_message(self) -> None:
        lengths = []

        def answer(client: Conversation) -> None:
            message = client.records.protect(client.reply_octets(0, "192.0.2.1", 5))
            lengths.append(len(message))
            client.send(message[:cut])

        for cut in itertools.count():
            with ScriptedProxy(after_first_reply(answer)) as proxy, listening(proxy.url()) as listener:
                if lengths and cut == lengths[0]:
                    listener.accept()[0].close()
                    break
                with pytest.raises(ProtocolError) as caught:
                    listener.accept()
                assert isinstance(caught.value, ConnectionResetError)
                self.is_over(listener)

    @pytest.mark.parametrize("cut", range(10))
    def test_end_after_each_octet_of_the_reply(self, cut: int) -> None:
        def answer(client: Conversation) -> None:
            client.send_data(client.reply_octets(0, "192.0.2.1", 5)[:cut])

        with ScriptedProxy(after_first_reply(answer)) as proxy, listening(proxy.url()) as listener:
            with pytest.raises(ConnectionResetError, match="before a peer had connected"):
                listener.accept()
            self.is_over(listener)

    def test_reset(self) -> None:
        with (
            ScriptedProxy(after_first_reply(lambda client: client.reset())) as proxy,
            listening(proxy.url()) as listener,
        ):
            with pytest.raises(ConnectionResetError, match="before a peer had connected"):
                listener.accept()
            self.is_over(listener)

    @staticmethod
    def is_over(listener: GSSSocket) -> None:
        """It was told once; nothing more will come, and the descriptor says so."""
        with pytest.raises(OSError, match=r"call listen\(\)"):
            listener.accept()
        assert not readable(listener, SOON)


class TestOneConnection:
    def test_listening_again_in_vain(self) -> None:
        def grant_one(client: Conversation) -> None:
            hear_bind(client)
            if len(scripted.conversations) > 1:
                client.reply(1)
                return
            client.reply(port=4711)
            client.reply(0, "192.0.2.1", 5)
            client.echo()

        with ScriptedProxy(grant_one) as scripted, listening(scripted.url()) as listener:
            sock, _ = listener.accept()
            with sock:
                with pytest.raises(ConnectionAbortedError):
                    listener.listen()
                with pytest.raises(OSError, match=r"call listen\(\)"):
                    listener.accept()
                assert listener.getsockname() == ("127.0.0.1", 4711)
                assert not readable(listener, SOON)
                sock.sendall(b"ping")
                assert receive_exactly(sock, 4) == b"ping"
