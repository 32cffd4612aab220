"""Subclasses of the application: their methods are called when the application calls them, as those of a plain socket,
whose own are written in C and call none of them."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks import GSSSocket
from gsssocks.testing import plain_pair, tunnelled_pair
from tests.peers.datagrams import UDPEcho
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.dante import Dante
    from tests.peers.routes import SameAsPlain
    from tests.peers.targets import EchoServer


@pytest.fixture
def udp_echo() -> Iterator[UDPEcho]:
    with UDPEcho() as started:
        yield started


both = pytest.mark.parametrize("pair", [plain_pair, tunnelled_pair], ids=["plain", "tunnelled"])


class Detour(socket.socket):
    """Receives and sends by the methods that are not asked for."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return self.recvfrom(bufsize, flags)[0]

    def send(self, data: Any, flags: int = 0, /) -> int:
        return self.sendmsg([data], [], flags)


class Noting(socket.socket):
    """Knows which of its methods have been called."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.called: list[str] = []


def _noting(name: str) -> Callable[..., Any]:
    def method(self: Noting, *arguments: Any, **options: Any) -> Any:
        self.called.append(name)
        return getattr(super(Noting, self), name)(*arguments, **options)

    return method


METHODS = [
    *("send", "sendall", "sendto", "sendmsg", "recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg"),
    *("recvmsg_into", "getpeername", "getsockname", "fileno", "shutdown"),
]
for _name in METHODS:
    setattr(Noting, _name, _noting(_name))

CALLS: dict[str, Callable[[socket.socket], object]] = {
    "send": lambda sock: sock.send(b"x"),
    "sendall": lambda sock: sock.sendall(b"x"),
    "sendto": lambda sock: sock.sendto(b"x", ("127.0.0.1", 9)),
    "sendmsg": lambda sock: sock.sendmsg([b"x"]),
    "recv": lambda sock: sock.recv(1),
    "recv nothing": lambda sock: sock.recv(0),
    "recv_into": lambda sock: sock.recv_into(bytearray(1)),
    "recvfrom": lambda sock: sock.recvfrom(1),
    "recvfrom nothing": lambda sock: sock.recvfrom(0),
    "recvfrom_into": lambda sock: sock.recvfrom_into(bytearray(1)),
    "recvmsg": lambda sock: sock.recvmsg(1),
    "recvmsg_into": lambda sock: sock.recvmsg_into([bytearray(1)]),
    "peek": lambda sock: sock.recv(1, socket.MSG_PEEK),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockname": lambda sock: sock.getsockname(),
    "shutdown": lambda sock: sock.shutdown(socket.SHUT_WR),
    "connect": lambda sock: sock.connect_ex(("127.0.0.1", 9)),
    "dup": lambda sock: sock.dup().close(),
}


@both
def test_methods_that_call_others_do_not_go_in_circles(pair: Callable[..., Any]) -> None:
    sock, peer = pair(kind=Detour)
    with sock, peer:
        sock.settimeout(PATIENCE_SECONDS)
        peer.send(b"hello")
        assert sock.recv(5) == b"hello"
        assert sock.send(b"hello") == 5
        assert peer.read_exactly(5) == b"hello"


@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_methods_of_a_plain_socket_and_no_others_are_called(call: Callable[[socket.socket], object]) -> None:
    def called(pair: Callable[..., Any]) -> list[str]:
        sock, peer = pair(kind=Noting)
        with sock, peer:
            sock.settimeout(PATIENCE_SECONDS)
            peer.send(b"hello")
            sock.called.clear()
            call(sock)
            return [*sock.called]

    assert called(tunnelled_pair) == called(plain_pair)


def test_sending_a_file_calls_no_other_method(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"hello")

    def called(pair: Callable[..., Any]) -> bool:
        sock, peer = pair(kind=Noting)
        with sock, peer, path.open("rb") as file:
            assert sock.sendfile(file) == 5
            return "send" in sock.called

    assert called(tunnelled_pair) is called(plain_pair) is False


def test_connect_by_connect_ex(same_as_plain: SameAsPlain, echo: EchoServer) -> None:
    class ByCode(socket.socket):
        def connect(self, address: Any) -> None:
            code = self.connect_ex(address)
            if code:
                raise OSError(code, os.strerror(code))

    def twice() -> None:
        with ByCode() as sock:
            sock.connect(echo.address)
            sock.connect(echo.address)

    assert same_as_plain(twice).failure is not None


def test_connect_ex_by_connect(same_as_plain: SameAsPlain, echo: EchoServer) -> None:
    class ByError(socket.socket):
        def connect_ex(self, address: Any) -> int:
            try:
                self.connect(address)
            except OSError as error:
                return error.errno or -1
            return 0

    def twice() -> list[int]:
        with ByError() as sock:
            return [sock.connect_ex(echo.address), sock.connect_ex(echo.address)]

    assert same_as_plain(twice).value[0] == 0


class Namesake(socket.socket):
    """Uses names for itself that are not a socket's."""

    _tunnel = _proxy = _share = _received = _destination = _taken = "mine"

    def _send(self, data: bytes) -> None:
        self.sendall(data)


@pytest.mark.usefixtures("through_dante")
class TestNamesOfItsOwn:
    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
    def test_are_the_applications(self, echo: EchoServer, udp_echo: UDPEcho, kind: socket.SocketKind) -> None:
        address = echo.address if kind == socket.SOCK_STREAM else udp_echo.address
        with Namesake(socket.AF_INET, kind) as sock, socket.create_connection(echo.address):
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect(address)
            sock._send(b"hello")
            assert sock.recvfrom(100)[0] == b"hello"
            assert sock.getpeername() == address


class Equal(socket.socket):  # noqa: PLW1641 - that is what it is about
    """Has an equality of its own, and so no hash."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)


class TestWithoutAHash:
    @both
    def test_is_detached(self, pair: Callable[..., Any]) -> None:
        sock, peer = pair(kind=Equal)
        with peer:
            os.close(sock.detach())

    @both
    def test_is_duplicated(self, pair: Callable[..., Any]) -> None:
        sock, peer = pair(kind=Equal)
        with sock, peer, sock.dup() as duplicate:
            duplicate.sendall(b"hello")
            assert peer.read_exactly(5) == b"hello"

    @pytest.mark.usefixtures("in_the_realm")
    def test_has_a_proxy_of_its_own(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        class Chosen(Equal, GSSSocket):
            pass

        with Chosen(proxy=dante_confidentiality.url()) as sock, Chosen(proxy="socks5h://192.0.2.1"):
            sock.connect(echo.address)
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"


class TestClassThatIsToldOfItsSubclasses:
    def test_is_not_told_of_the_tunnelled_one(self, same_as_plain: SameAsPlain, echo: EchoServer) -> None:
        told: list[type] = []

        class Tagged(socket.socket):
            def __init_subclass__(cls, *, tag: str) -> None:
                told.append(cls)

        def connected() -> object:
            with Tagged() as sock:
                sock.connect(echo.address)
                return type(sock).__name__, isinstance(sock, Tagged), list(told)

        assert same_as_plain(connected).value == ("Tagged", True, [])

    @pytest.mark.usefixtures("through_dante")
    def test_hears_of_a_subclass_of_the_tunnelled_one(self, echo: EchoServer) -> None:
        told: list[str] = []

        class Tagged(socket.socket):
            def __init_subclass__(cls, *, tag: str) -> None:
                told.append(tag)

        with Tagged() as sock:
            sock.connect(echo.address)
            type("Below", (type(sock),), {}, tag="below")
        assert told == ["below"]


@pytest.mark.usefixtures("in_the_realm")
class TestDatagrams:
    @pytest.mark.parametrize("name", ["send", "sendall", "sendmsg"])
    def test_methods_of_a_plain_socket_and_no_others_are_called(
        self, dante_confidentiality: Dante, udp_echo: UDPEcho, name: str
    ) -> None:
        def called() -> list[str]:
            with Noting(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_SECONDS)
                sock.connect(udp_echo.address)
                sock.called.clear()
                getattr(sock, name)([b"hello"] if name == "sendmsg" else b"hello")
                assert sock.recv(100) == b"hello"
                return sock.called

        plain = called()
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            assert called() == plain == [name, "recv"]

    def test_connect_by_connect_ex(self, dante_confidentiality: Dante, udp_echo: UDPEcho) -> None:
        class ByError(socket.socket):
            def connect_ex(self, address: Any) -> int:
                self.connect(address)
                return 0

            def connect(self, address: Any) -> None:
                assert super().connect_ex(address) == 0

        installed = gsssocks.installed(dante_confidentiality.url(), no_proxy=[])
        with installed, ByError(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(2):
                sock.connect(udp_echo.address)
            assert sock.getpeername() == udp_echo.address
