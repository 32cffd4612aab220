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
    found = read_sections(path, {"proxy": options, "rules": None}, "the file that GSSSOCKS_CONFIG names")
    for entry, action in found.get("rules", {}).items():
        # No message about a rule may quote what has got among the rules from [proxy].
        if entry == "password" or "://" in f"{entry}={action}":
            raise ValueError(f"{path} [rules]: a URL or a password is no rule; write it under [proxy]")
    return found


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
        text = Path(path).read_text(encoding="utf-8")
        parser.read_string(text, source=path)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {what}, {path!r}: {error}") from error
    except configparser.Error as error:
        raise ValueError(f"cannot read {what}, {path!r}: {_slip(error)}") from None
    found = {section: dict(parser.items(section)) for section in parser.sections()}
    for section, options in found.items():
        _check_known(path, text, "section", section, known)
        allowed = known[section]
        if allowed is not None:
            for name in options:
                _check_known(path, text, "option", name, allowed)
    return found


# A slip may make of a password anything: a name, a header, a line of its own. What is quoted here ends in a journal.
_HARMLESS = re.compile(r"[A-Za-z_]\w*")


def _slip(error: configparser.Error) -> str:
    """What is wrong, without the line that configparser quotes."""
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"line {error.lineno} has no section headers above it: write [section] there"
    if isinstance(error, configparser.DuplicateSectionError):
        return f"line {error.lineno} begins the section{_quoted(error.section)} again"
    if isinstance(error, configparser.DuplicateOptionError):
        return f"line {error.lineno} gives the option{_quoted(error.option)} again"
    lines = ", ".join(str(line) for line, _ in getattr(error, "errors", ()))
    return f"not understood: line {lines}; write name = value"


def _quoted(name: str) -> str:
    return f" {name!r}" if _HARMLESS.fullmatch(name) else ""


def _check_known(path: str, text: str, what: str, name: str, known: Iterable[str]) -> None:
    known = tuple(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    lines = enumerate(text.split("\n"), 1)
    line = next(at for at, line in lines if line.strip() == f"[{name}]" or line.partition("=")[0].strip() == name)
    raise ValueError(f"{path}, line {line}: unknown {what}{_quoted(name)}; {hint}")
