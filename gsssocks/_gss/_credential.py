"""Whose credential an initiator uses, and where it comes from.

Nothing here touches the process's environment: what a proxy's configuration names is named to GSS-API, so that two
proxies may have two identities in one process.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from gssapi import raw

from gsssocks._security import MECHANISMS

from ._errors import credential_error, no_key_error

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Credential",
    "Source",
    "acquire",
    "check_keytab",
    "credential",
    "doubt",
    "imported_name",
    "mechanism_oid",
    "shown",
]


def imported_name(name: str, kind: raw.OID) -> raw.Name:
    return raw.import_name(name.encode(), kind)


def shown(name: raw.Name | None) -> str | None:
    if name is None:
        return None
    # gss-ntlmssp counts the null character that ends a name in C.
    return raw.display_name(name, False).name.decode("utf-8", "replace").removesuffix("\0")


def mechanism_oid(mechanism: str | None) -> raw.OID | None:
    return None if mechanism is None else raw.OID.from_int_seq(MECHANISMS.get(mechanism.lower(), mechanism))


class Source(NamedTuple):
    """Whose credential, from where; all None is the mechanism's default."""

    principal: str | None = None
    ccache: str | None = None
    """Credential cache, such as "FILE:/tmp/krb5cc_0"."""
    keytab: str | None = None
    """Client keytab."""
    password: str | None = None
    mechanism: str | None = None
    """A name in `MECHANISMS`, or an OID in dotted form."""

    @property
    def oid(self) -> raw.OID | None:
        """The mechanism to use; None is the library's default.

        A credential that is named is asked for by mechanism, Kerberos unless it is said. Where several are installed,
        GSS-API would answer with one of another mechanism, and then, finding none in it for its default mechanism, go
        on with somebody else's.
        """
        named = self.principal or self.ccache or self.keytab or self.password
        return mechanism_oid(self.mechanism or ("krb5" if named else None))

    def __repr__(self) -> str:
        return f"Source({self.principal!r}, {self.ccache!r}, {self.keytab!r}, {self.mechanism!r})"


class _Acquired(NamedTuple):
    creds: raw.Creds
    half: float
    """Half of the seconds it was good for when it was got."""
    renew: float
    """When to acquire another one, by time.monotonic()."""
    doubted: float
    """When it, or one before it, was last given up before that time."""


_acquired: dict[Source, _Acquired] = {}
"""Credentials that we have got ourselves, by keytab or password: to ask the KDC for each connection would be slow."""
MAX_ACQUIRED = 64
"""How many of them are kept: the oldest of more would have to be got again."""
_locks: weakref.WeakValueDictionary[Source, threading.Lock] = weakref.WeakValueDictionary()
"""One for each that is being got: a KDC that does not answer keeps nobody waiting who asks another."""
_caches = itertools.count()
_FOR_EVER = float("inf")
DOUBT_SECONDS = 10.0
"""Between one credential that is given up early and the next: where another does not help, the KDC has its peace."""
_KRB5 = raw.OID.from_int_seq(MECHANISMS["krb5"])

if hasattr(os, "register_at_fork"):
    # A thread that holds one does not exist in the child.
    os.register_at_fork(after_in_child=_locks.clear)


def acquire(source: Source) -> raw.Creds | None:
    """The credential; None is the mechanism's default, looked for anew each time, so that a later kinit counts.

    One got by keytab or password is kept, and another got once half of its lifetime is over: tunnels that exist do
    not need it any more, and new ones never meet an expired one. May be called from any thread.

    Raises:
        GSSError: there is none.
    """
    if source.password is None and (source.keytab is None or source.ccache is not None):
        return _found(source)
    with _locks.setdefault(source, threading.Lock()):
        known = _acquired.get(source)
        # By both clocks: time.monotonic() stands still while the machine sleeps, the other may be set.
        if known is not None and time.monotonic() < known.renew and _lifetime(known.creds) >= known.half:
            return known.creds
        creds = _by_password(source) if source.password is not None else _by_keytab(source)
        half = _lifetime(creds) / 2
        _keep(source, _Acquired(creds, half, time.monotonic() + half, known.doubted if known else -_FOR_EVER))
        return creds


def doubt(source: Source, creds: raw.Creds | None) -> None:
    """Has the next connection get another credential, where this one is kept: what is wrong may be the proxy's ticket
    that is kept with it, made with a key that the proxy has no more."""
    known, now = _acquired.get(source), time.monotonic()
    if known is not None and known.creds is creds and now >= known.doubted + DOUBT_SECONDS:
        _acquired[source] = known._replace(renew=now, doubted=now)


def _lifetime(creds: raw.Creds) -> float:
    try:
        lifetime = raw.inquire_cred(creds, name=False, usage=False, mechs=False).lifetime
    except raw.ExpiredCredentialsError:
        return 0.0
    return _FOR_EVER if lifetime is None else lifetime


def _keep(source: Source, acquired: _Acquired) -> None:
    _acquired[source] = acquired
    for oldest in list(_acquired)[:-MAX_ACQUIRED]:
        _acquired.pop(oldest, None)


def _found(source: Source) -> raw.Creds | None:
    if not (source.principal or source.ccache):
        return None
    return _from_store(source, {b"ccache": source.ccache, b"client_keytab": source.keytab})


def _by_keytab(source: Source) -> raw.Creds:
    # A cache of its own: the user's default one keeps what is in it. A new one each time, since a connection that is
    # being made may still be reading the old.
    return _from_store(source, {b"ccache": f"MEMORY:gsssocks-{next(_caches)}", b"client_keytab": source.keytab})


def _by_password(source: Source) -> raw.Creds:
    assert source.principal is not None and source.password is not None  # noqa: PT018  # `Proxy` has checked
    name = imported_name(source.principal, raw.NameType.user)
    password = source.password.encode()
    return raw.acquire_cred_with_password(name, password, mechs=_mechanisms(source), usage="initiate").creds


def _from_store(source: Source, named: Mapping[bytes, str | None]) -> raw.Creds:
    name = imported_name(source.principal, raw.NameType.user) if source.principal else None
    store: dict[bytes | str, bytes | str] = {key: value.encode() for key, value in named.items() if value}
    if not store:
        return raw.acquire_cred(name, mechs=_mechanisms(source), usage="initiate").creds
    return raw.acquire_cred_from(store, name, mechs=_mechanisms(source), usage="initiate").creds


def _mechanisms(source: Source) -> list[raw.OID] | None:
    return [source.oid] if source.oid else None


class Credential(NamedTuple):
    """What is known of an initiator's credential."""

    principal: str
    lifetime: int | None
    """Seconds; None where it never expires."""
    cache: str


def credential(source: Source) -> Credential:
    """The credential that an `Initiator` with this source would use.

    Raises:
        AuthenticationError: there is none; the message says why and what to do.
    """
    cache = shown_cache(source)
    try:
        acquired = acquire(source) or raw.acquire_cred(None, mechs=[_KRB5], usage="initiate").creds
        details = raw.inquire_cred(acquired)
    except raw.GSSError as error:
        raise credential_error(error, f"no credential in {cache}", source.keytab) from error
    return Credential(shown(details.name) or "", details.lifetime, cache)


def check_keytab(keytab: str | None) -> None:
    """Refuses a keytab by which no client of Kerberos could be accepted.

    Args:
        keytab: None is the default one.

    Raises:
        AuthenticationError: it is not there, cannot be read, or holds no key.
    """
    try:
        if keytab is None:
            raw.acquire_cred(None, mechs=[_KRB5], usage="accept")
        else:
            raw.acquire_cred_from({b"keytab": keytab.encode()}, None, mechs=[_KRB5], usage="accept")
    except raw.GSSError as error:
        raise no_key_error(error, keytab) from error


def shown_cache(source: Source) -> str:
    """Where the credential comes from, in words."""
    if source.ccache:
        return source.ccache
    if source.keytab:
        return f"the keytab {source.keytab}"
    if source.password is not None:
        return "the KDC, by password"
    return os.environ.get("KRB5CCNAME") or "the default cache"
