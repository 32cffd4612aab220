"""Whatever a plain UDP socket refuses or answers, one through a real Dante does too: each call is made on both, and
compared.

No result is written down here: the standard is the plain socket of the Python and the kernel that run the test.
"""

from __future__ import annotations

import array
import select
import socket
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks import GSSSocket
from tests.peers.beside import Index, Outcome, every, in_pieces, method, numbers, outcome, rectangle
from tests.peers.datagrams import UDPEcho
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm
    from tests.peers.beside import Call
    from tests.peers.dante import Dante

DATA = b"hello, world"
NOWHERE = ("127.0.0.1", 9)


@pytest.fixture(scope="module")
def echo() -> Iterator[UDPEcho]:
    with UDPEcho() as started:
        yield started


class Both:
    """A plain socket and one through a proxy, neither of which waits, and an echo."""

    def __init__(self, proxy: str, echo: UDPEcho) -> None:
        self.address = echo.address
        self.plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.proxied = GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=proxy)
        for sock in self.socks:
            sock.settimeout(0)

    @property
    def socks(self) -> tuple[socket.socket, socket.socket]:
        return self.plain, self.proxied

    def each(self, call: Callable[[socket.socket], Any]) -> None:
        for sock in self.socks:
            call(sock)

    def echoed(self, *data: bytes) -> None:
        """Each has sent this, and its echo has arrived."""
        for octets in data:
            self.each(lambda sock, octets=octets: sock.sendto(octets, self.address))  # type: ignore[misc]
        for sock in self.socks:
            assert select.select([sock], [], [], PATIENCE_SECONDS)[0]

    def same(self, call: Callable[[socket.socket], Any]) -> Outcome:
        """What becomes of the call on either: the test fails if that is not the same."""
        plain, proxied = (outcome(lambda sock=sock: call(sock)) for sock in self.socks)  # type: ignore[misc]
        assert proxied == plain, f"plain: {plain}, through the proxy: {proxied}"
        return plain


@pytest.fixture
def both(realm: Realm, dante_confidentiality: Dante, echo: UDPEcho) -> Iterator[Both]:
    with realm.activate():
        made = Both(dante_confidentiality.url(), echo)
        yield made
        made.each(socket.socket.close)


RECEIVING = every(
    recv=method("recv", 100),
    recv_a_part=method("recv", 5),
    recv_nothing=method("recv", 0),
    recv_of_an_index=method("recv", Index(5)),
    recv_of_no_number=method("recv", "5"),
    recv_of_less_than_nothing=method("recv", -1),
    recv_of_a_fraction=method("recv", 5.0),
    recv_without_size=method("recv"),
    recv_with_too_much=method("recv", 5, 0, 0),
    recv_with_flags_that_are_none=method("recv", 5, "0"),
    recv_with_flags_too_large=method("recv", 5, 2**40),
    recv_dontwait=method("recv", 100, socket.MSG_DONTWAIT),
    recv_all=method("recv", 100, socket.MSG_WAITALL),
    recv_urgent=method("recv", 100, socket.MSG_OOB),
    recv_errors=method("recv", 100, socket.MSG_ERRQUEUE),
    recv_peek=method("recv", 100, socket.MSG_PEEK),
    recv_peek_a_part=method("recv", 3, socket.MSG_PEEK),
    recvfrom=method("recvfrom", 100),
    recvfrom_a_part=method("recvfrom", 5),
    recvfrom_nothing=method("recvfrom", 0),
    recvfrom_of_no_number=method("recvfrom", None),
    recvmsg=method("recvmsg", 100),
    recvmsg_a_part=method("recvmsg", 5),
    recvmsg_nothing=method("recvmsg", 0),
    recvmsg_with_ancillary_data=method("recvmsg", 100, 100),
    recvmsg_peek=method("recvmsg", 100, 0, socket.MSG_PEEK),
    recvmsg_a_part_and_its_length=method("recvmsg", 5, 0, socket.MSG_TRUNC),
    recvmsg_close_on_exec=method("recvmsg", 100, 0, socket.MSG_CMSG_CLOEXEC),
    recvmsg_of_less_than_nothing=method("recvmsg", -1),
    recvmsg_with_less_than_no_ancillary_data=method("recvmsg", 5, -1),
)


@RECEIVING
def test_receiving_what_is_there(both: Both, call: Call) -> None:
    both.echoed(DATA)
    both.same(call)
    both.same(method("recv", 100))


@RECEIVING
def test_receiving_what_is_empty(both: Both, call: Call) -> None:
    both.echoed(b"")
    both.same(call)
    both.same(method("recv", 100))


@RECEIVING
def test_receiving_what_is_not_there(both: Both, call: Call) -> None:
    both.each(lambda sock: sock.connect(both.address))
    both.same(call)


@RECEIVING
def test_receiving_in_time(both: Both, call: Call) -> None:
    both.each(lambda sock: sock.connect(both.address))
    both.echoed(DATA)
    both.each(lambda sock: sock.recv(100))
    both.each(lambda sock: sock.settimeout(0.01))
    both.same(call)


@RECEIVING
def test_receiving_on_a_closed_socket(both: Both, call: Call) -> None:
    both.each(socket.socket.close)
    both.same(call)


def into(name: str, make: Callable[[], Any], *arguments: Any) -> Call:
    """A call that fills a buffer of its own; what is in it then counts, too."""

    def call(sock: Any) -> Any:
        buffer = make()
        result = getattr(sock, name)(buffer, *arguments)
        return result, bytes(buffer) if not isinstance(buffer, list) else [bytes(part) for part in buffer]

    return call


@every(
    large=into("recv_into", lambda: bytearray(100)),
    small=into("recv_into", lambda: bytearray(5)),
    small_and_its_length=into("recv_into", lambda: bytearray(5), 0, socket.MSG_TRUNC),
    empty=into("recv_into", lambda: bytearray(0)),
    a_part_of_it=into("recv_into", lambda: bytearray(100), 5),
    more_than_it=into("recv_into", lambda: bytearray(5), 100),
    less_than_nothing=into("recv_into", lambda: bytearray(5), -1),
    numbers=into("recv_into", lambda: array.array("i", [0] * 10)),
    constant=into("recv_into", lambda: bytes(100)),
    no_buffer=into("recv_into", lambda: "text"),
    peek=into("recv_into", lambda: bytearray(100), 0, socket.MSG_PEEK),
    from_large=into("recvfrom_into", lambda: bytearray(100)),
    from_small=into("recvfrom_into", lambda: bytearray(5)),
    from_no_buffer=into("recvfrom_into", lambda: None),
    message=into("recvmsg_into", lambda: [bytearray(5), bytearray(0), bytearray(100)]),
    message_too_long=into("recvmsg_into", lambda: [bytearray(2), bytearray(3)]),
    message_too_long_and_its_length=into("recvmsg_into", lambda: [bytearray(2)], 0, socket.MSG_TRUNC),
    message_into_nothing=into("recvmsg_into", list),
    message_into_text=into("recvmsg_into", lambda: ["text"]),
)
def test_receiving_into_buffers(both: Both, call: Call) -> None:
    both.echoed(DATA)
    both.same(call)
    both.same(method("recv", 100))


def test_datagrams_are_not_joined(both: Both) -> None:
    both.echoed(b"one", b"two")
    both.each(lambda sock: sock.settimeout(PATIENCE_SECONDS))
    assert both.same(lambda sock: [sock.recv(100), sock.recv(100)]).value == [b"one", b"two"]


def test_datagram_looked_at_is_received_once(both: Both) -> None:
    both.echoed(b"one", b"two")
    both.each(lambda sock: sock.settimeout(PATIENCE_SECONDS))
    peek = socket.MSG_PEEK
    seen = both.same(lambda sock: [sock.recv(2, peek), sock.recv(9, peek), sock.recv(9), sock.recv(9, peek)])
    assert seen.value == [b"on", b"one", b"one", b"two"]


@every(
    send=method("send", DATA),
    send_nothing=method("send", b""),
    send_a_view=method("send", memoryview(DATA)[2:5]),
    send_numbers=method("send", numbers()),
    send_a_rectangle=method("send", rectangle()),
    send_in_pieces=method("send", in_pieces()),
    send_text=method("send", "hello"),
    send_with_flags_that_are_none=method("send", DATA, "0"),
    send_urgent=method("send", DATA, socket.MSG_OOB),
    send_dontwait=method("send", DATA, socket.MSG_DONTWAIT),
    send_without_data=method("send"),
    sendall=method("sendall", DATA),
    sendall_nothing=method("sendall", b""),
    sendall_text=method("sendall", "hello"),
    sendmsg=method("sendmsg", [b"hel", b"", b"lo"]),
    sendmsg_nothing=method("sendmsg", []),
    sendmsg_text=method("sendmsg", ["text"]),
    sendmsg_of_no_list=method("sendmsg", 5),
)
@pytest.mark.parametrize("situation", ["unconnected", "connected", "shut", "closed"])
def test_sending_to_the_peer(both: Both, call: Call, situation: str) -> None:
    if situation != "unconnected":
        both.each(lambda sock: sock.connect(both.address))
    if situation == "shut":
        both.each(lambda sock: sock.shutdown(socket.SHUT_WR))
    if situation == "closed":
        both.each(socket.socket.close)
    both.same(call)


ARGUMENTS = every(
    sendto_without_address=method("sendto", DATA),
    sendto_text=method("sendto", "hello", NOWHERE),
    sendto_with_flags=method("sendto", DATA, 0, NOWHERE),
    sendto_with_flags_that_are_none=method("sendto", DATA, "0", NOWHERE),
    sendto_with_too_much=method("sendto", DATA, 0, NOWHERE, 0),
    sendto_no_tuple=method("sendto", DATA, "127.0.0.1"),
    sendto_a_list=method("sendto", DATA, ["127.0.0.1", 9]),
    sendto_none=method("sendto", DATA, None),
    sendto_one_part=method("sendto", DATA, ("127.0.0.1",)),
    sendto_three_parts=method("sendto", DATA, ("127.0.0.1", 9, 0)),
    sendto_no_host=method("sendto", DATA, (None, 9)),
    sendto_a_port_of_text=method("sendto", DATA, ("127.0.0.1", "9")),
    sendto_a_port_too_large=method("sendto", DATA, ("127.0.0.1", 65536)),
    sendto_a_port_too_small=method("sendto", DATA, ("127.0.0.1", -1)),
    sendto_port_0=method("sendto", DATA, ("127.0.0.1", 0)),
    sendto_a_null=method("sendto", DATA, ("local\0host", 9)),
    sendto_urgent=method("sendto", DATA, socket.MSG_OOB, NOWHERE),
    sendto_a_host_of_octets=method("sendto", DATA, (b"127.0.0.1", 9)),
    sendmsg=method("sendmsg", [DATA], [], 0, NOWHERE),
    sendmsg_no_tuple=method("sendmsg", [DATA], [], 0, "127.0.0.1"),
    sendmsg_a_port_too_large=method("sendmsg", [DATA], [], 0, ("127.0.0.1", 65536)),
    connect_no_tuple=method("connect", "127.0.0.1"),
    connect_a_port_too_large=method("connect", ("127.0.0.1", 65536)),
    connect_ex_no_tuple=method("connect_ex", "127.0.0.1"),
    connect_ex=method("connect_ex", NOWHERE),
    listen=method("listen", 5),
    accept=method("accept"),
    shutdown=method("shutdown", socket.SHUT_RDWR),
    shutdown_no_way=method("shutdown", 7),
    getpeername=method("getpeername"),
    sendfile=lambda sock: sock.sendfile(open(__file__, "rb")),  # noqa: SIM115
    as_a_context=lambda sock: sock.__enter__() is sock,
    family=lambda sock: (sock.family, sock.type, sock.proto),
)


@ARGUMENTS
@pytest.mark.parametrize("situation", ["unconnected", "connected", "closed"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_arguments_and_answers(both: Both, call: Call, situation: str) -> None:
    if situation == "connected":
        both.each(lambda sock: sock.connect(both.address))
    if situation == "closed":
        both.each(socket.socket.close)
    both.same(call)


@ARGUMENTS
@pytest.mark.parametrize("situation", ["unconnected", "closed"])
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_arguments_and_answers_of_a_patched_socket(
    realm: Realm, dante_confidentiality: Dante, call: Call, situation: str
) -> None:
    def judged() -> Outcome:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(0)
            if situation == "closed":
                sock.close()
            return outcome(lambda: call(sock))

    plain = judged()
    with realm.activate(), gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
        assert judged() == plain


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shutting_down(both: Both, how: int) -> None:
    both.each(lambda sock: sock.connect(both.address))
    both.echoed(DATA)
    both.same(method("shutdown", how))
    both.same(method("recv", 100))
    both.each(lambda sock: sock.settimeout(None))
    if how != socket.SHUT_WR:
        both.same(method("recvfrom", 100))
    both.same(method("send", DATA))


def test_files(both: Both) -> None:
    both.each(lambda sock: sock.settimeout(PATIENCE_SECONDS))
    both.each(lambda sock: sock.connect(both.address))

    def exchange(sock: Any) -> Any:
        with sock.makefile("rwb", buffering=0) as file:
            return file.write(DATA), file.read(100)

    assert both.same(exchange).value == (len(DATA), DATA)


def test_names(both: Both) -> None:
    both.same(lambda sock: sock.getsockname())
    both.each(lambda sock: sock.connect(both.address))
    both.same(lambda sock: (sock.getpeername(), sock.getsockname()[0], sock.getsockname()[1] != 0))


def test_bound(both: Both) -> None:
    both.each(lambda sock: sock.bind(("127.0.0.1", 0)))
    both.same(lambda sock: sock.getsockname()[0])
    both.echoed(DATA)
    both.same(method("recvfrom", 100))
    both.same(method("bind", ("127.0.0.1", 0)))


def test_events(both: Both) -> None:
    both.each(lambda sock: sock.connect(both.address))

    def events(sock: socket.socket) -> Any:
        poll = select.poll()
        poll.register(sock)
        return [event for _, event in poll.poll(0)]

    both.same(events)
    both.echoed(DATA)
    both.same(events)
    both.same(method("recv", 3))
    both.same(events)
    both.each(lambda sock: sock.shutdown(socket.SHUT_RDWR))
    both.same(events)


def test_too_long(both: Both) -> None:
    """The largest datagram is smaller; one that is too long for both is refused alike."""
    both.same(lambda sock: sock.sendto(bytes(65508), both.address))
