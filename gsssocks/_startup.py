"""What runs before the first line of a program that `gsssocks run` or the `.pth` file has injected us into.

It decides fail-closed: a program whose operator demanded a proxy does not start without one. It imports as little as
it can: what gevent and its like have to patch first (ssl, asyncio) is not loaded by us, and a program that never
imports `socket`, without which it makes no connection, starts almost as fast as without us.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from ._evident import evidently_right, says_no
from ._first_import import wait_for
from ._libraries import LIBRARIES, PROXIES_OF_THE_ENVIRONMENT

# Not from `typing`, whose import takes as long as the rest of a small program's start; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

__all__ = ["CHILDREN", "EX_CONFIG", "INJECT", "start"]

INJECT = "GSSSOCKS_INJECT"
"""Environment variable that asks for injection: "1", or "warn" to go on without a proxy, with a warning, if it
fails."""
CHILDREN = "GSSSOCKS_CHILDREN"
"""Environment variable: "0" keeps the injection from the children of the program."""
EX_CONFIG = 78
"""Exit status for a set-up that cannot work (sysexits.h)."""

_NEEDED = ("socks", "wrapt")
_NEEDED_TO_CONNECT = "gssapi"

_started = False


def start() -> None:
    """Installs the patch if the environment asks for it: now; or if nothing can be wrong with what it says, as soon as
    the program imports `socket`, `threading`, or what has to do with them. May be called more than once: `.pth` and
    sitecustomize both do.

    Never raises: site would print the error and let the program run on, past the proxy. Ends the process instead.
    """
    global _started
    asked = os.environ.get(INJECT, "")
    if says_no(asked) or _started:
        return
    _started = True
    if says_no(os.environ.get(CHILDREN) or "1"):
        del os.environ[INJECT]
    # As it is now: what the program makes of its environment later is not the operator's word.
    environ = dict(os.environ)
    try:
        if _may_wait(environ):
            packages = {"gsssocks", *_not_before()}
            wait_for("socket", or_before=packages, call=lambda: _install_or_refuse(environ, asked))
        else:
            _install(environ)
    except Exception as error:  # noqa: BLE001  # whatever it is, the program must not run past the proxy
        _refuse(error, asked)


def _may_wait(environ: Mapping[str, str]) -> bool:
    if not sys.modules.keys().isdisjoint(("socket", *_not_before())):
        return False
    return evidently_right(environ) and all(map(_is_there, (*_NEEDED, _NEEDED_TO_CONNECT)))


def _not_before() -> set[str]:
    """What must not be imported before the patch is there: `threading`, since another thread might use `socket` while
    it is being made; and what imports one of the two and is imported, or covered, by the patch."""
    libraries = {library.partition(".")[0] for library in LIBRARIES}
    return {"threading", "logging", *_NEEDED, *libraries, *PROXIES_OF_THE_ENVIRONMENT}


def _is_there(package: str) -> bool:
    # As importlib.util.find_spec, which would have to be imported.
    return any(finder.find_spec(package, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))


def _install_or_refuse(environ: Mapping[str, str], asked: str) -> None:
    try:
        _install(environ)
    except BaseException as error:  # noqa: BLE001  # after an interrupt, too, it could import an unpatched `socket`
        _refuse(error, asked, "the program ends here")


def _install(environ: Mapping[str, str]) -> None:
    _import_wrapt()
    if not _is_there(_NEEDED_TO_CONNECT):
        # Whether it can be loaded would take time to tell: that is for the first connection.
        raise ModuleNotFoundError(f"No module named {_NEEDED_TO_CONNECT!r}: pip install gssapi")
    from ._config import Settings
    from ._patch import activate

    activate(Settings.load(environ=environ))


def _import_wrapt() -> None:
    """Imports wrapt without what it loads and hardly ever needs: asyncio, and with it ssl; importlib.metadata, which
    takes longer than all the rest. Stand-ins load these when they are used."""
    if "wrapt" in sys.modules:
        return
    standins = {name: _standin(name) for name in ("asyncio", "importlib.metadata") if name not in sys.modules}
    sys.modules.update(standins)
    try:
        import_module("wrapt")
    finally:
        for name in standins:
            del sys.modules[name]
    if "importlib.metadata" in standins:
        # wrapt asks `importlib` for it, where an import would have put it, and will.
        vars(sys.modules["importlib"])["metadata"] = standins["importlib.metadata"]


def _standin(name: str) -> ModuleType:
    standin = type(sys)(name)
    standin.__getattr__ = lambda attribute: getattr(import_module(name), attribute)  # type: ignore[method-assign]
    return standin


def _refuse(error: BaseException, asked: str, outcome: str = "the program is not started") -> None:
    _say(str(error) or type(error).__name__)
    if asked == "warn":
        _say(f"{INJECT}=warn: going on without a proxy")
        return
    _say(f"{outcome}; {INJECT}=warn would have it go on without a proxy")
    os._exit(EX_CONFIG)


def _say(message: str) -> None:
    try:
        sys.stderr.write(f"gsssocks: {message}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        return  # standard error is closed, or full: no reason to let the program run past the proxy
