"""Proxies, rules and settings: what can be said, where, and what is said of mistakes."""

from __future__ import annotations

import ipaddress
import re
import traceback
from dataclasses import FrozenInstanceError, fields, replace
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks import Bypass, Proxy
from gsssocks._config import (
    IPV4_RANGE,
    IPV6_RANGE,
    PROTECTION_LEVELS,
    UNPROXIED_BY_DEFAULT,
    Rules,
    Settings,
)
from gsssocks._config.proxy import without_password
from gsssocks._protocol import Method, ProtectionLevel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.default_python_only

URL = "socks5h://proxy.example:1081"
PROXY = Proxy("proxy.example", 1081)

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
host_names = st.lists(labels, min_size=1, max_size=4).map(".".join)
hosts = st.one_of(host_names, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
texts = st.text(st.characters(exclude_categories=["C", "Z"], max_codepoint=0x2FF), min_size=1, max_size=30)
optional_texts = st.none() | texts
proxies = st.builds(
    Proxy,
    host=hosts,
    port=st.integers(1, 65535),
    service=texts,
    target_name=optional_texts,
    protection=st.sampled_from(list(PROTECTION_LEVELS)),
    mechanism=st.sampled_from([None, "krb5", "spnego", "ntlmssp", "1.2.840.113554.1.2.2"]),
    delegation=st.sampled_from(["policy", "always", "never"]),
    ccache=optional_texts,
    keytab=optional_texts,
    principal=optional_texts,
    nec=st.booleans(),
    timeout=st.none() | st.floats(0.001, 1e9),
    pipelined=st.booleans(),
    remote_dns=st.booleans(),
)
# What divides a URL, as it is and encoded too much, in a password whose every word is easy to find.
dividers = st.lists(
    st.sampled_from(["1", *":@/?#&;=%,\\[]. ", "%40", "%3a", "%253A", "\uff20", "\uff1a", "://"]), max_size=4
)
passwords = st.lists(dividers.map("".join), min_size=2, max_size=4).map("hunter".join)
MALFORMED = (
    "socks5h://alice:{password}@proxy:port",
    "socks5h://alice:{password}@proxy?protection=full",
    "socks5h://alice:{password}@proxy/path",
    "socks5h://alice:{password}@proxy?passwd={password}",
    "socks5h://alice%3a{password}@proxy?nec=maybe",
    "socks5h://:{password}@proxy?nec=maybe",
    "socks5h:///alice:{password}@proxy",
    "socks5h:/alice:{password}@proxy",
    "socks5h:alice:{password}@proxy",
    "socks5h:\\\\alice:{password}@proxy",
    "socks5h//alice:{password}@proxy",
    "//alice:{password}@proxy",
    "alice:{password}@proxy:1080",
    "https://alice:{password}@proxy",
    "https:alice:{password}@proxy",
    "socks5h://alice:{password}@proxy,socks5h://bob:{password}@other?nec=maybe",
)
WITHOUT_AT = (
    "socks5h://alice:{password}%40proxy:port",
    "socks5h://alice:{password} proxy",
    "socks5h://proxy:1080@alice:{password}:port",
    "socks5h://alice:{password}",
    "socks5h://alice@proxy?password={password}&protection=full",
    "socks5h://alice@proxy?p%61ssword={password}&protection=full",
)
malformed_urls = st.one_of(
    st.builds(lambda url, password: url.format(password=password), st.sampled_from(MALFORMED), passwords),
    st.builds(
        lambda url, password: url.format(password=password),
        st.sampled_from(WITHOUT_AT),
        passwords.filter(lambda password: "@" not in password),
    ),
)


class TestProxy:
    def test_defaults_are_the_safe_ones(self) -> None:
        proxy = Proxy("proxy.example")
        assert (proxy.port, proxy.service, proxy.timeout) == (1080, "socks", 30.0)
        assert proxy.levels[0] == ProtectionLevel.CONFIDENTIALITY
        assert proxy.delegation == "policy"
        assert proxy.remote_dns
        assert not proxy.nec

    @pytest.mark.parametrize(
        ("protection", "level"), [("none", 0), ("integrity", 1), ("confidentiality", 2), ("selective", 3)]
    )
    def test_protection_has_the_rfcs_number(self, protection: str, level: int) -> None:
        assert Proxy("proxy.example", protection=protection).levels[0] == level

    @pytest.mark.parametrize(
        ("proxy", "target"),
        [
            (Proxy("Proxy.Example."), "socks@proxy.example"),
            (Proxy("proxy.example", service="rcmd"), "rcmd@proxy.example"),
            (Proxy("alias.example", target_name="rcmd@real.example"), "rcmd@real.example"),
            (Proxy("alias.example", target_name="host/Real.Example@REALM"), "host/Real.Example@REALM"),
        ],
    )
    def test_name_for_gssapi(self, proxy: Proxy, target: str) -> None:
        """RFC 1961, section 3.1: the host in lower case; a whole name is never touched."""
        assert proxy.gss_target == target

    @pytest.mark.parametrize(
        ("protection", "levels", "least"),
        [
            ("confidentiality", (2,), 2),
            ("confidentiality, integrity", (2, 1), 1),
            ("confidentiality,selective", (2, 3), 3),
            ("selective,integrity,none", (3, 1, 0), 0),
        ],
    )
    def test_levels_are_asked_for_in_order_and_the_weakest_is_the_least(
        self, protection: str, levels: tuple[int, ...], least: int
    ) -> None:
        proxy = Proxy("proxy.example", protection=protection)
        assert proxy.levels == levels
        assert proxy.least_level == least

    def test_lists_have_one_spelling(self) -> None:
        assert Proxy("h", protection="confidentiality , integrity") == Proxy(
            "h", protection="confidentiality,integrity"
        )

    def test_gssapi_is_the_only_method_unless_it_is_said(self) -> None:
        assert Proxy("proxy.example").offered == (Method.GSSAPI,)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"methods": "userpass"}, "takes username= and password="),
            ({"methods": "gssapi,userpass", "username": "alice"}, "takes username= and password="),
            ({"username": "alice", "password": "x"}, "say so by methods='userpass'"),
            ({"password": "x"}, "nobody it is of"),
            ({"methods": "userpass", "username": "a" * 256, "password": "x"}, "1 to 255 octets"),
            ({"confidential": bool}, "protection='selective'"),
        ],
    )
    def test_options_that_do_not_fit_each_other(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Proxy("proxy.example", **options)

    @pytest.mark.parametrize("name", ["username", "password"])
    def test_user_that_is_no_text_is_not_quoted(self, name: str) -> None:
        user: dict[str, Any] = {"username": "alice", "password": "x", name: b"battery"}
        with pytest.raises(TypeError, match=f"{name} must be a string, not bytes"):
            Proxy("proxy.example", methods="userpass", **user)

    def test_rule_that_demands_integrity_leaves_a_selective_proxy_selective(self) -> None:
        demanded = Proxy("proxy.example", protection="selective").demanding("integrity")
        assert demanded.levels == (ProtectionLevel.SELECTIVE,)
        assert demanded.confidential is not None
        assert not demanded.confidential(b"data")

    @pytest.mark.parametrize("protection", ["integrity", "confidentiality", "selective"])
    @pytest.mark.parametrize("methods", ["gssapi,none", "none,gssapi", "gssapi,userpass"])
    def test_rule_that_demands_protection_leaves_gssapi_alone(self, methods: str, protection: str) -> None:
        user: dict[str, Any] = {"username": "bob", "password": "s3cret"} if "userpass" in methods else {}
        demanded = Proxy("proxy.example", methods=methods, **user).demanding(protection)
        assert demanded == Proxy("proxy.example", protection=protection)

    def test_rule_that_demands_protection_leaves_the_principal_its_password(self) -> None:
        proxy = Proxy("proxy.example", principal="alice", password="s3cret", methods="gssapi,none")
        demanded = proxy.demanding("integrity")
        assert (demanded.principal, demanded.password, demanded.offered) == ("alice", "s3cret", (Method.GSSAPI,))

    def test_rule_that_demands_none_leaves_the_methods(self) -> None:
        proxy = Proxy("proxy.example", methods="gssapi,none")
        assert proxy.demanding("none") == replace(proxy, protection="none")

    def test_rule_cannot_demand_protection_where_there_is_no_gssapi(self) -> None:
        with pytest.raises(
            ValueError, match="integrity takes the method 'gssapi'; for the proxy h:1080, methods are 'none"
        ):
            Proxy("h", methods="none").demanding("integrity")

    @pytest.mark.parametrize("weaker", ["none", "integrity", "selective"])
    def test_strength_is_what_it_protects_at_least(self, weaker: str) -> None:
        proxies = [
            Proxy("h", methods="gssapi,none"),
            Proxy("h", protection=f"confidentiality,{weaker}"),
            Proxy("h"),
        ]
        assert sorted(proxies, key=lambda proxy: proxy.strength) == proxies

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            PROXY.host = "other"  # type: ignore[misc]

    def test_copy_with_a_change_is_checked(self) -> None:
        assert replace(PROXY, protection="integrity").levels[0] == 1
        with pytest.raises(ValueError, match="'full'"):
            replace(PROXY, protection="full")

    @pytest.mark.parametrize(
        ("host", "text"), [("h", "h:1"), ("192.0.2.1", "192.0.2.1:1"), ("2001:db8::1", "[2001:db8::1]:1")]
    )
    def test_text_form(self, host: str, text: str) -> None:
        assert str(Proxy(host, 1)) == text

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("host", ""),
            ("host", "proxy example"),
            ("host", "proxy\0"),
            ("host", "proxy:1080"),
            ("host", "alice@proxy"),
            ("host", "socks5h://proxy"),
            ("host", "proxy/path"),
            ("host", "[::1]"),
            ("host", "a" * 64),
            ("host", "proxy..example"),
            ("port", 0),
            ("port", 65536),
            ("port", -1),
            ("service", ""),
            ("service", "socks service"),
            ("target_name", ""),
            ("protection", "full"),
            ("protection", "Confidentiality"),
            ("protection", "integrity,full"),
            ("protection", "integrity,"),
            ("protection", "integrity,integrity"),
            ("methods", "kerberos"),
            ("methods", ""),
            ("delegation", "sometimes"),
            ("mechanism", "kerberos"),
            ("mechanism", ""),
            ("mechanism", "1.2.x"),
            ("ccache", ""),
            ("keytab", "\t"),
            ("principal", ""),
            ("timeout", 0),
            ("timeout", -1),
            ("timeout", float("nan")),
            ("timeout", float("inf")),
        ],
    )
    def test_wrong_value_is_quoted(self, option: str, value: Any) -> None:
        with pytest.raises(ValueError, match=option) as caught:
            Proxy(**{"host": "proxy.example", option: value})
        assert repr(value.rpartition(",")[2] if isinstance(value, str) else value) in str(caught.value)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("host", None),
            ("host", b"proxy"),
            ("port", "1080"),
            ("port", True),
            ("service", None),
            ("protection", 2),
            ("protection", ("confidentiality", "integrity")),
            ("methods", None),
            ("ccache", 1),
            ("keytab", ["file"]),
            ("nec", 1),
            ("pipelined", "yes"),
            ("remote_dns", None),
            ("timeout", "30"),
            ("timeout", True),
        ],
    )
    def test_wrong_type_is_quoted(self, option: str, value: Any) -> None:
        with pytest.raises(TypeError, match=option) as caught:
            Proxy(**{"host": "proxy.example", option: value})
        assert repr(value) in str(caught.value)


class TestURL:
    @given(proxies)
    def test_round_trip(self, proxy: Proxy) -> None:
        assert Proxy.from_url(proxy.url) == proxy

    @pytest.mark.parametrize(
        ("url", "proxy"),
        [
            ("socks5h://proxy.example", Proxy("proxy.example")),
            ("socks5h://proxy.example/", Proxy("proxy.example")),
            ("socks5h://proxy.example:1081", PROXY),
            ("SOCKS5H://PROXY.example:1081", PROXY),
            ("socks5://proxy.example", Proxy("proxy.example", remote_dns=False)),
            ("socks5h://192.0.2.1:1", Proxy("192.0.2.1", 1)),
            ("socks5h://[2001:db8::1]:1", Proxy("2001:db8::1", 1)),
            ("socks5h://[2001:db8::1]", Proxy("2001:db8::1")),
            ("socks5h://alice@proxy.example", Proxy("proxy.example", principal="alice")),
            ("socks5h://alice%40REALM@proxy.example", Proxy("proxy.example", principal="alice@REALM")),
            ("socks5h://alice%2Fadmin@proxy.example", Proxy("proxy.example", principal="alice/admin")),
            ("socks5h://p?principal=alice%40REALM", Proxy("p", principal="alice@REALM")),
            ("socks5h://p?service=rcmd&protection=integrity", Proxy("p", service="rcmd", protection="integrity")),
            ("socks5h://p?target_name=rcmd%40real", Proxy("p", target_name="rcmd@real")),
            ("socks5h://p?target_name=rcmd@real", Proxy("p", target_name="rcmd@real")),
            ("socks5h://p?ccache=FILE:/tmp/cc", Proxy("p", ccache="FILE:/tmp/cc")),
            ("socks5h://p?keytab=/etc/user.keytab", Proxy("p", keytab="/etc/user.keytab")),
            ("socks5h://p?mechanism=spnego", Proxy("p", mechanism="spnego")),
            ("socks5h://p?delegation=never", Proxy("p", delegation="never")),
            ("socks5h://p?timeout=2.5", Proxy("p", timeout=2.5)),
            ("socks5h://p?timeout=none", Proxy("p", timeout=None)),
        ],
    )
    def test_what_it_says(self, url: str, proxy: Proxy) -> None:
        assert Proxy.from_url(url) == proxy

    @pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on"])
    def test_true_in_its_forms(self, text: str) -> None:
        assert Proxy.from_url(f"{URL}?nec={text}").nec

    @pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off"])
    def test_false_in_its_forms(self, text: str) -> None:
        assert not Proxy.from_url(f"{URL}?pipelined={text}").pipelined

    def test_argument_is_stronger_than_the_url(self) -> None:
        url = f"{URL}?protection=integrity&service=rcmd"
        proxy = Proxy.from_url(url, protection="confidentiality", defaults={"service": "host", "nec": True})
        assert (proxy.protection, proxy.service, proxy.nec) == ("confidentiality", "rcmd", True)

    def test_argument_that_is_wrong_is_not_laid_to_the_url(self) -> None:
        for read in (Proxy.from_url, Settings.load):
            with pytest.raises(ValueError, match=r"\Aproxy timeout must be a positive number of seconds, not 0\Z"):
                read(URL, timeout=0)
            with pytest.raises(TypeError, match=r"\Aunknown option 'protecton'; the options are .*\bprotection\b"):
                read(URL, protecton="integrity")

    def test_argument_that_is_wrong_is_not_laid_to_the_environment(self) -> None:
        for read in (Proxy.from_environ, Settings.load):
            with pytest.raises(ValueError, match=r"\Aproxy protection must be one of .*, not 'full'\Z"):
                read(environ={"GSSSOCKS_PROXY": URL}, protection="full")

    @pytest.mark.parametrize(
        "url",
        ["", "proxy", "proxy:1080", "http://proxy", "socks4://proxy", "socks://proxy", "//proxy"],
    )
    def test_other_schemes_are_refused_with_an_example(self, url: str) -> None:
        with pytest.raises(ValueError, match="socks5h, socks5, as in socks5h://proxy:1080") as caught:
            Proxy.from_url(url)
        assert repr(url) in str(caught.value)

    @pytest.mark.parametrize(
        "query",
        [
            "protection=",
            "protection",
            "nec=maybe",
            "timeout=long",
            "timeout=0",
            "service=a&service=b",
            "target_name=socks@real&nec=maybe",
        ],
    )
    def test_wrong_query_is_quoted(self, query: str) -> None:
        with pytest.raises(ValueError, match="bad proxy URL") as caught:
            Proxy.from_url(f"{URL}?{query}")
        assert repr(f"{URL}?{query}") in str(caught.value)

    @pytest.mark.parametrize("name", ["protecton", "passwd", "PASSWORD", "host", "port", "remote_dns"])
    def test_unknown_option_is_quoted_without_its_value(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"unknown option '{name}'; the options are service, ") as caught:
            Proxy.from_url(f"{URL}?nec=yes&{name}=s3cret&service=s3cret")
        assert repr(f"{URL}?nec=yes&{name}=***") in str(caught.value)
        assert "s3cret" not in str(caught.value)

    @pytest.mark.parametrize("before", ["socks5h://proxy", "socks5h://alice@proxy", "socks5h://alice:x@proxy"])
    def test_option_like_none_is_quoted_where_it_can_be_nothing_else(self, before: str) -> None:
        with pytest.raises(ValueError, match="unknown option 'colour'"):
            Proxy.from_url(f"{before}?colour=red")
        # This may be the half of alice:1080?colour=red@proxy.
        with pytest.raises(ValueError, match="the options are service, ") as caught:
            Proxy.from_url("socks5h://alice:1080?colour=red")
        assert "colour" not in str(caught.value)

    def test_principal_twice(self) -> None:
        with pytest.raises(ValueError, match="'principal' is given twice"):
            Proxy.from_url("socks5h://alice@proxy?principal=bob")

    @pytest.mark.parametrize("url", [None, 1, b"socks5h://proxy", PROXY])
    def test_not_a_string(self, url: Any) -> None:
        with pytest.raises(TypeError, match="a proxy URL is a string"):
            Proxy.from_url(url)

    @pytest.mark.parametrize("mistake", [":port", "?protection=full", "/path"])
    @pytest.mark.parametrize(
        "password", ["s3cret", "s3cret@s3cret", "s3cret:s3cret", "s3cret/s3cret", "s3cret?x=s3cret", "#s3cret"]
    )
    def test_password_is_never_shown(self, password: str, mistake: str) -> None:
        with pytest.raises(ValueError, match="bad proxy URL") as caught:
            Proxy.from_url(f"socks5h://alice:{password}@proxy{mistake}")
        shown = traceback.format_exception(type(caught.value), caught.value, None)
        assert "s3cret" not in "".join(shown)

    @given(malformed_urls)
    def test_password_is_never_shown_however_malformed_the_url(self, url: str) -> None:
        loads: list[Callable[[], object]] = [
            lambda: Proxy.from_url(url),
            lambda: Proxy.from_environ({"GSSSOCKS_PROXY": url}),
            lambda: Settings.load(environ={"GSSSOCKS_PROXY": url}),
            lambda: Settings.load([PROXY, url], environ={}),
        ]
        for load in loads:
            try:
                load()
            except ValueError as error:
                shown = "".join(traceback.format_exception(type(error), error, None))
                assert "hunter" not in shown.lower()
        assert "hunter" not in without_password(url).lower()

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("socks5h://alice:hunter2@proxy:1080?nec=maybe", "socks5h://alice:***@proxy:1080?nec=maybe"),
            ("socks5h://[2001:db8::1]:1080", "socks5h://[2001:db8::1]:1080"),
            ("socks5h://[fe80::1%eth0]", "socks5h://[fe80::1%eth0]"),
            ("socks5h://2001:db8::1", "socks5h://2001:***"),
            ("ftp://proxy:1080", "ftp://proxy:1080"),
            ("alice://hunter2@proxy", "alice:***@proxy"),
            ("socks5h://alice%40REALM@proxy", "socks5h://alice%40REALM@proxy"),
            ("socks5h://p?principal=alice@REALM&nec=1", "socks5h://p?principal=alice@REALM&nec=1"),
            ("socks5h://p?password=hunter2&nec=1", "socks5h://p?password=***&nec=1"),
            ("alice:hunter2@proxy:1080", "alice:***@proxy:1080"),
            ("socks5h:alice:hunter2@proxy", "socks5h:alice:***@proxy"),
            ("socks5h://alice:1234/x@proxy", "socks5h://alice:***@proxy"),
            ("socks5h://alice:1234?x@proxy", "socks5h://alice:***?***"),
            ("socks5h://alice:hunt", "socks5h://alice:***"),
            ("socks5h://a:hunter2@p,socks5h://b:hunter2@q?nec=1", "socks5h://a:***@q?nec=1"),
        ],
    )
    def test_is_shown_without_what_could_be_a_password(self, url: str, shown: str) -> None:
        assert without_password(url) == shown

    @pytest.mark.parametrize("url", ["alice:hunter2@proxy", "socks5h:/alice:hunter2@proxy", "socks5h://a:1/x@proxy"])
    def test_that_is_malformed_around_a_password_is_answered_by_its_form(self, url: str) -> None:
        with pytest.raises(ValueError, match=r"write socks5h://\[principal\[:password\]@\]host\[:port\]") as caught:
            Proxy.from_url(url)
        assert "percent-encode" in str(caught.value)

    def test_password_in_the_query_is_not_shown_either(self) -> None:
        with pytest.raises(ValueError, match="bad proxy URL") as caught:
            Proxy.from_url("socks5h://proxy?protection=full&password=s3cret#x")
        assert "s3cret" not in str(caught.value)

    def test_password_belongs_to_the_principal(self) -> None:
        proxy = Proxy.from_url("socks5h://alice:s3cr%40t@proxy")
        assert (proxy.principal, proxy.password, proxy.username) == ("alice", "s3cr@t", None)
        assert proxy.offered == (Method.GSSAPI,)

    def test_password_belongs_to_the_user_where_the_only_method_knows_one(self) -> None:
        proxy = Proxy.from_url("socks5h://alice:s3cret@proxy?methods=userpass")
        assert (proxy.principal, proxy.username, proxy.password) == (None, "alice", "s3cret")

    def test_user_beside_a_principal(self) -> None:
        proxy = Proxy.from_url("socks5h://alice@proxy?methods=gssapi,userpass", username="bob", password="s3cret")
        assert (proxy.principal, proxy.username, proxy.password) == ("alice", "bob", "s3cret")
        assert proxy.offered == (Method.GSSAPI, Method.USERPASS)

    def test_password_is_in_neither_form_of_a_proxy(self) -> None:
        proxy = Proxy.from_url("socks5h://alice:s3cret@proxy")
        assert "s3cret" not in f"{proxy} {proxy!r} {proxy.url}"


class TestEnvironment:
    def test_own_variable(self) -> None:
        assert Proxy.from_environ({"GSSSOCKS_PROXY": URL, "ALL_PROXY": "socks5h://other"}) == PROXY

    @pytest.mark.parametrize("variable", ["ALL_PROXY", "all_proxy"])
    def test_general_variable(self, variable: str) -> None:
        assert Proxy.from_environ({variable: URL}) == PROXY

    def test_general_variable_in_capitals(self) -> None:
        assert Proxy.from_environ({"ALL_PROXY": URL.replace("socks5h:", "SOCKS5H:")}) == PROXY

    @pytest.mark.parametrize("url", ["http://proxy.example:8080", "proxy.example", ""])
    def test_general_variable_for_another_kind_of_proxy_is_none_of_ours(self, url: str) -> None:
        with pytest.raises(ValueError, match="no proxy given"):
            Proxy.from_environ({"ALL_PROXY": url})

    def test_empty_variable_is_none(self) -> None:
        assert Proxy.from_environ({"GSSSOCKS_PROXY": "", "ALL_PROXY": URL}) == PROXY

    def test_every_option_has_a_variable(self) -> None:
        said = {
            "service": "rcmd",
            "target_name": "rcmd@real",
            "protection": "integrity",
            "mechanism": "spnego",
            "delegation": "never",
            "ccache": "FILE:/tmp/cc",
            "keytab": "/tmp/kt",
            "principal": "alice",
            "username": "bob",
            "password": "s3cret",
            "methods": "gssapi,userpass",
            "nec": "yes",
            "timeout": "5",
            "pipelined": "no",
        }
        environ = {f"GSSSOCKS_{name.upper()}": text for name, text in said.items()}
        proxy = Proxy.from_environ({"GSSSOCKS_PROXY": URL, **environ})
        assert proxy == Proxy(**{**vars(PROXY), **said, "nec": True, "timeout": 5.0, "pipelined": False})
        assert set(said) | {"host", "port", "remote_dns", "confidential"} == {option.name for option in fields(Proxy)}

    def test_url_is_stronger_than_a_variable(self) -> None:
        environ = {"GSSSOCKS_PROXY": f"{URL}?protection=integrity", "GSSSOCKS_PROTECTION": "confidentiality"}
        assert Proxy.from_environ(environ).protection == "integrity"

    def test_argument_is_stronger_than_both(self) -> None:
        environ = {"GSSSOCKS_PROXY": f"{URL}?protection=integrity", "GSSSOCKS_PROTECTION": "none"}
        assert Proxy.from_environ(environ, protection="selective").protection == "selective"

    def test_process_environment_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GSSSOCKS_PROXY", URL)
        assert Proxy.from_environ() == PROXY

    def test_nothing_says_what_to_set(self) -> None:
        with pytest.raises(ValueError, match="set GSSSOCKS_PROXY=socks5h://host:port"):
            Proxy.from_environ({})

    def test_mistake_in_the_url_names_the_variable(self) -> None:
        with pytest.raises(ValueError, match=r"environment variable ALL_PROXY: .*'socks5h://proxy/x'"):
            Proxy.from_environ({"ALL_PROXY": "socks5h://proxy/x"})

    def test_mistake_in_an_option_names_the_variable(self) -> None:
        with pytest.raises(ValueError, match=r"environment variable GSSSOCKS_PROTECTION: .*'full'"):
            Proxy.from_environ({"GSSSOCKS_PROXY": URL, "GSSSOCKS_PROTECTION": "full"})

    def test_password_is_not_shown(self) -> None:
        with pytest.raises(ValueError, match="GSSSOCKS_PROXY") as caught:
            Proxy.from_environ({"GSSSOCKS_PROXY": "socks5h://alice:s3cret@proxy:x"})
        assert "s3cret" not in str(caught.value)


class TestBypass:
    @pytest.mark.parametrize(
        ("entry", "covered", "not_covered"),
        [
            ("host.example", ["host.example", "HOST.Example", "host.example."], ["sub.host.example", "xhost.example"]),
            ("Host.Example.", ["host.example"], ["example"]),
            (".example", ["host.example", "a.b.example", "example"], ["myexample", "example.com"]),
            ("*.example", ["host.example", "a.b.example", "example"], ["myexample"]),
            ("192.0.2.1", ["192.0.2.1", "::ffff:192.0.2.1"], ["192.0.2.2", "host.example"]),
            ("192.0.2.0/24", ["192.0.2.0", "192.0.2.255", "::ffff:192.0.2.7"], ["192.0.3.0", "::192.0.2.1"]),
            ("192.0.2.77/24", ["192.0.2.1"], ["192.0.3.1"]),
            ("2001:db8::1", ["2001:db8::1", "2001:DB8:0::1", "[2001:db8::1]"], ["2001:db8::2"]),
            ("[2001:db8::1]", ["2001:db8::1"], ["2001:db8::2"]),
            ("2001:db8::/32", ["2001:db8:ffff::1"], ["2001:db9::1", "192.0.2.1"]),
            ("fe80::/10", ["fe80::1", "fe80::1%eth0"], ["fec0::1"]),
            ("0.0.0.0/0", ["192.0.2.1", "255.255.255.255"], ["host.example", "2001:db8::1"]),
            ("::ffff:10.0.0.0/104", ["10.0.0.1", "::ffff:10.255.0.1", "10.1"], ["11.0.0.1", "::10.0.0.1"]),
            ("::ffff:192.0.2.0/120", ["192.0.2.255"], ["192.0.3.0"]),
            ("::ffff:0:0/96", ["192.0.2.1"], ["2001:db8::1", "::1"]),
            ("::/0", ["2001:db8::1"], ["192.0.2.1"]),
            ("10.0.0.0/8", ["10.1", "0x0a.1", "167772161", "012.0.0.1", "10.0.0.1."], ["10.1 x", "10.1.example"]),
            ("10.1", ["10.0.0.1", "0xa000001"], ["10.1.0.0"]),
            ("127.0.0.1.", ["127.0.0.1", "127.1"], ["127.0.0.2"]),
            ("*", ["host.example", "192.0.2.1", "2001:db8::1"], []),
        ],
    )
    def test_entry(self, entry: str, covered: list[str], not_covered: list[str]) -> None:
        bypass = Bypass([entry])
        assert [host for host in covered if not bypass.covers(host, 80)] == []
        assert [host for host in not_covered if bypass.covers(host, 80)] == []

    @pytest.mark.parametrize(
        ("entry", "host"),
        [
            ("host.example:443", "host.example"),
            (".example:443", "sub.example"),
            ("192.0.2.1:443", "192.0.2.1"),
            ("192.0.2.0/24:443", "192.0.2.1"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:db8::/32]:443", "2001:db8::1"),
            ("*:443", "anything"),
        ],
    )
    def test_entry_with_a_port_is_that_port_alone(self, entry: str, host: str) -> None:
        bypass = Bypass([entry])
        assert bypass.covers(host, 443)
        assert not bypass.covers(host, 80)

    def test_loopback_by_default(self) -> None:
        bypass = Bypass()
        assert bypass.entries == UNPROXIED_BY_DEFAULT
        for host in ("localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"):
            assert bypass.covers(host, 80)
        for host in ("host.example", "192.0.2.1", "128.0.0.1", "::2", "localhost.example", "notlocalhost"):
            assert not bypass.covers(host, 80)

    @pytest.mark.parametrize("entries", [[], (), "", " , "])
    def test_empty_list_is_nothing(self, entries: Any) -> None:
        assert not Bypass(entries).covers("localhost", 80)
        assert not Bypass(entries).covers("127.0.0.1", 80)

    def test_list_replaces_the_default(self) -> None:
        assert not Bypass(["host.example"]).covers("localhost", 80)

    def test_string_is_divided_at_commas(self) -> None:
        bypass = Bypass(" host.example , .suffix ,, 10.0.0.0/8,")
        assert bypass.covers("host.example", 1)
        assert bypass.covers("a.suffix", 1)
        assert bypass.covers("10.1.2.3", 1)

    @given(st.ip_addresses(), st.integers(0, 128))
    def test_networks_cover_what_is_in_them(self, address: Any, bits: int) -> None:
        network = ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False)
        bypass = Bypass([str(network)])
        for host in (network[0], network[-1]):
            # An IPv4 address in IPv6 form is the IPv4 address, and in no IPv6 network.
            assert bypass.covers(str(host), 1) or getattr(host, "ipv4_mapped", None)

    @pytest.mark.parametrize(
        "entry",
        [
            "",
            " ",
            ".",
            "a b",
            "a*b",
            "*a.example",
            "10.0.0.0/33",
            "10.0.0/x",
            "::/129",
            "::ffff:10.0.0.0/95",
            "::ffff:10.0.0.0/0",
            "host:port",
            "host:0",
            "host:65536",
            "host:-1",
            "[::1",
            "[::1]80",
            "http://host.example",
            "user@host.example",
            "a:b:c",
        ],
    )
    def test_bad_entry_is_quoted(self, entry: str) -> None:
        with pytest.raises(ValueError, match="bad destination") as caught:
            Bypass([entry])
        assert repr(entry) in str(caught.value)

    def test_entry_that_is_no_string(self) -> None:
        with pytest.raises(TypeError, match="8"):
            Bypass([8])  # type: ignore[list-item]


class TestRules:
    def test_without_any_the_proxy_takes_all_but_loopback(self) -> None:
        assert Rules().decide("host.example", 80).action == "proxy"
        assert Rules().decide("localhost", 80).action == "direct"

    def test_first_that_fits_decides(self) -> None:
        rules = Rules([("a.example", "direct"), (".example", "refuse"), ("*:25", "refuse"), ("*", "proxy")])
        assert rules.decide("a.example", 25).action == "direct"
        assert rules.decide("b.example", 80).action == "refuse"
        assert rules.decide("host.test", 25).action == "refuse"
        assert rules.decide("host.test", 80).action == "proxy"

    def test_rule_is_stronger_than_the_bypass(self) -> None:
        rules = Rules({"localhost:8443": "proxy"}, Bypass(["localhost"]))
        assert rules.decide("localhost", 8443).action == "proxy"
        assert rules.decide("localhost", 80).action == "direct"

    @pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0", "017700000001"])
    def test_loopback_is_direct_in_any_spelling(self, host: str) -> None:
        assert Rules().decide(host, 80).action == "direct"
        assert Rules().action(host, None) == "direct"

    @pytest.mark.parametrize("host", ["127.0.0.1.", "[127.0.0.1]", "[::1]", "127.1.", "2130706433."])
    def test_what_only_looks_like_an_address_is_not_direct_as_such(self, host: str) -> None:
        """connect(2) takes it for a name, and looks it up."""
        assert Rules().decide(host, 80).action == "proxy"
        assert Rules().action(host, None) == "proxy"
        assert Rules("127.0.0.0/8=direct,::1=direct").decide(host, 80).action == "proxy"

    @pytest.mark.parametrize("host", ["10.0.0.1.", "[10.0.0.1]", "10.1.", "::ffff:10.0.0.1", "10.1"])
    def test_what_looks_like_a_refused_address_is_refused(self, host: str) -> None:
        """Whoever resolves it in the end may take it for one."""
        assert Rules("10.0.0.0/8=refuse").decide(host, 80).action == "refuse"

    @pytest.mark.parametrize(
        ("rules", "at_80", "at_any"),
        [
            ("", "proxy", "proxy"),
            ("host.example=refuse", "refuse", "refuse"),
            ("host.example:25=refuse", "proxy", None),
            ("host.example:25=integrity", "proxy", "proxy"),
            ("host.example:25=direct,host.example=direct", "direct", "direct"),
            ("host.example:25=proxy,.example=direct", "direct", None),
            ("*:80=direct,*=refuse", "direct", None),
        ],
    )
    def test_action_at_a_port_and_at_any(self, rules: str, at_80: str, at_any: str | None) -> None:
        assert Rules(rules).action("host.example", 80) == at_80
        assert Rules(rules).action("host.example", None) == at_any

    @pytest.mark.parametrize(
        ("entries", "at_any"), [(["host.example"], "direct"), (["host.example:80"], None), (["other.example"], "proxy")]
    )
    def test_action_at_any_port_by_the_bypass(self, entries: list[str], at_any: str | None) -> None:
        assert Rules(None, Bypass(entries)).action("host.example", None) == at_any

    def test_naming_is_all_the_entries_that_have_a_name_by_name(self) -> None:
        rules = Rules(
            "a.example:25=refuse,.example:80=proxy,10.0.0.0/8=direct,*:80=direct", Bypass(["a.example", "10.0.0.0/8"])
        )
        a, b, other = (rules.naming(name) for name in ("A.Example.", "b.example", "host.test"))
        assert (len(a), len(b), len(other)) == (3, 1, 0)
        assert rules.naming("10.0.0.1") == other

    def test_address_of_a_name_is_decided_by_what_fits_either(self) -> None:
        rules = Rules("a.example:25=refuse,10.0.0.1=integrity,.example=refuse", Bypass(["10.0.0.0/8", "b.test"]))
        a, b = rules.naming("a.example"), rules.naming("b.test")
        assert rules.decide("10.0.0.1", 25, a).action == "refuse"
        assert rules.decide("10.0.0.1", 80, a).protection == "integrity"
        assert rules.decide("10.0.0.2", 80, a).rule == ".example=refuse"
        assert rules.decide("10.0.0.2", 80).action == "direct"
        assert rules.decide("192.0.2.1", 80, b).action == "direct"
        assert rules.decide("192.0.2.1", 80).action == "proxy"

    @pytest.mark.parametrize(
        ("rules", "bypass", "by_name"),
        [
            ("", None, False),
            ("", [], False),
            ("10.0.0.0/8=refuse,*:25=refuse", ["10.1.0.0/16:80"], False),
            ("host.example:25=refuse", None, True),
            ("", [".example"], True),
            ("", ["localhost"], True),
        ],
    )
    def test_by_name_where_a_name_was_given(self, rules: str, bypass: list[str] | None, by_name: bool) -> None:
        assert Rules(rules, Bypass(bypass)).by_name == by_name

    @pytest.mark.parametrize("level", list(PROTECTION_LEVELS))
    def test_protection_level_means_the_proxy_at_that_level(self, level: str) -> None:
        decision = Rules({"*:443": level}).decide("host.example", 443)
        assert (decision.action, decision.protection) == ("proxy", level)

    def test_decision_names_the_rule(self) -> None:
        rules = Rules("*.example:443=integrity, host.test = refuse")
        assert rules.decide("a.example", 443).rule == "*.example:443=integrity"
        assert rules.decide("host.test", 1).rule == "host.test=refuse"
        assert rules.decide("other.test", 1).rule == ""
        assert rules.decide("localhost", 1).rule == "no_proxy"

    @pytest.mark.parametrize(
        ("rules", "says"),
        [
            ("host.example", "bad rule 'host.example': write destination=action"),
            ("host.example=", "the action must be one of direct, proxy, refuse"),
            ("host.example=allow", "bad rule 'host.example=allow': the action must be one of direct, proxy, refuse"),
            ("a b=direct", "bad destination 'a b'"),
            ("10.0.0.0/99=direct", "bad destination '10.0.0.0/99'"),
            ("host.example=direct,host.example=proxy", "contradict each other: 'host.example=direct' and"),
            ("host.example=integrity,HOST.example=confidentiality", "contradict each other"),
            ("10.0.0.0/8=direct,10.1.1.1/8=refuse", "contradict each other"),
        ],
    )
    def test_mistakes_are_quoted(self, rules: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Rules(rules)

    def test_contradiction_with_the_bypass_that_was_given(self) -> None:
        with pytest.raises(ValueError, match=r"contradict each other: 'host\.example' and 'host\.example=refuse'"):
            Rules("host.example=refuse", Bypass(["host.example"]))

    def test_no_contradiction_with_the_default_bypass(self) -> None:
        assert Rules("localhost=proxy").decide("localhost", 80).action == "proxy"

    def test_same_rule_twice_is_no_contradiction(self) -> None:
        assert Rules("a.example=direct,a.example=direct").decide("a.example", 1).action == "direct"


class TestSettings:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """The path of a configuration file yet to be written."""
        return tmp_path / "gsssocks.ini"

    def load(self, file: Path, text: str, environ: dict[str, str] | None = None, **arguments: Any) -> Settings:
        file.write_text(text, encoding="utf-8")
        return Settings.load(environ={"GSSSOCKS_CONFIG": str(file), **(environ or {})}, **arguments)

    def test_file_alone(self, file: Path) -> None:
        settings = self.load(
            file,
            """
            [proxy]
            url = socks5h://proxy.example:1081
            service = rcmd
            protection = integrity
            timeout = 5
            nec = yes
            no_proxy = .internal.example, 10.0.0.0/8
            remote_dns = no
            bind = yes

            [rules]
            *:443 = confidentiality
            [2001:db8::1]:25 = refuse
            """.replace("            ", ""),
        )
        expected = Proxy("proxy.example", 1081, service="rcmd", protection="integrity", timeout=5.0, nec=True)
        assert settings.proxies == (expected,)
        assert settings.rules.decide("a.internal.example", 80).action == "direct"
        assert settings.rules.decide("host.example", 443).protection == "confidentiality"
        assert settings.rules.decide("2001:db8::1", 25).action == "refuse"
        assert not settings.remote_dns
        assert settings.bind
        assert settings.sources["proxy"] == f"{file} [proxy] url"
        assert settings.sources["rules"] == f"{file} [rules]"

    def test_strength_of_the_sources(self, file: Path) -> None:
        """Argument, URL, environment, file: each for what the ones before do not say."""
        settings = self.load(
            file,
            f"[proxy]\nservice = file\nmechanism = spnego\nccache = FILE:/file\nkeytab = {file}\n",
            {"GSSSOCKS_CCACHE": "FILE:/variable", "GSSSOCKS_MECHANISM": "krb5", "GSSSOCKS_SERVICE": "variable"},
            proxy=f"{URL}?service=url&mechanism=ntlmssp",
            service="argument",
        )
        (proxy,) = settings.proxies
        assert (proxy.service, proxy.mechanism, proxy.ccache, proxy.keytab) == (
            "argument",
            "ntlmssp",
            "FILE:/variable",
            str(file),
        )

    def test_keytab_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=re.escape(f"the keytab '{tmp_path}/none' is not there")):
            Settings.load(URL, keytab=f"{tmp_path}/none", environ={})

    def test_several_proxies(self) -> None:
        both = (Proxy("one.example"), Proxy("two.example", 1081, protection="integrity"))
        urls = ["socks5h://one.example", "socks5h://two.example:1081?protection=integrity"]
        assert Settings.load(", ".join(urls), environ={}).proxies == both
        assert Settings.load(urls, environ={}).proxies == both
        assert Settings.load(both, environ={}).proxies == both
        assert Settings.load(environ={"GSSSOCKS_PROXY": ",".join(urls)}).proxies == both

    def test_arguments_hold_for_every_proxy(self) -> None:
        settings = Settings.load("socks5h://one, socks5h://two", environ={}, protection="integrity")
        assert [proxy.protection for proxy in settings.proxies] == ["integrity", "integrity"]

    @pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
    def test_scheme_says_who_resolves_names(self, scheme: str) -> None:
        assert Settings.load(f"{scheme}://proxy", environ={}).remote_dns == (scheme == "socks5h")

    def test_bind_by_argument_and_by_variable(self) -> None:
        assert not Settings.load(URL, environ={}).bind
        variable = {"GSSSOCKS_BIND": "yes"}
        assert Settings.load(URL, environ=variable).bind
        assert Settings.load(URL, environ=variable).sources["bind"] == "environment variable GSSSOCKS_BIND"
        assert not Settings.load(URL, environ=variable, bind=False).bind

    def test_remote_dns_by_argument_and_by_variable(self) -> None:
        variable = {"GSSSOCKS_REMOTE_DNS": "no"}
        assert not Settings.load(URL, environ=variable).remote_dns
        assert Settings.load(URL, environ=variable, remote_dns=True).remote_dns

    @pytest.mark.parametrize(
        ("placeholders", "ranges"),
        [
            (None, (IPV4_RANGE, IPV6_RANGE)),
            ("10.99.0.0/16", ("10.99.0.0/16", IPV6_RANGE)),
            ("fd00:99::/32", (IPV4_RANGE, "fd00:99::/32")),
            (" fd00:99::/32 , 10.99.0.0/16 ", ("10.99.0.0/16", "fd00:99::/32")),
            (["10.99.0.0/16", "fd00:99::/32"], ("10.99.0.0/16", "fd00:99::/32")),
        ],
    )
    def test_placeholders(self, placeholders: Any, ranges: tuple[str, str]) -> None:
        assert Settings.load(URL, environ={}, placeholders=placeholders).placeholders == ranges

    def test_strength_of_the_sources_of_placeholders(self, file: Path) -> None:
        text = "[proxy]\nplaceholders = 10.1.0.0/16\n"
        variable = {"GSSSOCKS_PLACEHOLDERS": "10.2.0.0/16"}
        settings = self.load(file, text, proxy=URL)
        assert (settings.placeholders.ipv4, settings.sources["placeholders"]) == (
            "10.1.0.0/16",
            f"{file} [proxy] placeholders",
        )
        settings = self.load(file, text, variable, proxy=URL)
        assert settings.placeholders.ipv4 == "10.2.0.0/16"
        assert settings.sources["placeholders"] == "environment variable GSSSOCKS_PLACEHOLDERS"
        settings = self.load(file, text, variable, proxy=URL, placeholders="10.3.0.0/16")
        assert (settings.placeholders.ipv4, settings.sources["placeholders"]) == ("10.3.0.0/16", "argument")

    @pytest.mark.parametrize(
        ("placeholders", "says"),
        [
            ("198.18.0.0/33", "bad placeholders '198.18.0.0/33'"),
            ("198.18.0.1/15", "has host bits set"),
            ("example.org", "bad placeholders 'example.org'"),
            ("", "bad placeholders ''"),
            ("192.0.2.0/31", "'192.0.2.0/31': a range needs 4 addresses or more"),
            ("10.0.0.0/8,198.18.0.0/15", "'198.18.0.0/15' is the second range for IPv4"),
        ],
    )
    def test_placeholders_that_cannot_be(self, placeholders: str, says: str) -> None:
        with pytest.raises(ValueError, match=says):
            Settings.load(URL, environ={}, placeholders=placeholders)

    def test_placeholders_of_a_wrong_type(self) -> None:
        with pytest.raises(TypeError, match="a range of placeholders is a string, not 8"):
            Settings.load(URL, environ={}, placeholders=[8])  # type: ignore[list-item]

    def test_no_proxy_of_the_environment_goes_with_a_proxy_of_the_environment(self) -> None:
        environ = {"GSSSOCKS_PROXY": URL, "NO_PROXY": "host.example"}
        assert Settings.load(environ=environ).rules.decide("host.example", 1).action == "direct"
        assert Settings.load(URL, environ=environ).rules.decide("host.example", 1).action == "proxy"

    def test_own_no_proxy_variable_counts_always(self) -> None:
        environ = {"GSSSOCKS_NO_PROXY": "host.example", "NO_PROXY": "other.example"}
        rules = Settings.load(URL, environ=environ).rules
        assert rules.decide("host.example", 1).action == "direct"
        assert rules.decide("other.example", 1).action == "proxy"

    def test_no_proxy_of_the_file_is_stronger_than_that_of_the_environment_in_general(self, file: Path) -> None:
        text = f"[proxy]\nurl = {URL}\nno_proxy = host.example\n"
        settings = self.load(file, text, {"NO_PROXY": "*", "no_proxy": "*"})
        assert settings.rules.decide("host.example", 1).action == "direct"
        assert settings.rules.decide("other.example", 1).action == "proxy"
        assert settings.sources["no_proxy"] == f"{file} [proxy] no_proxy"

    def test_own_no_proxy_variable_is_stronger_than_the_file(self, file: Path) -> None:
        text = f"[proxy]\nurl = {URL}\nno_proxy = host.example\n"
        assert self.load(file, text, {"GSSSOCKS_NO_PROXY": ""}).rules.decide("host.example", 1).action == "proxy"

    def test_no_proxy_of_the_environment_counts_where_the_file_has_none(self, file: Path) -> None:
        settings = self.load(file, f"[proxy]\nurl = {URL}\n", {"NO_PROXY": "host.example"})
        assert settings.rules.decide("host.example", 1).action == "direct"

    def test_empty_rules_variable_is_none(self, file: Path) -> None:
        text = f"[proxy]\nurl = {URL}\n[rules]\nhost.example = refuse\n"
        assert self.load(file, text, {"GSSSOCKS_RULES": ""}).rules.decide("host.example", 1).action == "refuse"

    @pytest.mark.parametrize("level", ["integrity", "confidentiality", "selective"])
    def test_rule_that_demands_what_a_proxy_cannot_give_is_quoted_with_its_source(self, level: str, file: Path) -> None:
        rule = f"host.example={level}"
        proxies = [URL, "socks5h://other?methods=none"]
        says = f"bad rule '{rule}': {level} takes the method 'gssapi'; for the proxy other:1080, methods are 'none'"
        with pytest.raises(ValueError, match=f"^{says}"):
            Settings.load(proxies, environ={}, rules=rule)
        with pytest.raises(ValueError, match=f"^environment variable GSSSOCKS_RULES: {says}"):
            Settings.load(proxies, environ={"GSSSOCKS_RULES": rule})
        with pytest.raises(ValueError, match=re.escape(f"{file} [rules]: {says}")):
            self.load(file, f"[rules]\nhost.example = {level}\n", proxy=proxies)
        assert Settings.load(proxies, environ={}, rules="host.example=none").rules

    def test_empty_no_proxy_argument_is_stronger_than_a_variable(self) -> None:
        settings = Settings.load(URL, environ={"GSSSOCKS_NO_PROXY": "host.example"}, no_proxy=[])
        assert settings.rules.decide("host.example", 1).action == "proxy"
        assert settings.rules.decide("localhost", 1).action == "proxy"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[proxy]\nprotecton = integrity\n", "unknown option 'protecton'; did you mean 'protection'?"),
            ("[proxy]\nprotection = full\n", "not 'full'"),
            ("[proxy]\ntimeout = soon\n", "not 'soon'"),
            ("[proxy]\ntimeout = 0\n", "[proxy] timeout: proxy timeout must be a positive number"),
            ("[proxy]\nmechanism = kerberos\n", "[proxy] mechanism: proxy mechanism must be one of"),
            ("[proxy]\nkeytab = /nonexistent\n", "[proxy] keytab: the keytab '/nonexistent' is not there"),
            (
                "[rules]\na.example = direct\nA.example = refuse\n",
                "two rules contradict each other: 'a.example=direct'",
            ),
            ("[rules]\n10.0.0.0/99 = direct\n", "bad destination '10.0.0.0/99'"),
            ("[proxy]\nno_proxy = 10.0.0.0/99\n", "bad destination '10.0.0.0/99'"),
            ("[proxy]\nremote_dns = perhaps\n", "not 'perhaps'"),
            ("[proxy]\nbind = perhaps\n", "bind must be true or false, not 'perhaps'"),
            ("[proxy]\nplaceholders = 198.18.0.0/33\n", "bad placeholders '198.18.0.0/33'"),
            ("[porxy]\nservice = rcmd\n", "unknown section 'porxy'; did you mean 'proxy'?"),
            ("[rules]\nhost.example = allow\n", "bad rule 'host.example=allow'"),
            ("service = rcmd\n", "no section headers"),
            ("[proxy]\nservice = a\nservice = b\n", "'service'"),
            ("[proxy]\nservice\n", "line 2"),
        ],
    )
    def test_mistake_in_the_file_names_it(self, file: Path, text: str, says: str) -> None:
        with pytest.raises(ValueError, match=r"gsssocks\.ini") as caught:
            self.load(file, text, proxy=URL)
        assert says in str(caught.value)

    @pytest.mark.parametrize(
        "text",
        [
            "url = socks5h://alice:{}@proxy\n",
            "password = {}\nurl = socks5h://proxy\n",
            "[proxy]\nurl socks5h://alice:{}@proxy\n",
            "[proxy]\nurl: socks5h://alice:{}@proxy\n",
            "[proxy]\nurl: socks5h://alice:{}@proxy?service=rcmd\n",
            "[proxy]\nsocks5h://alice:{}@proxy?service=rcmd\n",
            "[proxy]\nsocks5h://alice:{0}@proxy?service=a\nsocks5h://alice:{0}@proxy?service=b\n",
            "[proxy]\npassword: {}\n",
            "[proxy]\npassword: {}==\n",
            "[proxy]\nno_proxy\npassword = {}\n",
            "[proxy]\n[password {}\n",
            "[proxy]\n[password {} = x\n",
            "[password {}]\n",
            "[password={}]\n",
            "[rules]\npassword = {}\n",
            "[rules]\nurl = socks5h://alice:{}@proxy\n",
            "[rules]\nsocks5h://alice:{}@proxy?service=rcmd\n",
        ],
    )
    def test_slip_in_the_file_shows_no_password(self, file: Path, text: str) -> None:
        with pytest.raises(ValueError, match=r"gsssocks\.ini") as caught:
            self.load(file, text.format("battery"), proxy=URL)
        assert "battery" not in "".join(traceback.format_exception(None, caught.value, None))

    def test_mistake_in_the_files_url_names_the_file(self, file: Path) -> None:
        with pytest.raises(ValueError, match=r"gsssocks\.ini") as caught:
            self.load(file, "[proxy]\nurl = http://proxy\n")
        assert "'http://proxy'" in str(caught.value)

    def test_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="GSSSOCKS_CONFIG") as caught:
            Settings.load(URL, environ={"GSSSOCKS_CONFIG": str(tmp_path / "missing.ini")})
        assert "missing.ini" in str(caught.value)

    def test_file_that_is_not_text(self, file: Path) -> None:
        file.write_bytes(b"[proxy]\nservice = \xff\n")
        with pytest.raises(ValueError, match=r"gsssocks\.ini"):
            Settings.load(URL, environ={"GSSSOCKS_CONFIG": str(file)})

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("GSSSOCKS_PROXY", "http://proxy"),
            ("GSSSOCKS_NO_PROXY", "10.0.0.0/99"),
            ("GSSSOCKS_RULES", "host.example=allow"),
            ("GSSSOCKS_REMOTE_DNS", "perhaps"),
            ("GSSSOCKS_BIND", "perhaps"),
            ("GSSSOCKS_PLACEHOLDERS", "198.18.0.0/33"),
            ("GSSSOCKS_TIMEOUT", "soon"),
            ("GSSSOCKS_TIMEOUT", "-1"),
            ("GSSSOCKS_MECHANISM", "kerberos"),
            ("GSSSOCKS_SERVICE", "so cks"),
            ("GSSSOCKS_KEYTAB", "/nonexistent"),
            ("GSSSOCKS_KEYTAB", "FILE:/"),
        ],
    )
    def test_mistake_in_a_variable_names_it(self, variable: str, text: str) -> None:
        environ = {"GSSSOCKS_PROXY": URL, variable: text}
        with pytest.raises(ValueError, match=f"^environment variable {variable}: ") as caught:
            Settings.load(environ=environ)
        assert text.removeprefix("FILE:") in str(caught.value)

    @pytest.mark.parametrize(
        ("slip", "meant"),
        [
            ("GSSSOCKS_REMOTEDNS", "GSSSOCKS_REMOTE_DNS"),
            ("GSSSOCKS_PROTECTON", "GSSSOCKS_PROTECTION"),
            ("GSSSOCKS_RULE", "GSSSOCKS_RULES"),
            ("GSSSOCKS_NOPROXY", "GSSSOCKS_NO_PROXY"),
            ("GSSSOCKS_PLACEHOLDER", "GSSSOCKS_PLACEHOLDERS"),
        ],
    )
    def test_slip_in_the_name_of_a_variable(self, slip: str, meant: str) -> None:
        with pytest.raises(ValueError, match=f"environment variable {slip} is unknown; did you mean {meant}\\?"):
            Settings.load(URL, environ={slip: "1"})

    @pytest.mark.parametrize("variable", ["GSSSOCKS_DANTE", "GSSSOCKS_PACKAGES_PRESENT", "GSSSOCKS_SITE"])
    def test_variable_of_somebody_else_is_none_of_ours(self, variable: str) -> None:
        assert Settings.load(URL, environ={variable: "1"}).proxies == (PROXY,)

    def test_nowhere_a_proxy(self) -> None:
        with pytest.raises(ValueError, match=r"GSSSOCKS_PROXY=socks5h://host:port.*GSSSOCKS_CONFIG"):
            Settings.load(environ={})

    @pytest.mark.parametrize("proxy", [[], ()])
    def test_empty_list_of_proxies(self, proxy: Any) -> None:
        with pytest.raises(ValueError, match="empty"):
            Settings.load(proxy, environ={})

    @pytest.mark.parametrize("proxy", [1, object(), [None]])
    def test_proxy_of_a_wrong_type(self, proxy: Any) -> None:
        with pytest.raises(TypeError, match="proxy"):
            Settings.load(proxy, environ={})

    def test_unknown_argument_is_named(self) -> None:
        with pytest.raises(TypeError, match="protecton"):
            Settings.load(URL, environ={}, protecton="integrity")


def test_quoted_principal_is_one_part_of_the_url() -> None:
    principal = "alice/admin@REALM:?#"
    assert quote(principal, safe="") in Proxy("proxy", principal=principal).url
