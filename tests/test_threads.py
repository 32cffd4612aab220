"""Several threads, and signals, at one tunnelled socket."""

from __future__ import annotations

# The C base class: socket.socket goes through a proxy here.
import _socket
import hashlib
import select
import signal
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from tests.peers.host import PATIENCE_SECONDS, Host, received_until_end
from tests.peers.routes import outcome
from tests.peers.targets import SinkServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.dante import Dante
    from tests.peers.routes import SameAsPlain
    from tests.peers.targets import EchoServer

SIZE = 32 << 20


@pytest.fixture
def tunnel(through_dante: Dante, echo: EchoServer) -> Iterator[socket.socket]:
    """Connected to an echo."""
    with socket.create_connection(echo.address, PATIENCE_SECONDS) as connected:
        yield connected


def received(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        assert piece, "the stream has ended"
        data += piece
    return bytes(data)


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self._function = function
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        self._outcome = outcome(self._function)

    def outcome(self) -> Any:
        """What became of it."""
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "the call never returned"
        return self._outcome


@pytest.mark.usefixtures("through_dante")
class TestData:
    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS])
    def test_one_thread_reads_while_another_writes(self, tunnel: socket.socket, timeout: float | None) -> None:
        tunnel.settimeout(timeout)
        data = octets(SIZE)
        writer = Call(lambda: tunnel.sendall(data))
        digest, count = hashlib.sha256(), 0
        while count < SIZE:
            piece = tunnel.recv(65536)
            assert piece
            digest.update(piece)
            count += len(piece)
        assert writer.outcome().failure is None
        assert digest.digest() == hashlib.sha256(data).digest()

    def test_thread_writes_while_another_waits_for_something_to_read(self, tunnel: socket.socket) -> None:
        reader = Call(lambda: received(tunnel, 5))
        tunnel.sendall(b"hello")
        assert reader.outcome().value == b"hello"

    def test_each_sendall_arrives_in_one_piece(self) -> None:
        size = 100_001  # more than a message holds
        with Host(received_until_end) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as shared:

            def write(letter: bytes) -> None:
                for _ in range(10):
                    shared.sendall(letter * size)

            writers = [Call(lambda letter=bytes([65 + number]): write(letter)) for number in range(8)]  # type: ignore[misc]
            assert [writer.outcome().failure for writer in writers] == [None] * 8
            shared.shutdown(socket.SHUT_WR)
            arrived = host.result()
        assert len(arrived) == 8 * 10 * size
        pieces = [arrived[start : start + size] for start in range(0, len(arrived), size)]
        assert all(piece == piece[:1] * size for piece in pieces)

    def test_sends_of_one_thread_keep_their_order_among_others(self) -> None:
        with Host(received_until_end) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as shared:

            def write(letter: int) -> None:
                for number in range(500):
                    shared.sendall(b"%c%03d" % (letter, number))

            writers = [Call(lambda letter=65 + number: write(letter)) for number in range(4)]  # type: ignore[misc]
            assert [writer.outcome().failure for writer in writers] == [None] * 4
            shared.shutdown(socket.SHUT_WR)
            arrived = host.result()
        sent = [arrived[start : start + 4] for start in range(0, len(arrived), 4)]
        for letter in b"ABCD":
            assert [item for item in sent if item[0] == letter] == [b"%c%03d" % (letter, n) for n in range(500)]

    def test_readers_share_the_stream_without_loss(self, tunnel: socket.socket) -> None:
        size = 200_000
        pieces: list[bytes] = []

        def read() -> None:
            while piece := tunnel.recv(4096):
                pieces.append(piece)

        readers = [Call(read) for _ in range(3)]
        tunnel.sendall(octets(size))
        tunnel.shutdown(socket.SHUT_WR)
        assert [reader.outcome().failure for reader in readers] == [None] * 3
        assert sorted(b"".join(pieces)) == sorted(octets(size))


class SlowProxy:
    """Accepts at once, and says nothing until it is told to: then it passes everything on to the true proxy."""

    def __init__(self, proxy: Dante) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self._proxy = proxy

    def __call__(self, client: socket.socket) -> None:
        self.reached.set()
        assert self.go.wait(PATIENCE_SECONDS)
        server = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        server.settimeout(PATIENCE_SECONDS)
        server.connect(("127.0.0.1", self._proxy.port))
        way_back = threading.Thread(target=self._carry, args=(server, client))
        way_back.start()
        self._carry(client, server)
        way_back.join()
        server.close()

    @staticmethod
    def _carry(source: Any, sink: Any) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


class TestWhileConnecting:
    @pytest.fixture
    def slow(self, through_dante: Dante) -> Iterator[tuple[SlowProxy, Host[None]]]:
        script = SlowProxy(through_dante)
        with Host(script) as host:
            yield script, host

    @contextmanager
    def connecting(self, slow: tuple[SlowProxy, Host[None]], echo: EchoServer) -> Iterator[tuple[socket.socket, Call]]:
        script, host = slow
        with socket.socket() as tunnel, gsssocks.installed(gsssocks.Proxy("localhost", host.address[1]), no_proxy=[]):
            tunnel.settimeout(PATIENCE_SECONDS)
            call = Call(lambda: tunnel.connect(echo.address))
            assert script.reached.wait(PATIENCE_SECONDS)
            yield tunnel, call
            script.go.set()

    @pytest.mark.parametrize(
        "wait",
        [
            lambda tunnel: tunnel.recv(5),
            lambda tunnel: select.select([tunnel], [], [], PATIENCE_SECONDS)[0] and tunnel.recv(5),
        ],
        ids=["recv", "select"],
    )
    def test_reader_waits_and_gets_the_targets_octets(
        self,
        slow: tuple[SlowProxy, Host[None]],
        echo: EchoServer,
        wait: Callable[[socket.socket], bytes],
    ) -> None:
        with self.connecting(slow, echo) as (tunnel, call):
            reader = Call(lambda: wait(tunnel))
            slow[0].go.set()
            assert call.outcome().failure is None
            tunnel.sendall(b"hello")
            assert reader.outcome().value == b"hello"

    def test_writer_waits_and_its_octets_reach_the_target(
        self, slow: tuple[SlowProxy, Host[None]], echo: EchoServer
    ) -> None:
        with self.connecting(slow, echo) as (tunnel, call):
            writer = Call(lambda: tunnel.sendall(b"hello"))
            slow[0].go.set()
            assert call.outcome().failure is None
            assert writer.outcome().failure is None
            assert received(tunnel, 5) == b"hello"


class TestEndedByAnotherThread:
    """What a plain socket does, so does a tunnelled one."""

    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
    def test_shutdown_wakes_a_reader(self, same_as_plain: SameAsPlain, echo: EchoServer, how: int) -> None:
        def wake() -> object:
            with socket.create_connection(echo.address, PATIENCE_SECONDS) as connection:
                reader = Call(lambda: connection.recv(1))
                connection.shutdown(how)
                return reader.outcome()

        assert same_as_plain(wake).value.value == b""

    def test_use_after_close(self, same_as_plain: SameAsPlain, echo: EchoServer) -> None:
        def use() -> object:
            connection = socket.create_connection(echo.address, PATIENCE_SECONDS)
            Call(connection.close).outcome()
            return [
                outcome(lambda: connection.recv(1)),
                outcome(lambda: connection.sendall(b"x")),
                outcome(connection.getpeername),
                outcome(lambda: connection.shutdown(socket.SHUT_RDWR)),
                connection.fileno(),
            ]

        assert same_as_plain(use).value[-1] == -1

    def test_close_ends_the_connection_for_the_target(self, same_as_plain: SameAsPlain) -> None:
        with Host(received_until_end) as host:

            def close() -> bytes:
                connection = socket.create_connection(host.address, PATIENCE_SECONDS)
                connection.sendall(b"hello")
                Call(connection.close).outcome()
                return host.result()

            assert same_as_plain(close).value == b"hello"


class AlarmError(Exception):
    """Raised by a signal handler."""


@contextmanager
def alarm_every(seconds: float, handler: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("through_dante")
class TestSignals:
    def test_handler_that_returns_is_not_noticed_by_a_reader(self) -> None:
        interrupted = threading.Event()

        def answer_late(connection: socket.socket) -> None:
            assert interrupted.wait(PATIENCE_SECONDS)
            connection.sendall(b"hello")
            received_until_end(connection)

        with Host(answer_late) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as tunnel:
            alarm = alarm_every(0.01, interrupted.set)
            with alarm:
                assert received(tunnel, 5) == b"hello"

    def test_handler_that_returns_is_not_noticed_in_much_data(self, tunnel: socket.socket) -> None:
        rings: list[None] = []
        data = octets(8 << 20)
        with alarm_every(0.001, lambda: rings.append(None)):
            writer = Call(lambda: tunnel.sendall(data))
            arrived = received(tunnel, len(data))
        assert writer.outcome().failure is None
        assert rings
        assert arrived == data

    def test_handler_that_raises_ends_the_wait_and_loses_nothing(self) -> None:
        interrupted = threading.Event()

        def answer_late(connection: socket.socket) -> None:
            assert interrupted.wait(PATIENCE_SECONDS)
            connection.sendall(b"hello")
            received_until_end(connection)

        def ring() -> None:
            raise AlarmError

        with Host(answer_late) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as tunnel:
            with pytest.raises(AlarmError), alarm_every(0.05, ring):
                tunnel.recv(5)
            interrupted.set()
            assert received(tunnel, 5) == b"hello"

    def test_handler_that_raises_while_sending_leaves_whole_messages(self) -> None:
        # Nobody reads until the sender has been interrupted: so that happens in the middle of its data.
        interrupted = threading.Event()

        def read_late(connection: socket.socket) -> bytes:
            assert interrupted.wait(PATIENCE_SECONDS)
            return received_until_end(connection)

        def ring() -> None:
            raise AlarmError

        with Host(read_late) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as tunnel:
            with pytest.raises(AlarmError), alarm_every(0.3, ring):
                tunnel.sendall(octets(64 << 20))
            interrupted.set()
            tunnel.sendall(b"the end")
            tunnel.shutdown(socket.SHUT_WR)
            arrived = host.result()
        sent = arrived[: -len(b"the end")]
        assert arrived.endswith(b"the end")
        assert sent == octets(len(sent))

    def test_handler_that_returns_is_not_noticed_by_a_writer(self) -> None:
        size = 4 << 20
        with SinkServer() as sink, socket.create_connection(sink.address, PATIENCE_SECONDS) as tunnel:
            with alarm_every(0.001, lambda: None):
                tunnel.sendall(octets(size))
            tunnel.shutdown(socket.SHUT_WR)
            assert received_until_end(tunnel).decode() == hashlib.sha256(octets(size)).hexdigest()
