"""What a client does while it is measured. Sockets come from `socket.create_connection`, whichever way that leads.

Each function returns its results by the metrics' keys. MB and GB are powers of ten.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import statistics
import time
from typing import TYPE_CHECKING, Callable

from .load import cpu_seconds_by_process
from .servers import DOWNLOAD, ECHO, UPLOAD, command

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["WORKLOADS", "Stopwatch", "Workload"]

Workload = Callable[..., "dict[str, float]"]

_HOST = "127.0.0.1"
_READ = 65536
_WARM_UP = 1 << 20
_MESSAGE = bytes(64)


class Stopwatch:
    """Time on the clock and CPU time of this process, from its creation to the call of `results`.

    Args:
        proxy: process group of the proxy, to tell how much of the time it was busy.
    """

    def __init__(self, proxy: int | None = None) -> None:
        self._proxy = proxy
        self._proxy_cpu = cpu_seconds_by_process(proxy) if proxy else {}
        self._cpu = _cpu_seconds()
        self._clock = time.perf_counter()

    def results(self, octets: int, messages: int = 0) -> dict[str, float]:
        """What it took to move so many octets, in so many messages."""
        elapsed = time.perf_counter() - self._clock
        cpu = _cpu_seconds() - self._cpu
        results = {
            "rate": octets / elapsed / 1e6,
            "cpu": cpu / octets * 1e9,
            "each": elapsed / max(messages, 1) * 1e6,
        }
        if self._proxy:
            results["proxy"] = self._busiest(self._proxy) / elapsed * 100
        return results

    def _busiest(self, group: int) -> float:
        # Dante relays a connection in one process, on one core at a time; the others only look on.
        now = cpu_seconds_by_process(group)
        return max(seconds - self._proxy_cpu.get(process, 0.0) for process, seconds in now.items())


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def download(port: int, octets: int, proxy: int) -> dict[str, float]:
    """Receives `octets` from the source, 64 KiB a call at most. `proxy` is its process group."""
    with socket.create_connection((_HOST, port)) as sock:
        _download(sock, _WARM_UP)
        watch = Stopwatch(proxy)
        _download(sock, octets)
        return watch.results(octets)


def _download(sock: socket.socket, octets: int) -> None:
    sock.sendall(command(DOWNLOAD, octets))
    _receive(sock, octets)


def _receive(sock: socket.socket, octets: int) -> None:
    while octets:
        piece = sock.recv(_READ)
        if not piece:
            raise ConnectionError(f"the connection ended {octets} octets early")
        octets -= len(piece)


def upload(port: int, octets: int, piece: int, proxy: int) -> dict[str, float]:
    """Sends `octets` to the sink, `piece` a call (which divides it), and waits for it to say that all are there.
    `proxy` is its process group."""
    with socket.create_connection((_HOST, port)) as sock:
        _upload(sock, _WARM_UP, piece)
        watch = Stopwatch(proxy)
        _upload(sock, octets, piece)
        return watch.results(octets)


def _upload(sock: socket.socket, octets: int, piece: int) -> None:
    data = bytes(piece)
    sock.sendall(command(UPLOAD, octets))
    for _ in range(octets // piece):
        sock.sendall(data)
    _receive(sock, 1)


def round_trip(port: int, messages: int) -> dict[str, float]:
    """Sends 64 octets and waits for them to come back, again and again."""
    with socket.create_connection((_HOST, port)) as sock:
        sock.sendall(command(ECHO))
        _echo(sock, messages // 10 + 1)
        watch = Stopwatch()
        _echo(sock, messages)
        return watch.results(messages * len(_MESSAGE), messages)


def _echo(sock: socket.socket, messages: int) -> None:
    for _ in range(messages):
        sock.sendall(_MESSAGE)
        _receive(sock, len(_MESSAGE))


def connect(port: int, connections: int) -> dict[str, float]:
    """Connects again and again, each time up to the granted request; milliseconds."""
    took = []
    # The first few fetch the ticket and load what is loaded on demand.
    for _ in range(3 + connections):
        begun = time.perf_counter()
        sock = socket.create_connection((_HOST, port))
        took.append(time.perf_counter() - begun)
        sock.close()
    return {"connect": statistics.median(took[3:]) * 1e3}


def idle_memory(port: int, connections: int) -> dict[str, float]:
    """Growth of the resident set, KiB a connection: at first, and after 64 KiB through each of them, both ways."""
    held = list(_connections(port, 20))
    before = _resident_kib()
    held += _connections(port, connections)
    untouched = _resident_kib()
    for sock in held:
        sock.sendall(bytes(_READ))
        _receive(sock, _READ)
    used = _resident_kib()
    return {"untouched": (untouched - before) / connections, "used": (used - before) / connections}


def _connections(port: int, count: int) -> Iterator[socket.socket]:
    for _ in range(count):
        sock = socket.create_connection((_HOST, port))
        sock.sendall(command(ECHO))
        yield sock


def _resident_kib() -> float:
    gc.collect()
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def flood_in(frame: int, count: int) -> dict[str, float]:
    """Receives `count` messages of `frame` octets each that the peer has wrapped before."""
    with _prepared(DOWNLOAD, frame, count) as sock:
        watch = Stopwatch()
        sock.sendall(b"g")
        _receive(sock, frame * count)
        return watch.results(frame * count, count)


def flood_out(frame: int, count: int) -> dict[str, float]:
    """Sends `count` messages of `frame` octets each, a call for each, to a peer that unwraps them afterwards."""
    data = bytes(frame)
    with _prepared(UPLOAD, frame, count) as sock:
        watch = Stopwatch()
        for _ in range(count):
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        _receive(sock, 1)
        results = watch.results(frame * count, count)
        _receive(sock, 1)
        return results


def _prepared(kind: bytes, frame: int, count: int) -> socket.socket:
    # The address is of no interest: `gsspeer` grants every request and is the target itself.
    sock = socket.create_connection((_HOST, 9))
    sock.sendall(command(kind, frame, count))
    _receive(sock, 1)
    return sock


def unproxied(port: int, batches: int) -> dict[str, float]:
    """Creating, connecting, sending and receiving where no proxy comes in; microseconds a call."""
    samples: dict[str, list[float]] = {"create": [], "connect": [], "send": [], "recv": []}
    _batch(port)
    for _ in range(batches):
        for key, value in _batch(port).items():
            samples[key].append(value)
    return {key: statistics.median(values) for key, values in samples.items()}


def _batch(port: int, sockets: int = 50, calls: int = 500) -> dict[str, float]:
    created, create = _timed(sockets, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    unconnected = iter(created)
    _, connecting = _timed(sockets, lambda: next(unconnected).connect((_HOST, port)))
    sock = created[0]
    # The echo server's answers are waiting when receiving is timed, and its work is not on the clock.
    sock.sendall(command(ECHO))
    _, send = _timed(calls, lambda: sock.send(_MESSAGE))
    while len(sock.recv(_READ, socket.MSG_PEEK)) < min(_READ, calls * len(_MESSAGE)):
        time.sleep(0.001)
    _, recv = _timed(calls, lambda: sock.recv(len(_MESSAGE)))
    for each in created:
        each.close()
    return {"create": create, "connect": connecting, "send": send, "recv": recv}


def _timed(times: int, call: Callable[[], object]) -> tuple[list[socket.socket], float]:
    begun = time.perf_counter()
    results = [call() for _ in range(times)]
    took = (time.perf_counter() - begun) / times * 1e6
    return [result for result in results if isinstance(result, socket.socket)], took


WORKLOADS: Mapping[str, Workload] = {
    function.__name__: function
    for function in (download, upload, round_trip, connect, idle_memory, flood_in, flood_out, unproxied)
}
