"""Views that want a recent, or a strong, authentication, and APIs that do (RFC 9470): they are
reached with it, and never without, whatever the OP does; and nobody goes round in circles.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views.generic import View
from pytest_django import Settings

from oidc_rp import api
from oidc_rp.errors import InvalidResponse, StepUpRequired
from oidc_rp.login_urls import asked_step_up, login_url
from oidc_rp.models import Grant, Identity, Session
from oidc_rp.protocol.authentication import ANYHOW, StepUp
from oidc_rp.sessions import CURRENT, LOCAL, current_login
from oidc_rp.step_up import RequireAuthMixin, require_auth
from oidc_rp.testing import REMOVE, OpenIDProvider, raw
from oidc_rp.testing.browser import Browser
from tests.test_middleware import HTML, PAGE
from tests.test_renewal import asked, last_page
from tests.test_sessions import code_of, engine, put
from tests.tokens import Site, site

__all__ = ["engine", "site"]

VISIT = HTML | PAGE
FETCH = {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
SESSION_RENEWAL = "oidc_rp.middleware.SessionRenewal"
TOKEN_RENEWAL = "oidc_rp.middleware.TokenRenewal"

reached: list[str] = []
"""The views that ran, and who ran them."""


# The site


def here(request: HttpRequest) -> HttpResponse:
    """What only some may see."""
    reached.append(request.path)
    return HttpResponse(f"reached by {request.user.get_username()}, {request.POST.get('text')}")


async def async_here(request: HttpRequest) -> HttpResponse:
    reached.append(request.path)
    return HttpResponse("reached")


class Here(RequireAuthMixin, View):
    required_max_age, required_acr = 300, "gold"

    def get(self, request: HttpRequest) -> HttpResponse:
        return here(request)

    post = get


class AsyncHere(RequireAuthMixin, View):
    required_acr = ["gold", "silver"]

    async def get(self, request: HttpRequest) -> HttpResponse:
        return await async_here(request)


class AsyncPlain(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await async_here(request)


@method_decorator(require_auth(acr="gold"), name="dispatch")
class Decorated(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return here(request)


class StrongChange(admin.ModelAdmin):
    """A list for every operator, and a form for those with a second factor."""

    @method_decorator(require_auth(acr="gold"))
    def change_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        reached.append(request.path)
        return super().change_view(request, *args, **kwargs)


back_office = admin.AdminSite("back_office")
back_office.register(get_user_model(), StrongChange)


def calling(request: HttpRequest) -> HttpResponse:
    """A page whose API has its own wishes."""
    answer = api.session_for(request).get(request.GET["url"])
    return HttpResponse(answer.text, status=answer.status_code)


def calling_for_a_user(request: HttpRequest) -> HttpResponse:
    answer = api.session_for(request.user, "op").get(request.GET["url"])
    return HttpResponse(answer.text, status=answer.status_code)


async def async_calling(request: HttpRequest) -> HttpResponse:
    raise StepUpRequired("api.step_up", step_up=StepUp(None, ("gold",)), login_url="/there/")


ALL = StepUp(300, ("gold",), ("otp", "hwk"))
VIEWS: dict[str, StepUp] = {
    "recent": StepUp(300),
    "now": StepUp(0),
    "strong": StepUp(None, ("gold",)),
    "either": StepUp(None, ("gold", "silver")),
    "otp": StepUp(None, (), ("otp",)),
    "all": ALL,
    "anyhow": ANYHOW,
}


def guarded(wanted: StepUp) -> Callable[..., Any]:
    acr: str | Sequence[str] = wanted.acr_values
    if len(wanted.acr_values) == 1:
        acr = wanted.acr_values[0]
    return require_auth(max_age=wanted.max_age, acr=acr, amr=wanted.amr_values)


urlpatterns = [
    path("oidc/", include("oidc_rp.urls")),
    path("back-office/", back_office.urls),
    path("home/", here),
    *(path(f"{name}/", guarded(wanted)(here)) for name, wanted in VIEWS.items()),
    path("async/", require_auth(acr="gold")(async_here)),
    path("class/", Here.as_view()),
    path("async-class/", AsyncHere.as_view()),
    path("decorated/", Decorated.as_view()),
    path("marked/", require_auth(acr="gold")(AsyncPlain.as_view())),
    path("torn/", require_auth(acr="gold")(require_auth(acr="silver")(here))),
    path("long/", require_auth(acr="x" * 101)(here)),
    path("calling/", calling),
    path("calling-for-a-user/", calling_for_a_user),
    path("async-calling/", async_calling),
    path("here/login/", LoginView.as_view(redirect_authenticated_user=True), name="here_login"),
]


@pytest.fixture(autouse=True)
def guarding(site: Site, settings: Settings) -> None:
    """A site with both middlewares and nothing of the step-up in its settings."""
    settings.ROOT_URLCONF = __name__
    middleware = [*settings.MIDDLEWARE]
    middleware.insert(3, SESSION_RENEWAL)
    settings.MIDDLEWARE = [*middleware, TOKEN_RENEWAL]
    has(site)
    reached.clear()


def has(site: Site, **options: Any) -> None:
    site.has(**{"SCOPES": ["openid", "profile"]} | options)


@pytest.fixture
def person(op: OpenIDProvider, browser: Browser) -> Browser:
    """Somebody who has signed in an hour ago, by a password."""
    op.login.auth_time -= 3600
    op.login.amr = ["pwd"]
    return signed_in(op, browser)


def signed_in(op: OpenIDProvider, browser: Browser) -> Browser:
    assert browser.sign_in("op").status_code == 302
    change(browser, at=time.time() - 3600)
    op.forget_requests()
    return browser


def change(browser: Browser, **of_the_login: Any) -> None:
    """Have the session remember another login."""
    session = browser.client.session
    session[CURRENT] = session[CURRENT] | of_the_login
    session.save()


def current(browser: Browser) -> Any:
    return current_login(browser.client.get("/home/").wsgi_request)


def login_of(response: Any) -> Any:
    """Where a refused view sends the browser: the parameters of our login's URL."""
    assert response.status_code == 302, (response.status_code, response.content)
    assert "no-store" in response.headers["Cache-Control"]
    url = urlsplit(response.headers["Location"])
    assert url.path == "/oidc/op/login/"
    return {name: values[0] for name, values in parse_qs(url.query).items()}


def to_the_op(browser: Browser, url: str) -> Any:
    """Ask for a guarded view; return our redirect to the OP."""
    refused = browser.client.get(url, headers=VISIT)
    return browser.client.get("/oidc/op/login/", login_of(refused))


# Who gets in


@pytest.mark.parametrize("name", [*VIEWS, "class", "decorated", "torn"])
def test_a_visitor_is_sent_to_sign_in(op: OpenIDProvider, browser: Browser, name: str) -> None:
    url = f"/{name}/?a=1"
    response = browser.client.get(url, headers=VISIT)
    assert (response.status_code, response.url) == (302, f"/oidc/login/?next=/{name}/%3Fa%3D1")
    assert response.headers["Cache-Control"] == "no-store"
    script = browser.client.get(url, headers=FETCH)
    told = {"error": "login_required", "login_url": "/oidc/login/"}
    assert (script.status_code, json.loads(script.content)) == (401, told)
    assert script.headers["X-Login-URL"] == "/oidc/login/"
    assert reached == []


AGES = {"at once": 0, "within": 299, "leeway": 355, "too old": 365, "unknown": None}
ACRS = [None, "silver", "gold", "GOLD", "gold "]
AMRS = [[], ["pwd"], ["pwd", "otp"], ["OTP"], ["otp otp"]]


@pytest.mark.parametrize("amr", AMRS, ids=str)
@pytest.mark.parametrize("acr", ACRS)
@pytest.mark.parametrize("age", AGES.values(), ids=AGES)
def test_M29_a_view_is_reached_by_those_who_have_what_it_wants_and_by_nobody_else(
    op: OpenIDProvider, person: Browser, age: int | None, acr: str | None, amr: list[str]
) -> None:
    """Each of the three, and all together; a view that wants nothing lets in who is signed in."""
    auth_time = None if age is None else time.time() - age
    change(person, auth_time=auth_time, acr=acr, amr=amr)
    for name, wanted in VIEWS.items():
        recent = wanted.max_age is None or (age is not None and age <= wanted.max_age + 60)
        strong = not wanted.acr_values or acr in wanted.acr_values
        by_means = not wanted.amr_values or bool({*amr} & {*wanted.amr_values})
        response = person.client.get(f"/{name}/", headers=VISIT)
        told = (name, response.status_code, reached)
        if recent and strong and by_means:
            assert told == (name, 200, [f"/{name}/"])
        else:
            assert told == (name, 302, [])
            login_of(response)
        reached.clear()
    assert op.requests == []


@pytest.mark.parametrize("leeway", [0, 10, 60])
def test_M29_within_the_leeway_of_the_clocks(
    op: OpenIDProvider, person: Browser, site: Site, leeway: int
) -> None:
    has(site, LEEWAY=leeway)
    for age, status in ((300 + leeway - 5, 200), (300 + leeway + 5, 302)):
        change(person, auth_time=time.time() - age)
        assert person.client.get("/recent/", headers=VISIT).status_code == status


def test_M29_a_time_to_come_is_not_recent(op: OpenIDProvider, browser: Browser) -> None:
    """A plain sign-in does not ask for auth_time, and so nobody has looked at it then."""
    op.id_token_claims["auth_time"] = int(time.time()) + 86400
    signed_in(op, browser)
    for later, status in ((86400, 302), (65, 302), (50, 200)):
        change(browser, auth_time=time.time() + later)
        assert browser.client.get("/recent/", headers=VISIT).status_code == status
    change(browser, auth_time=time.time() + 86400)
    response, _ = last_page(browser, "/recent/")
    assert (response.status_code, response.context["code"]) == (400, "id_token.auth_time")


def test_a_provider_that_is_gone_lends_no_leeway(
    op: OpenIDProvider, person: Browser, settings: Settings
) -> None:
    settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": {}}
    change(person, auth_time=time.time() - 305)
    assert person.client.get("/recent/", headers=VISIT).status_code == 302


# What the OP is asked for


def essential(**wanted: list[str]) -> dict[str, Any]:
    return {name: {"essential": True, "values": values} for name, values in wanted.items()}


REQUESTS: dict[str, dict[str, Any]] = {
    "recent": {"max_age": "300"},
    "now": {"max_age": "0"},
    "strong": {"acr_values": "gold", "claims": {"id_token": essential(acr=["gold"])}},
    "either": {
        "acr_values": "gold silver",
        "claims": {"id_token": essential(acr=["gold", "silver"])},
    },
    "otp": {"claims": {"id_token": essential(amr=["otp"])}},
    "all": {
        "max_age": "300",
        "acr_values": "gold",
        "claims": {"id_token": essential(acr=["gold"], amr=["otp", "hwk"])},
    },
}


def wishes(parameters: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for besides a plain login."""
    names = ("max_age", "acr_values", "claims", "prompt", "id_token_hint")
    told = {name: parameters[name] for name in names if name in parameters}
    return told | ({"claims": json.loads(told["claims"])} if "claims" in told else {})


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("name", REQUESTS)
def test_the_request(
    op: OpenIDProvider, person: Browser, site: Site, name: str, pushed: bool
) -> None:
    """Exactly what is wanted, and the scope as ever; pushed, where requests are (M15)."""
    has(site, REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=pushed)
    if name != "recent" and name != "now":
        change(person, auth_time=time.time() - 30)
    else:
        change(person, auth_time=time.time() - 3600)
    parameters = asked(to_the_op(person, f"/{name}/"))
    if pushed:
        assert parameters.keys() == {"client_id", "request_uri"}
        parameters = {k: v[0] for k, v in op.requests_to("par")[0].form.items()}
    assert wishes(parameters) == REQUESTS[name]
    assert parameters["scope"] == "openid profile"


CLAIMS = {"userinfo": {"email": None}, "id_token": {"acr": {"value": "x"}, "email": None}}


@pytest.mark.parametrize("given", [CLAIMS, json.dumps(CLAIMS)], ids=["dict", "text"])
def test_the_claims_of_the_settings_are_asked_for_as_well(
    op: OpenIDProvider, person: Browser, site: Site, given: Any
) -> None:
    """AUTHORIZATION_PARAMS may name some; what the view wants goes before them."""
    has(site, AUTHORIZATION_PARAMS={"claims": given, "prompt": "select_account"})
    told = wishes(asked(to_the_op(person, "/strong/")))
    assert told["claims"] == {
        "userinfo": {"email": None},
        "id_token": {"email": None} | essential(acr=["gold"]),
    }
    assert told["prompt"] == "select_account"


def test_what_the_settings_want_is_still_asked_for(
    op: OpenIDProvider, person: Browser, site: Site
) -> None:
    """The shorter age; and for a view that does not mind, the settings' acr."""
    has(site, DEFAULT_MAX_AGE=60, DEFAULT_ACR_VALUES=["silver"])
    assert wishes(asked(to_the_op(person, "/recent/"))) == {"max_age": "60", "acr_values": "silver"}
    has(site, DEFAULT_MAX_AGE=6000, DEFAULT_ACR_VALUES=["silver"])
    told = wishes(asked(to_the_op(person, "/all/")))
    assert (told["max_age"], told["acr_values"]) == ("300", "gold")


# What comes back


@pytest.mark.parametrize("name", [*VIEWS, "class", "decorated"])
def test_after_it_the_view_is_reached(op: OpenIDProvider, person: Browser, name: str) -> None:
    """In at most five redirects; and the next time at once."""
    op.login.amr = ["pwd", "otp"]
    url = f"/{name}/?a=1"
    response, visits = last_page(person, url)
    assert (response.status_code, visits) == (200, 0 if name == "anyhow" else 1)
    assert reached == [f"/{name}/"]
    assert person.client.get(url, headers=VISIT).status_code == 200


def test_the_session_goes_on_under_a_new_key(
    engine: str, op: OpenIDProvider, person: Browser
) -> None:
    """With all that the site keeps in it; its row and its grant are new, the old ones are over."""
    change(person, at=time.time() - 3600)
    put(person, basket=[1, 2])
    key, row = person.client.session.session_key, Session.objects.get().pk
    response, visits = last_page(person, "/strong/")
    assert (response.status_code, visits) == (200, 1)
    assert person.client.session["basket"] == [1, 2]
    assert person.client.session.session_key != key
    new = Session.objects.get()
    assert (new.pk != row, new.acr) == (True, "gold")
    assert [grant.close_reason for grant in Grant.objects.order_by("id")] == ["superseded", ""]
    login = current(person)
    assert (login.acr, login.session, login.asked) == ("gold", new.pk, StepUp(None, ("gold",)))


def ignored(op: OpenIDProvider) -> None:
    op.ignores_max_age = op.ignores_acr_values = True


def stated(**claims: Any) -> Callable[[OpenIDProvider], None]:
    """An OP that goes on as it likes, and says this of it in the ID Token."""

    def bend(op: OpenIDProvider) -> None:
        ignored(op)
        op.id_token_claims |= claims

    return bend


def unable(op: OpenIDProvider) -> None:
    op.acr_values_supported = []


NOW = int(time.time())
UNMET: dict[str, tuple[str, Callable[[OpenIDProvider], Any], str]] = {
    "max_age ignored": ("recent", ignored, "id_token.auth_time"),
    "max_age=0 ignored": ("now", ignored, "id_token.auth_time"),
    "auth_time left out": ("recent", stated(auth_time=REMOVE), "id_token.auth_time"),
    "auth_time null": ("recent", stated(auth_time=None), "id_token.auth_time"),
    "auth_time as text": ("recent", stated(auth_time=str(NOW)), "id_token.auth_time"),
    "auth_time true": ("recent", stated(auth_time=True), "id_token.auth_time"),
    "auth_time of tomorrow": ("recent", stated(auth_time=NOW + 86400), "id_token.auth_time"),
    "acr ignored": ("strong", ignored, "id_token.acr"),
    "acr left out": ("strong", stated(acr=REMOVE), "id_token.acr"),
    "acr weaker": ("strong", stated(acr="silver"), "id_token.acr"),
    "acr in capitals": ("strong", stated(acr="Gold"), "id_token.acr"),
    "acr as a list": ("strong", stated(acr=["gold"]), "id_token.acr"),
    "acr with more": ("strong", stated(acr="gold silver"), "id_token.acr"),
    "none of several acr": ("either", stated(acr="bronze"), "id_token.acr"),
    "amr ignored": ("otp", ignored, "id_token.amr"),
    "amr left out": ("otp", stated(amr=REMOVE), "id_token.amr"),
    "amr as text": ("otp", stated(amr="otp"), "id_token.amr"),
    "amr as an object": ("otp", stated(amr={"otp": True}), "id_token.amr"),
    "amr in a list of a list": ("otp", stated(amr=[["otp"]]), "id_token.amr"),
    "acr without amr": ("all", stated(acr="gold", auth_time=NOW), "id_token.amr"),
    "amr without acr": ("all", stated(amr=["otp"], auth_time=NOW), "id_token.acr"),
    "both, too old": ("all", stated(amr=["otp"], acr="gold"), "id_token.auth_time"),
    "it cannot": ("strong", unable, "authorization.unmet_authentication_requirements"),
}


@pytest.mark.parametrize(("name", "bend", "code"), UNMET.values(), ids=UNMET)
def test_M29_an_OP_that_does_not_do_it_ends_at_a_refusal(
    op: OpenIDProvider,
    person: Browser,
    name: str,
    bend: Callable[[OpenIDProvider], Any],
    code: str,
) -> None:
    """The view is not reached, the session of before is still there, and is no stronger."""
    before = (current(person), person.client.session.session_key, Session.objects.get().pk)
    reached.clear()
    bend(op)
    response, visits = last_page(person, f"/{name}/")
    assert (response.status_code, response.context["code"], visits) == (400, code, 1)
    assert reached == []
    assert (
        current(person),
        person.client.session.session_key,
        Session.objects.get().pk,
    ) == before
    assert person.client.get(f"/{name}/", headers=VISIT).status_code == 302


def test_M16_what_a_browser_takes_out_of_the_request_is_checked_all_the_same(
    op: OpenIDProvider, person: Browser
) -> None:
    """The record in the session decides, and no parameter of an URL."""
    for name, code in (("recent", "id_token.auth_time"), ("strong", "id_token.acr")):
        response = to_the_op(person, f"/{name}/")
        url = urlsplit(response.headers["Location"])
        kept = [
            part
            for part in url.query.split("&")
            if part.partition("=")[0] not in ("max_age", "acr_values", "claims")
        ]
        callback = person.visit_op(url._replace(query="&".join(kept)).geturl())
        assert code_of(person.come_back(callback)) == code
    reached.clear()
    assert person.client.get("/strong/", headers=VISIT).status_code == 302


def test_a_plain_login_does_not_open_it(op: OpenIDProvider, person: Browser) -> None:
    """Nor does the link without its signed part; the OP has not been asked for anything."""
    refused = person.client.get("/strong/", headers=VISIT)
    stripped = {name: value for name, value in login_of(refused).items() if name != "step_up"}
    person.follow(person.client.get("/oidc/op/login/", stripped))
    assert person.client.get("/strong/", headers=VISIT).status_code == 302
    assert reached == []


def test_somebody_else_at_the_OP_is_refused(op: OpenIDProvider, person: Browser) -> None:
    """Who comes back is who left: nobody gets into a session by another person's second factor."""
    before = person.client.session.session_key
    response = to_the_op(person, "/strong/")
    op.person["sub"] = "somebody-else"
    refused = person.follow(response)
    assert (refused.status_code, refused.context["code"]) == (403, "session.other_person")
    assert person.client.session.session_key == before
    assert current(person).sub == "248289761001"
    assert get_user_model().objects.count() == Identity.objects.count() == 1
    assert person.client.get("/strong/", headers=VISIT).status_code == 302


def test_M60_who_has_signed_out_meanwhile_is_not_signed_in(
    op: OpenIDProvider, person: Browser
) -> None:
    callback = person.visit_op(to_the_op(person, "/strong/").headers["Location"])
    person.client.post("/oidc/logout/")
    assert code_of(person.come_back(callback)) == "state.unknown"
    assert person.client.get("/strong/", headers=VISIT).url.startswith("/oidc/login/")


# The link


def signed(user_pk: Any, slug: str = "op", **wanted: Any) -> str:
    url = login_url(slug, step_up=StepUp(**wanted), user_pk=user_pk)
    return parse_qs(urlsplit(url).query)["step_up"][0]


def test_only_our_own_links_for_this_very_user_ask_for_more(
    op: OpenIDProvider, person: Browser
) -> None:
    pk = get_user_model().objects.get().pk
    good = signed(pk, acr_values=("gold",))
    assert asked_step_up("op", good, pk) == StepUp(None, ("gold",))
    assert person.client.get("/oidc/op/login/", {"step_up": good}).status_code == 302
    scopes = parse_qs(urlsplit(login_url("op", scopes=["a"], user_pk=pk)).query)["scopes"][0]
    bad = {
        "bent": "x" + good[1:],
        "cut": good[:-1],
        "plain": '[null, ["gold"], []]',
        "of another user": signed(pk + 1, acr_values=("gold",)),
        "of nobody": signed(None, acr_values=("gold",)),
        "of another provider": signed(pk, "other", acr_values=("gold",)),
        "of scopes": scopes,
    }
    for name, value in bad.items():
        response = person.client.get("/oidc/op/login/", {"step_up": value})
        assert (name, response.status_code) == (name, 400)
        assert response.context["code"] == "step_up.signature"
    response = Client().get("/oidc/op/login/", {"step_up": good})
    assert (response.status_code, response.context["code"]) == (400, "step_up.signature")


def test_it_is_good_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked_later(later: float) -> StepUp:
        now = time.time() + later
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now)
            return asked_step_up("op", link, 1)

    link = signed(1, max_age=300)
    assert asked_later(3590) == StepUp(300)
    with pytest.raises(InvalidResponse) as late:
        asked_later(3610)
    assert late.value.code == "step_up.signature"


# Others than pages


def test_a_form_comes_back_to_its_page_and_a_script_is_told(
    op: OpenIDProvider, person: Browser
) -> None:
    """A POST cannot be repeated by a redirect; the view did not run."""
    referer = {"referer": "http://testserver/home/?a=1"}
    response = person.client.post("/strong/", {"text": "x"}, headers=VISIT | referer)
    assert login_of(response)["next"] == "/home/?a=1"
    elsewhere = {"referer": "https://evil.example/home/"}
    response = person.client.post("/strong/", {"text": "x"}, headers=VISIT | elsewhere)
    assert "next" not in login_of(response)
    for method in ("get", "post"):
        call = getattr(person.client, method)
        script = call("/strong/", headers=FETCH | referer)
        told = json.loads(script.content)
        assert (script.status_code, told["error"]) == (401, "insufficient_user_authentication")
        assert script.headers["X-Login-URL"] == told["login_url"]
        assert script.headers["Cache-Control"] == "no-store"
        assert parse_qs(urlsplit(told["login_url"]).query)["next"] == ["/home/?a=1"]
    htmx = person.client.get("/strong/", headers={"hx-request": "true"} | referer)
    assert htmx.status_code == 401
    assert htmx.headers["HX-Redirect"] == htmx.headers["X-Login-URL"]
    assert reached == []


def test_a_script_is_told_so_again_and_again(op: OpenIDProvider, person: Browser) -> None:
    """It is not counted as somebody who goes round in circles."""
    statuses = [person.client.get("/strong/", headers=FETCH).status_code for _ in range(10)]
    assert statuses == [401] * 10


# Kinds of views


def under_asgi(browser: Browser) -> Callable[..., Any]:
    client = AsyncClient()
    client.cookies = browser.client.cookies
    get: Callable[..., Any] = async_to_sync(client.get)
    return get


@pytest.mark.parametrize("name", ["async", "async-class", "marked", "strong", "class"])
@pytest.mark.parametrize("asgi", [True, False])
def test_async_and_sync_views(op: OpenIDProvider, person: Browser, name: str, asgi: bool) -> None:
    url = f"/{name}/"
    get = under_asgi(person) if asgi else person.client.get
    login = login_of(get(url, headers=VISIT))
    assert get(url, headers=FETCH).status_code == 401
    assert reached == []
    person.follow(person.client.get("/oidc/op/login/", login))
    get = under_asgi(person) if asgi else person.client.get
    response = get(url, headers=VISIT)
    assert (response.status_code, reached) == (200, [url])
    assert response.content.startswith(b"reached")


def test_an_async_visitor_is_sent_to_sign_in(op: OpenIDProvider, browser: Browser) -> None:
    for url in ("/async/", "/async-class/", "/marked/"):
        response = under_asgi(browser)(url, headers=VISIT)
        assert response.headers["Location"].startswith("/oidc/login/?next=")
    assert reached == []


def test_a_class_answers_for_its_other_methods(op: OpenIDProvider, person: Browser) -> None:
    change(person, auth_time=time.time(), acr="gold")
    assert person.client.get("/class/").status_code == 200
    assert person.client.put("/class/").status_code == 405
    assert under_asgi(person)("/async-class/").status_code == 200


def test_a_change_view_of_the_admin(op: OpenIDProvider, person: Browser) -> None:
    """The list is there for every operator; the form is not, and nothing is changed by its POST."""
    user: Any = get_user_model().objects.get()
    get_user_model().objects.update(is_staff=True, is_superuser=True)
    url = f"/back-office/auth/user/{user.pk}/change/"
    assert person.client.get("/back-office/auth/user/").status_code == 200
    response = person.client.get(url, headers=VISIT)
    assert login_of(response)["next"] == url
    person.client.post(url, {"username": "stolen"}, headers=VISIT)
    assert reached == []
    assert get_user_model().objects.get().username == user.username
    assert last_page(person, url)[0].status_code == 200
    assert reached == [url]


def test_who_is_no_operator_does_not_get_into_the_admin_by_it(
    op: OpenIDProvider, person: Browser
) -> None:
    change(person, acr="gold")
    user: Any = get_user_model().objects.get()
    url = f"/back-office/auth/user/{user.pk}/change/"
    assert urlsplit(person.client.get(url, headers=VISIT).url).path == "/back-office/login/"
    assert reached == []


# A password of this site


@pytest.fixture
def local(op: OpenIDProvider, browser: Browser) -> Browser:
    get_user_model().objects.create_user("local", password="secret")
    assert browser.client.login(username="local", password="secret")
    return browser


def signed_in_locally(browser: Browser, age: float) -> None:
    put(browser, **{LOCAL: time.time() - age})


def test_a_password_says_when_and_nothing_else(op: OpenIDProvider, local: Browser) -> None:
    for age, status in ((0, 200), (299, 200), (365, 302), (10**7, 302)):
        signed_in_locally(local, age)
        assert local.client.get("/recent/", headers=VISIT).status_code == status
    response = local.client.get("/recent/?a=1", headers=VISIT)
    assert response.url == "/oidc/login/?next=/recent/%3Fa%3D1"
    signed_in_locally(local, 0)
    assert local.client.get("/anyhow/", headers=VISIT).status_code == 200
    reached.clear()
    for name in ("strong", "either", "otp", "all"):
        response = local.client.get(f"/{name}/", headers=VISIT)
        assert (response.status_code, response.url) == (302, f"/oidc/login/?next=%2F{name}%2F")
        script = local.client.get(f"/{name}/", headers=FETCH)
        assert (script.status_code, json.loads(script.content)["error"]) == (
            401,
            "insufficient_user_authentication",
        )
    assert reached == []


def test_a_password_an_hour_ago_is_not_refreshed_by_a_login_url_that_knows_them(
    op: OpenIDProvider, local: Browser, settings: Settings
) -> None:
    """Django's login view may send back whoever is signed in: a circle, which ends."""
    settings.LOGIN_URL = "here_login"
    signed_in_locally(local, 3600)
    url = "/recent/"
    for redirects in range(10):  # noqa: B007
        response = local.client.get(url, headers=VISIT)
        if response.status_code != 302:
            break
        url = response.headers["Location"]
    assert (response.status_code, redirects) == (403, 6)
    assert response.context["code"] == "step_up.useless"
    assert reached == []


# No circles


def assert_useless(response: Any) -> None:
    assert response.status_code == 403
    assert response.headers["Cache-Control"] == "no-store"
    assert response.context["code"] == "step_up.useless"


def test_a_login_that_says_it_in_more_words_than_are_kept_is_not_repeated(
    op: OpenIDProvider, person: Browser
) -> None:
    """The session remembers an acr of 100 characters, and eight methods: no second try helps."""
    op.acr_values_supported = ["x" * 101]
    response, visits = last_page(person, "/long/")
    assert_useless(response)
    assert visits == 1
    script = person.client.get("/long/", headers=FETCH)
    told = {"error": "insufficient_user_authentication"}
    assert (script.status_code, json.loads(script.content)) == (403, told)
    op.login.amr = [str(number) for number in range(8)] + ["otp"]
    response, visits = last_page(person, "/otp/")
    assert_useless(response)
    assert reached == []


def test_a_default_acr_does_not_hide_that_it_was_asked_for(
    op: OpenIDProvider, person: Browser, site: Site
) -> None:
    has(site, DEFAULT_ACR_VALUES=["silver"])
    op.login.acr, op.login.amr = "silver", [str(number) for number in range(8)] + ["otp"]
    response, visits = last_page(person, "/otp/")
    assert_useless(response)
    assert visits == 1


def test_two_wishes_that_no_login_fulfils_together_end(op: OpenIDProvider, person: Browser) -> None:
    """Each login has one acr, and that of before is gone."""
    response, visits = last_page(person, "/torn/", at_most=10)
    assert_useless(response)
    assert visits <= 4
    assert reached == []
    change(person, at=time.time() - 31)
    assert person.client.get("/torn/", headers=VISIT).status_code == 302


def test_many_tabs_are_no_circle(op: OpenIDProvider, person: Browser) -> None:
    """A window that is restored asks for all of its pages at once."""
    statuses = [person.client.get("/strong/", headers=VISIT).status_code for _ in range(10)]
    assert statuses == [302] * 10


# An API that wants more (RFC 9470)


@pytest.fixture
def url(op: OpenIDProvider) -> str:
    return f"/calling/?url={op.origin}/api/any"


@pytest.mark.parametrize("wish", [{"api_acr_values": ["gold", "silver"]}, {"api_max_age": 100}])
def test_a_challenge_becomes_a_login_after_which_the_API_answers(
    op: OpenIDProvider, person: Browser, url: str, wish: dict[str, Any]
) -> None:
    vars(op).update(wish)
    login = login_of(person.client.get(url, headers=VISIT))
    assert login["next"].startswith("/calling/?url=")
    parameters = asked(person.client.get("/oidc/op/login/", login))
    told = {"max_age": "100"}
    if "api_acr_values" in wish:
        values = ["gold", "silver"]
        told = {"acr_values": "gold silver", "claims": {"id_token": essential(acr=values)}}  # type: ignore[dict-item]
    assert wishes(parameters) == told
    script = person.client.get(url, headers=FETCH)
    assert script.status_code == 401
    assert json.loads(script.content)["error"] == "insufficient_user_authentication"
    response, visits = last_page(person, url)
    assert (response.status_code, visits) == (200, 1)
    assert json.loads(response.content)["path"] == "/api/any"
    assert op.refreshes == 0


def test_a_challenge_in_an_async_view(op: OpenIDProvider, person: Browser) -> None:
    response = under_asgi(person)("/async-calling/", headers=VISIT)
    assert response.headers["Location"] == "/there/"
    assert under_asgi(person)("/async-calling/", headers=FETCH).status_code == 401


def challenge(**params: str) -> Any:
    told = ", ".join(f'{name}="{value}"' for name, value in params.items())
    error = 'Bearer error="insufficient_user_authentication"'
    return raw(401, {"WWW-Authenticate": f"{error}, {told}" if told else error})


UNHELPFUL = {
    "nothing said": {},
    "what the login has": {"acr_values": "bronze gold"},
    "what the login has, too": {"max_age": "7200"},
    "more than can be asked for": {"acr_values": " ".join("x" * 90 for _ in range(12))},
}


@pytest.mark.parametrize("params", UNHELPFUL.values(), ids=UNHELPFUL)
def test_a_challenge_that_no_login_helps_with_is_a_403(
    op: OpenIDProvider, person: Browser, url: str, params: dict[str, str]
) -> None:
    change(person, acr="gold")
    op.answer["/api/any"] = challenge(**params)
    assert_useless(person.client.get(url, headers=VISIT))
    script = person.client.get(url, headers=FETCH)
    told = {"error": "insufficient_user_authentication"}
    assert (script.status_code, json.loads(script.content)) == (403, told)
    assert op.calls("authorization") == 0


@pytest.mark.parametrize("params", [{"acr_values": "gold"}, {"max_age": "0"}, {"max_age": "30"}])
def test_an_API_that_is_never_content_sends_nobody_round_in_circles(
    op: OpenIDProvider, person: Browser, url: str, params: dict[str, str]
) -> None:
    op.answer["/api/any"] = challenge(**params)
    response, visits = last_page(person, url)
    assert_useless(response)
    assert visits == 1


def test_an_OP_that_does_not_do_what_the_API_wants_ends_at_a_refusal(
    op: OpenIDProvider, person: Browser, url: str
) -> None:
    op.api_acr_values = ["gold"]
    ignored(op)
    response, visits = last_page(person, url)
    assert (response.status_code, response.context["code"], visits) == (400, "id_token.acr", 1)


def test_the_APIs_clock_has_the_say(op: OpenIDProvider, person: Browser, url: str) -> None:
    """What our leeway would forgive, the API does not, and a login helps."""
    op.api_max_age = 30
    op.login.auth_time = int(time.time()) - 50
    person.sign_in("op")
    change(person, at=time.time() - 50)
    response, visits = last_page(person, url)
    assert (response.status_code, visits) == (200, 1)


WIDE = ["openid", "profile", "calendar", "offline_access"]


@pytest.fixture
def wide(op: OpenIDProvider, site: Site, person: Browser) -> Browser:
    """Somebody whose durable grant allows more than a login of today asks for."""
    has(site, SCOPES=[*WIDE, "contacts"])
    signed_in(op, person)
    has(site, SCOPES=WIDE)
    signed_in(op, person)
    assert Grant.objects.get(durable=True).scope.split() == [*WIDE, "contacts"]
    return person


@pytest.mark.parametrize("by", ["calling", "calling-for-a-user"])
def test_a_wider_grant_keeps_its_scopes_through_the_APIs_step_up(
    op: OpenIDProvider, wide: Browser, by: str
) -> None:
    op.api_acr_values = ["gold"]
    url = f"/{by}/?url={op.origin}/api/any"
    assert last_page(wide, url)[1] == 1
    response, visits = last_page(wide, url)  # a user, and not a request, knows no way back
    assert (response.status_code, visits) == (200, 0)
    assert Grant.objects.get(durable=True).scope.split() == [*WIDE, "contacts"]
    assert json.loads(response.content)["scope"].split() == [*WIDE, "contacts"]


def test_a_wider_grant_gets_the_tokens_of_a_views_step_up(
    op: OpenIDProvider, wide: Browser, url: str
) -> None:
    """A login that asks for less would leave it the old ones, and the API would say no for ever."""
    op.api_acr_values = ["gold"]
    assert last_page(wide, "/strong/")[0].status_code == 200
    op.forget_requests()
    response, visits = last_page(wide, url)
    assert (response.status_code, visits) == (200, 0)
    assert Grant.objects.get(durable=True).scope.split() == [*WIDE, "contacts"]


def test_a_plain_login_of_another_browser_is_made_up_for(
    op: OpenIDProvider, site: Site, person: Browser, url: str
) -> None:
    """They share a durable grant: its token is weaker than the session now, and a login helps."""
    has(site, SCOPES=WIDE)
    op.api_acr_values = ["gold"]
    assert last_page(person, url)[0].status_code == 200
    change(person, at=time.time() - 60)
    op.new_login()
    Browser().sign_in("op")
    response, visits = last_page(person, url)
    assert (response.status_code, visits) == (200, 1)


def test_no_more_scopes_are_asked_for_than_are_needed(op: OpenIDProvider, person: Browser) -> None:
    """Where the settings ask for all that was granted, the link names none."""
    assert "scopes" not in login_of(person.client.get("/strong/", headers=VISIT))
