"""Authentication methods other than GSS-API: offered where the configuration names them, and nowhere else."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import AuthenticationError, GSSSocket, ProtocolError, Proxy
from gsssocks._protocol import Method
from gsssocks.testing import ScriptedProxy
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.microsocks import Microsocks
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation, Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.usefixtures("in_the_realm")


@pytest.fixture(scope="module")
def microsocks() -> Iterator[Microsocks]:
    with Microsocks("bob", "s3cret") as started:
        yield started


def bob(port: int, password: str = "s3cret", methods: str = "userpass") -> Proxy:
    return Proxy("127.0.0.1", port, username="bob", password=password, methods=methods)


def connected(proxy: Proxy, target: tuple[str, int]) -> GSSSocket:
    return gsssocks.create_connection(target, PATIENCE_SECONDS, proxy=proxy)


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    return receive_exactly(sock, len(data)) == data


class TestUserAndPassword:
    def test_carries_plain_data(self, microsocks: Microsocks, echo: EchoServer) -> None:
        with connected(bob(microsocks.port), echo.address) as sock:
            assert echoes(sock)
            assert echoes(sock, bytes(200_000))
            assert sock.protection == "none"
            assert sock.tunnel is not None
            assert (sock.tunnel.method, sock.tunnel.mechanism, sock.tunnel.granted) == ("userpass", None, None)

    def test_wrong_password(self, microsocks: Microsocks, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError, match="refused the user 'bob'") as caught:
            connected(bob(microsocks.port, password="wrong"), echo.address)
        assert caught.value.errno == errno.EACCES
        assert "wrong" not in str(caught.value)

    def test_gssapi_where_the_proxy_has_it(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        proxy = Proxy(
            "localhost", dante_confidentiality.port, username="bob", password="s3cret", methods="gssapi,userpass,none"
        )
        with connected(proxy, echo.address) as sock:
            assert sock.protection == "confidentiality"
            assert sock.tunnel is not None
            assert sock.tunnel.method == "gssapi"
            assert echoes(sock)

    def test_password_where_the_proxy_has_no_gssapi(self, microsocks: Microsocks, echo: EchoServer) -> None:
        with connected(bob(microsocks.port, methods="gssapi,userpass"), echo.address) as sock:
            assert sock.protection == "none"
            assert echoes(sock)

    def test_no_ticket_is_asked_for_then(self, realm: Realm, microsocks: Microsocks, echo: EchoServer) -> None:
        realm.kdestroy()
        try:
            with connected(bob(microsocks.port, methods="gssapi,userpass"), echo.address) as sock:
                assert echoes(sock)
        finally:
            realm.kinit()

    def test_under_a_patch(self, microsocks: Microsocks, echo: EchoServer) -> None:
        url = f"socks5h://bob:s3cret@127.0.0.1:{microsocks.port}?methods=userpass"
        with gsssocks.installed(url, no_proxy=[]), socket.create_connection(echo.address, PATIENCE_SECONDS) as sock:
            assert isinstance(sock, GSSSocket)
            assert sock.protection == "none"
            assert echoes(sock)

    @pytest.mark.parametrize("answer", [b"\x01\x01", b"\x01\xff", b""], ids=["failure", "another-failure", "end"])
    def test_refused(self, echo: EchoServer, answer: bytes) -> None:
        def script(client: Conversation) -> None:
            client.choose_method(Method.USERPASS)
            client.receive_data()
            client.send(answer)

        with ScriptedProxy(script) as proxy, pytest.raises(AuthenticationError, match="refused the user 'bob'"):
            connected(bob(proxy.port), echo.address)

    def test_octets_of_the_message(self, echo: EchoServer) -> None:
        """RFC 1929, section 2."""
        heard: list[bytes] = []

        def script(client: Conversation) -> None:
            client.choose_method(Method.USERPASS)
            heard.append(client.receive_data())

        with ScriptedProxy(script) as proxy, pytest.raises(AuthenticationError):
            connected(bob(proxy.port), echo.address)
        assert heard == [b"\x01\x03bob\x06s3cret"]

    def test_granted_in_single_octets(self, echo: EchoServer) -> None:
        def script(client: Conversation) -> None:
            client.choose_method(Method.USERPASS)
            client.receive_data()
            client.send(b"\x01")
            client.send(b"\x00")
            client.hear_request()
            for octet in client.reply_octets() + b"hello":
                client.send(bytes([octet]))
            client.end()

        with ScriptedProxy(script) as proxy, connected(bob(proxy.port), echo.address) as sock:
            assert receive_exactly(sock, 5) == b"hello"
            assert sock.recv(1) == b""


class TestNone:
    def test_carries_plain_data(self, dante_none: Dante, echo: EchoServer) -> None:
        with connected(Proxy("localhost", dante_none.port, methods="none"), echo.address) as sock:
            assert echoes(sock)
            assert sock.protection == "none"
            assert sock.tunnel is not None
            assert sock.tunnel.method == "none"

    def test_target_that_refuses(self, dante_none: Dante) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                connected(Proxy("localhost", dante_none.port, methods="none"), nobody.getsockname())


class TestOffered:
    @pytest.mark.parametrize(
        ("proxy", "offered"),
        [
            (Proxy("localhost", 1), [Method.GSSAPI]),
            (bob(1), [Method.USERPASS]),
            (bob(1, methods="userpass,none"), [Method.USERPASS, Method.NONE]),
            (bob(1, methods="gssapi,userpass"), [Method.GSSAPI, Method.USERPASS]),
        ],
    )
    def test_just_what_is_named(self, echo: EchoServer, proxy: Proxy, offered: list[Method]) -> None:
        heard: list[bytes] = []
        server = ScriptedProxy(lambda client: heard.append(client.hear_greeting()))
        with server, pytest.raises(gsssocks.ProxyError):
            connected(replace(proxy, host="localhost", port=server.port), echo.address)
        assert heard == [bytes(offered)]

    @pytest.mark.parametrize("chosen", [0x00, 0x02])
    def test_what_was_not_offered_is_not_taken(self, echo: EchoServer, chosen: int) -> None:
        proxy = ScriptedProxy(lambda client: client.send(bytes([5, chosen])))
        with proxy, pytest.raises(ProtocolError, match="only GSS-API was offered"):
            connected(Proxy("localhost", proxy.port), echo.address)

    @pytest.mark.parametrize("methods", ["gssapi,none", "none,gssapi"])
    def test_nothing_but_gssapi_where_a_rule_demands_protection(self, methods: str) -> None:
        heard: list[bytes] = []
        with (
            ScriptedProxy(lambda client: heard.append(client.choose_method(Method.NONE))) as proxy,
            gsssocks.installed(proxy.url(methods=methods), no_proxy=[], rules={"bank.example": "confidentiality"}),
            socket.socket() as sock,
        ):
            sock.settimeout(PATIENCE_SECONDS)
            with pytest.raises(ProtocolError, match="only GSS-API was offered"):
                sock.connect(("bank.example", 443))
        assert heard == [bytes([Method.GSSAPI])]

    def test_none_acceptable(self, microsocks: Microsocks, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError, match="GSS-API"):
            connected(Proxy("localhost", microsocks.port), echo.address)
