"""Waits for the first import of a module.

wrapt does that, too, and does it for us as soon as something is installed; but a program that makes no connection is
to start as fast as without us, and has no use for wrapt.
"""

from __future__ import annotations

import sys

# Not from `typing`, whose import takes as long as the rest of a small program's start; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    Loader = object  # only a promise of methods

__all__ = ["wait_for"]


def wait_for(module: str, *, or_before: Container[str], call: Callable[[], None]) -> None:
    """Has a function called as soon as `module` has been imported, before anybody can use it: other threads wait.

    Args:
        module: the name of one that has not been imported yet.
        or_before: top-level packages that import it, and that the function imports, too. They would be half imported
            then: so `module` is imported first, when one of them is looked for.
        call: called once, by the thread that imports `module`.
    """
    sys.meta_path.insert(0, _Watch(module, or_before, call))


class _Watch:
    """A finder (`importlib.abc.MetaPathFinder`, whose module would have to be imported) that leaves finding to the
    others.

    It stays where it is afterwards: to take it out could have another thread, which is looking for something else just
    then, pass over the next finder.
    """

    def __init__(self, module: str, or_before: Container[str], call: Callable[[], None]) -> None:
        self._module, self._or_before, self._call = module, or_before, call
        self._called = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if self._called or self._module in sys.modules:
            return None
        if name.partition(".")[0] in self._or_before:
            __import__(self._module)
        elif name == self._module:
            return self._found(name, path, target)
        return None

    def _found(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                # To find is not to import: somebody may only ask whether it is there.
                if spec.loader is not None:
                    spec.loader = _CallingLoader(spec.loader, self._imported)
                return spec
        return None

    def _imported(self) -> None:
        self._called = True
        self._call()


class _CallingLoader(Loader):
    """A module's own loader, and a call when it has done its work."""

    def __init__(self, loader: Loader, call: Callable[[], None]) -> None:
        self._loader, self._call = loader, call

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Others may have put their loaders around this one.
        if module.__spec__ is not None and module.__spec__.loader is self:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._call()
