"""All tests here are in the realm, and call a target whose name must not become known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm


@pytest.fixture(autouse=True)
def _in_the_realm(realm: Realm) -> Iterator[None]:
    with realm.activate():
        yield
