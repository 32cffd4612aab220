"""The proxy's side: from the greeting to the request, and the reply to it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Callable

from gsssocks._protocol import (
    Address,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    ProtectionLevel,
    Reply,
    Request,
    TokenMessage,
)
from gsssocks._record import BareRecords, ProtectedRecords
from gsssocks.exceptions import AuthenticationError, ProtectionError, ProtocolError, truncated

from ._conversation import MAX_CONTEXT_TOKENS, NO_ADDRESS, Listening, Negotiation

if TYPE_CHECKING:
    from collections.abc import Collection

    from gsssocks._record import Records
    from gsssocks._security import SecurityContext
    from gsssocks.exceptions import ProxyError

__all__ = ["ServerNegotiation"]

_GENERAL_FAILURE, _ADDRESS_TYPE_NOT_SUPPORTED = 1, 8  # RFC 1928, section 6


class ServerNegotiation(Negotiation):
    """The proxy's side, up to the request; the answer is `reply`.

    Args:
        context: the acceptor's end of a new security context.
        levels: the protection levels allowed.
        authorize: told the initiator's name, says whether it may go on.

    Attributes:
        request: what the client asks for, once complete.
        records: the record layer to go on with, once complete.
    """

    def __init__(
        self,
        context: SecurityContext,
        *,
        levels: Collection[ProtectionLevel],
        authorize: Callable[[str], bool],
    ) -> None:
        super().__init__()
        self.request: Request | None = None
        self._context = context
        self._levels = levels
        self._authorize = authorize

    def ended(self) -> ProxyError:
        return truncated(f"the client closed the connection while we were {self.phase}")

    def reply(self, code: int, bound: Address) -> bytes:
        """The octets that answer the request (RFC 1928, section 6)."""
        if self.records is None:
            raise ProtocolError(errno.EPROTO, "there is no request to reply to")
        return self.records.protect(Reply(code, bound).encode())

    def _converse(self) -> Listening[None]:
        yield from self._select_method()
        try:
            yield from self._establish_context()
            self.records = yield from self._grant_level()
        except (AuthenticationError, ProtectionError):
            self._to_send += TokenMessage(MessageType.REFUSAL).encode()
            raise
        self.phase = "waiting for the request"
        try:
            self.request = yield from self._encapsulated(self.records, Request)
        except ProtocolError as error:
            code = _ADDRESS_TYPE_NOT_SUPPORTED if error.errno == errno.EAFNOSUPPORT else _GENERAL_FAILURE
            self._to_send += self.reply(code, NO_ADDRESS)
            raise

    def _select_method(self) -> Listening[None]:
        self.phase = "waiting for the greeting"
        greeting = yield from self._listen(Greeting)
        if Method.GSSAPI not in greeting.methods:
            self._to_send += MethodSelection(Method.NO_ACCEPTABLE).encode()
            raise AuthenticationError(
                errno.EACCES, f"the client does not offer GSS-API, only methods {greeting.methods.hex(' ')}"
            )
        self._to_send += MethodSelection(Method.GSSAPI).encode()

    def _establish_context(self) -> Listening[None]:
        self.phase = "establishing the security context"
        for _ in range(MAX_CONTEXT_TOKENS):
            message = yield from self._listen(TokenMessage)
            self._check_type(message, MessageType.CONTEXT)
            if not message.token:
                raise AuthenticationError(errno.EPROTO, "the client sent an empty context token")
            token = self._context.step(message.token)
            if self._context.complete:
                self._check_authorized()
            # Zero length says "go on" where the mechanism has nothing to say (section 3.6).
            self._to_send += TokenMessage(MessageType.CONTEXT, token or b"").encode()
            if self._context.complete:
                return
        raise AuthenticationError(errno.EPROTO, f"no security context after {MAX_CONTEXT_TOKENS} tokens")

    def _check_authorized(self) -> None:
        name = self._context.initiator_name or ""
        if not self._authorize(name):
            raise AuthenticationError(errno.EACCES, f"{name or 'an anonymous client'} is not authorised")

    def _grant_level(self) -> Listening[Records]:
        self.phase = "agreeing on the protection level"
        message = yield from self._listen(TokenMessage)
        self._check_type(message, MessageType.LEVEL)
        octets = self._context.unwrap(message.token).data
        if len(octets) != 1 or octets[0] not in set(self._levels):
            raise ProtectionError(
                errno.EACCES, f"the client asks for a protection level that is not allowed here: {octets[:8].hex()}"
            )
        level = ProtectionLevel(octets[0])
        answer = self._context.wrap(bytes([level]), confidential=False)
        self._to_send += TokenMessage(MessageType.LEVEL, answer).encode()
        return BareRecords() if level == ProtectionLevel.NONE else ProtectedRecords(self._context, level)
