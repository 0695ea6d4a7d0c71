"""Each mistake is told by `manage.py check`, with an id and what to do about it."""

import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5, sha1, sha256, sha512
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.file import SessionStore as FileSessionStore
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import CheckMessage, Tags, run_checks
from django.db import connection
from django.test.utils import CaptureQueriesContext
from mozilla_django_oidc.middleware import SessionRefresh
from pytest_django import Settings

from oidc_rp.backends import OIDCBackend
from oidc_rp.checks import check_installation
from oidc_rp.middleware import SessionRenewal, TokenRenewal
from oidc_rp.models import PendingRevocation, StoredAccessToken
from oidc_rp.sealing import KeyRing
from tests.test_conf import GOOD
from tests.test_reseal import add_grant

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
    provider = one(SCOPES=["openid", "offline_access"], API_ORIGINS=["https://api.example"])
    settings.OIDC_RP = provider | {"TOKEN_KEYS": [KEY, "_-" * 21 + "A"], "TIMEOUT": 5}
    assert found() == {}
    settings.OIDC_RP |= {"REFRESH_WAIT": 5.5, "WORKER_TIMEOUT": 6, "OWN_CONNECTION": False}
    assert found() == {}
    settings.OIDC_RP |= {"OWN_CONNECTION": None}
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
    ("E010", one() | {"TOKEN_KEYS": [KEY + "\n"]}),
    ("E010", one() | {"TOKEN_KEYS": [KEY, [KEY]]}),
    ("E010", one() | {"TOKEN_KEYS": [{"key": KEY}]}),
    ("E010", one() | {"TOKEN_KEYS": {KEY}}),
    ("E012", {"PROVIDERS": ["op"]}),
    ("E012", {"PROVIDERS": "no.such.callable"}),
    ("E012", {"TOKEN_KEYS": []}),
    ("E012", {"PROVIDERS": {"op": "no.such.callable"}}),
    ("E012", {"PROVIDERS": {"op": 5}}),
    ("E013", one(METADATA={"jwks_uri": "http://op.example/jwks"})),
    ("E014", one(AUTHORIZATION_PARAMS={"nonce": "mine"})),
    ("E015", one(TENANTS=["one"])),
    ("E004", one() | {"REFRESH_WAIT": "12"}),
    ("E004", one() | {"REFRESH_WAIT": 0}),
    ("E004", one() | {"EVENT_RETENTION": 0}),
    ("E004", one() | {"EVENT_RETENTION": float("inf")}),
    ("E004", one() | {"EVENT_RETENTION": "180"}),
    ("E004", one() | {"WORKER_TIMEOUT": True}),
    ("E004", one() | {"OWN_CONNECTION": "no"}),
    ("E018", one(CLAIMS={"nickname": "nickname"})),
    ("E018", one(CLAIMS={"is_superuser": "admin"})),
    ("E018", one(CLAIMS={"is_staff": "admin"})),
    ("E018", one(CLAIMS={"password": "password"})),
    ("E018", one(CLAIMS={"id": "sub"})),
    ("E018", one(CLAIMS={"groups": "groups"})),
    ("E018", one(CLAIMS={"oidc_identities": "sub"})),
    ("E019", one(SCOPES=["openid", "offline_access"])),
    ("E019", one(AUTHORIZATION_PARAMS={"access_type": "offline"}) | {"TOKEN_KEYS": []}),
    ("E019", one(API_ORIGINS=["https://api.example"])),
    ("E021", one(TIMEOUT=12) | {"TOKEN_KEYS": [KEY]}),
    ("E021", one() | {"TOKEN_KEYS": [KEY], "REFRESH_WAIT": 10}),
    ("E021", one() | {"TOKEN_KEYS": [KEY], "WORKER_TIMEOUT": 12}),
    ("W004", one(DANGEROUSLY_LINK_BY_EMAIL=lambda user: True)),
]


SOMETHING_TO_DO = (
    *("Add ", "Correct ", "Did you mean ", "Fill ", "Get ", "It belongs ", "It is for the whole "),
    *("Lower ", "Make sure ", "Remove ", "Replace ", "Take ", "Write "),
)


@pytest.mark.parametrize(("code", "value"), SETTINGS)
def test_each_mistake_in_the_settings_has_its_id_and_hint(
    settings: Settings, code: str, value: Any
) -> None:
    """One mistake, one message: its id is stable and its hint says how to mend it."""
    settings.OIDC_RP = value
    assert list(found()) == [code]
    assert found()[code].hint.startswith(SOMETHING_TO_DO), found()[code].hint


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (one(CLIENT_ID=""), "Fill it in, here or where it comes from: The client identifier that "),
        (one(CLIENT_ID=5), "Correct it: The client identifier that the OP gave to this site."),
        (one(TIMEOUT=0), "Correct it, or leave it out: Seconds for one call to the OP, in all."),
        (one(CLIENT_SECRET=None), 'Add "CLIENT_SECRET", which the OP gave to this site. '),
        (one() | {"TOKEN_KEYS": ["abc"]}, "Write a list of keys, the newest first. `manage.py oi"),
    ],
)
def test_a_hint_is_something_to_do(settings: Settings, value: Any, hint: str) -> None:
    """The doctor shows it as "Mend": what an option is for mends nothing."""
    settings.OIDC_RP = value
    assert [message.hint[: len(hint)] for message in found().values()] == [hint]


def test_an_unknown_option_at_the_top_is_told_once(settings: Settings) -> None:
    """Where it stands, and not for a provider, which has other options and other near ones."""
    settings.OIDC_RP = one() | {"TOKEN_KEY": [KEY]}
    ours = [m for m in run_checks(tags=[Tags.security]) if str(m.id).startswith("oidc_rp.")]
    assert [(message.msg, message.hint) for message in ours] == [
        ("OIDC_RP has an unknown option 'TOKEN_KEY'.", "Did you mean 'TOKEN_KEYS'?")
    ]


def test_missing_settings_are_told(settings: Settings) -> None:
    """A project that only has the app installed learns what it lacks."""
    del settings.OIDC_RP
    assert list(found()) == ["E001"]


def test_plain_http_is_told_outside_debug(settings: Settings) -> None:
    """ALLOW_LOOPBACK_HTTP is for development."""
    settings.OIDC_RP = one(ISSUER="http://127.0.0.1:9000", ALLOW_LOOPBACK_HTTP=True)
    assert list(found()) == ["W002"]
    assert found()["W002"].hint.startswith("Remove ALLOW_LOOPBACK_HTTP")
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


def test_a_module_that_cannot_be_imported_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it raises, which may hold a secret; `check` goes on, and the doctor, too."""
    (tmp_path / "broken_tenants.py").write_text("raise LookupError('s3cret')")
    monkeypatch.syspath_prepend(tmp_path)
    for providers in ("broken_tenants.providers", {"op": "broken_tenants.providers"}):
        settings.OIDC_RP = {"PROVIDERS": providers}
        assert list(found()) == ["E012"]
        assert found()["E012"].msg.endswith("names a module that raises LookupError.")


# What is around it

MIDDLEWARE = "django.contrib.{}.middleware.{}Middleware"
SESSIONS = MIDDLEWARE.format("sessions", "Session")
AUTHENTICATION = MIDDLEWARE.format("auth", "Authentication")
OWN_SESSIONS = f"{__name__}.Sessions"


class Sessions(SessionMiddleware):
    """A site's own."""


@pytest.mark.parametrize(
    ("middleware", "hint"),
    [
        ([AUTHENTICATION], f"Add {SESSIONS!r} to MIDDLEWARE, before {AUTHENTICATION!r}."),
        ([SESSIONS], f"Add {AUTHENTICATION!r} to MIDDLEWARE, behind {SESSIONS!r}."),
        ([AUTHENTICATION, SESSIONS], f"Move {SESSIONS!r} before {AUTHENTICATION!r}."),
        ([AUTHENTICATION, OWN_SESSIONS], f"Move {SESSIONS!r} before {AUTHENTICATION!r}."),
    ],
)
def test_middleware_that_is_missing_or_misplaced_is_told(
    settings: Settings, middleware: list[str], hint: str
) -> None:
    """Sessions hold the pending login, and request.user who came before; the hint names a place."""
    settings.OIDC_RP = one()
    settings.MIDDLEWARE = middleware
    assert [(code, message.hint) for code, message in found().items()] == [("E016", hint)]


def test_a_middleware_of_the_sites_own_does(settings: Settings) -> None:
    """A subclass is as good."""
    settings.OIDC_RP = one()
    settings.MIDDLEWARE = [
        OWN_SESSIONS if path == SESSIONS else path for path in settings.MIDDLEWARE
    ]
    assert found() == {}


LOGIN_REQUIRED = MIDDLEWARE.format("auth", "LoginRequired")
RENEWS = "oidc_rp.middleware.SessionRenewal"
TOKEN_RENEWS = "oidc_rp.middleware.TokenRenewal"
REFRESHES = "mozilla_django_oidc.middleware.SessionRefresh"


class Renews(SessionRenewal):
    """A site's own."""


class Refreshes(SessionRefresh):  # type: ignore[misc]
    """A site's own."""


OWN_RENEWS, OWN_REFRESHES = f"{__name__}.Renews", f"{__name__}.Refreshes"
RENEWAL: list[tuple[list[str], dict[str, Any], str, str]] = [
    ([], {}, "db", ""),
    ([], {"SESSION_RENEWAL": 600}, "db", "E022 SESSION_RENEWAL is set, and nothing does it."),
    ([], {}, "signed_cookies", "E022 Sessions live in cookies, and nothing refuses those that "),
    ([AUTHENTICATION, RENEWS], {"SESSION_RENEWAL": 600}, "db", ""),
    ([AUTHENTICATION, RENEWS], {}, "signed_cookies", ""),
    ([AUTHENTICATION, OWN_RENEWS], {"SESSION_RENEWAL": 600}, "signed_cookies", ""),
    ([AUTHENTICATION, RENEWS, LOGIN_REQUIRED], {"SESSION_RENEWAL": 600}, "db", ""),
    ([RENEWS, AUTHENTICATION], {}, "db", "E022 SessionRenewal stands before Authentication"),
    ([OWN_RENEWS, AUTHENTICATION], {}, "db", "E022 SessionRenewal stands before Authentication"),
    ([AUTHENTICATION, LOGIN_REQUIRED, RENEWS], {}, "db", "E022 SessionRenewal stands behind Login"),
    ([AUTHENTICATION, REFRESHES], {}, "db", "W008 MIDDLEWARE has SessionRefresh."),
    ([AUTHENTICATION, OWN_REFRESHES], {}, "db", "W008 MIDDLEWARE has SessionRefresh."),
    ([AUTHENTICATION, RENEWS, REFRESHES], {}, "db", "W008 MIDDLEWARE has SessionRefresh."),
]


@pytest.mark.parametrize(("behind", "options", "engine", "told"), RENEWAL)
def test_SessionRenewal_stands_where_it_works(
    settings: Settings, behind: list[str], options: dict[str, Any], engine: str, told: str
) -> None:
    """Where something needs it, and in the one place where it works."""
    settings.OIDC_RP = one(**options)
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.MIDDLEWARE = [SESSIONS, *(behind or [AUTHENTICATION])]
    messages = [f"{code} {message.msg}" for code, message in found().items()]
    assert len(messages) == bool(told), messages
    assert all(message.startswith(told) for message in messages)


@pytest.mark.parametrize(
    ("behind", "hint"),
    [
        ([], f"Add {RENEWS!r} to MIDDLEWARE, right behind {AUTHENTICATION!r}."),
        ([RENEWS, AUTHENTICATION], f"Move {RENEWS!r} right behind {AUTHENTICATION!r}."),
        (
            [AUTHENTICATION, LOGIN_REQUIRED, RENEWS],
            f"Move {RENEWS!r} right behind {AUTHENTICATION!r}.",
        ),
    ],
)
def test_what_stands_in_the_wrong_place_is_moved(
    settings: Settings, behind: list[str], hint: str
) -> None:
    """A second one, added in the right place, would leave the first where it is."""
    settings.OIDC_RP = one(SESSION_RENEWAL=600)
    settings.MIDDLEWARE = [SESSIONS, *(behind or [AUTHENTICATION])]
    assert found()["E022"].hint == hint


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("oidc_rp.middleware.SessionRenewall", RENEWS),
        ("oidc_rp.middleware.TokenRenewel", TOKEN_RENEWS),
        ("oidc_rp.middlewares.TokenRenewal", TOKEN_RENEWS),
        ("oidc_rp.SessionRenewal", RENEWS),
        ("oidc_rp.middleware", TOKEN_RENEWS),
    ],
)
def test_a_middleware_of_ours_that_does_not_exist_is_told(
    settings: Settings, name: str, meant: str
) -> None:
    """Django finds it when the first request comes; and it is one mistake, told once."""
    settings.OIDC_RP = one() | ({"SESSION_RENEWAL": 600} if meant == RENEWS else {})
    settings.MIDDLEWARE = [SESSIONS, AUTHENTICATION, name]
    messages = found()
    assert list(messages) == ["E024"]
    assert repr(name) in messages["E024"].msg
    assert messages["E024"].hint == f"Did you mean {meant!r}?"


@pytest.mark.parametrize("name", [TOKEN_RENEWS, f"{__name__}.Renewal"])
def test_TokenRenewal_stands_behind_authentication(settings: Settings, name: str) -> None:
    """As the README has it."""
    settings.OIDC_RP = one()
    settings.MIDDLEWARE = [SESSIONS, name, AUTHENTICATION]
    assert list(found()) == ["W009"]
    assert found()["W009"].hint == f"Move {TOKEN_RENEWS!r} behind {AUTHENTICATION!r}."
    settings.MIDDLEWARE = [SESSIONS, AUTHENTICATION, name]
    assert found() == {}


@pytest.mark.parametrize("name", ["SESSION_COOKIE_SAMESITE", "CSRF_COOKIE_SAMESITE"])
def test_a_samesite_that_no_cookie_can_have_is_told(settings: Settings, name: str) -> None:
    """Django finds it when the first cookie is set: every login is an error then."""
    settings.OIDC_RP = one()
    for good in ("Lax", "Strict", "None", "strict", "NONE", None, False, ""):
        setattr(settings, name, good)
        assert found() == {}
    for bad in ("Laxx", " Lax", True, 1):
        setattr(settings, name, bad)
        assert list(found()) == ["E023"]
        assert found()["E023"].msg.startswith(f"{name} is {bad!r}")


PREFIXED: list[tuple[str, bool, str | None, str | None, list[str]]] = [
    ("sid", False, "/app", "rp.example", []),
    ("__Hosted", False, "/", None, []),
    ("__Secure-sid", True, "/app", "rp.example", []),
    ("__Secure-sid", False, "/", None, ["SECURE = True"]),
    ("__secure-sid", False, "/", None, ["SECURE = True"]),
    ("__Host-sid", True, "/", None, []),
    ("__Host-sid", True, "/", "", []),
    ("__Host-sid", False, "/", None, ["SECURE = True"]),
    ("__Host-sid", True, "/app", None, ['PATH = "/"']),
    ("__Host-sid", True, None, None, ['PATH = "/"']),
    ("__Host-sid", True, "/", "rp.example", ["DOMAIN = None"]),
    ("__HOST-sid", False, "/app", "rp.example", ["SECURE = True", 'PATH = "/"', "DOMAIN = None"]),
]


@pytest.mark.parametrize("cookie", ["SESSION", "CSRF"])
@pytest.mark.parametrize(("name", "secure", "path", "domain", "lacking"), PREFIXED)
def test_a_cookie_that_its_name_keeps_from_browsers_is_told(
    settings: Settings,
    cookie: str,
    name: str,
    secure: bool,
    path: str | None,
    domain: str | None,
    lacking: list[str],
) -> None:
    """RFC 6265bis §4.1.3; browsers take no notice of case (§5.7)."""
    settings.OIDC_RP = one()
    for setting, value in {"NAME": name, "SECURE": secure, "PATH": path, "DOMAIN": domain}.items():
        setattr(settings, f"{cookie}_COOKIE_{setting}", value)
    messages = found()
    assert list(messages) == ["E029"] * bool(lacking)
    for message in messages.values():
        assert message.msg.startswith(f"{cookie}_COOKIE_NAME is {name!r}")
        wanted = ", ".join(f"{cookie}_COOKIE_{what}" for what in lacking)
        assert str(message.hint).startswith(f"Write {wanted}:")
    settings.CSRF_USE_SESSIONS = True
    assert bool(found()) is (bool(lacking) and cookie == "SESSION")


@pytest.mark.parametrize(
    ("engine", "hint"),
    [
        ("django.contrib.sessions.backends.databse", "backends.db'?"),
        ("django.contrib.sessions.backends.cachedb", "backends.cached_db'?"),
        ("django.contrib.sessions.backends.file", "Add what it needs, or take another"),
        ("tests.test_conf", "Take one of Django's, and add its app."),
        ("", "Take one of Django's, and add its app."),
    ],
)
def test_sessions_that_nobody_can_have_are_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, engine: str, hint: str
) -> None:
    """Else `check` is content, and the site falls over when it is served."""
    # Django remembers a folder that another test had.
    monkeypatch.delattr(FileSessionStore, "_storage_path", raising=False)
    settings.OIDC_RP = one()
    settings.SESSION_ENGINE = engine
    settings.SESSION_FILE_PATH = "/no/such/place"
    assert list(found()) == ["E025"]
    assert hint in str(found()["E025"].hint)


@pytest.mark.parametrize("age", [0, -1, 0.0, float("nan"), None, "1209600", True])
def test_sessions_that_end_at_once_are_told(settings: Settings, age: Any) -> None:
    """Whoever comes back from the OP has none."""
    settings.OIDC_RP = one()
    settings.SESSION_COOKIE_AGE = age
    assert list(found()) == ["E028"]
    settings.SESSION_COOKIE_AGE = 1
    assert found() == {}


CACHE = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
MISSPELT = {"BACKEND": "django.core.cache.backends.locmem.LocMemCacheX"}


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
@pytest.mark.parametrize(
    ("caches", "alias", "told"),
    [
        ({"default": CACHE}, "nope", "there is none"),
        ({"default": CACHE, "nope": MISSPELT}, "nope", "its BACKEND cannot be imported"),
        ({"default": CACHE, "nope": {}}, "nope", "its entry lacks 'BACKEND'."),
        ({"default": MISSPELT, "nope": CACHE}, "nope", "The cache 'default' cannot be used"),
        ({"default": MISSPELT}, "default", "its BACKEND cannot be imported"),
        ({"nope": CACHE}, "nope", "The cache 'default' cannot be used"),
    ],
)
def test_a_cache_that_cannot_be_used_is_told(
    settings: Settings, engine: str, caches: dict[str, Any], alias: str, told: str
) -> None:
    """Else each request that needs it is an error, and the check itself would be one."""
    settings.OIDC_RP = one()
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.CACHES, settings.SESSION_CACHE_ALIAS = caches, alias
    messages = check_installation()
    assert [message.id for message in messages] == ["oidc_rp.E026"]
    assert told in messages[0].msg


class Unreachable:
    """A session engine, or a cache, of a site that is not there yet."""

    def __init__(self, *args: Any) -> None:
        raise ConnectionError("redis://:hush@h/0")


SessionStore = Unreachable


def test_what_raises_is_told_by_its_kind_alone(settings: Settings) -> None:
    """Whatever it raises, and not what it says, which may hold a password."""
    settings.OIDC_RP = one()
    settings.SESSION_ENGINE = "tests.test_checks"
    assert found()["E025"].msg.endswith("raises ConnectionError.")
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    settings.CACHES = {"default": {"BACKEND": "tests.test_checks.Unreachable"}}
    (message,) = check_installation()
    assert message.msg == "The cache 'default' cannot be used: it raises ConnectionError."
    settings.CACHES = {"default": {"BACKEND": "redis://:hush@h/0"}}
    (message,) = check_installation()
    assert "hush" not in message.msg
    settings.CACHES = {"default": CACHE}
    backends = settings.AUTHENTICATION_BACKENDS
    settings.AUTHENTICATION_BACKENDS = [*backends, "tests.raises_at_import.Backend"]
    assert list(found()) == ["E027"]


def test_a_cache_that_nobody_uses_may_be_missing(settings: Settings) -> None:
    """SESSION_CACHE_ALIAS says nothing where sessions are rows."""
    settings.OIDC_RP = one()
    settings.SESSION_CACHE_ALIAS = "nope"
    assert found() == {}


def test_sessions_in_rows_that_no_app_has_are_told(tmp_path: Path) -> None:
    """The engine is there, and its table is not."""
    apps = ["django.contrib.auth", "django.contrib.contenttypes", "oidc_rp"]
    site = f"INSTALLED_APPS = {apps}\nROOT_URLCONF = 'oidc_rp.urls'\n"
    ran = check(tmp_path, f"{site}OIDC_RP = {{'PROVIDERS': {{}}}}\n")
    assert "(oidc_rp.E025)" in ran.stderr
    assert "'django.contrib.sessions' is not in INSTALLED_APPS" in ran.stderr


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
        ("no.such.Backend", ["E027"]),
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
    ("backends", "told"),
    [
        (
            ["oidc_rp.backends.OIDCBackend", "django.contrib.auth.backends.ModelBackendX"],
            "Did you mean 'django.contrib.auth.backends.ModelBackend'?",
        ),
        (["oidc_rp.backends.OIDCBackendd"], "Did you mean 'oidc_rp.backends.OIDCBackend'?"),
        (["oidc_rp.backends.OIDCBackend", "no.such.Backend"], "Correct it, or remove it."),
        (["oidc_rp.backends.OIDCBackend", "oidc_rp.backends"], "Correct it, or remove it."),
        ("oidc_rp.backends.OIDCBackend", "Write a list"),
    ],
)
def test_a_backend_that_cannot_be_imported_is_told(
    settings: Settings, backends: Any, told: str
) -> None:
    """Django finds it at the first sign-in, which is an error; it is one mistake, told once."""
    settings.OIDC_RP = one()
    settings.AUTHENTICATION_BACKENDS = backends
    assert list(found()) == ["E027"]
    assert told in str(found()["E027"].hint)


@pytest.mark.django_db
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


# Tokens at rest

SECRET = "django-insecure-7^w1!r$yq0m+o@kf3u=zx9v2c8b5n4a6d"
MADE_OF_IT = {
    "its first 32 characters": SECRET[:32].encode(),
    "its last 32": SECRET[-32:].encode(),
    "its SHA-256": sha256(SECRET.encode()).digest(),
    "its SHA-512, cut short": sha512(SECRET.encode()).digest()[:32],
    "its SHA-256 in hex, cut short": sha256(SECRET.encode()).hexdigest()[:32].encode(),
    "its MD5 in hex": md5(SECRET.encode()).hexdigest().encode(),
    "its SHA-1 in hex, cut short": sha1(SECRET.encode()).hexdigest()[:32].encode(),
}


@pytest.mark.parametrize("octets", MADE_OF_IT.values(), ids=MADE_OF_IT)
@pytest.mark.parametrize("name", ["SECRET_KEY", "SECRET_KEY_FALLBACKS"])
@pytest.mark.parametrize("secret", [SECRET, SECRET.encode()], ids=["text", "octets"])
def test_M52_a_token_key_that_is_made_of_the_secret_key_is_told(
    settings: Settings, octets: bytes, name: str, secret: Any
) -> None:
    """Whoever reads SECRET_KEY, in an old backup too, must not read tokens; it is not printed."""
    setattr(settings, name, secret if name == "SECRET_KEY" else [secret])
    key = urlsafe_b64encode(octets).decode()
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY, key]}
    messages = found()
    assert list(messages) == ["E010"]
    assert messages["E010"].msg == "OIDC_RP['TOKEN_KEYS'][1] is made of SECRET_KEY."
    assert key not in repr(messages)


def test_M52_a_secret_key_is_no_token_key(settings: Settings) -> None:
    """Nor one that looks like it."""
    settings.SECRET_KEY = "_-" * 21 + "A" + "more"
    settings.OIDC_RP = one() | {"TOKEN_KEYS": ["_-" * 21 + "A"]}
    assert list(found()) == ["E010"]


def test_both_mistakes_about_times_are_told(settings: Settings) -> None:
    """For each provider that is too slow, and for the web server."""
    providers = {"slow": GOOD | {"TIMEOUT": 20}, "fast": GOOD | {"CLIENT_ID": "2", "TIMEOUT": 2}}
    settings.OIDC_RP = {"PROVIDERS": providers, "TOKEN_KEYS": [KEY], "REFRESH_WAIT": 40}
    assert found()["E021"].msg == "REFRESH_WAIT (40 s) is not less than WORKER_TIMEOUT (30 s)."
    del settings.OIDC_RP["REFRESH_WAIT"]
    assert found()["E021"].msg == (
        "OIDC_RP['PROVIDERS']['slow']: TIMEOUT (20 s) is not less than REFRESH_WAIT (12 s)."
    )
    settings.OIDC_RP = {"PROVIDERS": providers}
    assert found() == {}


@pytest.mark.parametrize(
    ("keys", "atomic", "middleware", "options", "codes"),
    [
        ([KEY], False, [], {}, []),
        ([], True, [], {}, []),
        ([KEY], True, [], {}, ["W007"]),
        ([KEY], True, ["oidc_rp.middleware.TokenRenewal"], {}, []),
        ([KEY], True, ["tests.test_checks.Renewal"], {}, []),
        ([KEY], True, ["oidc_rp.middleware.TokenRenewal"], {"OWN_CONNECTION": False}, ["W007"]),
    ],
)
def test_atomic_requests_are_told_where_tokens_are_refreshed(
    settings: Settings,
    keys: list[str],
    atomic: bool,
    middleware: list[str],
    options: dict[str, Any],
    codes: list[str],
) -> None:
    """A view that raises rolls back what it wrote; a refresh had better be over by then."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": keys} | options
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, *middleware]
    with changed(connection.settings_dict, ATOMIC_REQUESTS=atomic):
        assert list(found()) == codes


class Renewal(TokenRenewal):
    """A site's own."""


@contextmanager
def changed(entries: dict[str, Any], **values: Any) -> Iterator[None]:
    before = dict(entries)
    entries |= values
    try:
        yield
    finally:
        entries |= before


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("keys", "debug", "codes"), [([KEY], False, ["W006"]), ([KEY], True, []), ([], False, [])]
)
def test_tokens_in_sqlite_are_told_at_deployment(
    settings: Settings, keys: list[str], debug: bool, codes: list[str]
) -> None:
    """It is for development, and for sites that keep no tokens."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": keys}
    settings.DEBUG = debug
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}}
    assert list(found(deploy=True)) == codes
    assert found() == {}


def stored_keys(*databases: str, deploy: bool = False) -> list[str]:
    """What E020 says, of each key that is missing."""
    tags = [Tags.security if deploy else Tags.database]
    messages = run_checks(tags=tags, databases=databases, include_deployment_checks=deploy)
    return [
        message.msg.split()[4].rstrip(",") for message in messages if message.id == "oidc_rp.E020"
    ]


@pytest.mark.django_db
def test_M52_stored_keys_that_are_missing_are_named(settings: Settings) -> None:
    """By `check --database`, so also by migrate, and at deployment; for each column of tokens."""
    rings = [KeyRing([letter * 42 + "A"]) for letter in "BCD"]
    ids = [ring.key_ids[0] for ring in rings]
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY]}
    assert stored_keys("default") == []
    grant = add_grant("one", rings[0])
    add_grant("two", rings[0])
    add_grant("closed", refresh_token="", key_id="")
    StoredAccessToken.objects.create(grant=grant, target="x", key_id=ids[1])
    PendingRevocation.objects.bulk_create([PendingRevocation(key_id=ids[2])])
    PendingRevocation.objects.bulk_create([PendingRevocation(key_id=KeyRing([KEY]).key_ids[0])])
    assert stored_keys("default") == stored_keys(deploy=True) == sorted(ids)
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY, "C" * 42 + "A"]}
    assert stored_keys("default") == sorted([ids[0], ids[2]])
    settings.OIDC_RP = one() | {"TOKEN_KEYS": []}
    assert len(stored_keys("default")) == 4


@pytest.mark.django_db
@pytest.mark.parametrize("wrong", ["no key", [KEY], {"key": KEY}, None])
def test_M52_a_wrong_key_is_told_at_deployment(settings: Settings, wrong: Any) -> None:
    """By its own check, where the stored keys are looked for as well."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY, wrong]}
    settings.DEBUG = True
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}}
    assert list(found(deploy=True)) == ["E010"]


@pytest.mark.django_db
def test_stored_keys_are_not_looked_for_unasked(settings: Settings) -> None:
    """`manage.py check` needs no database; and a wrong key has its own message."""
    add_grant("one")
    settings.OIDC_RP = one() | {"TOKEN_KEYS": ["B" * 42 + "A"]}
    with CaptureQueriesContext(connection) as queries:
        assert stored_keys() == []
        assert found() == {}
    assert len(queries) == 0
    settings.OIDC_RP = one() | {"TOKEN_KEYS": ["no key"]}
    assert stored_keys("default") == []


@pytest.mark.django_db
def test_M52_stored_keys_are_found_by_few_look_ups(settings: Settings) -> None:
    """As many statements as keys, and one, for each column; however many rows there are."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": ["A" * 43]}
    for number in range(20):
        add_grant(f"user{number}", KeyRing([("AB"[number % 2]) * 42 + "A"]))
    with CaptureQueriesContext(connection) as queries:
        assert len(stored_keys("default")) == 1
    look_ups = [query["sql"] for query in queries if "MIN(" in query["sql"]]
    assert len(look_ups) == 4 + 1 + 1
    with connection.cursor() as cursor:
        for look_up in look_ups:
            cursor.execute(f"EXPLAIN QUERY PLAN {look_up}")
            assert "SEARCH" in str(plan := cursor.fetchall()), plan


@pytest.mark.django_db
def test_stored_keys_are_not_looked_for_before_the_tables_are_there(settings: Settings) -> None:
    """The first migrate runs the check, too."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY]}
    add_grant("one", KeyRing(["B" * 42 + "A"]))
    assert len(stored_keys("default")) == 1
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE oidc_rp_grant RENAME TO oidc_rp_gone")
    assert stored_keys("default") == stored_keys(deploy=True) == []


@pytest.mark.django_db
def test_stored_keys_are_not_looked_for_in_a_table_of_before(settings: Settings) -> None:
    """The next migrate adds the column."""
    settings.OIDC_RP = one() | {"TOKEN_KEYS": [KEY]}
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE oidc_rp_grant RENAME COLUMN key_id TO gone")
    assert stored_keys("default") == []


def test_check_prints_id_and_hint(tmp_path: Path) -> None:
    """A developer sees it all with `manage.py check`."""
    ran = check(
        tmp_path,
        "OIDC_RP = {'PROVIDERS': {'op': {'ISSUER': 'https://op.example', 'CLIENTID': 'x',"
        " 'CLIENT_SECRET': 'the-secret'}}}\n",
    )
    assert ran.returncode == 1
    assert "(oidc_rp.E002)" in ran.stderr
    assert "(oidc_rp.E003)" in ran.stderr
    assert "HINT: Did you mean 'CLIENT_ID'?" in ran.stderr
    assert "the-secret" not in ran.stderr + ran.stdout


@pytest.mark.parametrize(("key", "code"), [(KEY, "W005"), ("x", "E010")])
def test_the_deploy_check_needs_no_database(tmp_path: Path, key: str, code: str) -> None:
    """Where an image is built there is none; what is wrong in the settings is told all the same."""
    site = f"DATABASES = {{}}\nOIDC_RP = {{'PROVIDERS': {{}}, 'TOKEN_KEYS': [{key!r}]}}\n"
    ran = check(tmp_path, site, "--deploy")
    assert f"(oidc_rp.{code})" in ran.stderr
    assert "Traceback" not in ran.stderr


def check(tmp_path: Path, settings: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """`manage.py check` of a project that differs from the tests' by these settings."""
    (tmp_path / "site_settings.py").write_text(f"from tests.settings import *\n{settings}")
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "DJANGO_SETTINGS_MODULE": "site_settings",
    }
    command = [sys.executable, "-W", "error", "-m", "django", "check", *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
