"""What a datagram holds on its way between client and proxy (RFC 1928, section 7); a class as those in `messages`."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from gsssocks.exceptions import ProtocolError

from .messages import Address, Octets

__all__ = ["Datagram"]

_HEADER = 3  # RSV and FRAG, before ATYP


@dataclass(frozen=True)
class Datagram:
    """RSV, FRAG, ATYP, DST.ADDR, DST.PORT, DATA (RFC 1928, section 7).

    Unlike the messages of a stream, it comes whole or not at all: there is no length to ask for beforehand.

    Attributes:
        address: where it is to go to, or, from the proxy, where it came from.
        data: the application's octets.
        fragment: FRAG: 0 for a datagram that stands alone, the only kind that must be understood.
    """

    address: Address
    data: bytes
    fragment: int = 0

    def encode(self) -> bytes:
        return bytes([0, 0, self.fragment]) + self.address.encode() + self.data

    @classmethod
    def decode(cls, octets: Octets) -> Datagram:
        """Takes a whole datagram.

        Raises:
            ProtocolError: it is cut short, or its header is not one of RFC 1928.
        """
        if any(octets[:2]):
            raise ProtocolError(
                errno.EPROTO, f"the peer sent a datagram whose header begins with {bytes(octets[:2]).hex()}, not 0000"
            )
        # A part only, however long the name: `length` needs the octet behind ATYP.
        end = _HEADER + Address.length(octets[_HEADER : _HEADER + 2])
        if end > len(octets):
            raise ProtocolError(errno.EPROTO, "the peer sent a datagram that ends inside its header")
        # By way of a view, so that the data is copied once.
        return cls(Address.decode(octets[_HEADER:end]), bytes(memoryview(octets)[end:]), octets[2])
