"""Waits for the first import of a module.

wrapt does that, too, and does it for us as soon as something is installed; but a program that makes no connection is
to start as fast as without us, and has no use for wrapt.
"""

from __future__ import annotations

import sys

# The lock is that of the import system, which knows when threads would wait for each other for ever. The function is
# importlib.util's, whose own import takes as long as the rest of a small program's start.
from importlib._bootstrap import _ModuleLockManager, module_from_spec  # type: ignore[attr-defined]

# Not from `typing`, for the same reason; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    Loader = object  # only a promise of methods
    ModuleType = type(sys)

__all__ = ["wait_for"]

_KNOWN_BEFORE = frozenset(
    (
        *("__class__", "__name__", "__package__", "__loader__", "__file__", "__cached__"),
        *("__path__", "__warningregistry__"),  # which it has not
    )
)
"""What is told without an import, to those who go through `sys.modules` and ask every module. `__spec__` is not: it is
what an import statement asks for."""


def wait_for(module: str, *, or_before: Container[str], call: Callable[[], None]) -> None:
    """Has a function called as soon as `module` has been imported, before anybody can use it: other threads wait.

    The module is put into `sys.modules`, without content until somebody imports or uses it: there no finder is asked
    for it, and ours, which any other that is put before it could pass by, is not needed. Then it becomes a module like
    any other; it stays the same object.

    Args:
        module: the name of one that has not been imported yet, and stands in no package.
        or_before: modules, and top-level packages with all that is in them, that must not be imported, or half
            imported, when the function is called: `module` is imported first, when one of them is looked for. The
            function may import them.
        call: called once, by the thread that imports `module`.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    awaited = _Awaited(_found(module), call)
    sys.meta_path.insert(0, _Watch(awaited, or_before))
    sys.modules[awaited.name] = awaited.module


def _found(name: str) -> ModuleSpec:
    for finder in sys.meta_path:
        # Before Python 3.12, a finder may be of an older kind, which no longer finds what Python itself has.
        spec = finder.find_spec(name, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class _Awaited:
    """A module that is in `sys.modules`, and has not been imported.

    Attributes:
        begun: whether somebody uses it.
    """

    def __init__(self, spec: ModuleSpec, call: Callable[[], None]) -> None:
        self.name = spec.name
        self._spec, self._call = spec, call
        self.module = module_from_spec(spec)
        self.begun = False
        self.module.__class__ = _without_content(self.load)

    def load(self) -> None:
        """Imports it, unless it has been imported, or this thread is just doing it."""
        with _ModuleLockManager(self.name):
            if self.begun:
                return
            self.begun = True
            try:
                # Also where it has been removed meanwhile: there must not be two of it.
                sys.modules[self.name] = self.module
                assert self._spec.loader is not None
                self._spec.loader.exec_module(self.module)
                self._call()
            except BaseException:
                self.begun = False
                raise
            self.module.__class__ = ModuleType


def _without_content(load: Callable[[], None]) -> type[ModuleType]:
    """The class of a module that has to be loaded before it can be used."""

    class WithoutContent(ModuleType):
        # Not by super(): another thread may have made it a module like any other meanwhile.

        def __getattribute__(self, name: str) -> object:
            if name not in _KNOWN_BEFORE:
                load()
            return ModuleType.__getattribute__(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            load()
            ModuleType.__setattr__(self, name, value)

        def __delattr__(self, name: str) -> None:
            load()
            ModuleType.__delattr__(self, name)

    return WithoutContent


class _Watch:
    """A finder (`importlib.abc.MetaPathFinder`, whose module would have to be imported) that leaves finding to the
    others.

    It stays where it is afterwards: to take it out could have another thread, which is looking for something else just
    then, pass over the next finder.
    """

    def __init__(self, awaited: _Awaited, or_before: Container[str]) -> None:
        self._awaited, self._or_before = awaited, or_before

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  # the names are part of the protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if self._awaited.begun or not self._is_sought(name):
            return None
        self._awaited.load()
        return _imported_meanwhile(name)

    def _is_sought(self, name: str) -> bool:
        return name == self._awaited.name or name in self._or_before or name.partition(".")[0] in self._or_before


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


class _ImportedLoader(Loader):
    """Has a module that exists imported as it is, and gives it its own spec back."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec
