"""How many clients are served at once, and who makes room when that many are there."""

from __future__ import annotations

import errno
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gsssocks import _originals

    from ._session import Session

__all__ = ["Places"]

LEAST_SECONDS = 2.0
"""What a client has in any case to authenticate itself, so that many who come at once wait for each other."""


class _Stranger(NamedTuple):
    """A client that is not authenticated."""

    socket: _originals.SocketType
    due: float
    """From when on it may have to make room."""


class Places:
    """Places for clients. Whoever is known keeps its own, but a stranger has to make room: otherwise anybody who can
    reach the port could keep everybody out by saying nothing.

    Args:
        number: how many there are.
    """

    def __init__(self, number: int) -> None:
        self._free = threading.Semaphore(number)
        self._lock = threading.Lock()
        self._strangers: dict[Session, _Stranger] = {}

    def take(self) -> None:
        """Waits for a place; the stranger that has been here longest makes room as soon as it is due."""
        while not self._free.acquire(timeout=self._until_one_is_due()):
            if self._dismiss_one_that_is_due():
                self._free.acquire()
                return

    def _until_one_is_due(self) -> float | None:
        with self._lock:
            oldest = next(iter(self._strangers.values()), None)
        return None if oldest is None else max(0.0, oldest.due - time.monotonic())

    def _dismiss_one_that_is_due(self) -> bool:
        with self._lock:
            session, stranger = next(iter(self._strangers.items()), (None, None))
            if session is None or stranger is None or stranger.due > time.monotonic():
                return False
            del self._strangers[session]
            session.error = OSError(errno.ECANCELED, "not authenticated yet, it had to make room for another client")
            # Its own thread is told so, and closes it.
            with suppress(OSError):
                stranger.socket.shutdown(socket.SHUT_RDWR)
            return True

    def give(self, session: Session, sock: _originals.SocketType) -> None:
        """The place taken is this stranger's."""
        with self._lock:
            self._strangers[session] = _Stranger(sock, time.monotonic() + LEAST_SECONDS)

    def keep(self, session: Session) -> None:
        """It is authenticated, or about to close its socket: it need not make room any more."""
        with self._lock:
            self._strangers.pop(session, None)

    def leave(self, session: Session) -> None:
        self.keep(session)
        self.release()

    def release(self) -> None:
        """Ends a wait for a place."""
        self._free.release()
