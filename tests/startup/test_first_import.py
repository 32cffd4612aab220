"""A program is patched when it first imports `socket`, and loads next to nothing of gsssocks before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, inside

if TYPE_CHECKING:
    from pathlib import Path

LOADED = (
    "import sys; print(*sorted(name for name in sys.modules if name.split('.')[0] in "
    "('gsssocks', 'gssapi', 'wrapt', 'socks', 'socket', 'logging', 'dataclasses')))"
)
BROKEN = "raise RuntimeError('this wrapt is broken')\n"


class TestBefore:
    def test_next_to_nothing_is_loaded(self, env: Env) -> None:
        done = inside("-c", LOADED, env=env)
        ours = ["gsssocks", "gsssocks._evident", "gsssocks._first_import", "gsssocks._libraries", "gsssocks._startup"]
        assert (done.stdout.split(), done.stderr) == (ours, "")

    def test_a_set_up_that_is_not_evident_is_judged_at_once(self, env: Env) -> None:
        done = inside("-c", LOADED, env={**env, "GSSSOCKS_RULES": "*:25=refuse"})
        assert {"gsssocks._patch", "socket"} <= set(done.stdout.split())


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
            ("import wrapt as first", "sys.modules['gsssocks._patch'].wrapt"),
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

    def test_to_ask_whether_it_is_there_is_not_to_import_it(self, env: Env) -> None:
        done = inside("-c", f"import importlib.util as u; print(u.find_spec('socket').name)\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("socket\nTrue\n", "")

    def test_the_module_has_its_own_loader(self, env: Env) -> None:
        program = "import socket; print(socket.__loader__ is socket.__spec__.loader, type(socket.__loader__).__name__)"
        assert inside("-c", program, env=env).stdout == "True SourceFileLoader\n"

    def test_what_the_program_makes_of_its_environment_does_not_matter(self, env: Env) -> None:
        done = inside("-c", f"import os; os.environ['GSSSOCKS_PROXY'] = 'http://wrong'\n{PROXIED}", env=env)
        assert (done.stdout, done.stderr) == ("True\n", "")

    def test_several_threads_at_once(self, env: Env) -> None:
        """None of them gets past the proxy, which is not there."""
        program = """
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
        for _ in range(3):
            done = inside("-c", program, env=env)
            assert (done.stdout, done.stderr) == ("6 {'ProxyRefusedError'}\n", "")

    def test_after_a_fork(self, env: Env) -> None:
        program = f"import os\nif os.fork(): print(os.wait()[1])\nelse:\n    {PROXIED}"
        assert inside("-c", program, env=env).stdout == "True\n0\n"


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
