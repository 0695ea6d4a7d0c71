"""Around the views that call APIs: a good token before, a login instead of an error after."""

import logging
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.utils import timezone
from django.utils.deprecation import MiddlewareMixin

from . import conf
from .api import Caller
from .errors import LoginRequired, OIDCError, TemporarilyUnavailable
from .login_urls import accepts_html, by_script, is_page_visit, login_url, way_back
from .refusals import explanation
from .sessions import current_login

logger = logging.getLogger("oidc_rp")

LOGIN_URL_HEADER = "X-Login-URL"

WAIT = 1.0
"""Seconds that a page waits for a token it may not need; the renewal goes on without it."""

USELESS_AFTER = timedelta(seconds=30)
"""A login so short ago did not help, and the next one would not: the browser would go round."""


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
        if isinstance(exception, LoginRequired):
            useless = _has_just_signed_in(request)
            response = (_no_use if useless else _to_login)(request, exception)
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
    return at is not None and abs(timezone.now() - at) < USELESS_AFTER


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
    if url and is_page_visit(request):
        return HttpResponseRedirect(url)
    response = JsonResponse({"error": "login_required", "login_url": url}, status=401)
    if url:
        response[LOGIN_URL_HEADER] = url
    if url and "HX-Request" in request.headers:
        response["HX-Redirect"] = url  # htmx leaves the page for it, whatever the status
    return response


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
