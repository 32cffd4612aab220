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
        or_before: top-level packages that must not be imported, or half imported, when the function is called: `module`
            is imported first, when one of them is looked for. The function may import them.
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
            return _imported_meanwhile(name)
        return self._found(name, path, target) if name == self._module else None

    def _found(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            # Before Python 3.12, a finder may be of an older kind, which no longer finds what Python itself has.
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                # To find is not to import: somebody may only ask whether it is there.
                if spec.loader is not None:
                    spec.loader = _CallingLoader(spec.loader, self._imported)
                return spec
        return None

    def _imported(self) -> None:
        self._call()
        self._called = True


def _imported_meanwhile(name: str) -> ModuleSpec | None:
    """A way to what is being looked for, if the function has imported it by now: it must not be loaded again."""
    module = sys.modules.get(name)
    if module is None:
        return None
    from importlib.machinery import ModuleSpec

    own = module.__spec__
    # Of a module that turns out to be there, importlib takes the spec that it has.
    module.__spec__ = ModuleSpec(name, _ImportedLoader(module), origin=own.origin if own else None)
    return module.__spec__


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


class _ImportedLoader(Loader):
    """Has a module that exists imported as it is, and gives it its own spec back."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
