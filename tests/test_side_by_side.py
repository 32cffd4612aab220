"""A tunnelled and a plain socket go through the same random calls: results, errors and readiness agree at each step."""

from __future__ import annotations

import select
import socket
from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.peers.beside import Outcome, Side, SideBySide, poll

_READING = select.POLLIN | select.POLLPRI
_WRITING = select.POLLOUT | getattr(select, "POLLWRBAND", 0)
_ENDING = getattr(select, "POLLRDHUP", select.POLLIN)


def received_into(sock: socket.socket, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer, 0, flags)])


def received_from_into(sock: socket.socket, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recvfrom_into(buffer, 0, flags)[0]])


def received_in_two(sock: socket.socket, size: int, flags: int) -> bytes:
    buffers = [bytearray(size // 2), bytearray(size - size // 2)]
    count = sock.recvmsg_into(buffers, 0, flags)[0]
    return b"".join(buffers)[:count]


RECEIVERS: dict[str, Callable[[socket.socket, int, int], bytes]] = {
    "recv": lambda sock, size, flags: sock.recv(size, flags),
    "recvfrom": lambda sock, size, flags: sock.recvfrom(size, flags)[0],
    "recvmsg": lambda sock, size, flags: sock.recvmsg(size, 0, flags)[0],
    "recv_into": received_into,
    "recvfrom_into": received_from_into,
    "recvmsg_into": received_in_two,
}
SENDERS: dict[str, Callable[[socket.socket, bytes, int], Any]] = {
    "send": lambda sock, data, flags: sock.send(data, flags),
    "sendall": lambda sock, data, flags: sock.sendall(data, flags),
    "sendto": lambda sock, data, flags: sock.sendto(data, flags, ("127.0.0.1", 9)),
    "sendmsg": lambda sock, data, flags: sock.sendmsg([data[:3], data[3:]], [], flags),
}
RECEIVE_FLAGS = (0, socket.MSG_PEEK, socket.MSG_WAITALL, socket.MSG_DONTWAIT, socket.MSG_OOB, socket.MSG_NOSIGNAL)
SEND_FLAGS = (0, socket.MSG_DONTWAIT, socket.MSG_NOSIGNAL)
QUESTIONS: dict[str, Callable[[socket.socket], Any]] = {
    "timeout": lambda sock: (sock.gettimeout(), sock.getblocking(), sock.timeout),
    "error": lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    "kind": lambda sock: (sock.family, sock.type, sock.proto, sock.fileno() == -1),
    "peer": lambda sock: sock.getpeername()[0],
    "itself": lambda sock: sock.getsockname()[0],
}
MISTAKES: dict[str, Callable[[socket.socket], Any]] = {
    "negative size": lambda sock: sock.recv(-1),
    "read-only buffer": lambda sock: sock.recv_into(b"read-only"),
    "text": lambda sock: sock.send("text"),  # type: ignore[arg-type]
    "no address": lambda sock: sock.sendto(b"data", "address"),
    "no shutdown": lambda sock: sock.shutdown(7),
    "buffer too small": lambda sock: sock.recv_into(bytearray(1), 2),
    "connected": lambda sock: sock.connect(("127.0.0.1", 9)),
    "negative timeout": lambda sock: sock.settimeout(-1),
}

data = st.binary(max_size=300)
some_data = st.binary(min_size=1, max_size=100)


class BesidePlain(RuleBasedStateMachine):
    """What is sent fits the kernel's buffers, so that each step has its result at once, and can be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = SideBySide(max_plaintext=100)
        for side in self.pairs.both:
            side.sock.settimeout(0)
        self.closed = False
        self.shut: set[int] = set()
        self.peer_is_there = self.peer_speaks = True
        self.on_the_way = b""  # data that the peers have not read
        self.held = b""  # data in the beginning of a message; the plain peer sends it when the message is complete
        self.unseen = False  # whether octets have arrived that are no data, and nobody has tried to receive them

    def teardown(self) -> None:
        for side in self.pairs.both:
            if self.peer_is_there:
                side.peer.reset()
            side.sock.close()

    # The peers

    @precondition(lambda self: self.peers_may_send() and not self.held)
    @rule(data=data)
    def peers_send(self, data: bytes) -> None:
        for side in self.pairs.both:
            side.peer.write(data)
            side.peer.release()
        self.unseen |= not data
        self.pairs.await_arrival()

    @precondition(lambda self: self.peers_may_send() and not self.held)
    @rule(data=some_data, cut=st.integers(1, 60))
    def peers_begin_message(self, data: bytes, cut: int) -> None:
        self.pairs.tunnelled.peer.write(data)
        self.pairs.tunnelled.peer.release(min(cut, self.pairs.tunnelled.peer.held - 1))
        self.held = data
        self.unseen = True
        self.pairs.await_arrival()

    @precondition(lambda self: self.peers_may_send() and self.held)
    @rule()
    def peers_complete_message(self) -> None:
        self.pairs.tunnelled.peer.release()
        self.pairs.plain.peer.write(self.held)
        self.pairs.plain.peer.release()
        self.held = b""
        self.pairs.await_arrival()

    def peers_may_send(self) -> bool:
        # A connection that is shut down both ways is reset by what arrives then, whenever that is.
        return self.peer_speaks and not self.closed and self.shut != {socket.SHUT_RD, socket.SHUT_WR}

    @precondition(lambda self: self.peer_speaks and not self.closed and not self.held)
    @rule()
    def peers_finish(self) -> None:
        for side in self.pairs.both:
            side.peer.finish()
        self.peer_speaks = False
        self.pairs.await_events(_ENDING)

    @precondition(lambda self: self.peer_is_there and not self.closed and not self.held)
    @rule(reset=st.booleans())
    def peers_go(self, reset: bool) -> None:
        for side in self.pairs.both:
            side.peer.reset() if reset else side.peer.close()
        self.peer_is_there = self.peer_speaks = False
        self.pairs.await_events(_ENDING)

    @precondition(lambda self: self.peer_is_there and not self.closed)
    @rule()
    def peers_read(self) -> None:
        for side in self.pairs.both:
            assert side.peer.read_exactly(len(self.on_the_way)) == self.on_the_way
        self.on_the_way = b""

    # The sockets

    @rule(method=st.sampled_from(sorted(RECEIVERS)), size=st.integers(0, 400), flags=st.sampled_from(RECEIVE_FLAGS))
    def receive(self, method: str, size: int, flags: int) -> None:
        receive = RECEIVERS[method]
        plain, tunnelled = self.pairs.outcomes(lambda sock: receive(sock, size, flags))
        if plain.value and tunnelled.value and not flags & (socket.MSG_WAITALL | socket.MSG_PEEK):
            tunnelled = Outcome(self.completed(tunnelled.value, plain.value, receive, flags))
        assert tunnelled == plain, f"plain: {plain}, tunnelled: {tunnelled}"
        if not plain.value and size and not flags & socket.MSG_OOB:
            self.unseen = False

    def completed(
        self, data: bytes, wanted: bytes, receive: Callable[[socket.socket, int, int], bytes], flags: int
    ) -> bytes:
        """A stream socket may hand out its data in smaller pieces than another one."""
        while len(data) < len(wanted):
            data += receive(self.pairs.tunnelled.sock, len(wanted) - len(data), flags)
        return data

    @rule(method=st.sampled_from(sorted(SENDERS)), data=data, flags=st.sampled_from(SEND_FLAGS))
    def send(self, method: str, data: bytes, flags: int) -> None:
        result = self.pairs.same(lambda sock: SENDERS[method](sock, data, flags))
        if result.error is None:
            self.on_the_way += data
            if data and not self.peer_is_there:
                self.pairs.await_events(0)  # the answer is a reset

    @rule(how=st.sampled_from([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
    def shut_down(self, how: int) -> None:
        self.pairs.same(lambda sock: sock.shutdown(how))
        self.shut |= {socket.SHUT_RD, socket.SHUT_WR} if how == socket.SHUT_RDWR else {how}

    @rule()
    def duplicate(self) -> None:
        plain, tunnelled = self.pairs.outcomes(lambda sock: sock.dup())
        assert (plain.error, plain.errno) == (tunnelled.error, tunnelled.errno)
        if plain.error is None:
            for side in self.pairs.both:
                side.sock.close()
            self.pairs.plain = Side(plain.value, self.pairs.plain.peer)
            self.pairs.tunnelled = Side(tunnelled.value, self.pairs.tunnelled.peer)
            self.pairs.both = (self.pairs.plain, self.pairs.tunnelled)

    @rule(seconds=st.sampled_from([0, 0.001]))
    def set_timeout(self, seconds: float) -> None:
        self.pairs.same(lambda sock: sock.settimeout(seconds))

    @rule(question=st.sampled_from(sorted(QUESTIONS)))
    def ask(self, question: str) -> None:
        self.pairs.same(QUESTIONS[question])

    @rule(mistake=st.sampled_from(sorted(MISTAKES)))
    def make_a_mistake(self, mistake: str) -> None:
        self.pairs.same(MISTAKES[mistake])

    @precondition(lambda self: not self.closed)
    @rule()
    def look(self) -> None:
        ignored = select.POLLIN if self.unseen else 0
        plain, tunnelled = (poll(side.sock, _READING | _WRITING | _ENDING) | ignored for side in self.pairs.both)
        assert tunnelled == plain, f"plain: {plain}, tunnelled: {tunnelled}"

    @rule()
    def close(self) -> None:
        self.pairs.same(lambda sock: sock.close())
        self.closed = True


def test_random_calls() -> None:
    run_state_machine_as_test(
        BesidePlain,
        settings=settings(
            max_examples=1000,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.soak
def test_random_calls_for_hours() -> None:
    run_state_machine_as_test(
        BesidePlain,
        settings=settings(
            max_examples=200_000, stateful_step_count=100, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
