"""Medians and ratios, as Markdown and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .plan import BUSY, DANTE, TABLES, Metric

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .plan import Trial

__all__ = ["Row", "as_data", "as_markdown", "rows_of", "shortfalls"]

MEMORY_BAR_KIB = 24

EXPLANATION = (
    'Medians of runs in turn, each in a fresh process. A ratio "vs X" compares gsssocks with X in the same round, and '
    "is turned round where less is better, so that **above 1 gsssocks is better than X**; it too is a median. "
    "MB and GB are powers of ten."
)


@dataclass(frozen=True)
class Row:
    """One metric of a trial, with every contestant's results, round by round."""

    name: str
    table: str
    metric: Metric
    samples: Mapping[str, Sequence[float]]

    @property
    def subject(self) -> str:
        """Who is compared with the others."""
        return next(iter(self.samples))

    def median(self, contestant: str) -> float:
        """The contestant's median."""
        return statistics.median(self.samples[contestant])

    def ratio(self, other: str) -> float:
        """How much better the subject is than another; above 1 is better, whatever the metric that can be judged."""
        pairs = zip(self.samples[self.subject], self.samples[other])
        ratios = (
            _quotient(own, others) if self.metric.more_is_better else _quotient(others, own) for own, others in pairs
        )
        return statistics.median(ratios)


def _quotient(dividend: float, divisor: float) -> float:
    # Where the clock or the page is too coarse to tell something from nothing.
    return dividend / divisor if divisor else float("inf")


def rows_of(trial: Trial, results: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Row]:
    """The rows that a trial gives.

    Args:
        results: by contestant, what its workload returned in each round.
    """
    return [
        Row(
            trial.name,
            trial.table,
            metric,
            {
                contestant: [result[metric.key] for result in rounds]
                for contestant, rounds in results.items()
                if metric.key in rounds[0]
            },
        )
        for metric in trial.metrics
    ]


def as_markdown(rows: Sequence[Row]) -> str:
    """A table for each kind of trial, and what to know to read them."""
    tables = [_table(TABLES[key], [row for row in rows if row.table == key]) for key in TABLES]
    return "\n\n".join([EXPLANATION, *filter(None, tables)]) + f"\n\n{_machine_line()}\n"


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """The rows in which Dante's client is not beaten, or a connection takes more memory than it may."""
    behind = [
        f"{row.metric.title}: {row.ratio(DANTE):.2f} of {DANTE}{_proxy_share(row, rows)}"
        for row in rows
        if row.metric.judged and DANTE in row.samples and row.ratio(DANTE) <= 1
    ]
    heavy = [
        f"{row.metric.title}: {row.median(row.subject):.1f} KiB, more than {MEMORY_BAR_KIB}"
        for row in rows
        if row.table == "memory" and row.median(row.subject) > MEMORY_BAR_KIB
    ]
    return behind + heavy


def _proxy_share(row: Row, rows: Sequence[Row]) -> str:
    for busy in rows:
        if (busy.name, busy.metric.key) == (row.name, BUSY):
            with_own, with_other = busy.median(busy.subject), busy.median(DANTE)
            return f"; the proxy was busy {with_own:.0f} % of the time, with {DANTE} {with_other:.0f} %"
    return ""


def _table(title: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row.samples))
    others = [name for name in columns if name != rows[0].subject]
    heading = ["", "unit", *columns, *(f"vs {name}" for name in others)]
    lines = [heading, ["---", "---", *("--:" for _ in heading[2:])], *(_cells(row, columns, others) for row in rows)]
    return f"**{title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row, columns: Sequence[str], others: Sequence[str]) -> list[str]:
    values = [_number(row.median(name)) if name in row.samples else "–" for name in columns]
    ratios = [f"{row.ratio(name):.2f}" if row.metric.judged and name in row.samples else "–" for name in others]
    return [row.metric.title, row.metric.unit, *values, *ratios]


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **{name: version(name) for name in ("gssapi", "PySocks", "wrapt")},
    }


def _machine_line() -> str:
    return "Measured on: " + ", ".join(f"{name} {value}" for name, value in _machine().items()) + "."


def as_data(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, samples included."""
    return {"on": _machine(), "rows": [_row_data(row) for row in rows]}


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "table": row.table,
        "title": row.metric.title,
        "unit": row.metric.unit,
        "more_is_better": row.metric.more_is_better,
        "median": {name: row.median(name) for name in row.samples},
        "ratio": {name: row.ratio(name) for name in row.samples if row.metric.judged and name != row.subject},
        "samples": row.samples,
    }
