"""A tunnelled and a plain socket side by side: what becomes of the same call on each."""

from __future__ import annotations

import array
import select
import socket
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import pytest

from gsssocks.testing import plain_pair, tunnelled_pair

if TYPE_CHECKING:
    from types import TracebackType

    from gsssocks.testing import PlainPeer

    Call = Callable[[Any], Any]

__all__ = [
    "PATIENCE_SECONDS",
    "Index",
    "Outcome",
    "Side",
    "SideBySide",
    "await_arrival",
    "every",
    "fill",
    "in_pieces",
    "method",
    "numbers",
    "outcome",
    "poll",
    "read_until_writable",
    "rectangle",
    "room",
]

PATIENCE_SECONDS = 20.0


class Outcome(NamedTuple):
    """What became of a call: for an error, what a program can branch on."""

    value: Any
    error: type[BaseException] | None = None
    errno: int | None = None


def outcome(call: Callable[[], Any]) -> Outcome:
    """What became of a call."""
    try:
        return Outcome(call())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return Outcome(None, type(error), getattr(error, "errno", None))


def poll(sock: socket.socket, events: int, patience: float = 0) -> int:
    """Which of the events poll(2) reports; errors and hang-ups come unasked."""
    waiting = select.poll()
    waiting.register(sock, events)
    return sum(event for _, event in waiting.poll(patience * 1000))


def await_arrival(sock: socket.socket, peer: PlainPeer) -> None:
    """Waits until all that has left the peer is in the kernel's buffer of the socket."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not peer.arrived(sock):
        assert time.monotonic() < deadline, "what the peer has sent does not arrive"


def read_until_writable(sock: socket.socket, peer: PlainPeer) -> bytes:
    """The peer reads until there is room to send: what it has read makes room for more to arrive, and so on."""
    read = peer.read()
    while not poll(sock, select.POLLOUT):
        assert any(select.select([peer], [sock], [], PATIENCE_SECONDS)), (
            "everything has been read, and there is no room"
        )
        read += peer.read()
    return read


class Side(NamedTuple):
    """One of the two pairs."""

    sock: socket.socket
    peer: PlainPeer


class SideBySide:
    """A plain and a tunnelled pair, to which the same is done.

    Args:
        options: of the tunnelled pair.
    """

    def __init__(self, **options: Any) -> None:
        self.plain = Side(*plain_pair())
        self.tunnelled = Side(*tunnelled_pair(**options))
        self.both = (self.plain, self.tunnelled)

    def __enter__(self) -> SideBySide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for side in self.both:
            side.sock.close()
            side.peer.close()

    def outcomes(self, call: Callable[[socket.socket], Any]) -> tuple[Outcome, Outcome]:
        """What becomes of the call on the plain and on the tunnelled socket."""
        return outcome(lambda: call(self.plain.sock)), outcome(lambda: call(self.tunnelled.sock))

    def same(self, call: Callable[[socket.socket], Any]) -> Outcome:
        """What becomes of the call on either: the test fails if that is not the same."""
        plain, tunnelled = self.outcomes(call)
        assert tunnelled == plain, f"plain: {plain}, tunnelled: {tunnelled}"
        return plain

    def peers_send(self, data: bytes) -> None:
        """Both peers send `data`; it has arrived then."""
        for side in self.both:
            side.peer.send(data)
        self.await_arrival()

    def await_arrival(self) -> None:
        """Waits until all that has left the peers is in the kernel's buffer of the sockets."""
        for side in self.both:
            await_arrival(side.sock, side.peer)

    def await_events(self, events: int) -> None:
        """Waits until both sockets report at least one of the events, or an error or a hang-up."""
        for side in self.both:
            assert poll(side.sock, events, PATIENCE_SECONDS), "what was to happen does not"


# Calls and their arguments


def every(**cases: Any) -> pytest.MarkDecorator:
    """A test for each of the calls."""
    return pytest.mark.parametrize("call", list(cases.values()), ids=[name.replace("_", " ") for name in cases])


def method(name: str, *arguments: Any, **options: Any) -> Call:
    """A call of a socket's method."""
    return lambda sock: getattr(sock, name)(*arguments, **options)


class Index:
    """What is no integer, but can be used as one."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


def room() -> bytearray:
    """A buffer to receive into."""
    return bytearray(20)


def in_pieces() -> memoryview:
    """A buffer that is not contiguous."""
    return memoryview(bytearray(40))[::2]


def rectangle() -> memoryview:
    """A buffer of two dimensions."""
    return memoryview(bytearray(b"twelve octet")).cast("B", (3, 4))


def numbers(count: int = 3) -> array.array[int]:
    """A buffer whose items are no octets."""
    return array.array("i", range(count))


def fill(sock: socket.socket, data: bytes) -> int:
    """Sends from the front of `data` until no more is taken; returns how much was."""
    taken = 0
    try:
        while taken < len(data):
            taken += sock.send(data[taken:])
    except (BlockingIOError, socket.timeout):
        pass
    return taken
