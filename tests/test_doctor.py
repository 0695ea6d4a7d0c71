"""`manage.py oidc_doctor`: each mistake is found where it is made, with what to write instead."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from email.utils import formatdate
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.urls import include, path, set_script_prefix
from pytest_django import Settings

from oidc_rp import doctor, testing
from oidc_rp.doctor import ERROR, OK, WARNING, Finding
from oidc_rp.doctor.site import PROXY_HEADER
from oidc_rp.sealing import KeyRing, generate_key
from oidc_rp.testing import OpenIDProvider, SigningKey, issue_certificate
from tests.conftest import Configure
from tests.test_reseal import add_grant

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).parent.parent
HTTPS = {
    "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
    "SESSION_COOKIE_SECURE": True,
    "ALLOWED_HOSTS": ["rp.example"],
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}},
}
"""What a site needs that is served behind a proxy."""


@pytest.fixture(autouse=True)
def site(configure: Configure, settings: Settings) -> Configure:
    """A site with nothing to find but that its OP is on this machine."""
    for name, value in HTTPS.items():
        setattr(settings, name, value)
    settings.SILENCED_SYSTEM_CHECKS = ["oidc_rp.W002"]
    return configure


def found(slug: str | None = None) -> dict[str, Finding]:
    """What is not in order, by its code."""
    return {one.code: one for one in doctor.examine(slug) if one.level != OK}


def the_one(code: str, level: str = ERROR, provider: str = "op") -> Finding:
    """The one thing that is not in order, and all that is to be said of it."""
    by_code = found()
    assert list(by_code) == [code]
    finding = by_code[code]
    assert (finding.level, finding.provider) == (level, provider)
    assert finding.what
    assert finding.why
    assert finding.mend
    return finding


def in_order(code: str) -> str:
    """What is said of what is in order."""
    return next(one.what for one in doctor.examine() if (one.code, one.level) == (code, OK))


def run(*arguments: str, code: int = 0) -> str:
    """What the command prints, whose exit code is this."""
    out = StringIO()
    expected = pytest.raises(SystemExit, match=f"^{code}$") if code else nullcontext()
    with expected:
        call_command("oidc_doctor", *arguments, stdout=out, no_color=True)
    return out.getvalue()


def test_a_good_site_is_in_order(op: OpenIDProvider) -> None:
    """Nothing is found, and what was looked at is told; the OP is asked twice, for nothing else."""
    assert found() == {}
    assert [request.endpoint for request in op.requests] == ["discovery", "jwks"]
    assert "https://rp.example/oidc/op/callback/" in in_order("doctor.redirect_uri")
    assert "1 of 1 keys" in in_order("doctor.jwks")


def test_nothing_of_it_stays_in_the_cache(op: OpenIDProvider, settings: Settings) -> None:
    """Neither is an old document believed, nor is a new one left for the site to believe."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.DEBUG = True
    assert found() == {}
    op.metadata["issuer"] = "https://elsewhere.example"
    assert "doctor.issuer" in found()
    cache.clear()
    assert op.calls("discovery") == 2


# The issuer, and the way to it


def test_a_slash_too_few_is_named(op: OpenIDProvider) -> None:
    """The line to write is the issuer as the OP spells it."""
    op.metadata["issuer"] += "/"
    finding = the_one("doctor.issuer")
    assert "ISSUER lacks the slash at its end" in finding.what
    assert finding.mend == f'Write "ISSUER": "{op.issuer}/",'


def test_a_slash_too_many_is_named(op: OpenIDProvider, site: Configure) -> None:
    site(ISSUER=op.issuer + "/")
    finding = the_one("doctor.issuer")
    assert "a slash at its end that does not belong there" in finding.what
    assert finding.mend == f'Write "ISSUER": "{op.issuer}",'


@pytest.mark.parametrize(
    ("published", "difference", "mend"),
    [
        ("https://op.example", "differ in scheme and host and port", "If that is who you mean"),
        ("https://op.example/{tenantid}", "and path", '"TENANTS": ["..."],'),
        ("http://op.example", "no https URL", "operator"),
        (None, "no https URL", "operator"),
        (["https://op.example"], "no https URL", "operator"),
        ("https://op.example/\x1b[2J", "no https URL", "operator"),
    ],
)
def test_another_issuer_is_named(
    op: OpenIDProvider, published: Any, difference: str, mend: str
) -> None:
    """Whatever the OP says is one line, and nothing that a terminal would obey."""
    op.metadata["issuer"] = published
    finding = the_one("doctor.issuer")
    assert difference in finding.what
    assert mend in finding.mend
    assert (finding.what + finding.mend).isprintable()


def test_what_is_wrong_behind_a_wrong_issuer_is_told_as_well(op: OpenIDProvider) -> None:
    """One run tells all of it."""
    op.metadata["issuer"] += "/"
    op.metadata["end_session_endpoint"] = None
    assert list(found()) == ["doctor.issuer", "doctor.end_session"]


def test_the_url_of_the_metadata_is_no_issuer(op: OpenIDProvider, site: Configure) -> None:
    """What people copy from the OP's pages."""
    site(ISSUER=f"{op.issuer}/.well-known/openid-configuration")
    assert f'"ISSUER": "{op.issuer}"' in the_one("doctor.issuer").mend
    assert op.requests == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (testing.raw(404), "it answers 404"),
        (testing.not_json(), "discovery.json"),
        (testing.redirect_to("https://elsewhere.example/"), "transport.redirect"),
        (testing.close_connection(), "transport.broken"),
        (testing.drip(), "transport.timeout"),
        (testing.gzip_bomb(2_000_000), "transport.too_large"),
    ],
)
def test_why_there_is_no_metadata(
    op: OpenIDProvider, site: Configure, answer: testing.Misbehaviour, told: str
) -> None:
    """Each way in which an OP does not answer is told apart, and none takes for ever."""
    site(TIMEOUT=1)
    op.answer["discovery"] = answer
    begun = time.monotonic()
    assert told in the_one("doctor.discovery").what
    assert time.monotonic() - begun < 5


def test_an_op_that_is_down(op: OpenIDProvider) -> None:
    op.stop()
    assert "refused" in the_one("doctor.discovery").why


def test_a_name_that_nobody_has(site: Configure) -> None:
    site(ISSUER="https://op.invalid")
    assert "transport.name" in the_one("doctor.discovery").what


def test_a_proxy_of_the_environment_is_not_used(
    op: OpenIDProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever relies on one is told."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    op.stop()
    assert "proxy" in the_one("doctor.discovery").mend


def test_a_certificate_that_nobody_trusts(
    op: OpenIDProvider, site: Configure, tmp_path: Path
) -> None:
    """OpenSSL's own words, and the option that names an authority."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    with OpenIDProvider(keys=op.keys, tls=context, host="localhost") as secure:
        site(ISSUER=secure.issuer)
        finding = the_one("doctor.discovery")
        assert "self-signed certificate" in finding.what
        assert "CA_BUNDLE" in finding.mend
        site(ISSUER=secure.issuer, CA_BUNDLE=str(certificate))
        assert found() == {}


@pytest.mark.parametrize(
    ("ahead", "level"),
    [(0, OK), (30, WARNING), (-30, WARNING), (90, ERROR), (-90, ERROR)],
)
def test_the_clocks(op: OpenIDProvider, ahead: int, level: str) -> None:
    """The OP's Date is compared with the clock of this machine, and LEEWAY with the difference."""
    body = json.dumps(op.metadata).encode()
    date = formatdate(time.time() + ahead, usegmt=True)
    op.answer["discovery"] = testing.raw(200, {"Date": date}, body)
    if level == OK:
        assert found() == {}
        assert "agree" in in_order("doctor.clock")
    else:
        assert ("ahead of" if ahead > 0 else "behind") in the_one("doctor.clock", level).what


def test_an_answer_of_a_cache_is_as_old_as_it_says(op: OpenIDProvider) -> None:
    """Its Date is when the OP wrote it."""
    body = json.dumps(op.metadata).encode()
    headers = {"Date": formatdate(time.time() - 3600, usegmt=True), "Age": "3600"}
    op.answer["discovery"] = testing.raw(200, headers, body)
    assert "agree" in in_order("doctor.clock")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Date": "yesterday"},
        {"Date": "Wed, 99 Oct 2015 07:28:00 GMT"},
        {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Age": "-5"},
        {"Date": "Wed, 21 Oct 2015 07:28:00 GMT", "Age": "9" * 5000},
    ],
)
def test_a_clock_that_is_not_told(op: OpenIDProvider, headers: dict[str, str]) -> None:
    """What was not compared is not said to be in order."""
    op.answer["discovery"] = testing.raw(200, headers, json.dumps(op.metadata).encode())
    assert "not compared" in the_one("doctor.clock", WARNING).what


def test_the_kit_tells_its_time(op: OpenIDProvider) -> None:
    """A clock of the test kit that is set elsewhere is one that the doctor finds."""
    assert "agree" in in_order("doctor.clock")
    op.now = lambda: time.time() - 30
    assert "behind" in the_one("doctor.clock", WARNING).what


def test_an_endpoint_that_may_not_be_used(op: OpenIDProvider) -> None:
    op.metadata["token_endpoint"] = "http://op.example/token"
    assert "discovery.token_endpoint" in the_one("doctor.metadata").what


def test_metadata_in_the_settings_is_not_discovered(op: OpenIDProvider, site: Configure) -> None:
    """Then only the keys are asked for."""
    site(METADATA={name: op.metadata[name] for name in op.metadata if name != "issuer"})
    assert found() == {}
    assert [request.endpoint for request in op.requests] == ["jwks"]


@pytest.mark.parametrize("value", [5, "S256", {"a": []}, [[], {}, None, 5], True, "\x1b[2J" * 999])
def test_whatever_the_op_says_of_itself_is_looked_at(
    op: OpenIDProvider, site: Configure, value: Any
) -> None:
    """No type of a member ends the examination, and nothing of it reaches the terminal raw."""
    site(
        SCOPES=["openid", "offline_access"],
        RESPONSE_MODE="form_post",
        TOKEN_ENDPOINT_AUTH_METHOD="client_secret_jwt",
    )
    for name in (
        "code_challenge_methods_supported",
        "response_modes_supported",
        "scopes_supported",
        "backchannel_logout_supported",
        "token_endpoint_auth_signing_alg_values_supported",
    ):
        op.metadata[name] = value
    assert all((one.what + one.why + one.mend).isprintable() for one in doctor.examine())
    op.metadata["id_token_signing_alg_values_supported"] = value
    assert "doctor.metadata" in found()


# Keys and algorithms


def test_keys_for_another_algorithm(op: OpenIDProvider, site: Configure) -> None:
    """Published is RS256, wanted ES256."""
    site(ID_TOKEN_SIGNED_RESPONSE_ALG="ES256")
    assert "1 of 1 keys" in the_one("doctor.jwks").what


def test_no_key_that_can_be_used(op: OpenIDProvider) -> None:
    """For encryption only, and none that anybody knows."""
    keys = [key.public_jwk | {"use": "enc"} for key in op.keys]
    op.answer["jwks"] = testing.sending({"keys": [*keys, {"kty": "new"}]})
    assert "0 of 2 keys" in the_one("doctor.jwks").what


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (testing.raw(500), "it answers 500"),
        (testing.sending({"no": "keys"}), "jwks.document"),
        (testing.not_json(), "discovery.json"),
    ],
)
def test_no_key_set(op: OpenIDProvider, answer: testing.Misbehaviour, told: str) -> None:
    op.answer["jwks"] = answer
    assert told in the_one("doctor.jwks").what


def test_metadata_without_keys(op: OpenIDProvider) -> None:
    op.metadata["jwks_uri"] = None
    assert "jwks_uri" in the_one("doctor.jwks").what


def test_keys_that_cannot_be_told_apart(op: OpenIDProvider) -> None:
    other = SigningKey.generate("RS256")
    op.keys = [op.keys[0], other]
    assert found() == {}
    op.keys = [op.keys[0], SigningKey.generate("RS256", kid=op.keys[0].kid)]
    assert "RS256" in the_one("doctor.jwks_kid", WARNING).what


def test_an_op_that_signs_with_the_client_secret_only(op: OpenIDProvider, site: Configure) -> None:
    """The line to write is in the mend, and heals it."""
    op.metadata["id_token_signing_alg_values_supported"] = ["HS256"]
    assert '"ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256"' in the_one("doctor.alg").mend
    site(ID_TOKEN_SIGNED_RESPONSE_ALG="HS256")
    assert found() == {}
    assert "no keys" in in_order("doctor.jwks")


def test_userinfo_that_is_signed_with_a_key(op: OpenIDProvider, site: Configure) -> None:
    """It needs the OP's keys, whatever signs ID Tokens."""
    op.metadata["id_token_signing_alg_values_supported"] = ["HS256"]
    signed = {"ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256", "USERINFO_SIGNED_RESPONSE_ALG": "RS256"}
    site(**signed)
    assert "1 of 1 keys" in in_order("doctor.jwks")
    site(**signed | {"USERINFO_SIGNED_RESPONSE_ALG": "ES256"})
    finding = the_one("doctor.jwks")
    assert "none is for ES256" in finding.what
    assert "No UserInfo response can be verified: userinfo.kid" in finding.why
    assert "USERINFO_SIGNED_RESPONSE_ALG" in finding.mend
    op.metadata["jwks_uri"] = None
    assert "no UserInfo response can be verified" in the_one("doctor.jwks").why
    site(**signed, USERINFO=False)
    assert "no keys" in in_order("doctor.jwks")
    site(**signed)
    op.metadata["userinfo_endpoint"] = None
    assert found() == {}


def test_an_algorithm_that_the_op_does_not_name(op: OpenIDProvider, site: Configure) -> None:
    site(ID_TOKEN_SIGNED_RESPONSE_ALG="RS256")
    op.metadata["id_token_signing_alg_values_supported"] = ["HS256"]
    assert "HS256" in the_one("doctor.alg", WARNING).what


# What the OP can do


@pytest.mark.parametrize(
    ("changes", "options", "code", "level"),
    [
        ({"code_challenge_methods_supported": None}, {}, "pkce", WARNING),
        ({"code_challenge_methods_supported": ["plain"]}, {}, "pkce", WARNING),
        ({"end_session_endpoint": None}, {}, "end_session", WARNING),
        (
            {"response_modes_supported": ["query"]},
            {"RESPONSE_MODE": "form_post"},
            "response_mode",
            WARNING,
        ),
        (
            {"pushed_authorization_request_endpoint": None},
            {"REQUIRE_PUSHED_AUTHORIZATION_REQUESTS": True},
            "par",
            ERROR,
        ),
        (
            {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
            {},
            "client_authentication",
            ERROR,
        ),
        (
            {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
            {"TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_post"},
            "client_authentication",
            WARNING,
        ),
    ],
)
def test_what_the_op_cannot_do(
    op: OpenIDProvider,
    site: Configure,
    changes: dict[str, Any],
    options: dict[str, Any],
    code: str,
    level: str,
) -> None:
    """Each is found alone, and only where the settings ask for it."""
    site(**options)
    op.metadata |= changes
    the_one(f"doctor.{code}", level)


def test_tokens_that_the_op_cannot_revoke(
    op: OpenIDProvider, site: Configure, settings: Settings
) -> None:
    """It matters where tokens are kept."""
    op.metadata["revocation_endpoint"] = None
    assert found() == {}
    site(API_ORIGINS=["https://api.example"])
    settings.OIDC_RP |= {"TOKEN_KEYS": [generate_key()]}
    settings.SILENCED_SYSTEM_CHECKS += ["oidc_rp.W006"]
    the_one("doctor.revocation", WARNING)


def test_offline_access_that_the_op_does_not_know(
    op: OpenIDProvider, site: Configure, settings: Settings
) -> None:
    site(SCOPES=["openid", "offline_access"])
    settings.OIDC_RP |= {"TOKEN_KEYS": [generate_key()]}
    settings.SILENCED_SYSTEM_CHECKS += ["oidc_rp.W006"]
    op.metadata["scopes_supported"] = ["openid"]
    assert "access_type" in the_one("doctor.scopes", WARNING).mend
    assert "TIMEOUT 10 s" in in_order("doctor.times")


def test_whether_responses_name_their_issuer(op: OpenIDProvider) -> None:
    assert "has to name" in in_order("doctor.iss_parameter")
    op.metadata["authorization_response_iss_parameter_supported"] = False
    assert "do not name" in in_order("doctor.iss_parameter")


def test_a_logout_that_is_meant_to_end_here(op: OpenIDProvider, site: Configure) -> None:
    assert "goes on at the OP" in in_order("doctor.end_session")
    op.metadata["end_session_endpoint"] = None
    site(END_SESSION="local")
    assert found() == {}
    assert "ends here alone" in in_order("doctor.end_session")


def test_where_the_op_sends_its_logouts(op: OpenIDProvider) -> None:
    op.metadata["backchannel_logout_supported"] = True
    assert "/oidc/op/backchannel-logout/" in in_order("doctor.backchannel_logout")


# The site


def test_a_redirect_uri_behind_a_proxy_that_nobody_told_of(settings: Settings) -> None:
    """The URI as it is built, and both ways to mend it."""
    settings.SECURE_PROXY_SSL_HEADER = None
    finding = the_one("doctor.redirect_uri", WARNING)
    assert "http://rp.example/oidc/op/callback/" in finding.what
    assert PROXY_HEADER in finding.mend
    assert '"REDIRECT_URIS": ["https://rp.example/oidc/op/callback/"]' in finding.mend


def test_a_forwarded_host_is_the_one_that_is_built(settings: Settings) -> None:
    settings.USE_X_FORWARDED_HOST = True
    settings.ALLOWED_HOSTS = ["rp.example", ".example.net"]
    told = in_order("doctor.redirect_uri")
    assert "https://rp.example/oidc/op/callback/, https://example.net/oidc/op/callback/" in told


@pytest.mark.parametrize(
    "header", [("X-Forwarded-Proto", "https"), ("http_x_forwarded_proto", "https"), "HTTP_X", (1,)]
)
def test_a_proxy_header_that_no_request_has(settings: Settings, header: Any) -> None:
    """Written as the proxy writes it, or not as a pair."""
    settings.SECURE_PROXY_SSL_HEADER = header
    finding = found()["doctor.proxy_header"]
    assert (finding.level, finding.provider) == (ERROR, "")
    assert PROXY_HEADER in finding.mend


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("https://rp.example/oidc/other/callback/", "not the callback"),
        ("https://rp.example/nowhere/", "not the callback"),
        ("https://other.example/oidc/op/callback/", "ALLOWED_HOSTS"),
    ],
)
def test_a_written_redirect_uri(site: Configure, uri: str, told: str) -> None:
    """One that the browser cannot come back to."""
    site(REDIRECT_URIS=[uri])
    assert told in the_one("doctor.redirect_uri").what
    site(REDIRECT_URIS=["https://rp.example/oidc/op/callback/"])
    assert found() == {}


def test_a_cookie_that_no_browser_keeps(settings: Settings) -> None:
    """The check tells it; that others can read it is not so then."""
    settings.SESSION_COOKIE_NAME, settings.SESSION_COOKIE_SECURE = "__Secure-sid", False
    assert list(found()) == ["oidc_rp.E029"]


class ByLanguage:
    urlpatterns = i18n_patterns(path("oidc/", include("oidc_rp.urls")))


@pytest.fixture
def by_language(settings: Settings) -> None:
    settings.ROOT_URLCONF = ByLanguage
    settings.LANGUAGE_CODE, settings.LANGUAGES = "en", [("en", "English"), ("de", "German")]


@pytest.mark.usefixtures("by_language")
def test_a_redirect_uri_for_each_language(site: Configure, settings: Settings) -> None:
    """Each has to be registered, or one of them to be written."""
    of_each = [f"//rp.example/{code}/oidc/op/callback/" for code in ("en", "de")]
    finding = the_one("doctor.redirect_uri", WARNING)
    assert finding.what.endswith(f"the language: https:{of_each[0]}, https:{of_each[1]}")
    assert f'"REDIRECT_URIS": ["https:{of_each[0]}"]' in finding.mend
    for uri in of_each:
        site(REDIRECT_URIS=[f"https:{uri}"])
        assert found() == {}
    site(REDIRECT_URIS=["https://rp.example/fr/oidc/op/callback/"])
    assert "not the callback" in the_one("doctor.redirect_uri").what
    site()
    settings.SECURE_PROXY_SSL_HEADER = None
    assert f"http:{of_each[0]}, http:{of_each[1]}" in the_one("doctor.redirect_uri", WARNING).what
    settings.LANGUAGES = settings.LANGUAGES[:1]
    settings.SECURE_PROXY_SSL_HEADER = HTTPS["SECURE_PROXY_SSL_HEADER"]
    assert found() == {}


@pytest.mark.usefixtures("by_language")
def test_a_cookie_of_one_language(settings: Settings) -> None:
    """It does not come along in the others."""
    settings.SESSION_COOKIE_PATH = "/en/"
    finding = found()["doctor.cookie_path"]
    assert "leaves out /de/oidc/op/callback/, unless" in finding.what


def test_the_cookie(settings: Settings) -> None:
    """It has to come along to the callback."""
    settings.SESSION_COOKIE_SECURE = False
    the_one("doctor.cookie_secure", WARNING, "")
    settings.SESSION_COOKIE_SAMESITE = "None"
    the_one("doctor.cookie_samesite", ERROR, "")
    settings.SESSION_COOKIE_SECURE = True
    assert found() == {}
    settings.SESSION_COOKIE_PATH = "app"
    the_one("doctor.cookie_path")


@pytest.fixture
def script_prefix() -> Iterator[Callable[[str], None]]:
    """Set FORCE_SCRIPT_NAME's prefix, as django.setup() does it in a command."""
    yield set_script_prefix
    set_script_prefix("/")


def test_a_prefix_that_the_server_sends(site: Configure, settings: Settings) -> None:
    """No setting speaks of SCRIPT_NAME, and a site that works is no error; REDIRECT_URIS tells."""
    settings.SESSION_COOKIE_PATH = "/app"
    finding = the_one("doctor.cookie_path", WARNING)
    assert "leaves out /oidc/op/callback/, unless the server sends SCRIPT_NAME" in finding.what
    uri = "https://rp.example/app/oidc/op/callback/"
    site(REDIRECT_URIS=[uri])
    finding = the_one("doctor.redirect_uri", WARNING)
    assert f"{uri}, below /app," in finding.what
    assert 'FORCE_SCRIPT_NAME = "/app"' in finding.mend
    settings.SESSION_COOKIE_PATH = "/other"
    assert found()["doctor.cookie_path"].what.endswith("leaves out /app/oidc/op/callback/.")
    settings.SESSION_COOKIE_PATH = "/"
    site(REDIRECT_URIS=["https://rp.example/app/oidc/other/callback/"])
    assert "not the callback" in the_one("doctor.redirect_uri").what


def test_a_prefix_that_the_settings_force(
    site: Configure, settings: Settings, script_prefix: Callable[[str], None]
) -> None:
    """Then the server's counts for nothing, and there is no doubt."""
    settings.FORCE_SCRIPT_NAME = "/app"
    script_prefix("/app")
    settings.SESSION_COOKIE_PATH = "/app"
    assert found() == {}
    assert "https://rp.example/app/oidc/op/callback/" in in_order("doctor.redirect_uri")
    settings.SESSION_COOKIE_PATH = "/other"
    the_one("doctor.cookie_path")
    settings.SESSION_COOKIE_PATH = "/"
    site(REDIRECT_URIS=["https://rp.example/app/oidc/op/callback/"])
    assert "SCRIPT_NAME" not in in_order("doctor.redirect_uri")
    site(REDIRECT_URIS=["https://rp.example/twice/app/oidc/op/callback/"])
    assert "not the callback" in the_one("doctor.redirect_uri").what


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/", True),
        ("/oidc", True),
        ("/oidc/", True),
        ("/oidc/op/callback/", True),
        ("/oid", False),
        ("/o", False),
        ("/oidc/op/callback/more", False),
        ("", False),
        ("oidc", False),
        (None, False),
    ],
)
def test_the_path_of_the_cookie(
    configure: Configure, db: None, settings: Settings, path: Any, good: bool
) -> None:
    """A prefix counts only as whole parts of the path (RFC 6265 §5.1.4), and begins with a slash:
    otherwise the cookie is of the path that sets it, which is another than the callback's (§5.2.4).
    """
    settings.SESSION_COOKIE_PATH = path
    assert ("doctor.cookie_path" not in found()) is good


@pytest.mark.parametrize(
    ("domain", "host", "good"),
    [
        (None, "rp.example", True),
        ("rp.example", "rp.example", True),
        (".RP.example", "www.rp.example", True),
        ("rp.example", "xrp.example", False),
        ("other.example", "rp.example", False),
        (".example", "rp.example", False),
        ("localhost", "localhost", True),
        ("0.0.1", "127.0.0.1", False),
    ],
)
def test_the_domain_of_the_cookie(
    configure: Configure, db: None, settings: Settings, domain: str, host: str, good: bool
) -> None:
    """Of the host that the browser comes back to, or of one above it (RFC 6265 §5.1.3)."""
    settings.SESSION_COOKIE_DOMAIN, settings.ALLOWED_HOSTS = domain, [host]
    assert ("doctor.cookie_domain" not in found()) is good
    configure(REDIRECT_URIS=[f"https://{host}/oidc/op/callback/"])
    assert ("doctor.cookie_domain" not in found()) is good


@pytest.mark.parametrize(
    ("domain", "hosts", "level"),
    [
        ("rp.example", ["rp.example", "127.0.0.1", "localhost"], WARNING),
        ("other.example", ["rp.example", "127.0.0.1"], ERROR),
        ("www.rp.example", [".rp.example"], OK),
        ("www.xrp.example", [".rp.example"], ERROR),
        ("rp.example", ["*"], OK),
        ("rp.example", [*(f"www{number}.rp.example" for number in range(30)), "a.test"], WARNING),
    ],
)
def test_a_cookie_of_some_of_the_hosts(
    settings: Settings, domain: str, hosts: list[str], level: str
) -> None:
    """A host that nobody signs in at, such as a health check's, makes no error of it."""
    settings.SESSION_COOKIE_DOMAIN, settings.ALLOWED_HOSTS = domain, hosts
    finding = found().get("doctor.cookie_domain")
    assert (finding.level if finding else OK) == level


def test_a_cookie_of_the_one_redirect_uri_that_is_sent(site: Configure, settings: Settings) -> None:
    """The others, and the other hosts of the site, make nothing better or worse."""
    settings.ALLOWED_HOSTS = ["rp.example", "other.example"]
    uris = [f"https://{host}/oidc/op/callback/" for host in settings.ALLOWED_HOSTS]
    settings.SESSION_COOKIE_DOMAIN = "rp.example"
    site(REDIRECT_URIS=uris)
    assert found() == {}
    site(REDIRECT_URIS=uris[::-1])
    assert "'rp.example' leaves out other.example." in the_one("doctor.cookie_domain").what


def test_the_production_cookie_at_runserver(settings: Settings) -> None:
    """Where ALLOWED_HOSTS is empty, Django serves this machine."""
    settings.DEBUG, settings.ALLOWED_HOSTS = True, []
    address = "http://127.0.0.1:8000/oidc/op/callback/"
    assert the_one("doctor.cookie_secure", WARNING).what.endswith(f"comes back to {address}")
    assert in_order("doctor.redirect_uri").endswith(f"such as {address}")
    settings.SESSION_COOKIE_SECURE = False
    settings.SESSION_COOKIE_DOMAIN = "rp.example"
    assert "leaves out localhost, 127.0.0.1, ::1." in the_one("doctor.cookie_domain").what
    settings.SESSION_COOKIE_DOMAIN = "app.localhost"
    the_one("doctor.cookie_domain", WARNING)


def test_a_secure_cookie_over_http(site: Configure, settings: Settings) -> None:
    """Browsers differ about it on this machine, and never keep it elsewhere (RFC 6265 §5.4)."""
    settings.ALLOWED_HOSTS = ["localhost"]
    site(REDIRECT_URIS=["http://localhost:8000/oidc/op/callback/"])
    assert "http://localhost:8000/" in the_one("doctor.cookie_secure", WARNING).what
    settings.SECURE_PROXY_SSL_HEADER = None
    site()
    assert "http://localhost/" in the_one("doctor.cookie_secure", WARNING).what
    settings.ALLOWED_HOSTS = ["rp.example", "localhost"]
    assert "SESSION_COOKIE_SECURE" in the_one("doctor.redirect_uri", WARNING).why


def test_more_hosts_than_are_told(settings: Settings) -> None:
    """All of them are looked at, and whatever is found says how many more it concerns."""
    settings.ALLOWED_HOSTS = [f"rp{number}.example" for number in range(13)]
    assert in_order("doctor.redirect_uri").endswith("//rp9.example/oidc/op/callback/ and 3 more")
    settings.SESSION_COOKIE_DOMAIN = "rp12.example"
    assert "rp9.example and 2 more." in the_one("doctor.cookie_domain", WARNING).what
    settings.SESSION_COOKIE_DOMAIN, settings.SECURE_PROXY_SSL_HEADER = None, None
    assert the_one("doctor.redirect_uri", WARNING).what.endswith("/ and 3 more")


def test_algorithms_that_the_op_does_not_name(op: OpenIDProvider, site: Configure) -> None:
    """Of UserInfo, and of the assertion that authenticates the client."""
    op.keys = [*op.keys, SigningKey.generate("ES256")]
    op.metadata["userinfo_signing_alg_values_supported"] = ["RS256"]
    site(USERINFO_SIGNED_RESPONSE_ALG="ES256")
    assert "USERINFO_SIGNED_RESPONSE_ALG" in the_one("doctor.signing_alg", WARNING).what
    site(USERINFO_SIGNED_RESPONSE_ALG="RS256")
    assert found() == {}
    op.metadata["token_endpoint_auth_signing_alg_values_supported"] = ["HS512"]
    op.metadata["token_endpoint_auth_methods_supported"] = ["client_secret_jwt"]
    method = {"TOKEN_ENDPOINT_AUTH_METHOD": "client_secret_jwt"}
    site(**method, TOKEN_ENDPOINT_AUTH_SIGNING_ALG="HS256")
    assert "TOKEN_ENDPOINT_AUTH_SIGNING_ALG" in the_one("doctor.signing_alg", WARNING).what
    site(**method, TOKEN_ENDPOINT_AUTH_SIGNING_ALG="HS512")
    assert found() == {}
    site(USERINFO_SIGNED_RESPONSE_ALG="ES256", USERINFO=False, **method)
    assert list(found()) == ["doctor.signing_alg"]


@pytest.mark.parametrize(
    ("method", "alg"), [("client_secret_jwt", "HS256"), ("private_key_jwt", "RS256")]
)
def test_the_algorithm_of_an_assertion_where_none_is_set(
    op: OpenIDProvider, site: Configure, method: str, alg: str
) -> None:
    """It is looked at as well, and only where the OP names algorithms."""
    op.metadata["token_endpoint_auth_methods_supported"] = [method]
    key = SigningKey.generate("RS256").private_jwk
    site(TOKEN_ENDPOINT_AUTH_METHOD=method, PRIVATE_KEY=key)
    for published in ([alg], ["ES256", alg], None):
        op.metadata["token_endpoint_auth_signing_alg_values_supported"] = published
        assert found() == {}
    op.metadata["token_endpoint_auth_signing_alg_values_supported"] = ["ES256"]
    what = the_one("doctor.signing_alg", WARNING).what
    assert what == f"TOKEN_ENDPOINT_AUTH_SIGNING_ALG is {alg}, and the OP names ES256."


def test_no_url_is_told_with_its_password(op: OpenIDProvider, site: Configure) -> None:
    """Neither what stands before its host nor its query."""
    op.metadata["revocation_endpoint"] = f"{op.origin}/revocation?key=s3cret"
    op.metadata["jwks_uri"] = f"{op.origin}/nowhere?key=s3cret"
    site(REDIRECT_URIS=["https://rp.example/oidc/op/callback/?key=s3cret"], API_ORIGINS=[op.origin])
    assert "/nowhere?***" in found()["doctor.jwks"].what
    assert "s3cret" not in run(code=1)
    assert "s3cret" not in run("--json", code=1)


def test_no_url_of_a_good_op_is_told_with_its_query(op: OpenIDProvider) -> None:
    op.metadata["jwks_uri"] += "?key=s3cret"
    assert found() == {}
    assert "/jwks?*** can be used" in in_order("doctor.jwks")


@pytest.mark.parametrize("member", ["issuer", "token_endpoint", "jwks_uri", "revocation_endpoint"])
@pytest.mark.parametrize(
    "url", ["https://rp:s3cret@op.example/{}", "http://op.example/?key=s3cret", ["//a?s3cret"]]
)
def test_no_url_that_is_refused_is_told_with_its_password(
    op: OpenIDProvider, member: str, url: Any
) -> None:
    op.metadata[member] = url.format("x" * 200) if isinstance(url, str) else url
    assert the_one(f"doctor.{'issuer' if member == 'issuer' else 'metadata'}")
    assert "s3cret" not in run(code=1) + run("--json", code=1)


def test_an_issuer_has_no_query(op: OpenIDProvider) -> None:
    """The settings would refuse it as well (Discovery §3)."""
    op.metadata["issuer"] += "?key=s3cret"
    finding = the_one("doctor.issuer")
    assert f"no https URL: '{op.issuer}?***'" in finding.what
    assert "operator" in finding.mend


def test_no_host_is_told_with_its_password(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["rp.example", "https://rp:s3cret@rp.example/?key=s3cret"]
    assert "'https://***@rp.example/?***'" in the_one("doctor.allowed_hosts", ERROR, "").what


def test_a_strict_cookie_is_made_up_for(configure: Configure, db: None, settings: Settings) -> None:
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    assert "once more" in in_order("doctor.cookie_samesite")


def test_a_form_post_without_a_cookie(op: OpenIDProvider, site: Configure) -> None:
    """A page in between makes up for it."""
    site(RESPONSE_MODE="form_post")
    op.metadata["response_modes_supported"] = ["query", "form_post"]
    assert found() == {}
    assert "small page" in in_order("doctor.form_post")


def test_hosts(settings: Settings) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    the_one("doctor.allowed_hosts", WARNING, "")
    settings.ALLOWED_HOSTS = ["https://rp.example"]
    the_one("doctor.allowed_hosts", ERROR, "")
    settings.ALLOWED_HOSTS = ["rp.example", "rp.example:443"]
    the_one("doctor.allowed_hosts", ERROR, "")
    settings.ALLOWED_HOSTS = []
    the_one("doctor.allowed_hosts", ERROR, "")
    settings.DEBUG = True
    settings.SECURE_PROXY_SSL_HEADER = None
    settings.SESSION_COOKIE_SECURE = False
    assert found() == {}
    assert "http://127.0.0.1:8000/oidc/op/callback/" in in_order("doctor.redirect_uri")


@pytest.mark.parametrize("engine", ["cache", "cached_db"])
def test_sessions_in_a_cache_of_one_process(settings: Settings, engine: str) -> None:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    assert "DatabaseCache" in in_order("doctor.sessions")
    settings.SESSION_CACHE_ALIAS = "here"
    local = {"here": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.CACHES = settings.CACHES | local
    assert "LocMemCache" in the_one("doctor.sessions", ERROR, "").what
    settings.DEBUG = True
    assert found() == {}


# What the checks say, and what they cannot


def test_the_checks_are_told(site: Configure, settings: Settings) -> None:
    """By their ids, each with its provider; the cache matters where there are several processes."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    site(SCOPES=["openid", "offline_access"], DANGEROUSLY_LINK_BY_EMAIL=str)
    told = {(code, one.level, one.provider) for code, one in found().items()}
    assert told == {
        ("oidc_rp.E022", ERROR, ""),
        ("oidc_rp.W005", WARNING, ""),
        ("oidc_rp.E019", ERROR, "op"),
        ("oidc_rp.W004", WARNING, "op"),
    }
    settings.DEBUG = True
    assert "oidc_rp.W005" not in found()


def test_a_provider_that_cannot_be_used(op: OpenIDProvider, site: Configure) -> None:
    """The check tells why, and its OP is not asked."""
    site(CLIENT_SECERT="x")
    assert list(found()) == ["oidc_rp.E003"]
    assert op.requests == []


def test_an_option_at_the_top_that_nobody_knows(
    op: OpenIDProvider, site: Configure, settings: Settings
) -> None:
    """Sign-ins refuse each provider, so that none of them is in order."""
    site()
    settings.OIDC_RP |= {"EMAIL_DOMAIN": ["example.com"]}
    assert list(found()) == ["oidc_rp.E003", "doctor.provider"]
    assert "'EMAIL_DOMAIN'" in found()["doctor.provider"].what
    assert op.requests == []


@pytest.mark.parametrize("silenced", [[], ["oidc_rp.E003"]])
def test_what_is_told_is_not_logged_as_well(
    site: Configure, settings: Settings, caplog: pytest.LogCaptureFixture, silenced: list[str]
) -> None:
    """On a terminal a line of the log would fall into the report."""
    settings.SILENCED_SYSTEM_CHECKS += silenced
    site(CLIENT_SECERT="x")
    assert "'CLIENT_SECERT'" in run(code=1)
    assert caplog.messages == []


def none_at_all() -> Any:
    raise LookupError("s3cret")


MISTAKEN = {
    "SESSION_RENEWAL": 600,
    "DANGEROUSLY_LINK_BY_EMAIL": str,
    "CLAIMS": {"no_such_field": "x"},
    "API_ORIGINS": ["https://api.example"],
}


WAYS = {
    "written": lambda providers: providers,
    "a callable": lambda providers: lambda: providers,
    "one for each": lambda providers: {slug: partial(dict, providers[slug]) for slug in providers},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("at_the_top", "of_tokens"),
    [({}, "E019"), ({"TOKEN_KEYS": [generate_key()], "REFRESH_WAIT": 9}, "E021")],
)
def test_whatever_they_come_from_providers_are_judged_alike(
    settings: Settings, op: OpenIDProvider, way: str, at_the_top: dict[str, Any], of_tokens: str
) -> None:
    """No check calls a callable; here it is called, and all is told once."""
    settings.SILENCED_SYSTEM_CHECKS = ["oidc_rp.W006"]
    options = testing.provider_options(op) | MISTAKEN
    providers = {"op": options, "twin": options, "bad": {"CLIENT_ID": "x"}}
    settings.OIDC_RP = {"PROVIDERS": WAYS[way](providers)} | at_the_top
    told = [
        (one.code.removeprefix("oidc_rp."), one.level, one.provider)
        for one in doctor.examine()
        if one.level != OK
    ]
    of_each = [("W002", WARNING), ("W004", WARNING), ("E018", ERROR), (of_tokens, ERROR)]
    assert sorted(told) == sorted(
        [
            *((*code, slug) for code in of_each for slug in ("op", "twin")),
            ("E007", ERROR, ""),
            ("E022", ERROR, ""),
            ("E002", ERROR, "bad"),
        ]
    )
    assert doctor.slugs() == ["op", "twin", "bad"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (none_at_all, "its callable raises LookupError."),
        (list, "its callable returns a list, which is no dict."),
        (5, "neither a dict nor a callable"),
        ("no.such.callable", "neither a dict nor a callable"),
        ("broken_tenants.providers", "neither a dict nor a callable that can be imported"),
    ],
)
def test_options_that_cannot_be_had(
    settings: Settings,
    op: OpenIDProvider,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Any,
    told: str,
) -> None:
    """What is wrong is told without what may be a secret; nothing is logged, and all goes on."""
    (tmp_path / "broken_tenants.py").write_text("raise LookupError('s3cret')")
    monkeypatch.syspath_prepend(tmp_path)
    providers = {"bad": options, "op": testing.provider_options(op)}
    settings.OIDC_RP = {"PROVIDERS": lambda: providers}
    assert told in the_one("doctor.provider", provider="bad").what
    assert op.calls("discovery") == 1
    settings.OIDC_RP = {"PROVIDERS": providers}
    (finding,) = found().values()
    assert (finding.level, finding.provider) == (ERROR, "bad")
    settings.OIDC_RP = {"PROVIDERS": lambda: options() if callable(options) else options}
    assert "OIDC_RP['PROVIDERS'] cannot be read" in the_one("doctor.providers", ERROR, "").what
    assert "doctor.providers" in run("op", code=1)
    settings.OIDC_RP = {"PROVIDERS": options}
    (finding,) = found().values()
    assert (finding.level, finding.provider) == (ERROR, "")
    assert "s3cret" not in run(code=1)
    assert caplog.messages == []


@pytest.mark.parametrize("slug", [7, "a b", "login"])
def test_a_slug_that_is_none_is_told_once(
    settings: Settings, op: OpenIDProvider, slug: Any
) -> None:
    for providers in (given := {slug: testing.provider_options(op)}, lambda: given):
        settings.OIDC_RP = {"PROVIDERS": providers}
        assert [one.code for one in doctor.examine() if one.level != OK] == ["oidc_rp.E008"]


def test_no_provider_at_all(settings: Settings) -> None:
    """A callable's dict may be empty, as a written one may be; what is no dict has its check."""
    for none in (dict, {}):
        settings.OIDC_RP = {"PROVIDERS": none}
        assert "is empty" in the_one("doctor.providers", ERROR, "").what
    settings.OIDC_RP = {}
    assert list(found()) == ["oidc_rp.E001"]


@pytest.mark.parametrize(
    ("engine", "alias", "code"), [("databse", "default", "E025"), ("cache", "nope", "E026")]
)
def test_sessions_that_nobody_can_have(
    settings: Settings, engine: str, alias: str, code: str
) -> None:
    """The check tells it, and nothing calls them in order."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_CACHE_ALIAS = alias
    assert list(found()) == [f"oidc_rp.{code}"]
    assert "doctor.sessions" not in {finding.code for finding in doctor.examine()}


def test_urls_that_are_not_included(settings: Settings) -> None:
    """E017 says so, and the rest goes on."""
    settings.ROOT_URLCONF = NoURLs
    assert list(found()) == ["oidc_rp.E017"]


class NoURLs:
    urlpatterns: list[Any] = []


def test_stored_tokens_whose_key_is_gone(settings: Settings) -> None:
    """E020 names it; with the key in place all is well."""
    key = generate_key()
    assert "Every stored token" in in_order("doctor.stored_keys")
    add_grant("one", KeyRing([key]))
    assert list(found()) == ["oidc_rp.E020"]
    settings.SILENCED_SYSTEM_CHECKS += ["oidc_rp.W006"]
    settings.OIDC_RP |= {"TOKEN_KEYS": [key]}
    assert "Every stored token" in in_order("doctor.stored_keys")


# The command


def test_what_is_printed(op: OpenIDProvider) -> None:
    """By provider: a word, what, why and how to mend it; the sum in the last line."""
    op.metadata["issuer"] += "/"
    lines = run(code=1).splitlines()
    assert lines[0] == "The site"
    assert "op" in lines
    place = next(n for n, line in enumerate(lines) if line.startswith("  ERROR"))
    assert lines[place].endswith("[doctor.issuer]")
    assert lines[place + 1].startswith("           Why: Issuers are compared byte for byte")
    assert lines[place + 2] == f'           Mend: Write "ISSUER": "{op.issuer}/",'
    assert lines[-1].startswith("Errors: 1, warnings: 0, in order: ")


def test_the_exit_code_is_0_where_nothing_is_wrong(op: OpenIDProvider) -> None:
    """A warning is no error."""
    assert "Errors: 0, warnings: 0" in run()
    op.metadata["end_session_endpoint"] = None
    assert "Errors: 0, warnings: 1" in run("op")


def test_json_is_one_object(op: OpenIDProvider) -> None:
    op.metadata["issuer"] += "/"
    told = json.loads(run("--json", code=1))
    assert (told["errors"], told["warnings"]) == (1, 0)
    finding = next(one for one in told["findings"] if one["level"] == "error")
    assert finding.keys() == {"code", "level", "provider", "what", "why", "mend"}
    assert (finding["code"], finding["provider"]) == ("doctor.issuer", "op")


def test_one_provider_of_several(op: OpenIDProvider, settings: Settings) -> None:
    """The others are not asked; an unknown one is told with those that there are."""
    with OpenIDProvider(keys=op.keys) as other:
        providers = settings.OIDC_RP["PROVIDERS"] | {"two": testing.provider_options(other)}
        settings.OIDC_RP = {"PROVIDERS": providers}
        assert "\ntwo\n" in run("two")
        assert op.requests == []
        assert "\nop\n" in run()
        with pytest.raises(CommandError, match=r"no provider 'three'; there are: op, two\."):
            run("three")


def test_no_secret_is_told(op: OpenIDProvider, site: Configure) -> None:
    """Neither on a good site nor on a bad one."""
    printed = run() + run("--json")
    site(SCOPES="openid")
    printed += run(code=1)
    assert op.client_secret not in printed


@pytest.mark.parametrize(
    "databases",
    [
        "{'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': '/no/such/place/db'}}",
        "{}",
    ],
)
def test_it_works_without_a_database(op: OpenIDProvider, tmp_path: Path, databases: str) -> None:
    """What needs one is said not to have been looked at; the command ends by itself."""
    options = {"PROVIDERS": {"op": testing.provider_options(op)}}
    text = f"from tests.settings import *\nDATABASES = {databases}\nOIDC_RP = {options!r}\n"
    (tmp_path / "site_settings.py").write_text(text)
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "DJANGO_SETTINGS_MODULE": "site_settings",
    }
    command = [sys.executable, "-W", "error", "-m", "django", "oidc_doctor", "--json"]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=60
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    told = {one["code"]: one for one in json.loads(ran.stdout)["findings"]}
    assert told["doctor.stored_keys"]["level"] == "warning"
    assert told["doctor.issuer"]["level"] == "ok"


def test_each_code_is_in_the_docs() -> None:
    """Each code of the doctor has its row, and no row has a code that is not there."""
    source = "".join(path.read_text() for path in (ROOT / "oidc_rp/doctor").glob("*.py"))
    codes = set(re.findall(r'\b(?:fine|doubtful|wrong)\(\s*"([a-z_]+)"', source))
    codes |= set(re.findall(r'_not_fetched\("([a-z_]+)"', source))
    table = (ROOT / "docs/doctor.md").read_text().partition("## What it looks at")[2]
    assert codes == set(re.findall(r"`doctor\.([a-z_]+)`", table))
