"""What a user installs: a wheel, where the rest of the tests have the checkout itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from tests.startup.program import EX_CONFIG, PROXIED, ROOT, Env, clean, start

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.default_python_only

SOURCES = ("gsssocks", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: to build leaves files behind."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(built), str(source)], check=True, timeout=300)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture
def python(wheel: Path, tmp_path: Path) -> Path:
    """A virtual environment with the wheel, and with the packages it needs from this one."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    with ZipFile(wheel) as archive:
        archive.extractall(packages)
    needed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "needed.pth").write_text("\n".join(needed))
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture
def env() -> Env:
    return {**clean(os.environ), "GSSSOCKS_PROXY": "socks5h://127.0.0.1:1"}


def test_has_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "gsssocks"
    files = {str(path.relative_to(ROOT)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("gsssocks/")}
    assert packed == files


def test_it_is_the_wheel_that_is_tried(python: Path, env: Env, tmp_path: Path) -> None:
    done = start(python, "-c", "import gsssocks; print(gsssocks.__file__)", env=env, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path))


def test_run(python: Path, env: Env, tmp_path: Path) -> None:
    done = start(python, "-m", "gsssocks", "run", "--", python, "-c", PROXIED, env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_run_without_a_part_of_it(python: Path, env: Env, tmp_path: Path) -> None:
    (part,) = (tmp_path / "venv").glob("lib/python*/site-packages/gsssocks/_inject/sitecustomize.py")
    part.unlink()
    done = start(python, "-m", "gsssocks", "run", "--", python, "-c", "print('ran')", env=env, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert "is not whole; install it anew" in done.stderr


def test_run_from_a_folder_that_cannot_stand_in_a_path(wheel: Path, env: Env, tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    done = start(sys.executable, "-m", "gsssocks", "run", "--", "echo", "ran", env=env, cwd=folder)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert "cannot stand in PYTHONPATH" in done.stderr


def test_inject(python: Path, env: Env, tmp_path: Path) -> None:
    assert start(python, "-m", "gsssocks", "inject", env=env, cwd=tmp_path).returncode == 0
    done = start(python, "-c", PROXIED, env={**env, "GSSSOCKS_INJECT": "1"}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_check(python: Path, env: Env, tmp_path: Path) -> None:
    done = start(python, "-m", "gsssocks", "check", env=env, cwd=tmp_path)
    assert "socks5h://127.0.0.1:1" in done.stdout
