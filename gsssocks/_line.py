"""What is in line for the kernel on one connection: a message, once protected, must leave whole, and once only.

A signal handler may raise whatever it likes between any two steps of the interpreter, and the stream is to go on as a
plain socket's does. So each change here is one step: tokens are put in line by the call that makes them, the kernel's
answers are noted by the call that gets them (`Transport.send_noting`), and how much has left is derived from those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._record import Records
    from ._security import Sealed
    from ._transport import Transport

__all__ = ["Line"]


class Line:
    """Octets that have not left. False when there are none.

    Attributes:
        tokens: what is to leave next, to be appended to.
    """

    __slots__ = ("_leaving", "tokens")

    def __init__(self) -> None:
        self.tokens: Sealed = []
        # Messages, how many of their octets the kernel has taken each time, and how many tokens of which list they are.
        self._leaving: tuple[bytes, list[int], Sealed, int] | None = None

    def __bool__(self) -> bool:
        return self._leaving is not None or bool(self.tokens)

    @property
    def octets_left(self) -> int:
        """How many octets of the messages that are leaving have not left."""
        leaving = self._leaving
        return 0 if leaving is None else len(leaving[0]) - sum(leaving[1])

    def clear(self) -> None:
        self._leaving = None
        self.tokens = []

    def put(self, octets: bytes) -> None:
        """Puts octets in line that need no protection, where nothing else is."""
        if octets:
            self._leaving = (octets, [], [], 0)

    def hand_over(self, transport: Transport, records: Records | None, *, more: bool) -> bool:
        """Hands over what the kernel takes now; returns whether nothing is left.

        Args:
            records: makes messages of the tokens.
            more: MSG_MORE, handed on to the kernel.

        Raises:
            ProtectionError: a token is not fit to be sent; nothing can be sent any more.
        """
        while True:
            if self._leaving is None:
                if not self.tokens or records is None:
                    return True
                octets = _messages(records, self.tokens)
                self._leaving = (octets, [], self.tokens, len(self.tokens))
                self.tokens = []
            octets, sent, tokens, count = self._leaving
            if tokens is self.tokens:
                self.tokens = tokens[count:]  # broken off between the two steps above
            left = len(octets) - sum(sent) if sent else len(octets)
            if left:
                transport.send_noting(memoryview(octets)[-left:] if sent else octets, sent, more=more)
                if not sent or sum(sent) < len(octets):
                    return False
            self._leaving = None


def _messages(records: Records, tokens: Sealed) -> bytes:
    if len(tokens) == 1:
        token, encrypt = tokens[0]
        return records.framed(token, encrypt=encrypt)
    return b"".join([records.framed(token, encrypt=encrypt) for token, encrypt in tokens])
