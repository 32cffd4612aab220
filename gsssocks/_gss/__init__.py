"""Security contexts and credentials over python-gssapi: the only room that knows it."""

from __future__ import annotations

import errno

from gsssocks.exceptions import AuthenticationError

try:
    from ._clock import kdc_clock_offset
    from ._context import Acceptor, Initiator, ticket_flags
    from ._credential import Credential, Source, check_keytab, credential
except ImportError as error:
    # Met by a program in the middle of a connect, which expects an OSError there.
    raise AuthenticationError(
        getattr(errno, "ELIBACC", errno.EACCES),
        f"python-gssapi cannot be loaded: {error}; install Kerberos' GSS-API library (Debian's package is "
        "libgssapi-krb5-2) and python-gssapi (pip install gssapi)",
    ) from error

__all__ = [
    "Acceptor",
    "Credential",
    "Initiator",
    "Source",
    "check_keytab",
    "credential",
    "kdc_clock_offset",
    "ticket_flags",
]
