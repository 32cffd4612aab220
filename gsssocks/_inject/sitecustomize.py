"""Starts gsssocks, then whatever sitecustomize the environment had.

`gsssocks run` puts this folder in front of PYTHONPATH.
"""

import os
import sys


def _start() -> None:
    asked = os.environ.get("GSSSOCKS_INJECT", "")
    # `gsssocks._evident.FALSE`, which cannot be imported yet.
    if asked.lower() in ("", "0", "false", "no", "off"):
        return
    try:
        from gsssocks._startup import start
    except Exception as error:  # noqa: BLE001  # site would print it, and let the program run past the proxy
        _say(f"cannot be imported by {sys.executable}: {error}")
        if asked == "warn":
            return
        _say("install gsssocks there; the program is not started")
        os._exit(78)
    start()


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"gsssocks: {message}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return


def _chain() -> None:
    """Imports the sitecustomize that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if os.path.abspath(entry or os.curdir) != here]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.path[:] = path
        if ours is not None:
            sys.modules.setdefault("sitecustomize", ours)


_start()
_chain()
