"""The same program on two routes: past the proxy, and through it."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional

import gsssocks
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante

__all__ = ["Outcome", "SameAsPlain", "tunnelled"]


@contextmanager
def tunnelled(realm: Realm, dante: Dante) -> Iterator[None]:
    """Every TCP connection of this process goes through `dante`, which must have granted one at least in the end."""
    granted = dante.connections()
    with realm.activate(), gsssocks.installed(dante.url(protection=dante.enctype), no_proxy=[]):
        yield
    # Its log may be a moment behind a connection over which nothing has been sent.
    deadline = time.monotonic() + PATIENCE_SECONDS
    while dante.connections() == granted:
        assert time.monotonic() < deadline, "no connection went through the proxy"
        time.sleep(0.01)


class Failure(NamedTuple):
    """What a program can find out about an exception."""

    kind: type[BaseException]
    errno: Optional[int]  # noqa: UP045 - NamedTuple evaluates it on 3.9
    text: str
    details: dict[str, Any]


class Outcome(NamedTuple):
    """What became of a call: a value or a failure."""

    value: Any
    failure: Optional[Failure]  # noqa: UP045 - NamedTuple evaluates it on 3.9


_LINE = re.compile(r"_ssl\.c:\d+: ")  # before the text of one timeout of many, and no part of what it says
_DETAILS = ("reason", "library", "verify_code", "verify_message")  # of ssl.SSLError and its subclasses


def outcome(call: Callable[[], Any]) -> Outcome:
    """What became of a call."""
    try:
        return Outcome(call(), None)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        details = {name: getattr(error, name) for name in _DETAILS if hasattr(error, name)}
        return Outcome(None, Failure(type(error), getattr(error, "errno", None), _LINE.sub("", str(error)), details))


class SameAsPlain:
    """Calls a function without a proxy, then with every connection through `dante`: the outcome must be the same."""

    def __init__(self, realm: Realm, dante: Dante) -> None:
        self._realm = realm
        self._dante = dante

    def __call__(self, scenario: Callable[[], Any]) -> Outcome:
        plain = outcome(scenario)
        with tunnelled(self._realm, self._dante):
            through = outcome(scenario)
        assert through == plain, f"through the proxy: {through}\nwithout a proxy:   {plain}"
        return plain
