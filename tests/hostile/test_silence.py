"""A proxy that is not there, or never says the next thing: every wait ends at the deadline."""

from __future__ import annotations

import errno
import select
import socket
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import GSSSocket, ProxyConnectionError
from gsssocks.testing import ScriptedProxy
from tests.hostile.misdeeds import before_context, before_level, before_method, before_reply

if TYPE_CHECKING:
    from gsssocks.testing import Conversation
    from tests.hostile.misdeeds import Script
    from tests.peers.targets import EchoServer

TARGET = ("secret.target.example", 4711)
SHORT = 0.2

SILENCES: dict[str, tuple[Script, str]] = {
    "at once": (lambda _: None, "waiting for the proxy to choose an authentication method"),
    "at the method": (before_method, "waiting for the proxy to choose an authentication method"),
    "at the context": (before_context, "waiting for the proxy's part of the security context"),
    "at the level": (before_level, "waiting for the proxy to agree on the protection level"),
    "at the reply": (before_reply, "waiting for the proxy to reach secret.target.example:4711"),
}

every_silence = pytest.mark.parametrize(
    ("script", "waiting"), SILENCES.values(), ids=[name.replace(" ", "-") for name in SILENCES]
)


def silent(after: Script) -> Script:
    def script(client: Conversation) -> None:
        after(client)
        client.stay_silent()

    return script


@pytest.fixture
def proxy_down(nobody: tuple[str, int]) -> str:
    """The URL of a proxy that is down."""
    return "socks5h://{}:{}".format(*nobody)


class TestSilentProxy:
    @every_silence
    def test_timeout_of_create_connection_holds(self, script: Script, waiting: str) -> None:
        with ScriptedProxy(silent(script)) as proxy, pytest.raises(ProxyConnectionError, match="timed out") as caught:
            gsssocks.create_connection(TARGET, SHORT, proxy=proxy.url())
        assert isinstance(caught.value, socket.timeout)
        assert caught.value.errno == errno.ETIMEDOUT
        assert f"{waiting} (proxy localhost:" in str(caught.value)

    @every_silence
    def test_proxys_own_timeout_bounds_a_blocking_socket(self, script: Script, waiting: str, echo: EchoServer) -> None:
        with (
            ScriptedProxy(silent(script)) as proxy,
            gsssocks.installed(proxy.url(timeout=SHORT)),
            socket.socket() as sock,
        ):
            fd = sock.fileno()
            with pytest.raises(ProxyConnectionError, match="timed out") as caught:
                sock.connect(TARGET)
            assert isinstance(caught.value, socket.timeout)
            assert waiting in str(caught.value)
            assert type(sock) is socket.socket
            assert sock.fileno() == fd
            assert sock.gettimeout() is None
            assert sock.getblocking()
            sock.connect(echo.address)

    def test_shorter_timeout_of_two_counts(self) -> None:
        with ScriptedProxy(silent(before_method)) as proxy, pytest.raises(ProxyConnectionError, match="timed out"):
            gsssocks.create_connection(TARGET, 3600, proxy=proxy.url(timeout=SHORT))

    def test_connect_ex_returns_what_a_plain_socket_does_when_its_timeout_ends(self) -> None:
        with ScriptedProxy(silent(before_method)) as proxy, GSSSocket(proxy=proxy.url()) as sock:
            sock.settimeout(SHORT)
            assert sock.connect_ex(TARGET) == errno.EAGAIN

    @pytest.mark.parametrize("blocking", [True, False])
    def test_connect_ex_without_a_timeout_of_its_own_returns_etimedout(self, blocking: bool) -> None:
        """EAGAIN would tell a program with an event loop that the connection is on its way."""
        with ScriptedProxy(silent(before_method)) as proxy, GSSSocket(proxy=proxy.url(timeout=SHORT)) as sock:
            sock.setblocking(blocking)
            assert sock.connect_ex(TARGET) == errno.ETIMEDOUT

    def test_nothing_of_the_request_was_sent_in_the_clear(self) -> None:
        with ScriptedProxy(silent(before_reply)) as proxy, pytest.raises(ProxyConnectionError):
            gsssocks.create_connection(TARGET, SHORT, proxy=proxy.url())
        assert b"secret" not in proxy.received


class TestEndlessTalk:
    """What never makes progress must not keep the client beyond its deadline either."""

    def test_empty_messages_in_place_of_the_reply(self) -> None:
        def script(client: Conversation) -> None:
            before_reply(client)
            for _ in range(200):
                client.send(b"".join(client.records.protect(b"") for _ in range(1000)))
            client.reply()

        # Integrity alone: the proxy must be faster than the client, which otherwise runs out of octets and waits.
        with ScriptedProxy(script) as proxy, pytest.raises(ProxyConnectionError, match="timed out"):
            gsssocks.create_connection(TARGET, SHORT, proxy=proxy.url(protection="integrity"))

    def test_empty_messages_in_place_of_data(self) -> None:
        def script(client: Conversation) -> None:
            client.open_tunnel()
            client.send(b"".join(client.records.protect(b"") for _ in range(30_000)))
            client.send_data(b"late")

        with ScriptedProxy(script) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock:
            select.select([sock], [], [])
            sock.settimeout(0.001)
            with pytest.raises(socket.timeout):
                sock.recv(10)


class TestUnreachableProxy:
    def test_proxy_down(self, proxy_down: str) -> None:
        with pytest.raises(ProxyConnectionError, match=r"cannot reach the proxy 127\.0\.0\.1:\d+") as caught:
            gsssocks.create_connection(TARGET, 20, proxy=proxy_down)
        assert isinstance(caught.value, ConnectionRefusedError)
        assert caught.value.errno == errno.ECONNREFUSED

    def test_proxy_down_leaves_a_fresh_socket(self, proxy_down: str, echo: EchoServer) -> None:
        with gsssocks.installed(proxy_down), socket.socket() as sock:
            fd = sock.fileno()
            with pytest.raises(ProxyConnectionError):
                sock.connect(TARGET)
            assert type(sock) is socket.socket
            assert sock.fileno() == fd
            assert sock.connect_ex(TARGET) == errno.ECONNREFUSED
            assert sock.connect_ex(echo.address) == 0

    def test_patched_create_connection_to_a_proxy_down(self, proxy_down: str) -> None:
        with gsssocks.installed(proxy_down), pytest.raises(ProxyConnectionError) as caught:
            socket.create_connection(("192.0.2.77", 4711), 20)
        assert isinstance(caught.value, ConnectionRefusedError)

    def test_name_of_the_proxy_unknown(self) -> None:
        with pytest.raises(ProxyConnectionError, match=r"cannot reach the proxy no-such-proxy\.invalid:1080") as caught:
            gsssocks.create_connection(TARGET, 60, proxy="socks5h://no-such-proxy.invalid")
        assert caught.value.errno == errno.EHOSTUNREACH
        assert isinstance(caught.value.__cause__, socket.gaierror)
