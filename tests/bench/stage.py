"""What the clients need around them: a realm, Dante, and the servers, each in a process of its own and started when
first asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gsssocks.testing import Realm
from tests.peers.dante import Dante, prefix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from .client import Task

__all__ = ["Stage"]

_CHECKOUT = Path(__file__).parents[2]
_RUN_LIMIT_SECONDS = 300


class Stage:
    """A context manager around all of it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._dantes: dict[str | None, Dante] = {}
        self._servers: dict[str, int] = {}

    def __enter__(self) -> Stage:
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="gsssocks-bench-")))
        self._realm = self._stack.enter_context(Realm())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def dante(self, enctype: str | None) -> Dante:
        """Dante with one protection level; None is without authentication."""
        if enctype not in self._dantes:
            self._dantes[enctype] = self._stack.enter_context(Dante(self._realm, enctype=enctype))
        return self._dantes[enctype]

    @property
    def target(self) -> int:
        """Port of source, sink and echo."""
        return self._server("servers")

    @property
    def gss_peer(self) -> int:
        """Port of the proxy that leaves the clock to the client."""
        return self._server("gsspeer")

    def preload(self, port: int, enctype: str) -> dict[str, str]:
        """The environment in which a program runs with Dante's own client.

        Args:
            port: the proxy's.
            enctype: the protection level, as Dante names it.
        """
        configuration = self._directory / f"socks-{port}-{enctype}.conf"
        configuration.write_text(f"""
errorlog: stderr
route {{
    from: 0.0.0.0/0 to: 0.0.0.0/0 via: localhost port = {port}
    protocol: tcp
    command: connect
    proxyprotocol: socks_v5
    method: gssapi
    gssapi.servicename: socks
    gssapi.enctype: {enctype}
}}
""")
        return {
            "LD_PRELOAD": str(prefix() / "lib" / "libdsocksd.so"),
            "SOCKS_CONF": str(configuration),
            # Otherwise it reaches the addresses of this machine without the proxy.
            "SOCKS_AUTOADD_LANROUTES": "no",
        }

    def run(self, task: Task, env: Mapping[str, str]) -> dict[str, float]:
        """Runs a client in a fresh process.

        Raises:
            RuntimeError: it failed; the message has what it wrote.
            subprocess.TimeoutExpired: it hangs.
        """
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.client", json.dumps(asdict(task))],
            cwd=_CHECKOUT,
            env={**self._env, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=_RUN_LIMIT_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"{task} ended with {done.returncode}:\n{done.stderr}")
        results: dict[str, float] = json.loads(done.stdout)
        return results

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, **self._realm.env}

    def _server(self, module: str) -> int:
        if module not in self._servers:
            self._servers[module] = self._start(module)
        return self._servers[module]

    def _start(self, module: str) -> int:
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", f"tests.bench.{module}"],
                cwd=_CHECKOUT,
                env=self._env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        # Leaving the process's context closes its standard input, at whose end it goes.
        assert process.stdout is not None
        return int(process.stdout.readline())
