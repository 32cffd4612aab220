"""Ports on the loopback interface, reserved for a server that is still to be started."""

from __future__ import annotations

# The C base class: a test process may have replaced socket.socket, and these sockets must stay local.
import _socket
import errno

_FAMILIES = {"127.0.0.1": _socket.AF_INET, "::1": _socket.AF_INET6}
_ATTEMPTS = 100


class ReservedPort:
    """A TCP port that belongs to this process on each of the given loopback addresses, until `release`.

    A server with SO_REUSEADDR or SO_REUSEPORT, run by the same user, can bind and listen on it; no second
    `ReservedPort`, in whatever process, gets it, also while the server is stopped.

    Args:
        addresses: "127.0.0.1", "::1" or both.
        udp: The UDP port of the same number as well.

    Raises:
        OSError: No port is free, or an address is missing on this machine.
    """

    def __init__(self, *addresses: str, udp: bool = False) -> None:
        kinds = (_socket.SOCK_STREAM, _socket.SOCK_DGRAM) if udp else (_socket.SOCK_STREAM,)
        self.number, self._sockets = _reserve([(address, kind) for address in addresses for kind in kinds])

    def release(self) -> None:
        """Give the port back."""
        for holder in self._sockets:
            holder.close()


def _reserve(places: list[tuple[str, int]]) -> tuple[int, list[_socket.socket]]:
    for _ in range(_ATTEMPTS):
        port = 0
        holders: list[_socket.socket] = []
        try:
            for address, kind in places:
                holders.append(_hold(address, kind, port))
                port = holders[0].getsockname()[1]
        except OSError as error:
            for holder in holders:
                holder.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port, holders
    raise OSError(errno.EADDRINUSE, "no port found that is free at every address asked for")


def _hold(address: str, kind: int, port: int) -> _socket.socket:
    holder = _socket.socket(_FAMILIES[address], kind)
    try:
        # Bound without the two options, hence alone; only then opened to the server, which sets them before its bind.
        holder.bind((address, port))
        holder.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        holder.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEPORT, 1)
    except OSError:
        holder.close()
        raise
    return holder
