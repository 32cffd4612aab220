"""Whatever a plain socket refuses or answers, a tunnelled one does too: each call is made on both, and compared.

No result is written down here: the standard is the plain socket of the Python and the kernel that run the test.
"""

from __future__ import annotations

import array
import io
import os
import re
import select
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from tests.peers.beside import (
    PATIENCE_SECONDS,
    Index,
    SideBySide,
    await_arrival,
    every,
    in_pieces,
    method,
    numbers,
    outcome,
    poll,
    rectangle,
    room,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.beside import Call

DATA = b"hello, world"
ADDRESS = ("127.0.0.1", 9)
SOON = 0.01


@pytest.fixture
def pairs() -> Iterator[SideBySide]:
    """A plain and a tunnelled socket that do not wait, and their peers."""
    with SideBySide() as pairs:
        for side in pairs.both:
            side.sock.settimeout(0)
        yield pairs


# Situations in which calls are compared


def nothing_there(pairs: SideBySide) -> None:
    pass


def data_there(pairs: SideBySide) -> None:
    pairs.peers_send(DATA)


def peers_finished(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.peer.finish()
    pairs.await_events(select.POLLRDHUP)


def data_there_and_peers_finished(pairs: SideBySide) -> None:
    data_there(pairs)
    peers_finished(pairs)


def peers_closed(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.peer.close()
    pairs.await_events(select.POLLRDHUP)


def reset(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.peer.reset()
    pairs.await_events(0)


def data_there_and_reset(pairs: SideBySide) -> None:
    data_there(pairs)
    reset(pairs)


def shut_for_reading(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.sock.shutdown(socket.SHUT_RD)


def shut_for_writing(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.sock.shutdown(socket.SHUT_WR)


def shut_both_ways(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.sock.shutdown(socket.SHUT_RDWR)


def data_there_and_shut_for_reading(pairs: SideBySide) -> None:
    data_there(pairs)
    shut_for_reading(pairs)


def closed(pairs: SideBySide) -> None:
    for side in pairs.both:
        side.sock.close()


def detached(pairs: SideBySide) -> None:
    for side in pairs.both:
        os.close(side.sock.detach())


SITUATIONS: list[Callable[[SideBySide], None]] = [
    nothing_there,
    data_there,
    peers_finished,
    data_there_and_peers_finished,
    peers_closed,
    reset,
    data_there_and_reset,
    shut_for_reading,
    shut_for_writing,
    shut_both_ways,
    data_there_and_shut_for_reading,
    closed,
    detached,
]
in_every_situation = pytest.mark.parametrize(
    "situation", SITUATIONS, ids=[situation.__name__ for situation in SITUATIONS]
)


@in_every_situation
@pytest.mark.parametrize("timeout", [0, SOON], ids=["non-blocking", "timeout"])
class TestInEverySituation:
    @every(
        recv=method("recv", 5),
        recv_more_than_is_there=method("recv", 1000),
        recv_nothing=method("recv", 0),
        recv_into=method("recv_into", room()),
        recv_into_nothing=method("recv_into", bytearray()),
        recvfrom=method("recvfrom", 5),
        recvfrom_nothing=method("recvfrom", 0),
        recvfrom_into=method("recvfrom_into", room()),
        recvfrom_into_nothing=method("recvfrom_into", bytearray()),
        recvmsg=method("recvmsg", 5),
        recvmsg_nothing=method("recvmsg", 0),
        recvmsg_with_room_for_ancillary_data=method("recvmsg", 5, 100),
        recvmsg_into=method("recvmsg_into", [bytearray(3), bytearray(4)]),
        recvmsg_into_no_buffer=method("recvmsg_into", []),
        recvmsg_into_empty_buffer=method("recvmsg_into", [bytearray()]),
        look=method("recv", 5, socket.MSG_PEEK),
        look_into=method("recv_into", room(), 5, socket.MSG_PEEK),
        recv_without_waiting=method("recv", 5, socket.MSG_DONTWAIT),
        recv_all=method("recv", len(DATA), socket.MSG_WAITALL),
        recv_all_of_more_than_is_there=method("recv", 1000, socket.MSG_WAITALL),
        recv_into_all=method("recv_into", room(), 0, socket.MSG_WAITALL),
        recv_urgent_data=method("recv", 5, socket.MSG_OOB),
        recv_no_urgent_data=method("recv", 0, socket.MSG_OOB),
    )
    def test_receiving(
        self, pairs: SideBySide, situation: Callable[[SideBySide], None], timeout: float, call: Call
    ) -> None:
        situation(pairs)
        self.set_timeout(pairs, timeout)
        pairs.same(call)

    @every(
        send=method("send", DATA),
        send_nothing=method("send", b""),
        send_without_waiting=method("send", DATA, socket.MSG_DONTWAIT),
        sendall=method("sendall", DATA),
        sendall_of_nothing=method("sendall", b""),
        sendto=method("sendto", DATA, ADDRESS),
        sendto_of_nothing=method("sendto", b"", ADDRESS),
        sendto_with_flags=method("sendto", DATA, socket.MSG_NOSIGNAL, ADDRESS),
        sendmsg=method("sendmsg", [DATA, b"", DATA]),
        sendmsg_of_nothing=method("sendmsg", []),
        sendmsg_with_address=method("sendmsg", [DATA], [], 0, ADDRESS),
    )
    def test_sending(
        self, pairs: SideBySide, situation: Callable[[SideBySide], None], timeout: float, call: Call
    ) -> None:
        situation(pairs)
        self.set_timeout(pairs, timeout)
        pairs.same(call)

    @every(
        shutdown_of_reading=method("shutdown", socket.SHUT_RD),
        shutdown_of_writing=method("shutdown", socket.SHUT_WR),
        shutdown_both_ways=method("shutdown", socket.SHUT_RDWR),
        close=method("close"),
        connect=method("connect", ADDRESS),
        connect_ex=method("connect_ex", ADDRESS),
        bind=method("bind", ("127.0.0.1", 0)),
        listen=method("listen"),
        accept=method("accept"),
        gettimeout=method("gettimeout"),
        getblocking=method("getblocking"),
        settimeout=method("settimeout", 5),
        setblocking=method("setblocking", True),
        get_inheritable=method("get_inheritable"),
        set_inheritable=method("set_inheritable", True),
        error=method("getsockopt", socket.SOL_SOCKET, socket.SO_ERROR),
        set_option=method("setsockopt", socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        unknown_option=method("getsockopt", socket.SOL_SOCKET, 9999),
        unknown_level=method("setsockopt", 9999, 1, 1),
        kind=lambda sock: (sock.family, sock.type, sock.proto, sock.timeout),
        peer=lambda sock: sock.getpeername()[0],
        itself=lambda sock: sock.getsockname()[0],
        open=lambda sock: sock.fileno() >= 0,
        duplicate=lambda sock: sock.dup().close(),
        file=lambda sock: sock.makefile("rwb").close(),
        leave=lambda sock: sock.__exit__(None, None, None),
        look_at_it=lambda sock: re.sub(r"\d+", "#", repr(sock)),
    )
    def test_anything_else(
        self, pairs: SideBySide, situation: Callable[[SideBySide], None], timeout: float, call: Call
    ) -> None:
        situation(pairs)
        self.set_timeout(pairs, timeout)
        pairs.same(call)

    def test_one_after_the_other(
        self, pairs: SideBySide, situation: Callable[[SideBySide], None], timeout: float
    ) -> None:
        situation(pairs)
        self.set_timeout(pairs, timeout)
        for call in (
            method("recv", 5),
            method("send", DATA),
            method("recv", 1000),
            method("recv", 1000),
            method("send", DATA),
            method("getsockopt", socket.SOL_SOCKET, socket.SO_ERROR),
            method("shutdown", socket.SHUT_WR),
            method("send", DATA),
            method("send", DATA),
            method("shutdown", socket.SHUT_RDWR),
            method("recv", 5),
            method("close"),
            method("recv", 5),
        ):
            pairs.same(call)

    def set_timeout(self, pairs: SideBySide, timeout: float) -> None:
        pairs.same(lambda sock: sock.settimeout(timeout))


@pytest.mark.parametrize("situation", [data_there, closed], ids=["data there", "closed"])
class TestArguments:
    """Wrong ones are refused before anything is received or sent, and odd ones are taken."""

    @every(
        **{
            f"{name}_{case}": method(name, *arguments)
            for name in ("send", "sendall")
            for case, arguments in {
                "none": (),
                "text": ("text",),
                "number": (5,),
                "list": ([1],),
                "None": (None,),
                "pieces": (in_pieces(),),
                "numbers": (numbers(),),
                "no_numbers": (numbers(0),),
                "rectangle": (rectangle(),),
                "characters": (memoryview(b"data").cast("c"),),
                "bytearray": (bytearray(DATA),),
                "flags_float": (DATA, 1.0),
                "flags_None": (DATA, None),
                "flags_text": (DATA, "flags"),
                "flags_huge": (DATA, 2**40),
                "flags_index": (DATA, Index(0)),
                "flags_bool": (DATA, False),
                "too_many": (DATA, 0, 0),
            }.items()
        },
        send_by_keyword=method("send", data=DATA),
        send_flags_by_keyword=method("send", DATA, flags=0),
        sendall_by_keyword=method("sendall", data=DATA),
    )
    def test_of_send(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        none=method("sendto"),
        no_address=method("sendto", DATA),
        text=method("sendto", "text", ADDRESS),
        pieces=method("sendto", in_pieces(), ADDRESS),
        numbers=method("sendto", numbers(), ADDRESS),
        address_number=method("sendto", DATA, 5),
        address_None=method("sendto", DATA, None),
        address_text=method("sendto", DATA, "127.0.0.1"),
        address_list=method("sendto", DATA, ["127.0.0.1", 9]),
        address_short=method("sendto", DATA, ("127.0.0.1",)),
        address_long=method("sendto", DATA, ("127.0.0.1", 9, 0, 0, 0)),
        host_number=method("sendto", DATA, (5, 9)),
        host_bytes=method("sendto", DATA, (b"127.0.0.1", 9)),
        host_empty=method("sendto", DATA, ("", 9)),
        port_text=method("sendto", DATA, ("127.0.0.1", "9")),
        port_too_large=method("sendto", DATA, ("127.0.0.1", 70_000)),
        port_negative=method("sendto", DATA, ("127.0.0.1", -1)),
        port_index=method("sendto", DATA, ("127.0.0.1", Index(9))),
        flags_None=method("sendto", DATA, None, ADDRESS),
        flags_text=method("sendto", DATA, "flags", ADDRESS),
        flags_huge=method("sendto", DATA, 2**40, ADDRESS),
        flags_index=method("sendto", DATA, Index(0), ADDRESS),
        address_first=method("sendto", DATA, ADDRESS, 0),
        too_many=method("sendto", DATA, 0, ADDRESS, 0),
        by_keyword=method("sendto", data=DATA, address=ADDRESS),
        flags_by_keyword=method("sendto", DATA, flags=0, address=ADDRESS),
    )
    def test_of_sendto(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        none=method("sendmsg"),
        number=method("sendmsg", 5),
        bytes=method("sendmsg", DATA),
        None_=method("sendmsg", None),
        texts=method("sendmsg", ["text"]),
        text_behind_data=method("sendmsg", [DATA, "text"]),
        pieces=method("sendmsg", [in_pieces()]),
        numbers=method("sendmsg", [numbers(), numbers(0)]),
        rectangle=method("sendmsg", [rectangle()]),
        iterator=lambda sock: sock.sendmsg(iter([DATA, DATA])),
        many=method("sendmsg", [b"x"] * 1000),
        too_many_buffers=method("sendmsg", [b"x"] * 2000),
        ancillary_number=method("sendmsg", [DATA], 5),
        ancillary_None=method("sendmsg", [DATA], None),
        ancillary_iterator=lambda sock: sock.sendmsg([DATA], iter([])),
        ancillary_numbers=method("sendmsg", [DATA], [5]),
        ancillary_short=method("sendmsg", [DATA], [(1, 2)]),
        ancillary_text=method("sendmsg", [DATA], [("1", 2, b"")]),
        ancillary_data_text=method("sendmsg", [DATA], [(1, 2, "text")]),
        ancillary_unknown=method("sendmsg", [DATA], [(socket.SOL_SOCKET, 9999, b"")]),
        flags_None=method("sendmsg", [DATA], [], None),
        flags_float=method("sendmsg", [DATA], [], 1.0),
        flags_huge=method("sendmsg", [DATA], [], 2**40),
        flags_index=method("sendmsg", [DATA], [], Index(0)),
        address_None=method("sendmsg", [DATA], [], 0, None),
        address_number=method("sendmsg", [DATA], [], 0, 5),
        address_short=method("sendmsg", [DATA], [], 0, ("127.0.0.1",)),
        port_too_large=method("sendmsg", [DATA], [], 0, ("127.0.0.1", 70_000)),
        too_many=method("sendmsg", [DATA], [], 0, ADDRESS, 0),
        by_keyword=method("sendmsg", buffers=[DATA]),
    )
    def test_of_sendmsg(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        **{
            f"{name}_{case}": method(name, *arguments)
            for name, flags_behind in (("recv", ()), ("recvfrom", ()), ("recvmsg", (0,)))
            for case, arguments in {
                "none": (),
                "negative": (-1,),
                "text": ("5",),
                "float": (5.0,),
                "None": (None,),
                "index": (Index(5),),
                "bool": (True,),
                "huge": (2**63,),
                "larger_than_any": (2**70,),
                "flags_None": (5, *flags_behind, None),
                "flags_float": (5, *flags_behind, 1.0),
                "flags_text": (5, *flags_behind, "flags"),
                "flags_huge": (5, *flags_behind, 2**40),
                "flags_index": (5, *flags_behind, Index(0)),
                "too_many": (5, *flags_behind, 0, 0),
            }.items()
        },
        recv_by_keyword=method("recv", bufsize=5),
        recv_flags_by_keyword=method("recv", 5, flags=0),
        recvfrom_by_keyword=method("recvfrom", bufsize=5),
        recvmsg_by_keyword=method("recvmsg", bufsize=5),
        recvmsg_ancillary_negative=method("recvmsg", 5, -1),
        recvmsg_ancillary_float=method("recvmsg", 5, 1.0),
        recvmsg_ancillary_None=method("recvmsg", 5, None),
        recvmsg_ancillary_huge=method("recvmsg", 5, 2**31),
        recvmsg_ancillary_larger_than_any=method("recvmsg", 5, 2**70),
        recvmsg_ancillary_index=method("recvmsg", 5, Index(50)),
    )
    def test_of_recv(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        **{
            f"{name}_{case}": method(name, *arguments)
            for name in ("recv_into", "recvfrom_into")
            for case, arguments in {
                "none": (),
                "read_only": (DATA,),
                "read_only_view": (memoryview(DATA),),
                "text": ("text",),
                "number": (5,),
                "None": (None,),
                "pieces": (in_pieces(),),
                "numbers": (numbers(),),
                "no_numbers": (numbers(0),),
                "rectangle": (rectangle(),),
                "size_negative": (room(), -1),
                "size_too_large": (room(), 21),
                "size_of_all": (room(), 20),
                "size_zero": (room(), 0),
                "size_float": (room(), 5.0),
                "size_None": (room(), None),
                "size_index": (room(), Index(5)),
                "size_huge": (room(), 2**70),
                "flags_None": (room(), 5, None),
                "flags_float": (room(), 5, 1.0),
                "flags_huge": (room(), 5, 2**40),
                "flags_index": (room(), 5, Index(0)),
                "too_many": (room(), 5, 0, 0),
            }.items()
        },
        recv_into_by_keyword=method("recv_into", buffer=room(), nbytes=5, flags=0),
        recvfrom_into_by_keyword=method("recvfrom_into", buffer=room(), nbytes=5, flags=0),
        recv_into_unknown_keyword=method("recv_into", room(), size=5),
    )
    def test_of_recv_into(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        none=method("recvmsg_into"),
        number=method("recvmsg_into", 5),
        None_=method("recvmsg_into", None),
        buffer=method("recvmsg_into", room()),
        read_only=method("recvmsg_into", [DATA]),
        read_only_behind=method("recvmsg_into", [bytearray(1), DATA]),
        texts=method("recvmsg_into", ["text"]),
        pieces=method("recvmsg_into", [in_pieces()]),
        numbers=method("recvmsg_into", [numbers(), numbers(0)]),
        rectangle=method("recvmsg_into", [rectangle()]),
        iterator=lambda sock: sock.recvmsg_into(iter([bytearray(3), bytearray(3)])),
        too_many_buffers=method("recvmsg_into", [bytearray(1) for _ in range(2000)]),
        ancillary_negative=method("recvmsg_into", [room()], -1),
        ancillary_float=method("recvmsg_into", [room()], 1.0),
        ancillary_huge=method("recvmsg_into", [room()], 2**31),
        flags_None=method("recvmsg_into", [room()], 0, None),
        flags_huge=method("recvmsg_into", [room()], 0, 2**40),
        too_many=method("recvmsg_into", [room()], 0, 0, 0),
        by_keyword=method("recvmsg_into", buffers=[room()]),
    )
    def test_of_recvmsg_into(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        shutdown_none=method("shutdown"),
        shutdown_unknown=method("shutdown", 7),
        shutdown_negative=method("shutdown", -1),
        shutdown_text=method("shutdown", "both"),
        shutdown_float=method("shutdown", 1.0),
        shutdown_None=method("shutdown", None),
        shutdown_huge=method("shutdown", 2**40),
        shutdown_index=method("shutdown", Index(1)),
        shutdown_bool=method("shutdown", True),
        shutdown_too_many=method("shutdown", 1, 1),
        shutdown_by_keyword=method("shutdown", how=1),
        close_too_many=method("close", 1),
        detach_too_many=method("detach", 1),
        dup_too_many=method("dup", 1),
        fileno_too_many=method("fileno", 1),
        getpeername_too_many=method("getpeername", 1),
        getsockname_too_many=method("getsockname", 1),
    )
    def test_of_ending(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        negative=lambda sock: sock.settimeout(-1),
        text=lambda sock: sock.settimeout("5"),
        not_a_number=lambda sock: sock.settimeout(float("nan")),
        infinite=lambda sock: sock.settimeout(float("inf")),
        huge=lambda sock: sock.settimeout(1e100),
        tiny=lambda sock: (sock.settimeout(1e-9), sock.gettimeout()),
        index=lambda sock: (sock.settimeout(Index(5)), sock.gettimeout()),
        bool=lambda sock: (sock.settimeout(True), sock.gettimeout()),
        zero=lambda sock: (sock.settimeout(0.0), sock.gettimeout(), sock.getblocking()),
        blocking=lambda sock: (sock.setblocking(1), sock.gettimeout(), sock.getblocking()),
        blocking_text=lambda sock: sock.setblocking("yes"),
        blocking_none=lambda sock: sock.setblocking(),
        attribute=lambda sock: setattr(sock, "timeout", 5),
    )
    def test_of_timeouts(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    @every(
        mode=lambda sock: sock.makefile("x"),
        mode_number=lambda sock: sock.makefile(5),
        text_without_buffer=lambda sock: sock.makefile("r", buffering=0),
        encoding=lambda sock: sock.makefile("r", encoding="unheard-of"),
        buffering_text=lambda sock: sock.makefile("rb", buffering="much"),
        too_many=lambda sock: sock.makefile("r", -1, "utf-8"),
    )
    def test_of_makefile(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        self.compare(pairs, situation, call)

    def compare(self, pairs: SideBySide, situation: Callable[[SideBySide], None], call: Call) -> None:
        situation(pairs)
        pairs.same(call)


FLAGS = {name: value for name, value in vars(socket).items() if name.startswith("MSG_")}


@pytest.mark.parametrize("flag", [name for name in FLAGS if name not in ("MSG_OOB", "MSG_TRUNC")])
class TestFlags:
    """Most mean nothing for a TCP socket, and are no reason to refuse anything."""

    def test_of_recv(self, pairs: SideBySide, flag: str) -> None:
        pairs.peers_send(DATA)
        pairs.same(method("recv", 100, FLAGS[flag]))

    def test_of_recv_into(self, pairs: SideBySide, flag: str) -> None:
        pairs.peers_send(DATA)
        pairs.same(method("recv_into", room(), 0, FLAGS[flag]))

    def test_of_recvmsg(self, pairs: SideBySide, flag: str) -> None:
        pairs.peers_send(DATA)
        pairs.same(method("recvmsg", 100, 0, FLAGS[flag]))

    def test_of_recv_before_anything_has_arrived(self, pairs: SideBySide, flag: str) -> None:
        pairs.same(method("recv", 100, FLAGS[flag]))

    def test_of_send(self, pairs: SideBySide, flag: str) -> None:
        pairs.same(method("send", DATA, FLAGS[flag]))

    def test_of_sendall(self, pairs: SideBySide, flag: str) -> None:
        pairs.same(method("sendall", DATA, FLAGS[flag]))

    def test_of_sendmsg(self, pairs: SideBySide, flag: str) -> None:
        pairs.same(method("sendmsg", [DATA], [], FLAGS[flag]))


class TestSpecialFlags:
    def test_truncated_data_is_as_long(self, pairs: SideBySide) -> None:
        pairs.peers_send(DATA)
        pairs.same(lambda sock: len(sock.recv(100, socket.MSG_TRUNC)))

    def test_urgent_data_is_refused_as_by_a_socket_that_has_none(self, pairs: SideBySide) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(ADDRESS)
            standard = outcome(lambda: datagrams.send(DATA, socket.MSG_OOB))
        assert standard.errno is not None
        assert outcome(lambda: pairs.tunnelled.sock.send(DATA, socket.MSG_OOB)) == standard

    @pytest.mark.parametrize(
        "control",
        [
            (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0])),
            (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12)),
            (socket.SOL_SOCKET, 9999, b""),
            (socket.IPPROTO_IP, socket.IP_TTL, bytes(4)),
        ],
        ids=["rights", "credentials", "unknown", "another level"],
    )
    def test_ancillary_data(self, pairs: SideBySide, control: tuple[int, int, Any]) -> None:
        pairs.same(method("sendmsg", [DATA], [control]))
        pairs.same(lambda sock: sock.sendmsg([DATA], iter([control])))

    def test_descriptors_are_passed_over(self, pairs: SideBySide) -> None:
        assert pairs.same(lambda sock: socket.send_fds(sock, [DATA], [0])).value == len(DATA)
        assert pairs.tunnelled.peer.read_exactly(len(DATA)) == DATA

    def test_refused_send_leaves_nothing_behind(self, pairs: SideBySide) -> None:
        with pytest.raises(OSError):
            pairs.tunnelled.sock.send(b"urgent", socket.MSG_OOB)
        pairs.tunnelled.sock.send(DATA)
        assert pairs.tunnelled.peer.read_exactly(len(DATA)) == DATA

    def test_more_to_come_arrives_with_it(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.send(b"hello, ", socket.MSG_MORE)
            side.sock.send(b"world")
            assert side.peer.read_exactly(len(DATA)) == DATA

    def test_flag_not_to_wait_does_not_override_a_timeout(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.settimeout(SOON)
        assert pairs.same(method("recv", 5, socket.MSG_DONTWAIT)).error is socket.timeout

    def test_flag_not_to_wait_on_a_socket_that_waits_for_ever(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.settimeout(None)
        assert pairs.same(method("recv", 5, socket.MSG_DONTWAIT)).error is BlockingIOError

    def test_all_is_awaited_by_a_socket_that_waits_for_ever(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.settimeout(None)
            side.peer.send(b"hello, ")
            receiving = _Receiving(side.sock, len(DATA))
            _await_empty(side.sock)
            side.peer.send(b"world")
            assert receiving.result() == DATA

    def test_no_more_than_has_arrived_is_awaited_by_a_socket_with_a_timeout(self, pairs: SideBySide) -> None:
        for side in pairs.both:
            side.sock.settimeout(PATIENCE_SECONDS)
            side.peer.send(b"hello, ")
            await_arrival(side.sock, side.peer)
            receiving = _Receiving(side.sock, len(DATA))
            _await_empty(side.sock)
            side.peer.send(b"world")
            assert receiving.result() == b"hello, "


class _Receiving:
    """A receive with MSG_WAITALL, in a thread."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._received = b""
        self._thread = threading.Thread(target=self._receive, args=(sock, size))
        self._thread.start()

    def _receive(self, sock: socket.socket, size: int) -> None:
        self._received = sock.recv(size, socket.MSG_WAITALL)

    def result(self) -> bytes:
        self._thread.join()
        return self._received


def _await_empty(sock: socket.socket) -> None:
    """Waits until what has arrived is being received."""
    while poll(sock, select.POLLIN):
        pass


# Connecting, before any proxy is asked


def bad_addresses(host: str) -> dict[str, Any]:
    return {
        "text": host,
        "number": 5,
        "None": None,
        "list": [host, 9],
        "empty": (),
        "host alone": (host,),
        "far too long": (host, 9, 0, 0, 0),
        "host number": (5, 9),
        "host None": (None, 9),
        "host with NUL": ("local\0host", 9),
        "host in bytes with NUL": (b"local\0host", 9),
        "port text": (host, "9"),
        "port float": (host, 9.0),
        "port None": (host, None),
        "port negative": (host, -1),
        "port too large": (host, 70_000),
        "port huge": (host, 2**70),
        "port index too large": (host, Index(70_000)),
    }


BAD_ADDRESSES = {
    **{
        f"IPv4 {name}": (socket.AF_INET, address)
        for name, address in {**bad_addresses("127.0.0.1"), "with flow": ("127.0.0.1", 9, 0)}.items()
    },
    **{
        f"IPv6 {name}": (socket.AF_INET6, address)
        for name, address in {
            **bad_addresses("::1"),
            "flow text": ("::1", 9, "0", 0),
            "flow too large": ("::1", 9, 2**20, 0),
            "flow negative": ("::1", 9, -1, 0),
            "scope text": ("::1", 9, 0, "0"),
            "scope None": ("::1", 9, 0, None),
        }.items()
    },
}
NO_PROXY_THERE = "socks5h://127.0.0.1:1"


def connecting(family: int, name: str, *arguments: Any) -> Any:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        return getattr(sock, name)(*arguments)


@pytest.mark.parametrize("name", ["connect", "connect_ex"])
class TestConnect:
    @pytest.mark.parametrize(("family", "address"), list(BAD_ADDRESSES.values()), ids=list(BAD_ADDRESSES))
    def test_to_a_bad_address(self, name: str, family: int, address: Any) -> None:
        self.compare(partial(connecting, family, name, address))

    @pytest.mark.parametrize("address", list(bad_addresses("127.0.0.1").values()), ids=list(bad_addresses("127.0.0.1")))
    def test_of_a_tunnelled_socket_to_a_bad_address(self, pairs: SideBySide, name: str, address: Any) -> None:
        pairs.same(method(name, address))

    def test_without_an_address(self, name: str) -> None:
        self.compare(partial(connecting, socket.AF_INET, name))

    def test_with_too_many_arguments(self, name: str) -> None:
        self.compare(partial(connecting, socket.AF_INET, name, ADDRESS, 1))

    def test_of_a_closed_socket(self, name: str) -> None:
        def connect_closed() -> Any:
            sock = socket.socket()
            sock.close()
            return getattr(sock, name)(ADDRESS)

        self.compare(connect_closed)

    def test_of_a_listening_socket(self, name: str) -> None:
        def connect_listening() -> Any:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                return getattr(sock, name)(ADDRESS)

        self.compare(connect_listening)

    def compare(self, call: Callable[[], Any]) -> None:
        plain = outcome(call)
        with gsssocks.installed(NO_PROXY_THERE, no_proxy=[]):
            proxied = outcome(call)
        assert proxied == plain
        assert plain.error or plain.value


class TestBeforeConnecting:
    """A socket that is to be tunnelled, and a plain one."""

    @every(
        recv=method("recv", 5),
        recv_into=method("recv_into", room()),
        recvfrom=method("recvfrom", 5),
        recvmsg=method("recvmsg", 5),
        recvmsg_into=method("recvmsg_into", [room()]),
        send=method("send", DATA),
        sendall=method("sendall", DATA),
        sendto=method("sendto", DATA, ADDRESS),
        sendmsg=method("sendmsg", [DATA]),
        sendfile=lambda sock: sock.sendfile(io.BytesIO(DATA)),
        shutdown=method("shutdown", socket.SHUT_RDWR),
        getpeername=method("getpeername"),
        getsockname=method("getsockname"),
        accept=method("accept"),
        look_at_it=lambda sock: re.sub(r"^<[\w.]+|\d+", "#", repr(sock)),
        duplicate=lambda sock: sock.dup().close(),
        close=method("close"),
    )
    @pytest.mark.parametrize("state", ["new", "bound", "closed"])
    def test_calls(self, call: Call, state: str) -> None:
        plain, proxied = (
            outcome(partial(self.played, kind, call, state)) for kind in (socket.socket, gsssocks.GSSSocket)
        )
        assert proxied == plain

    def played(self, kind: type[socket.socket], call: Call, state: str) -> Any:
        with kind(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            if state == "bound":
                sock.bind(("127.0.0.1", 0))
            elif state == "closed":
                sock.close()
            value = call(sock)
            # A port is the kernel's choice.
            return value[0] if isinstance(value, tuple) else value
