"""Third-party-initiated login (Core §4): the OP, or another site, asks for a login here."""

from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp import sessions, step_up
from oidc_rp.login_urls import login_url
from oidc_rp.models import Identity
from oidc_rp.protocol.authentication import StepUp
from oidc_rp.testing import OpenIDProvider, close_connection
from oidc_rp.testing.browser import Browser, Callback, Response, read_form
from oidc_rp.views import MAX_LOGIN_HINT
from tests.conftest import Configure
from tests.test_accounts import multi_tenant, op_of_tenants
from tests.test_login import LOGIN_REQUIRED, SAFE, UNSAFE, asked, pending

__all__ = ["op_of_tenants"]

URL = "/oidc/op/initiate/"
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


def initiate(browser: Browser, method: str = "GET", **params: Any) -> Response:
    """Ask for a login as another site does; by POST, follow to what the browser does next."""
    if method == "GET":
        return browser.client.get(URL, params)
    response = browser.client.post(URL, params)
    if response.status_code != 303:
        return response
    assert urlsplit(response.headers["Location"]).path == URL
    return browser.client.get(response.headers["Location"])


def location(response: Response) -> str:
    assert response.status_code == 302, (response.status_code, response.content)
    return str(response.headers["Location"])


def sent_on(response: Response) -> dict[str, list[str]]:
    """What a POST asks for when it comes again by GET."""
    assert response.status_code == 303
    url = urlsplit(response.headers["Location"])
    assert (url.scheme, url.netloc, url.path) == ("", "", URL)
    return parse_qs(url.query, keep_blank_values=True, strict_parsing=True)


def refusal(response: Response) -> tuple[int, str]:
    assert response.templates[0].name == "oidc_rp/refusal.html"
    return response.status_code, str(response.context["code"])


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_login_that_the_op_asks_for(op: OpenIDProvider, browser: Browser, method: str) -> None:
    """Both methods of Core §4, from the other site's link or form to the page it names."""
    params = {"iss": op.issuer, "login_hint": "jane", "target_link_uri": "/private/?a=b"}
    url = location(initiate(browser, method, **params))
    assert url.startswith(op.url("authorization") + "?")
    assert asked(url)["login_hint"] == "jane"
    assert browser.come_back(browser.visit_op(url)).headers["Location"] == "/private/?a=b"
    assert Identity.objects.get().sub == op.person["sub"]
    assert browser.client.get("/private/").status_code == 200


def test_nothing_but_the_hint_is_added_to_an_ordinary_request(
    op: OpenIDProvider, browser: Browser
) -> None:
    """What the OP is asked for is what our own button asks for."""
    plain = asked(browser.start("op"))
    initiated = asked(location(initiate(browser, iss=op.issuer)))
    own = {"state", "nonce", "code_challenge"}
    assert {k: v for k, v in initiated.items() if k not in own} == {
        k: v for k, v in plain.items() if k not in own
    }


# iss


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "bend",
    [
        lambda iss: None,
        lambda iss: "",
        lambda iss: "https://other.example",
        lambda iss: iss + "/",
        lambda iss: iss.upper(),
        lambda iss: iss.replace("http:", "https:"),
        lambda iss: " " + iss,
        lambda iss: iss + "\x00",
        lambda iss: iss + "/.well-known/openid-configuration",
        lambda iss: iss[:-1],
        lambda iss: "op",
        lambda iss: "{tenantid}",
    ],
)
def test_M11_iss_is_compared_by_exact_string(
    op: OpenIDProvider, browser: Browser, method: str, bend: Any
) -> None:
    """A refusal for anything else: nothing is asked of the OP, and nothing is pending."""
    iss = bend(op.issuer)
    params = {"target_link_uri": "/private/"} | ({} if iss is None else {"iss": iss})
    assert refusal(initiate(browser, method, **params)) == (400, "initiate.iss")
    assert op.requests == []
    assert pending(browser) == {}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("name", ["iss", "login_hint", "target_link_uri"])
def test_M9_a_repeated_parameter_is_refused(
    op: OpenIDProvider, browser: Browser, method: str, name: str
) -> None:
    """Even where both are the same: who wrote the second one is not who wrote the first."""
    params = {"iss": op.issuer, "login_hint": "jane", "target_link_uri": "/private/"}
    repeated = params | {name: [params[name]] * 2}
    assert refusal(initiate(browser, method, **repeated)) == (400, "initiate.repeated")
    assert op.requests == []
    assert pending(browser) == {}


def test_M9_what_stands_in_the_query_of_a_form_is_not_read(
    op: OpenIDProvider, browser: Browser
) -> None:
    """One place for parameters: a form has its own."""
    query = urlencode({"iss": op.issuer, "login_hint": "eve", "target_link_uri": "/evil/"})
    assert refusal(browser.client.post(f"{URL}?{query}")) == (400, "initiate.iss")
    response = browser.client.post(f"{URL}?{query}", {"iss": op.issuer})
    assert sent_on(response) == {"iss": [op.issuer]}


def test_an_unknown_provider_is_not_found(op: OpenIDProvider, browser: Browser) -> None:
    for method in (browser.client.get, browser.client.post):
        response = method("/oidc/nobody/initiate/", {"iss": op.issuer})
        assert refusal(response) == (404, "provider.unknown")
        assert refusal(method("/oidc/login/initiate/", {"iss": op.issuer})) == (
            404,
            "provider.unknown",
        )


def test_M40_half_a_configuration_starts_nothing(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    configure(SCOPES=["profile"])
    for method in ("GET", "POST"):
        response = initiate(browser, method, iss=op.issuer)
        assert refusal(response) == (400, "configuration.provider")
    assert op.requests == []


def test_the_issuer_of_another_provider_is_refused(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Each door takes the logins of its own provider alone (M8)."""
    ours = django_settings.OIDC_RP["PROVIDERS"]["op"]
    other = ours | {"ISSUER": "https://other.example"}
    settings.OIDC_RP = {"PROVIDERS": {"op": ours, "other": other}}
    response = browser.client.get("/oidc/other/initiate/", {"iss": op.issuer})
    assert refusal(response) == (400, "initiate.iss")
    assert location(initiate(browser, iss=op.issuer)).startswith(op.origin)


def test_an_op_that_is_down_is_told(op: OpenIDProvider, browser: Browser) -> None:
    op.answer["discovery"] = close_connection()
    response = initiate(browser, iss=op.issuer)
    assert refusal(response) == (424, "transport.broken")
    assert pending(browser) == {}


def test_other_methods_are_not_allowed(op: OpenIDProvider, browser: Browser) -> None:
    """HEAD and OPTIONS, too, start no login."""
    for method in ("head", "options", "put", "patch", "delete"):
        response = getattr(browser.client, method)(f"{URL}?{urlencode({'iss': op.issuer})}")
        assert response.status_code == 405
    assert pending(browser) == {}
    assert op.requests == []


def test_a_body_that_cannot_be_read_is_refused(browser: Browser) -> None:
    response = browser.client.post(URL, b"x", content_type="multipart/form-data; boundary=")
    assert refusal(response) == (400, "response.unreadable")


class TestTenants:
    """A provider of many tenants: each has an issuer of its own."""

    @pytest.fixture
    def op(self, op_of_tenants: OpenIDProvider) -> OpenIDProvider:
        return op_of_tenants

    def test_M37_a_trusted_tenant_may_ask(
        self, op: OpenIDProvider, configure: Configure, browser: Browser
    ) -> None:
        multi_tenant(op, configure)
        for method in ("GET", "POST"):
            url = location(initiate(browser, method, iss=f"{op.origin}/one/v2.0"))
            assert browser.come_back(browser.visit_op(url)).headers["Location"] == "/home/"
        assert Identity.objects.get().iss == f"{op.origin}/one/v2.0"

    @pytest.mark.parametrize("tenant", ["two", "ONE", "{tenantid}", "organizations", "one/../two"])
    def test_M37_another_tenant_may_not(
        self, op: OpenIDProvider, configure: Configure, browser: Browser, tenant: str
    ) -> None:
        """Nor the template, nor the name that the OP has for all of them."""
        multi_tenant(op, configure)
        response = initiate(browser, iss=f"{op.origin}/{tenant}/v2.0")
        assert refusal(response) == (400, "initiate.iss")
        assert op.requests == []


# login_hint


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "hint", ["jane", "jané@exämple.org", "a b&c=d#e", "你好", "x" * 255, "%00"]
)
def test_a_login_hint_reaches_the_op(
    op: OpenIDProvider, browser: Browser, method: str, hint: str
) -> None:
    """As it came, whatever it means to the OP (Core §3.1.2.1)."""
    response = initiate(browser, method, iss=op.issuer, login_hint=hint)
    assert asked(location(response))["login_hint"] == hint


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "hint", ["", "x" * (MAX_LOGIN_HINT + 1), "a\x00b", "a\nb", "a\r\nSet-Cookie: b", "\u202eevil"]
)
def test_a_hint_that_nobody_could_read_is_dropped(
    op: OpenIDProvider, browser: Browser, method: str, hint: str
) -> None:
    """The login goes on without."""
    response = initiate(browser, method, iss=op.issuer, login_hint=hint)
    assert "login_hint" not in asked(location(response))


# target_link_uri


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", [*SAFE, "http://testserver/private/?a=b"])
def test_M12_a_place_on_this_site_is_where_the_login_ends(
    op: OpenIDProvider, browser: Browser, method: str, target: str
) -> None:
    """Relative, or absolute and on this host, as the specification has it."""
    url = location(initiate(browser, method, iss=op.issuer, target_link_uri=target))
    response = browser.come_back(browser.visit_op(url))
    assert response.headers["Location"] in (target, target.replace("ä", "%C3%A4"))


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("target", UNSAFE)
def test_M12_a_place_elsewhere_is_dropped(
    op: OpenIDProvider, browser: Browser, method: str, target: str
) -> None:
    """It is not even kept, and no error page tells that it was not liked (Core §4)."""
    response = initiate(browser, method, iss=op.issuer, target_link_uri=target)
    assert [stored["next"] for stored in pending(browser).values()] == [""]
    callback = browser.visit_op(location(response))
    assert browser.come_back(callback).headers["Location"] == "/home/"


def test_M12_a_secure_site_does_not_send_people_to_http(
    op: OpenIDProvider, browser: Browser
) -> None:
    target = {"iss": op.issuer, "target_link_uri": "http://testserver/private/"}
    assert browser.client.get(URL, target, secure=True).status_code == 302
    assert [stored["next"] for stored in pending(browser).values()] == [""]


# Whatever else comes


def hostile_parameters(pk: Any) -> dict[str, str]:
    """All that a stranger might want to decide; some of it signed by this site itself."""
    stepped = login_url("op", scopes=["admin"], step_up=StepUp(1, ("gold",)), user_pk=pk)
    return {
        **dict(parse_qsl(urlsplit(stepped).query)),
        "prompt": "none",
        "scope": "openid admin",
        "max_age": "0",
        "acr_values": "gold",
        "claims": "{}",
        "id_token_hint": "x.y.z",
        "client_id": "evil",
        "redirect_uri": "https://evil.example/",
        "response_type": "token",
        "response_mode": "fragment",
        "request": "x.y.z",
        "request_uri": "https://evil.example/request",
        "state": "fixed",
        "nonce": "fixed",
        "code_challenge": "fixed",
        "code_challenge_method": "plain",
        "ui_locales": "xx",
        "display": "popup",
        "linker": str(pk),
        "purpose": "link",
        "next": "/evil/",
        "action": "link",
        "provider": "other",
        "csrfmiddlewaretoken": "x",
    }


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("signed_in", [False, True])
def test_M11_extra_parameters_are_ignored(
    op: OpenIDProvider, browser: Browser, method: str, signed_in: bool
) -> None:
    """No parameter of a stranger decides what is asked of the OP, nor what the login is for."""
    if signed_in:
        browser.sign_in("op")
    user_pk = browser.client.session.get("_auth_user_id")
    extra = hostile_parameters(user_pk)
    assert {"scopes", "step_up"} <= extra.keys()
    response = initiate(browser, method, iss=op.issuer, **extra)
    params = asked(location(response))
    assert params.keys() == {
        *("response_type", "client_id", "redirect_uri", "scope", "state", "nonce"),
        *("code_challenge", "code_challenge_method"),
    }
    assert not [name for name in params if params[name] == extra.get(name, "")]
    assert params["scope"] == "openid profile email"
    ((state, stored),) = pending(browser).items()
    assert state == params["state"]
    assert (stored["next"], stored["linker"], stored.get("purpose", "")) == ("", "", "")
    assert stored["request"].keys() & {"max_age", "acr_values", "amr_values"} == set()


def test_M11_a_form_comes_again_with_nothing_but_what_was_checked(
    op: OpenIDProvider, browser: Browser
) -> None:
    """By 303, so that the browser asks by GET; with no cookie, and for no one to keep."""
    strict = Client(enforce_csrf_checks=True)
    checked = {"iss": op.issuer, "login_hint": "jane", "target_link_uri": "/private/"}
    response = strict.post(URL, hostile_parameters(1) | checked)
    assert sent_on(response) == {name: [value] for name, value in checked.items()}
    assert not response.cookies
    assert "no-store" in response.headers["Cache-Control"]
    dropped = {"login_hint": "a\x00b", "target_link_uri": "https://evil.example/"}
    response = strict.post(URL, hostile_parameters(1) | checked | dropped)
    assert sent_on(response) == {"iss": [op.issuer]}
    assert op.requests == []


def form_of_another_site(browser: Browser, **fields: str) -> Response:
    """What a browser gets for it, and for the 303, with the cookies that SameSite lets through."""
    before = dict(browser.client.cookies)
    response = browser.come_back(Callback(f"http://testserver{URL}", [*fields.items()]))
    assert (response.status_code, dict(response.cookies)) == (303, {})
    assert dict(browser.client.cookies) == before
    return browser.come_back(f"http://testserver{response.headers['Location']}")


@pytest.mark.parametrize("samesite", ["Strict", "Lax", "None", None])
def test_M11_a_form_of_another_site_takes_nobodys_session_away(
    op: OpenIDProvider, browser: Browser, settings: Settings, samesite: str | None
) -> None:
    """Whoever is signed in here stays so, until somebody else comes back from the OP."""
    settings.SESSION_COOKIE_SAMESITE = samesite
    browser.sign_in("op")
    key = browser.client.session.session_key
    user = browser.client.session["_auth_user_id"]
    response = form_of_another_site(browser, iss=op.issuer, target_link_uri="/private/?x=1")
    assert browser.client.session.session_key == key
    assert response.status_code == (200 if samesite == "Strict" else 302)
    response = browser.land(response)
    assert browser.client.session.session_key == key
    assert browser.client.get("/private/").status_code == 200
    assert browser.follow(response).headers["Location"] == "/private/?x=1"
    assert browser.client.session["_auth_user_id"] == user


# SameSite=Strict


def test_samesite_strict_lands_on_a_page_of_ours_first(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """The page sends what was checked, and no more, from our own site: the cookie comes along."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    browser.sign_in("op")
    key = browser.client.session.session_key
    checked = {"iss": op.issuer, "login_hint": '"><script>', "target_link_uri": "/private/?a='b'"}
    url = f"http://testserver{URL}?{urlencode(hostile_parameters(1) | checked)}"
    response = browser.come_back(url)
    assert (response.status_code, dict(response.cookies)) == (200, {})
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response.headers["Cache-Control"]
    form = read_form(response.content.decode())
    assert (form.action, form.method) == (URL, "get")
    assert dict(form.fields) == checked | {"oidc_rp_landed": "1"}
    assert len(form.fields) == 4
    op.forget_requests()
    response = browser.land(response)
    assert asked(location(response))["login_hint"] == '"><script>'
    assert browser.client.session.session_key == key
    assert browser.follow(response).headers["Location"] == "/private/?a='b'"


def test_samesite_strict_lands_also_whoever_claims_to_have_landed(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """A link of another site that names our own parameter takes nobody's session away."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    params = {"iss": op.issuer, "oidc_rp_landed": "1"}
    for site, status in (("cross-site", 200), ("same-origin", 302), ("none", 302)):
        response = Client().get(URL, params, headers={"sec-fetch-site": site})
        assert response.status_code == status
        assert bool(response.cookies) == (status == 302)
    response = Client().get(URL, params, headers={"sec-fetch-site": "cross-site"})
    form = read_form(response.content.decode())
    assert form.fields == [("iss", op.issuer), ("oidc_rp_landed", "1")]


def test_samesite_strict_without_a_session_signs_in_as_well(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Somebody who was never here lands once, not in a circle."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    query = urlencode({"iss": op.issuer, "target_link_uri": "/private/"})
    response = browser.land(browser.come_back(f"http://testserver{URL}?{query}"))
    assert browser.follow(response).headers["Location"] == "/private/"


def test_samesite_strict_refuses_before_it_lands(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """A wrong issuer gets no page that goes on by itself."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    assert refusal(initiate(browser, iss="https://evil.example")) == (400, "initiate.iss")
    assert refusal(initiate(browser, "POST", iss="https://evil.example")) == (400, "initiate.iss")


# It links nobody


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_M11_it_cannot_link_accounts(
    op: OpenIDProvider, browser: Browser, configure: Configure, method: str
) -> None:
    """Not to somebody who has just signed in locally, not by e-mail, not by the page's own words:
    the person of the OP signs in as somebody else."""
    configure(DANGEROUSLY_LINK_BY_EMAIL=lambda user: True)
    jane = get_user_model().objects.create_user("jane", op.person["email"], "pw")
    browser.client.force_login(jane, MODEL_BACKEND)
    url = location(initiate(browser, method, iss=op.issuer, **hostile_parameters(jane.pk)))
    response = browser.come_back(browser.visit_op(url))
    assert refusal(response) == (403, "account.confirm")
    assert not Identity.objects.exists()
    configure()
    url = location(initiate(browser, method, iss=op.issuer, **hostile_parameters(jane.pk)))
    assert browser.come_back(browser.visit_op(url)).status_code == 302
    assert Identity.objects.get().user != jane
    assert browser.client.session["_auth_user_id"] != str(jane.pk)


def test_M38_it_makes_no_old_sign_in_a_fresh_one(op: OpenIDProvider, browser: Browser) -> None:
    """The OP's word counts, and the OP says how long ago it was."""
    op.login.auth_time -= 3600
    url = location(initiate(browser, iss=op.issuer))
    browser.come_back(browser.visit_op(url))
    request = browser.client.get("/home/").wsgi_request
    login = sessions.current_login(request)
    assert login is not None
    assert not step_up.satisfies(login, StepUp(300))


def test_M13_a_stranger_fills_no_session(op: OpenIDProvider, browser: Browser) -> None:
    """However often it is asked for: seven pending logins, and a bounded size."""
    for number in range(20):
        target = f"/{number}" + "x" * 1000
        initiate(browser, iss=op.issuer, login_hint="h" * 255, target_link_uri=target)
    assert 1 <= len(pending(browser)) <= sessions.MAX_PENDING


# Around it


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_login_required_middleware_lets_it_through(
    op: OpenIDProvider, browser: Browser, settings: Settings, method: str
) -> None:
    settings.MIDDLEWARE = [*django_settings.MIDDLEWARE, LOGIN_REQUIRED]
    url = location(initiate(browser, method, iss=op.issuer, target_link_uri="/home/?x"))
    assert browser.come_back(browser.visit_op(url)).headers["Location"] == "/home/?x"


def test_M15_with_par_the_hint_is_pushed(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """A login hint names a person: with PAR it does not go through the browser again."""
    configure(REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=True)
    url = location(initiate(browser, iss=op.issuer, login_hint="jane"))
    assert asked(url).keys() == {"client_id", "request_uri"}
    (pushed,) = op.requests_to("par")
    assert pushed.form["login_hint"] == ["jane"]


def test_a_hint_of_the_settings_gives_way(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    """Other parameters of the settings stay."""
    configure(AUTHORIZATION_PARAMS={"login_hint": "ours", "hd": "example.com"})
    params = asked(location(initiate(browser, iss=op.issuer, login_hint="jane")))
    assert (params["login_hint"], params["hd"]) == ("jane", "example.com")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.sampled_from(
    "iss login_hint target_link_uri next scope prompt state oidc_rp_landed".split()
)
WORDS = st.sampled_from(["ISSUER", "jane", "/private/", "http://testserver/x", *UNSAFE])


@examples(
    max_examples=150,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    params=st.lists(st.tuples(NAMES | TEXT, WORDS | TEXT), max_size=6),
    valid=st.booleans(),
    by_post=st.booleans(),
)
def test_M11_any_parameters_lead_to_the_op_or_nowhere(
    op: OpenIDProvider,
    browser: Browser,
    params: list[tuple[str, str]],
    valid: bool,
    by_post: bool,
) -> None:
    """A redirect to the OP's authorization endpoint, or to ourselves, or a refusal: no error, and
    no redirect to anywhere else."""
    params = [(name, op.issuer if text == "ISSUER" else text) for name, text in params]
    body = urlencode([*params, ("iss", op.issuer)] if valid else params)
    form = "application/x-www-form-urlencoded"
    client = browser.client
    response = client.post(URL, body, form) if by_post else client.get(f"{URL}?{body}")
    if response.status_code == 303:
        assert by_post
        assert sent_on(response).keys() <= {"iss", "login_hint", "target_link_uri"}
        response = client.get(response.headers["Location"])
        assert response.status_code == 302
    if response.status_code == 302:
        url = urlsplit(response.headers["Location"])
        assert response.headers["Location"].startswith(op.url("authorization") + "?")
        assert dict(parse_qsl(url.query))["redirect_uri"] == ("http://testserver/oidc/op/callback/")
    else:
        assert refusal(response)[1].startswith("initiate.")
        assert response.status_code == 400
