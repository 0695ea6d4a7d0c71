"""Log in, come back, log out: request in, response out (Core §3.1.2 and §4; RP-Initiated Logout).

The walk of a callback: take the pending login, authenticate, finish what it was for, redirect.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate
from django.contrib.auth import login as auth_login
from django.contrib.auth import logout as auth_logout
from django.db import DatabaseError, IntegrityError, InterfaceError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.http import urlencode
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.generic import View
from mozilla_django_oidc.views import (
    OIDCAuthenticationCallbackView,
    OIDCAuthenticationRequestView,
    OIDCLogoutView,
)

from . import closing, conf, events, grants, renewal, session_index, sessions, signals
from .backends import CallbackResponse, SignIn
from .errors import ConfigurationError, InvalidResponse, LoginRefused, OIDCError
from .login_urls import SCOPES_FIELD_NAME, STEP_UP_FIELD_NAME, added_scopes, asked_step_up
from .models import Identity
from .protocol.authentication import ANYHOW
from .protocol.logout import LogoutRequest
from .protocol.tokens import IdToken
from .relying_party import Login, relying_party
from .sessions import PendingLogin
from .visits import (
    LANDED,
    RefusingView,
    after_login,
    forget_failure,
    forget_parameters,
    landing,
    next_url_of,
    parameters_of,
    public,
    redirect_uri,
    safe_url,
    start_login,
    ui_locales,
)

logger = logging.getLogger("oidc_rp")

MAX_LOGIN_HINT = 255


@method_decorator(public, name="dispatch")
class LoginChooserView(RefusingView):
    """A button for each provider. Works as LOGIN_URL."""

    http_method_names = ["get", "head"]

    def get(self, request: HttpRequest) -> HttpResponse:
        context = {"next": next_url_of(request)}
        return render(request, "oidc_rp/login_chooser.html", context)


@method_decorator([*public, csrf_protect], name="dispatch")
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
        party, signed = relying_party(slug), parameters_of(request)
        wishes = [signed.get(name, "") for name in (SCOPES_FIELD_NAME, STEP_UP_FIELD_NAME)]
        user_pk = request.user.pk if any(wishes) else None
        more_scopes = added_scopes(slug, wishes[0], user_pk)
        step_up = asked_step_up(slug, wishes[1], user_pk)
        of_whom_is_here = step_up != ANYHOW and sessions.current_login(request) is not None
        return start_login(
            request,
            party,
            next_url_of(request),
            linker=str(request.user.pk or "") if by_post else "",
            purpose=sessions.STEP_UP if of_whom_is_here else sessions.SIGN_IN,
            additional=self.get_extra_params(request),
            more_scopes=more_scopes,
            step_up=step_up,
        )


@method_decorator([*public, csrf_exempt], name="dispatch")  # it only starts a login, as a link does
class InitiateView(RefusingView):
    """A login that the OP, or another site, asks for (Core §4). Nothing in it is believed but what
    is checked here, and it can link nobody (M11)."""

    http_method_names = ["get", "post"]

    def get(self, request: HttpRequest, slug: str) -> HttpResponse:
        party, asked = relying_party(slug), _initiation(request, conf.provider(slug))
        strict = str(settings.SESSION_COOKIE_SAMESITE or "").lower() == "strict"
        if strict and not _has_session(request) and not _has_landed(request):
            return landing(request, [*asked.items()])
        hint = {"login_hint": asked["login_hint"]} if "login_hint" in asked else {}
        return start_login(request, party, asked.get("target_link_uri", ""), additional=hint)

    def post(self, request: HttpRequest, slug: str) -> HttpResponse:
        """Come again by GET: SameSite keeps our cookie from a form of another site, and whoever is
        signed in here would lose that session to the new one."""
        asked = _initiation(request, conf.provider(slug))
        response = HttpResponseRedirect(f"{request.path}?{urlencode(asked)}")
        response.status_code = 303
        return response


@method_decorator([*public, csrf_exempt], name="dispatch")  # `state` guards it (RFC 6749 §10.12)
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
            return landing(request, received.fields())
        pending = sessions.take(request, _state(request, received))
        self.next_url = pending.next_url
        came_to = redirect_uri(request, provider)
        response = CallbackResponse(slug, came_to, response_mode, received.parameters, pending)
        try:
            user = authenticate(request, oidc=response)
        except OIDCError as error:
            if pending.purpose != sessions.RENEW:
                raise
            forget_failure(error)
            renewal.not_renewed(request, error, pending)
        else:
            _finishing(pending)(request, user, pending)
        return after_login(request, pending.next_url)


@method_decorator([*public, csrf_protect], name="dispatch")
class LogoutView(RefusingView, OIDCLogoutView):  # type: ignore[misc]
    """Sign out of this site, by POST, and then at the OP. That one is asked when all is over here,
    so that it keeps nobody signed in (M56)."""

    http_method_names = ["post"]

    def post(self, request: HttpRequest) -> HttpResponse:
        next_url = next_url_of(request)
        left = _take_leave(request)
        auth_logout(request)
        if left is None:
            return _logged_out(request, next_url)
        _end_offline_access(left)
        url = _at_the_op(request, left, next_url)
        return HttpResponseRedirect(url) if url else _logged_out(request, next_url)


@method_decorator(public, name="dispatch")
class LoggedOutView(RefusingView):
    """Where the OP sends the browser back to after a logout. It ends nothing, whatever comes."""

    http_method_names = ["get", "head"]

    def get(self, request: HttpRequest) -> HttpResponse:
        states = parameters_of(request).getlist("state")
        state = states[0] if len(states) == 1 else ""
        if state and _returned_without_cookie(request):
            return landing(request, [("state", state)], signed_out=True)
        next_url = sessions.take_return(request.session, state) if state else None
        if states and next_url is None:
            logger.warning(
                "no logout of this browser has this state", extra={"code": "logout.state"}
            )
        returned = next_url is not None
        return _logged_out(request, safe_url(request, next_url or ""), at_the_op=returned)


# The callback's steps


@dataclass(frozen=True, slots=True)
class Received:
    """The parameters of an authentication response. Its repr shows nothing."""

    parameters: dict[str, list[str]] = field(repr=False)

    def fields(self) -> list[tuple[str, str]]:
        return [(name, item) for name, items in self.parameters.items() for item in items]


def _take_parameters(request: HttpRequest) -> Received:
    """Return the response's parameters and leave none in the request: a debug page, an error
    report or a receiver further on finds no code there."""
    received = Received(
        {name: [*map(str, items)] for name, items in parameters_of(request).lists()}
    )
    forget_parameters(request)
    return received


def _has_session(request: HttpRequest) -> bool:
    return settings.SESSION_COOKIE_NAME in request.COOKIES


def _lost_its_cookie(
    request: HttpRequest,
    provider: conf.Provider,
    response_mode: str,
    received: Received,
) -> bool:
    """Whether SameSite kept our cookie from a request that another site caused.

    Strict keeps it from all of them, Lax (and the browser's default) from a form_post.
    """
    if _has_session(request) or LANDED in received.parameters:
        return False
    samesite = str(settings.SESSION_COOKIE_SAMESITE or "").lower()
    if response_mode == "form_post":
        return provider.response_mode == "form_post" and samesite != "none"
    return samesite == "strict" and "state" in received.parameters


def _state(request: HttpRequest, received: Received) -> str:
    states = received.parameters.get("state", [])
    if len(states) > 1:
        raise InvalidResponse("response.repeated", "state comes more than once")
    if not states or not states[0]:
        raise InvalidResponse("state.missing", "a response without state")
    if not _has_session(request):
        raise InvalidResponse("state.no_cookie", "no session cookie came with the response")
    return states[0]


# What a login was for


def _finishing(pending: PendingLogin) -> Any:
    if pending.purpose == sessions.LINK:
        return _link
    return _renew if pending.purpose == sessions.RENEW else _sign_in


def _proven(user: Any) -> SignIn:
    signed_in = getattr(user, "oidc_sign_in", None)
    if not isinstance(signed_in, SignIn):
        raise ConfigurationError("configuration.backend", "no OIDCBackend answered first")
    return signed_in


def _sign_in(request: HttpRequest, user: Any, pending: PendingLogin) -> None:
    """Start a session under a new key; nothing of another visitor's stays in it (M39)."""
    signed_in = _proven(user)
    before = sessions.held_by(request.session)
    grant = grants.keep(signed_in.login, signed_in.account.identity)
    sessions.clear_for(request, user, keep_anonymous=conf.keep_anonymous_session())
    auth_login(request, user)
    _hold(request, signed_in, grant, before, pending)
    told = {"request": request, "user": user, "identity": signed_in.account.identity}
    if signed_in.account.linked:
        _tell_linked(request, signed_in, None)
    _note(signed_in, grant, events.SIGNED_IN)
    signals.send_after_commit(signals.signed_in, Identity, **told)


def _renew(request: HttpRequest, user: Any, pending: PendingLogin) -> None:
    """The OP vouches for the person of this session, which goes on as it is: its key, its row in
    the index, and when it began: a silent answer is no new sign-in (M38).

    Raises LoginRefused "session.ended" if it was logged out while the OP was asked (M60).
    """
    signed_in = _proven(user)
    login, identity = signed_in.login, signed_in.account.identity
    if user.pk != request.user.pk:
        gone = LoginRefused("session.other_person", "the identity is another user's now")
        renewal.not_renewed(request, gone, pending)
        return
    before, at = sessions.held_by(request.session), sessions.began_at(request.session)
    grant = grants.keep(login, identity)
    held = (grant.pk if grant else "", before.row)
    sessions.store_login(request.session, login, *held, pending.request, at)
    row = session_index.renew(before.row, login, identity, grant)
    _end_superseded(before, login)
    if row is None or session_index.was_logged_out(row, identity, pending):
        auth_logout(request)
        raise LoginRefused("session.ended", "logged out while the OP was asked")
    _note(signed_in, grant, events.SESSION_RENEWED)


def _hold(
    request: HttpRequest,
    signed_in: SignIn,
    grant: Any,
    before: sessions.Held,
    pending: PendingLogin,
) -> None:
    """Note in the session, and in the index, how it signed in; what it held before is over.

    Raises LoginRefused "session.ended" if it was logged out while the login was under way (M60).
    """
    login, identity = signed_in.login, signed_in.account.identity
    try:
        row = session_index.add(request, login, identity, grant)
    except IntegrityError as error:
        auth_logout(request)
        raise LoginRefused("account.unknown", "the identity was unlinked meanwhile") from error
    held = (grant.pk if grant else "", row.pk)
    sessions.store_login(request.session, login, *held, pending.request)
    closing.end_row(before.row, grants.SUPERSEDED, _actor(signed_in))
    _end_superseded(before, login)
    if session_index.was_logged_out(row, identity, pending):
        auth_logout(request)
        raise LoginRefused("session.ended", "logged out while the login was under way")


def _end_superseded(before: sessions.Held, login: Login) -> None:
    """Close the grant that this login's own takes the place of."""
    if before.grant:
        heir = login.tokens.refresh_token
        closing.end_session_grant(before.grant, grants.SUPERSEDED, heir=heir)


def _link(request: HttpRequest, user: Any, pending: PendingLogin) -> None:
    """The identity belongs to who is signed in, and the session stays that of its own login."""
    signed_in = _proven(user)
    login, account, grant = signed_in.login, signed_in.account, None
    if grants.is_offline(login) and login.tokens.refresh_token is not None:
        grant = grants.keep(login, account.identity)  # no session would hold any other
    if account.linked:
        _tell_linked(request, signed_in, grant)
    elif grant is not None:
        _note(signed_in, grant, events.TOKENS_KEPT)
    sessions.leave_notice(request.session, "linked" if account.linked else "linked_before")


def _note(signed_in: SignIn, grant: Any, name: str) -> None:
    """Add to the timeline what a login was, and how its tokens were kept."""
    whose = events.of_identity(signed_in.account.identity, grant)
    events.note(whose, name, grants.how_kept(signed_in.login, grant), _actor(signed_in))


def _actor(signed_in: SignIn) -> str:
    return events.by_user(signed_in.account.user.pk)


def _tell_linked(request: HttpRequest, signed_in: SignIn, grant: Any) -> None:
    account = signed_in.account
    events.note(
        events.of_identity(account.identity, grant), events.IDENTITY_LINKED, "", _actor(signed_in)
    )
    told = {"request": request, "user": account.user, "identity": account.identity}
    signals.send_after_commit(signals.identity_linked, Identity, **told)


# What another site may ask for


def _has_landed(request: HttpRequest) -> bool:
    """Whether our landing page sent this, and no page that says so: the cookie that it lacks would
    be replaced, and whoever is signed in here would lose that session."""
    return LANDED in request.GET and request.headers.get("Sec-Fetch-Site") != "cross-site"


def _initiation(request: HttpRequest, provider: conf.Provider) -> dict[str, str]:
    """The parameters of Core §4 that count, checked; whatever else came is left behind."""
    given = parameters_of(request)
    for name in ("iss", "login_hint", "target_link_uri"):
        if len(given.getlist(name)) > 1:
            raise InvalidResponse("initiate.repeated", f"{name} comes more than once")
    iss = given.get("iss", "")
    if iss not in provider.issuers():
        raise InvalidResponse("initiate.iss", expected=list(provider.issuers()), received=iss)
    asked = {"iss": iss}
    hint = given.get("login_hint", "")
    if hint.isprintable() and 0 < len(hint) <= MAX_LOGIN_HINT:
        asked["login_hint"] = hint
    if target := safe_url(request, given.get("target_link_uri", "")):
        asked["target_link_uri"] = target
    return asked


# Log out here, then there


@dataclass(frozen=True, slots=True)
class Leave:
    """What a session leaves behind for its logout at the OP."""

    slug: str
    iss: str
    sub: str
    user: Any
    id_token: IdToken | None = field(repr=False)


def _take_leave(request: HttpRequest) -> Leave | None:
    """What the OP has to be told, read before it is gone; None for a session of another kind."""
    login = sessions.current_login(request)
    if login is None:
        return None
    id_token = None
    try:
        row = session_index.read(login.session) if login.session else None
        id_token = session_index.id_token_of(row) if row else None
    except (DatabaseError, InterfaceError):
        logger.exception("logout: no ID Token for the OP, the database fails")
    return Leave(login.provider, login.iss, login.sub, request.user.pk, id_token)


def _end_offline_access(left: Leave) -> None:
    """End what is not the session's own, where the site wants that (LOGOUT_ENDS_OFFLINE_ACCESS)."""
    provider, actor = conf.providers().get(left.slug), events.by_user(left.user)
    if provider is None or not provider.logout_ends_offline_access:
        return
    try:
        closing.end_offline_access(left.slug, left.iss, left.sub, grants.LOGOUT, actor=actor)
    except (DatabaseError, InterfaceError):
        logger.exception("logout: the offline access has not ended, the database fails")


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


def _returned_without_cookie(request: HttpRequest) -> bool:
    """Whether SameSite=Strict kept our cookie from the OP's redirect."""
    here = settings.SESSION_COOKIE_NAME in request.COOKIES or LANDED in request.GET
    return not here and str(settings.SESSION_COOKIE_SAMESITE or "").lower() == "strict"
