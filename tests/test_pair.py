"""The pairs of `gsssocks.testing` are what the other tests take them for."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Callable

import pytest

from gsssocks import GSSSocket, ProtectionError
from gsssocks.testing import MemoryContext, PlainPeer, TunnelPeer, plain_pair, tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, await_arrival

if TYPE_CHECKING:
    from collections.abc import Iterator

    Pair = tuple[socket.socket, PlainPeer]

KEY = b"a key of no secrecy"
DATA = bytes(range(256)) * 10

both_levels = pytest.mark.parametrize("confidential", [False, True], ids=["integrity", "confidentiality"])


@pytest.fixture
def contexts() -> tuple[MemoryContext, MemoryContext]:
    """Both ends of one security context."""
    return MemoryContext(KEY, initiator=True), MemoryContext(KEY, initiator=False)


class TestMemoryContext:
    @both_levels
    @pytest.mark.parametrize("data", [b"", b"\0", DATA])
    def test_data_comes_out_of_its_protection(
        self, contexts: tuple[MemoryContext, MemoryContext], data: bytes, confidential: bool
    ) -> None:
        one, other = contexts
        for sender, receiver in ((one, other), (other, one), (one, other)):
            assert receiver.unwrap(sender.wrap(data, confidential=confidential)) == (data, confidential)

    def test_confidential_data_cannot_be_seen(self, contexts: tuple[MemoryContext, MemoryContext]) -> None:
        one, _ = contexts
        assert DATA[:8] not in one.wrap(DATA, confidential=True)
        assert DATA in one.wrap(DATA, confidential=False)

    @both_levels
    def test_same_data_is_protected_differently_each_time(
        self, contexts: tuple[MemoryContext, MemoryContext], confidential: bool
    ) -> None:
        one, other = contexts
        tokens = {context.wrap(DATA, confidential=confidential) for context in (one, one, other, other)}
        assert len(tokens) == 4

    @both_levels
    def test_damage_to_any_octet_is_noticed(
        self, contexts: tuple[MemoryContext, MemoryContext], confidential: bool
    ) -> None:
        one, other = contexts
        token = one.wrap(b"data", confidential=confidential)
        for position in range(len(token)):
            damaged = bytearray(token)
            damaged[position] ^= 1
            with pytest.raises(ProtectionError):
                other.unwrap(bytes(damaged))

    @pytest.mark.parametrize("length", [0, 1, 24, 25, 28])
    def test_cut_is_noticed(self, contexts: tuple[MemoryContext, MemoryContext], length: int) -> None:
        one, other = contexts
        with pytest.raises(ProtectionError):
            other.unwrap(one.wrap(b"data", confidential=True)[:length])

    def test_repetition_is_noticed(self, contexts: tuple[MemoryContext, MemoryContext]) -> None:
        one, other = contexts
        token = one.wrap(DATA, confidential=True)
        other.unwrap(token)
        with pytest.raises(ProtectionError, match="message 1 was to come, and 0 came"):
            other.unwrap(token)

    def test_gap_is_noticed(self, contexts: tuple[MemoryContext, MemoryContext]) -> None:
        one, other = contexts
        one.wrap(DATA, confidential=True)
        with pytest.raises(ProtectionError, match="message 0 was to come, and 1 came"):
            other.unwrap(one.wrap(DATA, confidential=True))

    def test_reflection_is_noticed(self, contexts: tuple[MemoryContext, MemoryContext]) -> None:
        one, _ = contexts
        with pytest.raises(ProtectionError):
            one.unwrap(one.wrap(DATA, confidential=True))

    def test_other_key_is_noticed(self, contexts: tuple[MemoryContext, MemoryContext]) -> None:
        stranger = MemoryContext(b"another key", initiator=True)
        with pytest.raises(ProtectionError):
            contexts[1].unwrap(stranger.wrap(DATA, confidential=True))

    @pytest.mark.parametrize("max_token", [100, 0xFFFF])
    @both_levels
    def test_longest_token_is_as_long_as_allowed(
        self, contexts: tuple[MemoryContext, MemoryContext], max_token: int, confidential: bool
    ) -> None:
        size = contexts[0].max_plaintext(confidential=confidential, max_token=max_token)
        assert len(contexts[0].wrap(bytes(size), confidential=confidential)) == max_token


@pytest.fixture(params=[plain_pair, tunnelled_pair])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A pair of either kind; its socket waits, but not for ever."""
    sock, peer = request.param()
    sock.settimeout(PATIENCE_SECONDS)
    with closing(sock), closing(peer):
        yield sock, peer


class TestPairs:
    def test_data_goes_both_ways(self, pair: Pair) -> None:
        sock, peer = pair
        peer.send(DATA)
        assert sock.recv(len(DATA), socket.MSG_WAITALL | socket.MSG_PEEK)[:100] == DATA[:100]
        sock.sendall(DATA)
        assert peer.read_exactly(len(DATA)) == DATA

    def test_what_is_written_is_held_until_it_is_released(self, pair: Pair) -> None:
        sock, peer = pair
        peer.write(DATA)
        peer.write(DATA)
        assert (peer.delivered, peer.arrived(sock)) == (0, True)
        held = peer.held
        assert peer.release(3) == 3
        assert peer.held == held - 3
        assert peer.release() == held - 3
        assert peer.delivered == 2 * len(DATA)
        await_arrival(sock, peer)

    def test_no_more_is_read_than_the_limit(self, pair: Pair) -> None:
        sock, peer = pair
        sock.sendall(DATA)
        read = [peer.read(500) for _ in range(5)]
        assert max(map(len, read)) <= len(DATA)
        assert b"".join(read) + peer.read_exactly(len(DATA) - len(b"".join(read))) == DATA

    def test_more_than_was_awaited_is_noticed(self, pair: Pair) -> None:
        sock, peer = pair
        sock.sendall(DATA)
        with pytest.raises(AssertionError, match="behind the 5 awaited"):
            peer.read_exactly(5)

    def test_finished_peer_still_listens(self, pair: Pair) -> None:
        sock, peer = pair
        peer.finish()
        assert sock.recv(5) == b""
        sock.sendall(DATA)
        sock.close()
        assert peer.read_to_end() == DATA
        assert peer.ended

    def test_reset_arrives(self, pair: Pair) -> None:
        sock, peer = pair
        peer.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(5)

    @pytest.mark.parametrize("make", [plain_pair, tunnelled_pair])
    def test_options(self, make: Callable[..., Pair]) -> None:
        class Own(socket.socket):
            pass

        sock, peer = make(host="::1", buffers=5000, kind=Own)
        with closing(sock), closing(peer):
            assert isinstance(sock, Own)
            assert sock.family == socket.AF_INET6
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 5000
            peer.send(DATA)
            assert sock.recv(5) == DATA[:5]


@pytest.fixture
def tunnel() -> Iterator[tuple[socket.socket, TunnelPeer]]:
    """A tunnelled pair; its socket waits, but not for ever."""
    sock, peer = tunnelled_pair()
    sock.settimeout(PATIENCE_SECONDS)
    with closing(sock), closing(peer):
        yield sock, peer


class TestTunnelledPair:
    def test_plain_one_is_not_tunnelled(self) -> None:
        sock, peer = plain_pair()
        with closing(sock), closing(peer):
            assert type(sock) is socket.socket

    def test_socket_is_tunnelled(self, tunnel: tuple[socket.socket, TunnelPeer]) -> None:
        assert isinstance(tunnel[0], GSSSocket)

    @pytest.mark.parametrize(
        ("protection", "visible"), [("integrity", True), ("confidentiality", False), ("selective", False)]
    )
    def test_messages_are_on_the_wire(self, protection: str, visible: bool) -> None:
        sock, peer = tunnelled_pair(protection=protection)
        with closing(sock), socket.socket(fileno=socket.dup(peer.fileno())) as wire, closing(peer):
            sock.sendall(b"in the clear?")
            wire.settimeout(PATIENCE_SECONDS)
            octets = wire.recv(1000)
        assert octets[:2] == b"\x01\x03"
        assert int.from_bytes(octets[2:4], "big") == len(octets) - 4
        assert (b"in the clear?" in octets) == visible

    def test_message_holds_what_was_written_at_once(self, tunnel: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tunnel
        peer.write(b"one")
        peer.write(b"two")
        length = peer.held // 2
        peer.release(length)
        assert (peer.delivered, peer.inside_message) == (3, False)
        peer.release(length - 1)
        assert (peer.delivered, peer.inside_message) == (3, True)
        assert sock.recv(100) == b"one"
        peer.release(1)
        assert (peer.delivered, peer.inside_message) == (6, False)
        assert sock.recv(100) == b"two"

    def test_messages_are_no_longer_than_asked_for(self) -> None:
        sock, peer = tunnelled_pair(max_plaintext=100)
        with closing(sock), closing(peer):
            sock.sendall(bytes(250))
            peer.read_exactly(250)
            assert peer.messages == 3

    def test_data_without_encryption_is_noticed_by_the_socket(self, tunnel: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tunnel
        peer.inject(peer.message(DATA, confidential=False))
        peer.release()
        with pytest.raises(ProtectionError, match="unencrypted"):
            sock.recv(100)

    @pytest.mark.parametrize(
        ("octets", "says"),
        [
            (b"plaintext", "a message begins with 0x70 0x6c"),
            (b"\x01\x03\x00\x02ab", "damaged or forged"),
        ],
    )
    def test_anything_but_messages_is_noticed_by_the_peer(
        self, tunnel: tuple[socket.socket, TunnelPeer], octets: bytes, says: str
    ) -> None:
        sock, peer = tunnel
        socket.socket.sendall(sock, octets)  # past the tunnel
        with pytest.raises((AssertionError, ProtectionError), match=says):
            peer.read_exactly(1)

    def test_end_inside_a_message_is_noticed_by_the_peer(self, tunnel: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tunnel
        socket.socket.sendall(sock, b"\x01\x03\x00\x02a")  # past the tunnel
        sock.close()
        with pytest.raises(AssertionError, match="inside a message, after 5 octets"):
            peer.read_to_end()


def test_a_pair_may_be_the_first_use_of_the_package() -> None:
    program = (
        "from gsssocks.testing import tunnelled_pair\n"
        "sock, peer = tunnelled_pair()\n"
        "peer.send(b'data')\n"
        "print(sock.recv(4))\n"
        "sock.close()\n"
        "peer.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("b'data'\n", "")
