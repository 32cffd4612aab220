"""Which commands start Python in such a way that it does not hear the environment that asks for gsssocks, and which
start something else."""

from __future__ import annotations

import os
import shutil
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

__all__ = ["deaf", "foreign"]

_LONGEST_LINE = 4096
_ELF = b"\x7fELF"
_SHELLS = ("bash", "busybox", "dash", "ksh", "sh", "zsh")
_IGNORING = ("I", "E", "S")
_PYTHON_OPTIONS = ("W", "X", "c", "m", "check-hash-based-pycs", "jit")
"""Options of Python and PyPy that take an argument."""
_REST_IS_THE_PROGRAMS_OWN = ("c", "m")
_ENV_OPTIONS = ("u", "unset", "C", "chdir", "a", "argv0", "S", "split-string")
_SPLIT = ("S", "split-string")


class _Launcher(NamedTuple):
    """A command that starts another one, which its arguments name.

    Attributes:
        options: those that take an argument.
        operands: arguments of its own before the command.
    """

    options: Sequence[str]
    operands: int = 0


# Of GNU coreutils and util-linux.
_LAUNCHERS = {
    "ionice": _Launcher(("c", "class", "n", "classdata", "p", "pid", "P", "pgid", "u", "uid")),
    "nice": _Launcher(("n", "adjustment")),
    "nohup": _Launcher(()),
    "setsid": _Launcher(()),
    "stdbuf": _Launcher(("i", "input", "o", "output", "e", "error")),
    "timeout": _Launcher(("k", "kill-after", "s", "signal"), operands=1),
}


def deaf(command: Sequence[str], folder: str) -> str | None:
    """What in `command` makes Python ignore the environment by which gsssocks gets in, if anything does.

    What starts another command is looked through, as far as it leaves its arguments as they are: a shell is not.

    Args:
        command: a program and its arguments; where it is a script, its first line counts, too.
        folder: what has to be in PYTHONPATH.
    """
    lost, command = _run_in_the_end(command, folder)
    if not command or not _is_python(command[0]):
        return None
    options, _ = _parsed(command[1:], _PYTHON_OPTIONS, last=_REST_IS_THE_PROGRAMS_OWN)
    return lost or next((f"-{option}" for option, _ in options if option in _IGNORING), None)


def foreign(command: Sequence[str], folder: str) -> str | None:
    """The machine code that `command` starts, if it is no Python interpreter by its name: its connections are its own
    affair. None, too, for a shell, which makes none, and for what cannot be read.

    Args:
        command, folder: as for `deaf`.
    """
    _, command = _run_in_the_end(command, folder)
    path = shutil.which(command[0]) if command else None
    if path is None or not _first_line(path).startswith(_ELF):
        return None
    # A link may bear another name.
    known = any(_is_python(name) or os.path.basename(name) in _SHELLS for name in (path, os.path.realpath(path)))
    return None if known else command[0]


def _run_in_the_end(command: Sequence[str], folder: str) -> tuple[str | None, Sequence[str]]:
    """The same as `_started`; of a script, its interpreter."""
    lost, command = _started(command, folder)
    interpreted = _interpreted(command) if command and not _is_python(command[0]) else ()
    if not interpreted:
        return lost, command
    lost_there, command = _started(interpreted, folder)
    return lost or lost_there, command


def _is_python(program: str) -> bool:
    return os.path.basename(program).startswith(("python", "pypy"))


def _started(command: Sequence[str], folder: str) -> tuple[str | None, Sequence[str]]:
    """What is started in the end, and what has taken `folder` from its environment on the way."""
    lost = None
    while command:
        name = os.path.basename(command[0])
        if name == "env":
            lost_here, command = _started_by_env(command[1:], folder)
            lost = lost or lost_here
        elif name in _LAUNCHERS:
            launcher = _LAUNCHERS[name]
            _, operands = _parsed(command[1:], launcher.options)
            command = operands[launcher.operands :]
        else:
            break
    return lost, command


def _started_by_env(arguments: Sequence[str], folder: str) -> tuple[str | None, Sequence[str]]:
    options, operands = _parsed(arguments, _ENV_OPTIONS, last=_SPLIT)
    lost = None
    for option, value in options:
        if option in _SPLIT:
            # In its place stand its words, which may be options as well.
            lost_there, command = _started_by_env([*value.split(), *operands], folder)
            return lost or lost_there, command
        if "ignore-environment".startswith(option):
            lost = "env -i"
        elif option in ("u", "unset") and value == "PYTHONPATH":
            lost = "env -u PYTHONPATH"
    remaining = deque(operands)
    if remaining and remaining[0] == "-":
        remaining.popleft()
        lost = "env -"
    while remaining and "=" in remaining[0]:
        name, _, value = remaining.popleft().partition("=")
        if name == "PYTHONPATH" and folder not in value.split(os.pathsep):
            lost = lost or "env PYTHONPATH="
    return lost, list(remaining)


def _parsed(
    arguments: Sequence[str], taking: Sequence[str], last: Container[str] = ()
) -> tuple[list[tuple[str, str]], list[str]]:
    """Options, each with its argument or "", and the operands, as getopt() tells them apart when options come first.

    Args:
        taking: the options that take an argument. The name of a long one may be given in part.
        last: options after which all else are operands.
    """
    options: list[tuple[str, str]] = []
    remaining = deque(arguments)
    while remaining and remaining[0].startswith("-") and remaining[0] != "-":
        word = remaining.popleft()
        if word == "--":
            break
        for option, value in _options(word, taking):
            argument = value
            if argument is None:
                argument = remaining.popleft() if remaining else ""
            options.append((option, argument))
        if options[-1][0] in last:
            break
    return options, list(remaining)


def _options(word: str, taking: Sequence[str]) -> list[tuple[str, str | None]]:
    """The options of one word, such as -Es; None where an argument is to follow in the next one."""
    if word.startswith("--"):
        name, equals, value = word[2:].partition("=")
        option = next((long for long in taking if len(long) > 1 and long.startswith(name)), name)
        return [(option, value if equals or option not in taking else None)]
    options: list[tuple[str, str | None]] = []
    for position, letter in enumerate(word[1:], 2):
        if letter in taking:
            return [*options, (letter, word[position:] or None)]
        options.append((letter, ""))
    return options


def _interpreted(command: Sequence[str]) -> Sequence[str]:
    """What the kernel makes of a command that is a script: its first line has the interpreter, and one argument for
    it. Nothing for what is no script."""
    path = shutil.which(command[0])
    line = _first_line(path) if path is not None else b""
    return [*os.fsdecode(line[2:]).strip().split(None, 1), *command] if line.startswith(b"#!") else ()


def _first_line(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.readline(_LONGEST_LINE)
    except OSError:
        return b""
