"""A tunnelled socket in the hands of another process: as a plain one, which a relay connects to the tunnel."""

from __future__ import annotations

import array
import multiprocessing
import os
import pickle
import re
import shlex
import socket
import ssl
import struct
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler, recv_handle, send_handle
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks import GSSSocket, ProxyError, _originals
from gsssocks.testing import tunnelled_pair
from tests.peers.host import PATIENCE_SECONDS, Host, received_until_end
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from gsssocks.testing import Realm, TunnelPeer
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer

SAY_HELLO = [sys.executable, "-c", "import os; os.write(1, b'hello')"]
COPY_UP = [sys.executable, "-c", "import os; os.write(1, os.read(0, 5).upper())"]


@pytest.fixture
def waiting() -> Iterator[tuple[socket.socket, TunnelPeer]]:
    """A tunnelled socket that waits, and its peer; nothing is installed."""
    sock, peer = tunnelled_pair()
    sock.settimeout(None)
    with sock, peer:
        yield sock, peer


def write_to(fd: int) -> list[str]:
    return [sys.executable, "-c", f"import os; os.write({fd}, b'hello')"]


def write_past_python(fd: int) -> None:
    """As another process does: nothing but the kernel is between."""
    with open(fd, "wb", buffering=0) as file:
        file.write(b"hello")


def run(program: list[str], **streams: Any) -> None:
    """`subprocess.run`, which takes whatever has a descriptor; typeshed knows files alone."""
    subprocess.run(program, check=True, timeout=PATIENCE_SECONDS, **streams)


class TestChild:
    def test_writes_to_the_socket(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        run(SAY_HELLO, stdout=sock)
        assert peer.read_exactly(5) == b"hello"

    def test_reads_from_it_too(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        peer.send(b"hello")
        run(COPY_UP, stdin=sock, stdout=sock)
        assert peer.read_exactly(5) == b"HELLO"

    def test_writes_its_errors_there(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        run(write_to(2), stderr=sock)
        assert peer.read_exactly(5) == b"hello"

    def test_by_position(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        with subprocess.Popen(SAY_HELLO, -1, None, None, sock):  # type: ignore[call-overload]
            assert peer.read_exactly(5) == b"hello"

    def test_by_number(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        run(SAY_HELLO, stdout=sock.fileno())
        assert peer.read_exactly(5) == b"hello"

    def test_by_file(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        with sock.makefile("wb") as file:
            run(SAY_HELLO, stdout=file)
        assert peer.read_exactly(5) == b"hello"

    def test_by_a_duplicate_of_the_descriptor(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        fd = os.dup(sock.fileno())
        run(SAY_HELLO, stdout=fd)
        os.close(fd)
        assert peer.read_exactly(5) == b"hello"

    def test_by_pass_fds(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        fd = sock.fileno()
        run(write_to(fd), pass_fds=iter([fd]))
        assert peer.read_exactly(5) == b"hello"

    def test_by_inheritance(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        sock.set_inheritable(True)
        run(write_to(sock.fileno()), close_fds=False)
        assert peer.read_exactly(5) == b"hello"

    def test_by_posix_spawn(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        action = (os.POSIX_SPAWN_DUP2, sock.fileno(), 1)
        child = os.posix_spawn(sys.executable, SAY_HELLO, os.environ, file_actions=[action])
        assert peer.read_exactly(5) == b"hello"
        os.waitpid(child, 0)

    def test_by_send_fds(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert socket.send_fds(ours, [b"here"], fds=iter([sock.fileno()])) == 4
            (fd,) = socket.recv_fds(theirs, 4, 1)[1]
        write_past_python(fd)
        assert peer.read_exactly(5) == b"hello"

    def test_by_inheritance_of_a_duplicate(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        fd = os.dup(sock.fileno())
        os.set_inheritable(fd, True)
        run(write_to(fd), close_fds=False)
        os.close(fd)
        assert peer.read_exactly(5) == b"hello"

    def test_by_system(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        sock.set_inheritable(True)
        assert os.system(shlex.join(write_to(sock.fileno()))) == 0
        assert peer.read_exactly(5) == b"hello"

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("spawnl", lambda program: program),
            ("spawnle", lambda program: [*program, os.environ]),
            ("spawnlp", lambda program: program),
            ("spawnlpe", lambda program: [*program, os.environ]),
            ("spawnv", lambda program: [program]),
            ("spawnve", lambda program: [program, os.environ]),
            ("spawnvp", lambda program: [program]),
            ("spawnvpe", lambda program: [program, os.environ]),
        ],
    )
    def test_by_the_spawn_family(
        self, waiting: tuple[socket.socket, TunnelPeer], name: str, arguments: Callable[[list[str]], list[Any]]
    ) -> None:
        sock, peer = waiting
        sock.set_inheritable(True)
        spawn: Any = getattr(os, name)
        assert spawn(os.P_WAIT, sys.executable, *arguments(write_to(sock.fileno()))) == 0
        assert peer.read_exactly(5) == b"hello"

    def test_by_sendmsg(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        ours, theirs = socket.socketpair()
        with ours, theirs:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, sock.fileno()]))
            assert ours.sendmsg([b"here"], iter([rights])) == 4
            standard_input, fd = socket.recv_fds(theirs, 4, 2)[1]
        write_past_python(fd)
        os.close(standard_input)
        assert peer.read_exactly(5) == b"hello"

    def test_by_send_handle(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            send_handle(ours, sock.fileno(), None)
            fd = recv_handle(theirs)
        write_past_python(fd)
        assert peer.read_exactly(5) == b"hello"

    @pytest.mark.parametrize(
        "begin", [f"subprocess.run({SAY_HELLO!r})", f"os.system({shlex.join(SAY_HELLO)!r})"], ids=["run", "system"]
    )
    def test_by_inheritance_of_a_standard_stream(self, begin: str) -> None:
        program = (
            "import os, subprocess, sys\n"
            "from gsssocks.testing import tunnelled_pair\n"
            "sock, peer = tunnelled_pair()\n"
            "saved = os.dup(1)\n"
            "os.dup2(sock.fileno(), 1)\n"
            f"{begin}\n"
            "os.dup2(saved, 1)\n"
            "print(peer.read_exactly(5))\n"
            "sock.close(); peer.close()\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=PATIENCE_SECONDS
        )
        assert done.stdout == b"b'hello'\n"

    @pytest.mark.usefixtures("through_dante")
    def test_through_dante(self) -> None:
        with Host(received_until_end) as host:
            sock = socket.create_connection(host.address, PATIENCE_SECONDS)
            run(SAY_HELLO, stdout=sock)
            sock.close()
            assert host.result() == b"hello"

    @pytest.mark.usefixtures("through_dante")
    def test_leaves_the_socket_as_it_was(self, echo: EchoServer) -> None:
        with socket.create_connection(echo.address, PATIENCE_SECONDS) as sock, sock.dup() as other:
            fd = sock.fileno()
            run(SAY_HELLO, stdout=sock)
            assert receive_exactly(sock, 5) == b"hello"
            assert (sock.fileno(), sock.getpeername(), sock.gettimeout()) == (fd, echo.address, PATIENCE_SECONDS)
            assert other.getpeername() == echo.address
            other.sendall(b"again")
            assert receive_exactly(sock, 5) == b"again"

    def test_no_other_socket_is_touched(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        done = subprocess.run(SAY_HELLO, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_SECONDS)
        assert done.stdout == b"hello"
        assert isinstance(sock, GSSSocket)
        assert sock.tunnel is not None
        sock.sendall(b"hello")
        assert (peer.read_exactly(5), peer.messages) == (b"hello", 1)

    @pytest.mark.usefixtures("through_dante")
    def test_under_tls_is_refused(self, https_server: HTTPSServer, trust: trustme.CA) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        plain = socket.create_connection(https_server.address, PATIENCE_SECONDS)
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            with pytest.raises(ProxyError, match="under TLS"):
                run(SAY_HELLO, stdout=encrypted)
            encrypted.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert encrypted.recv(5) == b"HTTP/"

    @pytest.mark.usefixtures("through_dante")
    def test_by_sendmsg_under_tls_is_refused(self, https_server: HTTPSServer, trust: trustme.CA) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        plain = socket.create_connection(https_server.address, PATIENCE_SECONDS)
        ours, theirs = socket.socketpair()
        with ours, theirs, context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            with pytest.raises(ProxyError, match="under TLS"):
                ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", encrypted.fileno()))])
            ours.sendall(b"nothing before")
            assert theirs.recv(20) == b"nothing before"

    @pytest.mark.usefixtures("waiting")
    @pytest.mark.parametrize(
        "ancillary",
        [
            5,
            [5],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS)],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, "text")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", -1))],
            [(socket.SOL_SOCKET, 99, b"")],
        ],
    )
    def test_what_is_wrong_is_said_by_sendmsg(self, ancillary: Any) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with pytest.raises((TypeError, OSError)) as expected:
                _originals.SocketType.sendmsg(ours, [b"x"], ancillary)
            with pytest.raises(expected.type, match=re.escape(str(expected.value))):
                ours.sendmsg([b"x"], ancillary)

    @pytest.mark.usefixtures("waiting")
    def test_what_is_wrong_is_said_by_popen(self) -> None:
        with pytest.raises(AttributeError, match="fileno"):
            run(SAY_HELLO, stdout="file")


def talk(sock: socket.socket) -> None:
    """In another process."""
    with sock:
        sock.sendall(b"hello " + sock.recv(5))


class TestMultiprocessing:
    def test_passes_a_socket_on(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        with pickle.loads(ForkingPickler.dumps(sock)) as other:
            other.sendall(b"hello")
            assert peer.read_exactly(5) == b"hello"
            peer.send(b"hello")
            assert receive_exactly(sock, 5) == b"hello"

    def test_passes_on_what_was_tunnelled_by_name(
        self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer
    ) -> None:
        url = dante_confidentiality.url()
        with realm.activate():
            sock = gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=url)
        with sock, pickle.loads(ForkingPickler.dumps(sock)) as other:
            other.settimeout(PATIENCE_SECONDS)
            other.sendall(b"hello")
            assert receive_exactly(other, 5) == b"hello"

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_gives_it_to_a_process(self, waiting: tuple[socket.socket, TunnelPeer], method: Any) -> None:
        sock, peer = waiting
        process = multiprocessing.get_context(method).Process(target=talk, args=(sock,))
        process.start()
        peer.send(b"there")
        assert peer.read_exactly(11) == b"hello there"
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0

    @pytest.mark.usefixtures("waiting")
    def test_one_that_is_not_connected_is_refused(self) -> None:
        """In the other process it would have lost its proxy."""
        with GSSSocket(proxy="socks5h://proxy.example") as sock, pytest.raises(ProxyError, match="connect it before"):
            ForkingPickler.dumps(sock)

    @pytest.mark.usefixtures("waiting")
    def test_a_plain_socket_is_passed_on_as_ever(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, pickle.loads(ForkingPickler.dumps(ours)) as other:
            other.sendall(b"hello")
            assert theirs.recv(5) == b"hello"

    def test_pickle_itself_refuses_as_ever(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, _ = waiting
        with pytest.raises(TypeError, match="cannot pickle 'socket' object"):
            pickle.dumps(sock)
