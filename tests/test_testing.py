"""The test kit, as a site's own tests use it."""

import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.test import Client, TestCase, TransactionTestCase
from pytest_django import Settings

from oidc_rp import conf
from oidc_rp.api import LoginRequired, session_for
from oidc_rp.models import Identity, Session
from oidc_rp.testing import (
    REMOVE,
    OIDCClient,
    OpenIDProvider,
    ProviderMixin,
    SigningKey,
    SignInRefused,
    expire_tokens,
    installed,
    settings_for,
    sign_in,
)

ROOT = Path(__file__).parent.parent

OWN: dict[str, Any] = {
    "PROVIDERS": {
        "acme": {
            "ISSUER": "https://login.acme.example",
            "CLIENT_ID": "acme-client",
            "CLIENT_SECRET": "a secret of the real OP",
            "SCOPES": ["openid", "email", "calendar", "offline_access"],
            "CLAIMS": {"email": "email", "first_name": "nickname"},
            "METADATA": {"token_endpoint": "https://login.acme.example/t"},
            "REDIRECT_URIS": ["https://www.example.com/oidc/acme/callback/"],
            "API_ORIGINS": ["https://api.acme.example"],
        },
        "other": {
            "ISSUER": "https://op.other.example/{tenantid}",
            "TENANTS": ["one", "two"],
            "CLIENT_ID": "other-client",
            "TOKEN_ENDPOINT_AUTH_METHOD": "none",
        },
    },
    "LEEWAY": 30,
}
"""A project as it is in production."""


@pytest.fixture(autouse=True)
def project(settings: Settings) -> None:
    settings.OIDC_RP = OWN


def users(**fields: Any) -> int:
    return int(get_user_model().objects.filter(**fields).count())


# Settings


def test_the_projects_providers_are_at_the_kits_op(signing_key: SigningKey) -> None:
    """Where the OP is changes, and nothing else."""
    with OpenIDProvider(keys=[signing_key]) as op, installed(op):
        acme, other = conf.provider("acme"), conf.provider("other")
        assert (acme.issuer, other.issuer) == (op.issuer, op.issuer)
        assert (acme.client_id, other.client_id) == (op.client_id, op.client_id)
        assert (acme.metadata, acme.redirect_uris, other.tenants) == ({}, (), frozenset())
        assert other.client_secret is None
        assert acme.api_origins == {"": ("https://api.acme.example", op.origin)}
        assert acme.scopes == ("openid", "email", "calendar", "offline_access")
        assert (acme.claims["first_name"], acme.leeway) == ("nickname", 30)
        assert len(conf.token_keys()) == 1
    assert django_settings.OIDC_RP is OWN


def test_one_op_for_each_provider(db: None, signing_key: SigningKey) -> None:
    """An installation inside another moves what it names, and leaves the rest where it is."""
    with OpenIDProvider(keys=[signing_key]) as one, OpenIDProvider(keys=[signing_key]) as two:
        with installed(one, ["acme"]), installed(two, ["other"]):
            acme = sign_in(Client(), provider="acme")
            other = sign_in(Client(), provider="other")
        assert acme.pk != other.pk
        assert set(Identity.objects.values_list("provider", "iss")) == {
            ("acme", one.issuer),
            ("other", two.issuer),
        }


def test_providers_by_callables_and_keys_of_the_project_stay(
    settings: Settings, signing_key: SigningKey
) -> None:
    """A callable is asked, TOKEN_KEYS are used as they are."""
    key = "A" * 43 + "="
    providers = OWN["PROVIDERS"]
    settings.OIDC_RP = {
        "PROVIDERS": lambda: providers | {"acme": lambda: providers["acme"]},
        "TOKEN_KEYS": [key],
    }
    with OpenIDProvider(keys=[signing_key]) as op:
        own = settings_for(op, ["acme"])
    assert own["TOKEN_KEYS"] == [key]
    assert own["PROVIDERS"]["acme"]["ISSUER"] == op.issuer
    assert own["PROVIDERS"]["other"] == providers["other"]


def test_a_provider_that_is_not_there_is_named(op: OpenIDProvider, settings: Settings) -> None:
    """A slug misspelt is a LookupError, and so is a site without providers."""
    with pytest.raises(LookupError, match="'acne'"):
        settings_for(op, ["acne"])
    with pytest.raises(LookupError, match="'acme' is at no OP"):
        sign_in(Client())
    settings.OIDC_RP = {}
    with pytest.raises(LookupError, match="empty"):
        settings_for(op)


CLIENT_KEY = SigningKey.generate("ES256")
DEMANDS: list[dict[str, Any]] = [
    {"ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256"},
    {"ID_TOKEN_SIGNED_RESPONSE_ALG": "ES256"},
    {"ID_TOKEN_SIGNED_RESPONSE_ALG": "ES256", "USERINFO_SIGNED_RESPONSE_ALG": "RS256"},
    {"USERINFO": False},
    {"DEFAULT_ACR_VALUES": ["phr"], "DEFAULT_MAX_AGE": 0},
    {"RESPONSE_MODE": "form_post"},
    {"REQUIRE_PUSHED_AUTHORIZATION_REQUESTS": True},
    {"TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_jwt"},
    {"TOKEN_ENDPOINT_AUTH_METHOD": "none"},
    {
        "TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt",
        "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "ES256",
        "PRIVATE_KEY": CLIENT_KEY.private_jwk,
    },
]


@pytest.mark.parametrize("options", DEMANDS, ids=lambda options: "-".join(options))
def test_the_op_suits_what_the_project_asks_for(
    options: dict[str, Any], settings: Settings, db: None, op: OpenIDProvider
) -> None:
    """Algorithms, client authentication, acr and the rest are as the project has them."""
    acme = OWN["PROVIDERS"]["acme"] | options
    settings.OIDC_RP = {"PROVIDERS": {"other": OWN["PROVIDERS"]["other"], "acme": acme}}
    with installed(op):
        user = sign_in(Client(), provider="acme", claims={"nickname": "Jo"})
        assert not {"d", "p", "q"} & set(op.client_jwk.get("keys", [{}])[0])
    assert user.first_name == "Jo"


def test_settings_changed_by_a_test(settings: Settings, oidc_provider: OpenIDProvider) -> None:
    """Whichever fixture came first; the next test sees nothing of it."""
    settings.LOGIN_REDIRECT_URL = "/private/"
    assert conf.provider("acme").issuer == oidc_provider.origin


def test_settings_changed_by_the_test_before() -> None:
    """They are as they were."""
    assert django_settings.OIDC_RP is OWN
    assert django_settings.LOGIN_REDIRECT_URL == "/home/"


class SignsIn(ProviderMixin):
    """What holds for every kind of test class."""

    def test_somebody_signs_in(self) -> None:
        user = self.oidc_sign_in("ada")
        assert self.client.get("/private/").content.decode() == user.get_username()
        assert self.oidc_provider.calls("token") == 1
        assert conf.provider("acme").issuer == self.oidc_provider.issuer

    def test_somebody_signs_in_elsewhere(self) -> None:
        self.oidc_sign_in(provider="other")


class TestInTestCase(SignsIn, TestCase):
    pass


class TestInTransactionTestCase(SignsIn, TransactionTestCase):
    pass


class TestInLiveServer(SignsIn, StaticLiveServerTestCase):
    oidc_slugs = ["acme", "other"]


# Somebody signs in


def test_somebody_signs_in_in_one_line(oidc_client: OIDCClient) -> None:
    """The user is the one that the site made of the claims, and the client is signed in."""
    user = oidc_client.sign_in(sub="ada", claims={"nickname": "Ada"})
    assert (user.email, user.first_name) == ("ada@example.com", "Ada")
    assert oidc_client.get("/private/").content.decode() == user.get_username()
    assert Session.objects.get().identity.sub == "ada"


def test_who_comes_again_is_the_same_person(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider
) -> None:
    """Claims stay with the person of the OP; somebody else has others."""
    first = oidc_client.sign_in("ada", claims={"email": "ada@acme.example"})
    again = sign_in(Client(), "ada")
    assert (again.pk, again.email) == (first.pk, "ada@acme.example")
    assert sign_in(Client(), "grace").email == "grace@example.com"
    assert sign_in(Client(), claims={"email": REMOVE, "nickname": "G"}).first_name == "G"
    assert users() == 2
    assert len({session.sid for session in Session.objects.all()}) == 4


def test_acr_amr_and_auth_time_are_as_the_test_says(oidc_client: OIDCClient) -> None:
    """They are those of the session that the site keeps."""
    an_hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
    oidc_client.sign_in(acr="phr", amr=["hwk", "pin"], auth_time=an_hour_ago)
    session = Session.objects.get()
    assert (session.acr, session.amr) == ("phr", ["hwk", "pin"])
    assert session.auth_time == an_hour_ago.replace(microsecond=0)


@pytest.mark.parametrize(
    ("options", "login", "code"),
    [
        ({"DEFAULT_ACR_VALUES": ["phr"]}, {"acr": "pwd"}, "id_token.acr"),
        ({"DEFAULT_MAX_AGE": 60}, {"auth_time": int(time.time()) - 600}, "id_token.auth_time"),
        ({"EMAIL_DOMAINS": ["acme.example"]}, {"sub": "ada"}, "account.email_domain"),
    ],
)
def test_whom_the_site_does_not_let_in(
    options: dict[str, Any],
    login: dict[str, Any],
    code: str,
    settings: Settings,
    db: None,
    op: OpenIDProvider,
) -> None:
    """SignInRefused tells the code of the refusal and has its page."""
    settings.OIDC_RP = {"PROVIDERS": {"acme": OWN["PROVIDERS"]["acme"] | options}}
    with installed(op), pytest.raises(SignInRefused) as refused:
        sign_in(Client(), **login)
    assert refused.value.code == code
    assert refused.value.response.status_code in (400, 403)
    assert users() == 0


def test_an_op_that_is_not_installed_is_so_for_the_sign_in(db: None, op: OpenIDProvider) -> None:
    """`op=` needs no installation around it."""
    assert sign_in(Client(), "ada", op=op, provider="other").is_authenticated
    assert django_settings.OIDC_RP is OWN


def test_what_a_test_bends_stays_bent(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider
) -> None:
    """To sign in mends nothing at the OP."""
    oidc_provider.id_token_claims["aud"] = "somebody-else"
    oidc_provider.userinfo_jwt = True
    with pytest.raises(SignInRefused) as refused:
        oidc_client.sign_in()
    assert refused.value.code == "id_token.aud"
    assert oidc_provider.userinfo_jwt


# Tokens


@pytest.fixture
def api(oidc_provider: OpenIDProvider) -> str:
    """An API of the OP's, whose access tokens live for an hour."""
    oidc_provider.access_token_lifetime = 3600
    return oidc_provider.origin + "/api/calendar"


def test_expired_tokens_are_renewed(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider, api: str
) -> None:
    """Of one user, or of all; what has time left still works."""
    ada, grace = oidc_client.sign_in("ada"), sign_in(Client(), "grace")
    assert session_for(ada, "acme").get(api).json()["sub"] == "ada"
    assert oidc_provider.refreshes == 0
    assert expire_tokens(ada) == 1
    assert session_for(ada, "acme").get(api).ok
    assert session_for(grace, "acme").get(api).ok
    assert oidc_provider.refreshes == 1
    assert expire_tokens() == 2
    assert session_for(grace, "acme").get(api).json()["sub"] == "grace"
    assert oidc_provider.refreshes == 2


def test_a_rotation_that_is_lost_ends_the_family(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider, api: str
) -> None:
    """The OP rotates and hangs up once; the spent token that comes again tells it of a theft."""
    user = oidc_client.sign_in()
    expire_tokens(user)
    oidc_provider.lose_next_rotation()
    with pytest.raises(LoginRequired):
        session_for(user, "acme").get(api)
    assert (oidc_provider.rotations, oidc_provider.families_lost) == (1, 1)


def test_a_lost_rotation_is_made_good_in_the_overlap(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider, api: str
) -> None:
    """An OP that gives the spent token a moment's grace answers it once more."""
    user = oidc_client.sign_in()
    expire_tokens(user)
    oidc_provider.overlap = 10
    oidc_provider.lose_next_rotation()
    assert session_for(user, "acme").get(api).ok
    oidc_provider.fail_refreshes("invalid_grant")
    expire_tokens(user)
    with pytest.raises(LoginRequired):
        session_for(user, "acme").get(api)


def test_what_one_person_took_back(
    oidc_client: OIDCClient, oidc_provider: OpenIDProvider, api: str
) -> None:
    """The grants of the others go on."""
    ada, grace = oidc_client.sign_in("ada"), sign_in(Client(), "grace")
    oidc_provider.end_grants("ada")
    expire_tokens()
    with pytest.raises(LoginRequired):
        session_for(ada, "acme").get(api)
    assert session_for(grace, "acme").get(api).ok


def test_new_keys_of_the_op(oidc_client: OIDCClient, oidc_provider: OpenIDProvider) -> None:
    """Who signs in after the keys have changed is let in as before."""
    first = oidc_client.sign_in("ada")
    oidc_provider.rotate_keys()
    assert sign_in(Client(), "ada").pk == first.pk


# What the kit itself rests on

IMPORT = """
import sys
sys.modules["pytest"] = sys.modules["pytest_django"] = None
import oidc_rp.testing
print(sorted(name for name in sys.modules if name.startswith("oidc_rp") and "models" in name))
"""


def test_the_kit_imports_without_pytest_settings_or_models() -> None:
    """A plug-in is imported before Django is set up."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_app_never_imports_the_kit() -> None:
    """What is for tests stays out of production."""
    for path in (ROOT / "oidc_rp").rglob("*.py"):
        if path.parent.name != "testing":
            text = path.read_text()
            assert "oidc_rp.testing" not in text, path
            assert "from .testing" not in text, path


# The samples of docs/testing.md, in a project of their own

PAGE = (ROOT / "docs/testing.md").read_text()
SAMPLES = dict(re.findall(r"```python\n# ([a-z_]+\.py)\n(.*?)```", PAGE, re.DOTALL))

PAGE_FIXTURE = """
import os
import pytest
from playwright.sync_api import sync_playwright
from tests.demo.conftest import CHROMIUM, CHROMIUM_ARGUMENTS

os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"


@pytest.fixture
def page():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
        yield browser.new_page()
        browser.close()
"""


def entry_points() -> str:
    """What an installation of oidc_rp tells pytest."""
    project = (ROOT / "pyproject.toml").read_text()
    return "[pytest11]\n" + project.partition("[project.entry-points.pytest11]\n")[2].partition(
        "\n\n"
    )[0].replace('"', "")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A project that has oidc_rp installed, and the settings of the page."""
    for name, text in SAMPLES.items():
        (tmp_path / name).write_text(text)
    settings_text = "from tests.settings import *\n" + SAMPLES["settings.py"]
    (tmp_path / "samples_settings.py").write_text(settings_text)
    installation = tmp_path / "oidc_rp-1.dist-info"
    installation.mkdir()
    (installation / "METADATA").write_text("Metadata-Version: 2.1\nName: oidc_rp\nVersion: 1\n")
    (installation / "entry_points.txt").write_text(entry_points())
    return tmp_path


def outcome(site: Path, *arguments: str) -> str:
    """Run pytest in the project, and return its last line if everything passed."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "--rootdir", str(site)]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--ds=samples_settings", *arguments],
        cwd=site,
        env=os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()[-1]


def number_in(*names: str) -> int:
    return sum(SAMPLES[name].count("def test_") for name in names)


def test_the_samples_of_the_page_run(site: Path) -> None:
    """All but those that need Chromium; the fixtures come by the entry point alone."""
    assert PAGE.count("```python") == len(SAMPLES)
    names = [name for name in SAMPLES if name not in ("settings.py", "test_browser.py")]
    assert outcome(site, *names).startswith(f"{number_in(*names)} passed")


def test_the_fixtures_may_be_named_in_a_conftest_as_well(site: Path) -> None:
    """With and without the entry point: nothing is registered twice."""
    plugins = 'pytest_plugins = ["oidc_rp.testing.pytest_plugin"]\n'
    (site / "conftest.py").write_text(plugins)
    expected = f"{number_in('test_pages.py')} passed"
    assert outcome(site, "test_pages.py").startswith(expected)
    (site / "oidc_rp-1.dist-info/entry_points.txt").unlink()
    assert outcome(site, "test_pages.py").startswith(expected)


@pytest.mark.browser
def test_the_samples_for_a_browser_run(site: Path) -> None:
    """Those of Playwright."""
    (site / "conftest.py").write_text(PAGE_FIXTURE)
    assert outcome(site, "test_browser.py").startswith(f"{number_in('test_browser.py')} passed")


# What a web page asks of it


JSON = {"Content-Type": "application/json"}
EVIL = json.dumps({"client_secret": "known", "refresh_delay": 9})


def control(
    op: OpenIDProvider, method: str, path: str, body: str, **headers: str
) -> tuple[int, dict[str, Any]]:
    """Ask for this with these headers, and no other but Host."""
    connection = HTTPConnection(urlsplit(op.origin).netloc, timeout=5)
    try:
        connection.request(
            method, path, body or None, {name.replace("_", "-"): v for name, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers"),
    [
        ("POST", "/control", EVIL, {"Origin": "https://evil.example"} | JSON),
        ("POST", "/control", EVIL, {"Origin": "null"} | JSON),
        ("POST", "/control/expire", "", {"Origin": "https://evil.example"}),
        ("POST", "/control", EVIL, {"Host": "rebind.evil.example"} | JSON),
        ("POST", "/control", EVIL, {"Host": "127.0.0.1"} | JSON),
        ("GET", "/control", "", {"Host": "rebind.evil.example"}),
        ("POST", "/control", EVIL, {"Content-Type": "text/plain"}),
        ("POST", "/control", EVIL, {"Content-Type": "text/plain; application/json"}),
        ("POST", "/control", EVIL, {"Content-Type": "application/x-www-form-urlencoded"}),
        ("POST", "/control", EVIL, {}),
        ("POST", "/control/expire", "", {"Content-Type": "text/plain"}),
        ("GET", "/control/expire", "", {}),
        ("GET", "/control/new_login", "", {}),
        ("GET", "/control/issue", "", {}),
        ("GET", "/control", EVIL, JSON),
        ("PUT", "/control", EVIL, JSON),
        ("OPTIONS", "/control", "", {"Origin": "https://evil.example"}),
    ],
)
def test_it_is_told_nothing_by_a_web_page(
    op: OpenIDProvider, method: str, path: str, body: str, headers: dict[str, str]
) -> None:
    """Whatever page a developer has open meanwhile: what only a program sends is asked for."""
    secret, login, token = op.client_secret, op.login, op.issue()["access_token"]
    status, told = control(op, method, path, body, **headers)
    assert (status, told["error"]) == (403, "access_denied")
    assert (op.client_secret, op.refresh_delay, op.login) == (secret, 0, login)
    connection = HTTPConnection(urlsplit(op.origin).netloc, timeout=5)
    connection.request("GET", "/api/calendar", headers={"Authorization": f"Bearer {token}"})
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
def test_it_is_told_what_to_do_by_a_program(op: OpenIDProvider, kind: str) -> None:
    """JSON that says so, to the host that it is; a wish without words needs no kind."""
    body = json.dumps({"refresh_delay": 0.5})
    assert control(op, "POST", "/control", body, Content_Type=kind)[0] == 200
    assert op.refresh_delay == 0.5
    login = op.login
    assert control(op, "POST", "/control/new_login", "")[1]["sid"] == op.login.sid != login.sid
    assert control(op, "GET", "/control", "") == (200, op.counters())
