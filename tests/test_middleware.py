"""TokenRenewal: a token that lasts before the view, a login instead of an error after it."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import include, path
from pytest_django import DjangoAssertNumQueries, Settings

from oidc_rp import api, closing, grants
from oidc_rp.errors import LoginRequired, TemporarilyUnavailable
from oidc_rp.models import EPOCH, Grant, StoredAccessToken
from oidc_rp.sessions import CURRENT, current_login
from oidc_rp.testing import OpenIDProvider, raw
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.in_threads import assert_passes
from tests.test_api import INVALID_TOKEN, options, set_up, signed_in
from tests.urls import whoami

__all__ = ["options", "set_up", "signed_in"]

MIDDLEWARE = "oidc_rp.middleware.TokenRenewal"


def plain(request: HttpRequest) -> HttpResponse:
    """A page that calls no API."""
    return HttpResponse("plain")


def calling(request: HttpRequest) -> HttpResponse:
    """A page that calls an API."""
    return HttpResponse(api.session_for(request).get(request.GET["url"]).text)


def failing(request: HttpRequest) -> HttpResponse:
    raise ValueError("a mistake of the site")


def without_a_token(request: HttpRequest) -> HttpResponse:
    raise LoginRequired("api.no_grant", login_url="/oidc/op/login/?next=/there/")


def nowhere_to_sign_in(request: HttpRequest) -> HttpResponse:
    raise LoginRequired("api.no_grant")


def later(request: HttpRequest) -> HttpResponse:
    raise TemporarilyUnavailable("refresh.waiting", retry_after=2.2)


async def async_without_a_token(request: HttpRequest) -> HttpResponse:
    raise LoginRequired("api.no_grant", login_url="/oidc/op/login/?next=/there/")


async def async_plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


urlpatterns = [
    path("oidc/", include("oidc_rp.urls")),
    path("home/", whoami),
    path("plain/", plain),
    path("calling/", calling),
    path("failing/", failing),
    path("without/", without_a_token),
    path("nowhere/", nowhere_to_sign_in),
    path("later/", later),
    path("async-without/", async_without_a_token),
    path("async-plain/", async_plain),
]


@pytest.fixture(autouse=True)
def site(settings: Settings) -> None:
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, MIDDLEWARE]


HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


# Before the view


def test_a_token_that_is_due_is_renewed_before_the_view(
    op: OpenIDProvider, signed_in: Browser
) -> None:
    """Also for a page that calls nothing; once is enough."""
    expire()
    for _ in range(2):
        assert signed_in.client.get("/plain/").content == b"plain"
    assert op.refreshes == 1


def expire() -> None:
    """By the database: its clock is the one that counts."""
    StoredAccessToken.objects.update(expires_at=EPOCH, sent_at=EPOCH)


def test_the_views_calls_find_that_token(
    op: OpenIDProvider,
    signed_in: Browser,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    """Session, user, token: three statements, and none for the call of the view."""
    with django_assert_num_queries(3):
        response = signed_in.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    assert b"/api/any" in response.content


def test_it_happens_outside_the_views_transaction(
    op: OpenIDProvider, signed_in: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A view that raises takes nothing of it back, as it would of a call of its own."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    expire()
    with pytest.raises(ValueError, match="mistake of the site"):
        signed_in.client.get("/failing/")
    assert op.refreshes == 1
    assert Grant.objects.get().refreshes == 1


def test_what_fails_there_breaks_no_page(op: OpenIDProvider, signed_in: Browser) -> None:
    expire()
    op.answer["token"] = raw(503, {"Retry-After": "60"})
    assert signed_in.client.get("/plain/").content == b"plain"


def test_nothing_is_asked_where_no_api_is_called(
    op: OpenIDProvider, signed_in: Browser, configure: Configure
) -> None:
    configure()
    expire()
    assert signed_in.client.get("/plain/").content == b"plain"
    assert op.refreshes == 0


def test_visitors_without_a_session_cost_nothing(
    browser: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(0):
        response = browser.client.get("/plain/")
    assert "Vary" not in response.headers


def test_our_own_views_renew_nothing(op: OpenIDProvider, signed_in: Browser) -> None:
    expire()
    signed_in.client.post("/oidc/logout/")
    assert op.refreshes == 0


def test_a_page_waits_for_a_second_at_most() -> None:
    """The tests of pages_in_threads.py on a SQLite file: no thread can share one in memory."""
    assert_passes("pages_in_threads")


@pytest.mark.parametrize("broken", [{}, {"op": {"TIMEOUT": "x"}}], ids=["removed", "broken"])
def test_a_provider_that_cannot_be_used_breaks_no_page(
    op: OpenIDProvider, signed_in: Browser, settings: Settings, broken: dict[str, Any]
) -> None:
    settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": broken}
    assert signed_in.client.get("/plain/").content == b"plain"
    response = signed_in.client.get("/calling/", {"url": f"{op.origin}/api/any"}, headers=HTML)
    assert response.status_code == (503 if broken else 403)


# After it


@pytest.mark.parametrize("headers", [HTML, PAGE, HTML | PAGE])
@pytest.mark.parametrize("url", ["/without/", "/async-without/"])
def test_a_page_visit_is_sent_to_sign_in(
    browser: Browser, url: str, headers: dict[str, str]
) -> None:
    response = browser.client.get(url, headers=headers)
    assert response.status_code == 302
    assert response.headers["Location"] == "/oidc/op/login/?next=/there/"
    assert response.headers["Cache-Control"] == "no-store"


def test_without_a_url_in_the_error_the_chooser_it_is(browser: Browser) -> None:
    response = browser.client.get("/nowhere/?a=1", headers=HTML)
    assert response.headers["Location"] == "/oidc/login/?next=%2Fnowhere%2F%3Fa%3D1"


SCRIPTS: dict[str, dict[str, str]] = {
    "fetch": HTML | {"sec-fetch-mode": "cors"},
    "XMLHttpRequest": HTML | {"x-requested-with": "XMLHttpRequest"},
    "a frame": HTML | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    "a program": {"accept": "*/*"},
    "nothing said": {},
}


@pytest.mark.parametrize("headers", SCRIPTS.values(), ids=SCRIPTS)
def test_a_script_is_told_where_to(browser: Browser, headers: dict[str, str]) -> None:
    response = browser.client.get("/without/", headers=headers)
    url = "/oidc/op/login/?next=/there/"
    assert response.status_code == 401
    assert json.loads(response.content) == {"error": "login_required", "login_url": url}
    assert response.headers["X-Login-URL"] == url
    assert response.headers["Cache-Control"] == "no-store"
    assert "Location" not in response.headers


def test_a_form_is_sent_to_the_login_as_well(browser: Browser) -> None:
    """Whoever pressed its button reads no JSON; the view sends no token and had refused it."""
    response = browser.client.post("/without/", headers=HTML | PAGE)
    assert (response.status_code, response.url) == (302, "/oidc/op/login/?next=/there/")


def test_htmx_is_told_in_its_own_way(browser: Browser) -> None:
    response = browser.client.get("/without/", headers={"hx-request": "true"})
    assert response.status_code == 401
    assert response.headers["HX-Redirect"] == "/oidc/op/login/?next=/there/"


def test_later_is_a_503_with_retry_after(browser: Browser) -> None:
    response = browser.client.get("/later/", headers=HTML)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.content.decode() == (
        "The sign-in service cannot be reached at the moment. Please try again in a minute.\n"
    )
    response = browser.client.get("/later/")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "3")
    assert json.loads(response.content) == {"error": "temporarily_unavailable", "retry_after": 3}


def test_other_errors_are_the_sites(browser: Browser) -> None:
    with pytest.raises(ValueError, match="mistake of the site"):
        browser.client.get("/failing/", headers=HTML)


# No circles


def twice(request: HttpRequest) -> HttpResponse:
    """A page that calls its API again when that refuses."""
    for _ in range(2):
        answer = api.session_for(request).get(request.GET["url"])
    return HttpResponse(answer.text, status=answer.status_code)


def of_two(request: HttpRequest) -> HttpResponse:
    """A page that needs two providers: no session signs in through both."""
    for slug in ("op", "other"):
        api.session_for(request, slug).get(request.GET["url"])
    return HttpResponse("both")


urlpatterns += [path("twice/", twice), path("of-two/", of_two)]


def last_page(browser: Browser, url: str) -> Any:
    """Follow every redirect, the OP's too, as a browser does, and as long as it would."""
    for _ in range(20):
        if url.startswith("http://127.0.0.1"):
            callback = urlsplit(browser.visit_op(url).url)
            url = f"{callback.path}?{callback.query}"
        response = browser.client.get(url, headers=HTML)
        if response.status_code != 302:
            return response
        url = response.headers["Location"]
    raise AssertionError("round and round")


def assert_ended(browser: Browser, response: Any, url: str, code: str) -> None:
    assert response.status_code == 403
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.content.decode().splitlines()[-1] == code
    script = browser.client.get(url, headers={"sec-fetch-mode": "cors"})
    assert (script.status_code, script.headers["Cache-Control"]) == (403, "no-store")
    assert json.loads(script.content) == {"error": "login_useless", "code": code}


def test_an_api_that_accepts_no_token_sends_nobody_round_in_circles(
    op: OpenIDProvider, set_up: Configure, browser: Browser, options: dict[str, Any]
) -> None:
    set_up(**options | {"SCOPES": ["openid", "calendar"]})
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    browser.sign_in("op")
    make_older(browser)
    url = f"/twice/?url={op.origin}/api/any"
    response = last_page(browser, url)
    assert_ended(browser, response, url, "grant.no_refresh_token")
    assert op.calls("authorization") == 2


def make_older(browser: Browser, seconds: float = 31) -> None:
    """The sign-in of this browser was so long ago."""
    session = browser.client.session
    session[CURRENT] = session[CURRENT] | {"at": session[CURRENT]["at"] - seconds}
    session.save()


def test_a_site_that_keeps_no_tokens_sends_nobody_round_in_circles(
    op: OpenIDProvider, configure: Configure, browser: Browser, options: dict[str, Any]
) -> None:
    configure(**options)
    url = f"/calling/?url={op.origin}/api/any"
    response = last_page(browser, f"/oidc/op/login/?{urlencode({'next': url})}")
    assert_ended(browser, response, url, "api.no_grant")
    make_older(browser)
    assert browser.client.get(url, headers=HTML).status_code == 302
    assert_ended(browser, last_page(browser, url), url, "api.no_grant")
    assert op.calls("authorization") == 2


def test_a_grant_that_an_operator_revoked_leads_to_a_login_at_once(
    op: OpenIDProvider, signed_in: Browser
) -> None:
    """However short ago the last one was: it is not that one which did not help."""
    url = f"/calling/?url={op.origin}/api/calendar"
    closing.end(Grant.objects.get().pk, grants.REVOKED)
    response = signed_in.client.get(url, headers=HTML)
    assert (response.status_code, urlsplit(response.headers["Location"]).path) == (
        302,
        "/oidc/op/login/",
    )
    assert last_page(signed_in, url).status_code == 200


def test_a_view_of_two_providers_sends_nobody_round_in_circles(
    op: OpenIDProvider, signed_in: Browser, settings: Settings
) -> None:
    given = settings.OIDC_RP
    providers = given["PROVIDERS"] | {"other": given["PROVIDERS"]["op"]}
    settings.OIDC_RP = given | {"PROVIDERS": providers}
    make_older(signed_in)
    url = f"/of-two/?url={op.origin}/api/any"
    response = last_page(signed_in, url)
    assert_ended(signed_in, response, url, "api.no_grant")
    assert op.calls("authorization") == 2


def test_a_session_that_is_older_than_its_time_of_sign_in_still_works(
    op: OpenIDProvider, signed_in: Browser
) -> None:
    session = signed_in.client.session
    del session[CURRENT]["at"]
    session.save()
    response = signed_in.client.get("/without/", headers=HTML)
    assert (response.status_code, response.url) == (302, "/oidc/op/login/?next=/there/")
    login = current_login(response.wsgi_request)
    assert login is not None
    assert (login.provider, login.at) == ("op", None)


# In an async site


def test_an_async_site_is_served_the_same(op: OpenIDProvider, signed_in: Browser) -> None:
    expire()
    make_older(signed_in)
    client = AsyncClient()
    client.cookies = signed_in.client.cookies
    get: Callable[..., Any] = async_to_sync(client.get)
    assert get("/async-plain/").content == b"plain"
    assert op.refreshes == 1
    response = get("/async-without/", headers=HTML)
    assert response.headers["Location"] == "/oidc/op/login/?next=/there/"
    assert get("/async-without/").status_code == 401
