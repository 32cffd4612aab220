"""Protection levels: in order of preference, message by message, bare where it is spelt out, and NEC's way of saying
it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import ProtectionError, Proxy
from gsssocks.server import ProxyServer
from tests.peers.dante import Dante
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.relay import CountingRelay

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks._protocol import Octets
    from gsssocks.testing import Realm
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.usefixtures("in_the_realm")

MARKER = b"these octets are easy to find on the wire, unless they are encrypted"


@pytest.fixture
def selective_proxy() -> Iterator[ProxyServer]:
    with ProxyServer("localhost", levels=["selective"]) as started:
        yield started


def connected(proxy: Proxy, target: tuple[str, int]) -> gsssocks.GSSSocket:
    return gsssocks.create_connection(target, PATIENCE_SECONDS, proxy=proxy)


def echoes(sock: socket.socket, data: bytes = MARKER) -> bool:
    sock.sendall(data)
    return receive_exactly(sock, len(data)) == data


class TestSeveral:
    def test_first_where_the_proxy_agrees_to_it(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        with CountingRelay(("127.0.0.1", dante_confidentiality.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection="confidentiality,integrity")
            with connected(proxy, echo.address) as sock:
                assert sock.protection == "confidentiality"
                assert echoes(sock)
        assert len(relay.flights) == 1

    def test_next_by_another_connection_where_the_proxy_closes(self, dante_integrity: Dante, echo: EchoServer) -> None:
        with CountingRelay(("127.0.0.1", dante_integrity.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection="confidentiality,selective,integrity")
            with connected(proxy, echo.address) as sock:
                assert sock.protection == "integrity"
                assert echoes(sock)
        assert len(relay.flights) == 3

    def test_next_where_the_proxy_refuses_in_its_own_words(self, echo: EchoServer) -> None:
        with ProxyServer("localhost", levels=["integrity"]) as server:
            proxy = Proxy("localhost", server.port, protection="confidentiality,integrity")
            with connected(proxy, echo.address) as sock:
                assert sock.protection == "integrity"
                assert echoes(sock)

    def test_socket_keeps_its_descriptor_and_its_options(self, dante_integrity: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_integrity.port, protection="confidentiality,integrity")
        with gsssocks.GSSSocket(socket.AF_INET, socket.SOCK_STREAM, proxy=proxy) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            fd = sock.fileno()
            sock.connect(echo.address)
            assert sock.fileno() == fd
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert echoes(sock)

    def test_none_that_the_proxy_agrees_to(self, dante_clear: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_clear.port, protection="confidentiality,integrity")
        with pytest.raises(ProtectionError, match=r"'integrity'.*another protection=") as caught:
            connected(proxy, echo.address)
        assert caught.value.errno in (errno.ECONNRESET, errno.EACCES)

    def test_failure_of_another_kind_ends_it(self, realm: Realm, dante_integrity: Dante, echo: EchoServer) -> None:
        realm.kdestroy()
        try:
            with CountingRelay(("127.0.0.1", dante_integrity.port)) as relay:
                proxy = Proxy("localhost", relay.port, protection="confidentiality,integrity")
                with pytest.raises(gsssocks.AuthenticationError, match="kinit"):
                    connected(proxy, echo.address)
            assert len(relay.flights) == 1
        finally:
            realm.kinit()

    @pytest.mark.parametrize("first", ["integrity", "confidentiality"])
    def test_under_a_patch(self, request: pytest.FixtureRequest, echo: EchoServer, first: str) -> None:
        dante: Dante = request.getfixturevalue(f"dante_{first}")
        url = dante.url(protection="confidentiality,integrity")
        with gsssocks.installed(url, no_proxy=[]), socket.create_connection(echo.address, PATIENCE_SECONDS) as sock:
            assert isinstance(sock, gsssocks.GSSSocket)
            assert sock.protection == first
            assert echoes(sock)


class TestSelective:
    """Level 3 of RFC 1961, section 4.1: what Dante does not know, our own server does."""

    def shown(self, server: ProxyServer, target: tuple[str, int], **options: object) -> tuple[bool, bool]:
        """Whether a marker can be read on the wire, on its way to the server and back."""
        with CountingRelay(("127.0.0.1", server.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection="selective", **options)  # type: ignore[arg-type]
            with connected(proxy, target) as sock:
                assert sock.protection == "selective"
                assert echoes(sock)
        said = relay.said[0]
        return MARKER in said["client"], MARKER in said["server"]

    def test_everything_is_encrypted_by_default(self, selective_proxy: ProxyServer, echo: EchoServer) -> None:
        assert self.shown(selective_proxy, echo.address) == (False, False)

    def test_messages_that_are_chosen_for_it_are_only_signed(
        self, selective_proxy: ProxyServer, echo: EchoServer
    ) -> None:
        """The proxy chooses for itself, and encrypts."""
        assert self.shown(selective_proxy, echo.address, confidential=lambda _: False) == (True, False)

    def test_choice_is_made_for_each_message(self, selective_proxy: ProxyServer, echo: EchoServer) -> None:
        secret = b"this one is a secret, which nobody finds on the wire"

        def choose(data: Octets) -> bool:
            return b"secret" in bytes(data)

        with CountingRelay(("127.0.0.1", selective_proxy.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection="selective", confidential=choose)
            with connected(proxy, echo.address) as sock:
                assert echoes(sock, MARKER)
                assert echoes(sock, secret)
                assert echoes(sock, MARKER)
        said = relay.said[0]["client"]
        assert said.count(MARKER) == 2
        assert secret not in said

    def test_rule_may_choose_integrity(self, selective_proxy: ProxyServer, echo: EchoServer) -> None:
        with CountingRelay(("127.0.0.1", selective_proxy.port)) as relay:
            url = f"socks5h://localhost:{relay.port}?protection=selective"
            # The relay is of this process, too.
            rules = {f"127.0.0.1:{selective_proxy.port}": "direct", f"*:{echo.address[1]}": "integrity"}
            with gsssocks.installed(url, no_proxy=[], rules=rules), socket.create_connection(echo.address) as sock:
                assert isinstance(sock, gsssocks.GSSSocket)
                assert sock.protection == "selective"
                assert echoes(sock)
        assert MARKER in relay.said[0]["client"]

    def test_failing_choice_sends_nothing(self, selective_proxy: ProxyServer, echo: EchoServer) -> None:
        class ChoiceError(Exception):
            pass

        asked: list[bytes] = []

        def choose(data: Octets) -> bool:
            asked.append(bytes(data))
            if bytes(data) == MARKER:
                raise ChoiceError
            return True

        with CountingRelay(("127.0.0.1", selective_proxy.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection="selective", confidential=choose)
            with connected(proxy, echo.address) as sock:
                with pytest.raises(ChoiceError):
                    sock.sendall(MARKER)
                assert echoes(sock, b"another message")
        assert MARKER in asked
        assert MARKER not in relay.said[0]["client"]

    def test_is_refused_where_confidentiality_is_demanded(self, selective_proxy: ProxyServer, echo: EchoServer) -> None:
        with pytest.raises(ProtectionError, match="'confidentiality'"):
            connected(Proxy("localhost", selective_proxy.port), echo.address)


class TestNone:
    def test_leaves_the_data_bare(self, dante_clear: Dante, echo: EchoServer) -> None:
        relay = CountingRelay(("127.0.0.1", dante_clear.port))
        with relay, connected(Proxy("localhost", relay.port, protection="none"), echo.address) as sock:
            assert sock.protection == "none"
            assert echoes(sock)
        said = relay.said[0]
        assert MARKER in said["client"]
        assert MARKER in said["server"]

    def test_only_where_it_is_spelt_out(self, dante_clear: Dante, echo: EchoServer) -> None:
        with pytest.raises(ProtectionError):
            connected(Proxy("localhost", dante_clear.port, protection="integrity"), echo.address)


class TestCounterOffer:
    @pytest.mark.parametrize("asked", ["integrity", "selective"])
    @pytest.mark.parametrize("pipelined", [True, False])
    def test_stronger_one_is_accepted(self, echo: EchoServer, asked: str, *, pipelined: bool) -> None:
        with ProxyServer("localhost", levels=["confidentiality"], counter_offer=True) as server:
            relay = CountingRelay(("127.0.0.1", server.port))
            proxy = Proxy("localhost", relay.port, protection=asked, pipelined=pipelined)
            with relay, connected(proxy, echo.address) as sock:
                assert sock.protection == "confidentiality"
                assert echoes(sock)
                assert echoes(sock, bytes(200_000))
        assert len(relay.flights) == 1
        assert MARKER not in relay.said[0]["client"]

    def test_server_makes_no_weaker_one(self, echo: EchoServer) -> None:
        server = ProxyServer("localhost", levels=["integrity"], counter_offer=True)
        with server, pytest.raises(ProtectionError, match="refused the protection level 'confidentiality'"):
            connected(Proxy("localhost", server.port), echo.address)


class TestNEC:
    """NEC's reference code sends the protection level bare; Dante speaks that way where it is told to."""

    @pytest.fixture(params=["integrity", "confidentiality"])
    def nec_dante(self, request: pytest.FixtureRequest, realm: Realm) -> Iterator[Dante]:
        with Dante(realm, enctype=request.param, nec=True) as started:
            self.level = request.param
            yield started

    def test_through_a_proxy_that_speaks_it(self, nec_dante: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", nec_dante.port, protection=self.level, nec=True)
        with connected(proxy, echo.address) as sock:
            assert sock.protection == self.level
            assert echoes(sock)

    def test_with_a_proxy_that_does_not_speak_it(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        with pytest.raises(ProtectionError):
            connected(Proxy("localhost", dante_confidentiality.port, nec=True), echo.address)

    def test_minimum_holds(self, realm: Realm, echo: EchoServer) -> None:
        with Dante(realm, enctype="clear", nec=True) as dante, pytest.raises(ProtectionError):
            connected(Proxy("localhost", dante.port, protection="integrity", nec=True), echo.address)
