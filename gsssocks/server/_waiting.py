"""Waiting that `ProxyServer.stop` can end."""

from __future__ import annotations

import os
import selectors
from typing import TYPE_CHECKING, Any

from gsssocks._transport import Deadline, Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NEVER", "CountingTransport", "StopSign", "StoppableTransport", "Stopped"]

NEVER = Deadline(None)


class Stopped(Exception):  # noqa: N818  # not a mistake of anybody's
    """The server is being stopped."""


class StopSign:
    """Ends every wait of every thread: the reading end of a pipe, readable for good once the other is closed."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def show(self) -> None:
        os.close(self._writing)

    def remove(self) -> None:
        os.close(self._reading)

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
        if taken and not self._listening:
            self._listening = True
            self.flights += 1
        self.received += taken
        return taken

    def send(self, octets: Any, *, more: bool = False) -> int:
        sent = super().send(octets, more=more)
        if sent:
            self._listening = False
        self.sent += sent
        return sent
