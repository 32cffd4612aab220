"""BIND: one connection that comes to the client (RFC 1928, sections 4 and 6)."""

from __future__ import annotations

import errno
import ipaddress
import selectors
import socket
from typing import TYPE_CHECKING

from gsssocks._protocol import Address

from ._sockets import accept, beside, listen, local_address, make_prompt, reset_on_close, shown, source

if TYPE_CHECKING:
    from gsssocks import _originals
    from gsssocks._transport import Deadline, Transport

    from ._rules import Permission
    from ._waiting import StopSign
    from ._ways import Ways

__all__ = ["Rendezvous"]

BACKLOG = 16
"""Peers, and strangers, that may stand in line."""


class Rendezvous:
    """Where a client's peer may connect to.

    Without a peer named it is at the address at which the client reaches us; else at the one by which we reach that
    peer, and only that peer is let in.

    Args:
        expected: whom the client expects; the unspecified address is anybody.
        client: the client's connection.
        deadline: for looking the expected one up.

    Raises:
        OSError: there can be none, or it is not allowed.
    """

    def __init__(
        self,
        expected: Address,
        permission: Permission,
        ways: Ways,
        client: _originals.SocketType,
        deadline: Deadline,
    ) -> None:
        permission.check_any()
        self._expected = expected
        self._permission = permission
        self._hosts: set[str] | None = None
        family, address = beside(client)
        if not _is_unspecified(expected.host):
            found = ways.to(expected, socket.SOCK_STREAM, deadline)
            self._hosts = {shown(each).host for _, each in found}
            # The client's own family first: it knows what to do with such an address.
            family, peer = next((way for way in found if way[0] == family), found[0])
            address = source(family, peer)
        self._listener = listen(family, (address[0], 0, *address[2:]), BACKLOG)
        self.address = local_address(self._listener)

    def close(self) -> None:
        self._listener.close()

    def wait(self, client: Transport, stop: StopSign, deadline: Deadline) -> tuple[_originals.SocketType, Address]:
        """The peer's connection, and where it comes from. After that nobody else can connect.

        Raises:
            socket.timeout: nobody has come who may.
            ConnectionError: the client has left.
        """
        try:
            return self._awaited(client, stop, deadline)
        finally:
            self.close()

    def _awaited(self, client: Transport, stop: StopSign, deadline: Deadline) -> tuple[_originals.SocketType, Address]:
        watched = {self._listener.fileno(): selectors.EVENT_READ, client.fd: selectors.EVENT_READ}
        while True:
            ready = stop.wait(watched, deadline)
            if not ready:
                raise socket.timeout("nobody connected in time")
            # What a client sends too early waits for its peer; that it has left is not noticed then.
            if client.fd in ready and _has_spoken(client):
                del watched[client.fd]
            if self._listener.fileno() in ready:
                admitted = self._admitted()
                if admitted:
                    return admitted

    def _admitted(self) -> tuple[_originals.SocketType, Address] | None:
        try:
            sock, peer = accept(self._listener)
        except OSError:
            return None  # who has gone again, or there is no descriptor: the next one may have more luck
        if not self._may_enter(peer):
            reset_on_close(sock)
            sock.close()
            return None
        sock.setblocking(False)
        make_prompt(sock)
        return sock, peer

    def _may_enter(self, peer: Address) -> bool:
        if self._hosts is not None and peer.host not in self._hosts:
            return False
        name = peer.host if self._hosts is None else self._expected.host
        try:
            self._permission.check(Address(name, peer.port), peer.host)
        except PermissionError:
            return False
        return True


def _has_spoken(client: Transport) -> bool:
    seen = client.peek(memoryview(bytearray(1)))
    if seen == 0:
        raise ConnectionAbortedError(errno.ECONNABORTED, "the client left before its peer came")
    return seen is not None


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
