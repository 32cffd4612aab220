"""`gsssocks run`: the patch is there before the program's first line, or the program does not start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from typing import TYPE_CHECKING

import pytest

from gsssocks._evident import FALSE
from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, fetched, gsssocks, inside, serving, start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

CHILD = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {PROXIED!r}]))"
MULTIPROCESSING = f"""
import contextlib, io, multiprocessing, sys

def look(queue):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec({PROXIED!r})
    queue.put(said.getvalue())

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    process = context.Process(target=look, args=(queue,))
    process.start()
    print(queue.get(), end="")
    process.join()
"""
APP = """
import urllib.request

def app(environ, start_response):
    with urllib.request.urlopen(f"https://localhost:{environ['PATH_INFO'][1:]}/bytes/1000", timeout=20) as answer:
        body = answer.read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


# Each as it may stand before a command.
LAUNCHERS = [
    ("env",),
    ("env", "-u", "HOME", "--chdir=/", "A=b", "PYTHONSAFEPATH=1"),
    ("env", "--unset", "HOME", "-C", "/", "--"),
    ("/usr/bin/env", "-S nice -n 1 env"),
    ("nice",),
    ("nice", "-5"),
    ("nice", "-n", "1", "--"),
    ("nice", "--adj", "1"),
    ("nohup",),
    ("ionice", "-t", "-c", "2", "-n7"),
    ("ionice", "--class", "idle"),
    ("timeout", "60"),
    ("timeout", "-k", "1", "--signal=INT", "--foreground", "60"),
    ("stdbuf", "-oL", "-e", "0"),
    ("stdbuf", "--output", "L"),
    ("setsid", "--wait"),
    ("nice", "env", "timeout", "60"),
]


def script(directory: Path, text: str, name: str = "program.py") -> Path:
    path = directory / name
    path.write_text(text)
    return path


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


PATCHED, PLAIN = (0, "True\n", ""), (0, "False\n", "")


class TestEveryWayToStart:
    def test_command(self, env: Env) -> None:
        assert outcome(inside("-c", PROXIED, env=env)) == PATCHED

    def test_script(self, env: Env, tmp_path: Path) -> None:
        assert outcome(inside(script(tmp_path, PROXIED), env=env)) == PATCHED

    def test_module(self, env: Env, tmp_path: Path) -> None:
        script(tmp_path, PROXIED)
        assert outcome(inside("-m", "program", env=env, cwd=tmp_path)) == PATCHED

    def test_script_with_a_first_line(self, env: Env, tmp_path: Path) -> None:
        path = script(tmp_path, f"#!{sys.executable}\n{PROXIED}\n")
        path.chmod(0o755)
        assert outcome(gsssocks("run", "--", path, env=env)) == PATCHED

    def test_virtual_environment(self, env: Env, tmp_path: Path) -> None:
        venv.create(tmp_path / "venv", symlinks=True)
        packages = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
        python = tmp_path / "venv" / "bin" / "python"
        assert outcome(gsssocks("run", "--", python, "-c", PROXIED, env={**env, "PYTHONPATH": packages})) == PATCHED

    def test_run_inside_run(self, env: Env) -> None:
        assert outcome(inside("-m", "gsssocks", "run", "--", sys.executable, "-c", PROXIED, env=env)) == PATCHED

    def test_without_run_nothing_is_patched(self, env: Env) -> None:
        assert outcome(start(sys.executable, "-c", PROXIED, env=env)) == PLAIN


class TestTheProgramIsItself:
    def test_arguments_and_exit_status(self, env: Env) -> None:
        done = inside("-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "-x", "--", "a b", env=env)
        assert outcome(done) == (7, "['-x', '--', 'a b']\n", "")

    def test_standard_input(self, env: Env) -> None:
        command = [sys.executable, "-m", "gsssocks", "run", "--", sys.executable, "-c", "print(input())"]
        done = subprocess.run(command, env=env, input="typed", capture_output=True, text=True, check=False)
        assert outcome(done) == (0, "typed\n", "")

    def test_it_takes_the_place_of_the_command(self, env: Env) -> None:
        command = [sys.executable, "-m", "gsssocks", "run", "--", sys.executable, "-c", "import os; print(os.getpid())"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            said, _ = process.communicate()
        assert int(said) == process.pid

    def test_the_users_own_sitecustomize_runs(self, env: Env, tmp_path: Path) -> None:
        script(tmp_path, "import builtins; builtins.mine = 'mine'", "sitecustomize.py")
        both = {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
        program = "import sitecustomize; print(mine, sitecustomize.__file__); " + PROXIED
        assert inside("-c", program, env=both).stdout == f"mine {tmp_path / 'sitecustomize.py'}\nTrue\n"

    def test_the_users_own_sitecustomize_is_patched_already(self, env: Env, tmp_path: Path) -> None:
        script(tmp_path, PROXIED, "sitecustomize.py")
        both = {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
        command_and_program = inside("-c", "", env=both).stdout
        assert command_and_program == "False\nTrue\n"

    def test_an_error_in_the_users_own_sitecustomize_is_told_as_ever(self, env: Env, tmp_path: Path) -> None:
        script(tmp_path, "import nowhere", "sitecustomize.py")
        both = {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
        plain = start(sys.executable, "-c", "", env=both)
        assert "nowhere" in plain.stderr
        command_and_program = inside("-c", "", env=both)
        assert outcome(command_and_program) == (0, "", 2 * plain.stderr)

    @pytest.mark.parametrize("module", ["ssl", "urllib3", "requests", "asyncio", "asyncio.events", "gssapi"])
    def test_not_imported_before_it(self, env: Env, module: str) -> None:
        program = f"import sys; print({module!r} in sys.modules); " + PROXIED
        assert outcome(inside("-c", program, env=env)) == (0, "False\nTrue\n", "")

    def test_importlib_metadata_is_the_real_one(self, env: Env) -> None:
        program = (
            "import importlib, sys, wrapt; print('importlib.metadata' in sys.modules); "
            "wrapt.discover_post_import_hooks('none'); print(importlib.metadata is sys.modules['importlib.metadata']); "
            "print(importlib.metadata.version('wrapt') == wrapt.__version__)"
        )
        assert outcome(inside("-c", program, env=env)) == (0, "False\nTrue\nTrue\n", "")

    def test_asyncio_is_the_real_one(self, env: Env) -> None:
        program = "import asyncio; asyncio.run(asyncio.sleep(0)); print(asyncio.__file__ is not None)"
        assert outcome(inside("-c", program, env=env)) == (0, "True\n", "")


class TestWhatIsNoPython:
    SAYS = "gsssocks run: {} is no Python: its own connections do not go through the proxy\n"

    @pytest.mark.parametrize("launcher", [(), ("nice", "env", "A=b")])
    def test_is_started_with_a_warning(self, env: Env, launcher: tuple[str, ...]) -> None:
        done = gsssocks("run", "--", *launcher, "cat", "/dev/null", env=env)
        assert outcome(done) == (0, "", self.SAYS.format("cat"))

    def test_is_warned_of_behind_the_first_line_of_a_script(self, env: Env, tmp_path: Path) -> None:
        path = script(tmp_path, f"#!{shutil.which('cat')}\n")
        path.chmod(0o755)
        assert gsssocks("run", "--", path, env=env).stderr == self.SAYS.format(shutil.which("cat"))

    def test_is_not_warned_of_where_it_is_a_shell(self, env: Env) -> None:
        shell = ("sh", "-c", f'exec {sys.executable} -c "{PROXIED}"')
        assert outcome(gsssocks("run", "--", *shell, env=env)) == PATCHED

    def test_is_not_warned_of_where_it_is_python_by_another_name(self, env: Env, tmp_path: Path) -> None:
        name = tmp_path / "interpreter"
        name.symlink_to(os.path.realpath(sys.executable))
        # Without site, since it does not find the packages of this environment.
        assert gsssocks("run", "--", name, "-S", "-c", "", env=env).stderr == ""


class TestChildren:
    def test_by_default(self, env: Env) -> None:
        assert outcome(inside("-c", CHILD, env=env)) == PATCHED

    def test_not_with_no_children(self, env: Env) -> None:
        done = inside("-u", "-c", f"{PROXIED}; {CHILD}", env=env, options=("--no-children",))
        assert outcome(done) == (0, "True\nFalse\n", "")

    @pytest.mark.parametrize("word", [*FALSE, "No"])
    def test_not_where_the_environment_says_no(self, env: Env, word: str) -> None:
        hook = f"{ROOT / 'gsssocks' / '_inject'}{os.pathsep}{env['PYTHONPATH']}"
        asked = {**env, "GSSSOCKS_INJECT": "1", "GSSSOCKS_CHILDREN": word, "PYTHONPATH": hook}
        done = start(sys.executable, "-u", "-c", f"{PROXIED}; {CHILD}", env=asked)
        assert outcome(done) == (0, "True\nFalse\n", "")

    @pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
    def test_multiprocessing(self, env: Env, tmp_path: Path, method: str) -> None:
        done = inside("-W", "ignore", script(tmp_path, MULTIPROCESSING), method, env=env)
        assert outcome(done) == PATCHED

    @pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["loaded-by-workers", "preloaded"])
    def test_gunicorn_workers(
        self,
        dante_env: Env,
        dante_confidentiality: Dante,
        https_server: HTTPSServer,
        tmp_path: Path,
        preload: tuple[str, ...],
    ) -> None:
        script(tmp_path, APP)
        granted = dante_confidentiality.connections()
        command = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", *preload)
        with serving(*command, "program:app", env=dante_env, cwd=tmp_path, sign="Listening at:") as said:
            (address,) = (word for word in said[-1].split() if word.startswith("http://"))
            assert len(fetched(f"{address}/{https_server.address[1]}")) == 1000
        assert dante_confidentiality.connections() == granted + 1


class TestAWrongSetUp:
    """The program's first line never runs."""

    def stopped(self, done: subprocess.CompletedProcess[str]) -> str:
        assert (done.returncode, done.stdout) == (EX_CONFIG, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    @pytest.mark.parametrize(
        ("variable", "value", "quoted"),
        [
            ("GSSSOCKS_PROXY", "", "no proxy given"),
            ("GSSSOCKS_PROXY", "http://proxy:3128", "'http://proxy:3128'"),
            ("GSSSOCKS_PROXY", "socks5h://proxy?colour=red", "'colour'"),
            ("GSSSOCKS_PROTECTION", "much", "'much'"),
            ("GSSSOCKS_NO_PROXY", "10.0.0.0/33", "10.0.0.0/33"),
            ("GSSSOCKS_RULES", "*:25=perhaps", "perhaps"),
            ("GSSSOCKS_RULES", "a.example=direct,a.example=refuse", "contradict each other: 'a.example=direct'"),
            ("GSSSOCKS_RULES", "10.0.0.0/33=direct", "'10.0.0.0/33'"),
            ("GSSSOCKS_KEYTAB", "/nonexistent", "the keytab '/nonexistent' is not there"),
            ("GSSSOCKS_PLACEHOLDERS", "198.18.0.0/33", "'198.18.0.0/33'"),
            ("GSSSOCKS_CONFIG", "/nonexistent.ini", "/nonexistent.ini"),
        ],
    )
    def test_is_quoted_with_its_source(self, env: Env, variable: str, value: str, quoted: str) -> None:
        said = self.stopped(inside("-c", "print('ran')", env={**env, variable: value}))
        assert said.startswith("gsssocks run: ")
        assert quoted in said
        assert variable in said

    @pytest.mark.parametrize(
        ("option", "value"), [("--proxy", "http://proxy:3128"), ("--no-proxy", "a b"), ("--rules", "*:25=perhaps")]
    )
    def test_in_an_option_is_quoted_with_its_name(self, env: Env, option: str, value: str) -> None:
        said = self.stopped(inside("-c", "print('ran')", env=env, options=(option, value)))
        assert said.startswith(f"gsssocks run: option {option}: bad ")
        assert f"'{value}'" in said

    def test_a_typing_error_in_the_file_is_quoted_with_its_name(self, env: Env, tmp_path: Path) -> None:
        path = script(tmp_path, "[proxy]\nprotecton = integrity\n", "gsssocks.ini")
        said = self.stopped(inside("-c", "print('ran')", env={**env, "GSSSOCKS_CONFIG": str(path)}))
        assert said == f"gsssocks run: {path}, line 2: unknown option 'protecton'; did you mean 'protection'?\n"

    def test_that_the_program_alone_meets(self, env: Env) -> None:
        wrong = {**env, "GSSSOCKS_INJECT": "1", "GSSSOCKS_PROXY": "http://proxy:3128"}
        hook = ROOT / "gsssocks" / "_inject"
        path = f"{hook}{os.pathsep}{env['PYTHONPATH']}"
        said = self.stopped(start(sys.executable, "-c", "print('ran')", env={**wrong, "PYTHONPATH": path}))
        assert "'http://proxy:3128'" in said

    @pytest.mark.parametrize("word", ["", *FALSE, "No"])
    def test_is_no_concern_where_the_environment_says_no(self, env: Env, word: str) -> None:
        hook = f"{ROOT / 'gsssocks' / '_inject'}{os.pathsep}{env['PYTHONPATH']}"
        wrong = {**env, "GSSSOCKS_INJECT": word, "GSSSOCKS_PROXY": "http://proxy:3128", "PYTHONPATH": hook}
        assert outcome(start(sys.executable, "-c", "print('ran')", env=wrong)) == (0, "ran\n", "")

    @pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
    def test_that_cannot_be_told(self, env: Env, stderr: str) -> None:
        wrong = {**env, "GSSSOCKS_INJECT": "1", "GSSSOCKS_PROXY": "http://proxy:3128"}
        path = f"{ROOT / 'gsssocks' / '_inject'}{os.pathsep}{env['PYTHONPATH']}"
        shell = ("sh", "-c", f'exec "$@" {stderr}', "sh")
        self.stopped(start(*shell, sys.executable, "-c", "print('ran')", env={**wrong, "PYTHONPATH": path}))

    def test_warn_runs_it_with_a_warning(self, env: Env) -> None:
        done = inside("-c", PROXIED, env={**env, "GSSSOCKS_PROXY": "http://proxy:3128"}, options=("--warn",))
        assert (done.returncode, done.stdout) == (0, "False\n")
        assert "'http://proxy:3128'" in done.stderr
        assert "going on without a proxy" in done.stderr

    def test_gsssocks_is_not_installed_there(self, env: Env, tmp_path: Path) -> None:
        venv.create(tmp_path / "venv", symlinks=True)
        del env["PYTHONPATH"]
        python = tmp_path / "venv" / "bin" / "python"
        said = self.stopped(gsssocks("run", "--", python, "-c", "print('ran')", env=env, cwd=ROOT))
        assert f"cannot be imported by {python}" in said

    def test_gsssocks_is_not_installed_there_warns(self, env: Env, tmp_path: Path) -> None:
        venv.create(tmp_path / "venv", symlinks=True)
        del env["PYTHONPATH"]
        python = tmp_path / "venv" / "bin" / "python"
        done = gsssocks("run", "--warn", "--", python, "-c", "print('ran')", env=env, cwd=ROOT)
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert f"cannot be imported by {python}" in done.stderr

    def test_no_such_program(self, env: Env) -> None:
        done = gsssocks("run", "--", "/nonexistent", env=env)
        assert outcome(done) == (127, "", "gsssocks run: /nonexistent: No such file or directory\n")

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (("-I",), "-I"),
            (("-E",), "-E"),
            (("-S",), "-S"),
            (("-sEu",), "-E"),
            (("-W", "error", "-I"), "-I"),
            (("-Xutf8", "-I"), "-I"),
            (("--check-hash-based-pycs", "always", "-I"), "-I"),
        ],
    )
    def test_python_that_ignores_the_environment(self, env: Env, options: tuple[str, ...], reason: str) -> None:
        said = self.stopped(inside(*options, "-c", "print('ran')", env=env))
        assert said.startswith(f"gsssocks run: {reason} makes Python ignore the environment")
        assert ("where `gsssocks inject` was run" in said) == (reason != "-S")

    @pytest.mark.parametrize("launcher", LAUNCHERS, ids=" ".join)
    def test_python_that_ignores_the_environment_started_by_another(self, env: Env, launcher: tuple[str, ...]) -> None:
        done = gsssocks("run", "--", *launcher, sys.executable, "-I", "-c", "print('ran')", env=env)
        assert self.stopped(done).startswith("gsssocks run: -I makes Python ignore the environment")

    @pytest.mark.parametrize("launcher", LAUNCHERS, ids=" ".join)
    def test_python_started_by_another(self, env: Env, launcher: tuple[str, ...]) -> None:
        done = gsssocks("run", "--", *launcher, sys.executable, "-c", PROXIED, "-I", env=env)
        assert outcome(done) == PATCHED

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (("-i",), "env -i"),
            (("--ignore-env",), "env -i"),
            (("-",), "env -"),
            (("-vi", "HOME=/"), "env -i"),
            (("-u", "PYTHONPATH"), "env -u PYTHONPATH"),
            (("--unset=PYTHONPATH",), "env -u PYTHONPATH"),
            (("A=b", "PYTHONPATH=lib"), "env PYTHONPATH="),
            (("-S-i HOME=/",), "env -i"),
            (("nice", "env", "-i"), "env -i"),
        ],
    )
    def test_env_that_takes_it_away(self, env: Env, arguments: tuple[str, ...], reason: str) -> None:
        done = gsssocks("run", "--", "env", *arguments, sys.executable, "-c", "print('ran')", env=env)
        assert self.stopped(done).startswith(f"gsssocks run: {reason} makes Python ignore the environment")

    def test_env_that_starts_something_else(self, env: Env) -> None:
        done = gsssocks("run", "--", "env", "-i", "echo", "python", "-I", env=env)
        assert (done.returncode, done.stdout) == (0, "python -I\n")

    def test_env_that_adds_to_the_path(self, env: Env, tmp_path: Path) -> None:
        script(tmp_path, "", "mine.py")
        hook = ROOT / "gsssocks" / "_inject"
        path = os.pathsep.join(map(str, (tmp_path, hook, ROOT)))
        done = gsssocks(
            "run", "--", "env", f"PYTHONPATH={path}", sys.executable, "-c", f"import mine; {PROXIED}", env=env
        )
        assert outcome(done) == PATCHED

    @pytest.mark.parametrize(
        "first",
        [
            f"#!{sys.executable} -Es",
            "#!/usr/bin/env -S python3 -I",
            "#!/usr/bin/env -S -i python3",
            "#!/usr/bin/env -vSA=b nice -n 1 python3 -I",
        ],
    )
    def test_script_whose_python_ignores_the_environment(self, env: Env, tmp_path: Path, first: str) -> None:
        path = script(tmp_path, f"{first}\nprint('ran')\n")
        path.chmod(0o755)
        assert "makes Python ignore the environment" in self.stopped(gsssocks("run", "--", path, env=env))

    @pytest.mark.parametrize("option", ["-I", "-E", "-S"])
    def test_the_same_letter_is_the_programs_own_option(self, env: Env, option: str) -> None:
        assert inside("-c", "import sys; print(sys.argv[1])", option, env=env).stdout == f"{option}\n"
