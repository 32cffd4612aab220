"""The command line: `gsssocks demo`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING

from . import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["main"]

_LABEL_WIDTH = 18
_TITLE_WIDTH = 72
_DEMO_PACKAGES = ("k5test", "trustme", "requests")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: without the program's name; None is `sys.argv`.

    Returns:
        the exit status: 0, or 1 if what was asked for did not work. Wrong arguments end the process with 2.
    """
    parser = _parser()
    command = parser.parse_args(arguments).command
    status: int = command()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsssocks", description="Sockets through a SOCKS 5 proxy with GSS-API (Kerberos)."
    )
    parser.add_argument("--version", action="version", version=f"gsssocks {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="show an unmodified program going through a proxy, all on this machine",
        description="Starts a Kerberos realm, a proxy and an HTTPS server on the loopback interface, sends an "
        "unmodified program through the proxy, and says what came of it. Leaves nothing behind.",
    )
    demo.set_defaults(command=_demo)
    return parser


def _demo() -> int:
    missing = [package for package in _DEMO_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return _failure(f"{', '.join(missing)} not found: pip install 'gsssocks[testing,requests]'")
    from gsssocks.testing import RealmError
    from gsssocks.testing._demonstration import DemonstrationError, demonstrate

    print(f"gsssocks {__version__}: an unmodified program through a SOCKS 5 proxy with Kerberos")
    try:
        for title, seconds, facts in demonstrate():
            _show(title, seconds, facts)
    except (RealmError, DemonstrationError) as error:
        return _failure(str(error))
    print("\nIt all worked: authenticated by Kerberos, protected by GSS-API, and not an octet lost.")
    return 0


def _show(title: str, seconds: float, facts: Mapping[str, str]) -> None:
    print(f"\n{title:<{_TITLE_WIDTH}} {seconds * 1000:>8.1f} ms")
    for label, value in facts.items():
        print(f"  {label:<{_LABEL_WIDTH}}{value}")
    sys.stdout.flush()


def _failure(message: str) -> int:
    sys.stdout.flush()
    print(f"gsssocks demo: {message}", file=sys.stderr)
    return 1
