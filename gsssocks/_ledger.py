"""A ledger of what has been patched, which says how to put everything back.

wrapt is imported when there is something to patch: a program that only has a use for our other rooms owes it nothing.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from ._originals import socket
from ._references import exchange

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Ledger", "Wrapper", "on_import"]

Wrapper = Callable[[Callable[..., Any], Any, "tuple[Any, ...]", "dict[str, Any]"], Any]


class _Entry(NamedTuple):
    owner: Any
    name: str
    own: Any | None
    """What stood in the owner's own namespace; None where the attribute was inherited."""
    wrapped: Any
    """What stands there instead."""
    asked: tuple[object, object]
    """What whoever asks the owner for it is given: before, and since."""


class Ledger:
    """What has been wrapped, in order.

    Args:
        often: whether that is put in place and put back again and again, always the same (see `exchange`).

    Attributes:
        references: what other modules had taken of that before, by their own names for it; covered as well.
    """

    def __init__(self, *, often: bool = False) -> None:
        self._entries: list[_Entry] = []
        self._covered = 0
        self.references: list[str] = []
        self._without: dict[frozenset[tuple[int, str]], dict[str, tuple[int, int]]] | None = {} if often else None
        """By what has been sought, the namespaces that had none of it."""

    def __bool__(self) -> bool:
        return bool(self._entries)

    def has(self, owner: Any, name: str) -> bool:
        """Whether an attribute of a class or module is wrapped."""
        return any(entry.owner is owner and entry.name == name for entry in self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """What is wrapped, as `owner.attribute`."""
        return tuple(f"{entry.owner.__name__}.{entry.name}" for entry in list(self._entries))

    def wrap(self, owner: Any, name: str, wrapper: Wrapper) -> None:
        """Wraps an attribute of a class or module.

        Args:
            wrapper: called with the original (bound), the instance, and the arguments, as wrapt does.
        """
        import wrapt

        own, before = vars(owner).get(name), getattr(owner, name)
        wrapped = wrapt.wrap_function_wrapper(owner, name, wrapper)
        self._entries.append(_Entry(owner, name, own, wrapped, (before, getattr(owner, name))))

    def cover_references(self) -> None:
        """Has what modules took before stand for what has been wrapped since the last call."""
        new = _referred_to(self._entries[self._covered :])
        self._covered = len(self._entries)
        self.references += exchange([entry.asked for entry in new], self._namespaces_without(new))

    def restore(self) -> None:
        """Puts everything back, also in what modules have taken meanwhile."""
        entries = _referred_to(self._entries)
        while self._entries:
            owner, name, own, wrapped, (_, asked) = self._entries.pop()
            standing = vars(owner).get(name)
            if standing is not wrapped and standing is not asked:
                continue  # somebody has patched it since, over ours, which does nothing any more
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        exchange([entry.asked[::-1] for entry in entries], self._namespaces_without(entries))
        self._covered = 0
        self.references.clear()

    def _namespaces_without(self, sought: list[_Entry]) -> dict[str, tuple[int, int]] | None:
        if self._without is None:
            return None
        return self._without.setdefault(frozenset((id(entry.owner), entry.name) for entry in sought), {})


def _referred_to(entries: Iterable[_Entry]) -> list[_Entry]:
    # Of classes, only the one whose methods are everybody's: what another class inherits, eventlet's copy of it say, is
    # the very same function of C, and not meant.
    return [entry for entry in entries if isinstance(entry.owner, ModuleType) or entry.owner is socket]


def on_import(module: str, call: Callable[[ModuleType], None]) -> None:
    """Has a function called with a module: now if it is imported, else as soon as it is. That cannot be taken back."""
    import wrapt

    wrapt.register_post_import_hook(call, module)
