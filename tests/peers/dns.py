"""A DNS server on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import dns.message
import dns.query
import dns.rdatatype

from gsssocks.testing._daemon import Daemon, Watchdog
from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from types import TracebackType

_START_LIMIT_SECONDS = 30.0


class DNSServer:
    """dnsmasq on 127.0.0.1, by UDP and TCP, that knows nothing but what it is told.

    Args:
        names: Addresses by name.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def __enter__(self) -> DNSServer:
        self._watchdog = Watchdog("gsssocks-dns-")
        reserved = ReservedPort("127.0.0.1", udp=True)
        self.port = reserved.number
        program = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert program is not None, "dnsmasq is not installed: tests/run installs it"
        command = [
            program,
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            f"--port={self.port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            "--no-daemon",
            *(f"--host-record={name},{address}" for name, address in self._names.items()),
        ]
        reserved.release()
        self._daemon = Daemon(
            self._watchdog,
            "dnsmasq",
            command,
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._await_answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._daemon.stop()
        self._watchdog.close()

    def _await_answer(self) -> None:
        query = dns.message.make_query(next(iter(self._names)), dns.rdatatype.A)
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        while True:
            try:
                dns.query.tcp(query, "127.0.0.1", port=self.port, timeout=_START_LIMIT_SECONDS)
            except OSError:
                assert self._daemon.running(), "dnsmasq did not start"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            else:
                return
