"""`gsssocks check`: what it says of a set-up that works, and of each way in which one does not."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks._gss import kdc_clock_offset
from gsssocks.server import ProxyServer
from gsssocks.testing import Realm
from tests.peers.dante import Dante
from tests.peers.host import Host, received_until_end
from tests.peers.microsocks import Microsocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from tests.peers.targets import EchoServer, HTTPSServer

pytestmark = pytest.mark.default_python_only

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 60
STATUS = {
    "configuration": 2,
    "credential": 3,
    "service": 4,
    "proxy": 5,
    "authentication": 6,
    "protection": 7,
    "target": 8,
}
ALL = list(STATUS)

Env = dict[str, str]
Facts = dict[str, str]


@pytest.fixture(scope="module")
def two_services() -> Iterator[Realm]:
    """A realm that knows socks/localhost and rcmd/localhost, but no host/localhost."""
    with Realm() as started:
        started.add_service("rcmd/localhost")
        yield started


@pytest.fixture(scope="module")
def proxy(two_services: Realm) -> Iterator[Dante]:
    """Dante that accepts socks/localhost and level 2 alone."""
    with Dante(two_services, enctype="confidentiality") as started:
        yield started


@pytest.fixture(scope="module")
def microsocks() -> Iterator[Microsocks]:
    """A proxy that knows bob and his password, and no GSS-API."""
    with Microsocks("bob", "s3cret") as started:
        yield started


@pytest.fixture
def env(two_services: Realm, trust: trustme.CA, tmp_path: Path) -> Env:
    """alice's ticket, trust in the HTTPS server, this checkout, no proxy, and nothing that is reached directly."""
    ca_file = str(tmp_path / "ca.pem")
    trust.cert_pem.write_to_path(ca_file)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().endswith("_PROXY") and not name.startswith("GSSSOCKS_")
    }
    return {
        **inherited,
        **two_services.env,
        "PYTHONPATH": str(ROOT),
        "SSL_CERT_FILE": ca_file,
        "GSSSOCKS_NO_PROXY": "",
    }


def check(*arguments: str, env: Env) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "gsssocks", "check", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.stderr == ""
    return done


def findings(*arguments: str, env: Env) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and what `--json` says of each step."""
    done = check("--json", *arguments, env=env)
    report = json.loads(done.stdout)
    assert report["status"] == done.returncode
    return done.returncode, report["findings"]


def steps(*arguments: str, env: Env) -> dict[str, Facts]:
    """The facts of each step of a set-up that works."""
    status, found = findings(*arguments, env=env)
    assert status == 0, found[-1]
    together: dict[str, Facts] = {}
    for finding in found:
        together.setdefault(finding["step"], {}).update(finding["facts"])
    return together


def problem(step: str, *arguments: str, env: Env) -> Facts:
    """The facts of the step that failed, which is the last one; the exit status is that step's."""
    status, found = findings(*arguments, env=env)
    assert status == STATUS[step]
    assert [finding["step"] for finding in found if not finding["ok"]] == [step]
    assert found[-1]["step"] == step
    facts: Facts = found[-1]["facts"]
    assert facts["problem"]
    return facts


class TestASetUpThatWorks:
    def test_goes_through_every_step_in_order(self, proxy: Dante, echo: EchoServer, env: Env) -> None:
        status, found = findings("--proxy", proxy.url(), f"localhost:{echo.address[1]}", env=env)
        assert status == 0
        assert list(dict.fromkeys(finding["step"] for finding in found)) == ALL

    def test_every_step_has_its_time(self, proxy: Dante, env: Env) -> None:
        _, found = findings("--proxy", proxy.url(), env=env)
        assert all(finding["milliseconds"] > 0 for finding in found)

    def test_configuration_with_its_sources(self, proxy: Dante, env: Env) -> None:
        env = {**env, "GSSSOCKS_PROXY": proxy.url(), "GSSSOCKS_NO_PROXY": ".example.org"}
        facts = steps("--rules", "*:25=refuse", env=env)["configuration"]
        assert facts["proxy"] == proxy.url()
        assert facts["proxy from"] == "environment variable GSSSOCKS_PROXY"
        assert facts["no_proxy from"] == "environment variable GSSSOCKS_NO_PROXY"
        assert facts["rules from"] == "option --rules"
        assert facts["rules"] == "*:25=refuse"
        assert facts["directly"] == ".example.org"
        assert facts["names"] == "resolved by the proxy"

    def test_configuration_from_a_file(self, proxy: Dante, env: Env, tmp_path: Path) -> None:
        path = tmp_path / "gsssocks.ini"
        path.write_text(f"[proxy]\nurl = {proxy.url()}\n")
        facts = steps(env={**env, "GSSSOCKS_CONFIG": str(path)})["configuration"]
        assert facts["proxy from"] == f"{path} [proxy] url"

    def test_every_proxy_is_named(self, proxy: Dante, env: Env) -> None:
        facts = steps("--proxy", f"{proxy.url()},socks5h://second", env=env)["configuration"]
        assert (facts["proxy"], facts["then proxy 2"]) == (proxy.url(), "socks5h://second:1080")

    def test_credential(self, proxy: Dante, two_services: Realm, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), env=env)["credential"]
        assert facts["principal"] == two_services.principal
        assert two_services.ccache in facts["cache"]
        assert re.fullmatch(r"\d+ min \d+ s|\d+ h \d+ min", facts["valid for"])

    def test_service_and_which_others_would_work(self, proxy: Dante, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), env=env)["service"]
        assert facts["asked for"] == "socks@localhost"
        assert facts["would work"] == "socks, rcmd"
        assert "localhost" in facts["name"]

    def test_authentication(self, proxy: Dante, two_services: Realm, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), env=env)["authentication"]
        assert facts["method offered"] == facts["method picked"] == "GSS-API (0x01)"
        assert facts["as"].startswith(f"{two_services.principal}, by ")
        assert facts["ticket"] in ("forwardable", "not forwardable")
        assert facts["delegated"].startswith("no")

    def test_ticket_that_is_forwardable(self, proxy: Dante, two_services: Realm, env: Env, tmp_path: Path) -> None:
        env = {**env, "KRB5CCNAME": f"FILE:{tmp_path / 'ccache'}"}
        command = ["kinit", "-f", "-k", "-t", two_services.client_keytab, two_services.principal]
        subprocess.run(command, env=env, check=True)
        facts = steps("--proxy", proxy.url(), env=env)["authentication"]
        assert facts["ticket"] == "forwardable"
        assert facts["delegated"] == "no (the KDC does not mark the proxy as fit for it)"
        facts = steps("--proxy", proxy.url(delegation="always"), env=env)["authentication"]
        assert facts["delegated"].startswith("yes")

    def test_protection(self, proxy: Dante, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), env=env)["protection"]
        assert facts == {"asked for": "confidentiality", "granted": "confidentiality"}

    def test_without_a_target_connects_to_nothing(self, proxy: Dante, env: Env) -> None:
        granted = proxy.connections()
        assert steps("--proxy", proxy.url(), env=env)["target"] == {"target": "none given: the proxy is ready"}
        assert proxy.connections() == granted

    def test_https_target_and_its_answer(self, proxy: Dante, https_server: HTTPSServer, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), https_server.url("/nothing"), env=env)["target"]
        assert facts["target"] == f"localhost:{https_server.address[1]}"
        assert facts["reply"].startswith("granted")
        assert facts["answer"] == "HTTP 501 Unsupported method ('HEAD')"
        assert facts["TLS"].startswith("TLSv1.")

    def test_plain_target(self, proxy: Dante, echo: EchoServer, env: Env) -> None:
        facts = steps("--proxy", proxy.url(), f"localhost:{echo.address[1]}", env=env)["target"]
        assert facts["connection"] == "made"

    def test_what_becomes_of_this_target(self, proxy: Dante, echo: EchoServer, env: Env) -> None:
        target = f"localhost:{echo.address[1]}"
        facts = steps("--proxy", proxy.url(), "--no-proxy", "", target, env=env)["configuration"]
        assert facts["this target"] == "proxy"


@pytest.fixture(scope="module")
def weaker(two_services: Realm) -> Iterator[Dante]:
    """Dante that accepts level 1 alone."""
    with Dante(two_services, enctype="integrity") as started:
        yield started


class TestRules:
    def test_that_refuses_the_target(self, proxy: Dante, env: Env) -> None:
        arguments = ("--proxy", proxy.url(), "--rules", "*:25=refuse", "mail.example:25")
        facts = problem("configuration", *arguments, env=env)
        assert facts["this target"] == "refuse, by *:25=refuse"
        assert "mail.example:25 are refused by the rule '*:25=refuse'" in facts["problem"]

    def test_that_demands_a_level_which_the_proxy_does_not_grant(
        self, weaker: Dante, echo: EchoServer, env: Env
    ) -> None:
        port = echo.address[1]
        url = weaker.url(protection="integrity")
        arguments = ("--proxy", url, "--rules", f"*:{port}=confidentiality", f"localhost:{port}")
        assert "'confidentiality'" in problem("protection", *arguments, env=env)["problem"]

    def test_that_demands_the_level_which_the_proxy_grants(self, weaker: Dante, echo: EchoServer, env: Env) -> None:
        port = echo.address[1]
        arguments = ("--proxy", weaker.url(), "--rules", f"*:{port}=integrity", f"localhost:{port}")
        assert steps(*arguments, env=env)["protection"] == {"asked for": "integrity", "granted": "integrity"}

    def test_of_another_target_demands_nothing(self, weaker: Dante, echo: EchoServer, env: Env) -> None:
        url = weaker.url(protection="integrity")
        arguments = ("--proxy", url, "--rules", "*:25=confidentiality", f"localhost:{echo.address[1]}")
        assert steps(*arguments, env=env)["protection"]["granted"] == "integrity"


class TestADirectTarget:
    """The proxy is one that nobody can reach."""

    @pytest.fixture
    def url(self, nobody: tuple[str, int]) -> str:
        return f"socks5h://localhost:{nobody[1]}"

    def test_takes_no_proxy(self, url: str, echo: EchoServer, env: Env) -> None:
        arguments = ("--proxy", url, "--no-proxy", "localhost", f"localhost:{echo.address[1]}")
        facts = steps(*arguments, env=env)
        assert list(facts) == ["configuration", "target"]
        assert facts["configuration"]["this target"] == "direct, by no_proxy"
        assert facts["target"]["reached"] == "directly, by no_proxy"
        assert facts["target"]["connection"] == "made"

    def test_is_told_in_the_last_line(self, url: str, echo: EchoServer, env: Env) -> None:
        port = echo.address[1]
        lines = check("--proxy", url, "--rules", f"*:{port}=direct", f"localhost:{port}", env=env).stdout.splitlines()
        assert lines[-1] == f"All is well: this target is reached directly, by *:{port}=direct. No proxy was asked."

    def test_that_is_a_web_server_answers(self, url: str, https_server: HTTPSServer, env: Env) -> None:
        arguments = ("--proxy", url, "--no-proxy", "localhost", https_server.url("/nothing"))
        facts = steps(*arguments, env=env)["target"]
        assert facts["answer"] == "HTTP 501 Unsupported method ('HEAD')"
        assert facts["TLS"].startswith("TLSv1.")

    def test_that_is_an_address(self, url: str, echo: EchoServer, env: Env) -> None:
        arguments = ("--proxy", url, "--no-proxy", "127.0.0.0/8", f"127.0.0.1:{echo.address[1]}")
        assert steps(*arguments, env=env)["target"]["address"] == f"127.0.0.1:{echo.address[1]}"

    def test_that_refuses(self, url: str, nobody: tuple[str, int], env: Env) -> None:
        arguments = ("--proxy", url, "--no-proxy", "localhost", f"localhost:{nobody[1]}")
        facts = problem("target", *arguments, env=env)
        assert facts["reached"] == "directly, by no_proxy"
        assert "refused" in facts["problem"]

    def test_whose_name_nobody_knows(self, url: str, env: Env) -> None:
        arguments = ("--proxy", url, "--no-proxy", ".invalid", "unknown.invalid:80")
        assert problem("target", *arguments, env=env)["target"] == "unknown.invalid:80"


class TestNamesResolvedHere:
    HOSTS = "127.0.0.1 one.example\n127.0.0.9 two.example\n127.0.0.1 two.example\n"

    @pytest.fixture
    def env(self, env: Env, tmp_path: Path) -> Env:
        (tmp_path / "hosts").write_text(self.HOSTS)
        return {**env, "LD_PRELOAD": "libnss_wrapper.so", "NSS_WRAPPER_HOSTS": str(tmp_path / "hosts")}

    def url(self, proxy: Dante) -> str:
        return f"socks5://127.0.0.1:{proxy.port}?target_name=socks@localhost"

    def test_the_proxy_is_asked_for_the_address(self, proxy: Dante, echo: EchoServer, env: Env) -> None:
        port = echo.address[1]
        facts = steps("--proxy", self.url(proxy), f"one.example:{port}", env=env)
        assert facts["configuration"]["names"] == "resolved here"
        assert facts["target"]["looked up here"] == "127.0.0.1"
        assert facts["target"]["target"] == f"127.0.0.1:{port}"

    def test_the_certificate_is_for_the_name(self, proxy: Dante, https_server: HTTPSServer, env: Env) -> None:
        facts = steps("--proxy", self.url(proxy), https_server.url("/"), env=env)
        assert facts["target"]["TLS"].startswith("TLSv1.")

    def test_an_address_that_the_proxy_cannot_reach_is_passed_over(
        self, proxy: Dante, echo: EchoServer, env: Env
    ) -> None:
        target = f"two.example:{echo.address[1]}"
        status, found = findings("--proxy", self.url(proxy), target, env=env)
        targets = [finding for finding in found if finding["step"] == "target"]
        assert status == 0, found[-1]
        assert targets[0]["facts"]["looked up here"] == "127.0.0.9, 127.0.0.1"
        assert [finding["ok"] for finding in targets] == [True, False, True, True]
        assert "refused by the target" in targets[1]["facts"]["problem"]

    def test_a_rule_for_the_address_counts(self, weaker: Dante, echo: EchoServer, env: Env) -> None:
        arguments = ("--proxy", self.url(weaker), "--rules", "127.0.0.0/8=integrity", f"one.example:{echo.address[1]}")
        assert steps(*arguments, env=env)["protection"]["granted"] == "integrity"

    def test_a_rule_may_refuse_the_address(self, proxy: Dante, env: Env) -> None:
        arguments = ("--proxy", self.url(proxy), "--rules", "127.0.0.0/8=refuse", "one.example:80")
        assert "'127.0.0.0/8=refuse'" in problem("target", *arguments, env=env)["problem"]

    def test_nobody_knows_the_name(self, proxy: Dante, env: Env) -> None:
        status, found = findings("--proxy", self.url(proxy), "unknown.invalid:80", env=env)
        assert status == STATUS["target"]
        assert [finding["step"] for finding in found] == ["configuration", "target"]


def test_names_that_the_environment_leaves_to_the_proxy(two_services: Realm, echo: EchoServer, env: Env) -> None:
    hosts = {"web.example": "127.0.0.1"}
    env = {**env, "GSSSOCKS_REMOTE_DNS": "1"}
    with ProxyServer("localhost", keytab=two_services.keytab, rules=["allow"], hosts=hosts) as knowing:
        url = knowing.url().replace("socks5h://", "socks5://")
        facts = steps("--proxy", url, f"web.example:{echo.address[1]}", env=env)
    assert facts["target"]["target"] == f"web.example:{echo.address[1]}"


class TestNoProxyOfTheEnvironment:
    """As for `gsssocks run`."""

    @pytest.fixture
    def env(self, env: Env) -> Env:
        del env["GSSSOCKS_NO_PROXY"]
        return {**env, "NO_PROXY": "unknown.invalid"}

    def test_counts_where_the_proxy_is_an_option(self, proxy: Dante, env: Env) -> None:
        _, found = findings("--proxy", proxy.url(), "unknown.invalid:80", env=env)
        facts = found[0]["facts"]
        assert facts["this target"] == "direct, by no_proxy"
        assert facts["proxy from"] == "option --proxy"
        assert facts["no_proxy from"] == "environment variable NO_PROXY"

    def test_counts_less_than_the_option(self, proxy: Dante, env: Env) -> None:
        _, found = findings("--proxy", proxy.url(), "--no-proxy", "", "unknown.invalid:80", env=env)
        assert found[0]["facts"]["this target"] == "proxy"


class TestSeveralProxies:
    def test_one_that_cannot_be_reached_is_told_and_passed_over(
        self, proxy: Dante, nobody: tuple[str, int], env: Env
    ) -> None:
        proxies = f"socks5h://localhost:{nobody[1]},{proxy.url()}"
        status, found = findings("--proxy", proxies, env=env)
        first, second = (finding for finding in found if finding["step"] == "proxy")
        assert (status, first["ok"], second["ok"]) == (0, False, True)
        assert first["facts"]["proxy"] == f"localhost:{nobody[1]}"
        assert "refused" in first["facts"]["problem"]
        assert second["facts"]["proxy"] == f"localhost:{proxy.port}"
        assert found[-1]["step"] == "target"

    def test_it_is_told_in_the_last_line(self, proxy: Dante, nobody: tuple[str, int], env: Env) -> None:
        done = check("--proxy", f"socks5h://localhost:{nobody[1]},{proxy.url()}", env=env)
        assert done.stdout.splitlines()[-1] == "It works, but for what failed above."

    def test_none_can_be_reached(self, nobody: tuple[str, int], env: Env) -> None:
        proxies = ",".join(2 * [f"socks5h://localhost:{nobody[1]}"])
        status, found = findings("--proxy", proxies, env=env)
        assert status == STATUS["proxy"]
        assert [finding["ok"] for finding in found if finding["step"] == "proxy"] == [False, False]
        assert found[-1]["step"] == "proxy"


class TestSeveralLevels:
    def test_one_that_is_refused_is_told_and_passed_over(self, two_services: Realm, env: Env) -> None:
        with Dante(two_services, enctype="integrity") as weaker:
            url = weaker.url(protection="confidentiality,integrity")
            status, found = findings("--proxy", url, env=env)
        first, second = (finding for finding in found if finding["step"] == "protection")
        assert (status, first["ok"], second["ok"]) == (0, False, True), found
        assert "'confidentiality'" in first["facts"]["problem"]
        assert second["facts"]["granted"] == "integrity"

    def test_all_are_refused(self, two_services: Realm, env: Env) -> None:
        with Dante(two_services, enctype="clear") as weaker:
            url = weaker.url(protection="confidentiality,integrity")
            status, found = findings("--proxy", url, env=env)
        assert status == STATUS["protection"]
        assert [finding["ok"] for finding in found if finding["step"] == "protection"] == [False, False]

    def test_another_failure_ends_the_examination(self, proxy: Dante, nobody: tuple[str, int], env: Env) -> None:
        url = proxy.url(protection="confidentiality,integrity")
        status, found = findings("--proxy", url, f"localhost:{nobody[1]}", env=env)
        assert status == STATUS["target"]
        assert [finding["step"] for finding in found if not finding["ok"]] == ["target"]


class TestOtherMethods:
    def url(self, microsocks: Microsocks, methods: str = "userpass", password: str = "s3cret") -> str:
        options = f"username=bob&password={password}&methods={methods}"
        return f"socks5h://127.0.0.1:{microsocks.port}?target_name=socks@localhost&{options}"

    def test_user_and_password(self, microsocks: Microsocks, echo: EchoServer, env: Env) -> None:
        status, found = findings("--proxy", self.url(microsocks), "{}:{}".format(*echo.address), env=env)
        assert status == 0, found[-1]
        assert [finding["step"] for finding in found[:4]] == ["configuration", "proxy", "authentication", "protection"]
        authentication, protection = found[2:4]
        assert authentication["facts"] == {
            "method offered": "user name and password (0x02)",
            "method picked": "user name and password (0x02)",
        }
        assert protection["facts"] == {"granted": "none: the method has no protection"}
        assert "s3cret" not in str(found)

    def test_wrong_password(self, microsocks: Microsocks, env: Env) -> None:
        said = problem("authentication", "--proxy", self.url(microsocks, password="wrong"), env=env)["problem"]
        assert "refused the user 'bob' or the password" in said

    def test_without_a_target_connects_to_nothing(self, microsocks: Microsocks, env: Env) -> None:
        status, found = findings("--proxy", self.url(microsocks), env=env)
        assert (status, found[-1]["facts"]) == (0, {"target": "none given: the proxy is ready"})

    def test_no_ticket_ends_nothing_where_another_method_is_offered(self, microsocks: Microsocks, env: Env) -> None:
        env = {**env, "KRB5CCNAME": "FILE:/nonexistent"}
        status, found = findings("--proxy", self.url(microsocks, methods="gssapi,userpass"), env=env)
        assert [finding["step"] for finding in found if not finding["ok"]] == ["credential"]
        assert status == 0
        (authentication,) = (finding for finding in found if finding["step"] == "authentication")
        assert authentication["facts"]["method offered"] == "GSS-API (0x01), user name and password (0x02)"

    def test_gssapi_where_the_proxy_picks_it(self, proxy: Dante, env: Env) -> None:
        facts = steps("--proxy", proxy.url(methods="gssapi,userpass", username="bob", password="s3cret"), env=env)
        assert facts["authentication"]["method picked"] == "GSS-API (0x01)"


class TestNames:
    """What the resolver makes of the proxy's name, by a hosts file of the test's own."""

    HOSTS = (
        "127.0.0.3 proxy.example alias.example\n127.0.0.4 reverse.example\n127.0.0.4 forward.example\n"
        "127.0.0.5 plain.example\n"
    )

    def name(self, host: str, env: Env, tmp_path: Path) -> str:
        (tmp_path / "hosts").write_text(self.HOSTS)
        env = {**env, "LD_PRELOAD": "libnss_wrapper.so", "NSS_WRAPPER_HOSTS": str(tmp_path / "hosts")}
        _, found = findings("--proxy", f"socks5h://{host}?target_name=socks@localhost", env=env)
        (service,) = (finding for finding in found if finding["step"] == "service")
        name: str = service["facts"]["name"]
        return name

    def test_that_agree(self, env: Env, tmp_path: Path) -> None:
        name = self.name("plain.example", env, tmp_path)
        assert name == "plain.example is plain.example is 127.0.0.5 is plain.example"

    def test_an_alias(self, env: Env, tmp_path: Path) -> None:
        assert self.name("alias.example", env, tmp_path) == (
            "alias.example is proxy.example is 127.0.0.3 is proxy.example; an alias: where krb5.conf has "
            "dns_canonicalize_hostname, Kerberos asks for proxy.example; if the KDC knows another, give target_name="
        )

    def test_a_ptr_mismatch(self, env: Env, tmp_path: Path) -> None:
        assert self.name("forward.example", env, tmp_path) == (
            "forward.example is forward.example is 127.0.0.4 is reverse.example; PTR mismatch: where krb5.conf has "
            "rdns, Kerberos asks for reverse.example; if the KDC knows another, give target_name="
        )

    def test_that_is_unknown(self, env: Env, tmp_path: Path) -> None:
        assert self.name("unknown.invalid", env, tmp_path).startswith("unknown.invalid does not resolve")


class TestClocks:
    """This machine's clock is wrong, by libfaketime."""

    def wrong(self, offset: str, env: Env) -> Env:
        preload = Path("/usr/lib").glob("*/faketime/libfaketime.so.1")
        return {**env, "LD_PRELOAD": str(next(preload)), "FAKETIME": offset}

    def problem(self, step: str, offset: str, proxy: Dante, env: Env) -> str:
        return problem(step, "--proxy", proxy.url(), env=self.wrong(offset, env))["problem"]

    @pytest.mark.parametrize(
        ("offset", "said"),
        [
            ("+0", "the same as the KDC's when the ticket was got"),
            ("-100s", r"1 min (39|40|41) s behind the KDC's when the ticket was got"),
            ("+100s", r"1 min (39|40|41) s ahead of the KDC's when the ticket was got"),
            ("-2h", r"[12] h \d+ min behind the KDC's when the ticket was got: too far for a proxy .*; set it"),
        ],
    )
    @pytest.mark.parametrize("named", ["FILE:{}", "{}"])
    def test_are_compared(
        self, proxy: Dante, two_services: Realm, env: Env, tmp_path: Path, offset: str, said: str, named: str
    ) -> None:
        """As MIT Kerberos does it unless krb5.conf says no, which that of the realm does."""
        path, krb5_conf = tmp_path / "ccache", tmp_path / "krb5.conf"
        general = Path(env["KRB5_CONFIG"].partition(":")[0]).read_text()
        krb5_conf.write_text(re.sub("(?m)^.*kdc_timesync.*$", "", general))
        env = {**env, "KRB5CCNAME": named.format(path), "KRB5_CONFIG": str(krb5_conf)}
        subprocess.run(
            ["kinit", two_services.principal],
            input=two_services.password,
            env=self.wrong(offset, env),
            stdout=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        _, found = findings("--proxy", proxy.url(), env=env)
        (facts,) = (finding["facts"] for finding in found if finding["step"] == "credential")
        assert re.fullmatch(said, facts["clock"])

    @given(st.binary(max_size=40))
    def test_a_file_that_is_no_cache_says_nothing_of_them(self, tmp_path_factory: Any, octets: bytes) -> None:
        path = tmp_path_factory.getbasetemp() / "ccache"
        for head in (octets, b"\x05\x04" + octets, b"\x05\x04\x00\x0c" + octets):
            path.write_bytes(head)
            assert kdc_clock_offset(f"FILE:{path}") is None or b"\x00\x01\x00\x08" in head

    def test_that_nobody_has_compared(self, proxy: Dante, env: Env) -> None:
        assert "clock" not in steps("--proxy", proxy.url(), env=env)["credential"]

    def test_behind_the_kdcs(self, proxy: Dante, env: Env) -> None:
        assert "check the clocks of this machine and the KDC" in self.problem("service", "-1h", proxy, env)

    def test_before_the_kdcs(self, proxy: Dante, two_services: Realm, env: Env, tmp_path: Path) -> None:
        env = {**env, "KRB5CCNAME": f"FILE:{two_services.kinit(ccache=tmp_path / 'ccache')}"}
        said = self.problem("service", "+10m", proxy, env)
        assert "the clocks of this machine and the KDC or proxy are too far apart" in said

    def test_before_the_proxys(self, proxy: Dante, two_services: Realm, env: Env, tmp_path: Path) -> None:
        env = {**env, "KRB5CCNAME": f"FILE:{two_services.kinit(ccache=tmp_path / 'ccache')}"}
        steps("--proxy", proxy.url(), env=env)  # the ticket is in the cache now
        assert "the clocks" in self.problem("authentication", "+10m", proxy, env)


def answer_as_a_web_server(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def reset(connection: socket.socket) -> None:
    connection.recv(1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class TestASetUpThatDoesNot:
    @pytest.mark.parametrize(
        ("arguments", "quoted"),
        [
            ((), "no proxy given"),
            (("--proxy", "http://proxy:3128"), "option --proxy: bad proxy URL 'http://proxy:3128'"),
            (("--proxy", "socks5h://proxy", "--no-proxy", "10.0.0.0/33"), "option --no-proxy: bad destination '10.0."),
            (("--proxy", "socks5h://proxy", "--rules", "a=b"), "option --rules: bad rule 'a=b'"),
            (("--proxy", "socks5h://proxy", "nowhere"), "'nowhere'"),
        ],
    )
    def test_configuration(self, env: Env, arguments: tuple[str, ...], quoted: str) -> None:
        assert quoted in problem("configuration", *arguments, env=env)["problem"]

    def test_credential(self, proxy: Dante, env: Env) -> None:
        env = {**env, "KRB5CCNAME": "FILE:/nonexistent"}
        assert "kinit" in problem("credential", "--proxy", proxy.url(), env=env)["problem"]

    def test_credential_expired(self, proxy: Dante, two_services: Realm, env: Env, tmp_path: Path) -> None:
        ccache = two_services.kinit_expired(ccache=tmp_path / "ccache")
        env = {**env, "KRB5CCNAME": f"FILE:{ccache}"}
        assert "expired" in problem("credential", "--proxy", proxy.url(), env=env)["problem"]

    def test_configuration_with_a_keytab_that_is_not_there(self, proxy: Dante, env: Env) -> None:
        facts = problem("configuration", "--proxy", proxy.url(keytab="/nonexistent"), env=env)
        assert "the keytab '/nonexistent' is not there" in facts["problem"]

    def test_service_without_a_kdc(self, two_services: Realm, proxy: Dante, env: Env, tmp_path: Path) -> None:
        ccache = two_services.kinit(ccache=tmp_path / "ccache")
        two_services.stop_kdc()
        try:
            facts = problem("service", "--proxy", proxy.url(), env={**env, "KRB5CCNAME": f"FILE:{ccache}"})
        finally:
            two_services.start_kdc()
        assert facts["would work"] == "none of socks, rcmd, host"

    def test_service_of_a_proxy_that_the_kdc_knows_by_another_name(self, proxy: Dante, env: Env) -> None:
        facts = problem("service", "--proxy", f"socks5h://127.0.0.1:{proxy.port}", env=env)
        assert facts["asked for"] == "socks@127.0.0.1"
        assert facts["name"].endswith("if the KDC knows another, give target_name=")

    def test_service_tells_which_would_work(self, proxy: Dante, env: Env) -> None:
        arguments = ("--proxy", proxy.url(service="host"))
        facts = problem("service", *arguments, env=env)
        assert facts["asked for"] == "host@localhost"
        assert facts["would work"] == "socks, rcmd"

    def test_proxy(self, nobody: tuple[str, int], env: Env) -> None:
        arguments = ("--proxy", f"socks5h://localhost:{nobody[1]}")
        said = problem("proxy", *arguments, env=env)["problem"]
        assert said == f"cannot reach the proxy localhost:{nobody[1]}: Connection refused"

    def test_proxy_whose_name_nobody_knows(self, env: Env) -> None:
        arguments = ("--proxy", "socks5h://unknown.invalid?target_name=socks@localhost")
        said = problem("proxy", *arguments, env=env)["problem"]
        assert said.startswith("cannot reach the proxy unknown.invalid:1080: ")

    def test_authentication_at_a_proxy_that_says_nothing(self, env: Env) -> None:
        with Host(received_until_end) as silent:
            host, port = silent.address
            arguments = ("--proxy", f"socks5h://{host}:{port}?target_name=socks@localhost&timeout=0.5")
            said = problem("authentication", *arguments, env=env)["problem"]
        assert said == (
            f"timed out while waiting for the proxy to choose an authentication method (proxy {host}:{port})"
        )

    def test_authentication_at_a_proxy_that_resets_the_connection(self, env: Env) -> None:
        with Host(reset) as unkind:
            proxy = "socks5h://{}:{}?target_name=socks@localhost".format(*unkind.address)
            said = problem("authentication", "--proxy", proxy, env=env)["problem"]
        assert "closed the connection at once" in said

    @pytest.mark.parametrize("methods", ["gssapi", "gssapi,userpass", "userpass"])
    def test_gssapi_cannot_be_loaded(self, env: Env, tmp_path: Path, methods: str) -> None:
        (tmp_path / "gssapi.py").write_text("raise ImportError('libgssapi_krb5.so.2: cannot open shared object file')")
        env = {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"}
        user = "&username=bob&password=s3cret" if "userpass" in methods else ""
        facts = problem("credential", "--proxy", f"socks5h://localhost?methods={methods}{user}", env=env)
        assert "libgssapi_krb5.so.2: cannot open shared object file" in facts["problem"]
        assert "libgssapi-krb5-2" in facts["problem"]

    def test_authentication_with_a_key_that_the_proxy_does_not_use(self, proxy: Dante, env: Env) -> None:
        arguments = ("--proxy", proxy.url(service="rcmd"))
        problem("authentication", *arguments, env=env)

    def test_authentication_at_a_proxy_without_gssapi(self, dante_none: Dante, env: Env) -> None:
        arguments = ("--proxy", dante_none.url())
        assert "GSS-API" in problem("authentication", *arguments, env=env)["problem"]

    def test_authentication_at_what_is_no_proxy(self, env: Env) -> None:
        with Host(answer_as_a_web_server) as server:
            proxy = "socks5h://{}:{}?target_name=socks@localhost".format(*server.address)
            assert "SOCKS" in problem("authentication", "--proxy", proxy, env=env)["problem"]

    def test_protection(self, two_services: Realm, env: Env) -> None:
        with Dante(two_services, enctype="integrity") as weaker:
            arguments = ("--proxy", weaker.url())
            facts = problem("protection", *arguments, env=env)
        assert facts["asked for"] == "confidentiality"

    def test_target_refused(self, proxy: Dante, nobody: tuple[str, int], env: Env) -> None:
        arguments = ("--proxy", proxy.url(), f"localhost:{nobody[1]}")
        facts = problem("target", *arguments, env=env)
        assert facts["target"] == f"localhost:{nobody[1]}"
        assert "refused" in facts["problem"]

    def test_target_whose_certificate_nobody_trusts(self, proxy: Dante, https_server: HTTPSServer, env: Env) -> None:
        del env["SSL_CERT_FILE"]
        arguments = ("--proxy", proxy.url(), https_server.url("/"))
        assert "certificate verify failed" in problem("target", *arguments, env=env)["problem"]

    def test_target_that_is_no_http_server(self, proxy: Dante, echo: EchoServer, env: Env) -> None:
        arguments = ("--proxy", proxy.url(), f"http://localhost:{echo.address[1]}/")
        problem("target", *arguments, env=env)


class TestSecrets:
    @pytest.mark.parametrize("json_option", [(), ("--json",)])
    def test_a_password_in_the_proxy_url(self, env: Env, json_option: tuple[str, ...]) -> None:
        assert "s3cret" not in check(*json_option, "--proxy", "socks5h://alice:s3cret@proxy", env=env).stdout

    @pytest.mark.parametrize("json_option", [(), ("--json",)])
    def test_a_password_and_a_token_in_the_target(
        self, proxy: Dante, https_server: HTTPSServer, env: Env, json_option: tuple[str, ...]
    ) -> None:
        target = https_server.url("/?token=s3cret", host="alice:s3cret@localhost")
        done = check(*json_option, "--proxy", proxy.url(), target, env=env)
        assert done.returncode == 0
        assert "s3cret" not in done.stdout

    @pytest.mark.parametrize(
        "target",
        [
            "ftp://alice:s3cret@localhost/",
            "alice:s3cret@localhost",
            "https://alice:s3cret@localhost:port/",
            "ftp://localhost/?token=s3cret",
        ],
    )
    def test_in_a_target_that_is_none(self, env: Env, target: str) -> None:
        done = check("--proxy", "socks5h://proxy", target, env=env)
        assert done.returncode == 2
        assert "s3cret" not in done.stdout

    def test_keys_of_the_keytab(self, proxy: Dante, two_services: Realm, env: Env) -> None:
        done = check(
            "--json", "--proxy", proxy.url(keytab=two_services.client_keytab, principal=two_services.principal), env=env
        )
        key = Path(two_services.client_keytab).read_bytes()[-36:-4]
        assert done.returncode == 0
        for written in (key.hex(), base64.b64encode(key).decode(), two_services.password):
            assert written not in done.stdout


class TestReadable:
    def test_a_set_up_that_works(self, proxy: Dante, env: Env) -> None:
        lines = check("--proxy", proxy.url(), env=env).stdout.splitlines()
        titles = [line.split(":")[0] for line in lines if line.endswith(" ms")]
        assert titles == ALL
        assert lines[-1] == "All is well."

    def test_a_set_up_that_does_not(self, env: Env) -> None:
        lines = check("--proxy", "http://proxy", env=env).stdout.splitlines()
        assert lines[1].startswith("configuration: FAILED")
        assert lines[-1] == "It fails at the configuration."

    def test_one_column_of_milliseconds(self, proxy: Dante, env: Env) -> None:
        lines = check("--proxy", proxy.url(), env=env).stdout.splitlines()
        assert len({len(line) for line in lines if line.endswith(" ms")}) == 1

    def test_that_make_kerberos_ask_for_another_principal(self, proxy: Dante, env: Env, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_text("127.0.0.1 localhost alias.example\n")
        profile = Path(env["KRB5_CONFIG"]).read_text()
        following = re.sub("dns_canonicalize_hostname = false", "dns_canonicalize_hostname = true", profile)
        (tmp_path / "krb5.conf").write_text(following)
        env = {
            **env,
            "KRB5_CONFIG": str(tmp_path / "krb5.conf"),
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_HOSTS": str(tmp_path / "hosts"),
        }
        facts = steps("--proxy", f"socks5h://alias.example:{proxy.port}", env=env)
        assert facts["authentication"]["at"].startswith("socks/localhost@")
        assert "not socks/alias.example: the name server has chosen it" in facts["authentication"]["at"]
