"""The logger `gsssocks`: one line a connection at INFO, the phases of its making at DEBUG. No token, no secret."""

from __future__ import annotations

import logging
import threading

__all__ = ["log"]

_logger = logging.getLogger("gsssocks")


class _Logging(threading.local):
    now = False


_this_thread = _Logging()


def log(level: int, message: str, *args: object) -> None:
    """Logs a line, but for a connection that a handler makes to send such a line away: it would send another one."""
    if _this_thread.now or not _logger.isEnabledFor(level):
        return
    _this_thread.now = True
    try:
        _logger.log(level, message, *args, stacklevel=2)
    finally:
        _this_thread.now = False
