"""The index of browser sessions: a row for each that began at an OP, true on every engine."""

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore as DatabaseStore
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from oidc_rp import closing, session_index, session_store
from oidc_rp.models import DatabaseClock, Identity, Session, digest
from oidc_rp.sealing import generate_key, key_id, key_ring
from oidc_rp.sessions import row_of
from oidc_rp.testing import REMOVE, OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.logout import (
    another,
    change_password,
    cookie,
    give_password,
    is_stored,
    renewal,
    row,
    rows,
    who,
)
from tests.test_sessions import engine
from tests.tokens import (
    Site,
    assert_closed,
    bound,
    grant,
    history,
    owner,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "engine", "owner", "renewal", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)
LOCAL = "django.contrib.auth.backends.ModelBackend"


def user() -> User:
    return get_user_model().objects.get()


def unseen_for(time: timedelta) -> None:
    """Let nobody have used any session for so long."""
    Session.objects.update(last_seen_at=DatabaseClock(-time), created_at=DatabaseClock(-time))


def alive(someone: Any = None) -> list[str]:
    return [row.pk for row in session_index.alive(someone or user())]


# A row for each session


def test_M58_a_login_writes_a_row_under_its_new_key(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    """It is there when the callback answers, and names the session as the engine does."""
    op.login.acr, op.login.amr = "gold", ["pwd", "otp"]
    before = timezone.now()
    callback = browser.visit_op(browser.start("op"))
    planted = cookie(browser)
    browser.client.defaults["HTTP_USER_AGENT"] = "Mozilla/5.0 (X11)"
    browser.come_back(callback)
    found = row(browser)
    assert [found] == [*Session.objects.all()]
    assert found.session_key == ("" if engine == "signed_cookies" else cookie(browser))
    assert found.session_key != planted
    assert found.identity == Identity.objects.get()
    assert (found.provider, found.sid) == ("op", op.login.sid)
    assert found.sid_digest == digest(op.issuer, op.login.sid)
    assert found.auth_time is not None
    assert found.auth_time.timestamp() == op.login.auth_time
    assert (found.acr, found.amr) == ("gold", ["pwd", "otp"])
    assert found.user_agent == "Mozilla/5.0 (X11)"
    for moment in (found.created_at, found.last_seen_at, found.renewed_at):
        assert before - timedelta(seconds=1) < moment < timezone.now() + timedelta(seconds=1)
    assert (found.tried_at, found.failed_at, found.ended_at) == (None, None, None)


@pytest.mark.parametrize(
    ("claims", "columns"),
    [
        ({"sid": REMOVE}, {"sid": "", "sid_digest": None}),
        ({"sid": ""}, {"sid": "", "sid_digest": None}),
        ({"sid": 7}, {"sid": "", "sid_digest": None}),
        ({"sid": ["a"]}, {"sid": "", "sid_digest": None}),
        ({"sid": "x" * 256}, {"sid": "", "sid_digest": None}),
        ({"sid": "x" * 255}, {"sid": "x" * 255}),
        ({"sid": "é\U0001f600 '%"}, {"sid": "é\U0001f600 '%"}),
        ({"acr": ["gold"]}, {"acr": ""}),
        ({"acr": 1}, {"acr": ""}),
        ({"acr": "x" * 5000}, {"acr": "x" * 5000}),
        ({"amr": "pwd"}, {"amr": []}),
        ({"amr": ["pwd", 1, None, "otp"]}, {"amr": ["pwd", "otp"]}),
        ({"auth_time": REMOVE}, {"auth_time": None}),
        ({"auth_time": "yesterday"}, {"auth_time": None}),
    ],
)
def test_whatever_the_op_says_of_its_session_breaks_no_login(
    op: OpenIDProvider, browser: Browser, claims: dict[str, Any], columns: dict[str, Any]
) -> None:
    """A claim that nobody can use is as good as none."""
    op.id_token_claims = claims
    assert browser.sign_in("op").status_code == 302
    found = row(browser)
    assert {name: getattr(found, name) for name in columns} == columns


@pytest.mark.parametrize(
    ("sent", "noted"), [("a\x00b", "ab"), ("x" * 5000, "x" * 256), ("", ""), ("é", "é")]
)
def test_whatever_a_browser_calls_itself_breaks_no_login(
    browser: Browser, sent: str, noted: str
) -> None:
    browser.client.defaults["HTTP_USER_AGENT"] = sent
    assert browser.sign_in("op").status_code == 302
    assert row(browser).user_agent == noted


def test_M58_each_browser_has_a_row_and_signing_in_again_replaces_it(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    other = Browser()
    browser.sign_in("op")
    other.sign_in("op")
    first, others = row(browser), row(other)
    assert rows() == {first.pk, others.pk}
    op.new_login()
    browser.sign_in("op")
    again = row(browser)
    assert rows() == {again.pk, others.pk}
    assert again.pk != first.pk
    assert again.sid == op.login.sid != first.sid
    if engine != "signed_cookies":
        assert again.session_key == cookie(browser) != first.session_key


def test_M58_somebody_else_in_the_same_browser_leaves_no_row(
    engine: str, op: OpenIDProvider, browser: Browser
) -> None:
    browser.sign_in("op")
    op.person, _ = {"sub": "somebody else"}, op.new_login()
    browser.sign_in("op")
    assert rows() == {row(browser).pk}
    assert row(browser).identity.sub == "somebody else"


def test_a_refused_login_leaves_no_row(op: OpenIDProvider, browser: Browser) -> None:
    """Not even where there was one before: the session of before goes on."""
    browser.sign_in("op")
    before = row(browser)
    op.id_token_claims["aud"] = "somebody-else"
    assert browser.sign_in("op").status_code == 400
    assert (rows(), row(browser)) == ({before.pk}, before)
    assert who(browser)


# The end of a session


def log_out(browser: Browser) -> None:
    browser.client.post("/oidc/logout/")


def log_out_by_django(browser: Browser) -> None:
    browser.client.logout()


def log_out_by_the_admin(browser: Browser) -> None:
    User.objects.update(is_staff=True)
    assert browser.client.post("/admin/logout/").status_code == 200


@pytest.mark.parametrize("leave", [log_out, log_out_by_django, log_out_by_the_admin])
def test_M56_no_row_outlives_its_session(engine: str, browser: Browser, leave: Any) -> None:
    """Whatever view of whatever app signs out."""
    other = Browser()
    for each in (browser, other):
        each.sign_in("op")
    left, stays = row(browser), row(other)
    key = cookie(browser)
    leave(browser)
    assert rows() == {stays.pk}
    assert who(browser) == ""
    if engine != "signed_cookies":
        assert not is_stored(key)
        assert not is_stored(left.session_key)
    assert who(other)


def test_M58_a_local_login_of_the_same_user_takes_the_row(engine: str, browser: Browser) -> None:
    """The session is no longer one that began at the OP, whose logout has no say in it."""
    browser.sign_in("op")
    browser.client.force_login(user(), backend=LOCAL)
    assert rows() == set()
    assert row_of(browser.client.session) == ""
    assert who(browser) == user().get_username()


def test_M58_so_does_one_of_another_user(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Django empties the session before it tells: the middleware has seen what was in it."""
    bound = signed_in_here(site, browser, op)
    admin = User.objects.create_superuser("root", password="root")
    form = {"username": "root", "password": "root", "next": "/home/"}
    assert browser.client.post("/admin/login/", form).status_code == 302
    assert who(browser) == admin.get_username()
    assert rows() == set()
    assert_closed(bound, "logout")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


@pytest.mark.parametrize("what", [Identity, User])
def test_M58_who_is_unlinked_or_deleted_is_signed_in_nowhere(
    engine: str, renewal: None, browser: Browser, what: Any
) -> None:
    """The stored sessions go with the rows; one that lives in a cookie is good for nothing."""
    browsers = [browser, Browser()]
    for each in browsers:
        each.sign_in("op")
    keys = [cookie(each) for each in browsers]
    what.objects.get().delete()
    assert rows() == set()
    assert [who(each) for each in browsers] == ["", ""]
    if engine != "signed_cookies":
        assert [is_stored(key) for key in keys] == [False, False]


def test_M58_a_deletion_that_is_rolled_back_ends_nothing(
    engine: str, renewal: None, browser: Browser
) -> None:
    """Nor does one whose transaction is still open."""
    browser.sign_in("op")
    key = cookie(browser)
    with suppress(ZeroDivisionError), transaction.atomic():
        Identity.objects.get().delete()
        raise ZeroDivisionError
    assert who(browser)
    with transaction.atomic():
        Identity.objects.get().delete()
        if engine in ("cache", "file"):
            assert is_stored(key)
    assert who(browser) == ""
    assert rows() == set()
    if engine != "signed_cookies":
        assert not is_stored(key)


def test_M58_nobody_else_is_signed_out_by_that(
    engine: str, renewal: None, op: OpenIDProvider, browser: Browser
) -> None:
    other = Browser()
    browser.sign_in("op")
    op.person = {"sub": "somebody else"}
    other.sign_in("op")
    Identity.objects.exclude(sub="somebody else").get().delete()
    assert rows() == {row(other).pk}
    assert (who(browser), bool(who(other))) == ("", True)


def test_a_second_identity_of_the_same_user_keeps_its_sessions(
    op: OpenIDProvider, browser: Browser
) -> None:
    """To unlink one takes its own sessions, and no others."""
    other = Browser()
    browser.sign_in("op")
    op.person = {"sub": "another sign-in"}
    other.sign_in("op")
    Identity.objects.update(user=User.objects.earliest("pk"))
    Identity.objects.get(sub="another sign-in").delete()
    assert (who(other), bool(who(browser))) == ("", True)


def test_M38_who_is_deactivated_is_signed_out(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Rows, stored sessions and what was granted to them go at once, and come back with nobody."""
    bound = signed_in_here(site, browser, op)
    key, someone = cookie(browser), user()
    someone.is_active = False
    someone.save()
    assert rows() == set()
    assert_closed(bound, "deactivated")
    someone.is_active = True
    someone.save()
    assert who(browser) == ""
    if engine != "signed_cookies":
        assert not is_stored(key)


def test_a_user_that_is_saved_keeps_the_sessions(browser: Browser) -> None:
    browser.sign_in("op")
    user().save()
    assert len(rows()) == 1
    assert who(browser)


# Which are alive


def test_the_latest_is_the_first(op: OpenIDProvider, engine: str, browser: Browser) -> None:
    """Of this user alone; a session that has ended is none, whatever still has it."""
    browsers = [browser, Browser(), Browser()]
    for each in browsers:
        each.sign_in("op")
    first, second, third = (row(each).pk for each in browsers)
    op.person = {"sub": "somebody else"}
    Browser().sign_in("op")
    someone = User.objects.earliest("pk")
    assert alive(someone) == [third, second, first]
    Session.objects.filter(pk=second).update(ended_at=DatabaseClock())
    assert alive(someone) == [third, first]


def test_a_password_that_changes_ends_them_for_django_and_here(
    engine: str, browser: Browser
) -> None:
    """Elsewhere: by another browser, an operator, a command."""
    browser.sign_in("op")
    assert alive() == [row(browser).pk]
    someone = user()
    someone.set_password("another one")
    someone.save()
    assert alive() == []
    assert who(browser) == ""


def test_the_browser_that_changes_the_password_goes_on(
    engine: str, renewal: None, settings: Settings, browser: Browser
) -> None:
    """Under a new key; the others are over."""
    settings.ROOT_URLCONF = "tests.logout"
    browser.sign_in("op")
    give_password(browser)
    other = Browser()
    for each in (browser, other):
        each.sign_in("op")
    before = row(browser)
    change_password(browser)
    assert alive() == [row(browser).pk]
    assert (bool(who(browser)), who(other)) == (True, "")
    if engine != "signed_cookies":
        assert row(browser).session_key == cookie(browser) != before.session_key
    assert row(browser).pk == before.pk


def test_a_secret_key_that_is_replaced_ends_none(
    browser: Browser, renewal: None, settings: Settings
) -> None:
    """Not for as long as the old one is a fallback."""
    browser.sign_in("op")
    old = django_settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "n" * 50, [old]
    assert alive() == [row(browser).pk]
    assert who(browser)  # Django gives it a new key and hash
    settings.SECRET_KEY_FALLBACKS = []
    assert alive() == [row(browser).pk]
    assert row(browser).session_key == cookie(browser)
    settings.SECRET_KEY = "m" * 50
    assert alive() == []


def test_a_session_that_has_expired_is_not_alive(engine: str, browser: Browser) -> None:
    """Nobody has told the index; a cookie that lives elsewhere cannot be asked."""
    browser.sign_in("op")
    session = browser.client.session
    session.set_expiry(-1)
    session.save()
    assert bool(alive()) == (engine == "signed_cookies")
    if engine == "signed_cookies":
        return
    assert who(browser) == ""
    call_command("clearsessions")
    assert alive() == []


def test_asking_for_those_alive_changes_nothing(
    engine: str, browser: Browser, tmp_path: Any
) -> None:
    """Not in the store, where some engines make a session of one that has expired."""
    browser.sign_in("op")
    session = browser.client.session
    session.set_expiry(-1)
    session.save()
    files, there = sorted(tmp_path.iterdir()), django_sessions()
    alive()
    session_store.alive(["a" * 32, "", session.session_key])
    assert len(sorted(tmp_path.iterdir())) <= len(files)
    assert django_sessions() <= there


def django_sessions() -> int:
    from django.contrib.sessions.models import Session as DjangoSession

    return DjangoSession.objects.count()


def test_a_session_that_the_store_has_lost_is_not_alive(engine: str, browser: Browser) -> None:
    browser.sign_in("op")
    browser.client.session.delete()
    assert bool(alive()) == (engine == "signed_cookies")


class SessionStore(DatabaseStore):
    """An engine of a site's own, which notes what it is asked to delete, and may be down."""

    deleted: list[str] = []
    is_down = False
    fails_at = ""

    def delete(self, session_key: str | None = None) -> None:
        if self.is_down or (session_key and session_key == self.fails_at):
            raise ConnectionError("the session store is down")
        self.deleted.append(str(session_key or self.session_key))
        super().delete(session_key)


def test_an_engine_of_the_sites_own_deletes_in_its_own_way(
    op: OpenIDProvider, settings: Settings, browser: Browser
) -> None:
    settings.SESSION_ENGINE = "tests.test_session_index"
    browser.sign_in("op")
    SessionStore.deleted.clear()
    assert alive() == [row(browser).pk]
    key = cookie(browser)
    assert closing.end_sessions(session_index.rows(), "logout") == 1
    assert SessionStore.deleted == [key]
    assert who(browser) == ""


def test_M58_one_that_cannot_be_deleted_keeps_no_other(
    op: OpenIDProvider,
    site: Site,
    renewal: None,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that fails for one key; the rows stay until it does not."""
    settings.SESSION_ENGINE = "tests.test_session_index"
    browsers = [Browser() for _ in range(3)]
    for each in browsers:
        each.sign_in("op")
    keys = [cookie(each) for each in browsers]
    monkeypatch.setattr(SessionStore, "fails_at", keys[0])
    assert closing.end_sessions(session_index.rows(), "logout") == 3
    assert [is_stored(key) for key in keys] == [True, False, False]
    monkeypatch.setattr(SessionStore, "fails_at", "")
    pruned()
    assert rows() == set()
    assert not is_stored(keys[0])


def test_M58_thousands_end_as_one_does(op: OpenIDProvider, browser: Browser) -> None:
    """However many a person has: no statement names them all."""
    browser.sign_in("op")
    found = row(browser)
    more = [Session(identity=found.identity, provider="op") for _ in range(2500)]
    Session.objects.bulk_create(more)
    assert closing.end_sessions(session_index.rows(), "logout") == 2501
    assert (rows(), who(browser)) == (set(), "")


def test_keys_that_are_not_there_are_no_mistake(engine: str) -> None:
    session_store.delete(["", "a" * 32, "b" * 32])
    session_store.delete([])
    if engine != "signed_cookies":
        assert session_store.alive(["a" * 32, ""]) == set()


# Kept true


def test_the_use_of_a_session_is_noted_every_five_minutes(
    engine: str, renewal: None, browser: Browser
) -> None:
    browser.sign_in("op")
    for minutes, noted in ((4, False), (6, True)):
        Session.objects.update(last_seen_at=DatabaseClock(-timedelta(minutes=minutes)))
        before = row(browser).last_seen_at
        assert who(browser)
        assert (row(browser).last_seen_at != before) == noted
    assert timezone.now() - row(browser).last_seen_at < timedelta(minutes=4)


def test_a_session_whose_row_is_gone_is_good_for_nothing(
    engine: str, renewal: None, browser: Browser
) -> None:
    """And one whose row says that it has ended; whatever the store still has."""
    browser.sign_in("op")
    kept = another(browser)
    Session.objects.update(ended_at=DatabaseClock())
    assert (who(browser), who(kept)) == ("", "")
    assert cookie(browser) == ""
    browser.sign_in("op")
    Session.objects.all().delete()
    assert who(browser) == ""


# The ID Token


def test_M51_the_id_token_is_sealed_to_its_row(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    issued: list[str] = []
    op.make_id_token = lambda claims, header: issued.append(op.sign(claims, header)) or issued[-1]
    browser.sign_in("op")
    found = row(browser)
    assert found.key_id == key_id(found.id_token) == key_ring().key_ids[0]
    assert issued[0] not in found.id_token
    assert issued[0].split(".")[1] not in found.id_token
    hint = session_index.id_token_of(found)
    assert hint is not None
    assert hint.reveal() == issued[0]
    other = Browser()
    other.sign_in("op")
    swapped = row(other)
    swapped.id_token = found.id_token
    assert session_index.id_token_of(swapped) is None


def test_M51_without_keys_no_id_token_is_kept(configure: Configure, browser: Browser) -> None:
    browser.sign_in("op")
    assert (row(browser).id_token, row(browser).key_id) == ("", "")
    assert session_index.id_token_of(row(browser)) is None


def test_M51_an_id_token_whose_key_is_lost_is_none(site: Site, browser: Browser) -> None:
    browser.sign_in("op")
    site.has(top={"TOKEN_KEYS": [generate_key()]})
    assert session_index.id_token_of(row(browser)) is None
    site.has(top={"TOKEN_KEYS": []})
    assert session_index.id_token_of(row(browser)) is None


def test_M53_nothing_shows_the_id_token(
    op: OpenIDProvider, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the log of a whole session's life nor what Python writes of the row."""
    caplog.set_level(logging.DEBUG)
    issued: list[str] = []
    op.make_id_token = lambda claims, header: issued.append(op.sign(claims, header)) or issued[-1]
    browser.sign_in("op")
    found = row(browser)
    hint = session_index.id_token_of(found)
    written = f"{found!r} {found} {hint!r} {hint} {Session.objects.all()!r}"
    call_command("oidc_sessions")
    call_command("oidc_sessions", "--end", "--all")
    for text in (written, caplog.text):
        assert issued[0] not in text
        assert issued[0].split(".")[2] not in text
        assert found.id_token not in text
        assert found.session_key not in text


def test_M52_oidc_reseal_moves_it_to_the_newest_key(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    browser.sign_in("op")
    before, hint = row(browser), session_index.id_token_of(row(browser))
    newest = generate_key()
    site.has(top={"TOKEN_KEYS": [newest, *site.token_keys]})
    call_command("oidc_reseal")
    found = row(browser)
    assert found.key_id == key_ring().key_ids[0] != before.key_id
    assert found.id_token != before.id_token
    site.has(top={"TOKEN_KEYS": [newest]})
    assert hint is not None
    assert session_index.id_token_of(found) == hint


# oidc_prune


def pruned() -> None:
    call_command("oidc_prune")


def test_what_django_has_no_more_goes_out_of_the_index(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """A day after it was last seen: until then a login may still be storing its session. What was
    granted to it alone is closed and revoked."""
    gone = signed_in_here(site, browser, op)
    other = Browser()
    stays = signed_in_here(site, other, op)
    if engine == "signed_cookies":
        unseen_for(timedelta(seconds=django_settings.SESSION_COOKIE_AGE) - DAY / 24)
    else:
        browser.client.session.delete()
        unseen_for(DAY - DAY / 24)
    pruned()
    assert len(rows()) == 2
    if engine == "signed_cookies":
        age = timedelta(seconds=django_settings.SESSION_COOKIE_AGE)
        Session.objects.filter(grant=gone.grant).update(last_seen_at=DatabaseClock(-age - DAY / 24))
    else:
        unseen_for(DAY + DAY / 24)
    pruned()
    assert rows() == {row(other).pk}
    assert_closed(gone, "expired")
    assert history(gone)[-1] == ("closed", "expired")
    assert grant(stays).status == "open"
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


def test_M58_a_store_that_is_down_keeps_nobody_signed_in(
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    renewal: None,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row says that the session has ended, so it is good for nothing; oidc_prune deletes it
    when the store is back."""
    settings.SESSION_ENGINE = "tests.test_session_index"
    owner = signed_in_here(site, browser, op)
    key, found = cookie(browser), row(browser)
    monkeypatch.setattr(SessionStore, "is_down", True)
    assert closing.end_sessions(session_index.rows(), "logout") == 1
    assert "1 sessions have ended, and are not deleted yet" in caplog.text
    assert_closed(owner, "logout")
    assert is_stored(key)
    assert Session.objects.get(pk=found.pk).ended_at is not None
    assert alive() == []
    pruned()
    assert rows() == {found.pk}
    monkeypatch.setattr(SessionStore, "is_down", False)
    pruned()
    assert rows() == set()
    assert not is_stored(key)
    assert who(browser) == ""
