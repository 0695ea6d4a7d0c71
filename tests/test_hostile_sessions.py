"""What a hostile reading of sessions, logout and step-up found, each held by a test of its own."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from pytest_django import Settings

from oidc_rp import logout_views, session_index, views
from oidc_rp.models import DatabaseClock, Identity, LogoutMark, Session
from oidc_rp.sessions import PENDING, current_login
from oidc_rp.step_up import require_auth
from oidc_rp.testing import REMOVE, OpenIDProvider
from oidc_rp.testing.browser import Browser, Response
from tests.conftest import Configure
from tests.test_middleware import HTML, PAGE

VISIT = HTML | PAGE
RENEWAL = "oidc_rp.middleware.SessionRenewal"


@require_auth(acr="gold")
def strong(request: HttpRequest) -> HttpResponse:
    return HttpResponse("reached")


@require_auth(max_age=300)
def recent(request: HttpRequest) -> HttpResponse:
    return HttpResponse("reached")


urlpatterns = [
    path("", include("tests.urls")),
    path("strong/", strong),
    path("recent/", recent),
]


class InPlaceOfAnother:
    """A middleware as sites have for support staff, or for tokens in a header."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if name := request.headers.get("X-In-Place-Of"):
            request.user = get_user_model().objects.get(username=name)
        return self.get_response(request)


class DownCache(LocMemCache):
    """It keeps sessions, and deletes none."""

    def delete_many(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the server is down")


@pytest.fixture(autouse=True)
def pages(settings: Settings) -> None:
    settings.ROOT_URLCONF = __name__


def told_to_sign_out(browser: Browser, op: OpenIDProvider, **changes: Any) -> Response:
    token = op.logout_token(**changes)
    return browser.client.post("/oidc/op/backchannel-logout/", {"logout_token": token})


def is_signed_in(browser: Browser) -> bool:
    return bool(browser.client.get("/private/").status_code == 200)


def test_a_site_without_time_zones_shows_its_pages(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """USE_TZ=False makes Django's own times naive; those that are kept here never are."""
    settings.USE_TZ = False
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, RENEWAL]
    op.login.acr = "gold"
    assert browser.sign_in("op").status_code == 302
    for page in ("/oidc/identities/", "/recent/", "/strong/"):
        assert browser.client.get(page, headers=VISIT).status_code == 200


def test_M38_a_session_says_nothing_of_a_user_that_is_put_in_its_place(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Neither what its own user proved, nor that somebody has just signed in."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.InPlaceOfAnother"]
    op.login.acr = "gold"
    browser.sign_in("op")
    get_user_model().objects.create_user("victim")
    assert browser.client.get("/strong/", headers=VISIT).status_code == 200
    as_victim = VISIT | {"X-In-Place-Of": "victim"}
    assert browser.client.get("/strong/", headers=as_victim).status_code == 302
    form = {"action": "link", "provider": "op"}
    response = browser.client.post("/oidc/identities/", form, headers=as_victim)
    assert response.headers["Location"] == "/oidc/identities/"
    assert browser.client.session["oidc_rp_notice"] == "stale"
    assert not Identity.objects.filter(user__username="victim").exists()


def test_M58_a_session_without_a_name_ends_with_its_person(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A logout token that names both may mean it, and is about this very person; by the `sid`
    alone nothing is found."""
    op.id_token_claims["sid"] = REMOVE
    browser.sign_in("op")
    assert told_to_sign_out(browser, op, sub=REMOVE).status_code == 200
    assert told_to_sign_out(browser, op, sub="somebody-else").status_code == 200
    assert is_signed_in(browser)
    assert told_to_sign_out(browser, op).status_code == 200
    assert not is_signed_in(browser)


def test_M58_by_sid_and_sub_a_session_of_another_name_goes_on(
    op: OpenIDProvider, browser: Browser
) -> None:
    browser.sign_in("op")
    op.new_login()
    assert told_to_sign_out(browser, op).status_code == 200
    assert is_signed_in(browser)


def test_M60_a_login_without_a_name_is_beaten_by_both(op: OpenIDProvider, browser: Browser) -> None:
    op.id_token_claims["sid"] = REMOVE
    callback = browser.visit_op(browser.start("op"))
    told_to_sign_out(browser, op)
    assert browser.come_back(callback).context["code"] == "session.ended"
    assert not is_signed_in(browser)
    assert browser.sign_in("op").status_code == 302


def test_M58_a_renewal_without_sid_leaves_the_name_that_is_known(
    op: OpenIDProvider, browser: Browser, configure: Configure, settings: Settings
) -> None:
    configure(SESSION_RENEWAL=600)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, RENEWAL]
    browser.sign_in("op")
    Session.objects.update(renewed_at=DatabaseClock(timedelta(seconds=-700)))
    op.id_token_claims["sid"] = REMOVE
    browser.follow(browser.client.get("/private/", headers=VISIT))
    assert Session.objects.get().sid == op.login.sid
    assert told_to_sign_out(browser, op, sub=REMOVE).status_code == 200
    assert not is_signed_in(browser)


@pytest.mark.parametrize(("ahead", "signed_in"), [(-60, False), (60, True)])
def test_M60_the_databases_clock_says_which_was_first(
    op: OpenIDProvider, browser: Browser, ahead: int, signed_in: bool
) -> None:
    """A host whose clock is wrong does not matter, where the pending login knows the other one."""
    url = browser.start("op")
    session = browser.client.session
    (stored,) = session[PENDING].values()
    stored["since"] = session_index.database_now() + ahead
    session.save()
    callback = browser.visit_op(url)
    told_to_sign_out(browser, op)
    assert (browser.come_back(callback).status_code == 302) is signed_in


def test_M57_a_jti_is_unique_for_one_client(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Another client of the same issuer may be told by the same one."""
    provider = settings.OIDC_RP["PROVIDERS"]["op"]
    settings.OIDC_RP = {"PROVIDERS": {"op": provider, "two": provider | {"CLIENT_ID": "second"}}}
    statuses = [
        browser.client.post(
            f"/oidc/{slug}/backchannel-logout/",
            {"logout_token": op.logout_token(jti="one", aud=aud)},
        ).status_code
        for slug, aud in (("op", op.client_id), ("two", "second"), ("op", op.client_id))
    ]
    assert statuses == [200, 200, 400]
    assert LogoutMark.objects.exclude(jti=None).count() == 2


def test_M53_no_session_key_in_the_report_of_a_store_that_fails(
    op: OpenIDProvider, browser: Browser, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in the line nor in a frame of its traceback: there is none."""
    settings.CACHES = {"default": {"BACKEND": f"{__name__}.DownCache"}}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    browser.sign_in("op")
    assert told_to_sign_out(browser, op).status_code == 200
    told = [record for record in caplog.records if "not deleted yet" in record.getMessage()]
    assert [record.getMessage().rpartition(": ")[2] for record in told] == ["ConnectionError"]
    assert all(record.exc_info is None for record in told)


def test_M59_no_page_but_that_of_the_frame_may_be_framed(
    op: OpenIDProvider, browser: Browser
) -> None:
    """Also on a site whose middleware does not say so."""
    browser.sign_in("op")
    for page in ("/oidc/login/", "/oidc/identities/", "/oidc/logged-out/"):
        assert browser.client.get(page).headers["X-Frame-Options"] == "DENY"
    query = {"iss": op.issuer, "sid": op.login.sid}
    framed = browser.client.get("/oidc/op/frontchannel-logout/", query)
    assert "X-Frame-Options" not in framed.headers


@pytest.mark.parametrize(
    "view",
    [views.CallbackView, views.LogoutView, logout_views.BackchannelLogoutView],
)
def test_M60_no_view_is_in_a_transaction_of_any_database(view: Any) -> None:
    """What it writes stays written, whatever it answers."""
    assert "default" in view.as_view()._non_atomic_requests


def test_a_login_page_with_a_query_of_its_own_is_found(
    browser: Browser, settings: Settings
) -> None:
    settings.LOGIN_URL = "/login/?kind=staff"
    response = browser.client.get("/recent/", headers=VISIT)
    assert response.headers["Location"] == "/login/?kind=staff&next=/recent/"


def test_the_login_of_a_session_is_none_without_its_user(
    op: OpenIDProvider, browser: Browser
) -> None:
    response = browser.sign_in("op")
    request = response.wsgi_request
    assert current_login(request) is not None
    request.user = get_user_model().objects.create_user("somebody")
    assert current_login(request) is None
