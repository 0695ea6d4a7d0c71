"""Log in, callback, log out: request in, response out (Core §3.1.2).

The walk of a callback: take the pending login, authenticate, start the session, redirect.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME, authenticate
from django.contrib.auth import login as auth_login
from django.contrib.auth import logout as auth_logout
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.db import transaction
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    QueryDict,
    UnreadablePostError,
)
from django.http.multipartparser import MultiPartParserError
from django.http.response import HttpResponseBase
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.encoding import iri_to_uri
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import get_language
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.generic import View
from mozilla_django_oidc.views import (
    OIDCAuthenticationCallbackView,
    OIDCAuthenticationRequestView,
    OIDCLogoutView,
)

from . import closing, conf, grants, sessions, signals
from .backends import CallbackResponse, SignIn
from .errors import ConfigurationError, InvalidResponse, OIDCError
from .login_urls import SCOPES_FIELD_NAME, added_scopes
from .models import Identity
from .refusals import refuse
from .relying_party import RelyingParty, relying_party

MAX_NEXT_LENGTH = 1024
LANDED = "oidc_rp_landed"

_public: list[Any] = [never_cache, login_not_required, transaction.non_atomic_requests]


class RefusingView(View):
    """Turns every OIDCError into the refusal page; nothing else is caught."""

    next_url = ""  # of the pending login, once it is taken

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        except OIDCError as error:
            _forget_failure(error)
            next_url = self.next_url or _next_url(request)
            return refuse(request, error, kwargs.get("slug"), next_url)


@method_decorator(_public, name="dispatch")
class LoginChooserView(RefusingView):
    """A button for each provider. Works as LOGIN_URL."""

    http_method_names = ["get", "head"]

    def get(self, request: HttpRequest) -> HttpResponse:
        context = {"next": _next_url(request)}
        return render(request, "oidc_rp/login_chooser.html", context)


@method_decorator([*_public, csrf_protect], name="dispatch")
class LoginView(RefusingView, OIDCAuthenticationRequestView):  # type: ignore[misc]
    """Start a login. By GET it signs in; only one started by POST may link accounts (M11)."""

    http_method_names = ["get", "post"]

    def __init__(self, **kwargs: Any) -> None:
        View.__init__(self, **kwargs)  # the parent would read its own settings

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._start(request, slug, by_post=False)

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._start(request, slug, by_post=True)

    def get_extra_params(self, request: HttpRequest) -> Mapping[str, Any]:
        """More parameters for the authentication request; a hook for a subclass."""
        return {}

    def _start(self, request: HttpRequest, slug: str, *, by_post: bool) -> HttpResponse:
        party = relying_party(slug)
        signed_scopes = _parameters(request).get(SCOPES_FIELD_NAME, "")
        more_scopes = added_scopes(slug, signed_scopes, request.user.pk) if signed_scopes else ()
        additional = {
            "ui_locales": _ui_locales(party),
            **party.provider.authorization_params,
            **self.get_extra_params(request),
        }
        url, asked = party.begin_login(
            _redirect_uri(request, party.provider), additional, more_scopes
        )
        pending = sessions.PendingLogin(
            provider=slug,
            request=asked,
            next_url=_next_url(request),
            created_at=timezone.now().timestamp(),
            linker=str(request.user.pk or "") if by_post else "",
        )
        sessions.remember(request.session, pending)
        return HttpResponseRedirect(url)


@method_decorator([*_public, csrf_exempt], name="dispatch")  # `state` guards it (RFC 6749 §10.12)
class CallbackView(RefusingView, OIDCAuthenticationCallbackView):  # type: ignore[misc]
    """Where the OP sends the browser back to: by GET, or by POST with form_post."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._finish(request, slug, "query")

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        return self._finish(request, slug, "form_post")

    def _finish(self, request: HttpRequest, slug: str, response_mode: str) -> HttpResponse:
        provider = conf.provider(slug)
        received = _take_parameters(request)
        if _lost_its_cookie(request, provider, response_mode, received):
            return _landing(request, received)
        pending = sessions.take(request, _state(request, received))
        self.next_url = pending.next_url
        redirect_uri = _redirect_uri(request, provider)
        user = authenticate(
            request,
            oidc=CallbackResponse(slug, redirect_uri, response_mode, received.parameters, pending),
        )
        if not isinstance(getattr(user, "oidc_sign_in", None), SignIn):
            raise ConfigurationError("configuration.backend", "no OIDCBackend answered first")
        _sign_in(request, user)
        return HttpResponseRedirect(
            _safe_url(request, pending.next_url) or resolve_url(settings.LOGIN_REDIRECT_URL)
        )


@method_decorator([*_public, csrf_protect], name="dispatch")
class LogoutView(RefusingView, OIDCLogoutView):  # type: ignore[misc]
    """Sign out of this site, by POST."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        auth_logout(request)
        next_url = _next_url(request)
        if next_url:
            return HttpResponseRedirect(next_url)
        if settings.LOGOUT_REDIRECT_URL:
            return HttpResponseRedirect(resolve_url(settings.LOGOUT_REDIRECT_URL))
        context = {"login_url": reverse("oidc_rp:login_chooser")}
        return render(request, "oidc_rp/logged_out.html", context)


def _forget_failure(error: OIDCError) -> None:
    """Empty what the calls that failed still hold, so that no report of the error shows it."""
    link: BaseException | None = error
    while link is not None:
        clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    error.__cause__ = error.__context__ = None  # an error of requests holds the whole request


# The callback's steps


@dataclass(frozen=True, slots=True)
class Received:
    """The parameters of an authentication response. Its repr shows nothing."""

    parameters: dict[str, list[str]] = field(repr=False)


def _take_parameters(request: HttpRequest) -> Received:
    """Return the response's parameters and leave none in the request: a debug page, an error
    report or a receiver further on finds no code there."""
    received = Received({name: [*map(str, items)] for name, items in _parameters(request).lists()})
    _forget_parameters(request)
    return received


def _lost_its_cookie(
    request: HttpRequest,
    provider: conf.Provider,
    response_mode: str,
    received: Received,
) -> bool:
    """Whether SameSite kept our cookie from a request that another site caused.

    Strict keeps it from all of them, Lax (and the browser's default) from a form_post.
    """
    if settings.SESSION_COOKIE_NAME in request.COOKIES or LANDED in received.parameters:
        return False
    samesite = str(settings.SESSION_COOKIE_SAMESITE or "").lower()
    if response_mode == "form_post":
        return provider.response_mode == "form_post" and samesite != "none"
    return samesite == "strict" and "state" in received.parameters


def _landing(request: HttpRequest, received: Received) -> HttpResponse:
    """A page of ours that sends the same response again, now from our own site, so that the
    cookie comes along. What binds the response to this browser is checked then, as always."""
    fields = [(name, item) for name, items in received.parameters.items() for item in items]
    context = {
        "action": request.path,
        "method": request.method.lower() if request.method else "get",
        "fields": [*fields, (LANDED, "1")],
    }
    response = render(request, "oidc_rp/landing.html", context)
    response["Referrer-Policy"] = "no-referrer"
    return response


def _state(request: HttpRequest, received: Received) -> str:
    states = received.parameters.get("state", [])
    if len(states) > 1:
        raise InvalidResponse("response.repeated", "state comes more than once")
    if not states or not states[0]:
        raise InvalidResponse("state.missing", "a response without state")
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        raise InvalidResponse("state.no_cookie", "no session cookie came with the response")
    return states[0]


def _sign_in(request: HttpRequest, user: Any) -> None:
    """Start a session under a new key; nothing of another visitor's stays in it (M39)."""
    signed_in: SignIn = user.oidc_sign_in
    before = sessions.grant_of(request.session)
    grant = grants.keep(signed_in.login, signed_in.account.identity)
    sessions.clear_for(request, user, keep_anonymous=conf.keep_anonymous_session())
    auth_login(request, user)
    sessions.store_login(request.session, signed_in.login, grant.pk if grant else "")
    if before:
        heir = signed_in.login.tokens.refresh_token
        closing.end_session_grant(before, grants.SUPERSEDED, heir=heir)
    told = {"request": request, "user": user, "identity": signed_in.account.identity}
    if signed_in.account.linked:
        signals.send_after_commit(signals.identity_linked, Identity, **told)
    signals.send_after_commit(signals.signed_in, Identity, **told)


# What several views need


def _redirect_uri(request: HttpRequest, provider: conf.Provider) -> str:
    """The one as registered, or this site's own as Django builds it from allowed hosts (M50)."""
    if provider.redirect_uris:
        return provider.redirect_uris[0]
    return request.build_absolute_uri(reverse("oidc_rp:callback", args=[provider.slug]))


def _ui_locales(party: RelyingParty) -> str | None:
    """The page's language, as an OP that speaks it spells it (Core §3.1.2.1, BCP 47 §2.1.1)."""
    language = (get_language() or "").lower()
    spoken = party.metadata().ui_locales_supported
    return next((locale for locale in spoken if locale.lower() == language), None)


def _next_url(request: HttpRequest) -> str:
    """Where the visitor wants to go, if that is a place on this site; else nothing."""
    return _safe_url(request, _parameters(request).get(REDIRECT_FIELD_NAME, ""))


def _parameters(request: HttpRequest) -> QueryDict:
    """The form of a POST, else the query; whatever cannot be read is refused, and gone."""
    try:
        return request.POST if request.method == "POST" else request.GET
    except (SuspiciousOperation, BadRequest, MultiPartParserError, UnreadablePostError) as error:
        _forget_parameters(request)
        raise InvalidResponse("response.unreadable", "no readable parameters") from error


def _forget_parameters(request: HttpRequest) -> None:
    request.META["QUERY_STRING"] = ""
    for name in ("RAW_URI", "REQUEST_URI", "UNENCODED_URL"):  # as gunicorn, uWSGI and others say it
        request.META.pop(name, None)
    request.GET = QueryDict()
    request.POST = QueryDict()
    request._body = b""


def _safe_url(request: HttpRequest, url: str) -> str:
    """The URL if it stays on this host (M12), else nothing. Asked when stored and when used."""
    if not url.isprintable() or "\\" in url or url.startswith("//"):
        return ""
    if len(iri_to_uri(url)) > MAX_NEXT_LENGTH:
        return ""
    hosts, https = {request.get_host()}, request.is_secure()
    safe = url_has_allowed_host_and_scheme(url, allowed_hosts=hosts, require_https=https)
    return url if safe else ""
