"""An application's descriptor: what lies under it, whose connection is ended, or which is exchanged for another.

A plain socket can be connected again after a connect that failed, at another address say; its descriptor keeps its
number, and the socket its options. Another kernel socket is needed where the proxy's address family differs from the
socket's, and after a failure where a TCP socket cannot be disconnected.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ._originals import SocketType

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["disconnect", "identity", "inheritable", "pair", "put_under", "quieten", "replace", "reset"]

# What an application may set before it connects. An option that a platform lacks is left out there.
_OPTIONS: tuple[tuple[str, str], ...] = (
    ("SOL_SOCKET", "SO_KEEPALIVE"),
    ("SOL_SOCKET", "SO_REUSEADDR"),
    ("SOL_SOCKET", "SO_REUSEPORT"),
    ("SOL_SOCKET", "SO_OOBINLINE"),
    ("SOL_SOCKET", "SO_BROADCAST"),
    ("SOL_SOCKET", "SO_PRIORITY"),
    ("SOL_SOCKET", "SO_MARK"),
    ("SOL_SOCKET", "SO_SNDBUF"),
    ("SOL_SOCKET", "SO_RCVBUF"),
    ("SOL_SOCKET", "SO_RCVLOWAT"),
    ("IPPROTO_IP", "IP_TOS"),
    ("IPPROTO_IP", "IP_TTL"),
    ("IPPROTO_IP", "IP_MTU_DISCOVER"),
    ("IPPROTO_IP", "IP_FREEBIND"),
    ("IPPROTO_IPV6", "IPV6_UNICAST_HOPS"),
    ("IPPROTO_IPV6", "IPV6_TCLASS"),
    ("IPPROTO_IPV6", "IPV6_V6ONLY"),
    ("IPPROTO_TCP", "TCP_NODELAY"),
    ("IPPROTO_TCP", "TCP_KEEPIDLE"),
    ("IPPROTO_TCP", "TCP_KEEPALIVE"),
    ("IPPROTO_TCP", "TCP_KEEPINTVL"),
    ("IPPROTO_TCP", "TCP_KEEPCNT"),
    ("IPPROTO_TCP", "TCP_USER_TIMEOUT"),
    ("IPPROTO_TCP", "TCP_MAXSEG"),
    ("IPPROTO_TCP", "TCP_SYNCNT"),
    ("IPPROTO_TCP", "TCP_QUICKACK"),
    ("IPPROTO_TCP", "TCP_NOTSENT_LOWAT"),
)
_TIMEVAL = struct.calcsize("ll")
_NAME = 16  # IFNAMSIZ, TCP_CA_NAME_MAX
# The same of options that are no integers, and the octets that each has at most.
_STRUCTURES: tuple[tuple[str, str, int], ...] = (
    ("SOL_SOCKET", "SO_LINGER", struct.calcsize("ii")),
    ("SOL_SOCKET", "SO_RCVTIMEO", _TIMEVAL),
    ("SOL_SOCKET", "SO_SNDTIMEO", _TIMEVAL),
    ("SOL_SOCKET", "SO_BINDTODEVICE", _NAME),
    ("IPPROTO_TCP", "TCP_CONGESTION", _NAME),
)
# Options that Python has no names for: linux/in.h.
_UNNAMED = {"IP_MTU_DISCOVER": 10, "IP_FREEBIND": 15} if sys.platform == "linux" else {}
_SOCKADDR = 16  # sizeof(struct sockaddr)
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
# Linux keeps twice the number of octets asked for, and reports that (socket(7)).
_DOUBLED = (getattr(socket, "SO_SNDBUF", None), getattr(socket, "SO_RCVBUF", None))


def identity(fd: int) -> tuple[int, int] | None:
    """What tells one kernel socket from another, whatever descriptors it has; None where the platform cannot say."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def inheritable(known: Iterable[int]) -> list[int]:
    """The descriptors that a program started by this process would inherit.

    Args:
        known: descriptors to look at besides the standard streams, on platforms that do not list them all.
    """
    open_ones: list[str] = []
    with suppress(OSError):
        open_ones = os.listdir("/dev/fd")
    return [fd for fd in sorted({0, 1, 2, *known, *map(int, open_ones)}) if _is_inheritable(fd)]


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # closed meanwhile


def pair(family: int) -> tuple[SocketType, SocketType]:
    """Two connected TCP sockets. Nobody else on this machine can slip in between: the peers' addresses are compared."""
    listener = SocketType(family, socket.SOCK_STREAM, 0)
    theirs = SocketType(family, socket.SOCK_STREAM, 0)
    try:
        # The default timeout is the application's wish for its own sockets.
        listener.settimeout(None)
        theirs.settimeout(None)
        listener.bind((_LOOPBACK[socket.AddressFamily(family)], 0))
        listener.listen(1)
        theirs.connect(listener.getsockname())
        while True:
            fd, peer = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            ours = SocketType(family, socket.SOCK_STREAM, 0, fileno=fd)
            if peer == theirs.getsockname():
                ours.settimeout(None)
                return theirs, ours
            ours.close()
    except BaseException:
        theirs.close()
        raise
    finally:
        listener.close()


def put_under(fd: int, other: int) -> None:
    """Has `fd` stand for the kernel socket of another descriptor; blocking mode and inheritance stay."""
    blocking, inheritable = os.get_blocking(fd), os.get_inheritable(fd)
    os.dup2(other, fd, inheritable)
    os.set_blocking(fd, blocking)


def quieten(fd: int, family: int) -> int:
    """Puts a TCP socket under `fd` to which nothing will ever come: it is not readable, nor can it be connected.
    Options, blocking mode and inheritance stay.

    Returns:
        a descriptor; it is to be kept open for as long as that shall be so.

    Raises:
        OSError: no socket could be had; then `fd` is as it was.
    """
    theirs, ours = pair(family)
    try:
        _copy_options(fd, theirs, family)
        put_under(fd, theirs.fileno())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours.detach()


def disconnect(fd: int, was: int, family: int, *, bound: tuple[object, ...] | None = None) -> None:
    """Puts an unconnected TCP socket of `family` under `fd`, the same as before if that can be.

    Args:
        was: the family of the one that lies there.
        bound: local address to bind it to, if it is not.

    Raises:
        OSError: no socket could be had; then nothing passes over the one that lies there any more.
    """
    if not _end_connection(fd, was) or was != family:
        return replace(fd, family, bound=bound)
    if bound is not None:
        _bind(fd, family, socket.SOCK_STREAM, bound)
    return None


def _end_connection(fd: int, family: int) -> bool:
    """Ends a TCP socket's connection at once; returns whether it can be connected again."""
    borrowed = _borrowed(fd, family)
    try:
        if _connect_to_nothing(fd):
            borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # ECONNRESET, of which nobody is to be told
            return True
        with suppress(OSError):
            borrowed.shutdown(socket.SHUT_RDWR)
        return False
    finally:
        borrowed.detach()


def reset(fd: int, family: int) -> None:
    """Ends a TCP socket's connection by a reset, at once, also for whoever waits on it. On other systems than Linux it
    may look like an orderly end."""
    borrowed = _borrowed(fd, family)
    try:
        if not _connect_to_nothing(fd):
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            borrowed.shutdown(socket.SHUT_RDWR)
    finally:
        borrowed.detach()


_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: close() sends RST


def _connect_to_nothing(fd: int) -> bool:
    # To connect to AF_UNSPEC, which no method of a socket can, does what Linux itself does after a connect that failed
    # (inet_stream_connect()): options, a bound address and the registrations of epoll stay.
    if sys.platform != "linux":
        return False
    try:
        # gssapi loads it anyway. Here it may fail for want of a descriptor.
        import ctypes

        libc = ctypes.CDLL(None)
    except (ImportError, OSError):
        return False
    return bool(libc.connect(fd, bytes(_SOCKADDR), _SOCKADDR) == 0)


def replace(fd: int, family: int, *, kind: int = socket.SOCK_STREAM, bound: tuple[object, ...] | None = None) -> None:
    """Puts a new, unconnected socket of `family` under `fd`; options, blocking mode and inheritance stay.

    Args:
        kind: its type, that of the one there was.
        bound: local address to bind it to.

    Raises:
        OSError: no socket could be had; then `fd` is as it was.
    """
    blocking, inheritable = os.get_blocking(fd), os.get_inheritable(fd)
    new = SocketType(family, kind, 0)
    try:
        _copy_options(fd, new, family, kind)
        os.dup2(new.fileno(), fd, inheritable)
    finally:
        new.close()
    os.set_blocking(fd, blocking)
    if bound is not None:
        _bind(fd, family, kind, bound)


def _bind(fd: int, family: int, kind: int, address: tuple[object, ...]) -> None:
    borrowed = _borrowed(fd, family, kind)
    try:
        # Where the address has been taken meanwhile, the next connect uses another, as after any failed one.
        with suppress(OSError):
            borrowed.bind(address)
    finally:
        borrowed.detach()


def _borrowed(fd: int, family: int, kind: int = socket.SOCK_STREAM) -> SocketType:
    """An object for an application's descriptor, to be detached from it."""
    # SOCK_NONBLOCK in the type keeps the default timeout from changing the descriptor's O_NONBLOCK.
    return SocketType(family, kind | getattr(socket, "SOCK_NONBLOCK", 0), 0, fileno=fd)


def _copy_options(fd: int, new: SocketType, family: int, kind: int = socket.SOCK_STREAM) -> None:
    old = _borrowed(fd, family, kind)
    try:
        for level_name, name in _OPTIONS:
            level, option = getattr(socket, level_name, None), getattr(socket, name, _UNNAMED.get(name))
            if level is not None and option is not None:
                _copy_option(old, new, level, option)
        for level_name, name, size in _STRUCTURES:
            level, option = getattr(socket, level_name, None), getattr(socket, name, None)
            if level is not None and option is not None:
                _copy_structure(old, new, level, option, size)
    finally:
        old.detach()


def _copy_option(old: SocketType, new: SocketType, level: int, option: int) -> None:
    # ENOPROTOOPT where the option is not of this family, EPERM where only root may set it: then it cannot be kept.
    with suppress(OSError):
        value = old.getsockopt(level, option)
        if value == new.getsockopt(level, option):
            return
        doubled = level == socket.SOL_SOCKET and option in _DOUBLED and os.uname().sysname == "Linux"
        new.setsockopt(level, option, value // 2 if doubled else value)


def _copy_structure(old: SocketType, new: SocketType, level: int, option: int, size: int) -> None:
    with suppress(OSError):
        value = old.getsockopt(level, option, size)
        if value != new.getsockopt(level, option, size):
            new.setsockopt(level, option, value)
