"""The circuit of a provider: an OP that refuses this site's client is left alone for a while (T9).

It is the site's configuration that is wrong, so no grant is touched; an operator is told.
"""

from datetime import timedelta
from typing import Any

from django.db.models import F

from .grants import database
from .models import DatabaseClock, ProviderCircuit
from .own_connection import transaction_on

FIRST, LONGEST = 10.0, 300.0
"""Seconds that the circuit stays open the first time, and at most."""


def seconds_open(provider: str) -> float:
    """For how long nobody is to ask this provider (slug) for tokens; 0 or less: it may be asked."""
    rows: Any = ProviderCircuit.objects.using(database()).annotate(now=DatabaseClock())
    row = rows.filter(pk=provider).first()
    return 0.0 if row is None else (row.not_before - row.now).total_seconds()


def open_for(provider: str, code: str) -> timedelta:
    """Leave the provider alone, longer each time, and return for how long; `code` is why."""
    with transaction_on(database()):
        circuits = ProviderCircuit.objects.using(database())
        row, _ = circuits.get_or_create(
            pk=provider,
            defaults={
                "failures": 0,
                "not_before": DatabaseClock(),
                "last_error": "",
                "last_error_at": DatabaseClock(),
            },
        )
        pause = timedelta(seconds=min(FIRST * 2.0 ** min(row.failures, 10), LONGEST))
        # Many may be refused at the same moment; that is one failure, not many.
        circuits.filter(pk=provider, not_before__lte=DatabaseClock()).update(
            not_before=DatabaseClock(pause),
            failures=F("failures") + 1,
            last_error=code[:100],
            last_error_at=DatabaseClock(),
        )
    return pause


def close(provider: str) -> None:
    """The provider has answered as it should."""
    ProviderCircuit.objects.using(database()).filter(pk=provider).delete()
