"""Logged out in a frame of the OP's page (Front-Channel Logout): unsigned, so it may do little."""

import logging
import re
from typing import Any
from urllib.parse import urlencode

import pytest
from django.contrib.sessions.models import Session as StoredSession
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp.models import Event
from oidc_rp.testing import REMOVE, OpenIDProvider, SigningKey, raw
from oidc_rp.testing.browser import Browser, Response
from tests.conftest import Configure
from tests.logout import (
    FRONTCHANNEL,
    assert_no_session,
    assert_refused,
    cookie,
    frame,
    is_stored,
    marks,
    renewal,
    row,
    rows,
    share_connection,
    who,
)
from tests.test_backchannel_logout import EVERYBODY, LOGIN_REQUIRED, Crowd, crowd
from tests.test_sessions import engine
from tests.tokens import (
    Site,
    assert_closed,
    failing_at,
    grant,
    signed_in,
    signed_in_here,
    site,
    to_revoke,
)

__all__ = ["crowd", "engine", "renewal", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

CLICKJACKING = "django.middleware.clickjacking.XFrameOptionsMiddleware"


def assert_framed(response: Response, *origins: str) -> None:
    """A page that those may frame and nobody else, with nothing in it to run, store or keep."""
    assert response.status_code == 200
    policy = response.headers["Content-Security-Policy"]
    assert policy == f"default-src 'none'; frame-ancestors {' '.join(sorted(origins))}"
    assert "X-Frame-Options" not in response.headers
    assert response.headers["Content-Type"].startswith("text/html")
    assert b"<script" not in response.content
    assert_no_session(response)


def get(query: Any, slug: str = "op", **more: Any) -> Response:
    path = f"/oidc/{slug}/frontchannel-logout/"
    query = query if isinstance(query, str) else urlencode(query, doseq=True)
    return Client().generic("GET", path, QUERY_STRING=query, **more)


# What it ends


def test_M59_exactly_the_session_that_iss_and_sid_name(
    engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd
) -> None:
    """In a frame of another site's page, which no cookie of ours gets into."""
    key = cookie(crowd.browsers["phone"])
    assert_framed(frame(op, crowd.sids["phone"]), op.origin)
    assert marks() == 0
    assert crowd.left() == "desk sofa stranger"
    if engine != "signed_cookies":
        assert not is_stored(key)


def test_M59_nothing_is_revoked(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """The grant of that session is of no use here any more; the OP is told nothing."""
    other = Browser()
    durable = signed_in(other, op)
    op.new_login()
    bound = signed_in_here(site, browser, op)
    op.forget_requests()
    assert_framed(frame(op, op.login.sid), op.origin)
    assert who(browser) == ""
    assert_closed(bound, "frontchannel_logout")
    assert Event.objects.get(name="closed").actor == "OP op"
    assert Event.objects.get(name="session_ended").code == "frontchannel_logout"
    assert (to_revoke(), op.requests) == ([], [])
    assert_framed(frame(op, row(other).sid), op.origin)
    assert grant(durable).status == "open"
    assert (to_revoke(), op.requests) == ([], [])


def test_M59_when_nobody_is_there(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    """The same page: it tells nobody whether there was a session."""
    there = frame(op, crowd.sids["desk"])
    gone = frame(op, crowd.sids["desk"])
    never = frame(op, "nobody's")
    assert there.content == gone.content == never.content
    assert dict(there.headers) == dict(gone.headers) == dict(never.headers)
    assert crowd.left() == "phone sofa stranger"


def test_M59_byte_for_byte(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    sid = crowd.sids["phone"]
    for other in (sid.swapcase(), sid + " ", " " + sid, sid + "\x00", sid[:-1], sid + "\u0301"):
        assert_framed(frame(op, other), op.origin)
    assert crowd.left() == EVERYBODY


def test_M59_no_row_without_a_name_ends(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    """Sessions whose OP gave them no sid are nobody's sid."""
    op.id_token_claims["sid"] = REMOVE
    crowd.browsers["nameless"] = Browser()
    crowd.browsers["nameless"].sign_in("op")
    assert_refused(frame(op, ""), "logout.sid")
    for sid in ("None", "null", "0", "%", "*"):
        assert_framed(frame(op, sid), op.origin)
    assert crowd.left() == f"{EVERYBODY} nameless"


def test_M59_no_mark_is_made_for_a_login_that_is_under_way(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Nobody has signed this: who knows a sid keeps nobody from signing in."""
    frame(op, op.login.sid)
    assert marks() == 0
    assert browser.sign_in("op").status_code == 302
    assert who(browser)


def test_M59_another_op_that_uses_the_same_sid_ends_nothing_here(
    op: OpenIDProvider,
    renewal: None,
    crowd: Crowd,
    settings: Settings,
    signing_key: SigningKey,
) -> None:
    with OpenIDProvider(keys=[signing_key]) as other:
        providers = settings.OIDC_RP["PROVIDERS"]
        theirs = providers["op"] | {"ISSUER": other.issuer, "CLIENT_SECRET": other.client_secret}
        settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": providers | {"other": theirs}}
        named = {"iss": other.issuer, "sid": crowd.sids["desk"]}
        assert_refused(get(named), "logout.iss")
        assert_refused(get(named | {"iss": op.issuer}, "other"), "logout.iss")
        assert_framed(get(named, "other"), other.origin)
    assert crowd.left() == EVERYBODY


def test_M59_with_a_cookie_it_is_the_same(
    engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd, settings: Settings
) -> None:
    """Where the OP is of our own site, or SameSite=None: whose browser it is does not matter, and
    no other session of it ends. The cookie of the one that ends goes, even where the site stores
    each session at each request."""
    settings.SESSION_SAVE_EVERY_REQUEST = True
    for name, named in (("sofa", "phone"), ("desk", "desk")):
        client = crowd.browsers[name].client
        response = client.get(FRONTCHANNEL, {"iss": op.issuer, "sid": crowd.sids[named]})
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "no-store"
    settings.SESSION_SAVE_EVERY_REQUEST = False
    assert (cookie(crowd.browsers["desk"]), bool(cookie(crowd.browsers["sofa"]))) == ("", True)
    assert crowd.left() == "sofa stranger"


# What is refused


QUERIES: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "logout.iss"),
    "iss missing": ({"iss": REMOVE}, "logout.iss"),
    "sid missing": ({"sid": REMOVE}, "logout.sid"),
    "iss empty": ({"iss": ""}, "logout.iss"),
    "sid empty": ({"sid": ""}, "logout.sid"),
    "iss another's": ({"iss": "https://evil.example"}, "logout.iss"),
    "iss with a slash": ({"iss": lambda op: op.issuer + "/"}, "logout.iss"),
    "iss in capitals": ({"iss": lambda op: op.issuer.upper()}, "logout.iss"),
    "iss twice": ({"iss": lambda op: [op.issuer, op.issuer]}, "logout.iss"),
    "iss and another": ({"iss": lambda op: ["https://evil.example", op.issuer]}, "logout.iss"),
    "sid twice": ({"sid": lambda op: [op.login.sid, op.login.sid]}, "logout.sid"),
    "sid and another": ({"sid": lambda op: ["x", op.login.sid]}, "logout.sid"),
    "sid too long": ({"sid": "x" * 256}, "logout.sid"),
    "too many": ({"a": ["b"] * 1001}, "logout.unreadable"),
}


@pytest.mark.parametrize(("bite", "code"), QUERIES.values(), ids=QUERIES)
def test_M59_each_bite_of_the_query_is_refused(
    op: OpenIDProvider,
    browser: Browser,
    caplog: pytest.LogCaptureFixture,
    bite: dict[str, Any],
    code: str,
) -> None:
    """400, with the reference of the log; and nobody is signed out."""
    browser.sign_in("op")
    before = rows()
    query = {"iss": op.issuer, "sid": op.login.sid} if bite else {}
    changes = {name: value(op) if callable(value) else value for name, value in bite.items()}
    query = {name: value for name, value in (query | changes).items() if value is not REMOVE}
    reference = assert_refused(get(query), code)
    assert rows() == before
    assert who(browser)
    (record,) = [record for record in caplog.records if getattr(record, "reference", None)]
    assert (record.reference, record.code, record.provider) == (reference, code, "op")  # type: ignore[attr-defined]
    assert record.levelno == logging.WARNING


def test_M59_a_query_in_whatever_letters(op: OpenIDProvider, browser: Browser) -> None:
    """Django would read it as the request says; nothing of it makes a failure."""
    browser.sign_in("op")
    for charset in ("utf-16", "utf-7", "unicode_escape", "latin-1", "nothing"):
        more = {"CONTENT_TYPE": f"text/plain; charset={charset}"}
        named = {"iss": op.issuer, "sid": r"\ud800"}
        assert get(named, **more).status_code == 200
    for sid in ("%ED%A0%80", "%FF", "%00", "%", "%zz", "\xff", "a&&&;=", "+"):
        query = f"{urlencode({'iss': op.issuer})}&sid={sid}"
        assert get(query).status_code == 200
    assert who(browser)


def test_M59_the_whole_name_of_255_characters(op: OpenIDProvider, browser: Browser) -> None:
    op.login.sid = "\U0001f600" * 255
    browser.sign_in("op")
    assert_framed(frame(op, op.login.sid), op.origin)
    assert who(browser) == ""


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch", "head", "options"])
def test_M59_by_get_alone(op: OpenIDProvider, browser: Browser, method: str) -> None:
    """HEAD among the others: it shows nobody a page."""
    browser.sign_in("op")
    query = urlencode({"iss": op.issuer, "sid": op.login.sid})
    client = Client(enforce_csrf_checks=True)
    response = client.generic(method.upper(), f"{FRONTCHANNEL}?{query}", query)
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET"
    assert [*response.cookies] == []
    assert who(browser)


def test_M59_an_unknown_provider(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    named = {"iss": op.issuer, "sid": op.login.sid}
    assert_refused(get(named, "nobody"), "provider.unknown")
    assert who(browser)


def test_M59_a_provider_that_is_set_up_wrongly(op: OpenIDProvider, configure: Configure) -> None:
    configure(TIMEOUT="soon")
    assert_refused(frame(op, "a"), "configuration.provider", "temporarily_unavailable")


@pytest.mark.parametrize(
    ("verb", "table"), [("UPDATE", "oidc_rp_session"), ("SELECT", "oidc_rp_session")]
)
def test_M59_a_database_that_fails(
    op: OpenIDProvider, browser: Browser, settings: Settings, verb: str, table: str
) -> None:
    """No failure of ours is shown in the frame; the next frame finds the session still there."""
    browser.sign_in("op")
    share_connection(settings)
    with failing_at(verb, table):
        assert_refused(frame(op, op.login.sid), "logout.database", "temporarily_unavailable")
    assert_framed(frame(op, op.login.sid), op.origin)
    assert who(browser) == ""


def test_M59_an_op_that_is_down_signs_out_as_well(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Its metadata tells who else may frame the page; the issuer's own pages may in any case."""
    browser.sign_in("op")
    op.answer["discovery"] = raw(503)
    site.learns()
    assert_framed(frame(op, op.login.sid), op.origin)
    assert who(browser) == ""


# Who may frame it


def test_M59_the_op_alone_may_frame_it(op: OpenIDProvider, site: Site, settings: Settings) -> None:
    """Wherever it has its pages; other pages of ours stay out of all frames."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, CLICKJACKING]
    site.learns(
        authorization_endpoint="https://login.op.example:8443/auth",
        end_session_endpoint="https://logout.op.example/end?a=b",
        token_endpoint="https://api.op.example/token",
    )
    login, logout = "https://login.op.example:8443", "https://logout.op.example"
    assert_framed(frame(op, "a"), op.origin, login, logout)
    client = Client()
    for path in ("login", "logged-out", "op/callback", "op/login", "op/initiate"):
        response = client.get(f"/oidc/{path}/")
        assert response.headers["X-Frame-Options"] == "DENY", path


def test_M59_no_stranger_writes_into_the_policy(op: OpenIDProvider, site: Site) -> None:
    """An origin in its one spelling, whatever the metadata says after it."""
    site.learns(
        authorization_endpoint="https://Login.OP.example:443/a;b,c'd*?frame-ancestors=*",
        end_session_endpoint=None,
    )
    response = frame(op, "a")
    assert_framed(response, op.origin, "https://login.op.example")
    assert re.fullmatch(r"[a-z0-9:/. ;'-]+", response.headers["Content-Security-Policy"])


def test_M59_who_must_be_signed_in_elsewhere_need_not_here(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """A cross-site frame has no session."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, LOGIN_REQUIRED]
    browser.sign_in("op")
    assert frame(op, op.login.sid).status_code == 200
    assert who_is(browser) == 302


def who_is(browser: Browser) -> int:
    return int(browser.client.get("/private/").status_code)


# Anything at all


@hypothesis_settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    query=st.lists(st.tuples(st.sampled_from(["iss", "sid", "a"]), st.text(max_size=300))),
    tail=st.text(st.characters(max_codepoint=255), max_size=30),
    right=st.booleans(),
)
def test_M59_whatever_is_asked(
    op: OpenIDProvider, browser: Browser, query: list[tuple[str, str]], tail: str, right: bool
) -> None:
    """200 or 400, never a failure, never a session, and nothing that anybody may store."""
    text = urlencode([("iss", op.issuer), *query] if right else query, errors="surrogatepass")
    response = get(f"{text}&{tail}")
    assert response.status_code in (200, 400)
    assert_no_session(response)
    assert StoredSession.objects.count() == 0
    assert marks() == 0
