"""Tokens given up are revoked at the OP (RFC 7009): after commit, beside the request, until it
has understood. What is to be revoked stands in PendingRevocation, sealed as everything else."""

import logging
import threading
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError, transaction
from django.db.models import F

from . import grants
from .errors import ConfigurationError, OIDCError, OPError
from .models import DatabaseClock, PendingRevocation
from .own_connection import must_share, transaction_on
from .protocol.tokens import RefreshToken
from .relying_party import relying_party
from .sealing import key_ring
from .single_flight import SingleFlight

logger = logging.getLogger("oidc_rp")

MAX_ATTEMPTS = 12
"""With pauses that double from 30 s to 6 h, that is some two days."""

HOLD = timedelta(seconds=60)
"""How long a row belongs to whoever works on it."""


def soon(**_: Any) -> None:
    """Work off what is due, when the current transaction is committed; nobody waits for it.

    A receiver of PendingRevocation's post_save: what is written is sent.
    """
    alias = grants.database()
    work = work_off if must_share(alias) else _start
    transaction.on_commit(work, using=alias, robust=True)


_news = threading.Event()
_flights: SingleFlight[None] = SingleFlight()


def _start() -> None:
    """Have one thread of this process at work, however many rows there are."""
    _news.set()
    flight = _flights.join("revocations", None, _work_off_all)
    flight.future.add_done_callback(lambda _: _start() if _news.is_set() else None)


def _work_off_all() -> None:
    while _news.is_set():
        _news.clear()
        while work_off():
            pass


def work_off(limit: int = 100) -> int:
    """Revoke what is due, some at most, and return how many are done with. Safe to run twice."""
    done = 0
    try:
        due = PendingRevocation.objects.using(grants.database()).filter(
            not_before__lte=DatabaseClock()
        )
        for revocation in due.order_by("pk")[:limit]:
            done += _taken(revocation) and _revoked(revocation)
    except (DatabaseError, InterfaceError):
        logger.exception("revocations wait: the database fails")
    return done


def _row(revocation: PendingRevocation) -> Any:
    return PendingRevocation.objects.using(grants.database()).filter(pk=revocation.pk)


def _taken(revocation: PendingRevocation) -> bool:
    """Whether this worker may send it: the first that moves its time."""
    with transaction_on(grants.database()):
        mine = _row(revocation).filter(attempts=revocation.attempts)
        return bool(mine.update(attempts=F("attempts") + 1, not_before=DatabaseClock(HOLD)))


def _revoked(revocation: PendingRevocation) -> bool:
    """Send it; whether it is done with, for better or worse."""
    try:
        party = relying_party(revocation.provider)
        if party.provider.client_id != revocation.client_id:
            raise ConfigurationError("revocation.client_changed", "CLIENT_ID is another one now")
        if revocation.iss not in party.provider.issuers():
            raise ConfigurationError("revocation.issuer_changed", "ISSUER is another one now")
        token = RefreshToken(key_ring().open(revocation.token, revocation.context()))
        party.revoke(token, "refresh_token")
    except OIDCError as error:
        if revocation.attempts + 1 < MAX_ATTEMPTS and not _is_final(error):
            _again_later(revocation, error)
            return False
        logger.error("token not revoked at provider=%s code=%s", revocation.provider, error.code)
    _row(revocation).delete()
    return True


_FINAL = frozenset(
    """
    seal.broken provider.unknown revocation.client_changed revocation.issuer_changed
    """.split()
)


def _is_final(error: OIDCError) -> bool:
    """Whether it would be the same another time."""
    if isinstance(error, OPError):
        return error.error in ("unsupported_token_type", "invalid_request")
    return error.code in _FINAL


def _again_later(revocation: PendingRevocation, error: OIDCError) -> None:
    retry_after = getattr(error, "retry_after", None) or 0.0
    pause = timedelta(seconds=max(min(30.0 * 2.0**revocation.attempts, 6 * 3600.0), retry_after))
    with transaction_on(grants.database()):
        _row(revocation).update(not_before=DatabaseClock(pause), last_error=error.code[:100])
