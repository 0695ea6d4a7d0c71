"""Starting a login: the authentication request, `next`, and the doors that lead to it."""

import re
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.test import Client
from pytest_django import Settings

from oidc_rp import sessions
from oidc_rp import testing as provider
from oidc_rp.sessions import PENDING
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure

LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"


def asked(url: str) -> dict[str, str]:
    """Return the parameters of an authentication request."""
    params = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    assert len(dict(params)) == len(params)
    return dict(params)


def pending(browser: Browser) -> dict[str, Any]:
    found = browser.client.session.get(PENDING, {})
    assert isinstance(found, dict)
    return found


def test_a_login_from_end_to_end(op: OpenIDProvider, browser: Browser) -> None:
    """Somebody signs in, is known by (iss, sub), and lands where they wanted to be."""
    response = browser.sign_in("op", next="/private/")
    assert (response.status_code, response.headers["Location"]) == (302, "/private/")
    user = get_user_model().objects.get()
    identity = user.oidc_identities.get()
    assert (identity.iss, identity.sub) == (op.issuer, op.person["sub"])
    assert browser.client.get("/private/").content.decode() == user.get_username()
    paths = [request.endpoint for request in op.requests]
    assert paths == ["discovery", "authorization", "token", "jwks", "userinfo"]


def test_the_authentication_request(op: OpenIDProvider, browser: Browser) -> None:
    """Core §3.1.2.1 and RFC 7636 §4.3: nothing more than what a login needs."""
    params = asked(browser.start("op"))
    secrets = {name: params.pop(name) for name in ("state", "nonce", "code_challenge")}
    assert params == {
        "response_type": "code",
        "client_id": op.client_id,
        "redirect_uri": "http://testserver/oidc/op/callback/",
        "scope": "openid profile email",
        "code_challenge_method": "S256",
    }
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32,43}", value) for value in secrets.values())


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({"DEFAULT_MAX_AGE": 0}, {"max_age": "0"}),
        ({"DEFAULT_ACR_VALUES": ["gold", "silver"]}, {"acr_values": "gold silver"}),
        ({"RESPONSE_MODE": "form_post"}, {"response_mode": "form_post"}),
        ({"SCOPES": ["openid", "offline_access"]}, {"scope": "openid offline_access"}),
        ({"AUTHORIZATION_PARAMS": {"prompt": "login", "hd": "a&b=c"}}, {"hd": "a&b=c"}),
        ({"AUTHORIZATION_PARAMS": {"claims": {"id_token": {}}}}, {"claims": '{"id_token": {}}'}),
        ({"AUTHORIZATION_PARAMS": {"prompt": ["login", "consent"]}}, {"prompt": "login consent"}),
        ({"AUTHORIZATION_PARAMS": {"login_hint": "jané"}}, {"login_hint": "jané"}),
        ({"REDIRECT_URIS": ["https://rp.example/c"]}, {"redirect_uri": "https://rp.example/c"}),
    ],
)
def test_options_are_asked_for(
    configure: Configure, browser: Browser, options: dict[str, Any], params: dict[str, str]
) -> None:
    configure(**options)
    assert params.items() <= asked(browser.start("op")).items()


def test_the_language_of_the_page_is_asked_for_where_the_op_speaks_it(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    op.metadata["ui_locales_supported"] = ["de", "fr"]
    assert "ui_locales" not in asked(browser.start("op"))
    settings.LANGUAGE_CODE = "de"
    assert asked(browser.start("op"))["ui_locales"] == "de"


def test_the_language_is_asked_for_as_the_op_spells_it(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Django says "pt-br" and the OP "pt-BR": language tags do not distinguish case (BCP 47)."""
    op.metadata["ui_locales_supported"] = ["pt-BR", "pt"]
    settings.LANGUAGE_CODE = "pt-br"
    assert asked(browser.start("op"))["ui_locales"] == "pt-BR"


def test_M2_pkce_s256_always_also_for_confidential_clients(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """A new verifier for each attempt; its hash goes first, itself only to the token endpoint."""
    for options in ({}, {"CLIENT_SECRET": None, "TOKEN_ENDPOINT_AUTH_METHOD": "none"}):
        configure(**options)
        op.metadata["token_endpoint_auth_methods_supported"].append("none")
        url = browser.start("op")
        assert asked(url)["code_challenge_method"] == "S256"
        assert browser.come_back(browser.visit_op(url)).status_code == 302
        verifier = op.requests_to("token")[-1].form["code_verifier"][0]
        assert provider.code_challenge(verifier) == asked(url)["code_challenge"]
        assert verifier not in url
    verifiers = [request.form["code_verifier"][0] for request in op.requests_to("token")]
    assert len(set(verifiers)) == 2


def test_M3_state_nonce_verifier_are_per_attempt_and_128_bit(browser: Browser) -> None:
    """Seven attempts share nothing; each value has 24 random octets at least."""
    requests = [asked(browser.start("op")) for _ in range(7)]
    for name in ("state", "nonce", "code_challenge"):
        values = {params[name] for params in requests}
        assert len(values) == 7
        assert all(len(value) >= 32 for value in values)


def test_M41b_state_and_nonce_are_url_safe_the_nonce_at_most_43_characters(
    browser: Browser,
) -> None:
    params = asked(browser.start("op"))
    assert re.fullmatch(r"[A-Za-z0-9_-]+", params["state"])
    assert re.fullmatch(r"[A-Za-z0-9_-]{22,43}", params["nonce"])


def test_M8_the_redirect_uri_is_distinct_per_provider(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Two providers, two callback paths."""
    two = django_settings.OIDC_RP["PROVIDERS"]["op"]
    settings.OIDC_RP = {"PROVIDERS": {"op": two, "other": two | {"CLIENT_ID": "other"}}}
    uris = {asked(browser.start(slug))["redirect_uri"] for slug in ("op", "other")}
    assert uris == {f"http://testserver/oidc/{slug}/callback/" for slug in ("op", "other")}


# Par (M15)


def test_M15_with_par_only_client_id_and_request_uri_go_through_the_browser(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """The request is pushed, authenticated, and its reference signs in."""
    configure(REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=True)
    url = browser.start("op")
    assert asked(url).keys() == {"client_id", "request_uri"}
    (pushed,) = op.requests_to("par")
    assert {"state", "nonce", "code_challenge", "redirect_uri"} <= pushed.form.keys()
    assert pushed.headers["Authorization"].startswith("Basic ")
    assert browser.come_back(browser.visit_op(url)).status_code == 302


def test_M15_metadata_that_requires_par_is_obeyed(op: OpenIDProvider, browser: Browser) -> None:
    op.metadata["require_pushed_authorization_requests"] = True
    assert asked(browser.start("op")).keys() == {"client_id", "request_uri"}


@pytest.mark.parametrize(
    ("misbehaviour", "code"),
    [
        (provider.sending({"error": "invalid_request"}, 400), "par.invalid_request"),
        (provider.sending({"error": "<script>"}, 400), "par.error"),
        (provider.sending({"request_uri": "urn:x"}, 400), "par.request_uri"),
        (provider.sending({"expires_in": 60}, 201), "par.request_uri"),
        (provider.sending({"request_uri": ["urn:x"]}, 201), "par.request_uri"),
        pytest.param(
            provider.sending({"request_uri": "urn:" + "x" * 20_000}, 201),
            "par.request_uri",
            id="longer than a URL can be",
        ),
        (provider.sending([], 201), "transport.status"),
        (provider.not_json(), "par.json"),
        (provider.raw(502), "transport.status"),
        (provider.redirect_to("https://attacker.example/"), "transport.redirect"),
        (provider.close_connection(), "transport.broken"),
    ],
)
def test_M15_a_failed_par_never_falls_back_to_the_query(
    op: OpenIDProvider,
    configure: Configure,
    browser: Browser,
    misbehaviour: provider.Misbehaviour,
    code: str,
) -> None:
    """Whatever goes wrong with the push, nobody is sent to the OP, and nothing is pending."""
    configure(REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=True)
    op.answer["par"] = misbehaviour
    response = browser.client.get("/oidc/op/login/")
    assert 400 <= response.status_code < 500
    assert response.context["code"] == code
    assert pending(browser) == {}


def test_M15_no_par_endpoint_no_login(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    configure(REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=True)
    del op.metadata["pushed_authorization_request_endpoint"]
    assert browser.client.get("/oidc/op/login/").context["code"] == "par.endpoint"


# Start (M11) and next (M12)


def test_M11_a_start_by_post_needs_the_csrf_token(browser: Browser) -> None:
    """Only this site's own form starts a login that may link, and for who pressed the button."""
    strict = Client(enforce_csrf_checks=True)
    assert strict.post("/oidc/op/login/").status_code == 403
    assert sessions.PENDING not in strict.session
    assert strict.get("/oidc/op/login/").status_code == 302
    response = browser.client.post("/oidc/op/login/", {"next": "/private/"})
    assert response.status_code == 302
    assert [stored["linker"] for stored in pending(browser).values()] == [""]
    user = get_user_model().objects.create_user("jane")
    browser.client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    browser.start("op")
    browser.client.post("/oidc/op/login/")
    linkers = [stored["linker"] for stored in pending(browser).values()]
    assert linkers[-2:] == ["", str(user.pk)]


def test_M11_parameters_of_a_stranger_reach_nobody(browser: Browser) -> None:
    """A link can carry `next`; prompt, scope and the like are ours to decide."""
    plain = asked(browser.start("op"))
    extra = asked(
        browser.start("op", scope="openid admin", prompt="none", state="x", login_hint="y")
    )
    assert extra.keys() == plain.keys()
    assert extra["scope"] == plain["scope"]


SAFE = ["/private/", "/private/?a=b&c=d#e", "/%2F%2Fevil.example", "private/", "/päth/", "?x=1"]
UNSAFE = [
    "https://evil.example/",
    "http://evil.example",
    "//evil.example/",
    "///evil.example/",
    "////evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "\\/evil.example",
    "/\tevil",
    "/\t/evil.example",
    "/\n/evil.example",
    "\r\n//evil.example",
    " //evil.example",
    "\x00//evil.example",
    "/\x7f/evil.example",
    "/\u2028/evil.example",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "data:text/html,x",
    "http:evil.example",
    "http:///evil.example",
    "https:/evil.example",
    "//testserver@evil.example/",
    "http://testserver@evil.example/",
    "http://testserver:80@evil.example/",
    "http://testserver.evil.example/",
    "http://evil.example\\@testserver/",
    "http://[::1",
    "/" + "a" * 1024,
]


@pytest.mark.parametrize("next_url", SAFE)
def test_M12_a_place_on_this_site_is_where_the_login_ends(browser: Browser, next_url: str) -> None:
    response = browser.sign_in("op", next=next_url)
    assert response.status_code == 302
    assert response.headers["Location"] in (next_url, next_url.replace("ä", "%C3%A4"))


@pytest.mark.parametrize("next_url", UNSAFE)
def test_M12_the_next_url_is_checked_at_start(browser: Browser, next_url: str) -> None:
    """What leads elsewhere is not even kept; the login ends at LOGIN_REDIRECT_URL."""
    url = browser.start("op", next=next_url)
    assert [stored["next"] for stored in pending(browser).values()] == [""]
    response = browser.come_back(browser.visit_op(url))
    assert response.headers["Location"] == "/home/"


@pytest.mark.parametrize("next_url", UNSAFE)
def test_M12_the_next_url_is_checked_at_use(browser: Browser, next_url: str) -> None:
    """Whatever got into the session, the redirect stays on this site."""
    callback = browser.visit_op(browser.start("op", next="/private/"))
    session = browser.client.session
    stored = session[PENDING]
    for kept in stored.values():
        kept["next"] = next_url
    session[PENDING] = stored
    session.save()
    assert browser.come_back(callback).headers["Location"] == "/home/"


def test_M12_next_is_stored_in_the_attempt_and_not_in_the_session(browser: Browser) -> None:
    """Two logins under way end each at its own place."""
    first = browser.visit_op(browser.start("op", next="/private/"))
    second = browser.visit_op(browser.start("op", next="/home/?second"))
    assert browser.come_back(second).headers["Location"] == "/home/?second"
    assert browser.come_back(first).headers["Location"] == "/private/"


def test_M12_a_secure_site_does_not_send_people_to_http(browser: Browser) -> None:
    response = browser.client.get(
        "/oidc/op/login/", {"next": "http://testserver/private/"}, secure=True
    )
    assert response.status_code == 302
    assert [stored["next"] for stored in pending(browser).values()] == [""]


@pytest.mark.parametrize("next_url", [*UNSAFE[:8], "no-such-view", "oidc_rp:login_chooser", "home"])
def test_M12_the_next_url_of_a_logout_is_checked(browser: Browser, next_url: str) -> None:
    """Signing out leads nowhere else either, and no name of a view is looked up."""
    browser.sign_in("op")
    response = browser.follow(browser.client.post("/oidc/logout/", {"next": next_url}))
    assert response.status_code in (200, 302)
    if response.status_code == 302:
        assert response.headers["Location"] == next_url == urlsplit(next_url).path


# Hosts (M50)


def test_M50_the_redirect_uri_is_built_from_allowed_hosts(
    browser: Browser, settings: Settings
) -> None:
    """A host of somebody else is refused by Django before a login starts."""
    settings.ALLOWED_HOSTS = ["testserver", "second.example"]
    client = browser.client
    assert client.get("/oidc/op/login/", headers={"host": "evil.example"}).status_code == 400
    response = client.get("/oidc/op/login/", headers={"host": "second.example"})
    assert asked(response.headers["Location"])["redirect_uri"].startswith("http://second.example/")


def test_M50_forwarded_headers_count_only_through_djangos_settings(
    browser: Browser, settings: Settings
) -> None:
    """X-Forwarded-Host and X-Forwarded-Proto are ignored until the site trusts its proxy."""
    forwarded = {"x-forwarded-host": "proxy.example", "x-forwarded-proto": "https"}

    def redirect_uri() -> str:
        response = browser.client.get("/oidc/op/login/", headers=forwarded)
        return asked(response.headers["Location"])["redirect_uri"]

    settings.ALLOWED_HOSTS = ["testserver", "proxy.example"]
    assert redirect_uri() == "http://testserver/oidc/op/callback/"
    settings.USE_X_FORWARDED_HOST = True
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert redirect_uri() == "https://proxy.example/oidc/op/callback/"


def test_M50_a_registered_redirect_uri_goes_before_any_host(
    browser: Browser, configure: Configure, settings: Settings
) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    configure(REDIRECT_URIS=["https://rp.example/oidc/op/callback/"])
    response = browser.client.get("/oidc/op/login/", headers={"host": "evil.example"})
    redirect_uri = asked(response.headers["Location"])["redirect_uri"]
    assert redirect_uri == "https://rp.example/oidc/op/callback/"


# Doors


def test_login_required_leads_to_the_chooser_and_back(browser: Browser) -> None:
    """LOGIN_URL, the button, the OP, and the page that was asked for."""
    response = browser.client.get("/private/?x=1")
    assert response.headers["Location"] == "/oidc/login/?next=/private/%3Fx%3D1"
    page = browser.client.get(response.headers["Location"]).content.decode()
    assert "/oidc/op/login/?next=%2Fprivate%2F%3Fx%3D1" in page
    assert browser.sign_in("op", next="/private/?x=1").headers["Location"] == "/private/?x=1"


def test_login_required_middleware_makes_no_loop(browser: Browser, settings: Settings) -> None:
    """Chooser, login and callback are open to somebody who is not signed in yet."""
    settings.MIDDLEWARE = [*django_settings.MIDDLEWARE, LOGIN_REQUIRED]
    assert browser.client.get("/home/").headers["Location"] == "/oidc/login/?next=/home/"
    assert browser.client.get("/oidc/login/").status_code == 200
    assert browser.sign_in("op", next="/home/").headers["Location"] == "/home/"
    assert browser.client.get("/home/").status_code == 200
    assert browser.follow(browser.client.post("/oidc/logout/")).status_code == 200


def test_the_admins_login_page_has_the_buttons_and_they_work(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A member of the staff reaches the admin through the OP; others still do not."""
    page = browser.client.get("/admin/login/?next=/admin/").content.decode()
    (start,) = re.findall(r'href="(/oidc/op/login/[^"]*)"', page)
    assert parse_qs(urlsplit(start).query) == {"next": ["/admin/"]}
    assert browser.sign_in("op", next="/admin/").headers["Location"] == "/admin/"
    assert browser.client.get("/admin/").status_code == 302
    get_user_model().objects.update(is_staff=True)
    assert browser.client.get("/admin/").status_code == 200


def test_the_admins_password_form_still_works(browser: Browser) -> None:
    get_user_model().objects.create_superuser("root", password="p4ss")
    form = {"username": "root", "password": "p4ss", "next": "/admin/"}
    assert browser.client.post("/admin/login/", form).headers["Location"] == "/admin/"


def test_the_chooser_names_each_provider_once(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """Labels and `next` are escaped; the OP is not asked for a page with its button."""
    configure(LABEL="<b>GenAuth</b> & co")
    response = browser.client.get("/oidc/login/", {"next": '/"><script>alert(1)</script>'})
    page = response.content.decode()
    assert page.count("&lt;b&gt;GenAuth&lt;/b&gt; &amp; co") == 1
    assert "<script>" not in page
    assert op.requests == []


def test_a_chooser_without_providers_is_a_page(browser: Browser, settings: Settings) -> None:
    settings.OIDC_RP = {"PROVIDERS": {}}
    assert browser.client.get("/oidc/login/").status_code == 200


def test_an_unknown_provider_is_not_found(browser: Browser) -> None:
    for path in ("/oidc/nobody/login/", "/oidc/nobody/callback/?code=c&state=s"):
        response = browser.client.get(path)
        assert (response.status_code, response.context["code"]) == (404, "provider.unknown")


def test_M40_half_a_configuration_signs_nobody_in(browser: Browser, configure: Configure) -> None:
    """A mistake in the settings is a refusal, and never an authenticated visitor."""
    callback = browser.visit_op(browser.start("op"))
    for broken in ({"SCOPES": ["profile"]}, {"CLIENT_SECRET": None}, {"ISSUER": "ftp://op"}):
        configure(**broken)
        for response in (browser.client.get("/oidc/op/login/"), browser.come_back(callback)):
            code = (response.status_code, response.context["code"])
            assert code == (400, "configuration.provider")
    assert "_auth_user_id" not in browser.client.session


@pytest.mark.parametrize(
    "misspelt",
    [{"EMAIL_DOMAIN": ["corp.example"]}, {"CREATE_USER": False}, {"email_domains": ["x.example"]}],
)
def test_M40_a_misspelt_option_for_all_signs_nobody_in(
    browser: Browser, settings: Settings, misspelt: dict[str, Any]
) -> None:
    """A restriction that is not understood is not one to do without, wherever it stands."""
    settings.OIDC_RP = django_settings.OIDC_RP | misspelt
    response = browser.client.get("/oidc/op/login/")
    assert (response.status_code, response.context["code"]) == (400, "configuration.provider")


def test_M40_a_site_without_our_backend_signs_nobody_in(
    browser: Browser, settings: Settings
) -> None:
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    response = browser.sign_in("op")
    assert (response.status_code, response.context["code"]) == (400, "configuration.backend")
    assert get_user_model().objects.count() == 0


def test_logout_is_a_post_with_csrf_token(browser: Browser) -> None:
    """A GET does nothing; the form of this site signs out, and the session is gone."""
    browser.sign_in("op")
    assert browser.client.get("/oidc/logout/").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = browser.client.cookies
    assert strict.post("/oidc/logout/").status_code == 403
    assert browser.client.get("/private/").status_code == 200
    response = browser.follow(browser.client.post("/oidc/logout/"))
    assert "oidc_rp/logged_out.html" in [template.name for template in response.templates]
    assert browser.client.get("/private/").status_code == 302


def test_logout_leads_where_the_site_says(browser: Browser, settings: Settings) -> None:
    settings.LOGOUT_REDIRECT_URL = "oidc_rp:login_chooser"
    assert browser.client.post("/oidc/logout/").headers["Location"] == "/oidc/login/"
    response = browser.client.post("/oidc/logout/", {"next": "/home/"})
    assert response.headers["Location"] == "/home/"
