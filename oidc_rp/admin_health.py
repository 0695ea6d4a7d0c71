"""How grants fare, in words for an operator; read from the rows alone, and of no token."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Prefetch, QuerySet
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from . import grants
from .models import DatabaseClock, Grant, StoredAccessToken
from .refresh import expiry

SHOWN = 50
"""The most sessions, grants and events of one identity that a page shows, the latest first."""

SHOWN_IN_LIST = 10

GOOD, BUSY, WAITING, BAD, OVER = "good", "busy", "waiting", "bad", "over"
"""How a state looks; the worst of several open grants is the last of BY_WEIGHT that one has."""

BY_WEIGHT = (OVER, GOOD, BUSY, WAITING, BAD)

NEEDS_SIGN_IN = frozenset(
    {
        grants.ROTATION_LOST,
        grants.REVOKED_OR_EXPIRED,
        grants.SUBJECT_CHANGED,
        grants.SEAL_BROKEN,
        grants.NARROWER,
    }
)
"""Ends that nobody wanted: the person has to sign in again before an API can be called."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a grant fares: its look, and the words for it."""

    look: str
    text: str | Promise

    def badge(self) -> SafeString:
        """As the admin shows it; the words say all, the look is for the eye."""
        return format_html('<span class="oidc-health oidc-{}">{}</span>', self.look, self.text)


def health_of(grant: Any) -> Health:
    """Where a grant stands, at a glance. grant.now: the database's time (refresh.py draws it);
    grant.tokens: its access tokens."""
    if grant.status != Grant.OPEN:
        return _closed(grant.close_reason)
    if grant.lease_until is not None and grant.lease_until >= grant.now:
        return Health(BUSY, _("renewing"))
    if grant.in_doubt_since is not None or grant.lease_until is not None:
        return Health(BAD, _("in doubt: an attempt ended without an answer"))
    if grant.not_before is not None and grant.not_before > grant.now:
        return Health(WAITING, _("backing off until %(time)s") % {"time": moment(grant.not_before)})
    return Health(GOOD, _("healthy")) if grant.key_id else _without_refresh_token(grant)


def _closed(reason: str) -> Health:
    if reason in NEEDS_SIGN_IN:
        return Health(BAD, _("needs sign-in: %(reason)s") % {"reason": reason})
    return Health(OVER, _("closed: %(reason)s") % {"reason": reason})


def _without_refresh_token(grant: Any) -> Health:
    ends = [token.expires_at for token in grant.tokens]
    if ends and all(end is not None and end <= grant.now for end in ends):
        return Health(BAD, _("needs sign-in: expired, and without a refresh token"))
    return Health(GOOD, _("healthy, without a refresh token"))


def overall(shown: Iterable[Any]) -> Health | None:
    """The worst state of the open grants; without any, what the latest one ended with."""
    latest_first = sorted(shown, key=lambda grant: grant.pk, reverse=True)
    states = [health_of(grant) for grant in latest_first if grant.status == Grant.OPEN]
    states = states or [health_of(grant) for grant in latest_first[:1]]
    return max(states, key=lambda state: BY_WEIGHT.index(state.look), default=None)


def moment(at: datetime | None) -> str:
    """A moment as the admin writes it, in the operator's time; "" for none."""
    if at is None:
        return ""
    there = timezone.localtime(at) if timezone.is_aware(at) else at  # not so without USE_TZ
    return f"{there:%Y-%m-%d %H:%M:%S}"


def times_are_in() -> str:
    """In which zone the moments above are, for a page to say once."""
    return _("Times are those of %(zone)s.") % {"zone": timezone.get_current_timezone_name()}


def last_renewal(grant: Any) -> str:
    """When, by which process, and which one it was."""
    if grant.refreshed_at is None:
        return ""
    told = {"at": moment(grant.refreshed_at), "by": grant.refreshed_by, "number": grant.refreshes}
    return _("%(at)s by %(by)s, renewal %(number)d") % told


def next_renewal(grant: Any) -> datetime | None:
    """At the first use after this moment; never without a refresh token or after the end."""
    if grant.status != Grant.OPEN or not grant.key_id:
        return None
    return min(filter(None, map(_soft_expiry, grant.tokens)), default=None)


def _soft_expiry(token: Any) -> datetime | None:
    if token.expires_at is None:
        return None
    soft, _hard = expiry(token.grant_id, (token.expires_at - token.sent_at).total_seconds())
    at: datetime = token.sent_at + timedelta(seconds=soft)
    return at


def readable(rows: "QuerySet[Any, Any]") -> "QuerySet[Any, Any]":
    """These grants as the functions above want them, without what is sealed; open ones first."""
    tokens = StoredAccessToken.objects.only("grant_id", "sent_at", "expires_at")
    with_tokens = Prefetch("access_tokens", tokens, to_attr="tokens")
    rows = rows.defer("refresh_token").prefetch_related(with_tokens).annotate(now=DatabaseClock())
    return rows.order_by("-status", "-pk")


def with_grants(shown: int) -> "Prefetch[Any]":
    """So many grants of each identity, as `.shown_grants`."""
    return Prefetch("grants", readable(Grant.objects.all())[:shown], to_attr="shown_grants")
