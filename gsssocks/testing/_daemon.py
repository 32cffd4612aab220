"""Background programs of a test, which never outlive it: also not a test process killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The read returns with the line that close() writes, or at the end of the pipe, when no process holds it any more.
_WATCH = """
read -r line
for pidfile in "$1"/*.pid; do
    [ -e "$pidfile" ] && kill -s KILL -- "-$(cat "$pidfile")" 2>/dev/null
done
rm -rf -- "$1"
"""
# The shell writes its own number and then becomes the program: there is no moment in which it runs unrecorded.
_LAUNCH = 'echo $$ >"$0" && exec "$@"'


class Watchdog:
    """A tiny process that removes a private directory, and kills the daemons recorded in it, as soon as this one ends.

    Args:
        prefix: Begins the name of the directory.
    """

    def __init__(self, prefix: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=prefix))
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # Ctrl-C in a terminal goes to the whole group; the watchdog must be the last to end.
            start_new_session=True,
        )

    def close(self) -> None:
        """Remove the directory now. Its daemons are killed, if any is still recorded."""
        assert self._process.stdin is not None
        # A line, since a fork of this process may hold the pipe open.
        self._process.stdin.write(b"\n")
        self._process.stdin.close()
        self._process.wait()


class Daemon:
    """A program in a process group of its own, recorded in a watchdog's directory.

    Args:
        watchdog: Ends the program when this process dies.
        name: The record's file name, without ".pid".
        command: Program and arguments; it must stay in the foreground.
        env: Its whole environment.
        **popen: Further arguments of `subprocess.Popen`.
    """

    def __init__(
        self, watchdog: Watchdog, name: str, command: Sequence[str], *, env: Mapping[str, str], **popen: Any
    ) -> None:
        self._record = watchdog.directory / f"{name}.pid"
        launch = ["/bin/sh", "-c", _LAUNCH, str(self._record), *command]
        self.process: subprocess.Popen[bytes] = subprocess.Popen(
            launch, env=env, stdin=subprocess.DEVNULL, start_new_session=True, **popen
        )

    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End the program and all of its children, and wait for it."""
        if self.running():
            self.process.terminate()
        self.process.wait()
        self._kill_group()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._record.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
