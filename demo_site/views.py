import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone as clock
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from demo_site.calls import RESULT, TOGETHER
from oidc_rp.models import Event, Grant, Identity, StoredAccessToken
from oidc_rp.sessions import CurrentLogin, current_login
from oidc_rp.step_up import require_auth

SCOPE_IN_WORDS = {
    "openid": "to sign you in, with an ID Token that proves it",
    "profile": "to read your name, picture, language and time zone",
    "email": "to read your e-mail address",
    "address": "to read your postal address",
    "groups": "to read which groups you belong to",
    "calendar": "to read your calendar",
    "contacts": "to read your contacts",
    "offline_access": "to be renewed with a refresh token when you are away",
}
TIMELINE = 12
FRESH = 60  # seconds
SECOND_FACTOR = "urn:demo:second-factor"  # what the demo's provider calls it
EVENT_IN_WORDS = {
    "signed_in": "You signed in",
    "refreshed": "Tokens renewed",
    "in_doubt": "No answer came: is the refresh token spent or not?",
    "backing_off": "The provider is left in peace for a while",
    "refresh_failed": "Renewal failed",
    "target_refused": "The provider gives no token for this API",
    "circuit_opened": "The provider refuses this site",
    "id_token_refused": "The new ID Token was refused",
    "late_result": "A late answer was dropped",
    "rotation_stored_late": "New tokens stored, later than they came",
    "closed": "The grant ended",
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
    value: SafeString
    parts: dict[str, str]


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "demo_site/home.html")


@never_cache
@require_safe
@login_required
def profile(request: HttpRequest) -> HttpResponse:
    """Show the three tokens by what they are for; no token is shown, or here."""
    user: Any = request.user
    login = current_login(request)
    identities = user.oidc_identities
    identity = identities.filter(iss=login.iss, sub=login.sub).first() if login else None
    claims = identity.claims if identity else {}
    context = {
        "login": login,
        "identity": identity,
        "name": claims.get("name") or user.get_full_name() or user.get_username(),
        "picture": _own_picture(claims),
        "rows": list(_rows(claims)),
        "access": _access(login) if login else None,
        "grant": Grant.objects.filter(pk=login.grant).first() if login else None,
        "timeline": _timeline(identity, login.grant) if identity and login else [],
        "result": request.session.pop(RESULT, None),
        "together": TOGETHER,
    }
    return render(request, "demo_site/profile.html", context)


@never_cache
@require_safe
@require_auth(max_age=FRESH)
def safe(request: HttpRequest) -> HttpResponse:
    """What only somebody sees who has just shown who they are; an old sign-in is not enough."""
    return _show_safe(request, "fresh")


@never_cache
@require_safe
@require_auth(acr=SECOND_FACTOR)
def vault(request: HttpRequest) -> HttpResponse:
    """What takes a second factor, however long ago; a password alone is not enough."""
    return _show_safe(request, "strong")


def _show_safe(request: HttpRequest, kind: str) -> HttpResponse:
    context = {"kind": kind, "login": current_login(request), "fresh": FRESH}
    return render(request, "demo_site/safe.html", context)


@dataclass(frozen=True)
class Access:
    """What is known of the access token that calls go out with: its scopes in words, its end."""

    scopes: list[tuple[str, str]]
    expires_at: datetime | None

    @property
    def seconds_left(self) -> int:
        left = (self.expires_at - clock.now()).total_seconds() if self.expires_at else 0
        return max(0, int(left))


def _access(login: CurrentLogin) -> Access:
    """The token that is kept now; the sign-in's own may have been replaced often."""
    kept = StoredAccessToken.objects.filter(grant=login.grant, resource="", scope="").first()
    scope = kept.granted_scope if kept else login.scope
    scopes = [(name, SCOPE_IN_WORDS.get(name, "")) for name in scope.split()]
    return Access(scopes, kept.expires_at if kept else login.expires_at)


@dataclass(frozen=True)
class Moment:
    """One line of the timeline; `words` are ours, the rest is what oidc_rp wrote down."""

    at: datetime
    words: str
    code: str
    actor: str


def _timeline(identity: Identity, grant: str) -> list[Moment]:
    """What happened to this grant, the latest first."""
    events = Event.objects.filter(identity=identity, grant=grant)[:TIMELINE]
    return [
        Moment(each.at, EVENT_IN_WORDS.get(each.name, each.name), each.code, each.actor)
        for each in events
    ]


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
        yield Row(claim, CLAIM_IN_WORDS.get(claim, ""), _breakable(_text(claim, value)), parts)


def _breakable(text: str) -> SafeString:
    """Let a line end behind the @ of an address and the slashes of a URL."""
    parts = re.split(r"(?<=[@/])(?=\w)", text)
    return format_html_join(SafeString("<wbr>"), "{}", ((part,) for part in parts))


def _text(claim: str, value: Any) -> str:
    if claim in TIMES and isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, timezone.utc):%d %b %Y, %H:%M:%S} UTC"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    text = str(value)
    return f"{text.partition(',')[0]}, {len(text)} characters" if text[:5] == "data:" else text
