"""Where octets meet the kernel: one socket's operations, none of which waits, and waiting, which is always bounded by
a deadline.

All other rooms leave both to this one. Nothing here knows what the octets mean.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, NoReturn, TypeVar

from . import _originals

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._protocol import Octets

__all__ = [
    "HUNG_UP",
    "Arrival",
    "DatagramTransport",
    "Deadline",
    "Transport",
    "byte_view",
    "call_within",
    "receiving_deadline",
    "sending_deadline",
    "would_block",
]

T = TypeVar("T")

# Plain numbers: the operators of enum.Flag would take longer than the system calls.
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_SEND = _DONTWAIT | int(getattr(socket, "MSG_NOSIGNAL", 0))
_MORE = int(getattr(socket, "MSG_MORE", 0))
_PEEK = _DONTWAIT | int(socket.MSG_PEEK)
# What has been looked at need not be copied once more to be taken: on Linux, MSG_TRUNC throws octets of a TCP stream
# away (tcp(7)). Elsewhere it means something else.
_TAKE = _DONTWAIT | (int(socket.MSG_TRUNC) if sys.platform == "linux" else 0)


_NOWHERE = memoryview(bytearray(66 * 1024))
"""Where octets go that are taken off the kernel's hands and needed no more: what it holds is nobody's business."""


def byte_view(data: Any) -> memoryview:
    """The octets of an argument; the exceptions for what has none are those of a plain socket."""
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not '{type(data).__name__}'") from None
    if not view.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    return view.cast("B")


def would_block() -> BlockingIOError:
    """The error of a plain socket that would have to wait and may not."""
    return BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


HUNG_UP = sum(getattr(select, name, 0) for name in ("EPOLLRDHUP", "EPOLLHUP", "EPOLLERR"))
"""Events that say that nothing more will come."""
MAX_TRIES = 16
"""Looks into the kernel by a call that may not wait, while octets keep coming that are no data."""


class Deadline:
    """The moment at which one call's waiting ends.

    Args:
        timeout: seconds from now; None never ends; 0 allows no waiting at all (a non-blocking socket).
    """

    __slots__ = ("_end", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, never negative; None where there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def allows_waiting(self) -> bool:
        """To be asked before any wait: False for a call that must not wait at all."""
        return self.timeout != 0

    def share(self, parts: int) -> Deadline:
        """An earlier moment: the first of `parts` equal parts of what is left."""
        remaining = self.remaining()
        return Deadline(None if remaining is None else remaining / parts)

    def is_past(self, tries: int) -> bool:
        """Whether a call that has tried `tries` times without waiting must give up. The first time is always
        allowed."""
        if self._end is None:
            return False
        return tries >= MAX_TRIES if self.timeout == 0 else tries > 1 and time.monotonic() >= self._end

    def begin_again(self) -> None:
        """A part of the call is done. Where the kernel keeps the time, that begins anew with each part."""

    def passed(self) -> OSError:
        """The error of a plain socket for a wait that ended."""
        return would_block() if self.timeout == 0 else socket.timeout("timed out")

    def acquire(self, lock: threading.Lock | threading.RLock) -> None:
        """Takes `lock`, waiting for it as long as this call may wait for anything."""
        if lock.acquire(False):
            return
        if not self.allows_waiting() or not lock.acquire(timeout=_seconds_for_lock(self)):
            raise self.passed()

    def holding(self, lock: threading.Lock | threading.RLock) -> _Held:
        """For a with statement that takes `lock` as `acquire` does."""
        return _Held(lock, self)


class _Held:
    # Not contextlib's: a generator would take as long as the system call it is around.
    __slots__ = ("_deadline", "_lock")

    def __init__(self, lock: threading.Lock | threading.RLock, deadline: Deadline) -> None:
        self._lock = lock
        self._deadline = deadline

    def __enter__(self) -> None:
        self._deadline.acquire(self._lock)

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _seconds_for_lock(deadline: Deadline) -> float:
    remaining = deadline.remaining()
    return -1 if remaining is None else min(remaining, threading.TIMEOUT_MAX)


class KernelDeadline(Deadline):
    """That of a call on a socket object without a timeout: the kernel decides, by the descriptor's O_NONBLOCK, which
    another object or process may have set, and by SO_RCVTIMEO or SO_SNDTIMEO. Nobody asks before the call has to wait.

    Args:
        transport: the kernel's side of the socket.
        option: SO_RCVTIMEO or SO_SNDTIMEO.
    """

    __slots__ = ("_option", "_transport")

    def __init__(self, transport: _Kernel, option: int) -> None:
        self.timeout = None
        self._end = None
        self._transport: _Kernel | None = transport
        self._option = option

    def allows_waiting(self) -> bool:
        transport, self._transport = self._transport, None
        if transport is not None:
            self.timeout = transport.kernel_timeout(self._option) if os.get_blocking(transport.fd) else 0
            self.begin_again()
        return self.timeout != 0

    def begin_again(self) -> None:
        if self.timeout is not None:
            self._end = time.monotonic() + self.timeout

    def passed(self) -> OSError:
        return would_block()


_SNDTIMEO = int(getattr(socket, "SO_SNDTIMEO", 0))
_RCVTIMEO = int(getattr(socket, "SO_RCVTIMEO", 0))


# A subclass may have a method of that name.
_gettimeout = _originals.SocketType.gettimeout


def receiving_deadline(sock: socket.socket, transport: _Kernel) -> Deadline:
    """When a call that receives on `sock` must end."""
    timeout = _gettimeout(sock)
    return KernelDeadline(transport, _RCVTIMEO) if timeout is None else Deadline(timeout)


def sending_deadline(sock: socket.socket, transport: _Kernel) -> Deadline:
    """When a call that sends on `sock` must end."""
    timeout = _gettimeout(sock)
    return KernelDeadline(transport, _SNDTIMEO) if timeout is None else Deadline(timeout)


_TIMEVAL = struct.Struct("ll")
"""struct timeval."""
_LINGER = struct.Struct("ii")
"""struct linger."""
LONGEST = 65_535
"""Octets that no datagram exceeds."""


class _KernelSocket(_originals.SocketType):
    """A second Python object for an application's socket. The descriptor is the application's: it is never closed
    here."""

    def __del__(self) -> None:
        self.detach()


class _Kernel:
    """The kernel's side of one socket, of whatever type: its descriptor, and waiting.

    Args:
        fd: its descriptor, which stays the caller's.
        family: its address family.
        kind: its type.
    """

    __slots__ = ("_kernel", "family", "fd")

    def __init__(self, fd: int, family: int, kind: int) -> None:
        self.fd = fd
        self.family = family
        # SOCK_NONBLOCK in the *type* makes the object not wait without touching the descriptor's O_NONBLOCK, which
        # belongs to the application; MSG_DONTWAIT does the same for each call.
        self._kernel = _KernelSocket(family, kind | getattr(socket, "SOCK_NONBLOCK", 0), 0, fileno=fd)
        if not _DONTWAIT:
            self._kernel.setblocking(False)

    def release(self) -> None:
        """Lets go of the descriptor: any later operation fails with EBADF."""
        self.fd = -1
        self._kernel.detach()

    @property
    def local(self) -> tuple[Any, ...]:
        """Its own address. The application's object cannot be asked where the kernel socket is of another family."""
        name: tuple[Any, ...] = self._kernel.getsockname()
        return name

    @property
    def peer(self) -> tuple[Any, ...]:
        """The address it is connected to."""
        name: tuple[Any, ...] = self._kernel.getpeername()
        return name

    @property
    def takes_ipv4(self) -> bool:
        """Whether it can send to IPv4 addresses."""
        return self.family == socket.AF_INET or not self._kernel.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)

    def kernel_timeout(self, option: int) -> float | None:
        """Seconds for which the kernel would wait, by SO_RCVTIMEO or SO_SNDTIMEO; None without a limit."""
        try:
            value = self._kernel.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size)
            seconds, microseconds = _TIMEVAL.unpack(value)
        except (OSError, struct.error):
            return None  # this platform has no such option, or keeps it otherwise
        return (float(seconds) + microseconds / 1_000_000) or None

    def wait_readable(self, deadline: Deadline) -> bool:
        """Waits for octets, the end, or an error; False if the time ran out first."""
        return _wait(self.fd, deadline.remaining(), reading=True)

    def wait_writable(self, deadline: Deadline) -> bool:
        """Waits for room, or an error; False if the time ran out first."""
        return _wait(self.fd, deadline.remaining(), writing=True)


class Transport(_Kernel):
    """The kernel's side of one stream socket: operations that never wait, and waiting apart from them.

    Args:
        fd: its descriptor; it stays the caller's.
        family: its address family.
    """

    __slots__ = ()

    def __init__(self, fd: int, family: int) -> None:
        super().__init__(fd, family, socket.SOCK_STREAM)

    def peek(self, view: memoryview) -> int | None:
        """Looks at what has arrived; None if nothing has, 0 at the end of the stream."""
        try:
            return self._kernel.recv_into(view, 0, _PEEK)
        except BlockingIOError:
            return None

    def take(self, view: memoryview) -> int:
        """Takes octets that `peek` has shown; returns how many, 0 if they have gone. What `view` holds then is nobody's
        business."""
        try:
            return self._kernel.recv_into(view, 0, _TAKE)
        except BlockingIOError:
            return 0

    def send(self, octets: Octets, *, more: bool = False) -> int:
        """Hands over as many octets as the kernel takes; 0 if none.

        Args:
            more: MSG_MORE: more octets will follow soon, and may share a segment with these.
        """
        try:
            return self._kernel.send(octets, _SEND | _MORE if more else _SEND)
        except BlockingIOError:
            return 0

    # The same for a stream that must never lose count: how far it went is noted in the same step, within the
    # interpreter's own C code. Between a call and what is done with its result a signal handler may raise.

    def take_noting(self, count: int, taken: list[int]) -> None:
        """Takes octets that `peek` has shown, `count` at most; appends to `taken` how many, nothing if none was
        there."""
        try:
            taken += map(self._kernel.recv_into, (_NOWHERE[:count],), (0,), (_TAKE,))
        except BlockingIOError:
            return

    def send_noting(self, octets: Octets, sent: list[int], *, more: bool = False) -> None:
        """As `send`; appends to `sent` how many octets, nothing if none."""
        try:
            sent += map(self._kernel.send, (octets,), (_SEND | _MORE if more else _SEND,))
        except BlockingIOError:
            return

    def connect(self, address: tuple[object, ...], deadline: Deadline) -> None:
        """Connects; leaves the descriptor in non-blocking mode, since connect(2) knows no MSG_DONTWAIT."""
        os.set_blocking(self.fd, False)
        code = self._kernel.connect_ex(address)
        if code in (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR):
            if not self.wait_writable(deadline):
                raise socket.timeout("timed out")
            code = self._kernel.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                # Linux takes note only when asked again; until then a further connect would seem to succeed.
                self._kernel.connect_ex(address)
        if code:
            raise OSError(code, os.strerror(code))

    def watch(self) -> select.epoll | None:
        """What wakes at each arrival, also while octets are there; the first time at once. None where there is no such
        thing."""
        if not hasattr(select, "epoll"):
            return None
        watch = select.epoll()
        watch.register(self.fd, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        return watch

    def take_low_water(self) -> int | None:
        """SO_RCVLOWAT, if it is more than one octet; which is what it is then."""
        mark = self._kernel.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        if mark <= 1:
            return None
        self._kernel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        return mark

    @property
    def resets_on_close(self) -> bool:
        """Whether close(2) throws away what is to be sent: SO_LINGER, with no time."""
        value = self._kernel.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.size)
        on, seconds = _LINGER.unpack(value)
        return bool(on) and not seconds

    def is_broken(self) -> bool:
        """Whether an error waits to be told. It stays there."""
        return _has_error(self.fd)

    def shutdown(self, how: int) -> None:
        self._kernel.shutdown(how)

    def wait_either(self, deadline: Deadline) -> bool:
        """Waits for octets, the end, room, or an error; False if the time ran out first."""
        return _wait(self.fd, deadline.remaining(), reading=True, writing=True)


class Arrival(NamedTuple):
    """A datagram that has arrived."""

    data: bytes
    ancdata: list[Any]
    flags: int
    sender: Any
    """As the kernel gives it; None for none, which stands for the end, after shutdown(2)."""


class DatagramTransport(_Kernel):
    """The kernel's side of one UDP socket: operations that never wait, and waiting apart from them.

    Args:
        fd: its descriptor; it stays the caller's.
        family: its address family.
    """

    __slots__ = ()

    def __init__(self, fd: int, family: int) -> None:
        super().__init__(fd, family, socket.SOCK_DGRAM)

    def take_ipv4(self) -> None:
        """Makes a socket for IPv6 that is not bound yet one for both."""
        self._kernel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)

    def bind(self, port: int = 0) -> None:
        """Binds it to no address in particular."""
        self._kernel.bind(("::" if self.family == socket.AF_INET6 else "0.0.0.0", port))

    def send(self, octets: Octets, address: tuple[Any, ...]) -> bool:
        """Hands a datagram over to the kernel; False if there is no room."""
        try:
            self._kernel.sendto(octets, _SEND, address)
        except BlockingIOError:
            return False
        return True

    def wait_for_any(self, others: Iterable[int], deadline: Deadline) -> bool:
        """Waits for a datagram or an error, or for one of the `others` to be readable; False if the time ran out
        first."""
        return _wait(self.fd, deadline.remaining(), reading=True, others=others)

    def receive(self, *, peek: bool = False, control: int = 0) -> Arrival | None:
        """The next datagram; None if there is none.

        Args:
            peek: whether to leave it where it is.
            control: room for ancillary data.
        """
        flags = _PEEK if peek else _DONTWAIT
        try:
            if control:
                return Arrival(*self._kernel.recvmsg(LONGEST, control, flags))
            data, sender = self._kernel.recvfrom(LONGEST, flags)
        except BlockingIOError:
            return None
        return Arrival(data, [], 0, sender)


if hasattr(select, "poll"):
    _poll, _IN, _OUT = select.poll, select.POLLIN, select.POLLOUT
    _LONGEST_POLL = 2**31 - 1
    """Milliseconds: poll(2) is told them as an int."""

    def _wait(
        fd: int, seconds: float | None, *, reading: bool = False, writing: bool = False, others: Iterable[int] = ()
    ) -> bool:
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        poll = _poll()
        for other in others:
            poll.register(other, _IN)
        poll.register(fd, (_IN if reading else 0) | (_OUT if writing else 0))
        if seconds is None:
            return bool(poll.poll())
        # Rounded up: a wait that ends a fraction of a millisecond early would be repeated without waiting.
        milliseconds = math.ceil(seconds * 1000)
        while milliseconds > _LONGEST_POLL:
            if poll.poll(_LONGEST_POLL):
                return True
            milliseconds -= _LONGEST_POLL
        return bool(poll.poll(milliseconds))

    def _has_error(fd: int) -> bool:
        poll = _poll()
        poll.register(fd, 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))

else:

    def _wait(
        fd: int, seconds: float | None, *, reading: bool = False, writing: bool = False, others: Iterable[int] = ()
    ) -> bool:
        ready = _originals.select([*others, *([fd] if reading else [])], [fd] if writing else [], [fd], seconds)
        return any(ready)

    def _has_error(fd: int) -> bool:
        return bool(_originals.select([], [], [fd], 0)[2])


def call_within(deadline: Deadline, function: Callable[[], T]) -> T:
    """Calls a function that waits by itself (a name lookup, a KDC), and stops waiting for it at the deadline.

    At the deadline the call is left behind in its thread; its result is thrown away.

    Raises:
        socket.timeout: the time ran out. Otherwise what the function raises.
    """
    if deadline.timeout is None:
        return function()
    outcome: list[Callable[[], T]] = []
    finished = threading.Lock()
    finished.acquire()

    def run() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            outcome.append(_raiser(error))
        else:
            outcome.append(lambda: value)
        finally:
            finished.release()

    try:
        _originals.Thread(target=run, name="gsssocks-wait", daemon=True).start()
    except RuntimeError:
        return function()  # the interpreter is ending already, and starts no more threads
    if not finished.acquire(timeout=_seconds_for_lock(deadline)):
        raise socket.timeout("timed out")
    return outcome.pop()()


def _raiser(error: BaseException) -> Callable[[], NoReturn]:
    def fail() -> NoReturn:
        nonlocal error
        try:
            raise error
        finally:
            del error  # or its traceback would hold this frame, and that the error

    return fail
