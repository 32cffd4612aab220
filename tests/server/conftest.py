"""A realm to be in, and nothing left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gsssocks.server import ProxyServer
from tests.peers.by_hand import descriptors, server_threads, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.targets import EchoServer


@pytest.fixture(autouse=True)
def _leaves_nothing(in_the_realm: None, echo: EchoServer) -> Iterator[None]:
    """No thread, and no more descriptors than before; targets in this process close theirs a little later."""
    before = descriptors()
    yield
    until(lambda: not server_threads())
    until(lambda: descriptors() <= before)


@pytest.fixture
def proxy() -> Iterator[ProxyServer]:
    with ProxyServer() as server:
        yield server
