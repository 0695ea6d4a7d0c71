"""Refreshes in threads of their own, for a database that threads can share; see test_refresh.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/refresh_in_threads.py
"""

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from django.db import connection, connections, transaction
from django.db.models import F
from pytest_django import Settings

from oidc_rp import journal, own_connection, signals
from oidc_rp.errors import LoginRequired, TemporarilyUnavailable
from oidc_rp.grants import Owner, Target
from oidc_rp.models import DatabaseClock, Grant
from oidc_rp.refresh import ANY, Want, ausable_token, renew, usable_token
from oidc_rp.testing import REFRESH_FAULTS, Handler, OpenIDProvider
from tests.tokens import (
    Site,
    assert_at_rest,
    enter_soft_window,
    expire,
    grant,
    history,
    hold,
    in_between,
    owner,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["owner", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

T = TypeVar("T")

GRAPH = Target("https://graph.example")


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """No thread outlives a test, and none of them asks the database then."""
    before = set(threading.enumerate())
    yield
    ours = "oidc_rp"
    wait_until(lambda: not [t for t in set(threading.enumerate()) - before if t.name == ours])


def herd(owner: Owner, targets: list[Target]) -> list[str]:
    """Ask for all these at the same moment, each in a thread."""
    start = threading.Barrier(len(targets))

    def one(target: Target) -> str:
        start.wait(10)
        try:
            return usable_token(owner, target).access_token.reveal()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(targets)) as threads:
        return list(threads.map(one, targets))


def run(main: Coroutine[Any, Any, T]) -> T:
    """asyncio.run, and no connection is left in the thread that asgiref keeps for sync code."""

    async def then_close() -> T:
        try:
            return await main
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(then_close())


def test_the_database_is_one_that_threads_share() -> None:
    assert not own_connection.must_share("default")


def test_M55_a_herd_takes_one_call(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_delay = 0.2
    for generation in (2, 3, 4):
        expire()
        assert len(set(herd(owner, [ANY] * 32))) == 1
        assert (op.refreshes, op.families_lost) == (generation - 1, 0)
        assert_at_rest(owner, generation=generation)
    wait_until(lambda: history(owner) == [("refreshed", "")] * 3)


def test_M55_two_audiences_at_once(op: OpenIDProvider, owner: Owner) -> None:
    """Nobody gets the token of another API; the calls come one after the other."""
    op.refresh_delay = 0.2
    expire()
    tokens = herd(owner, [ANY, GRAPH] * 8)
    assert len(set(tokens[::2])) == len(set(tokens[1::2])) == 1
    audiences = [op._access_tokens[token].audience for token in tokens]
    assert audiences == ["", GRAPH.resource] * 8
    assert (op.refreshes, op.families_lost) == (2, 0)
    assert_at_rest(owner, generation=3)


def test_M55_in_the_soft_window_nobody_waits(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_delay = 3.0
    enter_soft_window()
    since = time.monotonic()
    assert len(set(herd(owner, [ANY] * 16))) == 1
    assert time.monotonic() - since < 3.0
    wait_until(lambda: grant(owner).generation == 2)
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_a_herd_is_told_the_same_error(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_fault = "invalid_grant"
    op.refresh_delay = 0.2
    expire()
    errors: list[BaseException] = []

    def one(_: int) -> None:
        try:
            usable_token(owner)
        except LoginRequired as error:
            errors.append(error)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(16)))
    assert [error.code for error in errors] == ["grant.revoked_or_expired"] * 16  # type: ignore[attr-defined]
    assert len({id(error) for error in errors}) == 16
    assert op.refreshes == 1


def test_M55_a_caller_that_rolls_back_loses_nothing(op: OpenIDProvider, owner: Owner) -> None:
    """It has written before, so SQLite lets nobody else write."""
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        get_user_model().objects.update(first_name="Jane")
        new = usable_token(owner).access_token
        raise ZeroDivisionError
    assert usable_token(owner).access_token == new
    assert_at_rest(owner, generation=2)
    assert (op.refreshes, op.families_lost) == (1, 0)
    expire()
    assert usable_token(owner).access_token != new
    assert (op.refreshes, op.families_lost) == (2, 0)


def test_M55_nor_one_that_commits(op: OpenIDProvider, owner: Owner) -> None:
    expire()
    with transaction.atomic():
        get_user_model().objects.update(first_name="Jane")
        new = usable_token(owner).access_token
    assert usable_token(owner).access_token == new
    assert_at_rest(owner, generation=2)
    assert get_user_model().objects.get().first_name == "Jane"
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_nor_one_that_has_only_read(op: OpenIDProvider, owner: Owner) -> None:
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        assert get_user_model().objects.count() == 1
        new = usable_token(owner).access_token
        raise ZeroDivisionError
    assert usable_token(owner).access_token == new
    assert_at_rest(owner, generation=2)
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_two_apis_in_a_view_that_rolls_back(op: OpenIDProvider, owner: Owner) -> None:
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        get_user_model().objects.update(first_name="Jane")
        usable_token(owner)
        usable_token(owner, GRAPH)
        raise ZeroDivisionError
    usable_token(owner)
    expire()
    usable_token(owner)
    assert op.families_lost == 0
    assert journal.waiting() == ()


def test_M55_T16_a_rejected_token_in_a_view_that_has_written(
    op: OpenIDProvider, owner: Owner
) -> None:
    old = usable_token(owner).access_token
    with transaction.atomic():
        get_user_model().objects.update(first_name="Jane")
        assert usable_token(owner, rejected=old).access_token != old
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


def test_M55_another_process_finds_what_was_rolled_back(
    op: OpenIDProvider, owner: Owner, site: Site, settings: Settings, tmp_path: Path
) -> None:
    """The caller has ended before it could store anything: the cache has it."""
    site.has(top={"OWN_CONNECTION": False})
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        new = usable_token(owner).access_token
        raise ZeroDivisionError
    journal._after_fork()  # as in a process that is another one
    assert journal.waiting() == ()
    assert usable_token(owner).access_token == new
    assert_at_rest(owner, generation=2)
    assert (op.refreshes, op.families_lost) == (1, 0)


@pytest.mark.parametrize("fault", ["", "503"])
def test_M55_a_cancelled_task_cancels_no_call(
    op: OpenIDProvider, owner: Owner, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    def slowly(handler: Handler) -> None:
        handler.provider.stopped.wait(0.5)
        if fault:
            REFRESH_FAULTS[fault](handler)
        else:
            handler.send(handler.genuine())

    expire()
    op.answer["token"] = slowly

    async def impatient() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ausable_token(owner), 0.2)

    run(impatient())
    name = "backing_off" if fault else "refreshed"
    wait_until(lambda: [name for name, _ in history(owner)] == [name])
    assert (op.refreshes, op.families_lost) == (1, 0)
    if not fault:
        assert_at_rest(owner, generation=2)
    gc.collect()
    assert [record for record in caplog.records if record.name in ("asyncio", "concurrent")] == []


def test_M55_asyncio_waits_for_one_call(
    op: OpenIDProvider, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    op.refresh_delay = 0.2
    expire()

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(ausable_token(owner) for _ in range(16)))

    usable = run(all_of_them())
    assert len({each.access_token.reveal() for each in usable}) == 1
    assert op.refreshes == 1
    op.refresh_fault = "invalid_grant"
    expire()

    async def none_of_them() -> list[Any]:
        waiting = (ausable_token(owner) for _ in range(4))
        return await asyncio.gather(*waiting, return_exceptions=True)

    errors = run(none_of_them())
    assert [error.code for error in errors] == ["grant.revoked_or_expired"] * 4
    del errors
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_M55_whoever_waits_longer_than_REFRESH_WAIT_leaves_the_call_alone(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(top={"REFRESH_WAIT": 0.5})
    op.refresh_delay = 1.5
    expire()
    with pytest.raises(TemporarilyUnavailable) as raised:
        usable_token(owner)
    assert raised.value.code == "refresh.waiting"
    wait_until(lambda: grant(owner).generation == 2)
    assert usable_token(owner).fresh_for > 0
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_a_living_worker_keeps_its_lease(op: OpenIDProvider, owner: Owner) -> None:
    """The OP takes longer than a lease lasts."""
    op.refresh_delay = 5.5
    expire()
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(in_between, lambda: usable_token(owner))
        wait_until(lambda: grant(owner).lease_owner)
        ends = set()
        while not waiting.done():
            row = grant(owner)
            if row.lease_until is not None:
                assert row.lease_until > row.now
                ends.add(row.lease_until)
            time.sleep(0.2)
        with contextlib.suppress(TemporarilyUnavailable):
            waiting.result()
    assert len(ends) >= 4
    wait_until(lambda: grant(owner).generation == 2)
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert "in_doubt" not in dict(history(owner))


def test_M55_T4_a_waiter_takes_what_another_worker_stores(op: OpenIDProvider, owner: Owner) -> None:

    expire()
    hold(owner)

    def other_worker() -> None:
        with transaction.atomic():
            expire(left=3600)
            Grant.objects.filter(pk=owner.grant).update(
                generation=F("generation") + 1, lease_owner="", lease_until=None
            )
        connection.close()

    timer = threading.Timer(0.5, other_worker)
    timer.start()
    assert usable_token(owner).fresh_for > 0
    timer.join()
    assert op.refreshes == 0


def test_connections_do_not_leak(op: OpenIDProvider, owner: Owner) -> None:
    """A refresh's connection ends with its thread."""
    if connection.vendor != "postgresql":
        return
    for _ in range(5):
        expire()
        usable_token(owner)
    wait_until(lambda: connection_count() == 1)  # the server notices a moment later


def connection_count() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


# What another may find


@pytest.mark.parametrize("setting", [None, False])
def test_M55_two_views_in_turn_that_roll_back(
    op: OpenIDProvider, owner: Owner, site: Site, setting: bool | None
) -> None:
    """The second one stores what the first has lost, and loses it, too."""
    site.has(top={"OWN_CONNECTION": setting})
    expire()
    tokens = []
    for _ in range(2):
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            get_user_model().objects.update(first_name="Jane")
            tokens.append(usable_token(owner).access_token)
            raise ZeroDivisionError
    tokens.append(usable_token(owner).access_token)
    assert len(set(tokens)) == 1
    assert_at_rest(owner, generation=2)
    assert (op.refreshes, op.families_lost) == (1, 0)


@pytest.mark.parametrize("setting", [None, False])
def test_M55_whoever_waits_for_one_that_rolls_back_takes_what_it_got(
    op: OpenIDProvider, owner: Owner, site: Site, setting: bool | None
) -> None:
    """It had looked into the journal before there was anything, and waits for the row."""
    site.has(top={"OWN_CONNECTION": setting})
    expire()
    op.refresh_delay = 0.8

    def waits() -> Any:
        wait_until(lambda: op.calls("token"))
        try:
            return usable_token(owner).access_token
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(waits)
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            get_user_model().objects.update(first_name="Jane")
            new = usable_token(owner).access_token
            raise ZeroDivisionError
        assert waiting.result() == new
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


def test_M55_T7_nobody_spends_a_token_whose_successor_is_in_the_cache(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    """The worker that has put it there is gone; others wait for the end of its lease, and share
    no flight, as if each were a process."""
    site.has(top={"OWN_CONNECTION": False})
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        new = usable_token(owner).access_token
        raise ZeroDivisionError
    journal._after_fork()
    site.has()
    hold(owner)
    Grant.objects.update(lease_until=DatabaseClock(timedelta(seconds=0.4)))

    def one(number: int) -> Any:
        time.sleep(number * 0.011)
        try:
            return renew(Want(owner.grant, ANY)).access_token
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(one, range(8))) == {new}
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


def test_M55_a_slow_op_is_asked_once_where_no_lease_can_grow(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(top={"OWN_CONNECTION": False, "REFRESH_WAIT": 8})
    op.refresh_delay = 4.5
    expire()
    assert len(set(herd(owner, [ANY] * 3))) == 1
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


def test_M55_a_view_that_has_written_does_not_wait_for_one_that_cannot_write(
    op: OpenIDProvider, owner: Owner
) -> None:
    """SQLite: the other's refresh waits for the caller, who would have waited for it."""
    expire()
    written = threading.Event()

    def other() -> Any:
        written.wait(5)
        try:
            return usable_token(owner).access_token
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(other)
        with transaction.atomic():
            get_user_model().objects.update(first_name="Jane")
            written.set()
            time.sleep(0.3)  # the other has begun
            since = time.monotonic()
            new = usable_token(owner).access_token
            assert time.monotonic() - since < 3  # REFRESH_WAIT is 5
        assert waiting.result() == new
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


# Who else is at it


@pytest.mark.parametrize("fault", ["", "invalid_grant"])
def test_M55_a_receiver_that_asks_does_not_wait_for_itself(
    op: OpenIDProvider, owner: Owner, fault: str
) -> None:
    heard: list[Any] = []

    def hears(**_: Any) -> None:
        since = time.monotonic()
        try:
            heard.append(usable_token(owner).access_token)
        except LoginRequired as error:
            heard.append(error.code)
        heard.append(time.monotonic() - since < 2)

    op.refresh_fault = fault
    expire()
    signal = signals.grant_closed if fault else signals.tokens_refreshed
    signal.connect(hears)
    try:
        new: Any = usable_token(owner).access_token
    except LoginRequired as error:
        new = error.code
    finally:
        signal.disconnect(hears)
    assert heard == [new, True]
    assert (new == "grant.revoked_or_expired") is bool(fault)
    assert op.refreshes == 1


def test_M55_a_user_is_deleted_while_somebody_wants_a_token(
    op: OpenIDProvider, owner: Owner
) -> None:
    """At the last moment: the rows that depend on the grant are deleted already."""
    expire()
    codes: list[str] = []

    def asks() -> None:
        try:
            usable_token(owner)
        except LoginRequired as error:
            codes.append(error.code)

    thread = threading.Thread(target=in_between, args=[asks])

    def meanwhile(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith("DELETE") and "oidc_rp_grant" in sql and not thread.ident:
            thread.start()
            time.sleep(0.3)
        return execute(sql, params, many, context)

    with connection.execute_wrapper(meanwhile):
        get_user_model().objects.get(pk=owner.user_id).delete()
    thread.join()
    assert codes == ["grant.none"]
    assert not Grant.objects.exists()
    wait_until(lambda: to_revoke() == [])
    assert op.revocations == [("refresh_token", token) for token in op._refresh_tokens]
    assert op.refreshes == 0
