"""Each mistake is told by `manage.py check`, with an id and what to do about it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import CheckMessage, Tags, run_checks
from pytest_django import Settings

from oidc_rp.backends import OIDCBackend
from tests.test_conf import GOOD

ROOT = Path(__file__).parent.parent
KEY = "A" * 43 + "="


def found(*, deploy: bool = False) -> dict[str, CheckMessage]:
    messages = run_checks(tags=[Tags.security], include_deployment_checks=deploy)
    ours = {m.id.removeprefix("oidc_rp."): m for m in messages if m.id.startswith("oidc_rp.")}
    assert all(message.hint for message in ours.values())
    return ours


def one(**options: Any) -> dict[str, Any]:
    return {"PROVIDERS": {"op": GOOD | options}}


def test_a_good_site_has_no_mistakes(settings: Settings) -> None:
    """Nothing is told where nothing is wrong."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY, "_-" * 21 + "A"], "TIMEOUT": 5}
    assert found() == {}


SETTINGS: list[tuple[str, Any]] = [
    ("E001", None),
    ("E001", {}),
    ("E001", []),
    ("E001", "text"),
    ("E002", {"PROVIDERS": {"op": {}}}),
    ("E003", one(CLIENT_SECERT="x")),
    ("E003", one() | {"PROVIDER": {}}),
    ("E003", one() | {"ISSUER": "https://op.example"}),
    ("E003", one(TOKEN_KEYS=[KEY])),
    ("E004", one(USERINFO="yes")),
    ("E004", one() | {"USERINFO": "yes"}),
    ("E004", one() | {"KEEP_ANONYMOUS_SESSION": 1}),
    ("E005", one(ISSUER="http://op.example")),
    ("E006", one(ID_TOKEN_SIGNED_RESPONSE_ALG="HS256", CLIENT_SECRET="short")),
    ("E007", {"PROVIDERS": {"one": GOOD, "two": GOOD | {"LABEL": "Two"}}}),
    ("E008", {"PROVIDERS": {"a b": GOOD}}),
    ("E008", {"PROVIDERS": {7: GOOD}}),
    ("E009", one(TOKEN_ENDPOINT_AUTH_METHOD="private_key_jwt")),
    ("E010", one() | {"TOKEN_KEYS": KEY}),
    ("E010", one() | {"TOKEN_KEYS": [KEY[1:]]}),
    ("E010", one() | {"TOKEN_KEYS": [b"A" * 32]}),
    ("E010", one() | {"TOKEN_KEYS": ["!" * 43]}),
    ("E012", {"PROVIDERS": ["op"]}),
    ("E012", {"PROVIDERS": "no.such.callable"}),
    ("E012", {"TOKEN_KEYS": []}),
    ("E012", {"PROVIDERS": {"op": "no.such.callable"}}),
    ("E012", {"PROVIDERS": {"op": 5}}),
    ("E013", one(METADATA={"jwks_uri": "http://op.example/jwks"})),
    ("E014", one(AUTHORIZATION_PARAMS={"nonce": "mine"})),
    ("E015", one(TENANTS=["one"])),
    ("E018", one(CLAIMS={"nickname": "nickname"})),
    ("E018", one(CLAIMS={"is_superuser": "admin"})),
    ("E018", one(CLAIMS={"is_staff": "admin"})),
    ("E018", one(CLAIMS={"password": "password"})),
    ("E018", one(CLAIMS={"id": "sub"})),
    ("E018", one(CLAIMS={"groups": "groups"})),
    ("E018", one(CLAIMS={"oidc_identities": "sub"})),
    ("W004", one(DANGEROUSLY_LINK_BY_EMAIL=lambda user: True)),
]


@pytest.mark.parametrize(("code", "value"), SETTINGS)
def test_each_mistake_in_the_settings_has_its_id_and_hint(
    settings: Settings, code: str, value: Any
) -> None:
    """One mistake, one message: its id is stable and its hint says how to mend it."""
    settings.OIDC_RP = value
    assert list(found()) == [code]


def test_missing_settings_are_told(settings: Settings) -> None:
    """A project that only has the app installed learns what it lacks."""
    del settings.OIDC_RP
    assert list(found()) == ["E001"]


def test_plain_http_is_told_outside_debug(settings: Settings) -> None:
    """ALLOW_LOOPBACK_HTTP is for development."""
    settings.OIDC_RP = one(ISSUER="http://127.0.0.1:9000", ALLOW_LOOPBACK_HTTP=True)
    assert list(found()) == ["W002"]
    settings.DEBUG = True
    assert found() == {}


def test_same_issuer_with_another_client_is_no_mistake(settings: Settings) -> None:
    """One OP may know this site as two clients; the slug tells them apart."""
    settings.OIDC_RP = {"PROVIDERS": {"one": GOOD, "two": GOOD | {"CLIENT_ID": "two"}}}
    assert found() == {}


def never() -> Any:
    raise AssertionError("called by a check, before the database is there")


@pytest.mark.parametrize(
    "providers",
    [never, "tests.test_checks.never", {"op": never}, {"op": "tests.test_checks.never"}],
)
def test_checks_call_no_callable(settings: Settings, providers: Any) -> None:
    """What comes from a callable is checked when it is used: now it may need the database."""
    settings.OIDC_RP = {"PROVIDERS": providers}
    assert found() == {}


# What is around it

MIDDLEWARE = "django.contrib.{}.middleware.{}Middleware"
SESSIONS = MIDDLEWARE.format("sessions", "Session")
AUTHENTICATION = MIDDLEWARE.format("auth", "Authentication")


class Sessions(SessionMiddleware):
    """A site's own."""


@pytest.mark.parametrize("missing", [SESSIONS, AUTHENTICATION])
def test_middleware_that_is_missing_is_told(settings: Settings, missing: str) -> None:
    """Sessions hold the pending login, and request.user who came before."""
    settings.OIDC_RP = one()
    settings.MIDDLEWARE = [path for path in settings.MIDDLEWARE if path != missing]
    assert missing.rpartition(".")[2] in found()["E016"].msg


def test_a_middleware_of_the_sites_own_does(settings: Settings) -> None:
    """A subclass is as good."""
    settings.OIDC_RP = one()
    settings.MIDDLEWARE = [
        "tests.test_checks.Sessions" if path == SESSIONS else path for path in settings.MIDDLEWARE
    ]
    assert found() == {}


def test_urls_that_are_not_included_are_told(settings: Settings) -> None:
    """Without our URLs there is no callback."""
    settings.OIDC_RP = one()
    settings.ROOT_URLCONF = "oidc_rp.urls"
    settings.LOGIN_URL = "/login/"
    assert "E017" in found()


class Silent(OIDCBackend):
    """Overrides account hooks only."""

    def create_user(self, claims: Any) -> Any:
        return super().create_user(claims)


class Deaf(OIDCBackend):
    """Overrides what is never called."""

    def verify_token(self, token: Any, **kwargs: Any) -> Any:
        return {}


class Matching(OIDCBackend):
    """Chooses accounts."""

    def filter_users_by_claims(self, claims: Any) -> Any:
        return self.UserModel.objects.filter(username=claims["sub"])


@pytest.mark.parametrize(
    ("backend", "codes"),
    [
        ("oidc_rp.backends.OIDCBackend", []),
        ("tests.test_checks.Silent", []),
        ("tests.test_checks.Deaf", ["W001"]),
        ("tests.test_checks.Matching", ["W003"]),
        ("django.contrib.auth.backends.ModelBackend", ["E011"]),
        ("no.such.Backend", ["E011"]),
    ],
)
def test_the_backend_is_looked_at(settings: Settings, backend: str, codes: list[str]) -> None:
    """One of ours must be there; a protocol hook that is never called is told."""
    settings.OIDC_RP = one()
    settings.AUTHENTICATION_BACKENDS = [backend]
    messages = found()
    assert list(messages) == codes
    if codes == ["W001"]:
        assert "Deaf.verify_token" in messages["W001"].msg


@pytest.mark.parametrize(
    ("backend", "codes"), [("locmem.LocMemCache", ["W005"]), ("redis.RedisCache", [])]
)
def test_a_cache_per_process_is_told_at_deployment(
    settings: Settings, backend: str, codes: list[str]
) -> None:
    """Several processes need one cache, so that they share keys and limits."""
    settings.OIDC_RP = one()
    path = f"django.core.cache.backends.{backend}"
    settings.CACHES = {"default": {"BACKEND": path, "LOCATION": "redis://127.0.0.1:1"}}
    assert list(found(deploy=True)) == codes
    assert found() == {}


def test_check_prints_id_and_hint(tmp_path: Path) -> None:
    """A developer sees it all with `manage.py check`."""
    module = tmp_path / "site_settings.py"
    module.write_text(
        "from tests.settings import *\n"
        "OIDC_RP = {'PROVIDERS': {'op': {'ISSUER': 'https://op.example', 'CLIENTID': 'x',"
        " 'CLIENT_SECRET': 'the-secret'}}}\n"
    )
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "DJANGO_SETTINGS_MODULE": "site_settings",
    }
    command = [sys.executable, "-W", "error", "-m", "django", "check"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert ran.returncode == 1
    assert "(oidc_rp.E002)" in ran.stderr
    assert "(oidc_rp.E003)" in ran.stderr
    assert "HINT: Did you mean 'CLIENT_ID'?" in ran.stderr
    assert "the-secret" not in ran.stderr + ran.stdout
