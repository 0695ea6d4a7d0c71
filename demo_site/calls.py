"""What the buttons of the profile page do: call APIs in the name of whoever is signed in.

This is what the README shows, `session_for(...)`, and around it what a page needs to tell what
happened. Each view keeps what it has to show in the session, for the profile page that follows.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from threading import Barrier
from time import perf_counter
from typing import Any

import requests
from django.contrib.auth.decorators import login_required
from django.db import connections
from django.db.models import F
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_POST

from demo_site.installation import CALENDAR, CONTACTS, ID_TOKEN_INSTEAD
from oidc_rp.api import session_for
from oidc_rp.errors import InsufficientScope, LoginRequired, OIDCError
from oidc_rp.models import Grant, StoredAccessToken
from oidc_rp.sessions import current_login

TOGETHER = 20
RESULT = "demo_result"


@dataclass(frozen=True)
class Answer:
    """What one call came to: a status and JSON from the API, or the code of an error before it.

    login_url: the sign-in that would help. missing: the scopes that an API asked for.
    """

    seconds: float
    status: int = 0
    body: Any = None
    code: str = ""
    login_url: str = ""
    missing: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        return self.status == 200


def answer_to(call: Callable[[], requests.Response]) -> Answer:
    """Return what a call comes to, whatever that is."""
    begun = perf_counter()
    try:
        response = call()
        return Answer(perf_counter() - begun, response.status_code, response.json())
    except InsufficientScope as error:
        told = {"code": error.code, "login_url": error.login_url, "missing": error.scopes}
        return Answer(perf_counter() - begun, 403, **told)
    except LoginRequired as error:
        return Answer(perf_counter() - begun, code=error.code, login_url=error.login_url)
    except OIDCError as error:
        return Answer(perf_counter() - begun, code=error.code)
    except requests.RequestException as error:
        return Answer(perf_counter() - begun, code=type(error).__name__)


def call_calendar(user: Any, provider: str) -> Answer:
    """Call it as a background job would: it knows a user and a provider, and has no request."""
    return answer_to(lambda: session_for(user, provider=provider).get(CALENDAR))


def at_once(count: int, call: Callable[[], Answer]) -> list[Answer]:
    """Return the answers to so many calls, each from a thread of its own, started together."""
    start = Barrier(count)

    def run() -> Answer:
        try:
            start.wait(timeout=10)
            return call()
        finally:
            connections.close_all()  # this thread's own

    with ThreadPoolExecutor(count) as threads:
        running = [threads.submit(run) for _ in range(count)]
        return [each.result() for each in running]


def refreshes_of(grant: str) -> int:
    found = Grant.objects.filter(pk=grant).values_list("refreshes", flat=True).first()
    return found or 0


@require_POST
@login_required
def calendar(request: HttpRequest) -> HttpResponse:
    """Call the calendar once, or from as many threads as TOGETHER says at the same moment."""
    login = current_login(request)
    provider, grant = (login.provider, login.grant) if login else ("", "")
    count = TOGETHER if request.POST.get("times") == "many" else 1
    if "expired" in request.POST:  # the demo's own doing, so that nobody has to wait for a minute
        StoredAccessToken.objects.filter(grant=grant).update(expires_at=F("sent_at"))
    before = refreshes_of(grant)
    answers = at_once(count, partial(call_calendar, request.user, provider))
    good = [answer for answer in answers if answer.is_good]
    return _show(
        request,
        "calendar",
        count=count,
        good=len(good),
        refreshes=refreshes_of(grant) - before,
        slowest=max(answer.seconds for answer in answers),
        numbers=sorted({answer.body["token_number"] for answer in good}),
        failed=next((asdict(answer) for answer in answers if not answer.is_good), None),
        body=good[0].body if good else None,
    )


@require_POST
@login_required
def contacts(request: HttpRequest) -> HttpResponse:
    """Call an API that wants a scope which was not asked for at the sign-in."""
    answer = answer_to(lambda: session_for(request).get(CONTACTS))
    return _show(request, "contacts", **asdict(answer))


@require_POST
@login_required
def id_token_instead(request: HttpRequest) -> HttpResponse:
    """Have the provider show what its calendar says to an ID Token: nothing here could send one."""
    answer = answer_to(lambda: session_for(request).post(ID_TOKEN_INSTEAD))
    return _show(request, "id_token", **asdict(answer))


def _show(request: HttpRequest, kind: str, **result: Any) -> HttpResponse:
    """Keep a result for the profile page, and go there: a reload is to repeat no call.

    expired: the checkbox, which keeps its state whichever button was pressed.
    """
    expired = "expired" in request.POST
    request.session[RESULT] = {"kind": kind, "expired": expired, **result}
    return HttpResponseRedirect(f"{reverse('profile')}#result")
