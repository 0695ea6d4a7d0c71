"""The embedded provider by itself: logins, their end, and what the clients are told of both.

No demo site runs: a server of ours stands at its address and writes down what is sent there.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_urlsafe
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit
from uuid import NAMESPACE_URL, uuid5

import pytest
import requests
from jwcrypto.jwk import JWK, JWKSet
from jwcrypto.jwt import JWT
from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page

from tests.demo.conftest import ROOT, free_ports
from tests.demo.looks import problems_of

BACKCHANNEL_LOGOUT = "http://schemas.openid.net/event/backchannel-logout"
PASSWORD, SECOND_FACTOR = "urn:demo:password", "urn:demo:second-factor"
ALGORITHMS = {"demo-rs256": "RS256", "demo-hs256": "HS256"}
SCREENSHOTS = ROOT / ".test" / "screenshots"
# Dozens of logins that all wait for a slow hash would be half of the time that these tests take.
QUICK_SETTINGS = """
from demo_site.provider.settings import *
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
"""


# The three parties: the site, the provider, and a person with a browser


class Site:
    """Stands where the demo site would: `told` is each logout token that came, by slug."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.answers = Event()
        self.answers.set()
        self.port = 0

    def __enter__(self) -> "Site":
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                _, _, slug, last, _ = self.path.split("/")
                assert last == "backchannel-logout"
                assert self.headers["Content-Type"] == "application/x-www-form-urlencoded"
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                assert form.keys() == {"logout_token"}
                site.told.append((slug, form["logout_token"][0]))
                site.answers.wait()
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        Thread(target=self.server.serve_forever, args=[0.05], daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Provider:
    url: str
    site: Site
    folder: Path

    @property
    def secrets(self) -> dict[str, str]:
        read: dict[str, str] = json.loads((self.folder / "secrets.json").read_text())
        return read

    @property
    def metadata(self) -> dict[str, Any]:
        read: dict[str, Any] = fetch(f"{self.url}/.well-known/openid-configuration").json()
        return read

    def client_secret(self, slug: str) -> str:
        return self.secrets[f"{slug.removeprefix('demo-')}_client_secret"]

    def read(self, token: str, slug: str = "demo-rs256") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return header and claims of a token that is signed for this client, and not expired."""
        secret = self.client_secret(slug).encode()
        key = JWK(kty="oct", k=urlsafe_b64encode(secret).rstrip(b"=").decode())
        keys = JWKSet.from_json(fetch(self.metadata["jwks_uri"]).text)
        algorithm = ALGORITHMS[slug]
        jwt = JWT(jwt=token, key=keys if algorithm == "RS256" else key, algs=[algorithm])
        return json.loads(jwt.header), json.loads(jwt.claims)


def fetch(url: str, **arguments: Any) -> requests.Response:
    with requests.Session() as direct:
        direct.trust_env = False
        return direct.get(url, timeout=30, **arguments)


@dataclass
class Tokens:
    provider: Provider
    slug: str
    answered: dict[str, str]

    @property
    def id_token(self) -> dict[str, Any]:
        return self.provider.read(self.answered["id_token"], self.slug)[1]

    @property
    def userinfo(self) -> dict[str, Any]:
        bearer = {"Authorization": f"Bearer {self.answered['access_token']}"}
        read: dict[str, Any] = fetch(f"{self.provider.url}/userinfo/", headers=bearer).json()
        return read

    def refreshed(self) -> "Tokens":
        grant = {"grant_type": "refresh_token", "refresh_token": self.answered["refresh_token"]}
        answer = at_token_endpoint(self.provider, self.slug, grant)
        assert answer.status_code == 200, answer.text
        return Tokens(self.provider, self.slug, answer.json())


def at_token_endpoint(provider: Provider, slug: str, grant: dict[str, str]) -> requests.Response:
    client = (f"demo-site-{slug.removeprefix('demo-')}", provider.client_secret(slug))
    with requests.Session() as direct:
        direct.trust_env = False
        return direct.post(f"{provider.url}/token/", grant, auth=client, timeout=30)


@dataclass
class Person:
    """Somebody with a browser, which goes as far as the provider sends it, and no further.

    pages: the path of every page that was shown since the last request of a site.
    """

    provider: Provider
    browser: requests.Session = field(default_factory=requests.Session)
    page: requests.Response = field(default_factory=requests.Response)
    pages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.browser.trust_env = False

    def sign_in(
        self, slug: str = "demo-rs256", username: str = "ines", **parameters: Any
    ) -> Tokens:
        """Go the whole way, through every page that the provider shows."""
        asked = self.ask(slug, **parameters)
        if self.pages == ["/login/"]:
            self.log_in(username)
        if self.pages[-1:] == ["/second-factor/"]:
            self.confirm()
        answer = self.at_site
        assert answer.keys() == {"code", "state", "iss"}, answer
        assert answer["state"] == asked["state"]
        return redeem(self.provider, slug, answer["code"], asked)

    def ask(self, slug: str = "demo-rs256", **parameters: Any) -> dict[str, str]:
        """Come with a site's authentication request; return what it keeps of it."""
        kept = {name: token_urlsafe(32) for name in ("state", "nonce", "code_verifier")}
        kept["redirect_uri"] = f"{self.provider.site.url}/oidc/{slug}/callback/"
        digest = sha256(kept["code_verifier"].encode()).digest()
        query = {
            "response_type": "code",
            "client_id": f"demo-site-{slug.removeprefix('demo-')}",
            "scope": "openid offline_access",
            "redirect_uri": kept["redirect_uri"],
            "state": kept["state"],
            "nonce": kept["nonce"],
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        self.pages = []
        self.go(f"/authorize/?{urlencode(query | parameters)}")
        return kept

    def log_in(self, username: str = "ines") -> None:
        password = self.provider.secrets["password"]
        self.send(self.page.url, username=username, password=password, next=self.hidden("next"))

    def confirm(self) -> None:
        self.send(self.page.url)

    def log_out(self) -> None:
        """Use the provider's own button."""
        self.go("/")
        self.send("/sign-out/")
        assert self.shown == ["/"]

    def go(self, path: str) -> None:
        self._at("GET", path)

    def send(self, path: str, **form: str) -> None:
        form["csrfmiddlewaretoken"] = self.hidden("csrfmiddlewaretoken")
        self._at("POST", path, data=form, headers={"Referer": self.page.url})

    def hidden(self, name: str) -> str:
        found = re.search(rf'name="{name}" value="([^"]*)"', self.page.text)
        assert found, name
        return unescape(found[1])

    @property
    def shown(self) -> list[str]:
        """The path of the page that is seen now; none when the browser is with the site again."""
        return [] if self.page.is_redirect else [urlsplit(self.page.url).path]

    @property
    def at_site(self) -> dict[str, str]:
        """What the provider has sent with the browser to the site's callback."""
        assert self.page.is_redirect, self.page.text
        url = urlsplit(self.page.headers["Location"])
        assert re.fullmatch(r"/oidc/demo-[rh]s256/callback/", url.path)
        return {name: value for name, (value,) in parse_qs(url.query).items()}

    @property
    def words(self) -> str:
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", self.page.text)).split())

    def _at(self, method: str, path: str, **arguments: Any) -> None:
        url = urljoin(self.provider.url, path)
        while True:
            self.page = self.browser.request(
                method, url, allow_redirects=False, timeout=30, **arguments
            )
            url = urljoin(url, self.page.headers.get("Location", ""))
            if not self.page.is_redirect or not url.startswith(self.provider.url):
                break
            method, arguments = "GET", {}
        self.pages += self.shown


def redeem(provider: Provider, slug: str, code: str, asked: dict[str, str]) -> Tokens:
    kept = {name: asked[name] for name in ("redirect_uri", "code_verifier")}
    grant = {"grant_type": "authorization_code", "code": code, **kept}
    answer = at_token_endpoint(provider, slug, grant)
    assert answer.status_code == 200, answer.text
    return Tokens(provider, slug, answer.json())


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    folder, (port,) = tmp_path_factory.mktemp("provider"), free_ports(1)
    with Site() as site, running_provider(folder, port, site.port):
        yield Provider(f"http://127.0.0.1:{port}", site, folder)


@contextmanager
def running_provider(folder: Path, port: int, site_port: int) -> Iterator[None]:
    def django(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "django", *arguments, "--settings=quick_settings"]

    (folder / "quick_settings.py").write_text(QUICK_SETTINGS)
    ports = {"DEMO_PORT": str(site_port), "DEMO_OP_PORT": str(port)}
    environment = {**os.environ, "DEMO_DIR": str(folder), "DEMO_HTTPS": "", **ports}
    environment["PYTHONPATH"] = str(folder)
    subprocess.run(django("prepare_provider"), cwd=ROOT, env=environment, check=True)
    with (folder / "provider.log").open("wb") as log:
        server = subprocess.Popen(
            django("runserver", "--noreload", f"127.0.0.1:{port}"),
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}/", server)
        yield
    finally:
        server.terminate()
        server.wait()


def wait_until_it_answers(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            fetch(url)
        except requests.ConnectionError:
            assert server.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def person(provider: Provider) -> Iterator[Person]:
    provider.site.told.clear()
    with requests.Session() as browser:
        yield Person(provider, browser)


@pytest.fixture
def other_person(provider: Provider) -> Iterator[Person]:
    with requests.Session() as browser:
        yield Person(provider, browser)


def wait_for_the_next_second() -> None:
    """Times in tokens are whole seconds."""
    time.sleep(1 - time.time() % 1)


# What the provider says of itself


def test_discovery_names_what_sessions_and_logout_need(provider: Provider) -> None:
    told = provider.metadata
    assert told["end_session_endpoint"] == f"{provider.url}/logout/"
    assert told["backchannel_logout_supported"] is True
    assert told["backchannel_logout_session_supported"] is True
    assert told["acr_values_supported"] == [PASSWORD, SECOND_FACTOR]
    assert told["subject_types_supported"] == ["public", "pairwise"]
    assert told["prompt_values_supported"] == ["none", "login"]
    assert {"sub", "name", "sid", "auth_time", "acr", "amr"} <= set(told["claims_supported"])


# The ID Token tells of the login


@pytest.mark.parametrize("slug", ALGORITHMS)
def test_an_id_token_has_these_claims_and_no_others(person: Person, slug: str) -> None:
    asked = person.ask(slug)
    before = int(time.time())
    person.log_in()
    claims = redeem(person.provider, slug, person.at_site["code"], asked).id_token
    after = int(time.time())
    assert claims.keys() == {
        *("iss", "sub", "aud", "iat", "exp", "jti", "nonce", "at_hash"),
        *("sid", "auth_time", "acr", "amr"),
    }
    assert claims["iss"] == person.provider.url
    assert claims["aud"] == f"demo-site-{slug[-5:]}"
    assert claims["nonce"] == asked["nonce"]
    assert claims["acr"] == PASSWORD
    assert claims["amr"] == ["pwd"]
    assert before <= claims["auth_time"] <= claims["iat"] <= after


def test_sid_is_one_for_a_session_and_a_client_and_new_after_a_new_login(person: Person) -> None:
    first = person.sign_in().id_token
    again = person.sign_in().id_token
    assert person.pages == []
    elsewhere = person.sign_in("demo-hs256").id_token
    assert person.pages == []
    assert again["sid"] == first["sid"] != elsewhere["sid"]
    assert again["auth_time"] == first["auth_time"] == elsewhere["auth_time"]
    person.log_out()
    assert person.sign_in().id_token["sid"] != first["sid"]
    assert person.pages == ["/login/"]


def test_two_browsers_of_one_person_are_two_sessions(person: Person, other_person: Person) -> None:
    assert person.sign_in().id_token["sid"] != other_person.sign_in().id_token["sid"]


def test_a_refreshed_id_token_tells_of_the_login_it_came_from(person: Person) -> None:
    """Core §12.2: whatever happened in the browser since, and when it logged out, too."""
    tokens = person.sign_in(acr_values=SECOND_FACTOR)
    wait_for_the_next_second()
    later = person.sign_in(prompt="login")
    person.log_out()
    names = ("sub", "sid", "auth_time", "acr", "amr")
    first = {name: tokens.id_token[name] for name in names}
    assert first["acr"] == SECOND_FACTOR
    for _ in range(2):
        tokens = tokens.refreshed()
        assert {name: tokens.id_token[name] for name in names} == first
    refreshed = later.refreshed().id_token
    assert refreshed["auth_time"] == later.id_token["auth_time"] > first["auth_time"]
    assert refreshed["acr"] == PASSWORD


def test_a_grant_from_before_logins_were_remembered_has_ended(person: Person) -> None:
    tokens = person.sign_in()
    database = sqlite3.connect(person.provider.folder / "provider.sqlite3")
    with database:
        database.execute("DELETE FROM provider_login_id_tokens")
        database.execute("DELETE FROM provider_login")
    database.close()
    grant = {"grant_type": "refresh_token", "refresh_token": tokens.answered["refresh_token"]}
    refused = at_token_endpoint(person.provider, tokens.slug, grant)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


# prompt and max_age (Core §3.1.2.1)


@pytest.mark.parametrize("asked", [{"prompt": "login"}, {"max_age": 0}])
def test_the_password_is_asked_again_once_and_the_session_stays(
    person: Person, asked: dict[str, Any]
) -> None:
    first = person.sign_in().id_token
    wait_for_the_next_second()
    again = person.sign_in(**asked).id_token
    assert person.pages == ["/login/"]
    assert again["auth_time"] > first["auth_time"]
    assert again["sid"] == first["sid"]


@pytest.mark.parametrize("asked", [{"prompt": "login"}, {"max_age": 0}])
def test_who_is_not_logged_in_is_asked_once(person: Person, asked: dict[str, Any]) -> None:
    person.sign_in(**asked)
    assert person.pages == ["/login/"]


def test_max_age_asks_again_when_the_login_is_older(person: Person) -> None:
    first = person.sign_in().id_token
    person.sign_in(max_age=600)
    assert person.pages == []
    wait_for_the_next_second()
    second = person.sign_in(max_age=1).id_token
    assert person.pages == ["/login/"]
    assert second["auth_time"] > first["auth_time"]


def test_a_max_age_that_is_no_number_asks_nothing(person: Person) -> None:
    person.sign_in()
    person.sign_in(max_age="-1")
    assert person.pages == []


def test_prompt_none_says_login_required_where_nobody_is_logged_in(person: Person) -> None:
    asked = person.ask(prompt="none")
    assert person.at_site == {
        "error": "login_required",
        "state": asked["state"],
        "iss": person.provider.url,
    }


def test_prompt_none_says_login_required_when_the_login_is_too_old(person: Person) -> None:
    person.sign_in()
    asked = person.ask(prompt="none", max_age=0)
    assert person.at_site == {
        "error": "login_required",
        "state": asked["state"],
        "iss": person.provider.url,
    }


def test_prompt_none_brings_a_code_where_somebody_is_logged_in(person: Person) -> None:
    first = person.sign_in().id_token
    silent = person.sign_in(prompt="none", max_age=600).id_token
    assert person.pages == []
    assert silent["sid"] == first["sid"]


def test_prompt_none_with_another_value_is_an_error(person: Person) -> None:
    asked = person.ask(prompt="none login")
    answer = person.at_site
    assert answer["error"] == "invalid_request"
    assert (answer["state"], answer["iss"]) == (asked["state"], person.provider.url)


def test_prompt_none_sends_nobody_to_an_address_that_is_not_registered(person: Person) -> None:
    person.ask(prompt="none", redirect_uri="http://127.0.0.1:1/elsewhere/")
    assert (person.page.status_code, person.shown) == (400, ["/authorize/"])


# acr_values


def test_a_second_factor_is_asked_when_a_site_asks_for_it_and_then_known(person: Person) -> None:
    first = person.sign_in().id_token
    stepped_up = person.sign_in(acr_values=f"urn:unknown {SECOND_FACTOR} {PASSWORD}").id_token
    assert person.pages == ["/second-factor/"]
    assert stepped_up["acr"] == SECOND_FACTOR
    assert stepped_up["amr"] == ["pwd", "otp"]
    assert stepped_up["auth_time"] == first["auth_time"]
    assert stepped_up["sid"] == first["sid"]
    assert person.sign_in(acr_values=SECOND_FACTOR).id_token["acr"] == SECOND_FACTOR
    assert person.pages == []
    assert person.sign_in(acr_values=PASSWORD).id_token["acr"] == PASSWORD
    assert person.sign_in("demo-hs256").id_token["acr"] == SECOND_FACTOR


@pytest.mark.parametrize("asked", [{}, {"prompt": "login"}, {"max_age": 0}])
def test_both_factors_are_asked_one_after_the_other(person: Person, asked: dict[str, Any]) -> None:
    both = person.sign_in(acr_values=SECOND_FACTOR, **asked).id_token
    assert person.pages == ["/login/", "/second-factor/"]
    assert both["acr"] == SECOND_FACTOR


def test_a_new_password_wants_a_new_second_factor(person: Person) -> None:
    person.sign_in(acr_values=SECOND_FACTOR)
    assert person.sign_in(prompt="login").id_token["acr"] == PASSWORD
    person.sign_in(acr_values=SECOND_FACTOR)
    assert person.pages == ["/second-factor/"]


def test_acr_values_are_a_wish_so_prompt_none_brings_what_there_is(person: Person) -> None:
    person.sign_in()
    assert person.sign_in(prompt="none", acr_values=SECOND_FACTOR).id_token["acr"] == PASSWORD


def test_the_page_of_the_second_factor_needs_a_login(person: Person) -> None:
    person.go("/second-factor/")
    assert person.shown == ["/login/"]


# Who somebody is


def test_the_hs256_client_sees_a_pairwise_subject(person: Person, other_person: Person) -> None:
    """Core §8.1. The UserInfo response says the same as the ID Token, to either client."""
    subs = {
        (username, slug): signed_in_as(each.sign_in(slug, username))
        for each, username in ((person, "ines"), (other_person, "rui"))
        for slug in ALGORITHMS
    }
    public = str(uuid5(NAMESPACE_URL, f"{person.provider.url}/users/1"))
    assert subs["ines", "demo-rs256"] == public
    assert re.fullmatch(r"[0-9a-f]{64}", subs["ines", "demo-hs256"])
    assert len(set(subs.values())) == 4


def signed_in_as(tokens: Tokens) -> str:
    sub: str = tokens.id_token["sub"]
    assert tokens.userinfo["sub"] == sub
    assert tokens.refreshed().id_token["sub"] == sub
    return sub


def test_rui_is_a_second_person_without_the_staff_group(person: Person) -> None:
    claims = person.sign_in(username="rui", scope="openid profile email groups").userinfo
    assert claims["name"] == "Rui Tavares"
    assert claims["email"] == "rui@demo.example"
    assert claims["groups"] == []


# RP-Initiated Logout


def log_out_from_site(person: Person, **parameters: str) -> None:
    person.go(f"/logout/?{urlencode(parameters)}")


def expired(provider: Provider, id_token: str) -> str:
    """Return the same ID Token, as the provider would have signed it long ago."""
    header, claims = provider.read(id_token)
    token = JWT(header=header, claims={**claims, "iat": 1_000_000_000, "exp": 1_000_000_300})
    token.make_signed_token(JWK.from_pem(provider.secrets["signing_key"].encode()))
    return token.serialize()


@pytest.mark.parametrize("is_expired", [False, True])
def test_a_site_logs_its_person_out_and_gets_the_browser_back(
    person: Person, is_expired: bool
) -> None:
    hint = person.sign_in().answered["id_token"]
    after = f"{person.provider.site.url}/oidc/logged-out/"
    log_out_from_site(
        person,
        id_token_hint=expired(person.provider, hint) if is_expired else hint,
        post_logout_redirect_uri=after,
        state="a state",
    )
    assert person.page.status_code == 302
    assert person.page.headers["Location"] == f"{after}?state=a+state"
    person.ask(prompt="none")
    assert person.at_site["error"] == "login_required"


def test_the_other_host_of_the_site_is_registered_too(person: Person) -> None:
    after = f"http://localhost:{person.provider.site.port}/oidc/logged-out/"
    hint = person.sign_in("demo-hs256").answered["id_token"]
    log_out_from_site(person, id_token_hint=hint, post_logout_redirect_uri=after)
    assert person.page.headers["Location"] == after


def test_another_address_is_refused_and_nobody_is_logged_out(person: Person) -> None:
    hint = person.sign_in().answered["id_token"]
    after = f"{person.provider.site.url}/oidc/elsewhere/"
    log_out_from_site(person, id_token_hint=hint, post_logout_redirect_uri=after)
    assert person.page.status_code == 400
    assert "Code: invalid_request" in person.words
    person.sign_in(prompt="none")
    assert person.provider.site.told == []


def test_without_a_hint_the_person_is_asked(person: Person) -> None:
    person.sign_in()
    after = f"{person.provider.site.url}/oidc/logged-out/"
    client = "demo-site-rs256"
    log_out_from_site(person, client_id=client, post_logout_redirect_uri=after, state="s")
    assert person.page.status_code == 200
    assert "Demo Site asks to log you out here" in person.words
    person.send(
        person.page.url, allow="true", client_id=client, post_logout_redirect_uri=after, state="s"
    )
    assert person.page.headers["Location"] == f"{after}?state=s"
    assert [slug for slug, _ in person.provider.site.told] == ["demo-rs256"]


def test_the_hint_of_somebody_else_logs_nobody_out_unasked(
    person: Person, other_person: Person
) -> None:
    hint = other_person.sign_in(username="rui").answered["id_token"]
    person.sign_in()
    log_out_from_site(person, id_token_hint=hint)
    assert person.page.status_code == 200
    assert "You are logged in as Inês Calder" in person.words
    person.sign_in(prompt="none")
    other_person.sign_in(prompt="none")


def test_who_is_logged_out_already_comes_back_to_the_site(person: Person) -> None:
    hint = person.sign_in().answered["id_token"]
    person.log_out()
    after = f"{person.provider.site.url}/oidc/logged-out/"
    person.provider.site.told.clear()
    log_out_from_site(person, id_token_hint=hint, post_logout_redirect_uri=after)
    assert person.page.headers["Location"] == after
    assert person.provider.site.told == []


def test_durable_tokens_outlive_the_logout(person: Person) -> None:
    """The refresh token was asked for with offline_access (Core §11)."""
    tokens = person.sign_in()
    log_out_from_site(person, id_token_hint=tokens.answered["id_token"])
    assert person.shown == ["/"]
    assert tokens.userinfo["sub"] == tokens.id_token["sub"]
    assert tokens.refreshed().id_token["sid"] == tokens.id_token["sid"]


# Back-Channel Logout


@pytest.mark.parametrize("way", ["button", "site"])
def test_each_client_of_the_session_is_told_by_a_signed_logout_token(
    person: Person, way: str
) -> None:
    signed_in = {slug: person.sign_in(slug) for slug in ALGORITHMS}
    person.sign_in()  # twice at one client is told once
    before = int(time.time())
    if way == "button":
        person.log_out()
    else:
        hint = signed_in["demo-hs256"].answered["id_token"]
        log_out_from_site(person, id_token_hint=hint)
    assert sorted(slug for slug, _ in person.provider.site.told) == sorted(ALGORITHMS)
    jtis = set()
    for slug, token in person.provider.site.told:
        header, claims = person.provider.read(token, slug)
        jtis.add(claims.pop("jti"))
        iat, id_token = claims["iat"], signed_in[slug].id_token
        assert before <= iat <= time.time()
        assert claims == {
            "iss": person.provider.url,
            "sub": id_token["sub"],
            "aud": id_token["aud"],
            "iat": iat,
            "exp": iat + 120,
            "events": {BACKCHANNEL_LOGOUT: {}},
            "sid": id_token["sid"],
        }
        kid = {"kid": kid_of(person.provider)} if slug == "demo-rs256" else {}
        assert header == {"typ": "logout+jwt", "alg": ALGORITHMS[slug], **kid}
    assert len(jtis) == 2
    assert "Demo Site RS256 : told, 200 Demo Site HS256 : told, 200" in person.words
    person.go("/")
    assert "told, 200" not in person.words


def kid_of(provider: Provider) -> str:
    (key,) = fetch(provider.metadata["jwks_uri"]).json()["keys"]
    kid: str = key["kid"]
    return kid


def test_only_who_took_part_in_this_session_is_told(person: Person, other_person: Person) -> None:
    """The same person's other browser stays logged in, and its sites hear nothing."""
    tokens = person.sign_in("demo-hs256")
    other_person.sign_in("demo-rs256")
    person.log_out()
    ((slug, token),) = person.provider.site.told
    assert slug == "demo-hs256"
    assert person.provider.read(token, slug)[1]["sid"] == tokens.id_token["sid"]
    other_person.sign_in(prompt="none")


def test_a_repeated_password_does_not_lose_who_is_to_be_told(person: Person) -> None:
    person.sign_in("demo-hs256")
    person.sign_in("demo-rs256", prompt="login")
    person.log_out()
    assert sorted(slug for slug, _ in person.provider.site.told) == sorted(ALGORITHMS)


def test_when_somebody_else_logs_in_the_session_before_has_ended(person: Person) -> None:
    ines = person.sign_in().id_token
    rui = person.sign_in(prompt="login", username="rui").id_token
    assert person.pages == ["/login/"]
    ((slug, token),) = person.provider.site.told
    told = person.provider.read(token, slug)[1]
    assert (told["sub"], told["sid"]) == (ines["sub"], ines["sid"])
    assert rui["sub"] != ines["sub"]
    assert rui["sid"] != ines["sid"]


def test_nobody_is_told_when_nobody_was_logged_in(person: Person) -> None:
    person.go("/login/")
    person.send("/sign-out/")
    log_out_from_site(person)
    assert person.shown == ["/"]
    assert person.provider.site.told == []


@contextmanager
def down(site: Site) -> Iterator[None]:
    site.__exit__()
    yield
    site.__enter__()


@contextmanager
def silent(site: Site) -> Iterator[None]:
    site.answers.clear()
    yield
    site.answers.set()


@pytest.mark.parametrize("out_of_order", [down, silent])
def test_a_site_that_does_not_answer_stops_no_logout(person: Person, out_of_order: Any) -> None:
    person.sign_in()
    with out_of_order(person.provider.site):
        person.log_out()
    assert person.page.status_code == 200
    assert "Demo Site RS256 : no answer" in person.words
    person.ask(prompt="none")
    assert person.at_site["error"] == "login_required"


# What django-oauth-toolkit guards, and goes on guarding


def test_a_code_needs_the_verifier_of_its_request(person: Person) -> None:
    asked = person.ask()
    person.log_in()
    grant = {
        "grant_type": "authorization_code",
        "code": person.at_site["code"],
        "redirect_uri": asked["redirect_uri"],
        "code_verifier": token_urlsafe(32),
    }
    refused = at_token_endpoint(person.provider, "demo-rs256", grant)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_a_refresh_token_rotates_and_its_reuse_ends_the_family(person: Person) -> None:
    first = person.sign_in()
    second = first.refreshed()
    assert second.answered["refresh_token"] != first.answered["refresh_token"]
    for tokens in (first, second):
        token = tokens.answered["refresh_token"]
        grant = {"grant_type": "refresh_token", "refresh_token": token}
        refused = at_token_endpoint(person.provider, tokens.slug, grant)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")


def test_no_secret_is_logged(person: Person) -> None:
    tokens = person.sign_in()
    log_out_from_site(person, id_token_hint=tokens.answered["id_token"])
    written = (person.provider.folder / "provider.log").read_text()
    assert "/logout/ HTTP" in written
    assert "Traceback" not in written
    for secret in ("?", "eyJ", *person.provider.secrets.values()):
        assert secret not in written


# How the pages look


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "width", "height"), [("desk", 1280, 800), ("phone", 375, 812)])
def test_the_pages_look_right(
    browser: Chromium, person: Person, size: str, width: int, height: int, scheme: Any
) -> None:
    """Photographed, as tests/demo/test_browser.py does; problems of all are told at once."""
    person.provider.site.told.clear()
    viewport: Any = {"width": width, "height": height}
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    problems: list[str] = []

    def look(name: str) -> None:
        path = SCREENSHOTS / f"provider-{name}-{size}-{scheme}.png"
        page.screenshot(path=path, full_page=True)
        problems.extend(f"{name}: {problem}" for problem in problems_of(page))

    person.ask(acr_values=SECOND_FACTOR)
    log_in_by_hand(page, person)
    look("second-factor")
    page.route(f"{person.provider.site.url}/**", lambda route: route.fulfill(body="the site"))
    page.get_by_role("button", name="Confirm on your other device").click()
    page.goto(person.page.url.replace("acr_values", "ignored"))
    look("login-again")
    page.goto(f"{person.provider.url}/logout/?client_id=demo-site-rs256")
    look("logout-confirm")
    page.get_by_role("button", name="Log out").click()
    look("logged-out")
    page.goto(f"{person.provider.url}/logout/?id_token_hint=x")
    look("logout-refused")
    context.close()
    assert problems == []


def log_in_by_hand(page: Page, person: Person) -> None:
    page.goto(person.page.url)
    page.get_by_label("Username").fill("ines")
    page.get_by_label("Password").fill(person.provider.secrets["password"])
    page.get_by_role("button", name="Log in").click()
