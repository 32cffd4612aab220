"""`GSSSOCKS_DEBUG`: a log on standard error for as long as gsssocks is installed."""

from __future__ import annotations

import logging

import pytest

import gsssocks

PROXY = "socks5h://proxy.example"
LOG = logging.getLogger("gsssocks")


@pytest.fixture(autouse=True)
def _debug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSSSOCKS_DEBUG", "1")


def test_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY):
        LOG.debug("a phase")
    assert capsys.readouterr().err == "gsssocks: a phase\n"


def test_is_told_once_by_several_installs(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY), gsssocks.installed(PROXY):
        LOG.info("a connection")
    assert capsys.readouterr().err == "gsssocks: a connection\n"


def test_ends_with_uninstall(capsys: pytest.CaptureFixture[str]) -> None:
    before = LOG.level
    with gsssocks.installed(PROXY):
        pass
    LOG.info("a connection")
    assert capsys.readouterr().err == ""
    assert (LOG.handlers, LOG.level) == ([], before)


def test_begins_again_with_the_next_install(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with gsssocks.installed(PROXY):
            LOG.info("a connection")
    assert capsys.readouterr().err == 2 * "gsssocks: a connection\n"


@pytest.mark.parametrize("value", ["", "0"])
def test_is_not_asked_for(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GSSSOCKS_DEBUG", value)
    with gsssocks.installed(PROXY):
        LOG.info("a connection")
    assert capsys.readouterr().err == ""


def test_leaves_the_programs_own_arrangements_alone() -> None:
    own = logging.NullHandler()
    LOG.addHandler(own)
    before = LOG.level
    try:
        with gsssocks.installed(PROXY):
            assert (LOG.handlers, LOG.level) == ([own], before)
        assert (LOG.handlers, LOG.level) == ([own], before)
    finally:
        LOG.removeHandler(own)
