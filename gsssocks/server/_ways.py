"""Where a destination lies, and the way to it: as far as the rules allow."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from gsssocks import _originals

from ._sockets import SocketAddress, make_prompt, shown
from ._waiting import StoppableTransport

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gsssocks._protocol import Address
    from gsssocks._transport import Deadline, Transport

    from ._rules import Permission
    from ._waiting import StopSign

__all__ = ["Ways"]


class Ways:
    """The ways open to one client's command.

    Args:
        hosts: addresses of names that are known before the resolver is asked.
    """

    def __init__(self, permission: Permission, hosts: Mapping[str, str], stop: StopSign) -> None:
        self._permission = permission
        self._hosts = hosts
        self._stop = stop

    def connect(self, destination: Address, deadline: Deadline) -> _originals.SocketType:
        """A connection to the first address of the destination that can be had; each has its share of the time.

        Raises:
            OSError: there is none.
        """
        failure: OSError = OSError(errno.EHOSTUNREACH, f"{destination.host} has no address")
        addresses = self.to(destination, socket.SOCK_STREAM, deadline)
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses):
            try:
                return self._connected(family, address, deadline.share(left))
            except OSError as error:
                failure = error
        raise failure

    def to(
        self, destination: Address, kind: int, deadline: Deadline, client: Transport | None = None
    ) -> Sequence[tuple[int, SocketAddress]]:
        """Families and addresses of the destination, those that are allowed.

        Args:
            client: whose leaving ends a lookup; None is not watched.

        Raises:
            Left: the client has.
            PermissionError: none is.
            OSError: the name is unknown, or was not found in time.
        """
        self._permission.check_name(destination)
        allowed, refusal = [], None
        for family, address in self._all(destination, kind, deadline, client):
            try:
                self._permission.check(destination, shown(address).host)
            except PermissionError as error:
                refusal = error
            else:
                allowed.append((family, address))
        if refusal and not allowed:
            raise refusal
        return allowed

    def _all(
        self, destination: Address, kind: int, deadline: Deadline, client: Transport | None
    ) -> Sequence[tuple[int, SocketAddress]]:
        with suppress(ValueError):
            ipaddress.ip_address(destination.host)
            return self._found(destination, kind)  # asks nobody
        return self._stop.call(lambda: self._found(destination, kind), deadline, client)

    def _found(self, destination: Address, kind: int) -> Sequence[tuple[int, SocketAddress]]:
        host = self._hosts.get(destination.host.lower().rstrip("."), destination.host)
        # As octets: a name arrives the way it is looked up, and must not be encoded again.
        found = _originals.getaddrinfo(host.encode("ascii"), destination.port, 0, kind)
        return [(info[0], info[4]) for info in found]

    def _connected(self, family: int, address: SocketAddress, deadline: Deadline) -> _originals.SocketType:
        sock = _originals.SocketType(family, socket.SOCK_STREAM, 0)
        try:
            StoppableTransport(sock.fileno(), family, self._stop).connect(address, deadline)
            make_prompt(sock)
        except BaseException:
            sock.close()
            raise
        return sock
