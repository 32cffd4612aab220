"""`GSSSocket`: the method table of a tunnelled socket.

"Tunnel" means user data in `_stream`, never the kernel's octets; "kernel" means the method of `socket.socket`.

    send sendall sendto sendmsg                    tunnel
    recv recv_into recvfrom recvfrom_into          tunnel
    recvmsg recvmsg_into                           tunnel
    _sendfile_use_sendfile                         tunnel: never os.sendfile()
    connect connect_ex                             through the proxy
    bind listen accept _accept                     at the proxy, by BIND (`_bind`)
    shutdown detach dup _real_close __del__        tunnel, then kernel
    fileno getpeername getsockname getsockopt      what a plain socket would say
    sendfile _sendfile_use_send                    kernel's: it is Python, and calls _sendfile_use_sendfile and send
    _check_sendfile_params                         kernel's: it is Python, and moves nothing
    makefile                                       kernel's: it is Python, and calls recv_into and send
    close _decref_socketios __enter__ __exit__     kernel's: it is Python, and calls _real_close
    settimeout gettimeout setblocking getblocking  kernel: `_stream` goes by it
    setsockopt                                     as a plain socket's; SO_RCVLOWAT is no concern of the kernel's
    ioctl share                                    kernel: it is a real TCP socket
    family type proto timeout _io_refs _closed     kernel
    get_inheritable set_inheritable                kernel
    __getstate__                                   kernel's: refuses to be pickled
    sendmsg_afalg                                  kernel: refuses every socket that is not of AF_ALG
"""

from __future__ import annotations

import errno
import operator
import os
import socket
import struct
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, NoReturn, TypeVar, cast

from . import _arguments, _bind, _originals
from ._config import Proxy, chosen_proxies
from ._destinations import in_family
from ._endpoint import share_of
from ._flags import receive_with_flags, sending
from ._log import log_to_stderr_if_asked
from ._relay import relay
from ._switching import (
    accepted_elsewhere,
    adopt,
    check_connectable,
    connect_again,
    is_connected,
    kinds,
    make_plain,
    may_listen,
    open_checked_tunnel,
    open_listener,
    relayed,
    switch,
)
from ._transport import Transport, byte_view, receiving_deadline
from ._tunnel import (
    Attachment,
    Beside,
    Tunnel,
    TunnelInfo,
    attach,
    attachments,
    detach,
    keep_low_water,
    share_descriptor,
)
from .exceptions import ProxyConnectionError, unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._config import ProxyChoice
    from ._udp import Dropped

__all__ = [
    "GSSSocket",
    "check_not_connecting",
    "code_of_connect",
    "connect_code",
    "in_progress",
    "proxies_of",
]

S = TypeVar("S", bound=socket.socket)

_INET = (socket.AF_INET, socket.AF_INET6)
# Plain numbers: the operators of enum.Flag would take longer than the system calls.
_PEEK = int(socket.MSG_PEEK)
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_CMSG_CLOEXEC = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_MORE = int(getattr(socket, "MSG_MORE", 0))
_FASTOPEN = int(getattr(socket, "MSG_FASTOPEN", 0))
_ERRQUEUE = int(getattr(socket, "MSG_ERRQUEUE", 0))
_RCVLOWAT: int | None = getattr(socket, "SO_RCVLOWAT", None)
_ACCEPTCONN: int | None = getattr(socket, "SO_ACCEPTCONN", None)
_MAXSEG: int | None = getattr(socket, "TCP_MAXSEG", None)
_MOST_MAXSEG = 32767
"""What may be set. On loopback Linux says one more once data has been exchanged: on a plain socket after its connect,
here within. Libraries set what they have read (py-amqp does)."""


class GSSSocket(_originals.socket):
    """A TCP or UDP socket whose data goes through a SOCKS 5 proxy with GSS-API; otherwise a `socket.socket`.

    One that listens does so at the proxy, which gives it one connection for each `listen()` (RFC 1928, BIND).

    Args:
        family, type, proto, fileno: as for `socket.socket`.
        proxy: as for `install()`: a `Proxy`, a URL, several of these, or None for what environment or file name when
            the socket connects. There is no direct connection: without a proxy, connecting fails.
    """

    __slots__ = ()

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # the name in socket.socket
        proto: int = -1,
        fileno: int | None = None,
        *,
        proxy: ProxyChoice = None,
    ) -> None:
        chosen = None if proxy is None else chosen_proxies(proxy)
        super().__init__(family, type, proto, fileno)
        if chosen is not None:
            _given[self] = chosen
        if self.family in _INET and self.type != socket.SOCK_STREAM:
            self._become_other_kind(owned=fileno is None)
        if fileno is not None:
            adopt(self)

    def _become_other_kind(self, *, owned: bool) -> None:
        if self.type not in kinds or self.proto not in (0, socket.IPPROTO_UDP):
            _ = super().close() if owned else super().detach()
            raise unsupported("packets of this type and protocol", "use a socket without a proxy for them")
        switch(self, self.type)

    # PySocks' names

    def set_proxy(
        self,
        proxy_type: int | None = None,
        addr: str | None = None,
        port: int | None = None,
        rdns: bool = True,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        """PySocks' way to choose the proxy, before connecting.

        Args:
            proxy_type: `socks.SOCKS5` (2), or None for the proxy that the environment names.
            addr, port: the proxy's host and TCP port.
            rdns: whether names go to the proxy unresolved.
            username: the principal whose credential to use; with methods="userpass", the user name.
            password: that one's password; None is a ticket that is there already.
            options: further arguments of `Proxy`.

        Raises:
            ValueError: not a SOCKS 5 proxy, or a wrong option.
        """
        if proxy_type is None:
            _given.pop(self)
            return
        if proxy_type != 2 or addr is None:
            raise ValueError("gsssocks speaks SOCKS 5 only: set_proxy(socks.SOCKS5, host, port)")
        # The URL's rules say whose name that is.
        named: dict[str, object] = {"principal": username, "password": password}
        given = {name: value for name, value in named.items() if value is not None}
        host = f"[{addr}]" if ":" in addr else addr
        scheme = "socks5h" if rdns else "socks5"
        _given[self] = (Proxy.from_url(f"{scheme}://{host}:{port or 1080}", **{**given, **options}),)

    def get_proxy_sockname(self) -> tuple[str, int] | None:
        """The proxy's own address towards the target, from its reply; None while not connected."""
        tunnel = _tunnel_of(self) or _bind.listener_of(self)
        bound = tunnel.bound if tunnel else None
        return (bound.host, bound.port) if bound else None

    def get_proxy_peername(self) -> tuple[Any, ...] | None:
        """The target as it was asked for, `getpeername()`'s answer; None while not connected."""
        tunnel = _tunnel_of(self)
        return tunnel.peername if tunnel else None

    # Connecting

    def connect(self, address: Any) -> None:
        tunnel = _tunnel_of(self) or _bind.listener_of(self)
        if tunnel is not None:
            return connect_again(self, address, tunnel)
        checked = check_connectable(self, address)
        open_checked_tunnel(self, proxies_of(self), checked)
        if _timeout(self) == 0:
            raise in_progress()
        return None

    def connect_ex(self, address: Any) -> int:
        return code_of_connect(self, GSSSocket.connect, address)

    # Accepting

    def bind(self, address: Any, /) -> None:
        super().bind(address)
        _bind.remember_address(self, address)

    def listen(self, *arguments: int) -> None:
        listener = _bind.listener_of(self)
        if listener is None and (_tunnel_of(self) is not None or not may_listen(self)):
            return super().listen(*arguments)
        _arguments.check(self.family, "listen", *arguments)
        open_listener(self, listener.proxies if listener else proxies_of(self))

    def accept(self) -> tuple[socket.socket, Any]:
        listener = _bind.listener_of(self)
        if listener is None:
            return super().accept()
        fd, tunnel = listener.accept(self)
        sock = _originals.socket(self.family, self.type, self.proto, fileno=fd)
        adopt(sock)
        if socket.getdefaulttimeout() is None and _timeout(self):
            sock.setblocking(True)  # as socket.accept does
        return sock, tunnel.peername

    def _accept(self) -> tuple[int, Any]:
        listener = _bind.listener_of(self)
        if listener is None:
            return cast("tuple[int, Any]", super()._accept())  # type: ignore[misc]
        # Whoever asks for a bare descriptor is given a plain connection.
        fd, tunnel = listener.accept(self)
        relay(fd, self.family, tunnel.stream)
        return fd, tunnel.peername

    # Sending

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        attachment = attachments.get(id(self))
        if attachment is None:
            return super().send(data, flags)
        with byte_view(data) as view:
            stream = attachment.tunnel.stream
            return stream.send(*sending(self, attachment, view, flags), more=bool(operator.index(flags) & _MORE))

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        attachment = attachments.get(id(self))
        if attachment is None:
            return super().sendall(data, flags)
        with byte_view(data) as view:
            stream = attachment.tunnel.stream
            stream.send_all(*sending(self, attachment, view, flags), more=bool(operator.index(flags) & _MORE))

    def sendto(self, data: ReadableBuffer, *arguments: Any) -> int:
        attachment = attachments.get(id(self))
        if attachment is None:
            check_not_connecting(*arguments[:-1])
            return super().sendto(data, *arguments)
        _arguments.check(self.family, "sendto", data, *arguments)
        # A connected TCP socket does not look at the address (send(2)), as with any stream.
        return GSSSocket.send(self, data, *arguments[:-1])

    def sendmsg(
        self, buffers: Iterable[ReadableBuffer], ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        attachment = attachments.get(id(self))
        if attachment is None:
            check_not_connecting(flags)
            return super().sendmsg(buffers, ancdata, flags, address)
        buffers, ancdata = _arguments.listed(buffers), list(ancdata)
        control = _arguments.has_control_messages(self.family, buffers, ancdata, flags, address)
        if control and not all(map(_passed_over, ancdata)):
            GSSSocket.send(self, b"", flags)  # a connection that cannot send at all says that first
            raise OSError(errno.EINVAL, "ancillary data cannot be sent through a proxy")
        most = attachment.tunnel.stream.records.max_plaintext
        return GSSSocket.send(self, _arguments.gathered(buffers, most, _timeout(self)), flags)

    def _sendfile_use_sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        if id(self) not in attachments:
            return cast("int", super()._sendfile_use_sendfile(file, offset, count))  # type: ignore[misc]
        try:
            os.fstat(file.fileno())
        except (AttributeError, OSError) as error:
            raise socket._GiveupOnSendfile(error) from error  # type: ignore[attr-defined]
        # os.sendfile() would hand the file to the kernel's socket, unprotected. As with it, the file's position changes
        # only if something was sent.
        position = file.tell()
        sent: int = _originals.socket._sendfile_use_send(_Sender(self), file, offset, count)  # type: ignore[attr-defined]
        if not sent:
            file.seek(position)
        return sent

    # Receiving

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        attachment = attachments.get(id(self))
        if attachment is None:
            return super().recv(bufsize, flags)
        wanted = _arguments.size(self.family, "recv", bufsize, flags)
        if flags:
            return receive_with_flags(self, attachment, wanted, flags)
        transport = attachment.transport
        return attachment.tunnel.stream.receive(transport, wanted, receiving_deadline(self, transport))

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        attachment = attachments.get(id(self))
        if attachment is None:
            return super().recv_into(buffer, nbytes, flags)
        with _arguments.room(self.family, "recv_into", buffer, nbytes, flags) as target:
            if not flags:
                stream, transport = attachment.tunnel.stream, attachment.transport
                return stream.receive_into(transport, target, receiving_deadline(self, transport))
            octets = receive_with_flags(self, attachment, len(target), flags)
            target[: len(octets)] = octets
            return len(octets)

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        if id(self) not in attachments:
            return super().recvfrom(bufsize, flags)
        wanted = _arguments.size(self.family, "recvfrom", bufsize, flags)
        return _received(self, wanted, flags), None

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        if id(self) not in attachments:
            return super().recvfrom_into(buffer, nbytes, flags)
        with _arguments.room(self.family, "recvfrom_into", buffer, nbytes, flags) as target:
            octets = _received(self, len(target), flags)
            target[: len(octets)] = octets
            return len(octets), None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        if id(self) not in attachments:
            return super().recvmsg(bufsize, ancbufsize, flags)
        wanted = _arguments.size(self.family, "recvmsg", bufsize, ancbufsize, flags)
        return _received(self, wanted, flags), [], operator.index(flags) & _CMSG_CLOEXEC, None

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        if id(self) not in attachments:
            return super().recvmsg_into(buffers, ancbufsize, flags)
        listed = _arguments.listed(buffers)
        _arguments.check(self.family, "recvmsg_into", listed, ancbufsize, flags)
        with ExitStack() as stack:
            views = [stack.enter_context(byte_view(buffer)) for buffer in listed]
            octets = memoryview(_received(self, sum(map(len, views)), flags))
            received = len(octets)
            for view in views:
                part = octets[: len(view)]
                view[: len(part)] = part
                octets = octets[len(part) :]
        return received, [], operator.index(flags) & _CMSG_CLOEXEC, None

    # Ending

    def shutdown(self, how: int, /) -> None:
        attachment = attachments.get(id(self))
        if attachment is None or how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            return super().shutdown(how)
        attachment.tunnel.stream.shut_down(attachment.transport, how)

    def _real_close(self) -> None:
        attachment = attachments.get(id(self))
        try:
            if attachment is not None and not attachment.tunnel.stream.let_go(attachment.transport):
                super().detach()
        finally:
            relayed.pop(self, None)
            # Closed in any case, and before the tunnel is forgotten: nothing may be sent past it.
            super()._real_close()  # type: ignore[misc]
            attachments.pop(id(self), None)

    def __del__(self) -> None:
        # The C finalizer closes the descriptor, with a warning that shows both ends' names; what is in line must have
        # left before.
        attachment = attachments.get(id(self))
        try:
            if attachment is not None and not attachment.tunnel.stream.let_go(attachment.transport):
                super().detach()
            super().__del__()  # type: ignore[misc]
        finally:
            attachments.pop(id(self), None)

    def detach(self) -> int:
        attachment = attachments.get(id(self))
        if attachment is None:
            return self._detach_unproxied()
        if isinstance(attachment.tunnel, _bind.Listener) and not share_descriptor(attachment):
            return self._detach_listening(attachment)
        if not share_descriptor(attachment):
            make_plain(self)
        detach(self)
        relayed.pop(self, None)
        return super().detach()

    def _detach_listening(self, attachment: Attachment) -> NoReturn:
        # Detached in any case, as below; and the request ends, or the descriptor would lead into the tunnel.
        attachment.transport.shutdown(socket.SHUT_RDWR)
        detach(self)
        super().detach()
        raise accepted_elsewhere()

    def _detach_unproxied(self) -> int:
        unconnected = self not in relayed and not self._closed and not is_connected(self)  # type: ignore[attr-defined]
        # Detached in any case: `SSLContext.wrap_socket` has made a socket of the descriptor before, which closes it.
        relayed.pop(self, None)
        fd = super().detach()
        if unconnected:
            raise OSError(
                errno.EOPNOTSUPP,
                "a GSSSocket that is not connected would lose its proxy: connect it first, then wrap or detach it",
            )
        return fd

    def dup(self) -> GSSSocket:
        attachment = attachments.get(id(self))
        duplicate = super().dup()
        if attachment is not None and id(duplicate) not in attachments:
            fd = _originals.SocketType.fileno(duplicate)
            attach(duplicate, attachment.tunnel, Transport(fd, attachment.transport.family))
        return duplicate

    # What it says of itself

    @property
    def tunnel(self) -> TunnelInfo | None:
        """What is known of the connection through the proxy, at this moment; None while there is none.

        Raises:
            OSError: the connection is being made.
        """
        tunnel = _tunnel_of(self)
        return None if tunnel is None else tunnel.info()

    @property
    def protection(self) -> str | None:
        """What protects the data on the way to the proxy: "confidentiality", "integrity", "selective" or "none"; None
        while not connected.

        Raises:
            OSError: the connection is being made.
        """
        tunnel = _tunnel_of(self)
        return None if tunnel is None else tunnel.protection

    @property
    def dropped(self) -> Dropped | None:
        """How many datagrams have arrived and not been handed over, by the reason; None for TCP."""
        return None

    def fileno(self) -> int:
        attachment = attachments.get(id(self))
        if attachment is not None:
            # select() asks here; until the tunnel stands, the kernel's answer would be about the proxy's connection.
            attachment.tunnel.wait_settled()
        return super().fileno()

    def getpeername(self) -> Any:
        name = super().getpeername()  # ENOTCONN, EBADF where a plain socket would say so
        if _bind.listener_of(self) is not None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        tunnel = _tunnel_of(self)
        return tunnel.peername if tunnel else name

    def getsockname(self) -> Any:
        name = super().getsockname()
        tunnel = _tunnel_of(self) or _bind.listener_of(self)
        if tunnel is None or tunnel.bound is None:
            return name
        # In the form of its own family, whatever that of the kernel's socket is.
        return in_family(name if tunnel.local else (tunnel.bound.host, tunnel.bound.port), self.family)

    def getsockopt(self, level: int, option: int, /, *buflen: int) -> Any:
        if level == socket.SOL_SOCKET:
            if option == _ACCEPTCONN and _bind.listener_of(self) is not None:
                return 1
            tunnel = _tunnel_of(self) if option == _RCVLOWAT else None
            if tunnel is not None and tunnel.low_water is not None:
                return struct.pack("i", tunnel.low_water)[: buflen[0]] if any(buflen) else tunnel.low_water
        value = super().getsockopt(level, option, *buflen)
        if level == socket.IPPROTO_TCP and option == _MAXSEG and not any(buflen):
            return min(value, _MOST_MAXSEG)
        return value

    def setsockopt(self, level: int, option: int, value: Any, *optlen: int) -> None:
        super().setsockopt(level, option, value, *optlen)
        attachment = attachments.get(id(self)) if option == _RCVLOWAT and level == socket.SOL_SOCKET else None
        if attachment is not None:
            attachment.tunnel.low_water = None
            keep_low_water(attachment.tunnel, attachment.transport)


_given: Beside[tuple[Proxy, ...]] = Beside()


def proxies_of(sock: socket.socket) -> tuple[Proxy, ...]:
    """Those that it was given, or that environment or file name now: asked when it is about to use one."""
    log_to_stderr_if_asked()
    return _given.get(sock) or chosen_proxies()


def _tunnel_of(sock: socket.socket) -> Tunnel | None:
    """That of a connection, or of a UDP socket's first association; None for a listening socket."""
    share = share_of(sock)
    if share is not None:
        associations = share.endpoint.associations
        return associations[0].tunnel if associations else None
    attachment = attachments.get(id(sock))
    if attachment is None:
        return relayed.get(sock)
    return None if isinstance(attachment.tunnel, _bind.Listener) else attachment.tunnel


def _received(sock: GSSSocket, size: int, flags: int) -> bytes:
    """As `recv`; but no octets at all are waited for as one would be, as recvfrom(2) and recvmsg(2) do."""
    return GSSSocket.recv(sock, size, flags) if size else GSSSocket.recv(sock, 1, flags | _PEEK)[:0]


# scm_send() and __sock_cmsg_send() of Linux: what is of another protocol, or for AF_UNIX.
_FOR_UNIX = [getattr(socket, name, None) for name in ("SCM_RIGHTS", "SCM_CREDENTIALS")]


def _passed_over(control: tuple[int, int, object]) -> bool:
    """Whether TCP takes no notice of a control message."""
    level, kind, _ = control
    return sys.platform == "linux" and (level != socket.SOL_SOCKET or kind in _FOR_UNIX)


class _Sender:
    """A socket as `_sendfile_use_send` needs it, which calls send() where os.sendfile() calls none of a subclass's."""

    def __init__(self, sock: GSSSocket) -> None:
        self.gettimeout = partial(_timeout, sock)
        self.send = partial(GSSSocket.send, sock)
        self._check_sendfile_params = sock._check_sendfile_params  # type: ignore[attr-defined]


# C's methods call none of the application's, which may have a gettimeout() of its own.
_timeout = _originals.SocketType.gettimeout


def in_progress() -> BlockingIOError:
    """What a connect that does not wait raises. All is done by then, but the program expects to be told later: by
    writability, and by SO_ERROR 0."""
    return BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))


def code_of_connect(sock: S, connect: Callable[[S, Any], None], address: Any) -> int:
    """What connect_ex() does, by a method that connects."""
    try:
        connect(sock, address)
    except socket.gaierror:
        raise
    except OSError as error:
        return connect_code(sock, error)
    return 0


def connect_code(sock: socket.socket, error: OSError) -> int:
    """What connect_ex() returns for an error of connect()."""
    if _timeout(sock) and isinstance(error, socket.timeout) and isinstance(error, ProxyConnectionError):
        return errno.EAGAIN  # what a plain socket returns when its timeout runs out
    return error.errno or errno.EIO


def check_not_connecting(flags: Any = 0, *_: object) -> None:
    """Raises an error for data that would connect the socket by the kernel, past the proxy (tcp(7))."""
    if hasattr(flags, "__index__") and operator.index(flags) & _FASTOPEN:
        raise unsupported("data with MSG_FASTOPEN", "connect first")


kinds[socket.SOCK_STREAM] = GSSSocket
