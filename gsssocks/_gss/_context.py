"""Both ends of a security context.

The low-level `gssapi.raw` calls are used throughout. The high-level `SecurityContext` keeps an error of `step` for
the *next* call by default, adds flags of its own (out-of-sequence detection, wrong for UDP), and costs twice the time
for a small message.
"""

from __future__ import annotations

import errno
import math
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, cast

from gssapi import raw

from gsssocks._security import MECHANISMS, Granted, Unwrapped
from gsssocks.exceptions import AuthenticationError, ProtectionError, not_encrypted

from ._credential import Source, acquire, doubt, imported_name, shown, shown_cache
from ._errors import EKEYREJECTED, acceptor_error, authentication_error, credential_error, expired_error, statuses

if TYPE_CHECKING:
    import gssapi
    from gssapi.raw.named_tuples import AcceptSecContextResult, InquireContextResult

    from gsssocks._security import Arrived, Sealed

__all__ = ["Acceptor", "Initiator", "ticket_flags"]

_Flag = raw.RequirementFlag
_wrap: Callable[..., tuple[bytes, bool]] = raw.wrap
_unwrap: Callable[..., tuple[bytes, bool, int | None]] = raw.unwrap

_DELEGATION_FLAGS = {
    # Only to a proxy that the KDC marks as fit for delegation (ok-as-delegate): RFC 1961 asks for DELEG without
    # condition, which would hand the user's whole identity to any proxy.
    "policy": _Flag.ok_as_delegate,
    "always": _Flag.delegate_to_peer,
    "never": 0,
}


_INQUIRED = ("initiator_name", "target_name", "lifetime", "mech", "flags", "locally_init", "complete")


class _Context:
    """What initiator and acceptor share: everything once the first token has been made."""

    def __init__(self) -> None:
        self._context: raw.SecurityContext | None = None
        self._more_steps = True
        self._flags_granted: int = 0
        self._oid: raw.OID | None = None
        self._initiator_name: raw.Name | None = None
        self._target_name: raw.Name | None = None
        self._expires: float | None = None

    @property
    def complete(self) -> bool:
        return self._context is not None and not self._more_steps

    def _established(self) -> gssapi.SecurityContext:
        if self._context is None:
            raise ProtectionError(errno.EPROTO, "no security context has been established")
        # The stubs ask for the high-level class where the functions take its base.
        return cast("gssapi.SecurityContext", self._context)

    def _note(self, *, flags: int, lifetime: int | None) -> None:
        """Takes note of what a complete context is: once it has expired, GSS-API does not tell any more.

        Raises:
            ExpiredContextError: it has already.
        """
        self._flags_granted = flags
        self._expires = None if lifetime is None else time.monotonic() + lifetime
        self._oid = self._inquire("mech").mech
        self._initiator_name = self._inquire("initiator_name").initiator_name
        # gss-ntlmssp crashes an acceptor that asks for the name it was asked for.
        if self.mechanism != "ntlmssp" or isinstance(self, Initiator):
            self._target_name = self._inquire("target_name").target_name

    def _inquire(self, wanted: str) -> InquireContextResult:
        return raw.inquire_context(self._established(), **{name: name == wanted for name in _INQUIRED})

    @property
    def granted(self) -> Granted:
        flags = self._flags_granted
        return Granted(
            mutual=bool(flags & _Flag.mutual_authentication),
            replay=bool(flags & _Flag.replay_detection),
            sequence=bool(flags & _Flag.out_of_sequence_detection),
            integrity=bool(flags & _Flag.integrity),
            confidentiality=bool(flags & _Flag.confidentiality),
            delegated=bool(flags & _Flag.delegate_to_peer),
        )

    @property
    def initiator_name(self) -> str | None:
        return shown(self._initiator_name)

    @property
    def target_name(self) -> str | None:
        return shown(self._target_name)

    @property
    def mechanism(self) -> str:
        dotted = "" if self._oid is None else self._oid.dotted_form
        return next((name for name, known in MECHANISMS.items() if known == dotted), dotted)

    @property
    def lifetime(self) -> int | None:
        return None if self._expires is None else max(0, math.ceil(self._expires - time.monotonic()))

    def max_plaintext(self, *, confidential: bool, max_token: int) -> int:
        return int(raw.wrap_size_limit(self._established(), max_token, confidential, None))

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        sealed: Sealed = []
        self.wrap_onto(sealed, data, confidential=confidential)
        (token, encrypted), _ = sealed[0]
        if confidential and not encrypted:
            raise not_encrypted()
        return token

    def wrap_onto(self, sealed: Sealed, data: bytes, *, confidential: bool) -> None:
        if self._context is None:
            self._established()
        try:
            # One step of the interpreter: it calls `wrap`, which is C, and extends the list without looking up.
            sealed += zip(map(_wrap, (self._context,), (data,), (confidential,), (None,)), (confidential,))
        except raw.GSSError as error:
            raise ProtectionError(errno.EPROTO, f"cannot protect a message: {statuses(error)}") from error

    def unwrap(self, token: bytes) -> Unwrapped:
        arrived: Arrived = deque()
        self.unwrap_onto(arrived, token, 0)
        data, confidential, _ = arrived[0][0]
        return Unwrapped(data, confidential)

    def unwrap_onto(self, arrived: Arrived, token: bytes, note: int) -> None:
        if self._context is None:
            self._established()
        try:
            arrived += zip(map(_unwrap, (self._context,), (token,)), (note,))
        except raw.GSSError as error:
            # Supplementary statuses (duplicate, old, gap, out of sequence) come here too: all fatal on a stream.
            raise ProtectionError(
                errno.EPROTO, f"a message was damaged, repeated, lost or forged on the way: {statuses(error)}"
            ) from error

    def unwrap_datagram(self, token: bytes) -> Unwrapped | None:
        try:
            data, confidential, _ = raw.unwrap(self._established(), token)
        except (raw.DuplicateTokenError, raw.ExpiredTokenError):
            return None
        except raw.GSSError as error:
            # A mechanism that watches the sequence although it was not asked to says so here (a gap, a token that was
            # overtaken), and python-gssapi has no way to the data then: the datagram is lost, as datagrams may be.
            raise ProtectionError(
                errno.EPROTO, f"a datagram was damaged or forged on the way: {statuses(error)}"
            ) from error
        return Unwrapped(data, confidential)


class Initiator(_Context):
    """The client's end of a security context (RFC 1961, sections 3.1 to 3.3).

    Args:
        target: the proxy's name: `service@host`, or a full principal where it holds a slash or `target_is_principal`.
        mechanism: a name in `MECHANISMS` or a dotted OID; None is the library's default, Kerberos where a credential is
            named.
        delegation: "policy", "always" or "never".
        sequence: whether messages must arrive in order: True for TCP, False for UDP (section 3.2).
        principal: whose credential to use; None is the default one.
        ccache: credential cache, such as "FILE:/tmp/krb5cc_0"; None is the default.
        keytab: client keytab to get tickets with; without `ccache`, they are kept in memory.
        password: of the principal, to get tickets with.

    Nothing is looked up or read before the first `step`.
    """

    def __init__(
        self,
        target: str,
        *,
        mechanism: str | None = None,
        delegation: str = "policy",
        sequence: bool = True,
        principal: str | None = None,
        ccache: str | None = None,
        keytab: str | None = None,
        password: str | None = None,
    ) -> None:
        super().__init__()
        self._target = target
        self._source = Source(principal, ccache, keytab, password, mechanism)
        self._mechanism = self._source.oid
        flags = _Flag.mutual_authentication | _Flag.replay_detection | _Flag.integrity | _Flag.confidentiality
        flags |= _DELEGATION_FLAGS[delegation]
        if sequence:
            flags |= _Flag.out_of_sequence_detection
        self._flags = flags
        self._target_handle: raw.Name | None = None
        self._credential: raw.Creds | None = None

    def step(self, token: bytes | None) -> bytes | None:
        target = self._target_handle or self._begin()
        try:
            result = raw.init_sec_context(
                target, self._credential, self._context, self._mechanism, self._flags, input_token=token
            )
        except raw.GSSError as error:
            if token is not None:
                raise AuthenticationError(
                    EKEYREJECTED,
                    f"the proxy's answer is forged or damaged, or it is not {self._target}: "
                    f"GSS-API says: {statuses(error)}",
                ) from error
            self.doubt_credential()
            raise authentication_error(error, self._attempt()) from error
        self._context, self._more_steps = result.context, result.more_steps
        if not result.more_steps:
            self._note_unless_expired(result.flags, result.lifetime)
        return result.token or None

    def doubt_credential(self) -> None:
        """Has the next context begin with another credential than this one, which has failed with the proxy, where
        it is one got by keytab or password."""
        doubt(self._source, self._credential)

    def _note_unless_expired(self, flags: int, lifetime: int | None) -> None:
        try:
            self._note(flags=flags, lifetime=lifetime)
        except raw.ExpiredContextError as error:
            # The proxy may still have taken the ticket, whose end its clock may put later.
            raise expired_error(error, self._attempt()) from error

    def _begin(self) -> raw.Name:
        try:
            self._credential = acquire(self._source)
            self._target_handle = self._import_target()
        except raw.GSSError as error:
            raise credential_error(error, self._attempt(), self._source.keytab) from error
        return self._target_handle

    def _import_target(self) -> raw.Name:
        # RFC 1961, section 3.1: the name is opaque. A slash or a realm behind a second "@" is how a principal differs
        # from a host-based service.
        host_based = "/" not in self._target
        return imported_name(
            self._target, raw.NameType.hostbased_service if host_based else raw.NameType.kerberos_principal
        )

    def krb5_ticket_flags(self) -> int:
        """The flags of the ticket behind a complete context (RFC 4120, section 5.3); 0 where the mechanism has none."""
        try:
            return int(raw.krb5_get_tkt_flags(self._established()))
        except (AttributeError, raw.GSSError):
            return 0

    def _attempt(self) -> str:
        who = self._source.principal or "the default principal"
        return f"no security context with {self._target} for {who} from {shown_cache(self._source)}"


_TKT_FORWARDABLE, _TKT_OK_AS_DELEGATE = 0x40000000, 0x00040000  # RFC 4120, section 5.3, and RFC 4120, section 2.8


def ticket_flags(context: Initiator) -> tuple[bool, bool]:
    """Whether the ticket of a complete context is forwardable, and whether the KDC marks its service ok-as-delegate."""
    flags = context.krb5_ticket_flags()
    return bool(flags & _TKT_FORWARDABLE), bool(flags & _TKT_OK_AS_DELEGATE)


class Acceptor(_Context):
    """The proxy's end of a security context (RFC 1961, section 3.6).

    Args:
        keytab: the service's keytab; None is the default one (KRB5_KTNAME).
    """

    def __init__(self, *, keytab: str | None = None) -> None:
        super().__init__()
        self._keytab = keytab
        self._credential: raw.Creds | None = None

    def step(self, token: bytes | None) -> bytes | None:
        try:
            if self._keytab and self._credential is None:
                store: dict[bytes | str, bytes | str] = {b"keytab": self._keytab.encode()}
                self._credential = raw.acquire_cred_from(store, None, usage="accept").creds
            result = raw.accept_sec_context(token or b"", self._credential, self._context)
        except raw.GSSError as error:
            raise acceptor_error(error, self._keytab) from error
        self._context, self._more_steps = result.context, result.more_steps
        if not result.more_steps:
            self._note_even_expired(result)
        return result.token or None

    def _note_even_expired(self, result: AcceptSecContextResult) -> None:
        # A ticket is good for some minutes after its end, since clocks differ.
        with suppress(raw.ExpiredContextError):
            self._note(flags=result.flags, lifetime=result.lifetime)
        self._oid, self._initiator_name = self._oid or result.mech, result.initiator_name
