"""The command: `python -m tests.bench`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from .plan import FULL_SCALE, QUICK_SCALE, Trial, trials
from .report import Row, as_data, as_markdown, rows_of, shortfalls
from .stage import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> None:
    """Measures, and writes the tables to standard output."""
    arguments = _arguments()
    scale = QUICK_SCALE if arguments.quick else FULL_SCALE
    if arguments.rounds:
        scale = replace(scale, rounds=arguments.rounds)
    chosen = [trial for trial in trials(scale) if _wanted(trial, arguments.rows)]
    if not chosen:
        sys.exit("no trial has such a name: see --list")
    if arguments.list:
        sys.stdout.writelines(f"{trial.name}\n" for trial in chosen)
        return
    rows: list[Row] = []
    with Stage() as stage:
        for trial in chosen:
            rows += _measured(trial, stage, min(scale.rounds, trial.most_rounds or scale.rounds))
    sys.stdout.write(as_markdown(rows))
    sys.stderr.writelines(f"below the bar: {line}\n" for line in shortfalls(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_data(rows), indent=1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures gsssocks beside its rivals.")
    parser.add_argument("--quick", action="store_true", help="less of everything: a look, not a result")
    parser.add_argument("--rounds", type=int, help="runs of each client in each trial")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", default=["*"], help="only trials so named (fnmatch)")
    parser.add_argument("--list", action="store_true", help="name the trials and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too, every sample included")
    return parser.parse_args()


def _wanted(trial: Trial, patterns: Sequence[str]) -> bool:
    return any(fnmatch(trial.name, pattern) for pattern in patterns)


def _measured(trial: Trial, stage: Stage, rounds: int) -> list[Row]:
    contestants = trial.contestants(stage)
    results: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        sys.stderr.write(f"\r\033[K{trial.name}: round {number + 1} of {rounds}")
        for contestant in contestants:
            results[contestant.name].append(stage.run(contestant.task, contestant.env))
    sys.stderr.write("\r\033[K")
    return rows_of(trial, results)


if __name__ == "__main__":
    main()
