"""TLS inside a tunnel: what stands in an `ssl.SSLSocket` where CPython has its C object.

`SSLContext.wrap_socket` gives the descriptor to OpenSSL, which would find the proxy's messages there instead of TLS
records. So for a tunnelled socket `SSLContext._wrap_socket` answers with a `TunnelledTLS`: OpenSSL works on two
memory buffers, and this class carries octets between them and the tunnel. Everything above, the `SSLSocket` the
application holds, is CPython's own.

Records are fetched one at a time. Reading ahead would take octets out of the tunnel that select() should show, and,
after `unwrap()`, plaintext that is not TLS's to take.

OpenSSL's object is not safe for two threads at once; `_engine` guards it, and is never held while waiting.
"""

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from contextlib import suppress
from functools import cache
from typing import Any, Callable, TypeVar, Union

from ._switching import tunnelled_class
from ._transport import Deadline, byte_view
from ._tunnel import Attachment, attachment_of
from .exceptions import ProxyError

__all__ = ["TunnelledTLS", "carry", "replace_tls_object", "tls_object", "wrap_socket"]

T = TypeVar("T")

RECORD_HEADER = 5
"""Octets of type, version and length before each TLS record (RFC 8446, section 5.1)."""
CONTENT_TYPES = range(20, 25)
"""change_cipher_spec to heartbeat (RFC 8446, section 5.1; RFC 6520)."""
MAX_BODY = 2**14 + 2048
"""Octets of the longest record body of any version (RFC 5246, section 6.2.3)."""
WRITE_SIZE = 48 * 1024
"""Octets given to OpenSSL at once: three full records, which fit one message of the tunnel with their overhead."""

Buffer = Union[bytearray, memoryview]

_NOW = Deadline(0)


def tls_object(
    context: ssl.SSLContext,
    sock: ssl.SSLSocket,
    server_side: bool,
    server_hostname: str | None,
    *,
    owner: Any = None,
    session: ssl.SSLSession | None = None,
) -> TunnelledTLS | None:
    """What `SSLContext._wrap_socket` is to return for `sock`; None if it is not tunnelled."""
    attachment = attachment_of(sock)
    if attachment is None:
        return None
    return TunnelledTLS(context, sock, attachment, server_side, server_hostname, owner=owner, session=session)


def replace_tls_object(sock: socket.socket) -> None:
    """Gives a socket that was wrapped before it was connected, and is now, a TLS object that works through the
    tunnel."""
    if not isinstance(sock, ssl.SSLSocket) or sock._sslobj is None:  # type: ignore[attr-defined]
        return
    # The session cannot be read back from an object that has not shaken hands; SSLSocket keeps what it was given.
    session = sock._session  # type: ignore[attr-defined]
    sock._sslobj = tls_object(  # type: ignore[attr-defined]
        sock.context, sock, False, sock.server_hostname, owner=sock, session=session
    )


def wrap_socket(
    context: ssl.SSLContext,
    sock: socket.socket,
    *,
    server_side: bool = False,
    do_handshake_on_connect: bool = True,
    suppress_ragged_eofs: bool = True,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """`context.wrap_socket` for a tunnelled socket, with nothing installed: TLS works in this process, without a relay.

    Raises:
        OSError, ValueError: as `context.wrap_socket`; `sock` has been taken over, and closed, then.
    """
    # OpenSSL's object for the descriptor, which ssl makes first, is exchanged before it has read or written.
    wrapped: ssl.SSLSocket = tunnelled_class(_own_class(context))._create(  # type: ignore[attr-defined]
        sock=sock,
        server_side=server_side,
        do_handshake_on_connect=False,
        suppress_ragged_eofs=suppress_ragged_eofs,
        server_hostname=server_hostname,
        context=context,
        session=session,
    )
    try:
        wrapped._sslobj = tls_object(  # type: ignore[attr-defined]
            context, wrapped, server_side, wrapped.server_hostname, owner=wrapped, session=session
        )
        wrapped.do_handshake_on_connect = do_handshake_on_connect  # type: ignore[attr-defined]
        if do_handshake_on_connect:
            if wrapped.gettimeout() == 0:
                raise ValueError("do_handshake_on_connect should not be specified for non-blocking sockets")
            wrapped.do_handshake()
    except BaseException:
        wrapped.close()
        raise
    return wrapped


def carry(context: ssl.SSLContext) -> None:
    """Has `context.wrap_socket` do what `wrap_socket` does whenever the socket is tunnelled, with nothing installed.

    That rides on `SSLContext.sslsocket_class`; any other socket is wrapped as before. Calling it again does nothing.
    """
    if not issubclass(context.sslsocket_class, _Choosing):
        # mypy compares the class with Hashable by the methods of its instances.
        context.sslsocket_class = _choosing_class(context.sslsocket_class)  # type: ignore[arg-type]


def _own_class(context: ssl.SSLContext) -> type[ssl.SSLSocket]:
    own = context.sslsocket_class
    return own.otherwise if issubclass(own, _Choosing) else own


class _Choosing(ssl.SSLSocket):
    """An `sslsocket_class` that makes sockets of one class or another, never of its own.

    Attributes:
        otherwise: the class for sockets that are not tunnelled.
    """

    otherwise: type[ssl.SSLSocket] = ssl.SSLSocket

    @classmethod
    def _create(cls, sock: socket.socket, *, context: ssl.SSLContext, **arguments: Any) -> ssl.SSLSocket:
        if attachment_of(sock) is not None:
            return wrap_socket(context, sock, **arguments)
        created: ssl.SSLSocket = cls.otherwise._create(sock, context=context, **arguments)  # type: ignore[attr-defined]
        return created


@cache
def _choosing_class(otherwise: type[ssl.SSLSocket]) -> type[_Choosing]:
    return type(otherwise.__name__, (_Choosing,), {"otherwise": otherwise})


class TunnelledTLS:
    """The methods that `ssl.SSLSocket` calls on its C object.

    Those that move octets are here; all others are OpenSSL's own, on an object that works on memory buffers.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        sock: ssl.SSLSocket,
        attachment: Attachment,
        server_side: bool,
        server_hostname: str | None,
        *,
        owner: Any = None,
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context._wrap_bio(  # type: ignore[attr-defined]
            self._incoming, self._outgoing, server_side, server_hostname, owner=owner, session=session
        )
        # Weak, as in C: the socket owns this object.
        self._socket = weakref.ref(sock)
        self._attachment = attachment
        attachment.tls = True
        self._engine = threading.Lock()
        self._writing = threading.Lock()
        self._fetching = threading.Lock()
        self._header = bytearray()
        self._missing = RECORD_HEADER
        self._written = 0  # octets that a write() has taken without having been able to say so

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ssl, name)

    @property
    def context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = self._ssl.context
        return context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        self._ssl.context = context

    @property
    def session(self) -> ssl.SSLSession | None:
        session: ssl.SSLSession | None = self._ssl.session
        return session

    @session.setter
    def session(self, session: ssl.SSLSession) -> None:
        self._ssl.session = session

    def do_handshake(self) -> None:
        self._run(self._ssl.do_handshake, self._deadline(), "handshake")

    def read(self, length: int = 1024, buffer: Buffer | None = None) -> bytes | int:
        operation = (lambda: self._ssl.read(length)) if buffer is None else (lambda: self._ssl.read(length, buffer))
        # Once hands have been shaken, what fills the kernel's buffer is another thread's data, of which the peer may
        # take no more before we have read. The stream goes on sending while the read waits.
        established = self._ssl.version() is not None
        result: bytes | int = _as_openssl_says(
            lambda: self._run(operation, self._deadline(), "read", await_room=not established)
        )
        return result

    def write(self, data: Any) -> int:
        deadline = self._deadline()
        try:
            deadline.acquire(self._writing)
        except BlockingIOError:
            raise _want_write() from None
        try:
            with byte_view(data) as view:
                return _as_openssl_says(lambda: self._write_all(view, deadline))
        finally:
            self._writing.release()

    def _write_all(self, view: memoryview, deadline: Deadline) -> int:
        done = 0
        try:
            while done < len(view):
                with view[done:] as rest:
                    done += self._write_some(rest, deadline)
        except (ssl.SSLWantWriteError, socket.timeout):
            # As in C: what has been written counts, and the caller comes back with the rest.
            if not done:
                raise
        return done

    def _write_some(self, view: memoryview, deadline: Deadline) -> int:
        if not self._written:
            with view[:WRITE_SIZE] as part:
                self._run(lambda: self._write_records(part), deadline, "write", flush=False)
        self._flush(deadline, "write")
        written, self._written = min(self._written, len(view)), 0
        return written

    def _write_records(self, view: memoryview) -> None:
        # OpenSSL returns after each record (SSL_MODE_ENABLE_PARTIAL_WRITE); several fit one message of the tunnel.
        while self._written < len(view):
            self._written += self._ssl.write(view[self._written :])

    def shutdown(self) -> ssl.SSLSocket | None:
        self._run(self._ssl.shutdown, self._deadline(), "read")
        self._attachment.tls = False
        return self._socket()

    def verify_client_post_handshake(self) -> None:
        self._run(self._ssl.verify_client_post_handshake, self._deadline(), "write")

    # The loop

    def _deadline(self) -> Deadline:
        sock = self._socket()
        if sock is None:
            raise ssl.SSLError("Underlying socket connection gone")
        return Deadline(sock.gettimeout())

    def _run(
        self, operation: Callable[[], T], deadline: Deadline, what: str, *, flush: bool = True, await_room: bool = True
    ) -> T:
        """Repeats `operation` until it needs no more from the peer, carrying octets both ways in between.

        Args:
            flush: whether what OpenSSL has to say is sent in the end.
            await_room: whether it must have left before anything is awaited from the peer.
        """
        while True:
            wants: ssl.SSLWantReadError | None = None
            try:
                with self._engine:
                    try:
                        result = operation()
                    except ssl.SSLWantReadError as error:
                        wants = error
                    finally:
                        # What OpenSSL has to say goes out in the order in which it was said, an alert before a
                        # failure too.
                        self._enqueue_outgoing()
            except ssl.SSLError:
                with suppress(OSError):
                    self._flush(deadline if await_room else _NOW, what)
                raise
            if wants is None:
                if flush and what != "read":
                    self._flush(deadline, what)
                elif flush:
                    self._flush_at_once()
                return result
            if await_room:
                self._flush(deadline, what)
            else:
                self._flush_at_once()
            self._fetch(deadline, wants, what)

    def _flush_at_once(self) -> None:
        # Where nothing can be sent any more, what the peer sent before can still be read.
        self._attachment.tunnel.stream.flush_in_passing(self._attachment.transport)

    def _enqueue_outgoing(self) -> None:
        stream = self._attachment.tunnel.stream
        while self._outgoing.pending:
            stream.enqueue(self._outgoing.read(stream.records.max_plaintext))

    def _flush(self, deadline: Deadline, what: str) -> None:
        if self._attachment.tunnel.stream.flush(self._attachment.transport, deadline):
            return
        if deadline.timeout == 0:
            raise _want_write()
        raise socket.timeout(f"The {what} operation timed out")

    def _fetch(self, deadline: Deadline, wants: ssl.SSLWantReadError, what: str) -> None:
        """Moves the rest of one TLS record from the tunnel to OpenSSL, or what there is of it."""
        try:
            deadline.acquire(self._fetching)
        except BlockingIOError:
            raise wants from None
        try:
            if self._incoming.pending and self._missing == RECORD_HEADER and not self._header:
                return  # another thread has fetched a record since
            self._fetch_record(deadline)
        except BlockingIOError:
            raise wants from None
        except socket.timeout:
            raise socket.timeout(f"The {what} operation timed out") from None
        finally:
            self._fetching.release()

    def _fetch_record(self, deadline: Deadline) -> None:
        stream, transport = self._attachment.tunnel.stream, self._attachment.transport
        while self._missing:
            octets = stream.receive(transport, self._missing, deadline)
            if not octets:
                self._incoming.write_eof()
                return
            self._incoming.write(octets)
            self._missing -= len(octets)
            self._note_header(octets)
        self._missing = RECORD_HEADER

    def _note_header(self, octets: bytes) -> None:
        if len(self._header) == RECORD_HEADER:
            if not self._missing:
                self._header.clear()
            return
        self._header += octets
        if len(self._header) == RECORD_HEADER:
            self._missing = self._body_length()
            if not self._missing:
                self._header.clear()

    def _body_length(self) -> int:
        """Octets that follow the header; 0 for what is no TLS record, which OpenSSL is then to judge without
        waiting."""
        content_type, major = self._header[:2]
        length = int.from_bytes(self._header[3:], "big")
        plausible = content_type in CONTENT_TYPES and major == 3 and length <= MAX_BODY
        return length if plausible else 0


def _want_write() -> ssl.SSLWantWriteError:
    return ssl.SSLWantWriteError(ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)")


def _as_openssl_says(operation: Callable[[], T]) -> T:
    """Runs a read or a write; a reset connection is the end of the stream where this Python's own `ssl` takes it for
    that.

    Some releases from 3.10 to 3.12 do (https://github.com/python/cpython/issues/115627), and programs written there
    look for it.
    """
    try:
        return operation()
    except ConnectionError as error:
        if isinstance(error, ProxyError) or not _reset_is_end():
            raise
        raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol") from error


@cache
def _reset_is_end() -> bool:
    """Asks this Python itself: its patch releases differ."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(ours, do_handshake_on_connect=False) as tls:
        theirs.close()
        try:
            tls.write(b"x")  # shakes hands first, and meets EPIPE
        except ssl.SSLEOFError:
            return True
        except OSError:
            pass
    return False
