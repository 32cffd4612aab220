"""A fresh process, and what became of it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["EX_CONFIG", "PROXIED", "ROOT", "Env", "clean", "fetched", "gsssocks", "inside", "serving", "start"]

ROOT = Path(__file__).parents[2]
EX_CONFIG = 78
PROXIED = "import sys, socket; print('gsssocks' in sys.modules and hasattr(socket.socket.connect, '__wrapped__'))"
"""A program that says whether it is patched, and loads nothing of gsssocks for it."""
_LIMIT_SECONDS = 60
_FOREIGN = ("GSSSOCKS_", "PIP_", "PYTHON", "KRB5")

Env = dict[str, str]


def clean(base: Mapping[str, str]) -> Env:
    """An environment without a proxy, without Kerberos, and without anything that concerns Python."""
    return {
        name: value
        for name, value in base.items()
        if not name.startswith(_FOREIGN) and not name.upper().endswith("_PROXY")
    }


def start(*command: str | Path, env: Mapping[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [str(word) for word in command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )


def gsssocks(
    *arguments: str | Path, env: Mapping[str, str], python: str | Path = sys.executable, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m gsssocks`."""
    return start(python, "-m", "gsssocks", *arguments, env=env, cwd=cwd)


def inside(
    *arguments: str | Path, env: Mapping[str, str], options: tuple[str, ...] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments under `gsssocks run`.

    Args:
        options: those of `gsssocks run`.
    """
    return gsssocks("run", *options, "--", sys.executable, *arguments, env=env, cwd=cwd)


@contextmanager
def serving(*command: str | Path, env: Mapping[str, str], cwd: Path, sign: str) -> Iterator[list[str]]:
    """A server under `gsssocks run`; what it said on standard error up to a line with `sign`, and in the end, all."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gsssocks", "run", "--", *map(str, command)],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    with process:
        try:
            for line in process.stderr:
                said.append(line)
                if sign in line:
                    break
            else:
                raise AssertionError(f"the server ended: {''.join(said)}")
            yield said
        finally:
            process.terminate()
            said.extend(process.stderr)


def fetched(url: str) -> bytes:
    """What a plain client, in a process of its own, is answered."""
    program = "import sys, urllib.request as r; sys.stdout.buffer.write(r.urlopen(sys.argv[1], timeout=30).read())"
    command = [sys.executable, "-c", program, url]
    return subprocess.run(
        command, env=clean(os.environ), capture_output=True, check=True, timeout=_LIMIT_SECONDS
    ).stdout
