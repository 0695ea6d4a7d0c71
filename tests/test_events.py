"""The timeline: what is noted, of whom, how often, and that it stays as it is."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import cache
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from pytest_django import Settings

from oidc_rp import accounts, closing, events, session_index
from oidc_rp.models import Event, Identity
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.tokens import failing_at

REFUSED = "/oidc/op/callback/?state=x"


NOBODY = 1_000_000_000
"""The key of no identity."""


def told(**which: Any) -> list[tuple[str, str, str]]:
    """Name, code and actor of each event, in their order."""
    rows = Event.objects.filter(**which).order_by("id")
    return list(rows.values_list("name", "code", "actor"))


def the_user() -> Any:
    return get_user_model().objects.get()


@pytest.fixture
def user(browser: Browser) -> Any:
    """Somebody who has signed in once, and whose timeline begins now."""
    browser.sign_in("op")
    Event._base_manager.all().delete()
    return the_user()


# What is noted


def test_a_sign_in_is_one_event(browser: Browser) -> None:
    """With identity, user, provider and actor; the first one has also linked the identity."""
    browser.sign_in("op")
    user, identity = the_user(), Identity.objects.get()
    assert told(user=user, identity=identity, provider="op", grant=None) == [
        ("identity_linked", "", f"user {user.pk}"),
        ("signed_in", "", f"user {user.pk}"),
    ]
    Browser().sign_in("op")
    assert told(name="signed_in") == [("signed_in", "", f"user {user.pk}")] * 2
    assert Event.objects.count() == 3


def test_a_sign_in_with_tokens_is_one_event_as_well(
    browser: Browser, configure: Configure, settings: Settings, op: OpenIDProvider
) -> None:
    """It names the grant that they are in."""
    configure(API_ORIGINS=[op.origin])
    settings.OIDC_RP |= {"TOKEN_KEYS": ["A" * 43]}
    browser.sign_in("op")
    event = Event.objects.get(name="signed_in")
    assert event.grant is not None
    assert event.grant.identity == event.identity


def test_a_sign_in_costs_one_statement_more(user: Any) -> None:
    """The one that adds the row."""
    with CaptureQueriesContext(connection) as queries:
        Browser().sign_in("op")
    written = [query["sql"] for query in queries if Event._meta.db_table in query["sql"]]
    assert len(written) == 1
    assert written[0].startswith("INSERT")


def test_a_logout_ends_a_session(browser: Browser, user: Any) -> None:
    """The row says whose, and who did it."""
    browser.client.post("/oidc/logout/")
    assert told(user=user, identity=Identity.objects.get(), provider="op") == [
        ("session_ended", "logout", f"user {user.pk}")
    ]


def test_the_next_sign_in_of_a_browser_ends_the_session_before(browser: Browser, user: Any) -> None:
    browser.sign_in("op")
    assert told(user=user) == [
        ("session_ended", "superseded", f"user {user.pk}"),
        ("signed_in", "", f"user {user.pk}"),
    ]


def test_sessions_that_are_ended_from_elsewhere_are_one_statement(
    browser: Browser, user: Any
) -> None:
    """And each has a row."""
    others = [Browser() for _ in range(3)]
    for other in others:
        other.sign_in("op")
    Event._base_manager.all().delete()
    with CaptureQueriesContext(connection) as queries:
        assert closing.end_sessions(session_index.rows(), "logout", actor="operator") == 4
    table = connection.ops.quote_name(Event._meta.db_table)
    assert sum(f"INSERT INTO {table}" in query["sql"] for query in queries) == 1
    assert told(user=user, provider="op") == [("session_ended", "logout", "operator")] * 4
    for other in others:
        assert other.client.post("/oidc/logout/").status_code == 200
    assert Event.objects.count() == 4


def test_unlinking_outlives_the_identity(browser: Browser, user: Any) -> None:
    """The row says whose it was and who did it; deleting the user takes it along."""
    user.set_password("pw")
    user.save()
    assert accounts.unlink(Identity.objects.get(), f"user {user.pk}")
    assert told(user=user, identity=None, provider="op") == [
        ("identity_unlinked", "", f"user {user.pk}")
    ]
    user.delete()
    assert not Event.objects.exists()


def test_an_operator_who_deletes_an_identity_unlinks_it(user: Any) -> None:
    Identity.objects.all().delete()
    assert [name for name, _, _ in told(user=user, identity=None)] == ["identity_unlinked"]


def test_whoever_is_deleted_is_not_unlinked(user: Any) -> None:
    user.delete()
    assert not Event.objects.exists()


# Refusals


def test_a_refused_login_has_the_reference_of_its_page(browser: Browser) -> None:
    """A stranger's has nobody's name."""
    response = browser.client.get(REFUSED)
    event = Event.objects.get()
    assert (event.name, event.code, event.provider) == ("login_refused", "state.no_cookie", "op")
    assert event.reference == response.context["reference"]
    assert (event.identity, event.user, event.grant) == (None, None, None)


def test_a_refusal_is_one_line_in_the_log(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    browser.client.get(REFUSED)
    (record,) = [record for record in caplog.records if record.name == "oidc_rp"]
    assert vars(record)["event"] == "login_refused"


def test_a_refused_login_names_who_proved_to_be_somebody(browser: Browser, user: Any) -> None:
    """In whoever's browser it was."""
    user.is_active = False
    user.save()
    Event._base_manager.all().delete()
    assert Browser().sign_in("op").context["code"] == "account.inactive"
    event = Event.objects.get()
    assert (event.code, event.user, event.identity) == (
        "account.inactive",
        user,
        Identity.objects.get(),
    )


def test_a_refused_login_names_who_is_signed_in(browser: Browser, user: Any) -> None:
    browser.client.get(REFUSED)
    event = Event.objects.get()
    assert (event.name, event.user, event.identity) == ("login_refused", user, None)


@pytest.mark.parametrize("slug", ["nobody", "x" * 200])
def test_a_provider_that_there_is_not_is_not_named(browser: Browser, slug: str) -> None:
    """Whoever makes up slugs adds nothing to the counter's attributes."""
    assert browser.client.get(f"/oidc/{slug}/login/").status_code == 404
    event = Event.objects.get()
    assert (event.code, event.provider) == ("provider.unknown", "")


def test_a_refused_logout_is_noted(browser: Browser) -> None:
    """With the reference that the OP is told."""
    told_op = browser.client.post("/oidc/op/backchannel-logout/", {"logout_token": "x"}).json()
    event = Event.objects.get()
    assert (event.name, event.provider) == ("logout_refused", "op")
    assert event.code.startswith("logout_token.")
    assert f"({event.reference})" in told_op["error_description"]


def test_nobody_fills_the_table_with_refusals(
    configure: Configure, db: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Sixty a minute have a row, and one row tells of the others; all are in the log. Logins and
    logouts do not take turns."""
    used = events.REFUSALS_A_MINUTE - 5
    for minute in (0, 60):
        cache.set(
            events.room(events.LOGIN_REFUSED, "state.unknown", time.time() + minute), used, 120
        )
    for _ in range(4):
        Client().get(REFUSED)
    assert Event.objects.count() == 4
    since = int(time.time()) // 60
    for _ in range(10):
        Client().get(REFUSED)
    assert int(time.time()) // 60 > since or told() == [
        *told()[:5],
        ("login_refused", "more", events.worker()),
    ]
    assert sum("refused" in record.getMessage() for record in caplog.records) == 14
    Client().post("/oidc/op/backchannel-logout/", {"logout_token": "x"})
    assert Event.objects.filter(name="logout_refused").count() == 1


def test_the_noise_of_strangers_takes_no_room_from_what_was_proven(
    browser: Browser, op: OpenIDProvider
) -> None:
    """Nobody comes to a refused ID Token without a login at the OP."""
    for minute in (0, 60):
        room = events.room(events.LOGIN_REFUSED, "state.unknown", time.time() + minute)
        cache.set(room, events.REFUSALS_A_MINUTE + 1, 120)
    browser.client.get(REFUSED)
    assert not Event.objects.exists()
    op.id_token_claims["aud"] = "somebody else"
    browser.sign_in("op")
    assert [(name, code) for name, code, _ in told()] == [("login_refused", "id_token.aud")]


def test_whoever_is_refused_again_and_again_takes_no_room_from_others(
    browser: Browser, op: OpenIDProvider, configure: Configure
) -> None:
    """One ordinary person of the OP, whose account does not come in, hides no forged ID Token: what
    was proven has room by its code."""
    configure(EMAIL_DOMAINS=["corp.example"])
    op.person |= {"email": "mallory@gmail.example", "email_verified": True}
    for minute in (0, 60):
        room = events.room(events.LOGIN_REFUSED, "account.email_domain", time.time() + minute)
        cache.set(room, events.REFUSALS_A_MINUTE + 1, 120)
    assert browser.sign_in("op").context["code"] == "account.email_domain"
    assert not Event.objects.exists()
    op.id_token_claims["nonce"] = "x"
    response = Browser().sign_in("op")
    event = Event.objects.get()
    assert (event.code, event.reference) == ("id_token.nonce", response.context["reference"])


def test_the_rooms_are_few() -> None:
    """Codes of our vocabulary and no others have one each, and only those that take a login."""

    def room(code: str) -> str:
        return events.room(events.LOGIN_REFUSED, code, 0)

    assert room("id_token.nonce") != room("id_token.aud") != room("userinfo.aud")
    assert room("state.used") == room("response.iss") == room("initiate.iss") == room("made up")
    made_up = ["account.jane@example.com", "account.no room", "account." + "x" * 300, "account.\n"]
    assert {room(code) for code in made_up} == {room("account")}
    assert room("account") != room("account.hook")


@pytest.mark.django_db(transaction=True)
def test_an_event_about_somebody_deleted_undoes_nothing(configure: Configure) -> None:
    """Not even at the end of the caller's transaction, when a database looks at constraints."""
    with transaction.atomic():
        get_user_model().objects.create_user("important")
        events.note(events.Whose(identity=NOBODY, provider="op"), events.CLOSED, "logout")
    assert the_user().get_username() == "important"


@pytest.mark.parametrize(
    "backend", ["tests.cache.RaisingCache", "tests.cache.SilentCache", "dummy.DummyCache"]
)
def test_while_the_cache_fails_only_the_log_has_refusals(
    configure: Configure,
    db: None,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    backend: str,
) -> None:
    path = backend if backend.startswith("tests") else f"django.core.cache.backends.{backend}"
    settings.CACHES = {"default": {"BACKEND": path}}
    assert Client().get(REFUSED).status_code == 400
    assert not Event.objects.exists()
    assert "login refused code=state.no_cookie" in caplog.text


# How it is noted


def test_an_event_is_a_log_record(user: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Logger "oidc_rp", with what the row says as attributes."""
    caplog.set_level(logging.INFO, "oidc_rp")
    identity = Identity.objects.get()
    events.note(events.of_identity(identity), events.CLOSED, "logout", "operator")
    (record,) = [record for record in caplog.records if record.name == "oidc_rp"]
    expected = {
        "event": "closed",
        "code": "logout",
        "identity": identity.pk,
        "user": user.pk,
        "provider": "op",
        "grant": None,
        "actor": "operator",
    }
    assert expected.items() <= vars(record).items()


def test_whoever_does_nothing_by_name_is_this_worker(user: Any) -> None:
    events.note(events.of_identity(Identity.objects.get()), events.REFRESHED)
    assert Event.objects.get().actor == events.worker()


@pytest.mark.django_db(transaction=True)
def test_a_failure_to_note_breaks_nothing(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller's work is done, and the log has both the event and the failure."""
    caplog.set_level(logging.INFO, "oidc_rp")
    with failing_at("INSERT", Event._meta.db_table):
        events.note(events.Whose(identity=NOBODY, provider="op"), events.CLOSED, "logout")
    assert not Event.objects.exists()
    lines = [record.getMessage() for record in caplog.records if record.name == "oidc_rp"]
    assert lines == [f"identity {NOBODY}, grant None: closed logout", "closed could not be noted"]


def test_nothing_to_note_is_noted_as_nothing(db: None) -> None:
    events.note_all([], events.CLOSED)
    assert not Event.objects.exists()


def test_an_event_is_never_changed(user: Any) -> None:
    """Neither by itself nor as one of many; only whoever prunes deletes it."""
    events.note(events.Whose(user=user.pk), events.CLOSED)
    event = Event.objects.get()
    for change in (
        event.save,
        event.delete,
        lambda: Event.objects.update(code=""),
        Event.objects.all().delete,
        lambda: Event.objects.bulk_create(
            [Event(pk=event.pk)],
            update_conflicts=True,
            unique_fields=["id"],
            update_fields=["name"],
        ),
        lambda: Event.objects.bulk_create(
            [Event(pk=event.pk)], None, False, True, ["name"], ["id"]
        ),
    ):
        with pytest.raises(TypeError):
            change()
    with pytest.raises(IntegrityError), transaction.atomic():
        Event(pk=event.pk, name="forged").save()
    assert Event.objects.get().name == event.name


def test_each_event_has_a_sentence() -> None:
    names = {value for key, value in vars(events).items() if value == key.lower()}
    assert names == events.EVENTS.keys()
    assert all(str(sentence).endswith(".") for sentence in events.EVENTS.values())


# Counts


@pytest.fixture(scope="module")
def meter() -> Iterator[InMemoryMetricReader]:
    """What this process counts; OpenTelemetry has one provider for a process."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    yield reader
    provider.shutdown()


def counted(meter: InMemoryMetricReader) -> dict[tuple[Any, ...], int]:
    """(event, code, provider) -> how many."""
    read: Any = meter.get_metrics_data()
    found: dict[tuple[Any, ...], int] = {}
    for resource in read.resource_metrics if read else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                assert metric.name == "oidc_rp.events"
                for point in metric.data.data_points:
                    assert point.attributes.keys() == {"event", "code", "provider"}
                    found[tuple(point.attributes[n] for n in ("event", "code", "provider"))] = (
                        point.value
                    )
    return found


def test_events_are_counted(browser: Browser, meter: InMemoryMetricReader) -> None:
    """Sign-ins and refusals alike, by event, code and provider."""
    before = counted(meter)
    browser.sign_in("op")
    browser.client.get(REFUSED)
    browser.client.get("/oidc/nobody/login/")
    now = counted(meter)
    new = {key: value - before.get(key, 0) for key, value in now.items()}
    assert {key: value for key, value in new.items() if value} == {
        ("identity_linked", "", "op"): 1,
        ("signed_in", "", "op"): 1,
        ("login_refused", "state.unknown", "op"): 1,
        ("login_refused", "provider.unknown", ""): 1,
    }


def test_without_opentelemetry_nothing_is_counted() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from oidc_rp import telemetry\n"
        "telemetry.count('signed_in', '', 'op'); print('well')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("well\n", "")
