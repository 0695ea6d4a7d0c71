"""What tests of kept tokens share: a site that keeps them, somebody signed in, and clocks moved."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.db import OperationalError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.views.debug import ExceptionReporter
from pytest_django import Settings

from oidc_rp import grants, journal
from oidc_rp.grants import Owner
from oidc_rp.models import DatabaseClock, Event, Grant, PendingRevocation
from oidc_rp.sealing import generate_key
from oidc_rp.sessions import grant_of
from oidc_rp.testing import Browser, Handler, Misbehaviour, OpenIDProvider, expire_tokens
from tests.conftest import Configure

SCOPES = ["openid", "calendar", "offline_access"]
HOUR = 3600.0


class Site:
    """Changes the settings of a site that keeps the tokens of its one provider, "op"."""

    def __init__(self, op: OpenIDProvider, configure: Configure, settings: Settings) -> None:
        self._op, self._configure, self._settings = op, configure, settings
        self.token_keys = [generate_key()]
        self._changes = 0
        self.has()

    def has(self, *, top: dict[str, Any] | None = None, **options: Any) -> None:
        """Have these provider options, and those of OIDC_RP itself that are in `top`."""
        self._configure(**{"SCOPES": SCOPES, "API_ORIGINS": [self._op.origin]} | options)
        own = {"TOKEN_KEYS": self.token_keys, "REFRESH_WAIT": 5} | (top or {})
        self._settings.OIDC_RP = self._settings.OIDC_RP | own

    def learns(self, **metadata: Any) -> None:
        """Read the OP's metadata again, which has changed in these members."""
        self._op.metadata |= metadata
        cache.clear()
        self._changes += 1
        self.has(TIMEOUT=9.0 + self._changes / 100)  # another provider, to the caches


@pytest.fixture
def site(op: OpenIDProvider, configure: Configure, settings: Settings) -> Site:
    op.access_token_lifetime = HOUR
    return Site(op, configure, settings)


@pytest.fixture
def owner(site: Site, browser: Browser, op: OpenIDProvider) -> Owner:
    """Somebody who has signed in: a durable grant."""
    return signed_in(browser, op)


@pytest.fixture
def bound(site: Site, browser: Browser, op: OpenIDProvider) -> Owner:
    """Somebody who has signed in at an OP that gives refresh tokens without offline access."""
    return signed_in_here(site, browser, op)


def signed_in(browser: Browser, op: OpenIDProvider) -> Owner:
    """Sign in through the views, and forget what the OP was asked for that."""
    response = browser.sign_in("op")
    assert response.status_code == 302, response.content
    session = browser.client.session
    op.forget_requests()
    return Owner(int(session["_auth_user_id"]), grant_of(session))


def signed_in_here(site: Site, browser: Browser, op: OpenIDProvider, **options: Any) -> Owner:
    """Sign in for this browser session alone."""
    site.has(SCOPES=["openid", "calendar"], **options)
    op.token_response["refresh_token"] = op.issue()["refresh_token"]
    try:
        return signed_in(browser, op)
    finally:
        del op.token_response["refresh_token"]


# Clocks


def expire(left: float = 0) -> None:
    """Have every stored access token end in so many seconds, by the database's clock."""
    expire_tokens(left=left)


def enter_soft_window() -> None:
    """Have every stored access token be one to renew, that still works for half a minute."""
    expire(left=30)


def let_pass() -> None:
    """Have the back-off of every grant behind us."""
    Grant.objects.exclude(not_before=None).update(not_before=DatabaseClock())


def abandon(owner: Owner, worker: str = "dead:1") -> None:
    """Leave the grant as a process does that is killed while it waits for the OP."""
    Grant.objects.filter(pk=owner.grant).update(
        lease_owner=worker,
        lease_until=DatabaseClock(timedelta(seconds=-1)),
        attempt_started_at=DatabaseClock(timedelta(seconds=-5)),
    )


def hold(owner: Owner) -> None:
    """Be another worker, who is waiting for the OP."""
    Grant.objects.filter(pk=owner.grant).update(
        lease_owner="busy:1",
        lease_until=DatabaseClock(timedelta(seconds=60)),
        attempt_started_at=DatabaseClock(),
    )


def wait_until(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Wait for what another thread brings about; where refreshes share our connection, it has."""
    until = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)
    return found


def during(action: Callable[[], Any]) -> Misbehaviour:
    """Do what was asked, then `action`, and only then tell."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        in_between(action)
        handler.send(genuine)

    return answer


def in_between(action: Callable[[], Any]) -> None:
    """Act in a thread of the OP's, and leave no connection there."""
    try:
        action()
    finally:
        for connection in connections.all(initialized_only=True):
            BaseDatabaseWrapper.close(connection)  # one in memory does not close by itself


@contextmanager
def failing_at(verb: str, table: str) -> Iterator[None]:
    """Let our connection's statements of this kind fail, as those of a database that is full."""

    def fail(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(verb) and table in sql:
            raise OperationalError("disk full")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(fail):
        yield


def shown(error: BaseException) -> str:
    """Django's debug page of an error: each local of each frame, of what caused it as well."""
    reporter = ExceptionReporter(None, type(error), error, error.__traceback__)
    return reporter.get_traceback_html()


# What there is afterwards


def grant(owner: Owner) -> Any:
    """The row as it stands."""
    return grants.load(owner.grant)


def history(owner: Owner) -> list[tuple[str, str]]:
    """The timeline since the sign-ins: what happened and why, oldest first; each says when, who."""
    events = Event.objects.filter(grant_id=owner.grant).order_by("id")
    assert all(event.actor and event.at for event in events)
    assert events[0].name == "signed_in"
    return [(event.name, event.code) for event in events if event.name != "signed_in"]


def assert_at_rest(owner: Owner, **columns: Any) -> Any:
    """Nobody is refreshing this open grant, nothing is wrong with it; `columns` are as given."""
    row = grant(owner)
    at_rest = {
        "status": "open",
        "lease_owner": "",
        "lease_until": None,
        "attempt_started_at": None,
        "in_doubt_since": None,
        "not_before": None,
        "failures": 0,
        "last_error": "",
    }
    assert {name: getattr(row, name) for name in at_rest | columns} == at_rest | columns
    assert journal.waiting() == ()
    return row


def assert_closed(owner: Owner, reason: str) -> Any:
    """The grant has ended, for this reason; no refresh token is left in it."""
    row = grant(owner)
    assert (row.status, row.close_reason) == ("closed", reason)
    assert (row.refresh_token, row.key_id, row.lease_owner) == ("", "", "")
    assert row.closed_at is not None
    return row


def to_revoke() -> list[tuple[str, str]]:
    """What the OP is still to be told: reason and last error."""
    return list(PendingRevocation.objects.order_by("pk").values_list("reason", "last_error"))


def make_revocations_due() -> None:
    PendingRevocation.objects.update(not_before=DatabaseClock(), attempts=F("attempts"))


def every_token(op: OpenIDProvider) -> list[str]:
    """All refresh and access tokens that the OP has ever issued."""
    return [*op._refresh_tokens, *op._spent_refresh_tokens, *op._access_tokens]
