"""Waiting that `ProxyServer.stop` can end."""

from __future__ import annotations

import os
import selectors
import socket
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from gsssocks import _originals
from gsssocks._transport import Deadline, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NEVER", "CountingTransport", "Left", "StopSign", "StoppableTransport", "Stopped", "check_is_there"]

T = TypeVar("T")

NEVER = Deadline(None)


class Stopped(Exception):  # noqa: N818  # not a mistake of anybody's
    """The server is being stopped."""


class Left(Exception):  # noqa: N818  # nor is this
    """The client ended its connection while something was done for it.

    Attributes:
        error: what broke it; None if it ended in order.
    """

    def __init__(self, error: OSError | None) -> None:
        super().__init__()
        self.error = error


class StopSign:
    """Ends every wait of every thread: the reading end of a pipe, readable for good once the other is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown = False
        self._reading, self._writing = os.pipe()

    def show(self) -> None:
        """Without effect if it is shown already."""
        with self._lock:
            if not self._shown:
                self._shown = True
                os.close(self._writing)

    def remove(self) -> None:
        self.show()
        os.close(self._reading)

    def check(self) -> None:
        """
        Raises:
            Stopped: the server is to stop.
        """
        if self._shown:
            raise Stopped

    def wait(self, wanted: Mapping[int, int], deadline: Deadline) -> Mapping[int, int]:
        """Waits for any of the events wanted, `selectors.EVENT_READ` or `EVENT_WRITE` or both, of each descriptor.

        Returns:
            the events there are, for each descriptor; none if the time ran out.

        Raises:
            Stopped: the server is to stop.
        """
        with _Selector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            for fd, events in wanted.items():
                selector.register(fd, events)
            ready = {key.fd: events for key, events in selector.select(deadline.remaining())}
        if self._reading in ready:
            raise Stopped
        return ready

    def call(self, function: Callable[[], T], deadline: Deadline, client: Transport | None = None) -> T:
        """Calls a function that waits by itself (a name lookup). It is left behind in its thread if the time runs out,
        or the server is to stop, or the client leaves.

        Args:
            client: the connection of a client that has nothing more to say; None is not watched.

        Raises:
            Stopped: the server is to stop.
            Left: the client has.
            socket.timeout: the time ran out. Otherwise what the function raises.
        """
        reading, writing = os.pipe()
        outcome: Future[T] = Future()

        def run() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
                outcome.set_exception(error)
            finally:
                os.close(writing)

        try:
            _started(run, writing)
            self._await(reading, deadline, client)
        finally:
            os.close(reading)
        return outcome.result()

    def _await(self, reading: int, deadline: Deadline, client: Transport | None) -> None:
        watched = (reading,) if client is None else (reading, client.fd)
        while True:
            ready = self.wait(dict.fromkeys(watched, selectors.EVENT_READ), deadline)
            if not ready:
                raise socket.timeout("timed out")
            if reading in ready:
                return
            if client is not None:
                check_is_there(client)


def check_is_there(client: Transport) -> None:
    """Takes what a client that has nothing more to say has said all the same.

    Raises:
        Left: it has ended its connection.
    """
    view = memoryview(bytearray(4096))
    try:
        seen = client.peek(view)
        if seen:
            client.take(view[:seen])
    except OSError as error:
        raise Left(error) from error
    if seen == 0:
        raise Left(None)


def _started(run: Callable[[], None], writing: int) -> None:
    try:
        _originals.Thread(target=run, name="gsssocks-wait", daemon=True).start()
    except BaseException:
        os.close(writing)
        raise


# Unlike epoll and kqueue, poll costs no descriptor.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class StoppableTransport(Transport):
    """A transport whose waits end when the server stops."""

    __slots__ = ("_stop",)

    def __init__(self, fd: int, family: int, stop: StopSign) -> None:
        super().__init__(fd, family)
        self._stop = stop

    def wait_readable(self, deadline: Deadline) -> bool:
        return bool(self._stop.wait({self.fd: selectors.EVENT_READ}, deadline))

    def wait_writable(self, deadline: Deadline) -> bool:
        return bool(self._stop.wait({self.fd: selectors.EVENT_WRITE}, deadline))


class CountingTransport(StoppableTransport):
    """A client's transport: counts octets, and how often the client began to speak."""

    __slots__ = ("_listening", "flights", "received", "sent")

    def __init__(self, fd: int, family: int, stop: StopSign) -> None:
        super().__init__(fd, family, stop)
        self.received = self.sent = self.flights = 0
        self._listening = False

    def take(self, view: memoryview) -> int:
        taken = super().take(view)
        self._note_received(taken)
        return taken

    def take_noting(self, count: int, taken: list[int]) -> None:
        before = len(taken)
        super().take_noting(count, taken)
        self._note_received(sum(taken[before:]))

    def _note_received(self, count: int) -> None:
        if count and not self._listening:
            self._listening = True
            self.flights += 1
        self.received += count

    def send(self, octets: Any, *, more: bool = False) -> int:
        sent = super().send(octets, more=more)
        self._note_sent(sent)
        return sent

    def send_noting(self, octets: Any, sent: list[int], *, more: bool = False) -> None:
        before = len(sent)
        super().send_noting(octets, sent, more=more)
        self._note_sent(sum(sent[before:]))

    def _note_sent(self, count: int) -> None:
        if count:
            self._listening = False
        self.sent += count
