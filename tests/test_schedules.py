"""Random schedules: whatever is done to a tunnelled socket, in whatever order and cut wherever, it does what a plain
one does."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks.testing import PlainPeer, check_stream, plain_pair, tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS

if TYPE_CHECKING:
    from random import Random

    from gsssocks.testing import Realm, TunnelPeer
    from tests.peers.dante import Dante

pytestmark = pytest.mark.default_python_only

PROTECTIONS = ("integrity", "confidentiality", "selective")


# Schedules from a seed


def some_buffers(choices: Random) -> int | None:
    """The system's size, the smallest there is, or one in between: then a message leaves, and arrives, in parts."""
    return choices.choice((None, None, 1, choices.randint(1, 20_000)))


def some_host(choices: Random) -> str:
    """One of many, since a port stays taken for a minute after its connection has ended, and each pair takes some."""
    return f"127.0.0.{choices.randint(1, 254)}"


def plain(choices: Random) -> tuple[socket.socket, PlainPeer]:
    return plain_pair(host=some_host(choices), buffers=some_buffers(choices))


def long_messages(choices: Random) -> tuple[socket.socket, TunnelPeer]:
    return tunnelled_pair(
        host=some_host(choices),
        protection=choices.choice(PROTECTIONS),
        max_plaintext=choices.choice((None, None, choices.randint(500, 5000))),
        buffers=some_buffers(choices),
    )


def short_messages(choices: Random) -> tuple[socket.socket, TunnelPeer]:
    return tunnelled_pair(
        host=some_host(choices),
        protection=choices.choice(PROTECTIONS),
        max_plaintext=choices.randint(1, 20),
        buffers=some_buffers(choices),
    )


def test_plain_socket_passes_the_check() -> None:
    check_stream(plain, schedules=1000)


@pytest.mark.parametrize("seed", range(6))
def test_long_messages(seed: int) -> None:
    check_stream(long_messages, seed=seed, schedules=1000)


@pytest.mark.parametrize("seed", range(4))
def test_short_messages(seed: int) -> None:
    check_stream(short_messages, seed=seed, schedules=1000, max_data=300)


def test_tunnel_through_dante(realm: Realm, dante: Dante) -> None:
    url = dante.url(protection=dante.enctype)

    def pair(_: Random) -> tuple[socket.socket, PlainPeer]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = gsssocks.create_connection(listener.getsockname(), PATIENCE_SECONDS, proxy=url)
            return sock, PlainPeer(listener.accept()[0], direct=False)

    with realm.activate():
        check_stream(pair, schedules=200)


@pytest.mark.soak
@pytest.mark.parametrize("pair", [long_messages, short_messages])
def test_for_hours(pair: Callable[[Random], tuple[socket.socket, TunnelPeer]]) -> None:
    for seed in range(100, 200):
        check_stream(pair, seed=seed, schedules=1000, max_data=300 if pair is short_messages else 200_000)


# The check itself: a socket with a fault does not pass


class TakesOneTooMany(socket.socket):
    """Reads ahead: what select() says is no longer true."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ahead = b""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        if flags or not bufsize:
            return super().recv(bufsize, flags)
        self._ahead = self._ahead or super().recv(bufsize + 1)
        data, self._ahead = self._ahead[:bufsize], self._ahead[bufsize:]
        return data


class LosesTheLast(socket.socket):
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        return data[:-1] if len(data) > 1 else data


class PeeksForGood(socket.socket):
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        return super().recv(bufsize, flags & ~socket.MSG_PEEK)


class FindsNothingFirst(socket.socket):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._calls = 0

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        self._calls += 1
        if self._calls % 3 == 0:
            raise BlockingIOError(errno.EAGAIN, "nothing yet")
        return super().recv(bufsize, flags)


class EndsEarly(socket.socket):
    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        try:
            return super().recv(bufsize, flags)
        except BlockingIOError:
            return b""


class TellsOneTooFew(socket.socket):
    def send(self, data: Any, flags: int = 0, /) -> int:
        return max(super().send(data, flags) - 1, 0)


class TellsOneTooMany(socket.socket):
    def send(self, data: Any, flags: int = 0, /) -> int:
        count = super().send(data[:-1], flags) if len(data) > 1 else super().send(data, flags)
        return count + 1 if len(data) > 1 else count


class SendsTwice(socket.socket):
    def sendmsg(self, *arguments: Any) -> int:
        super().sendmsg(*arguments)
        return super().sendmsg(*arguments)


class NeverFull(socket.socket):
    def send(self, data: Any, flags: int = 0, /) -> int:
        try:
            return super().send(data, flags)
        except BlockingIOError:
            return len(data)


class SendsAfterwards(socket.socket):
    def send(self, data: Any, flags: int = 0, /) -> int:
        try:
            return super().send(data, flags)
        except BrokenPipeError:
            return len(data)


@pytest.mark.parametrize(
    "kind",
    [
        TakesOneTooMany,
        LosesTheLast,
        PeeksForGood,
        FindsNothingFirst,
        EndsEarly,
        TellsOneTooFew,
        TellsOneTooMany,
        SendsTwice,
        NeverFull,
        SendsAfterwards,
    ],
)
def test_faulty_socket_does_not_pass_the_check(kind: type[socket.socket]) -> None:
    with pytest.raises(AssertionError, match="To play it again"):
        check_stream(lambda choices: plain_pair(buffers=some_buffers(choices), kind=kind), schedules=300)


def test_failed_schedule_can_be_played_again() -> None:
    def faulty(_: Random) -> tuple[socket.socket, PlainPeer]:
        return plain_pair(kind=LosesTheLast)

    with pytest.raises(AssertionError) as first:
        check_stream(faulty, seed=7, schedules=300)
    number = int(str(first.value).partition("first=")[2].partition(",")[0])
    with pytest.raises(AssertionError) as again:
        check_stream(faulty, seed=7, first=number, schedules=1)
    assert str(again.value) == str(first.value)


class CutsAnEnd(socket.socket):
    """Takes the end of the connection inside a message for the end of the stream."""


def _or(end: object, name: str) -> Callable[..., Any]:
    def receive(self: CutsAnEnd, *arguments: Any) -> Any:
        try:
            return getattr(super(CutsAnEnd, self), name)(*arguments)
        except ConnectionResetError:
            return end

    return receive


for method, end in {
    "recv": b"",
    "recv_into": 0,
    "recvfrom": (b"", None),
    "recvfrom_into": (0, None),
    "recvmsg": (b"", [], 0, None),
    "recvmsg_into": (0, [], 0, None),
}.items():
    setattr(CutsAnEnd, method, _or(end, method))


def test_cut_that_passes_for_an_end_does_not_pass_the_check() -> None:
    with pytest.raises(AssertionError, match="a cut inside a message passed for the end"):
        check_stream(lambda _: tunnelled_pair(kind=CutsAnEnd), schedules=300)
