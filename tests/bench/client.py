"""One run of one client, the process that is measured: `python -m tests.bench.client TASK`, with a `Task` in JSON.

Clients differ only in what `socket.create_connection` leads to. Nothing of another client is imported.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
from dataclasses import dataclass, field
from typing import Any

from .workloads import WORKLOADS, Workload

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """What a client process is to do.

    Attributes:
        workload: name of a function in `workloads`, or in `ceiling`.
        options: its arguments.
        way: "plain" (also for Dante's client, which is preloaded), "gsssocks", "pysocks".
        proxy: for gsssocks a URL, for PySocks a port.
        bypass: connect directly although gsssocks is installed.
    """

    workload: str
    options: dict[str, Any] = field(default_factory=dict)
    way: str = "plain"
    proxy: str | int | None = None
    bypass: bool = False


def _run(task: Task) -> dict[str, float]:
    if task.way == "gsssocks":
        _use_gsssocks(task)
    elif task.way == "pysocks":
        _use_pysocks(task)
    return _workload(task.workload)(**task.options)


def _use_gsssocks(task: Task) -> None:
    import gsssocks

    assert isinstance(task.proxy, str)
    gsssocks.install(task.proxy, no_proxy=["127.0.0.0/8"] if task.bypass else [])


def _use_pysocks(task: Task) -> None:
    import socks

    if task.proxy is not None:
        socks.set_default_proxy(socks.SOCKS5, "127.0.0.1", task.proxy)
    # PySocks' own way of patching: https://github.com/Anorov/PySocks#monkeypatching
    socket.socket = socks.socksocket  # type: ignore[misc]


def _workload(name: str) -> Workload:
    if name in WORKLOADS:
        return WORKLOADS[name]
    from .ceiling import CEILINGS

    return CEILINGS[name]


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    _raise_descriptor_limit()
    sys.stdout.write(json.dumps(_run(Task(**json.loads(sys.argv[1])))))
