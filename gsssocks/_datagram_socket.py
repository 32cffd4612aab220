"""The method table of a UDP socket whose datagrams go through a proxy.

As `_socket` has it for TCP: a socket becomes one in place, and its methods stand just above those of `GSSSocket`.
"Endpoint" means `_endpoint`, which protects what goes to a relay and drops what does not come from one; "kernel" means
the method of `socket.socket`.

    send sendall sendto sendmsg                    endpoint; kernel for what goes directly
    recv recv_into recvfrom recvfrom_into          endpoint
    recvmsg recvmsg_into                           endpoint
    connect connect_ex                             chooses the peer, and sends nothing; the kernel's for a direct one
    getpeername getsockname                        what a plain socket would say
    shutdown                                       kernel; a connected one need not be so for the kernel
    detach                                         refused: the bare descriptor would send past the proxy
    dup                                            kernel's: it makes a socket of this class, which finds its endpoint
    _real_close __del__                            the associations end with the last socket, then kernel
    sendfile makefile                              kernel's: they are Python, and call send and recv_into
    bind listen accept setsockopt and the rest     kernel, by way of `GSSSocket`, which sees to TCP alone

`connect` asks no proxy: there are programs that connect a UDP socket only to learn their own address. The association
is asked for when the first datagram is sent or awaited, within the socket's timeout; a socket that does not wait waits
for that all the same, as TCP's does to connect.

What cannot be helped: a thread that waits in the kernel already, by the method of a plain socket, when another sends
the first datagram that goes through a proxy, is given the answer to that as the relay has sent it.
"""

from __future__ import annotations

import errno
import ipaddress
import operator
import os
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import _arguments, _originals
from ._connecting import as_kernel_says, checked_address, destination
from ._destinations import Destination, Route, in_family
from ._endpoint import Endpoint, Share, join, leave, renew, share_of
from ._socket import GSSSocket, code_of_connect, proxies_of
from ._switching import kinds, switch
from ._transport import Arrival, Deadline, byte_view, receiving_deadline, sending_deadline
from ._udp import Dropped
from .exceptions import unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._destinations import Router

__all__ = ["DatagramSocket", "become_datagram_socket"]

_Plain = _originals.SocketType
# Plain numbers: the operators of enum.Flag would take longer than the system calls.
_PEEK = int(socket.MSG_PEEK)
_TRUNC = int(socket.MSG_TRUNC)
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_CMSG_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_ERRQUEUE = int(getattr(socket, "MSG_ERRQUEUE", 0))  # the kernel's own notes, no datagrams of a peer
_MORE = int(getattr(socket, "MSG_MORE", 0))
_ANY: Mapping[int, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_NUMERIC: Mapping[int, tuple[str, int]] = {socket.AF_INET: ("127.0.0.1", 9), socket.AF_INET6: ("::1", 9)}
"""Addresses that need no lookup, to have other arguments judged with."""


def become_datagram_socket(sock: socket.socket, route: Router) -> None:
    """Makes `sock`, in place, one whose destinations are reached as `route` says."""
    join(sock, _Plain.fileno(sock), lambda: Endpoint(_family(sock), route))
    switch(sock, socket.SOCK_DGRAM)


class DatagramSocket(GSSSocket):
    """A UDP socket whose datagrams go through a SOCKS 5 proxy with GSS-API."""

    __slots__ = ()

    @property
    def dropped(self) -> Dropped:
        share = share_of(self)
        return replace(share.endpoint.dropped) if share else Dropped()

    # Destinations

    def connect(self, address: Any) -> None:
        share = _share(self)
        if share is None:
            return _Plain.connect(self, address)
        to = _destination(self, share, checked_address(self, address))
        if not isinstance(to, Destination):
            _Plain.connect(self, to)
            share.endpoint.peer = None
            return None
        sys.audit("socket.connect", self, address)
        if _is_connected(share):
            renew(share, share.transport.family, share.transport.local[1])
        elif not share.transport.local[1]:
            share.transport.bind()  # a connected socket has a port
        share.endpoint.peer = to

    def connect_ex(self, address: Any) -> int:
        return code_of_connect(self, DatagramSocket.connect, address)

    # Sending

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        share = _share(self)
        if share is None or share.endpoint.peer is None:
            return _Plain.send(self, data, flags)  # to a direct peer, or nowhere
        _arguments.check(share.endpoint.family, "send", data, flags)
        return _send(self, share, bytes(byte_view(data)), flags, share.endpoint.peer)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        DatagramSocket.send(self, data, flags)

    def sendto(self, data: ReadableBuffer, *arguments: Any) -> int:
        share = _share(self)
        if share is None:
            return _Plain.sendto(self, data, *arguments)
        _arguments.check(share.endpoint.family, "sendto", data, *arguments[:-1], _NUMERIC[share.endpoint.family])
        if not arguments:
            _arguments.check(share.endpoint.family, "sendto", data)
        flags = arguments[0] if len(arguments) == 2 else 0
        to = _destination(self, share, checked_address(self, arguments[-1], "sendto"))
        if not isinstance(to, Destination):
            return _Plain.sendto(self, data, flags, to)
        return _send(self, share, bytes(byte_view(data)), flags, to)

    def sendmsg(
        self, buffers: Iterable[ReadableBuffer], ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        share = _share(self)
        if share is None:
            return _Plain.sendmsg(self, buffers, ancdata, flags, address)
        listed = _arguments.listed(buffers)
        peer: Destination | tuple[Any, ...] | None = share.endpoint.peer
        if address is not None:
            peer = _destination(self, share, checked_address(self, address, "sendmsg"))
        if not isinstance(peer, Destination):
            return _Plain.sendmsg(self, listed, ancdata, flags, peer)
        if _arguments.has_control_messages(share.endpoint.family, listed, ancdata, flags, None):
            raise OSError(errno.EINVAL, "ancillary data cannot be sent through a proxy")
        return _send(self, share, b"".join(bytes(byte_view(buffer)) for buffer in listed), flags, peer)

    # Receiving

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        share = _share(self)
        if share is None or bufsize == 0:
            return _Plain.recv(self, bufsize, flags)  # which takes nothing for nothing
        return _taken(self, share, "recv", bufsize, flags)[0]

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        share = _share(self)
        if share is None:
            return _Plain.recvfrom(self, bufsize, flags)
        return _taken(self, share, "recvfrom", bufsize, flags)

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        share = _share(self)
        if share is None:
            return _Plain.recv_into(self, buffer, nbytes, flags)
        return _taken_into(self, share, "recv_into", buffer, nbytes, flags)[0]

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        share = _share(self)
        if share is None:
            return _Plain.recvfrom_into(self, buffer, nbytes, flags)
        return _taken_into(self, share, "recvfrom_into", buffer, nbytes, flags)

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        share = _share(self)
        if share is None:
            return _Plain.recvmsg(self, bufsize, ancbufsize, flags)
        wanted = _arguments.size(share.endpoint.family, "recvmsg", bufsize, ancbufsize, flags)
        flags = operator.index(flags)
        if flags & _ERRQUEUE:
            return _Plain.recvmsg(self, wanted, ancbufsize, flags)
        arrival = _receive(self, share, flags, control=operator.index(ancbufsize))
        return arrival.data[:wanted], arrival.ancdata, _flags_out(arrival, flags, wanted), arrival.sender

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        share = _share(self)
        if share is None:
            return _Plain.recvmsg_into(self, buffers, ancbufsize, flags)
        listed = _arguments.listed(buffers)
        _arguments.check(share.endpoint.family, "recvmsg_into", listed, ancbufsize, flags)
        flags = operator.index(flags)
        if flags & _ERRQUEUE:
            return _Plain.recvmsg_into(self, listed, ancbufsize, flags)
        arrival = _receive(self, share, flags, control=operator.index(ancbufsize))
        rest = memoryview(arrival.data)
        for view in map(byte_view, listed):
            part = rest[: len(view)]
            view[: len(part)] = part
            rest = rest[len(part) :]
        received = len(arrival.data) - len(rest)
        return (
            len(arrival.data) if flags & _TRUNC else received,
            arrival.ancdata,
            _flags_out(arrival, flags, received),
            arrival.sender,
        )

    # Ending

    def shutdown(self, how: int, /) -> None:
        share = _share(self)
        if share is None:
            return _Plain.shutdown(self, how)
        try:
            _Plain.shutdown(self, how)
        except OSError as error:
            # It has happened all the same (inet_shutdown() of Linux), and as far as the application knows, it is
            # connected.
            if error.errno != errno.ENOTCONN or share.endpoint.peer is None:
                raise
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            share.endpoint.no_more_reading = True

    def _real_close(self) -> None:
        leave(self)
        super()._real_close()

    def __del__(self) -> None:
        leave(self)
        super().__del__()

    def detach(self) -> int:
        if _Plain.fileno(self) < 0:
            return _Plain.detach(self)
        raise OSError(
            errno.EOPNOTSUPP,
            "a UDP socket that goes through a proxy cannot be detached: its bare descriptor would send past that",
        )

    # What it says of itself

    def get_proxy_peername(self) -> tuple[Any, ...] | None:
        share = share_of(self)
        return share.endpoint.peer.shown if share and share.endpoint.peer else None

    def getpeername(self) -> Any:
        share = share_of(self)
        if share is None:
            return _Plain.getpeername(self)
        peer = share.endpoint.peer
        return peer.shown if peer is not None else in_family(share.transport.peer, share.endpoint.family)

    def getsockname(self) -> Any:
        share = share_of(self)
        if share is None:
            return _Plain.getsockname(self)
        host, port, *rest = in_family(share.transport.local, share.endpoint.family)
        if host in _ANY.values():
            own = _own_address(share) if share.endpoint.peer is not None else None
            host = own or _ANY[share.endpoint.family]
        return (host, port, *rest)


kinds[socket.SOCK_DGRAM] = DatagramSocket


def _share(sock: socket.socket) -> Share | None:
    """Its share in an endpoint; None when it is closed, and the kernel's methods say what there is to say."""
    share = share_of(sock)
    if share is not None:
        return share
    fd = _Plain.fileno(sock)
    if fd < 0:
        return None
    proxies = proxies_of(sock)
    return join(sock, fd, lambda: Endpoint(_family(sock), lambda _host, _port: Route(proxies, None), proxies))


def _destination(sock: socket.socket, share: Share, address: tuple[Any, ...]) -> Destination | tuple[Any, ...]:
    """Where `address` (checked) is: an address for the kernel if it is reached directly.

    Raises:
        ProxyError: a rule refuses it, or it cannot be reached through a proxy.
    """
    host = address[0] if isinstance(address[0], str) else bytes(address[0]).decode("ascii")
    port = address[1].__index__()
    route = share.endpoint.route(host or _ANY[share.endpoint.family], port)
    if not route.proxies:
        return _directly(share.endpoint, address, route.name)
    if not port:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    asked = destination(sock, route.proxies[0], address, route.name)
    _check_unicast(asked.host)
    return Destination(route, asked, as_kernel_says(sock, address))


def _send(sock: socket.socket, share: Share, data: bytes, flags: int, to: Destination) -> int:
    flags = operator.index(flags)
    if flags & (_MORE | int(socket.MSG_OOB)):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    share.endpoint.send(share, data, to, _at_once(sock, flags) or sending_deadline(sock, share.transport))
    return len(data)


def _taken(sock: socket.socket, share: Share, method: str, bufsize: int, flags: int) -> tuple[bytes, Any]:
    wanted = _arguments.size(share.endpoint.family, method, bufsize, flags)
    flags = operator.index(flags)
    if flags & _ERRQUEUE:
        return _Plain.recvfrom(sock, wanted, flags)
    arrival = _receive(sock, share, flags)
    data = arrival.data[:wanted]
    if flags & _TRUNC:
        data += bytes(len(arrival.data) - len(data))  # as long as it was
    return data, arrival.sender


def _taken_into(
    sock: socket.socket, share: Share, method: str, buffer: WriteableBuffer, nbytes: int, flags: int
) -> tuple[int, Any]:
    with _arguments.room(share.endpoint.family, method, buffer, nbytes, flags) as target:
        flags = operator.index(flags)
        if flags & _ERRQUEUE:
            return _Plain.recvfrom_into(sock, target, 0, flags)
        if not target and method == "recv_into":
            return 0, None  # nothing is taken for nothing
        arrival = _receive(sock, share, flags)
        part = arrival.data[: len(target)]
        target[: len(part)] = part
        return len(arrival.data if flags & _TRUNC else part), arrival.sender


def _receive(sock: socket.socket, share: Share, flags: int, *, control: int = 0) -> Arrival:
    deadline = _at_once(sock, flags) or receiving_deadline(sock, share.transport)
    return share.endpoint.receive(share, deadline, peek=bool(flags & _PEEK), control=control)


def _flags_out(arrival: Arrival, flags: int, received: int) -> int:
    truncated = _TRUNC if received < len(arrival.data) else 0
    return arrival.flags | truncated | (flags & _CMSG_CLOEXEC)


def _at_once(sock: socket.socket, flags: int) -> Deadline | None:
    # A socket with a timeout waits before it calls the kernel: MSG_DONTWAIT changes nothing then (socketmodule.c).
    return Deadline(0) if flags & _DONTWAIT and _Plain.gettimeout(sock) is None else None


def _is_connected(share: Share) -> bool:
    try:
        _ = share.transport.peer
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def _directly(endpoint: Endpoint, address: tuple[Any, ...], name: str | None) -> tuple[Any, ...]:
    """Where an address is that is reached directly; `name` is what it stands for, where it is a placeholder.

    What a name turns out to be is noted: by the rules, which go by the name, its answers might not come directly.
    """
    host = name or address[0]
    if isinstance(host, str) and (not host or _is_numeric(host)):
        return address
    found = _originals.getaddrinfo(host, address[1], endpoint.family, socket.SOCK_DGRAM)[0][4]
    endpoint.expect_directly(found, address if name else found)
    return found


def _check_unicast(host: str) -> None:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return
    if ip.is_multicast or str(ip) == "255.255.255.255":
        raise unsupported(f"datagrams to many, as {host} is,", f"name {host} in no_proxy if they may leave directly")


def _own_address(share: Share) -> str | None:
    """From which address of this machine its datagrams leave: for the relay, or, while there is none, for the peer.
    None if that is not known, as the way to a name is not."""
    associations, peer = share.endpoint.associations, share.endpoint.peer
    target = associations[0].relay if associations else peer.shown if peer is not None else ("", 0)
    if not _is_numeric(target[0]):
        return None
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    probe = _Plain(family, socket.SOCK_DGRAM, 0)
    try:
        probe.connect(target)  # sends nothing
        host: str = probe.getsockname()[0]
    except OSError:
        return None
    finally:
        probe.close()
    return host if family == share.endpoint.family else None


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


# As a number: `socket.socket` makes an enum member of it each time, which takes longer than deciding.
_family = _Plain.family.__get__
