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

    from gsssocks._protocol import Octets
    from gsssocks._record import Records
    from gsssocks._security import SecurityContext
    from gsssocks.exceptions import ProxyError

__all__ = ["ServerNegotiation"]

_STRONGEST_FIRST = (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.SELECTIVE, ProtectionLevel.INTEGRITY)
_GENERAL_FAILURE, _ADDRESS_TYPE_NOT_SUPPORTED = 1, 8  # RFC 1928, section 6


class ServerNegotiation(Negotiation):
    """The proxy's side, up to the request; the answer is `reply`.

    Args:
        context: the acceptor's end of a new security context.
        levels: the protection levels allowed.
        authorize: told the initiator's name, says whether it may go on.
        nec: whether the level may come bare, as from NEC's implementation; the answer is bare then, too. Nothing
            protects either against somebody who changes them on the way, within `levels`.
        counter_offer: whether to answer a level that is not allowed with the strongest one that is, unless that is
            weaker (RFC 1961, section 4.2), instead of a refusal.
        confidential: for level 3, says of each outgoing message whether to encrypt it; None encrypts all.

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
        nec: bool = False,
        counter_offer: bool = False,
        confidential: Callable[[Octets], bool] | None = None,
    ) -> None:
        super().__init__()
        self.request: Request | None = None
        self._context = context
        self._levels = levels
        self._authorize = authorize
        self._nec = nec
        self._counter_offer = counter_offer
        self._confidential = confidential

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
            asked, granted = yield from self._agree_on_level()
            self.records = self._records(granted)
        except (AuthenticationError, ProtectionError):
            self._to_send += TokenMessage(MessageType.REFUSAL).encode()
            raise
        self.phase = "waiting for the request"
        # A client that does not wait for the level's answer has protected its request at the level it asked for.
        self.records.level = asked
        try:
            self.request = yield from self._encapsulated(self.records, Request)
        except ProtocolError as error:
            code = _ADDRESS_TYPE_NOT_SUPPORTED if error.errno == errno.EAFNOSUPPORT else _GENERAL_FAILURE
            self._to_send += self.reply(code, NO_ADDRESS)
            raise
        finally:
            self.records.level = granted

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

    def _agree_on_level(self) -> Listening[tuple[ProtectionLevel, ProtectionLevel]]:
        """The level asked for, and the one granted."""
        self.phase = "agreeing on the protection level"
        message = yield from self._listen(TokenMessage)
        self._check_type(message, MessageType.LEVEL)
        bare = len(message.token) == 1
        if bare and not self._nec:
            raise ProtectionError(
                errno.EACCES,
                "the client sent the protection level unprotected, as NEC's implementation does: if it may, set nec",
            )
        asked = self._understood(message.token if bare else self._context.unwrap(message.token).data)
        granted = self._granted(asked)
        self._check_possible(granted)
        octet = bytes([granted])
        answer = octet if bare else self._context.wrap(octet, confidential=False)
        self._to_send += TokenMessage(MessageType.LEVEL, answer).encode()
        return asked, granted

    def _understood(self, octets: bytes) -> ProtectionLevel:
        if len(octets) != 1 or octets[0] not in set(ProtectionLevel):
            raise ProtectionError(
                errno.EACCES,
                f"the client asks for a protection level that RFC 1961 does not define: {octets[:8].hex()}",
            )
        return ProtectionLevel(octets[0])

    def _granted(self, asked: ProtectionLevel) -> ProtectionLevel:
        if asked in self._levels:
            return asked
        # Who asks for none may go on bare at once: what it says then would be anybody's.
        if self._counter_offer and asked != ProtectionLevel.NONE:
            better = [level for level in _STRONGEST_FIRST if level in self._levels and level.satisfies(asked)]
            if better:
                return better[0]
        raise ProtectionError(
            errno.EACCES, f"the client asks for a protection level that is not allowed here: {asked.name.lower()}"
        )

    def _check_possible(self, level: ProtectionLevel) -> None:
        services = self._context.granted
        if level != ProtectionLevel.NONE and not services.integrity:
            raise ProtectionError(errno.EPROTO, "the client's mechanism has no integrity protection")
        if level in (ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.SELECTIVE) and not services.confidentiality:
            raise ProtectionError(errno.EPROTO, "the client's mechanism has no encryption")

    def _records(self, level: ProtectionLevel) -> Records:
        if level == ProtectionLevel.NONE:
            return BareRecords()
        return ProtectedRecords(self._context, level, self._confidential)
