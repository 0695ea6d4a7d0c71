"""The httpx auth class, sync and async: the rules of api.py by another client."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest

from oidc_rp import api
from oidc_rp.errors import (
    InsufficientScope,
    LoginRequired,
    OriginNotAllowed,
    StepUpRequired,
    TemporarilyUnavailable,
)
from oidc_rp.httpx import BearerAuth
from oidc_rp.login_urls import asked_step_up
from oidc_rp.protocol.authentication import StepUp
from oidc_rp.testing import OpenIDProvider, asking_for_patience, raw, redirect_to, sending
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.test_api import (
    ELSEWHERE,
    INVALID_TOKEN,
    OTHER_REFUSALS,
    bearer,
    elsewhere,
    endless_refusal,
    insufficient,
    insufficient_login,
    netrc,
    options,
    sent,
    set_up,
    signed_in,
    user,
    visit,
)

__all__ = ["elsewhere", "netrc", "options", "set_up", "signed_in", "user", "visit"]

Call = Callable[..., httpx.Response]


def by_client(who: Any, method: str, url: str, **kwargs: Any) -> httpx.Response:
    with httpx.Client(auth=BearerAuth(who), follow_redirects=True) as client:
        return client.request(method, url, **kwargs)


@async_to_sync
async def by_async_client(who: Any, method: str, url: str, **kwargs: Any) -> httpx.Response:
    async with httpx.AsyncClient(auth=BearerAuth(who), follow_redirects=True) as client:
        return await client.request(method, url, **kwargs)


@pytest.fixture(params=[by_client, by_async_client], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param  # type: ignore[no-any-return]


def test_it_calls_in_a_persons_name(
    op: OpenIDProvider, visit: HttpRequest, user: Any, call: Call
) -> None:
    for who in (visit, user):
        assert call(who, "GET", f"{op.origin}/api/any").status_code == 200
    assert sent(op) == [bearer(api.access_token(visit)), bearer(api.access_token(user))]


@pytest.mark.parametrize("url", ELSEWHERE.values(), ids=ELSEWHERE)
def test_M54_a_token_goes_to_listed_origins_only(
    op: OpenIDProvider, visit: HttpRequest, call: Call, url: str
) -> None:
    url = url.format(port=op.origin.rpartition(":")[2])
    op.expire_access_tokens()
    with pytest.raises((OriginNotAllowed, httpx.InvalidURL)) as refused:
        call(visit, "GET", url)
    assert getattr(refused.value, "code", "api.origin") == "api.origin"
    assert op.requests == []


def test_who_has_no_grant_must_sign_in(
    op: OpenIDProvider, browser: Browser, configure: Configure, call: Call
) -> None:
    configure(API_ORIGINS=[op.origin])
    with pytest.raises(LoginRequired) as required:
        call(browser.client.get("/home/").wsgi_request, "GET", f"{op.origin}/api/any")
    assert required.value.login_url == "/oidc/op/login/?next=%2Fhome%2F"
    assert op.calls("/api/any") == 0


@pytest.mark.parametrize(
    "body", [{}, {"content": b"body"}, {"json": {"a": 1}}, {"data": {"a": "b"}}]
)
def test_M55_a_refused_token_is_renewed_once_and_the_request_sent_again(
    op: OpenIDProvider, visit: HttpRequest, call: Call, body: dict[str, Any]
) -> None:
    old = bearer(api.access_token(visit))
    op.expire_access_tokens()
    assert call(visit, "POST", f"{op.origin}/api/any", **body).status_code == 200
    assert sent(op) == [old, bearer(api.access_token(visit))]
    first, second = op.requests_to("/api/any")
    assert first.body == second.body
    assert op.refreshes == 1


def test_M55_a_stream_is_not_sent_again(op: OpenIDProvider, visit: HttpRequest, call: Call) -> None:
    """The 401 is the caller's, and the next call works."""
    op.expire_access_tokens()
    content = stream() if call is by_client else astream()
    assert call(visit, "POST", f"{op.origin}/api/any", content=content).status_code == 401
    assert op.refreshes == 1
    assert call(visit, "GET", f"{op.origin}/api/any").status_code == 200
    assert op.refreshes == 1


def stream() -> Iterator[bytes]:
    yield b"body"


async def astream() -> AsyncIterator[bytes]:
    yield b"body"


def test_M55_a_second_refusal_belongs_to_the_caller(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    assert call(visit, "GET", f"{op.origin}/api/any").status_code == 401
    assert (op.refreshes, op.calls("/api/any")) == (1, 2)


def test_M55_what_was_accepted_is_not_sent_again(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    """A POST leads to a page that refuses the token: the POST itself was done."""
    op.answer["/api/pay"] = redirect_to(f"{op.origin}/api/any", 303)
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    response = call(visit, "POST", f"{op.origin}/api/pay", json={"amount": 1})
    assert (response.status_code, op.calls("/api/pay"), op.calls("/api/any")) == (401, 1, 1)
    assert op.refreshes == 1


def test_M55_a_refusal_that_no_renewal_mends_says_when_to_come_back(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    """Unless a redirect led there: an API has done something then, and its refusal is given."""
    op.answer["/api/pay"] = redirect_to(f"{op.origin}/api/any", 303)
    op.answer["/api/any"] = raw(401, INVALID_TOKEN)
    op.answer["token"] = asking_for_patience(503)
    assert call(visit, "POST", f"{op.origin}/api/pay", json={"a": 1}).status_code == 401
    assert op.calls("/api/pay") == 1
    for _ in range(2):
        with pytest.raises(TemporarilyUnavailable):
            call(visit, "POST", f"{op.origin}/api/any", json={"a": 1})
    assert op.calls("/api/any") == 1


def test_M55_a_refusal_is_not_read_before_the_repetition(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    answers = iter([endless_refusal, sending({"a": 1})])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    response = call(visit, "GET", f"{op.origin}/api/any")
    assert (response.status_code, response.json()) == (200, {"a": 1})
    assert [past.status_code for past in response.history] == [401]


@pytest.mark.parametrize(("status", "headers"), OTHER_REFUSALS.values(), ids=OTHER_REFUSALS)
def test_M55_no_other_answer_renews_anything(
    op: OpenIDProvider, visit: HttpRequest, call: Call, status: int, headers: dict[str, str]
) -> None:
    op.answer["/api/any"] = raw(status, headers)
    assert call(visit, "GET", f"{op.origin}/api/any").status_code == status
    assert (op.refreshes, op.calls("/api/any")) == (0, 1)


def test_missing_scopes_are_named(op: OpenIDProvider, visit: HttpRequest, call: Call) -> None:
    """At once, and by a second answer too."""
    op.answer["/api/any"] = raw(403, insufficient("calendar contacts"))
    with pytest.raises(InsufficientScope) as refused:
        call(visit, "GET", f"{op.origin}/api/any")
    assert refused.value.scopes == ("contacts",)
    answers = iter([raw(401, INVALID_TOKEN), raw(403, insufficient("mail"))])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    with pytest.raises(InsufficientScope) as refused:
        call(visit, "GET", f"{op.origin}/api/any")
    assert refused.value.scopes == ("mail",)


def test_M44_M54_redirects_carry_the_token_within_the_origin_only(
    op: OpenIDProvider, elsewhere: OpenIDProvider, visit: HttpRequest, netrc: None, call: Call
) -> None:
    """And a .netrc that knows both does not take its place."""
    elsewhere.answer["/api/any"] = raw(401, INVALID_TOKEN)
    op.answer["/api/moved"] = redirect_to(f"{op.origin}/api/any")
    assert call(visit, "GET", f"{op.origin}/api/moved").status_code == 200
    token = bearer(api.access_token(visit))
    assert sent(op, "/api/moved") + sent(op) == [token, token]
    op.answer["/api/moved"] = redirect_to(f"{elsewhere.origin}/api/any")
    assert call(visit, "GET", f"{op.origin}/api/moved").status_code == 401
    assert sent(elsewhere) == [None]
    assert op.refreshes == 0


def test_M53_headers_are_shown_without_the_token(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    response = call(visit, "GET", f"{op.origin}/api/any")
    token = api.access_token(visit).reveal()
    assert token not in repr(response.request.headers) + repr(response.request)


def test_without_httpx_the_error_says_what_to_install() -> None:
    program = (
        "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'\n"
        "import django; django.setup(); sys.modules['httpx'] = None\n"
        "import oidc_rp.httpx"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1] == (
        'ImportError: oidc_rp.httpx needs httpx: pip install "oidc_rp[httpx]"'
    )


def test_a_challenge_names_the_login_that_the_API_wants(
    op: OpenIDProvider, visit: HttpRequest, user: Any, call: Call
) -> None:
    """RFC 9470, for a view and for a job; nothing is renewed for it, and nothing is sent twice."""
    op.answer["/api/any"] = raw(401, insufficient_login(acr_values="gold", max_age="5"))
    for who in (visit, user):
        with pytest.raises(StepUpRequired) as required:
            call(who, "GET", f"{op.origin}/api/any")
        assert required.value.code == "api.step_up"
        assert required.value.step_up == StepUp(5, ("gold",))
        query = parse_qs(urlsplit(required.value.login_url).query)
        assert asked_step_up("op", query["step_up"][0], user.pk) == StepUp(5, ("gold",))
    assert (op.refreshes, op.calls("/api/any")) == (0, 2)


def test_a_replay_that_wants_a_stronger_login_says_so(
    op: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    answers = iter([raw(401, INVALID_TOKEN), raw(401, insufficient_login(acr_values="gold"))])
    op.answer["/api/any"] = lambda handler: next(answers)(handler)
    with pytest.raises(StepUpRequired):
        call(visit, "GET", f"{op.origin}/api/any")
    assert op.refreshes == 1


def test_a_stranger_behind_a_redirect_asks_for_no_login(
    op: OpenIDProvider, elsewhere: OpenIDProvider, visit: HttpRequest, call: Call
) -> None:
    op.answer["/api/moved"] = redirect_to(f"{elsewhere.origin}/api/any")
    elsewhere.answer["/api/any"] = raw(401, insufficient_login(acr_values="gold"))
    assert call(visit, "GET", f"{op.origin}/api/moved").status_code == 401
