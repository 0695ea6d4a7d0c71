"""OIDC_RP, read once into typed values; what is wrong with one provider is its own trouble."""

import logging
import ssl
import subprocess
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy
from django.views.debug import SafeExceptionReporterFilter
from pytest_django import Settings

from oidc_rp import conf
from oidc_rp.errors import ConfigurationError
from oidc_rp.protocol.tokens import ClientSecret
from oidc_rp.testing import OpenIDProvider, SigningKey, issue_certificate
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure

GOOD: dict[str, Any] = {
    "ISSUER": "https://op.example",
    "CLIENT_ID": "rp",
    "CLIENT_SECRET": "s" * 32,
}
ENDPOINTS = {
    "authorization_endpoint": "https://op.example/authorize",
    "token_endpoint": "https://op.example/token",
    "jwks_uri": "https://op.example/jwks",
}
RSA_KEY = SigningKey.generate("RS256")


def read(**changes: Any) -> tuple[conf.Provider | None, list[conf.Mistake]]:
    return conf.read_provider("op", GOOD | changes)


def ids(**changes: Any) -> set[str]:
    return {mistake.id for mistake in read(**changes)[1]}


def refused(slug: str) -> str:
    with pytest.raises(ConfigurationError) as refusal:
        conf.provider(slug)
    return refusal.value.code


def test_three_options_are_enough() -> None:
    """Issuer, client and secret make a provider; the rest has its defaults."""
    provider, mistakes = read()
    assert mistakes == []
    assert provider is not None
    assert (provider.slug, provider.label, provider.issuer) == ("op", "op", "https://op.example")
    assert provider.client_secret == ClientSecret("s" * 32)
    assert provider.scope == "openid profile email"
    assert (provider.timeout, provider.leeway, provider.create_users) == (10.0, 60.0, True)
    assert provider.claims == conf.DEFAULT_CLAIMS


GOOD_VALUES: dict[str, Any] = {
    "ISSUER": "https://op.example/realms/one/",
    "CLIENT_ID": "another",
    "CLIENT_SECRET": "t" * 40,
    "LABEL": "Company",
    "ICON": "icons/company.svg",
    "SCOPES": ["openid", "groups"],
    "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
    "USERINFO_SIGNED_RESPONSE_ALG": "ES256",
    "TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_post",
    "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "HS256",
    "PRIVATE_KEY": RSA_KEY.private_jwk,
    "DEFAULT_MAX_AGE": 0,
    "DEFAULT_ACR_VALUES": ["urn:two-factors"],
    "REDIRECT_URIS": ["https://rp.example/oidc/op/callback/"],
    "POST_LOGOUT_REDIRECT_URIS": ["https://rp.example/oidc/logged-out/"],
    "RESPONSE_MODE": "form_post",
    "REQUIRE_PUSHED_AUTHORIZATION_REQUESTS": True,
    "METADATA": {"userinfo_endpoint": "https://op.example/me"},
    "AUTHORIZATION_PARAMS": {"access_type": "offline", "claims": {"id_token": {"acr": None}}},
    "ALLOW_LOOPBACK_HTTP": True,
    "TRUSTED_AUDIENCES": {"other"},
    "API_ORIGINS": ["https://api.example"],
    "RESOURCE_PARAMETER": "audience",
    "REVOKE_SUPERSEDED": False,
    "IN_DOUBT": "reauth",
    "REFRESH_IDLE_LIFETIME": 3600,
    "END_SESSION": "auth0",
    "LOGOUT_ENDS_OFFLINE_ACCESS": True,
    "SESSION_RENEWAL": 600,
    "SESSION_RENEWAL_FAILED": "ask",
    "USERINFO": False,
    "TIMEOUT": 2.5,
    "LEEWAY": 0,
    "CREATE_USERS": False,
    "CLAIMS": {"email": "mail"},
    "EMAIL_DOMAINS": ("Example.ORG", "example.com."),
    "DANGEROUSLY_LINK_BY_EMAIL": "django.contrib.auth.get_user_model",
}
TOGETHER: dict[str, dict[str, Any]] = {
    "TENANTS": {"ISSUER": "https://op.example/{tenantid}", "TENANTS": ["one"]},
    "GROUPS_CLAIM": {"GROUPS_CLAIM": "roles", "GROUPS": {"a": "A"}},
    "GROUPS": {"GROUPS_CLAIM": "roles", "GROUPS": {"a": "A"}},
    "STAFF_GROUPS": {"GROUPS_CLAIM": "roles", "STAFF_GROUPS": ["a"]},
    "SUPERUSER_GROUPS": {"GROUPS_CLAIM": "roles", "SUPERUSER_GROUPS": ["a"]},
}


@pytest.mark.parametrize("name", conf.OPTIONS)
def test_each_option_is_read_into_its_field(name: str, tmp_path: Path) -> None:
    """An option that is well set is what the provider then has; none is forgotten here."""
    if name == "CA_BUNDLE":
        options = {name: issue_certificate(tmp_path)[1]}
    else:
        options = TOGETHER.get(name) or {name: GOOD_VALUES[name]}
    provider, mistakes = read(**options)
    assert mistakes == []
    before, _ = read()
    assert getattr(provider, name.lower()) != getattr(before, name.lower())


def test_values_are_typed() -> None:
    """Lists become tuples or sets, domains are written one way, a dotted path is imported."""
    provider, _ = read(**GOOD_VALUES)
    assert provider is not None
    assert provider.scopes == ("openid", "groups")
    assert provider.trusted_audiences == frozenset({"other"})
    assert provider.email_domains == frozenset({"example.org", "example.com"})
    assert callable(provider.dangerously_link_by_email)
    assert provider.default_max_age == 0


TEXTS = ("", 5, True, ["x"], "a\nb", b"x")
NAMES = ("abc", [1], {"a": 1}, [""], 5)
FLAGS = (1, "True", "false", [])
BAD_VALUES: dict[str, tuple[Any, ...]] = {
    "ISSUER": TEXTS,
    "CLIENT_ID": TEXTS,
    "CLIENT_SECRET": TEXTS,
    "LABEL": TEXTS,
    "ICON": TEXTS,
    "SCOPES": (*NAMES, [], ["profile"], "openid"),
    "ID_TOKEN_SIGNED_RESPONSE_ALG": ("none", "RS1", "rs256", ["RS256"], 256),
    "USERINFO_SIGNED_RESPONSE_ALG": ("none", "", True),
    "TOKEN_ENDPOINT_AUTH_METHOD": ("basic", "tls_client_auth", ["none"], False),
    "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": ("none", "HS1", 1),
    "PRIVATE_KEY": ("text", ["kty"], 1),
    "DEFAULT_MAX_AGE": (-1, 1.5, "60", True),
    "DEFAULT_ACR_VALUES": NAMES,
    "REDIRECT_URIS": (*NAMES, ["/oidc/op/callback/"], ["http://rp.example/"], ["https://"]),
    "POST_LOGOUT_REDIRECT_URIS": (*NAMES, ["/bye/"], ["http://rp.example/"]),
    "RESPONSE_MODE": ("fragment", "", ["query"], 1),
    "REQUIRE_PUSHED_AUTHORIZATION_REQUESTS": FLAGS,
    "METADATA": ("text", ["x"], {1: 2}),
    "AUTHORIZATION_PARAMS": ("a=b", ["x"], {1: 2}),
    "CA_BUNDLE": (False, True, "", "no/such/file.pem", __file__, ["x"]),
    "ALLOW_LOOPBACK_HTTP": FLAGS,
    "TRUSTED_AUDIENCES": NAMES[:2],
    "TENANTS": NAMES[:2],
    "API_ORIGINS": (
        *NAMES,
        *(["https://api.example/"], ["https://API.example"], ["https://api.example:443"]),
        *(
            ["api.example"],
            ["ftp://api.example"],
            ["https://a@api.example"],
            ["http://api.example"],
        ),
        {"urn:calendar": "https://api.example"},
    ),
    "RESOURCE_PARAMETER": ("Resource", "", None.__class__, 1),
    "REVOKE_SUPERSEDED": FLAGS,
    "IN_DOUBT": ("again", "", True),
    "END_SESSION": ("Standard", "", True),
    "LOGOUT_ENDS_OFFLINE_ACCESS": FLAGS,
    "SESSION_RENEWAL": (0, "600", True, float("nan"), float("inf")),
    "SESSION_RENEWAL_FAILED": ("keep", "", False),
    "REFRESH_IDLE_LIFETIME": (0, 59, "3600", True, float("nan"), float("inf")),
    "USERINFO": FLAGS,
    "TIMEOUT": (0, 61, "5", True, float("nan"), float("inf"), -1),
    "LEEWAY": (-1, 61, "5", True, float("nan")),
    "CREATE_USERS": FLAGS,
    "CLAIMS": ("email", ["email"], {"email": 1}, {1: "email"}),
    "GROUPS_CLAIM": TEXTS,
    "GROUPS": ("a", ["a"], {"a": 1}),
    "STAFF_GROUPS": NAMES[:2],
    "SUPERUSER_GROUPS": NAMES[:2],
    "EMAIL_DOMAINS": (*NAMES[:2], ["@example.com"], ["*.example.com"], ["bücher.example"]),
    "DANGEROUSLY_LINK_BY_EMAIL": (True, "no.such.callable", "os.name", 5),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in conf.OPTIONS for value in BAD_VALUES[name]],
)
def test_M40_an_option_of_the_wrong_type_makes_no_provider(name: str, value: Any) -> None:
    """Whatever is wrong with an option, there is a mistake with a hint, and no provider."""
    provider, mistakes = read(**{name: value})
    assert provider is None
    assert [mistake.id for mistake in mistakes] == ["E004"]
    assert f"[{name!r}]" in mistakes[0].message
    assert mistakes[0].hint


@pytest.mark.parametrize("name", ["ISSUER", "CLIENT_ID", "CLIENT_SECRET"])
def test_what_is_required_is_missed(name: str) -> None:
    """An option that must be there is missed; None is as good as nothing."""
    assert ids(**{name: None}) == {"E002"}
    options = {key: value for key, value in GOOD.items() if key != name}
    assert {mistake.id for mistake in conf.read_provider("op", options)[1]} == {"E002"}


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("E005", {"ISSUER": "http://op.example"}),
    ("E005", {"ISSUER": "http://127.0.0.1:9000"}),
    ("E005", {"ISSUER": "http://op.example", "ALLOW_LOOPBACK_HTTP": True}),
    ("E005", {"ISSUER": "op.example"}),
    ("E005", {"ISSUER": "https://op.example?tenant=one"}),
    ("E005", {"ISSUER": "https://user@op.example"}),
    ("E006", {"ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256", "CLIENT_SECRET": "s" * 31}),
    ("E006", {"USERINFO_SIGNED_RESPONSE_ALG": "HS256", "CLIENT_SECRET": "s" * 31}),
    ("E006", {"TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_jwt", "CLIENT_SECRET": "s" * 31}),
    (
        "E006",
        {
            "TOKEN_ENDPOINT_AUTH_METHOD": "none",
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
            "CLIENT_SECRET": None,
        },
    ),
    ("E009", {"TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt"}),
    ("E009", {"TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt", "PRIVATE_KEY": RSA_KEY.public_jwk}),
    (
        "E009",
        {
            "TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt",
            "PRIVATE_KEY": RSA_KEY.private_jwk,
            "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "ES256",
        },
    ),
    (
        "E009",
        {
            "TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt",
            "PRIVATE_KEY": RSA_KEY.private_jwk,
            "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "HS256",
        },
    ),
    (
        "E004",
        {
            "TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_jwt",
            "TOKEN_ENDPOINT_AUTH_SIGNING_ALG": "RS256",
        },
    ),
    ("E013", {"METADATA": {"token_endpoint": "http://op.example/token"}}),
    ("E013", {"METADATA": {"userinfo_endpoint": "javascript:alert(1)"}}),
    ("E013", {"METADATA": {"issuer": "https://other.example"}}),
    ("E013", {"METADATA": {"id_token_signing_alg_values_supported": "RS256"}}),
    ("E013", {"METADATA": ENDPOINTS | {"jwks_uri": None}}),
    (
        "E013",
        {
            "METADATA": ENDPOINTS | {"jwks_uri": None},
            "CLIENT_SECRET": "s" * 32,
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
            "USERINFO_SIGNED_RESPONSE_ALG": "RS256",
        },
    ),
    ("E014", {"AUTHORIZATION_PARAMS": {"state": "mine"}}),
    ("E014", {"AUTHORIZATION_PARAMS": {"redirect_uri": "https://rp.example/"}}),
    ("E015", {"ISSUER": "https://op.example/{tenantid}"}),
    ("E015", {"TENANTS": ["one"]}),
    (
        "E015",
        {
            "ISSUER": "https://op.example/{tenantid}",
            "TENANTS": ["one"],
            "TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_jwt",
        },
    ),
    ("E002", {"GROUPS": {"a": "A"}}),
    ("E002", {"STAFF_GROUPS": ["a"]}),
]


@pytest.mark.parametrize(("code", "options"), CONTRADICTIONS)
def test_M40_options_that_contradict_each_other_make_no_provider(
    code: str, options: dict[str, Any]
) -> None:
    """Each option alone may be right, and all of them together wrong."""
    provider, mistakes = read(**options)
    assert provider is None
    assert [mistake.id for mistake in mistakes] == [code]
    assert mistakes[0].hint.startswith(("Add ", "Get ", "Remove ", "Take ", "Write ", "Correct "))


@pytest.mark.parametrize(
    "options",
    [
        {"METADATA": ENDPOINTS},
        {"METADATA": {"token_endpoint": "https://op.example/token2"}},
        {"METADATA": {"authorization_endpoint": "https://op.example/authorize2"}},
        {
            "METADATA": {**ENDPOINTS, "jwks_uri": None},
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
        },
        {"ISSUER": "http://localhost:9000", "ALLOW_LOOPBACK_HTTP": True},
        {
            "CLIENT_SECRET": None,
            "TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt",
            "PRIVATE_KEY": RSA_KEY.private_jwk,
        },
        {"CLIENT_SECRET": None, "TOKEN_ENDPOINT_AUTH_METHOD": "none"},
        {"CLIENT_SECRET": "short"},
        {"LABEL": None, "SCOPES": None},
    ],
)
def test_what_goes_together_is_no_mistake(options: dict[str, Any]) -> None:
    """A part of the metadata may be overridden; a short secret does where no HMAC is made."""
    assert ids(**options) == set()


@pytest.mark.parametrize("slug", ["", "a b", "é", "a/b", 1, None, "a" * 51, "login", "logout"])
def test_a_slug_is_a_part_of_a_url(slug: Any) -> None:
    """What cannot stand in a URL, or in the column of Identity, is no slug."""
    assert {mistake.id for mistake in conf.read_provider(slug, GOOD)[1]} == {"E008"}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("CLIENT_SECERT", "'CLIENT_SECRET'"),
        ("client_id", "'CLIENT_ID'"),
        ("SCOPE", "'SCOPES'"),
        ("TOKEN_KEYS", "top of OIDC_RP"),
        ("XYZZY", "README"),
        (5, "README"),
    ],
)
def test_an_unknown_option_is_told_with_the_near_one(name: Any, hint: str) -> None:
    """The hint names the option that was meant, or the place where it belongs."""
    _, mistakes = conf.read_provider("op", GOOD | {name: "x"})
    assert [mistake.id for mistake in mistakes] == ["E003"]
    assert hint in mistakes[0].hint


def test_no_mistake_shows_a_secret() -> None:
    """A secret in the wrong place is not repeated."""
    for name in ("CLIENT_SECRET", "PRIVATE_KEY"):
        _, mistakes = read(**{name: ["hunter2-secret"], "METADATA": 1})
        assert "hunter2" not in repr(mistakes)
    assert "s" * 32 not in repr(read()[0])


def test_M53_no_secret_is_on_debug_pages_or_in_error_mails(settings: Settings) -> None:
    """Django masks settings by their names there; ours have such names."""
    jwk = RSA_KEY.private_jwk
    keys = ["A" * 43, "B" * 43]
    provider = GOOD | {"CLIENT_SECRET": "hunter2-secret", "PRIVATE_KEY": jwk}
    settings.OIDC_RP = {"PROVIDERS": {"op": provider}, "TOKEN_KEYS": keys}
    shown = repr(SafeExceptionReporterFilter().get_safe_settings()["OIDC_RP"])
    assert provider["ISSUER"] in shown
    numbers = [jwk[name] for name in jwk.keys() - RSA_KEY.public_jwk.keys()]
    assert numbers
    assert not any(secret in shown for secret in ("hunter2-secret", *keys, *numbers))


def raising() -> Any:
    raise LookupError("no table yet")


@pytest.mark.parametrize(
    "broken", [{"TIMEOUT": "x"}, {"METADATA": 1, "CLIENT_ID": None}, raising, "no.such", 5, None]
)
def test_M53_no_frame_of_a_traceback_holds_a_secret(settings: Settings, broken: Any) -> None:
    """When one provider cannot be used, the error reports that are sent show no secret of any."""
    secret = {"CLIENT_SECRET": "hunter2-secret"}
    options = GOOD | secret | broken if isinstance(broken, dict) else broken
    settings.OIDC_RP = {"PROVIDERS": {"op": options, "good": GOOD | secret}}
    for slug in ("op", "unknown"):
        with pytest.raises(ConfigurationError) as caught:
            conf.provider(slug)
        frames = [frame for frame, _ in traceback.walk_tb(caught.tb)][1:]
        assert frames
        assert "hunter2" not in repr([frame.f_locals for frame in frames])


def test_a_label_may_be_translated() -> None:
    """A lazy text is not frozen in the language of the first request."""
    provider, _ = read(LABEL=gettext_lazy("Company"))
    assert provider is not None
    assert isinstance(provider.label, Promise)


def test_a_certificate_is_read_before_the_first_login(tmp_path: Path) -> None:
    """A file that holds no certificate is told when the project starts."""
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    assert ids(CA_BUNDLE=str(empty)) == {"E004"}
    context, pem = issue_certificate(tmp_path)
    assert isinstance(context, ssl.SSLContext)
    assert ids(CA_BUNDLE=str(pem)) == set()


# In a site's settings


def test_the_top_level_holds_defaults_for_all(settings: Settings) -> None:
    """An option at the top is every provider's, wherever its dict comes from, unless it has it."""
    settings.OIDC_RP = {
        "SCOPES": ["openid", "groups"],
        "TIMEOUT": 3,
        "PROVIDERS": {
            "one": GOOD,
            "two": GOOD | {"CLIENT_ID": "b", "TIMEOUT": 4},
            "three": "tests.test_conf.options_of_three",
            "four": lambda: GOOD | {"TIMEOUT": None},
        },
    }
    found = conf.providers()
    assert {slug: provider.timeout for slug, provider in found.items()} == {
        "one": 3.0,
        "two": 4.0,
        "three": 3.0,
        "four": 10.0,
    }
    assert {provider.scope for provider in found.values()} == {"openid groups"}


def test_M40_an_unknown_option_at_the_top_refuses_every_provider(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have been meant to say whom they let in; the refusal tells where it stands."""
    settings.OIDC_RP = {"PROVIDERS": {"op": GOOD}, "EMAIL_DOMAIN": ["example.com"]}
    with pytest.raises(ConfigurationError, match="OIDC_RP has an unknown option 'EMAIL_DOMAIN'"):
        conf.provider("op")
    assert conf.providers() == {}
    assert len(caplog.records) == 1
    del settings.OIDC_RP["EMAIL_DOMAIN"]
    assert conf.provider("op").email_domains == frozenset()


def options_of_three() -> dict[str, Any]:
    return GOOD | {"CLIENT_ID": "three"}


def all_providers() -> dict[str, Any]:
    return {"one": GOOD, "three": "tests.test_conf.options_of_three"}


@pytest.mark.parametrize("source", [all_providers, "tests.test_conf.all_providers"])
def test_providers_come_from_a_callable(settings: Settings, source: Any) -> None:
    """A callable, or its dotted path, may give all providers."""
    settings.OIDC_RP = {"PROVIDERS": source, "LEEWAY": 5}
    assert {slug: found.leeway for slug, found in conf.providers().items()} == {
        "one": 5.0,
        "three": 5.0,
    }
    assert refused("two") == "provider.unknown"


def test_a_callable_is_asked_each_time(settings: Settings) -> None:
    """A row that a site adds is a provider at once; one that stays the same keeps its caches."""
    rows = {"one": dict(GOOD)}
    settings.OIDC_RP = {"PROVIDERS": lambda: {slug: dict(row) for slug, row in rows.items()}}
    before = conf.provider("one")
    assert conf.provider("one") is before
    rows["two"] = GOOD | {"CLIENT_ID": "two"}
    assert list(conf.providers()) == ["one", "two"]
    assert conf.provider("one") is before
    rows["one"]["TIMEOUT"] = 5
    assert conf.provider("one").timeout == 5.0
    del rows["one"]
    assert refused("one") == "provider.unknown"


def test_a_list_that_a_callable_changes_in_place_is_noticed(settings: Settings) -> None:
    """The same dict with a value changed deep in it is another provider."""
    domains: list[str] = []
    rows = {"one": GOOD | {"EMAIL_DOMAINS": domains, "METADATA": {"scopes_supported": ["a"]}}}
    settings.OIDC_RP = {"PROVIDERS": lambda: rows}
    before = conf.provider("one")
    assert conf.provider("one") is before
    domains.append("corp.example")
    assert conf.provider("one").email_domains == {"corp.example"}


@pytest.mark.parametrize(
    "source", [raising, "tests.test_conf.raising", "no.such", list, str, 5, None, ["op"]]
)
def test_M40_providers_that_cannot_be_had_refuse_every_login(
    settings: Settings, source: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a callable raises or returns is a refusal, and a line in the log with its cause.

    What names no callable has no cause but itself, and no traceback.
    """
    settings.OIDC_RP = {"PROVIDERS": source}
    assert refused("op") == "configuration.providers"
    assert conf.providers() == {}
    assert caplog.records
    of_the_site = callable(source) or isinstance(source, str)
    assert all(bool(record.exc_info) is of_the_site for record in caplog.records)


@pytest.mark.parametrize("source", [raising, "no.such", list, 5, None, {}, GOOD | {"ISSUER": 5}])
def test_M40_a_broken_provider_leaves_the_others_alone(
    settings: Settings, source: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One provider that cannot be read is refused; the others are as before."""
    settings.OIDC_RP = {"PROVIDERS": {"broken": source, 5: GOOD, "good": GOOD}}
    assert list(conf.providers()) == ["good"]
    assert conf.provider("good").client_id == "rp"
    assert refused("broken") == "configuration.provider"
    assert any("broken" in record.getMessage() for record in caplog.records)


def test_what_is_wrong_is_logged_once(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """A chooser that is looked at a thousand times does not fill the log."""
    settings.OIDC_RP = {"PROVIDERS": {"broken": {}}}
    with caplog.at_level(logging.ERROR, "oidc_rp"):
        for _ in range(5):
            conf.providers()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value", [None, {}, [], "text", 5])
def test_M40_without_settings_nobody_signs_in(
    settings: Settings, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A site without OIDC_RP has no providers, and no crash; the checks say it, not the log."""
    settings.OIDC_RP = value
    assert conf.providers() == {}
    assert not caplog.records
    assert refused("op") == "configuration.providers"
    assert conf.keep_anonymous_session() is False
    assert conf.event_retention() == timedelta(days=180)
    del settings.OIDC_RP
    assert conf.providers() == {}


def test_settings_are_read_anew_when_they_change(settings: Settings) -> None:
    """setting_changed drops what was read, even where the new options look equal."""
    settings.OIDC_RP = {"PROVIDERS": {"op": GOOD | {"USERINFO": True}}}
    assert conf.provider("op").userinfo
    settings.OIDC_RP = {"PROVIDERS": {"op": GOOD | {"USERINFO": 1}}}
    assert refused("op") == "configuration.provider"
    settings.OIDC_RP = {"PROVIDERS": {"op": GOOD}, "USERINFO": False}
    assert not conf.provider("op").userinfo


def test_nothing_is_read_at_import() -> None:
    """Our modules import without settings, and broken settings do not break django.setup()."""
    script = """
import oidc_rp.conf, oidc_rp.protocol.id_token, oidc_rp.transport
from django.conf import settings
assert not settings.configured
settings.configure(
    OIDC_RP={"PROVIDERS": {"op": {"ISSUER": 5}}, "TOKEN_KEYS": 5},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oidc_rp"],
)
import django
django.setup()
import oidc_rp.views, oidc_rp.backends, oidc_rp.checks, oidc_rp.urls
assert not oidc_rp.conf._known
print("imported")
"""
    command = [sys.executable, "-W", "error", "-c", script]
    root = Path(__file__).parent.parent
    ran = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert (ran.stdout.strip(), ran.stderr) == ("imported", "")


# In a browser


def test_M40_a_broken_provider_does_not_break_the_chooser(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """The chooser shows the provider that works, and it signs in; the broken one is a refusal."""
    good = settings.OIDC_RP["PROVIDERS"]["op"]
    settings.OIDC_RP = {"PROVIDERS": {"broken": {"ISSUER": op.issuer}, "op": good}}
    page = browser.client.get("/oidc/login/").content.decode()
    assert "/oidc/op/login/" in page
    assert "/oidc/broken/login/" not in page
    refusal = browser.client.get("/oidc/broken/login/")
    assert (refusal.status_code, refusal.context["code"]) == (400, "configuration.provider")
    assert "CLIENT_ID" not in refusal.content.decode()
    assert browser.sign_in("op").url == "/home/"


@pytest.mark.parametrize(
    "providers", [raising, {"op": raising}, {"op": {"ISSUER": "https://op.example"}}, None]
)
def test_M40_a_configuration_that_breaks_during_a_login_signs_nobody_in(
    browser: Browser, settings: Settings, providers: Any
) -> None:
    """A callback that meets a broken configuration is refused, whatever the OP says."""
    callback = browser.visit_op(browser.start("op"))
    settings.OIDC_RP = {"PROVIDERS": providers}
    response = browser.come_back(callback)
    assert response.status_code == 400
    assert response.context["code"].startswith("configuration.provider")
    assert "_auth_user_id" not in browser.client.session


def test_metadata_alone_is_enough(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """With the endpoints in METADATA somebody signs in, and nothing is discovered."""
    configure(METADATA=op.metadata)
    assert browser.sign_in("op").url == "/home/"
    assert op.calls("discovery") == 0


def test_metadata_overrides_a_part_of_discovery(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """One member is ours, the rest is discovered."""
    configure(METADATA={"userinfo_endpoint": None})
    assert browser.sign_in("op").url == "/home/"
    assert (op.calls("discovery"), op.calls("userinfo")) == (1, 0)


def test_M54_each_resource_has_origins_of_its_own() -> None:
    """A token for one API goes to the origins named for it, and to no other API's."""
    graph, calendar = "https://graph.example", "https://calendar.example"
    provider, _ = read(API_ORIGINS={"": [graph], "urn:calendar": [calendar]})
    assert provider is not None
    assert provider.origins_for("") == (graph,)
    assert provider.origins_for("urn:calendar") == (calendar,)
    assert provider.origins_for("https://graph.example/v1") == (graph,)
    assert provider.origins_for(calendar) == ()
    assert provider.origins_for("urn:other") == ()


def test_M54_the_origin_of_a_resource_must_be_listed() -> None:
    """With a plain list, a resource that is a URL may be called at its own origin, if listed."""
    provider, _ = read(API_ORIGINS=["https://a.example", "https://b.example"])
    assert provider is not None
    assert provider.origins_for("") == ("https://a.example", "https://b.example")
    assert provider.origins_for("https://b.example/api") == ("https://b.example",)
    assert provider.origins_for("https://c.example") == ()


def test_M45_an_api_on_this_machine_may_be_plain_http_in_development() -> None:
    """http origins need the same switch as an http issuer, and this machine."""
    assert read(API_ORIGINS=["http://127.0.0.1:9000"])[0] is None
    provider, mistakes = read(API_ORIGINS=["http://127.0.0.1:9000"], ALLOW_LOOPBACK_HTTP=True)
    assert mistakes == []
    assert provider is not None
    assert read(API_ORIGINS=["http://api.example"], ALLOW_LOOPBACK_HTTP=True)[0] is None


@pytest.mark.parametrize(
    ("options", "offline"),
    [
        ({}, False),
        ({"SCOPES": ["openid", "offline_access"]}, True),
        ({"AUTHORIZATION_PARAMS": {"access_type": "offline"}}, True),
        ({"AUTHORIZATION_PARAMS": {"access_type": "online"}}, False),
    ],
)
def test_a_provider_is_offline_when_it_is_asked_for_that(
    options: dict[str, Any], offline: bool
) -> None:
    """By the scope of Core §11, or by Google's own parameter."""
    provider, _ = read(**options)
    assert provider is not None
    assert provider.offline is offline


@pytest.mark.parametrize(
    ("value", "days"),
    [(30, 30), (0.5, 0.5), (10**9, conf.MAX_RETENTION), (0, 180), ("30", 180), (True, 180)],
)
def test_event_retention_is_a_number_of_days(settings: Settings, value: Any, days: float) -> None:
    """What is none keeps events for as long as a site that says nothing does."""
    settings.OIDC_RP = {"EVENT_RETENTION": value}
    assert conf.event_retention() == timedelta(days=days)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"ISSUER": "https://me:S3CRET@op.example"}, "https://***@op.example"),
        ({"ISSUER": "https://op.example/?key=S3CRET"}, "https://op.example/?***"),
        ({"ISSUER": "https://op.example/#key=S3CRET?S3CRET"}, "https://op.example/#***"),
        ({"REDIRECT_URIS": ["ftp://me:S3CRET@rp.example/x"]}, "ftp://***@rp.example/x"),
        ({"API_ORIGINS": ["http://op.example"]}, "http://op.example"),
    ],
)
def test_no_password_of_a_url_is_repeated(options: dict[str, Any], shown: str) -> None:
    """Neither in a check's message, nor in the doctor's, nor in the log."""
    _provider, mistakes = read(**options)
    told = " ".join(mistake.message for mistake in mistakes)
    assert shown in told
    assert "S3CRET" not in told
