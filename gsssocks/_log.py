"""The logger `gsssocks`: one line a connection at INFO, the phases of its making at DEBUG. No token, no secret.

`GSSSOCKS_DEBUG=1` sends it to standard error.
"""

from __future__ import annotations

import logging
import os
import threading

__all__ = ["log", "log_to_stderr_if_asked", "log_to_stderr_no_more"]

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


_handler: logging.Handler | None = None
_level_before = logging.NOTSET


def log_to_stderr_if_asked() -> None:
    """Unless the program has made arrangements of its own."""
    global _handler, _level_before
    if os.environ.get("GSSSOCKS_DEBUG", "0") in ("", "0") or _logger.handlers:
        return
    _handler, _level_before = logging.StreamHandler(), _logger.level
    _handler.setFormatter(logging.Formatter("gsssocks: %(message)s"))
    _logger.addHandler(_handler)
    _logger.setLevel(logging.DEBUG)


def log_to_stderr_no_more() -> None:
    """Takes back what `log_to_stderr_if_asked` did."""
    global _handler
    if _handler is not None:
        _logger.removeHandler(_handler)
        _logger.setLevel(_level_before)
        _handler = None
