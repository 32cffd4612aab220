"""select(), poll(), epoll and selectors tell the truth about a tunnelled socket, at every moment."""

from __future__ import annotations

import select
import selectors
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gsssocks
from gsssocks.testing import tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, await_arrival, fill, read_until_writable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import TunnelPeer

    Pair = tuple[socket.socket, TunnelPeer]
    Ready = Callable[[socket.socket, float], bool]

MESSAGE = b"a whole message"
LONG = b"a" * 40_000, b"b" * 40_000
"""Two messages that are more than is looked at in one go."""


# Ways to ask


def selected(sock: socket.socket, seconds: float = 0) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def polled(sock: socket.socket, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def epolled(sock: socket.socket, seconds: float = 0) -> bool:
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN)
        return bool(epoll.poll(seconds))


def edge_polled(sock: socket.socket, seconds: float = 0) -> bool:
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        return bool(epoll.poll(seconds))


def by_selector(sock: socket.socket, seconds: float = 0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(sock, selectors.EVENT_READ)
        return bool(selector.select(seconds))


WAYS = [selected, polled, epolled, edge_polled, by_selector]
every_way = pytest.mark.parametrize("readable", WAYS, ids=lambda way: way.__name__)


def writable(sock: socket.socket, seconds: float = 0) -> bool:
    return bool(select.select([], [sock], [], seconds)[1])


def found_nothing(sock: socket.socket) -> bool:
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    return False


# Reading


def arrive(pair: Pair, *messages: bytes) -> None:
    """The messages have left the peer and arrived."""
    sock, peer = pair
    for message in messages:
        peer.write(message)
    peer.release()
    await_arrival(sock, peer)


@every_way
def test_not_readable_before_anything_has_arrived(pair: Pair, readable: Ready) -> None:
    assert not readable(pair[0], 0)


@every_way
def test_readable_when_a_message_has_arrived(pair: Pair, readable: Ready) -> None:
    arrive(pair, MESSAGE)
    assert readable(pair[0], 0)


@every_way
def test_readable_until_the_last_octet_of_a_message_is_taken(pair: Pair, readable: Ready) -> None:
    arrive(pair, MESSAGE)
    for left in range(len(MESSAGE) - 1, 0, -1):
        pair[0].recv(1)
        assert readable(pair[0], 0), f"{left} octets are left"
    pair[0].recv(1)
    assert not readable(pair[0], 0)


@every_way
def test_readable_until_the_last_of_several_messages_is_taken(pair: Pair, readable: Ready) -> None:
    arrive(pair, b"one", b"two", b"", b"three")
    taken = b""
    while taken != b"onetwothree":
        assert readable(pair[0], 0), f"only {taken!r} has been taken"
        taken += pair[0].recv(2)
    assert not readable(pair[0], 0)


@every_way
def test_not_readable_when_several_messages_were_taken_at_once(pair: Pair, readable: Ready) -> None:
    arrive(pair, b"one", b"two", b"three")
    assert pair[0].recv(100) == b"onetwothree"
    assert not readable(pair[0], 0)


@every_way
def test_readable_until_the_last_of_long_messages_is_taken(pair: Pair, readable: Ready) -> None:
    arrive(pair, *LONG)
    taken = b""
    while taken != b"".join(LONG):
        assert readable(pair[0], 0), f"only {len(taken)} octets have been taken"
        taken += pair[0].recv(100_000)
    assert not readable(pair[0], 0)


@every_way
@pytest.mark.parametrize("flags", [0, socket.MSG_DONTWAIT, socket.MSG_PEEK])
def test_not_readable_when_a_receive_has_found_the_beginning_of_a_message(
    pair: Pair, readable: Ready, flags: int
) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    while peer.held > 1:
        peer.release(1)
        await_arrival(sock, peer)
        with pytest.raises(BlockingIOError):
            sock.recv(1, flags)
        assert not readable(sock, 0), f"{peer.held} octets are missing"


@every_way
def test_readable_when_the_last_octet_of_a_message_has_arrived(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    while peer.held > 1:
        peer.release(1)
        await_arrival(sock, peer)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    peer.release()
    await_arrival(sock, peer)
    assert readable(sock, 0)


@every_way
def test_readable_with_data_in_front_of_the_beginning_of_a_message(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.write(b"one")
    whole = peer.held
    peer.write(b"two")
    peer.release(whole + 2)
    await_arrival(sock, peer)
    sock.recv(2)
    assert readable(sock, 0)


@every_way
def test_not_readable_when_a_receive_has_found_an_empty_message(pair: Pair, readable: Ready) -> None:
    arrive(pair, b"", b"")
    with pytest.raises(BlockingIOError):
        pair[0].recv(1)
    assert not readable(pair[0], 0)


@every_way
def test_readable_after_a_look(pair: Pair, readable: Ready) -> None:
    arrive(pair, b"one", b"two")
    assert pair[0].recv(100, socket.MSG_PEEK) == b"onetwo"
    assert readable(pair[0], 0)


def test_each_look_at_long_messages_finds_more_and_takes_nothing(pair: Pair) -> None:
    arrive(pair, *LONG)
    assert pair[0].recv(100_000, socket.MSG_PEEK) == LONG[0]
    assert pair[0].recv(100_000, socket.MSG_PEEK) == b"".join(LONG)
    assert pair[0].recv(100_000) == b"".join(LONG)
    assert not polled(pair[0])


@every_way
def test_readable_after_a_receive_of_nothing(pair: Pair, readable: Ready) -> None:
    arrive(pair, MESSAGE)
    assert pair[0].recv(0) == b""
    assert readable(pair[0], 0)


@every_way
def test_duplicate_is_readable_when_the_original_is(pair: Pair, readable: Ready) -> None:
    arrive(pair, MESSAGE)
    pair[0].recv(3)
    with pair[0].dup() as duplicate:
        assert readable(duplicate, 0)
        duplicate.recv(100)
        assert not readable(pair[0], 0)


@every_way
def test_waiting_thread_is_woken_by_the_last_octet_of_a_message(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    peer.release(peer.held - 1)
    await_arrival(sock, peer)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(readable(sock, PATIENCE_SECONDS)))
    waiting.start()
    peer.release()
    waiting.join()
    assert answers == [True]
    assert sock.recv(100) == MESSAGE


# The end


@every_way
def test_readable_at_the_end_for_ever(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.finish()
    for _ in range(3):
        assert readable(sock, PATIENCE_SECONDS)
        assert sock.recv(100) == b""


@every_way
def test_readable_for_the_data_and_then_for_the_end(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.send(MESSAGE)
    peer.finish()
    taken = b""
    while taken != MESSAGE:
        assert readable(sock, PATIENCE_SECONDS)
        taken += sock.recv(4)
    assert readable(sock, PATIENCE_SECONDS)
    assert sock.recv(4) == b""


@every_way
def test_readable_where_the_connection_was_cut_inside_a_message(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    peer.release(7)
    peer.finish()
    for _ in range(3):
        assert readable(sock, PATIENCE_SECONDS)
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


@every_way
def test_readable_where_a_message_was_damaged(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    message = bytearray(peer.message(MESSAGE))
    message[-1] ^= 1
    peer.inject(bytes(message))
    peer.release()
    for _ in range(3):
        assert readable(sock, PATIENCE_SECONDS)
        with pytest.raises(gsssocks.ProtectionError):
            sock.recv(100)


@every_way
def test_readable_where_the_connection_was_reset(pair: Pair, readable: Ready) -> None:
    sock, peer = pair
    peer.reset()
    assert readable(sock, PATIENCE_SECONDS)
    with pytest.raises(ConnectionResetError):
        sock.recv(100)


@every_way
def test_readable_after_shutdown_of_reading(pair: Pair, readable: Ready) -> None:
    sock, _ = pair
    sock.shutdown(socket.SHUT_RD)
    assert readable(sock, 0)
    assert sock.recv(100) == b""


# Edges


def edges(epoll: select.epoll) -> bool:
    return bool(epoll.poll(0))


@pytest.fixture
def epoll(pair: Pair) -> Iterator[select.epoll]:
    """Edge-triggered, for reading."""
    with select.epoll() as epoll:
        epoll.register(pair[0], select.EPOLLIN | select.EPOLLET)
        yield epoll


def test_edge_for_each_message_that_arrives_after_a_receive_found_nothing(pair: Pair, epoll: select.epoll) -> None:
    for _ in range(5):
        arrive(pair, MESSAGE)
        assert edges(epoll)
        assert pair[0].recv(100) == MESSAGE
        with pytest.raises(BlockingIOError):
            pair[0].recv(100)
        assert not edges(epoll)


def test_edge_for_the_last_octet_of_a_message(pair: Pair, epoll: select.epoll) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    while peer.held > 1:
        peer.release(1)
        await_arrival(sock, peer)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    edges(epoll)
    peer.release()
    await_arrival(sock, peer)
    assert edges(epoll)


def test_edge_for_the_end(pair: Pair, epoll: select.epoll) -> None:
    arrive(pair, MESSAGE)
    sock, peer = pair
    sock.recv(100)
    with pytest.raises(BlockingIOError):
        sock.recv(100)
    edges(epoll)
    peer.finish()
    assert epoll.poll(PATIENCE_SECONDS)
    assert sock.recv(100) == b""


def test_edge_for_room_after_a_send_found_none(tight: Pair) -> None:
    sock, peer = tight
    data = bytes(range(256)) * 100
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLOUT | select.EPOLLET)
        taken, received = fill(sock, data), b""
        edges(epoll)
        while taken < len(data):
            received += read_until_writable(sock, peer)
            assert edges(epoll), f"{taken} octets were taken, {len(received)} received, and no edge"
            taken += fill(sock, data[taken:])
    received += peer.read_exactly(len(data) - len(received))
    assert received == data


# Writing


def test_writable_when_there_is_room(pair: Pair) -> None:
    assert writable(pair[0])


def test_not_writable_when_there_is_none(tight: Pair) -> None:
    fill(tight[0], bytes(100_000))
    assert not writable(tight[0])


def test_writable_when_the_peer_has_read(tight: Pair) -> None:
    sock, peer = tight
    fill(sock, bytes(100_000))
    read_until_writable(sock, peer)
    assert writable(sock)


def test_what_goes_on_being_writable_takes_octets(tight: Pair) -> None:
    sock, peer = tight
    data = bytes(range(256)) * 400
    taken, received = 0, b""
    while taken < len(data):
        tries = 0
        while taken < len(data) and writable(sock):
            count = fill(sock, data[taken:])
            taken += count
            tries = 0 if count else tries + 1
            assert tries < 1000, "writable again and again, and nothing is taken"
        received += read_until_writable(sock, peer)
    assert received + peer.read_exactly(len(data) - len(received)) == data


# A program that waits for readability, and receives


def test_program_is_woken_no_more_often_than_octets_arrive(pair: Pair) -> None:
    sock, peer = pair
    peer.write(MESSAGE)
    peer.write(MESSAGE)
    octets, received, in_vain = peer.held, b"", 0
    while len(received) < 2 * len(MESSAGE):
        if peer.held:
            peer.release(1)
            await_arrival(sock, peer)
        while polled(sock):
            try:
                received += sock.recv(4)
            except BlockingIOError:
                in_vain += 1
                assert in_vain <= octets
    assert received == 2 * MESSAGE


# Any interleaving

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 40)),
        st.tuples(st.just("release"), st.integers(1, 80)),
        st.tuples(st.just("receive"), st.integers(1, 60)),
        st.tuples(st.just("look"), st.integers(1, 60)),
    ),
    max_size=60,
)


class Model:
    """What has been written by the peer, and what a stream socket would have."""

    def __init__(self) -> None:
        self.written = b""
        self.taken = 0
        self.nothing_found = True
        """Whether nothing has arrived since a receive found nothing: the descriptor must not be readable."""

    def waiting(self, peer: TunnelPeer) -> bytes:
        return self.written[self.taken : peer.delivered]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(steps=STEPS, way=st.sampled_from(WAYS))
def test_any_interleaving(steps: list[tuple[str, int]], way: Ready) -> None:
    sock, peer = tunnelled_pair(max_plaintext=15)
    sock.setblocking(False)
    model = Model()
    with closing(sock), closing(peer):
        for step, count in steps:
            if step == "write":
                data = bytes((len(model.written) + i) % 256 for i in range(count))
                model.written += data
                peer.write(data)
            elif step == "release":
                model.nothing_found &= not peer.release(count)
                await_arrival(sock, peer)
            else:
                receive(sock, peer, model, count, socket.MSG_PEEK if step == "look" else 0)
            if model.waiting(peer):
                assert way(sock, 0)
            elif model.nothing_found:
                assert not way(sock, 0)
        peer.reset()


def receive(sock: socket.socket, peer: TunnelPeer, model: Model, count: int, flags: int) -> None:
    waiting = model.waiting(peer)
    try:
        data = sock.recv(count, flags)
    except BlockingIOError:
        assert not waiting
        model.nothing_found = True
        return
    assert data
    assert waiting[:count].startswith(data)
    if not flags:
        model.taken += len(data)
