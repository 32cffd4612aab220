"""Security contexts over python-gssapi: the only room that knows it.

The low-level `gssapi.raw` calls are used throughout. The high-level `SecurityContext` keeps an error of `step` for
the *next* call by default, adds flags of its own (out-of-sequence detection, wrong for UDP), and costs twice the time
for a small message.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple, cast

from gssapi import raw

from ._security import MECHANISMS, Granted, Unwrapped
from .exceptions import AuthenticationError, ProtectionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import gssapi
    from gssapi.raw.named_tuples import InquireContextResult

__all__ = ["Acceptor", "Credential", "Initiator", "credential", "ticket_flags"]

_Flag = raw.RequirementFlag

_DELEGATION_FLAGS = {
    # Only to a proxy that the KDC marks as fit for delegation (ok-as-delegate): RFC 1961 asks for DELEG without
    # condition, which would hand the user's whole identity to any proxy.
    "policy": _Flag.ok_as_delegate,
    "always": _Flag.delegate_to_peer,
    "never": 0,
}

# Linux has errnos for keys; elsewhere the nearest portable one.
_ENOKEY = getattr(errno, "ENOKEY", errno.EACCES)
_EKEYEXPIRED = getattr(errno, "EKEYEXPIRED", errno.EACCES)
_EKEYREJECTED = getattr(errno, "EKEYREJECTED", errno.EACCES)

# Kerberos error codes (com_err, krb5.h), as GSS-API minor codes: the errno, and what to do.
_WRONG_KEY = (
    _EKEYREJECTED,
    "the proxy's key does not fit the ticket: its keytab is older than the KDC's key, or is another service's",
)
_NO_CREDENTIALS = (_ENOKEY, "no Kerberos ticket: run kinit, or name a cache or keytab (ccache=, keytab=)")
_REALM_UNKNOWN = (
    errno.ENETUNREACH,
    "the realm is unknown here: check KRB5_CONFIG, or give the whole principal with target_name=",
)
_REMEDIES: Mapping[int, tuple[int, str]] = {
    -1765328378: (_ENOKEY, "the KDC does not know the user: check the principal"),
    -1765328377: (
        _EKEYREJECTED,
        "the KDC does not know that service: check the proxy's host and service=, or give target_name=",
    ),
    -1765328352: (_EKEYEXPIRED, "the Kerberos ticket has expired: run kinit again"),
    -1765328351: (_EKEYREJECTED, "the ticket is not valid yet: check the clocks of this machine and the KDC"),
    -1765328347: (_EKEYREJECTED, "the clocks of this machine and the KDC or proxy are too far apart: set them"),
    -1765328353: _WRONG_KEY,
    -1765328349: _WRONG_KEY,
    -1765328340: _WRONG_KEY,
    -1765328339: _WRONG_KEY,
    -1765328243: _NO_CREDENTIALS,
    -1765328189: _NO_CREDENTIALS,
    -1765328230: _REALM_UNKNOWN,
    -1765328167: _REALM_UNKNOWN,
    -1765328164: _REALM_UNKNOWN,
    -1765328228: (errno.ENETUNREACH, "no KDC of the realm answers: check the network and KRB5_CONFIG"),
}


def _signed(code: int) -> int:
    """A com_err code as the C headers write it; python-gssapi shows the OM_uint32."""
    return code - (1 << 32) if code >= 1 << 31 else code


def _authentication_error(error: raw.GSSError, what: str) -> AuthenticationError:
    number, remedy = _REMEDIES.get(_signed(error.min_code), (errno.EACCES, ""))
    if not remedy and isinstance(error, raw.ExpiredCredentialsError):
        number, remedy = _EKEYEXPIRED, "the credentials have expired: run kinit again"
    if not remedy and isinstance(error, raw.MissingCredentialsError):
        number, remedy = _NO_CREDENTIALS
    explained = f"{remedy}. " if remedy else ""
    return AuthenticationError(number, f"{what}: {explained}GSS-API says: {_statuses(error)}")


def _statuses(error: raw.GSSError) -> str:
    texts = [*error.get_all_statuses(error.maj_code, True), *error.get_all_statuses(error.min_code, False)]
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _name(name: str, kind: raw.OID) -> raw.Name:
    return raw.import_name(name.encode(), kind)


def _shown(name: raw.Name | None) -> str | None:
    return None if name is None else raw.display_name(name, False).name.decode("utf-8", "replace")


def _mechanism(mechanism: str | None) -> raw.OID | None:
    return None if mechanism is None else raw.OID.from_int_seq(MECHANISMS.get(mechanism.lower(), mechanism))


def _acquire(
    principal: str | None, ccache: str | None, keytab: str | None, mechanism: raw.OID | None
) -> raw.Creds | None:
    """The configured credential, or None: the mechanism's default, looked for anew so that a later kinit counts."""
    if not (principal or ccache or keytab):
        return None
    name = _name(principal, raw.NameType.user) if principal else None
    mechanisms = [mechanism] if mechanism else None
    store: dict[bytes | str, bytes | str] = {}
    if ccache:
        store[b"ccache"] = ccache.encode()
    if keytab:
        store[b"client_keytab"] = keytab.encode()
    if not store:
        return raw.acquire_cred(name, mechs=mechanisms, usage="initiate").creds
    return raw.acquire_cred_from(store, name, mechs=mechanisms, usage="initiate").creds


class _Context:
    """What initiator and acceptor share: everything once the first token has been made."""

    def __init__(self) -> None:
        self._context: raw.SecurityContext | None = None
        self._more_steps = True

    @property
    def complete(self) -> bool:
        return self._context is not None and not self._more_steps

    def _established(self) -> gssapi.SecurityContext:
        if self._context is None:
            raise ProtectionError(errno.EPROTO, "no security context has been established")
        # The stubs ask for the high-level class where the functions take its base.
        return cast("gssapi.SecurityContext", self._context)

    def _inquire(self) -> InquireContextResult:
        return raw.inquire_context(self._established())

    @property
    def granted(self) -> Granted:
        flags = self._inquire().flags or 0
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
        return _shown(self._inquire().initiator_name)

    @property
    def target_name(self) -> str | None:
        return _shown(self._inquire().target_name)

    @property
    def mechanism(self) -> str:
        oid = self._inquire().mech
        dotted = oid.dotted_form if oid is not None else ""
        return next((name for name, known in MECHANISMS.items() if known == dotted), dotted)

    @property
    def lifetime(self) -> int | None:
        lifetime: int | None = self._inquire().lifetime
        return lifetime

    def max_plaintext(self, *, confidential: bool, max_token: int) -> int:
        return int(raw.wrap_size_limit(self._established(), max_token, confidential, None))

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        try:
            wrapped = raw.wrap(self._established(), data, confidential, None)
        except raw.GSSError as error:
            raise ProtectionError(errno.EPROTO, f"cannot protect a message: {_statuses(error)}") from error
        if confidential and not wrapped.encrypted:
            raise ProtectionError(
                errno.EPROTO, "the mechanism did not encrypt a message although asked to; nothing was sent"
            )
        token: bytes = wrapped.message
        return token

    def unwrap(self, token: bytes) -> Unwrapped:
        try:
            data, confidential, _ = raw.unwrap(self._established(), token)
        except raw.GSSError as error:
            # Supplementary statuses (duplicate, old, gap, out of sequence) come here too: all fatal on a stream.
            raise ProtectionError(
                errno.EPROTO, f"a message was damaged, repeated, lost or forged on the way: {_statuses(error)}"
            ) from error
        return Unwrapped(data, confidential)


class Initiator(_Context):
    """The client's end of a security context (RFC 1961, sections 3.1 to 3.3).

    Args:
        target: the proxy's name: `service@host`, or a full principal where it holds a slash or `target_is_principal`.
        mechanism: a name in `MECHANISMS` or a dotted OID; None is the library's default.
        delegation: "policy", "always" or "never".
        sequence: whether messages must arrive in order: True for TCP, False for UDP (section 3.2).
        principal: whose credential to use; None is the default one.
        ccache: credential cache, such as "FILE:/tmp/krb5cc_0"; None is the default.
        keytab: client keytab from which a ticket is got when there is none.

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
    ) -> None:
        super().__init__()
        self._target = target
        self._mechanism = _mechanism(mechanism)
        self._principal = principal
        self._ccache = ccache
        self._keytab = keytab
        flags = _Flag.mutual_authentication | _Flag.replay_detection | _Flag.integrity | _Flag.confidentiality
        flags |= _DELEGATION_FLAGS[delegation]
        if sequence:
            flags |= _Flag.out_of_sequence_detection
        self._flags = flags
        self._target_handle: raw.Name | None = None
        self._credential: raw.Creds | None = None

    def step(self, token: bytes | None) -> bytes | None:
        try:
            if self._target_handle is None:
                self._target_handle = self._import_target()
                self._credential = _acquire(self._principal, self._ccache, self._keytab, self._mechanism)
            result = raw.init_sec_context(
                self._target_handle, self._credential, self._context, self._mechanism, self._flags, input_token=token
            )
        except raw.GSSError as error:
            if token is not None:
                raise AuthenticationError(
                    _EKEYREJECTED,
                    f"the proxy's answer is forged or damaged, or it is not {self._target}: "
                    f"GSS-API says: {_statuses(error)}",
                ) from error
            raise _authentication_error(error, self._attempt()) from error
        self._context, self._more_steps = result.context, result.more_steps
        return result.token or None

    def _import_target(self) -> raw.Name:
        # RFC 1961, section 3.1: the name is opaque. A slash or a realm behind a second "@" is how a principal differs
        # from a host-based service.
        host_based = "/" not in self._target
        return _name(self._target, raw.NameType.hostbased_service if host_based else raw.NameType.kerberos_principal)

    def krb5_ticket_flags(self) -> int:
        """The flags of the ticket behind a complete context (RFC 4120, section 5.3); 0 where the mechanism has none."""
        try:
            return int(raw.krb5_get_tkt_flags(self._established()))
        except (AttributeError, raw.GSSError):
            return 0

    def _attempt(self) -> str:
        who = self._principal or "the default principal"
        cache = self._ccache or os.environ.get("KRB5CCNAME") or "the default cache"
        return f"no security context with {self._target} for {who} from {cache}"


class Credential(NamedTuple):
    """What is known of an initiator's credential."""

    principal: str
    lifetime: int | None
    """Seconds; None where it never expires."""
    cache: str


def credential(*, principal: str | None = None, ccache: str | None = None, keytab: str | None = None) -> Credential:
    """The credential that an `Initiator` with these arguments would use.

    Raises:
        AuthenticationError: there is none; the message says why and what to do.
    """
    cache = ccache or os.environ.get("KRB5CCNAME") or "the default cache"
    try:
        acquired = _acquire(principal, ccache, keytab, None) or raw.acquire_cred(None, usage="initiate").creds
        details = raw.inquire_cred(acquired)
    except raw.GSSError as error:
        raise _authentication_error(error, f"no credential in {cache}") from error
    return Credential(_shown(details.name) or "", details.lifetime, cache)


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
            raise _authentication_error(error, "the client was not accepted") from error
        self._context, self._more_steps = result.context, result.more_steps
        return result.token or None
