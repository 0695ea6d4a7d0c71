"""Linking and unlinking at once, on a database that threads share; see test_identities.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/identities_in_threads.py
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.db.models.signals import pre_delete, pre_save
from django.test import Client

from oidc_rp.models import Identity
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser, Response
from tests.test_accounts import MODEL_BACKEND
from tests.test_identities import PAGE, Told, heard, post, start_link, told

__all__ = ["heard"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("configure")]

PEOPLE = 4


@dataclass
class Attempt:
    """Something that a browser does; what came of it is read when nobody renders any more, for a
    test client takes what other threads render for its own."""

    browser: Browser
    send: Callable[[], Response]

    def outcome(self, response: Response) -> str:
        """What our page says then, where the browser is sent, or the code of a refusal."""
        if response.status_code == 302:
            location = str(response.headers["Location"])
            return told(self.browser, response) if location == PAGE else location
        assert response.status_code == 403, response.content
        return re.findall(r"<code [^>]*>([a-z_.]+)</code>", response.content.decode())[-1]


def at_once(attempts: list[Attempt]) -> list[str]:
    """What came of each, all begun at the same moment in threads of their own."""
    start = Barrier(len(attempts))

    def one(attempt: Attempt) -> Response:
        try:
            start.wait(10)
            return attempt.send()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(attempts)) as threads:
        responses = list(threads.map(one, attempts))
    return [attempt.outcome(it) for attempt, it in zip(attempts, responses, strict=True)]


@contextlib.contextmanager
def meeting(signal: Any, number: int, seconds: float) -> Iterator[None]:
    """Let those who are about to save or to delete an identity wait for each other, and no longer
    than so many seconds: who keeps the others out meets nobody."""
    barrier = Barrier(number)

    def wait(**_: Any) -> None:
        with contextlib.suppress(BrokenBarrierError):
            barrier.wait(seconds)

    signal.connect(wait, sender=Identity)
    try:
        yield
    finally:
        signal.disconnect(wait, sender=Identity)


def local(user: User) -> Browser:
    """A browser where this user has just signed in, by no OP."""
    browser = Browser(Client())
    browser.client.force_login(user, MODEL_BACKEND)
    return browser


def finish_link(browser: Browser) -> Attempt:
    """Be at the OP already; then come back."""
    callback = start_link(browser)
    return Attempt(browser, lambda: browser.come_back(callback))


def test_M38_two_who_link_the_same_identity_at_once(op: OpenIDProvider) -> None:
    """Exactly one has it then, the others are refused, and it is not moved."""
    users = [User.objects.create_user(f"user{number}") for number in range(PEOPLE)]
    attempts = [finish_link(local(user)) for user in users]
    with meeting(pre_save, PEOPLE, 10):
        outcomes = at_once(attempts)
    assert sorted(outcomes) == ["account.linked_elsewhere"] * (PEOPLE - 1) + ["linked"]
    assert Identity.objects.get().user == users[outcomes.index("linked")]
    assert User.objects.count() == PEOPLE


def test_M38_one_who_links_it_twice_at_once(op: OpenIDProvider, heard: Told) -> None:
    """In two tabs, or by a double click: both are told so, the receivers once."""
    user = User.objects.create_user("jane")
    attempts = [finish_link(local(user)) for _ in range(2)]
    with meeting(pre_save, 2, 10):
        assert sorted(at_once(attempts)) == ["linked", "linked_before"]
    assert Identity.objects.get().user == user
    assert [name for name, _ in heard] == ["identity_linked"]


def test_M38_linking_it_and_signing_up_with_it_at_once(op: OpenIDProvider) -> None:
    """It belongs to one of the two, and nothing is left of the other's attempt."""
    jane, newcomer = User.objects.create_user("jane"), Browser(Client())
    callback = newcomer.visit_op(newcomer.start("op"))
    sign_up = Attempt(newcomer, lambda: newcomer.come_back(callback))
    with meeting(pre_save, 2, 10):
        linking, signing_up = at_once([finish_link(local(jane)), sign_up])
    identity = Identity.objects.get()
    assert signing_up == "/home/"
    assert linking == ("linked" if identity.user == jane else "account.linked_elsewhere")
    assert User.objects.count() == (1 if identity.user == jane else 2)
    assert newcomer.client.session["_auth_user_id"] == str(identity.user_id)


def two_ways(op: OpenIDProvider) -> tuple[User, list[Identity]]:
    """Somebody with two identities, and no other way in."""
    user = User.objects.create_user("jane")
    common = {"user": user, "provider": "op", "iss": op.issuer}
    return user, [Identity.objects.create(**common, sub=sub) for sub in ("one", "two")]


def unlink(browser: Browser, identity: Identity) -> Attempt:
    fields = {"identity": identity.pk, "confirmed": "1"}
    return Attempt(browser, lambda: post(browser, "unlink", **fields))


def test_M38_both_ways_in_unlinked_at_once_lock_nobody_out(op: OpenIDProvider) -> None:
    """One goes, the other one is the last then and stays."""
    for _ in range(3):
        user, identities = two_ways(op)
        attempts = [unlink(local(user), identity) for identity in identities]
        with meeting(pre_delete, 2, 1):
            outcomes = at_once(attempts)
        assert sorted(outcomes) == ["last_way_in", "unlinked"]
        assert Identity.objects.get(user=user) == identities[outcomes.index("last_way_in")]
        user.delete()


def test_an_identity_unlinked_twice_at_once_is_told_once(op: OpenIDProvider, heard: Told) -> None:
    user, identities = two_ways(op)
    attempts = [unlink(local(user), identities[0]) for _ in range(2)]
    with meeting(pre_delete, 2, 1):
        assert at_once(attempts) == ["unlinked", "unlinked"]
    assert Identity.objects.get(user=user) == identities[1]
    assert [name for name, _ in heard] == ["identity_unlinked"]


def test_M38_a_link_and_an_unlinking_at_once(op: OpenIDProvider) -> None:
    """Whoever links a second way in may give up the first one; before that, it is the last."""
    user = User.objects.create_user("jane")
    first = Identity.objects.create(user=user, provider="op", iss=op.issuer, sub="one")
    attempts = [finish_link(local(user)), unlink(local(user), first)]
    linking, unlinking = at_once(attempts)
    assert linking == "linked"
    assert unlinking in ("last_way_in", "unlinked")
    assert user.oidc_identities.count() == (1 if unlinking == "unlinked" else 2)  # type: ignore[attr-defined]
