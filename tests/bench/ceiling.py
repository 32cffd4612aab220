"""GSS-API alone, one thread, no sockets: what no client of this library can exceed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gssapi
from gssapi import raw

from .workloads import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .workloads import Workload

__all__ = ["CEILINGS"]

# What is left of a token of 65,535 octets for data, at least (RFC 4121: 60 octets of overhead with AES and SHA-1).
FULL = 65475
_MESSAGE = bytes(64)


def wrap(*, confidential: bool, frame: int, count: int) -> dict[str, float]:
    """Wraps `count` messages."""
    sender, _ = _contexts()
    data = bytes(frame)
    _wrapped(sender, data, confidential=confidential, count=count // 10 + 1)
    watch = Stopwatch()
    for _ in range(count):
        raw.wrap(sender, data, confidential, None)
    return watch.results(frame * count, count)


def unwrap(*, confidential: bool, frame: int, count: int) -> dict[str, float]:
    """Unwraps `count` messages."""
    sender, receiver = _contexts()
    data = bytes(frame)
    for token in _wrapped(sender, data, confidential=confidential, count=count // 10 + 1):
        raw.unwrap(receiver, token)
    tokens = _wrapped(sender, data, confidential=confidential, count=count)
    watch = Stopwatch()
    for token in tokens:
        raw.unwrap(receiver, token)
    return watch.results(frame * count, count)


def wrap_and_unwrap(*, confidential: bool, count: int) -> dict[str, float]:
    """A client's share in a round trip of 64 octets: one wrap, one unwrap."""
    sender, receiver = _contexts()
    tokens = _wrapped(sender, _MESSAGE, confidential=confidential, count=count)
    other, _ = _contexts()
    watch = Stopwatch()
    for token in tokens:
        raw.wrap(other, _MESSAGE, confidential, None)
        raw.unwrap(receiver, token)
    return watch.results(len(_MESSAGE) * count, count)


def _wrapped(context: gssapi.SecurityContext, data: bytes, *, confidential: bool, count: int) -> list[bytes]:
    return [raw.wrap(context, data, confidential, None).message for _ in range(count)]


def _contexts() -> tuple[gssapi.SecurityContext, gssapi.SecurityContext]:
    name = gssapi.Name("socks@localhost", gssapi.NameType.hostbased_service)
    initiator = gssapi.SecurityContext(name=name, usage="initiate")
    acceptor = gssapi.SecurityContext(usage="accept")
    answer = acceptor.step(initiator.step())
    initiator.step(answer)
    return initiator, acceptor


CEILINGS: Mapping[str, Workload] = {function.__name__: function for function in (wrap, unwrap, wrap_and_unwrap)}
