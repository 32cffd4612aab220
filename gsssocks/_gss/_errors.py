"""What GSS-API and Kerberos report, as errors that say who is at fault and what to do."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from gssapi import raw

from gsssocks.exceptions import AuthenticationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EKEYREJECTED", "authentication_error", "credential_error", "expired_error", "statuses"]

# Linux has errnos for keys; elsewhere the nearest portable one.
_ENOKEY = getattr(errno, "ENOKEY", errno.EACCES)
_EKEYEXPIRED = getattr(errno, "EKEYEXPIRED", errno.EACCES)
EKEYREJECTED = getattr(errno, "EKEYREJECTED", errno.EACCES)

# Kerberos error codes (com_err, krb5.h), as GSS-API minor codes: the errno, and what to do.
_WRONG_KEY = (
    EKEYREJECTED,
    "the proxy's key does not fit the ticket: its keytab is older than the KDC's key, or is another service's",
)
_NO_CREDENTIALS = (_ENOKEY, "no Kerberos ticket: run kinit, or name a cache or keytab (ccache=, keytab=)")
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

_WRONG_PASSWORD = (EKEYREJECTED, "the KDC does not take the key of this user: check the password, or renew the keytab")
_OWN_REMEDIES: Mapping[int, tuple[int, str]] = {
    **_REMEDIES,
    -1765328353: _WRONG_PASSWORD,
    -1765328360: _WRONG_PASSWORD,
}


def _signed(code: int) -> int:
    """A com_err code as the C headers write it; python-gssapi shows the OM_uint32."""
    return code - (1 << 32) if code >= 1 << 31 else code


def credential_error(error: raw.GSSError, what: str) -> AuthenticationError:
    """The error for a credential that cannot be had: what the KDC cannot decrypt then is made with our own key."""
    return authentication_error(error, what, _OWN_REMEDIES)


def expired_error(error: raw.GSSError, what: str) -> AuthenticationError:
    """The error for a context that has expired by the time it is there."""
    return AuthenticationError(_EXPIRED[0], f"{what}: {_EXPIRED[1]}. GSS-API says: {statuses(error)}")


def authentication_error(
    error: raw.GSSError, what: str, remedies: Mapping[int, tuple[int, str]] = _REMEDIES
) -> AuthenticationError:
    """The error for a context that cannot be had; `what` says which, the message goes on with why and what to do."""
    number, remedy = remedies.get(_signed(error.min_code), (errno.EACCES, ""))
    if not remedy and isinstance(error, raw.ExpiredCredentialsError):
        number, remedy = _EKEYEXPIRED, "the credentials have expired: run kinit again"
    if not remedy and isinstance(error, raw.MissingCredentialsError):
        number, remedy = _NO_CREDENTIALS
    explained = f"{remedy}. " if remedy else ""
    return AuthenticationError(number, f"{what}: {explained}GSS-API says: {statuses(error)}")


def statuses(error: raw.GSSError) -> str:
    texts = [*error.get_all_statuses(error.maj_code, True), *error.get_all_statuses(error.min_code, False)]
    return "; ".join(dict.fromkeys(text for text in texts if text))
