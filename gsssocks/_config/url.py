"""A proxy's URL as it may be shown, however malformed: a message may end in a log, and a password must not. A module of
its own, imported only where something is wrong."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Shown", "shown"]

_HIDDEN = "***"
# Percent-encoded too much, or as urlsplit() normalises them, they divide all the same in what the user meant.
_COLON = re.compile(r"[:\uff1a\ufe13\ufe55]|%(?:25)*3a", re.IGNORECASE)
_AT = re.compile(r"[@\uff20\ufe6b]|%(?:25)*40")
# Before an "@", what looks like another scheme may be a user.
_OPENING = re.compile(
    r"(?:(?:socks|http)\w*://|[a-z][a-z0-9+.-]*://(?!.*@)|socks5h?:)?[/\\]*", re.IGNORECASE | re.DOTALL
)
_USUAL_OPENING = re.compile(r"(?:socks|http)\w*://", re.IGNORECASE)
_IPV6 = re.compile(r"\[[0-9a-f:.]*(?:%[\w.-]+)?\]", re.IGNORECASE)
_PLAIN_HOST = re.compile(r"(?:[\w.-]+|\[[^\[\]@/]*\])(?::\w*)?/?\w*")
_IRREGULAR_IN_USER = re.compile(r"[/\\#]|%(?:25)*3a", re.IGNORECASE)
_PORT = re.compile(r"\d{0,5}/?", re.ASCII)
_WITH_AT = ("principal", "target_name", "username")
"""Options whose values may well hold an "@"."""
_ELSEWHERE = ("host", "port", "remote_dns")
"""Options that are given otherwise than in the query."""


class Shown(NamedTuple):
    """What may be shown of a URL."""

    text: str
    """The URL without what could be a password."""
    regular: bool
    """Whether that leaves no doubt: where it does, what has been taken for a host or an option may be part of a
    password."""


def shown(url: str, options: Collection[str]) -> Shown:
    """A URL as it may be shown.

    Args:
        options: the names of those that may be in its query.
    """
    match = _OPENING.match(url)
    opening = match.group() if match else ""
    place, mark, query = url[len(opening) :].partition("?")
    user, at, host = place.rpartition("@")
    told, query_is_regular = _query(query, options, certain=not _COLON.search(host))
    if not query_is_regular:
        # Where that is a password's, it began before.
        return Shown(f"{opening}{_up_to_colon(place)}{mark}{_HIDDEN}", regular=False)
    if not at:
        return Shown(f"{opening}{_host(host)}{mark}{told}", regular="%" not in place)
    plain = _PLAIN_HOST.fullmatch(host)
    regular = plain and _USUAL_OPENING.fullmatch(opening) and not _IRREGULAR_IN_USER.search(user)
    host = _host(host) if plain or not _COLON.search(user) else _HIDDEN
    return Shown(f"{opening}{_up_to_colon(user)}{at}{host}{mark}{told}", regular=bool(regular))


def _up_to_colon(text: str) -> str:
    colon = _COLON.search(text)
    return text if colon is None else f"{text[: colon.end()]}{_HIDDEN}"


def _host(text: str) -> str:
    """Host and port. What is no port may be a password before an "@" that was forgotten, or cut off by a shell."""
    address = _IPV6.match(text)
    host = address.group() if address else ""
    colon = _COLON.search(text, len(host))
    if colon is None or _PORT.fullmatch(text, colon.end()):
        return text
    return f"{text[: colon.end()]}{_HIDDEN}"


def _query(query: str, options: Collection[str], *, certain: bool) -> tuple[str, bool]:
    """The options up to the first that is none; and whether that is no more than a mistake in an option's name.

    Args:
        certain: whether this is a query for certain, not what a password has behind a "?" in a URL without its "@": no
            colon is before it.
    """
    body, mark, fragment = query.partition("#")
    given = body.split("&")
    told: list[str] = []
    for place, option in enumerate(given):
        name, equals, value = option.partition("=")
        if name == "password":
            told.append(f"{name}={_HIDDEN}")
        elif not option or (name in options and not _is_suspicious(name, value)):
            told.append(option)
        else:
            # Behind a password, this may be the rest of it.
            alone = "password" not in (earlier.partition("=")[0] for earlier in given[:place])
            slip = alone and equals and name not in options and name.isidentifier()
            slip = slip and (certain or _is_like_one_of(options, name))
            regular = bool(slip) and not any(map(_AT.search, (*given[place:], fragment)))
            return "&".join([*told, f"{name}={_HIDDEN}"]), regular
    return "&".join(told) + (mark and f"#{_HIDDEN}"), not _AT.search(fragment)


def _is_like_one_of(options: Collection[str], name: str) -> bool:
    return bool(difflib.get_close_matches(name.lower(), (*options, *_ELSEWHERE), 1))


def _is_suspicious(name: str, value: str) -> bool:
    at = _AT.search(value)
    return at is not None and (name not in _WITH_AT or _COLON.search(value, 0, at.start()) is not None)
