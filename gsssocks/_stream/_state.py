"""What both directions of one connection have in common: the record layer, what has ended or failed, the locks, and
which call of the same thread another one may have interrupted.

Locks: `_receiving` belongs to whoever reads, also while waiting; `_turn` to whoever sends a whole call's data, also
while waiting; `_sending` guards protecting and handing to the kernel, and is never held while waiting. So a reader
and a writer never wait for each other, and writers' data stays whole. During the negotiation its driver holds
`_receiving` and `_turn`.

*A call may interrupt another of its own thread*: a signal handler's, or a finalizer's. It cannot wait for that one to
let go of a lock. What it sends is kept, whole, and put in line by the call that it has interrupted, behind the message
begun. It receives where that one is only waiting; where it is just taking what has arrived, the error is EDEADLK: the
program can come back later.

*A handler may also raise*, wherever it likes. A lock is taken inside of the `try` that lets go of it, by one call into
C, and each change of the state is one step (see `_line`, `_record`). So a call that ends like that leaves the stream
fit for the next, and loses at most what it was to receive, or to send.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from types import CodeType, FrameType

    from gsssocks._record import Records

__all__ = ["State", "let_go_of"]


class State:
    """See `ProtectedStream`."""

    def __init__(self, records: Records | None) -> None:
        self._records = records
        self._forks = _forks
        _streams.add(self)
        self._make_locks()
        self._connecting = False
        self._no_more_reading = False
        self._no_more_sending = False
        self._failure: Exception | None = None

    def _make_locks(self) -> None:
        # They know which thread has them. Nothing but that is made of their being re-entrant.
        self._receiving = threading.RLock()
        self._turn = threading.RLock()
        self._sending = threading.RLock()
        self._receiving_here, self._turn_here, self._sending_here = map(
            _owned, (self._receiving, self._turn, self._sending)
        )

    def after_fork_in_child(self) -> None:
        """Only the thread that called fork() lives on here: whatever lock another one holds is never released."""
        self._make_locks()

    @property
    def records(self) -> Records:
        """The record layer.

        Raises:
            OSError: ENOTCONN: there is no connection (yet, or it could not be made).
        """
        if self._records is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._records

    def _check_not_failed(self) -> None:
        if self._failure:
            # A new instance each time: one that is raised again and again would collect tracebacks.
            raise type(self._failure)(*self._failure.args) from self._failure

    def _explained(self, error: Exception) -> Exception:
        """The error, with what is most likely behind it where this process has forked."""
        if self._forks == _forks:
            return error
        number, message = error.args
        return type(error)(
            number,
            f"{message} (the process has forked since it was made, and parent and child have both used it: "
            "only one of them may, since messages are numbered)",
        )

    def _interrupted(self, places: frozenset[CodeType]) -> CodeType | None:
        """Where the call is that has been interrupted: the innermost of `places` in this stream. None if it has ended:
        in CPython 3.9, an exception out of a signal handler may come between that and its letting go of a lock.

        Raises:
            OSError: ENOTCONN: it is connecting.
        """
        if self._connecting:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        frame: FrameType | None = sys._getframe(3)  # noqa: SLF001 - without whoever asks, and whoever wants to know
        while frame is not None:
            if frame.f_code in places and frame.f_locals.get("self") is self:
                return frame.f_code
            frame = frame.f_back
        return None


def _owned(lock: threading.RLock) -> Callable[[], bool]:
    """What says whether this thread has the lock. `threading.Condition` asks the same."""
    owned: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
    return owned


def let_go_of(lock: threading.RLock) -> None:
    """Releases a lock that a call of this thread has left behind."""
    with suppress(RuntimeError):
        while True:
            lock.release()


_forks = 0
"""How many times this process, or the one it was forked from, has forked."""
_streams: weakref.WeakSet[State] = weakref.WeakSet()


def _after_fork_in_parent() -> None:
    global _forks
    _forks += 1


def _after_fork_in_child() -> None:
    _after_fork_in_parent()
    for stream in list(_streams):
        stream.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
