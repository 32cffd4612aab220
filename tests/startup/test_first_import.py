"""A program is patched when it first imports `socket`, and loads next to nothing of gsssocks before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, inside

if TYPE_CHECKING:
    from pathlib import Path

LOADED = (
    "import sys; print(*sorted(name for name in sys.modules if name.split('.')[0] in "
    "('gsssocks', 'gssapi', 'wrapt', 'socks', '_socket', 'logging', 'dataclasses')))"
)
FINDER = """
import sys
from importlib.machinery import PathFinder
class Instrumenting:
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, path, target)
sys.meta_path.insert(0, Instrumenting())
"""
"""Puts a finder before ours, and never asks the others."""
# Where it is injected, not in `gsssocks run` itself.
FAILING_ONCE = """
import os, sys
if "GSSSOCKS_INJECT" in os.environ and not hasattr(sys, "failed"):
    sys.failed = True
    raise ImportError("not yet")
path = os.path.join(os.path.dirname(os.__file__), "socket.py")
exec(compile(open(path).read(), path, "exec"))
"""
BROKEN = "raise RuntimeError('this wrapt is broken')\n"


class TestBefore:
    def test_next_to_nothing_is_loaded(self, env: Env) -> None:
        done = inside("-c", LOADED, env=env)
        ours = ["gsssocks", "gsssocks._evident", "gsssocks._first_import", "gsssocks._libraries", "gsssocks._startup"]
        assert (done.stdout.split(), done.stderr) == (ours, "")

    def test_a_set_up_that_is_not_evident_is_judged_at_once(self, env: Env) -> None:
        done = inside("-c", LOADED, env={**env, "GSSSOCKS_RULES": "*:25=refuse"})
        assert {"gsssocks._patch", "_socket"} <= set(done.stdout.split())

    @pytest.mark.parametrize(
        "look",
        [
            "hasattr(module, '__file__')",
            "module.__name__, module.__loader__, module.__package__, module.__cached__",
            "getattr(module, '__path__', None), getattr(module, '__warningregistry__', None)",
            "isinstance(module, type(sys)), module.__class__",
            "__import__('inspect').getmodule(lambda: None)",
        ],
    )
    def test_whoever_goes_through_all_modules_loads_none(self, env: Env, look: str) -> None:
        program = f"import sys; module = sys.modules['socket']; {look}; print('_socket' in sys.modules)"
        done = inside("-c", program, env=env)
        assert (done.stdout, done.stderr) == ("False\n", "")


class TestImport:
    @pytest.mark.parametrize(
        "module",
        [
            *(
                "socket",
                "threading",
                "_socket, socket",
                "asyncio",
                "email.utils",
                "ftplib",
                "http.client",
                "importlib.metadata",
            ),
            *("logging.handlers", "multiprocessing.connection", "smtplib", "socketserver", "ssl", "urllib.request"),
            *("gssapi", "gsssocks.cli", "gsssocks.exceptions", "gsssocks.server", "socks", "wrapt"),
            *("OpenSSL.SSL", "django.core.mail", "dns.resolver", "flask", "gunicorn.app.base", "requests", "trio"),
            "uvloop",
        ],
    )
    def test_whatever_imports_it_first(self, env: Env, module: str) -> None:
        done = inside("-c", f"import {module}\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    @pytest.mark.parametrize(
        ("program", "same"),
        [
            ("import socks; first = socks.ProxyError", "gsssocks.ProxyError.__mro__[1]"),
            ("from gsssocks import Proxy as first", "type(gsssocks.status().settings.proxies[0])"),
            ("import gsssocks.exceptions as first", "sys.modules['gsssocks.exceptions']"),
            ("from threading import Thread as first", "sys.modules['logging'].threading.Thread"),
            ("from wrapt import FunctionWrapper as first", "type(vars(sys.modules['socket'].socket)['connect'])"),
        ],
    )
    def test_nothing_is_imported_twice(self, env: Env, program: str, same: str) -> None:
        done = inside("-c", f"{program}\nimport gsssocks, sys; print(first is {same})", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    def test_what_was_imported_on_the_way_has_its_own_loader(self, env: Env) -> None:
        program = "import socks; print(socks.__spec__.loader is socks.__loader__, type(socks.__loader__).__name__)"
        assert inside("-c", program, env=env).stdout == "True SourceFileLoader\n"

    def test_by_a_name_of_the_package(self, env: Env) -> None:
        done = inside("-c", f"from gsssocks import GSSSocket, install\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    def test_whoever_asks_where_it_is_gets_its_own_spec(self, env: Env) -> None:
        program = (
            "import importlib.util as u; spec = u.find_spec('socket'); print('create_server' in "
            f"spec.loader.get_source('socket'), spec.origin == spec.loader.path)\n{PROXIED}"
        )
        done = inside("-c", program, env=env)
        assert (done.stdout, done.stderr) == ("True True\nTrue\n", "")

    def test_the_module_has_its_own_loader(self, env: Env) -> None:
        program = "import socket; print(socket.__loader__ is socket.__spec__.loader, type(socket.__loader__).__name__)"
        assert inside("-c", program, env=env).stdout == "True SourceFileLoader\n"

    def test_what_the_program_makes_of_its_environment_does_not_matter(self, env: Env) -> None:
        done = inside("-c", f"import os; os.environ['GSSSOCKS_PROXY'] = 'http://wrong'\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    @pytest.mark.parametrize("before", ["", FINDER], ids=["found-by-ours", "found-by-another"])
    def test_several_threads_at_once(self, env: Env, before: str) -> None:
        """None of them gets past the proxy, which is not there."""
        program = f"{before}{self.THREADS}"
        for _ in range(3):
            done = inside("-c", program, env=env)
            assert (done.stdout, done.stderr) == ("6 {'ProxyRefusedError'}\n", "")

    THREADS = """
import threading
start, outcomes = threading.Barrier(6), []
def connect(module):
    start.wait()
    __import__(module)
    import socket
    try:
        socket.create_connection(("192.0.2.1", 80), 5)
    except Exception as error:
        outcomes.append(type(error).__name__)
threads = [threading.Thread(target=connect, args=(module,)) for module in 2 * ["socket", "ssl", "http.client"]]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(outcomes), set(outcomes))
"""

    def test_after_a_fork(self, env: Env) -> None:
        program = f"import os\nif os.fork(): print(os.wait()[1])\nelse:\n    {PROXIED}"
        assert inside("-c", program, env=env).stdout == "True\n0\n"


class TestPastOurFinder:
    """Whatever becomes of `sys.meta_path`, `socket` is patched when it is first used."""

    @pytest.mark.parametrize("module", ["socket", "threading", "asyncio", "http.client", "logging.handlers", "gevent"])
    def test_by_a_finder_in_front_of_it(self, env: Env, module: str) -> None:
        done = inside("-c", f"{FINDER}import {module}\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    def test_by_taking_it_away(self, env: Env) -> None:
        program = "import sys; sys.meta_path = [f for f in sys.meta_path if isinstance(f, type)]"
        done = inside("-c", f"{program}\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    @pytest.mark.parametrize("package", ["socks", "wrapt"])
    def test_in_the_middle_of_what_the_patch_needs_the_program_ends(self, env: Env, package: str) -> None:
        done = inside("-c", f"{FINDER}import {package}\nprint('went on')", env=env)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert f"partially initialized module {package!r}" in done.stderr


class TestTheSameModule:
    """What stood in `sys.modules` before the import is the module, and is like any other afterwards."""

    FIRST = "import sys; first = sys.modules['socket']\n"
    SAME = "print(first is sys.modules['socket'], type(first).__name__)\n"

    @pytest.mark.parametrize(
        "use",
        [
            "import socket",
            "from socket import socket",
            "from socket import *",
            "first.socket",
            "vars(first)['socket']",
            "assert 'socket' in dir(first)",
            "assert repr(first).startswith(\"<module 'socket' from \")",
            "first.mine = 1",
            "try: del first.mine\nexcept AttributeError: pass",
            "try: first.yours\nexcept AttributeError: pass",
            "import copy\ntry: copy.copy(first)\nexcept TypeError as error: assert \"'module' object\" in str(error)",
            "del sys.modules['socket']; import socket",
            "del sys.modules['socket']; import threading",
            "del sys.modules['socket']; first.socket",
            "import importlib; importlib.import_module('socket').socket",
        ],
    )
    def test_whoever_has_taken_it_before(self, env: Env, use: str) -> None:
        done = inside("-c", f"{self.FIRST}{use}\n{self.SAME}{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True module\nTrue\n", "")

    def test_what_is_set_before_stays(self, env: Env) -> None:
        done = inside("-c", f"{self.FIRST}first.has_ipv6 = 'mine'\nimport socket; print(socket.has_ipv6)", env=env)
        assert (done.stdout, done.stderr) == ("mine\n", "")

    def test_an_import_that_fails_is_tried_again(self, env: Env, tmp_path: Path) -> None:
        (tmp_path / "socket.py").write_text(FAILING_ONCE)
        program = f"{self.FIRST}try: first.socket\nexcept ImportError as error: print(error)\n{PROXIED}\n{self.SAME}"
        done = inside("-c", program, env={**env, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
        assert (done.stdout, done.stderr) == ("not yet\nTrue\nTrue module\n", "")


class TestFailure:
    """Of what cannot be told at once."""

    @pytest.fixture
    def env(self, env: Env, tmp_path: Path) -> Env:
        (tmp_path / "wrapt.py").write_text(BROKEN)
        return {**env, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    PROGRAM = "print('ran', flush=True); import socket; print('went on')"

    def test_stops_the_program(self, env: Env) -> None:
        done = inside("-c", self.PROGRAM, env=env)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "ran\n")
        assert done.stderr.startswith("gsssocks: this wrapt is broken\ngsssocks: the program ends here; ")

    def test_an_interrupt_stops_it_too(self, env: Env, tmp_path: Path) -> None:
        """The program might go on, and import `socket` again."""
        (tmp_path / "wrapt.py").write_text("raise KeyboardInterrupt")
        program = "try: import socket\nexcept KeyboardInterrupt: import socket\nprint('went on')"
        done = inside("-c", program, env=env)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert done.stderr.startswith("gsssocks: KeyboardInterrupt\n")

    def test_warns_if_told_to(self, env: Env) -> None:
        done = inside("-c", self.PROGRAM, env=env, options=("--warn",))
        assert (done.returncode, done.stdout) == (0, "ran\nwent on\n")
        assert "going on without a proxy" in done.stderr
