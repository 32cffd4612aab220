"""Getting gsssocks into programs that nobody may edit: the environment of one command, or a whole Python
environment."""

from __future__ import annotations

import os
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from ._evident import FALSE
from ._startup import CHILDREN, INJECT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FOLDER", "environment", "hook_paths", "install_hook", "remove_hook"]

FOLDER = Path(__file__).with_name("_inject")
"""What has to be in PYTHONPATH: the folder of our sitecustomize."""
# Does nothing, and imports nothing, unless the environment asks. What it does then is all here: it has to stop the
# program also where gsssocks has been uninstalled and the hook has been left behind.
_HOOK_BODY = """
import sys
try:
    from gsssocks._startup import start
except Exception as error:
    try:
        sys.stderr.write(f"gsssocks: cannot be imported by {sys.executable}: {error}\\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass
    if os.environ["GSSSOCKS_INJECT"] != "warn":
        os._exit(78)
else:
    start()
"""
_HOOK = f"import os; os.environ.get('GSSSOCKS_INJECT', '').lower() in {('', *FALSE)} or exec({_HOOK_BODY!r})\n"
# Sorts behind what other packages put there: editable installs have to be on the path first.
_HOOK_NAME = "zz_gsssocks"
# Python 3.15 and later call what `.start` names, and ignore the line of the `.pth` beside it (PEP 829). They tell of an
# error there, and go on: so it names a module that needs nothing else, which ends the process itself.
_HOOK_FILES = {
    f"{_HOOK_NAME}.py": f"def start():\n    {_HOOK}",
    f"{_HOOK_NAME}.start": f"{_HOOK_NAME}:start\n",
    f"{_HOOK_NAME}.pth": _HOOK,
}


def environment(
    base: Mapping[str, str], settings: Mapping[str, str], *, children: bool = True, warn: bool = False
) -> dict[str, str]:
    """The environment in which a Python program, and by choice its children, starts with gsssocks installed.

    Args:
        base: the environment to start from.
        settings: `GSSSOCKS_…` variables to set.
        children: whether programs started by the program are injected as well.
        warn: whether to run without a proxy, with a warning, if the settings turn out wrong.

    Raises:
        ValueError: Python would not find what starts gsssocks there, and the program would run past the proxy.
    """
    if PathFinder.find_spec("sitecustomize", [str(FOLDER)]) is None:
        raise ValueError(f"{FOLDER} has no sitecustomize: this installation of gsssocks is not whole; install it anew")
    if os.pathsep in str(FOLDER):
        raise ValueError(
            f"{FOLDER} cannot stand in PYTHONPATH, which {os.pathsep!r} divides; install gsssocks elsewhere"
        )
    path = [str(FOLDER), *filter(None, [base.get("PYTHONPATH")])]
    return {
        **base,
        **settings,
        INJECT: "warn" if warn else "1",
        CHILDREN: "1" if children else "0",
        "PYTHONPATH": os.pathsep.join(path),
    }


def hook_paths() -> list[Path]:
    """Where the files of this Python environment's hook are, or would be."""
    folder = Path(sysconfig.get_path("purelib"))
    return [folder / name for name in _HOOK_FILES]


def install_hook() -> None:
    """Writes the hook: every program of this Python environment starts with gsssocks if `GSSSOCKS_INJECT` is set.

    Raises:
        OSError: the folder cannot be written to.
    """
    for path in hook_paths():
        path.write_text(_HOOK_FILES[path.name], encoding="utf-8")


def remove_hook() -> list[Path]:
    """Removes the hook.

    Returns:
        those of its files that were there.

    Raises:
        OSError: one cannot be removed.
    """
    # In the opposite order: no file ever names one that is gone.
    there = [path for path in reversed(hook_paths()) if path.exists()]
    for path in there:
        path.unlink()
    return there
