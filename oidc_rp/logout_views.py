"""Log out: here and then at the OP (RP-Initiated Logout), or here because the OP says so
(Back-Channel and Front-Channel Logout)."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings
from django.contrib.auth import logout as auth_logout
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.db import DatabaseError, InterfaceError, transaction
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    QueryDict,
    UnreadablePostError,
)
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.generic import View
from mozilla_django_oidc.views import OIDCLogoutView

from . import closing, conf, grants, session_index, sessions
from .errors import InvalidResponse, OIDCError
from .models import Identity, digest
from .protocol.bearer import origin_of
from .protocol.id_token import MAX_SUB_LENGTH
from .protocol.logout import LogoutRequest, LogoutTokenClaims
from .protocol.tokens import IdToken
from .refusals import log_refusal
from .relying_party import RelyingParty, relying_party
from .visits import RefusingView, forget_failure, next_url_of, public, safe_url, ui_locales

logger = logging.getLogger("oidc_rp")

MAX_BODY = 64 * 1024
"""Octets of a back-channel logout request (M57)."""


@method_decorator([*public, csrf_protect], name="dispatch")
class LogoutView(RefusingView, OIDCLogoutView):  # type: ignore[misc]
    """Sign out of this site, by POST, and then at the OP. That one is asked when all is over here,
    so that it keeps nobody signed in (M56)."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        next_url = next_url_of(request)
        left = _take_leave(request)
        auth_logout(request)
        url = _at_the_op(request, left, next_url) if left else None
        return HttpResponseRedirect(url) if url else _logged_out(request, next_url)


@method_decorator(public, name="dispatch")
class LoggedOutView(RefusingView):
    """Where the OP sends the browser back to after a logout. It ends nothing, whatever comes."""

    http_method_names = ["get", "head"]

    def get(self, request: HttpRequest) -> HttpResponse:
        state = request.GET.get("state", "")
        next_url = sessions.take_return(request.session, state) if state else None
        if state and next_url is None:
            logger.warning(
                "no logout of this browser has this state", extra={"code": "logout.state"}
            )
        returned = next_url is not None
        return _logged_out(request, safe_url(request, next_url or ""), at_the_op=returned)


_from_the_op: list[Any] = [login_not_required, transaction.non_atomic_requests]
"""Decorators of what an OP asks for without a browser's session, and nobody may keep."""


@method_decorator([*_from_the_op, csrf_exempt], name="dispatch")  # the OP's signature guards it
class BackchannelLogoutView(View):
    """The OP says whom to sign out, by a signed token (Back-Channel Logout §2.5 to §2.8).

    200 when nobody who it speaks of is signed in any more; 400 with an error for anything else.
    """

    http_method_names = ["post"]

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        try:
            logout_token, party = _logout_token(request), relying_party(slug)
            _end_all(party.received_logout(logout_token))
        except OIDCError as error:
            forget_failure(error)
            return _refused(slug, error)
        except (DatabaseError, InterfaceError):
            logger.exception("back-channel logout: the database fails")
            return _not_stored(JsonResponse({"error": "temporarily_unavailable"}, status=400))
        return _not_stored(HttpResponse())


@method_decorator([*_from_the_op, xframe_options_exempt], name="dispatch")
class FrontchannelLogoutView(View):
    """The OP shows this page in a frame while it signs somebody out (Front-Channel Logout §2).

    Anybody could: so it ends no more than the one session that `iss` and `sid` name, and revokes
    nothing. A frame of another site gets no cookie of ours, and none is needed.
    """

    http_method_names = ["get"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        try:
            provider = conf.provider(slug)
            iss, sid = _named(request, provider)
        except OIDCError as error:
            return _refused(slug, error)
        named = session_index.rows().filter(sid_digest=digest(iss, sid))
        closing.end_sessions(named, grants.FRONTCHANNEL_LOGOUT, revoke=False, actor=f"OP {slug}")
        response = HttpResponse("<!doctype html><title>Signed out</title>")
        ancestors = " ".join(sorted(_origins(relying_party(slug))))
        response["Content-Security-Policy"] = f"default-src 'none'; frame-ancestors {ancestors}"
        return _not_stored(response)


# Log out here, then there


@dataclass(frozen=True, slots=True)
class Leave:
    """What a session leaves behind for its logout at the OP."""

    slug: str
    id_token: IdToken | None = field(repr=False)


def _take_leave(request: HttpRequest) -> Leave | None:
    """What the OP has to be told, read before it is gone; end what is not the session's own."""
    login = sessions.current_login(request)
    if login is None:
        return None
    try:
        row = session_index.read(login.session) if login.session else None
        provider = conf.providers().get(login.provider)
        if provider is not None and provider.logout_ends_offline_access and login.grant:
            closing.end(login.grant, grants.LOGOUT, actor=f"user {request.user.pk}")
        return Leave(login.provider, session_index.id_token_of(row) if row else None)
    except (DatabaseError, InterfaceError):
        logger.exception("logout: the database fails")
        return Leave(login.provider, None)


def _at_the_op(request: HttpRequest, left: Leave, next_url: str) -> str | None:
    """Where the OP's session is ended; None where it has no such place or cannot be asked."""
    try:
        party = relying_party(left.slug)
        asked = LogoutRequest(
            client_id=party.provider.client_id,
            post_logout_redirect_uri=_return_uri(request, party.provider),
            state="",
            id_token_hint=left.id_token,
            ui_locales=ui_locales(party),
        )
        if party.logout_url(asked) is None:
            return None
        state = sessions.expect_return(request.session, next_url)
        return party.logout_url(replace(asked, state=state))
    except OIDCError as error:
        forget_failure(error)
        logger.warning("not logged out at the OP: %s", error.code, extra={"code": error.code})
        return None


def _return_uri(request: HttpRequest, provider: conf.Provider) -> str:
    if provider.post_logout_redirect_uris:
        return provider.post_logout_redirect_uris[0]
    return request.build_absolute_uri(reverse("oidc_rp:logged_out"))


def _logged_out(request: HttpRequest, next_url: str, *, at_the_op: bool = False) -> HttpResponse:
    if next_url:
        return HttpResponseRedirect(next_url)
    if settings.LOGOUT_REDIRECT_URL:
        return HttpResponseRedirect(resolve_url(settings.LOGOUT_REDIRECT_URL))
    context = {"login_url": reverse("oidc_rp:login_chooser"), "at_the_op": at_the_op}
    return render(request, "oidc_rp/logged_out.html", context)


# Logged out by the OP


def _logout_token(request: HttpRequest) -> str:
    """The one parameter of the request (§2.5); others may come, and are not looked at."""
    if request.content_type != "application/x-www-form-urlencoded":
        raise InvalidResponse("logout_token.content_type", received=request.content_type)
    try:
        body = request.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            raise InvalidResponse("logout_token.too_large", expected=f"{MAX_BODY} octets at most")
        found = QueryDict(body).getlist("logout_token")
    except (UnreadablePostError, SuspiciousOperation, UnicodeError, ValueError) as error:
        raise InvalidResponse("logout_token.unreadable", "no readable form") from error
    if len(found) != 1:
        raise InvalidResponse("logout_token.repeated" if found else "logout_token.missing")
    return str(found[0])


def _end_all(claims: LogoutTokenClaims) -> None:
    """End every session of the subject, or the one that `sid` names (M58).

    The mark comes first: a login that is under way finds it, whenever that one is stored.
    """
    iss, sub, sid = claims.iss, claims.sub, claims.sid
    subject = session_index.of_sid(iss, sid) if sid else session_index.of_sub(iss, sub or "")
    mark = session_index.mark(subject, iss, claims.jti)
    if mark.done_at is not None:
        raise InvalidResponse("logout_token.jti", "this token was taken before")
    closing.end_beside(_meant(iss, sub, sid), grants.BACKCHANNEL_LOGOUT)
    session_index.done(mark)


def _meant(iss: str, sub: str | None, sid: str | None) -> Any:
    rows = session_index.rows()
    if sid is not None:
        named = rows.filter(sid_digest=digest(iss, sid))
        return named if sub is None else named.filter(identity__digest=digest(iss, sub))
    identity = Identity.objects.find(iss, sub or "")
    return rows.filter(identity=identity) if identity else rows.none()


def _named(request: HttpRequest, provider: conf.Provider) -> tuple[str, str]:
    """The two parameters of Front-Channel Logout §2, both of them required here."""
    for name in ("iss", "sid"):
        if len(request.GET.getlist(name)) != 1:
            raise InvalidResponse(f"logout.{name}", "missing, or there more than once")
    iss, sid = request.GET["iss"], request.GET["sid"]
    if iss not in provider.issuers():
        raise InvalidResponse("logout.iss", expected=list(provider.issuers()), received=iss)
    if not 0 < len(sid) <= MAX_SUB_LENGTH:
        raise InvalidResponse("logout.sid", "not 1 to 255 characters")
    return iss, sid


def _origins(party: RelyingParty) -> set[str]:
    """Who may show our page in a frame: the OP, wherever it has its pages."""
    urls = [*party.provider.issuers()]
    with suppress(OIDCError):
        metadata = party.metadata()
        urls += [metadata.authorization_endpoint, metadata.end_session_endpoint or ""]
    return {origin for url in urls if (origin := origin_of(url)) is not None}


def _refused(slug: str, error: OIDCError) -> HttpResponse:
    """400, whatever it was (Back-Channel Logout §2.8); the log knows more."""
    reference = log_refusal(error, slug, "logout")
    told = {"error": "invalid_request", "error_description": f"{error.code} ({reference})"}
    return _not_stored(JsonResponse(told, status=400))


def _not_stored(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "no-store"
    return response
