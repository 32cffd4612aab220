"""`GSSSocket`: the method table of a tunnelled socket, and how a socket becomes one.

A connected tunnel is not an attribute of the socket object: `socket.socket` has slots and no room, and a plain
socket's class is switched in place (`open_tunnel`), which works only while the layout stays the same. It stands
beside, in `_attachments`.

The table. "Tunnel" means user data in `_stream`, never the kernel's octets; "kernel" means the method of
`socket.socket`.

    send sendall sendto sendmsg sendfile           tunnel
    recv recv_into recvfrom recvfrom_into          tunnel
    recvmsg recvmsg_into                           tunnel
    makefile                                       kernel's: it is Python, and calls recv_into and send
    connect connect_ex                             through the proxy
    shutdown close detach dup                      tunnel, then kernel
    getpeername getsockname fileno                 what a plain socket would say
    settimeout gettimeout setblocking getblocking  kernel
    getsockopt setsockopt ioctl share family …     kernel: it is a real TCP socket
    bind listen accept                             kernel
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, cast

from . import _descriptor, _originals
from ._config import Proxy
from ._negotiation import ClientNegotiation
from ._protocol import Address, Command, Request
from ._relay import relay
from ._stream import Deadline, ProtectedStream, Transport, call_within
from .exceptions import ProxyConnectionError, proxy_connection_error, proxy_timeout

if TYPE_CHECKING:
    from collections.abc import Iterable
    from socket import _SendableFile

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._security import SecurityContext

__all__ = [
    "Attachment",
    "GSSSocket",
    "Tunnel",
    "adopt",
    "attachment_of",
    "connect_code",
    "create_connection",
    "descriptor_is_tunnelled",
    "in_progress",
    "open_tunnel",
    "use_raw",
]

_INET = (socket.AF_INET, socket.AF_INET6)
_PEEK = socket.MSG_PEEK
_DONTWAIT = getattr(socket, "MSG_DONTWAIT", 0)
_RECV_FLAGS = _PEEK | _DONTWAIT | getattr(socket, "MSG_WAITALL", 0) | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_SEND_FLAGS = _DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0) | getattr(socket, "MSG_MORE", 0)


class Tunnel:
    """What all sockets of one tunnelled connection share.

    Attributes:
        proxy: the proxy it goes through.
        destination: what the proxy was asked to connect to.
        peername: the address as the application gave it.
        bound: the proxy's own address towards the target, as the reply gave it.
        context: the security context.
        stream: the pump.
    """

    def __init__(self, proxy: Proxy, destination: Address, peername: tuple[Any, ...]) -> None:
        self.proxy = proxy
        self.destination = destination
        self.peername = peername
        self.bound: Address | None = None
        self.context: SecurityContext | None = None
        self.stream = ProtectedStream()
        self.kernel_name_shown = False
        self._connecting_thread: int | None = threading.get_ident()
        self._settled = threading.Event()

    def settle(self) -> None:
        """The connection has been made, or could not be."""
        self._connecting_thread = None
        self._settled.set()

    def wait_settled(self) -> None:
        """Waits while another thread is still connecting."""
        if self._connecting_thread not in (None, threading.get_ident()):
            self._settled.wait()


class Attachment:
    """One socket object's share in a tunnel.

    Attributes:
        tls: whether TLS runs over it, begun and not ended by `unwrap()`: then nothing but TLS may send.
    """

    __slots__ = ("reference", "tls", "transport", "tunnel")

    def __init__(self, sock: socket.socket, tunnel: Tunnel, transport: Transport) -> None:
        key = id(sock)
        # When the object goes, its descriptor has been closed already; ours must not be used, or closed, again.
        self.reference = weakref.ref(sock, lambda _: _drop(key, self))
        self.tunnel = tunnel
        self.transport = transport
        self.tls = False


_attachments: dict[int, Attachment] = {}
"""By id(), since a subclass of socket may define equality as it likes."""
_tunnels: weakref.WeakValueDictionary[tuple[int, int], Tunnel] = weakref.WeakValueDictionary()
"""By the kernel socket's identity, for descriptors that come back in another Python object."""
_relayed: weakref.WeakKeyDictionary[GSSSocket, Tunnel] = weakref.WeakKeyDictionary()
"""The tunnels behind sockets that have been given a plain connection."""
_used_raw: dict[int, weakref.ref[socket.socket]] = {}
"""Sockets, not tunnelled yet, whose descriptor foreign code uses."""
_switched_classes: weakref.WeakKeyDictionary[type, type] = weakref.WeakKeyDictionary()


def attachment_of(sock: socket.socket) -> Attachment | None:
    """The socket's share in a tunnel; None for one that is not tunnelled."""
    return _attachments.get(id(sock))


def _drop(key: int, attachment: Attachment) -> None:
    if _attachments.get(key) is attachment:
        del _attachments[key]
    attachment.transport.release()


def _attach(sock: socket.socket, tunnel: Tunnel, transport: Transport) -> Attachment:
    attachment = _attachments[id(sock)] = Attachment(sock, tunnel, transport)
    return attachment


def _remember(tunnel: Tunnel, fd: int) -> None:
    identity = _descriptor.identity(fd)
    if identity is not None:
        _tunnels[identity] = tunnel


def adopt(sock: socket.socket) -> bool:
    """Makes a socket object that was given a descriptor part of the tunnel its kernel socket belongs to; False if it
    belongs to none."""
    if not _tunnels or id(sock) in _attachments:
        return False
    identity = _descriptor.identity(_originals.SocketType.fileno(sock))
    tunnel = _tunnels.get(identity) if identity is not None else None
    if tunnel is None or not _still_there(tunnel, identity):
        return False
    _switch(sock)
    _attach(sock, tunnel, Transport(_originals.SocketType.fileno(sock), sock.family))
    return True


def _still_there(tunnel: Tunnel, identity: tuple[int, int] | None) -> bool:
    # A descriptor closed behind our back (os.close) leaves an entry whose identity the kernel may give to another
    # socket.
    sharing = [attachment for attachment in list(_attachments.values()) if attachment.tunnel is tunnel]
    return not sharing or any(_descriptor.identity(attachment.transport.fd) == identity for attachment in sharing)


def _switch(sock: socket.socket) -> None:
    if not isinstance(sock, GSSSocket):
        sock.__class__ = _switched(type(sock))


def _switched(base: type) -> type:
    """The subclass of `base` whose socket methods are ours: they stand just above `socket.socket` in the resolution
    order, so a subclass that overrides recv() and calls super().recv() meets them next."""
    switched = _switched_classes.get(base)
    if switched is None:
        namespace = {
            "__slots__": (),
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        }
        bases = (GSSSocket,) if base is _originals.socket else (base, GSSSocket)
        switched = type(base)(base.__name__, bases, namespace)
        _switched_classes[base] = switched
    return switched


def open_tunnel(sock: socket.socket, proxy: Proxy, address: object) -> None:
    """Connects `sock` to `address` through `proxy`, in place: same object, same descriptor; its class becomes a
    subclass of it.

    Raises:
        OSError: as a plain socket's connect does; `ProxyError` and its subclasses for what the proxy is the cause of.
            The socket is as it was then and may be connected again.
    """
    peername = _checked(sock, address)
    tunnel = Tunnel(proxy, _destination(sock, proxy, peername), peername)
    was = type(sock)
    fd = _originals.SocketType.fileno(sock)
    local = _originals.SocketType.getsockname(sock)
    bound = local if local[1] else None
    tunnel.kernel_name_shown = bound is not None
    with tunnel.stream.negotiating():
        _switch(sock)
        _attach(sock, tunnel, Transport(fd, sock.family))
        try:
            _establish(sock, tunnel)
        except BaseException:
            _detach(sock)
            sock.__class__ = was
            if _originals.SocketType.fileno(sock) == fd:
                _descriptor.replace(fd, sock.family, bound=bound)
            raise
        finally:
            if _originals.SocketType.fileno(sock) == fd:
                os.set_blocking(fd, sock.gettimeout() is None)
            tunnel.settle()
    _remember(tunnel, fd)
    if id(sock) in _used_raw and _used_raw[id(sock)]() is sock:
        _make_plain(sock)


def descriptor_is_tunnelled(fd: int) -> bool:
    """Whether the kernel socket under `fd` carries a tunnel's messages."""
    return bool(_tunnels) and _descriptor.identity(fd) in _tunnels


def use_raw(sock: socket.socket) -> None:
    """To be told before foreign code reads and writes the descriptor of `sock` itself: it will find a plain connection.

    A tunnelled socket is given one now, by a relay; another when it becomes one. Same object, same descriptor.
    """
    if id(sock) in _attachments:
        _make_plain(sock)
        return
    key = id(sock)
    _used_raw[key] = weakref.ref(sock, lambda _: _used_raw.pop(key, None))


def _make_plain(sock: socket.socket) -> None:
    """Gives a tunnelled socket a plain connection that carries the same data; `getpeername` answers as before."""
    attachment = _attachments[id(sock)]
    relay(attachment.transport.fd, sock.family, attachment.tunnel.stream)
    _detach(sock)
    _relayed[cast("GSSSocket", sock)] = attachment.tunnel


def _detach(sock: socket.socket) -> Attachment | None:
    attachment = _attachments.pop(id(sock), None)
    if attachment is not None:
        attachment.transport.release()
    return attachment


def _checked(sock: socket.socket, address: object) -> tuple[Any, ...]:
    """The address, if it has the form that the socket's family takes; the exceptions are those of a plain socket."""
    family = "AF_INET6" if sock.family == socket.AF_INET6 else "AF_INET"
    if not isinstance(address, tuple):
        raise TypeError(f"connect(): {family} address must be tuple, not {type(address).__name__}")
    if not (len(address) == 2 or (sock.family == socket.AF_INET6 and 2 <= len(address) <= 4)):
        raise TypeError(f"{family} address must be a pair (host, port)")
    host, port = address[0], address[1]
    if not isinstance(host, (str, bytes, bytearray)):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if not hasattr(port, "__index__"):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    if not 0 <= port.__index__() <= 0xFFFF:
        raise OverflowError("connect(): port must be 0-65535.")
    return address


def _destination(sock: socket.socket, proxy: Proxy, address: tuple[Any, ...]) -> Address:
    host = address[0] if isinstance(address[0], str) else bytes(address[0]).decode("ascii")
    port = address[1].__index__()
    if not host:
        host = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"  # what "" means to connect(2)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return Address(host if proxy.remote_dns else _resolved(host, port, sock.family), port)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return Address(str(mapped or ip), port)


def _resolved(host: str, port: int, family: int) -> str:
    return str(_originals.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0])


def _establish(sock: socket.socket, tunnel: Tunnel) -> None:
    """From the proxy's name to the granted request, on the descriptor of `sock`, within one deadline."""
    proxy = tunnel.proxy
    deadline = _connect_deadline(sock.gettimeout(), proxy.timeout)
    try:
        request = Request(Command.CONNECT, tunnel.destination)
        request.encode()
    except ValueError as error:
        raise ProxyConnectionError(
            errno.EADDRNOTAVAIL, f"cannot ask a proxy for {tunnel.destination}: {error}"
        ) from error
    _connect_to_proxy(sock, tunnel, deadline)
    tunnel.context = _initiator(proxy)
    negotiation = ClientNegotiation(
        tunnel.context,
        request,
        proxy=str(proxy),
        level=proxy.level,
        pipelined=proxy.pipelined,
        nec=proxy.nec,
    )
    tunnel.stream.negotiate(_transport(sock), negotiation, deadline, str(proxy))
    tunnel.bound = negotiation.bound


def _connect_deadline(timeout: float | None, limit: float | None) -> Deadline:
    # A non-blocking connect waits here all the same: nothing outside this call could carry the negotiation on.
    if not timeout:
        return Deadline(limit)
    return Deadline(timeout if limit is None else min(timeout, limit))


def _initiator(proxy: Proxy) -> SecurityContext:
    # Imported here: gssapi takes time and memory that a program without a tunnel does not owe us.
    from ._gss import Initiator

    return Initiator(
        proxy.gss_target,
        mechanism=proxy.mechanism,
        delegation=proxy.delegation,
        principal=proxy.principal,
        ccache=proxy.ccache,
        keytab=proxy.keytab,
    )


def _transport(sock: socket.socket) -> Transport:
    attachment = _attachments.get(id(sock))
    if attachment is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return attachment.transport


def _connect_to_proxy(sock: socket.socket, tunnel: Tunnel, deadline: Deadline) -> None:
    proxy = tunnel.proxy
    failure: OSError | None = None
    try:
        for family, address in _proxy_addresses(proxy, sock.family, deadline):
            if failure is not None or family != _transport(sock).family:
                _renew(sock, tunnel, family)
            try:
                return _transport(sock).connect(address, deadline)
            except socket.timeout:
                raise
            except OSError as error:
                failure = error
    except socket.timeout:
        raise proxy_timeout("connecting to the proxy", str(proxy)) from None
    except OSError as error:
        failure = error
    raise proxy_connection_error(
        failure or OSError(errno.EHOSTUNREACH, "its name has no address"), str(proxy)
    ) from failure


def _proxy_addresses(proxy: Proxy, family: int, deadline: Deadline) -> list[tuple[int, tuple[Any, ...]]]:
    """The proxy's addresses, those of the socket's own family first: they need no other kernel socket."""

    def look_up() -> list[tuple[Any, ...]]:
        return cast("list[tuple[Any, ...]]", _originals.getaddrinfo(proxy.host, proxy.port, 0, socket.SOCK_STREAM))

    try:
        ipaddress.ip_address(proxy.host)
    except ValueError:
        found = call_within(deadline, look_up)
    else:
        found = look_up()
    addresses = [(info[0], info[4]) for info in found if info[0] in _INET]
    return sorted(addresses, key=lambda pair: pair[0] != family)


def _renew(sock: socket.socket, tunnel: Tunnel, family: int) -> None:
    """Another kernel socket of `family` under the descriptor, for another attempt."""
    fd = _transport(sock).fd
    _detach(sock)
    _descriptor.replace(fd, family)
    _attach(sock, tunnel, Transport(fd, family))


class GSSSocket(socket.socket):
    """A TCP socket whose connection goes through a SOCKS 5 proxy with GSS-API; otherwise a `socket.socket`.

    Args:
        family, type, proto, fileno: as for `socket.socket`.
        proxy: the proxy to use: a `Proxy`, a URL, or None for the one the environment names when the socket connects.
            There is no direct connection: without a proxy, connecting fails.
    """

    __slots__ = ()

    def __init__(
        self,
        family: int = -1,
        type: int = -1,  # the name in socket.socket
        proto: int = -1,
        fileno: int | None = None,
        *,
        proxy: Proxy | str | None = None,
    ) -> None:
        super().__init__(family, type, proto, fileno)
        if proxy is not None:
            _chosen_proxies[self] = Proxy.from_url(proxy) if isinstance(proxy, str) else proxy
        if fileno is not None:
            adopt(self)

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
            username: the principal whose credential to use.
            password: not accepted: GSS-API takes tickets.
            options: further arguments of `Proxy`.

        Raises:
            ValueError: not a SOCKS 5 proxy, a password, or a wrong option.
        """
        if proxy_type is None:
            _chosen_proxies.pop(self, None)
            return
        if proxy_type != 2 or addr is None:
            raise ValueError("gsssocks speaks SOCKS 5 only: set_proxy(socks.SOCKS5, host, port)")
        if password is not None:
            raise ValueError("GSS-API takes no password: use a ticket cache or keytab=")
        _chosen_proxies[self] = Proxy(addr, port or 1080, principal=username, remote_dns=rdns, **options)

    def get_proxy_sockname(self) -> tuple[str, int] | None:
        """The proxy's own address towards the target, from its reply; None while not connected."""
        tunnel = self._tunnel()
        bound = tunnel.bound if tunnel else None
        return (bound.host, bound.port) if bound else None

    def get_proxy_peername(self) -> tuple[Any, ...] | None:
        """The target as it was asked for, `getpeername()`'s answer; None while not connected."""
        tunnel = self._tunnel()
        return tunnel.peername if tunnel else None

    # Connecting

    def connect(self, address: Any) -> None:
        if self._tunnel() is not None:
            return _originals.SocketType.connect(self, address)  # EISCONN, from the kernel
        open_tunnel(self, self._proxy(), address)
        if self.gettimeout() == 0:
            raise in_progress()

    def connect_ex(self, address: Any) -> int:
        try:
            self.connect(address)
        except socket.gaierror:
            raise
        except OSError as error:
            return connect_code(error)
        return 0

    def _proxy(self) -> Proxy:
        return _chosen_proxies.get(self) or Proxy.from_environ()

    # Sending

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().send(data, flags)
        with memoryview(data).cast("B") as view:
            return attachment.tunnel.stream.send(*_sending(self, attachment, view, flags))

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().sendall(data, flags)
        with memoryview(data).cast("B") as view:
            attachment.tunnel.stream.send_all(*_sending(self, attachment, view, flags))

    def sendto(self, data: ReadableBuffer, *arguments: Any) -> int:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().sendto(data, *arguments)
        if not 1 <= len(arguments) <= 2:
            raise TypeError(f"sendto() takes 2 or 3 arguments ({1 + len(arguments)} given)")
        # A connected TCP socket does not look at the address (send(2)), as with any stream.
        return self.send(data, *arguments[:-1])

    def sendmsg(
        self, buffers: Iterable[ReadableBuffer], ancdata: Any = (), flags: int = 0, address: Any = None, /
    ) -> int:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().sendmsg(buffers, ancdata, flags, address)
        if list(ancdata):
            raise OSError(errno.EINVAL, "ancillary data cannot be sent through a proxy")
        return self.send(_gathered(buffers, attachment.tunnel.stream.records.max_plaintext, self.gettimeout()), flags)

    def sendfile(self, file: _SendableFile, offset: int = 0, count: int | None = None) -> int:
        if id(self) not in _attachments:
            return super().sendfile(file, offset, count)
        # os.sendfile() would hand the file to the kernel's socket, unprotected.
        return cast("int", self._sendfile_use_send(file, offset, count))  # type: ignore[attr-defined]

    def _sendfile_use_sendfile(self, file: _SendableFile, offset: int = 0, count: int | None = None) -> int:
        if id(self) not in _attachments:
            return cast("int", super()._sendfile_use_sendfile(file, offset, count))  # type: ignore[misc]
        raise socket._GiveupOnSendfile(OSError(errno.EOPNOTSUPP, "not on a tunnelled socket"))  # type: ignore[attr-defined]

    # Receiving

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().recv(bufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recv")
        stream, transport, deadline = _receiving(self, attachment, flags)
        if flags & socket.MSG_WAITALL and not flags & _PEEK:
            return _receive_exactly(stream, transport, bufsize, deadline)
        return stream.receive(transport, bufsize, deadline, peek=bool(flags & _PEEK))

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer).cast("B") as view, view[: _room(view, nbytes, "recv_into")] as target:
            stream, transport, deadline = _receiving(self, attachment, flags)
            if flags & socket.MSG_WAITALL and not flags & _PEEK:
                octets = _receive_exactly(stream, transport, len(target), deadline)
                target[: len(octets)] = octets
                return len(octets)
            return stream.receive_into(transport, target, deadline, peek=bool(flags & _PEEK))

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        if id(self) not in _attachments:
            return super().recvfrom(bufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffersize in recvfrom")
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        if id(self) not in _attachments:
            return super().recvfrom_into(buffer, nbytes, flags)
        with memoryview(buffer).cast("B") as view:
            room = _room(view, nbytes, "recvfrom_into")
            return self.recv_into(view[:room], 0, flags) if room else 0, None

    def recvmsg(self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> tuple[bytes, list[Any], int, Any]:
        if id(self) not in _attachments:
            return super().recvmsg(bufsize, ancbufsize, flags)
        if bufsize < 0:
            raise ValueError("negative buffer size in recvmsg()")
        _check_ancillary_size(ancbufsize, "recvmsg")
        return self.recv(bufsize, flags), [], 0, None

    def recvmsg_into(
        self, buffers: Iterable[WriteableBuffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[Any], int, Any]:
        if id(self) not in _attachments:
            return super().recvmsg_into(buffers, ancbufsize, flags)
        _check_ancillary_size(ancbufsize, "recvmsg_into")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        octets = memoryview(self.recv(sum(map(len, views)), flags))
        received = len(octets)
        for view in views:
            part = octets[: len(view)]
            view[: len(part)] = part
            octets = octets[len(part) :]
        return received, [], 0, None

    # Ending

    def shutdown(self, how: int, /) -> None:
        attachment = _attachments.get(id(self))
        if attachment is None or how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            return super().shutdown(how)
        attachment.tunnel.stream.shut_down(attachment.transport, how)

    def _real_close(self) -> None:
        attachment = _attachments.pop(id(self), None)
        if attachment is not None:
            attachment.tunnel.stream.let_go(attachment.transport)
        super()._real_close()  # type: ignore[misc]

    def detach(self) -> int:
        attachment = _attachments.get(id(self))
        if attachment is None:
            return super().detach()
        if not _shared(attachment):
            _make_plain(self)
        _detach(self)
        return super().detach()

    def dup(self) -> GSSSocket:
        attachment = _attachments.get(id(self))
        duplicate = super().dup()
        if attachment is not None and id(duplicate) not in _attachments:
            _attach(duplicate, attachment.tunnel, Transport(duplicate.fileno(), attachment.transport.family))
        return duplicate

    # What it says of itself

    def _tunnel(self) -> Tunnel | None:
        attachment = _attachments.get(id(self))
        return attachment.tunnel if attachment else _relayed.get(self)

    def fileno(self) -> int:
        attachment = _attachments.get(id(self))
        if attachment is not None:
            # select() asks here; until the tunnel stands, the kernel's answer would be about the proxy's connection.
            attachment.tunnel.wait_settled()
        return super().fileno()

    def getpeername(self) -> Any:
        name = super().getpeername()  # ENOTCONN, EBADF where a plain socket would say so
        tunnel = self._tunnel()
        return tunnel.peername if tunnel else name

    def getsockname(self) -> Any:
        name = super().getsockname()
        tunnel = self._tunnel()
        if tunnel is None or tunnel.kernel_name_shown or tunnel.bound is None:
            return name
        bound = tunnel.bound
        return (bound.host, bound.port, 0, 0) if self.family == socket.AF_INET6 else (bound.host, bound.port)


_chosen_proxies: weakref.WeakKeyDictionary[GSSSocket, Proxy] = weakref.WeakKeyDictionary()


def in_progress() -> BlockingIOError:
    """What a connect that does not wait raises. All is done by then, but the program expects to be told later: by
    writability, and by SO_ERROR 0."""
    return BlockingIOError(errno.EINPROGRESS, os.strerror(errno.EINPROGRESS))


def connect_code(error: OSError) -> int:
    """What connect_ex() returns for an error of connect()."""
    if isinstance(error, socket.timeout) and isinstance(error, ProxyConnectionError):
        return errno.EAGAIN  # what a plain socket returns when its timeout runs out
    return error.errno or errno.EIO


def _shared(attachment: Attachment) -> bool:
    """Whether another socket object has the same descriptor: `SSLContext.wrap_socket` makes one before it detaches
    the first."""
    fd = attachment.transport.fd
    return any(other is not attachment and other.transport.fd == fd for other in list(_attachments.values()))


def _sending(
    sock: socket.socket, attachment: Attachment, view: memoryview, flags: int
) -> tuple[Transport, memoryview, Deadline]:
    if flags & ~_SEND_FLAGS:
        raise OSError(errno.EOPNOTSUPP, f"flags {flags:#x} cannot be carried through a proxy")
    if attachment.tls:
        # ssl.SSLSocket falls through to its base class once shutdown() has dropped the TLS object: that would be
        # plaintext.
        raise BrokenPipeError(errno.EPIPE, "TLS has ended on this socket without unwrap(); nothing more can be sent")
    return attachment.transport, view, Deadline(0 if flags & _DONTWAIT else sock.gettimeout())


def _receiving(sock: socket.socket, attachment: Attachment, flags: int) -> tuple[ProtectedStream, Transport, Deadline]:
    if flags & ~_RECV_FLAGS:
        # MSG_OOB: there is no urgent data here, and there never will be, SOCKS cannot carry it.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return attachment.tunnel.stream, attachment.transport, Deadline(0 if flags & _DONTWAIT else sock.gettimeout())


def _receive_exactly(stream: ProtectedStream, transport: Transport, size: int, deadline: Deadline) -> bytes:
    """MSG_WAITALL: `size` octets, fewer only if the stream ends or the time runs out after some (recv(2))."""
    octets = bytearray()
    while len(octets) < size:
        try:
            part = stream.receive(transport, size - len(octets), deadline)
        except (BlockingIOError, socket.timeout):
            if not octets:
                raise
            break
        if not part:
            break
        octets += part
    return bytes(octets)


def _room(view: memoryview, nbytes: int, method: str) -> int:
    if nbytes < 0:
        raise ValueError(f"negative buffersize in {method}")
    if nbytes > len(view):
        raise ValueError(
            "buffer too small for requested bytes"
            if method == "recv_into"
            else "nbytes is greater than the length of the buffer"
        )
    return nbytes or len(view)


def _check_ancillary_size(size: int, method: str) -> None:
    if size < 0:
        raise ValueError(f"invalid ancillary data buffer length in {method}()")


def _gathered(buffers: Iterable[ReadableBuffer], max_plaintext: int, timeout: float | None) -> bytearray:
    """The buffers as one. Where the call may stop short, not more than it could get rid of at once."""
    enough = None if timeout is None else 4 * max_plaintext
    octets = bytearray()
    for buffer in buffers:
        octets += memoryview(buffer).cast("B")
        if enough is not None and len(octets) >= enough:
            break
    return octets


_DEFAULT_TIMEOUT: Any = object()


def create_connection(
    address: tuple[str, int],
    timeout: float | None = _DEFAULT_TIMEOUT,
    source_address: tuple[str, int] | None = None,
    *,
    proxy: Proxy | str | None = None,
) -> GSSSocket:
    """A socket connected to `address` through a proxy; `socket.create_connection` with a proxy.

    Args:
        address: host (a name goes to the proxy unresolved, unless `proxy.remote_dns` is False) and port.
        timeout: seconds for this and each later operation; None never ends; absent is `socket.getdefaulttimeout()`.
        source_address: local host and port to bind to, on the way to the proxy.
        proxy: a `Proxy`, a URL, or None for the one the environment names.

    Raises:
        OSError: `ProxyError` and its subclasses for what the proxy is the cause of.
    """
    chosen = Proxy.from_url(proxy) if isinstance(proxy, str) else proxy or Proxy.from_environ()
    sock = GSSSocket(socket.AF_INET, socket.SOCK_STREAM, proxy=chosen)
    try:
        if timeout is not _DEFAULT_TIMEOUT:
            sock.settimeout(timeout)
        if source_address:
            sock.bind(source_address)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
