"""What GSS-API and Kerberos report, as errors that say who is at fault and what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gssapi import raw

from gsssocks.exceptions import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EKEYREJECTED",
    "acceptor_error",
    "authentication_error",
    "credential_error",
    "expired_error",
    "no_key_error",
    "statuses",
]

# Linux has errnos for keys; elsewhere the nearest portable one.
_ENOKEY = getattr(errno, "ENOKEY", errno.EACCES)
_EKEYEXPIRED = getattr(errno, "EKEYEXPIRED", errno.EACCES)
EKEYREJECTED = getattr(errno, "EKEYREJECTED", errno.EACCES)

# Kerberos error codes (com_err, krb5.h), as GSS-API minor codes: the errno, and what to do.
_WRONG_KEYS = (-1765328353, -1765328349, -1765328340, -1765328339)
_WRONG_KEY = (
    EKEYREJECTED,
    "the proxy's key does not fit the ticket: its keytab is older than the KDC's key, or is another service's",
)
_NO_CREDENTIALS = (_ENOKEY, "no Kerberos ticket: run kinit, or name a cache or keytab (ccache=, keytab=)")
_NO_CACHE = (-1765328243, -1765328189)
_EXPIRED = (_EKEYEXPIRED, "the Kerberos ticket has expired: run kinit again")
_REALM_UNKNOWN = (
    errno.ENETUNREACH,
    "the realm is unknown here: check KRB5_CONFIG, or give the whole principal with target_name=",
)
_REMEDIES: Mapping[int, tuple[int, str]] = {
    -1765328378: (_ENOKEY, "the KDC does not know the user: check the principal"),
    -1765328377: (
        EKEYREJECTED,
        "the KDC does not know that service: check the proxy's host and service=, or give target_name=",
    ),
    -1765328352: _EXPIRED,
    -1765328351: (EKEYREJECTED, "the ticket is not valid yet: check the clocks of this machine and the KDC"),
    -1765328347: (EKEYREJECTED, "the clocks of this machine and the KDC or proxy are too far apart: set them"),
    **dict.fromkeys(_WRONG_KEYS, _WRONG_KEY),
    **dict.fromkeys(_NO_CACHE, _NO_CREDENTIALS),
    -1765328230: _REALM_UNKNOWN,
    -1765328167: _REALM_UNKNOWN,
    -1765328164: _REALM_UNKNOWN,
    -1765328228: (errno.ENETUNREACH, "no KDC of the realm answers: check the network and KRB5_CONFIG"),
}

_WRONG_PASSWORD = (EKEYREJECTED, "the KDC does not take the key of this user: check the password, or renew the keytab")
_OWN_REMEDIES: Mapping[int, tuple[int, str]] = {
    **_REMEDIES,
    -1765328353: _WRONG_PASSWORD,
    -1765328360: _WRONG_PASSWORD,
}


def _signed(code: int) -> int:
    """A com_err code as the C headers write it; python-gssapi shows the OM_uint32."""
    return code - (1 << 32) if code >= 1 << 31 else code


def credential_error(error: raw.GSSError, what: str, keytab: str | None) -> AuthenticationError:
    """The error for a credential that cannot be had: what the KDC cannot decrypt then is made with our own key.

    Args:
        keytab: the client keytab that tickets were to be got with, if there is one.
    """
    if keytab is None:
        return authentication_error(error, what, _OWN_REMEDIES)
    none = (_ENOKEY, f"the keytab has no key of that user, or cannot be read: see klist -k {keytab}")
    return authentication_error(error, what, {**_OWN_REMEDIES, **dict.fromkeys(_NO_CACHE, none)}, none)


def acceptor_error(error: raw.GSSError, keytab: str | None) -> AuthenticationError:
    """The error for a client that the proxy's end cannot accept. Its operator has a keytab, and needs no ticket.

    Args:
        keytab: the server's; None is the default one.
    """
    shown = _shown_keytab(keytab)
    not_ours = (EKEYREJECTED, f"its ticket is not for a key in {shown}: that is older than the KDC's, or another's")
    remedies = {
        **dict.fromkeys(_WRONG_KEYS, not_ours),
        -1765328352: (_EKEYEXPIRED, "its ticket has expired"),
        -1765328351: (EKEYREJECTED, "its ticket is not valid yet: check the clocks of this machine and the KDC"),
        -1765328347: (EKEYREJECTED, "the clocks of this machine and the client are too far apart: set them"),
    }
    none = (_ENOKEY, f"there is no key to accept clients with in {shown}")
    return authentication_error(error, "the client was not accepted", remedies, none)


def no_key_error(error: raw.GSSError, keytab: str | None) -> AuthenticationError:
    """The error for a server's keytab by which no client could be accepted; None is the default one."""
    return AuthenticationError(
        errno.EACCES, f"no key to accept clients with in {_shown_keytab(keytab)}: GSS-API says: {statuses(error)}"
    )


def _shown_keytab(keytab: str | None) -> str:
    return "the default keytab" if keytab is None else f"the keytab {keytab!r}"


def expired_error(error: raw.GSSError, what: str) -> AuthenticationError:
    """The error for a context that has expired by the time it is there."""
    return AuthenticationError(_EXPIRED[0], f"{what}: {_EXPIRED[1]}. GSS-API says: {statuses(error)}")


def authentication_error(
    error: raw.GSSError,
    what: str,
    remedies: Mapping[int, tuple[int, str]] = _REMEDIES,
    none: tuple[int, str] = _NO_CREDENTIALS,
) -> AuthenticationError:
    """The error for a context that cannot be had; `what` says which, the message goes on with why and what to do.

    Args:
        remedies: errno and remedy by minor code.
        none: errno and remedy where there is no credential.
    """
    number, remedy = remedies.get(_signed(error.min_code), (errno.EACCES, ""))
    if not remedy and isinstance(error, raw.ExpiredCredentialsError):
        number, remedy = _EKEYEXPIRED, "the credentials have expired: run kinit again"
    if not remedy and isinstance(error, raw.MissingCredentialsError):
        number, remedy = none
    explained = f"{remedy}. " if remedy else ""
    return AuthenticationError(number, f"{what}: {explained}GSS-API says: {statuses(error)}")


def statuses(error: raw.GSSError) -> str:
    texts = [*error.get_all_statuses(error.maj_code, True), *error.get_all_statuses(error.min_code, False)]
    return "; ".join(dict.fromkeys(text for text in texts if text))
