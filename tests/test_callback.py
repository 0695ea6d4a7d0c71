"""The callback: which response is believed, and in which order it is judged."""

import json
import logging
import re
from traceback import walk_tb
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.db import SessionStore
from django.db import OperationalError
from django.test import RequestFactory
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp import sessions
from oidc_rp import testing as provider
from oidc_rp.backends import OIDCBackend
from oidc_rp.sessions import PENDING
from oidc_rp.signals import login_failed
from oidc_rp.testing import REMOVE, OpenIDProvider, SigningKey
from oidc_rp.testing.browser import Browser, Callback, Response
from tests.conftest import Configure
from tests.in_threads import assert_passes


def code_of(response: Response) -> str:
    """Return the code of a refusal, which is always a page with a 4xx status."""
    assert 400 <= response.status_code < 500, response.status_code
    assert "oidc_rp/refusal.html" in [template.name for template in response.templates]
    assert "_auth_user_id" not in response.wsgi_request.session
    return str(response.context["code"])


@pytest.fixture
def callback(browser: Browser) -> Callback:
    """How the OP sends the browser back from a login that is under way."""
    return browser.visit_op(browser.start("op", next="/private/"))


def test_a_callback_signs_in(browser: Browser, callback: Callback) -> None:
    response = browser.come_back(callback)
    assert (response.status_code, response.headers["Location"]) == (302, "/private/")
    assert "_auth_user_id" in browser.client.session


BITES: list[tuple[str, dict[str, Any], str]] = [
    ("M1", {"access_token": "at"}, "response.token"),
    ("M1", {"id_token": "a.b.c"}, "response.token"),
    ("M1", {"refresh_token": ""}, "response.token"),
    ("M4", {"state": REMOVE}, "state.missing"),
    ("M4", {"state": ""}, "state.missing"),
    ("M4", {"state": "never-seen"}, "state.unknown"),
    ("M4", {"state": "\x00"}, "state.unknown"),
    ("M7", {"iss": "https://other.example"}, "response.iss"),
    ("M7", {"iss": ""}, "response.iss"),
    ("M7", {"iss": REMOVE}, "response.iss_missing"),
    ("M9", {"iss": ["a", "b"]}, "response.repeated"),
    ("M9", {"code": ["a", "b"]}, "response.repeated"),
    ("M9", {"error": ["a", "b"]}, "response.repeated"),
    ("M9", {"state": ["a", "b"]}, "response.repeated"),
    ("M10", {"error": "access_denied", "iss": "https://other.example"}, "response.iss"),
    ("M10", {"error": "access_denied", "iss": REMOVE}, "response.iss_missing"),
    ("M10", {"error": "access_denied", "state": "never-seen"}, "state.unknown"),
    ("M10", {"error": "access_denied", "state": REMOVE}, "state.missing"),
    ("M10", {"error": "access_denied"}, "authorization.access_denied"),
    ("M10", {"error": "access_denied", "code": REMOVE}, "authorization.access_denied"),
    ("M10", {"error": "login_required"}, "authorization.login_required"),
    ("M10", {"error": "own_error"}, "authorization.error"),
    ("M10", {"error": ""}, "authorization.error"),
    ("M10", {"error": "<script>\n"}, "authorization.error"),
    ("M16", {"code": REMOVE}, "response.code"),
    ("M16", {"code": ""}, "response.code"),
    ("M16", {"code": "a\nb"}, "response.code"),
    ("M16", {"code": "x" * 5000}, "response.code"),
    ("M16", {"code": "somebody-elses"}, "token.invalid_grant"),
]


@pytest.mark.parametrize(("statement", "changes", "code"), BITES)
def test_M1_M4_M7_M9_M10_M16_a_response_with_a_bite_taken_out(
    op: OpenIDProvider,
    browser: Browser,
    callback: Callback,
    statement: str,
    changes: dict[str, Any],
    code: str,
) -> None:
    """Each is refused with its own code, and before the OP is asked, unless only it can tell."""
    assert code_of(browser.come_back(callback.bent(**changes))) == code
    assert op.calls("token") == (code == "token.invalid_grant")
    assert get_user_model().objects.count() == 0


@pytest.mark.parametrize("name", ["state", "code", "iss", "error"])
def test_M9_a_repeated_parameter_is_refused_even_with_one_value(
    browser: Browser, callback: Callback, name: str
) -> None:
    value = dict(callback.params).get(name, "access_denied")
    bent = callback.bent(**{name: [value, value]})
    assert code_of(browser.come_back(bent)) == "response.repeated"


def test_M3_an_attempt_is_consumed_before_any_check(
    op: OpenIDProvider, browser: Browser, callback: Callback
) -> None:
    """A response that was refused spoils its state: the good one that follows is too late."""
    assert code_of(browser.come_back(callback.bent(iss="https://other.example"))) == "response.iss"
    assert code_of(browser.come_back(callback)) == "state.unknown"
    assert op.calls("token") == 0


def test_M3_an_attempt_is_consumed_before_any_network_call(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """While the token endpoint is being asked, the state is gone from the stored session."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    callback, seen = browser.visit_op(browser.start("op")), []

    def look(handler: provider.Handler) -> None:
        seen.append(browser.client.session.get(PENDING))
        handler.send(handler.genuine())

    op.answer["token"] = look
    assert browser.come_back(callback).status_code == 302
    assert seen == [{}]


def test_M3_single_use(op: OpenIDProvider, browser: Browser, callback: Callback) -> None:
    """A replayed callback asks the OP nothing."""
    browser.come_back(callback)
    assert code_of_replay(browser.come_back(callback)) == "state.unknown"
    assert op.calls("token") == 1


def code_of_replay(response: Response) -> str:
    """Whoever is signed in stays so; the page is a refusal all the same."""
    assert response.status_code == 400
    return str(response.context["code"])


def test_M4_missing_cookie_and_both_missing(browser: Browser, callback: Callback) -> None:
    """A browser without the cookie of this site is told so; without a state it is refused."""
    stranger = Browser()
    assert code_of(stranger.come_back(callback)) == "state.no_cookie"
    assert code_of(stranger.come_back(callback.bent(state=REMOVE))) == "state.missing"


def test_M5_state_is_useless_without_the_cookie_of_the_browser_that_started(
    op: OpenIDProvider, browser: Browser, callback: Callback
) -> None:
    """Another browser, with a session and a pending login of its own, cannot use it."""
    other = Browser()
    other.start("op")
    assert code_of(other.come_back(callback)) == "state.unknown"
    assert op.calls("token") == 0
    assert browser.come_back(callback).status_code == 302


def two_providers(op: OpenIDProvider, settings: Settings, **changes: Any) -> None:
    one = django_settings.OIDC_RP["PROVIDERS"]["op"]
    settings.OIDC_RP = {"PROVIDERS": {"op": one, "other": one | {"CLIENT_ID": "other"} | changes}}


def test_M6_M8_a_callback_on_another_providers_path_fails(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Path, record and provider must agree; the state is spent by the attempt."""
    two_providers(op, settings)
    callback = browser.visit_op(browser.start("op"))
    elsewhere = Callback(callback.url.replace("/op/", "/other/"))
    assert code_of(browser.come_back(elsewhere)) == "state.provider"
    assert code_of(browser.come_back(callback)) == "state.unknown"
    assert op.calls("token") == 0


def test_M6_two_slugs_with_the_same_options_are_two_providers(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Where issuer, client and redirect_uri agree, the slug alone tells whose login it was."""
    one = django_settings.OIDC_RP["PROVIDERS"]["op"]
    one = one | {"REDIRECT_URIS": ["https://testserver/oidc/op/callback/"]}
    settings.OIDC_RP = {"PROVIDERS": {"op": one, "other": one}}
    assert browser.sign_in("op").status_code == 302
    browser = Browser()
    op.forget_requests()
    callback = browser.visit_op(browser.start("op"))
    elsewhere = Callback(callback.url.replace("/op/", "/other/"))
    assert code_of(browser.come_back(elsewhere)) == "state.provider"
    assert op.calls("token") == 0


@pytest.mark.parametrize(
    "options",
    [
        {"ISSUER": "https://new.example"},
        {"CLIENT_ID": "new-client"},
        {"REDIRECT_URIS": ["https://testserver/oidc/op/callback/"]},
    ],
)
def test_M6_the_attempt_is_bound_to_issuer_client_id_and_redirect_uri(
    op: OpenIDProvider,
    browser: Browser,
    callback: Callback,
    configure: Configure,
    options: dict[str, Any],
) -> None:
    """Settings that changed while somebody was at the OP do not get that somebody's code."""
    op.forget_requests()
    configure(**options)
    assert code_of(browser.come_back(callback)) == "state.provider"
    assert op.requests == []


def test_M6_the_attempt_is_bound_to_the_host_it_started_on(
    browser: Browser, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["testserver", "second.example"]
    callback = browser.visit_op(browser.start("op"))
    elsewhere = Callback(callback.url.replace("//testserver", "//second.example"))
    assert code_of(browser.come_back(elsewhere)) == "state.provider"


@pytest.mark.parametrize("iss", [REMOVE, "right"])
def test_M7_iss_is_optional_where_metadata_does_not_announce_it(
    op: OpenIDProvider, browser: Browser, iss: object
) -> None:
    """Then it may be missing; but whatever comes must be right."""
    op.metadata["authorization_response_iss_parameter_supported"] = False
    op.authorization_params["iss"] = op.issuer if iss == "right" else iss
    assert browser.sign_in("op").status_code == 302
    op.authorization_params["iss"] = op.issuer + "/"
    assert code_of_replay(browser.sign_in("op")) == "response.iss"


@pytest.mark.parametrize(("tenant", "code"), [("A", "response.iss"), ("B", None)])
def test_M7_the_response_of_one_tenant_does_not_bring_anothers_id_token(
    op: OpenIDProvider, browser: Browser, configure: Configure, tenant: str, code: str | None
) -> None:
    """Both tenants may sign in; but `iss` of the response is that of the ID Token (RFC 9207)."""
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    metadata = {name: op.metadata[name] for name in names}
    metadata["authorization_response_iss_parameter_supported"] = True
    configure(ISSUER=op.issuer + "/{tenantid}", TENANTS=["A", "B"], METADATA=metadata)
    op.id_token_claims |= {"iss": op.issuer + "/B", "tid": "B"}
    callback = browser.visit_op(browser.start("op")).bent(iss=f"{op.issuer}/{tenant}")
    response = browser.come_back(callback)
    assert (code_of(response) if code else response.status_code) == (code or 302)


def test_another_scope_than_asked_for_is_told_and_kept(
    op: OpenIDProvider, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """The OP may grant less or more (RFC 6749 §3.3); what it granted is what counts."""
    caplog.set_level(logging.INFO, "oidc_rp")
    op.token_response["scope"] = "openid email calendar"
    response = browser.sign_in("op")
    login = sessions.current_login(response.wsgi_request)
    assert login is not None
    assert login.scope == "openid email calendar"
    told = [vars(record) for record in caplog.records]
    told = [extra for extra in told if extra.get("code") == "token.scope_changed"]
    assert [(extra["name"], extra["levelname"]) for extra in told] == [("oidc_rp", "INFO")]
    assert told[0]["expected"] == "openid profile email"
    assert told[0]["received"] == "openid email calendar"


def test_the_scope_that_was_asked_for_is_nothing_to_tell(
    op: OpenIDProvider, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """In another order, or left out, it is the same."""
    caplog.set_level(logging.INFO, "oidc_rp")
    for scope in ("email openid profile", REMOVE):
        op.token_response["scope"] = scope
        assert browser.sign_in("op").status_code == 302
    assert "token.scope_changed" not in [vars(record).get("code") for record in caplog.records]


def test_M10_the_description_is_escaped_and_limited(browser: Browser, callback: Callback) -> None:
    """What the OP, or whoever made the link, says is shown as text and cut short."""
    description = "<script>alert(1)</script>\x1b[31m" + "x" * 5000
    response = browser.come_back(
        callback.bent(error="access_denied", error_description=description, error_uri="javascript:")
    )
    page = response.content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert "\x1b" not in page
    assert "x" * 200 not in page
    assert "javascript:" not in page


def test_M14_two_tabs_logging_in_at_once_both_succeed(browser: Browser) -> None:
    """Each tab ends where it wanted to go, in either order."""
    for order in (1, -1):
        tabs = [browser.visit_op(browser.start("op", next=f"/home/?{tab}")) for tab in (1, 2)]
        ends = [browser.come_back(tab).headers["Location"] for tab in tabs[::order]]
        assert ends == ["/home/?1", "/home/?2"][::order]


def test_M16_the_record_decides_which_checks_apply(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """A response that comes another way than asked, or settings that ask less, help nobody."""
    callback = browser.visit_op(browser.start("op"))
    posted = Callback(callback.url.partition("?")[0], callback.params)
    assert code_of(browser.come_back(posted, cross_site=False)) == "response.mode"
    configure(DEFAULT_MAX_AGE=60)
    op.id_token_claims["auth_time"] = REMOVE
    callback = browser.visit_op(browser.start("op"))
    configure()
    assert code_of(browser.come_back(callback)) == "id_token.auth_time"


def test_max_age_0_survives_the_session(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """Zero is asked for and enforced like any other number."""
    configure(DEFAULT_MAX_AGE=0, LEEWAY=0)
    op.id_token_claims["auth_time"] = 1_000_000_000
    callback = browser.visit_op(browser.start("op"))
    assert code_of(browser.come_back(callback)) == "id_token.auth_time"


def test_M38_inactive_users_are_refused_at_login(browser: Browser) -> None:
    """The OP still vouches for somebody whom this site has locked out."""
    browser.sign_in("op")
    browser.client.post("/oidc/logout/")
    get_user_model().objects.update(is_active=False)
    response = browser.sign_in("op")
    assert response.status_code == 403
    assert code_of(response) == "account.inactive"


def test_M38_an_inactive_user_does_not_stay_signed_in_with_what_was_open(browser: Browser) -> None:
    browser.sign_in("op")
    get_user_model().objects.update(is_active=False)
    assert browser.client.get("/private/").status_code == 302
    assert code_of_replay_403(browser.sign_in("op")) == "account.inactive"
    assert browser.client.get("/private/").status_code == 302


def code_of_replay_403(response: Response) -> str:
    assert response.status_code == 403
    return str(response.context["code"])


@pytest.mark.parametrize(
    ("bend", "code", "endpoints"),
    [
        ({"token_response": {"access_token": REMOVE}}, "token.access_token", ["token"]),
        ({"token_response": {"token_type": "DPoP"}}, "token.token_type", ["token"]),
        ({"token_response": {"id_token": REMOVE}}, "token.id_token", ["token"]),
        ({"token_response": {"id_token": "x"}}, "id_token.format", ["token"]),
        ({"id_token_claims": {"aud": "other"}}, "id_token.aud", ["token"]),
        ({"id_token_claims": {"nonce": REMOVE}}, "id_token.nonce", ["token"]),
        ({"id_token_claims": {"at_hash": "x"}}, "id_token.at_hash", ["token"]),
        ({"userinfo_claims": {"sub": "somebody else"}}, "userinfo.sub", ["token", "userinfo"]),
        ({"userinfo_claims": {"sub": REMOVE}}, "userinfo.sub", ["token", "userinfo"]),
    ],
)
def test_M41a_after_a_refusal_no_further_request_goes_to_the_op(
    op: OpenIDProvider,
    browser: Browser,
    bend: dict[str, Any],
    code: str,
    endpoints: list[str],
) -> None:
    """UserInfo is asked only once the ID Token has passed every check."""
    browser.sign_in("op")
    browser.client.logout()
    for name, value in bend.items():
        setattr(op, name, value)
    callback = browser.visit_op(browser.start("op"))
    op.forget_requests()
    assert code_of(browser.come_back(callback)) == code
    assert [request.endpoint for request in op.requests] == endpoints


@pytest.mark.parametrize("endpoint", ["token", "userinfo", "jwks"])
@pytest.mark.parametrize(
    "misbehaviour",
    [
        pytest.param(provider.not_json(), id="page"),
        pytest.param(provider.raw(200, {}, b""), id="nothing"),
        pytest.param(provider.raw(200, {}, b"\xff\xfe{}"), id="no UTF-8"),
        pytest.param(provider.raw(200, {}, b"[" * 200_000), id="deep"),
        pytest.param(provider.raw(200, {"Content-Type": "application/jwt"}, b"a.b"), id="no JWT"),
        pytest.param(provider.sending([1]), id="array"),
        pytest.param(provider.sending({"error": 5}, 400), id="error 5"),
        pytest.param(provider.sending({"error": "invalid_grant"}, 200), id="error with 200"),
        pytest.param(provider.raw(503, {}, b"<html>"), id="503"),
        pytest.param(provider.redirect_to("http://127.0.0.1:1/"), id="redirect"),
        pytest.param(provider.close_connection(), id="hangs up"),
        pytest.param(provider.raw(200, {}, b" " * 2_000_000), id="2 MB"),
        pytest.param(provider.huge_header(), id="huge header"),
    ],
)
def test_an_op_out_of_order_is_a_refusal(
    op: OpenIDProvider, browser: Browser, endpoint: str, misbehaviour: provider.Misbehaviour
) -> None:
    """Whatever an endpoint answers, the visitor reads a page and is not signed in."""
    op.answer[endpoint] = misbehaviour
    code = code_of(browser.sign_in("op"))
    assert code.partition(".")[0] in (endpoint, "transport", "discovery", "jwks", "id_token")


# As the OpenID Foundation's conformance suite calls them


def test_oidcc_client_test(browser: Browser) -> None:
    assert browser.sign_in("op").status_code == 302


OIDCC: dict[str, tuple[dict[str, Any], str | None]] = {
    "invalid-iss": ({"iss": "https://other.example"}, "id_token.iss"),
    "missing-sub": ({"sub": REMOVE}, "id_token.sub"),
    "invalid-aud": ({"aud": "somebody-else"}, "id_token.aud"),
    "missing-aud": ({"aud": REMOVE}, "id_token.aud"),
    "missing-iat": ({"iat": REMOVE}, "id_token.iat"),
    "nonce-invalid": ({"nonce": "other"}, "id_token.nonce"),
}


@pytest.mark.parametrize(("claims", "code"), OIDCC.values(), ids=OIDCC)
def test_oidcc_client_test_bent_claims(
    op: OpenIDProvider, browser: Browser, claims: dict[str, Any], code: str
) -> None:
    op.id_token_claims = claims
    assert code_of(browser.sign_in("op")) == code


def test_oidcc_client_test_userinfo_invalid_sub(op: OpenIDProvider, browser: Browser) -> None:
    op.userinfo_claims["sub"] = "somebody-else"
    assert code_of(browser.sign_in("op")) == "userinfo.sub"


def test_oidcc_client_test_userinfo_bearer_header(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    (request,) = op.requests_to("userinfo")
    assert request.headers["Authorization"].startswith("Bearer ")
    assert (request.query, request.form) == ({}, {})


def test_oidcc_client_test_scope_userinfo_claims(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    user = get_user_model().objects.get()
    assert (user.email, user.first_name) == (op.person["email"], op.person["given_name"])


def test_oidcc_client_test_idtoken_sig_rs256(browser: Browser) -> None:
    assert browser.sign_in("op").status_code == 302


def test_oidcc_client_test_invalid_sig_rs256(op: OpenIDProvider, browser: Browser) -> None:
    forger = SigningKey.generate("RS256", kid=op.keys[0].kid)
    op.make_id_token = lambda claims, header: op.sign(claims, header, key=forger)
    assert code_of(browser.sign_in("op")) == "id_token.signature"


def test_oidcc_client_test_idtoken_sig_none(op: OpenIDProvider, browser: Browser) -> None:
    op.make_id_token = lambda claims, header: op.sign(claims, alg="none")
    assert code_of(browser.sign_in("op")) in ("id_token.alg", "id_token.format")


def test_hs256_with_the_rsa_public_key_is_refused(op: OpenIDProvider, browser: Browser) -> None:
    """The oldest trick with JWTs (RFC 8725 §2.1)."""
    pem = op.keys[0].public_pem
    op.make_id_token = lambda claims, header: op.sign(claims, key=pem, alg="HS256")
    assert code_of(browser.sign_in("op")) == "id_token.alg"


def test_oidcc_client_test_kid_absent_single_jwks(op: OpenIDProvider, browser: Browser) -> None:
    op.id_token_header["kid"] = REMOVE
    assert browser.sign_in("op").status_code == 302


def test_oidcc_client_test_kid_absent_multiple_jwks(op: OpenIDProvider, browser: Browser) -> None:
    op.keys.append(SigningKey.generate("RS256"))
    op.id_token_header["kid"] = REMOVE
    assert code_of(browser.sign_in("op")) == "id_token.kid"


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_oidcc_client_test_client_secret(op: OpenIDProvider, browser: Browser, method: str) -> None:
    op.metadata["token_endpoint_auth_methods_supported"] = [method]
    assert browser.sign_in("op").status_code == 302
    (request,) = op.requests_to("token")
    assert ("client_secret" in request.form) == (method == "client_secret_post")


# Everybody's input


HOSTILE = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)
NAMES = st.sampled_from(
    "state code iss error error_description id_token next session_state".split()
)
PARAMS = st.lists(st.tuples(NAMES | HOSTILE, HOSTILE), max_size=6)


@hypothesis_settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(params=PARAMS, right=st.sets(st.sampled_from(["state", "iss"])), post=st.booleans())
def test_whatever_comes_is_a_refusal(
    op: OpenIDProvider,
    browser: Browser,
    params: list[tuple[str, str]],
    right: set[str],
    post: bool,
) -> None:
    """No query and no form makes anything but a refusal of a pending login."""
    honest = dict(parse_qs(urlsplit(browser.start("op")).query))
    known = {"state": honest["state"][0], "iss": op.issuer}
    query = urlencode([*((name, known[name]) for name in right), *params])
    url = "/oidc/op/callback/"
    if post:
        form = "application/x-www-form-urlencoded"
        response = browser.client.post(url, query, content_type=form)
    else:
        response = browser.client.get(f"{url}?{query}")
    assert code_of(response)


FORM = "application/x-www-form-urlencoded"
BROKEN: dict[str, dict[str, Any]] = {
    "no UTF-8 in the query": {"QUERY_STRING": "state=%ff%fe&code=%80"},
    "raw octets in the query": {"QUERY_STRING": "state=\xff&code=\x00"},
    "too many fields": {"QUERY_STRING": "&".join(f"a{n}=1" for n in range(1500))},
    "percent signs": {"QUERY_STRING": "%%%&&&===;;;"},
}
BODIES: dict[str, tuple[bytes, str]] = {
    "multipart garbage": (b"garbage", "multipart/form-data; boundary=x"),
    "multipart without boundary": (b"garbage", "multipart/form-data"),
    "a boundary that is none": (b"--\xff", "multipart/form-data; boundary=\xff"),
    "UTF-16": ("state=s".encode("utf-16"), f"{FORM}; charset=utf-16"),
    "a charset nobody knows": (b"state=s", f"{FORM}; charset=klingon"),
    "no UTF-8": (b"state=\xff\xfe&code=%ff", FORM),
    "too many fields": (b"&".join(b"a%d=1" % n for n in range(1500)), FORM),
    "too much": (b"state=" + b"s" * 3_000_000, FORM),
    "JSON": (b'{"state": "s"}', "application/json"),
    "nothing": (b"", ""),
}


@pytest.mark.parametrize("path", ["/oidc/op/callback/", "/oidc/op/login/", "/oidc/login/"])
@pytest.mark.parametrize("environ", BROKEN.values(), ids=BROKEN)
def test_a_broken_query_is_no_500(browser: Browser, path: str, environ: dict[str, str]) -> None:
    browser.start("op")
    response = browser.client.get(path, **environ)  # type: ignore[arg-type]
    assert response.status_code < 500
    if "callback" in path:
        assert code_of(response)


@pytest.mark.parametrize("path", ["/oidc/op/callback/", "/oidc/op/login/", "/oidc/logout/"])
@pytest.mark.parametrize(("body", "content_type"), BODIES.values(), ids=BODIES)
def test_a_broken_form_is_no_500(
    browser: Browser, path: str, body: bytes, content_type: str
) -> None:
    browser.start("op")
    response = browser.client.generic("POST", path, body, content_type=content_type)
    assert response.status_code < 500
    if "callback" in path:
        assert code_of(response)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
@pytest.mark.parametrize(
    "path", ["/oidc/login/", "/oidc/logout/", "/oidc/op/login/", "/oidc/op/callback/"]
)
def test_other_methods_do_nothing(
    op: OpenIDProvider, browser: Browser, callback: Callback, method: str, path: str
) -> None:
    """No state is spent, no login is started, nobody is signed out; the chooser answers HEAD."""
    op.forget_requests()
    before = dict(browser.client.session)
    response = browser.client.generic(method, f"{path}?{urlsplit(callback.url).query}")
    chooser = (method, path) == ("HEAD", "/oidc/login/")
    assert response.status_code == (200 if chooser else 405)
    assert op.requests == []
    assert dict(browser.client.session) == before


# Secrets (M53)


class FailingBackend(OIDCBackend):
    """A site's subclass with a bug in an account hook."""

    def create_user(self, claims: Any) -> Any:
        raise RuntimeError("a bug of this site")


def secrets_of(op: OpenIDProvider, browser: Browser, url: str, callback: Callback) -> set[str]:
    """Every value of this login that nobody may read."""
    asked, form = parse_qs(urlsplit(url).query), op.requests_to("token")[-1].form
    cookie = browser.client.cookies[django_settings.SESSION_COOKIE_NAME].value
    grants = [token for token in (*op._access_tokens, *op._refresh_tokens) if token]
    return {
        asked["state"][0],
        asked["nonce"][0],
        dict(callback.params)["code"],
        form["code"][0],
        form["code_verifier"][0],
        op.client_secret,
        op.requests_to("token")[-1].headers["Authorization"].partition(" ")[2],
        cookie,
        *grants,
    }


@pytest.fixture
def issued(op: OpenIDProvider) -> list[str]:
    """The ID Tokens that the OP gives out, as they are made."""
    made: list[str] = []

    def make(claims: dict[str, Any], header: dict[str, Any]) -> str:
        made.append(op.sign(claims, header))
        return made[-1]

    op.make_id_token = make
    return made


@pytest.mark.parametrize("mode", ["query", "form_post"])
@pytest.mark.parametrize("debug", [True, False])
def test_M53_no_secret_on_an_error_page(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    settings: Settings,
    issued: list[str],
    mode: str,
    debug: bool,
) -> None:
    """A bug of the site shows up on Django's debug page, with no secret in any variable of it."""
    configure(RESPONSE_MODE=mode, SCOPES=["openid", "email", "offline_access"])
    settings.AUTHENTICATION_BACKENDS = ["tests.test_callback.FailingBackend"]
    settings.DEBUG = debug
    browser.client.raise_request_exception = False
    url = browser.start("op")
    cookie = browser.client.cookies[django_settings.SESSION_COOKIE_NAME].value
    callback = browser.visit_op(url)
    response = browser.land(browser.come_back(callback))
    assert response.status_code == 500
    page = response.content.decode()
    assert ("a bug of this site" in page) == debug
    hidden = secrets_of(op, browser, url, callback) | {cookie, *issued}
    assert len(hidden) >= 9
    assert [secret for secret in hidden if secret in page] == []


def test_M53_no_secret_on_the_page_of_a_failing_receiver(
    op: OpenIDProvider, browser: Browser, settings: Settings, issued: list[str]
) -> None:
    """Django's own signal of a login may raise; even then nothing is shown."""
    settings.DEBUG = True
    browser.client.raise_request_exception = False

    def fail(**_: Any) -> None:
        raise RuntimeError("a bug of this site")

    user_logged_in.connect(fail)
    try:
        url = browser.start("op")
        callback = browser.visit_op(url)
        response = browser.come_back(callback)
    finally:
        user_logged_in.disconnect(fail)
    page = response.content.decode()
    assert "a bug of this site" in page
    hidden = secrets_of(op, browser, url, callback) | {*issued}
    assert [secret for secret in hidden if secret in page] == []


@pytest.mark.parametrize("name", ["RAW_URI", "REQUEST_URI", "UNENCODED_URL"])
def test_M53_no_code_in_what_a_server_says_of_the_url(
    browser: Browser, callback: Callback, settings: Settings, name: str
) -> None:
    """The query stands there a second time; it is forgotten with the first."""
    settings.AUTHENTICATION_BACKENDS = ["tests.test_callback.FailingBackend"]
    settings.DEBUG = True
    browser.client.raise_request_exception = False
    url = urlsplit(callback.url)
    response = browser.client.get(f"{url.path}?{url.query}", **{name: f"{url.path}?{url.query}"})
    page = response.content.decode()
    assert "a bug of this site" in page
    assert [part for part in ("code", "state") if dict(callback.params)[part] in page] == []
    assert name not in response.wsgi_request.META


def locals_of(error: BaseException | None) -> dict[str, str]:
    """What an error report shows: the variables of each call that failed, causes included."""
    shown = {}
    while error is not None:
        for frame, _ in walk_tb(error.__traceback__):
            place = f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
            shown |= {f"{place}:{name}": repr(value) for name, value in frame.f_locals.items()}
        error = error.__cause__ or error.__context__
    return shown


@pytest.mark.parametrize(
    ("code", "params", "claims"),
    [
        ("id_token.nonce", {}, {"nonce": "other"}),
        ("response.iss", {"iss": "https://evil.example"}, {}),
        ("authorization.access_denied", {"error": "access_denied"}, {}),
        ("token.invalid_grant", {"code": "another"}, {}),
    ],
)
@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_M53_no_secret_in_the_variables_of_an_error(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    mode: str,
    code: str,
    params: dict[str, str],
    claims: dict[str, str],
) -> None:
    """A receiver of login_failed gets the error with its traceback, and may send it anywhere."""
    heard: list[tuple[str, dict[str, str]]] = []

    def receive(error: Any, **_: Any) -> None:
        heard.append((error.code, locals_of(error)))

    configure(RESPONSE_MODE=mode)
    op.id_token_claims = claims
    callback = browser.visit_op(browser.start("op")).bent(**params)
    ((state, pending),) = browser.client.session[PENDING].items()
    login_failed.connect(receive)
    try:
        browser.land(browser.come_back(callback))
    finally:
        login_failed.disconnect(receive)
    ((told, shown),) = heard
    assert told == code
    secrets = {state, pending["request"]["code_verifier"], pending["request"]["nonce"]}
    secrets |= {dict(callback.params).get("code", state)}
    assert [at for at, value in shown.items() if any(secret in value for secret in secrets)] == []


class Unstorable(SessionStore):
    """A session whose database goes away."""

    def save(self, must_create: bool = False) -> None:
        raise OperationalError("the server closed the connection")


def test_M53_no_verifier_in_the_variables_of_a_session_that_cannot_be_stored(
    browser: Browser, callback: Callback, rf: RequestFactory
) -> None:
    """The attempt cannot be taken: an error, in whose report no secret of it stands."""
    state, stored = dict(callback.params)["state"], browser.client.session[PENDING]
    request = rf.get("/")
    request.session = Unstorable()
    request.session[PENDING] = stored
    with pytest.raises(OperationalError) as caught:
        sessions.take(request, state)
    shown = {at: value for at, value in locals_of(caught.value).items() if "oidc_rp." in at}
    assert any("sessions.take" in at for at in shown)
    verifier = stored[state]["request"]["code_verifier"]
    assert [at for at, value in shown.items() if verifier in value] == []


@pytest.mark.parametrize(
    "bend",
    [
        {},
        {"id_token_claims": {"nonce": "other"}},
        {"id_token_claims": {"at_hash": "x"}},
        {"userinfo_claims": {"sub": "x"}},
        {"token_response": {"token_type": "DPoP"}},
        {"token_response": {"expires_in": "soon"}},
        {"id_token_header": {"kid": "unknown"}},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_M53_no_secret_in_logs_and_refusals(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    issued: list[str],
    bend: dict[str, Any],
    mode: str,
) -> None:
    """With every logger at DEBUG: a login and refusals, whose lines name no secret."""
    configure(RESPONSE_MODE=mode, SCOPES=["openid", "email", "offline_access"])
    for name, value in bend.items():
        setattr(op, name, value)
    caplog.set_level(logging.DEBUG)
    url = browser.start("op")
    cookie = browser.client.cookies[django_settings.SESSION_COOKIE_NAME].value
    callback = browser.visit_op(url)
    caplog.clear()  # what the browser's own HTTP client logs is not the site's
    response = browser.land(browser.come_back(callback))
    told = caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    told += response.content.decode() + repr(response.headers)
    hidden = secrets_of(op, browser, url, callback) | {cookie, *issued}
    if "_auth_user_id" in browser.client.session:
        assert response.status_code == 302
    assert len(hidden) >= 8
    assert [secret for secret in hidden if secret in told] == []
    assert re.search(r"oidc_rp", told) or not bend


# At the same moment


def test_M3_the_parallel_callbacks() -> None:
    """The tests of callbacks_in_threads.py on a SQLite file: in memory, no writer waits."""
    assert_passes("callbacks_in_threads")
