"""microsocks, a small SOCKS 5 server that knows user names and passwords (RFC 1929), and no GSS-API."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from gsssocks.testing._daemon import Daemon, Watchdog
from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from types import TracebackType

_START_LIMIT_SECONDS = 20.0


class Microsocks:
    """microsocks on 127.0.0.1, for one user.

    Args:
        user, password: the user; without one, everybody.

    Raises:
        RuntimeError: it is not installed, or does not start.
    """

    host = "127.0.0.1"

    def __init__(self, user: str | None = None, password: str | None = None) -> None:
        self._user, self._password = user, password

    def __enter__(self) -> Microsocks:
        program = shutil.which("microsocks")
        if program is None:
            raise RuntimeError("microsocks is not installed; tests/run installs it")
        self._watchdog = Watchdog("gsssocks-microsocks-")
        self._reserved = ReservedPort(self.host)
        self.port = self._reserved.number
        command = [program, "-i", self.host, "-p", str(self.port)]
        if self._user is not None and self._password is not None:
            command += ["-u", self._user, "-P", self._password]
        self._daemon = Daemon(
            self._watchdog, "microsocks", command, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._await_answer()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._daemon.stop()
        self._reserved.release()
        self._watchdog.close()

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        while True:
            try:
                socket.create_connection((self.host, self.port)).close()
            except OSError:
                if time.monotonic() > deadline or not self._daemon.running():
                    raise RuntimeError("microsocks did not start") from None
                time.sleep(0.02)
            else:
                return
