"""How busy other processes are, as Linux tells."""

from __future__ import annotations

from pathlib import Path

__all__ = ["cpu_seconds_by_process"]

_PROCESSES = Path("/proc")
_GROUP = 2  # among what follows the command's name: state, parent, process group (proc(5))


def cpu_seconds_by_process(group: int) -> dict[int, float]:
    """CPU time so far of each process of a group, by the process's number."""
    return {
        int(process.name): _cpu_seconds(process)
        for process in _PROCESSES.iterdir()
        if process.name.isdecimal() and _group(process) == group
    }


def _group(process: Path) -> int | None:
    try:
        # The command's name, in parentheses, may hold anything, parentheses and spaces included.
        _, _, rest = (process / "stat").read_text().rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None  # it has ended meanwhile
    return int(rest.split()[_GROUP])


def _cpu_seconds(process: Path) -> float:
    # In nanoseconds: `stat` counts in hundredths of a second, too coarse for a run of less than one.
    return int((process / "schedstat").read_text().split()[0]) / 1e9
