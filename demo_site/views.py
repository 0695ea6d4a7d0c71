from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone as clock
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from oidc_rp.sessions import current_login

SCOPE_IN_WORDS = {
    "openid": "to sign you in, with an ID Token that proves it",
    "profile": "to read your name, picture, language and time zone",
    "email": "to read your e-mail address",
    "address": "to read your postal address",
    "groups": "to read which groups you belong to",
    "offline_access": "to be renewed with a refresh token when you are away",
}
# Claims of Core §2 need words; those of §5.1 about the person say themselves what they are.
CLAIM_IN_WORDS = {
    "name": "",
    "given_name": "",
    "middle_name": "",
    "family_name": "",
    "nickname": "",
    "preferred_username": "",
    "picture": "",
    "profile": "",
    "website": "",
    "gender": "",
    "birthdate": "",
    "email": "",
    "email_verified": "",
    "phone_number": "",
    "phone_number_verified": "",
    "address": "",
    "zoneinfo": "",
    "locale": "",
    "groups": "",
    "updated_at": "",
    "iss": "who says so",
    "sub": "your number there",
    "aud": "said to",
    "azp": "asked for by",
    "auth_time": "you logged in at",
    "acr": "how surely",
    "amr": "by means of",
    "iat": "said at",
    "exp": "good until",
}
TIMES = {"exp", "iat", "nbf", "auth_time", "updated_at"}
OF_THE_PROTOCOL = {"jti", "nbf", "sid"}  # nothing that a person could read


@dataclass(frozen=True)
class Row:
    """One claim as the profile page shows it; `parts` are the members of an object."""

    claim: str
    words: str
    value: str
    parts: dict[str, str]


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_site/home.html")


@never_cache
@require_safe
@login_required
def profile(request: HttpRequest) -> HttpResponse:
    """Show the three tokens of this sign-in by what they are for; no token is shown, or here."""
    user: Any = request.user
    login = current_login(request)
    identities = user.oidc_identities
    identity = identities.filter(iss=login.iss, sub=login.sub).first() if login else None
    claims = identity.claims if identity else {}
    granted = login.scope.split() if login else []
    context = {
        "login": login,
        "identity": identity,
        "name": claims.get("name") or user.get_full_name() or user.get_username(),
        "picture": _own_picture(claims),
        "rows": list(_rows(claims)),
        "granted": [(scope, SCOPE_IN_WORDS.get(scope, "")) for scope in granted],
        "offline_access": "offline_access" in granted,
        "seconds_left": _seconds_left(login.expires_at) if login and login.expires_at else None,
    }
    return render(request, "demo_site/profile.html", context)


def _seconds_left(expires_at: datetime) -> int:
    return max(0, int((expires_at - clock.now()).total_seconds()))


def _own_picture(claims: dict[str, Any]) -> str | None:
    """Return the picture when it comes inside the claim: this page asks no other server."""
    picture = claims.get("picture")
    inside = isinstance(picture, str) and picture.startswith("data:image/")
    return picture if inside else None


def _rows(claims: dict[str, Any]) -> Iterator[Row]:
    """Yield the claims in the order of CLAIM_IN_WORDS, the provider's own ones last."""
    order = list(CLAIM_IN_WORDS)
    known = sorted(claims.keys() & CLAIM_IN_WORDS.keys(), key=order.index)
    others = sorted(claims.keys() - CLAIM_IN_WORDS.keys() - OF_THE_PROTOCOL)
    for claim in [*known, *others]:
        value = claims[claim]
        parts = dict(value) if isinstance(value, dict) else {}
        yield Row(claim, CLAIM_IN_WORDS.get(claim, ""), _text(claim, value), parts)


def _text(claim: str, value: Any) -> str:
    if claim in TIMES and isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, timezone.utc):%d %b %Y, %H:%M:%S} UTC"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    return f"{text.partition(',')[0]}, {len(text)} characters" if text[:5] == "data:" else text
