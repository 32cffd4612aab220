"""A host that is off, beside one that is not: two addresses of one name."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from gsssocks import _originals

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["name_of_two_hosts"]

_OFF, _ON = "127.0.0.2", "127.0.0.1"


@contextmanager
def name_of_two_hosts(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[str]:
    """A name whose first address neither accepts nor refuses a connect to `port`; the second is 127.0.0.1."""
    name, look_up = "two.example", _originals.getaddrinfo

    def found(host: Any, *arguments: Any) -> Any:
        if host not in (name, name.encode()):
            return look_up(host, *arguments)
        return [answer for address in (_OFF, _ON) for answer in look_up(address, *arguments)]

    with socket.create_server((_OFF, port), backlog=0) as listener, ExitStack() as waiting:
        # As many wait there as may: the kernel drops what else comes.
        for _ in range(3):
            visitor = waiting.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(listener.getsockname())
        monkeypatch.setattr(_originals, "getaddrinfo", found)
        yield name
