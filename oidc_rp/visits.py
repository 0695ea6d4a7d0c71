"""What several views need: parameters of a request, where to go next, how a login starts."""

from collections.abc import Mapping
from traceback import clear_frames
from typing import Any

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.db import connections, transaction
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
from django.utils.encoding import iri_to_uri
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import get_language
from django.views.decorators.cache import never_cache
from django.views.decorators.clickjacking import xframe_options_deny
from django.views.generic import View

from . import conf, session_index, sessions
from .errors import InvalidResponse, OIDCError
from .protocol.authentication import ANYHOW, StepUp
from .refusals import refuse
from .relying_party import RelyingParty

MAX_NEXT_LENGTH = 1024
CLOCKS_AGREE = 0.01
"""Seconds by which the database's clock may differ, and one moment do for both of them."""

LANDED = "oidc_rp_landed"
"""A parameter of our own: a response, or a request of another site, that our landing page sent."""


def non_atomic(view: Any) -> Any:
    """Keep a view out of ATOMIC_REQUESTS, on every database."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


public: list[Any] = [never_cache, login_not_required, non_atomic, xframe_options_deny]
"""Decorators of every view: nobody need be signed in, nothing is rolled back with the view, and no
other page may frame it."""


class RefusingView(View):
    """Turns every OIDCError into the refusal page; nothing else is caught."""

    next_url = ""  # of the pending login, once it is taken

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return super().dispatch(request, *args, **kwargs)
        except OIDCError as error:
            forget_failure(error)
            next_url = self.next_url or next_url_of(request)
            return refuse(request, error, kwargs.get("slug"), next_url)


def forget_failure(error: OIDCError) -> None:
    """Empty what the calls that failed still hold, so that no report of the error shows it."""
    link: BaseException | None = error
    while link is not None:
        clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    error.__cause__ = error.__context__ = None  # an error of requests holds the whole request


def start_login(
    request: HttpRequest,
    party: RelyingParty,
    next_url: str,
    *,
    linker: str = "",
    purpose: str = sessions.SIGN_IN,
    additional: Mapping[str, Any] | None = None,
    more_scopes: tuple[str, ...] = (),
    step_up: StepUp = ANYHOW,
) -> HttpResponse:
    """Send the browser to the OP, and remember in its session what for.

    next_url: checked already. linker, purpose: as in PendingLogin.
    """
    told = {
        "ui_locales": ui_locales(party),
        **party.provider.authorization_params,
        **(additional or {}),
    }
    url, asked = party.begin_login(
        redirect_uri(request, party.provider), told, more_scopes, step_up
    )
    since, now = session_index.database_now(), timezone.now().timestamp()
    pending = sessions.PendingLogin(
        provider=party.provider.slug,
        request=asked,
        next_url=next_url,
        created_at=now,
        since=since if abs(since - now) > CLOCKS_AGREE else 0.0,
        linker=linker,
        purpose=purpose,
    )
    sessions.remember(request.session, pending)
    return HttpResponseRedirect(url)


def redirect_uri(request: HttpRequest, provider: conf.Provider) -> str:
    """The one as registered, or this site's own as Django builds it from allowed hosts (M50)."""
    if provider.redirect_uris:
        return provider.redirect_uris[0]
    return request.build_absolute_uri(reverse("oidc_rp:callback", args=[provider.slug]))


def ui_locales(party: RelyingParty) -> str | None:
    """The page's language, as an OP that speaks it spells it (Core §3.1.2.1, BCP 47 §2.1.1)."""
    language = (get_language() or "").lower()
    spoken = party.metadata().ui_locales_supported
    return next((locale for locale in spoken if locale.lower() == language), None)


def landing(
    request: HttpRequest, fields: list[tuple[str, str]], *, signed_out: bool = False
) -> HttpResponse:
    """A page of ours that sends the same parameters again, now from our own site, so that the
    cookie comes along. What binds them to this browser is checked then, as always.

    signed_out: for somebody on the way back from a logout.
    """
    context = {
        "action": request.path,
        "method": request.method.lower() if request.method else "get",
        "fields": [*fields, (LANDED, "1")],
        "signed_out": signed_out,
    }
    response = render(request, "oidc_rp/landing.html", context)
    response["Referrer-Policy"] = "no-referrer"
    return response


# Where to go next


def next_url_of(request: HttpRequest) -> str:
    """Where the visitor wants to go, if that is a place on this site; else nothing."""
    return safe_url(request, parameters_of(request).get(REDIRECT_FIELD_NAME, ""))


def safe_url(request: HttpRequest, url: str) -> str:
    """The URL if it stays on this host (M12), else nothing. Asked when stored and when used."""
    if not url.isprintable() or "\\" in url or url.startswith("//"):
        return ""
    if len(iri_to_uri(url)) > MAX_NEXT_LENGTH:
        return ""
    hosts, https = {request.get_host()}, request.is_secure()
    safe = url_has_allowed_host_and_scheme(url, allowed_hosts=hosts, require_https=https)
    return url if safe else ""


def after_login(request: HttpRequest, next_url: str) -> HttpResponse:
    """Go on to where the visitor wanted to, or else where the site sends people."""
    url = safe_url(request, next_url) or resolve_url(settings.LOGIN_REDIRECT_URL)
    return HttpResponseRedirect(url)


# Parameters


def parameters_of(request: HttpRequest) -> QueryDict:
    """The form of a POST, else the query; whatever cannot be read is refused, and gone."""
    try:
        return request.POST if request.method == "POST" else request.GET
    except (SuspiciousOperation, BadRequest, MultiPartParserError, UnreadablePostError) as error:
        forget_parameters(request)
        raise InvalidResponse("response.unreadable", "no readable parameters") from error


def forget_parameters(request: HttpRequest) -> None:
    """Leave no parameter in the request: no debug page, error report or receiver finds one."""
    request.META["QUERY_STRING"] = ""
    for name in ("RAW_URI", "REQUEST_URI", "UNENCODED_URL"):  # as gunicorn, uWSGI and others say it
        request.META.pop(name, None)
    request.GET = QueryDict()
    request.POST = QueryDict()
    request._body = b""
