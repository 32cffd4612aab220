"""One UDP port of an application whose datagrams go through proxies: what all its sockets share, and which those are.

Where a datagram goes is decided one by one, by its destination. The application's own kernel socket carries all of
them, those to the relays of the proxies, protected, and those that go directly: so select(), poll() and epoll say of
its descriptor what they say of any. It is never connected to a relay, lest somebody who writes to the bare descriptor
sends there what is not protected.

What arrives comes from a relay, and counts as from whom its header says, or is handed over only if its sender may be
reached directly. As on any UDP socket, a descriptor that is readable may turn out to hold nothing, where what had
arrived is dropped.

Locks: one for each direction, `_receiving` held while waiting, too, and `_sending` not; `_associating` while a proxy is
asked for an association.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable

from . import _descriptor, _guards
from ._destinations import Contacts, in_family, remember
from ._transport import Arrival, DatagramTransport, Deadline
from ._udp import Association, Dropped, associate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._config import Proxy
    from ._destinations import Destination, Router

__all__ = ["Endpoint", "Share", "endpoint_under", "join", "leave", "renew", "share_of"]

MAX_LOOKS = 4096
"""Datagrams that one call which may not wait drops before it gives up: more than a kernel buffer of usual size holds,
so that a program which reads until nothing is left has seen everything."""


class Endpoint:
    """What all sockets of one UDP port share.

    Attributes:
        family: the address family that the application asked for.
        route: how a destination is reached.
        peer: what it has connected to, if that is reached through a proxy.
        dropped: what has arrived and not been handed over.
        no_more_reading: whether the application has shut it down for reading.

    Args:
        route: decides how each destination is reached.
        always: the proxies through which everything goes, where that is so.
    """

    def __init__(self, family: int, route: Router, always: tuple[Proxy, ...] | None = None) -> None:
        self.family = family
        self.route = route
        self._always = always
        self.peer: Destination | None = None
        self.dropped = Dropped()
        self.no_more_reading = False
        self._associations: dict[tuple[Proxy, ...], Association] = {}
        self._inherited: list[Association] = []
        self._relays: dict[tuple[str, int], Association] = {}
        self._contacts = Contacts()
        self._expected: dict[tuple[str, int], tuple[Any, ...]] = {}
        self._peeked: Arrival | None = None
        self._make_locks()
        _endpoints.add(self)

    def _make_locks(self) -> None:
        self._receiving = threading.Lock()
        self._sending = threading.Lock()
        self._associating = threading.Lock()

    def after_fork_in_child(self) -> None:
        """Only the thread that called fork() lives on here: whatever lock another one holds is never released.

        What is sent through the associations is numbered by the parent: of two datagrams with one number, the proxy
        drops one. So this process asks for its own when it sends; through those that there are it can still receive.
        """
        self._make_locks()
        self._inherited = self.associations
        self._associations = {}
        for association in self._inherited:
            association.after_fork_in_child()

    @property
    def associations(self) -> list[Association]:
        """Those that there are, the oldest first; in a child process also those of its parent."""
        return [*self._inherited, *self._associations.values()]

    def close(self) -> None:
        """Ends all associations, when what has been sent has been passed on."""
        for association in self.associations:
            association.let_go()

    # Associations

    def association(self, share: Share, proxies: tuple[Proxy, ...], deadline: Deadline) -> Association:
        """The association with one of `proxies`; it is asked for, if there is none.

        Raises:
            BlockingIOError, socket.timeout: the time ran out, or another thread is asking for one.
            ProxyError: there is none to be had.
        """
        with deadline.holding(self._associating):
            found = self._associations.get(proxies)
            if found is not None:
                return found
            timeout = deadline.remaining()
            if deadline.timeout and not timeout:
                raise deadline.passed()
            association = associate(proxies, self.family, timeout, self.dropped)
            try:
                _fit(share, association)
            except OSError:
                association.close()
                raise
            self._associations[proxies] = association
            self._note_relays(share)
            return association

    def _note_relays(self, share: Share) -> None:
        # Another kernel socket may have taken the place of the one that the others were noted for.
        family = share.transport.family
        self._relays = {in_family(each.relay, family)[:2]: each for each in self.associations}

    def _check_alive(self, association: Association) -> None:
        if not association.ended:
            return
        for proxies, other in list(self._associations.items()):
            if other is association:
                self._associations.pop(proxies, None)
        self._inherited = [other for other in self._inherited if other is not association]
        association.close()
        raise association.ending()

    # Sending

    def send(self, share: Share, data: bytes, to: Destination, deadline: Deadline) -> None:
        """Sends one datagram through a proxy.

        Raises:
            BlockingIOError, socket.timeout: the time ran out.
            ConnectionResetError: the proxy has ended the association. It is said once; to send again asks for another.
            OSError: EMSGSIZE and EADDRNOTAVAIL: see `Association.protect`.
        """
        association = self.association(share, to.route.proxies, deadline)
        with deadline.holding(self._sending):
            self._check_alive(association)
            message = association.protect(data, to.address)
            self._contacts.note(to)
        relay = in_family(association.relay, share.transport.family)
        while not share.transport.send(message, relay):
            if not deadline.allows_waiting() or not share.transport.wait_writable(deadline):
                raise deadline.passed()

    def expect_directly(self, sender: tuple[Any, ...], shown: tuple[Any, ...]) -> None:
        """Has datagrams from `sender` accepted, whatever the rules say of its address, as coming from `shown`."""
        remember(self._expected, sender[:2], shown)

    # Receiving

    def receive(self, share: Share, deadline: Deadline, *, peek: bool = False, control: int = 0) -> Arrival:
        """The next datagram, from a relay or directly; its sender is as the application knows it.

        Args:
            peek: leave it to be received again.
            control: room for ancillary data, which is the kernel's.

        Raises:
            BlockingIOError, socket.timeout: the time ran out.
            ConnectionResetError: the proxy has ended an association, and nothing else is left to be received.
        """
        proxies = self.peer.route.proxies if self.peer is not None else self._always
        if proxies is not None and not self._inherited:
            self.association(share, proxies, deadline)  # or nothing could come
        with deadline.holding(self._receiving):
            arrival = self._peeked or self._next(share, deadline, peek=peek, control=control)
            if self._peeked is not None and not peek:
                share.transport.receive()
            self._peeked = arrival if peek and arrival.sender is not None else None
            return arrival

    def _next(self, share: Share, deadline: Deadline, *, peek: bool, control: int) -> Arrival:
        looks = 0
        while True:
            arrived = share.transport.receive(peek=peek, control=control)
            if arrived is None:
                if self.no_more_reading:
                    return Arrival(b"", [], 0, None)
                self._await_arrival(share, deadline)
                continue
            if arrived.sender is None:
                return arrived
            accepted = self._accepted(share, arrived)
            if accepted is not None:
                return accepted
            if peek:
                share.transport.receive()
            looks += 1
            if looks > MAX_LOOKS and not deadline.allows_waiting():
                raise deadline.passed()
            if deadline.timeout and not deadline.remaining():
                raise deadline.passed()

    def _await_arrival(self, share: Share, deadline: Deadline) -> None:
        associations = self.associations
        for association in associations:
            self._check_alive(association)
        controls = [fd for fd in (association.control for association in associations) if fd >= 0]
        if not deadline.allows_waiting() or not share.transport.wait_for_any(controls, deadline):
            raise deadline.passed()

    def _accepted(self, share: Share, arrived: Arrival) -> Arrival | None:
        association = self._relays.get(arrived.sender[:2])
        if association is not None:
            return self._relayed(association, arrived)
        sender = arrived.sender
        if share.transport.family != self.family:
            sender = in_family(sender, self.family)
        expected = self._expected.get(sender[:2])
        if self.peer is not None or not (expected or self._is_direct(sender)):
            self.dropped.foreign += 1
            return None
        return arrived._replace(sender=expected or sender)

    def _relayed(self, association: Association, arrived: Arrival) -> Arrival | None:
        datagram = association.unprotect(arrived.data)
        if datagram is None:
            return None
        sender = datagram.address
        if self.peer is None:
            shown = self._contacts.shown(sender)
        elif self.peer.sends(sender):
            shown = self.peer.shown if self.peer.route.name else None
        else:
            self.dropped.foreign += 1
            return None
        return arrived._replace(data=datagram.data, sender=shown or in_family((sender.host, sender.port), self.family))

    def _is_direct(self, sender: tuple[Any, ...]) -> bool:
        host, port = in_family(sender, socket.AF_INET)[:2]
        try:
            return not self.route(host, port).proxies
        except OSError:
            return False


# Which sockets there are


class Share:
    """One socket object's share in an endpoint.

    Attributes:
        transport: the kernel's side of it.
    """

    __slots__ = ("endpoint", "reference", "transport")

    def __init__(self, sock: socket.socket, endpoint: Endpoint, transport: DatagramTransport) -> None:
        key = id(sock)
        self.reference = weakref.ref(sock, lambda reference: _drop(key, reference))
        self.endpoint = endpoint
        self.transport = transport


_shares: dict[int, Share] = {}
"""By id(), since a subclass of socket may define equality as it likes."""
_endpoints: weakref.WeakSet[Endpoint] = weakref.WeakSet()
_by_identity: weakref.WeakValueDictionary[tuple[int, int], Endpoint] = weakref.WeakValueDictionary()
"""By the kernel socket's identity, for descriptors that come back in another Python object."""
_joining = threading.Lock()


def share_of(sock: socket.socket) -> Share | None:
    """The socket's share in an endpoint; None for one without."""
    return _shares.get(id(sock))


def join(sock: socket.socket, fd: int, make: Callable[[], Endpoint]) -> Share:
    """Gives a socket object, whose descriptor is `fd`, its share in an endpoint, unless it has one."""
    with _joining:
        share = _shares.get(id(sock))
        if share is None:
            endpoint = make()
            families = [other.transport.family for other in _sharing(endpoint)]
            transport = DatagramTransport(fd, families[0] if families else endpoint.family)
            share = _shares[id(sock)] = Share(sock, endpoint, transport)
            _note_identity(endpoint, fd)
        return share


def leave(sock: socket.socket) -> None:
    """Takes it away again; the last one's end is the end of the associations. The descriptor stays as it is."""
    share = _shares.pop(id(sock), None)
    if share is not None:
        _part(share)


def _drop(key: int, reference: weakref.ref[socket.socket]) -> None:
    # The object has gone, and its descriptor has been closed: ours must not be used, or closed, again.
    share = _shares.get(key)
    if share is not None and share.reference is reference:
        del _shares[key]
        _part(share)


def _part(share: Share) -> None:
    share.transport.release()
    if not any(_sharing(share.endpoint)):
        share.endpoint.close()


def _sharing(endpoint: Endpoint) -> Iterator[Share]:
    return (share for share in list(_shares.values()) if share.endpoint is endpoint)


def _note_identity(endpoint: Endpoint, fd: int) -> None:
    identity = _descriptor.identity(fd)
    if identity is not None:
        _by_identity[identity] = endpoint
        _guards.stand_for(endpoint)


def endpoint_under(fd: int) -> Endpoint | None:
    """The endpoint whose datagrams the kernel socket under `fd` carries, if any."""
    if not _by_identity:
        return None
    identity = _descriptor.identity(fd)
    endpoint = _by_identity.get(identity) if identity is not None else None
    if endpoint is None:
        return None
    # A descriptor closed behind our back (os.close) leaves an entry whose identity the kernel may give to another
    # socket.
    there = any(_descriptor.identity(share.transport.fd) == identity for share in _sharing(endpoint))
    return endpoint if there else None


def _fit(share: Share, association: Association) -> None:
    """Gives the endpoint a kernel socket that can reach the relay, if its own cannot: one for both families."""
    kernel = share.transport
    if kernel.family == association.family:
        return
    host, port = kernel.local[:2]
    if association.family == socket.AF_INET and kernel.takes_ipv4 and (host == "::" or host.startswith("::ffff:")):
        return
    if not ipaddress.ip_address(host).is_unspecified:
        raise OSError(
            errno.EADDRNOTAVAIL,
            f"a socket bound to {host} cannot reach the proxy's relay at {association.relay[0]}, of another address "
            "family: bind it to no address, or give an address of its family for the proxy",
        )
    renew(share, socket.AF_INET6, port)


def renew(share: Share, family: int, port: int) -> None:
    """Another kernel socket of `family` under the descriptors of all sockets of an endpoint, at the same port."""
    fd = share.transport.fd
    _descriptor.replace(fd, family, kind=socket.SOCK_DGRAM)
    for other in _sharing(share.endpoint):
        if other.transport.fd != fd:
            os.dup2(fd, other.transport.fd, os.get_inheritable(other.transport.fd))
        other_fd = other.transport.fd
        other.transport.release()
        other.transport = DatagramTransport(other_fd, family)
    if family == socket.AF_INET6:
        share.transport.take_ipv4()
    share.transport.bind(port)
    _note_identity(share.endpoint, fd)


def _after_fork_in_child() -> None:
    global _joining
    _joining = threading.Lock()
    for endpoint in list(_endpoints):
        endpoint.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
