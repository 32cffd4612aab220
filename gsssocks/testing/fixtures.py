"""Fixtures for pytest: name this module in `pytest_plugins`, or import what you need into a `conftest.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gsssocks.server import ProxyServer
from gsssocks.testing._realm import Realm

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["proxy"]


@pytest.fixture
def proxy() -> Iterator[ProxyServer]:
    """A running `ProxyServer` in a Kerberos realm of the test's own, in which this process holds a ticket.

    A test sends its program through it by `gsssocks.installed(proxy.url(), no_proxy=[])`, the empty list because its
    targets are likely on the loopback interface, and finds in `proxy.sessions` what came of it.
    """
    with Realm() as realm, realm.activate(), ProxyServer() as server:
        yield server
