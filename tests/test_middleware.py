"""TokenRenewal: a token that lasts before the view, a login instead of an error after it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient
from django.urls import include, path
from pytest_django import DjangoAssertNumQueries, Settings

from oidc_rp import api
from oidc_rp.errors import LoginRequired, TemporarilyUnavailable
from oidc_rp.models import EPOCH, Grant, StoredAccessToken
from tests.browser import Browser
from tests.conftest import Configure
from tests.provider import OpenIDProvider, raw
from tests.test_api import options, set_up, signed_in
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


# In an async site


def test_an_async_site_is_served_the_same(op: OpenIDProvider, signed_in: Browser) -> None:
    expire()
    client = AsyncClient()
    client.cookies = signed_in.client.cookies
    get: Callable[..., Any] = async_to_sync(client.get)
    assert get("/async-plain/").content == b"plain"
    assert op.refreshes == 1
    response = get("/async-without/", headers=HTML)
    assert response.headers["Location"] == "/oidc/op/login/?next=/there/"
    assert get("/async-without/").status_code == 401
