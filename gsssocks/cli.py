"""The command line: `gsssocks run`, `inject`, `check`, `serve` and `demo`. The only room that prints."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from . import __version__
from ._check import examine
from ._config import Settings
from ._deafness import deaf, foreign
from ._findings import STATUS
from ._injection import FOLDER, environment, hook_paths, install_hook, remove_hook
from ._startup import EX_CONFIG, INJECT
from .exceptions import AuthenticationError
from .server._service import serve
from .server._settings import OPTIONS, ServiceSettings

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from ._findings import Report

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
    options = parser.parse_args(arguments)
    status: int = options.command(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gsssocks", description="Sockets through a SOCKS 5 proxy with GSS-API (Kerberos)."
    )
    parser.add_argument("--version", action="version", version=f"gsssocks {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_inject(commands)
    _add_check(commands)
    _add_serve(commands)
    demo = commands.add_parser(
        "demo",
        help="show an unmodified program going through a proxy, all on this machine",
        description="Starts a Kerberos realm, a proxy and an HTTPS server on the loopback interface, sends an "
        "unmodified program through the proxy, and says what came of it. Leaves nothing behind.",
    )
    demo.set_defaults(command=_demo)
    return parser


def _add_run(commands: _Commands) -> None:
    run = commands.add_parser(
        "run",
        help="start a Python program with its connections going through the proxy",
        description="Starts COMMAND with gsssocks installed before its first line. If the set-up is wrong, the program "
        f"does not start, and the exit status is {EX_CONFIG}. Not for `python -I`, `-E` or `-S`: they ignore what this "
        "rests on; the hook of `gsssocks inject` works under -I and -E.",
    )
    _add_proxy_options(run)
    run.add_argument(
        "--children",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also for the Python programs that COMMAND starts, multiprocessing's spawn and forkserver workers among "
        "them (the default)",
    )
    run.add_argument("--warn", action="store_true", help="if the set-up is wrong, warn and start without a proxy")
    run.add_argument("program", metavar="COMMAND", nargs="+", help="what to start, behind -- if it has options")
    run.set_defaults(command=_run)


def _add_inject(commands: _Commands) -> None:
    inject = commands.add_parser(
        "inject",
        help="let every program of this Python environment start with gsssocks, if GSSSOCKS_INJECT is set",
        description="Writes a .pth file into this Python environment, and a .start file for Python 3.15 and later. "
        f"They do nothing unless {INJECT}=1 is set when a program starts.",
    )
    what = inject.add_mutually_exclusive_group()
    what.add_argument("--remove", action="store_true", help="remove it again")
    what.add_argument("--status", action="store_true", help="say whether it is there; exit status 1 if a part is not")
    inject.set_defaults(command=_inject)


def _add_check(commands: _Commands) -> None:
    check = commands.add_parser(
        "check",
        help="follow one connection through the proxy and say what is wrong",
        description="Examines configuration, ticket, service, proxy, authentication and protection, then connects to "
        "TARGET, as a program that `gsssocks run` starts does: what is reached directly takes no proxy. Exit status: "
        "0, or " + ", ".join(f"{number} {step}" for step, number in STATUS.items()) + ": the step that failed.",
    )
    _add_proxy_options(check)
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.add_argument("target", metavar="TARGET", nargs="?", help="a URL (http, https) or host:port")
    check.set_defaults(command=_check)


def _add_serve(commands: _Commands) -> None:
    command = commands.add_parser(
        "serve",
        help="be a SOCKS 5 proxy with GSS-API",
        description="Serves CONNECT, BIND and UDP ASSOCIATE until SIGTERM, SIGINT or SIGHUP; a second one ends it at "
        "once. The configuration is read once. The file has a section [server], with the options below, their dashes "
        "written as underscores, and a section [rules], each line a name, = and a rule. Knows NOTIFY_SOCKET and "
        f"LISTEN_FDS, as systemd has them. Exit status: 0, 1 if it cannot listen, {EX_CONFIG} if the configuration is "
        "wrong.",
    )
    command.add_argument("--config", metavar="FILE", help="an INI file; options given here are stronger")
    for name, option in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if option.metavar:
            command.add_argument(flag, dest=name, metavar=option.metavar, help=option.help)
        else:
            command.add_argument(flag, dest=name, action="store_const", const="true", help=option.help)
    command.add_argument(
        "--rule",
        dest="rules",
        metavar="RULE",
        action="append",
        default=[],
        help="allow or deny, then principal=, command=, to=, each with patterns divided by commas; the first that fits "
        "decides, and what none fits is refused; may be repeated (all but this machine and link-local addresses)",
    )
    command.set_defaults(command=_serve)


def _add_proxy_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--proxy", metavar="URL", help="socks5h://[principal@]host[:port][?option=value&…]")
    parser.add_argument("--no-proxy", metavar="LIST", help="destinations to reach directly, separated by commas")
    parser.add_argument("--rules", metavar="LIST", help="destination=action, separated by commas")


def _given(options: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """What `_add_proxy_options` has got, as the variables that the program is told it by, and for each of them the
    option that it stands for."""
    given = {name: getattr(options, name) for name in ("proxy", "no_proxy", "rules")}
    given = {name: value for name, value in given.items() if value is not None}
    return (
        {f"GSSSOCKS_{name.upper()}": value for name, value in given.items()},
        {f"GSSSOCKS_{name.upper()}": f"option --{name.replace('_', '-')}" for name in given},
    )


def _run(options: argparse.Namespace) -> int:
    variables, said_by = _given(options)
    try:
        child = environment(os.environ, variables, children=options.children, warn=options.warn)
    except ValueError as error:
        return _failure("run", str(error), EX_CONFIG)
    ignoring = deaf(options.program, str(FOLDER))
    if ignoring is not None:
        return _failure("run", _why_deaf(ignoring), EX_CONFIG)
    program = foreign(options.program, str(FOLDER))
    if program is not None:
        # Not refused: many a program of this kind is there to start Python.
        _warn("run", f"{program} is no Python: its own connections do not go through the proxy")
    try:
        Settings.load(environ=child, said_by=said_by)
        _load_gssapi()
    except (TypeError, ValueError, AuthenticationError) as error:
        if not options.warn:
            return _failure("run", str(error), EX_CONFIG)
    sys.stdout.flush()
    try:
        os.execvpe(options.program[0], options.program, child)  # noqa: S606  # what the user asked to start
    except OSError as error:
        return _failure("run", f"{options.program[0]}: {error.strerror}", 127)


def _why_deaf(ignoring: str) -> str:
    why = f"{ignoring} makes Python ignore the environment: gsssocks cannot get in"
    if ignoring not in ("-I", "-E"):
        return why
    return f"{why} by this command; with {INJECT}=1 it does, without this command, where `gsssocks inject` was run"


def _load_gssapi() -> None:
    """Here, since it would take a program that makes no connection too long.

    Raises:
        AuthenticationError: it cannot be loaded.
    """
    importlib.import_module("gsssocks._gss")


def _inject(options: argparse.Namespace) -> int:
    try:
        if options.status:
            return _inject_status()
        if options.remove:
            _show_removed(remove_hook())
            return 0
        install_hook()
    except OSError as error:
        return _failure("inject", f"{error.filename}: {error.strerror}")
    for path in hook_paths():
        print(f"wrote {path}")
    print(f"With {INJECT}=1, programs of this environment go through the proxy.")
    return 0


def _inject_status() -> int:
    for path in hook_paths():
        print(f"{path} {'is there' if path.exists() else 'is not there'}")
    return 0 if all(path.exists() for path in hook_paths()) else 1


def _show_removed(removed: Sequence[Path]) -> None:
    for path in hook_paths():
        print(f"removed {path}" if path in removed else f"{path} is not there")


def _check(options: argparse.Namespace) -> int:
    variables, said_by = _given(options)
    report = examine(options.target, {**os.environ, **variables}, said_by)
    if options.json:
        findings = [asdict(finding) for finding in report.findings]
        print(json.dumps({"status": report.status, "findings": findings}, indent=2))
        return report.status
    for finding in report.findings:
        _show(f"{finding.step}: {'ok' if finding.ok else 'FAILED'}", finding.milliseconds / 1000, finding.facts)
    print(f"\n{_conclusion(report)}")
    return report.status


def _conclusion(report: Report) -> str:
    if report.status:
        return f"It fails at the {report.findings[-1].step}."
    if report.directly:
        return f"All is well: this target is reached {report.directly}. No proxy was asked."
    return "All is well." if all(finding.ok for finding in report.findings) else "It works, but for what failed above."


def _serve(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    try:
        serve(ServiceSettings.load(options.config, given, options.rules))
    except ValueError as error:
        return _failure("serve", str(error), EX_CONFIG)
    except OSError as error:
        return _failure("serve", f"cannot listen: {error.strerror}")
    return 0


def _demo(_options: argparse.Namespace) -> int:
    missing = [package for package in _DEMO_PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        return _failure("demo", f"{', '.join(missing)} not found: pip install 'gsssocks[testing,requests]'")
    from gsssocks.testing import RealmError
    from gsssocks.testing._demonstration import DemonstrationError, demonstrate

    print(f"gsssocks {__version__}: an unmodified program through a SOCKS 5 proxy with Kerberos")
    try:
        for title, seconds, facts in demonstrate():
            _show(title, seconds, facts)
    except (RealmError, DemonstrationError) as error:
        return _failure("demo", str(error))
    print("\nIt all worked: authenticated by Kerberos, protected by GSS-API, and not an octet lost.")
    return 0


def _show(title: str, seconds: float, facts: Mapping[str, str]) -> None:
    print(f"\n{title:<{_TITLE_WIDTH}} {seconds * 1000:>8.1f} ms")
    for label, value in facts.items():
        print(f"  {label:<{_LABEL_WIDTH}}{value}")
    sys.stdout.flush()


def _failure(command: str, message: str, status: int = 1) -> int:
    _warn(command, message)
    return status


def _warn(command: str, message: str) -> None:
    sys.stdout.flush()
    print(f"gsssocks {command}: {message}", file=sys.stderr)
