"""The descriptor of a tunnelled socket in the hands of code that knows no method of ours."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gsssocks
from tests.peers.dante import Dante
from tests.peers.host import PATIENCE_SECONDS, Host, received_until_end
from tests.peers.receiving import receive_exactly
from tests.peers.targets import SinkServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.targets import EchoServer, HTTPSServer

SIZE = 16 << 20


RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger


def send_a_part_and_reset(connection: socket.socket) -> None:
    connection.sendall(b"a part")
    assert connection.recv(100) == b"go on"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


@pytest.fixture
def tunnel(through_dante: Dante, echo: EchoServer) -> Iterator[socket.socket]:
    """Connected to an echo."""
    with socket.create_connection(echo.address, PATIENCE_SECONDS) as connected:
        yield connected


@pytest.fixture
def descriptor(tunnel: socket.socket) -> Iterator[int]:
    """Of a tunnel to an echo, detached; it waits."""
    tunnel.settimeout(None)
    fd = tunnel.detach()
    yield fd
    os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(octets(300_000))
    return path


def read_exactly(fd: int, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = os.read(fd, size - len(received))
        assert piece, "the stream has ended"
        received += piece
    return received


@pytest.mark.usefixtures("through_dante")
class TestDetached:
    def test_carries_the_plain_stream(self, descriptor: int) -> None:
        assert os.write(descriptor, b"hello") == 5
        assert read_exactly(descriptor, 5) == b"hello"

    def test_has_the_number_it_had(self, tunnel: socket.socket) -> None:
        number = tunnel.fileno()
        fd = tunnel.detach()
        assert fd == number
        assert tunnel.fileno() == -1
        os.close(fd)

    def test_has_what_had_been_received_before(self, tunnel: socket.socket) -> None:
        tunnel.sendall(b"hello")
        assert tunnel.recv(1) == b"h"
        fd = tunnel.detach()
        os.set_blocking(fd, True)
        assert read_exactly(fd, 4) == b"ello"
        os.close(fd)

    def test_serves_a_socket_object(self, descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as plain:
            plain.settimeout(PATIENCE_SECONDS)
            plain.sendall(b"hello")
            assert plain.recv(5) == b"hello"

    def test_carries_much_both_ways_at_once(self, descriptor: int) -> None:
        data = octets(SIZE)

        def write() -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]

        writer = threading.Thread(target=write)
        writer.start()
        digest, received = hashlib.sha256(), 0
        while received < SIZE:
            piece = os.read(descriptor, 65536)
            assert piece
            digest.update(piece)
            received += len(piece)
        writer.join()
        assert digest.digest() == hashlib.sha256(data).digest()

    def test_half_closes(self) -> None:
        with SinkServer() as sink:
            fd = socket.create_connection(sink.address).detach()
            with socket.socket(fileno=fd) as plain:
                plain.settimeout(PATIENCE_SECONDS)
                plain.sendall(octets(100_000))
                plain.shutdown(socket.SHUT_WR)
                assert received_until_end(plain).decode() == hashlib.sha256(octets(100_000)).hexdigest()

    def test_ends_where_the_target_ends(self) -> None:
        with Host(lambda connection: connection.sendall(b"last words")) as host:
            fd = socket.create_connection(host.address).detach()
            with socket.socket(fileno=fd) as plain:
                plain.settimeout(PATIENCE_SECONDS)
                assert received_until_end(plain) == b"last words"

    def test_reset_by_the_target_is_no_end(self) -> None:
        with Host(send_a_part_and_reset) as host:
            fd = socket.create_connection(host.address).detach()
            with socket.socket(fileno=fd) as plain:
                plain.settimeout(PATIENCE_SECONDS)
                plain.sendall(b"go on")
                with pytest.raises(ConnectionResetError):
                    received_until_end(plain)

    def test_reset_reaches_the_target(self) -> None:
        received = threading.Event()

        def receive(connection: socket.socket) -> bytes:
            assert connection.recv(100) == b"a part"
            received.set()
            return connection.recv(100)

        with Host(receive) as host:
            fd = socket.create_connection(host.address).detach()
            with socket.socket(fileno=fd) as plain:
                plain.sendall(b"a part")
                assert received.wait(PATIENCE_SECONDS)
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            with pytest.raises(ConnectionResetError):
                host.result()

    def test_close_reaches_the_target(self) -> None:
        with Host(received_until_end) as host:
            fd = socket.create_connection(host.address).detach()
            os.write(fd, b"hello")
            os.close(fd)
            assert host.result() == b"hello"

    def test_keeps_not_to_wait(self, tunnel: socket.socket) -> None:
        tunnel.setblocking(False)
        fd = tunnel.detach()
        assert not os.get_blocking(fd)
        with pytest.raises(BlockingIOError):
            os.read(fd, 1)
        os.close(fd)

    @pytest.mark.parametrize("timeout", [0, 0.001])
    def test_is_had_whatever_the_default_timeout_is(self, tunnel: socket.socket, timeout: float) -> None:
        socket.setdefaulttimeout(timeout)
        try:
            fd = tunnel.detach()
        finally:
            socket.setdefaulttimeout(None)
        with socket.socket(fileno=fd) as plain:
            plain.settimeout(PATIENCE_SECONDS)
            plain.sendall(b"hello")
            assert plain.recv(5) == b"hello"

    def test_loses_nothing_at_the_end_of_the_process(self, realm: Realm, dante_confidentiality: Dante) -> None:
        program = (
            "import gsssocks, os, sys\n"
            "tunnel = gsssocks.create_connection(('127.0.0.1', int(sys.argv[1])), proxy=sys.argv[2])\n"
            "fd, rest = tunnel.detach(), memoryview(bytes(range(256)) * 16384)\n"
            "os.set_blocking(fd, True)\n"
            "while rest: rest = rest[os.write(fd, rest):]\n"
        )
        with Host(received_until_end) as host:
            arguments = [str(host.address[1]), dante_confidentiality.url()]
            subprocess.run(
                [sys.executable, "-c", program, *arguments],
                check=True,
                timeout=PATIENCE_SECONDS,
                env={**os.environ, **realm.env},
                cwd=Path(__file__).parents[1],
            )
            assert host.result() == bytes(range(256)) * 16384


def test_detached_descriptor_ends_when_the_proxy_does(realm: Realm, echo: EchoServer) -> None:
    with Dante(realm, enctype="confidentiality") as proxy, realm.activate():
        fd = gsssocks.create_connection(echo.address, proxy=proxy.url()).detach()
        with socket.socket(fileno=fd) as plain:
            plain.settimeout(PATIENCE_SECONDS)
            plain.sendall(b"hello")
            assert plain.recv(5) == b"hello"
            proxy.stop()
            with suppress(ConnectionResetError):
                assert plain.recv(1) == b""


@pytest.mark.usefixtures("tunnel")
class TestSendfile:
    @pytest.mark.parametrize("offset", [0, 5, 299_995])
    def test_to_the_descriptor_goes_through_the_tunnel(self, tunnel: socket.socket, file: Path, offset: int) -> None:
        with open(file, "rb") as source:
            sent = os.sendfile(tunnel.fileno(), source.fileno(), offset, 10)
            assert sent == min(10, 300_000 - offset)
            assert source.tell() == 0
        assert receive_exactly(tunnel, sent) == octets(sent, offset)

    def test_without_an_offset_moves_on_in_the_file(self, tunnel: socket.socket, file: Path) -> None:
        with open(file, "rb", buffering=0) as source:
            source.seek(7)
            assert os.sendfile(tunnel.fileno(), source.fileno(), None, 10) == 10
            assert source.tell() == 17
        assert receive_exactly(tunnel, 10) == octets(10, 7)

    def test_behind_the_end_of_the_file_sends_nothing(self, tunnel: socket.socket, file: Path) -> None:
        with open(file, "rb") as source:
            assert os.sendfile(tunnel.fileno(), source.fileno(), 300_000, 10) == 0
        tunnel.sendall(b"hello")
        assert tunnel.recv(100) == b"hello"

    def test_of_what_is_no_file_is_refused_as_by_the_kernel(self, tunnel: socket.socket) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs, pytest.raises(OSError) as caught:
            os.sendfile(tunnel.fileno(), ours.fileno(), 0, 10)
        assert caught.value.errno == errno.EINVAL

    def test_whole_file_to_a_descriptor_that_does_not_wait(self, file: Path) -> None:
        """What was reported as sent was, and the rest follows from there."""
        with SinkServer() as sink, socket.create_connection(sink.address, PATIENCE_SECONDS) as tunnel:
            tunnel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            tunnel.setblocking(False)
            with open(file, "rb") as source:
                done = 0
                while done < 300_000:
                    try:
                        done += os.sendfile(tunnel.fileno(), source.fileno(), done, 300_000)
                    except BlockingIOError:
                        select.select([], [tunnel], [], PATIENCE_SECONDS)
            tunnel.settimeout(PATIENCE_SECONDS)
            tunnel.shutdown(socket.SHUT_WR)
            assert received_until_end(tunnel).decode() == hashlib.sha256(octets(300_000)).hexdigest()

    def test_under_tls_is_refused_as_by_a_kernel_that_cannot(
        self, trust: trustme.CA, https_server: HTTPSServer, file: Path
    ) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        plain = socket.create_connection(https_server.address, PATIENCE_SECONDS)
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted, open(file, "rb") as source:
            with pytest.raises(OSError) as caught:
                os.sendfile(encrypted.fileno(), source.fileno(), 0, 10)
            assert caught.value.errno == errno.EINVAL

    def test_of_a_socket_sends_all_the_same(self, file: Path) -> None:
        with SinkServer() as sink, socket.create_connection(sink.address, PATIENCE_SECONDS) as tunnel:
            with open(file, "rb") as source:
                assert tunnel.sendfile(source) == 300_000
            tunnel.shutdown(socket.SHUT_WR)
            assert received_until_end(tunnel).decode() == hashlib.sha256(octets(300_000)).hexdigest()

    def test_of_an_asyncio_loop_sends_all_the_same(self, file: Path) -> None:
        async def send(tunnel: socket.socket) -> int:
            with open(file, "rb") as source:
                return await asyncio.get_running_loop().sock_sendfile(tunnel, source)

        with SinkServer() as sink, socket.create_connection(sink.address, PATIENCE_SECONDS) as tunnel:
            tunnel.setblocking(False)
            assert asyncio.run(send(tunnel)) == 300_000
            tunnel.settimeout(PATIENCE_SECONDS)
            tunnel.shutdown(socket.SHUT_WR)
            assert received_until_end(tunnel).decode() == hashlib.sha256(octets(300_000)).hexdigest()

    def test_to_a_plain_socket_is_the_kernels(self, file: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with ours, theirs, open(file, "rb") as source:
            assert os.sendfile(ours.fileno(), source.fileno(), 0, 10) == 10
            assert theirs.recv(100) == octets(10)


class TestAnotherObject:
    """For a descriptor that still is the tunnel's own."""

    def test_by_dup(self, tunnel: socket.socket) -> None:
        with tunnel.dup() as other:
            other.settimeout(PATIENCE_SECONDS)
            other.sendall(b"hello")
            assert other.recv(5) == b"hello"

    def test_by_fromfd(self, tunnel: socket.socket) -> None:
        with socket.fromfd(tunnel.fileno(), tunnel.family, tunnel.type) as other:
            other.settimeout(PATIENCE_SECONDS)
            other.sendall(b"hello")
            assert other.recv(5) == b"hello"

    def test_by_number_alone(self, tunnel: socket.socket) -> None:
        with socket.socket(fileno=os.dup(tunnel.fileno())) as other:
            other.settimeout(PATIENCE_SECONDS)
            assert other.getpeername() == tunnel.getpeername()
            other.sendall(b"hello")
            assert other.recv(5) == b"hello"

    def test_takes_turns_with_the_first(self, tunnel: socket.socket) -> None:
        with tunnel.dup() as other:
            other.settimeout(PATIENCE_SECONDS)
            for number in range(10):
                first, second = (tunnel, other) if number % 2 else (other, tunnel)
                first.sendall(b"%d" % number)
                assert second.recv(1) == b"%d" % number

    def test_outlives_the_first(self, tunnel: socket.socket) -> None:
        other = tunnel.dup()
        with other:
            other.settimeout(PATIENCE_SECONDS)
            tunnel.close()
            other.sendall(b"hello")
            assert other.recv(5) == b"hello"
