"""Getting gsssocks into programs that nobody may edit: the environment of one command, or a whole Python
environment."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from ._startup import CHILDREN, INJECT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["environment", "hook_path", "install_hook", "remove_hook"]

_FOLDER = Path(__file__).with_name("_inject")
# Sorts behind what other packages put there: editable installs have to be on the path first. Does nothing, and imports
# nothing, unless the environment asks.
_HOOK = 'import os; os.environ.get("GSSSOCKS_INJECT") and __import__("gsssocks._startup", fromlist=["start"]).start()\n'
_HOOK_NAME = "zz_gsssocks.pth"


def environment(
    base: Mapping[str, str], settings: Mapping[str, str], *, children: bool = True, warn: bool = False
) -> dict[str, str]:
    """The environment in which a Python program, and by choice its children, starts with gsssocks installed.

    Args:
        base: the environment to start from.
        settings: `GSSSOCKS_…` variables to set.
        children: whether programs started by the program are injected as well.
        warn: whether to run without a proxy, with a warning, if the settings turn out wrong.
    """
    path = [str(_FOLDER), *filter(None, [base.get("PYTHONPATH")])]
    return {
        **base,
        **settings,
        INJECT: "warn" if warn else "1",
        CHILDREN: "1" if children else "0",
        "PYTHONPATH": os.pathsep.join(path),
    }


def hook_path() -> Path:
    """Where the hook of this Python environment is, or would be."""
    return Path(sysconfig.get_path("purelib")) / _HOOK_NAME


def install_hook() -> Path:
    """Writes the hook: every program of this Python environment starts with gsssocks if `GSSSOCKS_INJECT` is set.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = hook_path()
    path.write_text(_HOOK, encoding="utf-8")
    return path


def remove_hook() -> bool:
    """Removes the hook; False if there was none.

    Raises:
        OSError: it cannot be removed.
    """
    path = hook_path()
    if not path.exists():
        return False
    path.unlink()
    return True
