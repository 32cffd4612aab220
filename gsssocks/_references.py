"""What modules took of others, or of `socket.socket`, before those were patched: `from socket import getaddrinfo` binds
the function, `_connect = socket.socket.connect` the method.

Only the names of modules are looked at, in their namespaces: no attribute is asked for, so that a module that is loaded
lazily stays unloaded. What a class, a closure or a container holds is not found.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["exchange"]

_UNDERLYING = ("_socket", "posix")
"""What `socket` and `os` are made of: whoever asks there means the C function."""
_OWN = __name__.partition(".")[0]


def exchange(pairs: Iterable[tuple[object, object]], without: dict[str, tuple[int, int]] | None = None) -> list[str]:
    """Has every name of a module that stands for the first of a pair stand for the second, except in this package.

    Args:
        without: namespaces that had none at their size, for callers who come often, always with the same functions:
            they are not searched again until they grow. A name that is only bound anew there is not found then.

    Returns:
        the names, as `module.name`.
    """
    instead = {id(old): new for old, new in pairs}
    exchanged: list[str] = []
    # Copies: other threads may import, and assign.
    for name, module in list(sys.modules.items()) if instead else ():
        if name in _UNDERLYING or name.partition(".")[0] == _OWN:
            continue
        namespace = _namespace(module)
        size = id(namespace), len(namespace)
        if without is not None and without.get(name) == size:
            continue
        if instead.keys().isdisjoint(map(id, list(namespace.values()))):  # in C, for the most have none
            if without is not None:
                without[name] = size
            continue
        for attribute, value in list(namespace.items()):
            if id(value) in instead:
                namespace[attribute] = instead[id(value)]
                exchanged.append(f"{name}.{attribute}")
    return exchanged


def _namespace(module: object) -> dict[str, Any]:
    # Anything may be in sys.modules, and its own `__class__` or `__dict__` may do anything.
    if not issubclass(type(module), ModuleType):
        return {}
    namespace: dict[str, Any] = object.__getattribute__(module, "__dict__")
    return namespace
