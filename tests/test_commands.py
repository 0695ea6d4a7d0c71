"""oidc_refresh and oidc_prune: what cron does for grants that no request comes for. oidc_sessions:
who is signed in where."""

from collections.abc import Callable
from datetime import datetime, timedelta
from datetime import timezone as tz
from io import StringIO
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone
from pytest_django import Settings

from oidc_rp import circuit, closing, grants, journal, refresh, upkeep
from oidc_rp.models import (
    Event,
    Grant,
    Identity,
    PendingRevocation,
    ProviderCircuit,
    Session,
    StoredAccessToken,
    digest,
)
from oidc_rp.protocol.token_endpoint import read_token_response
from oidc_rp.protocol.tokens import RefreshToken
from oidc_rp.sealing import generate_key, key_id, key_ring
from oidc_rp.testing import Browser, OpenIDProvider, first, reset
from oidc_rp.upkeep import Pruned, Renewals, Shard
from tests.conftest import Configure

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
Keep = Callable[..., Grant]


@pytest.fixture
def site(configure: Configure, settings: Settings) -> Configure:
    """A site that keeps tokens, and calls an API."""

    def set_options(**options: Any) -> None:
        configure(SCOPES=["openid", "offline_access"], **options)
        settings.OIDC_RP = settings.OIDC_RP | {"TOKEN_KEYS": [generate_key()]}

    set_options()
    return set_options


@pytest.fixture
def keep(site: Configure, op: OpenIDProvider) -> Keep:
    """Make a durable grant of a person of its own; the OP forgets it in `idle`."""

    def make(idle: timedelta = DAY, **columns: Any) -> Grant:
        number = Identity.objects.count() + 1
        user = get_user_model().objects.create_user(f"jane{number}")
        sub = f"sub-{number}"
        person = Identity.objects.create(user=user, provider="op", iss=op.issuer, sub=sub)
        issued = op.issue(sub=sub)
        now = timezone.now()
        given = {
            "identity": person,
            "provider": "op",
            "client_id": op.client_id,
            "durable": True,
            "slot": sub,
            "created_at": now - 14 * DAY + idle,
            "idle_until": now + idle,
        }
        grant = Grant(**given | columns)
        grant.refresh_token = key_ring().seal(issued["refresh_token"], grant.context(1))
        grant.key_id = key_id(grant.refresh_token)
        grant.save()
        return grant

    return make


def refreshed(**options: Any) -> tuple[str, str]:
    """What oidc_refresh writes to its output, and about errors."""
    out, err = StringIO(), StringIO()
    try:
        call_command("oidc_refresh", stdout=out, stderr=err, **options)
    except CommandError as error:
        err.write(f"CommandError: {error}\n")
    return out.getvalue(), err.getvalue()


def pruned(**options: Any) -> str:
    out = StringIO()
    call_command("oidc_prune", stdout=out, **options)
    return out.getvalue()


NOTHING = "0 renewed, 0 left to others, 0 ended, 0 failed; 0 stored from the journal, 0 revoked.\n"


# oidc_refresh


def test_what_would_soon_be_forgotten_is_renewed(keep: Keep, op: OpenIDProvider) -> None:
    """Its refresh token is spent once, and the OP remembers the new one for another fortnight."""
    grant = keep()
    out, err = refreshed()
    assert (out, err) == (NOTHING.replace("0 renewed", "1 renewed"), "")
    assert op.counters()["refreshes"] == 1
    before, grant = grant, Grant.objects.get()
    assert (grant.generation, grant.refreshes, grant.status) == (2, 1, "open")
    assert grant.refresh_token != before.refresh_token
    assert grant.idle_until - timezone.now() > 13 * DAY
    assert [event.name for event in Event.objects.all()] == ["refreshed"]
    assert refreshed() == (NOTHING, "")
    assert op.counters()["refreshes"] == 1
    assert op.families_lost == 0


def test_a_token_that_is_still_good_is_no_reason_to_wait(keep: Keep, op: OpenIDProvider) -> None:
    """It is the refresh token that is to live on."""
    grant = keep()
    owner = grants.Owner(grant.identity.user_id, grant.pk)
    refresh.usable_token(owner)
    refreshed(within=15 * 86400, limit=10)
    assert op.counters()["refreshes"] == 2
    assert Grant.objects.get().generation == 3


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"idle": 4 * DAY}, {}),
        ({"idle": 2 * DAY}, {"within": 86400}),
        ({"durable": False}, {}),
        ({"status": "closed"}, {}),
        ({"client_id": "another"}, {}),
        ({"provider": "another"}, {}),
        ({"not_before": timezone.now() + DAY}, {}),
        # The OP told an idle time of two days: it is not a quarter that is left of it.
        ({"created_at": timezone.now() - DAY}, {}),
    ],
)
def test_what_is_not_due_is_left_alone(
    keep: Keep, op: OpenIDProvider, columns: dict[str, Any], options: dict[str, Any]
) -> None:
    """Neither early, nor for a session, nor what is closed, another client's or in back-off."""
    keep(**columns)
    assert refreshed(**options) == (NOTHING, "")
    assert op.counters()["refreshes"] == 0


def test_a_short_idle_time_is_kept_up_with(keep: Keep, op: OpenIDProvider) -> None:
    """A quarter of what the OP told is a quarter, also when that is minutes."""
    now = timezone.now()
    minute = timedelta(minutes=1)
    keep(idle=7 * minute, created_at=now - 23 * minute)
    refreshed()
    assert op.counters()["refreshes"] == 1


def test_no_grant_is_renewed_twice_in_a_run(keep: Keep, op: OpenIDProvider) -> None:
    """Not even where `within` is longer than the idle time, so that it is due at once again."""
    for _ in range(3):
        keep()
    assert refreshed(within=1000 * 86400, limit=10)[0].startswith("3 renewed")
    assert op.counters()["refreshes"] == 3


def test_within_says_how_soon(keep: Keep, op: OpenIDProvider) -> None:
    """In seconds, and instead of the quarter."""
    keep(idle=10 * DAY)
    keep(idle=12 * DAY)
    refreshed(within=11 * 86400)
    assert op.counters()["refreshes"] == 1


def test_M38_inactive_users_are_not_renewed(keep: Keep, op: OpenIDProvider) -> None:
    """Nor when they became so after the page was read."""
    grant = keep()
    User.objects.update(is_active=False)
    assert refreshed() == (NOTHING, "")
    with pytest.raises(refresh.LoginRequired) as caught:
        refresh.renew_early(grant.pk, 1)
    assert caught.value.code == "account.inactive"
    assert op.counters()["refreshes"] == 0


def test_the_most_urgent_come_first_and_a_limit_ends_it(keep: Keep, op: OpenIDProvider) -> None:
    """What is left is there for the next run."""
    later, sooner = keep(idle=2 * DAY), keep(idle=DAY)
    assert refreshed(limit=1)[0].startswith("1 renewed")
    assert {g.pk: g.generation for g in Grant.objects.all()} == {later.pk: 1, sooner.pk: 2}
    assert refreshed(limit=1)[0].startswith("1 renewed")
    assert set(Grant.objects.values_list("generation", flat=True)) == {2}


def test_pages_reach_everything_once(keep: Keep, op: OpenIDProvider, settings: Settings) -> None:
    """Also where many end at the same moment, and those that fail stay where they are."""
    ends = timezone.now() + DAY
    for _ in range(upkeep.PAGE + 5):
        keep(idle_until=ends)
    op.end_grants()
    out, err = refreshed()
    assert out.startswith(f"0 renewed, 0 left to others, {upkeep.PAGE + 5} ended, 0 failed")
    assert len(err.splitlines()) == upkeep.PAGE + 5
    assert op.counters()["refreshes"] == upkeep.PAGE + 5


def test_shards_share_the_work(keep: Keep, op: OpenIDProvider) -> None:
    """Each grant belongs to one of them, always the same."""
    ids = {keep().pk for _ in range(12)}
    shards = [{pk for pk in ids if Shard(number, 3).has(pk)} for number in (1, 2, 3)]
    assert set.union(*shards) == ids
    assert sum(map(len, shards)) == 12
    for number, shard in enumerate(shards, 1):
        assert refreshed(shard=f"{number}/3")[0].startswith(f"{len(shard)} renewed")
    assert op.counters()["refreshes"] == 12


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", ""])
def test_a_shard_that_is_none_is_refused(shard: str, db: None) -> None:
    with pytest.raises(CommandError):
        call_command("oidc_refresh", f"--shard={shard}")


def test_shards_are_read_from_the_command_line(keep: Keep, capsys: Any) -> None:
    grant = keep()
    for number in (1, 2):
        call_command("oidc_refresh", "--shard", f"{number}/2", "--limit=5", "--within=90000")
        mine = Shard(number, 2).has(grant.pk)
        assert capsys.readouterr().out.startswith("1 renewed" if mine else "0 renewed")


def test_a_second_run_at_the_same_moment_spends_nothing_twice(
    keep: Keep, op: OpenIDProvider
) -> None:
    """It read the same page, and finds the lease taken, or another generation."""
    grant = keep()
    assert grants.claim(grants.load(grant.pk), "somebody", lease=timedelta(seconds=4))
    assert refresh.renew_early(grant.pk, 1) is False
    assert op.counters()["refreshes"] == 0
    grants.release(grant, "somebody")
    assert isinstance(refresh.renew_early(grant.pk, 1), refresh.UsableToken)
    assert refresh.renew_early(grant.pk, 1) is False
    assert op.counters()["refreshes"] == 1
    assert op.families_lost == 0


def test_what_the_op_has_ended_is_told_and_no_failure(keep: Keep, op: OpenIDProvider) -> None:
    """A person may take back what was allowed: the job has done its work."""
    grant = keep()
    op.end_grants()
    out, err = refreshed()
    assert out.startswith("0 renewed, 0 left to others, 1 ended, 0 failed")
    assert err == f"grant {grant.pk}: grant.revoked_or_expired\n"
    grant.refresh_from_db()
    assert (grant.status, grant.close_reason) == ("closed", "revoked_or_expired")


def test_a_failure_is_told_and_the_exit_code_is_1(keep: Keep, op: OpenIDProvider) -> None:
    """One line for each, with nothing secret in it; the others are renewed nonetheless."""
    grant, _ = keep(), keep(idle=2 * DAY)
    op.refresh_fault, op.refresh_fault_times = "503", 1
    out, err = refreshed()
    assert out.startswith("1 renewed, 0 left to others, 0 ended, 1 failed")
    assert err == (
        f"grant {grant.pk}: refresh.backing_off\nCommandError: 1 could not be renewed this time.\n"
    )
    op.refresh_fault_times = 1
    Grant.objects.update(idle_until=timezone.now(), not_before=None)
    with pytest.raises(CommandError) as caught:
        call_command("oidc_refresh", stdout=StringIO(), stderr=StringIO())
    assert caught.value.returncode == 1


def test_a_lost_answer_is_asked_for_once_more_at_once(keep: Keep, op: OpenIDProvider) -> None:
    """As for a caller who waits (T14): inside the OP's overlap."""
    keep()
    op.answer["token"] = first(1, reset(after=False))
    assert refreshed()[0].startswith("1 renewed")
    assert op.counters()["refreshes"] == 2
    assert [event.name for event in Event.objects.order_by("id")] == ["in_doubt", "refreshed"]


def test_an_open_circuit_spares_the_other_grants(keep: Keep, op: OpenIDProvider) -> None:
    """An OP that refuses this client is asked once, not for each person."""
    grant, _, _ = keep(), keep(), keep()
    op.client_secret = "another"
    out, err = refreshed()
    assert out.startswith("0 renewed, 0 left to others, 0 ended, 1 failed")
    assert err.startswith(f"grant {grant.pk}: refresh.circuit_open\n")
    assert op.counters()["refreshes"] == 1
    assert refreshed() == (NOTHING, "")
    assert op.counters()["refreshes"] == 1
    assert set(Grant.objects.values_list("status", flat=True)) == {"open"}


def test_what_waits_in_the_journal_is_stored(keep: Keep, op: OpenIDProvider) -> None:
    """Left by a worker that got an answer, could not store it, and is gone."""
    grant = grants.load(keep(idle=10 * DAY).pk)
    assert grants.claim(grant, "gone", lease=-DAY)
    tokens = read_token_response(200, op.issue(), sent_at=timezone.now(), requested_scope="")
    journal.stash(
        grants.rotation(
            grant,
            RefreshToken("the next one"),
            tokens,
            grants.ANY,
            lifetime=timedelta(minutes=1),
            idle_lifetime=DAY,
        )
    )
    journal._entries.clear()  # of the process that is gone; the cache has it
    out, _ = refreshed()
    assert "1 stored from the journal" in out
    stored = grants.load(grant.pk)
    assert grants.refresh_token(stored).reveal() == "the next one"
    assert [event.name for event in Event.objects.all()] == ["rotation_stored_late"]
    cache.clear()


def test_what_was_given_up_is_revoked(keep: Keep, op: OpenIDProvider) -> None:
    """What could not be told to the OP at once is told now."""
    grant = grants.load(keep(idle=10 * DAY).pk)
    closing.end(grant.pk, grants.LOGOUT)
    assert PendingRevocation.objects.count() == 1
    assert "1 revoked." in refreshed()[0]
    assert len(op.revocations) == 1
    assert PendingRevocation.objects.count() == 0


def test_a_task_calls_the_function(keep: Keep, op: OpenIDProvider) -> None:
    """It returns what the command prints, and logs what it tells."""
    keep()
    assert upkeep.renew_idle() == Renewals(renewed=1)
    assert upkeep.prune() == Pruned()


def test_quiet_is_quiet(keep: Keep) -> None:
    keep()
    assert refreshed(verbosity=0) == ("", "")
    assert pruned(verbosity=0) == ""


# oidc_prune


def prunes(**expected: int) -> None:
    """Prune; each number is as expected, and a second time there is nothing left to do."""
    assert upkeep.prune() == Pruned(**expected)
    assert upkeep.prune() == Pruned()


def test_M38_grants_of_inactive_users_are_closed(keep: Keep, op: OpenIDProvider) -> None:
    """Also where QuerySet.update() has sent no signal; the OP is told."""
    grant, other = keep(), keep()
    User.objects.filter(pk=grant.identity.user_id).update(is_active=False)
    prunes(closed=1)
    grant.refresh_from_db()
    other.refresh_from_db()
    assert (grant.status, grant.close_reason, grant.refresh_token) == ("closed", "deactivated", "")
    assert other.status == "open"
    event = Event.objects.get()
    assert (event.name, event.code, event.actor) == ("closed", "deactivated", "oidc_prune")
    assert len(op.revocations) == 1


def test_grants_of_sessions_that_are_over_are_closed(
    keep: Keep, op: OpenIDProvider, settings: Settings
) -> None:
    """Those that nobody refreshed for as long as a session lasts; durable ones stay."""
    settings.SESSION_COOKIE_AGE = 3600
    now, hour = timezone.now(), timedelta(hours=1)
    over = keep(durable=False, slot=None, created_at=now - 2 * hour)
    used = keep(durable=False, slot=None, created_at=now - 2 * hour, refreshed_at=now - hour / 2)
    young = keep(durable=False, slot=None, created_at=now - hour / 2)
    durable = keep(created_at=now - 2 * hour)
    prunes(closed=1)
    assert {g.pk: g.close_reason for g in Grant.objects.all()} == {
        over.pk: "expired",
        used.pk: "",
        young.pk: "",
        durable.pk: "",
    }


def test_old_closed_grants_are_deleted(keep: Keep, op: OpenIDProvider) -> None:
    """With their tokens; what happened to the person stays in the timeline."""
    old, young = keep(), keep()
    for grant, days in ((old, 31), (young, 29)):
        refresh.usable_token(grants.Owner(grant.identity.user_id, grant.pk))
        grant = grants.load(grant.pk)
        grants.close(grant, grants.LOGOUT, revoke=False, keep_access=True)
        Grant.objects.filter(pk=grant.pk).update(closed_at=timezone.now() - days * DAY)
    assert pruned() == (
        "0 grants closed, 0 sessions found over. Deleted: 1 closed grants, 0 access tokens, "
        "0 events, 0 circuits.\n"
    )
    assert Grant.objects.get() == young
    assert StoredAccessToken.objects.get().grant == young
    assert Event.objects.filter(identity=old.identity, grant=None, name="refreshed").count() == 1
    assert op.revocations == []
    assert "1 closed grants" in pruned(days=28)
    assert not Grant.objects.exists()


def test_a_login_that_comes_between_makes_a_new_grant(keep: Keep) -> None:
    """It has read the closed grant that is about to be deleted, and finds it changed."""
    grant = grants.load(keep().pk)
    grants.close(grant, grants.LOGOUT, revoke=False)
    Grant.objects.update(closed_at=timezone.now() - 31 * DAY)
    known = grants.load(grant.pk)
    prunes(grants=1)
    assert not Grant.objects.filter(slot=grant.slot).exists()
    assert not Grant.objects.filter(pk=known.pk, generation=known.generation).exists()


def test_expired_access_tokens_are_deleted(keep: Keep) -> None:
    """A day after their end; where the OP told none, two days after they came."""
    grant, now = keep(), timezone.now()
    for number, (sent, expires) in enumerate(
        [(30, 26), (30, 23), (1, -1), (50, None), (40, None)], 1
    ):
        hour = timedelta(hours=1)
        StoredAccessToken.objects.create(
            grant=grant,
            resource=f"https://api-{number}.example",
            target=str(number),
            sent_at=now - sent * hour,
            expires_at=None if expires is None else now - expires * hour,
        )
    prunes(access_tokens=2)
    assert set(StoredAccessToken.objects.values_list("target", flat=True)) == {"2", "3", "5"}


def test_old_events_and_circuits_are_deleted(keep: Keep, settings: Settings) -> None:
    """Events after half a year, unless said otherwise (also by EVENT_RETENTION); circuits a day
    after they closed."""
    grant, now = keep(), timezone.now()
    for days in (181, 179, 91, 1):
        Event.objects.create(identity=grant.identity, grant=grant, name="x", at=now - days * DAY)
    circuit.open_for("op", "token.invalid_client")
    circuit.open_for("other", "token.invalid_client")
    ProviderCircuit.objects.filter(pk="other").update(not_before=now - 2 * DAY)
    prunes(events=1, circuits=1)
    assert ProviderCircuit.objects.get().pk == "op"
    assert "1 events" in pruned(events_days=100)
    settings.OIDC_RP |= {"EVENT_RETENTION": 90.5}
    assert "0 events" in pruned(events_days=100)
    prunes(events=1)
    assert Event.objects.count() == 1


def test_pruning_reaches_every_page(keep: Keep) -> None:
    """Many rows are many short transactions."""
    grant, long_ago = keep(), timezone.now() - 200 * DAY
    event = {"identity": grant.identity, "name": "x", "at": long_ago}
    Event.objects.bulk_create([Event(**event) for _ in range(2 * upkeep.PAGE + 1)])
    prunes(events=2 * upkeep.PAGE + 1)


@pytest.mark.django_db(transaction=True)
def test_upkeep_works_where_a_caller_has_a_transaction(keep: Keep, op: OpenIDProvider) -> None:
    """As a task under ATOMIC_REQUESTS or an outbox does: nothing is spent and then rolled back."""
    keep()
    with transaction.atomic():
        assert upkeep.renew_idle() == Renewals(renewed=1)
        assert upkeep.prune() == Pruned()
    assert Grant.objects.get().generation == 2


# oidc_sessions


CHROME = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 "
    "Safari/537.36"
)
Begin = Callable[..., Session]


@pytest.fixture
def begin(site: Configure, op: OpenIDProvider) -> Begin:
    """Make a session of this person, with a stored session of Django's."""

    def make(name: str = "jane", sid: str = "", **columns: Any) -> Session:
        user, _ = User.objects.get_or_create(username=name)
        known = {"user": user, "provider": "op"}
        person, _ = Identity.objects.get_or_create(iss=op.issuer, sub=f"sub {name}", defaults=known)
        stored = SessionStore()
        stored.create()
        row = Session(identity=person, provider="op", sid=sid, session_key=stored.session_key)
        row.sid_digest = digest(op.issuer, sid) if sid else None
        for column, value in columns.items():
            setattr(row, column, value)
        row.save(force_insert=True)
        return row

    return make


def sessions(*arguments: str) -> str:
    out = StringIO()
    call_command("oidc_sessions", *arguments, stdout=out)
    return out.getvalue()


def listed(*arguments: str) -> list[str]:
    """The ids of the sessions that are listed, in their order."""
    return [line.partition("\t")[0] for line in sessions(*arguments).splitlines()]


def test_sessions_are_listed(begin: Begin) -> None:
    """The latest first: id, user, provider, sid, signed in, last seen, browser."""
    at = datetime(2026, 1, 2, 3, 4, tzinfo=tz.utc)
    older = begin("jane", "a sid", created_at=at, last_seen_at=at + DAY, user_agent=CHROME)
    newer = begin("joe", created_at=at, last_seen_at=at)
    assert sessions().splitlines() == [
        f"{newer.pk}\tjoe\top\t-\t2026-01-02 03:04\t2026-01-02 03:04\t-",
        f"{older.pk}\tjane\top\ta sid\t2026-01-02 03:04\t2026-01-03 03:04\tChrome Linux",
    ]
    assert listed("--limit=1") == [newer.pk]
    assert listed("--limit=0") == []


def test_only_those_that_are_there_are_listed(begin: Begin) -> None:
    """Neither what has ended nor what Django has no more."""
    there, ended, gone = begin(), begin(ended_at=timezone.now()), begin()
    SessionStore().delete(gone.session_key)
    assert ended.pk
    assert listed() == [there.pk]


CHOICES = {
    "--user": ("jane", ["desk", "phone"]),
    "--sub": ("sub jane", ["desk", "phone"]),
    "--sid": ("the phone's", ["phone"]),
    "--provider": ("other", ["sofa"]),
    "--session": ("the desk's", ["desk"]),
}


@pytest.mark.parametrize(("option", "value", "named"), [(o, *c) for o, c in CHOICES.items()])
def test_M58_each_choice_lists_and_ends_its_own(
    begin: Begin, option: str, value: str, named: list[str]
) -> None:
    """--end signs out what the same command would list, and nobody else."""
    there = {
        "desk": begin("jane", "the desk's"),
        "phone": begin("jane", "the phone's"),
        "sofa": begin("joe", "the sofa's", provider="other"),
    }
    value = there["desk"].pk if option == "--session" else value
    assert sorted(listed(option, value)) == sorted(there[name].pk for name in named)
    assert sessions(option, value, "--end") == f"{len(named)} sessions ended.\n"
    left = [name for name, row in there.items() if name not in named]
    assert {row.pk for row in Session.objects.all()} == {there[name].pk for name in left}
    for name, row in there.items():
        assert SessionStore().exists(row.session_key) == (name in left)
    events = Event.objects.filter(name="session_ended")
    assert {(event.code, event.actor) for event in events} == {("logout", "oidc_sessions")}
    assert sessions(option, value, "--end") == "0 sessions ended.\n"


@pytest.mark.parametrize("option", ["--user", "--sub"])
def test_M60_ending_a_persons_sessions_beats_a_login_in_flight(
    configure: Configure, op: OpenIDProvider, option: str
) -> None:
    """Nobody else's, and none that begins afterwards."""
    configure()
    here, in_flight, stranger = Browser(), Browser(), Browser()
    here.sign_in("op")
    user, sub = User.objects.get().username, op.person["sub"]
    callback = in_flight.visit_op(in_flight.start("op"))
    op.person["sub"] = "stranger"
    of_a_stranger = stranger.visit_op(stranger.start("op"))
    assert sessions(option, user if option == "--user" else sub, "--end") == "1 sessions ended.\n"
    assert in_flight.come_back(callback).context["code"] == "session.ended"
    assert stranger.come_back(of_a_stranger).status_code == 302
    op.person["sub"] = sub
    assert in_flight.sign_in("op").status_code == 302


def test_M58_choices_are_taken_together(begin: Begin) -> None:
    """And byte for byte."""
    mine, other = begin("jane", "one"), begin("joe", "one")
    assert listed("--user=jane", "--sid=one") == [mine.pk]
    assert sorted(listed("--sid=one")) == sorted([mine.pk, other.pk])
    for option in ("--sid=ONE", "--sid=one ", "--sub=SUB JANE", "--sub=sub jane ", "--sid=on_"):
        assert sessions("--end", option) == "0 sessions ended.\n"
    assert sessions("--end", "--sub=sub jane", "--sid=one") == "1 sessions ended.\n"
    assert listed() == [other.pk]


def test_M58_nobody_is_signed_out_by_a_choice_that_is_none(begin: Begin) -> None:
    """Not without one, and not by a variable of a shell that is not set: many have no sid."""
    row = begin()
    with pytest.raises(CommandError, match="Name whose sessions to end"):
        sessions("--end")
    for option in ("--user=", "--sub=", "--sid=", "--provider=", "--session="):
        for more in ([], ["--end"], ["--end", "--all"]):
            with pytest.raises(CommandError, match=f"{option[:-1]} is empty"):
                sessions(option, *more)
    assert listed() == [row.pk]
    assert sessions("--all").startswith(row.pk)
    assert listed() == [row.pk]


def test_M58_everybody_at_once(begin: Begin, keep: Keep) -> None:
    """However many; what was granted to sessions alone is closed and revoked, the durable stays."""
    durable, bound = keep(), keep(durable=False, slot=None)
    begin(grant=durable)
    row = begin(grant=bound)
    many = [Session(identity=row.identity, provider="op") for _ in range(2001)]
    Session.objects.bulk_create(many)
    assert sessions("--end", "--all") == "2,003 sessions ended.\n"
    assert not Session.objects.exists()
    found = {grant.pk: (grant.status, grant.close_reason) for grant in Grant.objects.all()}
    assert found == {durable.pk: ("open", ""), bound.pk: ("closed", "logout")}
    assert PendingRevocation.objects.get().reason == "logout"


def test_pruning_finds_what_is_over_on_every_page(begin: Begin) -> None:
    """Sessions that Django has no more, a day after they were last seen; those that have ended and
    are still there, at once."""
    row, long_ago = begin(last_seen_at=timezone.now() - 2 * DAY), timezone.now() - 2 * DAY
    over = {"identity": row.identity, "provider": "op", "last_seen_at": long_ago}
    keys = [f"{number:032}" for number in range(2 * upkeep.PAGE + 1)]
    Session.objects.bulk_create([Session(session_key=key, **over) for key in keys])
    begin(ended_at=timezone.now())
    begin(last_seen_at=timezone.now() - DAY / 2, session_key="lost")
    prunes(sessions=2 * upkeep.PAGE + 2)
    assert {found.pk for found in Session.objects.exclude(session_key="lost")} == {row.pk}
    Session.objects.filter(session_key="lost").update(last_seen_at=long_ago)
    prunes(sessions=1)
