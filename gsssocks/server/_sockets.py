"""What the server asks of the kernel, by the C type below `socket.socket` only."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import stat
import struct
import termios
from contextlib import suppress
from typing import Any

from gsssocks import _originals
from gsssocks._protocol import Address

__all__ = [
    "SocketAddress",
    "accept",
    "adopt",
    "beside",
    "is_own",
    "listen",
    "local_address",
    "make_prompt",
    "reset_on_close",
    "shown",
    "source",
    "undelivered",
]

BACKLOG = 512
"""Connections that the kernel keeps for us while we do not accept."""

SocketAddress = tuple[Any, ...]
"""An address as the kernel's calls have it: two items for IPv4, four for IPv6."""

_NOBODYS = {4: "0.0.0.1", 6: "::2"}
"""Addresses that no machine has."""
_NOT_OWN = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger


def listen(family: int, address: SocketAddress, backlog: int = BACKLOG) -> _originals.SocketType:
    """A listening socket. One for IPv6 is for IPv6 alone, so that one for IPv4 may have the same port."""
    listener = _originals.SocketType(family, socket.SOCK_STREAM, 0)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def adopt(fd: int) -> _originals.SocketType:
    """A listening socket that somebody else has made, henceforth ours.

    Raises:
        ValueError: it is none for TCP.
    """
    if not _is_socket(fd):
        raise ValueError(f"the descriptor {fd} is no socket")
    listener = _originals.SocketType(fileno=fd)
    tcp = listener.family in (socket.AF_INET, socket.AF_INET6) and listener.type == socket.SOCK_STREAM
    if not tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise ValueError(f"the descriptor {fd} is no TCP socket that listens")
    os.set_inheritable(fd, False)
    listener.setblocking(False)
    return listener


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def accept(listener: _originals.SocketType) -> tuple[_originals.SocketType, Address]:
    """The next connection, and where it comes from."""
    # Not accept(): it makes a socket.socket, which may be patched.
    fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    return _originals.SocketType(listener.family, socket.SOCK_STREAM, 0, fileno=fd), shown(address)


def shown(address: SocketAddress) -> Address:
    """Host and port as SOCKS 5 has them: without a zone, and an IPv4 address as one, whatever the socket."""
    host, port = address[:2]
    ip = ipaddress.ip_address(host.partition("%")[0])
    return Address(str(getattr(ip, "ipv4_mapped", None) or ip), port)


def local_address(sock: _originals.SocketType) -> Address:
    return shown(sock.getsockname())


def beside(sock: _originals.SocketType) -> tuple[int, SocketAddress]:
    """The family and the address at which whoever is connected to `sock` reaches us, with no port."""
    host, _, *rest = sock.getsockname()
    local = local_address(sock)
    if ":" not in local.host:
        return socket.AF_INET, (local.host, 0)
    return socket.AF_INET6, (host, 0, *rest)


def source(family: int, peer: SocketAddress) -> SocketAddress:
    """The address by which the peer is reached; nothing is sent."""
    probe = _originals.SocketType(family, socket.SOCK_DGRAM, 0)
    try:
        probe.connect(peer)
        address: SocketAddress = probe.getsockname()
        return address
    finally:
        probe.close()


def is_own(host: str) -> bool:
    """Whether what is sent to this address may reach this machine itself; also where that cannot be found out."""
    ip = ipaddress.ip_address(host)
    # What goes to a group comes back to whoever listens here.
    if ip.is_loopback or ip.is_unspecified or ip.is_multicast:
        return True
    if not _can_be_bound(host):
        return False
    if not _can_be_bound(_NOBODYS[ip.version]):
        return True
    # The kernel lets any address be bound (ip_nonlocal_bind). Then it is the source of what is sent to it that tells,
    # which does not do always: of several addresses in one network, Linux sends from the first.
    with suppress(OSError):
        return bool(source(_family(ip.version), (host, 1))[0] == host)
    return False


def _can_be_bound(host: str) -> bool:
    try:
        probe = _originals.SocketType(_family(ipaddress.ip_address(host).version), socket.SOCK_DGRAM, 0)
    except OSError as error:
        return error.errno not in _NOT_OWN
    try:
        probe.bind((host, 0))
    except OSError as error:
        return error.errno not in _NOT_OWN
    finally:
        probe.close()
    return True


def _family(version: int) -> int:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def make_prompt(sock: _originals.SocketType) -> None:
    """Nothing waits to be sent with more, and a peer that has vanished is noticed some day."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reset_on_close(sock: _originals.SocketType) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def undelivered(fd: int) -> int:
    """Octets sent that the peer's kernel has not acknowledged."""
    try:
        (octets,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0  # not every system says it of a socket
    return int(octets)
