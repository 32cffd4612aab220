"""A target that does what one test wants of it."""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Generic, NoReturn, TypeVar

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["PATIENCE_SECONDS", "Host", "received_until_end"]

T = TypeVar("T")

PATIENCE_SECONDS = 30.0
"""How long a test waits for what must happen, before it fails."""


class Host(Generic[T]):
    """Listens on 127.0.0.1; each connection is handed to a function, in a thread of its own.

    At the end of the with statement, a function that failed fails the test, unless `result` has raised its exception.

    Args:
        script: given a connected socket with a timeout, which is closed when it returns.
    """

    def __init__(self, script: Callable[[socket.socket], T]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._outcomes: queue.SimpleQueue[Callable[[], T]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._receptionist = threading.Thread(target=self._receive_visitors)

    def __enter__(self) -> Host[T]:
        self._receptionist.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._receptionist.join()
        self._listener.close()
        if kind is not None:
            self._hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        self._hang_up()
        for thread in self._threads:
            thread.join()
        while kind is None and not self._outcomes.empty():
            self._outcomes.get_nowait()()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listener.getsockname()
        return host, port

    def result(self) -> T:
        """What the function returned for the connection that ended first, or else next: its exception is raised."""
        return self._outcomes.get(timeout=PATIENCE_SECONDS)()

    def _receive_visitors(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(PATIENCE_SECONDS)
            thread = threading.Thread(target=self._serve, args=(connection,))
            with self._lock:
                self._connections.append(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                value = self._script(connection)
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                failure = error
                self._outcomes.put(lambda: _raise(failure))
            else:
                self._outcomes.put(lambda: value)

    def _hang_up(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _raise(error: BaseException) -> NoReturn:
    raise error


def received_until_end(connection: socket.socket) -> bytes:
    """Everything up to the end of the stream."""
    received = bytearray()
    while piece := connection.recv(65536):
        received += piece
    return bytes(received)
