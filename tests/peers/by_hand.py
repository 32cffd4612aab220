"""A client of the embedded proxy with nothing of gsssocks in it, and what tests of the proxy ask again and again."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import gssapi

import gsssocks
from gsssocks.server import ProxyServer, Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 20.0
RESET = struct.pack("ii", 1, 0)  # struct linger: close() sends RST
FLAGS = (
    gssapi.RequirementFlag.mutual_authentication
    | gssapi.RequirementFlag.integrity
    | gssapi.RequirementFlag.confidentiality
    | gssapi.RequirementFlag.replay_detection
)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {LIMIT} s"
        time.sleep(0.005)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def server_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gsssocks")]


@contextmanager
def serving(**options: object) -> Iterator[ProxyServer]:
    with ProxyServer(**options) as proxy:  # type: ignore[arg-type]  # each test names what it sets
        yield proxy


def both_families() -> int:
    """The descriptor of a socket that listens for IPv6 and for IPv4, as systemd makes them."""
    return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True).detach()


def through(proxy: ProxyServer, target: tuple[str, int], **options: object) -> gsssocks.GSSSocket:
    return gsssocks.create_connection(target, LIMIT, proxy=proxy.url(**options))


def last_session(proxy: ProxyServer) -> Session:
    """The newest session, when it has ended."""
    until(lambda: bool(proxy.sessions))
    session = proxy.sessions[-1]
    assert session.ended.wait(LIMIT)
    return session


def receive_all(sock: socket.socket, into: bytearray) -> None:
    """Up to the end of the stream; what came before a reset is in `into` too."""
    while piece := sock.recv(65536):
        into += piece


def received(sock: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    data = bytearray()
    receive_all(sock, data)
    return bytes(data)


class Target:
    """A target that does what the test says, one connection at a time."""

    def __init__(self, *, backlog: int = 16) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self._listener.settimeout(LIMIT)
        self.address: tuple[str, int] = self._listener.getsockname()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.settimeout(LIMIT)
        return connection


class SlowHosts(dict[str, str]):
    """Whoever asks for a name waits until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = threading.Event(), threading.Event()

    def get(self, _name: str, default: str) -> str:  # type: ignore[override]
        self.asked.set()
        self.answer.wait(LIMIT)
        return default


class ByHand:
    """RFC 1961 by hand: a client with nothing of gsssocks in it, so that it can do anything.

    Args:
        budget: octets to send in all; behind the last of them it sends no more and says so by `Exhausted`.
        sequence: whether messages must arrive in order; not so for datagrams.
    """

    def __init__(self, proxy: ProxyServer, *, budget: int | None = None, sequence: bool = True) -> None:
        host, port = proxy.address
        self.stream = socket.create_connection(("127.0.0.1" if host == "::" else host, port), LIMIT)
        self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0
        self._budget = budget
        name = gssapi.Name("socks@localhost", gssapi.NameType.hostbased_service)
        flags = FLAGS | gssapi.RequirementFlag.out_of_sequence_detection if sequence else FLAGS
        self.context = gssapi.SecurityContext(name=name, usage="initiate", flags=flags)

    def __enter__(self) -> ByHand:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def greet(self) -> None:
        self.send(b"\x05\x01\x01")
        assert self.receive(2) == b"\x05\x01"

    def authenticate(self) -> None:
        self.greet()
        self.send_message(1, self.context.step())
        self.context.step(self.receive_message(1))
        assert self.context.complete

    def agree(self, level: int = 2) -> None:
        self.authenticate()
        self.send_message(2, self.wrap(bytes([level]), encrypt=False))
        assert self.unwrap(self.receive_message(2)) == bytes([level])

    def ask(self, request: bytes, level: int = 2) -> int:
        """All steps up to the reply; its code."""
        self.agree(level)
        self.send_data(request, encrypt=level != 1)
        return self.receive_data()[1]

    def connect(self, address: tuple[str, int], level: int = 2) -> None:
        assert self.ask(request_for(address), level) == 0

    def wrap(self, data: bytes, *, encrypt: bool = True) -> bytes:
        return self.context.wrap(data, encrypt).message

    def unwrap(self, token: bytes) -> bytes:
        return self.context.unwrap(token).message

    def send_data(self, data: bytes, *, encrypt: bool = True) -> None:
        self.send_message(3, self.wrap(data, encrypt=encrypt))

    def receive_data(self) -> bytes:
        return self.unwrap(self.receive_message(3))

    def send_message(self, kind: int, token: bytes | None) -> None:
        token = token or b""
        self.send(struct.pack("!BBH", 1, kind, len(token)) + token)

    def receive_message(self, kind: int) -> bytes:
        version, found, length = struct.unpack("!BBH", self.receive(4))
        assert (version, found) == (1, kind)
        return self.receive(length)

    def send(self, data: bytes) -> None:
        part = data if self._budget is None else data[: self._budget - self.sent]
        self.stream.sendall(part)
        self.sent += len(part)
        if self.sent == self._budget:
            raise Exhausted

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.stream.recv(count - len(data))
            assert piece, f"the proxy ended the stream after {data!r}"
            data += piece
        return data

    def ending(self) -> bytes:
        """What else the proxy sends before it ends the stream; it must not be a reset, which loses answers."""
        self.stream.shutdown(socket.SHUT_WR)
        return received(self.stream)


class Exhausted(Exception):  # noqa: N818 - no error
    """The budget is spent."""


def request_for(address: tuple[str, int], command: int = 1) -> bytes:
    return b"\x05" + bytes([command]) + b"\x00\x01" + socket.inet_aton(address[0]) + struct.pack("!H", address[1])
