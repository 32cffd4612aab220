"""Octets that arrive in pieces, cut into whole messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from .messages import Octets

__all__ = ["Receivable", "ReceiveBuffer"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Receivable(Protocol[T_co]):
    """What the classes in `messages` offer to the one who receives them."""

    @staticmethod
    def length(prefix: Octets) -> int: ...

    @classmethod
    def decode(cls, octets: Octets) -> T_co: ...


class ReceiveBuffer:
    """Octets received and not yet understood.

    Bounded by the reader: it asks `missing` before it reads, and no message of the protocol exceeds 65,539 octets.
    """

    def __init__(self) -> None:
        self._octets = bytearray()

    def __len__(self) -> int:
        return len(self._octets)

    def feed(self, octets: Octets) -> None:
        self._octets += octets

    def missing(self, message: type[Receivable[T]]) -> int:
        """How many octets to read next for such a message: 0 when it is whole, else at least 1, never past its end.

        Raises:
            ProtocolError: the octets at hand cannot begin such a message.
        """
        return max(0, message.length(self._octets) - len(self._octets))

    def next(self, message: type[Receivable[T]]) -> T:
        """Takes one whole message from the front; only when `missing` says 0."""
        length = message.length(self._octets)
        octets = bytes(self._octets[:length])
        del self._octets[:length]
        return message.decode(octets)
