"""The logger `gsssocks`: one line a connection at INFO, the phases of its making at DEBUG. No token, no secret.

`GSSSOCKS_DEBUG=1` sends it to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
import threading

from ._evident import says_no

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


class _StandardError(logging.Handler):
    """Writes to what is standard error at the time, unless a handler of the program's writes the same line there."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr
        if stream is None or any(_writes(handler, record, stream) for handler in logging.root.handlers):
            return
        try:
            stream.write(f"{self.format(record)}\n")
            stream.flush()
        except Exception:  # noqa: BLE001  # `logging` says what is to be done about it
            self.handleError(record)


def _writes(handler: logging.Handler, record: logging.LogRecord, stream: object) -> bool:
    return (
        _logger.propagate
        and isinstance(handler, logging.StreamHandler)
        and handler.stream is stream
        and record.levelno >= handler.level
        and not handler.filters
    )


_handler = _StandardError()
_handler.setFormatter(logging.Formatter("gsssocks: %(message)s"))
_level_before = logging.NOTSET


def log_to_stderr_if_asked() -> None:
    """Unless the program has made arrangements of its own for this logger."""
    global _level_before
    if says_no(os.environ.get("GSSSOCKS_DEBUG", "")) or _logger.handlers:
        return
    _level_before = _logger.level
    _logger.addHandler(_handler)
    _logger.setLevel(logging.DEBUG)


def log_to_stderr_no_more() -> None:
    """Takes back what `log_to_stderr_if_asked` did."""
    if _handler in _logger.handlers:
        _logger.removeHandler(_handler)
        _logger.setLevel(_level_before)
