"""The pump: moves octets between the kernel and the record layer of one tunnelled TCP connection. All waiting is done
here.

Four rooms, each on top of the one before: `_state`, what both directions share; `_sending`; `_receiving`, since what is
in line leaves while a reader waits; `_protected`, the negotiation before and the end after both.
"""

from __future__ import annotations

from ._protected import ProtectedStream

__all__ = ["ProtectedStream"]
