"""Around the views: a session that the OP still vouches for, a good token for those that call APIs,
and a login instead of an error.
"""

import logging
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.deprecation import MiddlewareMixin

from . import conf, grants, renewal, session_index
from .api import Caller
from .errors import LoginRequired, OIDCError, StepUpRequired, TemporarilyUnavailable
from .login_urls import (
    accepts_html,
    answer_with_login,
    by_script,
    is_fetched,
    is_page_visit,
    is_prefetch,
    login_url,
    way_back,
)
from .refusals import explanation
from .relying_party import relying_party
from .renewal import Outcome
from .sessions import RENEW, current_login, row_of, utc_now
from .step_up import answer_to_challenge
from .visits import safe_url, start_login

logger = logging.getLogger("oidc_rp")

WAIT = 1.0
"""Seconds that a page waits for a token it may not need; the renewal goes on without it."""

USELESS_AFTER = timedelta(seconds=30)
"""A login so short ago did not help, and the next one would not: the browser would go round."""


WANTED = f"grant.{grants.REVOKED}"
"""An operator ended the grant, so that another login brings the next one."""


class SessionRenewal(MiddlewareMixin):
    """Stands right below AuthenticationMiddleware, and works in sync and async sites.

    A session that has ended elsewhere is refused, whatever engine stores it. One that is older
    than SESSION_RENEWAL is renewed: by its refresh token with no redirect, or by a login with
    prompt=none where a page is visited; a script is told where the login is, and no form is ever
    interrupted. Takes the place of mozilla-django-oidc's SessionRefresh.
    """

    def process_request(self, request: HttpRequest) -> None:
        """Sign out whoever's session has ended, before anything asks who it is."""
        if settings.SESSION_COOKIE_NAME not in request.COOKIES:
            return
        row_id = row_of(request.session)
        if not row_id:
            return
        row = session_index.read(row_id)
        if row is None or row.ended_at is not None:
            renewal.sign_out(request)
            return
        if row.now - row.last_seen_at > session_index.SEEN_EVERY:
            session_index.note_seen(row)
        session_index.keep_in_view(request, row)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Have the OP vouch for a session whose time has come."""
        row, match = session_index.seen(request), request.resolver_match
        if row is None or (match and _is_ours(match)):
            return None
        try:
            provider = conf.provider(row.provider)
            if not renewal.is_due(row, provider) or not request.user.is_authenticated:
                return None
            if renewal.has_refresh_token(row):
                if not renewal.begin(row):
                    return None
                if renewal.by_refresh_token(request, row, provider) is not Outcome.BY_LOGIN:
                    return None
                row = session_index.read(row.pk)
            return row and _by_prompt_none(request, row, provider)
        except OIDCError as error:
            logger.warning("no renewal: %s", error.code, extra={"code": error.code})
            return None

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Keep the index true when a view has given the session another key, or password hash."""
        row = session_index.seen(request)
        if row is not None and row_of(request.session) == row.pk:
            session_index.keep_true(row, request.session)
        return response


def _by_prompt_none(request: HttpRequest, row: Any, provider: conf.Provider) -> HttpResponse | None:
    """A login with prompt=none, for the visit of a page that one can come back to: nothing else can
    be interrupted by a redirect. A script is told where the login is."""
    if request.method != "GET" or is_prefetch(request):
        return None
    if is_fetched(request):
        url = login_url(provider.slug, next_url=way_back(request))
        return _not_stored(answer_with_login(request, url))
    here = safe_url(request, request.get_full_path())
    if not is_page_visit(request) or not here or not renewal.begin(row):
        return None
    hint = session_index.id_token_of(row)
    asked = {"prompt": "none"} | ({"id_token_hint": hint.reveal()} if hint else {})
    party = relying_party(provider.slug)
    return _not_stored(start_login(request, party, here, purpose=RENEW, additional=asked))


def _not_stored(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "no-store"
    return response


class TokenRenewal(MiddlewareMixin):
    """Optional. Stands below AuthenticationMiddleware, and works in sync and async sites.

    Before a view: a token that is due is renewed, outside the view's transaction. After one that
    raised LoginRequired or TemporarilyUnavailable: the browser is sent to sign in, a script is told
    where to, and both are told when to come back. Who has just signed in is not sent again.
    """

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        """Let the view find a token that lasts. What fails here breaks no page: the view may not
        call an API at all, and is told when it does."""
        match = request.resolver_match
        if settings.SESSION_COOKIE_NAME not in request.COOKIES or (match and _is_ours(match)):
            return
        try:
            login = current_login(request)
            if login is not None and conf.provider(login.provider).api_origins:
                Caller(request).token(wait=WAIT)
        except OIDCError as error:
            logger.info("no token before the view: %s", error.code, extra={"code": error.code})

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer for a view that could have no token."""
        if isinstance(exception, StepUpRequired):
            response = answer_to_challenge(request, exception)
        elif isinstance(exception, LoginRequired):
            useful = exception.code == WANTED or not _has_just_signed_in(request)
            response = (_to_login if useful else _no_use)(request, exception)
        elif isinstance(exception, TemporarilyUnavailable):
            response = _later(request, exception)
        else:
            return None
        logger.info("no token for the view: %s", exception.code, extra={"code": exception.code})
        response["Cache-Control"] = "no-store"
        return response


def _is_ours(match: Any) -> bool:
    """Our own views begin and end sessions: no time to renew anything."""
    return "oidc_rp" in match.app_names


def _has_just_signed_in(request: HttpRequest) -> bool:
    login = current_login(request)
    at = login.at if login is not None else None
    return at is not None and abs(utc_now() - at) < USELESS_AFTER


def _no_use(request: HttpRequest, error: LoginRequired) -> HttpResponse:
    """A login brings no token: the settings, or the API, are not what the site thinks."""
    logger.error("a login brought no token: %s", error.code, extra={"code": error.code})
    if not is_page_visit(request):
        return JsonResponse({"error": "login_useless", "code": error.code}, status=403)
    told = explanation("configuration")
    text = f"{told.sentence} {told.advice}\n\n{error.code}\n"
    return HttpResponse(text, "text/plain; charset=utf-8", status=403)


def _to_login(request: HttpRequest, error: LoginRequired) -> HttpResponse:
    url = error.login_url or login_url("", next_url=way_back(request))
    return answer_with_login(request, url)


def _later(request: HttpRequest, error: TemporarilyUnavailable) -> HttpResponse:
    seconds = max(1, math.ceil(error.retry_after))
    if accepts_html(request) and not by_script(request):
        ours = error.code.startswith("seal.")  # a key is missing here, the OP is well
        told = explanation("configuration" if ours else "transport")
        text = f"{told.sentence}\n" if ours else f"{told.sentence} {told.advice}\n"
        response = HttpResponse(text, "text/plain; charset=utf-8", status=503)
    else:
        told_again = {"error": "temporarily_unavailable", "retry_after": seconds}
        response = JsonResponse(told_again, status=503)
    response["Retry-After"] = str(seconds)
    return response
