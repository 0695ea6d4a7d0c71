"""Sessions that are renewed in threads of their own, as on a server; see test_renewal.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/renewal_in_threads.py
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from oidc_rp import refresh
from oidc_rp.grants import Owner
from oidc_rp.models import Grant, Session
from oidc_rp.testing import OpenIDProvider, held_back
from oidc_rp.testing.browser import Browser
from tests.test_renewal import (
    VISIT,
    assert_renewed,
    by_login,
    by_token,
    events,
    renewing,
    user,
    who,
)
from tests.tokens import expire, site, wait_until

__all__ = ["by_login", "by_token", "renewing", "site"]

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(browser: Browser, number: int = 20) -> list[Any]:
    """What so many requests of one browser get that come at the same moment."""
    start = threading.Barrier(number)

    def visit(_: int) -> Any:
        client = Client()
        client.cookies = browser.client.cookies
        try:
            start.wait(20)
            return client.get("/home/", headers=VISIT)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(visit, range(number)))


def test_twenty_requests_at_once_refresh_once(op: OpenIDProvider, by_token: Browser) -> None:
    """One of them waits for it, and none loses anything."""
    op.refresh_delay = 0.5
    name = user().username
    assert [who(response) for response in at_once(by_token)] == [name] * 20
    assert (op.refreshes, op.families_lost, op.calls("userinfo")) == (1, 0, 1)
    assert_renewed()


def test_twenty_pages_at_once_go_by_the_OP_once(op: OpenIDProvider, by_login: Browser) -> None:
    statuses = sorted(response.status_code for response in at_once(by_login))
    assert statuses == [200] * 19 + [302]


def test_when_the_OP_says_no_all_of_them_are_signed_out_by_the_next_request(
    op: OpenIDProvider, by_token: Browser
) -> None:
    op.end_grants()
    at_once(by_token)
    assert who(by_token.client.get("/home/", headers=VISIT)) == ""
    assert op.refreshes == 1
    assert events("session_ended") == ["not_renewed"]
    assert Session.objects.count() == 0


def told_later(op: OpenIDProvider, request: Callable[[], Any]) -> tuple[Any, float]:
    """Make a request while the OP does what it is asked and keeps silent, then let it speak."""
    told = threading.Event()
    op.answer["token"] = held_back(told)
    began = time.monotonic()
    response = request()
    took = time.monotonic() - began
    told.set()
    return response, took


def test_a_request_waits_three_seconds_and_the_renewal_goes_on(
    op: OpenIDProvider, by_token: Browser
) -> None:
    response, took = told_later(op, lambda: by_token.client.get("/home/", headers=VISIT))
    assert who(response) == user().username
    assert 2.9 < took < 6
    wait_until(lambda: Session.objects.get().tried_at is None)
    assert_renewed()
    assert op.refreshes == 1


def test_a_no_that_comes_late_ends_the_session_all_the_same(
    op: OpenIDProvider, by_token: Browser
) -> None:
    op.disabled = True
    response, _ = told_later(op, lambda: by_token.client.get("/home/", headers=VISIT))
    assert response.status_code == 200
    wait_until(lambda: not Session.objects.exists())
    assert who(by_token.client.get("/home/", headers=VISIT)) == ""


def test_a_call_to_an_API_that_refreshes_at_the_same_time_is_waited_for(
    op: OpenIDProvider, by_token: Browser
) -> None:
    """Two of us, and one refresh token: what the other one brings is what the OP says."""
    expire()
    op.refresh_delay = 1
    grant, pk = Grant.objects.get().pk, user().pk

    def call() -> Any:
        try:
            return refresh.usable_token(Owner(pk, grant))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as other:
        calling = other.submit(call)
        wait_until(lambda: Grant.objects.get().lease_owner)
        assert who(by_token.client.get("/home/", headers=VISIT)) == user().username
        calling.result()
    assert (op.refreshes, op.families_lost, op.calls("userinfo")) == (1, 0, 1)
    assert_renewed()
