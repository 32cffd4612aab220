"""What is called right at a glance is right; the usual set-ups are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsssocks._config import Settings
from gsssocks._evident import evidently_right

pytestmark = pytest.mark.default_python_only

PROXY = "GSSSOCKS_PROXY"
URL = "socks5h://proxy.example:1080"

names = st.sampled_from(
    ["proxy", "proxy.example", "a" * 63, "a" * 64, "xn--p", "-", "a..b", ".a", "a.", "10.1.2.3", "1", ""]
)
ports = st.sampled_from(["", ":", ":1", ":65535", ":65536", ":0", ":00080", ":٣", ":1:2", ":x"])
urls = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["socks5h://", "socks5://", "http://", ""]),
    names,
    ports,
    st.sampled_from(["", "/", "?x=1"]),
)
destinations = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(["", ".", "*.", "*", " "]), names, ports),
    st.builds("{}/{}".format, st.ip_addresses(), st.integers(-1, 129)),
    st.sampled_from(
        ["::1", "[::1]:80", "fe80::1%lo", "::ffff:1.2.3.4", "a/b", "::/0", "10.0.0.0/8", "10.1.2.3/8", "a b"]
    ),
    st.text("ab.:/*[]%1 ", max_size=8),
)
lists = st.lists(destinations, max_size=3).map(",".join)
words = st.one_of(
    st.sampled_from(["", "1", "a/b@C", "integrity", "confidentiality", "selective", "true", "0"]), st.text(max_size=4)
)
environments = st.fixed_dictionaries(
    {PROXY: st.lists(urls, max_size=2).map(",".join)},
    optional={
        "GSSSOCKS_NO_PROXY": lists,
        "NO_PROXY": lists,
        "no_proxy": lists,
        "ALL_PROXY": words,
        **{
            f"GSSSOCKS_{name}": words
            for name in (
                *(
                    "PROTECTION",
                    "SERVICE",
                    "TARGET_NAME",
                    "PRINCIPAL",
                    "CCACHE",
                    "KEYTAB",
                    "PASSWORD",
                    "USERNAME",
                    "METHODS",
                ),
                *(
                    "NEC",
                    "TIMEOUT",
                    "RULES",
                    "CONFIG",
                    "BIND",
                    "PLACEHOLDERS",
                    "REMOTE_DNS",
                    "INJECT",
                    "CHILDREN",
                    "PROXI",
                ),
            )
        },
    },
)


@settings(max_examples=2000)
@given(environments)
def test_what_is_evident_is_taken(environ: dict[str, str]) -> None:
    if evidently_right(environ):
        Settings.load(environ=environ)


# The strategies above seldom make an environment of several parts that is right in all of them.
@given(st.sampled_from(["GSSSOCKS_NO_PROXY", "NO_PROXY", "no_proxy"]), destinations)
def test_evident_destinations_are_taken(variable: str, destination: str) -> None:
    environ = {PROXY: URL, variable: destination}
    if evidently_right(environ):
        Settings.load(environ=environ)


@given(urls)
def test_evident_proxies_are_taken(url: str) -> None:
    environ = {PROXY: url}
    if evidently_right(environ):
        Settings.load(environ=environ)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {PROXY: "socks5://proxy"},
        {PROXY: "socks5h://one.example:1080,socks5h://two.example:1080"},
        {"NO_PROXY": "localhost,127.0.0.1,::1,.example.com,10.0.0.0/8, 192.168.1.1:80"},
        {"no_proxy": "*.example.com,*"},
        {"GSSSOCKS_NO_PROXY": ""},
        {"GSSSOCKS_PROTECTION": "integrity", "GSSSOCKS_SERVICE": "rcmd"},
        {"GSSSOCKS_PRINCIPAL": "alice@EXAMPLE.COM", "GSSSOCKS_CCACHE": "FILE:/tmp/krb5cc_0"},
        {"GSSSOCKS_INJECT": "1", "GSSSOCKS_CHILDREN": "0"},
        {"HTTPS_PROXY": "anything"},
    ],
)
def test_usual_set_ups_are_evident(said: dict[str, str]) -> None:
    assert evidently_right({PROXY: URL, **said})


@pytest.mark.parametrize(
    "said",
    [
        {PROXY: ""},
        {PROXY: "http://proxy:1080"},
        {PROXY: "socks5h://proxy:0"},
        {PROXY: "socks5h://alice:secret@proxy"},
        {PROXY: "socks5h://proxy?protection=none"},
        {"GSSSOCKS_PROTECTION": "none"},
        {"GSSSOCKS_KEYTAB": "/nowhere"},
        {"GSSSOCKS_CONFIG": "/nowhere"},
        {"GSSSOCKS_NO_PROXY": "10.0.0.0/33"},
        {"GSSSOCKS_NO_PROXY": "::ffff:10.0.0.0/64"},
        {"GSSSOCKS_RULES": "*=direct"},
        {"GSSSOCKS_DEBUG": "1"},
        {"GSSSOCKS_PROXI": URL},
    ],
)
def test_anything_else_is_not(said: dict[str, str]) -> None:
    assert not evidently_right({PROXY: URL, **said})
