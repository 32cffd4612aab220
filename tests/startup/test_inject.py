"""`gsssocks inject`: a whole Python environment whose programs go through the proxy if GSSSOCKS_INJECT is set."""

from __future__ import annotations

import os
import sys
import venv
from typing import TYPE_CHECKING

import pytest

from gsssocks._evident import FALSE
from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, clean, gsssocks, start

if TYPE_CHECKING:
    import subprocess
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
        self.module, self.start_file, self.hook = (packages / f"zz_gsssocks.{kind}" for kind in ("py", "start", "pth"))
        self.files = (self.module, self.start_file, self.hook)
        self._paths = packages / "installed.pth"
        self._paths.write_text("\n".join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]))

    def uninstall_dependencies(self) -> None:
        self._paths.write_text(str(ROOT))

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
        effect = "With GSSSOCKS_INJECT=1, programs of this environment go through the proxy."
        assert done.stdout.splitlines() == [*(f"wrote {path}" for path in environment.files), effect]
        assert all(path.exists() for path in environment.files)

    def test_twice_is_once(self, injected: Environment, env: Env) -> None:
        before = [path.read_text() for path in injected.files]
        assert gsssocks("inject", env=env, python=injected.python).returncode == 0
        assert [path.read_text() for path in injected.files] == before

    def test_the_hook_is_one_line_that_begins_with_import(self, injected: Environment) -> None:
        (line,) = injected.hook.read_text().splitlines()
        assert line.startswith("import ")

    def test_status_when_it_is_there(self, injected: Environment, env: Env) -> None:
        done = gsssocks("inject", "--status", env=env, python=injected.python)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [f"{path} is there" for path in injected.files]

    def test_status_when_it_is_not(self, environment: Environment, env: Env) -> None:
        done = gsssocks("inject", "--status", env=env, python=environment.python)
        assert done.returncode == 1
        assert done.stdout.splitlines() == [f"{path} is not there" for path in environment.files]

    def test_status_when_a_part_is_missing(self, injected: Environment, env: Env) -> None:
        injected.start_file.unlink()
        done = gsssocks("inject", "--status", env=env, python=injected.python)
        assert done.returncode == 1
        assert f"{injected.start_file} is not there" in done.stdout.splitlines()

    def test_remove(self, injected: Environment, env: Env) -> None:
        done = gsssocks("inject", "--remove", env=env, python=injected.python)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [f"removed {path}" for path in injected.files]
        assert not any(path.exists() for path in injected.files)

    def test_remove_what_is_not_there(self, environment: Environment, env: Env) -> None:
        done = gsssocks("inject", "--remove", env=env, python=environment.python)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [f"{path} is not there" for path in environment.files]

    def test_an_environment_that_cannot_be_written_to(self, environment: Environment, env: Env) -> None:
        # A directory in the hook's place stops root, too, whom permissions do not.
        environment.hook.mkdir()
        done = gsssocks("inject", env=env, python=environment.python)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"gsssocks inject: {environment.hook}: Is a directory\n"


class TestIdle:
    @pytest.mark.parametrize("unset", [{}, *({"GSSSOCKS_INJECT": word} for word in ("", *FALSE, "No", "OFF"))])
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

    def test_a_finder_of_the_kind_before_find_spec(self, injected: Environment, env: Env) -> None:
        old = "import sys; sys.meta_path.insert(0, type('Old', (), {'find_module': lambda *_: None})())\n"
        injected.hook.with_name("a_finder.pth").write_text(old)
        done = start(injected.python, "-c", PROXIED, env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

    def test_a_wrong_set_up_stops_the_program(self, injected: Environment, env: Env) -> None:
        done = start(injected.python, "-c", "print('ran')", env={**env, "GSSSOCKS_PROXY": "http://wrong"})
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert "'http://wrong'" in done.stderr
        assert "the program is not started" in done.stderr

    def test_a_missing_package_stops_the_program(self, injected: Environment, env: Env) -> None:
        injected.uninstall_dependencies()
        done = start(injected.python, "-c", "print('ran')", env=env)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert "No module named 'wrapt'" in done.stderr

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


# PEP 829: each line names a `package.module:callable`, which is found by pkgutil.resolve_name() and called without
# arguments; an error is printed, and the program goes on. The line of the `.pth` beside it is ignored: so it goes.
AS_PYTHON_3_15 = """
import pkgutil, traceback
for line in open({path!r}):
    try:
        pkgutil.resolve_name(line.strip())()
    except Exception:
        traceback.print_exc()
"""


class TestStartFile:
    """What Python 3.15 and later start with."""

    def start(self, injected: Environment, program: str, env: Env) -> subprocess.CompletedProcess[str]:
        injected.hook.unlink()
        text = f"{AS_PYTHON_3_15.format(path=str(injected.start_file))}\n{program}"
        # Not from here, where `-c` would find gsssocks although it is not installed there.
        return start(injected.python, "-c", text, env=env, cwd=injected.hook.parent)

    def test_is_one_entry_point(self, injected: Environment) -> None:
        assert injected.start_file.read_text() == "zz_gsssocks:start\n"

    def test_patches(self, injected: Environment, env: Env) -> None:
        done = self.start(injected, PROXIED, {**env, "GSSSOCKS_INJECT": "1"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

    @pytest.mark.parametrize("unset", [{}, *({"GSSSOCKS_INJECT": word} for word in ("", *FALSE, "No", "OFF"))])
    def test_imports_nothing_when_idle(self, injected: Environment, env: Env, unset: Env) -> None:
        done = self.start(injected, OURS, {**env, **unset})
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")

    def test_together_with_the_path_file_is_once(self, injected: Environment, env: Env) -> None:
        text = AS_PYTHON_3_15.format(path=str(injected.start_file)) + PROXIED
        done = start(injected.python, "-c", text, env={**env, "GSSSOCKS_INJECT": "1"})
        assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")

    def test_a_wrong_set_up_stops_the_program(self, injected: Environment, env: Env) -> None:
        wrong = {**env, "GSSSOCKS_INJECT": "1", "GSSSOCKS_PROXY": "http://wrong"}
        done = self.start(injected, "print('ran')", wrong)
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert "'http://wrong'" in done.stderr

    def test_left_behind_stops_the_program(self, injected: Environment, env: Env) -> None:
        injected.uninstall_gsssocks()
        done = self.start(injected, "print('ran')", {**env, "GSSSOCKS_INJECT": "1"})
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert done.stderr.startswith("gsssocks: cannot be imported by ")

    def test_left_behind_warns_if_told_to(self, injected: Environment, env: Env) -> None:
        injected.uninstall_gsssocks()
        done = self.start(injected, "print('ran')", {**env, "GSSSOCKS_INJECT": "warn"})
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert done.stderr.startswith("gsssocks: cannot be imported by ")


def test_a_program_of_the_environment_goes_through_the_proxy(
    injected: Environment, dante_env: Env, dante_confidentiality: Dante, https_server: HTTPSServer
) -> None:
    granted = dante_confidentiality.connections()
    env = {**dante_env, "GSSSOCKS_INJECT": "1"}
    del env["PYTHONPATH"]
    done = start(injected.python, "-c", FETCH, https_server.url("/bytes/1000"), env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")
    assert dante_confidentiality.connections() == granted + 1
