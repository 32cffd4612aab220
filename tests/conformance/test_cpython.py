"""CPython's own tests for `socket` and `ssl`, on sockets that are tunnelled and on sockets that are bypassed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.conformance.suites import MODES, MODULES, compare

if TYPE_CHECKING:
    from gsssocks.testing import Realm
    from tests.conformance.suites import Comparison

# It is run on other Pythons by hand: python -m tests.conformance.run
pytestmark = pytest.mark.default_python_only


@pytest.fixture(scope="module")
def comparisons(realm: Realm) -> dict[tuple[str, str], Comparison]:
    """By module and mode. The modules run side by side, for their tests mostly wait."""
    with ThreadPoolExecutor(len(MODULES)) as pool:
        of_modules = list(pool.map(lambda module: compare(module, MODES, realm), MODULES))
    return {(comparison.module, comparison.mode): comparison for found in of_modules for comparison in found}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("module", MODULES)
def test_every_test_that_passes_directly_passes(
    comparisons: dict[tuple[str, str], Comparison], module: str, mode: str
) -> None:
    comparison = comparisons[module, mode]
    assert comparison.expected
    assert not (faults := comparison.faults()), "\n".join(faults)
