"""The page of linked identities: link another, unlink, see and end sessions (M38, M58)."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import Group, User
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.models import Session as StoredSession
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models.signals import post_delete
from django.test import Client
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp import accounts, sessions, signals
from oidc_rp.backends import OIDCBackend
from oidc_rp.models import DatabaseClock, Event, Grant, Identity, Session
from oidc_rp.sessions import CURRENT, LOCAL, current_login, row_of
from oidc_rp.testing import REMOVE, OpenIDProvider, SigningKey, merged, sending, somebody
from oidc_rp.testing.browser import Browser, Callback, Response
from tests.conftest import Configure
from tests.in_threads import assert_passes
from tests.test_accounts import MODEL_BACKEND, OIDC_BACKEND, outcome
from tests.test_devices import MAC, WINDOWS
from tests.test_login import LOGIN_REQUIRED, asked, pending
from tests.test_sessions import Tags, cookie, engine, put, request_of
from tests.tokens import Site, every_token, grant_of, site, to_revoke, wait_until

__all__ = ["engine", "site"]

pytestmark = pytest.mark.usefixtures("browser")

PAGE = "/oidc/identities/"
ACTIONS = ["link", "unlink", "end_session", "end_other_sessions"]
RENEWAL = "oidc_rp.middleware.SessionRenewal"
CHROME = f"{WINDOWS} Chrome/126.0.0.0 Safari/537.36"
SAFARI = f"{MAC} AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15"


def post(browser: Browser, action: str, **fields: Any) -> Response:
    """Submit a form of the page."""
    return browser.client.post(PAGE, {"action": action} | fields)


def told(browser: Browser, response: Response) -> str:
    """What the page says when the browser is back there."""
    assert (response.status_code, response.headers["Location"]) == (302, PAGE)
    return str(browser.client.get(PAGE).context["notice_code"])


def refusal(response: Response) -> tuple[int, str]:
    assert response.templates[0].name == "oidc_rp/refusal.html"
    return response.status_code, str(response.context["code"])


def start_link(browser: Browser, slug: str = "op") -> Callback:
    """Press the button and be at the OP; what it sends the browser back with."""
    response = post(browser, "link", provider=slug)
    assert response.status_code == 302
    return browser.visit_op(response.headers["Location"])


def link(browser: Browser, slug: str = "op") -> str:
    """Press the button, come back; what the page says then, or the code of a refusal."""
    response = post(browser, "link", provider=slug)
    if response.status_code == 302 and response.headers["Location"] != PAGE:
        response = browser.follow(response)
    if response.status_code == 302:
        return told(browser, response)
    return refusal(response)[1]


def unlink(browser: Browser, identity: Any) -> str:
    """Press the button, confirm; what the page says then, or where the browser is sent."""
    pk = getattr(identity, "pk", identity)
    response = post(browser, "unlink", identity=pk)
    if response.status_code == 200:
        assert response.templates[0].name == "oidc_rp/unlink.html"
        response = post(browser, "unlink", identity=pk, confirmed="1")
    if response.headers["Location"] != PAGE:
        return str(response.headers["Location"])
    return told(browser, response)


def new_browser(user_agent: str = CHROME) -> Browser:
    return Browser(Client(headers={"user-agent": user_agent}))


def signed_in(browser: Browser, slug: str = "op") -> Any:
    """Sign in at the OP; return who that is here."""
    assert outcome(browser.sign_in(slug)) == "/home/"
    return User.objects.get(pk=browser.client.session["_auth_user_id"])


def signed_in_by_password(browser: Browser, username: str = "jane", **fields: Any) -> Any:
    """Make a user with a password and sign in with it, just now."""
    user = User.objects.create_user(username, password="pw", **fields)
    assert browser.client.login(username=username, password="pw")
    return user


def is_signed_in(browser: Browser) -> bool:
    return bool(browser.client.get("/private/").status_code == 200)


def person(op: OpenIDProvider, sub: str, **claims: Any) -> None:
    """Have somebody else at the OP from now on."""
    op.person = merged(somebody(), {"sub": sub, "email": f"{sub}@example.com"} | claims)
    op.new_login()


def the_identity(sub: str) -> Any:
    return Identity.objects.get(sub=sub)


def age(browser: Browser, seconds: float) -> None:
    """Let what this session says of its sign-in be so much longer ago."""
    session = browser.client.session
    login, local = session.get(CURRENT), session.get(LOCAL)
    if login is not None:
        past = {name: login[name] - seconds for name in ("at", "auth_time") if login[name]}
        put(browser, **{CURRENT: login | past})
    if local is not None:
        put(browser, **{LOCAL: local - seconds})


STALE = accounts.FRESH.total_seconds() + 1


@pytest.fixture
def other(
    op: OpenIDProvider, browser: Browser, settings: Settings, signing_key: SigningKey
) -> Iterator[OpenIDProvider]:
    """A second OP that the site knows, "other", where Jane is called j2."""
    with OpenIDProvider(keys=[signing_key]) as second:
        person(second, "j2")
        known = settings.OIDC_RP["PROVIDERS"]["op"]
        own = {"ISSUER": second.issuer, "CLIENT_SECRET": second.client_secret}
        settings.OIDC_RP = {"PROVIDERS": {"op": known, "other": known | own}}
        yield second


@pytest.fixture
def guarded(engine: str, settings: Settings) -> str:
    """Every engine of Django; where sessions live in cookies, with what refuses the ended ones."""
    if engine == "signed_cookies":
        settings.MIDDLEWARE = [*django_settings.MIDDLEWARE, RENEWAL]
    return engine


Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def heard() -> Iterator[Told]:
    """What the site's receivers of linking and unlinking hear."""
    found: Told = []
    receivers: dict[str, Callable[..., None]] = {}
    for name in ("identity_linked", "identity_unlinked"):

        def receive(name: str = name, **arguments: Any) -> None:
            del arguments["signal"], arguments["sender"]
            found.append((name, arguments))

        receivers[name] = receive
        getattr(signals, name).connect(receive)
    yield found
    for name, receiver in receivers.items():
        getattr(signals, name).disconnect(receiver)


# The page


@pytest.mark.parametrize("middleware", [[], [LOGIN_REQUIRED]])
def test_the_page_wants_somebody_who_is_signed_in(
    op: OpenIDProvider, browser: Browser, settings: Settings, middleware: list[str]
) -> None:
    """Everybody else is sent to sign in, and comes back to it; a form of theirs does nothing."""
    settings.MIDDLEWARE = [*django_settings.MIDDLEWARE, *middleware]
    stranger = Browser()
    signed_in(browser)
    assert browser.client.get(PAGE).status_code == 200
    for response in (
        stranger.client.get(PAGE),
        *(post(stranger, action, confirmed="1") for action in ACTIONS),
    ):
        assert response.status_code == 302
        assert response.headers["Location"] == f"/oidc/login/?next={PAGE}"
    assert pending(stranger) == {}
    assert stranger.sign_in("op", next=PAGE).headers["Location"] == PAGE
    assert stranger.client.get(PAGE).status_code == 200


def test_a_user_who_is_no_longer_active_sees_nothing(browser: Browser) -> None:
    signed_in(browser)
    User.objects.update(is_active=False)
    assert browser.client.get(PAGE).status_code == 302


def test_a_GET_changes_nothing(op: OpenIDProvider, browser: Browser) -> None:
    """Whatever its query says; no statement writes anything."""
    user, elsewhere = signed_in_by_password(browser), new_browser()
    assert link(browser) == "linked"
    assert signed_in(elsewhere) == user
    browser.client.get(PAGE)
    op.forget_requests()
    row = row_of(elsewhere.client.session)
    fields = {"identity": Identity.objects.get().pk, "session": row, "provider": "op"}
    with CaptureQueriesContext(connection) as queries:
        for action in ACTIONS:
            query = {"action": action, "confirmed": "1"} | fields
            for method in (browser.client.get, browser.client.head):
                assert method(PAGE, query).status_code == 200
    assert {query["sql"].split()[0] for query in queries} == {"SELECT"}
    assert is_signed_in(elsewhere)
    assert Identity.objects.count() == 1
    assert op.requests == []


def test_other_methods_are_not_allowed(browser: Browser) -> None:
    signed_in(browser)
    for method in ("put", "patch", "delete", "options"):
        assert getattr(browser.client, method)(PAGE).status_code == 405


@pytest.mark.parametrize("action", ACTIONS)
def test_M11_a_form_needs_the_csrf_token(
    op: OpenIDProvider, browser: Browser, action: str, settings: Settings
) -> None:
    """Without one nothing happens, with or without Django's middleware; with one it does."""
    signed_in(browser)
    elsewhere, strict = new_browser(), Client(enforce_csrf_checks=True)
    signed_in(elsewhere)
    strict.cookies = browser.client.cookies
    fields = {
        "action": action,
        "provider": "op",
        "identity": Identity.objects.get().pk,
        "session": row_of(elsewhere.client.session),
        "confirmed": "1",
    }
    for middleware in (
        django_settings.MIDDLEWARE,
        [name for name in django_settings.MIDDLEWARE if "Csrf" not in name],
    ):
        settings.MIDDLEWARE = middleware
        without = Client(enforce_csrf_checks=True)
        without.cookies = strict.cookies
        assert without.post(PAGE, fields).status_code == 403
        assert without.post(PAGE, fields, headers={"x-csrftoken": "x" * 32}).status_code == 403
    assert is_signed_in(elsewhere)
    assert pending(browser) == {}
    page = strict.get(PAGE).content.decode()
    (token, *_) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert strict.post(PAGE, fields | {"csrfmiddlewaretoken": token}).status_code == 302


@pytest.mark.parametrize("action", ["", "delete", "Link", "link ", "__class__", "get", None])
def test_an_action_that_there_is_not_is_refused(browser: Browser, action: str | None) -> None:
    signed_in(browser)
    response = browser.client.post(PAGE, {} if action is None else {"action": action})
    assert refusal(response) == (400, "identities.action")
    query = f"{PAGE}?action=link&provider=op"
    assert refusal(browser.client.post(query)) == (400, "identities.action")
    assert pending(browser) == {}


def test_a_form_that_cannot_be_read_is_refused(browser: Browser) -> None:
    signed_in(browser)
    response = browser.client.post(PAGE, b"x", content_type="multipart/form-data; boundary=")
    assert refusal(response) == (400, "response.unreadable")


def test_the_page_shows_what_is_ones_own(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Each identity with its provider and name, each session with browser and system, this one
    first; and nothing of anybody else."""
    here, elsewhere, stranger = new_browser(SAFARI), new_browser(), new_browser("curl/8.5.0")
    user = signed_in(here)
    assert link(here, "other") == "linked"
    assert signed_in(elsewhere, "other") == user
    person(op, "stranger")
    assert signed_in(stranger) != user
    page = here.client.get(PAGE)
    shown = [(one.label, one.about, one.here) for one in page.context["identities"]]
    assert shown == [("op", "janedoe@example.com", True), ("other", "j2@example.com", False)]
    where = [(one.browser, one.system, one.label, one.here) for one in page.context["sessions"]]
    assert where == [("Safari", "macOS", "op", True), ("Chrome", "Windows", "other", False)]
    assert page.context["others"] == 1
    text = page.content.decode()
    assert text.index("Safari on macOS") < text.index("this one") < text.index("Chrome on Windows")
    assert text.count("this one") == text.count('aria-current="true"') == 1
    assert "stranger" not in text
    assert "curl" not in text
    assert row_of(stranger.client.session) not in text
    mirrored = elsewhere.client.get(PAGE).context["sessions"]
    assert [one.browser for one in mirrored] == ["Chrome", "Safari"]
    assert [one.about for one in stranger.client.get(PAGE).context["identities"]] == [
        "stranger@example.com"
    ]


def test_users_with_the_same_password_hash_do_not_see_each_other(
    op: OpenIDProvider, browser: Browser
) -> None:
    """Such as those that somebody imported without any."""
    stranger = new_browser()
    for one, sub in ((browser, "jane"), (stranger, "stranger")):
        person(op, sub)
        signed_in(one)
        User.objects.update(password="")
        signed_in(one)
    rows = [row_of(one.client.session) for one in (browser, stranger)]
    assert len(set(Session.objects.filter(pk__in=rows).values_list("auth_hash", flat=True))) == 1
    for one in (browser, stranger):
        page = one.client.get(PAGE)
        assert [shown.here for shown in page.context["sessions"]] == [True]
        assert page.context["others"] == 0


def test_a_session_that_is_over_is_not_shown(browser: Browser) -> None:
    """Signed out, expired in the store, deleted from it, or of a password that has changed."""
    user = signed_in(browser)
    gone = [new_browser() for _ in range(3)]
    for one in gone:
        assert signed_in(one) == user
    assert len(browser.client.get(PAGE).context["sessions"]) == 4
    gone[0].client.post("/oidc/logout/")
    gone[1].client.session.delete()
    expired = StoredSession.objects.filter(session_key=gone[2].client.session.session_key)
    expired.update(expire_date="2020-01-01T00:00:00Z")
    (only,) = browser.client.get(PAGE).context["sessions"]
    assert only.here


def test_of_a_changed_password_only_this_session_is_left(browser: Browser) -> None:
    """Django ends the others itself when a password changes, and the page says so."""
    user = signed_in(browser)
    signed_in(new_browser())
    user.set_password("another")
    user.save()
    assert browser.client.get(PAGE).status_code == 302
    assert signed_in(browser) == user
    (only,) = browser.client.get(PAGE).context["sessions"]
    assert only.here


@pytest.mark.parametrize(
    ("about", "claims"),
    [
        ("jane@example.com", {"email": "jane@example.com"}),
        ("j.doe", {"email": None}),
        ("j.doe", {"email": ""}),
        ("j.doe", {"email": ["jane@example.com"]}),
        ("Jane Doe", {"email": REMOVE, "preferred_username": {"a": 1}}),
        ("<b>s", {"email": 5, "preferred_username": None, "name": REMOVE}),
        ('"><script>alert(1)</script>', {"email": '"><script>alert(1)</script>'}),
        ("{{ 7|add:7 }}", {"email": "{{ 7|add:7 }}"}),
    ],
)
def test_an_identity_is_called_by_what_the_op_says_of_it(
    op: OpenIDProvider, browser: Browser, about: str, claims: dict[str, Any]
) -> None:
    """Address, user name, name, or else sub; whatever it is, it is text."""
    person(op, "<b>s", **claims)
    signed_in(browser)
    assert [one.about for one in browser.client.get(PAGE).context["identities"]] == [about]
    pages = [browser.client.get(PAGE)]
    user = User.objects.get()
    user.set_password("pw")
    user.save()
    signed_in(browser)
    pages.append(post(browser, "unlink", identity=Identity.objects.get().pk))
    for page in pages:
        text = page.content.decode()
        assert page.status_code == 200
        assert "<script>alert" not in text
        assert "<b>" not in text
        assert "14" not in [value for _, attrs in Tags(text).found for value in attrs.values()]


@pytest.mark.parametrize("user_agent", ["", "<script>alert(1)</script>", "x" * 5000, "\x00\x01é"])
def test_any_browser_is_shown(browser: Browser, user_agent: str) -> None:
    """One that nobody knows is called so."""
    signed_in(browser)
    signed_in(new_browser(user_agent))
    page = browser.client.get(PAGE)
    assert [one.browser for one in page.context["sessions"]] == ["", ""]
    assert "<script>alert" not in page.content.decode()
    assert page.content.decode().count("Unknown browser") == 2


def test_M53_no_page_shows_a_session_key_or_a_token(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Not this session's, not another's: what names a session here opens nothing."""
    here, elsewhere = new_browser(), new_browser()
    user = signed_in(here)
    user.set_password("pw")
    user.save()
    op.login.auth_time -= 10
    for one in (here, elsewhere):
        signed_in(one)
    identity = Identity.objects.get()
    pages = [
        here.client.get(PAGE),
        post(here, "unlink", identity=identity.pk),
        post(here, "end_other_sessions"),
        post(here, "nothing"),
    ]
    assert [page.status_code for page in pages] == [200, 200, 200, 400]
    rows = Session.objects.all()
    secrets = {*every_token(op), *(row.session_key for row in rows), *(r.auth_hash for r in rows)}
    secrets |= {row.id_token for row in rows} | {
        grant.refresh_token for grant in Grant.objects.all()
    }
    secrets |= {cookie(here), cookie(elsewhere), op.login.sid}
    assert "" not in secrets
    assert len(secrets) > 10
    for page in pages:
        assert not [secret for secret in secrets if secret in page.content.decode()]
        assert "no-store" in page.headers["Cache-Control"]
    session_keys = [row.session_key for row in rows]
    assert not {row.pk for row in rows} & set(session_keys)
    thief = Client()
    for row in rows:
        thief.cookies[django_settings.SESSION_COOKIE_NAME] = row.pk
        assert thief.get("/private/").status_code == 302


def test_the_page_of_somebody_with_a_password_only(op: OpenIDProvider, browser: Browser) -> None:
    """Nothing is linked, no session is listed, and everything else is there."""
    signed_in_by_password(browser)
    page = browser.client.get(PAGE)
    assert (page.context["identities"], page.context["sessions"]) == ([], [])
    text = page.content.decode()
    assert "Nothing is linked to your account yet." in text
    assert text.count('value="link"') == 1
    assert link(browser) == "linked"
    (identity,) = browser.client.get(PAGE).context["identities"]
    assert not identity.here


def test_somebody_with_a_password_sees_and_ends_sessions_elsewhere(
    op: OpenIDProvider, browser: Browser
) -> None:
    """What began at an OP is listed, and ends; this session is no such one and stays."""
    user, elsewhere = signed_in_by_password(browser), [new_browser(), new_browser(SAFARI)]
    link(browser)
    for one in elsewhere:
        assert signed_in(one) == user
    shown = browser.client.get(PAGE).context["sessions"]
    assert [(one.browser, one.here) for one in shown] == [("Safari", False), ("Chrome", False)]
    row = row_of(elsewhere[0].client.session)
    assert told(browser, post(browser, "end_session", session=row)) == "ended"
    assert [is_signed_in(one) for one in elsewhere] == [False, True]
    assert told(browser, post(browser, "end_other_sessions", confirmed="1")) == "others_ended"
    assert [is_signed_in(one) for one in elsewhere] == [False, False]
    assert is_signed_in(browser)


def test_many_rows_cost_no_more_statements_than_few(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Nor is the site asked more often for its providers, which may be a statement each time."""
    providers, asked_for = settings.OIDC_RP["PROVIDERS"], []

    def ask() -> dict[str, Any]:
        asked_for.append(1)
        return dict(providers)

    settings.OIDC_RP = {"PROVIDERS": ask}
    user = signed_in(browser)

    def cost() -> tuple[int, int]:
        asked_for.clear()
        with CaptureQueriesContext(connection) as queries:
            page = browser.client.get(PAGE)
        assert len(page.context["identities"]) == user.oidc_identities.count()
        assert len(page.context["sessions"]) == Session.objects.count()
        return len(queries), len(asked_for)

    few = cost()
    for number in range(8):
        claims = {"email": f"{number}@example.com"}
        Identity.objects.create(
            user=user, provider="op", iss=op.issuer, sub=str(number), claims=claims
        )
        signed_in(new_browser())
    assert cost() == few
    assert few[0] <= 6


@pytest.mark.parametrize("providers", [{}, {"op": {"ISSUER": "ftp://broken"}}])
def test_a_provider_that_is_gone_breaks_no_page(
    browser: Browser, settings: Settings, providers: dict[str, Any]
) -> None:
    """Its identities and sessions are called by its slug, and can be ended."""
    signed_in(browser)
    elsewhere = new_browser()
    signed_in(elsewhere)
    settings.OIDC_RP = {"PROVIDERS": providers}
    page = browser.client.get(PAGE)
    assert [one.label for one in page.context["identities"]] == ["op"]
    assert [one.label for one in page.context["sessions"]] == ["op", "op"]
    code = "configuration.provider" if providers else "provider.unknown"
    assert refusal(post(browser, "link", provider="op"))[1] == code
    assert told(browser, post(browser, "end_other_sessions", confirmed="1")) == "others_ended"
    assert not is_signed_in(elsewhere)


def test_a_notice_is_told_once(browser: Browser) -> None:
    signed_in(browser)
    assert told(browser, post(browser, "end_session", session="none")) == "ended"
    assert browser.client.get(PAGE).context["notice"] is None


# Sessions


def test_M58_sign_out_there(guarded: str, op: OpenIDProvider, browser: Browser) -> None:
    """That session ends, on every engine, at its next request; this one and the third go on."""
    there, third = new_browser(), new_browser(SAFARI)
    user = signed_in(browser)
    for one in (there, third):
        assert signed_in(one) == user
    row = row_of(there.client.session)
    assert told(browser, post(browser, "end_session", session=row)) == "ended"
    assert [is_signed_in(one) for one in (browser, there, third)] == [True, False, True]
    assert not Session.objects.filter(pk=row).exists()
    assert len(browser.client.get(PAGE).context["sessions"]) == 2
    events = Event.objects.filter(name="session_ended")
    assert [(event.code, event.actor) for event in events] == [("logout", f"user {user.pk}")]
    assert signed_in(there) == user
    assert is_signed_in(there)


def test_M58_sign_out_everywhere_else(guarded: str, op: OpenIDProvider, browser: Browser) -> None:
    """Asked for once more, then all others end, on every engine; this session goes on as it is,
    and nobody else's is touched."""
    others, stranger = [new_browser(), new_browser(), new_browser()], new_browser()
    user = signed_in(browser)
    put(browser, basket=["book"])
    for one in others:
        assert signed_in(one) == user
    person(op, "stranger")
    signed_in(stranger)
    page = post(browser, "end_other_sessions")
    assert (page.status_code, page.templates[0].name) == (200, "oidc_rp/end_other_sessions.html")
    assert "3 other browsers" in page.content.decode()
    assert [is_signed_in(one) for one in others] == [True, True, True]
    response = post(browser, "end_other_sessions", confirmed="1")
    assert told(browser, response) == "others_ended"
    assert [is_signed_in(one) for one in others] == [False, False, False]
    assert [is_signed_in(one) for one in (browser, stranger)] == [True, True]
    assert browser.client.session["basket"] == ["book"]
    assert Session.objects.filter(identity__user=user).count() == 1
    assert not is_signed_in(others[0])


@pytest.mark.parametrize("slug", ["op", "other"])
def test_M60_sign_out_everywhere_else_beats_a_login_in_flight(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser, slug: str
) -> None:
    """Of whichever identity, in every other browser; who begins afterwards comes in."""
    signed_in(browser)
    link(browser, "other")
    elsewhere, another_user = new_browser(), new_browser()
    callback, jane = elsewhere.visit_op(elsewhere.start(slug)), op.person
    person(op, "stranger")
    of_a_stranger = another_user.visit_op(another_user.start("op"))
    assert told(browser, post(browser, "end_other_sessions", confirmed="1")) == "others_ended"
    assert refusal(elsewhere.come_back(callback)) == (403, "session.ended")
    assert [is_signed_in(one) for one in (browser, elsewhere)] == [True, False]
    assert another_user.come_back(of_a_stranger).status_code == 302
    op.person = jane
    assert elsewhere.sign_in(slug).status_code == 302
    assert [is_signed_in(one) for one in (browser, elsewhere, another_user)] == [True] * 3


def test_M60_sign_out_everywhere_else_spares_the_logins_of_this_browser(
    guarded: str, op: OpenIDProvider, browser: Browser
) -> None:
    """Another tab of it that is at the OP comes back signed in, once and twice."""
    signed_in(browser)
    tabs = [browser.visit_op(browser.start("op")) for _ in range(2)]
    for callback in tabs:
        assert told(browser, post(browser, "end_other_sessions", confirmed="1")) == "others_ended"
        assert browser.come_back(callback).status_code == 302
        assert is_signed_in(browser)


def test_M60_somebody_with_a_password_only_beats_a_login_in_flight(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A session that never was at an OP has no browser to spare."""
    user, thief = signed_in(browser), new_browser()
    callback = thief.visit_op(thief.start("op"))
    here = new_browser()
    here.client.force_login(user, MODEL_BACKEND)
    assert told(here, post(here, "end_other_sessions", confirmed="1")) == "others_ended"
    assert refusal(thief.come_back(callback)) == (403, "session.ended")
    assert is_signed_in(here)


def test_M58_sessions_of_every_identity_end(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """However somebody signed in elsewhere, it is the same somebody."""
    elsewhere = new_browser()
    user = signed_in(browser)
    link(browser, "other")
    assert signed_in(elsewhere, "other") == user
    post(browser, "end_other_sessions", confirmed="1")
    assert [is_signed_in(one) for one in (browser, elsewhere)] == [True, False]


@pytest.mark.django_db(transaction=True)
def test_M58_what_was_granted_to_an_ended_session_alone_is_revoked(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Session-bound grants are closed and their tokens revoked; this session's stays open."""
    site.has(SCOPES=["openid", "calendar"])
    op.always_refresh_token = True
    others = [new_browser(), new_browser()]
    for one in (browser, *others):
        signed_in(one)
    first, second = (grant_of(one.client.session) for one in others)
    theirs = [*op._refresh_tokens][1:]
    post(browser, "end_session", session=row_of(others[0].client.session))
    assert Grant.objects.get(pk=first).close_reason == "logout"
    wait_until(lambda: to_revoke() == [])
    assert op.revocations == [("refresh_token", theirs[0])]
    post(browser, "end_other_sessions", confirmed="1")
    assert Grant.objects.get(pk=second).close_reason == "logout"
    wait_until(lambda: to_revoke() == [])
    assert op.revocations == [("refresh_token", token) for token in theirs]
    assert Grant.objects.get(pk=grant_of(browser.client.session)).status == "open"


def test_a_durable_grant_outlives_the_sessions(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Offline access is the person's, not the browser's."""
    elsewhere = new_browser()
    for one in (browser, elsewhere):
        signed_in(one)
    before = op.revocations.copy()
    post(browser, "end_other_sessions", confirmed="1")
    assert not is_signed_in(elsewhere)
    assert Grant.objects.get().status == "open"
    assert op.revocations == before


def test_M58_a_session_of_somebody_else_is_not_ended(
    guarded: str, op: OpenIDProvider, browser: Browser
) -> None:
    """Whoever knows its id may say it: nothing happens, and nothing is told."""
    stranger = new_browser()
    signed_in(stranger)
    row = row_of(stranger.client.session)
    person(op, "eve")
    signed_in(browser)
    before = list(Session.objects.order_by("pk").values())
    for fields in ({}, {"confirmed": "1"}, {"identity": the_identity("248289761001").pk}):
        assert told(browser, post(browser, "end_session", session=row, **fields)) == "ended"
    assert is_signed_in(stranger)
    assert list(Session.objects.order_by("pk").values()) == before
    assert not Event.objects.filter(name="session_ended").exists()


@pytest.mark.parametrize("by_password", [False, True])
@pytest.mark.parametrize("row", [None, "", "0", "\x00", "'", "é" * 40, "x" * 5000, "%"])
def test_an_id_that_is_none_ends_nothing(
    op: OpenIDProvider, browser: Browser, row: str | None, by_password: bool
) -> None:
    """Least of all this very session, where that has no row of its own."""
    signed_in_by_password(browser) if by_password else signed_in(browser)
    elsewhere = new_browser()
    signed_in(elsewhere)
    fields = {} if row is None else {"session": row}
    assert told(browser, post(browser, "end_session", **fields)) == "ended"
    assert [is_signed_in(one) for one in (browser, elsewhere)] == [True, True]


def test_ending_ones_own_session_signs_out(
    guarded: str, op: OpenIDProvider, browser: Browser
) -> None:
    """The page has no button for it; whoever does it anyway is signed out here, as by logout."""
    elsewhere = new_browser()
    signed_in(browser)
    signed_in(elsewhere)
    row = row_of(browser.client.session)
    assert row not in browser.client.get(PAGE).content.decode()
    response = post(browser, "end_session", session=row)
    assert (response.status_code, response.headers["Location"]) == (302, "/oidc/login/")
    assert [is_signed_in(one) for one in (browser, elsewhere)] == [False, True]
    assert not Session.objects.filter(pk=row).exists()


def test_signing_out_needs_no_fresh_sign_in(op: OpenIDProvider, browser: Browser) -> None:
    """Whoever sees a stranger's browser in the list is not stopped by a form."""
    op.login.auth_time -= 3600
    elsewhere = new_browser()
    signed_in(browser)
    signed_in(elsewhere)
    assert told(browser, post(browser, "end_other_sessions", confirmed="1")) == "others_ended"
    assert not is_signed_in(elsewhere)


# Linking


def test_M38_linking_from_end_to_end(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """A button, the OP, the page again; from then on both lead to the same user."""
    user = signed_in(browser)
    response = post(browser, "link", provider="other")
    assert response.headers["Location"].startswith(other.url("authorization") + "?")
    params = asked(response.headers["Location"])
    assert params["redirect_uri"] == "http://testserver/oidc/other/callback/"
    assert told(browser, browser.follow(response)) == "linked"
    identity = the_identity("j2")
    assert (identity.user, identity.provider, identity.iss) == (user, "other", other.issuer)
    assert identity.claims["email"] == "j2@example.com"
    assert [signed_in(new_browser(), slug) for slug in ("op", "other")] == [user, user]
    assert User.objects.count() == 1


def test_linking_is_a_POST(op: OpenIDProvider, browser: Browser) -> None:
    """A link that somebody was made to follow starts none."""
    signed_in(browser)
    browser.client.get(PAGE, {"action": "link", "provider": "op"})
    assert pending(browser) == {}


@pytest.mark.parametrize("provider", ["nobody", "", "op/../op", "\x00", None])
def test_linking_at_a_provider_that_there_is_not(
    op: OpenIDProvider, browser: Browser, provider: str | None
) -> None:
    signed_in_by_password(browser)
    fields = {} if provider is None else {"provider": provider}
    assert refusal(post(browser, "link", **fields)) == (404, "provider.unknown")
    assert op.requests == []


def test_linking_at_an_op_that_is_down(op: OpenIDProvider, browser: Browser) -> None:
    """A refusal, and everything is as it was."""
    user = signed_in_by_password(browser)
    op.answer["discovery"] = sending({}, 503)
    assert refusal(post(browser, "link", provider="op")) == (400, "discovery.status")
    assert browser.client.session["_auth_user_id"] == str(user.pk)


# ... by whom


def test_M38_a_sign_in_of_long_ago_links_nothing_until_it_is_fresh(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """The page says so and leads to the OP, which is asked for a new one; then it works."""
    op.login.auth_time -= int(STALE)
    user = signed_in(browser)
    assert link(browser, "other") == "stale"
    assert pending(browser) == {}
    assert other.requests == []
    post(browser, "link", provider="other")
    page = browser.client.get(PAGE)
    href = page.context["freshen_url"]
    assert href.replace("&", "&amp;") in page.content.decode()
    assert "more than five minutes ago" in page.content.decode()
    response = browser.client.get(href)
    assert asked(response.headers["Location"])["max_age"] == "300"
    response = browser.follow(response)
    assert (response.status_code, response.headers["Location"]) == (302, PAGE)
    assert link(browser, "other") == "linked"
    assert the_identity("j2").user == user


def test_M38_an_op_that_ignores_the_wish_for_a_fresh_sign_in_does_not_help(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    op.login.auth_time -= 3600
    op.ignores_max_age = True
    signed_in(browser)
    href = browser.client.get(PAGE).context["freshen_url"]
    response = browser.follow(browser.client.get(href))
    assert refusal(response) == (400, "id_token.auth_time")
    assert link(browser, "other") == "stale"


def test_M38_somebody_else_at_the_op_freshens_nothing(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """It is the person of this session who has to show up."""
    op.login.auth_time -= 3600
    user = signed_in(browser)
    href = browser.client.get(PAGE).context["freshen_url"]
    person(op, "eve")
    assert refusal(browser.follow(browser.client.get(href))) == (403, "session.other_person")
    assert browser.client.session["_auth_user_id"] == str(user.pk)
    assert link(browser, "other") == "stale"


@pytest.mark.parametrize("seconds", [299, 301, 86400 * 365])
def test_M38_a_password_typed_long_ago_links_nothing_until_it_is_typed_again(
    op: OpenIDProvider, browser: Browser, settings: Settings, seconds: int
) -> None:
    """The page leads to the site's own login page; then it works."""
    settings.LOGIN_URL = "/admin/login/"
    user = signed_in_by_password(browser, is_staff=True)
    age(browser, seconds)
    if seconds < 300:
        assert link(browser) == "linked"
        return
    assert link(browser) == "stale"
    href = browser.client.get(PAGE).context["freshen_url"]
    assert parse_qs(urlsplit(href).query) == {"next": [PAGE]}
    form = {"username": "jane", "password": "pw", "next": PAGE}
    assert browser.client.post(href, form).headers["Location"] == PAGE
    assert link(browser) == "linked"
    assert Identity.objects.get().user == user


def test_M38_nobody_is_led_to_somebody_elses_sign_in(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Our chooser asks for no password, and its buttons would make another account; a provider that
    is gone signs nobody in. The page says what to do, and has no link for it."""
    by_password = new_browser()
    signed_in_by_password(by_password)
    signed_in(browser)
    settings.OIDC_RP = {"PROVIDERS": {"other": settings.OIDC_RP["PROVIDERS"]["other"]}}
    for one in (browser, by_password):
        age(one, STALE)
        post(one, "link", provider="other")
        page = one.client.get(PAGE)
        assert (page.context["notice_code"], page.context["freshen_url"]) == ("stale", "")
        assert "more than five minutes ago" in page.content.decode()
        assert ">Sign in once more<" not in page.content.decode()


def test_M38_an_op_that_does_not_say_when_is_believed_for_a_login_of_now(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """What counts then is when this session began here; it can be freshened as well."""
    op.id_token_claims["auth_time"] = REMOVE
    signed_in(browser)
    age(browser, STALE)
    assert link(browser, "other") == "stale"
    href = browser.client.get(PAGE).context["freshen_url"]
    assert browser.follow(browser.client.get(href)).headers["Location"] == PAGE
    assert link(browser, "other") == "linked"


def test_M38_a_silent_renewal_makes_no_old_sign_in_a_fresh_one(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """The OP vouched for the session with prompt=none: nobody has shown who they are."""
    settings.MIDDLEWARE = [*django_settings.MIDDLEWARE, RENEWAL]
    settings.OIDC_RP = settings.OIDC_RP | {"SESSION_RENEWAL": 60}
    op.id_token_claims["auth_time"] = REMOVE
    signed_in(browser)
    age(browser, STALE)
    Session.objects.update(renewed_at=DatabaseClock(timedelta(hours=-1)))
    response = browser.client.get("/home/", headers={"accept": "text/html"})
    assert asked(response.headers["Location"])["prompt"] == "none"
    assert browser.follow(response).headers["Location"] == "/home/"
    assert link(browser, "other") == "stale"


def test_M38_a_sign_in_of_a_time_to_come_is_not_fresh(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Or it would be for years."""
    op.login.auth_time += 86400 * 365
    signed_in(browser)
    assert link(browser, "other") == "stale"


def test_M38_a_fresh_sign_in_elsewhere_is_none_here(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    op.login.auth_time -= 3600
    signed_in(browser)
    op.new_login()
    signed_in(new_browser())
    assert link(browser, "other") == "stale"


def switch_by_password(browser: Browser, op: OpenIDProvider) -> None:
    User.objects.create_user("eve", password="pw")
    assert browser.client.login(username="eve", password="pw")


def switch_at_the_op(browser: Browser, op: OpenIDProvider) -> None:
    person(op, "eve")
    signed_in(browser)


def log_out(browser: Browser, op: OpenIDProvider) -> None:
    browser.client.post("/oidc/logout/")


def log_out_elsewhere(browser: Browser, op: OpenIDProvider) -> None:
    elsewhere = new_browser()
    elsewhere.client.force_login(User.objects.get(), MODEL_BACKEND)
    post(elsewhere, "end_other_sessions", confirmed="1")


def deactivate(browser: Browser, op: OpenIDProvider) -> None:
    User.objects.update(is_active=False)


def deactivate_and_tell(browser: Browser, op: OpenIDProvider) -> None:
    user = User.objects.get()
    user.is_active = False
    user.save()


def change_password(browser: Browser, op: OpenIDProvider) -> None:
    user = User.objects.get()
    user.set_password("another")
    user.save()


def delete_user(browser: Browser, op: OpenIDProvider) -> None:
    User.objects.all().delete()


MEANWHILE = {
    switch_by_password: "state.unknown",
    switch_at_the_op: "account.link",
    log_out: "state.unknown",
    log_out_elsewhere: "state.unknown",
    deactivate: "account.link",
    deactivate_and_tell: "state.unknown",
    change_password: "account.link",
    delete_user: "state.unknown",
}


@pytest.mark.parametrize(
    ("meanwhile", "code"), MEANWHILE.items(), ids=[what.__name__ for what in MEANWHILE]
)
def test_M38_a_link_lands_on_whoever_started_it_or_nowhere(
    op: OpenIDProvider,
    other: OpenIDProvider,
    browser: Browser,
    meanwhile: Callable[[Browser, OpenIDProvider], None],
    code: str,
) -> None:
    """Whatever happened to their session in between: nothing is linked, and nobody is signed in
    who was not."""
    signed_in(browser)
    callback = start_link(browser, "other")
    meanwhile(browser, op)
    now = browser.client.session.get("_auth_user_id")
    before = set(Identity.objects.values_list("pk", flat=True))
    assert refusal(browser.come_back(callback))[1] == code
    user = request_of(browser).user
    assert user.pk is None or str(user.pk) == now
    assert set(Identity.objects.values_list("pk", flat=True)) == before
    assert not Identity.objects.filter(sub="j2").exists()


def test_M38_the_same_user_who_signed_in_anew_may_go_on(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Another tab signed in again meanwhile: the same user, and another session key."""
    user = signed_in(browser)
    callback = start_link(browser, "other")
    assert signed_in(browser) == user
    assert told(browser, browser.come_back(callback)) == "linked"
    assert the_identity("j2").user == user


def test_M38_a_backend_that_lets_the_inactive_stay_links_them_nothing(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Django has one that does not ask."""
    asks_nobody = "django.contrib.auth.backends.AllowAllUsersModelBackend"
    settings.AUTHENTICATION_BACKENDS = [OIDC_BACKEND, asks_nobody]
    user = User.objects.create_user("jane", password="pw")
    browser.client.force_login(user, asks_nobody)
    callback = start_link(browser)
    User.objects.update(is_active=False)
    assert is_signed_in(browser)
    assert refusal(browser.come_back(callback)) == (403, "account.inactive")
    assert not Identity.objects.exists()


@pytest.mark.parametrize("same_user", [False, True])
def test_M5_a_link_of_another_browser_is_refused(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser, same_user: bool
) -> None:
    """Its state is worth nothing there, not even where the same user is signed in."""
    user, victim = signed_in(browser), new_browser()
    if not same_user:
        person(op, "victim")
    signed_in(victim)
    callback = start_link(browser, "other")
    assert refusal(victim.come_back(callback)) == (400, "state.unknown")
    pending(victim)
    start_link(victim, "other")
    assert refusal(victim.come_back(callback)) == (400, "state.unknown")
    assert not Identity.objects.filter(sub="j2").exists()
    assert told(browser, browser.come_back(callback)) == "linked"
    assert the_identity("j2").user == user


def test_M38_the_code_of_an_attacker_links_nothing_to_a_victim(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Not even with the victim's own state: PKCE binds the code to the attempt it is for."""
    attacker = new_browser()
    signed_in(browser)
    person(op, "attacker")
    signed_in(attacker)
    person(other, "attackers")
    stolen = dict(start_link(attacker, "other").params)["code"]
    person(other, "j2")
    callback = start_link(browser, "other")
    response = browser.come_back(callback.bent(code=stolen))
    assert refusal(response) == (400, "token.invalid_grant")
    assert not Identity.objects.filter(provider="other").exists()


def test_M8_a_link_that_comes_back_through_another_provider_is_refused(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    signed_in(browser)
    callback = start_link(browser, "other")
    elsewhere = Callback(callback.url.replace("/oidc/other/", "/oidc/op/"))
    assert refusal(browser.come_back(elsewhere)) == (400, "state.provider")
    assert not Identity.objects.filter(sub="j2").exists()


def test_M3_a_link_works_once(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    signed_in(browser)
    callback = start_link(browser, "other")
    assert told(browser, browser.come_back(callback)) == "linked"
    assert refusal(browser.come_back(callback))[1] in ("state.unknown", "state.used")
    assert other.calls("token") == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_M11_an_ordinary_login_of_somebody_signed_in_links_nothing(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, method: str
) -> None:
    """By link or by our own button: whoever comes back from the OP is who is signed in then."""
    user = signed_in(browser)
    fields = {"action": "link", "purpose": "link", "linker": str(user.pk)}
    send = browser.client.get if method == "GET" else browser.client.post
    response = browser.follow(send("/oidc/other/login/", fields))
    assert outcome(response) == "/home/"
    assert the_identity("j2").user != user
    assert browser.client.session["_auth_user_id"] != str(user.pk)
    assert user.oidc_identities.count() == 1


# ... what


def test_M38_an_identity_of_somebody_else_is_not_moved(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Refused; theirs it stays, with what is known of it, and this session is as it was."""
    owner = signed_in(new_browser(), "other")
    before = the_identity("j2")
    user = signed_in(browser)
    person(other, "j2", given_name="Changed")
    response = browser.follow(post(browser, "link", provider="other"))
    assert refusal(response) == (403, "account.linked_elsewhere")
    after = the_identity("j2")
    assert (after.pk, after.user) == (before.pk, owner)
    assert (after.claims, after.last_login_at) == (before.claims, before.last_login_at)
    assert browser.client.session["_auth_user_id"] == str(user.pk)
    assert not User.objects.filter(first_name="Changed").exists()
    assert not Event.objects.filter(name="linked", actor=f"user {user.pk}", identity=after)


@pytest.mark.django_db(transaction=True)
def test_the_same_identity_again_is_fine(op: OpenIDProvider, browser: Browser, heard: Told) -> None:
    """It was linked before: what is known of it is brought up to date, and nobody is told anew."""
    user = signed_in(browser)
    heard.clear()
    op.person["email"] = "new@example.com"
    assert link(browser) == "linked_before"
    identity = Identity.objects.get()
    assert (identity.user, identity.claims["email"]) == (user, "new@example.com")
    user.refresh_from_db()
    assert user.email == "janedoe@example.com"
    assert heard == []


@pytest.mark.parametrize("create_users", [True, False])
def test_M38_an_identity_new_to_the_site_makes_no_user(
    op: OpenIDProvider, browser: Browser, configure: Configure, create_users: bool
) -> None:
    """It is linked to whoever asked, whether or not the site makes users for strangers."""
    configure(CREATE_USERS=create_users)
    user = signed_in_by_password(browser)
    assert link(browser) == "linked"
    assert list(User.objects.all()) == [user]
    assert Identity.objects.get().user == user
    assert signed_in(new_browser()) == user


@pytest.mark.parametrize("is_staff", [False, True])
def test_M38_linking_changes_nothing_of_the_user(
    op: OpenIDProvider, browser: Browser, configure: Configure, is_staff: bool
) -> None:
    """No field, group or privilege comes or goes with the claims of the new identity; who is staff
    links their own by hand (M34)."""
    configure(
        GROUPS_CLAIM="groups",
        GROUPS={"editor": "Editors", "writer": "Writers"},
        STAFF_GROUPS=["admin"],
        SUPERUSER_GROUPS=["admin"],
        CLAIMS={"first_name": "given_name", "email": "email", "is_active": "active"},
    )
    fields = {"email": "own@site.example", "first_name": "Own", "is_staff": is_staff}
    user = signed_in_by_password(browser, **fields)
    user.groups.add(Group.objects.create(name="Editors"))
    before = User.objects.values().get()
    groups = ["writer"] if is_staff else ["admin", "writer"]
    op.person |= {"groups": groups, "active": False}
    for notice in ("linked", "linked_before"):
        assert link(browser) == notice
        assert User.objects.values().get() == before
        assert [group.name for group in user.groups.all()] == ["Editors"]


class Picky(OIDCBackend):
    """A site's subclass that does not take everybody, and whose other hooks nobody calls here."""

    def verify_claims(self, claims: Any) -> bool:
        if claims["sub"] == "forbidden":
            raise PermissionDenied
        return bool(claims["sub"] != "barred")

    def filter_users_by_claims(self, claims: Any) -> Any:
        raise AssertionError

    create_user = update_user = filter_users_by_claims


@pytest.mark.parametrize(
    ("sub", "outcome"),
    [("j2", "linked"), ("barred", "account.claims"), ("forbidden", "account.hook")],
)
def test_M38_the_sites_hook_has_its_say(
    op: OpenIDProvider, browser: Browser, settings: Settings, sub: str, outcome: str
) -> None:
    """verify_claims is asked, as at a sign-in; what chooses, makes or fills a user is not."""
    settings.AUTHENTICATION_BACKENDS = ["tests.test_identities.Picky", MODEL_BACKEND]
    user = signed_in_by_password(browser)
    person(op, sub)
    assert link(browser) == outcome
    assert [identity.user for identity in Identity.objects.all()] == [user] * (sub == "j2")


@pytest.mark.parametrize("known", [False, True])
def test_M36_domains_count_for_linking_too(
    op: OpenIDProvider, browser: Browser, configure: Configure, known: bool
) -> None:
    """An address elsewhere, or one that the OP does not vouch for, is refused, known or not."""
    user = signed_in_by_password(browser)
    if known:
        link(browser)
    configure(EMAIL_DOMAINS=["corp.example"])
    assert link(browser) == "account.email_domain"
    op.person["email"] = "jane@corp.example"
    op.person["email_verified"] = False
    assert link(browser) == "account.email_domain"
    assert Identity.objects.count() == known
    op.person["email_verified"] = True
    assert link(browser) == ("linked_before" if known else "linked")
    assert Identity.objects.get().user == user


def test_M38_an_identity_whose_id_token_is_refused_is_not_linked(
    op: OpenIDProvider, browser: Browser
) -> None:
    """Every check of a sign-in holds."""
    signed_in_by_password(browser)
    for bend, code in (
        ({"nonce": "x"}, "id_token.nonce"),
        ({"aud": "x"}, "id_token.aud"),
        ({"iss": "https://x"}, "id_token.iss"),
    ):
        op.id_token_claims = bend
        assert link(browser) == code
    assert not Identity.objects.exists()


# ... and what stays


def test_M38_the_session_stays_that_of_its_own_login(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser
) -> None:
    """Same key, same data, same current_login: a link signs nobody in."""
    signed_in(browser)
    put(browser, basket=["book"])
    before, key = dict(browser.client.session), browser.client.session.session_key
    login, rows = current_login(request_of(browser)), list(Session.objects.values())
    assert link(browser, "other") == "linked"
    after = dict(browser.client.session)
    assert after.pop(sessions.PENDING, {}) == {}
    before.pop(sessions.PENDING, None)
    assert after == before
    assert current_login(request_of(browser)) == login
    assert login is not None
    assert login.provider == "op"
    if guarded != "signed_cookies":
        assert browser.client.session.session_key == key
    unseen = [{k: v for k, v in row.items() if k != "last_seen_at"} for row in rows]
    now = [
        {k: v for k, v in row.items() if k != "last_seen_at"} for row in Session.objects.values()
    ]
    assert now == unseen


def test_a_durable_grant_of_the_linked_identity_is_kept(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Offline access belongs to the person at the OP; the session goes on with its own."""
    user = signed_in(browser)
    own = grant_of(browser.client.session)
    person(op, "j2")
    assert link(browser) == "linked"
    kept = Grant.objects.get(identity=the_identity("j2"))
    assert (kept.durable, kept.status, kept.identity.user) == (True, "open", user)
    assert grant_of(browser.client.session) == own != kept.pk
    assert Grant.objects.count() == 2
    assert link(browser) == "linked_before"
    assert [event.name for event in Event.objects.filter(grant=kept).order_by("id")] == [
        "identity_linked",
        "tokens_kept",
    ]


@pytest.mark.parametrize("has_refresh_token", [True, False])
def test_a_session_bound_grant_of_the_linked_identity_is_not_kept(
    op: OpenIDProvider, site: Site, browser: Browser, has_refresh_token: bool
) -> None:
    """No session would ever hold it."""
    site.has(SCOPES=["openid", "calendar"])
    op.always_refresh_token = has_refresh_token
    signed_in(browser)
    person(op, "j2")
    assert link(browser) == "linked"
    assert not Grant.objects.filter(identity=the_identity("j2")).exists()
    assert Grant.objects.get().status == "open"


def test_offline_access_without_a_refresh_token_leaves_no_grant_behind(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Google gives none at the second consent: an access token alone is nobody's."""
    signed_in(browser)
    person(op, "j2")
    op.token_response["refresh_token"] = REMOVE
    assert link(browser) == "linked"
    assert not Grant.objects.filter(identity=the_identity("j2")).exists()


@pytest.mark.django_db(transaction=True)
def test_a_link_is_told_once(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, heard: Told
) -> None:
    """To receivers, after commit, and in the timeline."""
    user = signed_in(browser)
    heard.clear()
    assert link(browser, "other") == "linked"
    ((name, arguments),) = heard
    assert name == "identity_linked"
    assert set(arguments) == {"request", "user", "identity"}
    assert (arguments["user"], arguments["identity"]) == (user, the_identity("j2"))
    events = Event.objects.filter(identity=the_identity("j2"))
    assert [(event.name, event.code, event.actor) for event in events] == [
        ("identity_linked", "", f"user {user.pk}")
    ]


def test_who_cancels_comes_back_to_the_page_and_not_to_a_sign_in(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A sign-in instead of a link would make another account, and the link impossible."""
    user = signed_in_by_password(browser)
    op.authorization_params = {"error": "access_denied", "code": REMOVE}
    response = browser.follow(post(browser, "link", provider="op"))
    assert refusal(response) == (400, "authorization.access_denied")
    assert response.context["retry_url"] == PAGE
    assert browser.client.session["_auth_user_id"] == str(user.pk)


# Unlinking


@pytest.fixture
def two_ways(op: OpenIDProvider, other: OpenIDProvider, browser: Browser) -> Any:
    """Somebody with an identity at each OP and no password, signed in by the first."""
    user = signed_in(browser)
    assert link(browser, "other") == "linked"
    return user


def test_unlinking_from_end_to_end(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """Asked for once more; then it is gone, and whoever comes with it is somebody new."""
    identity = the_identity("j2")
    page = post(browser, "unlink", identity=identity.pk)
    assert (page.status_code, page.templates[0].name) == (200, "oidc_rp/unlink.html")
    assert "j2@example.com" in page.content.decode()
    assert "will be signed out" not in page.content.decode()
    assert the_identity("j2") == identity
    response = post(browser, "unlink", identity=identity.pk, confirmed="1")
    assert told(browser, response) == "unlinked"
    assert [one.sub for one in two_ways.oidc_identities.all()] == ["248289761001"]
    assert is_signed_in(browser)
    assert signed_in(new_browser(), "other") != two_ways


def test_M38_unlinking_wants_a_fresh_sign_in(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """Both times: before it is asked for once more, and then."""
    pk = the_identity("j2").pk
    age(browser, STALE)
    for fields in ({}, {"confirmed": "1"}):
        assert told(browser, post(browser, "unlink", identity=pk, **fields)) == "stale"
    assert the_identity("j2").pk == pk
    href = browser.client.get(PAGE).context["freshen_url"]
    op.login.auth_time -= 3600
    assert browser.follow(browser.client.get(href)).headers["Location"] == PAGE
    assert unlink(browser, pk) == "unlinked"


def test_the_last_way_in_stays(op: OpenIDProvider, browser: Browser) -> None:
    """Said before anybody is sent to sign in afresh, and again to whoever posts all the same."""
    signed_in(browser)
    pk = Identity.objects.get().pk
    page = browser.client.get(PAGE).content.decode()
    assert "Your only way to sign in" in page
    assert ">Unlink<" not in page
    age(browser, STALE)
    for fields in ({}, {"confirmed": "1"}):
        assert told(browser, post(browser, "unlink", identity=pk, **fields)) == "last_way_in"
    assert Identity.objects.get().pk == pk
    assert is_signed_in(browser)


def test_one_after_the_other_the_last_one_stays(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    first, second = the_identity("248289761001"), the_identity("j2")
    assert unlink(browser, second) == "unlinked"
    assert unlink(browser, first) == "last_way_in"
    assert list(two_ways.oidc_identities.all()) == [first]


def test_with_a_password_the_last_one_may_go(op: OpenIDProvider, browser: Browser) -> None:
    user = signed_in_by_password(browser)
    link(browser)
    assert unlink(browser, Identity.objects.get()) == "unlinked"
    assert not user.oidc_identities.exists()
    assert is_signed_in(browser)
    assert Client().login(username="jane", password="pw")


def test_a_password_that_no_backend_asks_for_is_no_way_in(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """It is left from a time when the site took passwords."""
    user = signed_in(browser)
    user.set_password("pw")
    user.save()
    signed_in(browser)
    settings.AUTHENTICATION_BACKENDS = [OIDC_BACKEND]
    assert unlink(browser, Identity.objects.get()) == "last_way_in"
    settings.AUTHENTICATION_BACKENDS = [OIDC_BACKEND, MODEL_BACKEND]
    assert unlink(browser, Identity.objects.get()) == "/oidc/login/"


@pytest.mark.parametrize("why", ["no provider", "another issuer", "broken settings"])
def test_an_identity_that_no_provider_vouches_for_is_no_way_in(
    op: OpenIDProvider,
    other: OpenIDProvider,
    browser: Browser,
    two_ways: Any,
    settings: Settings,
    why: str,
) -> None:
    """The provider was removed, has moved to another issuer, or cannot be used."""
    providers = dict(settings.OIDC_RP["PROVIDERS"])
    if why == "no provider":
        del providers["other"]
    else:
        change = {"ISSUER": "https://moved.example"} if why == "another issuer" else {"SCOPES": []}
        providers["other"] = providers["other"] | change
    settings.OIDC_RP = {"PROVIDERS": providers}
    assert unlink(browser, the_identity("248289761001")) == "last_way_in"
    assert unlink(browser, the_identity("j2")) == "unlinked"


def test_a_provider_under_another_name_is_a_way_in(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any, settings: Settings
) -> None:
    """What counts is who vouches for the person, the issuer."""
    providers = dict(settings.OIDC_RP["PROVIDERS"])
    providers["renamed"] = providers.pop("other")
    settings.OIDC_RP = {"PROVIDERS": providers}
    assert unlink(browser, the_identity("248289761001")) == "/oidc/login/"
    assert signed_in(new_browser(), "renamed") == two_ways


def test_the_identity_in_use_takes_the_session_with_it(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """The question says so; then this browser is signed out, and the other way in leads back."""
    identity = the_identity("248289761001")
    page = post(browser, "unlink", identity=identity.pk)
    assert "will be signed out" in page.content.decode()
    assert unlink(browser, identity) == "/oidc/login/"
    assert not is_signed_in(browser)
    assert "_auth_user_id" not in browser.client.session
    assert signed_in(browser, "other") == two_ways


def test_M58_the_sessions_of_an_unlinked_identity_end(
    guarded: str, op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """On every engine; those of the other identity, this one too, go on."""
    theirs, kept = [new_browser(), new_browser()], new_browser()
    for one in theirs:
        assert signed_in(one, "other") == two_ways
    assert signed_in(kept) == two_ways
    keys = [one.client.session.session_key for one in theirs]
    assert unlink(browser, the_identity("j2")) == "unlinked"
    assert [is_signed_in(one) for one in (*theirs, kept, browser)] == [False, False, True, True]
    if guarded in ("db", "cached_db"):
        assert not StoredSession.objects.filter(session_key__in=keys).exists()
    assert Session.objects.count() == 2


def test_M38_an_identity_of_somebody_else_is_not_unlinked(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """Whoever knows its key may say it: nothing happens, and the answer tells nothing."""
    stranger = new_browser()
    person(op, "stranger")
    signed_in(stranger)
    for pk in (the_identity("stranger").pk, 10**9):
        for fields in ({}, {"confirmed": "1"}):
            assert told(browser, post(browser, "unlink", identity=pk, **fields)) == "unlinked"
    assert is_signed_in(stranger)
    assert Identity.objects.count() == 3


@pytest.mark.parametrize("pk", [None, "", "x", "-1", "1e3", "9" * 30, "\u00b2", "\x00", "1 OR 1"])
def test_a_key_that_is_none_unlinks_nothing(
    browser: Browser, two_ways: Any, pk: str | None
) -> None:
    fields = {"confirmed": "1"} | ({} if pk is None else {"identity": pk})
    assert told(browser, post(browser, "unlink", **fields)) == "unlinked"
    assert Identity.objects.count() == 2


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("durable", [True, False])
def test_what_was_granted_to_an_unlinked_identity_is_revoked(
    op: OpenIDProvider, site: Site, browser: Browser, durable: bool
) -> None:
    """Every refresh token of it, the OP's word for it afterwards; and none of another identity."""
    if not durable:
        site.has(SCOPES=["openid", "calendar"])
        op.always_refresh_token = True
    signed_in(browser)
    kept = list(op._refresh_tokens)
    person(op, "j2")
    assert link(browser) == "linked"
    signed_in(new_browser())
    wait_until(lambda: to_revoke() == [])  # what the second sign-in replaced
    before = len(op.revocations)
    assert unlink(browser, the_identity("j2")) == "unlinked"
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == before + 1
    still_good = [token for token, grant in op._refresh_tokens.items() if not grant.revoked]
    assert [token for token in still_good if token in kept] == kept
    assert Grant.objects.get().status == "open"


@pytest.mark.django_db(transaction=True)
def test_unlinking_is_told_once(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any, heard: Told
) -> None:
    """Whose it was and which; after commit."""
    heard.clear()
    pk = the_identity("j2").pk
    assert unlink(browser, pk) == "unlinked"
    ((name, arguments),) = heard
    assert name == "identity_unlinked"
    assert set(arguments) == {"user", "identity"}
    gone = arguments["identity"]
    assert (arguments["user"], gone.sub, gone.iss, gone.pk) == (two_ways, "j2", other.issuer, pk)
    assert unlink(browser, pk) == "unlinked"
    assert len(heard) == 1


def delete_in_the_admin(admin: Client, identity: Any) -> None:
    url = f"/admin/oidc_rp/identity/{identity.pk}/delete/"
    assert admin.post(url, {"post": "yes"}).status_code == 302


def unlink_as_one_of_many(admin: Client, identity: Any) -> None:
    chosen = {"action": "unlink_identity", "_selected_action": [identity.pk]}
    form = chosen | {"confirmed": "yes"}
    assert admin.post("/admin/oidc_rp/identity/", form).status_code == 302


def delete_in_a_shell(admin: Client, identity: Any) -> None:
    Identity.objects.filter(pk=identity.pk).delete()


def delete_with_the_user(admin: Client, identity: Any) -> None:
    identity.user.delete()


def delete_with_the_user_in_a_shell(admin: Client, identity: Any) -> None:
    User.objects.filter(pk=identity.user_id).delete()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("delete", "times"),
    [
        (delete_in_the_admin, 1),
        (unlink_as_one_of_many, 1),
        (delete_in_a_shell, 1),
        (delete_with_the_user, 0),
        (delete_with_the_user_in_a_shell, 0),
    ],
)
def test_whoever_unlinks_it_is_told(
    op: OpenIDProvider,
    other: OpenIDProvider,
    browser: Browser,
    two_ways: Any,
    heard: Told,
    delete: Callable[[Client, Any], None],
    times: int,
) -> None:
    """An operator's deletion is told as well, and ends the sessions; a deleted user's is not."""
    elsewhere = new_browser()
    signed_in(elsewhere, "other")
    User.objects.create_superuser("root", password="pw")
    admin = Client()
    assert admin.login(username="root", password="pw")
    heard.clear()
    delete(admin, the_identity("j2"))
    assert [(name, told["identity"].sub) for name, told in heard] == [
        ("identity_unlinked", "j2")
    ] * times
    assert not Identity.objects.filter(sub="j2").exists()
    assert not is_signed_in(elsewhere)


def test_an_unlinking_that_fails_takes_nothing_away(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """A receiver of the site that raises stops it: identity and sessions are as they were."""

    def fail(**_: Any) -> None:
        raise RuntimeError("a bug of this site")

    elsewhere = new_browser()
    signed_in(elsewhere, "other")
    browser.client.raise_request_exception = False
    post_delete.connect(fail, sender=Identity)
    try:
        response = post(browser, "unlink", identity=the_identity("j2").pk, confirmed="1")
    finally:
        post_delete.disconnect(fail, sender=Identity)
    assert response.status_code == 500
    assert the_identity("j2").user == two_ways


@pytest.mark.django_db(transaction=True)
def test_M60_an_identity_that_is_unlinked_while_it_signs_in_signs_nobody_in(
    op: OpenIDProvider, other: OpenIDProvider, browser: Browser, two_ways: Any
) -> None:
    """A refusal, and no session is left of it."""
    elsewhere = new_browser()
    callback = elsewhere.visit_op(elsewhere.start("other"))

    def unlinked(**_: Any) -> None:
        assert accounts.unlink(the_identity("j2"))

    user_logged_in.connect(unlinked)
    try:
        response = elsewhere.come_back(callback)
    finally:
        user_logged_in.disconnect(unlinked)
    assert refusal(response) == (403, "account.unknown")
    assert not is_signed_in(elsewhere)
    assert Session.objects.count() == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@examples(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    fields=st.fixed_dictionaries(
        {"action": st.sampled_from(ACTIONS) | TEXT},
        optional=dict.fromkeys(("provider", "identity", "session", "confirmed", "next"), TEXT),
    )
)
def test_M38_no_form_of_a_stranger_to_the_site_is_an_error(
    op: OpenIDProvider, browser: Browser, fields: dict[str, str]
) -> None:
    """Whatever stands in it: an answer of ours, and nothing is ended, linked or unlinked."""
    if "_auth_user_id" not in browser.client.session:
        signed_in(browser)
    response = browser.client.post(PAGE, fields)
    assert response.status_code in (200, 302, 400, 404)
    if response.status_code == 302:
        assert response.headers["Location"] == PAGE
    assert pending(browser) == {}
    assert is_signed_in(browser)
    assert Identity.objects.count() == Session.objects.count() == 1


# At once


def test_M38_what_comes_at_once() -> None:
    """The tests of identities_in_threads.py on a SQLite file: no thread can share one in memory."""
    assert_passes("identities_in_threads")
