"""The import rule: the package is a house, and a module imports only from floors strictly below its own."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.default_python_only

ROOT = Path(__file__).parents[1]
PACKAGE = "gsssocks"
ASIDE = "testing"

FLOORS: dict[str, int] = {
    name: floor
    for floor, names in {
        14: ["", "cli", "__main__", "_inject", "_injection"],
        13: ["adapters", "_startup"],
        12: ["_patch", "_check", "_datagrams"],
        11: ["_routing", "_target"],
        10: ["_answers", "_create_connection", "_tls", "_resolver", "_listeners", "server"],
        9: ["_socket", "_datagram_socket"],
        8: ["_switching"],
        7: ["_udp", "_endpoint", "_bind"],
        6: ["_connecting", "_flags", "_raw", "_relay"],
        5: ["_tunnel"],
        4: ["_stream", "_destinations"],
        3: ["_negotiation", "_arguments", "_findings", "_in_words", "_line", "_lingering"],
        2: ["_record", "_config", "_guards", "_transport"],
        1: ["_gss", "_security", "_protocol", "_descriptor", "_ledger", "_log"],
        0: ["exceptions", "_deafness", "_evident", "_first_import", "_libraries", "_originals", "_references"],
    }.items()
    for name in names
}
NEIGHBOURS = {
    ("_gss", "_security"),
    ("__main__", "cli"),
    ("cli", ""),
    ("cli", "_injection"),
    ("_inject", "_startup"),
    ("_endpoint", "_udp"),
    ("_patch", "_datagrams"),
    ("_datagram_socket", "_socket"),
    ("adapters", "adapters"),
}

# Third-party packages whose rooms are fixed; any other has at most one.
ROOMS = {
    "gssapi": {"_gss._clock", "_gss._context", "_gss._credential", "_gss._errors"},
    "wrapt": {"_ledger"},
    "socks": {"exceptions", "adapters.pysocks"},
}
# No package, but the type checker's own module.
TYPING_ONLY = {"_typeshed"}


class Import(NamedTuple):
    """One imported module, and whether the statement is inside a function."""

    importer: str
    imported: str
    lazy: bool
    line: int

    def __str__(self) -> str:
        return f"{self.importer or PACKAGE} (line {self.line}) imports {self.imported}"


def short(dotted: str) -> str:
    """The name of a module of the package without the package's: "" is the package itself."""
    return dotted[len(PACKAGE) + 1 :]


def source_files() -> dict[str, Path]:
    """Every module of the package, by its short name."""
    files = {}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = source_files()


def room(module: str) -> str:
    """What a module is placed as: packages are one room, with all their modules."""
    return module.split(".", maxsplit=1)[0]


def ours(dotted: str) -> bool:
    return dotted == PACKAGE or dotted.startswith(f"{PACKAGE}.")


def imports_in(module: str, source: str, *, is_package: bool) -> Iterator[Import]:
    tree = ast.parse(source)
    in_functions = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for imported in _modules(node, module, is_package=is_package):
                yield Import(module, imported, id(node) in in_functions, node.lineno)


def _modules(node: ast.Import | ast.ImportFrom, module: str, *, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = [PACKAGE, *module.split(".")] if module else [PACKAGE]
        above = node.level - 1 if is_package else node.level
        base = ".".join([*parts[: len(parts) - above], *([node.module] if node.module else [])])
    inner = [f"{base}.{alias.name}" for alias in node.names]
    yield from dict.fromkeys(name if ours(base) and short(name) in FILES else base for name in inner)


def all_imports() -> list[Import]:
    return [
        found
        for module, path in FILES.items()
        for found in imports_in(module, path.read_text(), is_package=path.name == "__init__.py")
    ]


IMPORTS = all_imports()


def allowed(importer: str, imported: str) -> bool:
    upper, lower = room(importer), room(imported)
    if (
        upper == lower in ("_protocol", "_config", "_gss", "_negotiation", "_stream", "server")
        or (upper, lower) in NEIGHBOURS
    ):
        return True
    return lower in FLOORS and FLOORS[upper] > FLOORS[lower]


def pure(imported: str) -> bool:
    if ours(imported):
        return room(short(imported)) in {"exceptions", "_protocol"}
    return standard(imported) and room(imported) not in {"socket", "_socket", "ssl", "select", "selectors", "asyncio"}


def standard(module: str) -> bool:
    """Whether a module belongs to Python itself."""
    found = importlib.util.find_spec(room(module))
    if found is None or found.origin is None:
        return False
    if found.origin in ("built-in", "frozen"):
        return True
    origin = Path(found.origin)
    homes = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    return any(home in origin.parents for home in homes) and "-packages" not in str(origin)


def test_every_module_has_its_floor() -> None:
    homeless = {module for module in FILES if room(module) not in {*FLOORS, ASIDE}}
    assert not homeless, f"place them in FLOORS: {sorted(homeless)}"


def test_imports_go_down() -> None:
    inside = [found for found in IMPORTS if ours(found.imported) and room(found.importer) in FLOORS]
    wrong = [
        str(found)
        for found in inside
        if room(short(found.imported)) != ASIDE and not allowed(found.importer, short(found.imported))
    ]
    assert inside
    assert not wrong, "\n".join(wrong)


def test_testing_stands_aside() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if ours(found.imported) and room(short(found.imported)) == ASIDE and room(found.importer) != ASIDE
        if not (found.importer == "cli" and found.lazy)
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_packages_have_their_rooms() -> None:
    importers: dict[str, set[str]] = {}
    for found in IMPORTS:
        package = room(found.imported)
        if package not in {PACKAGE, *TYPING_ONLY} and not standard(package) and room(found.importer) != ASIDE:
            importers.setdefault(package, set()).add(found.importer)
    wrong = {
        package: modules
        for package, modules in importers.items()
        if not (modules <= ROOMS[package] if package in ROOMS else len(modules) == 1)
    }
    assert importers
    assert not wrong


def test_protocol_is_pure() -> None:
    of_protocol = [found for found in IMPORTS if room(found.importer) == "_protocol"]
    wrong = [str(found) for found in of_protocol if not pure(found.imported)]
    assert of_protocol
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from . import _stream", ["gsssocks._stream"]),
        ("from ._stream import Deadline", ["gsssocks._stream"]),
        ("from gsssocks import _stream, exceptions", ["gsssocks._stream", "gsssocks.exceptions"]),
        ("import gsssocks._stream as s, os", ["gsssocks._stream", "os"]),
        ("def f():\n    from ._stream import x", ["gsssocks._stream"]),
        ("if TYPE_CHECKING:\n    from ._protocol.messages import Octets", ["gsssocks._protocol.messages"]),
    ],
)
def test_no_form_of_import_is_overlooked(source: str, expected: list[str]) -> None:
    assert [found.imported for found in imports_in("_record", source, is_package=False)] == expected


def test_a_forbidden_import_is_found() -> None:
    assert not allowed("_record", "_stream")
    assert not allowed("_record", "_config")
    assert not allowed("_security", "_gss")
    assert allowed("_gss", "_security")
    assert allowed("_socket", "_protocol.messages")


def test_importing_the_package_is_light() -> None:
    program = "import sys; before = set(sys.modules); import gsssocks; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert PACKAGE in loaded
    assert not loaded & {"gssapi", "ssl", "requests", "urllib3", "asyncio"}
