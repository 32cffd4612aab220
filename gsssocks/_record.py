"""User data to encapsulated messages and back (RFC 1961, section 5).

A record layer does no I/O. On the way out `protect` makes one message. On the way in `receive` is shown octets that
may still lie in the kernel, says how many of them it has taken, and keeps the plaintext until it is asked for: so the
stream can leave in the kernel what nobody has asked for yet.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Protocol

from ._protocol import MAX_TOKEN, MessageType, Octets, ProtectionLevel, TokenMessage, message_header
from .exceptions import ProtectionError, ProtocolError, not_encrypted

if TYPE_CHECKING:
    from ._security import Arrived, Sealed, SecurityContext

__all__ = ["BareRecords", "Plaintext", "ProtectedRecords", "Records"]

HEADER = 4
"""Octets of ver, mtyp and len (RFC 1961, section 3.4)."""


class Plaintext:
    """Octets received and unprotected, waiting for the application; and up to where in the stream of messages they
    reach.

    Attributes:
        encrypted: whether none may be handed out that was not.
        messages: what has been unprotected: the data, whether it was encrypted, and what else the mechanism says; each
            with the position at which its message ends. Whoever appends one tells `count`.
    """

    def __init__(self) -> None:
        self.messages: Arrived = deque()
        self.encrypted = False
        self._size = 0
        self._offset = 0  # of the first message, already handed out
        self._cut = (0, 0)  # that, behind the end of the message for which it holds
        self._end = 0  # of the last message that is not here any more

    @property
    def end(self) -> int:
        """Where the last message ended, in octets since the first began."""
        return max(self._end, self.messages[-1][1]) if self.messages else self._end

    def __len__(self) -> int:
        return self._size

    def count(self, size: int) -> None:
        """The last message, of `size` octets of data, has just been appended."""
        self._size += size
        if not size:
            self.drop_last()

    def append(self, chunk: bytes) -> None:
        """Appends what lay bare in the stream."""
        if chunk:
            self.messages.append(((chunk, False), self.end + len(chunk)))
            self._size += len(chunk)

    def drop_last(self) -> None:
        """Takes away the last message, which has not been counted."""
        self._end = self.end
        self.messages.pop()

    def recover(self) -> None:
        """Makes it whole again after a change was broken off, by an exception out of a signal handler."""
        messages = self.messages
        while messages and not messages[-1][0][0]:
            self.drop_last()
        end, offset = self._cut
        self._offset = offset if messages and messages[0][1] == end else 0
        self._size = sum(len(message[0]) for message, _ in messages) - self._offset

    def peek_into(self, target: memoryview) -> int:
        """Copies from the front, taking nothing; returns the number of octets copied."""
        filled, offset = 0, self._offset
        for message, _ in self.messages:
            part = memoryview(self._data(message))[offset : offset + len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            offset = 0
            if filled == len(target):
                break
        return filled

    def look(self, size: int) -> bytes:
        """At most `size` octets from the front, taking nothing."""
        parts, offset = [], self._offset
        for message, _ in self.messages:
            part = memoryview(self._data(message))[offset : offset + size]
            parts.append(part)
            size -= len(part)
            offset = 0
            if not size:
                break
        return b"".join(parts)

    def drop(self, count: int) -> None:
        """Takes `count` octets off the front."""
        messages = self.messages
        self._size -= count
        count += self._offset
        while messages and count >= len(messages[0][0][0]):
            count -= len(messages[0][0][0])
            self._drop_first()
        self._offset = count
        if count:
            self._cut = (messages[0][1], count)

    def _drop_first(self) -> None:
        end = self.messages[0][1]
        if end > self._end:
            self._end = end
        self.messages.popleft()

    def take(self, size: int) -> bytes:
        """Takes at most `size` octets off the front; without a copy where they are exactly one message's."""
        messages = self.messages
        if not self._offset and len(messages) == 1:
            message, end = messages[0]
            data: bytes = message[0]
            if len(data) <= size and (message[1] or not self.encrypted):
                self._size = 0
                if end > self._end:
                    self._end = end
                messages.popleft()
                return data
        octets = self.look(size)
        self.drop(len(octets))
        return octets

    def _data(self, message: tuple[Any, ...]) -> bytes:
        # That has been seen to when it came; unless a signal handler raised just then.
        if self.encrypted and not message[1]:
            raise _unencrypted()
        data: bytes = message[0]
        return data


class Records(Protocol):
    """What the stream needs of a record layer."""

    level: ProtectionLevel
    plaintext: Plaintext
    max_plaintext: int
    octets_received: int
    tokens_sent: int
    tokens_received: int

    position: int

    @property
    def partial(self) -> int:
        """Octets of an incomplete message taken so far; 0 between messages."""

    @property
    def hint(self) -> int:
        """Octets to look for at least, to see a whole message."""

    def protect(self, data: Octets) -> bytes: ...

    def protect_onto(self, sealed: Sealed, data: Octets) -> None: ...

    def framed(self, token: tuple[bytes, bool], *, encrypt: bool) -> bytes: ...

    def receive(self, view: memoryview, wanted: int) -> int: ...

    def recover(self) -> None: ...


class ProtectedRecords:
    """Messages of type 3, each token the wrapped form of a piece of the data.

    A signal handler may raise whatever it likes, wherever it likes, and the stream is to go on: so what counts, that a
    token has been made or taken, is noted in one step with that, and `recover` derives the rest.

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
        self.plaintext = Plaintext()
        self.level = level
        self._context = context
        self._always = level != ProtectionLevel.INTEGRITY
        self._choose = confidential if level == ProtectionLevel.SELECTIVE else None
        self.max_plaintext = context.max_plaintext(confidential=self._always, max_token=MAX_TOKEN)
        if self.max_plaintext < 1:
            raise ProtectionError(errno.EPROTO, "the mechanism leaves no room for data in a message")
        self._partial = bytearray()
        self._began = -1  # where the incomplete message begins, unless one has ended since
        self.position = 0
        self._last_length = 0
        self.octets_received = 0
        self.tokens_sent = 0
        self.tokens_received = 0

    @property
    def level(self) -> ProtectionLevel:
        """The protection level in force."""
        return self._level

    @level.setter
    def level(self, level: ProtectionLevel) -> None:
        self._level = level
        self.plaintext.encrypted = level == ProtectionLevel.CONFIDENTIALITY

    @property
    def partial(self) -> int:
        return len(self._partial)

    @property
    def hint(self) -> int:
        if self._partial:
            return TokenMessage.length(self._partial) - len(self._partial)
        return self._last_length

    def recover(self) -> None:
        """Makes it whole again after `receive`, or what was done with the plaintext, was broken off by an exception
        out of a signal handler."""
        self.plaintext.recover()
        end = self.plaintext.end
        if self._began != end:
            self._partial.clear()
        self.position = end + len(self._partial)

    def protect(self, data: Octets) -> bytes:
        """One message; `data` has at most `max_plaintext` octets.

        Raises:
            ProtectionError: nothing may be sent on this connection any more.
        """
        sealed: Sealed = []
        self.protect_onto(sealed, data)
        token, encrypt = sealed[0]
        return self.framed(token, encrypt=encrypt)

    def protect_onto(self, sealed: Sealed, data: Octets) -> None:
        """As `protect`, but appends what is to be `framed`, in one step."""
        confidential = self._choose(data) if self._choose else self._always
        self._context.wrap_onto(sealed, bytes(data), confidential=confidential)
        self.tokens_sent += 1

    def framed(self, token: tuple[bytes, bool], *, encrypt: bool) -> bytes:
        """The message that carries a token.

        Args:
            token: and whether it is encrypted.
            encrypt: whether it was to be.

        Raises:
            ProtectionError: as `protect`.
        """
        octets, encrypted = token
        if encrypt and not encrypted:
            raise not_encrypted()
        if len(octets) > MAX_TOKEN:
            raise ProtectionError(errno.EMSGSIZE, f"a token of {len(octets)} octets does not fit a message (RFC 1961)")
        return message_header(MessageType.ENCAPSULATED, len(octets)) + octets

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
        taken, start = 0, self.position
        while taken < len(view):
            rest = view[taken:]
            length = self._length(rest)
            if length > len(self._partial) + len(rest):
                if not self.plaintext:
                    self._begin(rest, start + taken)
                    taken = len(view)
                break
            taken += length - len(self._partial)
            self._last_length = length
            self._accept(self._token(rest, length), start + taken)
            self._partial.clear()
            if len(self.plaintext) >= wanted:
                break
        self.position = start + taken
        return taken

    def _begin(self, rest: memoryview, position: int) -> None:
        if not self._partial:
            self._began = position
        self._partial += rest

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
        return b"".join((self._partial, rest[: length - len(self._partial)]))[HEADER:]

    def _accept(self, token: bytes, end: int) -> None:
        plaintext = self.plaintext
        self._context.unwrap_onto(plaintext.messages, token, end)
        message = plaintext.messages[-1][0]
        if plaintext.encrypted and not message[1]:
            plaintext.drop_last()
            raise _unencrypted()
        size = len(message[0])
        plaintext.count(size)
        self.tokens_received += 1
        self.octets_received += size


def _unencrypted() -> ProtectionError:
    return ProtectionError(
        errno.EPROTO, "a message arrived unencrypted although confidentiality was agreed on; the connection is closed"
    )


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
        self.position = 0

    def recover(self) -> None:
        self.plaintext.recover()
        self.position = self.plaintext.end

    def protect(self, data: Octets) -> bytes:
        return bytes(data)

    def protect_onto(self, sealed: Sealed, data: Octets) -> None:
        sealed.append(((bytes(data), False), False))

    def framed(self, token: tuple[bytes, bool], *, encrypt: bool) -> bytes:  # noqa: ARG002
        return token[0]

    def receive(self, view: memoryview, wanted: int) -> int:
        taken = min(len(view), max(wanted - len(self.plaintext), 1))
        self.plaintext.append(bytes(view[:taken]))
        self.position += taken
        self.octets_received += taken
        return taken
