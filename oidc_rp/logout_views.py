"""Log out because the OP says so (Back-Channel and Front-Channel Logout)."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import SuspiciousOperation
from django.db import DatabaseError, InterfaceError
from django.db.models import Q
from django.http import (
    HttpRequest,
    HttpResponse,
    JsonResponse,
    QueryDict,
    UnreadablePostError,
)
from django.http.multipartparser import MultiPartParserError
from django.utils.decorators import method_decorator
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from . import closing, conf, grants, session_index, sessions
from .errors import InvalidResponse, OIDCError, TemporarilyUnavailable
from .models import Identity, digest
from .protocol.bearer import origin_of
from .protocol.id_token import MAX_SUB_LENGTH
from .protocol.logout import LogoutTokenClaims
from .refusals import log_refusal
from .relying_party import RelyingParty, relying_party
from .visits import (
    forget_failure,
    non_atomic,
)

logger = logging.getLogger("oidc_rp")

MAX_BODY = 64 * 1024
"""Octets of a back-channel logout request (M57)."""


_from_the_op: list[Any] = [login_not_required, non_atomic]
"""Decorators of what an OP asks for without a browser's session, and nobody may keep."""


@method_decorator([*_from_the_op, csrf_exempt], name="dispatch")  # the OP's signature guards it
class BackchannelLogoutView(View):
    """The OP says whom to sign out, by a signed token (Back-Channel Logout §2.5 to §2.8).

    200 when nobody who it speaks of is signed in any more; 400 with an error for anything else.
    """

    http_method_names = ["post"]

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        try:
            party = relying_party(slug)
            claims = party.received_logout(_logout_token(request))
            with _database_may_fail():
                _end_all(claims, party.provider)
        except OIDCError as error:
            forget_failure(error)
            return _refused(slug, error)
        return _not_stored(HttpResponse())


@method_decorator([*_from_the_op, csrf_exempt, xframe_options_exempt], name="dispatch")
class FrontchannelLogoutView(View):
    """The OP shows this page in a frame while it signs somebody out (Front-Channel Logout §2).

    Anybody could: so it ends no more than the one session that `iss` and `sid` name, and revokes
    nothing. A frame of another site gets no cookie of ours, and none is needed.
    """

    http_method_names = ["get"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        try:
            party = relying_party(slug)
            iss, sid = _named(request, party.provider)
            with _database_may_fail():
                _end_the_one(request, iss, sid, slug)
            ancestors = " ".join(sorted(_origins(party)))
        except OIDCError as error:
            forget_failure(error)
            return _refused(slug, error)
        response = HttpResponse("<!doctype html><title>Signed out</title>")
        response["Content-Security-Policy"] = f"default-src 'none'; frame-ancestors {ancestors}"
        return _not_stored(response)


# Logged out by the OP


_MULTIPART = "multipart/form-data"
_FORMS = ("application/x-www-form-urlencoded", _MULTIPART)
_UNREADABLE = (
    UnreadablePostError,
    SuspiciousOperation,
    MultiPartParserError,
    LookupError,  # a character set that is none
    ValueError,
)


def _logout_token(request: HttpRequest) -> str:
    """The one parameter of the request (§2.5); others may come, and are not looked at.

    Any form will do: the token is what counts, and not how it is wrapped.
    """
    if request.content_type not in _FORMS:  # Django has it in lower case
        raise InvalidResponse("logout_token.content_type", received=request.content_type)
    try:
        body = request.read(MAX_BODY + 1)
        if len(body) > MAX_BODY:
            raise InvalidResponse("logout_token.too_large", expected=f"{MAX_BODY} octets at most")
        if request.content_type == _MULTIPART:
            request._body = body
            found = request.POST.getlist("logout_token")
        else:
            found = QueryDict(body).getlist("logout_token")
    except _UNREADABLE as error:
        raise InvalidResponse("logout_token.unreadable", "no readable form") from error
    if len(found) != 1:
        raise InvalidResponse("logout_token.repeated" if found else "logout_token.missing")
    return str(found[0])


@contextmanager
def _database_may_fail() -> Iterator[None]:
    """The OP is told that it may try again."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:
        logger.exception("logout by the OP: the database fails")
        raise TemporarilyUnavailable("logout.database", retry_after=5.0) from error


def _end_all(claims: LogoutTokenClaims, provider: conf.Provider) -> None:
    """End every session of the subject, or the one that `sid` names (M58).

    The mark comes first: a login that is under way finds it, whenever that one is stored.
    """
    iss, sub, sid = claims.iss, claims.sub, claims.sid
    subject = session_index.of_sid(iss, sid) if sid else session_index.of_sub(iss, sub or "")
    mark = session_index.mark(subject, f"{iss} {provider.client_id}", claims.jti)
    if mark.done_at is not None:
        raise InvalidResponse("logout_token.jti", "this token was taken before")
    if sid and sub:
        session_index.mark(session_index.of_nameless(iss, sub))
    actor = f"OP {provider.slug}"
    closing.end_beside(_meant(iss, sub, sid), grants.BACKCHANNEL_LOGOUT, actor=actor)
    session_index.done(mark)


def _end_the_one(request: HttpRequest, iss: str, sid: str, slug: str) -> None:
    """End the session that `sid` names, if there is one, and revoke nothing at the OP (M59)."""
    named = session_index.rows().filter(sid_digest=digest(iss, sid))
    ids = set(named.values_list("pk", flat=True))
    if not ids:
        return
    reason, actor = grants.FRONTCHANNEL_LOGOUT, f"OP {slug}"
    closing.end_beside(named.filter(pk__in=ids), reason, revoke=False, actor=actor)
    # Where the frame got its cookie all the same: the middleware must not store it again.
    came_along = settings.SESSION_COOKIE_NAME in request.COOKIES
    if came_along and sessions.row_of(request.session) in ids:
        request.session.flush()


def _meant(iss: str, sub: str | None, sid: str | None) -> Any:
    rows = session_index.rows()
    if sid is not None:
        named = Q(sid_digest=digest(iss, sid))
        if sub is None:
            return rows.filter(named)
        # A session of this very person that the OP gave no name may be the one it means.
        return rows.filter(named | Q(sid_digest=None), identity__digest=digest(iss, sub))
    identity = Identity.objects.find(iss, sub or "")
    return rows.filter(identity=identity) if identity else rows.none()


def _named(request: HttpRequest, provider: conf.Provider) -> tuple[str, str]:
    """The two parameters of Front-Channel Logout §2, both of them required here."""
    try:
        given = QueryDict(request.META.get("QUERY_STRING", ""), encoding="utf-8")
    except SuspiciousOperation as error:
        raise InvalidResponse("logout.unreadable", "no readable parameters") from error
    for name in ("iss", "sid"):
        if len(given.getlist(name)) != 1:
            raise InvalidResponse(f"logout.{name}", "missing, or there more than once")
    iss, sid = given["iss"], given["sid"]
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
    its_fault = error.code.startswith(("logout_token.", "logout.", "provider.unknown"))
    later = isinstance(error, TemporarilyUnavailable) or not its_fault
    name = "temporarily_unavailable" if later else "invalid_request"
    told = {"error": name, "error_description": f"{error.code} ({reference})"}
    return _not_stored(JsonResponse(told, status=400))


def _not_stored(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "no-store"
    return response
