"""INI files: the one that `GSSSOCKS_CONFIG` names, and others of its kind. A module of its own, imported only where
there is one."""

from __future__ import annotations

import configparser
import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["read", "read_sections"]


class _Parser(configparser.ConfigParser):
    # A destination may begin with "[", too: `[2001:db8::1]:25 = refuse`.
    SECTCRE = re.compile(r"\[(?P<header>[^\]:]+)\]\s*$")


def read(path: str, options: Iterable[str]) -> dict[str, dict[str, str]]:
    """What the file says: the options of each section, `proxy` and `rules`.

    Args:
        path: the file.
        options: those that the section `proxy` may have.

    Raises:
        ValueError: the file cannot be read, or something in it is unknown; the message names the file.
    """
    return read_sections(path, {"proxy": options, "rules": None}, "the file that GSSSOCKS_CONFIG names")


def read_sections(path: str, known: Mapping[str, Iterable[str] | None], what: str) -> dict[str, dict[str, str]]:
    """What a file says, in its order.

    Args:
        path: the file.
        known: the sections it may have, and what may stand in each; None is anything.
        what: the file in words.

    Raises:
        ValueError: the file cannot be read, or something in it is unknown; the message names the file.
    """
    # No interpolation: a "%" in a URL is just that. Only "=" divides, since a destination may hold a colon.
    parser = _Parser(interpolation=None, delimiters=("=",), default_section="")
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep case
    try:
        parser.read_string(Path(path).read_text(encoding="utf-8"), source=path)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ValueError(f"cannot read {what}, {path!r}: {error}") from error
    found = {section: dict(parser.items(section)) for section in parser.sections()}
    for section, options in found.items():
        _check_known(path, "section", section, known)
        allowed = known[section]
        if allowed is not None:
            for name in options:
                _check_known(path, "option", name, allowed)
    return found


def _check_known(path: str, what: str, name: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
    raise ValueError(f"{path}: unknown {what} {name!r}{hint}")
