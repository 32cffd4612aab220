"""UDP of programs that know nothing of a proxy: by the rules through a real Dante, directly, or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dns.message
import dns.query
import dns.rdatatype
import dns.resolver
import pytest
import trio

import gsssocks
from gsssocks.testing import ScriptedProxy
from tests.peers.datagrams import UDPEcho, udp_socket
from tests.peers.dns import DNSServer
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation, Realm
    from tests.peers.dante import Dante

pytestmark = pytest.mark.usefixtures("in_the_realm")

NAMES = {"www.example.test": "192.0.2.80", "mail.example.test": "192.0.2.25"}


@pytest.fixture(scope="module")
def echo() -> Iterator[UDPEcho]:
    with UDPEcho() as started:
        yield started


@pytest.fixture(scope="module")
def bystander() -> Iterator[UDPEcho]:
    """Another echo."""
    with UDPEcho() as started:
        yield started


@pytest.fixture(scope="module")
def dns_server() -> Iterator[DNSServer]:
    with DNSServer(NAMES) as started:
        yield started


@pytest.fixture
def everything(dante_confidentiality: Dante) -> Iterator[Dante]:
    """Everything goes through a Dante at level 2."""
    with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
        yield dante_confidentiality


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(PATIENCE_SECONDS)
        yield made


def proxied(sock: socket.socket, echo: UDPEcho) -> bool:
    """Whether the last datagram to have reached `echo` came by way of a proxy."""
    return bool(echo.received[-1][1][1] != sock.getsockname()[1])


class TestThroughTheProxy:
    @pytest.mark.usefixtures("everything")
    def test_sendto(self, sock: socket.socket, echo: UDPEcho) -> None:
        assert sock.sendto(b"hello", echo.address) == 5
        assert sock.recvfrom(100) == (b"hello", echo.address)
        assert proxied(sock, echo)

    @pytest.mark.usefixtures("everything")
    def test_sendto_with_flags(self, sock: socket.socket, echo: UDPEcho) -> None:
        assert sock.sendto(b"hello", 0, echo.address) == 5
        assert sock.recvfrom(100) == (b"hello", echo.address)
        assert proxied(sock, echo)

    @pytest.mark.usefixtures("everything")
    def test_sendmsg(self, sock: socket.socket, echo: UDPEcho) -> None:
        assert sock.sendmsg([b"hel", b"lo"], [], 0, echo.address) == 5
        assert sock.recvmsg(100) == (b"hello", [], 0, echo.address)
        assert proxied(sock, echo)

    @pytest.mark.parametrize("method", ["connect", "connect_ex"])
    @pytest.mark.usefixtures("everything")
    def test_connected(self, sock: socket.socket, echo: UDPEcho, method: str) -> None:
        assert not getattr(sock, method)(echo.address)
        assert sock.getpeername() == echo.address
        sock.send(b"hello")
        assert sock.recvfrom(100) == (b"hello", echo.address)
        assert proxied(sock, echo)

    @pytest.mark.usefixtures("everything")
    def test_ipv6(self, echo: UDPEcho) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.sendto(b"hello", ("::1", echo.port))
            assert sock.recvfrom(100) == (b"hello", echo.address6)
            assert proxied(sock, echo)

    def test_first_datagrams_of_several_threads(self, everything: Dante, sock: socket.socket, echo: UDPEcho) -> None:
        before = everything.associations()
        threads = [threading.Thread(target=sock.sendto, args=(b"x", echo.address)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [sock.recv(1) for _ in threads] == [b"x"] * 8
        assert everything.associations() == before + 1

    @pytest.mark.usefixtures("everything")
    def test_unbound_methods(self, sock: socket.socket, echo: UDPEcho) -> None:
        for _ in range(2):
            socket.socket.sendto(sock, b"hello", echo.address)
            assert sock.recvfrom(100) == (b"hello", echo.address)
            assert proxied(sock, echo)

    @pytest.mark.usefixtures("everything")
    def test_subclass_that_overrides(self, echo: UDPEcho) -> None:
        class Counting(socket.socket):
            sent = received = 0

            def sendto(self, *arguments: Any) -> int:
                self.sent += 1
                return super().sendto(*arguments)

            def recvfrom(self, *arguments: Any) -> Any:
                self.received += 1
                return super().recvfrom(*arguments)

        with Counting(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            for _ in range(2):
                sock.sendto(b"hello", echo.address)
                assert sock.recvfrom(100) == (b"hello", echo.address)
                assert proxied(sock, echo)
            assert (sock.sent, sock.received) == (2, 2)

    @pytest.mark.usefixtures("everything")
    def test_host_in_a_bytearray(self, sock: socket.socket, echo: UDPEcho) -> None:
        sock.sendto(b"hello", (bytearray(b"127.0.0.1"), echo.port))
        assert sock.recvfrom(100) == (b"hello", echo.address)
        assert proxied(sock, echo)

    @pytest.mark.usefixtures("everything")
    def test_is_a_gsssocket_then(self, sock: socket.socket, echo: UDPEcho) -> None:
        sock.sendto(b"hello", echo.address)
        assert isinstance(sock, gsssocks.GSSSocket)
        assert sock.protection == "confidentiality"

    def test_goes_on_after_uninstall(self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho) -> None:
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            sock.sendto(b"before", echo.address)
        assert sock.recv(100) == b"before"
        sock.sendto(b"after", echo.address)
        assert sock.recvfrom(100) == (b"after", echo.address)
        assert proxied(sock, echo)


class TestRules:
    def test_loopback_is_direct_by_default(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho
    ) -> None:
        with gsssocks.installed(dante_confidentiality.url()):
            for _ in range(2):
                sock.sendto(b"hello", echo.address)
                assert sock.recvfrom(100) == (b"hello", echo.address)
                assert not proxied(sock, echo)
            assert type(sock) is socket.socket

    def test_each_destination_has_its_way(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho, bystander: UDPEcho
    ) -> None:
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[f"127.0.0.1:{bystander.port}"]):
            for _ in range(2):
                for target, by_proxy in ((bystander, False), (echo, True), (bystander, False)):
                    sock.sendto(b"hello", target.address)
                    assert sock.recvfrom(100) == (b"hello", target.address)
                    assert proxied(sock, target) == by_proxy

    def test_each_destination_has_its_way_by_a_relay_of_another_family(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho, bystander: UDPEcho
    ) -> None:
        url = f"socks5h://[::1]:{dante_confidentiality.port}?target_name=socks@localhost"
        with gsssocks.installed(url, no_proxy=[f"127.0.0.1:{bystander.port}"]):
            for target, by_proxy in ((bystander, False), (echo, True), (bystander, False)):
                sock.sendto(b"hello", target.address)
                assert sock.recvfrom(100) == (b"hello", target.address)
                assert proxied(sock, target) == by_proxy
            for target in (bystander, echo, bystander):
                sock.connect(target.address)
                sock.send(b"hello")
                assert sock.recvfrom(100) == (b"hello", target.address)
                assert sock.getpeername() == target.address
                assert sock.getsockname()[0] in ("127.0.0.1", "0.0.0.0")

    def test_from_a_direct_peer_to_a_proxied_one_and_back(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho, bystander: UDPEcho
    ) -> None:
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[f"127.0.0.1:{bystander.port}"]):
            for target, by_proxy in ((bystander, False), (echo, True), (bystander, False), (echo, True)):
                sock.connect(target.address)
                assert sock.getpeername() == target.address
                sock.send(b"hello")
                assert sock.recvfrom(100) == (b"hello", target.address)
                assert proxied(sock, target) == by_proxy

    def test_protection_of_its_own_takes_another_association(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho, bystander: UDPEcho
    ) -> None:
        rules = {f"*:{bystander.port}": "confidentiality"}
        before = dante_confidentiality.associations()
        url = dante_confidentiality.url(protection="confidentiality,integrity")
        with gsssocks.installed(url, no_proxy=[], rules=rules):
            for target in (echo, bystander, echo):
                sock.sendto(b"hello", target.address)
                assert sock.recvfrom(100) == (b"hello", target.address)
        assert dante_confidentiality.associations() == before + 2

    def test_refused_by_rule(self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho) -> None:
        before = len(echo.received)
        with gsssocks.installed(dante_confidentiality.url(), rules={f"127.0.0.1:{echo.port}": "refuse"}):
            for call in (
                lambda: sock.sendto(b"no", echo.address),
                lambda: sock.sendmsg([b"no"], [], 0, echo.address),
                lambda: sock.connect(echo.address),
            ):
                with pytest.raises(PermissionError, match="refused by the rule"):
                    call()
            assert sock.connect_ex(echo.address) == errno.EACCES
        assert len(echo.received) == before

    def test_stranger_is_heard_only_if_the_rules_have_him_direct(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho
    ) -> None:
        friend, stranger = udp_socket(), udp_socket()
        friends_port = friend.getsockname()[1]
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[f"127.0.0.1:{friends_port}"]):
            sock.sendto(b"x", echo.address)
            sock.recv(1)
            here = ("127.0.0.1", sock.getsockname()[1])
            stranger.sendto(b"forged", here)
            friend.sendto(b"direct", here)
            assert sock.recvfrom(100) == (b"direct", ("127.0.0.1", friends_port))
        assert isinstance(sock, gsssocks.GSSSocket)
        assert sock.dropped is not None
        assert sock.dropped.foreign == 1
        friend.close()
        stranger.close()

    def test_rules_that_change_are_heeded_at_once(
        self, dante_confidentiality: Dante, sock: socket.socket, echo: UDPEcho
    ) -> None:
        with gsssocks.installed(dante_confidentiality.url()):
            sock.sendto(b"direct", echo.address)
            assert sock.recv(100) == b"direct"
            assert not proxied(sock, echo)
            gsssocks.install(dante_confidentiality.url(), no_proxy=[])
            sock.sendto(b"proxied", echo.address)
            assert sock.recv(100) == b"proxied"
            assert proxied(sock, echo)


def looked_up(name: str, port: int) -> Any:
    """What getaddrinfo() says of a name: its placeholder."""
    (*_, address), *_ = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_DGRAM)
    assert str(address[0]).startswith(("198.18.", "198.19."))
    return address


class TestNames:
    """With socks5h, a program that looks names up gets placeholders: also for UDP."""

    @pytest.fixture
    def everything(self, dante_confidentiality: Dante) -> Iterator[str]:
        """As elsewhere; but the proxy is not called by a name that is the target's, too. Its URL."""
        url = f"socks5h://127.0.0.1:{dante_confidentiality.port}?target_name=socks@localhost"
        with gsssocks.installed(url, no_proxy=[]):
            yield url

    @pytest.mark.usefixtures("everything")
    def test_placeholder_is_where_the_answer_comes_from(self, sock: socket.socket, echo: UDPEcho) -> None:
        address = looked_up("localhost", echo.port)
        for _ in range(2):
            sock.sendto(b"hello", address)
            assert sock.recvfrom(100) == (b"hello", address)

    @pytest.mark.usefixtures("everything")
    def test_placeholder_of_ipv6(self, echo: UDPEcho) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            (*_, address), *_ = socket.getaddrinfo("localhost", echo.port, socket.AF_INET6, socket.SOCK_DGRAM)
            assert str(address[0]).startswith("100::")
            sock.sendto(b"hello", address)
            assert sock.recvfrom(100) == (b"hello", address)

    @pytest.mark.usefixtures("everything")
    def test_connected_to_a_placeholder(self, sock: socket.socket, echo: UDPEcho) -> None:
        address = looked_up("localhost", echo.port)
        sock.connect(address)
        sock.send(b"hello")
        assert sock.recvfrom(100) == (b"hello", address)
        assert sock.getpeername() == address

    @pytest.mark.usefixtures("everything")
    def test_address_that_was_sent_to_is_nobody_elses(self, sock: socket.socket, echo: UDPEcho) -> None:
        placeholder = looked_up("localhost", echo.port)
        sock.sendto(b"by address", echo.address)
        assert sock.recvfrom(100) == (b"by address", echo.address)
        sock.sendto(b"by name", placeholder)
        assert sock.recvfrom(100) == (b"by name", echo.address)

    @pytest.mark.usefixtures("everything")
    def test_several_names_are_told_apart_while_they_can_be(self, sock: socket.socket, echo: UDPEcho) -> None:
        silent = looked_up("silent.invalid", echo.port)
        known = looked_up("localhost", echo.port)
        sock.sendto(b"first", known)
        assert sock.recvfrom(100) == (b"first", known)
        sock.sendto(b"lost", silent)
        sock.sendto(b"second", known)
        assert sock.recvfrom(100) == (b"second", known)

    @pytest.mark.usefixtures("everything")
    def test_sender_is_not_guessed(self, sock: socket.socket, echo: UDPEcho) -> None:
        silent = looked_up("silent.invalid", echo.port)
        known = looked_up("localhost", echo.port)
        sock.sendto(b"lost", silent)
        sock.sendto(b"whose answer?", known)
        assert sock.recvfrom(100) == (b"whose answer?", echo.address)

    def test_placeholder_of_a_name_that_is_direct_after_all(
        self, everything: str, sock: socket.socket, echo: UDPEcho
    ) -> None:
        address = looked_up("localhost", echo.port)
        gsssocks.install(everything, no_proxy=["localhost"])
        sock.sendto(b"hello", address)
        assert sock.recvfrom(100) == (b"hello", address)
        assert not proxied(sock, echo)

    def test_answer_of_a_name_that_is_direct(
        self, everything: str, sock: socket.socket, echo: UDPEcho, bystander: UDPEcho
    ) -> None:
        gsssocks.install(everything, no_proxy=["localhost"])
        sock.sendto(b"by the proxy", bystander.address)
        assert sock.recvfrom(100) == (b"by the proxy", bystander.address)
        sock.sendto(b"directly", ("localhost", echo.port))
        assert sock.recvfrom(100) == (b"directly", echo.address)
        assert not proxied(sock, echo)


class TestOwnAddress:
    """Programs connect a UDP socket, and send nothing, to learn the address of this machine."""

    def test_is_told_without_a_proxy_being_asked(self, sock: socket.socket) -> None:
        nobody = udp_socket()
        with gsssocks.installed(f"socks5h://127.0.0.1:{nobody.getsockname()[1]}"):
            plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("127.8.8.8", 80))
            plain.close()
            assert sock.getsockname()[0] == "127.0.0.1"
        nobody.close()

    def test_is_what_a_plain_socket_says(self, dante_confidentiality: Dante) -> None:
        def own_address(host: str) -> Any:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((host, 80))
                address, port = sock.getsockname()
                assert port
                return address

        plain = own_address("127.1.2.3")
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            assert own_address("127.1.2.3") == plain


class TestFailures:
    def test_proxy_without_udp(self, sock: socket.socket, echo: UDPEcho) -> None:
        def refuse(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            assert client.hear_request().command == 3
            client.reply(7)

        before = len(echo.received)
        with ScriptedProxy(refuse) as proxy, gsssocks.installed(proxy.url(), no_proxy=[]):
            for _ in range(2):
                with pytest.raises(gsssocks.ReplyError, match="does not support this command") as raised:
                    sock.sendto(b"leaked", echo.address)
                assert raised.value.errno == errno.EOPNOTSUPP
        assert len(echo.received) == before

    def test_proxy_that_is_not_there(self, sock: socket.socket, echo: UDPEcho) -> None:
        before = len(echo.received)
        nobody = udp_socket()
        with gsssocks.installed(f"socks5h://127.0.0.1:{nobody.getsockname()[1]}", no_proxy=[]):
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError):
                    sock.sendto(b"leaked", echo.address)
            sock.connect(echo.address)
            with pytest.raises(ConnectionRefusedError):
                sock.send(b"leaked")
        nobody.close()
        assert len(echo.received) == before

    @pytest.mark.parametrize("group", ["224.0.0.251", "255.255.255.255"])
    @pytest.mark.usefixtures("everything")
    def test_datagrams_to_many(self, sock: socket.socket, group: str) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with pytest.raises(gsssocks.ProxyError, match="in no_proxy") as raised:
            sock.sendto(b"everybody", (group, 5353))
        assert raised.value.errno == errno.EOPNOTSUPP

    def test_multicast_that_is_direct(self, dante_confidentiality: Dante, sock: socket.socket) -> None:
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=["224.0.0.0/4"]):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
            assert sock.sendto(b"everybody", ("224.0.0.251", 5353)) == 9
            assert type(sock) is socket.socket


class TestOtherSockets:
    @pytest.mark.usefixtures("everything")
    def test_closed(self, sock: socket.socket, echo: UDPEcho) -> None:
        sock.close()
        for call in (
            lambda: sock.sendto(b"x", echo.address),
            lambda: sock.sendmsg([b"x"], [], 0, echo.address),
            lambda: sock.connect(echo.address),
        ):
            with pytest.raises(OSError) as raised:
                call()
            assert raised.value.errno == errno.EBADF
        assert sock.connect_ex(echo.address) == errno.EBADF

    @pytest.mark.usefixtures("everything")
    def test_unix_datagrams_are_left_alone(self) -> None:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, other:
            one.sendmsg([b"hello"])
            assert other.recv(100) == b"hello"
            with pytest.raises(FileNotFoundError):
                one.sendto(b"x", "/nonexistent/socket")
            assert type(one) is socket.socket

    @pytest.mark.usefixtures("everything")
    @pytest.mark.skipif(not hasattr(socket, "MSG_FASTOPEN"), reason="only Linux connects so")
    def test_tcp_does_not_connect_by_sending(self, dante_confidentiality: Dante) -> None:
        flag = socket.MSG_FASTOPEN
        url = dante_confidentiality.url()
        with socket.create_server(("127.0.0.1", 0)) as listener, gsssocks.installed(url, no_proxy=[]):
            address = listener.getsockname()
            for sock in (socket.socket(), gsssocks.GSSSocket(proxy=url)):
                for call in (sock.sendto, lambda data, *rest, sock=sock: sock.sendmsg([data], [], *rest)):
                    with pytest.raises(gsssocks.ProxyError, match="connect first") as raised:
                        call(b"leaked", flag, address)
                    assert raised.value.errno == errno.EOPNOTSUPP
                sock.close()
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()

    def test_tcp_sends_messages_as_ever(self) -> None:
        one, other = socket.socketpair()
        with one, other:
            assert one.sendmsg([b"hel", b"lo"]) == 5
            assert other.recv(100) == b"hello"


def test_uninstall_leaves_no_trace(dante_confidentiality: Dante) -> None:
    before = dict(vars(socket.socket))
    with gsssocks.installed(dante_confidentiality.url()):
        assert {"socket.sendto", "socket.sendmsg"} <= set(gsssocks.status().patched)
    assert dict(vars(socket.socket)) == before
    assert socket.socket.sendto is socket.SocketType.sendto


class TestLibraries:
    def test_dnspython(self, everything: Dante, dns_server: DNSServer) -> None:
        before = everything.associations()
        query = dns.message.make_query("www.example.test", dns.rdatatype.A)
        answer = dns.query.udp(query, "127.0.0.1", timeout=PATIENCE_SECONDS, port=dns_server.port)
        assert answer.answer[0][0].to_text() == NAMES["www.example.test"]
        assert everything.associations() == before + 1

    @pytest.mark.usefixtures("everything")
    def test_dnspython_resolver(self, dns_server: DNSServer) -> None:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], dns_server.port
        (answer,) = resolver.resolve("mail.example.test", "A")
        assert answer.to_text() == NAMES["mail.example.test"]

    def test_asyncio_to_one_address(self, everything: Dante, echo: UDPEcho) -> None:
        assert asyncio.run(exchanged_by_asyncio(remote=echo.address)) == (b"hello", echo.address)
        assert everything.associations()

    @pytest.mark.usefixtures("everything")
    def test_asyncio_to_any_address(self, echo: UDPEcho) -> None:
        assert asyncio.run(exchanged_by_asyncio(to=echo.address)) == (b"hello", echo.address)

    @pytest.mark.usefixtures("everything")
    def test_asyncio_to_a_name(self, echo: UDPEcho) -> None:
        data, _ = asyncio.run(exchanged_by_asyncio(remote=("localhost", echo.port)))
        assert data == b"hello"

    @pytest.mark.usefixtures("everything")
    def test_asyncio_socket_methods(self, echo: UDPEcho) -> None:
        async def exchange() -> Any:
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, echo.address)
                await loop.sock_sendall(sock, b"hello")
                return await asyncio.wait_for(loop.sock_recv(sock, 100), PATIENCE_SECONDS)

        assert asyncio.run(exchange()) == b"hello"
        assert echo.received[-1][0] == b"hello"

    def test_trio(self, everything: Dante, echo: UDPEcho) -> None:
        async def exchange() -> Any:
            with trio.fail_after(PATIENCE_SECONDS):
                sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
                with sock:
                    await sock.sendto(b"hello", echo.address)
                    return await sock.recvfrom(100)

        before = everything.associations()
        assert trio.run(exchange) == (b"hello", echo.address)
        assert everything.associations() == before + 1

    def test_duplicate_of_trio(self, everything: Dante, echo: UDPEcho) -> None:
        async def exchange() -> Any:
            with trio.fail_after(PATIENCE_SECONDS):
                with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as first:
                    await first.sendto(b"hello", echo.address)
                    with first.dup() as second:
                        return await second.recvfrom(100)

        before = everything.associations()
        assert trio.run(exchange) == (b"hello", echo.address)
        assert everything.associations() == before + 1


async def exchanged_by_asyncio(remote: Any = None, to: Any = None) -> Any:
    """What comes back for "hello", and from whom."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[tuple[bytes, Any]] = loop.create_future()

    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            arrived.set_result((data, addr))

        def error_received(self, exc: Exception) -> None:
            arrived.set_exception(exc)

    transport, _ = await loop.create_datagram_endpoint(Protocol, remote_addr=remote, family=socket.AF_INET)
    try:
        transport.sendto(b"hello", to)
        return await asyncio.wait_for(arrived, PATIENCE_SECONDS)
    finally:
        transport.close()


BEGINNING = """
import gsssocks, os, socket, sys
url, port = sys.argv[1], int(sys.argv[2])
"""
GEVENT = """
import gevent.monkey
gevent.monkey.patch_all()
"""
EVENTLET = """
import eventlet
eventlet.monkey_patch()
"""
SEND = """
gsssocks.install(url, no_proxy=[])
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for call in (
    lambda: sock.sendto(b"leaked", ("127.0.0.1", port)),
    lambda: sock.sendto(b"leaked", 0, ("127.0.0.1", port)),
    lambda: sock.sendmsg([b"leaked"], [], 0, ("127.0.0.1", port)),
    lambda: sock.connect(("127.0.0.1", port)),
):
    try:
        call()
    except gsssocks.ProxyError as error:
        print(error)
gsssocks.install(url)
sock.sendto(b"direct", ("127.0.0.1", port))
print(sock.recv(100).decode())
"""
UVLOOP = """
import asyncio, uvloop
async def answered(**ends):
    loop = asyncio.get_running_loop()
    arrived = loop.create_future()
    class Protocol(asyncio.DatagramProtocol):
        def datagram_received(self, data, addr):
            arrived.set_result(data)
    transport, _ = await loop.create_datagram_endpoint(Protocol, **ends)
    transport.sendto(b"direct", None if "remote_addr" in ends else ("127.0.0.1", port))
    data = await arrived
    transport.close()
    return data
async def main():
    gsssocks.install(url, no_proxy=[])
    for ends in ({"remote_addr": ("127.0.0.1", port)}, {"local_addr": ("0.0.0.0", 0)}, {"family": socket.AF_INET},
                 {"sock": socket.socket(socket.AF_INET, socket.SOCK_DGRAM)}):
        try:
            await answered(**ends)
        except gsssocks.ProxyError as error:
            print(error)
    gsssocks.install(url)
    for ends in ({"remote_addr": ("127.0.0.1", port)}, {"local_addr": ("127.0.0.1", 0)}):
        print((await answered(**ends)).decode())
uvloop.run(main())
"""


@pytest.mark.parametrize(
    ("program", "refusals", "direct"),
    [(GEVENT + SEND, 4, 1), (EVENTLET + SEND, 4, 1), (UVLOOP, 4, 2)],
    ids=["gevent", "eventlet", "uvloop"],
)
def test_libraries_past_which_no_datagram_leaves(
    dante_confidentiality: Dante, realm: Realm, echo: UDPEcho, program: str, refusals: int, direct: int
) -> None:
    before = len(echo.received)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGINNING + program, dante_confidentiality.url(), str(echo.port)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **realm.env},
        cwd=Path(__file__).parents[1],
    )
    lines = done.stdout.splitlines()
    assert [line.partition(" cannot be sent")[0] for line in lines[:refusals]] in (
        ["gevent's sockets"] * refusals,
        ["eventlet's sockets"] * refusals,
        ["datagrams of uvloop"] * refusals,
    )
    assert lines[refusals:] == ["direct"] * direct
    assert [data for data, _ in echo.received[before:]] == [b"direct"] * direct
