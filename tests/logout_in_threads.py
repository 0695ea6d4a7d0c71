"""Logged out by the OP while others are at work, on a database that threads can share; see
test_backchannel_logout.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/logout_in_threads.py
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path
from pytest_django import Settings

from oidc_rp import closing, grants, own_connection, session_index
from oidc_rp.models import Event, Identity, Session
from oidc_rp.sessions import row_of
from oidc_rp.testing import REMOVE, OpenIDProvider
from oidc_rp.testing.browser import Browser, Response
from tests.logout import (
    another,
    assert_refused,
    assert_signed_out,
    cookie,
    frame,
    is_stored,
    renewal,
    rows,
    send,
    sign_out,
    who,
)
from tests.refresh_in_threads import _nothing_is_left_running
from tests.test_sessions import engine
from tests.tokens import (
    Site,
    assert_closed,
    during,
    grant,
    in_between,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)
from tests.urls import urlpatterns as test_urlpatterns

__all__ = ["_nothing_is_left_running", "engine", "renewal", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

needs_row_locks = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite locks the whole database"
)


# Requests that are open


class Gate:
    """Where a view waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)


gate = Gate()


def reading(request: HttpRequest) -> HttpResponse:
    """A page that takes its time."""
    name = request.user.get_username()
    gate.wait()
    return HttpResponse(name)


def writing(request: HttpRequest) -> HttpResponse:
    """One that leaves something in the session, which is stored when it has answered."""
    request.session["basket"] = ["book"]
    gate.wait()
    return HttpResponse("written")


def saving(request: HttpRequest) -> HttpResponse:
    """One whose transaction has stored the session, and holds its row."""
    request.session["basket"] = ["book"]
    request.session.save()
    gate.wait()
    return HttpResponse("saved")


def holding(request: HttpRequest) -> HttpResponse:
    """One whose transaction holds the row of the index."""
    Session.objects.select_for_update().get(pk=row_of(request.session))
    gate.wait()
    return HttpResponse("held")


urlpatterns = [
    *test_urlpatterns,
    path("reading/", reading),
    path("writing/", writing),
    path("saving/", saving),
    path("holding/", holding),
]


@pytest.fixture(autouse=True)
def _our_views(settings: Settings) -> None:
    settings.ROOT_URLCONF = "tests.logout_in_threads"


@contextmanager
def open_request(browser: Browser, url: str) -> Iterator[list[Response]]:
    """Be in the middle of this request; its response is there when it has been let go on."""
    global gate
    gate, responses = Gate(), list[Response]()
    browser.client.raise_request_exception = False

    def visit() -> None:
        responses.append(browser.client.get(url))

    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(in_between, visit)
        try:
            assert gate.reached.wait(30), done.result()
            yield responses
        finally:
            gate.opened.set()
            done.result()


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """Do all these at the same moment, each in a thread; what came of each."""
    start = threading.Barrier(len(actions))

    def one(action: Callable[[], Any]) -> Any:
        start.wait(30)
        try:
            return action()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(actions)) as threads:
        return list(threads.map(one, actions))


def test_the_database_is_one_that_threads_share() -> None:
    assert not own_connection.must_share("default")


@pytest.mark.parametrize("by", ["sid", "sub"])
def test_M57_answered_while_a_request_of_the_same_person_is_open(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser, by: str
) -> None:
    """That one goes on as it began; the next one is nobody's."""
    browser.sign_in("op")
    named = {"sid": {"sub": REMOVE}, "sub": {"sid": REMOVE}}[by]
    with open_request(another(browser), "/reading/") as responses:
        assert_signed_out(sign_out(op, **named))
        assert rows() == set()
        assert who(another(browser)) == ""
        assert responses == []
    assert responses[0].status_code == 200
    assert responses[0].content
    assert who(browser) == ""


def test_M58_a_request_that_ends_later_brings_no_session_back(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """What it would store is a session that has ended."""
    browser.sign_in("op")
    key, slow = cookie(browser), another(browser)
    with open_request(slow, "/writing/"):
        assert_signed_out(sign_out(op))
    assert (who(slow), who(browser)) == ("", "")
    assert rows() == set()
    if engine != "signed_cookies":
        assert not is_stored(key)


@needs_row_locks
@pytest.mark.parametrize("engine", ["db", "cached_db"], indirect=True)
def test_M57_answered_while_a_transaction_holds_the_stored_session(
    engine: str,
    renewal: None,
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With ATOMIC_REQUESTS and a view that has stored it: it has ended, and is deleted as soon as
    it can be."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    owner = signed_in_here(site, browser, op)
    key = cookie(browser)
    with open_request(another(browser), "/saving/"):
        assert_signed_out(sign_out(op))
        (left,) = Session.objects.all()
        assert left.ended_at is not None
        assert_closed(owner, "backchannel_logout")
    wait_until(lambda: rows() == set() and not is_stored(key), 60)
    assert who(browser) == ""
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


@needs_row_locks
def test_M57_what_a_transaction_holds_of_the_index_is_an_error_that_may_be_repeated(
    renewal: None,
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No code of ours does, a site's own may. The OP is answered, and may ask again."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    browser.sign_in("op")
    token, sid = op.logout_token(), op.login.sid
    with open_request(another(browser), "/holding/"):
        told = {"logout_token": token}
        assert_refused(send(told), "logout.database", "temporarily_unavailable")
        assert_refused(frame(op, sid), "logout.database", "temporarily_unavailable")
        assert who(another(browser))
    assert_signed_out(send(told))
    assert who(browser) == ""
    assert_refused(send(told), "logout_token.jti")


class SessionStore(DatabaseStore):
    """An engine that deletes when it is let, and fails when it is told to."""

    may_delete = threading.Event()
    is_down = False

    def delete(self, session_key: str | None = None) -> None:
        if self.is_down:
            raise ConnectionError("the session store is down")
        assert self.may_delete.wait(30)
        super().delete(session_key)


@pytest.fixture
def own_engine(settings: Settings) -> None:
    settings.SESSION_ENGINE = "tests.logout_in_threads"
    SessionStore.may_delete.set()


def test_M57_a_store_that_takes_its_time_is_waited_for_and_then_not(
    own_engine: None, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Eight seconds; the OP may ask again, and the work goes on."""
    browser.sign_in("op")
    token = op.logout_token()
    SessionStore.may_delete.clear()
    try:
        response = send({"logout_token": token})
        assert_refused(response, "logout.busy", "temporarily_unavailable")
        assert Session.objects.get().ended_at is not None
    finally:
        SessionStore.may_delete.set()
    wait_until(lambda: rows() == set())
    assert who(browser) == ""
    assert_signed_out(send({"logout_token": token}))


def test_M58_a_store_that_is_down_for_a_moment_is_tried_again(
    own_engine: None,
    renewal: None,
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside the request; nobody waits for oidc_prune."""
    browser.sign_in("op")
    key = cookie(browser)
    monkeypatch.setattr(SessionStore, "is_down", True)
    assert_signed_out(sign_out(op))
    assert is_stored(key)
    monkeypatch.setattr(SessionStore, "is_down", False)
    wait_until(lambda: rows() == set() and not is_stored(key))


# Several at once


def test_M57_the_same_token_at_once_ends_once(
    op: OpenIDProvider, renewal: None, site: Site, browser: Browser
) -> None:
    """However many workers get it: each says that it is done, or that it was."""
    bound = signed_in_here(site, browser, op)
    told = {"logout_token": op.logout_token()}
    responses = at_once(*[lambda: send(told)] * 8)
    statuses = {response.status_code for response in responses}
    assert 200 in statuses
    for response in responses:
        if response.status_code != 200:
            assert_refused(response, "logout_token.jti")
    assert who(browser) == ""
    assert_closed(bound, "backchannel_logout")
    assert Event.objects.filter(name="session_ended").count() == 1
    assert Event.objects.filter(name="closed").count() == 1
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


def test_M58_every_session_ends_while_all_of_them_are_in_use(
    op: OpenIDProvider, renewal: None, site: Site, browser: Browser
) -> None:
    """By sub, by each sid and by a frame, all at the same moment."""
    browsers, sids = [browser, *(Browser() for _ in range(5))], []
    for each in browsers:
        sids.append(op.new_login().sid)
        each.sign_in("op")

    def use(one: Browser) -> Callable[[], Any]:
        return lambda: [one.client.get("/home/").status_code for _ in range(10)]

    tokens = [op.logout_token(sid=sid) for sid in sids] + [op.logout_token(sid=REMOVE)]
    outs = [lambda token=token: send({"logout_token": token}).status_code for token in tokens]
    frames = [lambda: frame(op, sids[0]).status_code]
    came = at_once(*(use(another(each)) for each in browsers), *outs, *frames)
    assert came[: len(browsers)] == [[200] * 10] * len(browsers)
    assert came[len(browsers) :] == [200] * (len(tokens) + 1)
    wait_until(lambda: rows() == set())
    assert [who(each) for each in browsers] == [""] * len(browsers)


def test_M56_here_and_at_the_op_at_once(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """The person signs out in a moment in which the OP does."""
    bound = signed_in_here(site, browser, op)
    token, tab = op.logout_token(), another(browser)
    mine, theirs = at_once(
        lambda: tab.client.post("/oidc/logout/").status_code,
        lambda: send({"logout_token": token}).status_code,
    )
    assert (mine in (200, 302), theirs) == (True, 200)
    wait_until(lambda: rows() == set())
    assert (who(browser), who(tab)) == ("", "")
    assert grant(bound).status == "closed"
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


@pytest.mark.parametrize("by", ["sid", "sub", "this browser"])
def test_M60_a_logout_beats_a_login_in_flight(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser, by: str
) -> None:
    """On connections of their own as well."""
    browser.sign_in("op")
    ways: dict[str, Callable[[], Any]] = {
        "sid": lambda: sign_out(op, sub=REMOVE),
        "sub": lambda: sign_out(op, sid=REMOVE),
        "this browser": lambda: another(browser).client.post("/oidc/logout/"),
    }
    op.answer["token"] = during(ways[by])
    response = browser.sign_in("op")
    assert response.status_code == 403
    assert response.context["code"] == "session.ended"
    assert (who(browser), rows()) == ("", set())


@needs_row_locks
def test_M60_a_session_that_the_caller_cannot_see_yet_ends_as_well(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """An operator's transaction is older than it (REPEATABLE READ)."""
    browser.sign_in("op")
    one, late = Identity.objects.get(), Browser()
    callback = late.visit_op(late.start("op"))
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert Session.objects.count() == 1
        assert at_once(lambda: late.come_back(callback).status_code) == [302]
        assert Session.objects.count() == (1 if connection.vendor == "postgresql" else 2)
        assert closing.sign_out([one], grants.LOGOUT) == 2
    assert (who(browser), who(late), rows()) == ("", "", set())


def test_M60_logins_and_logouts_in_any_order(
    op: OpenIDProvider, renewal: None, site: Site, browser: Browser
) -> None:
    """Each login began before the logout, so none of them is left when all have been answered."""
    browsers = [Browser() for _ in range(4)]

    def finish(one: Browser) -> Callable[[], int]:
        one.client.raise_request_exception = False
        callback = one.visit_op(one.start("op"))
        return lambda: int(one.come_back(callback).status_code)

    for _ in range(3):
        steps = [*map(finish, browsers)]
        came = at_once(*steps, lambda: sign_out(op, sid=REMOVE).status_code)
        assert came[-1] == 200
        assert set(came[:-1]) <= {302, 400, 403}
        assert [who(each) for each in browsers] == [""] * 4
        assert rows() == set()


def test_a_transaction_of_the_callers_takes_the_stored_session_with_it(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """It goes when that commits, and not when it is rolled back."""
    browser.sign_in("op")
    key = cookie(browser)
    with suppress(ZeroDivisionError), transaction.atomic():
        closing.end_sessions(session_index.rows(), "logout")
        raise ZeroDivisionError
    assert (is_stored(key), len(rows())) == (True, 1)
    assert Session.objects.get().ended_at is None
    with transaction.atomic():
        closing.end_sessions(session_index.rows(), "logout")
        assert is_stored(key)
    assert (is_stored(key), rows()) == (False, set())
