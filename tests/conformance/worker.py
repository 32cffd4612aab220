"""Runs tests of one of CPython's test modules in this process, and writes down what became of each.

    python -m tests.conformance.worker PLAN JOURNAL

PLAN is a JSON file: see `Plan`. JOURNAL gets one line of JSON when a test begins and one when it has ended: its
outcome, and the address of every TCP connection that was tried meanwhile. So whoever started this process knows which
test it was if it never comes back.
"""

from __future__ import annotations

import faulthandler
import json
import socket
import sys
import unittest
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Optional

import gsssocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    _ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType]

BYPASSED_PROXY = "socks5h://127.0.0.1:1"
"""Nothing listens there: a connection that is not bypassed fails."""

# From the mildest to the worst: subtests and class fixtures add to what a test got.
OUTCOMES = ("passed", "expected failure", "skipped", "failed", "hung")

_INET = (socket.AF_INET, socket.AF_INET6)


class Plan(NamedTuple):
    """What a worker is to do."""

    module: str
    """Full name of the test module."""
    mode: str
    """"direct", "bypassed" or "tunnelled"."""
    proxy: str
    """The proxy's URL in mode "tunnelled"."""
    tests: Optional[list[str]]  # noqa: UP007  # NamedTuple evaluates it on 3.9
    """Ids of the tests to run; None for all."""
    left_out: list[str]
    """Ids of tests not to run."""
    seconds: float
    """How long one test may take; then the process ends itself."""


class Journal(unittest.TestResult):
    """Collects outcomes and connections.

    Args:
        output: where the lines go.
        seconds: how long one test may take.
    """

    def __init__(self, output: IO[str], seconds: float) -> None:
        super().__init__()
        self._output = output
        self._seconds = seconds
        self._outcome = OUTCOMES[0]
        self._detail = ""
        self._connects: list[str] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook that notes connects."""
        if event != "socket.connect":
            return
        sock, address = arguments
        if sock.family in _INET and sock.type == socket.SOCK_STREAM:
            self._connects.append(f"{address[0]}:{address[1]}")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._outcome, self._detail = OUTCOMES[0], ""
        self._connects.clear()
        self._write(id=test.id())
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()
        self._write(id=test.id(), outcome=self._outcome, detail=self._detail, connects=self._connects)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self._note("failed", self.errors[-1][1])
        if not isinstance(test, unittest.TestCase):
            # Not a test: the fixture of a class or a module failed.
            self._write(id=test.id(), outcome=self._outcome, detail=self._detail, connects=[])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._note("failed", self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note("failed", f"{subtest}\n{(self.errors + self.failures)[-1][1]}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._note("skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        self._note("expected failure", "")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._note("failed", "succeeded unexpectedly")

    def _note(self, outcome: str, detail: str) -> None:
        self._outcome = max(self._outcome, outcome, key=OUTCOMES.index)
        self._detail += detail

    def _write(self, **line: object) -> None:
        print(json.dumps(line), file=self._output, flush=True)


def main() -> None:
    """The command line."""
    plan_path, journal_path = map(Path, sys.argv[1:])
    plan = Plan(**json.loads(plan_path.read_text()))
    _prepare_test_support()
    with open(journal_path, "a", encoding="utf-8") as output:
        journal = Journal(output, plan.seconds)
        with _patched(plan):
            tests = unittest.defaultTestLoader.loadTestsFromName(plan.module)
            sys.addaudithook(journal.hear)
            unittest.TestSuite(_chosen(tests, plan)).run(journal)


def _prepare_test_support() -> None:
    from test import support

    # All tests, however long they take, but those that need the Internet.
    support.use_resources = ["cpu", "walltime", "largefile"]  # type: ignore[attr-defined]
    support.verbose = 0


@contextmanager
def _patched(plan: Plan) -> Iterator[None]:
    if plan.mode == "direct":
        yield
        return
    with gsssocks.installed(plan.proxy or BYPASSED_PROXY, no_proxy=[] if plan.mode == "tunnelled" else "*"):
        yield


def _chosen(tests: Iterable[Any], plan: Plan) -> Iterator[unittest.TestCase]:
    chosen, left_out = plan.tests and set(plan.tests), set(plan.left_out)
    for test in _flat(tests):
        if (chosen is None or test.id() in chosen) and test.id() not in left_out:
            yield test


def _flat(tests: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


if __name__ == "__main__":
    main()
