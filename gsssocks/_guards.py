"""Guards keep code that goes past a tunnelled socket's methods from putting bare octets on the wire.

Such code calls those methods unbound, or has the descriptor: `os.write`, OpenSSL, a child process, another socket
object. A guard is a wrapper of ours around what it calls. Guards stand as long as there is a tunnel, however it came
about, and whatever has become of `install()`; a program without tunnels keeps the very functions it has. Once there
has been a tunnel, they stay until nothing is installed either: it is seldom the last one.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

from ._ledger import Ledger, on_import
from ._libraries import LIBRARIES, PROXIES_OF_THE_ENVIRONMENT, STANDARD_LIBRARY

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from ._ledger import Wrapper

__all__ = ["patched", "references", "stand_for", "stand_while_installed", "wrap"]

_ledger = Ledger(often=True)
_tunnelled: set[weakref.ref[object]] = set()
_installed = False
_watched: set[str] = set()
_imported: set[str] = set()
_covered: dict[str, ModuleType] = {}

_lock = threading.RLock()
_reviewer: int | None = None
"""The thread that has the lock, and may come by again: the last tunnel can end whenever an object does."""
_due = False


def stand_for(tunnelled: object) -> None:
    """Has the guards stand as long as an object lives."""
    _tunnelled.add(weakref.ref(tunnelled, _gone))
    _review()


def stand_while_installed(settings: object | None) -> None:
    """Has the guards of libraries that would connect past what is installed stand, and all others from the first tunnel
    on; None is nothing."""
    global _installed
    _installed = settings is not None
    _review()


def patched() -> tuple[str, ...]:
    """What is wrapped, by name."""
    return _ledger.names


def references() -> tuple[str, ...]:
    """What other modules had taken of that before, by their own names for it."""
    return tuple(_ledger.references)


def wrap(owner: Any, name: str, wrapper: Wrapper) -> None:
    """For whoever covers a library: `Ledger.wrap`, for as long as the guards stand."""
    _ledger.wrap(owner, name, wrapper)


def _gone(reference: weakref.ref[object]) -> None:
    _tunnelled.discard(reference)
    if not _tunnelled and not sys.is_finalizing():
        _review(wait=False)


def _review(*, wait: bool = True) -> None:
    """Puts the guards up or takes them away, as things are.

    Args:
        wait: while another thread is at it. Where that could wait for us, it is told to do it again instead.
    """
    global _due, _reviewer
    _watch()
    _due = True
    while _due and _reviewer != threading.get_ident() and _lock.acquire(blocking=wait):
        _reviewer = threading.get_ident()
        try:
            _due = False
            _put_up_or_take_away()
        finally:
            _reviewer = None
            _lock.release()


def _watch() -> None:
    """Notes which of the libraries to cover are imported, and has that noted of the others as soon as they are."""
    for name in [name for name in _wanted() if name not in _watched]:
        if not _is_half_imported(name):
            on_import(name, _note_imported)
            _watched.add(name)


def _is_half_imported(name: str) -> bool:
    """Whether a module is one that this thread is importing: there is nothing in it to cover yet, but next time."""
    module = sys.modules.get(name)
    if not _is_initializing(module):
        return False
    importlib.import_module(name)  # waits for another thread that is importing it
    return _is_initializing(module)


def _is_initializing(module: ModuleType | None) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _note_imported(library: ModuleType) -> None:
    name = library.__name__
    # Another thread may be in the middle of it, and would wait for us if we had the lock.
    importlib.import_module(name)
    _imported.add(name)
    if name in _watched:
        _review()


def _wanted() -> Mapping[str, str]:
    """The libraries to cover now, and what covers them."""
    always = {**LIBRARIES, **PROXIES_OF_THE_ENVIRONMENT}
    if _tunnelled:
        return {**always, **STANDARD_LIBRARY}
    return always if _installed else {}


def _put_up_or_take_away() -> None:
    wanted = _wanted()
    if not wanted:
        _covered.clear()
        _ledger.restore()
        return
    for name in _imported & wanted.keys():
        library = sys.modules.get(name)
        if library is not None and _covered.get(name) is not library:
            _covered[name] = library
            importlib.import_module(wanted[name]).cover(library)
    _ledger.cover_references()


def _after_fork_in_child() -> None:
    """Only the thread that called fork() lives on here: whatever lock another one holds is never released."""
    global _lock, _reviewer
    _lock, _reviewer = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
