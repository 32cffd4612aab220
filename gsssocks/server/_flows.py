"""The relay between client and target: two flows, none of which waits."""

from __future__ import annotations

import selectors
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Protocol

from gsssocks._transport import Deadline
from gsssocks.exceptions import ProxyError

from ._sockets import undelivered
from ._waiting import NEVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gsssocks import _originals
    from gsssocks._stream import ProtectedStream
    from gsssocks._transport import Transport

    from ._waiting import StopSign

__all__ = ["READ_SIZE", "ClientEnd", "Flow", "TargetEnd", "relay"]

READ_SIZE = 64 * 1024
LINGER_SECONDS = 10.0
"""How long what one side sent before its connection broke may take to reach the other."""
LOOK_AGAIN_SECONDS = 0.02
_NOW = Deadline(0)


class _End(Protocol):
    """One end of the relay. Nothing here waits: BlockingIOError says that there is nothing to be had, or no room.

    Attributes:
        broken: why it takes no more octets, or has none to give.
    """

    broken: OSError | None

    @property
    def fd(self) -> int: ...

    def read(self) -> bytes:
        """Some octets; none at the end of the data."""

    def write(self, data: memoryview) -> int:
        """Accepts octets from the front of `data`; returns how many."""

    def finish(self) -> None:
        """No more octets will be written."""


class ClientEnd:
    """The tunnel, in which every octet travels protected."""

    def __init__(self, stream: ProtectedStream, transport: Transport) -> None:
        self.fd = transport.fd
        self.broken: OSError | None = None
        self._stream = stream
        self._transport = transport

    def read(self) -> bytes:
        return self._stream.receive(self._transport, READ_SIZE, _NOW)

    def write(self, data: memoryview) -> int:
        return self._stream.send(self._transport, data, _NOW)

    def finish(self) -> None:
        self._stream.shut_down(self._transport, socket.SHUT_WR)


class TargetEnd:
    """The plain connection to the target."""

    def __init__(self, sock: _originals.SocketType, read_size: int) -> None:
        self.fd = sock.fileno()
        self.broken: OSError | None = None
        self._socket = sock
        self._read_size = read_size

    def read(self) -> bytes:
        return self._socket.recv(self._read_size)

    def write(self, data: memoryview) -> int:
        return self._socket.send(data)

    def finish(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


class Flow:
    """One direction of the relay: reads no more before what has been read has been written.

    Where the sink takes no more, this direction has ended. The other one goes on, since what had arrived from there
    before is still to be delivered; but then the connection is gone, and its end is no end of the data.

    Attributes:
        octets: how many have been written.
        ended: whether there will be no more.
    """

    def __init__(self, source: _End, sink: _End) -> None:
        self.octets = 0
        self.ended = False
        self._source = source
        self._sink = sink
        self._pending = memoryview(b"")

    @property
    def wanted(self) -> tuple[int, int]:
        """The descriptor and the event without which nothing moves."""
        if self._pending:
            return self._sink.fd, selectors.EVENT_WRITE
        return self._source.fd, selectors.EVENT_READ

    def move(self) -> None:
        """Moves what can be moved at once.

        Raises:
            OSError: the source is broken, or its data are.
        """
        with suppress(BlockingIOError):
            if not self._pending:
                self._fetch()
            self._deliver()

    def _fetch(self) -> None:
        try:
            self._pending = memoryview(self._source.read())
        except BlockingIOError:
            raise
        except OSError as error:
            self._source.broken = error
            raise
        if not self._pending and self._source.broken:
            raise self._source.broken

    def _deliver(self) -> None:
        try:
            if not self._pending:
                self._sink.finish()
                self.ended = True
                return
            written = self._sink.write(self._pending)
        except (BlockingIOError, ProxyError):
            raise
        except OSError as error:
            self._sink.broken = error
            self.ended = True
            return
        self._pending = self._pending[written:]
        self.octets += written


def relay(client: ClientEnd, target: TargetEnd, stop: StopSign, note: Callable[[int, int], None]) -> None:
    """Carries data both ways up to both ends of the data.

    Args:
        note: told now and then how many octets have gone to the target, and to the client.

    Raises:
        OSError: one side is broken. What came from it before has reached the other as far as it could.
    """
    try:
        _carry(Flow(client, target), Flow(target, client), stop, note)
        broken = client.broken or target.broken
        if broken:
            raise broken
    except OSError:
        for end in (client, target):
            if not end.broken:
                _wait_delivered(end.fd, stop)
        raise


def _carry(upward: Flow, downward: Flow, stop: StopSign, note: Callable[[int, int], None]) -> None:
    while flows := [flow for flow in (upward, downward) if not flow.ended]:
        for flow in _ready(flows, stop):
            flow.move()
        note(upward.octets, downward.octets)


def _ready(flows: Sequence[Flow], stop: StopSign) -> Sequence[Flow]:
    wanted: dict[int, int] = {}
    for flow in flows:
        fd, event = flow.wanted
        wanted[fd] = wanted.get(fd, 0) | event
    ready = stop.wait(wanted, NEVER)
    return [flow for flow in flows if ready.get(flow.wanted[0], 0) & flow.wanted[1]]


def _wait_delivered(fd: int, stop: StopSign) -> None:
    """Waits until the peer's kernel has all that was sent, since a reset throws the rest away."""
    deadline = Deadline(LINGER_SECONDS)
    while deadline.remaining() and undelivered(fd):
        # There is no event for it.
        stop.wait({}, Deadline(LOOK_AGAIN_SECONDS))
