"""Connected pairs for tests of a socket's behaviour: a real loopback TCP connection whose far end does exactly what it
is told, octet by octet.

    sock, peer = tunnelled_pair()
    peer.write(b"hello")
    peer.release(3)      # the beginning of the message arrives
    peer.release()       # the rest

A tunnelled pair needs no KDC: its security contexts are a few lines of this module. They protect in earnest, so a
message changed, lost, repeated or swapped is noticed as it is with Kerberos.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import secrets
import select
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Callable, Protocol

from gsssocks import (
    _originals,
    _socket,  # noqa: F401  # which has what `adopt` makes of a socket
)
from gsssocks._config import PROTECTION_LEVELS, Proxy
from gsssocks._protocol import MAX_TOKEN, Address, MessageType, message_header
from gsssocks._record import ProtectedRecords
from gsssocks._security import Granted, Unwrapped
from gsssocks._stream import ProtectedStream
from gsssocks._switching import adopt
from gsssocks._tunnel import Tunnel, remember
from gsssocks.exceptions import ProtectionError

if TYPE_CHECKING:
    from types import TracebackType

    from gsssocks._protocol import ProtectionLevel
    from gsssocks._security import Arrived, Sealed

__all__ = ["MemoryContext", "Peer", "PlainPeer", "TunnelPeer", "plain_pair", "tunnelled_pair"]

PATIENCE_SECONDS = 20.0
"""How long to wait for what must happen."""

_HEADER = struct.Struct(">?Q")
_TAG_SIZE = 16
_OVERHEAD = _HEADER.size + _TAG_SIZE
_MESSAGE = struct.Struct(">BBH")
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no time; close() then sends RST
_SMALL_SEGMENT = 536
_PIECE = 1 << 18

_TCP_INFO = getattr(socket, "TCP_INFO", None)
_BYTES_RECEIVED = struct.Struct("@128xQ")
"""`tcpi_bytes_received` in Linux' struct tcp_info."""


class MemoryContext:
    """A `SecurityContext` that is complete from the beginning: HMAC and an exclusive or with a hash, both from a
    shared key.

    A token is: whether it is encrypted, its number, the data, a tag. For tests only: it has not been looked at as
    cryptography deserves.

    Args:
        key: what both ends share.
        initiator: which end this is.
        max_plaintext: limit of its own to the octets in one token; None for what a message can hold.
    """

    complete = True
    granted = Granted(mutual=True, replay=True, sequence=True, integrity=True, confidentiality=True, delegated=False)
    initiator_name: str | None = "initiator@MEMORY"
    target_name: str | None = "socks/peer@MEMORY"
    mechanism = "memory"
    lifetime: int | None = None

    def __init__(self, key: bytes, *, initiator: bool, max_plaintext: int | None = None) -> None:
        self._key = key
        self._initiator = initiator
        self._max_plaintext = max_plaintext
        self._sent = 0
        self._received = 0
        self._numbers: set[int] = set()

    def step(self, token: bytes | None) -> bytes | None:
        """Never needed: the context is complete."""
        raise ProtectionError(errno.EPROTO, f"a complete context takes no token, and got {token!r}")

    def max_plaintext(self, *, confidential: bool, max_token: int) -> int:  # noqa: ARG002 - both cost the same
        """The most octets that fit a token of `max_token` octets."""
        room = max_token - _OVERHEAD
        return room if self._max_plaintext is None else min(room, self._max_plaintext)

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """The next token."""
        header = _HEADER.pack(confidential, self._sent)
        sealed = header + (self._masked(header, data, self._initiator) if confidential else data)
        token = sealed + self._tag(sealed, self._initiator)
        # Last, for a signal handler may raise at any call before.
        self._sent += 1
        return token

    def wrap_onto(self, sealed: Sealed, data: bytes, *, confidential: bool) -> None:
        """The next token, appended to `sealed` in the same step."""
        sealed += zip(
            zip(map(partial(self.wrap, confidential=confidential), (data,)), (confidential,)),
            (confidential,),
        )

    def unwrap(self, token: bytes) -> Unwrapped:
        """The data in the peer's next token.

        Raises:
            ProtectionError: it is not that.
        """
        number, unwrapped = self._opened(token)
        if number != self._received:
            raise ProtectionError(errno.EPROTO, f"message {self._received} was to come, and {number} came")
        self._received += 1
        return unwrapped

    def unwrap_onto(self, arrived: Arrived, token: bytes, note: int) -> None:
        """The data in the peer's next token, appended to `arrived` in the same step."""
        arrived += zip(map(self.unwrap, (token,)), (note,))

    def unwrap_datagram(self, token: bytes) -> Unwrapped | None:
        """The same in any order; None for a token that has been here before.

        Raises:
            ProtectionError: it is not one of the peer's.
        """
        number, unwrapped = self._opened(token)
        if number in self._numbers:
            return None
        self._numbers.add(number)
        return unwrapped

    def _opened(self, token: bytes) -> tuple[int, Unwrapped]:
        sealed, tag = token[:-_TAG_SIZE], token[-_TAG_SIZE:]
        if len(token) < _OVERHEAD or not hmac.compare_digest(tag, self._tag(sealed, not self._initiator)):
            raise ProtectionError(errno.EPROTO, "a message was damaged or forged")
        header = sealed[: _HEADER.size]
        confidential, number = _HEADER.unpack(header)
        data = sealed[_HEADER.size :]
        plain = self._masked(header, data, not self._initiator) if confidential else data
        return number, Unwrapped(plain, confidential)

    def _tag(self, sealed: bytes, from_initiator: bool) -> bytes:  # noqa: FBT001 - one of two directions
        return hmac.digest(self._direction(from_initiator), sealed, "sha256")[:_TAG_SIZE]

    def _masked(self, header: bytes, data: bytes, from_initiator: bool) -> bytes:  # noqa: FBT001 - as above
        mask = hashlib.shake_128(self._direction(from_initiator) + header).digest(len(data))
        masked = int.from_bytes(mask, "little") ^ int.from_bytes(data, "little")
        return masked.to_bytes(len(data), "little")

    def _direction(self, from_initiator: bool) -> bytes:  # noqa: FBT001 - as above
        return self._key + (b"i" if from_initiator else b"a")


class Peer(Protocol):
    """The far end of a pair: whoever plays it decides when each octet leaves, and when it ends.

    Nothing here waits.
    """

    @property
    def held(self) -> int:
        """Octets, as they are on the wire, that `write` has made ready and that have not left."""

    @property
    def delivered(self) -> int:
        """Octets of data that the other end can have by now: of whole messages, where there are messages."""

    def write(self, data: bytes) -> None:
        """Makes `data` ready to leave, as one message, where there are messages and it fits."""

    def release(self, count: int | None = None) -> int:
        """Lets `count` octets on the wire leave, or all; returns how many did: fewer when the kernel is full."""

    @property
    def inside_message(self) -> bool:
        """Whether what has left ends in the middle of a message: if it ends there, data is missing."""

    def arrived(self, sock: socket.socket) -> bool:
        """Whether it is certain that the kernel of the other end, `sock`, has all that has left."""

    def read(self) -> bytes:
        """The data that has arrived, b"" if none has."""

    @property
    def ended(self) -> bool:
        """Whether `read` has come to the end of what the other end had to say."""

    def finish(self) -> None:
        """Says no more (a half-close), also in the middle of a message. What is held never leaves."""

    def close(self) -> None:
        """Closes the connection."""

    def reset(self) -> None:
        """Breaks the connection."""

    def fileno(self) -> int:
        """Its descriptor, to wait for."""


class PlainPeer:
    """The far end of a plain connection: data is on the wire as it is.

    Args:
        connection: its socket, which it takes over.
        direct: whether the other end of the connection is the socket under test. Where a proxy stands between them,
            nobody can say when something has arrived.
    """

    def __init__(self, connection: socket.SocketType, *, direct: bool = True) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._direct = direct
        self._held = bytearray()
        self._released = 0
        self._ended = False

    def __enter__(self) -> PlainPeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Its descriptor, to wait for."""
        return self._connection.fileno()

    # Sending

    @property
    def held(self) -> int:
        """Octets, as they are on the wire, that are ready to leave and have not left."""
        return len(self._held)

    @property
    def delivered(self) -> int:
        """Octets of data that the other end can have by now."""
        return self._released

    @property
    def inside_message(self) -> bool:
        """Whether what has left ends in the middle of a message: never, here."""
        return False

    def write(self, data: bytes) -> None:
        """Makes `data` ready to leave."""
        self.inject(data)

    def inject(self, octets: bytes) -> None:
        """Makes `octets` ready to leave as they are."""
        self._held += octets

    def release(self, count: int | None = None) -> int:
        """Lets `count` octets on the wire leave, or all; returns how many did: fewer when the kernel is full."""
        if count is None:
            count = len(self._held)
        sent = 0
        with suppress(BlockingIOError):
            while sent < min(count, len(self._held)):
                sent += self._connection.send(self._held[sent:count])
        del self._held[:sent]
        self._released += sent
        return sent

    def send(self, data: bytes) -> None:
        """Writes, and releases all, waiting for room.

        Raises:
            TimeoutError: there was none for too long.
        """
        self.write(data)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._held:
            self._wait(deadline, select.POLLOUT)
            self.release()

    def arrived(self, sock: socket.socket) -> bool:
        """Whether it is certain that the kernel of the other end, `sock`, has all that has left."""
        if _TCP_INFO is None or not self._direct:
            return False
        information = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _BYTES_RECEIVED.size)
        if len(information) < _BYTES_RECEIVED.size:
            return False
        count: int = _BYTES_RECEIVED.unpack(information)[0]
        return count >= self._released

    # Receiving

    @property
    def ended(self) -> bool:
        """Whether `read` has come to the end of what the other end had to say."""
        return self._ended

    def read(self, limit: int | None = None) -> bytes:
        """The data that has arrived, b"" if none has.

        Args:
            limit: octets on the wire to take at most; None for all.
        """
        data = bytearray()
        with suppress(BlockingIOError):
            while limit is None or limit > 0:
                octets = self._connection.recv(_PIECE if limit is None else limit)
                if not octets:
                    self._end()
                    break
                data += self._data_in(octets)
                limit = None if limit is None else limit - len(octets)
        return bytes(data)

    def read_exactly(self, size: int) -> bytes:
        """`size` octets of data, fewer only if the stream ends before them.

        Raises:
            TimeoutError: they did not arrive.
            AssertionError: more did.
        """
        data = self._read_while(lambda got: got < size)
        assert len(data) <= size, f"{len(data) - size} octets arrived behind the {size} awaited"
        return data

    def read_to_end(self) -> bytes:
        """All data up to the end of the stream.

        Raises:
            TimeoutError: it did not end.
        """
        return self._read_while(lambda _: True)

    def _read_while(self, wanted: Callable[[int], bool]) -> bytes:
        data = bytearray(self.read())
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted(len(data)) and not self._ended:
            self._wait(deadline, select.POLLIN)
            data += self.read()
        return bytes(data)

    def _data_in(self, octets: bytes) -> bytes:
        return octets

    def _end(self) -> None:
        self._ended = True

    def _wait(self, deadline: float, event: int) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), event)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise socket.timeout("what had to happen did not")

    # Ending

    def finish(self) -> None:
        """Says no more (a half-close). What is held never leaves."""
        self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def reset(self) -> None:
        """Breaks the connection."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._connection.close()


class TunnelPeer(PlainPeer):
    """The far end of a tunnelled connection: data is on the wire in encapsulated messages (RFC 1961, section 5).

    Args:
        connection: its socket, which it takes over.
        context: its end of the security context.
        confidential: whether the messages are encrypted, and those received must be.

    Attributes:
        messages: how many whole messages have been received.
    """

    def __init__(self, connection: socket.SocketType, context: MemoryContext, *, confidential: bool) -> None:
        super().__init__(connection)
        self.messages = 0
        self._context = context
        self._confidential = confidential
        self._max_plaintext = context.max_plaintext(confidential=confidential, max_token=MAX_TOKEN)
        self._incoming = bytearray()
        self._boundary = 0
        self._delivered = 0
        self._written = 0
        self._ends: deque[tuple[int, int]] = deque()  # of the messages not yet released: on the wire, in the data

    @property
    def delivered(self) -> int:
        """Octets of data in the whole messages that have left."""
        while self._ends and self._ends[0][0] <= self._released:
            self._boundary, self._delivered = self._ends.popleft()
        return self._delivered

    @property
    def inside_message(self) -> bool:
        """Whether what has left ends in the middle of a message: if it ends there, data is missing."""
        _ = self.delivered
        return self._released != self._boundary

    @property
    def partial(self) -> int:
        """Octets received of a message that is not complete."""
        return len(self._incoming)

    def message(self, data: bytes, *, confidential: bool | None = None) -> bytes:
        """The next message, to be damaged or left out: give it to `inject`, which `delivered` knows nothing of.

        Args:
            data: what it holds.
            confidential: whether it is encrypted; None for what was agreed on.
        """
        wanted = self._confidential if confidential is None else confidential
        token = self._context.wrap(data, confidential=wanted)
        return message_header(MessageType.ENCAPSULATED, len(token)) + token

    def write(self, data: bytes) -> None:
        """Makes `data` ready to leave: as one message if it fits, be it empty."""
        for start in range(0, max(len(data), 1), self._max_plaintext):
            piece = data[start : start + self._max_plaintext]
            self.inject(self.message(piece))
            self._written += len(piece)
            self._ends.append((self._released + len(self._held), self._written))

    def _end(self) -> None:
        assert not self._incoming, f"the stream ended inside a message, after {len(self._incoming)} octets of it"
        super()._end()

    def _data_in(self, octets: bytes) -> bytes:
        # Written without the framing of the package, which is under test here.
        self._incoming += octets
        data = bytearray()
        while len(self._incoming) >= _MESSAGE.size:
            version, kind, length = _MESSAGE.unpack_from(self._incoming)
            assert (version, kind) == (1, 3), f"a message begins with {version:#04x} {kind:#04x}"
            end = _MESSAGE.size + length
            if len(self._incoming) < end:
                break
            plain, confidential = self._context.unwrap(bytes(self._incoming[_MESSAGE.size : end]))
            assert confidential or not self._confidential, "a message is not encrypted"
            del self._incoming[:end]
            self.messages += 1
            data += plain
        return bytes(data)


def plain_pair(
    *, host: str = "127.0.0.1", buffers: int | None = None, kind: type[socket.socket] = socket.socket
) -> tuple[socket.socket, PlainPeer]:
    """A plain socket connected to a peer: the standard by which a tunnelled one is judged.

    Args:
        host: a loopback address.
        buffers: SO_SNDBUF and SO_RCVBUF of both ends; None for the system's.
        kind: class of the socket.
    """
    near, far = _connected(host, buffers, kind)
    return near, PlainPeer(far)


def tunnelled_pair(
    *,
    host: str = "127.0.0.1",
    protection: str = "confidentiality",
    max_plaintext: int | None = None,
    buffers: int | None = None,
    kind: type[socket.socket] = socket.socket,
) -> tuple[socket.socket, TunnelPeer]:
    """A tunnelled socket, as `install()` makes it, connected to a peer that plays proxy and target in one.

    Args:
        host: a loopback address.
        protection: "confidentiality", "integrity" or "selective".
        max_plaintext: octets of data in one message, at most; None for what fits.
        buffers: SO_SNDBUF and SO_RCVBUF of both ends; None for the system's.
        kind: class of the socket before it became a tunnelled one.
    """
    near, far = _connected(host, buffers, kind)
    level = PROTECTION_LEVELS[protection]
    key = secrets.token_bytes(16)
    _put_into_tunnel(near, MemoryContext(key, initiator=True, max_plaintext=max_plaintext), level)
    context = MemoryContext(key, initiator=False, max_plaintext=max_plaintext)
    return near, TunnelPeer(far, context, confidential=protection != "integrity")


def _put_into_tunnel(sock: socket.socket, context: MemoryContext, level: ProtectionLevel) -> None:
    """What a successful negotiation leaves behind."""
    peername = sock.getpeername()
    tunnel = Tunnel([Proxy("proxy.example")], Address(*peername[:2]), peername)
    tunnel.bound = Address(*sock.getsockname()[:2])
    tunnel.local = sock.getsockname()
    tunnel.context = context
    tunnel.stream = ProtectedStream(ProtectedRecords(context, level))
    tunnel.settle()
    remember(tunnel, sock.fileno())
    adopt(sock)


def _connected(host: str, buffers: int | None, kind: type[socket.socket]) -> tuple[socket.socket, socket.SocketType]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The C type's own methods throughout: a test process may have replaced the others.
    raw = _originals.SocketType
    listener = raw(family, socket.SOCK_STREAM)
    near = kind(family, socket.SOCK_STREAM)
    try:
        _set_buffers(listener, buffers)
        _set_buffers(near, buffers)
        # Or thousands of pairs would use up the ports: each leaves one in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen(1)
        # Waiting: after a connect that does not, Linux lets another one succeed.
        raw.setblocking(near, True)
        raw.connect(near, listener.getsockname())
        near.settimeout(socket.getdefaulttimeout())
        # Several small messages in a row must not wait for each other's acknowledgement.
        raw.setsockopt(near, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far = raw(family, socket.SOCK_STREAM, 0, fileno=listener._accept()[0])  # type: ignore[attr-defined]  # noqa: SLF001
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        near.close()
        raise
    finally:
        listener.close()
    return near, far


def _set_buffers(sock: socket.SocketType, size: int | None) -> None:
    if size is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    # A window smaller than a segment of the loopback interface makes TCP wait for its timers.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT)
