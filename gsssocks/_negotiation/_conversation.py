"""What both roles share: octets in, octets out, and the conversation between."""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gsssocks._protocol import Address, MessageType, Octets, Receivable, ReceiveBuffer, TokenMessage
from gsssocks._record import BareRecords
from gsssocks.exceptions import ProtocolError

if TYPE_CHECKING:
    from gsssocks._record import Records
    from gsssocks.exceptions import ProxyError

__all__ = ["MAX_CONTEXT_TOKENS", "NO_ADDRESS", "Listening", "Negotiation", "Step"]

T = TypeVar("T")
Listening = Generator[None, None, T]

MAX_CONTEXT_TOKENS = 16
"""Tokens a peer may send to establish a context. Kerberos needs one, SPNEGO and NTLM three; without a bound a hostile
peer could go on for ever."""


NO_ADDRESS = Address("0.0.0.0", 0)
"""What a reply holds where there is no bound address."""


class Step(NamedTuple):
    """What came of showing octets to a negotiation."""

    taken: int
    """Octets taken off the front of what was shown."""
    to_send: bytes
    """Octets to send now."""


class Negotiation:
    """The part both roles share: octets in, octets out, and the conversation between."""

    def __init__(self) -> None:
        self.complete = False
        self._wanted = 0
        self.phase = "starting"
        self.records: Records | None = None
        self._received = ReceiveBuffer()
        self._to_send = bytearray()
        self._conversation = self._converse()

    def _converse(self) -> Listening[None]:
        raise NotImplementedError

    @property
    def may_block(self) -> bool:
        """Whether `start` and `receive` may now wait for something other than the peer (a KDC)."""
        return False

    def ended(self) -> ProxyError:
        """What it means that the peer closed the connection now."""
        raise NotImplementedError

    def start(self) -> bytes:
        """Begins; returns the octets to send first (none for a server). May block."""
        self._advance()
        return self.farewell()

    def receive(self, octets: Octets) -> Step:
        """Takes from the front of `octets` (at least one) what the conversation needs. May block.

        Raises:
            ProxyError: the negotiation has failed. `farewell` has what is still to be sent; then the connection is to
                be closed.
        """
        taken = 0
        while not self.complete and taken < len(octets):
            part = octets[taken : taken + self._wanted]
            taken += len(part)
            self._received.feed(part)
            self._advance()
        return Step(taken, self.farewell())

    def farewell(self) -> bytes:
        """Octets to send before closing after a failure: a server's refusal, or none."""
        octets = bytes(self._to_send)
        self._to_send.clear()
        return octets

    def _advance(self) -> None:
        try:
            next(self._conversation)
        except StopIteration:
            self.complete = True

    def _listen(self, message: type[Receivable[T]]) -> Listening[T]:
        while True:
            self._wanted = self._received.missing(message)
            if not self._wanted:
                return self._received.next(message)
            yield

    def _encapsulated(self, records: Records, message: type[Receivable[T]]) -> Listening[T]:
        """A SOCKS message inside the protection: all messages of type 3 are one stream of octets, however they are
        cut."""
        if isinstance(records, BareRecords):
            return (yield from self._listen(message))
        inner = ReceiveBuffer()
        while missing := inner.missing(message):
            if not records.plaintext:
                outer = yield from self._listen(TokenMessage)
                self._check_type(outer, MessageType.ENCAPSULATED)
                records.receive(memoryview(outer.encode()), 1)
            inner.feed(records.plaintext.take(missing))
        return inner.next(message)

    def _check_type(self, message: TokenMessage, wanted: MessageType) -> None:
        if message.mtyp != wanted:
            raise ProtocolError(
                errno.EPROTO,
                f"the peer sent a message of type {message.mtyp:#04x} instead of {wanted:#04x} while {self.phase}",
            )
