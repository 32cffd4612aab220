"""What tests need to run against real Kerberos, on the loopback interface: a private realm, a proxy in it as a pytest
fixture, and a proxy that misbehaves as it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsssocks.testing._realm import Realm, RealmError
from gsssocks.testing._scripted import ClientGoneError, Conversation, ScriptedProxy

if TYPE_CHECKING:
    from gsssocks.testing.fixtures import proxy as proxy  # the form that exports a name

# Without `proxy`: an import of everything must not need pytest.
__all__ = ["ClientGoneError", "Conversation", "Realm", "RealmError", "ScriptedProxy"]


def __getattr__(name: str) -> object:
    if name != "proxy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gsssocks.testing.fixtures import proxy

    return proxy
