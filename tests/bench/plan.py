"""Which clients run which workload, and what is read off it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Callable

from .ceiling import FULL
from .client import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.peers.dante import Dante

    from .stage import Stage

    _TaskThrough = Callable[[Stage, Dante], Task]

__all__ = ["BUSY", "DANTE", "FULL_SCALE", "QUICK_SCALE", "TABLES", "Contestant", "Metric", "Scale", "Trial", "trials"]

GSSSOCKS = "gsssocks"
DANTE = "Dante's client"
PYSOCKS = "PySocks, unprotected"
GSSAPI = "GSS-API alone"

BUSY = "proxy"
"""Key of the metric that tells how much of the time the proxy was busy. Near 100 %, the rate is the proxy's own, and no
client's."""

LEVELS = ("integrity", "confidentiality")

TABLES: Mapping[str, str] = {
    "dante": "Through Dante on the loopback interface",
    "alone": "The client alone: the peer wraps before the clock starts and unwraps after it has stopped",
    "memory": "Resident memory of an idle connection",
    "patch": "A socket that is not proxied",
}


@dataclass(frozen=True)
class Scale:
    """How much each client does in one round."""

    octets: int
    messages: int
    connections: int
    idle: int
    batches: int
    rounds: int


FULL_SCALE = Scale(octets=128 << 20, messages=10000, connections=20, idle=500, batches=20, rounds=9)
QUICK_SCALE = Scale(octets=16 << 20, messages=2000, connections=5, idle=100, batches=5, rounds=3)


@dataclass(frozen=True)
class Metric:
    """One row of a table.

    Attributes:
        key: its name in the results of the workload.
        judged: whether more or less of it is better at all.
    """

    key: str
    title: str
    unit: str
    more_is_better: bool = False
    judged: bool = True


@dataclass(frozen=True)
class Contestant:
    """One column of a table: who does it, and how."""

    name: str
    task: Task
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A workload, run by each contestant in turn; the first one is compared with the others.

    Attributes:
        name: what `--rows` chooses by.
        table: a key of `TABLES`.
        contestants: starts what they need.
        most_rounds: where more would only take time.
    """

    name: str
    table: str
    metrics: Sequence[Metric]
    contestants: Callable[[Stage], Sequence[Contestant]]
    most_rounds: int | None = None


def trials(scale: Scale) -> Iterator[Trial]:
    """Everything there is to measure."""
    for level in LEVELS:
        yield from _through_dante(level, scale)
    for level in LEVELS:
        yield from _alone(level, scale)
    yield _memory(scale)
    yield _patch(scale)


def _through_dante(level: str, scale: Scale) -> Iterator[Trial]:
    octets = scale.octets
    confidential = level == "confidentiality"
    full = {"confidential": confidential, "frame": FULL, "count": octets // FULL}
    yield _race(
        f"download-{level}",
        level,
        _bulk_metrics("download", level),
        _bulk("download", octets=octets),
        Task("unwrap", full),
    )
    yield _race(
        f"upload-{level}",
        level,
        _bulk_metrics("upload", level),
        _bulk("upload", octets=octets, piece=65536),
        Task("wrap", full),
    )
    yield _race(
        f"upload-4k-{level}",
        level,
        _bulk_metrics("upload in 4 KiB writes", level),
        _bulk("upload", octets=octets // 4, piece=4096),
        Task("wrap", {"confidential": confidential, "frame": 4096, "count": octets // 4 // 4096}),
    )
    yield _race(
        f"round-trip-{level}",
        level,
        [Metric("each", f"round trip of 64 octets, {level}", "µs")],
        _on_target("round_trip", messages=scale.messages),
        Task("wrap_and_unwrap", {"confidential": confidential, "count": scale.messages}),
    )
    yield _race(
        f"connect-{level}",
        level,
        [Metric("connect", f"connect, up to the granted request, {level}", "ms")],
        _on_target("connect", connections=scale.connections),
    )


def _bulk_metrics(what: str, level: str) -> list[Metric]:
    return [
        Metric("rate", f"{what}, {level}", "MB/s", more_is_better=True),
        Metric("cpu", f"{what}, {level}: client's CPU time", "s/GB"),
        Metric(BUSY, f"{what}, {level}: the proxy is busy", "%", judged=False),
    ]


def _on_target(workload: str, **options: Any) -> _TaskThrough:
    return lambda stage, _: Task(workload, {"port": stage.target, **options})


def _bulk(workload: str, **options: Any) -> _TaskThrough:
    return lambda stage, proxy: Task(workload, {"port": stage.target, "proxy": proxy.process_group, **options})


def _race(name: str, level: str, metrics: Sequence[Metric], task: _TaskThrough, ceiling: Task | None = None) -> Trial:
    """All clients at a level through Dante, and GSS-API alone where it has a share in the workload."""

    def contestants(stage: Stage) -> list[Contestant]:
        protected, plain = stage.dante(level), stage.dante(None)
        entries = [
            *_protected(stage, task(stage, protected), level, protected.port),
            Contestant(PYSOCKS, replace(task(stage, plain), way="pysocks", proxy=plain.port)),
        ]
        return entries if ceiling is None else [*entries, Contestant(GSSAPI, ceiling)]

    return Trial(name, "dante", metrics, contestants)


def _protected(stage: Stage, task: Task, level: str, port: int) -> list[Contestant]:
    url = f"socks5h://localhost:{port}?protection={level}"
    return [
        Contestant(GSSSOCKS, replace(task, way="gsssocks", proxy=url)),
        Contestant(DANTE, task, stage.preload(port, level)),
    ]


def _alone(level: str, scale: Scale) -> Iterator[Trial]:
    for frame in (64, 1024, 4096, FULL):
        # As much work as a quarter of the bulk, but for small messages, where the number is what counts.
        count = min(scale.octets // 4 // frame, 2 * scale.messages)
        ceiling = {"confidential": level == "confidentiality", "frame": frame, "count": count}
        size = "a full message" if frame == FULL else f"a message of {frame} octets"
        tag = "full" if frame == FULL else frame
        for direction, workload, bare in (("receive", "flood_in", "unwrap"), ("send", "flood_out", "wrap")):
            yield _solo(
                f"{direction}-{tag}-{level}",
                level,
                Metric("each", f"{direction} {size}, {level}", "µs"),
                Task(workload, {"frame": frame, "count": count}),
                Task(bare, ceiling),
            )


def _solo(name: str, level: str, metric: Metric, task: Task, ceiling: Task) -> Trial:
    def contestants(stage: Stage) -> list[Contestant]:
        return [*_protected(stage, task, level, stage.gss_peer), Contestant(GSSAPI, ceiling)]

    return Trial(name, "alone", [metric], contestants)


def _memory(scale: Scale) -> Trial:
    metrics = [
        Metric("untouched", "connected, untouched", "KiB"),
        Metric("used", "after 64 KiB in each direction", "KiB"),
    ]

    def contestants(stage: Stage) -> list[Contestant]:
        task = Task("idle_memory", {"port": stage.target, "connections": scale.idle})
        return [
            *_protected(stage, task, "confidentiality", stage.dante("confidentiality").port),
            Contestant(PYSOCKS, replace(task, way="pysocks", proxy=stage.dante(None).port)),
        ]

    # Connecting that often takes Dante's client long, and the page counts hardly vary.
    return Trial("memory", "memory", metrics, contestants, most_rounds=3)


def _patch(scale: Scale) -> Trial:
    metrics = [
        Metric("create", "create", "µs"),
        Metric("connect", "connect", "µs"),
        Metric("send", "send 64 octets", "µs"),
        Metric("recv", "receive 64 octets", "µs"),
    ]

    def contestants(stage: Stage) -> list[Contestant]:
        task = Task("unproxied", {"port": stage.target, "batches": scale.batches})
        installed = replace(task, way="gsssocks", proxy="socks5h://localhost:1080", bypass=True)
        return [
            Contestant("gsssocks.install()", installed),
            Contestant("unpatched", task),
            Contestant("PySocks' class in its place", replace(task, way="pysocks")),
        ]

    return Trial("patch", "patch", metrics, contestants)
