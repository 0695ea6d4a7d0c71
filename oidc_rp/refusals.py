"""Errors -> pages: what a user reads, what a log says, and the reference that joins the two."""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from . import conf, events
from .errors import (
    ConfigurationError,
    LoginRefused,
    OIDCError,
    OPError,
    TemporarilyUnavailable,
    TransportError,
)
from .events import Whose
from .models import Identity
from .signals import login_failed

logger = logging.getLogger("oidc_rp")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened, in one plain sentence, and what to do next."""

    sentence: str | Promise
    advice: str | Promise


_AGAIN = _("Please start again.")
_SITE = _("Please tell the operators of this site, with the reference below.")
_FORGED = Explanation(
    _("The sign-in service's answer could not be trusted, so nobody was signed in."),
    _("Please start again. If it happens twice, tell the operators of this site."),
)
_SETUP = Explanation(_("This site's own sign-in is not set up right."), _SITE)
_STATE = Explanation(
    _("This sign-in does not belong to this browser, or it was already used."), _AGAIN
)
_MATCH = Explanation(
    _("There is already an account with your details, and it is not linked to this sign-in."),
    _("Sign in the way you did before, or ask the operators of this site."),
)
_BUSY = Explanation(
    _("The sign-in service cannot be reached at the moment."), _("Please try again in a minute.")
)

EXPLANATIONS: dict[str, Explanation] = {
    "state": _STATE,
    "state.expired": Explanation(_("This sign-in took longer than ten minutes."), _AGAIN),
    "state.no_cookie": Explanation(
        _("Your browser did not bring back the cookie of this sign-in."),
        _("Allow cookies for this site, then start again in the same browser."),
    ),
    "response": _FORGED,
    "id_token": _FORGED,
    "id_token.acr": Explanation(
        _("The sign-in was not as strong as this site asks for."),
        _("Start again and use the stronger way to sign in, such as a second factor."),
    ),
    "id_token.auth_time": Explanation(
        _("This site asks for a fresh sign-in."), _("Start again and enter your password.")
    ),
    "id_token.amr": Explanation(
        _("The sign-in was not as strong as this site asks for."),
        _("Start again and use the stronger way to sign in, such as a second factor."),
    ),
    "id_token.tid": Explanation(
        _("Your organisation may not sign in here."), _("Use an account of another organisation.")
    ),
    "userinfo": _FORGED,
    "logout_token": _FORGED,
    "logout": _FORGED,
    "initiate": _FORGED,
    "identities": _FORGED,
    "session": Explanation(_("You were signed out while this sign-in was under way."), _AGAIN),
    "session.other_person": Explanation(
        _("Somebody else is signed in at the sign-in service now."),
        _("Sign out there, then start again."),
    ),
    "step_up": Explanation(
        _("This page asks for a stronger or a more recent sign-in than there is."),
        _("Sign out, then sign in again the stronger way."),
    ),
    "token": _FORGED,
    "par": _FORGED,
    "discovery": _BUSY,
    "jwks": _BUSY,
    "transport": _BUSY,
    "revocation": _BUSY,
    "authorization": Explanation(
        _("The sign-in service did not let the sign-in go ahead."), _AGAIN
    ),
    "authorization.access_denied": Explanation(
        _("The sign-in was cancelled."), _("Start again if you did not mean to cancel it.")
    ),
    "token.invalid_client": _SETUP,
    "par.endpoint": _SETUP,
    "discovery.issuer": _SETUP,
    "client": _SETUP,
    "configuration": _SETUP,
    "scopes": Explanation(_("This sign-in link is not one that this site made."), _AGAIN),
    "provider.unknown": Explanation(
        _("There is no sign-in service of this name here."), _("Choose one from the list.")
    ),
    "account": Explanation(
        _("You are known to the sign-in service, but not allowed in here."),
        _("Ask the operators of this site for access."),
    ),
    "account.inactive": Explanation(
        _("Your account on this site is not active."), _("Ask the operators of this site.")
    ),
    "account.collision": _MATCH,
    "account.match": _MATCH,
    "account.confirm": Explanation(
        _("There is already an account with your e-mail address."),
        _("Sign in to it the way you did before, then come back here to link the two."),
    ),
    "account.linked_elsewhere": Explanation(
        _("That sign-in belongs to another account of this site, and stays there."),
        _("Sign in with it to use that account, or choose another one to link."),
    ),
    "account.link": Explanation(
        _("Whoever asked to link this sign-in is not signed in here any more."),
        _("Sign in, then link it once more."),
    ),
    "account.email_missing": Explanation(
        _("The sign-in service did not tell us your e-mail address."),
        _("Allow it to share your e-mail address, then start again."),
    ),
}


def explanation(code: str) -> Explanation:
    """The explanation of a code, or of what stands before its dot; every code has one of these."""
    return EXPLANATIONS.get(code) or EXPLANATIONS.get(code.partition(".")[0], _FORGED)


def status_of(error: OIDCError) -> int:
    """The HTTP status of a refusal: never a 500, whatever came."""
    if isinstance(error, LoginRefused):
        return 403
    if isinstance(error, TransportError):
        return 424  # Failed Dependency: we are well, the OP is not
    return 404 if error.code == "provider.unknown" else 400


def refuse(
    request: HttpRequest, error: OIDCError, slug: str | None, next_url: str = ""
) -> HttpResponse:
    """Return the page that says no; log why, note it, and tell login_failed."""
    reference = log_refusal(error, slug, "login", lambda: _refused_person(request, error))
    login_failed.send_robust(
        Identity, request=request, provider=slug, error=error, reference=reference
    )
    told = explanation(error.code)
    context = {
        "code": error.code,
        "sentence": told.sentence,
        "advice": told.advice,
        "reference": reference,
        "error_description": error.error_description if isinstance(error, OPError) else "",
        "retry_url": _retry_url(next_url),
        "provider": slug and conf.providers()[slug].label if slug in conf.providers() else None,
    }
    response = render(request, "oidc_rp/refusal.html", context, status=status_of(error))
    response["Referrer-Policy"] = "no-referrer"  # this page's URL may hold a code
    return response


def _retry_url(next_url: str) -> str:
    """The chooser and not the OP: going straight back could go round in circles.

    Whoever was linking goes back there: a sign-in instead would make another account.
    """
    if next_url == reverse("oidc_rp:identities"):
        return next_url
    url = reverse("oidc_rp:login_chooser")
    return f"{url}?{urlencode({REDIRECT_FIELD_NAME: next_url})}" if next_url else url


def log_refusal(
    error: OIDCError, slug: str | None, what: str, whose: Callable[[], Whose] = Whose
) -> str:
    """Say in one line what was refused, and return the reference that is also told outside.

    What was expected and received is there as far as errors carry it: no secrets. It is noted in
    the timeline as well, unless it is only put off. whose: asked if there is room for it there.
    """
    reference, name = secrets.token_hex(5), f"{what}_refused"
    ours = isinstance(error, ConfigurationError) and error.code != "provider.unknown"
    logger.log(
        logging.ERROR if ours or isinstance(error, TransportError) else logging.WARNING,
        "%s refused code=%s provider=%s reference=%s expected=%s received=%s message=%s",
        what,
        error.code,
        slug,
        reference,
        _short(error.expected),
        _short(error.received),
        _short(error.message),
        extra={
            "event": name,
            "code": error.code,
            "provider": slug,
            "reference": reference,
            "expected": _short(error.expected),
            "received": _short(error.received),
        },
    )
    if not isinstance(error, TemporarilyUnavailable):
        known = slug if slug is not None and slug in conf.providers() else ""
        events.refused(name, error.code, known, reference, whose)
    return reference


def _refused_person(request: HttpRequest, error: OIDCError) -> Whose:
    """Who was refused: the person of the identity, or else whoever is signed in here."""
    if isinstance(error, LoginRefused) and error.identity is not None:
        return Whose(error.identity, error.user)
    if settings.SESSION_COOKIE_NAME not in request.COOKIES:
        return Whose()
    try:
        return Whose(user=request.user.pk)
    except Exception:  # noqa: BLE001 - a session engine has its own kinds
        return Whose()


def _short(value: object) -> str:
    """As Python writes it, so that no line break or control character of a stranger gets by."""
    text = ascii(value)
    return text if len(text) <= 200 else text[:200] + "..."
