"""A session follows the OP: by its refresh token beside the request, else by prompt=none for a page
that somebody visits; and what becomes of it when the OP says no, says nothing, or says nonsense.
"""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import Group
from django.core.cache import cache
from django.db import connection
from django.db.models import F
from django.http import HttpRequest, HttpResponse
from django.template import RequestContext, Template
from django.test import AsyncClient, Client
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from pytest_django import DjangoAssertNumQueries, Settings

from oidc_rp import api, circuit, relying_party, session_index
from oidc_rp.backends import OIDCBackend
from oidc_rp.grants import Owner
from oidc_rp.models import DatabaseClock, Event, Grant, Identity, Session
from oidc_rp.sealing import generate_key
from oidc_rp.sessions import CURRENT, PENDING, current_login
from oidc_rp.step_up import is_fresh
from oidc_rp.testing import (
    REMOVE,
    Misbehaviour,
    OpenIDProvider,
    SigningKey,
    close_connection,
    not_json,
    raw,
    redirect_to,
    sending,
    slow,
)
from oidc_rp.testing.browser import Browser, Callback
from tests.in_threads import assert_passes
from tests.test_middleware import HTML, PAGE
from tests.test_sessions import code_of, engine, put
from tests.tokens import Site, during, expire, hold, let_pass, site

__all__ = ["engine", "site"]

EVERY = 600
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
MIDDLEWARE = "oidc_rp.middleware.SessionRenewal"
VISIT = HTML | PAGE


# The site


@csrf_exempt
def page(request: HttpRequest) -> HttpResponse:
    """A page for everybody: who is here, what they may do, and what they sent."""
    user: Any = request.user
    told = {
        "user": user.get_username(),
        "first_name": getattr(user, "first_name", ""),
        "staff": user.is_staff,
        "superuser": user.is_superuser,
        "groups": sorted(group.name for group in user.groups.all()),
        "sent": request.POST.get("text", ""),
    }
    return HttpResponse(json.dumps(told))


def plain(request: HttpRequest) -> HttpResponse:
    """A page that asks nothing of anybody."""
    return HttpResponse("plain")


def asks(request: HttpRequest) -> HttpResponse:
    """A page that says where to sign in again, if need be."""
    template = Template("{% load oidc_rp %}{% oidc_sign_in_again as url %}{{ url }}")
    return HttpResponse(template.render(RequestContext(request)))


def form(request: HttpRequest) -> HttpResponse:
    """A form that Django's CSRF check guards."""
    return HttpResponse(f"{request.user.get_username()} sent {request.POST['text']}")


def calling(request: HttpRequest) -> HttpResponse:
    return HttpResponse(api.session_for(request).get(request.GET["url"]).text)


async def async_page(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(user.get_username())


def failing(request: HttpRequest) -> HttpResponse:
    get_user_model().objects.update(last_name="of the view")
    raise ValueError("a mistake of the site")


urlpatterns = [
    path("oidc/", include("oidc_rp.urls")),
    path("home/", page),
    path("plain/", plain),
    path("asking/", asks),
    path("form/", form),
    path("calling/", calling),
    path("async/", async_page),
    path("failing/", failing),
    path("private/", login_required(page)),
    path("/evil.example/", page),
]


@pytest.fixture(autouse=True)
def renewing(site: Site, settings: Settings) -> None:
    """A site with the middleware, where a session is to be renewed every ten minutes."""
    settings.ROOT_URLCONF = __name__
    middleware = [*settings.MIDDLEWARE]
    middleware.insert(middleware.index(AUTHENTICATION) + 1, MIDDLEWARE)
    settings.MIDDLEWARE = middleware
    has(site)


def has(site: Site, **options: Any) -> None:
    """Have these options, besides those that every test here has."""
    ours = {"SCOPES": ["openid", "profile", "email"], "SESSION_RENEWAL": EVERY}
    site.has(**ours | options)


@pytest.fixture
def by_token(op: OpenIDProvider, browser: Browser) -> Browser:
    """Somebody whose session holds a refresh token, and is older than SESSION_RENEWAL."""
    op.always_refresh_token = True
    return overdue(op, browser)


@pytest.fixture
def by_login(op: OpenIDProvider, browser: Browser) -> Browser:
    """Somebody whose session holds none, and is older than SESSION_RENEWAL."""
    return overdue(op, browser)


def overdue(op: OpenIDProvider, browser: Browser) -> Browser:
    sign_in(browser)
    make_due()
    op.forget_requests()
    return browser


def sign_in(browser: Browser) -> None:
    assert browser.sign_in("op").status_code == 302


def make_due(seconds: float = EVERY + 1) -> None:
    """The OP has last vouched for all sessions so long ago."""
    Session.objects.update(renewed_at=DatabaseClock(timedelta(seconds=-seconds)))


def let_a_minute_pass(seconds: int = 61) -> None:
    """Whatever was tried, or failed, was that much earlier."""
    for name in ("tried_at", "failed_at"):
        told = {name: F(name) - seconds * 1_000_000}
        Session.objects.exclude(**{name: None}).update(**told)


def the_session() -> Any:
    return session_index.read(Session.objects.get().pk)


def assert_renewed() -> Any:
    """Just now, and nothing of a try before is left."""
    row = the_session()
    assert row.now - row.renewed_at < timedelta(seconds=30)
    assert (row.tried_at, row.failed_at, row.ended_at) == (None, None, None)
    return row


def assert_tried() -> Any:
    """Just now, and nothing came of it."""
    row = the_session()
    assert row.now - row.renewed_at > timedelta(seconds=EVERY)
    assert row.now - row.tried_at < timedelta(seconds=30)
    assert row.failed_at is None
    return row


def who(response: Any) -> str:
    """Who the view saw."""
    assert response.status_code == 200, (response.status_code, response.content)
    return str(json.loads(response.content)["user"])


def user() -> Any:
    return get_user_model().objects.get()


def asked(response: Any) -> dict[str, str]:
    """The parameters of the authentication request that a response leads to."""
    assert response.status_code == 302, (response.status_code, response.content)
    url = urlsplit(response.headers["Location"])
    assert url.path == "/authorization", url
    return {name: values[0] for name, values in parse_qs(url.query).items()}


def events(name: str) -> list[str]:
    """The codes of what the timelines tell by this name."""
    return list(Event.objects.filter(name=name).order_by("id").values_list("code", flat=True))


# When


@pytest.mark.parametrize("age", [0, EVERY - 5])
def test_a_session_that_is_not_due_is_left_alone(
    op: OpenIDProvider, by_token: Browser, age: int
) -> None:
    make_due(age)
    before = the_session().renewed_at
    assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
    assert op.requests == []
    assert (the_session().renewed_at, the_session().tried_at) == (before, None)


def test_without_the_setting_no_session_is_ever_due(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    has(site, SESSION_RENEWAL=None)
    make_due(10**7)
    assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
    assert op.requests == []


def test_a_session_by_password_is_none_of_the_ops_business(
    op: OpenIDProvider, browser: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    get_user_model().objects.create_user("local", password="secret")
    assert browser.client.login(username="local", password="secret")
    with django_assert_num_queries(3):  # session, user, groups: the middleware asks nothing
        assert who(browser.client.get("/home/", headers=VISIT)) == "local"
    assert op.requests == []


def test_a_visitor_costs_nothing(
    browser: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_num_queries(0):
        response = browser.client.get("/plain/", headers=VISIT)
    assert "Vary" not in response.headers


def test_our_own_views_renew_nothing(op: OpenIDProvider, by_token: Browser) -> None:
    """They begin and end sessions."""
    assert by_token.client.get("/oidc/identities/", headers=VISIT).status_code == 200
    by_token.client.post("/oidc/logout/")
    assert op.calls("token") == op.calls("authorization") == 0


def test_a_session_that_is_not_due_costs_one_look_up(
    by_token: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    """By its key, however many sessions there are; a page that asks nobody's name loads nobody."""
    make_due(0)
    for number in range(30):
        Session.objects.create(identity=Identity.objects.get(), provider="op", sid=str(number))
    for _ in range(2):
        with django_assert_num_queries(2):  # session, row
            by_token.client.get("/plain/", headers=VISIT)
        with django_assert_num_queries(4):  # and user, groups
            by_token.client.get("/home/", headers=VISIT)


def test_a_session_that_was_tried_costs_no_more(
    op: OpenIDProvider, by_login: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    by_login.client.get("/home/", headers=VISIT)
    with django_assert_num_queries(2):
        by_login.client.get("/plain/", headers=VISIT)


def test_that_it_is_in_use_is_noted_every_five_minutes(
    by_token: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    make_due(0)
    Session.objects.update(last_seen_at=DatabaseClock(timedelta(seconds=-301)))
    with django_assert_num_queries(3):
        by_token.client.get("/plain/")
    with django_assert_num_queries(2):
        by_token.client.get("/plain/")


# By the refresh token


ANYTHING: dict[str, tuple[str, dict[str, str]]] = {
    "a page": ("get", VISIT),
    "a form": ("post", VISIT),
    "HEAD": ("head", VISIT),
    "fetch": ("get", {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}),
    "a form by fetch": ("post", {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}),
    "htmx": ("get", {"hx-request": "true"}),
    "a frame": ("get", HTML | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}),
    "a look ahead": ("get", VISIT | {"sec-purpose": "prefetch"}),
    "nothing said": ("get", {}),
}


@pytest.mark.parametrize(("method", "headers"), ANYTHING.values(), ids=ANYTHING)
def test_the_refresh_token_renews_beside_any_request(
    op: OpenIDProvider, by_token: Browser, method: str, headers: dict[str, str]
) -> None:
    """One token call and one to UserInfo, no redirect, and the view gets what was sent."""
    before = the_session()
    call = getattr(by_token.client, method)
    data = {"text": "not lost"} if method == "post" else {}
    response = call("/home/", data, headers=headers)
    assert response.status_code == 200
    if method == "post":
        assert json.loads(response.content)["sent"] == "not lost"
    assert [request.endpoint for request in op.requests] == ["token", "userinfo"]
    row = assert_renewed()
    assert (row.pk, row.created_at, row.sid) == (before.pk, before.created_at, before.sid)
    call("/home/", data, headers=headers)
    assert op.calls("token") == 1


def test_a_renewal_costs_the_same_however_many_sessions_there_are(
    by_token: Browser, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    """Eight of them are savepoints of this test's transaction."""
    for number in range(30):
        Session.objects.create(identity=Identity.objects.get(), provider="op", sid=str(number))
    make_due()
    with django_assert_num_queries(29):
        by_token.client.get("/plain/")


def test_the_users_fields_follow_UserInfo(op: OpenIDProvider, by_token: Browser) -> None:
    """Already in the view of this very request."""
    op.person["given_name"] = "Janet"
    told = json.loads(by_token.client.get("/home/").content)
    assert told["first_name"] == user().first_name == "Janet"
    assert Identity.objects.get().claims["given_name"] == "Janet"


ROLES = {
    "GROUPS_CLAIM": "roles",
    "GROUPS": {"editor": "Editors"},
    "STAFF_GROUPS": ["admin"],
    "SUPERUSER_GROUPS": ["root"],
}


@pytest.fixture
def mighty(op: OpenIDProvider, browser: Browser, site: Site) -> Browser:
    """Somebody who is of all groups, by a session with a refresh token that is due."""
    op.always_refresh_token = True
    has(site, **ROLES)
    op.person["roles"] = ["editor", "admin", "root"]
    overdue(op, browser)
    make_due(0)
    told = json.loads(browser.client.get("/home/").content)
    assert (told["staff"], told["superuser"], told["groups"]) == (True, True, ["Editors"])
    make_due()
    return browser


def assert_ordinary(told: dict[str, Any]) -> None:
    assert (told["staff"], told["superuser"], told["groups"]) == (False, False, [])
    now = user()
    assert (now.is_staff, now.is_superuser, now.groups.count()) == (False, False, 0)


def test_groups_and_staff_follow_UserInfo(op: OpenIDProvider, mighty: Browser) -> None:
    """Who was an admin a moment ago is none for the view of this very request."""
    op.person["roles"] = []
    assert_ordinary(json.loads(mighty.client.get("/home/").content))
    assert Group.objects.count() == 1


def test_groups_and_staff_follow_a_refreshed_ID_Token(
    op: OpenIDProvider, browser: Browser, site: Site
) -> None:
    """An OP that says who somebody is in the ID Token alone."""
    op.always_refresh_token = op.id_token_carries_claims = True
    has(site, **ROLES, USERINFO=False)
    op.person["roles"] = ["editor", "admin", "root"]
    overdue(op, browser)
    op.person["roles"] = []
    assert_ordinary(json.loads(browser.client.get("/home/").content))
    assert op.calls("userinfo") == 0
    assert_renewed()


def test_the_admin_is_closed_at_the_renewal(op: OpenIDProvider, mighty: Browser) -> None:
    op.person["roles"] = []
    response = mighty.client.get("/home/", headers=VISIT)
    assert json.loads(response.content)["staff"] is False


def test_a_refreshed_ID_Token_goes_before_UserInfo(op: OpenIDProvider, by_token: Browser) -> None:
    """It is signed. A null in it says nothing, and UserInfo's word counts."""
    op.refreshed_id_token_claims |= {"given_name": "Signed", "family_name": None}
    op.person |= {"given_name": "Told", "family_name": "Also told"}
    by_token.client.get("/home/")
    assert (user().first_name, user().last_name) == ("Signed", "Also told")


@pytest.mark.parametrize("userinfo", [True, False])
@pytest.mark.parametrize("heard", [True, False])
def test_a_claim_that_is_not_there_any_more_is_gone(
    op: OpenIDProvider,
    browser: Browser,
    site: Site,
    settings: Settings,
    userinfo: bool,
    heard: bool,
) -> None:
    """Some OPs leave out a list of roles that is empty. Without a refreshed ID Token nobody knows
    what it would have said: as in the one of the login."""
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.ForStaff"]
    op.always_refresh_token = op.id_token_carries_claims = True
    op.id_token_on_refresh = heard
    op.userinfo_claims["roles"] = REMOVE
    op.person["roles"] = ["staff"]
    has(site, USERINFO=userinfo)
    overdue(op, browser)
    del op.person["roles"]
    assert who(browser.client.get("/home/")) == ("" if heard else user().username)


def test_UserInfo_does_not_vouch_for_the_address_of_the_ID_Token(
    op: OpenIDProvider, browser: Browser, site: Site
) -> None:
    """`email_verified` is of the address that stands beside it, as at a login."""
    op.always_refresh_token = True
    has(site, EMAIL_DOMAINS=["example.com"])
    overdue(op, browser)
    op.refreshed_id_token_claims["email"] = "boss@example.com"
    op.person["email"] = "jane.doe@example.com"
    assert who(browser.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    assert events("session_ended") == ["not_renewed"]


@pytest.mark.parametrize(
    "bent",
    [{"aud": "somebody-else"}, {"exp": 1}, {"nonce": "another"}, {"at_hash": "no"}],
    ids=lambda bent: next(iter(bent)),
)
def test_M30_an_invalid_refreshed_ID_Token_changes_nothing(
    op: OpenIDProvider, by_token: Browser, bent: dict[str, Any]
) -> None:
    """T19: the tokens are kept, its claims are not believed; UserInfo is."""
    op.refreshed_id_token_claims |= {"given_name": "Forged"} | bent
    op.person["family_name"] = "Told"
    assert who(by_token.client.get("/home/")) == user().username
    assert user().first_name == "Jane"
    assert user().last_name == "Told"
    assert_renewed()


@pytest.mark.parametrize("scopes", [["openid"], ["openid", "offline_access"]], ids=len)
@pytest.mark.parametrize(
    ("bent", "claim"),
    [
        ({"auth_time": 1}, "auth_time"),
        ({"nonce": "another"}, "nonce"),
        ({"aud": ["rp-client", "https://api.example"], "azp": "rp-client"}, "aud"),
        ({"azp": "rp-client"}, "azp"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_M30_an_ID_Token_of_another_sign_in_is_not_believed(
    op: OpenIDProvider,
    browser: Browser,
    site: Site,
    scopes: list[str],
    bent: dict[str, Any],
    claim: str,
) -> None:
    """Whether the grant is the session's or a durable one (Core §12.2); the session goes on."""
    has(site, SCOPES=[*scopes, "profile"], TRUSTED_AUDIENCES=["https://api.example"])
    op.always_refresh_token = True
    overdue(op, browser)
    op.refreshed_id_token_claims |= {"given_name": "Forged"} | bent
    assert who(browser.client.get("/home/")) == user().username
    assert user().first_name == "Jane"
    assert events("id_token_refused") == [f"id_token.{claim}"]
    assert_renewed()


def test_M30_what_the_OP_repeats_is_believed(
    op: OpenIDProvider, browser: Browser, site: Site
) -> None:
    """With the nonce of the login, too, which some send once more; of the latest, that is."""
    has(site, SCOPES=["openid", "profile", "offline_access"])
    overdue(op, browser)
    first = Grant.objects.get().original_claims["nonce"]
    overdue(op, browser)
    nonce = Grant.objects.get().original_claims["nonce"]
    assert len({first, nonce}) == 2
    op.refreshed_id_token_claims |= {"given_name": "Told", "nonce": nonce}
    assert who(browser.client.get("/home/")) == user().username
    assert user().first_name == "Told"
    assert events("id_token_refused") == []


def test_M30_of_a_grant_of_before_nothing_was_kept(op: OpenIDProvider, by_token: Browser) -> None:
    """Whoever signed in before the column was there is renewed all the same."""
    Grant.objects.update(original_claims=None)
    op.refreshed_id_token_claims |= {"given_name": "Told", "nonce": "unknown"}
    assert who(by_token.client.get("/home/")) == user().username
    assert user().first_name == "Told"


def test_M30_a_forged_refreshed_ID_Token_changes_nothing(
    op: OpenIDProvider, by_token: Browser
) -> None:
    stranger = SigningKey.generate("RS256", kid=op.keys[0].kid)
    op.make_id_token = lambda claims, header: op.sign(claims | {"given_name": "F"}, key=stranger)
    assert who(by_token.client.get("/home/")) == user().username
    assert user().first_name == "Jane"
    assert events("id_token_refused") == ["id_token.signature"]


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
@pytest.mark.parametrize("claim", ["sub", "iss"])
def test_M30_T19_a_refreshed_ID_Token_of_somebody_else_signs_out(
    op: OpenIDProvider, by_token: Browser, site: Site, claim: str, failed: str
) -> None:
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.refreshed_id_token_claims[claim] = "somebody-else"
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    assert Grant.objects.get().close_reason == "subject_changed"
    assert who(by_token.client.get("/home/")) == ""


def test_what_an_API_call_has_just_refreshed_is_not_refreshed_again(
    op: OpenIDProvider, by_token: Browser
) -> None:
    """The OP has said so moments ago; UserInfo still tells what has changed."""
    expire()
    by_token.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    op.forget_requests()
    make_due()
    op.person["given_name"] = "Janet"
    assert who(by_token.client.get("/home/")) == user().username
    assert [request.endpoint for request in op.requests] == ["userinfo"]
    assert user().first_name == "Janet"
    assert_renewed()


@pytest.mark.parametrize("userinfo", [True, False])
def test_it_is_refreshed_again_for_what_the_ID_Token_alone_tells(
    op: OpenIDProvider, browser: Browser, site: Site, userinfo: bool
) -> None:
    """API calls leave the claims of a refreshed ID Token alone, and come before every renewal."""
    op.always_refresh_token = op.id_token_carries_claims = True
    op.userinfo_claims["roles"] = REMOVE
    op.person["roles"] = ["editor", "admin", "root"]
    has(site, **ROLES, USERINFO=userinfo)
    overdue(op, browser)
    make_due(0)
    expire()
    browser.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    make_due()
    op.person["roles"] = []
    assert_ordinary(json.loads(browser.client.get("/home/").content))
    assert op.refreshes == 2


def test_a_token_that_the_OP_takes_no_more_does_not_speak_for_it(
    op: OpenIDProvider, by_token: Browser
) -> None:
    """One of a refresh just now, ended since then: another refresh tells."""
    expire()
    by_token.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    make_due()
    op.expire_access_tokens()
    assert who(by_token.client.get("/home/")) == user().username
    assert op.refreshes == 2
    assert_renewed()


def test_whoever_refreshes_now_is_waited_for(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    """The old access token says nothing of what comes of that: here, for longer than we wait."""
    hold(Owner(0, Grant.objects.get().pk))
    assert who(by_token.client.get("/home/")) == user().username
    assert op.requests == []
    assert_tried()


# It says no


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
def test_invalid_grant_follows_the_setting(
    op: OpenIDProvider, by_token: Browser, site: Site, failed: str
) -> None:
    """Signed out in this very request; or it goes on, and is marked."""
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.end_grants()
    name = user().username
    response = by_token.client.get("/home/", headers=VISIT)
    assert op.calls("token") == 1
    if failed == "sign_out":
        assert who(response) == ""
        assert Session.objects.count() == 0
        assert "_auth_user_id" not in by_token.client.session
        assert events("session_ended") == ["not_renewed"]
        assert by_token.client.get("/private/").status_code == 302
        return
    assert who(response) == name
    row = the_session()
    assert (row.now - row.failed_at, row.ended_at) < (timedelta(seconds=30), None)
    assert events("not_renewed") == ["grant.revoked_or_expired"]


def test_a_person_who_is_disabled_at_the_OP_is_signed_out(
    op: OpenIDProvider, by_token: Browser
) -> None:
    op.disabled = True
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0


def test_an_OP_that_wants_to_see_the_person_is_heard(op: OpenIDProvider, by_token: Browser) -> None:
    op.answer["token"] = sending({"error": "interaction_required"}, 400)
    assert who(by_token.client.get("/home/")) == ""
    assert events("session_ended") == ["not_renewed"]


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_UserInfo_endpoint_that_says_no_is_heard(
    op: OpenIDProvider, by_token: Browser, site: Site, status: int, failed: str
) -> None:
    has(site, SESSION_RENEWAL_FAILED=failed)
    name = user().username
    op.answer["userinfo"] = raw(status)
    assert who(by_token.client.get("/home/")) == ("" if failed == "sign_out" else name)
    if failed == "ask":
        assert events("not_renewed") == ["userinfo.status"]


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
def test_M31_another_persons_UserInfo_signs_out(
    op: OpenIDProvider, by_token: Browser, site: Site, failed: str
) -> None:
    """Nobody else is asked to go on with this session, and nothing of theirs is kept."""
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.userinfo_claims |= {"sub": "somebody-else", "given_name": "Else"}
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    assert user().first_name == "Jane"


class ForStaff(OIDCBackend):
    """A site for those who have a role."""

    def verify_claims(self, claims: Any) -> bool:
        return "staff" in claims.get("roles", [])


class Strict(OIDCBackend):
    """A site that lets in whom it knows."""

    def verify_claims(self, claims: Any) -> bool:
        return claims.get("given_name") != "Janet"

    def update_user(self, user: Any, claims: Any) -> Any:
        if claims.get("given_name") == "Broken":
            raise ValueError("a mistake of the site")
        return super().update_user(user, claims)


@pytest.fixture
def strict(settings: Settings) -> None:
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Strict"]


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
def test_whom_the_site_refuses_is_signed_out_and_not_asked(
    op: OpenIDProvider, strict: None, by_token: Browser, site: Site, failed: str
) -> None:
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.person["given_name"] = "Janet"
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    assert user().first_name == "Jane"


def test_a_mistake_in_a_hook_of_the_site_ends_no_session_and_breaks_no_page(
    op: OpenIDProvider, strict: None, by_token: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    op.person["given_name"] = "Broken"
    assert who(by_token.client.get("/home/")) == user().username
    assert_tried()
    assert any(record.exc_info for record in caplog.records if record.name == "oidc_rp")


@pytest.mark.parametrize("by_signal", [True, False])
def test_M38_a_user_who_is_not_active_here_is_signed_out(
    op: OpenIDProvider, by_token: Browser, by_signal: bool
) -> None:
    """At once: whether a form of the admin deactivated them, or a statement."""
    if by_signal:
        one = user()
        one.is_active = False
        one.save()
    else:
        get_user_model().objects.update(is_active=False)
    assert who(by_token.client.get("/home/")) == ""
    assert op.calls("token") == 0


@pytest.mark.django_db(transaction=True)
def test_M38_a_user_who_is_deactivated_meanwhile_is_signed_out(
    op: OpenIDProvider, by_token: Browser
) -> None:
    op.answer["userinfo"] = during(lambda: get_user_model().objects.update(is_active=False))
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0


def test_M38_an_identity_that_is_somebody_elses_now_ends_the_session(
    op: OpenIDProvider, by_token: Browser
) -> None:
    """An operator gave it to another user: this session is not theirs, and not its old one's."""
    other = get_user_model().objects.create_user("other")
    Identity.objects.update(user=other)
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    other.refresh_from_db()
    assert other.first_name == ""


# It says nothing


FAULTS = [
    "500",
    "503",
    "503_json",
    "429",
    "server_error",
    "invalid_client",
    "invalid_request",
    "reset_before_rotation",
    "closed_before_rotation",
]


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
@pytest.mark.parametrize("fault", FAULTS)
def test_M55_an_OP_that_fails_ends_no_session_and_rests_a_minute(
    op: OpenIDProvider, by_token: Browser, site: Site, fault: str, failed: str
) -> None:
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.refresh_fault = fault
    name = user().username
    assert who(by_token.client.get("/home/", headers=VISIT)) == name
    assert_tried()
    calls = len(op.requests)
    let_pass()
    for _ in range(3):
        assert who(by_token.client.get("/home/", headers=VISIT)) == name
    assert len(op.requests) == calls
    op.refresh_fault = ""
    let_a_minute_pass()
    let_pass()
    circuit.close("op")
    assert who(by_token.client.get("/home/", headers=VISIT)) == name
    assert op.calls("token") > 0
    assert_renewed()


def test_an_OP_that_is_down_ends_no_session(op: OpenIDProvider, by_token: Browser) -> None:
    op.stop()
    for _ in range(2):
        assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
        assert_tried()


@pytest.mark.parametrize(
    "fault", [slow(1.5), raw(500), not_json(), close_connection(), redirect_to("/elsewhere")]
)
def test_a_UserInfo_endpoint_that_fails_ends_no_session(
    op: OpenIDProvider, by_token: Browser, site: Site, fault: Misbehaviour
) -> None:
    has(site, TIMEOUT=1)
    op.answer["userinfo"] = fault
    for _ in range(2):
        assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
        assert_tried()
    assert op.calls("token") == 1


def test_a_slow_OP_costs_its_TIMEOUT_once(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    has(site, TIMEOUT=1)
    op.answer["token"] = slow(3)
    assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
    calls = op.calls("token")
    assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
    assert op.calls("token") == calls


def test_short_intervals_rest_a_minute_too(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    has(site, SESSION_RENEWAL=1)
    op.refresh_fault = "503"
    by_token.client.get("/home/")
    calls = op.calls("token")
    let_a_minute_pass(30)
    let_pass()
    by_token.client.get("/home/")
    assert op.calls("token") == calls


def test_a_provider_that_cannot_be_used_ends_no_session(
    op: OpenIDProvider, by_token: Browser, settings: Settings
) -> None:
    for broken in ({}, {"op": {"TIMEOUT": "x"}}):
        settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": broken}
        assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
    assert op.requests == []


def test_a_key_that_is_missing_here_ends_no_session(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    keys, site.token_keys = site.token_keys, [generate_key()]
    has(site)
    assert who(by_token.client.get("/home/")) == user().username
    assert_tried()
    site.token_keys = keys


# Only a login can tell


def lose_the_rotation(op: OpenIDProvider) -> None:
    """The OP has spent the refresh token, and its answer is lost."""
    op.refresh_fault, op.refresh_fault_times = "reset_after_rotation", 1


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
def test_a_rotation_that_is_lost_is_made_up_for_by_prompt_none(
    op: OpenIDProvider, by_token: Browser, site: Site, failed: str
) -> None:
    """The OP did not say no to the person; and it is asked on this very page view."""
    has(site, SESSION_RENEWAL_FAILED=failed)
    lose_the_rotation(op)
    name, before = user().username, the_session().pk
    response = by_token.client.get("/home/?a=1", headers=VISIT)
    assert Grant.objects.get().close_reason == "rotation_lost"
    assert asked(response)["prompt"] == "none"
    back = by_token.follow(response)
    assert (back.status_code, back.url) == (302, "/home/?a=1")
    assert who(by_token.client.get("/home/", headers=VISIT)) == name
    assert assert_renewed().pk == before
    assert the_session().grant.refresh_token != ""


def test_where_no_page_is_visited_the_next_one_asks(op: OpenIDProvider, by_token: Browser) -> None:
    lose_the_rotation(op)
    response = by_token.client.post("/home/", {"text": "not lost"}, headers=VISIT)
    assert json.loads(response.content)["sent"] == "not lost"
    assert asked(by_token.client.get("/home/", headers=VISIT))["prompt"] == "none"


def test_a_person_who_is_disabled_does_not_gain_by_a_lost_rotation(
    op: OpenIDProvider, by_token: Browser
) -> None:
    lose_the_rotation(op)
    response = by_token.client.get("/home/", headers=VISIT)
    op.disabled = True
    by_token.follow(response)
    assert who(by_token.client.get("/home/", headers=VISIT)) == ""


@pytest.mark.parametrize("changed", ["CLIENT_ID", "ISSUER"])
def test_another_client_or_issuer_is_asked_by_prompt_none(
    op: OpenIDProvider, by_token: Browser, site: Site, changed: str
) -> None:
    """No refresh token is sent to whom it is not from."""
    with OpenIDProvider(keys=op.keys) as other:
        other.client_secret = op.client_secret
        has(site, **{changed: {"CLIENT_ID": "new", "ISSUER": other.issuer}[changed]})
        response = by_token.client.get("/home/", headers=VISIT)
        assert asked(response)["prompt"] == "none"
        assert (op.calls("token"), other.calls("token")) == (0, 0)
        if changed == "ISSUER":
            by_token.follow(response)
            assert who(by_token.client.get("/home/", headers=VISIT)) == ""


# By prompt=none: which requests


VISITS: dict[str, dict[str, str]] = {
    "Accept": HTML,
    "Sec-Fetch": PAGE,
    "both": VISIT,
    "no Sec-Fetch-Dest": {"sec-fetch-mode": "navigate"},
    "from elsewhere": VISIT | {"sec-fetch-site": "cross-site"},
}


@pytest.mark.parametrize("headers", VISITS.values(), ids=VISITS)
def test_a_page_visit_goes_by_the_OP(
    op: OpenIDProvider, by_login: Browser, headers: dict[str, str]
) -> None:
    response = by_login.client.get("/home/?a=1&b=%2F", headers=headers)
    assert asked(response)["prompt"] == "none"
    assert response.headers["Cache-Control"] == "no-store"
    back = by_login.follow(response)
    assert (back.status_code, back.url) == (302, "/home/?a=1&b=%2F")
    assert who(by_login.client.get(back.url, headers=headers)) == user().username
    assert_renewed()
    assert op.calls("authorization") == 1
    names = Event.objects.order_by("id").values_list("name", flat=True)
    assert list(names) == ["identity_linked", "signed_in", "closed", "session_renewed"]


NO_VISITS: dict[str, tuple[str, dict[str, str]]] = {
    "a form": ("post", VISIT),
    "a form by fetch": ("post", {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}),
    "a form by htmx": ("post", {"hx-request": "true"}),
    "PUT": ("put", VISIT),
    "DELETE": ("delete", VISIT),
    "HEAD": ("head", VISIT),
    "OPTIONS": ("options", VISIT),
    "a frame": ("get", HTML | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}),
    "an embedded page": ("get", HTML | {"sec-fetch-mode": "navigate", "sec-fetch-dest": "object"}),
    "a prefetch": ("get", VISIT | {"sec-purpose": "prefetch"}),
    "a prerender": ("get", VISIT | {"sec-purpose": "prefetch;prerender"}),
    "an old prefetch": ("get", HTML | {"purpose": "prefetch"}),
    "a Firefox prefetch": ("get", HTML | {"x-moz": "prefetch"}),
    "an image": ("get", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}),
    "a stylesheet": ("get", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "style"}),
    "a script": ("get", {"sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"}),
    "a font": ("get", {"sec-fetch-mode": "cors", "sec-fetch-dest": "font"}),
    "a program": ("get", {"accept": "*/*"}),
    "nothing said": ("get", {}),
}


@pytest.mark.parametrize(("method", "headers"), NO_VISITS.values(), ids=NO_VISITS)
def test_nothing_else_is_interrupted(
    op: OpenIDProvider, by_login: Browser, method: str, headers: dict[str, str]
) -> None:
    """What a form sends is not lost, and what nobody sees leads nowhere; the session goes on."""
    call = getattr(by_login.client, method)
    data: Any = {"text": "not lost"} if method == "post" else None
    response = call("/home/", data, headers=headers) if data else call("/home/", headers=headers)
    assert response.status_code == 200
    if data:
        assert json.loads(response.content)["sent"] == "not lost"
    assert op.requests == []
    assert (the_session().tried_at, by_login.client.session[PENDING]) == (None, {})
    assert asked(by_login.client.get("/home/", headers=VISIT))["prompt"] == "none"


SCRIPT_CALLS: dict[str, dict[str, str]] = {
    "fetch": {"sec-fetch-mode": "cors", "sec-fetch-dest": "empty", "accept": "*/*"},
    "fetch of HTML": HTML | {"sec-fetch-mode": "same-origin", "sec-fetch-dest": "empty"},
    "fetch that says less": {"sec-fetch-mode": "cors"},
    "XMLHttpRequest": {"x-requested-with": "XMLHttpRequest", "accept": "*/*"},
    "htmx": HTML | {"hx-request": "true"},
    "htmx, boosted": HTML | {"hx-request": "true", "hx-boosted": "true"},
}


@pytest.mark.parametrize("headers", SCRIPT_CALLS.values(), ids=SCRIPT_CALLS)
def test_a_script_is_told_where_the_login_is(
    op: OpenIDProvider, by_login: Browser, headers: dict[str, str]
) -> None:
    """It cannot go there itself; and the session is still there."""
    url = "/oidc/op/login/?next=%2Fhome%2F%3Fa%3D1"
    referer = {"referer": "http://testserver/home/?a=1"}
    response = by_login.client.get("/home/", headers=headers | referer)
    assert response.status_code == 401
    assert json.loads(response.content) == {"error": "login_required", "login_url": url}
    assert response.headers["X-Login-URL"] == url
    assert response.headers["Cache-Control"] == "no-store"
    assert "Location" not in response.headers
    assert response.headers.get("HX-Redirect") == (url if "hx-request" in headers else None)
    assert op.requests == []
    assert asked(by_login.client.get("/home/", headers=VISIT))["prompt"] == "none"


# By prompt=none: the request


def test_the_parameters_of_the_request(op: OpenIDProvider, by_login: Browser, site: Site) -> None:
    """A prompt of the settings, such as the one that asks for offline access, would show a page."""
    has(site, AUTHORIZATION_PARAMS={"prompt": "consent", "audience": "x"})
    response = by_login.client.get("/home/?secret=1", headers=VISIT)
    parameters = asked(response)
    ours = ("state", "nonce", "code_challenge", "id_token_hint")
    assert {name: value for name, value in parameters.items() if name not in ours} == {
        "response_type": "code",
        "client_id": op.client_id,
        "redirect_uri": "http://testserver/oidc/op/callback/",
        "scope": "openid profile email",
        "code_challenge_method": "S256",
        "prompt": "none",
        "audience": "x",
    }
    assert op._own_claims(parameters["id_token_hint"])["sub"] == op.person["sub"]
    assert "secret" not in response.headers["Location"]


def test_no_hint_where_no_ID_Token_is_kept(op: OpenIDProvider, by_login: Browser) -> None:
    Session.objects.update(id_token="", key_id="")
    response = by_login.client.get("/home/", headers=VISIT)
    assert "id_token_hint" not in asked(response)
    by_login.follow(response)
    assert_renewed()


def test_no_hint_where_it_does_not_open(op: OpenIDProvider, by_login: Browser) -> None:
    """A broken seal breaks no page."""
    Session.objects.update(id_token=F("grant_id"))
    assert "id_token_hint" not in asked(by_login.client.get("/home/", headers=VISIT))


def test_M15_with_PAR_all_of_it_is_pushed(
    op: OpenIDProvider, by_login: Browser, site: Site
) -> None:
    has(site, REQUIRE_PUSHED_AUTHORIZATION_REQUESTS=True)
    response = by_login.client.get("/home/", headers=VISIT)
    assert asked(response).keys() == {"client_id", "request_uri"}
    assert op.requests_to("par")[0].form["prompt"] == ["none"]
    by_login.follow(response)
    assert_renewed()


@pytest.mark.parametrize("address", ["/home/?" + "a" * 1100, "//evil.example/"])
def test_M12_a_page_that_cannot_be_come_back_to_is_not_interrupted(
    op: OpenIDProvider, by_login: Browser, address: str
) -> None:
    """Nobody loses the place where they are, or ends at another host; the next page renews."""
    path_info, _, query = address.partition("?")
    whole = {"PATH_INFO": path_info, "QUERY_STRING": query}
    assert who(by_login.client.get("/", headers=VISIT, **whole)) == user().username
    assert (op.requests, the_session().tried_at) == ([], None)
    assert asked(by_login.client.get("/home/", headers=VISIT))["prompt"] == "none"


# By prompt=none: it says yes


def test_success_leaves_the_session_as_it_is(op: OpenIDProvider, browser: Browser) -> None:
    """Its key, what the site keeps in it, and the CSRF token: forms in other tabs still work."""
    browser.client = Client(enforce_csrf_checks=True)
    sign_in(browser)
    put(browser, basket=[1, 2])
    browser.client.get("/oidc/login/")  # a page with a form
    csrf = browser.client.cookies["csrftoken"].value
    key, at = browser.client.session.session_key, browser.client.session[CURRENT]["at"]
    make_due()
    op.new_login()
    browser.follow(browser.client.get("/home/", headers=VISIT))
    assert browser.client.session.session_key == key
    assert browser.client.session["basket"] == [1, 2]
    assert browser.client.session[CURRENT]["at"] == at
    assert browser.client.cookies["csrftoken"].value == csrf
    response = browser.client.post(
        "/form/", {"text": "x", "csrfmiddlewaretoken": csrf}, headers=VISIT
    )
    assert response.content.decode() == f"{user().username} sent x"


def test_success_brings_the_row_and_the_grant_up_to_date(
    op: OpenIDProvider, by_login: Browser
) -> None:
    """The same row: requests of other tabs that are under way find it."""
    before = the_session()
    login = op.new_login()
    login.acr, login.amr, login.auth_time = "gold", ["pwd", "otp"], login.auth_time - 50
    op.person["given_name"] = "Janet"
    by_login.follow(by_login.client.get("/home/", headers=VISIT))
    row = assert_renewed()
    assert (row.pk, row.session_key, row.auth_hash, row.user_agent, row.created_at) == (
        before.pk,
        before.session_key,
        before.auth_hash,
        before.user_agent,
        before.created_at,
    )
    assert (row.sid, row.acr, row.amr) == (login.sid, "gold", ["pwd", "otp"])
    assert row.sid_digest != before.sid_digest
    assert row.auth_time.timestamp() == login.auth_time
    assert row.grant_id != before.grant_id
    hint = session_index.id_token_of(row)
    assert hint is not None
    assert op._own_claims(hint.reveal())["sid"] == login.sid
    old, new = Grant.objects.order_by("id")
    assert (old.close_reason, new.status) == ("superseded", "open")
    seen = by_login.client.get("/home/").wsgi_request
    current = current_login(seen)
    assert current is not None
    assert (current.session, current.grant, current.acr) == (row.pk, new.pk, "gold")
    assert user().first_name == "Janet"
    answer = by_login.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    assert b"/api/any" in answer.content


def test_a_request_under_way_meanwhile_ends_nothing(op: OpenIDProvider, by_login: Browser) -> None:
    """It has read the session before the renewal was stored, and asks the index after."""
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    before = by_login.client.session[CURRENT]
    by_login.come_back(callback)
    session = by_login.client.session
    after, session[CURRENT] = session[CURRENT], before
    session.save()
    assert who(by_login.client.get("/home/")) == user().username
    session[CURRENT] = after
    session.save()
    assert who(by_login.client.get("/home/")) == user().username


def test_a_silent_renewal_is_no_fresh_sign_in(op: OpenIDProvider, browser: Browser) -> None:
    """M38: an OP that does not say when is not taken for one that has just asked somebody."""
    op.id_token_claims["auth_time"] = REMOVE
    sign_in(browser)
    session = browser.client.session
    session[CURRENT] = session[CURRENT] | {"at": session[CURRENT]["at"] - 400}
    session.save()
    make_due()
    browser.follow(browser.client.get("/home/", headers=VISIT))
    assert_renewed()
    request = browser.client.get("/home/").wsgi_request
    assert not is_fresh(request, timedelta(minutes=5))


def test_a_refresh_token_that_comes_with_it_is_used_from_then_on(
    op: OpenIDProvider, by_login: Browser
) -> None:
    op.always_refresh_token = True
    by_login.follow(by_login.client.get("/home/", headers=VISIT))
    make_due()
    assert who(by_login.client.get("/home/", headers=VISIT)) == user().username
    assert (op.refreshes, op.calls("authorization")) == (1, 1)
    assert_renewed()


def test_groups_and_staff_follow_a_silent_login(
    op: OpenIDProvider, browser: Browser, site: Site
) -> None:
    has(site, **ROLES)
    op.person["roles"] = ["editor", "admin", "root"]
    overdue(op, browser)
    op.person["roles"] = []
    browser.follow(browser.client.get("/home/", headers=VISIT))
    assert_ordinary(json.loads(browser.client.get("/home/").content))


@pytest.mark.parametrize("response_mode", ["query", "form_post"])
@pytest.mark.parametrize("samesite", ["Lax", "Strict", "None"])
def test_every_samesite_and_response_mode_renews(
    op: OpenIDProvider,
    by_login: Browser,
    site: Site,
    settings: Settings,
    samesite: str,
    response_mode: str,
) -> None:
    """The landing page, too, is no end of the session."""
    has(site, RESPONSE_MODE=response_mode)
    settings.SESSION_COOKIE_SAMESITE = samesite
    put(by_login, basket=[1])
    by_login.client.cookies["sessionid"]["samesite"] = samesite
    back = by_login.follow(by_login.client.get("/home/?a=1", headers=VISIT))
    assert (back.status_code, back.url) == (302, "/home/?a=1")
    assert by_login.client.session["basket"] == [1]
    assert_renewed()


# By prompt=none: it says no


NO = ["login_required", "interaction_required", "consent_required", "account_selection_required"]


@pytest.mark.parametrize("error", [*NO, "access_denied", "unmet_authentication_requirements"])
def test_no_follows_the_setting_sign_out(op: OpenIDProvider, by_login: Browser, error: str) -> None:
    op.prompt_none_error = error
    back = by_login.follow(by_login.client.get("/private/?a=1", headers=VISIT))
    assert (back.status_code, back.url) == (302, "/private/?a=1")
    assert Session.objects.count() == 0
    assert events("session_ended") == ["not_renewed"]
    assert "_auth_user_id" not in by_login.client.session
    response = by_login.client.get("/private/?a=1", headers=VISIT)
    assert urlsplit(response.url).path == "/oidc/login/"
    assert op.calls("token") == 0


def last_page(browser: Browser, url: str, at_most: int = 5) -> tuple[Any, int]:
    """Follow every redirect; return the last answer, and how often the browser met the OP."""
    visits = 0
    for _ in range(2 * at_most):
        response = browser.client.get(url, headers=VISIT)
        if response.status_code != 302:
            return response, visits
        url = response.headers["Location"]
        if url.startswith("http://127.0.0.1"):
            visits += 1
            response = browser.follow(response)
            if response.status_code != 302:
                return response, visits
            url = response.headers["Location"]
    raise AssertionError("round and round")


def test_no_follows_the_setting_ask(op: OpenIDProvider, by_login: Browser, site: Site) -> None:
    """The session stays, and its pages ask, by a template tag: a login that keeps what is in it."""
    has(site, SESSION_RENEWAL_FAILED="ask")
    op.signed_in = False
    put(by_login, basket=[1])
    name = user().username
    assert asking(by_login) == ""
    response, visits = last_page(by_login, "/home/?a=1")
    assert (who(response), visits) == (name, 1)
    assert events("not_renewed") == ["authorization.login_required"]
    assert asking(by_login) == "/oidc/op/login/?next=%2Fasking%2F"
    by_login.sign_in("op", next="/asking/")
    assert who(by_login.client.get("/home/", headers=VISIT)) == name
    assert_renewed()
    assert asking(by_login) == ""
    assert by_login.client.session["basket"] == [1]


def asking(browser: Browser) -> str:
    """Where a page of this browser says that one may sign in again."""
    response = browser.client.get("/asking/", headers=VISIT | {"sec-purpose": "prefetch"})
    assert response.status_code == 200
    return str(response.content.decode())


def test_the_page_of_the_very_request_asks(
    op: OpenIDProvider, by_token: Browser, site: Site
) -> None:
    has(site, SESSION_RENEWAL_FAILED="ask")
    op.end_grants()
    assert asking(by_token) == "/oidc/op/login/?next=%2Fasking%2F"


@pytest.mark.parametrize("by", ["by_token", "by_login"])
def test_who_is_asked_is_left_in_peace_until_it_is_due_again(
    op: OpenIDProvider, browser: Browser, site: Site, by: str
) -> None:
    """Then it is tried again: by prompt=none, where the OP has ended the grant."""
    op.always_refresh_token = by == "by_token"
    overdue(op, browser)
    has(site, SESSION_RENEWAL_FAILED="ask")
    op.disabled = True
    name = user().username
    response, visits = last_page(browser, "/home/")
    assert (who(response), visits) == (name, 1 if by == "by_login" else 0)
    calls = len(op.requests)
    for _ in range(5):
        let_a_minute_pass(100)
        assert last_page(browser, "/home/")[1] == 0
    assert len(op.requests) == calls
    let_a_minute_pass(101)
    response, visits = last_page(browser, "/home/")
    assert (who(response), visits) == (name, 1)


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
def test_somebody_else_at_the_OP_signs_out_and_is_not_signed_in(
    op: OpenIDProvider, by_login: Browser, site: Site, failed: str
) -> None:
    """Also where one is asked: the session is nobody's to go on with."""
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.person["sub"] = "somebody-else"
    back = by_login.follow(by_login.client.get("/home/?a=1", headers=VISIT))
    assert (back.status_code, back.url) == (302, "/home/?a=1")
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""
    assert get_user_model().objects.count() == Identity.objects.count() == 1
    assert Session.objects.count() == 0
    assert Grant.objects.get().close_reason == "not_renewed"


def test_M38_a_silent_login_does_not_bring_another_user_into_the_session(
    op: OpenIDProvider, by_login: Browser
) -> None:
    """The same person at the OP, whose identity an operator has given to somebody else."""
    response = by_login.client.get("/home/", headers=VISIT)
    other = get_user_model().objects.create_user("other")
    Identity.objects.update(user=other)
    by_login.follow(response)
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""
    assert Session.objects.count() == 0


def test_whom_the_site_refuses_now_is_signed_out(
    op: OpenIDProvider, strict: None, by_login: Browser, site: Site
) -> None:
    has(site, SESSION_RENEWAL_FAILED="ask")
    op.person["given_name"] = "Janet"
    by_login.follow(by_login.client.get("/home/", headers=VISIT))
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("DEFAULT_MAX_AGE", 60, "id_token.auth_time"),
        ("DEFAULT_ACR_VALUES", ["gold"], "id_token.acr"),
    ],
)
def test_M29_what_the_settings_want_of_a_login_they_want_of_a_renewal(
    op: OpenIDProvider, by_login: Browser, site: Site, option: str, value: Any, code: str
) -> None:
    """An OP that does not do it, and does not say so, has not vouched for the session."""
    has(site, **{option: value})
    op.ignores_max_age = op.ignores_acr_values = True
    op.login.auth_time -= 3600
    by_login.follow(by_login.client.get("/home/", headers=VISIT))
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""


# By prompt=none: nothing that can be understood


def bent(**changes: Any) -> Callable[[Callback], Callback]:
    return lambda callback: callback.bent(**changes)


NONSENSE: dict[str, Callable[[OpenIDProvider], Any]] = {
    "the token endpoint is down": lambda op: op.answer.update(token=raw(503)),
    "it hangs up": lambda op: op.answer.update(token=close_connection()),
    "it is slow": lambda op: op.answer.update(token=slow(1.5)),
    "it answers a page": lambda op: op.answer.update(token=not_json()),
    "it redirects": lambda op: op.answer.update(token=redirect_to("/")),
    "invalid_client": lambda op: op.answer.update(token=sending({"error": "invalid_client"}, 401)),
    "invalid_grant": lambda op: op.answer.update(token=sending({"error": "invalid_grant"}, 400)),
    "a wrong nonce": lambda op: op.id_token_claims.update(nonce="wrong"),
    "a wrong audience": lambda op: op.id_token_claims.update(aud="wrong"),
    "a wrong issuer": lambda op: op.id_token_claims.update(iss="https://other.example"),
    "a wrong iss beside the code": lambda op: op.authorization_params.update(iss="wrong"),
    "no iss beside the code": lambda op: op.authorization_params.update(iss=REMOVE),
    "no code": lambda op: op.authorization_params.update(code=REMOVE),
    "a token beside the code": lambda op: op.authorization_params.update(access_token="x"),
    "server_error": lambda op: setattr(op, "prompt_none_error", "server_error"),
    "temporarily_unavailable": lambda op: setattr(
        op, "prompt_none_error", "temporarily_unavailable"
    ),
    "an error of its own": lambda op: setattr(op, "prompt_none_error", "nonsense"),
    "an error and a wrong iss": lambda op: (
        setattr(op, "prompt_none_error", "login_required"),
        op.authorization_params.update(iss="wrong"),
    ),
    "UserInfo fails": lambda op: op.answer.update(userinfo=raw(500)),
    "UserInfo is a page": lambda op: op.answer.update(userinfo=not_json()),
}


@pytest.mark.parametrize("failed", ["sign_out", "ask"])
@pytest.mark.parametrize("bend", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_at_the_callback_leaves_the_session_and_rests_a_minute(
    op: OpenIDProvider,
    by_login: Browser,
    site: Site,
    bend: Callable[[OpenIDProvider], Any],
    failed: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nobody has said no. The page comes, and no other is interrupted for a minute."""
    has(site, SESSION_RENEWAL_FAILED=failed, TIMEOUT=1)
    name, before = user().username, the_session().pk
    bend(op)
    response, visits = last_page(by_login, "/home/?a=1")
    assert (who(response), visits) == (name, 1)
    assert assert_tried().pk == before
    for url in ("/home/", "/private/", "/home/?a=1"):
        response, visits = last_page(by_login, url)
        assert (who(response), visits) == (name, 0)
    assert "not renewed, nobody said why" in caplog.text
    let_a_minute_pass()
    assert last_page(by_login, "/home/")[1] == 1


def test_the_minute_begins_when_the_try_has_ended(op: OpenIDProvider, by_login: Browser) -> None:
    """An OP that takes longer than that to say nothing keeps nobody from the page."""
    op.answer["token"] = raw(503)
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    let_a_minute_pass()
    back = by_login.come_back(callback)
    assert who(by_login.client.get(back.url, headers=VISIT)) == user().username


def test_an_OP_that_is_down_interrupts_no_page(op: OpenIDProvider, by_login: Browser) -> None:
    """Where nothing is known of it any more: nobody is sent to a server that is not there."""
    cache.clear()
    op.answer["discovery"] = raw(503)
    relying_party._relying_parties.clear()
    assert who(by_login.client.get("/home/", headers=VISIT)) == user().username
    assert_tried()


def test_whoever_leaves_the_redirect_goes_on(op: OpenIDProvider, by_login: Browser) -> None:
    """The browser was closed, or Back was pressed."""
    assert asked(by_login.client.get("/home/", headers=VISIT))["prompt"] == "none"
    for url in ("/home/", "/private/"):
        assert who(by_login.client.get(url, headers=VISIT)) == user().username
    let_a_minute_pass()
    assert asked(by_login.client.get("/home/", headers=VISIT))["prompt"] == "none"


def test_pages_without_end_meet_the_OP_once_a_minute(op: OpenIDProvider, by_login: Browser) -> None:
    op.answer["token"] = raw(503)
    assert [last_page(by_login, "/home/")[1] for _ in range(5)] == [1, 0, 0, 0, 0]
    let_a_minute_pass(50)
    assert last_page(by_login, "/home/")[1] == 0
    let_a_minute_pass(11)
    assert [last_page(by_login, "/home/")[1] for _ in range(3)] == [1, 0, 0]


def test_tabs_at_once_meet_it_once(op: OpenIDProvider, by_login: Browser) -> None:
    """Three pages of one window that is restored."""
    answers = [by_login.client.get("/home/", headers=VISIT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [302, 200, 200]


# Logged out meanwhile


def test_M60_a_session_that_was_logged_out_meanwhile_stays_so(
    op: OpenIDProvider, by_login: Browser
) -> None:
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    by_login.client.post("/oidc/logout/")
    back = by_login.come_back(callback)
    assert code_of(back) in ("state.unknown", "state.no_cookie")
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""


def log_out_at_the_op(op: OpenIDProvider, of: str) -> None:
    """By the back channel: this session of the OP (sid), or all sessions of the person (sub)."""
    token = op.logout_token(**{{"sid": "sub", "sub": "sid"}[of]: REMOVE})
    body = urlencode({"logout_token": token})
    form = "application/x-www-form-urlencoded"
    assert Client().post("/oidc/op/backchannel-logout/", body, form).status_code == 200


@pytest.mark.parametrize("of", ["sid", "sub"])
def test_M60_the_OP_logs_out_before_the_browser_is_back(
    op: OpenIDProvider, by_login: Browser, of: str
) -> None:
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    log_out_at_the_op(op, of)
    assert code_of(by_login.come_back(callback)) == "state.unknown"
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("endpoint", ["token", "userinfo"])
@pytest.mark.parametrize("of", ["sid", "sub"])
def test_M60_a_logout_while_the_OP_is_asked_wins(
    op: OpenIDProvider, by_login: Browser, of: str, endpoint: str
) -> None:
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    op.answer[endpoint] = during(lambda: log_out_at_the_op(op, of))
    by_login.come_back(callback)
    assert who(by_login.client.get("/home/", headers=VISIT)) == ""
    assert Session.objects.count() == 0
    assert Grant.objects.get().close_reason == "backchannel_logout"


class LoggedOut(OIDCBackend):
    """While the account is looked at, the OP logs the person out."""

    happens: Callable[[], Any]

    def update_user(self, user: Any, claims: Any) -> Any:
        LoggedOut.happens()
        return super().update_user(user, claims)


@pytest.mark.parametrize("of", ["sid", "sub"])
def test_M60_a_logout_at_the_last_moment_wins(
    engine: str, op: OpenIDProvider, browser: Browser, settings: Settings, of: str
) -> None:
    """Its row has ended, or its mark was written: what came with the renewal is closed as well."""
    overdue(op, browser)
    op.always_refresh_token = True
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.LoggedOut", "oidc_rp.backends.OIDCBackend"]
    LoggedOut.happens = lambda: log_out_at_the_op(op, of)
    callback = browser.visit_op(browser.client.get("/home/", headers=VISIT).headers["Location"])
    assert code_of(browser.come_back(callback)) == "session.ended"
    assert who(browser.client.get("/home/", headers=VISIT)) == ""
    assert Session.objects.count() == 0
    assert [grant.status for grant in Grant.objects.all()] == [Grant.CLOSED] * 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("failed", ["sign_out", "ask"])
@pytest.mark.parametrize("endpoint", ["token", "userinfo"])
def test_M60_a_logout_while_the_token_is_refreshed_wins(
    op: OpenIDProvider, by_token: Browser, site: Site, endpoint: str, failed: str
) -> None:
    has(site, SESSION_RENEWAL_FAILED=failed)
    op.answer[endpoint] = during(lambda: log_out_at_the_op(op, "sid"))
    assert who(by_token.client.get("/home/")) == ""
    assert Session.objects.count() == 0
    assert Grant.objects.get().close_reason == "backchannel_logout"


MOMENTS: dict[str, Callable[[OpenIDProvider], Any]] = {
    # A store that fails leaves the row for oidc_prune.
    "the row has ended": lambda op: Session.objects.update(ended_at=DatabaseClock()),
    "the row is gone": lambda op: Session.objects.all().delete(),
    # What no row has yet: only the mark knows.
    "the OP's new session": lambda op: log_out_at_the_op(op, "sid"),
}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_M60_whichever_of_the_two_is_written_first(
    op: OpenIDProvider,
    by_login: Browser,
    settings: Settings,
    moment: Callable[[OpenIDProvider], Any],
) -> None:
    op.new_login()
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.LoggedOut", "oidc_rp.backends.OIDCBackend"]
    LoggedOut.happens = lambda: moment(op)
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    assert code_of(by_login.come_back(callback)) == "session.ended"
    assert "_auth_user_id" not in by_login.client.session
    assert {grant.status for grant in Grant.objects.all()} <= {Grant.CLOSED}


def test_a_late_answer_is_not_for_the_session_that_came_after(
    op: OpenIDProvider, by_login: Browser
) -> None:
    """Somebody signs in anew while a renewal of the session before is under way: its no, and its
    somebody else, are not about them."""
    callback = by_login.visit_op(by_login.client.get("/home/", headers=VISIT).headers["Location"])
    sign_in(by_login)
    back = by_login.come_back(callback.bent(code=REMOVE, error="login_required"))
    assert back.status_code == 302
    assert who(by_login.client.get("/home/", headers=VISIT)) == user().username


# Everywhere


def test_by_the_refresh_token_on_every_engine(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    op.always_refresh_token = True
    overdue(op, browser)
    assert who(browser.client.get("/home/", headers=VISIT)) == user().username
    assert_renewed()
    make_due()
    op.end_grants()
    assert who(browser.client.get("/home/", headers=VISIT)) == ""
    assert who(browser.client.get("/home/", headers=VISIT)) == ""


def test_by_prompt_none_on_every_engine(engine: str, op: OpenIDProvider, browser: Browser) -> None:
    overdue(op, browser)
    put(browser, basket=[1])
    key = browser.client.session.session_key
    response, visits = last_page(browser, "/home/?a=1")
    assert (who(response), visits) == (user().username, 1)
    assert_renewed()
    assert browser.client.session["basket"] == [1]
    if engine != "signed_cookies":
        assert browser.client.session.session_key == key
    make_due()
    op.signed_in = False
    response, visits = last_page(browser, "/home/?a=1")
    assert (who(response), visits) == ("", 1)


def test_a_copy_of_the_cookie_of_before_is_refused_after_a_sign_out(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    """signed_cookies, too: the index knows."""
    op.always_refresh_token = True
    overdue(op, browser)
    copied = browser.client.cookies.copy()
    op.end_grants()
    assert who(browser.client.get("/home/")) == ""
    browser.client.cookies = copied  # type: ignore[assignment]
    assert who(browser.client.get("/home/")) == ""


def under_asgi(browser: Browser) -> Callable[..., Any]:
    client = AsyncClient()
    client.cookies = browser.client.cookies
    get: Callable[..., Any] = async_to_sync(client.get)
    return get


@pytest.mark.parametrize("path", ["/home/", "/async/"])
def test_under_asgi(op: OpenIDProvider, by_login: Browser, path: str) -> None:
    get, name = under_asgi(by_login), user().username
    response = get(path, headers=VISIT)
    assert asked(response)["prompt"] == "none"
    callback = urlsplit(by_login.visit_op(response.headers["Location"]).url)
    back = get(f"{callback.path}?{callback.query}", headers=VISIT)
    assert back.headers["Location"] == path
    assert name in get(path, headers=VISIT).content.decode()
    assert_renewed()
    assert get(path, headers={"sec-fetch-mode": "cors"}).status_code == 200


@pytest.mark.parametrize("path", ["/home/", "/async/"])
def test_under_asgi_by_the_refresh_token(op: OpenIDProvider, by_token: Browser, path: str) -> None:
    get, name = under_asgi(by_token), user().username
    assert name in get(path, headers=VISIT).content.decode()
    assert_renewed()
    make_due()
    op.end_grants()
    assert name not in get(path, headers=VISIT).content.decode()


def curious(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """A middleware of the site that asks early who is here."""

    async def middleware(request: HttpRequest) -> Any:
        await request.auser()
        await sync_to_async(lambda: request.user.is_authenticated)()
        return await get_response(request)

    return middleware


curious.async_capable = True  # type: ignore[attr-defined]
curious.sync_capable = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/home/", "/async/"])
def test_whoever_asked_before_who_is_here_asks_anew(
    op: OpenIDProvider, by_token: Browser, settings: Settings, path: str
) -> None:
    """request.auser remembers somebody that request.user has forgotten."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.curious"]
    get, name = under_asgi(by_token), user().username
    assert name in get(path).content.decode()
    make_due()
    op.end_grants()
    assert name not in get(path).content.decode()


def test_with_ATOMIC_REQUESTS_a_view_that_raises_takes_nothing_back(
    op: OpenIDProvider, by_token: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    op.person["given_name"] = "Janet"
    with pytest.raises(ValueError, match="mistake of the site"):
        by_token.client.get("/failing/")
    assert_renewed()
    assert (user().first_name, user().last_name) == ("Janet", "Doe")
    assert Grant.objects.get().refreshes == 1


def test_with_ATOMIC_REQUESTS_by_prompt_none(
    op: OpenIDProvider, by_login: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    response, visits = last_page(by_login, "/home/")
    assert (who(response), visits) == (user().username, 1)
    assert_renewed()


def test_LoginRequiredMiddleware_behind_it_sees_the_sign_out(
    op: OpenIDProvider, by_token: Browser, settings: Settings
) -> None:
    """In the same request: no view behind it runs for somebody who is nobody now."""
    behind = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, behind]
    client = Client()
    client.cookies = by_token.client.cookies
    assert who(client.get("/home/", headers=VISIT)) == user().username
    make_due()
    op.end_grants()
    response = client.get("/home/", headers=VISIT)
    assert response.status_code == 302, response.content
    assert urlsplit(response.url).path == "/oidc/login/"


def test_M53_no_token_is_logged(
    op: OpenIDProvider, by_login: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "oidc_rp")
    caplog.set_level("DEBUG", "django")
    response = by_login.client.get("/home/", headers=VISIT)
    hint = asked(response)["id_token_hint"]
    op.answer["token"] = raw(503)
    by_login.follow(response)
    assert hint not in caplog.text


def test_many_at_once() -> None:
    """The tests of renewal_in_threads.py on a SQLite file: no thread can share one in memory."""
    assert_passes("renewal_in_threads")
