"""BIND: a listening socket whose port is at the proxy (RFC 1928, section 4).

The proxy replies twice. The first reply says where it listens. From then on the connection to the proxy lies under the
application's descriptor, so that select() and others see the second reply come: a peer has connected, and what follows
on the same connection is the peer's data. `Listener.accept` gives that connection a descriptor of its own.

One request brings one connection. Afterwards the listening socket keeps its descriptor, with a kernel socket under it
to which nothing comes, until the application calls listen() again. Asking anew without being asked would not do: the
proxy need not listen at the same port again (Dante does not, while the first connection lives), and the peers know
only that one. (An epoll set belongs to what lies under a descriptor: one that the listening socket was in goes on
reporting for it, about the connection. accept() then says that nothing is there.)

The request names no expected peer (DST.ADDR is 0.0.0.0 or ::), since a listening socket takes whoever comes. DST.PORT
is the port the application has bound, 0 for any: RFC 1928 does not say so, but Dante, for one, reads it as the port to
listen at. A proxy that listens at another one is an error, as a port that somebody else has is for a plain socket.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable

from . import _descriptor, _originals
from ._connecting import bound_address, disconnect, establish_in_place
from ._destinations import in_family
from ._log import log
from ._protocol import Address, Command, ReceiveBuffer, Reply
from ._stream import ProtectedStream
from ._transport import Deadline, Transport, receiving_deadline, would_block
from ._tunnel import Beside, Tunnel, attach, attachment_of, attachments, claim, detach, remember
from .exceptions import ProtocolError, ProxyError, reply_error, truncated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import Proxy

__all__ = ["UNSPECIFIED", "Listener", "asked_address", "listen", "listener_of", "remember_address"]

UNSPECIFIED = ("0.0.0.0", "::")
"""The address that is none in particular, by family."""
_any_port: Beside[bool] = Beside()
"""Sockets that were bound to port 0: the kernel has given them one since, which nobody has asked for."""


def remember_address(sock: socket.socket, address: Any) -> None:
    """To be told after `sock` has been bound to `address`."""
    if isinstance(address, tuple) and len(address) > 1 and address[1] == 0:
        _any_port[sock] = True


def asked_address(sock: socket.socket) -> tuple[str, int]:
    """The address and port that the application has bound an IP socket to: port 0 is any."""
    host, port = (bound_address(sock) or (UNSPECIFIED[sock.family == socket.AF_INET6], 0))[:2]
    return host, 0 if sock in _any_port else port


def listener_of(sock: socket.socket) -> Listener | None:
    """What a socket that listens at a proxy has in place of a tunnel; None for any other."""
    attachment = attachment_of(sock)
    return attachment.tunnel if attachment is not None and isinstance(attachment.tunnel, Listener) else None


def listen(sock: socket.socket, proxies: Sequence[Proxy]) -> None:
    """Has the first of `proxies` that answers listen for `sock`; the socket's timeout, and the proxy's, are those of a
    connect. A socket that has listened before asks the same proxies again.

    Raises:
        OSError: `ProxyError` and its subclasses for what the proxy is the cause of. The socket is as it was.
    """
    listener = listener_of(sock)
    if listener is None:
        _, port = asked_address(sock)
        listener = Listener(proxies, Address(UNSPECIFIED[sock.family == socket.AF_INET6], port))
    listener.ask(sock)


class _NoStream(ProtectedStream):
    """What a listening socket has in place of a connection's stream: nothing can be received (ENOTCONN) or sent."""

    def __init__(self) -> None:
        super().__init__()
        self.shut = False

    def _make_locks(self) -> None:
        super()._make_locks()
        self.accepting = threading.Lock()

    def send(self, transport: Transport, data: memoryview, deadline: Deadline, *, more: bool = False) -> int:  # noqa: ARG002
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def send_all(self, transport: Transport, data: memoryview, deadline: Deadline, *, more: bool = False) -> None:
        self.send(transport, data, deadline, more=more)

    def shut_down(self, transport: Transport, how: int) -> None:
        """Ends listening, also for a thread that waits in accept(), as Linux does; to shut a listening socket for
        writing alone does nothing there."""
        if how != socket.SHUT_WR:
            self.shut = True
            transport.shutdown(socket.SHUT_RDWR)


class Listener(Tunnel):
    """What a listening socket has in place of a tunnel.

    Args:
        proxies: the proxies to try.
        address: what to ask them for.

    Attributes:
        bound: where the proxy listens, or did for the last request.
    """

    stream: _NoStream

    def __init__(self, proxies: Sequence[Proxy], address: Address) -> None:
        super().__init__(proxies, address, (), command=Command.BIND)
        self.stream = _NoStream()
        self.settle()
        self._asked: Tunnel | None = None
        self._reply = ReceiveBuffer()
        self._peer: Address | None = None
        self._end_quiet: Callable[[], object] = lambda: None

    # Asking

    def ask(self, sock: socket.socket) -> None:
        """Sends the request, and puts its connection under the descriptor of `sock`. Without effect while a connection
        can still be accepted."""
        if self._asked is not None and not self.stream.shut:
            return
        again = listener_of(sock) is self
        detach(sock)
        try:
            asked = self._granted(sock)
        except BaseException:
            if again:
                self._attach(sock)
                self._end_after_failure(sock)
            raise
        self._begin(asked)
        self._attach(sock)
        self._put_under_all(sock)

    def _granted(self, sock: socket.socket) -> Tunnel:
        """The request's tunnel after the first reply, its connection under the descriptor of `sock`; or else a kernel
        socket that is bound as the one before."""
        fd, bound = _originals.SocketType.fileno(sock), bound_address(sock)
        asked = Tunnel(self.proxies, self.destination, (), command=Command.BIND)
        # The port is the proxy's to bind, which may run on this host.
        _descriptor.replace(fd, sock.family)
        try:
            with asked.stream.negotiating():
                claim(sock, asked, Transport(fd, sock.family))
                establish_in_place(sock, asked)
            asked.bound = self._checked(asked, sock)
        except BaseException:
            if _originals.SocketType.fileno(sock) == fd:
                self._undo(sock, asked, bound)
            raise
        finally:
            detach(sock)
            asked.settle()
        return asked

    def _undo(self, sock: socket.socket, asked: Tunnel, bound: tuple[Any, ...] | None) -> None:
        # A socket that could not listen has no port that it did not have before, as one that could not connect has.
        disconnect(sock, asked)
        with suppress(OSError):
            _descriptor.replace(_originals.SocketType.fileno(sock), sock.family, bound=bound)

    def _checked(self, asked: Tunnel, sock: socket.socket) -> Address:
        """Where the proxy listens, as others can reach it."""
        bound, wanted = asked.bound, self.destination.port
        if bound is None or not bound.port:
            raise ProtocolError(errno.EPROTO, f"the proxy {asked.proxy} says that it listens, but not at which port")
        if wanted not in (0, bound.port):
            raise ProxyError(
                errno.EADDRINUSE,
                f"the proxy {asked.proxy} listens at port {bound.port} instead of {wanted}, which is in use there or "
                "which it does not let clients choose; bind to port 0, and getsockname() says which one it is",
            )
        if bound.host not in UNSPECIFIED:
            return bound
        return Address(in_family(_originals.SocketType.getpeername(sock), socket.AF_INET)[0], bound.port)

    def _begin(self, asked: Tunnel) -> None:
        self.proxy, self.bound = asked.proxy, asked.bound
        self.stream = _NoStream()
        self._reply = ReceiveBuffer()
        self._peer = None
        self._asked = asked
        self._end_quiet()

    def _attach(self, sock: socket.socket) -> None:
        fd = _originals.SocketType.fileno(sock)
        attach(sock, self, Transport(fd, sock.family))
        remember(self, fd)

    def _put_under_all(self, sock: socket.socket) -> None:
        """Gives duplicates of the socket, too, what lies under its descriptor now."""
        fd = _originals.SocketType.fileno(sock)
        for attachment in list(attachments.values()):
            if attachment.tunnel is self and attachment.transport.fd not in (fd, -1):
                _descriptor.put_under(attachment.transport.fd, fd)

    # Accepting

    def accept(self, sock: socket.socket) -> tuple[int, Tunnel]:
        """Waits for the peer's connection, as long as the timeout of `sock` allows.

        Returns:
            a descriptor of its own, and the tunnel; `tunnel_under` finds it while it is referred to.

        Raises:
            OSError: as a plain socket's accept does; `ProxyError` and its subclasses for what the proxy is the cause
                of. EINVAL: the connection has been accepted, or there will be none; a socket that does not wait is
                told that there is none now.
        """
        attachment = attachment_of(sock)
        if attachment is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        deadline = receiving_deadline(sock, attachment.transport)
        with deadline.holding(self.stream.accepting):
            asked = self._asked
            self._check_listening(deadline)
            if asked is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if self._peer is None:
                self._peer = self._awaited_peer(asked, sock, attachment.transport, deadline)
            peer = self._peer
            fd = os.dup(attachment.transport.fd)
            try:
                self._end(sock)
            except BaseException:
                os.close(fd)
                raise
        os.set_blocking(fd, True)
        asked.destination = peer
        asked.peername = (peer.host, peer.port, 0, 0) if sock.family == socket.AF_INET6 else (peer.host, peer.port)
        remember(asked, fd)
        log(logging.INFO, "accepted %s at %s through %s", peer, asked.bound, asked.proxy)
        return fd, asked

    def _check_listening(self, deadline: Deadline) -> None:
        if self.stream.shut:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._asked is not None:
            return
        if not deadline.allows_waiting():
            raise would_block()
        raise OSError(
            errno.EINVAL,
            "a proxy accepts one connection for each BIND (RFC 1928, section 4): call listen() to ask for another",
        )

    def _awaited_peer(self, asked: Tunnel, sock: socket.socket, transport: Transport, deadline: Deadline) -> Address:
        try:
            reply = self._second_reply(asked, transport, deadline)
        except (BlockingIOError, socket.timeout):
            raise
        except OSError as error:
            self._check_listening(deadline)  # unless it was shutdown() that ended the connection
            if listener_of(sock) is not self:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None  # closed meanwhile
            self._end_after_failure(sock)
            if isinstance(error, ProxyError):
                raise
            raise self._ended_early(asked) from error
        if reply.code:
            self._end_after_failure(sock)
            raise reply_error(reply.code, f"whoever connects to {asked.bound}", str(asked.proxy))
        return reply.address

    def _second_reply(self, asked: Tunnel, transport: Transport, deadline: Deadline) -> Reply:
        # Never more than the reply: what follows in the same stream is the peer's.
        while missing := self._reply.missing(Reply):
            octets = asked.stream.receive(transport, missing, deadline)
            if not octets:
                raise self._ended_early(asked)
            self._reply.feed(octets)
        return self._reply.next(Reply)

    def _ended_early(self, asked: Tunnel) -> ProtocolError:
        return truncated(
            f"the proxy {asked.proxy} closed the connection before a peer had connected to {asked.bound}; "
            "it may have waited long enough: call listen() to ask again"
        )

    # Ending

    def _end(self, sock: socket.socket) -> None:
        """The connection to the proxy leaves the listening socket. Nothing comes to it any more, or a program that goes
        by select() would ask again and again."""
        fd = _originals.SocketType.fileno(sock)
        self._end_quiet()
        self._end_quiet = _closer(self, _descriptor.quieten(fd, sock.family))
        self._asked = None
        self._put_under_all(sock)
        remember(self, fd)

    def _end_after_failure(self, sock: socket.socket) -> None:
        # Without a descriptor left for this, the failure will be told again.
        with suppress(OSError):
            self._end(sock)


def _closer(owner: object, fd: int) -> Callable[[], object]:
    """Closes a descriptor, at the latest with its owner's end."""
    finalizer = weakref.finalize(owner, os.close, fd)
    finalizer.atexit = False
    return finalizer
