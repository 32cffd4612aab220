"""All tests here are in the realm, and call a target whose name must not become known."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _all_in_the_realm(in_the_realm: None) -> None:
    pass
