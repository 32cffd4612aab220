"""Who speaks next, from the greeting to the granted request (RFC 1928 sections 3 to 6, RFC 1961 sections 3 and 4),
both roles.

A negotiation does no I/O. Its driver sends what `start` returns; then it shows `receive` the octets that have
arrived, takes as many off the connection as `receive` says it has taken, and sends what it asks to be sent, until
`complete`. No octet behind the last message is ever taken, so user data that follows it stays where it is; user data
that shares a *token* with the reply waits in `records.plaintext`.

The inside is a generator that reads like the conversation itself: it says what it has to say, and yields where it
must listen. `start` and `receive` may block where the security context does (see `_security`); nothing else blocks.

    client                             proxy
    greeting, context token  ──────▶
                             ◀──────  method, context token
    level, request           ──────▶
                             ◀──────  level, reply

That is the pipelined form: what depends on no answer goes out ahead. Otherwise each message waits for the one before.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Generator
from typing import TYPE_CHECKING, Callable, NamedTuple, TypeVar

from ._protocol import (
    Address,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    Octets,
    ProtectionLevel,
    Receivable,
    ReceiveBuffer,
    Reply,
    Request,
    TokenMessage,
)
from ._record import BareRecords, ProtectedRecords, Records
from .exceptions import AuthenticationError, ProtectionError, ProtocolError, ProxyError, reply_error, truncated

if TYPE_CHECKING:
    from ._security import SecurityContext

__all__ = ["NO_ADDRESS", "ClientNegotiation", "Negotiation", "ServerNegotiation", "Step"]

T = TypeVar("T")
_Listening = Generator[None, None, T]

MAX_CONTEXT_TOKENS = 16
"""Tokens a peer may send to establish a context. Kerberos needs one, SPNEGO and NTLM three; without a bound a hostile
peer could go on for ever."""


NO_ADDRESS = Address("0.0.0.0", 0)
"""What a reply holds where there is no bound address."""
_GENERAL_FAILURE, _ADDRESS_TYPE_NOT_SUPPORTED = 1, 8  # RFC 1928, section 6


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

    def _converse(self) -> _Listening[None]:
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

    def _listen(self, message: type[Receivable[T]]) -> _Listening[T]:
        while True:
            self._wanted = self._received.missing(message)
            if not self._wanted:
                return self._received.next(message)
            yield

    def _encapsulated(self, records: Records, message: type[Receivable[T]]) -> _Listening[T]:
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


class ClientNegotiation(Negotiation):
    """The client's side.

    Args:
        context: the initiator's end of a new security context.
        request: what to ask of the proxy.
        proxy: the proxy as the user named it, for messages.
        level: the level to ask for, and the least to accept.
        pipelined: send ahead whatever does not depend on an answer; False for proxies that cannot take it.
        nec: send the protection level bare, as the NEC reference implementation does.

    Attributes:
        records: the record layer to go on with, once complete.
        bound: the address in the reply, once complete.
        agreed: the protection level, once the proxy has answered.
    """

    def __init__(
        self,
        context: SecurityContext,
        request: Request,
        *,
        proxy: str,
        level: ProtectionLevel = ProtectionLevel.CONFIDENTIALITY,
        pipelined: bool = True,
        nec: bool = False,
    ) -> None:
        super().__init__()
        self.bound: Address | None = None
        self.agreed: ProtectionLevel | None = None
        self._context = context
        self._request = request
        self._proxy = proxy
        self._level = level
        self._pipelined = pipelined
        self._nec = nec

    @property
    def may_block(self) -> bool:
        return not self._context.complete

    def ended(self) -> ProxyError:
        if self._received:
            return truncated(
                f"the proxy {self._proxy} closed the connection inside a message while we were {self.phase}"
            )
        return self._ending

    def _converse(self) -> _Listening[None]:
        yield from self._agree_on_method()
        yield from self._establish_context()
        self._check_granted(self._level)
        yield from self._agree_on_level_and_request()

    def _agree_on_method(self) -> _Listening[None]:
        self.phase = "acquiring a ticket for the proxy"
        self._ending = ProtocolError(
            errno.ECONNRESET, f"the proxy {self._proxy} closed the connection at once: is it a SOCKS 5 proxy?"
        )
        token = self._context.step(None)
        self._to_send += Greeting(bytes([Method.GSSAPI])).encode()
        if self._pipelined:
            self._send_context_token(token)
        self.phase = "waiting for the proxy to choose an authentication method"
        selection = yield from self._listen(MethodSelection)
        if selection.method == Method.NO_ACCEPTABLE:
            raise AuthenticationError(
                errno.EACCES,
                f"the proxy {self._proxy} does not offer GSS-API to this client: its rules must allow it",
            )
        if selection.method != Method.GSSAPI:
            raise ProtocolError(
                errno.EPROTO,
                f"the proxy {self._proxy} chose method {selection.method:#04x}, but only GSS-API was offered",
            )
        if not self._pipelined:
            self._send_context_token(token)

    def _send_context_token(self, token: bytes | None) -> None:
        if token:
            self._to_send += TokenMessage(MessageType.CONTEXT, token).encode()

    def _establish_context(self) -> _Listening[None]:
        self.phase = "waiting for the proxy's part of the security context"
        # Dante never sends a refusal; it closes.
        self._ending = AuthenticationError(
            errno.ECONNRESET,
            f"the proxy {self._proxy} closed the connection instead of accepting our ticket: check its keytab "
            "(key version), its service name against service=, the clocks, and its log",
        )
        received = 0
        while not self._context.complete:
            message = yield from self._listen(TokenMessage)
            received += 1
            if message.mtyp == MessageType.REFUSAL:
                raise AuthenticationError(
                    errno.EACCES,
                    f"the proxy {self._proxy} refused our authentication (RFC 1961, section 3.8); its log says why",
                )
            self._check_type(message, MessageType.CONTEXT)
            if not message.token or received > MAX_CONTEXT_TOKENS:
                raise AuthenticationError(errno.EPROTO, f"the proxy {self._proxy} did not finish the security context")
            self._send_context_token(self._context.step(message.token))

    def _check_granted(self, level: ProtectionLevel) -> None:
        granted = self._context.granted
        needed = {
            "mutual authentication": granted.mutual,
            "replay detection": granted.replay,
            "sequence detection": granted.sequence,
            "integrity": granted.integrity,
            "confidentiality": granted.confidentiality or level in (ProtectionLevel.NONE, ProtectionLevel.INTEGRITY),
        }
        lacking = [service for service, there in needed.items() if not there]
        if lacking:
            raise ProtectionError(
                errno.EPROTO,
                f"the security context with the proxy {self._proxy} lacks {' and '.join(lacking)}; nothing was sent",
            )

    def _agree_on_level_and_request(self) -> _Listening[None]:
        self._send_level()
        self.records = self._records(self._level)
        if self._pipelined:
            self._to_send += self.records.protect(self._request.encode())
        agreed = self.agreed = yield from self._level_answer()
        if agreed != self._level:
            self._check_granted(agreed)
            self.records = self._records(agreed)
        if not self._pipelined:
            self._to_send += self.records.protect(self._request.encode())
        yield from self._await_reply(self.records)

    def _records(self, level: ProtectionLevel) -> Records:
        return BareRecords() if level == ProtectionLevel.NONE else ProtectedRecords(self._context, level)

    def _send_level(self) -> None:
        octet = bytes([self._level])
        token = octet if self._nec else self._context.wrap(octet, confidential=False)
        self._to_send += TokenMessage(MessageType.LEVEL, token).encode()

    def _level_answer(self) -> _Listening[ProtectionLevel]:
        self.phase = "waiting for the proxy to agree on the protection level"
        wanted = self._level.name.lower()
        self._ending = ProtectionError(
            errno.ECONNRESET,
            f"the proxy {self._proxy} closed the connection instead of agreeing on the protection level {wanted!r}: "
            "its rules may not allow it; try another protection=",
        )
        message = yield from self._listen(TokenMessage)
        if message == TokenMessage(MessageType.CONTEXT):
            # Servers answer each of our context tokens, the last one too; without a token of their own to send, with
            # this.
            message = yield from self._listen(TokenMessage)
        if message.mtyp == MessageType.REFUSAL:
            raise ProtectionError(
                errno.EACCES,
                f"the proxy {self._proxy} refused the protection level {wanted!r}; try another protection=",
            )
        self._check_type(message, MessageType.LEVEL)
        # conf_state is not looked at: section 4.3 asks for conf_req FALSE here, but there are peers that encrypt this
        # one token.
        self._check_form(message.token)
        octets = message.token if self._nec else self._context.unwrap(message.token).data
        return self._acceptable(octets)

    def _check_form(self, token: bytes) -> None:
        bare = len(token) == 1
        if bare and not self._nec:
            raise ProtectionError(
                errno.EPROTO,
                f"the proxy {self._proxy} sent the protection level unprotected, as NEC's implementation does: "
                "if it is meant to, set nec=True",
            )
        if self._nec and not bare:
            raise ProtectionError(
                errno.EPROTO, f"the proxy {self._proxy} protects the protection level, as it should: leave out nec=True"
            )

    def _acceptable(self, octets: bytes) -> ProtectionLevel:
        if len(octets) != 1 or octets[0] not in set(ProtectionLevel):
            raise ProtocolError(
                errno.EPROTO,
                f"the proxy {self._proxy} answered with a level that RFC 1961 does not define: {octets[:8].hex()}",
            )
        level = ProtectionLevel(octets[0])
        if not level.satisfies(self._level):
            raise ProtectionError(
                errno.EACCES,
                f"the proxy {self._proxy} grants only the protection level {level.name.lower()!r}, less than the "
                f"{self._level.name.lower()!r} demanded; the connection is closed",
            )
        return level

    def _await_reply(self, records: Records) -> _Listening[None]:
        self.phase = f"waiting for the proxy to reach {self._request.address}"
        self._ending = ProtocolError(
            errno.ECONNRESET, f"the proxy {self._proxy} closed the connection instead of answering the request"
        )
        reply = yield from self._encapsulated(records, Reply)
        if reply.code:
            raise reply_error(reply.code, str(self._request.address), self._proxy)
        self.bound = reply.address


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

    def _converse(self) -> _Listening[None]:
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

    def _select_method(self) -> _Listening[None]:
        self.phase = "waiting for the greeting"
        greeting = yield from self._listen(Greeting)
        if Method.GSSAPI not in greeting.methods:
            self._to_send += MethodSelection(Method.NO_ACCEPTABLE).encode()
            raise AuthenticationError(
                errno.EACCES, f"the client does not offer GSS-API, only methods {greeting.methods.hex(' ')}"
            )
        self._to_send += MethodSelection(Method.GSSAPI).encode()

    def _establish_context(self) -> _Listening[None]:
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

    def _grant_level(self) -> _Listening[Records]:
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
