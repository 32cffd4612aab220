"""Every attribute of `socket.socket`, also one that a later Python adds, is decided on in the table at the head of
`gsssocks._socket`."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import pytest

from gsssocks import GSSSocket, _socket

if TYPE_CHECKING:
    from collections.abc import Iterable

# What makes a class, not a socket.
_MACHINERY = {"__firstlineno__", "__module__", "__slots__", "__static_attributes__", "__weakref__"}
# What not every platform and Python has.
_SOMEWHERE = {"__getstate__", "ioctl", "sendmsg_afalg", "share"}

_ROW = re.compile(r" {4}(?P<names>\S+(?: \S+)*) {2,}(?P<decision>\S.*)")


def table() -> dict[str, str]:
    """The decision on each attribute."""
    rows = filter(None, map(_ROW.fullmatch, (_socket.__doc__ or "").splitlines()))
    return {name: row["decision"] for row in rows for name in row["names"].split()}


TABLE = table()
KERNELS = {name for name, decision in TABLE.items() if decision.startswith("kernel")}
OURS = set(TABLE) - KERNELS


def attributes(cls: type) -> set[str]:
    """What the class has and `object` has not."""
    return set(dir(cls)) - set(dir(object)) - _MACHINERY


def undecided(names: Iterable[str]) -> set[str]:
    return set(names) - set(TABLE)


def moves_data(name: str) -> bool:
    return name.startswith(("send", "recv", "_send", "_recv", "read", "write", "splice"))


def test_every_attribute_is_decided() -> None:
    missing = undecided(attributes(socket.socket))
    assert not missing, f"decide on them, in the table at the head of gsssocks/_socket.py: {sorted(missing)}"


def test_new_attribute_is_noticed() -> None:
    class NewerSocket(socket.socket):
        __slots__ = ()

        def recv_zero_copy(self) -> bytes:
            return b""

    assert undecided(attributes(NewerSocket)) == {"recv_zero_copy"}


def test_table_holds_nothing_that_does_not_exist() -> None:
    assert set(TABLE) <= set(dir(socket.socket)) | _SOMEWHERE


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_ours_is_overridden(name: str) -> None:
    assert name in vars(GSSSocket)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_what_is_the_kernels_is_not_overridden(name: str) -> None:
    assert name not in vars(GSSSocket)


@pytest.mark.parametrize("name", sorted(filter(moves_data, attributes(socket.socket))))
def test_what_moves_data_is_ours_or_says_why_not(name: str) -> None:
    assert name in OURS or re.match(r"kernel('s)?: \S", TABLE[name])


def test_nothing_but_what_is_in_the_table_is_overridden() -> None:
    assert set(vars(GSSSocket)) & attributes(socket.socket) <= OURS
