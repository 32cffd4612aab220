"""One line for each session that has ended. Nothing in it is secret, and nothing in it can begin another line."""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._session import Session

__all__ = ["line", "log"]

log = logging.getLogger("gsssocks.server")

_PLAIN = re.compile(r"[\w.@:/+\[\]-]+", re.ASCII)


def line(session: Session) -> str:
    """What there is to say of a session, as `name=value` divided by spaces; a value is quoted, in JSON's way, where it
    would not be plain otherwise. Names and principals come from elsewhere, and may hold anything."""
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in _facts(session) if value is not None)


def _facts(session: Session) -> Iterator[tuple[str, object]]:
    yield "client", session.client
    yield "principal", session.principal
    yield "command", session.command
    yield "destination", session.destination
    yield "level", session.protection
    yield "reply", session.reply
    yield "received", session.octets_received
    yield "sent", session.octets_sent
    if session.dropped:
        yield "dropped", sum(session.dropped.values())
    yield "error", session.error


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)
