"""What is sent after the application has let go of a connection: in a thread of its own, as the kernel would from its
buffer.

The interpreter's end waits for such a thread, since it must not cut off what the application has handed over; but not
for a peer that takes nothing any more.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Callable

from . import _originals
from ._transport import Deadline, Transport

__all__ = ["LINGER", "LOOK_UP", "Patience", "finish_later"]

LINGER = 60.0
"""Seconds for which the rest of a message is still sent after close() or shutdown()."""
EXIT_LINGER = 5.0
"""Seconds without progress after which that ends, once the interpreter is ending."""
LOOK_UP = 0.1
"""Seconds after which a wait looks up whether it has become pointless, where nothing in the kernel wakes it."""

_late: set[int] = set()
"""The descriptors that the threads here hold open."""


class Patience:
    """How long to wait for the peer to take what is in line.

    Args:
        left: tells how many octets there are.
    """

    def __init__(self, left: Callable[[], int]) -> None:
        self._left = left
        self._deadline = Deadline(LINGER)
        self._last_left = -1
        self._at_exit = Deadline(None)

    def next(self) -> Deadline | None:
        """When to look up again; None if there has been enough waiting."""
        if threading.main_thread().is_alive():
            return self._sooner(LOOK_UP)
        left = self._left()
        if left != self._last_left:
            self._last_left = left
            self._at_exit = Deadline(EXIT_LINGER)
        return self._sooner(LOOK_UP) if self._at_exit.remaining() else None

    def _sooner(self, seconds: float) -> Deadline | None:
        remaining = self._deadline.remaining()
        return Deadline(min(seconds, remaining)) if remaining else None


def finish_later(fd: int, family: int, finishing: Callable[[Transport], None]) -> None:
    """Does what is left to be done on a connection, beside the application.

    Args:
        fd: a descriptor of its own for that, which is closed in the end.
        family: its address family.
        finishing: does it.
    """
    late = Transport(fd, family)
    _late.add(fd)

    def finish() -> None:
        with suppress(OSError):
            finishing(late)
        late.release()
        _late.discard(fd)
        os.close(fd)

    if not threading.main_thread().is_alive():
        finish()  # the interpreter is ending, and may wait for no more threads
        return
    try:
        # Not a daemon, whatever thread this is: the interpreter's end must not cut it off.
        _originals.Thread(target=finish, name="gsssocks-linger", daemon=False).start()
    except RuntimeError:
        finish()  # there is no thread to be had


def _after_fork_in_child() -> None:
    """The threads go on in the parent: what is open here as well would keep the peer from hearing of the end."""
    while _late:
        with suppress(OSError):
            os.close(_late.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
