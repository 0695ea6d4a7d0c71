"""What the browser's session remembers, on every session engine that Django has."""

import json
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from random import Random
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import cache
from django.db import connections
from django.http import HttpRequest
from django.test import AsyncClient, Client, RequestFactory
from pytest_django import Settings

from oidc_rp import sessions
from oidc_rp.backends import OIDCBackend
from oidc_rp.errors import InvalidResponse
from oidc_rp.protocol.authentication import AuthenticationRequest
from oidc_rp.sessions import PENDING, CurrentLogin, PendingLogin, current_login
from oidc_rp.testing import REMOVE, OpenIDProvider
from oidc_rp.testing.browser import Browser, Callback, Response
from tests.conftest import Configure

ENGINES = ["db", "cache", "cached_db", "file", "signed_cookies"]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> str:
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    return str(request.param)


def cookie(browser: Browser) -> str:
    return str(browser.client.cookies[django_settings.SESSION_COOKIE_NAME].value)


def put(browser: Browser, **data: Any) -> None:
    """Leave something in the session, as a site's own views do."""
    session = browser.client.session
    session.update(data)
    session.save()
    browser.client.cookies[django_settings.SESSION_COOKIE_NAME] = session.session_key


def code_of(response: Response) -> str:
    assert 400 <= response.status_code < 500, response.status_code
    return str(response.context["code"])


def test_a_login_on_every_engine(engine: str, op: OpenIDProvider, browser: Browser) -> None:
    """Somebody signs in and out."""
    assert browser.sign_in("op", next="/private/").headers["Location"] == "/private/"
    assert browser.client.get("/private/").status_code == 200
    browser.client.post("/oidc/logout/")
    assert browser.client.get("/private/").status_code == 302


def test_M3_a_replay_is_refused_on_every_engine(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    """With today's cookie, and with a copy of the cookie of before."""
    callback = browser.visit_op(browser.start("op"))
    before = browser.client.cookies.copy()
    assert browser.come_back(callback).status_code == 302
    assert code_of(browser.come_back(callback)) == "state.unknown"
    browser.client.cookies = before  # type: ignore[assignment]
    assert code_of(browser.come_back(callback)) in ("state.unknown", "state.used")
    assert op.calls("token") == 1


def test_M3_a_refused_attempt_is_gone_from_every_engine(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    """The session that the browser keeps after a refusal has the attempt no more."""
    callback = browser.visit_op(browser.start("op"))
    browser.start("op")
    browser.come_back(callback.bent(iss=REMOVE))
    assert dict(callback.params)["state"] not in browser.client.session[PENDING]
    assert len(browser.client.session[PENDING]) == 1
    assert code_of(browser.come_back(callback)) == "state.unknown"


def test_M14_two_tabs_at_once_on_every_engine(engine: str, browser: Browser) -> None:
    tabs = [browser.visit_op(browser.start("op", next=f"/home/?{tab}")) for tab in (1, 2)]
    assert browser.come_back(tabs[1]).headers["Location"] == "/home/?2"
    assert browser.come_back(tabs[0]).headers["Location"] == "/home/?1"


def test_M13_at_most_7_pending_attempts_oldest_dropped(engine: str, browser: Browser) -> None:
    """The eighth login pushes the first one out; the other seven all work."""
    callbacks = [browser.visit_op(browser.start("op")) for _ in range(8)]
    assert len(browser.client.session[PENDING]) == 7
    assert code_of(browser.come_back(callbacks[0])) == "state.unknown"
    assert [browser.come_back(callback).status_code for callback in callbacks[1:]] == [302] * 7


@pytest.mark.parametrize("age", [599, 601, -5])
def test_M13_ten_minutes_to_live(engine: str, browser: Browser, age: float) -> None:
    """An attempt that is older, or of a time to come, is refused."""
    callback = browser.visit_op(browser.start("op"))
    stored = browser.client.session[PENDING]
    for kept in stored.values():
        kept["created_at"] -= age
    put(browser, **{PENDING: stored})
    response = browser.come_back(callback)
    assert response.status_code == (302 if age == 599 else 400)
    if age != 599:
        assert code_of(response) == "state.expired"


def incompressible_path(length: int) -> str:
    return "/" + token_urlsafe(length)[: length - 1]


@pytest.mark.parametrize("signed_in", [False, True])
def test_M13_the_cookie_stays_small(browser: Browser, settings: Settings, signed_in: bool) -> None:
    """signed_cookies with 7 pending logins and the longest `next` fits into 4096 octets."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    if signed_in:
        browser.sign_in("op")
    sizes, counts = [], []
    for length in [10] * 8 + [1024] * 8 + [10] * 8:
        browser.start("op", next=incompressible_path(length))
        sizes.append(len(cookie(browser)) + len(django_settings.SESSION_COOKIE_NAME))
        counts.append(len(browser.client.session[PENDING]))
    assert max(sizes) < 4096
    assert counts[6:8] == counts[-1:] * 2 == [7, 7]
    assert min(counts[7:]) >= 2


def test_a_signed_cookie_leads_to_the_longest_next(browser: Browser, settings: Settings) -> None:
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    next_url = incompressible_path(1024)
    assert browser.sign_in("op", next=next_url).headers["Location"] == next_url


def test_M13_a_next_that_grows_when_encoded_does_not_fill_the_cookie(
    browser: Browser, settings: Settings
) -> None:
    """What counts is its length as a URL: a character of another script is nine octets there."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    path = "".join(Random(1).choices([*map(chr, range(0x4E00, 0x9FA6))], k=1000))
    for length in (1000, 113):
        browser.start("op", next="/" + path[:length])
        assert len(cookie(browser)) < 4096
    (pending,) = [kept for kept in browser.client.session[PENDING].values() if kept["next"]]
    assert pending["next"] == "/" + path[:113]


def test_an_op_that_says_too_much_does_not_fill_the_cookie(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """Long acr and amr are not noted, and nobody is locked out by them."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    amr = [token_urlsafe(45) for _ in range(200)]
    op.id_token_claims = {"acr": token_urlsafe(5000)[:5000], "amr": amr}
    assert browser.sign_in("op").status_code == 302
    assert len(cookie(browser)) < 4096
    login = current_login(request_of(browser))
    assert login is not None
    assert (login.acr, len(login.amr)) == (None, 8)


# The session key and what is in the session (M39)


def test_M39_the_session_key_changes_at_login(engine: str, browser: Browser) -> None:
    """A key that somebody planted before the login opens nothing after it."""
    callback = browser.visit_op(browser.start("op"))
    before = cookie(browser)
    browser.come_back(callback)
    assert cookie(browser) != before
    thief = Client()
    thief.cookies[django_settings.SESSION_COOKIE_NAME] = before
    assert thief.get("/private/").status_code == 302
    again = cookie(browser)
    browser.sign_in("op")
    assert cookie(browser) != again


def test_M39_anonymous_data_is_carried_only_on_request(
    engine: str, op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """What an anonymous visitor left is dropped, unless the site asks for it."""
    put(browser, basket=["book"])
    browser.sign_in("op")
    assert "basket" not in browser.client.session
    browser.client.post("/oidc/logout/")
    settings.OIDC_RP = django_settings.OIDC_RP | {"KEEP_ANONYMOUS_SESSION": True}
    put(browser, basket=["book"])
    browser.sign_in("op")
    assert browser.client.session["basket"] == ["book"]


@pytest.mark.parametrize("keep_anonymous", [True, False])
def test_M39_the_same_user_keeps_data_another_users_is_gone(
    engine: str,
    op: OpenIDProvider,
    browser: Browser,
    settings: Settings,
    keep_anonymous: bool,
) -> None:
    """Signing in again is no reason to lose a basket; signing in as somebody else is."""
    settings.OIDC_RP = django_settings.OIDC_RP | {"KEEP_ANONYMOUS_SESSION": keep_anonymous}
    browser.sign_in("op")
    put(browser, basket=["book"])
    browser.sign_in("op")
    assert browser.client.session["basket"] == ["book"]
    op.person = {"sub": "somebody else"}
    browser.sign_in("op")
    assert "basket" not in browser.client.session
    identity = get_user_model().objects.get(oidc_identities__sub="somebody else")
    assert browser.client.session["_auth_user_id"] == str(identity.pk)


def test_M39_pending_logins_of_other_tabs_survive_a_login(engine: str, browser: Browser) -> None:
    first, second = (browser.visit_op(browser.start("op")) for _ in range(2))
    browser.come_back(first)
    assert [*browser.client.session[PENDING]] == [dict(second.params)["state"]]


# SameSite


@pytest.mark.parametrize("samesite", ["Strict", "Lax", "None", None, False])
@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_every_samesite_and_response_mode_signs_in(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    settings: Settings,
    samesite: str | None,
    mode: str,
) -> None:
    """Where the cookie is held back, a page of ours sends the response on, from our own site."""
    settings.SESSION_COOKIE_SAMESITE = samesite
    configure(RESPONSE_MODE=mode)
    callback = browser.visit_op(browser.start("op", next="/private/"))
    response = browser.come_back(callback)
    held_back = samesite == "Strict" or (mode == "form_post" and samesite != "None")
    landed = "oidc_rp/landing.html" in [template.name for template in response.templates]
    assert landed == held_back
    assert op.calls("token") == (not held_back)
    response = browser.land(response)
    assert (response.status_code, response.headers["Location"]) == (302, "/private/")


@pytest.mark.parametrize("samesite", ["Strict", "Lax", "None", None])
@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_M5_an_unbound_state_is_never_accepted(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    settings: Settings,
    samesite: str | None,
    mode: str,
) -> None:
    """Neither a browser without a cookie nor one with another session gets past the landing."""
    settings.SESSION_COOKIE_SAMESITE = samesite
    configure(RESPONSE_MODE=mode)
    callback = browser.visit_op(browser.start("op"))
    without, other = Browser(), Browser()
    other.start("op")
    assert code_of(without.land(without.come_back(callback))) == "state.no_cookie"
    assert code_of(other.land(other.come_back(callback))) == "state.unknown"
    straight = callback.bent(oidc_rp_landed="1")
    assert code_of(without.come_back(straight)) == "state.no_cookie"
    assert op.calls("token") == 0


def test_the_landing_does_not_go_in_circles(
    browser: Browser, configure: Configure, settings: Settings
) -> None:
    """A browser without cookies lands once and then reads why it cannot go on."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    callback = browser.visit_op(browser.start("op"))
    stranger = Browser()
    landing = stranger.come_back(callback)
    assert landing.status_code == 200
    assert code_of(stranger.land(landing)) == "state.no_cookie"


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


XSS = [
    '"><script>alert(1)</script>',
    "'><img src=x onerror=alert(1)>",
    "</form><form action=https://evil.example>",
    '" onfocus="alert(1)" autofocus="',
    "javascript:alert(1)",
    "{{ 7|add:7 }}{% debug %}",
]


@pytest.mark.parametrize("hostile", XSS)
@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_the_landing_page_cannot_be_used_for_xss(
    browser: Browser, configure: Configure, settings: Settings, mode: str, hostile: str
) -> None:
    """Names and values come back as they were, in hidden fields of a form to the callback."""
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    configure(RESPONSE_MODE=mode)
    params = [("state", hostile), (hostile, hostile), ("action", "https://evil.example/")]
    url = "http://testserver/oidc/op/callback/"
    if mode == "query":
        callback = Callback(url + "?state=s").bent(**dict(params))
    else:
        callback = Callback(url, params)
    response = browser.come_back(callback)
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "no-store" in response.headers["Cache-Control"]
    tags = Tags(response.content.decode()).found
    forms = [attrs for tag, attrs in tags if tag == "form"]
    assert [form["action"] for form in forms] == ["/oidc/op/callback/"]
    inputs = [attrs for tag, attrs in tags if tag == "input"]
    assert all(attrs.keys() == {"type", "name", "value"} for attrs in inputs)
    assert {attrs["type"] for attrs in inputs} == {"hidden"}
    sent = [(attrs["name"], attrs["value"]) for attrs in inputs]
    assert sorted(sent) == sorted([*params, ("oidc_rp_landed", "1")])
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)
    assert [tag for tag, _ in tags].count("script") <= 1
    assert "14" not in [value for _, value in sent]


# current_login


def test_current_login_tells_how_somebody_signed_in(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    """Aware datetimes, the granted scope, acr and amr; and no token."""
    op.token_response = {"scope": "openid email"}
    op.id_token_claims = {"acr": "gold", "amr": ["pwd", "otp"]}
    browser.sign_in("op")
    login = current_login(request_of(browser))
    assert isinstance(login, CurrentLogin)
    assert (login.provider, login.iss, login.sub) == ("op", op.issuer, op.person["sub"])
    assert (login.scope, login.acr, login.amr) == ("openid email", "gold", ("pwd", "otp"))
    assert login.expires_at is not None
    assert login.expires_at.tzinfo is not None
    assert login.auth_time is not None
    held = json.dumps(dict(browser.client.session))
    assert not [token for token in op._access_tokens if token in held]


@pytest.mark.parametrize("odd", [None, 5, "pwd", {"a": 1}, ["pwd", 5, None]])
def test_current_login_of_an_op_with_odd_claims(
    op: OpenIDProvider, browser: Browser, odd: object
) -> None:
    op.id_token_claims = {"acr": odd, "amr": odd, "auth_time": "yesterday"}
    op.token_response = {"expires_in": None, "scope": None}
    browser.sign_in("op")
    login = current_login(request_of(browser))
    assert login is not None
    assert (login.expires_at, login.auth_time) == (None, None)
    assert login.acr in (None, "pwd")
    assert login.amr in ((), ("pwd",))


def test_current_login_at_the_end_of_time(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """An auth_time in the last second that datetime knows is told in UTC, east of it, too."""
    settings.TIME_ZONE = "Asia/Shanghai"
    op.id_token_claims = {"auth_time": 253402300799}
    for _ in range(2):
        assert browser.sign_in("op").status_code == 302
        login = current_login(request_of(browser))
        assert login is not None
        assert login.auth_time is not None
        assert login.auth_time.isoformat() == "9999-12-31T23:59:59+00:00"


def test_current_login_is_nobody_elses(op: OpenIDProvider, browser: Browser) -> None:
    """Not for an anonymous visitor, not after signing out, not after a password login."""
    assert current_login(request_of(browser)) is None
    browser.sign_in("op")
    browser.client.post("/oidc/logout/")
    assert current_login(request_of(browser)) is None
    browser.sign_in("op")
    browser.client.force_login(get_user_model().objects.create_user("local"))
    assert current_login(request_of(browser)) is None


def request_of(browser: Browser) -> HttpRequest:
    return browser.client.get("/home/").wsgi_request  # type: ignore[no-any-return]


# In detail


def pending_login(state: str, created_at: float = 0) -> PendingLogin:
    request = AuthenticationRequest("https://op.example", "rp", "https://rp.example/", "openid")
    asked = AuthenticationRequest(**{**vars_of(request), "state": state, "nonce": "n"})
    return PendingLogin("op", asked, "", created_at)


def vars_of(request: AuthenticationRequest) -> dict[str, Any]:
    names = ("issuer", "client_id", "redirect_uri", "scope")
    return {name: getattr(request, name) for name in names}


def test_taken_states_leave_what_other_tabs_stored_meanwhile(engine: str, db: None) -> None:
    """The session is read anew once an attempt is taken: a slow login overwrites nothing."""
    session = store()
    sessions.remember(session, pending_login("one"))
    session.save()
    request = RequestFactory().get("/")
    request.session = type(session)(session.session_key)
    with pytest.raises(InvalidResponse):
        sessions.take(request, "one")  # created in 1970: expired, and gone all the same
    if engine == "signed_cookies":
        assert request.session.modified  # the browser must hear of it
        return
    assert not request.session.modified
    elsewhere = type(session)(session.session_key)
    elsewhere["later"] = 1
    elsewhere.save()
    assert (request.session["later"], request.session[PENDING]) == (1, {})


def test_M13_seven_however_small(db: None) -> None:
    """The number counts, not only their room; the first goes, whatever a server's clock says."""
    session = store()
    for number in range(9):
        sessions.remember(session, pending_login(str(number), created_at=100 - number))
    assert [*session[PENDING]] == ["2", "3", "4", "5", "6", "7", "8"]


def test_a_session_deleted_meanwhile_is_not_brought_back(engine: str, db: None) -> None:
    """Somebody signs out, or another tab signs in, while a callback is on its way."""
    session = store()
    sessions.remember(session, pending_login("one"))
    session["secret"] = "of the old session"
    session.save()
    request = RequestFactory().get("/")
    request.session = type(session)(session.session_key)
    assert request.session[PENDING]
    session.delete()
    with pytest.raises(InvalidResponse):
        sessions.take(request, "one")
    if engine != "signed_cookies":
        assert "secret" not in request.session


def store() -> SessionBase:
    return import_module(django_settings.SESSION_ENGINE).SessionStore()  # type: ignore[no-any-return]


@pytest.mark.parametrize("rubbish", [None, 5, "text", []])
def test_rubbish_in_the_session_is_an_unknown_state(browser: Browser, rubbish: object) -> None:
    """A session of an older version of this package, or of somebody else's, breaks nothing."""
    callback = browser.visit_op(browser.start("op"))
    put(browser, **{PENDING: rubbish})
    assert code_of(browser.come_back(callback)) == "state.unknown"
    assert browser.sign_in("op").status_code == 302


@pytest.mark.parametrize("backend", ["RaisingCache", "SilentCache"])
@pytest.mark.parametrize("engine", ["db", "signed_cookies"], indirect=True)
def test_a_failing_cache_stops_no_login(
    engine: str, browser: Browser, settings: Settings, backend: str
) -> None:
    """Without a memory of used states the session makes them single, as ever."""
    settings.CACHES = {"default": {"BACKEND": f"tests.cache.{backend}"}}
    callback = browser.visit_op(browser.start("op"))
    assert browser.come_back(callback).status_code == 302
    assert code_of(browser.come_back(callback)) == "state.unknown"


class FailingBackend(OIDCBackend):
    """A site's subclass with a bug in an account hook."""

    def create_user(self, claims: Any) -> Any:
        raise RuntimeError("a bug of this site")


def test_M3_no_transaction_brings_a_taken_state_back(
    op: OpenIDProvider, browser: Browser, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ATOMIC_REQUESTS and a request that fails, the attempt stays consumed."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    browser.client.raise_request_exception = False
    callback = browser.visit_op(browser.start("op"))
    before = settings.AUTHENTICATION_BACKENDS
    settings.AUTHENTICATION_BACKENDS = ["tests.test_sessions.FailingBackend"]
    assert browser.come_back(callback).status_code == 500
    settings.AUTHENTICATION_BACKENDS = before
    cache.clear()
    assert code_of(browser.come_back(callback)) == "state.unknown"
    assert op.calls("token") == 1


def test_a_login_under_asgi(engine: str, op: OpenIDProvider, browser: Browser) -> None:
    """The same walk through Django's ASGI handler; a replay is refused there, too."""
    client = AsyncClient()
    get = async_to_sync(client.get)
    url = get("/oidc/op/login/", {"next": "/private/"}).headers["Location"]
    callback = urlsplit(browser.visit_op(url).url)
    response = get(f"{callback.path}?{callback.query}")
    assert (response.status_code, response.headers["Location"]) == (302, "/private/")
    assert get("/private/").status_code == 200
    assert code_of(get(f"{callback.path}?{callback.query}")) == "state.unknown"


@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_csrf_checks_and_messages_go_on_after_a_login(
    browser: Browser, configure: Configure, mode: str
) -> None:
    """The callback needs no CSRF token, the pages after it do; and a message survives."""

    def greet(request: HttpRequest, **_: Any) -> None:
        messages.info(request, "Welcome")

    configure(RESPONSE_MODE=mode)
    strict = Browser(Client(enforce_csrf_checks=True))
    user_logged_in.connect(greet)
    try:
        assert strict.sign_in("op").status_code == 302
    finally:
        user_logged_in.disconnect(greet)
    page = strict.client.get("/home/")
    assert [str(message) for message in messages.get_messages(page.wsgi_request)] == ["Welcome"]
    assert strict.client.post("/oidc/logout/").status_code == 403
