"""Whether a set-up is right, told at a glance.

To judge any set-up takes `_config`, and what that imports (dataclasses, typing, re, urllib.parse, …) takes longer than
the start of a small program. The usual ones need no more than a look: this knows the plainest form of the usual
options, and calls all else "not evident", which is no verdict. What it calls right, `_config` must take.
"""

from __future__ import annotations

# Not from `typing`, whose import takes as long as the rest of a small program's start; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FALSE", "evidently_right", "says_no"]

FALSE = ("0", "false", "no", "off")
_SCHEMES = ("socks5h", "socks5")
_PROTECTION_LEVELS = ("confidentiality", "integrity")
_NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_VALUES = _NAMES.union("._/:@")
_LONGEST_HOST, _LONGEST_LABEL, _LONGEST_PORT = 253, 63, 5
_PREFIX = "GSSSOCKS_"


def says_no(value: str) -> bool:
    """Whether a variable that is nothing but on or off is off: it says so, or is empty."""
    return not value or value.lower() in FALSE


def evidently_right(environ: Mapping[str, str]) -> bool:
    """Whether `Settings.load()` takes this environment for certain."""
    judges = {
        "PROXY": _is_proxies,
        "NO_PROXY": _is_destinations,
        "PROTECTION": _PROTECTION_LEVELS.__contains__,
        "SERVICE": _is_plain,
        "TARGET_NAME": _is_plain,
        "PRINCIPAL": _is_plain,
        "CCACHE": _is_plain,
        "INJECT": _is_plain,
        "CHILDREN": _is_plain,
    }
    said = {name[len(_PREFIX) :]: value for name, value in environ.items() if name.startswith(_PREFIX)}
    if not said.get("PROXY") or not all(name in judges and judges[name](value) for name, value in said.items()):
        return False
    return all(_is_destinations(environ.get(name, "")) for name in ("NO_PROXY", "no_proxy"))


def _is_plain(value: str) -> bool:
    return _VALUES.issuperset(value)


def _is_proxies(urls: str) -> bool:
    return all(map(_is_proxy, urls.split(",")))


def _is_proxy(url: str) -> bool:
    scheme, _, rest = url.partition("://")
    host, colon, port = rest.partition(":")
    return scheme in _SCHEMES and _is_host(host) and (not colon or _is_port(port))


def _is_host(host: str) -> bool:
    return len(host) <= _LONGEST_HOST and all(
        0 < len(label) <= _LONGEST_LABEL and _NAMES.issuperset(label) for label in host.split(".")
    )


def _is_port(port: str) -> bool:
    return 0 < len(port) <= _LONGEST_PORT and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _is_destinations(entries: str) -> bool:
    return all(map(_is_destination, entries.split(",")))


def _is_destination(entry: str) -> bool:
    entry = entry.strip()
    host, colon, port = entry.partition(":")
    if host == "*" or _is_host(host.removeprefix("*.").removeprefix(".")):
        return not colon or _is_port(port)
    return not entry or _is_network(entry)


def _is_network(entry: str) -> bool:
    # Its module is small, and takes no other one.
    import ipaddress

    try:
        ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
    # Not every block of mapped IPv4 addresses is one.
    return "%" not in entry and "ffff" not in entry.lower()
