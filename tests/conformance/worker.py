"""Runs tests of one of CPython's test modules in this process, and writes down what became of each.

    python -m tests.conformance.worker PLAN JOURNAL

PLAN is a `Plan` in JSON. JOURNAL gets one line of JSON when a test begins and one when it has ended: its outcome, and
the address of every TCP connection that was tried meanwhile. So whoever started this process knows which test it was
that never came back.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import socket
import sys
import unittest
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OUTCOMES = ("passed", "expected failure", "skipped", "failed", "died")
"""From the best to the worst: a test that gets several, by its subtests, has the last. "died": so did the process, or
the test did not come to an end."""

_UNREACHABLE_PROXY = "socks5h://127.0.0.1:1"
_INET = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True)
class Plan:
    """What a worker is to do.

    Args:
        module: the test module in CPython's package `test`.
        mode: "direct" without gsssocks, "bypassed" with it and no_proxy="*", "tunnelled" with it and no exception.
        proxy: the proxy's URL, for mode "tunnelled".
        tests: ids of the tests to run; None for all.
        left_out: ids of tests not to run.
        seconds: how long one test may take; this process ends itself then.
    """

    module: str
    mode: str
    proxy: str
    tests: list[str] | None
    left_out: list[str]
    seconds: float


class Journal(unittest.TestResult):
    """Writes down outcomes and connections.

    Args:
        output: where the lines go.
        seconds: how long one test may take.
    """

    def __init__(self, output: IO[str], seconds: float) -> None:
        super().__init__()
        self._output = output
        self._seconds = seconds
        self._connects: list[str] = []
        self._reset()

    def _reset(self) -> None:
        self._outcome, self._detail = OUTCOMES[0], ""
        self._connects.clear()

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook that takes note of TCP connections."""
        if event != "socket.connect" or sys._getframe(1).f_globals["__name__"] == "gsssocks._switching":
            return  # the latter says what the program wants; what connects to the proxy says so itself
        sock, address = arguments
        if sock.family in _INET and sock.type == socket.SOCK_STREAM:
            self._connects.append(f"{address[0]}:{address[1]}")

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        self._reset()
        self._write(id=test.id())
        self._limit()

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self._write(id=test.id(), outcome=self._outcome, detail=self._detail, connects=self._connects)
        # Python 3.12.1 ends a skipped test without having begun it.
        self._reset()
        # Also for what comes between the tests, and after them.
        self._limit()

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        detail = self.errors[-1][1]
        if _is_fixture(test):
            self._write(id=test.id(), outcome="failed", detail=detail, connects=[])
        else:
            self._note("failed", detail)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._note("failed", self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._note("failed", f"{subtest}: {err[0].__name__}: {err[1]}\n")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._note("skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addExpectedFailure(test, err)
        self._note("expected failure", "")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._note("failed", "it was expected to fail")

    def _limit(self) -> None:
        # Not SIGALRM, which some of the tests use.
        faulthandler.dump_traceback_later(self._seconds, exit=True)

    def _note(self, outcome: str, detail: str) -> None:
        self._outcome = max(self._outcome, outcome, key=OUTCOMES.index)
        self._detail += detail

    def _write(self, **line: object) -> None:
        print(json.dumps(line), file=self._output, flush=True)


def _is_fixture(test: object) -> bool:
    """Whether what failed is the fixture of a class or of the module, in whose place unittest puts a stand-in."""
    return not isinstance(test, unittest.TestCase)


def main() -> None:
    """The command line."""
    plan_path, journal_path = map(Path, sys.argv[1:])
    plan = Plan(**json.loads(plan_path.read_text(encoding="utf-8")))
    _prepare_support()
    with open(journal_path, "w", encoding="utf-8") as output, _patched(plan):
        journal = Journal(output, plan.seconds)
        tests = unittest.defaultTestLoader.loadTestsFromName(f"test.{plan.module}")
        sys.addaudithook(journal.hear)
        unittest.TestSuite(_chosen(tests, plan)).run(journal)


def _prepare_support() -> None:
    support: Any = importlib.import_module("test.support")
    # Everything, however long it takes, except what needs the Internet.
    support.use_resources = ["cpu", "walltime"]
    support.verbose = 0


@contextmanager
def _patched(plan: Plan) -> Iterator[None]:
    if plan.mode == "direct":
        yield
        return
    import gsssocks

    proxy, no_proxy = (plan.proxy, ()) if plan.mode == "tunnelled" else (_UNREACHABLE_PROXY, ("*",))
    with gsssocks.installed(proxy, no_proxy=no_proxy):
        yield


def _chosen(tests: Iterable[Any], plan: Plan) -> Iterator[unittest.TestCase]:
    for test in _flat(tests):
        if (plan.tests is None or test.id() in plan.tests) and test.id() not in plan.left_out:
            yield test


def _flat(tests: Iterable[Any]) -> Iterator[unittest.TestCase]:
    for test in tests:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


if __name__ == "__main__":
    main()
