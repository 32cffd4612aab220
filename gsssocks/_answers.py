"""What lookups here have answered, so that what is said of a name holds for a connection to its address, too.

Most programs look a name up and connect to the address: `socket.create_connection` and all that rests on it. Where the
answer is a placeholder (see `_resolver`), that leads back to the one name. But what is reached directly, and what is
resolved here, keeps its real address: a program may print it, compare it, hand it to a C library or to another process.
So it is remembered of an address for which names it was the answer.

It may be that of several, and nothing tells for which of them a connection is meant. Whoever decides on one takes the
strictest that holds for any: a refusal before the proxy, the stronger protection before the weaker, and directly only
what is direct by all of its names. Those that no rule knows count among them: every answer is noted, not only those for
names under a rule. What a reverse lookup finds is not: the owner of the address says that, not the owner of the name.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from ._config.addresses import IPAddress, ip

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ._config import Naming

__all__ = ["Answers"]

_MOST_ADDRESSES = 65_535

# As the resolver's: reentrant, for a signal handler that looks a name up, and a fork waits for it.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Answers:
    """For an address, the namings of the names that it was the answer for. All methods may be called from any thread.

    A naming stands for every name that has it, so that an address of any number of names takes up no more room than
    there are different ones.

    Args:
        limit: how many addresses to remember; the one that has not been used for longest is then forgotten, and decided
            on as an address alone.
    """

    def __init__(self, limit: int = _MOST_ADDRESSES) -> None:
        self._limit = limit
        self._namings: OrderedDict[IPAddress, dict[Naming, None]] = OrderedDict()

    def note(self, addresses: Iterable[str], naming: Naming) -> bool:
        """Notes that these were the answer for a name of that naming. Returns whether that is news."""
        news = False
        for key in map(_without_zone, addresses):
            if key is None:
                continue
            with _lock:
                known = self._namings.setdefault(key, {})
                news = news or naming not in known
                known[naming] = None
                self._note_use(key)
                if len(self._namings) > self._limit:
                    self._namings.popitem(last=False)
        return news

    def namings(self, address: str) -> Collection[Naming]:
        """Those of all names that `address` was an answer for; none where it is not known to be one."""
        if not self._namings:
            return ()
        key = _without_zone(address)
        if key is None:
            return ()
        with _lock:
            known = self._namings.get(key, {})
            self._note_use(key)
            return tuple(known)

    def _note_use(self, key: IPAddress) -> None:
        with suppress(KeyError):  # not known, or a signal handler's lookup may have made us forget it, just now
            self._namings.move_to_end(key)


def _without_zone(address: str) -> IPAddress | None:
    return ip(address.partition("%")[0])
