"""A proxy's end of the tunnel that leaves no work for the clock: messages are wrapped before it starts, and unwrapped
after it has stopped. So what is measured is the client alone. It grants every request and is the target itself.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gsssocks._gss import Acceptor
from gsssocks._negotiation import ServerNegotiation
from gsssocks._protocol import Address, ProtectionLevel

from .servers import COMMAND_LENGTH, DOWNLOAD, parsed, serve

if TYPE_CHECKING:
    import socket

    from gsssocks._record import Records

_LEVELS = (ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY)
_READ = 1 << 20
# Of a message, at most: header and token come to 64 octets more than the data with Kerberos.
_OVERHEAD = 256


def _obey(connection: socket.socket) -> None:
    records = _negotiated(connection)
    kind, frame, count = parsed(_received(connection, records, COMMAND_LENGTH))
    if kind == DOWNLOAD:
        _flood(connection, records, frame, count)
    else:
        _collect(connection, records, frame, count)


def _negotiated(connection: socket.socket) -> Records:
    negotiation = ServerNegotiation(Acceptor(), levels=_LEVELS, authorize=lambda _: True)
    connection.sendall(negotiation.start())
    while not negotiation.complete:
        # No client sends user data before it has the reply, so nothing is left over.
        step = negotiation.receive(_some(connection))
        connection.sendall(step.to_send)
    connection.sendall(negotiation.reply(0, Address("127.0.0.1", 9)))
    assert negotiation.records is not None
    return negotiation.records


def _some(connection: socket.socket) -> bytes:
    octets = connection.recv(_READ)
    if not octets:
        raise ConnectionResetError(errno.ECONNRESET, "the client went away")
    return octets


def _received(connection: socket.socket, records: Records, size: int) -> bytes:
    while len(records.plaintext) < size:
        records.receive(memoryview(_some(connection)), size)
    return records.plaintext.take(size)


def _flood(connection: socket.socket, records: Records, frame: int, count: int) -> None:
    ready = records.protect(b"r")
    flood = b"".join(records.protect(bytes(frame)) for _ in range(count))
    connection.sendall(ready)
    _some(connection)
    connection.sendall(flood)


def _collect(connection: socket.socket, records: Records, frame: int, count: int) -> None:
    ready, done, right = (records.protect(octet) for octet in (b"r", b"d", b"="))
    # Written to beforehand: the first touch of a page would take the kernel longer than the octets do.
    memory = memoryview(bytearray(b".") * (count * (frame + _OVERHEAD)))
    connection.sendall(ready)
    filled = 0
    while taken := connection.recv_into(memory[filled:]):
        filled += taken
    connection.sendall(done)
    records.receive(memory[:filled], _ENOUGH)
    if len(records.plaintext) == frame * count and not records.partial:
        connection.sendall(right)


_ENOUGH = 1 << 62


if __name__ == "__main__":
    serve(_obey)
