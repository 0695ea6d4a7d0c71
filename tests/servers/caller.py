"""A process that calls an API from many threads at once; started and told what to do by project.

Each line of standard input is a JSON list, an order's name and its arguments; each is answered by
a line of JSON, {"result": ...} or {"raised": the traceback}. It ends when its input does.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from traceback import format_exc
from typing import Any

import django

django.setup()

from django.conf import settings  # noqa: E402  models can be had after setup() alone
from django.contrib.auth import get_user_model  # noqa: E402
from django.core.cache import cache  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402
from django.db.models import F  # noqa: E402
from django.test.utils import setup_test_environment  # noqa: E402
from django.utils import timezone  # noqa: E402

from oidc_rp.api import access_token, session_for  # noqa: E402
from oidc_rp.errors import OIDCError, OPError  # noqa: E402
from oidc_rp.grants import refresh_token  # noqa: E402
from oidc_rp.models import (  # noqa: E402
    Event,
    Grant,
    PendingRevocation,
    ProviderCircuit,
    StoredAccessToken,
)
from oidc_rp.protocol.tokens import RefreshToken  # noqa: E402
from oidc_rp.relying_party import relying_party  # noqa: E402
from tests.servers.browser import FollowingBrowser  # noqa: E402
from tests.servers.site import outcome  # noqa: E402

MOST_THREADS = 64
threads = ThreadPoolExecutor(MOST_THREADS)  # kept, and with them their database connections
setup_test_environment()


def sign_in(slug: str) -> int:
    """Sign the OP's person in; return the key of the user."""
    browser = FollowingBrowser()
    response = browser.sign_in(slug)
    assert response.status_code == 302, (response.status_code, response.content)
    return int(browser.client.session["_auth_user_id"])


def deactivate(user: int) -> None:
    """Have the user shut out, as an administrator does."""
    someone = get_user_model().objects.get(pk=user)
    someone.is_active = False
    someone.save()


# Calls


def call(
    user: int, provider: str, count: int, resource: str = "", url: str = ""
) -> list[dict[str, Any]]:
    """Call the API from so many threads at the same moment; return what came of each call."""
    start, someone = Barrier(count), get_user_model().objects.get(pk=user)

    def one(_: int) -> dict[str, Any]:
        session = session_for(someone, provider, resource=resource)
        start.wait(30)
        return outcome(lambda: session.get(url or settings.API))

    return list(threads.map(one, range(count)))


def token(user: int, provider: str) -> str:
    """Ask for an access token, and call nothing; return the code of the error, if there is one."""
    try:
        access_token(get_user_model().objects.get(pk=user), provider)
    except OIDCError as error:
        return error.code
    return ""


# Time


def expire(seconds: float = 0, lifetime: float = 3600) -> int:
    """Have every access token end in so many seconds; return how many there are."""
    expires_at = timezone.now() + timedelta(seconds=seconds)
    sent_at = expires_at - timedelta(seconds=lifetime)
    return StoredAccessToken.objects.update(expires_at=expires_at, sent_at=sent_at)


def rest(seconds: float) -> None:
    """Let so much of every pause that an OP is given pass at once."""
    for table in (Grant, ProviderCircuit):
        table.objects.update(not_before=F("not_before") - int(seconds * 1e6))


# What the database says; no token is in it


def grants(user: int | None = None) -> list[dict[str, Any]]:
    """Return what there is of every grant, or of those of a user."""
    columns = "id status generation refreshes failures last_error close_reason durable".split()
    columns += ["refreshed_by", "lease_owner", "in_doubt_since"]
    rows = Grant.objects.order_by("id")
    if user is not None:
        rows = rows.filter(identity__user=user)
    return [
        row | {"in_doubt_since": row["in_doubt_since"] is not None} for row in rows.values(*columns)
    ]


def events(user: int) -> list[list[str]]:
    """Return what became of a user's grants, oldest first: what, why, who; all of it just now."""
    of_grants = Event.objects.filter(identity__user=user).exclude(grant=None)
    rows = of_grants.exclude(name="signed_in").order_by("id")
    assert all(abs(timezone.now() - row.at) < timedelta(minutes=2) for row in rows)
    return [[row.name, row.code, row.actor] for row in rows]


def pending_revocations() -> int:
    return PendingRevocation.objects.count()


def is_in_cache(grant: str) -> bool:
    """Whether the journal's entry of a grant can be had by every process."""
    return cache.get(f"oidc_rp:rotation:{grant}") is not None


# A refresh token that is given up


remembered: list[tuple[str, RefreshToken]] = []


def remember(user: int) -> None:
    """Keep a copy of the refresh token that a user's grant has now."""
    grant = Grant.objects.get(identity__user=user)
    found = refresh_token(grant)
    assert found is not None
    remembered.append((grant.provider, found))


def spend_remembered() -> str:
    """Spend that copy; return the OP's error, if it is one."""
    provider, copy = remembered.pop()
    try:
        relying_party(provider).refresh(copy, scope="", resource="", requested_scope="")
    except OPError as error:
        return error.error
    return ""


# Signals at a certain moment

POINTS = {
    "claimed": (r"UPDATE .*COALESCE", r"SELECT "),
    "answered": (r"UPDATE .*COALESCE", r"UPDATE .*\Wrefreshes\W+="),
    "stored": (r"UPDATE .*\Wrefreshes\W+=", r"DELETE FROM .*providercircuit"),
}
"""Moments of a refresh by two statements: one that was run, and a later one that is not run yet."""


def signal_at(point: str, name: str) -> None:
    """Send this process a signal when its next refresh has come to this point."""
    seen = []
    first, second = (re.compile(pattern, re.DOTALL) for pattern in POINTS[point])

    def watch(execute: Any, sql: str, *arguments: Any) -> Any:
        if seen == [True] and second.search(sql):
            seen.append(True)  # once
            os.kill(os.getpid(), signal.Signals[name])
            time.sleep(0.2)  # the kernel may begin with another thread
        result = execute(sql, *arguments)
        if not seen and first.search(sql):
            seen.append(True)
        return result

    def install(connection: Any, **_: Any) -> None:
        connection.execute_wrappers.append(watch)

    connection_created.connect(install, weak=False)


ORDERS: dict[str, Callable[..., Any]] = {
    order.__name__: order
    for order in (
        *(sign_in, deactivate, call, token, expire, rest),
        *(grants, events, pending_revocations, is_in_cache),
        *(remember, spend_remembered, signal_at),
    )
}

if __name__ == "__main__":
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"result": ORDERS[name](**arguments)}
        except Exception:  # noqa: BLE001 - whoever asked gets to see it
            answer = {"raised": format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
