"""CPython's own tests for `socket` and `ssl`: directly, with gsssocks installed and bypassed, and through a proxy.

Bypassed, all tests are compared. Through the proxy, it is those which the direct run selects: all tests of the classes
in which at least one test opens a TCP connection. So the selection follows the Python it runs on.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.conformance.excused import EXCUSED, NOT_RUN
from tests.conformance.worker import OUTCOMES, Plan
from tests.peers.dante import Dante

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gsssocks.testing import Realm

MODULES = ("test_socket", "test_ssl")
MODES = ("bypassed", "tunnelled")
"""Those that are compared with the direct run."""

_CHECKOUT = Path(__file__).parents[2]
_SECONDS_PER_TEST = 60.0
_PASSED = OUTCOMES[:2]
# Several tests send until nothing more fits between the two ends. With buffers of the usual size, a proxy doubles and
# trebles what they know from a direct connection, and some send too little then.
_BUFFER_SIZE = 65536


@dataclass(frozen=True)
class Result:
    """What became of one test.

    Attributes:
        outcome: one of `OUTCOMES`.
        detail: traceback, or reason for skipping.
        connects: the address of each TCP connection it tried.
    """

    outcome: str
    detail: str
    connects: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.outcome in _PASSED


Results = dict[str, Result]
"""By the test's id."""


@dataclass(frozen=True)
class Comparison:
    """A module's tests in one mode, next to the same tests run directly.

    Attributes:
        module: the test module.
        mode: "bypassed" or "tunnelled".
        direct: results of the direct run.
        results: results in this mode.
        proxy_port: where the proxy listened; 0 without one.
        requested: how many connections the proxy was asked for.
        granted: how many it made.
    """

    module: str
    mode: str
    direct: Results
    results: Results
    proxy_port: int = 0
    requested: int = 0
    granted: int = 0

    @property
    def expected(self) -> list[str]:
        """The tests that must pass: those that pass directly."""
        return [test for test, result in self.direct.items() if result.passed]

    @property
    def excused(self) -> list[str]:
        """Those of them of which nothing is asked."""
        return [test for test in self.expected if self.mode == "tunnelled" and test[len("test.") :] in EXCUSED]

    @property
    def passed(self) -> list[str]:
        """Those of them that do pass."""
        return [test for test in self.expected if test in self.results and self.results[test].passed]

    @property
    def tried(self) -> int:
        """How many connections the tests try to make, by the direct run."""
        return _count_tried(self.direct)

    def faults(self) -> list[str]:
        """Everything that is not as it must be, each with its explanation."""
        return [*self._failures(), *self._wrong_ways(), *self._missed_by_proxy()]

    def _failures(self) -> Iterator[str]:
        for test in sorted({*self.expected} - {*self.passed} - {*self.excused}):
            result = self.results.get(test)
            yield f"{test} {result.outcome}\n{result.detail}" if result else f"{test} was not run"
        for name in sorted({*self.results} - {*self.direct}):
            yield f"{name} {self.results[name].outcome}\n{self.results[name].detail}"

    def _wrong_ways(self) -> Iterator[str]:
        if self.mode != "tunnelled":
            return
        for test in self.passed:
            direct, here = self.direct[test].connects, self.results[test].connects
            if direct and not here:
                yield f"{test} made no connection, and directly it does"
            if any(_port(address) != self.proxy_port for address in here):
                yield f"{test} went past the proxy: {', '.join(here)}"

    def _missed_by_proxy(self) -> Iterator[str]:
        if self.mode == "tunnelled" and self.requested != self.tried:
            yield f"the tests try {self.tried} connections, but the proxy was asked for {self.requested}"
        if self.mode == "tunnelled" and not self.granted:
            yield "not one connection went through the proxy"


def _count_tried(results: Results) -> int:
    return sum(len(result.connects) for result in results.values())


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def compare(module: str, modes: Iterable[str], realm: Realm) -> list[Comparison]:
    """The tests of `module` directly, and then in each of the modes.

    Raises:
        RuntimeError: this Python comes without its own tests.
    """
    direct = _run_directly(module)
    return [
        _run_tunnelled(module, _select(direct), realm) if mode == "tunnelled" else _run_bypassed(module, direct)
        for mode in modes
    ]


def _run_directly(module: str) -> Results:
    if find_spec(f"test.{module}") is None:
        version = "{}.{}".format(*sys.version_info)
        raise RuntimeError(
            f"{sys.executable} has no test.{module}: CPython's own tests are not installed "
            f"(Debian and Ubuntu have them in libpython{version}-testsuite)"
        )
    return _run(Plan(module, "direct", "", None, [f"test.{test}" for test in NOT_RUN], _SECONDS_PER_TEST), {})


def _select(direct: Results) -> Results:
    """Those of the results that belong to a class of which at least one test opens a TCP connection."""
    classes = {_class(test) for test, result in direct.items() if result.connects}
    return {test: result for test, result in direct.items() if _class(test) in classes}


def _class(test: str) -> str:
    return test.rpartition(".")[0]


def _run_bypassed(module: str, direct: Results) -> Comparison:
    """All tests with gsssocks installed and every destination bypassed."""
    plan = Plan(module, "bypassed", "", list(direct), [], _SECONDS_PER_TEST)
    return Comparison(module, "bypassed", direct, _run(plan, {}))


def _run_tunnelled(module: str, selected: Results, realm: Realm) -> Comparison:
    """The selected tests through a proxy of their own, with confidentiality."""
    with Dante(realm, enctype="confidentiality", buffer_size=_BUFFER_SIZE) as dante:
        plan = Plan(module, "tunnelled", dante.url(protection="confidentiality"), list(selected), [], _SECONDS_PER_TEST)
        results = _run(plan, realm.env)
        requested = _count_requests(dante, _count_tried(selected))
        return Comparison(module, "tunnelled", selected, results, dante.port, requested, dante.connections())


def _count_requests(dante: Dante, expected: int) -> int:
    """How many requests have been dealt with, by success or not; Dante logs that a moment after their end."""
    deadline = time.monotonic() + 10
    while True:
        count = len(re.findall(r"tcp/connect \]", dante.log()))
        if count >= expected or time.monotonic() > deadline:
            return count
        time.sleep(0.05)


def _run(plan: Plan, env: Mapping[str, str]) -> Results:
    """Runs a plan to its end: where a test ends its process, a new one goes on behind it."""
    results: Results = {}
    while not _run_process(replace(plan, left_out=[*plan.left_out, *results]), env, results):
        pass
    return results


def _run_process(plan: Plan, env: Mapping[str, str], results: Results) -> bool:
    """Adds to `results`; returns whether the plan came to its end.

    Raises:
        RuntimeError: the process ended before, and not within a test.
    """
    with tempfile.TemporaryDirectory(prefix="gsssocks-conformance-") as directory:
        plan_path, journal_path = Path(directory, "plan"), Path(directory, "journal")
        plan_path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        worker = subprocess.run(
            [sys.executable, "-m", "tests.conformance.worker", str(plan_path), str(journal_path)],
            cwd=directory,
            env={**os.environ, **env, "PYTHONPATH": str(_CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        journal = journal_path.read_text(encoding="utf-8") if journal_path.exists() else ""
    line: dict[str, Any] = {}
    for line in map(json.loads, journal.splitlines()):
        if "outcome" in line:
            results[line["id"]] = Result(line["outcome"], line["detail"], tuple(line["connects"]))
    if line and "outcome" not in line:
        results[line["id"]] = Result(OUTCOMES[-1], worker.stdout, ())
        return False
    if worker.returncode:
        raise RuntimeError(f"{plan.module} ({plan.mode}) ended with {worker.returncode}:\n{worker.stdout}")
    return True
