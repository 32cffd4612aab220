"""What tests need to run against real Kerberos, on the loopback interface: a private realm, and a proxy that misbehaves
as it is told."""

from __future__ import annotations

from gsssocks.testing._realm import Realm, RealmError
from gsssocks.testing._scripted import ClientGoneError, Conversation, ScriptedProxy

__all__ = ["ClientGoneError", "Conversation", "Realm", "RealmError", "ScriptedProxy"]
