"""A plain socket in place of a tunnelled one, for code that reads and writes the descriptor itself.

Such code (a C library, OpenSSL, libuv, a child process) cannot call our methods, and the proxy's messages are of no
use to it. So the descriptor is given one end of a TCP connection within this machine, and two threads carry octets
between its other end and the tunnel. It is a connection of TCP, not of AF_UNIX, because such code asks for TCP's
options and for IP addresses.

The threads are daemons: nothing ends them while the application holds its end open. What the application has written
when the interpreter ends is still carried over first (`_drain_all`).
"""

from __future__ import annotations

import atexit
import os
import socket
import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

from . import _descriptor, _originals
from ._lingering import LINGER
from ._transport import Deadline, Transport

if TYPE_CHECKING:
    from ._stream import ProtectedStream

__all__ = ["relay"]

_PIECE = 64 * 1024
_FOREVER = Deadline(None)

_running: weakref.WeakSet[_Relay] = weakref.WeakSet()


def relay(fd: int, family: int, stream: ProtectedStream) -> None:
    """Puts under `fd` a plain socket that carries what `stream` carries. The tunnel's own descriptor is a new one.

    Args:
        fd: descriptor of the tunnelled socket; blocking mode and inheritance stay.
        family: address family for the plain socket.
        stream: the tunnel; nobody else may use it from now on.

    Raises:
        OSError: no socket could be had; then nothing has changed.
    """
    theirs, ours = _descriptor.pair(family)
    try:
        tunnelled = os.dup(fd)
        _descriptor.put_under(fd, theirs.fileno())
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    _Relay(ours, tunnelled, stream).start()


class _Relay:
    """The two threads between a tunnel and the plain end that stays with us."""

    def __init__(self, plain: _originals.SocketType, tunnelled: int, stream: ProtectedStream) -> None:
        self._plain = plain
        self._plain_end = Transport(plain.fileno(), plain.family)
        self._stream = stream
        self._fd = tunnelled
        self._tunnelled = Transport(tunnelled, plain.family)
        self._busy = False
        self._carried_out = threading.Event()
        self._outward = _originals.Thread(target=self._carry_out, name="gsssocks-relay-out", daemon=True)
        self._inward = _originals.Thread(target=self._carry_in, name="gsssocks-relay-in", daemon=True)

    def start(self) -> None:
        _running.add(self)
        self._outward.start()
        self._inward.start()

    def _carry_out(self) -> None:
        try:
            while self._carry_piece_out():
                pass
            self._stream.shut_down(self._tunnelled, socket.SHUT_WR)
        except OSError:
            self._break()
        self._carried_out.set()
        self._inward.join()
        self._tunnelled.release()
        os.close(self._fd)
        self._plain_end.release()
        self._plain.close()

    def _carry_piece_out(self) -> bool:
        self._plain_end.wait_readable(_FOREVER)
        # From here on a piece is neither in the kernel nor in the tunnel: `drain` must know of it.
        self._busy = True
        octets = self._plain.recv(_PIECE)
        if octets:
            self._stream.send_all(self._tunnelled, memoryview(octets), _FOREVER)
        self._busy = False
        return bool(octets)

    def _carry_in(self) -> None:
        try:
            while octets := self._stream.receive(self._tunnelled, _PIECE, _FOREVER):
                self._plain.sendall(octets)
            self._plain.shutdown(socket.SHUT_WR)
        except OSError:
            self._break()

    def _break(self) -> None:
        """Both directions end, and both peers notice: by a reset, as of any connection that broke. After an orderly end
        they would take a part for the whole."""
        for end in (self._plain_end, self._tunnelled):
            with suppress(OSError):
                _descriptor.reset(end.fd, end.family)

    def drain(self, deadline: Deadline) -> None:
        """Waits until what the application has written is carried over."""
        while not self._carried_out.is_set() and (self._busy or self._has_input()):
            remaining = deadline.remaining()
            if not remaining:
                return
            self._carried_out.wait(min(0.01, remaining))

    def after_fork_in_child(self) -> None:
        """The threads go on in the parent: what is open here as well would keep both peers from hearing of the end."""
        if self._tunnelled.fd >= 0:
            self._tunnelled.release()
            os.close(self._fd)
        self._plain_end.release()
        self._plain.close()

    def _has_input(self) -> bool:
        return self._plain_end.wait_readable(Deadline(0))


def _drain_all() -> None:
    deadline = Deadline(LINGER)
    for running in list(_running):
        with suppress(OSError, ValueError):
            running.drain(deadline)


def _after_fork_in_child() -> None:
    for running in list(_running):
        running.after_fork_in_child()
    _running.clear()


atexit.register(_drain_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
