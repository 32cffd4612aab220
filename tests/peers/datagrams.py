"""What datagrams meet on their way through a proxy: an echo at its end, and a network that treats them roughly."""

from __future__ import annotations

# The C base class: gsssocks may have replaced socket.socket, and what these send must go where it is to go.
import _socket
import os
import random
import select
import socket
import threading
from typing import TYPE_CHECKING, Any, Callable

from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RoughNetwork", "UDPEcho", "udp_socket"]

_LONGEST = 65535
_LOST, _DAMAGED, _REPEATED = 0.08, 0.12, 0.22  # each from the one before
_DELAYED = 0.2
_FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def udp_socket(host: str = "127.0.0.1", port: int = 0) -> _socket.socket:
    """A socket that no patch reaches, bound to an address of the loopback interface."""
    sock = _socket.socket(_FAMILIES[host], socket.SOCK_DGRAM, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind((host, port))
    return sock


class _Station:
    """Calls a function for each of its sockets that has something to read, in a thread of its own, until the end."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[], None]] = {}
        self._sockets: list[_socket.socket] = []
        self._stop, self._stopping = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def _listen(self, sock: _socket.socket, handler: Callable[[], None]) -> None:
        self._sockets.append(sock)
        self._handlers[sock.fileno()] = handler

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._stop, *self._handlers], [], [])
            if self._stop in ready:
                return
            for fd in ready:
                self._handlers[fd]()

    def _begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is passed on any more."""
        os.write(self._stopping, b"x")
        self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        for sock in self._sockets:
            sock.close()
        os.close(self._stop)
        os.close(self._stopping)


class UDPEcho(_Station):
    """Sends each datagram back to its sender; on 127.0.0.1 and ::1, same port.

    Attributes:
        received: each datagram, with the address it came from.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[bytes, tuple[Any, ...]]] = []
        reserved = ReservedPort("127.0.0.1", "::1", udp=True)
        self.port = reserved.number
        reserved.release()
        for host in _FAMILIES:
            sock = udp_socket(host, self.port)
            self._listen(sock, lambda sock=sock: self._echo(sock))  # type: ignore[misc]

    def __enter__(self) -> UDPEcho:
        self._begin()
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Where it is in IPv4."""
        return "127.0.0.1", self.port

    @property
    def address6(self) -> tuple[str, int, int, int]:
        """Where it is in IPv6."""
        return "::1", self.port, 0, 0

    def senders(self) -> set[int]:
        """The ports that datagrams have come from."""
        return {sender[1] for _, sender in self.received}

    def _echo(self, sock: _socket.socket) -> None:
        data, sender = sock.recvfrom(_LONGEST)
        self.received.append((data, sender))
        sock.sendto(data, sender)


class RoughNetwork(_Station):
    """Stands between one client and one relay: loses, repeats, delays and changes datagrams, as a seed has it.

    One that is delayed is overtaken by a few others, fewer than the 64 after which Kerberos calls it too old. On the
    way to the relay none is repeated: Dante passes a token on as often as it comes.

    Attributes:
        address: where the client has to send to.
        intact, repeated, damaged: what was passed on to the client: datagrams unchanged, further copies of such, and
            changed ones.
        lost: how many have not been passed on, in both directions.

    Args:
        relay: where the relay is.
        seed: decides what happens to each datagram.
    """

    def __init__(self, relay: tuple[Any, ...], seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._near, self._far = udp_socket(), udp_socket()
        self.address: tuple[str, int] = self._near.getsockname()
        self._far.connect(relay)
        self._client: tuple[str, int] | None = None
        self._held_near: list[tuple[int, bytes]] = []
        self._held_far: list[tuple[int, bytes]] = []
        self._seen: set[bytes] = set()
        self.intact = self.repeated = self.damaged = self.lost = 0
        self._listen(self._near, self._from_client)
        self._listen(self._far, self._from_relay)

    def __enter__(self) -> RoughNetwork:
        self._begin()
        return self

    def _from_client(self) -> None:
        data, self._client = self._near.recvfrom(_LONGEST)
        fate = self._random.random()
        if fate < _LOST:
            self.lost += 1
        elif fate < _DAMAGED:
            self._far.send(self._changed(data))
        else:
            for octets in self._in_some_order(data, 1, self._held_far):
                self._far.send(octets)

    def _from_relay(self) -> None:
        data = self._far.recv(_LONGEST)
        assert self._client is not None
        fate = self._random.random()
        if fate < _LOST:
            self.lost += 1
        elif fate < _DAMAGED:
            self.damaged += 1
            self._near.sendto(self._changed(data), self._client)
        else:
            copies = 2 if fate < _REPEATED else 1
            for octets in self._in_some_order(data, copies, self._held_near):
                new = octets not in self._seen
                self._seen.add(octets)
                self.intact += new
                self.repeated += not new
                self._near.sendto(octets, self._client)

    def _in_some_order(self, data: bytes, copies: int, held: list[tuple[int, bytes]]) -> list[bytes]:
        """What to pass on now, each copy of `data` being delayed or not."""
        due = [octets for wait, octets in held if not wait]
        held[:] = [(wait - 1, octets) for wait, octets in held if wait]
        for _ in range(copies):
            if self._random.random() < _DELAYED:
                held.append((self._random.randrange(20), data))
            else:
                due.append(data)
        return due

    def _changed(self, data: bytes) -> bytes:
        octets = bytearray(data)
        octets[self._random.randrange(len(octets))] ^= 1 << self._random.randrange(8)
        return bytes(octets)
