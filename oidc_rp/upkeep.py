"""What is done beside all requests: grants kept from idling to death, and old rows removed.

For cron, Celery beat or Django tasks, through the commands oidc_refresh and oidc_prune or by a call
of these functions. Each may run twice at once, be killed, and be run again.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import InterfaceError, OperationalError, connections, models, reset_queries
from django.db.models import F, Q
from django.db.models.functions import Coalesce

from . import circuit, closing, conf, grants, refresh, revocation, session_index, session_store
from .errors import LoginRequired, OIDCError
from .models import DatabaseClock, Event, Grant, LogoutMark, ProviderCircuit, StoredAccessToken
from .own_connection import detached, must_share
from .protocol.token_endpoint import MAX_LIFETIME

logger = logging.getLogger("oidc_rp")

T = TypeVar("T")

PAGE = 100

OF_NOBODY = timedelta(days=14)
"""How long events stay that name no person: strangers make them for nothing."""
"""Rows that are looked at in one go; so much is in memory, however many there are."""

LEFT_ALONE = timedelta(days=1)
"""How long an access token that nobody renewed stays after its end, and a circuit that is closed
again: somebody may be looking at them."""

# The whole provider's fault, so the next grant would fare no better
_NOBODY_CAN_ASK = frozenset({"refresh.circuit_open", "refresh.provider"})


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several equal parts of all grants, the first being 1 of `count`."""

    number: int = 1
    count: int = 1

    def has(self, grant_id: str) -> bool:
        """Whether this grant is in it; that never changes."""
        return int(grant_id[-8:], 16) % self.count == self.number - 1


@dataclass(slots=True)
class Renewals:
    """What became of the grants of one run.

    left: somebody else had renewed them, or was about to. ended: only a login helps; so it was
    before, and is known now. failed: their turn comes again at the next run.
    """

    renewed: int = 0
    left: int = 0
    ended: int = 0
    failed: int = 0
    stored: int = 0
    revoked: int = 0


def _log(grant_id: str, code: str) -> None:
    logger.warning("grant %s: not renewed, %s", grant_id, code)


def renew_idle(
    *,
    within: timedelta | None = None,
    shard: Shard = Shard(),
    limit: int = 10_000,
    tell: Callable[[str, str], None] = _log,
) -> Renewals:
    """Renew the durable grants that the OP would soon forget, the most urgent first.

    within: how soon; by default, when a quarter of the idle time is left. limit: grants to try.
    tell: called with grant id and code of each grant that was not renewed.
    What waits in the journal is stored, and tokens given up are revoked, on the way.
    """
    return _outside_transactions(lambda: _renew_idle(within, shard, limit, tell))


def _outside_transactions(work: Callable[[], T]) -> T:
    """Do it here, or in a thread of its own where a transaction of the caller's would hold it."""
    alias = grants.database()
    if connections[alias].in_atomic_block and not must_share(alias):
        return detached(work).result()
    return work()


def _renew_idle(
    within: timedelta | None, shard: Shard, limit: int, tell: Callable[[str, str], None]
) -> Renewals:
    done = Renewals(stored=store_journal())
    for provider in conf.providers().values():
        if circuit.seconds_open(provider.slug) > 0:
            continue
        for grant_id, generation in _idle_grants(provider, within):
            if not shard.has(grant_id):
                continue
            if limit <= 0:
                break
            limit -= 1
            if _renew(grant_id, generation, done, tell) in _NOBODY_CAN_ASK:
                break
    while revoked := revocation.work_off():
        done.revoked += revoked
    return done


def _renew(grant_id: str, generation: int, done: Renewals, tell: Callable[[str, str], None]) -> str:
    """Renew one grant and count it; the code of what went wrong, or an empty text."""
    try:
        if refresh.renew_early(grant_id, generation):
            done.renewed += 1
        else:
            done.left += 1
        return ""
    except LoginRequired as error:
        done.ended += 1
        code = error.code
    except OIDCError as error:
        done.failed += 1
        code = error.code
    except (OperationalError, InterfaceError):
        logger.exception("grant %s: the database fails", grant_id)
        connections[grants.database()].close_if_unusable_or_obsolete()
        done.failed += 1
        code = "refresh.database"
    tell(grant_id, code)
    return code


def _idle_grants(provider: conf.Provider, within: timedelta | None) -> Iterator[tuple[str, int]]:
    """Id and generation of each grant of this client that is close to the end of its idle time."""
    usual = timedelta(seconds=provider.refresh_idle_lifetime / 4)
    rows = _grants().filter(
        Q(not_before=None) | Q(not_before__lte=DatabaseClock()),
        _active_user(True),
        provider=provider.slug,
        client_id=provider.client_id,
        durable=True,
        status=Grant.OPEN,
        idle_until__lte=DatabaseClock(usual if within is None else within),
    )
    if within is None:  # an OP may have told a shorter idle time than the settings do
        idle_time = F("idle_until") - Coalesce(F("refreshed_at"), F("created_at"))
        rows = rows.filter(idle_until__lte=DatabaseClock() + idle_time / 4)
    columns = ("now", "idle_until", "pk", "generation")
    rows = rows.annotate(now=DatabaseClock()).order_by("idle_until", "pk")
    page = list(rows.values_list(*columns)[:PAGE])
    # What this run has renewed comes again otherwise, where `within` is longer than the idle time.
    before = Q(refreshed_at=None) | Q(refreshed_at__lt=page[0][0]) if page else Q()
    while page:
        reset_queries()  # with DEBUG Django keeps what it ran
        for _, _, grant_id, generation in page:
            yield grant_id, generation
        _, idle_until, last, _ = page[-1]
        later = Q(idle_until__gt=idle_until) | Q(idle_until=idle_until, pk__gt=last)
        page = list(rows.filter(before, later).values_list(*columns)[:PAGE])


def store_journal() -> int:
    """Bring home what waits in the journal, here or left by a worker that is gone: see refresh.py,
    T7. How many of those."""
    refresh.store_waiting()
    unfinished = _grants().filter(status=Grant.OPEN, lease_until__lt=DatabaseClock())
    return sum(map(refresh.store_found, _ids(unfinished)))


@dataclass(slots=True)
class Pruned:
    """How many rows were closed, and deleted, in one run."""

    closed: int = 0
    grants: int = 0
    access_tokens: int = 0
    events: int = 0
    circuits: int = 0
    sessions: int = 0


def prune(
    *, closed_for: timedelta = timedelta(days=30), events_for: timedelta | None = None
) -> Pruned:
    """Close the grants that nobody can use any more; delete what is closed, expired or old.

    Closed are those of users who are not active, and those of browser sessions that are over: gone
    from the index, or not refreshed for SESSION_COOKIE_AGE. Their refresh tokens are revoked at the
    OP. Sessions that are over without having told so go out of the index first.
    closed_for: how long a closed grant stays to be looked at. events_for: how long the timeline is;
    EVENT_RETENTION if not given.
    """
    kept = conf.event_retention() if events_for is None else events_for
    return _outside_transactions(lambda: _prune(closed_for, kept))


def _prune(closed_for: timedelta, events_for: timedelta) -> Pruned:
    done = Pruned(sessions=_prune_sessions())
    for reason, rows in _useless().items():
        for number, grant_id in enumerate(_ids(rows), 1):
            end = closing.end if reason == grants.DEACTIVATED else closing.end_session_grant
            done.closed += end(grant_id, reason, actor="oidc_prune")
            if number % PAGE == 0:
                revocation.work_off()  # no faster than the OP can be told
    done.grants = _delete_closed(closed_for)
    done.access_tokens = _delete(_expired_access_tokens())
    done.events = _delete(_rows(Event).filter(at__lt=DatabaseClock(-events_for)))
    of_nobody = _rows(Event).filter(identity=None, user=None)
    done.events += _delete(of_nobody.filter(at__lt=DatabaseClock(-min(events_for, OF_NOBODY))))
    _delete(_rows(LogoutMark).filter(at__lt=_long_ago()))
    done.circuits = _delete(_rows(ProviderCircuit).filter(not_before__lt=_long_ago()))
    while revocation.work_off():
        pass
    return done


def _prune_sessions() -> int:
    """End the rows of sessions that Django has no more, and whatever could not be ended before."""
    rows = session_index.rows()
    ended = _end_pages(rows.exclude(ended_at=None))
    unseen = rows.filter(ended_at=None, last_seen_at__lt=_long_ago())
    if session_store.lives_in_cookie():
        age = timedelta(seconds=settings.SESSION_COOKIE_AGE)
        return ended + _end_pages(unseen.filter(last_seen_at__lt=DatabaseClock(-age)))
    for page in _pages(unseen):
        keys = dict(rows.filter(pk__in=page).values_list("pk", "session_key"))
        alive = session_store.alive(keys.values())
        gone = [pk for pk, key in keys.items() if key not in alive]
        still = rows.filter(pk__in=gone, last_seen_at__lt=_long_ago())  # nobody has come meanwhile
        closing.end_sessions(still, grants.EXPIRED, actor="oidc_prune")
        ended += len(gone)
    return ended


def _end_pages(rows: "models.QuerySet[Any, Any]") -> int:
    ended = 0
    for page in _pages(rows):
        these = session_index.rows().filter(pk__in=page)
        closing.end_sessions(these, grants.EXPIRED, actor="oidc_prune")
        ended += len(page)
    return ended


def _useless() -> dict[str, "models.QuerySet[Any, Any]"]:
    """Reason -> the open grants that are to be closed for it."""
    age = timedelta(seconds=settings.SESSION_COOKIE_AGE)
    used_at = Coalesce(F("refreshed_at"), F("created_at"))
    rows = _grants().filter(status=Grant.OPEN)
    return {
        grants.DEACTIVATED: rows.filter(_active_user(False)),
        grants.EXPIRED: rows.filter(durable=False)
        .alias(used_at=used_at)
        .filter(used_at__lt=DatabaseClock(-age)),
        grants.LOGOUT: rows.filter(durable=False, sessions=None, created_at__lt=_long_ago()),
    }


def _delete_closed(closed_for: timedelta) -> int:
    """Delete old closed grants, their tokens with them. A login that is just now opening a durable
    one again finds another generation, and makes a new one."""
    deleted = 0
    rows = _grants().filter(status=Grant.CLOSED, closed_at__lt=DatabaseClock(-closed_for))
    for page in _pages(rows):
        old = rows.filter(pk__in=page)
        old.update(slot=None, generation=F("generation") + 1)
        deleted += old.delete()[1].get(Grant._meta.label, 0)
    return deleted


def _expired_access_tokens() -> "models.QuerySet[Any, Any]":
    """Those that nobody has renewed; where the OP told no end, those older than any can be."""
    untold = Q(expires_at=None, sent_at__lt=DatabaseClock(-MAX_LIFETIME - LEFT_ALONE))
    told = Q(expires_at__lt=_long_ago())
    rows: models.QuerySet[Any, Any] = _rows(StoredAccessToken).filter(untold | told)
    return rows


def _delete(rows: "models.QuerySet[Any, Any]") -> int:
    return sum(rows.filter(pk__in=page).delete()[0] for page in _pages(rows))


def _long_ago() -> DatabaseClock:
    return DatabaseClock(-LEFT_ALONE)


# Rows, a page at a time


def _rows(model: type[models.Model]) -> "models.QuerySet[Any, Any]":
    rows: models.QuerySet[Any, Any] = models.QuerySet(model, using=grants.database())
    return rows


def _grants() -> "models.QuerySet[Any, Any]":
    return _rows(Grant)


def _pages(rows: "models.QuerySet[Any, Any]") -> Iterator[list[Any]]:
    """The keys of these rows, by keyset: a page costs the same wherever it begins."""
    keys = rows.order_by("pk").values_list("pk", flat=True)
    page = list(keys[:PAGE])
    while page:
        reset_queries()  # with DEBUG Django keeps what it ran
        yield page
        page = list(keys.filter(pk__gt=page[-1])[:PAGE])


def _ids(rows: "models.QuerySet[Any, Any]") -> Iterator[Any]:
    for page in _pages(rows):
        yield from page


def _active_user(active: bool) -> Q:
    """Grants of users who are active, or are not; a user model may not keep that in a column."""
    try:
        get_user_model()._meta.get_field("is_active")
    except FieldDoesNotExist:
        return Q() if active else Q(pk__in=[])
    return Q(identity__user__is_active=active)
