"""What real programs talk to, on the loopback interface: real servers in threads of this process."""

from __future__ import annotations

import asyncio
import functools
import http.server
import ssl
import threading
import warnings
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import AsyncMessage

from gsssocks.testing._loopback import ReservedPort

with warnings.catch_warnings():
    # It still uses asyncore, where the standard library has that.
    warnings.simplefilter("ignore", DeprecationWarning)
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.ioloop import IOLoop
    from pyftpdlib.servers import FTPServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from email.message import Message
    from pathlib import Path

    import trustme

__all__ = ["ftp_server", "package_index", "smtp_server", "write_wheel"]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server's name
        """Standard error is pytest's."""


def write_wheel(directory: Path, name: str) -> Path:
    """A package that holds nothing."""
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        information = f"{name}-1.0.dist-info"
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    return path


@contextmanager
def package_index(directory: Path, trust: trustme.CA) -> Iterator[int]:
    """Serves a directory by HTTPS; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.issue_cert("localhost").configure_cert(context)
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def ftp_server(directory: Path, address: str = "127.0.0.1") -> Iterator[int]:
    """Serves a directory by FTP, to be read and written by alice, whose password is secret; its port."""
    authorizer = DummyAuthorizer()
    authorizer.add_user("alice", "secret", str(directory), perm="elrw")
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "use_sendfile": False})
    server = FTPServer((address, 0), handler, ioloop=IOLoop())
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            server.serve_forever(timeout=0.02, blocking=False)
        server.close_all()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.address[1]
    finally:
        ended.set()
        thread.join()


class _Mailbox(AsyncMessage):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.messages: list[Message] = []

    async def handle_message(self, message: Message) -> None:
        self.messages.append(message)


@contextmanager
def smtp_server(trust: trustme.CA) -> Iterator[tuple[int, list[Message]]]:
    """Takes mail, after STARTTLS only; its port, and what it has taken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.issue_cert("localhost").configure_cert(context)
    # The controller closes it; one of the handler's own would stay open.
    loop = asyncio.new_event_loop()
    mailbox = _Mailbox(loop)
    port = ReservedPort("127.0.0.1")
    controller = Controller(
        mailbox, loop=loop, hostname="127.0.0.1", port=port.number, tls_context=context, require_starttls=True
    )
    try:
        controller.start()
        yield port.number, mailbox.messages
    finally:
        controller.stop()
        port.release()
