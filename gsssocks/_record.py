"""User data to encapsulated messages and back (RFC 1961, section 5).

A record layer does no I/O. On the way out `protect` makes one message. On the way in `receive` is shown octets that
may still lie in the kernel, says how many of them it has taken, and keeps the plaintext until it is asked for: so the
stream can leave in the kernel what nobody has asked for yet.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Callable, Protocol

from ._protocol import MAX_TOKEN, MessageType, Octets, ProtectionLevel, TokenMessage, message_header
from .exceptions import ProtectionError, ProtocolError

if TYPE_CHECKING:
    from ._security import SecurityContext

__all__ = ["BareRecords", "Plaintext", "ProtectedRecords", "Records"]

HEADER = 4
"""Octets of ver, mtyp and len (RFC 1961, section 3.4)."""


class Plaintext:
    """Octets received and unprotected, waiting for the application."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._offset = 0  # of the first chunk, already handed out
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def append(self, chunk: bytes) -> None:
        if chunk:
            self._chunks.append(chunk)
            self._size += len(chunk)

    def peek_into(self, target: memoryview) -> int:
        """Copies from the front, taking nothing; returns the number of octets copied."""
        filled, offset = 0, self._offset
        for chunk in self._chunks:
            part = memoryview(chunk)[offset : offset + len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            offset = 0
            if filled == len(target):
                break
        return filled

    def look(self, size: int) -> bytes:
        """At most `size` octets from the front, taking nothing."""
        parts, offset = [], self._offset
        for chunk in self._chunks:
            part = memoryview(chunk)[offset : offset + size]
            parts.append(part)
            size -= len(part)
            offset = 0
            if not size:
                break
        return b"".join(parts)

    def drop(self, count: int) -> None:
        """Takes `count` octets off the front."""
        self._size -= count
        count += self._offset
        while self._chunks and count >= len(self._chunks[0]):
            count -= len(self._chunks.popleft())
        self._offset = count

    def take(self, size: int) -> bytes:
        """Takes at most `size` octets off the front; without a copy where they are exactly one message's."""
        if self._chunks and not self._offset and len(self._chunks[0]) <= size and len(self._chunks) == 1:
            self._size = 0
            return self._chunks.popleft()
        octets = self.look(size)
        self.drop(len(octets))
        return octets


class Records(Protocol):
    """What the stream needs of a record layer."""

    level: ProtectionLevel
    plaintext: Plaintext
    max_plaintext: int
    octets_received: int
    tokens_sent: int
    tokens_received: int

    @property
    def partial(self) -> int:
        """Octets of an incomplete message taken so far; 0 between messages."""

    @property
    def hint(self) -> int:
        """Octets to look for at least, to see a whole message."""

    def protect(self, data: Octets) -> bytes: ...

    def receive(self, view: memoryview, wanted: int) -> int: ...


class ProtectedRecords:
    """Messages of type 3, each token the wrapped form of a piece of the data.

    Args:
        context: a complete security context.
        level: the level agreed on.
        confidential: for level 3, says of each outgoing message whether to encrypt it; None encrypts all.

    Attributes:
        plaintext: what has been received and not been taken.
        max_plaintext: octets that fit one message.
        octets_received: of plaintext, taken or not.
        tokens_sent, tokens_received: messages so far.
    """

    def __init__(
        self,
        context: SecurityContext,
        level: ProtectionLevel,
        confidential: Callable[[Octets], bool] | None = None,
    ) -> None:
        self.level = level
        self.plaintext = Plaintext()
        self._context = context
        self._always = level != ProtectionLevel.INTEGRITY
        self._choose = confidential if level == ProtectionLevel.SELECTIVE else None
        self.max_plaintext = context.max_plaintext(confidential=self._always, max_token=MAX_TOKEN)
        if self.max_plaintext < 1:
            raise ProtectionError(errno.EPROTO, "the mechanism leaves no room for data in a message")
        self._partial = bytearray()
        self._last_length = 0
        self.octets_received = 0
        self.tokens_sent = 0
        self.tokens_received = 0

    @property
    def partial(self) -> int:
        return len(self._partial)

    @property
    def hint(self) -> int:
        if self._partial:
            return TokenMessage.length(self._partial) - len(self._partial)
        return self._last_length

    def protect(self, data: Octets) -> bytes:
        """One message; `data` has at most `max_plaintext` octets.

        Raises:
            ProtectionError: nothing may be sent on this connection any more.
        """
        confidential = self._choose(data) if self._choose else self._always
        token = self._context.wrap(bytes(data), confidential=confidential)
        if len(token) > MAX_TOKEN:
            raise ProtectionError(errno.EMSGSIZE, f"a token of {len(token)} octets does not fit a message (RFC 1961)")
        self.tokens_sent += 1
        return message_header(MessageType.ENCAPSULATED, len(token)) + token

    def receive(self, view: memoryview, wanted: int) -> int:
        """Takes messages off the front of `view` until `wanted` octets of plaintext are there, or the octets run out.

        Whole messages are taken one at a time; the beginning of an incomplete one is taken only if no plaintext is
        there, so that a caller who goes by readability is not told again and again of octets that do not help yet.

        Returns:
            the number of octets taken.

        Raises:
            ProtocolError, ProtectionError: the peer, or somebody between, misbehaves. What was unprotected before
                stays available.
        """
        taken = 0
        while taken < len(view):
            rest = view[taken:]
            length = self._length(rest)
            if length > len(self._partial) + len(rest):
                if not self.plaintext:
                    self._partial += rest
                    taken = len(view)
                break
            taken += length - len(self._partial)
            self._last_length = length
            self._accept(self._token(rest, length))
            if len(self.plaintext) >= wanted:
                break
        return taken

    def _length(self, rest: memoryview) -> int:
        prefix = bytes(self._partial[:HEADER]) + rest[:HEADER] if self._partial else rest
        if len(prefix) >= 2 and prefix[1] != MessageType.ENCAPSULATED:
            raise ProtocolError(
                errno.EPROTO,
                f"the peer sent a message of type {prefix[1]:#04x} in the middle of the data (RFC 1961, section 5)",
            )
        return TokenMessage.length(prefix)

    def _token(self, rest: memoryview, length: int) -> bytes:
        """The token of the message that `rest` completes, as octets of its own: unwrapping changes them in place."""
        if not self._partial:
            return bytes(rest[HEADER:length])
        self._partial += rest[: length - len(self._partial)]
        token = bytes(memoryview(self._partial)[HEADER:])
        self._partial.clear()
        return token

    def _accept(self, token: bytes) -> None:
        data, confidential = self._context.unwrap(token)
        if not confidential and self.level == ProtectionLevel.CONFIDENTIALITY:
            raise ProtectionError(
                errno.EPROTO,
                "a message arrived unencrypted although confidentiality was agreed on; the connection is closed",
            )
        self.tokens_received += 1
        self.octets_received += len(data)
        self.plaintext.append(data)


class BareRecords:
    """Level 0: no encapsulation at all. Only where the configuration spells it out."""

    def __init__(self) -> None:
        self.level = ProtectionLevel.NONE
        self.plaintext = Plaintext()
        self.max_plaintext = MAX_TOKEN
        self.octets_received = 0
        self.tokens_sent = 0
        self.tokens_received = 0
        self.partial = 0
        self.hint = 0

    def protect(self, data: Octets) -> bytes:
        return bytes(data)

    def receive(self, view: memoryview, wanted: int) -> int:
        taken = min(len(view), max(wanted - len(self.plaintext), 1))
        self.plaintext.append(bytes(view[:taken]))
        self.octets_received += taken
        return taken
