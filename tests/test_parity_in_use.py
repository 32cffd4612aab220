"""A tunnelled socket in use, beside a plain one: what it is, data in every form, files, duplicates, and the end."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import re
import socket
import tempfile
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import pytest

from gsssocks.testing import plain_pair, tunnelled_pair
from tests.peers.beside import (
    PATIENCE_SECONDS,
    SideBySide,
    await_arrival,
    every,
    method,
    numbers,
    outcome,
    rectangle,
    room,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

    from gsssocks.testing import PlainPeer
    from tests.peers.beside import Call

DATA = b"hello, world"
CONTENTS = DATA * 1000
SOON = 0.01


@pytest.fixture
def pairs() -> Iterator[SideBySide]:
    """A plain and a tunnelled socket that do not wait, and their peers."""
    with SideBySide() as pairs:
        for side in pairs.both:
            side.sock.settimeout(0)
        yield pairs


# What it is


class TestIdentity:
    @every(
        kind=lambda sock: (type(sock).__name__, type(sock).__qualname__, type(sock).__module__, type(sock).__doc__),
        socket=lambda sock: isinstance(sock, socket.socket),
        attribute=lambda sock: setattr(sock, "colour", "green"),
        dictionary=vars,
        weak_reference=lambda sock: weakref.ref(sock)() is sock,
        equality=lambda sock: (sock == sock, sock == socket.socket, hash(sock) == hash(sock)),
        truth=bool,
        unknown_attribute=lambda sock: sock.colour,
        family=lambda sock: (repr(sock.family), repr(sock.type), sock.proto),
        look_at_it=lambda sock: re.sub(r"\d+", "#", repr(sock)),
        text=lambda sock: re.sub(r"\d+", "#", str(sock)),
        pickle=pickle.dumps,
        copy=copy.copy,
        deep_copy=copy.deepcopy,
        kernel_option=lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
        protocol_option=lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL),
        listening=lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        structure=lambda sock: len(sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 100)),
        nodelay=lambda sock: (
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY),
        ),
        cryptography=lambda sock: sock.sendmsg_afalg(op=1),
        inheritable=method("get_inheritable"),
    )
    def test_of_connected_socket(self, pairs: SideBySide, call: Call) -> None:
        pairs.same(call)

    def test_names_of_peer_and_socket_have_the_kernels_form(self) -> None:
        for host in ("127.0.0.1", "::1"):
            for pair in (plain_pair, tunnelled_pair):
                sock, peer = pair(host=host)
                with sock, peer:
                    far = socket.socket(fileno=os.dup(peer.fileno()))
                    with far:
                        assert sock.getpeername() == far.getsockname()
                        assert sock.getsockname() == far.getpeername()

    def test_subclass_keeps_its_name_and_methods(self) -> None:
        class Loud(socket.socket):
            """Speaks up."""

            def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
                return super().recv(bufsize, flags).upper()

        for pair in (plain_pair, tunnelled_pair):
            sock, peer = pair(kind=Loud)
            with sock, peer:
                peer.send(b"loud")
                sock.settimeout(PATIENCE_SECONDS)
                assert (type(sock).__name__, type(sock).__doc__) == ("Loud", "Speaks up.")
                assert sock.recv(100) == b"LOUD"

    def test_methods_do_not_call_those_that_a_subclass_overrides(self) -> None:
        class Crosswise(socket.socket):
            """As PySocks' class: each calls another of its base class."""

            def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
                return super().recvfrom(bufsize, flags)[0]

            def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
                return super().sendmsg([data], [], flags)

        for pair in (plain_pair, tunnelled_pair):
            sock, peer = pair(kind=Crosswise)
            with sock, peer:
                sock.settimeout(PATIENCE_SECONDS)
                peer.send(b"hello")
                assert sock.recv(100) == b"hello"
                assert sock.send(b"hello") == 5
                assert peer.read_exactly(5) == b"hello"


# Data in every form


class TestResults:
    @every(
        recv=method("recv", 100),
        recvfrom=method("recvfrom", 100),
        recvmsg=method("recvmsg", 100),
        recvmsg_with_room_for_ancillary_data=method("recvmsg", 100, 100),
    )
    def test_types(self, pairs: SideBySide, call: Call) -> None:
        pairs.peers_send(DATA)

        def types(sock: socket.socket) -> Any:
            result = call(sock)
            return list(map(type, result)) if isinstance(result, tuple) else type(result)

        pairs.same(types)

    @pytest.mark.parametrize("size", [0, 1, 5, len(DATA), 100])
    @pytest.mark.parametrize("name", ["recv_into", "recvfrom_into"])
    @pytest.mark.parametrize("buffer", [room, numbers, rectangle], ids=["octets", "numbers", "rectangle"])
    def test_buffer_is_filled_and_no_more(self, pairs: SideBySide, name: str, buffer: Any, size: int) -> None:
        pairs.peers_send(DATA)

        def filled(sock: socket.socket) -> Any:
            target = buffer()
            return getattr(sock, name)(target, size), memoryview(target).tobytes()

        pairs.same(filled)

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 100])
    @pytest.mark.parametrize("taken", [0, 1, 3, 4])
    def test_look_sees_all_that_has_arrived(self, pairs: SideBySide, size: int, taken: int) -> None:
        pairs.peers_send(b"one")
        pairs.peers_send(b"two")
        pairs.same(method("recv", taken))
        pairs.peers_send(b"three")
        for _ in range(2):
            pairs.same(method("recv", size, socket.MSG_PEEK))

    def test_buffers_are_filled_in_order(self, pairs: SideBySide) -> None:
        pairs.peers_send(DATA)

        def filled(sock: socket.socket) -> Any:
            buffers: list[Any] = [bytearray(3), bytearray(), numbers(1), bytearray(20)]
            return sock.recvmsg_into(buffers), [bytes(buffer) for buffer in buffers]

        pairs.same(filled)

    @pytest.mark.parametrize("name", ["send", "sendall", "sendmsg"])
    @pytest.mark.parametrize(
        "data",
        [DATA, bytearray(DATA), memoryview(DATA), numbers(), rectangle(), memoryview(DATA)[3:7]],
        ids=["bytes", "bytearray", "view", "numbers", "rectangle", "part"],
    )
    def test_any_buffer_is_sent(self, pairs: SideBySide, name: str, data: Any) -> None:
        pairs.same(method(name, [data] if name == "sendmsg" else data))
        octets = memoryview(data).tobytes()
        for side in pairs.both:
            assert side.peer.read_exactly(len(octets)) == octets

    def test_what_was_sent_may_be_changed_afterwards(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            data = bytearray(DATA)
            side.sock.sendall(data)
            data[:] = bytes(len(data))
            assert side.peer.read_exactly(len(DATA)) == DATA

    def test_buffer_is_free_after_a_send(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            data = bytearray(DATA)
            side.sock.send(data)
            side.sock.sendmsg([data])
            data.clear()

    def test_buffer_is_free_after_a_refused_receive(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            buffer = room()
            with pytest.raises(BlockingIOError):
                side.sock.recv_into(buffer)
            buffer.clear()


class TestSendfile:
    @every(
        all=lambda sock, file: sock.sendfile(file),
        from_offset=lambda sock, file: sock.sendfile(file, 5),
        part=lambda sock, file: sock.sendfile(file, 5, 3),
        more_than_there_is=lambda sock, file: sock.sendfile(file, 5, 300_000),
        from_behind_the_end=lambda sock, file: sock.sendfile(file, 300_000),
        nothing=lambda sock, file: sock.sendfile(file, 0, 0),
        negative_count=lambda sock, file: sock.sendfile(file, 0, -1),
        float_count=lambda sock, file: sock.sendfile(file, 0, 1.5),
        negative_offset=lambda sock, file: sock.sendfile(file, -1),
        text_offset=lambda sock, file: sock.sendfile(file, "5"),
        file_number=lambda sock, file: sock.sendfile(file.fileno()),
        by_keyword=lambda sock, file: sock.sendfile(file=file, offset=5, count=3),
        not_waiting=lambda sock, file: (sock.setblocking(False), sock.sendfile(file)),
        closed=lambda sock, file: (sock.close(), sock.sendfile(file)),
    )
    @pytest.mark.parametrize("kind", ["file", "memory", "text"])
    def test_result_position_and_data(self, pairs: SideBySide, call: Any, kind: str) -> None:
        results = []
        for side in pairs.both:
            side.sock.settimeout(PATIENCE_SECONDS)
            with self.opened(kind) as file:
                result = outcome(partial(call, side.sock, file))
                results.append((result, file.tell(), self.arrived(side.sock, side.peer, result.value)))
        assert results[1] == results[0]

    @contextmanager
    def opened(self, kind: str) -> Iterator[IO[Any]]:
        if kind == "memory":
            yield io.BytesIO(CONTENTS)
            return
        with tempfile.NamedTemporaryFile() as file:
            file.write(CONTENTS)
            file.seek(0)
            with open(file.name, "rb" if kind == "file" else "r") as opened:
                yield opened

    def arrived(self, sock: socket.socket, peer: PlainPeer, count: Any) -> bytes:
        sock.close()
        return peer.read_exactly(count) if isinstance(count, int) else peer.read_to_end()


# Ending


class TestMakefile:
    @pytest.mark.parametrize("mode", ["r", "w", "rw", "rb", "wb", "rwb", "br", "bw"])
    @pytest.mark.parametrize("buffering", [None, -1, 1, 100])
    def test_kind_of_file(self, pairs: SideBySide, mode: str, buffering: int | None) -> None:
        def looked_at(sock: socket.socket) -> Any:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about line buffering of binary files
                file: Any = sock.makefile(mode, buffering)  # type: ignore[call-overload]
                with file:
                    return type(file), file.mode, file.readable(), file.writable(), file.seekable(), file.name >= 0

        pairs.same(looked_at)

    def test_raw_file(self, pairs: SideBySide) -> None:
        pairs.peers_send(DATA)

        def used(sock: socket.socket) -> Any:
            with sock.makefile("rwb", buffering=0) as file:
                return type(file), file.read(5), file.write(b"abc"), file.readinto(bytearray(3)), file.read()

        pairs.same(used)

    def test_lines(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.settimeout(PATIENCE_SECONDS)
            side.peer.send("eins\nzwei\r\ndrei\nvier fünf".encode())
            side.peer.finish()
            with side.sock.makefile("r", encoding="utf-8", newline="\n") as file:
                assert list(file) == ["eins\n", "zwei\r\n", "drei\n", "vier fünf"]

    def test_what_is_written_arrives_when_flushed(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            with side.sock.makefile("w", encoding="utf-8") as file:
                file.write("zwölf")
                assert side.peer.read() == b""
                file.flush()
                assert side.peer.read_exactly(6) == "zwölf".encode()

    def test_file_that_does_not_wait_reads_nothing(self, pairs: SideBySide) -> None:
        pairs.same(lambda sock: sock.makefile("rb", buffering=0).read(5))

    def test_file_is_of_no_use_after_a_timeout(self, pairs: SideBySide) -> None:
        def read_twice(sock: socket.socket) -> Any:
            sock.settimeout(SOON)
            with sock.makefile("rb") as file:
                return outcome(file.readline), outcome(file.readline)

        pairs.same(read_twice)

    def test_connection_lives_until_the_last_file_is_closed(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            first, second = side.sock.makefile("rb"), side.sock.makefile("wb")
            side.sock.close()
            side.peer.send(DATA)
            assert first.read(len(DATA)) == DATA
            first.close()
            second.write(DATA)
            second.flush()
            assert side.peer.read_exactly(len(DATA)) == DATA
            assert not side.peer.ended
            second.close()
            assert side.peer.read_to_end() == b""

    def test_socket_is_open_until_the_last_file_is_closed(self, pairs: SideBySide) -> None:
        def closed(sock: socket.socket) -> Any:
            file = sock.makefile("rb")
            states = [sock.fileno() >= 0]
            sock.close()
            states.append(sock.fileno() >= 0)
            states.append(re.sub(r"\d+", "#", repr(sock)) == "<socket.socket [closed] fd=#>")
            file.close()
            return [*states, sock.fileno() >= 0]

        pairs.same(closed)

    def test_socket_closed_after_the_file(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.makefile("rb").close()
            side.sock.send(DATA)
            assert side.peer.read_exactly(len(DATA)) == DATA

    def test_file_outlives_the_reference_to_the_socket(self) -> None:
        for pair in (plain_pair, tunnelled_pair):
            sock, peer = pair()
            file = sock.makefile("rb")
            sock.close()
            del sock
            gc.collect()
            peer.send(DATA)
            with peer:
                assert file.read(len(DATA)) == DATA
                file.close()


def forgettable(pair: tuple[socket.socket, PlainPeer]) -> tuple[list[socket.socket], PlainPeer]:
    return [pair[0]], pair[1]


def forget(socks: list[socket.socket]) -> None:
    socks.clear()
    gc.collect()


class TestEnding:
    def test_close_twice(self, pairs: SideBySide) -> None:
        for _ in range(2):
            pairs.same(method("close"))

    def test_peer_sees_the_end_behind_the_data(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.sendall(DATA)
            side.sock.close()
            assert side.peer.read_to_end() == DATA

    def test_peer_is_heard_after_the_own_end(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.sendall(DATA)
            side.sock.shutdown(socket.SHUT_WR)
            assert side.peer.read_to_end() == DATA
            side.peer.send(DATA)
            await_arrival(side.sock, side.peer)
            assert side.sock.recv(100) == DATA

    def test_context_manager_gives_the_socket_itself_and_closes_it(self, pairs: SideBySide) -> None:
        def entered(sock: socket.socket) -> Any:
            with sock as inside:
                same = inside is sock
            return same, sock.fileno()

        pairs.same(entered)

    def test_context_manager_closes_after_an_error(self, pairs: SideBySide) -> None:
        def left(sock: socket.socket) -> Any:
            with pytest.raises(KeyError), sock:
                raise KeyError("of the program")
            return sock.fileno()

        pairs.same(left)

    def test_warning_when_it_is_forgotten(self) -> None:
        messages = []
        for pair in (plain_pair, tunnelled_pair):
            socks, peer = forgettable(pair())
            with peer, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                forget(socks)
            messages.append([(warning.category, re.sub(r"\d+", "#", str(warning.message))) for warning in caught])
        assert len(messages[0]) == 1
        assert messages[1] == messages[0]

    def test_peer_sees_the_end_when_it_is_forgotten(self) -> None:
        for pair in (plain_pair, tunnelled_pair):
            socks, peer = forgettable(pair())
            with peer:
                socks[0].sendall(DATA)
                with pytest.warns(ResourceWarning):
                    forget(socks)
                assert peer.read_to_end() == DATA

    def test_all_that_was_taken_arrives_when_it_is_forgotten(self) -> None:
        for pair in (plain_pair, tunnelled_pair):
            socks, peer = forgettable(pair(buffers=1))
            with peer:
                socks[0].setblocking(False)
                taken = socks[0].send(bytes(50_000))
                with pytest.warns(ResourceWarning):
                    forget(socks)
                # The first octet that was not taken may come along.
                assert len(peer.read_to_end()) in (taken, taken + 1)

    def test_nothing_is_said_when_it_was_closed(self) -> None:
        for pair in (plain_pair, tunnelled_pair):
            sock, peer = pair()
            with peer, warnings.catch_warnings():
                warnings.simplefilter("error")
                sock.close()
                del sock
                gc.collect()

    def test_it_is_freed_without_the_garbage_collector(self) -> None:
        for pair in (plain_pair, tunnelled_pair):
            sock, peer = pair()
            reference = weakref.ref(sock)
            gc.disable()
            try:
                with peer:
                    sock.close()
                    del sock
                    assert reference() is None
            finally:
                gc.enable()


class TestDuplicates:
    def test_duplicate_goes_on_alone(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            with side.sock.dup() as duplicate:
                side.sock.close()
                duplicate.sendall(DATA)
                assert side.peer.read_exactly(len(DATA)) == DATA
                assert not side.peer.ended
            assert side.peer.read_to_end() == b""

    def test_original_goes_on_alone(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.dup().close()
            side.sock.sendall(DATA)
            assert side.peer.read_exactly(len(DATA)) == DATA

    def test_data_goes_to_whoever_asks_first(self, pairs: SideBySide) -> None:
        pairs.peers_send(DATA)
        for side in pairs.both:
            with side.sock.dup() as duplicate:
                assert duplicate.recv(5) + side.sock.recv(3) + duplicate.recv(100) == DATA

    def test_what_it_is(self, pairs: SideBySide) -> None:
        def described(sock: socket.socket) -> Any:
            sock.settimeout(5)
            with sock.dup() as duplicate:
                return (
                    type(duplicate) is type(sock),
                    duplicate.gettimeout(),
                    duplicate.get_inheritable(),
                    duplicate.getpeername() == sock.getpeername(),
                    duplicate.getsockname() == sock.getsockname(),
                    duplicate.fileno() != sock.fileno(),
                )

        pairs.same(described)

    def test_shutdown_of_one_is_that_of_both(self, pairs: SideBySide) -> None:
        def shut(sock: socket.socket) -> Any:
            with sock.dup() as duplicate:
                duplicate.shutdown(socket.SHUT_WR)
                return outcome(partial(sock.send, DATA))

        pairs.same(shut)

    def test_detached_socket_is_closed_and_its_descriptor_is_not(self, pairs: SideBySide) -> None:
        def detached(sock: socket.socket) -> Any:
            number = sock.fileno()
            fd = sock.detach()
            try:
                return fd == number, sock.fileno(), outcome(sock.getpeername), re.sub(r"\d+", "#", repr(sock))
            finally:
                os.close(fd)

        pairs.same(detached)

    def test_detach_twice(self, pairs: SideBySide) -> None:
        def detached(sock: socket.socket) -> Any:
            os.close(sock.detach())
            return sock.detach()

        pairs.same(detached)
