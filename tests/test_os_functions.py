"""`os.write()` and its kin on a tunnelled socket's descriptor, with nothing installed: as on a plain one, through the
tunnel."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks.testing import plain_pair, tunnelled_pair
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

    from gsssocks.testing import PlainPeer, Realm, TunnelPeer
    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

both = pytest.mark.parametrize("make", [plain_pair, tunnelled_pair], ids=["plain", "tunnelled"])
Make = Callable[..., "tuple[socket.socket, Any]"]
LARGE = 1 << 20


@pytest.fixture
def waiting() -> Iterator[tuple[socket.socket, TunnelPeer]]:
    """A tunnelled socket that waits, and its peer."""
    sock, peer = tunnelled_pair()
    sock.settimeout(None)
    with sock, peer:
        yield sock, peer


@both
class TestAsPlain:
    """What a plain socket's descriptor does, too."""

    def test_write(self, make: Make) -> None:
        sock, peer = make()
        with sock, peer:
            assert os.write(sock.fileno(), b"hello") == 5
            assert os.write(sock.fileno(), memoryview(b"hello")[1:]) == 4
            assert os.write(sock.fileno(), b"") == 0
            assert peer.read_exactly(9) == b"helloello"

    def test_writev(self, make: Make) -> None:
        sock, peer = make()
        with sock, peer:
            assert os.writev(sock.fileno(), [b"hel", bytearray(b"lo"), b""]) == 5
            assert peer.read_exactly(5) == b"hello"

    def test_read(self, make: Make) -> None:
        sock, peer = make()
        with sock, peer:
            peer.send(b"hello")
            assert os.read(sock.fileno(), 3) == b"hel"
            assert os.read(sock.fileno(), 100) == b"lo"
            assert os.read(sock.fileno(), 0) == b""
            peer.finish()
            assert os.read(sock.fileno(), 100) == b""

    def test_readv(self, make: Make) -> None:
        sock, peer = make()
        buffers = [bytearray(3), bytearray(3)]
        with sock, peer:
            peer.send(b"hello")
            assert os.readv(sock.fileno(), buffers) == 5
            assert b"".join(buffers) == b"hello\0"

    def test_to_a_duplicate(self, make: Make) -> None:
        sock, peer = make()
        fd = os.dup(sock.fileno())
        with sock, peer:
            assert os.write(fd, b"hello") == 5
            assert peer.read_exactly(5) == b"hello"
            peer.send(b"hello")
            assert os.read(fd, 5) == b"hello"
        os.close(fd)

    def test_does_not_wait_if_the_socket_does_not(self, make: Make) -> None:
        sock, peer = make()
        sock.setblocking(False)
        with sock, peer:
            with pytest.raises(BlockingIOError):
                os.read(sock.fileno(), 1)
            with pytest.raises(BlockingIOError):
                deque(iter(lambda: os.write(sock.fileno(), bytes(65536)), 0))

    def test_to_a_peer_that_is_gone(self, make: Make) -> None:
        sock, peer = make()
        with sock:
            peer.reset()
            with pytest.raises(ConnectionResetError):
                os.read(sock.fileno(), 1)
            with pytest.raises(BrokenPipeError):
                os.write(sock.fileno(), b"hello")

    @pytest.mark.parametrize(
        ("function", "arguments"),
        [
            (os.write, ["text"]),
            (os.write, []),
            (os.write, [5]),
            (os.read, ["5"]),
            (os.read, [1.5]),
            (os.read, [-1]),
            (os.read, [5, 5]),
            (os.writev, [5]),
            (os.writev, [[5]]),
            (os.readv, [[b"constant"]]),
        ],
    )
    def test_what_is_wrong(self, make: Make, function: Callable[..., object], arguments: list[object]) -> None:
        def outcome(make: Make) -> tuple[type, str, int | None]:
            sock, peer = make()
            with sock, peer:
                peer.send(b"hello")
                with pytest.raises((TypeError, BufferError, OSError)) as caught:
                    getattr(os, function.__name__)(sock.fileno(), *arguments)
                sock.settimeout(PATIENCE_SECONDS)
                assert sock.recv(5) == b"hello"
                return caught.type, str(caught.value), getattr(caught.value, "errno", None)

        assert outcome(make) == outcome(plain_pair)

    def test_what_is_no_descriptor(self, make: Make) -> None:
        sock, peer = make()
        with sock, peer:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(-1, b"hello")
            with pytest.raises(OverflowError):
                os.write(2**80, b"hello")
            with pytest.raises(TypeError):
                os.write(str(sock.fileno()), b"hello")  # type: ignore[arg-type]


def test_much_in_one_write(waiting: tuple[socket.socket, TunnelPeer]) -> None:
    sock, peer = waiting

    async def write_and_read() -> bytes:
        writing = asyncio.get_running_loop().run_in_executor(None, os.write, sock.fileno(), octets(LARGE))
        received = await asyncio.get_running_loop().run_in_executor(None, peer.read_exactly, LARGE)
        assert await writing == LARGE
        return received

    assert asyncio.run(write_and_read()) == octets(LARGE)


def test_whole_file_by_sendfile(waiting: tuple[socket.socket, TunnelPeer], tmp_path: Path) -> None:
    sock, peer = waiting
    (tmp_path / "file").write_bytes(b"hello")
    with open(tmp_path / "file", "rb") as file:
        assert os.sendfile(sock.fileno(), file.fileno(), 0, 100) == 5
    assert peer.read_exactly(5) == b"hello"


@pytest.mark.skipif(not hasattr(os, "splice"), reason="since Python 3.10")
class TestSplice:
    def test_into_a_tunnel_is_refused_as_by_a_kernel_that_cannot(
        self, waiting: tuple[socket.socket, TunnelPeer]
    ) -> None:
        sock, peer = waiting
        reading, writing = os.pipe()
        os.write(writing, b"hello")
        with pytest.raises(OSError, match="go past the tunnel") as caught:
            os.splice(reading, sock.fileno(), 5)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="go past the tunnel"):
            os.splice(src=reading, dst=sock.fileno(), count=5)
        assert os.read(reading, 5) == b"hello"
        assert peer.read() == b""
        os.close(reading)
        os.close(writing)

    def test_out_of_a_tunnel_is_refused_and_takes_nothing(self, waiting: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = waiting
        reading, writing = os.pipe()
        peer.send(b"hello")
        with pytest.raises(OSError, match="go past the tunnel"):
            os.splice(sock.fileno(), writing, 5)
        assert sock.recv(5) == b"hello"
        os.close(reading)
        os.close(writing)

    @pytest.mark.usefixtures("waiting")
    def test_between_others_is_the_kernels(self) -> None:
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        with ours, theirs:
            os.write(writing, b"hello")
            assert os.splice(reading, ours.fileno(), 5) == 5
            assert theirs.recv(5) == b"hello"
        os.close(reading)
        os.close(writing)


class TestRefused:
    def test_under_tls(
        self, realm: Realm, dante_confidentiality: Dante, https_server: HTTPSServer, trust: trustme.CA
    ) -> None:
        """Where the octets would go between TLS records."""
        context = ssl.create_default_context()
        trust.configure_trust(context)
        url = dante_confidentiality.url()
        with realm.activate():
            plain = gsssocks.create_connection(https_server.address, PATIENCE_SECONDS, proxy=url)
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            for call in (
                lambda: os.write(encrypted.fileno(), b"hello"),
                lambda: os.writev(encrypted.fileno(), [b"hello"]),
                lambda: os.read(encrypted.fileno(), 5),
                lambda: os.readv(encrypted.fileno(), [bytearray(5)]),
            ):
                with pytest.raises(OSError, match="go past the tunnel") as caught:
                    call()
                assert caught.value.errno == errno.EINVAL
            assert os.read(encrypted.fileno(), 0) == b""
            encrypted.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert encrypted.recv(5) == b"HTTP/"

    def test_to_a_relay_of_datagrams_by_the_kernel(self, realm: Realm, dante_confidentiality: Dante) -> None:
        url = dante_confidentiality.url()
        with realm.activate(), gsssocks.GSSSocket(type=socket.SOCK_DGRAM, proxy=url) as sock:
            sock.connect(("127.0.0.1", 9))
            with pytest.raises(OSError, match="Destination address required"):
                os.write(sock.fileno(), b"hello")


@pytest.mark.usefixtures("waiting")
def test_other_descriptors_are_the_kernels() -> None:
    reading, writing = os.pipe()
    assert os.write(writing, b"hello") == 5
    assert os.read(reading, 5) == b"hello"
    assert os.writev(writing, [b"hello"]) == 5
    assert os.readv(reading, [bytearray(5)]) == 5
    os.close(reading)
    os.close(writing)


def test_a_closed_descriptor_that_came_back_is_the_kernels(waiting: tuple[socket.socket, TunnelPeer]) -> None:
    sock, _ = waiting
    number = sock.fileno()
    sock.close()
    reading, writing = os.pipe()
    again = fcntl.fcntl(writing, fcntl.F_DUPFD, number)
    assert again == number or writing == number or reading == number
    assert os.write(writing, b"hello") == 5
    assert os.read(reading, 5) == b"hello"
    for fd in (reading, writing, again):
        os.close(fd)


def test_file_object_of_a_descriptor(waiting: tuple[socket.socket, TunnelPeer]) -> None:
    sock, peer = waiting
    with os.fdopen(os.dup(sock.fileno()), "wb") as file:
        file.write(b"hello")
    assert peer.read_exactly(5) == b"hello"
    with os.fdopen(sock.detach(), "r+b", buffering=0) as file:
        peer.send(b"hello")
        assert file.read(5) == b"hello"


class TestAsyncioPipes:
    """They read and write the descriptor by `os`."""

    def test_that_writes(self, pair: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = pair

        async def write() -> None:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sock)
            transport.write(octets(LARGE))
            await loop.run_in_executor(None, _expect, peer)
            transport.abort()
            await asyncio.sleep(0)

        asyncio.run(write())

    def test_that_reads(self, pair: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = pair

        async def read() -> bytes:
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sock)
            peer.send(b"hello")
            peer.finish()
            return await reader.read()

        assert asyncio.run(read()) == b"hello"


def _expect(peer: PlainPeer) -> None:
    assert peer.read_exactly(LARGE) == octets(LARGE)


class TestAsyncioSendfile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        path.write_bytes(octets(LARGE))
        return path

    def test_of_a_socket(self, pair: tuple[socket.socket, TunnelPeer], file: Path) -> None:
        sock, peer = pair

        async def send() -> None:
            loop = asyncio.get_running_loop()
            expecting = loop.run_in_executor(None, _expect, peer)
            with open(file, "rb") as source:
                assert await loop.sock_sendfile(sock, source) == LARGE
            await expecting

        asyncio.run(send())

    def test_of_a_transport(self, pair: tuple[socket.socket, TunnelPeer], file: Path) -> None:
        sock, peer = pair

        async def send() -> None:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
            expecting = loop.run_in_executor(None, _expect, peer)
            with open(file, "rb") as source:
                assert await loop.sendfile(transport, source) == LARGE
            await expecting
            transport.close()
            await asyncio.sleep(0)

        asyncio.run(send())
