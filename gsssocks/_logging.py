"""The log on standard error that `GSSSOCKS_DEBUG=1` asks for."""

from __future__ import annotations

import logging
import os

__all__ = ["log_to_stderr_if_asked", "log_to_stderr_no_more"]

_log = logging.getLogger("gsssocks")
_handler: logging.Handler | None = None
_level_before = logging.NOTSET


def log_to_stderr_if_asked() -> None:
    """Unless the program has made arrangements of its own."""
    global _handler, _level_before
    if os.environ.get("GSSSOCKS_DEBUG", "0") in ("", "0") or _log.handlers:
        return
    _handler, _level_before = logging.StreamHandler(), _log.level
    _handler.setFormatter(logging.Formatter("gsssocks: %(message)s"))
    _log.addHandler(_handler)
    _log.setLevel(logging.DEBUG)


def log_to_stderr_no_more() -> None:
    """Takes back what `log_to_stderr_if_asked` did."""
    global _handler
    if _handler is not None:
        _log.removeHandler(_handler)
        _log.setLevel(_level_before)
        _handler = None
