"""What clients reach through a proxy: real servers in threads of this process. They accept, and connect to nothing."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import socketserver
import ssl
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase
    from types import TracebackType

    import trustme

_FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
_PIECE = 65536
# A prime number of octets, so that no lost, doubled or swapped block of a usual size goes unnoticed.
_PERIOD = bytes((i * i + i // 251) % 256 for i in range(65521))


def octets(count: int, start: int = 0) -> bytes:
    """Deterministic octets, such as `HTTPSServer` sends.

    Args:
        count: How many.
        start: How many of the same sequence to leave out before.
    """
    first = start % len(_PERIOD)
    repeats = (first + count) // len(_PERIOD) + 1
    return (_PERIOD * repeats)[first : first + count]


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    # Threads that are not daemons: server_close then waits for them.
    daemon_threads = False
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler], context: ssl.SSLContext | None
    ) -> None:
        self.address_family = _FAMILIES[address[0]]
        super().__init__(address, handler)
        self.accepted = 0
        self._context = context
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False

    def process_request(self, request: Any, client_address: Any) -> None:
        self.accepted += 1
        request.settimeout(None)  # a test in this process may have a default timeout at this moment
        self._opened(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is None:
            super().finish_request(request, client_address)
            return
        # Here, in the connection's own thread: a slow handshake holds up nobody else.
        with self._context.wrap_socket(request, server_side=True) as encrypted:
            self._opened(encrypted)
            try:
                super().finish_request(encrypted, client_address)
            finally:
                self._closed(encrypted)

    def shutdown_request(self, request: Any) -> None:
        self._closed(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is for the test to judge, not for standard error."""

    def hang_up(self) -> None:
        with self._lock:
            self._closing = True
            for connection in self._open:
                _shut(connection)

    def _opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)
            if self._closing:
                _shut(connection)

    def _closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class _Target:
    def __init__(
        self,
        handler: type[socketserver.BaseRequestHandler],
        addresses: tuple[str, ...],
        context: ssl.SSLContext | None = None,
    ) -> None:
        addresses = addresses or tuple(_FAMILIES)
        reserved = ReservedPort(*addresses)
        self._address = (addresses[0], reserved.number)
        self._servers = [_Server((address, reserved.number), handler, context) for address in addresses]
        reserved.release()
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in self._servers
        ]

    def __enter__(self: _AnyTarget) -> _AnyTarget:  # noqa: PYI019 - Self is in typing since Python 3.11 only
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server, thread in zip(self._servers, self._threads):
            server.shutdown()
            thread.join()
            server.hang_up()
            server.server_close()

    @property
    def address(self) -> tuple[str, int]:
        """The first of its addresses, and its port."""
        return self._address

    @property
    def accepted(self) -> int:
        """How many connections it has accepted so far."""
        return sum(server.accepted for server in self._servers)


_AnyTarget = TypeVar("_AnyTarget", bound=_Target)


class EchoServer(_Target):
    """Sends back what it receives, up to the client's end of stream, and then ends its own.

    Args:
        *addresses: "127.0.0.1" or "::1". Without any, both with one port: whatever "localhost" stands for on a machine.
    """

    def __init__(self, *addresses: str) -> None:
        super().__init__(_Echo, addresses)


class SinkServer(_Target):
    """Receives up to the client's end of stream, and then sends the SHA-256 of everything, 64 hexadecimal digits.

    Args:
        *addresses: As for `EchoServer`.
    """

    def __init__(self, *addresses: str) -> None:
        super().__init__(_Sink, addresses)


class SourceServer(_Target):
    """Receives a count, eight octets with the highest first, sends that many of `octets`, and ends the stream.

    Args:
        *addresses: As for `EchoServer`.
    """

    def __init__(self, *addresses: str) -> None:
        super().__init__(_Source, addresses)


class HTTPServer(_Target):
    """HTTP/1.1.

    GET /bytes/<n> gives n of `octets`, GET /headers the request's header fields as JSON, and PUT or POST to /digest the
    SHA-256 of the body in hexadecimal digits.

    Args:
        *addresses: As for `EchoServer`.
        context: For TLS.
    """

    scheme = "http"

    def __init__(self, *addresses: str, context: ssl.SSLContext | None = None) -> None:
        super().__init__(_HTTP, addresses, context)

    def url(self, path: str = "/", *, host: str = "localhost") -> str:
        """The URL of a path.

        Args:
            path: It, with the first slash.
            host: What to call the server.
        """
        return f"{self.scheme}://{host}:{self.address[1]}{path}"


class HTTPSServer(HTTPServer):
    """The same over TLS, with a certificate for localhost, 127.0.0.1 and ::1.

    Args:
        trust: Signs the certificate.
        *addresses: As for `EchoServer`.
    """

    scheme = "https"

    def __init__(self, trust: trustme.CA, *addresses: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.issue_cert("localhost", "127.0.0.1", "::1").configure_cert(context)
        super().__init__(*addresses, context=context)


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while piece := self.request.recv(_PIECE):
            self.request.sendall(piece)


class _Sink(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        digest = hashlib.sha256()
        while piece := self.request.recv(_PIECE):
            digest.update(piece)
        self.request.sendall(digest.hexdigest().encode())


class _Source(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        _send_octets(self.wfile, int.from_bytes(self.rfile.read(8), "big"))


def _send_octets(out: BufferedIOBase, count: int) -> None:
    out.writelines(octets(min(_PIECE, count - start), start) for start in range(0, count, _PIECE))


class _HTTP(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        place, _, count = self.path.rpartition("/")
        if place == "/bytes" and count.isdigit():
            self._begin("application/octet-stream", int(count))
            _send_octets(self.wfile, int(count))
        elif self.path == "/headers":
            self._answer("application/json", json.dumps(dict(self.headers)))
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        for piece in self._body():
            digest.update(piece)
        if self.path == "/digest":
            self._answer("text/plain", digest.hexdigest())
        else:
            self.send_error(404)

    do_POST = do_PUT  # noqa: N815 - http.server looks it up by that name

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server's name
        """Standard error is pytest's."""

    def _answer(self, kind: str, text: str) -> None:
        self._begin(kind, len(text))
        self.wfile.write(text.encode())

    def _begin(self, kind: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._chunks()
        return self._pieces(int(self.headers.get("Content-Length", "0")))

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length > 0:
            piece = self.rfile.read(min(_PIECE, length))
            if not piece:
                raise ConnectionError("the body is shorter than its Content-Length")
            length -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while length := int(self.rfile.readline().split(b";")[0], 16):
            yield from self._pieces(length)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
