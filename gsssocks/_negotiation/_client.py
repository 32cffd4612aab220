"""The client's side: from the greeting to the proxy's reply."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Callable

from gsssocks._protocol import (
    MAX_TOKEN,
    Address,
    Command,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    Octets,
    ProtectionLevel,
    Reply,
    Request,
    TokenMessage,
    UserPassword,
    UserPasswordStatus,
)
from gsssocks._record import BareRecords, ProtectedRecords
from gsssocks.exceptions import (
    AuthenticationError,
    LevelRefusedError,
    ProtectionError,
    ProtocolError,
    reply_error,
    truncated,
)

from ._conversation import MAX_CONTEXT_TOKENS, Listening, Negotiation

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gsssocks._record import Records
    from gsssocks._security import SecurityContext
    from gsssocks.exceptions import ProxyError

__all__ = ["ClientNegotiation"]

_METHOD_NAMES: Mapping[int, str] = {
    Method.GSSAPI: "GSS-API",
    Method.USERPASS: "user name and password",
    Method.NONE: "no authentication",
}


class ClientNegotiation(Negotiation):
    """The client's side.

    Args:
        context: the initiator's end of a new security context.
        request: what to ask of the proxy.
        proxy: the proxy as the user named it, for messages.
        level: the level to ask for.
        least: the least level to accept, where the proxy answers with another; None is `level`.
        confidential: for level 3, says of each outgoing message whether to encrypt it; None encrypts all.
        methods: the authentication methods to offer; where it is not GSS-API's that the proxy chooses, nothing protects
            the data.
        user: what to say by the method USERPASS.
        pipelined: send ahead whatever does not depend on an answer; False for proxies that cannot take it.
        nec: send the protection level bare, as the NEC reference implementation does.

    Attributes:
        records: the record layer to go on with, once complete.
        bound: the address in the reply, once complete.
        method: the proxy's choice among `methods`, once it has been made.
        agreed: the protection level, once the proxy has answered; without GSS-API, none.
    """

    def __init__(
        self,
        context: SecurityContext,
        request: Request,
        *,
        proxy: str,
        level: ProtectionLevel = ProtectionLevel.CONFIDENTIALITY,
        least: ProtectionLevel | None = None,
        confidential: Callable[[Octets], bool] | None = None,
        methods: Collection[Method] = (Method.GSSAPI,),
        user: UserPassword | None = None,
        pipelined: bool = True,
        nec: bool = False,
    ) -> None:
        super().__init__()
        self.bound: Address | None = None
        self.method: Method | None = None
        self.agreed: ProtectionLevel | None = None
        self._context = context
        self._request = request
        self._proxy = proxy
        self._level = level
        self._least = level if least is None else least
        self._confidential = confidential
        self._methods = methods
        self._user = user
        self._pipelined = pipelined
        self._nec = nec
        self._answered = True  # whether the proxy has said something to our last context token

    @property
    def may_block(self) -> bool:
        return self.method in (None, Method.GSSAPI) and not self._context.complete

    def ended(self) -> ProxyError:
        if self._received:
            return truncated(
                f"the proxy {self._proxy} closed the connection inside a message while we were {self.phase}"
            )
        return self._as_foreseen()

    def _as_foreseen(self) -> ProxyError:
        # A new one: its traceback will hold the negotiation, which must not hold it.
        return type(self._ending)(*self._ending.args)

    def _converse(self) -> Listening[None]:
        self.method = yield from self._agree_on_method()
        if self.method == Method.GSSAPI:
            yield from self._establish_context()
            self._check_granted(self._level)
            yield from self._agree_on_level_and_request()
            return
        if self.method == Method.USERPASS:
            yield from self._tell_user()
        self.records = BareRecords()
        self._to_send += self._request.encode()
        yield from self._await_reply(self.records)

    def _agree_on_method(self) -> Listening[Method]:
        self._ending = ProtocolError(
            errno.ECONNRESET, f"the proxy {self._proxy} closed the connection at once: is it a SOCKS 5 proxy?"
        )
        # Only a token for a method that is the proxy's one choice can be sent ahead of that.
        certain = set(self._methods) == {Method.GSSAPI}
        token = self._first_token() if certain else None
        self._to_send += Greeting(bytes(self._methods)).encode()
        if certain and self._pipelined:
            self._send_context_token(token)
        self.phase = "waiting for the proxy to choose an authentication method"
        selection = yield from self._listen(MethodSelection)
        method = self._offered(selection.method)
        if method == Method.GSSAPI and not (certain and self._pipelined):
            self._send_context_token(token if certain else self._first_token())
        return method

    def _first_token(self) -> bytes | None:
        self.phase = "acquiring a ticket for the proxy"
        return self._context.step(None)

    def _offered(self, method: int) -> Method:
        offered = " or ".join(_METHOD_NAMES[name] for name in self._methods)
        if method == Method.NO_ACCEPTABLE:
            raise AuthenticationError(
                errno.EACCES,
                f"the proxy {self._proxy} does not offer {offered} to this client: its rules must allow it",
            )
        if method not in self._methods:
            raise ProtocolError(
                errno.EPROTO, f"the proxy {self._proxy} chose method {method:#04x}, but only {offered} was offered"
            )
        return Method(method)

    def _tell_user(self) -> Listening[None]:
        assert self._user is not None  # or the method would not have been offered
        self._to_send += self._user.encode()
        self.phase = "waiting for the proxy to check the password"
        # RFC 1929, section 2: after a failure the server closes; some say nothing before.
        self._ending = AuthenticationError(
            errno.EACCES,
            f"the proxy {self._proxy} refused the user {self._user.username.decode()!r} or the password: check "
            "username= and password=",
        )
        answer = yield from self._listen(UserPasswordStatus)
        if answer.status:
            raise self._as_foreseen()

    def _send_context_token(self, token: bytes | None) -> None:
        if token and len(token) > MAX_TOKEN:
            raise AuthenticationError(
                errno.EMSGSIZE,
                f"the ticket for the proxy {self._proxy} makes a token of {len(token)} octets, and a message holds "
                f"{MAX_TOKEN}: a ticket that is delegated is part of it, which delegation='never' leaves out",
            )
        if token:
            self._to_send += TokenMessage(MessageType.CONTEXT, token).encode()

    def _establish_context(self) -> Listening[None]:
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
                raise self._authentication_refused()
            self._check_type(message, MessageType.CONTEXT)
            if not message.token or received > MAX_CONTEXT_TOKENS:
                raise AuthenticationError(errno.EPROTO, f"the proxy {self._proxy} did not finish the security context")
            token = self._context.step(message.token)
            self._answered = not token
            self._send_context_token(token)

    def _authentication_refused(self) -> AuthenticationError:
        return AuthenticationError(
            errno.EACCES,
            f"the proxy {self._proxy} refused our authentication (RFC 1961, section 3.8); its log says why",
        )

    def _check_granted(self, level: ProtectionLevel) -> None:
        granted = self._context.granted
        needed = {
            "mutual authentication": granted.mutual,
            "replay detection": granted.replay,
            # Datagrams may be lost or overtake each other (section 3.2).
            "sequence detection": granted.sequence or self._request.command == Command.UDP_ASSOCIATE,
            "integrity": granted.integrity,
            "confidentiality": granted.confidentiality or level in (ProtectionLevel.NONE, ProtectionLevel.INTEGRITY),
        }
        lacking = [service for service, there in needed.items() if not there]
        if lacking:
            # Without confidentiality alone, a lower level may still be had.
            error = LevelRefusedError if lacking == ["confidentiality"] else ProtectionError
            raise error(
                errno.EPROTO,
                f"the security context with the proxy {self._proxy} lacks {' and '.join(lacking)}; nothing was sent",
            )

    def _agree_on_level_and_request(self) -> Listening[None]:
        self._send_level()
        self.records = self._records(self._level)
        if self._pipelined:
            self._to_send += self.records.protect(self._request.encode())
        agreed = self.agreed = yield from self._level_answer()
        if agreed != self._level:
            self._check_granted(agreed)
            self._check_request_fits(agreed)
            self.records = self._records(agreed)
        if not self._pipelined:
            self._to_send += self.records.protect(self._request.encode())
        yield from self._await_reply(self.records)

    def _check_request_fits(self, agreed: ProtectionLevel) -> None:
        """What was sent ahead was encapsulated, or not, as the level asked for has it."""
        if self._pipelined and ProtectionLevel.NONE in (agreed, self._level):
            raise LevelRefusedError(
                errno.EPROTO,
                f"the proxy {self._proxy} answers to the protection level {self._level.name.lower()!r} with "
                f"{agreed.name.lower()!r}: ask for that by protection=, or set pipelined=False",
            )

    def _records(self, level: ProtectionLevel) -> Records:
        return (
            BareRecords()
            if level == ProtectionLevel.NONE
            else ProtectedRecords(self._context, level, self._confidential)
        )

    def _send_level(self) -> None:
        octet = bytes([self._level])
        token = octet if self._nec else self._context.wrap(octet, confidential=False)
        self._to_send += TokenMessage(MessageType.LEVEL, token).encode()

    def _level_answer(self) -> Listening[ProtectionLevel]:
        self.phase = "waiting for the proxy to agree on the protection level"
        wanted = self._level.name.lower()
        closed = LevelRefusedError(
            errno.ECONNRESET,
            f"the proxy {self._proxy} closed the connection instead of agreeing on the protection level {wanted!r}: "
            "its rules may not allow it; try another protection=",
        )
        if self._answered:
            self._ending = closed
        message = yield from self._listen(TokenMessage)
        if message == TokenMessage(MessageType.CONTEXT):
            # Servers answer each of our context tokens, the last one too; without a token of their own to send, with
            # this.
            self._answered, self._ending = True, closed
            message = yield from self._listen(TokenMessage)
        if message.mtyp == MessageType.REFUSAL and not self._answered:
            # Our part of the context was complete before the proxy had judged it, as with NTLM.
            raise self._authentication_refused()
        if message.mtyp == MessageType.REFUSAL:
            raise LevelRefusedError(
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
        if not level.satisfies(self._least):
            raise ProtectionError(
                errno.EACCES,
                f"the proxy {self._proxy} grants only the protection level {level.name.lower()!r}, less than the "
                f"{self._least.name.lower()!r} demanded; the connection is closed",
            )
        return level

    def _await_reply(self, records: Records) -> Listening[None]:
        self.phase = f"waiting for the proxy to reach {self._request.address}"
        self._ending = ProtocolError(
            errno.ECONNRESET, f"the proxy {self._proxy} closed the connection instead of answering the request"
        )
        reply = yield from self._encapsulated(records, Reply)
        if reply.code:
            raise reply_error(reply.code, str(self._request.address), self._proxy)
        self.bound = reply.address
