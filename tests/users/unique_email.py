"""Scenarios with UniqueEmailUser on a database file: run by tests/test_accounts.py."""

from itertools import count
from threading import Barrier, Thread
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from oidc_rp.models import Identity
from oidc_rp.testing import REMOVE, OpenIDProvider, merged
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.users import backends
from tests.users.models import UniqueEmailUser

PEOPLE, CROWD = 4, 6


def sign_in() -> UniqueEmailUser:
    browser = Browser()
    assert browser.sign_in("op").url == "/home/"
    return UniqueEmailUser.objects.get(pk=browser.client.session["_auth_user_id"])


def come_back_at_once(browsers: list[Browser]) -> list[int]:
    """Let all of them sign in, at the same moment; return the statuses."""
    callbacks = [browser.visit_op(browser.start("op")) for browser in browsers]
    statuses: list[int] = []
    start = Barrier(len(browsers))

    def come_back(browser: Browser, callback: Any) -> None:
        try:
            start.wait(timeout=10)
            statuses.append(browser.come_back(callback).status_code)
        finally:
            connections.close_all()

    threads = [
        Thread(target=come_back, args=pair) for pair in zip(browsers, callbacks, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return statuses


@pytest.mark.usefixtures("browser")
def test_M35_a_unique_address_of_another_is_refused() -> None:
    """At creation: no other account, and nothing left behind."""
    other = UniqueEmailUser.objects.create_user("other", "janedoe@example.com")
    response = Browser().sign_in("op")
    assert (response.status_code, response.context["code"]) == (403, "account.collision")
    assert list(UniqueEmailUser.objects.all()) == [other]
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("browser")
def test_M35_a_unique_address_that_becomes_anothers_locks_nobody_out(op: OpenIDProvider) -> None:
    """At a later sign-in: the old address stays, everything else is brought up to date."""
    user = sign_in()
    UniqueEmailUser.objects.create_user("other", "other@example.com")
    op.person |= {"email": "other@example.com", "given_name": "Janet"}
    again = sign_in()
    assert again == user
    assert (again.email, again.first_name) == ("janedoe@example.com", "Janet")


@pytest.mark.usefixtures("browser")
@pytest.mark.parametrize("email", [REMOVE, None, "", 5])
def test_an_address_that_must_be_unique_must_be_there(op: OpenIDProvider, email: Any) -> None:
    """Otherwise the second person without one would collide with the first."""
    op.person = merged(op.person, {"email": email})
    assert Browser().sign_in("op").context["code"] == "account.email_missing"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("given", ["sub", "sub and groups"])
def test_M35_the_same_new_person_coming_at_once_is_one_user(
    op: OpenIDProvider, configure: Configure, given: str
) -> None:
    """All are signed in, as one user with one identity; nothing is left of the others' attempts."""
    if given == "sub and groups":
        configure(GROUPS_CLAIM="groups", GROUPS={"editor": "Editors"}, STAFF_GROUPS=["admin"])
        op.person["groups"] = ["editor", "admin"]
    browsers = [Browser() for _ in range(PEOPLE)]
    backends.meeting = Barrier(PEOPLE)
    statuses = come_back_at_once(browsers)
    backends.meeting = Barrier(1)
    assert statuses == [302] * PEOPLE
    user = UniqueEmailUser.objects.get()
    assert Identity.objects.get().user == user
    signed_in = {browser.client.session["_auth_user_id"] for browser in browsers}
    assert signed_in == {str(user.pk)}


@pytest.mark.django_db(transaction=True)
def test_groups_that_move_people_who_come_at_once_lock_no_database(
    op: OpenIDProvider, configure: Configure
) -> None:
    """Each waits for the other's write; on SQLite who reads first and writes then could not."""
    configure(
        GROUPS_CLAIM="groups", GROUPS={"a": "A", "b": "B"}, STAFF_GROUPS=["b"], USERINFO=False
    )
    numbers = count()

    def make_id_token(claims: dict[str, Any], header: dict[str, Any]) -> str:
        sub = f"person{next(numbers) % CROWD}"
        return op.sign(claims | {"sub": sub, "email": f"{sub}@example.com", "groups": now}, header)

    op.make_id_token = make_id_token
    for now in (["a"], ["b"]):
        crowd = [Browser(Client(raise_request_exception=False)) for _ in range(CROWD)]
        assert come_back_at_once(crowd) == [302] * CROWD
        named = [name.upper() for name in now] * CROWD
        assert [*UniqueEmailUser.objects.values_list("groups__name", flat=True)] == named
