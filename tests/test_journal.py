"""The journal of rotated tokens: kept in this process and in the cache, until they are stored."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
from django.core.cache import cache
from pytest_django import Settings

from oidc_rp import journal
from oidc_rp.grants import Rotation

FIRST = Rotation(
    grant="0" * 32,
    since=3,
    generation=3,
    refresh_token="v1.0123456789abcdef.sealed",
    access={"access_token": "v1.0123456789abcdef.sealed", "expires_at": None},
    refreshed_by="host:1",
    idle_until=1,
)
SECOND = replace(FIRST, since=4, generation=4, refresh_token="v1.0123456789abcdef.next")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    cache.clear()
    yield
    for rotation in journal.waiting():
        journal.drop(rotation)


def in_another_process() -> None:
    """Forget what only this process knows."""
    journal._after_fork()


def found(generation: int, *, elsewhere: bool = True) -> Rotation | None:
    return journal.find(FIRST.grant, generation, elsewhere=elsewhere)


def test_M55_an_entry_is_found_until_it_is_dropped() -> None:
    assert found(3) is None
    journal.stash(FIRST)
    assert found(3) == found(3, elsewhere=False) == FIRST
    assert journal.waiting() == (FIRST,)
    journal.drop(FIRST)
    assert found(3) is None
    assert journal.waiting() == ()


def test_M55_another_process_finds_it_in_the_cache() -> None:
    journal.stash(FIRST)
    in_another_process()
    assert journal.waiting() == ()
    assert found(3, elsewhere=False) is None
    assert found(3) == FIRST
    journal.drop(FIRST)
    assert found(3) is None


def test_M55_what_the_grant_has_outlived_is_not_found() -> None:
    journal.stash(FIRST)
    assert found(4) is None


def test_M55_successors_that_were_rolled_back_together_replace_the_first_one() -> None:
    journal.stash(FIRST)
    journal.stash(SECOND)
    chained = replace(SECOND, since=3)
    assert found(3) == chained
    assert journal.waiting() == (chained,)
    in_another_process()
    assert found(3) == chained


def test_M55_the_first_one_being_stored_does_not_lose_the_second() -> None:
    journal.stash(FIRST)
    journal.stash(SECOND)
    journal.drop(FIRST)
    assert found(4) == replace(SECOND, since=3)
    in_another_process()
    assert found(4) == replace(SECOND, since=3)
    journal.drop(SECOND)
    assert found(4) is None


def test_M55_a_later_one_stands_for_itself_when_there_is_a_gap() -> None:
    journal.stash(FIRST)
    later = replace(SECOND, since=7, generation=7)
    journal.stash(later)
    assert journal.waiting() == (later,)


@pytest.mark.parametrize("failing", ["RaisingCache", "SilentCache"])
def test_M55_without_a_cache_the_process_keeps_it(settings: Settings, failing: str) -> None:
    settings.CACHES = {"default": {"BACKEND": f"tests.cache.{failing}"}}
    journal.stash(FIRST)
    assert found(3) == FIRST
    journal.drop(FIRST)
    assert found(3) is None


@pytest.mark.parametrize("value", ["text", {"grant": "x"}, 3, [FIRST]])
def test_M55_what_somebody_else_put_into_the_cache_is_nothing(value: Any) -> None:
    cache.set(journal._key(FIRST.grant), value)
    assert found(3) is None


def stashed_elsewhere(rotation: Rotation) -> None:
    """Be another process, that shares the cache."""
    cache.set(journal._key(rotation.grant), asdict(rotation))


@pytest.mark.parametrize(("here", "there"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_M55_the_newest_counts_wherever_it_is(here: Rotation, there: Rotation) -> None:
    journal.stash(here)
    stashed_elsewhere(there)
    assert found(3) == found(4) == SECOND
    assert found(3, elsewhere=False) == here


def test_M55_an_older_one_being_dropped_deletes_no_newer_one() -> None:
    journal.stash(FIRST)
    stashed_elsewhere(SECOND)
    journal.drop(FIRST)
    assert journal.waiting() == ()
    assert found(4) == SECOND
    journal.drop(SECOND)
    assert found(4) is None
