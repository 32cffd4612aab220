"""What tests need, all on the loopback interface: against real Kerberos, a private realm, a proxy in it as a pytest
fixture, and a proxy that misbehaves as it is told; without Kerberos, a tunnelled socket whose far end plays octet by
octet, and a check of what any stream socket owes its user."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gsssocks.testing._check_stream import check_stream
from gsssocks.testing._pair import MemoryContext, Peer, PlainPeer, TunnelPeer, plain_pair, tunnelled_pair
from gsssocks.testing._realm import Realm, RealmError
from gsssocks.testing._scripted import ClientGoneError, Conversation, ScriptedProxy

if TYPE_CHECKING:
    from gsssocks.testing.fixtures import proxy as proxy  # the form that exports a name

# Without `proxy`: an import of everything must not need pytest.
__all__ = [
    "ClientGoneError",
    "Conversation",
    "MemoryContext",
    "Peer",
    "PlainPeer",
    "Realm",
    "RealmError",
    "ScriptedProxy",
    "TunnelPeer",
    "check_stream",
    "plain_pair",
    "tunnelled_pair",
]


def __getattr__(name: str) -> object:
    if name != "proxy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gsssocks.testing.fixtures import proxy

    return proxy
