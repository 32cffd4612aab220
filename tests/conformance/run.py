"""Runs CPython's own socket and TLS tests with gsssocks, on the Python that runs this, and compares.

    python -m tests.conformance.run [--mode bypassed|tunnelled] [test_socket] [test_ssl]

It needs gsssocks' dependencies and extra "testing", the Kerberos programs and Dante (see tests/run), and CPython's
package `test`.
"""

from __future__ import annotations

import argparse
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from textwrap import indent
from typing import TYPE_CHECKING

from gsssocks.testing import Realm
from tests.conformance.suites import MODES, MODULES, compare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.suites import Comparison


def main() -> int:
    """The command line; returns the exit status."""
    arguments = _parser().parse_args()
    modules, modes = arguments.modules or MODULES, arguments.mode or MODES
    # Two at a time: they mostly wait.
    with Realm() as realm, ThreadPoolExecutor(len(modules)) as pool:
        comparisons = [
            comparison
            for of_module in pool.map(lambda module: compare(module, modes, realm), modules)
            for comparison in of_module
        ]
    for comparison in comparisons:
        sys.stdout.writelines(f"{line}\n" for line in _report(comparison))
    return 1 if any(comparison.faults() for comparison in comparisons) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--mode", action="append", choices=MODES, help="only this one; may be repeated")
    parser.add_argument("modules", nargs="*", choices=[[], *MODULES], metavar="module", help="test_socket, test_ssl")
    return parser


def _report(comparison: Comparison) -> Iterator[str]:
    yield (
        f"Python {platform.python_version()} {comparison.module} {comparison.mode}: "
        f"{len(comparison.passed)} of {len(comparison.expected)} tests that pass directly; "
        f"{comparison.tried} connections, {comparison.requested} asked of the proxy, {comparison.granted} granted by it"
    )
    for test in comparison.excused:
        yield f"    excused: {test} {comparison.results[test].outcome}"
    for fault in comparison.faults():
        yield f"    FAULT: {indent(fault, ' ' * 8).strip()}"


if __name__ == "__main__":
    sys.exit(main())
