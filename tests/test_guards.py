"""What keeps bare octets out of a tunnel stands as long as there is one, and no longer."""

from __future__ import annotations

import functools
import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gsssocks
from gsssocks import GSSSocket
from gsssocks.testing import tunnelled_pair
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.routes import tunnelled

if TYPE_CHECKING:
    import trustme

    from gsssocks.testing import Realm, TunnelPeer
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer

PROXY = "socks5h://proxy.example"
OWNERS = (os, socket, socket.socket, ssl, ssl.SSLContext, subprocess.Popen)
GUARDED = ("read", "readv", "sendfile", "splice", "write", "writev")


@pytest.fixture(autouse=True)
def no_tunnel_is_left_from_before() -> None:
    # What an exception's traceback holds lives until it is collected.
    gc.collect()
    assert not gsssocks.status().patched


def state() -> list[dict[str, Any]]:
    """What guards change. By identity: a wrapper equals what it wraps."""
    return [{name: id(value) for name, value in vars(owner).items()} for owner in OWNERS]


class TestStand:
    def test_from_the_first_tunnel_to_the_end_of_the_last(self) -> None:
        before = state()
        first, first_peer = tunnelled_pair()
        with first, first_peer:
            standing = state()
            assert standing != before
            second, second_peer = tunnelled_pair()
            with second, second_peer:
                assert state() == standing
            assert state() == standing
        assert state() == before

    def test_not_without_a_tunnel_though_something_is_installed(self, echo: EchoServer) -> None:
        before = [id(getattr(os, name)) for name in GUARDED if hasattr(os, name)]
        init = socket.socket.__init__
        with gsssocks.installed(PROXY):
            socket.create_connection(echo.address, PATIENCE_SECONDS).close()
            assert [id(getattr(os, name)) for name in GUARDED if hasattr(os, name)] == before
            assert socket.socket.__init__ is init

    def test_for_a_socket_that_only_might_be_tunnelled_they_do_not(self) -> None:
        before = state()
        with GSSSocket(proxy=PROXY):
            assert state() == before

    def test_from_one_tunnel_to_the_next_while_something_is_installed(self) -> None:
        before = state()
        with gsssocks.installed(PROXY):
            for _ in range(2):
                sock, peer = tunnelled_pair()
                with sock, peer:
                    standing = state()
            assert state() == standing
        assert state() == before

    def test_after_uninstall_as_long_as_there_is_a_tunnel(self) -> None:
        before = state()
        with gsssocks.installed(PROXY):
            sock, peer = tunnelled_pair()
        with sock, peer:
            assert "os.write" in gsssocks.status().patched
        assert gsssocks.status().patched == ()
        assert state() == before

    @pytest.mark.parametrize("how", ["detached", "given to a child"])
    def test_until_a_socket_is_closed_that_a_relay_serves(self, how: str) -> None:
        before = state()
        sock, peer = tunnelled_pair()
        with sock, peer:
            if how == "detached":
                os.close(sock.detach())
            else:
                subprocess.run(["true"], stdin=sock, check=True)  # type: ignore[call-overload]  # typeshed knows files alone
        assert state() == before

    def test_until_a_forgotten_socket_is_collected(self) -> None:
        def forget() -> TunnelPeer:
            sock, peer = tunnelled_pair()
            cycle: list[object] = [sock]
            cycle.append(cycle)
            del sock, cycle
            gc.collect()
            return peer

        before = state()
        with pytest.warns(ResourceWarning):
            peer = forget()
        peer.close()
        assert state() == before

    def test_for_a_udp_socket(self, realm: Realm, dante_confidentiality: Dante) -> None:
        before = state()
        with realm.activate(), GSSSocket(type=socket.SOCK_DGRAM, proxy=dante_confidentiality.url()) as sock:
            sock.sendto(b"hello", ("127.0.0.1", 9))
            with socket.fromfd(sock.fileno(), sock.family, sock.type) as other:
                assert isinstance(other, GSSSocket)
        del other, sock
        gc.collect()
        assert state() == before

    def test_for_whoever_took_a_function_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = os.write
        monkeypatch.setattr(sys.modules[__name__], "write", taken, raising=False)
        sock, peer = tunnelled_pair()
        with sock, peer:
            assert globals()["write"] is os.write
            assert f"{__name__}.write" in gsssocks.status().references
        assert globals()["write"] is taken

    def test_for_whoever_took_a_function_between_two_tunnels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("first", "second"):
            monkeypatch.setattr(sys.modules[__name__], name, os.write, raising=False)
            sock, peer = tunnelled_pair()
            with sock, peer:
                assert globals()[name] is os.write
            assert globals()[name] is os.write

    def test_for_whoever_took_a_function_while_they_stood(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = os.write
        sock, peer = tunnelled_pair()
        with sock, peer:
            monkeypatch.setattr(sys.modules[__name__], "write", os.write, raising=False)
        assert globals()["write"] is plain

    def test_for_a_class_that_takes_a_function_while_they_stand(self) -> None:
        """As `multiprocessing.connection` does: a function of C is no method."""
        sock, peer = tunnelled_pair()

        class Connection:
            write: Any = os.write

        with sock, peer:
            assert Connection().write(sock.fileno(), b"hello") == 5
            assert peer.read_exactly(5) == b"hello"
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert Connection().write(ours.fileno(), b"hello") == 5
            assert theirs.recv(5) == b"hello"

    def test_for_a_module_imported_while_they_stand(self) -> None:
        program = (
            "import sys\n"
            "from gsssocks.testing import tunnelled_pair\n"
            "sock, peer = tunnelled_pair()\n"
            "assert 'multiprocessing.reduction' not in sys.modules\n"
            "from multiprocessing.reduction import ForkingPickler\n"
            "print(hasattr(ForkingPickler.__init__, '__wrapped__'))\n"
            "sock.close(); peer.close()\n"
            "print(hasattr(ForkingPickler.__init__, '__wrapped__'))\n"
        )
        assert run(program) == ("True\nFalse\n", "")

    def test_where_threads_make_and_end_tunnels_at_once(self) -> None:
        before = state()
        failures: list[str] = []

        def make_and_end() -> None:
            for _ in range(30):
                sock, peer = tunnelled_pair()
                with sock, peer:
                    os.write(sock.fileno(), b"hello")
                    if peer.read_exactly(5) != b"hello":
                        failures.append("bare")

        threads = [threading.Thread(target=make_and_end) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert state() == before

    @pytest.mark.parametrize("first", ["installed", "tunnel"])
    @pytest.mark.parametrize("last", ["installed", "tunnel"])
    def test_where_what_is_installed_wraps_the_same_method(self, first: str, last: str) -> None:
        before = state()
        with ExitStack() as installed, ExitStack() as tunnel:
            if first == "installed":
                installed.enter_context(gsssocks.installed(PROXY))
            for end in tunnelled_pair():
                tunnel.enter_context(end)
            if first == "tunnel":
                installed.enter_context(gsssocks.installed(PROXY))
            assert gsssocks.status().patched.count("socket.sendmsg") == 1
            first_to_end, second = (tunnel, installed) if last == "installed" else (installed, tunnel)
            first_to_end.close()
            assert gsssocks.status().patched.count("socket.sendmsg") == 1
            second.close()
        assert state() == before

    def test_at_the_end_of_the_process_nothing_is_said(self) -> None:
        program = "from gsssocks.testing import tunnelled_pair\nkept = tunnelled_pair()\nkept[0].setblocking(False)\n"
        assert run(program, "-W", "ignore::ResourceWarning") == ("", "")

    def test_in_a_child_that_was_forked(self, pair: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = pair
        child = os.fork()
        if not child:
            os.write(sock.fileno(), b"hello")
            os._exit(0)
        os.waitpid(child, 0)
        assert peer.read_exactly(5) == b"hello"


def run(program: str, *options: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return done.stdout, done.stderr


class TestAnotherObject:
    """For a descriptor of a tunnel that has come about, or lives on, without anything installed."""

    @pytest.fixture
    def kept(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> socket.socket:
        with tunnelled(realm, dante_confidentiality):
            return socket.create_connection(echo.address, PATIENCE_SECONDS)

    def test_by_fromfd(self, pair: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = pair
        with socket.fromfd(sock.fileno(), sock.family, sock.type) as other:
            other.sendall(b"hello")
            assert peer.read_exactly(5) == b"hello"

    def test_by_fromfd_after_uninstall(self, kept: socket.socket) -> None:
        with kept, socket.fromfd(kept.fileno(), kept.family, kept.type) as other:
            other.settimeout(PATIENCE_SECONDS)
            other.sendall(b"hello")
            assert receive_exactly(other, 5) == b"hello"

    def test_under_tls_after_uninstall(
        self, realm: Realm, dante_confidentiality: Dante, https_server: HTTPSServer, trust: trustme.CA
    ) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        with tunnelled(realm, dante_confidentiality):
            plain = socket.create_connection(https_server.address, PATIENCE_SECONDS)
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            assert encrypted.protection == "confidentiality"  # type: ignore[attr-defined]  # a GSSSocket, too
            encrypted.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert encrypted.recv(5) == b"HTTP/"

    def test_trio_after_uninstall(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
        import trio

        async def talk() -> bytes:
            with tunnelled(realm, dante_confidentiality):
                sock = trio.socket.socket()
                await sock.connect(echo.address)
            with sock:
                await sock.send(b"hello")
                return await sock.recv(5)

        assert trio.run(talk) == b"hello"

    def test_pyopenssl_without_install(
        self, realm: Realm, dante_confidentiality: Dante, https_server: HTTPSServer
    ) -> None:
        from OpenSSL import SSL

        url = dante_confidentiality.url()
        with realm.activate(), gsssocks.create_connection(https_server.address, None, proxy=url) as sock:
            connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), sock)
            connection.set_connect_state()
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(5) == b"HTTP/"

    @pytest.mark.parametrize("how", ["create_connection", "connect_accepted_socket"])
    def test_uvloop_without_install(
        self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer, how: str
    ) -> None:
        import asyncio

        import uvloop

        async def talk(sock: socket.socket, how: str) -> bytes:
            loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
            factory = functools.partial(asyncio.StreamReaderProtocol, reader)
            if how == "create_connection":
                transport, _ = await loop.create_connection(factory, sock=sock)
            else:
                transport, _ = await loop.connect_accepted_socket(factory, sock)
            transport.write(b"hello")
            received = await reader.readexactly(5)
            transport.close()
            return received

        url = dante_confidentiality.url()
        with realm.activate(), gsssocks.create_connection(echo.address, None, proxy=url) as sock:
            sock.setblocking(False)
            assert uvloop.run(talk(sock, how)) == b"hello"
