"""Calling APIs: where a token may go, that it is good, and what becomes of it on the way."""

import asyncio
import io
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
import requests
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model, logout
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.test import Client, RequestFactory
from pytest_django import DjangoAssertNumQueries, Settings
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

from oidc_rp import api
from oidc_rp.api import BearerAuth, session_for
from oidc_rp.errors import (
    ConfigurationError,
    InsufficientScope,
    InvalidResponse,
    LoginRequired,
    OIDCError,
    OriginNotAllowed,
    StepUpRequired,
    TemporarilyUnavailable,
)
from oidc_rp.login_urls import added_scopes, asked_step_up, login_url
from oidc_rp.models import EPOCH, Grant, StoredAccessToken
from oidc_rp.protocol.authentication import ANYHOW, StepUp
from oidc_rp.protocol.tokens import AccessToken
from oidc_rp.sealing import generate_key
from oidc_rp.signals import tokens_refreshed
from oidc_rp.testing import (
    Handler,
    OpenIDProvider,
    SigningKey,
    asking_for_patience,
    close_connection,
    held_back,
    json_answer,
    raw,
    redirect_to,
    sending,
)
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure

INVALID_TOKEN = {"WWW-Authenticate": 'Bearer realm="x", error="invalid_token"'}
SCOPES = ["openid", "profile", "calendar", "offline_access"]


@pytest.fixture
def elsewhere(signing_key: SigningKey) -> Iterator[OpenIDProvider]:
    """Another server: the same host, another port."""
    with OpenIDProvider(keys=[signing_key]) as provider:
        yield provider


@pytest.fixture
def options(op: OpenIDProvider) -> dict[str, Any]:
    return {"SCOPES": SCOPES, "API_ORIGINS": [op.origin]}


@pytest.fixture
def set_up(configure: Configure, settings: Settings) -> Configure:
    """configure() for a site that keeps tokens; its keys stay the same."""
    keys = [generate_key()]

    def set_options(**options: Any) -> None:
        configure(**options)
        settings.OIDC_RP = settings.OIDC_RP | {"TOKEN_KEYS": keys}

    return set_options


@pytest.fixture
def signed_in(set_up: Configure, browser: Browser, options: dict[str, Any]) -> Browser:
    """A browser whose person has signed in."""
    set_up(**options)
    assert browser.sign_in("op").status_code == 302
    return browser


@pytest.fixture
def visit(signed_in: Browser, op: OpenIDProvider) -> HttpRequest:
    """A web request of that browser, whose session and user are read already."""
    return visited(signed_in, op)


def visited(browser: Browser, op: OpenIDProvider) -> HttpRequest:
    request: HttpRequest = browser.client.get("/home/").wsgi_request
    assert request.user.is_authenticated
    op.forget_requests()
    return request


@pytest.fixture
def user(visit: HttpRequest) -> Any:
    return get_user_model().objects.get()


def sent(op: OpenIDProvider, path: str = "/api/any") -> list[str | None]:
    """The Authorization headers that arrived at a path."""
    return [request.headers["Authorization"] for request in op.requests_to(path)]


def bearer(token: AccessToken) -> str:
    return f"Bearer {token.reveal()}"


def answer_once(op: OpenIDProvider, path: str, status: int, headers: dict[str, str]) -> None:
    """Refuse the next request to a path, then answer all others."""
    answers = iter([raw(status, headers)])
    op.answer[path] = lambda handler: next(
        answers, lambda handler: handler.send(json_answer({"path": path}))
    )(handler)


# One call


def test_a_request_calls_in_the_name_of_its_browser_session(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    response = session_for(visit).get(f"{op.origin}/api/any", params={"day": "1"})
    assert response.status_code == 200
    assert sent(op) == [bearer(api.access_token(visit))]
    assert [request.query for request in op.requests] == [{"day": ["1"]}]


def test_a_user_calls_by_the_durable_grant(op: OpenIDProvider, user: Any) -> None:
    for session in (session_for(user, "op"), session_for(user, provider="op"), session_for(user)):
        assert session.post(f"{op.origin}/api/any", json={"a": 1}).status_code == 200
    assert sent(op) == [bearer(api.access_token(user))] * 3
    assert {request.body for request in op.requests} == {b'{"a": 1}'}


def test_BearerAuth_is_a_requests_auth_object(op: OpenIDProvider, visit: HttpRequest) -> None:
    response = requests.get(f"{op.origin}/api/any", auth=BearerAuth(visit), timeout=10)
    assert response.status_code == 200
    assert sent(op) == [bearer(api.access_token(visit))]


def test_an_expired_token_is_renewed_before_the_call(
    op: OpenIDProvider, visit: HttpRequest, user: Any
) -> None:
    old = api.access_token(user)
    StoredAccessToken.objects.update(expires_at=EPOCH, sent_at=EPOCH)
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == 200
    assert op.refreshes == 1
    assert sent(op) == [bearer(api.access_token(user))]
    assert sent(op) != [bearer(old)]


def test_one_query_a_call_and_none_for_further_ones_in_a_web_request(
    op: OpenIDProvider,
    visit: HttpRequest,
    user: Any,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    with django_assert_num_queries(1):
        session_for(visit).get(f"{op.origin}/api/any")
    with django_assert_num_queries(0):
        session_for(visit).get(f"{op.origin}/api/any")
        requests.get(f"{op.origin}/api/other", auth=BearerAuth(visit), timeout=10)
        api.access_token(visit, "op")
    for _ in range(2):
        with django_assert_num_queries(1):
            session_for(user).get(f"{op.origin}/api/any")


def test_the_token_is_not_kept_for_whoever_signs_in_next_in_the_same_request(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    api.access_token(visit)
    logout(visit)
    with pytest.raises(LoginRequired):
        api.access_token(visit)


def test_connections_are_kept_for_the_next_session_cookies_are_not(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    op.answer["/api/any"] = raw(200, {"Set-Cookie": "a=b; Path=/"})
    with session_for(visit) as session:
        session.get(f"{op.origin}/api/any")
        session.get(f"{op.origin}/api/kept")
    del op.answer["/api/any"]
    ports = set()
    for _ in range(3):
        with session_for(visit) as session:
            response = session.get(f"{op.origin}/api/kept", stream=True)
            ports.add(response.raw.connection.sock.getsockname())
            response.content  # noqa: B018
    assert len(ports) == 1
    cookies = [request.headers["Cookie"] for request in op.requests]
    assert cookies == [None, "a=b", None, None, None]


class Adapter(HTTPAdapter):
    """Notes the time limits of what it sends."""

    def __init__(self) -> None:
        super().__init__()
        self.timeouts: list[Any] = []

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        self.timeouts.append(kwargs["timeout"])
        return super().send(request, *args, **kwargs)


def test_a_call_without_a_timeout_has_one(op: OpenIDProvider, visit: HttpRequest) -> None:
    session, adapter = session_for(visit), Adapter()
    session.mount(op.origin, adapter)
    op.answer["/api/moved"] = redirect_to(f"{op.origin}/api/any")
    session.get(f"{op.origin}/api/moved")
    session.get(f"{op.origin}/api/any", timeout=3)
    session.send(session.prepare_request(requests.Request("GET", f"{op.origin}/api/any")))
    assert adapter.timeouts == [10.0, 10.0, 3, 10.0]


# M54: where a token may go


ELSEWHERE = {
    "another host": "https://api.example/api/any",
    "another port": "http://127.0.0.1:1/api/any",
    "https where http is listed": "https://127.0.0.1:{port}/api/any",
    "another name of the same host": "http://localhost:{port}/api/any",
    "a user name": "http://127.0.0.1:{port}@api.example/api/any",
    "a user name of ours": "http://somebody:secret@127.0.0.1:{port}/api/any",
    "a longer host": "http://127.0.0.1.api.example:{port}/api/any",
    "a host in other letters": "http://\uff1127.0.0.1:{port}@api.example/",
    "a number for an address": "http://2130706433:{port}/api/any",
    "a dot at the end": "http://127.0.0.1.:{port}/api/any",
}


@pytest.mark.parametrize("url", ELSEWHERE.values(), ids=ELSEWHERE)
def test_M54_a_token_goes_to_listed_origins_only(
    op: OpenIDProvider, visit: HttpRequest, user: Any, url: str
) -> None:
    """Nothing is sent, and no token is renewed for it."""
    url = url.format(port=urlsplit(op.origin).port)
    op.expire_access_tokens()
    for call in (
        lambda: session_for(visit).get(url),
        lambda: session_for(user).post(url, data="x"),
        lambda: requests.get(url, auth=BearerAuth(visit), timeout=10),
    ):
        with pytest.raises((OriginNotAllowed, requests.exceptions.InvalidURL)) as refused:
            call()
        if isinstance(refused.value, OriginNotAllowed):
            assert refused.value.code == "api.origin"
            assert refused.value.expected == (op.origin,)
    assert op.requests == []


HERE = {
    "capitals": ("HTTP://127.0.0.1:{port}/api/any", "/api/any"),
    "an empty user name": ("http://@127.0.0.1:{port}/api/any", "/api/any"),
    "a backslash": ("http://127.0.0.1:{port}\\@api.example/", "/%5C@api.example/"),
    "a fragment": ("http://127.0.0.1:{port}#@api.example/", "/"),
    "a path": ("http://127.0.0.1:{port}/@api.example/", "/@api.example/"),
    "blanks before it": ("  http://127.0.0.1:{port}/api/any", "/api/any"),
}


@pytest.mark.parametrize(("url", "path"), HERE.values(), ids=HERE)
def test_M54_it_is_judged_as_it_is_sent(
    op: OpenIDProvider, visit: HttpRequest, url: str, path: str
) -> None:
    """What looks like another host to one reader, and is ours for whoever connects."""
    session_for(visit).get(url.format(port=urlsplit(op.origin).port))
    assert [request.path for request in op.requests] == [path]


def test_M54_a_lookalike_host_is_another_origin(set_up: Configure, visit: HttpRequest) -> None:
    """Its first letter is a Cyrillic one."""
    set_up(SCOPES=SCOPES, API_ORIGINS=["https://api.example"])
    with pytest.raises(OriginNotAllowed) as refused:
        session_for(visit).get("https://\u0430pi.example/")
    assert refused.value.received == "https://xn--pi-6kc.example"
    with pytest.raises(OriginNotAllowed):
        session_for(visit).get("http://api.example/")
    with pytest.raises(OriginNotAllowed):
        session_for(visit).get("https://api.example:444/")


@pytest.mark.parametrize("origin", ["http://127.0.0.1:1", "http://api.example", "http://[::1]:1"])
def test_M54_plain_http_only_to_this_machine_and_only_where_that_is_switched_on(
    settings: Settings, user: Any, origin: str
) -> None:
    remote = {"ISSUER": "https://op.example", "CLIENT_ID": "a", "CLIENT_SECRET": "b"}
    settings.OIDC_RP = {"PROVIDERS": {"remote": remote | {"API_ORIGINS": [origin]}}}
    with pytest.raises((OriginNotAllowed, TemporarilyUnavailable)):
        session_for(user, "remote").get(f"{origin}/")


@pytest.mark.parametrize(
    "resource",
    ["https://api.example", "https://api.example\r\nAuthorization: Bearer x", "\x00", "\n", "🗝"],
)
def test_M54_a_resource_that_is_not_listed_has_no_origin(
    op: OpenIDProvider, visit: HttpRequest, user: Any, resource: str
) -> None:
    for who in (visit, user):
        with pytest.raises(OriginNotAllowed) as refused:
            session_for(who, resource=resource).get(f"{op.origin}/api/any")
        assert refused.value.expected == ()
    assert op.requests == []


def test_M54_each_api_gets_its_own_token_and_no_other_apis(
    op: OpenIDProvider, elsewhere: OpenIDProvider, set_up: Configure, visit: HttpRequest
) -> None:
    origins = {"": [op.origin], elsewhere.origin: [elsewhere.origin]}
    set_up(SCOPES=SCOPES, API_ORIGINS=origins)
    elsewhere.answer["/api/any"] = raw(200)
    session_for(visit).get(f"{op.origin}/api/any")
    session_for(visit, resource=elsewhere.origin).get(f"{elsewhere.origin}/api/any")
    assert len({*sent(op), *sent(elsewhere)}) == 2
    assert [request.form["resource"] for request in op.requests_to("token")] == [[elsewhere.origin]]
    with pytest.raises(OriginNotAllowed):
        session_for(visit, resource=elsewhere.origin).get(f"{op.origin}/api/any")
    with pytest.raises(OriginNotAllowed):
        session_for(visit).get(f"{elsewhere.origin}/api/any")


# No token


def test_who_has_no_grant_must_sign_in_and_nothing_is_sent(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    configure(API_ORIGINS=[op.origin])
    anonymous = browser.client.get("/home/?day=1").wsgi_request
    for call in (session_for(anonymous), session_for(AnonymousUser())):
        with pytest.raises(LoginRequired) as required:
            call.get(f"{op.origin}/api/any")
        assert required.value.code == "api.no_grant"
    assert required.value.login_url == "/oidc/op/login/"
    with pytest.raises(LoginRequired) as required:
        session_for(anonymous).get(f"{op.origin}/api/any")
    assert required.value.login_url == "/oidc/op/login/?next=%2Fhome%2F%3Fday%3D1"
    assert op.calls("/api/any") == 0


def test_the_grant_of_a_session_is_of_one_provider(
    op: OpenIDProvider, settings: Settings, visit: HttpRequest
) -> None:
    providers = settings.OIDC_RP["PROVIDERS"]
    other = providers["op"] | {"CLIENT_ID": "other"}
    settings.OIDC_RP = settings.OIDC_RP | {"PROVIDERS": {**providers, "other": other}}
    assert session_for(visit, "op").get(f"{op.origin}/api/any").status_code == 200
    with pytest.raises(LoginRequired) as required:
        session_for(visit, provider="other").get(f"{op.origin}/api/any")
    assert required.value.login_url == "/oidc/other/login/?next=%2Fhome%2F"
    with pytest.raises(ConfigurationError) as unsaid:
        session_for(visit.user).get(f"{op.origin}/api/any")
    assert unsaid.value.code == "configuration.provider"


def test_a_provider_that_was_removed_or_broken_is_no_servers_error(
    op: OpenIDProvider, settings: Settings, visit: HttpRequest, user: Any
) -> None:
    given = settings.OIDC_RP
    options = given["PROVIDERS"]["op"]
    calls: list[Callable[[], Any]] = [
        lambda: session_for(visit).get(f"{op.origin}/api/any"),
        lambda: session_for(user, "op").get(f"{op.origin}/api/any"),
        lambda: api.access_token(user, "op"),
        lambda: async_to_sync(api.aaccess_token)(visit),
    ]
    settings.OIDC_RP = given | {"PROVIDERS": {"new": options}}
    for call in calls:
        with pytest.raises(LoginRequired) as required:
            call()
        assert required.value.code == "api.no_grant"
        assert required.value.login_url.startswith("/oidc/new/login/")
    settings.OIDC_RP = given | {"PROVIDERS": {"op": options | {"TIMEOUT": "x"}}}
    for call in (*calls, lambda: session_for(user).get(f"{op.origin}/api/any")):
        with pytest.raises(TemporarilyUnavailable) as later:
            call()
        assert (later.value.code, later.value.retry_after) == ("refresh.provider", 30.0)
    assert op.calls("/api/any") == 0


NEXT: dict[str, tuple[dict[str, Any], str]] = {
    "this page": ({"method": "GET"}, "/private/?a=1"),
    "a form": ({"method": "POST", "HTTP_REFERER": "http://testserver/form/?b=2"}, "/form/?b=2"),
    "a form, from elsewhere": ({"method": "POST", "HTTP_REFERER": "https://evil.example/"}, ""),
    "a form, from nowhere": ({"method": "POST"}, ""),
    "fetch": (
        {"method": "GET", "HTTP_SEC_FETCH_MODE": "cors", "HTTP_REFERER": "http://testserver/x/"},
        "/x/",
    ),
    "XMLHttpRequest": ({"method": "GET", "HTTP_X_REQUESTED_WITH": "XMLHttpRequest"}, ""),
}


@pytest.mark.parametrize(("asked", "next_url"), NEXT.values(), ids=NEXT)
def test_the_login_url_leads_back_to_the_page(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    asked: dict[str, Any],
    next_url: str,
) -> None:
    configure(API_ORIGINS=[op.origin])
    request: Any = RequestFactory().generic(asked.pop("method"), "/private/?a=1", **asked)
    request.session, request.user = browser.client.session, AnonymousUser()
    with pytest.raises(LoginRequired) as required:
        session_for(request).get(f"{op.origin}/api/any")
    url = urlsplit(required.value.login_url)
    assert url.path == "/oidc/op/login/"
    assert parse_qs(url.query).get("next", [""]) == [next_url]


# The token is refused


def test_M55_a_refused_token_is_renewed_once_and_the_request_sent_again(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    """The API says invalid_token though the token should be good."""
    old = api.access_token(visit)
    op.expire_access_tokens()
    response = session_for(visit).put(f"{op.origin}/api/any", json={"a": 1}, params={"b": "2"})
    assert response.status_code == 200
    assert [past.status_code for past in response.history] == [401]
    assert [request.body for request in op.requests_to("/api/any")] == [b'{"a": 1}'] * 2
    assert [request.query for request in op.requests_to("/api/any")] == [{"b": ["2"]}] * 2
    assert op.refreshes == 1
    assert sent(op) == [bearer(old), bearer(api.access_token(visit))]
    assert api.access_token(visit) != old


BODIES: dict[str, tuple[Callable[[], Any], bool]] = {
    "none": (lambda: None, True),
    "bytes": (lambda: b"body", True),
    "text": (lambda: "body", True),
    "a form": (lambda: {"a": "b"}, True),
    "a bytearray": (lambda: bytearray(b"body"), True),
    "a file": (lambda: io.BytesIO(b"body"), False),
    "a generator": (lambda: (part for part in (b"body",)), False),
}


@pytest.mark.parametrize(("body", "replayable"), BODIES.values(), ids=BODIES)
def test_M55_only_a_body_in_memory_is_sent_again(
    op: OpenIDProvider, visit: HttpRequest, body: Callable[[], Any], replayable: bool
) -> None:
    """For the others the 401 is the caller's, and the next call works."""
    answer_once(op, "/api/any", 401, INVALID_TOKEN)
    response = session_for(visit).post(f"{op.origin}/api/any", data=body())
    assert response.status_code == (200 if replayable else 401)
    assert op.refreshes == 1
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == 200
    assert op.refreshes == 1


def test_M55_a_second_refusal_belongs_to_the_caller(op: OpenIDProvider, visit: HttpRequest) -> None:
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == 401
    assert (op.refreshes, op.calls("/api/any")) == (1, 2)
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == 401
    assert (op.refreshes, op.calls("/api/any")) == (1, 3)


def test_M55_a_refusal_after_a_redirect_belongs_to_the_caller(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    """LoginRequired and TemporarilyUnavailable mean that no API has done anything; here one has."""
    op.answer["/api/pay"] = redirect_to(f"{op.origin}/api/any", 303)
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    op.answer["token"] = asking_for_patience(503)
    response = session_for(visit).post(f"{op.origin}/api/pay", json={"amount": 1})
    assert (response.status_code, op.calls("/api/pay"), op.calls("/api/any")) == (401, 1, 1)
    with pytest.raises(TemporarilyUnavailable):
        session_for(visit).get(f"{op.origin}/api/any")
    assert op.calls("/api/any") == 1


def test_M55_a_refusal_that_no_renewal_mends_says_what_would(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    Grant.objects.update(refresh_token="")
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    for _ in range(2):
        with pytest.raises(LoginRequired) as required:
            session_for(visit).get(f"{op.origin}/api/any")
        assert required.value.code == "grant.no_refresh_token"
    assert op.calls("/api/any") == 1


def endless_refusal(handler: Handler) -> None:
    """invalid_token, with a body that does not end."""
    handler.close_connection = True
    challenge = INVALID_TOKEN["WWW-Authenticate"]
    handler.write(f"HTTP/1.1 401 No\r\nWWW-Authenticate: {challenge}\r\n\r\n".encode())
    while not handler.provider.stopped.is_set():
        handler.write(b" " * 0x10000)


def test_M55_a_refusal_is_not_read_before_the_repetition(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    answers = iter([endless_refusal, sending({"a": 1})])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    response = session_for(visit).get(f"{op.origin}/api/any")
    assert (response.status_code, response.json()) == (200, {"a": 1})
    assert [past.status_code for past in response.history] == [401]


OTHER_REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "401 without an error": (401, {"WWW-Authenticate": 'Bearer realm="x"'}),
    "401 without a challenge": (401, {}),
    "401 of another scheme": (401, {"WWW-Authenticate": 'Basic error="invalid_token"'}),
    "401 invalid_request": (401, {"WWW-Authenticate": 'Bearer error="invalid_request"'}),
    "403 invalid_token": (403, INVALID_TOKEN),
    "403": (403, {}),
    "500": (500, INVALID_TOKEN),
    "503": (503, {"Retry-After": "5"}),
}


@pytest.mark.parametrize(("status", "headers"), OTHER_REFUSALS.values(), ids=OTHER_REFUSALS)
def test_M55_no_other_answer_renews_anything(
    op: OpenIDProvider, visit: HttpRequest, status: int, headers: dict[str, str]
) -> None:
    op.answer["/api/any"] = raw(status, headers)
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == status
    assert (op.refreshes, op.calls("/api/any")) == (0, 1)


def test_a_stranger_behind_a_redirect_renews_nothing(
    op: OpenIDProvider, elsewhere: OpenIDProvider, visit: HttpRequest
) -> None:
    op.answer["/api/moved"] = redirect_to(f"{elsewhere.origin}/api/any")
    elsewhere.answer["/api/any"] = raw(401, INVALID_TOKEN)
    assert session_for(visit).get(f"{op.origin}/api/moved").status_code == 401
    elsewhere.answer["/api/any"] = raw(403, insufficient("contacts"))
    assert session_for(visit).get(f"{op.origin}/api/moved").status_code == 403
    assert op.refreshes == 0
    assert sent(elsewhere) == [None, None]


def test_the_new_token_goes_along_when_the_second_answer_is_a_redirect(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    """Each hop has the new one; the refused one is not tried again."""
    old = bearer(api.access_token(visit))
    answers = iter([raw(401, INVALID_TOKEN), redirect_to(f"{op.origin}/api/any")])
    op.answer["/api/moved"] = lambda handler: next(answers)(handler)
    assert session_for(visit).get(f"{op.origin}/api/moved").status_code == 200
    new = bearer(api.access_token(visit))
    assert sent(op, "/api/moved") == [old, new]
    assert sent(op) == [new]
    assert op.refreshes == 1


# More scopes


def insufficient(scope: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}


def test_missing_scopes_are_named_with_the_login_that_asks_for_them(
    op: OpenIDProvider, visit: HttpRequest, signed_in: Browser
) -> None:
    """The login asks for what the provider always asks for, and these."""
    op.answer["/api/any"] = raw(403, insufficient("calendar contacts mail"))
    with pytest.raises(InsufficientScope) as refused:
        session_for(visit).get(f"{op.origin}/api/any")
    assert refused.value.code == "api.insufficient_scope"
    assert refused.value.scopes == ("contacts", "mail")
    assert op.refreshes == 0
    url = urlsplit(refused.value.login_url)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (url.path, query["next"]) == ("/oidc/op/login/", "/home/")
    asked = parse_qs(urlsplit(signed_in.start("op", **query)).query)
    assert asked["scope"] == ["openid profile calendar offline_access contacts mail"]
    again = parse_qs(urlsplit(signed_in.start("op")).query)
    assert again["scope"] == ["openid profile calendar offline_access"]


def test_after_that_login_the_call_works(
    op: OpenIDProvider, visit: HttpRequest, signed_in: Browser
) -> None:
    op.answer["/api/any"] = raw(403, insufficient("contacts"))
    with pytest.raises(InsufficientScope) as refused:
        session_for(visit).get(f"{op.origin}/api/any")
    del op.answer["/api/any"]
    query = parse_qs(urlsplit(refused.value.login_url).query)
    signed_in.sign_in("op", scopes=query["scopes"][0])
    request = visited(signed_in, op)
    op.answer["/api/any"] = raw(403, insufficient("contacts other"))
    with pytest.raises(InsufficientScope) as refused:
        session_for(request).get(f"{op.origin}/api/any")
    assert refused.value.scopes == ("other",)


@pytest.mark.parametrize(
    "scope",
    ["", "calendar", " ".join(f"s{number}" for number in range(400))],
    ids=["none named", "none missing", "too many"],
)
def test_no_login_is_offered_that_would_not_help(
    op: OpenIDProvider, visit: HttpRequest, scope: str
) -> None:
    op.answer["/api/any"] = raw(403, insufficient(scope))
    with pytest.raises(InsufficientScope) as refused:
        session_for(visit).get(f"{op.origin}/api/any")
    assert refused.value.login_url == ""


def test_a_replay_that_lacks_scopes_says_so(op: OpenIDProvider, visit: HttpRequest) -> None:
    answers = iter([raw(401, INVALID_TOKEN), raw(403, insufficient("contacts"))])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    with pytest.raises(InsufficientScope) as refused:
        session_for(visit).get(f"{op.origin}/api/any")
    assert refused.value.scopes == ("contacts",)


def test_only_our_own_links_add_scopes(
    op: OpenIDProvider, visit: HttpRequest, signed_in: Any
) -> None:
    op.answer["/api/any"] = raw(403, insufficient("contacts"))
    with pytest.raises(InsufficientScope) as refused:
        session_for(visit).get(f"{op.origin}/api/any")
    signed = parse_qs(urlsplit(refused.value.login_url).query)["scopes"][0]
    pk = visit.user.pk
    assert added_scopes("op", signed, pk) == (*SCOPES, "contacts")
    bad_ones = [("op", "contacts"), ("op", "x" + signed[1:]), ("other", signed)]
    for slug, bent, user_pk in [*((*bad, pk) for bad in bad_ones), ("op", signed, pk + 1)]:
        with pytest.raises(OIDCError) as bad:
            added_scopes(slug, bent, user_pk)
        assert bad.value.code == "scopes.signature"
    assert signed_in.client.get("/oidc/op/login/", {"scopes": signed}).status_code == 302
    for client, bent in ((signed_in.client, "contacts"), (Client(), signed)):
        response = client.get("/oidc/op/login/", {"scopes": bent})
        assert (response.status_code, response.context["code"]) == (400, "scopes.signature")


def test_a_link_that_adds_scopes_is_good_for_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def added(signed: str, later: float) -> tuple[str, ...]:
        now = time.time() + later
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now)
            return added_scopes("op", signed, 1)

    query = parse_qs(urlsplit(login_url("op", scopes=["contacts"], user_pk=1)).query)
    assert added(query["scopes"][0], 3590) == ("contacts",)
    with pytest.raises(InvalidResponse) as late:
        added(query["scopes"][0], 3610)
    assert late.value.code == "scopes.signature"


def test_step_ups_add_up(op: OpenIDProvider, visit: HttpRequest, signed_in: Browser) -> None:
    """The second login asks for what the first one added, though it is in no setting."""
    scopes = ["contacts", "tasks"]
    request = visit
    for scope in scopes:
        op.answer["/api/any"] = raw(403, insufficient(scope))
        with pytest.raises(InsufficientScope) as refused:
            session_for(request).get(f"{op.origin}/api/any")
        assert refused.value.scopes == (scope,)
        query = parse_qs(urlsplit(refused.value.login_url).query)
        assert signed_in.sign_in("op", scopes=query["scopes"][0]).status_code == 302
        request = visited(signed_in, op)
    assert Grant.objects.get(status=Grant.OPEN).scope.split() == [*SCOPES, *scopes]


# A stronger, or a more recent, login (RFC 9470)


def insufficient_login(scheme: str = "Bearer", **params: str) -> dict[str, str]:
    error = {"error": "insufficient_user_authentication"}
    told = ", ".join(f'{name}="{value}"' for name, value in (error | params).items())
    return {"WWW-Authenticate": f"{scheme} {told}"}


CHALLENGES: dict[str, tuple[dict[str, str], StepUp]] = {
    "acr_values": ({"acr_values": "gold silver"}, StepUp(None, ("gold", "silver"))),
    "max_age": ({"max_age": "300"}, StepUp(300)),
    "max_age=0": ({"max_age": "0"}, StepUp(0)),
    "both": ({"acr_values": "gold", "max_age": "5"}, StepUp(5, ("gold",))),
    "no number": ({"acr_values": "gold", "max_age": "-5"}, StepUp(None, ("gold",))),
    "nothing": ({}, ANYHOW),
}


@pytest.mark.parametrize(("params", "wanted"), CHALLENGES.values(), ids=CHALLENGES)
def test_a_challenge_names_the_login_that_the_API_wants(
    op: OpenIDProvider, visit: HttpRequest, user: Any, params: dict[str, str], wanted: StepUp
) -> None:
    """For a view and for a job; nothing is renewed for it, and nothing is sent twice."""
    op.answer["/api/any"] = raw(401, insufficient_login(**params))
    for who in (visit, user):
        for get in (by_session, by_auth):
            with pytest.raises(StepUpRequired) as required:
                get(who, f"{op.origin}/api/any")
            error = required.value
            assert (error.code, error.step_up) == ("api.step_up", wanted)
            url = urlsplit(error.login_url)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            assert url.path == "/oidc/op/login/"
            assert query.get("next") == ("/home/" if who is visit else None)
            assert added_scopes("op", query["scopes"], user.pk) == tuple(SCOPES)
            assert asked_step_up("op", query.get("step_up", ""), user.pk) == wanted
            again = pickle.loads(pickle.dumps(error))
            assert (again.step_up, again.login_url) == (wanted, error.login_url)
    assert (op.refreshes, op.calls("/api/any")) == (0, 4)


def test_a_login_is_not_asked_for_more_than_a_cookie_holds(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    op.answer["/api/any"] = raw(401, insufficient_login(acr_values="x" * 401))
    with pytest.raises(StepUpRequired) as required:
        session_for(visit).get(f"{op.origin}/api/any")
    assert required.value.login_url == ""


NO_CHALLENGES: dict[str, tuple[int, dict[str, str]]] = {
    "403": (403, insufficient_login(acr_values="gold")),
    "another scheme": (401, insufficient_login("DPoP", acr_values="gold")),
    "another error": (401, {"WWW-Authenticate": 'Bearer error="invalid_request", max_age="0"'}),
    "no error": (401, {"WWW-Authenticate": 'Bearer acr_values="gold"'}),
}


@pytest.mark.parametrize(("status", "headers"), NO_CHALLENGES.values(), ids=NO_CHALLENGES)
def test_no_other_answer_is_such_a_challenge(
    op: OpenIDProvider, visit: HttpRequest, status: int, headers: dict[str, str]
) -> None:
    op.answer["/api/any"] = raw(status, headers)
    assert session_for(visit).get(f"{op.origin}/api/any").status_code == status


def test_a_replay_that_wants_a_stronger_login_says_so(
    op: OpenIDProvider, visit: HttpRequest
) -> None:
    answers = iter([raw(401, INVALID_TOKEN), raw(401, insufficient_login(acr_values="gold"))])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    with pytest.raises(StepUpRequired):
        session_for(visit).get(f"{op.origin}/api/any")
    assert op.refreshes == 1


def test_a_stranger_behind_a_redirect_asks_for_no_login(
    op: OpenIDProvider, elsewhere: OpenIDProvider, visit: HttpRequest
) -> None:
    op.answer["/api/moved"] = redirect_to(f"{elsewhere.origin}/api/any")
    elsewhere.answer["/api/any"] = raw(401, insufficient_login(acr_values="gold"))
    assert session_for(visit).get(f"{op.origin}/api/moved").status_code == 401


def test_a_login_for_one_API_keeps_what_the_grant_allows_others(
    op: OpenIDProvider, visit: HttpRequest, signed_in: Browser, user: Any
) -> None:
    """Of a grant that is wider than the login of today, and of a token that is narrower."""
    signed_in.sign_in("op", scopes=wider(user.pk, *SCOPES, "contacts"))
    signed_in.sign_in("op")
    request = visited(signed_in, op)
    for headers, error in (
        (insufficient_login(acr_values="gold"), StepUpRequired),
        (insufficient("mail"), InsufficientScope),
    ):
        op.answer["/api/any"] = raw(401 if error is StepUpRequired else 403, headers)
        for who in (request, user):
            with pytest.raises(error) as refused:
                session_for(who, scopes=["calendar"]).get(f"{op.origin}/api/any")
            query = parse_qs(urlsplit(refused.value.login_url).query)
            asked = added_scopes("op", query["scopes"][0], user.pk)
            assert {*asked} - {"mail"} == {*SCOPES, "contacts"}


def wider(user_pk: Any, *scopes: str) -> str:
    url = login_url("op", scopes=scopes, user_pk=user_pk)
    return parse_qs(urlsplit(url).query)["scopes"][0]


# Redirects and the environment


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: OpenIDProvider) -> None:
    """A .netrc that knows the host of every server here."""
    path = tmp_path / "netrc"
    path.write_text("machine 127.0.0.1 login somebody password x\ndefault login any password y\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert requests.get(op.origin, timeout=10).request.headers["Authorization"].startswith("Basic")


Get = Callable[..., requests.Response]


def by_session(who: Any, url: str, **kwargs: Any) -> requests.Response:
    return session_for(who).get(url, **kwargs)


def by_auth(who: Any, url: str, **kwargs: Any) -> requests.Response:
    return requests.get(url, auth=BearerAuth(who), timeout=10, **kwargs)


def by_a_session_of_ones_own(who: Any, url: str, **kwargs: Any) -> requests.Response:
    with requests.Session() as session:
        session.auth = BearerAuth(who)
        return session.get(url, timeout=10, **kwargs)


WAYS = [by_session, by_auth, by_a_session_of_ones_own]


@pytest.mark.parametrize("get", WAYS)
def test_M44_netrc_never_replaces_the_header(
    op: OpenIDProvider, visit: HttpRequest, netrc: None, get: Get
) -> None:
    """Neither at first, nor when a redirect stays at the origin, nor in a replay."""
    op.answer["/api/moved"] = redirect_to(f"{op.origin}/api/any")
    assert get(visit, f"{op.origin}/api/moved").status_code == 200
    token = bearer(api.access_token(visit))
    assert sent(op, "/api/moved") + sent(op) == [token, token]
    op.expire_access_tokens()
    assert get(visit, f"{op.origin}/api/any").status_code == 200
    assert sent(op)[-1] == bearer(api.access_token(visit))


@pytest.mark.parametrize("listed", [False, True], ids=["not listed", "listed"])
@pytest.mark.parametrize("get", WAYS)
def test_M54_a_redirect_to_another_origin_carries_nothing(
    op: OpenIDProvider,
    elsewhere: OpenIDProvider,
    set_up: Configure,
    visit: HttpRequest,
    netrc: None,
    get: Get,
    listed: bool,
) -> None:
    """Another port is another origin; that it may have tokens too does not matter. What comes
    back from there to us carries nothing either."""
    if listed:
        set_up(SCOPES=SCOPES, API_ORIGINS=[op.origin, elsewhere.origin])
    op.answer["/api/moved"] = redirect_to(f"{elsewhere.origin}/api/any")
    elsewhere.answer["/api/any"] = redirect_to(f"{op.origin}/api/any")
    op.answer["/api/any"] = raw(200)
    assert get(visit, f"{op.origin}/api/moved").status_code == 200
    assert sent(elsewhere) == [None]
    assert sent(op) == [None]


OTHER_SPELLINGS = {
    "scheme-relative": "//127.0.0.1:{port}/api/any",
    "another name": "http://localhost:{port}/api/any",
    "userinfo": "http://{origin}@127.0.0.1:{port}/api/any",
    "capitals": "HTTP://127.0.0.1:{port}/api/any",
}


@pytest.mark.parametrize("location", OTHER_SPELLINGS.values(), ids=OTHER_SPELLINGS)
@pytest.mark.parametrize("get", WAYS)
def test_M54_however_the_other_origin_is_spelt(
    op: OpenIDProvider,
    elsewhere: OpenIDProvider,
    visit: HttpRequest,
    get: Get,
    location: str,
) -> None:
    port = urlsplit(elsewhere.origin).port
    op.answer["/api/moved"] = redirect_to(location.format(port=port, origin=op.origin[7:]))
    elsewhere.answer["/api/any"] = raw(200)
    assert get(visit, f"{op.origin}/api/moved").status_code == 200
    assert sent(elsewhere) == [None]


def test_M54_http_and_https_are_two_origins_on_their_standard_ports_too(
    set_up: Configure, visit: HttpRequest
) -> None:
    """requests itself would let the header go from the one to the other."""
    set_up(SCOPES=SCOPES, API_ORIGINS=["http://127.0.0.1"])
    with requests.Session() as session:
        session.auth = BearerAuth(visit)
        first = session.prepare_request(requests.Request("GET", "http://127.0.0.1/"))
        moved = requests.Response()
        moved.status_code, moved.url, moved.request = 302, first.url, first
        moved.raw = HTTPResponse(io.BytesIO(), preload_content=False)
        for location, header in (("/a", True), ("https://127.0.0.1/a", False)):
            moved.headers["Location"] = location
            hop: Any = next(session.resolve_redirects(moved, first, yield_requests=True))
            assert (hop.url, "Authorization" in hop.headers) == (
                urljoin("http://127.0.0.1/", location),
                header,
            )


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_M44_the_session_believes_nothing_from_the_environment(
    op: OpenIDProvider,
    visit: HttpRequest,
    netrc: None,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/does/not/exist")
    op.answer["/api/moved"] = redirect_to(f"{op.origin}/api/any")
    session = session_for(visit)
    assert session.get(f"{op.origin}/api/moved").status_code == 200
    prepared = session.prepare_request(requests.Request("GET", f"{op.origin}/api/any"))
    assert session.send(prepared).status_code == 200
    assert len({*sent(op, "/api/moved"), *sent(op)}) == 1


# Secrets


def test_M53_no_error_log_or_repr_shows_the_token(
    op: OpenIDProvider, visit: HttpRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """Also not the local variables that a debug page shows."""
    caplog.set_level(logging.DEBUG)
    request = session_for(visit).get(f"{op.origin}/api/any").request
    shown = [repr(request), repr(request.headers), repr(request.__dict__), str(request.headers)]
    assert sent(op) == [request.headers["Authorization"]]
    op.answer["/api/any"] = close_connection()
    with pytest.raises(requests.ConnectionError) as failed:
        session_for(visit).get(f"{op.origin}/api/any")
    report = traceback.TracebackException.from_exception(failed.value, capture_locals=True)
    shown += [*report.format(), caplog.text]
    assert "adapter = " not in "".join(shown)
    assert api.access_token(visit).reveal() not in "".join(shown)


def test_M53_whatever_ends_the_call_shows_no_token(op: OpenIDProvider, visit: HttpRequest) -> None:
    """A generator of the caller's, a worker's time limit: what requests did not raise itself."""
    for kind in (ValueError, SystemExit, KeyboardInterrupt):

        def body(kind: type[BaseException] = kind) -> Iterator[bytes]:
            yield b"a"
            raise kind

        with pytest.raises(kind) as failed:
            session_for(visit).post(f"{op.origin}/api/any", data=body())
        report = traceback.TracebackException.from_exception(failed.value, capture_locals=True)
        assert api.access_token(visit).reveal() not in "".join(report.format())


def test_M53_a_pickled_response_holds_no_token(op: OpenIDProvider, visit: HttpRequest) -> None:
    """A cache may keep it, with what redirects and repetitions left in its history."""
    old = api.access_token(visit).reveal()
    op.expire_access_tokens()
    op.answer["/api/moved"] = redirect_to(f"{op.origin}/api/any")
    for path, status in (("/api/any", 401), ("/api/moved", 307)):
        response = session_for(visit).get(f"{op.origin}{path}", headers={"X-Own": "a"})
        assert [past.status_code for past in response.history] == [status]
        pickled = pickle.dumps(response)
        for token in (old, api.access_token(visit).reveal()):
            assert token.encode() not in pickled
        again = pickle.loads(pickled)
        assert again.json() == response.json()
        for one in (again, *again.history):
            assert type(one.request) is requests.PreparedRequest
            assert "Authorization" not in one.request.headers
            assert (one.request.headers["X-Own"], one.request.hooks) == ("a", {"response": []})
        assert response.request.headers["Authorization"] == bearer(api.access_token(visit))


# For other clients


def test_access_token_is_redacted_and_checked_by_nobody(
    op: OpenIDProvider, visit: HttpRequest, user: Any
) -> None:
    token = api.access_token(visit, "op")
    assert type(token) is AccessToken
    assert str(token) == "<AccessToken: redacted>"
    assert api.access_token(user) == token
    assert op.requests == []


def test_async_code_gets_the_same_token(op: OpenIDProvider, visit: HttpRequest, user: Any) -> None:
    for who in (visit, user):
        assert async_to_sync(api.aaccess_token)(who) == api.access_token(who)


def test_async_code_is_refused_the_same(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    configure(API_ORIGINS=[op.origin])
    with pytest.raises(LoginRequired) as required:
        async_to_sync(api.aaccess_token)(browser.client.get("/home/").wsgi_request)
    assert required.value.login_url == "/oidc/op/login/?next=%2Fhome%2F"


@pytest.mark.django_db(transaction=True)
def test_cancelling_who_waits_cancels_no_refresh(op: OpenIDProvider, user: Any) -> None:
    """The OP has rotated by then: what it answers is stored."""
    old = api.access_token(user)
    StoredAccessToken.objects.update(expires_at=EPOCH, sent_at=EPOCH)
    told, stored = threading.Event(), threading.Event()
    op.answer["token"] = held_back(told)

    def note(**_: Any) -> None:
        stored.set()

    async def impatient() -> None:
        waiting = asyncio.create_task(api.aaccess_token(user))
        while not op.rotations:
            await asyncio.sleep(0.01)
        waiting.cancel()
        told.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    tokens_refreshed.connect(note)
    try:
        asyncio.run(impatient())
        assert stored.wait(10)
    finally:
        tokens_refreshed.disconnect(note)
    assert Grant.objects.get().refreshes == 1
    assert api.access_token(user) != old
    assert (op.refreshes, op.families_lost) == (1, 0)
