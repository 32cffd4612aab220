"""`gsssocks inject`: a whole Python environment whose programs go through the proxy if GSSSOCKS_INJECT is set."""

from __future__ import annotations

import os
import sys
import venv
from typing import TYPE_CHECKING

import pytest

from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, clean, gsssocks, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

OURS = "import sys; print([name for name in sys.modules if name.split('.')[0] in ('gsssocks', 'wrapt', 'gssapi')])"
FETCH = "import sys, urllib.request as r; print(len(r.urlopen(sys.argv[1], timeout=20).read()))"


class Environment:
    """A virtual environment in which gsssocks is installed as `pip install --editable` does it: by a path file."""

    def __init__(self, directory: Path) -> None:
        venv.create(directory, symlinks=True)
        self.python = directory / "bin" / "python"
        (packages,) = directory.glob("lib/python*/site-packages")
        self.hook = packages / "zz_gsssocks.pth"
        self._paths = packages / "installed.pth"
        self._paths.write_text("\n".join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]))

    def uninstall_gsssocks(self) -> None:
        """What pip would do, which does not know the hook."""
        self._paths.unlink()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.fixture
def injected(environment: Environment, env: Env) -> Environment:
    assert gsssocks("inject", env=env, python=environment.python).returncode == 0
    return environment


@pytest.fixture
def env() -> Env:
    """A proxy that nothing may need, since there is none."""
    return {**clean(os.environ), "GSSSOCKS_PROXY": "socks5h://127.0.0.1:1"}


class TestCommand:
    def test_says_what_it_wrote_and_what_that_does(self, environment: Environment, env: Env) -> None:
        done = gsssocks("inject", env=env, python=environment.python)
        assert (done.returncode, done.stderr) == (0, "")
        effect = "with GSSSOCKS_INJECT=1, programs of this environment go through the proxy"
        assert done.stdout == f"wrote {environment.hook}: {effect}\n"
        assert environment.hook.exists()

    def test_twice_is_once(self, injected: Environment, env: Env) -> None:
        before = injected.hook.read_text()
        assert gsssocks("inject", env=env, python=injected.python).returncode == 0
        assert injected.hook.read_text() == before

    def test_the_hook_is_one_line_that_begins_with_import(self, injected: Environment) -> None:
        (line,) = injected.hook.read_text().splitlines()
        assert line.startswith("import ")

    def test_status_when_it_is_there(self, injected: Environment, env: Env) -> None:
        done = gsssocks("inject", "--status", env=env, python=injected.python)
        assert (done.returncode, done.stdout) == (0, f"{injected.hook} is there\n")

    def test_status_when_it_is_not(self, environment: Environment, env: Env) -> None:
        done = gsssocks("inject", "--status", env=env, python=environment.python)
        assert (done.returncode, done.stdout) == (1, f"{environment.hook} is not there\n")

    def test_remove(self, injected: Environment, env: Env) -> None:
        done = gsssocks("inject", "--remove", env=env, python=injected.python)
        assert (done.returncode, done.stdout) == (0, f"removed {injected.hook}\n")
        assert not injected.hook.exists()

    def test_remove_what_is_not_there(self, environment: Environment, env: Env) -> None:
        done = gsssocks("inject", "--remove", env=env, python=environment.python)
        assert (done.returncode, done.stdout) == (0, f"{environment.hook} is not there\n")

    def test_an_environment_that_cannot_be_written_to(self, environment: Environment, env: Env) -> None:
        # A directory in the hook's place stops root, too, whom permissions do not.
        environment.hook.mkdir()
        done = gsssocks("inject", env=env, python=environment.python)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"gsssocks inject: {environment.hook}: Is a directory\n"


class TestIdle:
    @pytest.mark.parametrize("unset", [{}, {"GSSSOCKS_INJECT": ""}, {"GSSSOCKS_INJECT": "0"}])
    def test_imports_nothing(self, injected: Environment, env: Env, unset: Env) -> None:
        done = start(injected.python, "-c", OURS, env={**env, **unset})
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")

    def test_a_wrong_set_up_is_no_concern(self, injected: Environment, env: Env) -> None:
        done = start(injected.python, "-c", "print('ran')", env={**env, "GSSSOCKS_PROXY": "http://wrong"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


class TestActive:
    @pytest.fixture
    def env(self, env: Env) -> Env:
        return {**env, "GSSSOCKS_INJECT": "1"}

    # -I and -E ignore the variables of Python itself, of which this needs none.
    @pytest.mark.parametrize("options", [(), ("-I",), ("-E",)])
    def test_programs_are_patched(self, injected: Environment, env: Env, options: tuple[str, ...]) -> None:
        done = start(injected.python, *options, "-c", PROXIED, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

    def test_not_after_remove(self, injected: Environment, env: Env) -> None:
        gsssocks("inject", "--remove", env=env, python=injected.python)
        assert start(injected.python, "-c", PROXIED, env=env).stdout == "False\n"

    def test_together_with_run(self, injected: Environment, env: Env) -> None:
        done = gsssocks("run", "--", injected.python, "-c", PROXIED, env=env, python=injected.python)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

    @pytest.mark.parametrize("module", ["ssl", "asyncio.events", "gssapi"])
    def test_not_imported_before_the_program(self, injected: Environment, env: Env, module: str) -> None:
        done = start(injected.python, "-c", f"import sys; print({module!r} in sys.modules)", env=env)
        assert done.stdout == "False\n"

    def test_another_path_file_has_imported_gsssocks_before(self, injected: Environment, env: Env) -> None:
        injected.hook.with_name("z_earlier.pth").write_text("import gsssocks; gsssocks.status()\n")
        assert start(injected.python, "-c", PROXIED, env=env).stdout == "True\n"

    def test_a_wrong_set_up_stops_the_program(self, injected: Environment, env: Env) -> None:
        done = start(injected.python, "-c", "print('ran')", env={**env, "GSSSOCKS_PROXY": "http://wrong"})
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert "'http://wrong'" in done.stderr
        assert "the program is not started" in done.stderr

    def test_a_wrong_set_up_warns_if_told_to(self, injected: Environment, env: Env) -> None:
        wrong = {**env, "GSSSOCKS_PROXY": "http://wrong", "GSSSOCKS_INJECT": "warn"}
        done = start(injected.python, "-c", PROXIED, env=wrong)
        assert (done.returncode, done.stdout) == (0, "False\n")
        assert "going on without a proxy" in done.stderr

    def test_a_hook_left_behind_stops_the_program(self, injected: Environment, env: Env) -> None:
        injected.uninstall_gsssocks()
        done = start(injected.python, "-c", "print('ran')", env=env)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert done.stderr.startswith(f"gsssocks: cannot be imported by {injected.python}: ")

    def test_a_hook_left_behind_warns_if_told_to(self, injected: Environment, env: Env) -> None:
        injected.uninstall_gsssocks()
        done = start(injected.python, "-c", "print('ran')", env={**env, "GSSSOCKS_INJECT": "warn"})
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert done.stderr.startswith("gsssocks: cannot be imported")


def test_a_program_of_the_environment_goes_through_the_proxy(
    injected: Environment, dante_env: Env, dante_confidentiality: Dante, https_server: HTTPSServer
) -> None:
    granted = dante_confidentiality.connections()
    env = {**dante_env, "GSSSOCKS_INJECT": "1"}
    del env["PYTHONPATH"]
    done = start(injected.python, "-c", FETCH, https_server.url("/bytes/1000"), env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")
    assert dante_confidentiality.connections() == granted + 1
