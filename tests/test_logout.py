"""Log out here, and then at the OP (RP-Initiated Logout): by POST, local first, whatever fails."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_out
from django.db import connections
from django.http import HttpRequest
from django.test import Client
from django.test.utils import override_settings
from pytest_django import Settings

from oidc_rp.models import DatabaseClock, Event, Grant, LogoutMark, Session
from oidc_rp.sessions import LOGGED_OUT, grant_of
from oidc_rp.testing import REMOVE, OpenIDProvider, raw, redirect_to
from oidc_rp.testing.browser import Browser, Response
from tests.conftest import Configure
from tests.logout import (
    another,
    asked,
    cookie,
    is_stored,
    renewal,
    row,
    rows,
    who,
)
from tests.test_sessions import engine, put
from tests.tokens import (
    Site,
    assert_closed,
    bound,
    during,
    failing_at,
    grant,
    history,
    owner,
    signed_in,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "engine", "owner", "renewal", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

LOGOUT, LOGGED_OUT_PAGE = "/oidc/logout/", "/oidc/logged-out/"
RETURN = "http://testserver/oidc/logged-out/"
HERE_ONLY = "You may still be signed in at the service whose account you used."
THERE_TOO = "The service whose account you used was told, too."
LOCAL = "django.contrib.auth.backends.ModelBackend"


def log_out(browser: Browser, **form: str) -> Response:
    return browser.client.post(LOGOUT, form)


def assert_plain(response: Response, *, there_too: bool = False) -> None:
    """The page that says so, and nothing more."""
    assert response.status_code == 200
    assert "oidc_rp/logged_out.html" in [template.name for template in response.templates]
    page = response.content.decode()
    assert (HERE_ONLY in page, THERE_TOO in page) == (not there_too, there_too)
    assert "no-store" in response.headers["Cache-Control"]


def issued_to(op: OpenIDProvider) -> list[str]:
    """Note each ID Token that the OP issues from now on."""
    issued: list[str] = []

    def sign(claims: dict[str, Any], header: dict[str, Any]) -> str:
        issued.append(op.sign(claims, header))
        return issued[-1]

    op.make_id_token = sign
    return issued


# The walk


def test_M56_a_logout_here_and_at_the_op(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Signed out here, then at the OP, and back to where the person wanted to be."""
    browser.sign_in("op")
    op.forget_requests()
    there = op.login.sid
    response = log_out(browser, next="/private/?a=b")
    assert who(browser) == ""
    assert op.requests == []
    assert "no-store" in response.headers["Cache-Control"]
    back = browser.follow(response)
    assert (back.status_code, back.headers["Location"]) == (302, "/private/?a=b")
    assert op.login.sid != there
    assert [request.endpoint for request in op.requests] == ["end_session"]
    assert browser.client.get("/private/").status_code == 302


def test_M56_the_logout_request(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """RP-Initiated Logout §2: the very ID Token of the login, and a state that nobody can guess."""
    issued = issued_to(op)
    browser.sign_in("op")
    url, params = asked(log_out(browser))
    assert url == op.url("end_session")
    state = params.pop("state")
    assert len(state) >= 32
    assert params == {
        "client_id": op.client_id,
        "post_logout_redirect_uri": RETURN,
        "id_token_hint": issued[0],
    }
    assert len(issued) == 1
    browser.sign_in("op")
    again = asked(log_out(browser))[1]
    assert again["id_token_hint"] == issued[1] != issued[0]
    assert again["state"] != state


def test_M56_without_keys_the_op_is_told_without_the_id_token(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """It is not kept then: client_id names who asks."""
    browser.sign_in("op")
    response = log_out(browser)
    assert asked(response)[1].keys() == {"client_id", "post_logout_redirect_uri", "state"}
    assert_plain(browser.follow(response), there_too=True)


def test_M56_nor_with_one_that_does_not_open(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    browser.sign_in("op")
    Session.objects.update(id_token="oidc1.nonsense")
    assert "id_token_hint" not in asked(log_out(browser))[1]


@pytest.mark.parametrize(
    ("language", "spoken", "sent"),
    [("de", ["de", "en"], "de"), ("zh-hans", ["zh-Hans"], "zh-Hans"), ("fr", ["de"], None)],
)
def test_M56_in_the_language_of_the_page(
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    language: str,
    spoken: list[str],
    sent: str | None,
) -> None:
    op.metadata["ui_locales_supported"] = spoken
    browser.sign_in("op")
    with override_settings(LANGUAGE_CODE=language):
        assert asked(log_out(browser))[1].get("ui_locales") == sent


def test_M56_the_registered_return(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """POST_LOGOUT_REDIRECT_URIS: the first is sent, instead of what the request's host makes."""
    mine = ["https://testserver/oidc/logged-out/", "https://other.example/"]
    site.has(POST_LOGOUT_REDIRECT_URIS=mine)
    op.post_logout_redirect_uris = mine[:1]
    browser.sign_in("op")
    response = log_out(browser, next="/home/?a=b")
    assert asked(response)[1]["post_logout_redirect_uri"] == mine[0]
    assert browser.follow(response).headers["Location"] == "/home/?a=b"


@pytest.mark.parametrize(
    ("style", "path", "params"),
    [
        ("auth0", "/v2/logout", {"returnTo": RETURN}),
        ("cognito", "/logout", {"logout_uri": RETURN}),
    ],
)
def test_M56_ops_that_have_ways_of_their_own(
    op: OpenIDProvider, site: Site, browser: Browser, style: str, path: str, params: dict[str, str]
) -> None:
    """They send nothing back: who returns reads a plain page."""
    site.has(END_SESSION=style)
    browser.sign_in("op")
    url, sent = asked(log_out(browser, next="/private/"))
    assert url == op.origin + path
    assert sent == {"client_id": op.client_id} | params
    assert who(browser) == ""
    assert_plain(browser.client.get(LOGGED_OUT_PAGE))


@pytest.mark.parametrize("how", ["local", "no endpoint"])
def test_M56_where_the_op_has_no_part_in_it(
    op: OpenIDProvider, site: Site, browser: Browser, how: str
) -> None:
    if how == "local":
        site.has(END_SESSION="local")
    else:
        site.learns(end_session_endpoint=None)
    browser.sign_in("op")
    op.forget_requests()
    response = log_out(browser, next="/home/")
    assert (response.status_code, response.headers["Location"]) == (302, "/home/")
    browser.sign_in("op")
    assert_plain(log_out(browser))
    assert cookie(browser) == ""
    assert op.calls("end_session") == 0


# Only by POST, and only by a form of ours


@pytest.mark.parametrize("method", ["get", "head", "put", "delete", "options", "patch"])
def test_M56_by_post_alone(browser: Browser, method: str) -> None:
    """A link, an image or a prefetch signs nobody out."""
    browser.sign_in("op")
    response = getattr(browser.client, method)(LOGOUT)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert who(browser)


def test_M56_with_a_csrf_token(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """Another site cannot sign anybody out."""
    strict = Browser(Client(enforce_csrf_checks=True))
    strict.sign_in("op")
    assert log_out(strict).status_code == 403
    assert log_out(strict, csrfmiddlewaretoken="a" * 64).status_code == 403
    assert who(strict)
    token = strict.client.cookies["csrftoken"].value
    assert log_out(strict, csrfmiddlewaretoken=token).status_code == 302
    assert who(strict) == ""


def test_M56_even_where_the_site_checks_no_csrf(browser: Browser, settings: Settings) -> None:
    """The view asks for it, without the middleware."""
    without = [path for path in settings.MIDDLEWARE if "Csrf" not in path]
    settings.MIDDLEWARE = without
    strict = Browser(Client(enforce_csrf_checks=True))
    strict.sign_in("op")
    assert log_out(strict).status_code == 403
    assert who(strict)


# Local first


def gone(browser: Browser, key: str, pk: str) -> dict[str, bool]:
    return {
        "stored": is_stored(key),
        "row": Session.objects.filter(pk=pk).exists(),
        "open": Grant.objects.filter(status=Grant.OPEN).exists(),
    }


NOTHING_LEFT = {"stored": False, "row": False, "open": False}


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file"], indirect=True)
@pytest.mark.parametrize("by", ["view", "django"])
def test_M56_all_is_over_here_before_the_op_is_told(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser, by: str
) -> None:
    """When the OP hears that the refresh token is revoked, nobody is signed in any more."""
    owner = signed_in_here(site, browser, op)
    key, pk, seen = cookie(browser), row(browser).pk, []
    op.answer["revocation"] = during(lambda: seen.append(gone(browser, key, pk)))
    if by == "view":
        log_out(browser)
    else:
        browser.client.logout()
    assert gone(browser, key, pk) == NOTHING_LEFT
    wait_until(lambda: to_revoke() == [])
    assert seen == [NOTHING_LEFT]
    assert_closed(owner, "logout")
    assert history(owner)[-1] == ("closed", "logout")
    assert len(op.revocations) == 1


def test_M56_the_cookie_goes(engine: str, op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """For one that knows nothing of the person; it leads back from the OP. One that somebody kept
    opens nothing."""
    site.has(END_SESSION="local")
    browser.sign_in("op")
    before, kept = cookie(browser), another(browser)
    log_out(browser)
    assert cookie(browser) == ""
    if engine != "signed_cookies":
        assert who(kept) == ""
    site.has()
    browser.sign_in("op")
    put(browser, basket=["book"])
    log_out(browser)
    assert cookie(browser) not in ("", before)
    assert [*browser.client.session.keys()] == [LOGGED_OUT]


def test_M58_a_cookie_that_somebody_kept_opens_nothing(
    engine: str, renewal: None, browser: Browser
) -> None:
    """With SessionRenewal not even where the whole session is in it."""
    browser.sign_in("op")
    kept = another(browser)
    assert who(kept)
    log_out(browser)
    assert who(kept) == ""


FAULTS: dict[str, Any] = {
    "down": lambda op: op.stop(),
    "hanging up": lambda op: op.answer.update(discovery=raw(500), revocation=raw(500)),
    "redirect": lambda op: op.answer.update(discovery=redirect_to("https://evil.example/")),
    "another issuer": lambda op: op.metadata.update(issuer="https://evil.example"),
    "an endpoint in the clear": lambda op: op.metadata.update(
        end_session_endpoint="http://op.example/end"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_M56_an_op_that_fails_keeps_nobody_signed_in(
    op: OpenIDProvider, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture, fault: Any
) -> None:
    """Nothing is known of it any more, and it cannot be asked."""
    owner = signed_in_here(site, browser, op)
    fault(op)
    site.learns()
    response = log_out(browser, next="/home/")
    assert (response.status_code, response.headers["Location"]) == (302, "/home/")
    assert who(browser) == ""
    assert rows() == set()
    assert_closed(owner, "logout")
    assert "not logged out at the OP" in caplog.text


@pytest.mark.parametrize("providers", [{}, {"op": {"ISSUER": 5}}], ids=["removed", "broken"])
def test_M56_nor_does_a_provider_that_is_no_more(
    op: OpenIDProvider, site: Site, browser: Browser, settings: Settings, providers: dict[str, Any]
) -> None:
    owner = signed_in_here(site, browser, op)
    settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": providers}
    assert_plain(log_out(browser))
    assert (who(browser), rows()) == ("", set())
    assert_closed(owner, "logout")


@pytest.mark.parametrize(
    ("verb", "table", "open_still", "left"),
    [
        ("UPDATE", "oidc_rp_grant", True, 0),
        ("SELECT", "oidc_rp_grant", True, 0),
        ("DELETE", "oidc_rp_storedaccesstoken", True, 0),
        ("INSERT", "oidc_rp_pendingrevocation", True, 0),
        ("INSERT", "oidc_rp_logoutmark", False, 0),
        ("INSERT", "oidc_rp_event", False, 0),
        ("DELETE", "oidc_rp_session", False, 1),
        ("SELECT oidc_rp_session", "oidc_rp_session", False, 0),
    ],
)
@pytest.mark.parametrize("atomic", [False, True])
def test_M56_nor_does_a_database_that_fails_for_one_table(
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    table: str,
    open_still: bool,
    left: int,
    atomic: bool,
) -> None:
    """What can be done is done; the rest waits for oidc_prune. By our view, and by Django's in a
    request that is one transaction."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic)
    owner = signed_in_here(site, browser, op)
    key = cookie(browser)
    User.objects.update(is_staff=True)
    with failing_at(verb, table):
        response = browser.client.post("/admin/logout/" if atomic else LOGOUT)
    assert response.status_code == (200 if atomic else 302)
    assert not is_stored(key)
    assert who(browser) == ""
    assert (grant(owner).status == "open") == open_still
    assert len(rows()) == left


def test_M56_nor_does_a_receiver_of_grant_closed(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """A site's own code that is told of the end, and fails."""
    from oidc_rp.signals import grant_closed

    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    owner = signed_in_here(site, browser, op)
    grant_closed.connect(fail)
    try:
        assert log_out(browser).status_code == 302
    finally:
        grant_closed.disconnect(fail)
    assert who(browser) == ""
    assert_closed(owner, "logout")


def test_a_receiver_of_djangos_signal_still_has_the_session(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """As with any logout of Django: who it was, and what they left."""
    seen: list[Any] = []

    def look(request: HttpRequest, user: Any, **_: Any) -> None:
        seen.append((user.pk, request.session.get("basket")))
        messages.info(request, "Good-bye")

    owner = signed_in_here(site, browser, op)
    put(browser, basket=["book"])
    user_logged_out.connect(look)
    try:
        log_out(browser)
    finally:
        user_logged_out.disconnect(look)
    assert seen == [(owner.user_id, ["book"])]
    assert who(browser) == ""


# Offline access


def test_M56_offline_access_outlives_the_session(
    op: OpenIDProvider, owner: Any, browser: Browser
) -> None:
    log_out(browser)
    assert grant(owner).status == "open"
    assert (to_revoke(), op.calls("revocation")) == ([], 0)


def test_M56_and_ends_with_it_where_the_site_wants_that(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """LOGOUT_ENDS_OFFLINE_ACCESS: closed for this reason by this user, and revoked."""
    site.has(LOGOUT_ENDS_OFFLINE_ACCESS=True)
    owner = signed_in(browser, op)
    key, pk, seen = cookie(browser), row(browser).pk, []
    op.answer["revocation"] = during(lambda: seen.append(gone(browser, key, pk)))
    log_out(browser)
    assert_closed(owner, "logout")
    assert history(owner)[-1] == ("closed", "logout")
    assert Event.objects.get(name="closed").actor == f"user {owner.user_id}"
    wait_until(lambda: to_revoke() == [])
    assert seen == [NOTHING_LEFT]
    assert len(op.revocations) == 1


def test_M56_nobody_elses_ends(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    site.has(LOGOUT_ENDS_OFFLINE_ACCESS=True)
    owner = signed_in(browser, op)
    op.person = {"sub": "somebody else"}
    other = signed_in(Browser(), op)
    log_out(browser)
    assert_closed(owner, "logout")
    assert grant(other).status == "open"


def test_M56_an_op_that_gives_a_refresh_token_only_once(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """The login that is left brought none, and holds no grant; an earlier one did."""
    site.has(LOGOUT_ENDS_OFFLINE_ACCESS=True, API_ORIGINS=[])
    owner = signed_in(browser, op)
    op.token_response["refresh_token"] = REMOVE
    again = Browser()
    again.sign_in("op")
    assert grant_of(again.client.session) == ""
    log_out(again)
    assert_closed(owner, "logout")


def test_M56_a_database_that_fails_then_keeps_nobody_signed_in(
    op: OpenIDProvider, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    site.has(LOGOUT_ENDS_OFFLINE_ACCESS=True)
    owner = signed_in(browser, op)
    with failing_at("UPDATE", "oidc_rp_grant"):
        response = log_out(browser)
    assert asked(response)[0] == op.url("end_session")
    assert (who(browser), rows()) == ("", set())
    assert grant(owner).status == "open"
    assert "the offline access has not ended" in caplog.text


# Sessions of another kind


def test_a_local_session_is_logged_out_plainly(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Nobody at the OP has anything to do with it."""
    someone = get_user_model().objects.create_user("jane", password="jane")
    browser.client.force_login(someone, backend=LOCAL)
    response = log_out(browser, next="/home/")
    assert (response.status_code, response.headers["Location"]) == (302, "/home/")
    assert who(browser) == ""
    assert op.requests == []
    browser.client.force_login(someone, backend=LOCAL)
    assert_plain(log_out(browser))


def test_nobody_is_logged_out_plainly(op: OpenIDProvider, browser: Browser) -> None:
    assert_plain(log_out(browser))
    assert log_out(browser, next="/private/").headers["Location"] == "/private/"
    assert cookie(browser) == ""


def test_who_is_no_longer_active_logs_out_plainly(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Their session is nobody's to Django; nothing of it is left."""
    browser.sign_in("op")
    User.objects.update(is_active=False)
    assert_plain(log_out(browser))
    assert rows() == set()
    User.objects.update(is_active=True)
    assert who(browser) == ""


def test_LOGOUT_REDIRECT_URL_is_where_the_site_sends_people(
    op: OpenIDProvider, site: Site, browser: Browser, settings: Settings
) -> None:
    """Unless they want to be elsewhere; after the OP has done its part as well."""
    settings.LOGOUT_REDIRECT_URL = "oidc_rp:login_chooser"
    browser.sign_in("op")
    assert browser.follow(log_out(browser)).headers["Location"] == "/oidc/login/"
    browser.sign_in("op")
    assert browser.follow(log_out(browser, next="/home/")).headers["Location"] == "/home/"
    assert log_out(browser).headers["Location"] == "/oidc/login/"
    assert browser.client.get(LOGGED_OUT_PAGE).headers["Location"] == "/oidc/login/"


# The way back


def returning(browser: Browser) -> str:
    """Sign in and out; the state that the OP will bring back, for the one who wanted /private/."""
    browser.sign_in("op")
    return asked(log_out(browser, next="/private/"))[1]["state"]


def back(browser: Browser, **query: Any) -> Response:
    return browser.client.get(LOGGED_OUT_PAGE, query)


def test_M56_the_right_state_leads_on_once(engine: str, site: Site, browser: Browser) -> None:
    state = returning(browser)
    assert back(browser, state=state).headers["Location"] == "/private/"
    assert_plain(back(browser, state=state))


def test_M56_who_wanted_nothing_reads_that_the_op_was_told(site: Site, browser: Browser) -> None:
    browser.sign_in("op")
    assert_plain(browser.follow(log_out(browser)), there_too=True)


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"state": ""},
        {"state": "wrong"},
        {"state": "é\ud800".encode("utf-8", "surrogatepass")},
        {"state": "\x00"},
        {"state": "x" * 5000},
        {"state": ["wrong", "wrong"]},
        {"next": "/private/"},
        {"state": "wrong", "next": "/private/"},
        {"error": "<script>alert(1)</script>"},
    ],
)
def test_M56_any_other_leads_nowhere(
    site: Site, browser: Browser, query: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The page is plain, and signs nobody in or out."""
    returning(browser)
    response = back(browser, **query)
    assert_plain(response)
    assert b"<script>alert" not in response.content
    warned = "no logout of this browser has this state" in caplog.text
    assert warned == ("state" in query)
    stranger = Browser()
    assert_plain(back(stranger, **query))
    assert cookie(stranger) == ""


def test_M9_a_repeated_state_is_none(site: Site, browser: Browser) -> None:
    """Not even the right one, twice or with a wrong one."""
    state = returning(browser)
    assert_plain(back(browser, state=[state, state]))
    state = returning(browser)
    assert_plain(back(browser, state=["wrong", state]))


def test_M56_another_browsers_state_leads_nowhere(
    engine: str, site: Site, browser: Browser
) -> None:
    """Not one that knows it, either."""
    state, other = returning(browser), Browser()
    returning(other)
    assert_plain(back(other, state=state))
    assert_plain(back(Browser(), state=state))
    assert back(browser, state=state).headers["Location"] == "/private/"


@pytest.mark.parametrize("age", [590, 610, -10])
def test_M56_the_way_back_is_open_for_ten_minutes(site: Site, browser: Browser, age: int) -> None:
    state = returning(browser)
    kept = browser.client.session[LOGGED_OUT]
    put(browser, **{LOGGED_OUT: kept | {"at": kept["at"] - age}})
    response = back(browser, state=state)
    if age == 590:
        assert response.headers["Location"] == "/private/"
    else:
        assert_plain(response)


@pytest.mark.parametrize("rubbish", [None, 5, "text", [], {}, {"state": 1, "at": "x"}])
def test_rubbish_in_the_session_is_no_way_back(
    site: Site, browser: Browser, rubbish: object
) -> None:
    put(browser, **{LOGGED_OUT: rubbish})
    assert_plain(back(browser, state="any"))


UNSAFE = [
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example/",
    "\\\\evil.example",
    "/\tevil",
    "/a\nb",
    "javascript:alert(1)",
    "http:evil.example",
    "/" + "x" * 1024,
]


@pytest.mark.parametrize("url", UNSAFE)
def test_M12_an_unsafe_next_is_refused_at_both_ends(
    op: OpenIDProvider, site: Site, browser: Browser, url: str
) -> None:
    """When the logout is asked for, and when the browser comes back."""
    browser.sign_in("op")
    response = log_out(browser, next=url)
    state = asked(response)[1]["state"]
    assert browser.client.session[LOGGED_OUT]["next"] == ""
    kept = browser.client.session[LOGGED_OUT]
    put(browser, **{LOGGED_OUT: kept | {"next": url}})
    assert_plain(back(browser, state=state), there_too=True)
    assert_plain(log_out(browser, next=url))


@pytest.mark.parametrize("method", ["post", "put", "delete", "options"])
def test_M56_the_way_back_is_a_page_alone(site: Site, browser: Browser, method: str) -> None:
    state = returning(browser)
    assert getattr(browser.client, method)(f"{LOGGED_OUT_PAGE}?state={state}").status_code == 405
    assert back(browser, state=state).status_code == 302


def test_M56_the_way_back_ends_nothing(site: Site, browser: Browser) -> None:
    """Anybody can be sent there."""
    browser.sign_in("op")
    before = rows()
    assert_plain(back(browser, state="any"))
    assert (rows(), bool(who(browser))) == (before, True)


def test_M56_a_logout_that_another_tab_began_anew(site: Site, browser: Browser) -> None:
    """The latest one knows where to go; the first one ends on the plain page."""
    first = returning(browser)
    second = returning(browser)
    assert_plain(back(browser, state=first))
    browser.sign_in("op")
    assert_plain(back(browser, state=second))
    assert who(browser)


def test_M56_who_signs_in_again_meanwhile_stays(site: Site, browser: Browser) -> None:
    """The answer of the OP to the logout before comes late."""
    state = returning(browser)
    browser.sign_in("op")
    back(browser, state=state)
    assert who(browser)


@pytest.mark.parametrize("samesite", ["Strict", "Lax", "None"])
def test_M56_whatever_samesite_lets_through(
    op: OpenIDProvider, site: Site, browser: Browser, settings: Settings, samesite: str
) -> None:
    """A redirect of another site brings no Strict cookie: then a page of ours asks again, once."""
    settings.SESSION_COOKIE_SAMESITE = samesite
    browser.sign_in("op")
    callback = browser.visit_op(log_out(browser, next="/private/").headers["Location"])
    response = browser.come_back(callback)
    landed = "oidc_rp/landing.html" in [template.name for template in response.templates]
    assert landed == (samesite == "Strict")
    assert landed == (b"You are signed out" in response.content)
    response = browser.land(response)
    assert (response.status_code, response.headers["Location"]) == (302, "/private/")
    stranger = Browser()
    assert_plain(stranger.land(stranger.come_back(callback)))
    assert_plain(back(stranger))


# Secrets


def test_M53_no_token_in_the_log_or_in_a_page(
    op: OpenIDProvider, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """The ID Token and the state are in the one redirect, and nowhere else."""
    caplog.set_level(logging.DEBUG)
    issued = issued_to(op)
    browser.sign_in("op")
    response = log_out(browser, next="/private/")
    state = asked(response)[1]["state"]
    assert issued[0] in response.headers["Location"]
    assert response.content == b""
    pages = [browser.client.get("/home/"), back(browser, state=state), back(browser, state=state)]
    told = caplog.text + "".join(f"{page.content!r}{page.headers}" for page in pages)
    for secret in (issued[0], issued[0].split(".")[1], state):
        assert secret not in told
    assert issued[0] not in str(browser.client.session.items())
    assert issued[0] not in cookie(browser)


def test_M53_no_token_in_the_debug_page_of_a_logout_that_fails(
    op: OpenIDProvider, site: Site, browser: Browser, settings: Settings
) -> None:
    """A receiver of the site's own fails while we hold the ID Token."""
    settings.DEBUG = True
    browser.client.raise_request_exception = False

    def fail(**_: Any) -> None:
        raise ZeroDivisionError

    issued = issued_to(op)
    browser.sign_in("op")
    user_logged_out.connect(fail)
    try:
        page = log_out(browser)
    finally:
        user_logged_out.disconnect(fail)
    assert page.status_code == 500
    assert "ZeroDivisionError" in page.content.decode()
    assert issued[0] not in page.content.decode()
    assert issued[0].split(".")[2] not in page.content.decode()


# Logout beats a login in flight


def held_login(op: OpenIDProvider, browser: Browser, meanwhile: Any) -> Response:
    """Sign in, and let this happen while the token endpoint has not answered yet."""
    op.answer["token"] = during(meanwhile)
    try:
        return browser.sign_in("op")
    finally:
        del op.answer["token"]


def refused(response: Response) -> str:
    assert response.status_code == 403
    return str(response.context["code"])


def test_M60_a_logout_in_another_tab_beats_a_login(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Of the session that the login began in; nobody is signed in when it comes back."""
    browser.sign_in("op")
    response = held_login(op, browser, lambda: log_out(another(browser)))
    assert refused(response) == "session.ended"
    assert "_auth_user_id" not in browser.client.session
    assert (who(browser), rows()) == ("", set())


def test_M60_also_that_of_a_local_session(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Who had signed in by a password, and then by another tab at the OP."""
    someone = get_user_model().objects.create_user("jane", password="jane")
    browser.client.force_login(someone, backend=LOCAL)
    response = held_login(op, browser, lambda: log_out(another(browser)))
    assert refused(response) == "session.ended"
    assert who(browser) == ""
    assert rows() == set()


def test_M60_a_login_after_the_logout_succeeds(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """In the same browser, at once, and as often as anybody likes."""
    for _ in range(3):
        assert browser.sign_in("op").status_code == 302
        log_out(browser)
    assert browser.sign_in("op").status_code == 302
    assert who(browser)


def test_M60_a_login_in_another_browser_goes_on(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """To sign out of one is no word about the other."""
    browser.sign_in("op")
    other = Browser()
    response = held_login(op, other, lambda: log_out(browser))
    assert response.status_code == 302
    assert (who(browser), bool(who(other))) == ("", True)


def test_M60_a_logout_after_two_tabs_signed_in_beats_the_slower_one(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """The quicker one has given the session another key; it is still this browser's logout."""
    slower, quicker = (browser.visit_op(browser.start("op")) for _ in range(2))

    def meanwhile() -> None:
        del op.answer["token"]
        tab = another(browser)
        assert tab.come_back(quicker).status_code == 302
        assert log_out(tab).status_code == 302

    op.answer["token"] = during(meanwhile)
    assert refused(browser.come_back(slower)) == "session.ended"
    assert (who(browser), rows()) == ("", set())


def test_a_local_login_is_no_logout(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Who signs in by a password while another tab is at the OP comes back from there, too."""
    callback = browser.visit_op(browser.start("op"))
    someone = get_user_model().objects.create_user("jane", password="jane")
    form = {"username": "jane", "password": "jane"}
    someone.is_staff = True
    someone.save()
    assert browser.client.post("/admin/login/", form).status_code == 302
    assert browser.come_back(callback).status_code == 302
    assert row(browser).identity.user != someone


def test_M60_what_a_refused_login_brought_is_given_back(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """The grant of a session that never was is closed, and its refresh token revoked."""
    signed_in_here(site, browser, op)
    op.always_refresh_token = True
    assert refused(held_login(op, browser, lambda: log_out(another(browser)))) == "session.ended"
    assert set(Grant.objects.values_list("status", flat=True)) == {"closed"}
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 2


def test_a_mark_is_kept_for_a_day(site: Site, browser: Browser) -> None:
    """Longer than any login may be under way; then oidc_prune removes it."""
    from oidc_rp.upkeep import prune

    returning(browser)
    assert LogoutMark.objects.count() == 1
    prune()
    assert LogoutMark.objects.count() == 1
    LogoutMark.objects.update(at=DatabaseClock(-timedelta(hours=25)))
    prune()
    assert LogoutMark.objects.count() == 0


def test_a_visitor_who_never_began_a_login_leaves_no_mark(browser: Browser) -> None:
    log_out(browser)
    browser.client.force_login(User.objects.create_user("jane"), backend=LOCAL)
    log_out(browser)
    assert LogoutMark.objects.count() == 0
