"""One destination may be written in many ways: rules and the proxy are asked about what connect(2) would make of it."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

import gsssocks
from gsssocks._routing import is_direct
from gsssocks.exceptions import ForbiddenError
from gsssocks.server import ProxyServer
from gsssocks.testing import ScriptedProxy
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.targets import EchoServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation, Realm

pytestmark = pytest.mark.usefixtures("in_the_realm")

NOWHERE = "socks5h://127.0.0.1:1"
LOOPBACK = ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "017700000001", b"127.1", bytearray(b"127.1")]
connects = pytest.mark.parametrize("connect", ["connect", "connect_ex"])


@pytest.fixture(scope="module")
def proxy(realm: Realm) -> Iterator[ProxyServer]:
    with ProxyServer("localhost", keytab=realm.keytab) as started:
        yield started


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    """Of its own: a connection that another module's test has made may be accepted late."""
    with EchoServer() as started:
        yield started


@contextmanager
def requested() -> Iterator[tuple[str, list[str]]]:
    """The URL of a proxy that refuses everything, and the hosts it was asked for."""
    hosts: list[str] = []

    def refuse(client: Conversation) -> None:
        client.choose_method()
        client.establish_context()
        client.grant_level()
        hosts.append(client.hear_request().address.host)
        client.reply(5)

    with ScriptedProxy(refuse) as scripted:
        yield scripted.url(), hosts


class TestAnAddressInAnOldSpelling:
    @pytest.mark.parametrize("host", [*LOOPBACK, "0", "127.0.0.1", ""])
    def test_is_the_address_to_the_proxy_and_in_getpeername(
        self, host: Any, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        def peer_of_connection() -> Any:
            with socket.socket() as sock:
                sock.settimeout(PATIENCE_SECONDS)
                sock.connect((host, echo.address[1]))
                sock.sendall(b"x")
                assert receive_exactly(sock, 1) == b"x"
                return sock.getpeername()

        plain = peer_of_connection()
        with gsssocks.installed(proxy.url(), no_proxy=[]):
            assert peer_of_connection() == plain
        destination = proxy.sessions[-1].destination
        assert destination is not None
        assert destination.host in ("127.0.0.1", "0.0.0.0")

    @pytest.mark.parametrize("host", LOOPBACK)
    def test_is_reached_directly_as_the_address_is(self, host: Any, echo: EchoServer) -> None:
        with gsssocks.installed(NOWHERE), socket.socket() as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect((host, echo.address[1]))
            sock.sendall(b"x")  # so that it has been accepted when the next test counts
            assert receive_exactly(sock, 1) == b"x"
            assert type(sock) is socket.socket

    @connects
    @pytest.mark.parametrize("host", LOOPBACK)
    def test_is_refused_as_the_address_is(self, host: Any, connect: str, echo: EchoServer) -> None:
        accepted = echo.accepted
        with gsssocks.installed(NOWHERE, rules={"127.0.0.0/8": "refuse"}), socket.socket() as sock:
            if connect == "connect":
                with pytest.raises(ForbiddenError):
                    sock.connect((host, echo.address[1]))
            else:
                assert sock.connect_ex((host, echo.address[1])) == errno.EACCES
        assert echo.accepted == accepted

    def test_datagrams_to_it_are_refused_as_to_the_address(self) -> None:
        with (
            gsssocks.installed(NOWHERE, rules={"127.0.0.0/8": "refuse"}),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            for host in LOOPBACK:
                with pytest.raises(ForbiddenError):
                    sock.sendto(b"x", (host, 9))


class TestWhatOnlyLooksLikeAnAddress:
    @pytest.mark.parametrize("host", ["127.0.0.1.", "127.1."])
    def test_is_a_name_to_the_proxy(self, host: str) -> None:
        with requested() as (url, hosts), gsssocks.installed(url):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((host, 9), PATIENCE_SECONDS)
            with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
                sock.connect((host, 9))
        assert hosts == [host, host]

    @pytest.mark.parametrize("host", ["[127.0.0.1]", "[::1]"])
    def test_in_brackets_is_nothing_to_ask_a_proxy_for(self, host: str, echo: EchoServer) -> None:
        accepted = echo.accepted
        with gsssocks.installed(NOWHERE), pytest.raises(gsssocks.ProxyConnectionError, match="brackets") as caught:
            socket.create_connection((host, echo.address[1]), PATIENCE_SECONDS)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        assert echo.accepted == accepted

    @pytest.mark.parametrize("host", ["127.0.0.1.", "[127.0.0.1]", "127.1."])
    def test_is_refused_as_the_address_is(self, host: str) -> None:
        with gsssocks.installed(NOWHERE, rules={"127.0.0.0/8": "refuse"}), pytest.raises(ForbiddenError):
            socket.create_connection((host, 9), PATIENCE_SECONDS)


class TestAHostThatIsNotASCII:
    @connects
    def test_in_octets_is_no_name(self, connect: str) -> None:
        with gsssocks.installed(NOWHERE, no_proxy=[]), socket.socket() as sock:
            with pytest.raises(socket.gaierror) as caught:
                getattr(sock, connect)((b"\xff\xfe", 9))
            assert caught.value.errno == socket.EAI_NONAME

    def test_in_octets_is_no_name_for_datagrams_either(self) -> None:
        with (
            gsssocks.installed(NOWHERE, no_proxy=[]),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(socket.gaierror),
        ):
            sock.sendto(b"x", (b"\xff\xfe", 9))


class TestAPort:
    """CPython 3.9 takes for an integer whatever has `__int__`."""

    @pytest.mark.filterwarnings("ignore:an integer is required:DeprecationWarning")
    @pytest.mark.parametrize("port", [Decimal, float])
    def test_that_is_no_integer_is_no_way_past_the_proxy(self, port: Any, echo: EchoServer) -> None:
        host, number = echo.address
        accepted = echo.accepted
        with gsssocks.installed(NOWHERE, no_proxy=[]):
            with socket.socket() as sock, pytest.raises(TypeError):
                sock.connect((host, port(number)))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(TypeError):
                sock.sendto(b"x", (host, port(number)))
        assert echo.accepted == accepted


class TestBroadcast:
    def test_by_its_name_is_decided_by_its_address(self) -> None:
        with gsssocks.installed(NOWHERE, no_proxy=["255.255.255.255"]):
            assert is_direct("<broadcast>", 9)
        with (
            gsssocks.installed(NOWHERE, rules={"255.255.255.255": "refuse"}),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(ForbiddenError, match=r"255\.255\.255\.255:9"),
        ):
            sock.sendto(b"x", ("<broadcast>", 9))

    def test_by_its_name_cannot_go_through_the_proxy_as_by_its_address(self) -> None:
        with (
            gsssocks.installed(NOWHERE, no_proxy=[]),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
            pytest.raises(gsssocks.ProxyError, match=r"name 255\.255\.255\.255 in no_proxy"),
        ):
            sock.sendto(b"x", ("<broadcast>", 9))


class TestAnAddressThatIsNotLookedAt:
    """A connected TCP socket does not look at the address of sendto and sendmsg, so nor is a name in it looked up."""

    @pytest.mark.parametrize("address", [("nowhere.invalid", 9), (b"nowhere.invalid", 9), ("nöwhere.invalid", 9)])
    def test_is_not_looked_up(self, address: Any, proxy: ProxyServer, echo: EchoServer) -> None:
        with (
            gsssocks.installed(proxy.url(), no_proxy=[]),
            socket.create_connection(echo.address, PATIENCE_SECONDS) as sock,
        ):
            assert sock.sendto(b"one", address) == 3
            assert sock.sendmsg([b"two"], [], 0, address) == 3
            assert receive_exactly(sock, 6) == b"onetwo"

    @pytest.mark.parametrize(
        ("address", "kind"),
        [
            (("nowhere.invalid",), TypeError),
            (("nowhere.invalid", "9"), TypeError),
            (("nowhere.invalid", 70_000), OverflowError),
            (("nowhere\0.invalid", 9), TypeError),
            (("ä" * 64, 9), UnicodeError),
            ((9, 9), TypeError),
            ("nowhere.invalid", TypeError),
        ],
    )
    def test_is_judged_all_the_same(
        self, address: Any, kind: type[Exception], proxy: ProxyServer, echo: EchoServer
    ) -> None:
        with (
            gsssocks.installed(proxy.url(), no_proxy=[]),
            socket.create_connection(echo.address, PATIENCE_SECONDS) as sock,
        ):
            with pytest.raises(kind):
                sock.sendto(b"one", address)
            with pytest.raises(kind):
                sock.sendmsg([b"two"], [], 0, address)
