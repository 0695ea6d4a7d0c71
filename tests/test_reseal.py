"""oidc_generate_key and oidc_reseal: a key is replaced while the site runs (M52)."""

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from oidc_rp import grants, journal
from oidc_rp.models import Grant, Identity, PendingRevocation, StoredAccessToken, digest
from oidc_rp.protocol.tokens import RefreshToken
from oidc_rp.resealing import COLUMNS, move_to_newest_key, rows_to_move
from oidc_rp.sealing import Context, KeyRing, is_key, key_id
from tests.servers import DatabaseServer, mariadb, postgresql, sqlite

DAY = timedelta(days=1)
ISS = "https://op.example"
OLD, NEW, LOST = "A" * 43, "B" * 42 + "A", "C" * 42 + "A"
OLD_RING, RING = KeyRing([OLD]), KeyRing([NEW, OLD])
NEWEST = RING.key_ids[0]
ROOT = Path(__file__).parent.parent


def add_identity(name: str) -> Identity:
    user = User.objects.create(username=name)
    return Identity.objects.create(
        user=user, provider="op", iss=ISS, sub=name, digest=digest(ISS, name)
    )


def add_grant(name: str, ring: KeyRing = OLD_RING, **fields: Any) -> Grant:
    grant = Grant(identity=add_identity(name), provider="op", client_id="rp", generation=3)
    grant.refresh_token = ring.seal(f"refresh-{name}", grant.context(3))
    grant.key_id = ring.key_ids[0]
    for field, value in fields.items():
        setattr(grant, field, value)
    grant.save(force_insert=True)
    return grant


def add_access_token(grant: Grant, target: str) -> StoredAccessToken:
    stored = StoredAccessToken(grant=grant, target=target, generation=2)
    stored.access_token = OLD_RING.seal(f"access-{target}", stored.context())
    stored.key_id = OLD_RING.key_ids[0]
    stored.save(force_insert=True)
    return stored


def add_revocation(name: str) -> PendingRevocation:
    revocation = PendingRevocation(provider="op", client_id="rp", iss=ISS, sub=name, reason="test")
    revocation.token = OLD_RING.seal(f"spent-{name}", revocation.context())
    revocation.key_id = OLD_RING.key_ids[0]
    return PendingRevocation.objects.bulk_create([revocation])[0]  # without the signal that sends


def opened(ring: KeyRing) -> set[str]:
    """Every token, opened as the app does it, by the row's own context()."""
    with_identity = Grant.objects.select_related("identity")
    access_tokens = StoredAccessToken.objects.select_related("grant__identity")
    return {
        *(ring.open(row.refresh_token, row.context(row.generation)) for row in with_identity),
        *(ring.open(row.access_token, row.context()) for row in access_tokens),
        *(ring.open(row.token, row.context()) for row in PendingRevocation.objects.all()),
    }


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _keys(settings: Settings) -> None:
    settings.OIDC_RP = {"TOKEN_KEYS": [NEW, OLD]}


def reseal(**options: Any) -> str:
    out = io.StringIO()
    call_command("oidc_reseal", stdout=out, **options)
    return out.getvalue()


# The key


def test_M52_generate_key_prints_one_key_and_nothing_else() -> None:
    """What it prints can go straight to where secrets are kept."""
    out, err = io.StringIO(), io.StringIO()
    call_command("oidc_generate_key", stdout=out, stderr=err)
    assert is_key(out.getvalue().removesuffix("\n"))
    assert err.getvalue() == ""


def test_generate_key_tells_who_looks_on_what_to_do() -> None:
    """On a terminal, and beside the output."""
    out, err = Screen(), io.StringIO()
    call_command("oidc_generate_key", stdout=out, stderr=err)
    assert is_key(out.getvalue().removesuffix("\n"))
    assert "oidc_reseal" in err.getvalue()


# Every token


@pytest.mark.django_db
@pytest.mark.parametrize("batch_size", [1, 2, 3, 500])
def test_M52_every_stored_token_is_moved_to_the_newest_key(batch_size: int) -> None:
    """In every column; afterwards the old key is not needed, and nothing else has changed."""
    for number in range(5):
        grant = add_grant(f"user{number}")
        add_access_token(grant, f"{number}a")
        add_access_token(grant, f"{number}b")
        add_revocation(f"user{number}")
    before = opened(OLD_RING)
    generations = list(Grant.objects.order_by("pk").values_list("generation", flat=True))
    assert sum(rows_to_move(column, RING, "default") for column in COLUMNS) == 20
    out = reseal(batch_size=batch_size)
    assert out == (
        "20 tokens are sealed with the newest key now.\nNo stored token needs an older key.\n"
    )
    assert opened(KeyRing([NEW])) == before
    assert len(before) == 20
    assert list(Grant.objects.order_by("pk").values_list("generation", flat=True)) == generations
    for column in COLUMNS:
        for envelope, kid in column.rows("default").values_list(column.name, "key_id"):
            assert key_id(envelope) == kid == NEWEST


@pytest.mark.django_db
def test_M52_a_second_run_has_nothing_to_do() -> None:
    """What was moved is not touched again."""
    grant = add_grant("user")
    reseal()
    envelope = Grant.objects.get().refresh_token
    assert reseal().startswith("0 tokens")
    grant.refresh_from_db()
    assert grant.refresh_token == envelope


@pytest.mark.django_db
def test_rows_without_a_token_are_left_alone() -> None:
    """A closed grant has none."""
    add_grant("user", refresh_token="", key_id="", status=Grant.CLOSED)
    assert reseal().startswith("0 tokens")
    assert Grant.objects.values_list("refresh_token", "key_id").get() == ("", "")


@pytest.mark.django_db
def test_a_page_costs_two_statements() -> None:
    """One reads it with issuers and subjects, one writes it; the rest does not grow with rows."""
    for number in range(12):
        add_grant(f"user{number}")
    run = move_to_newest_key(COLUMNS[0], RING, "default", 3)
    next(run)
    with CaptureQueriesContext(connection) as queries:
        next(run)
    statements = [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]
    assert [("SELECT" in sql, "UPDATE" in sql) for sql in statements] == [
        (True, False),
        (False, True),
    ]


# While the site runs


@pytest.mark.django_db
def test_M52_a_token_that_was_renewed_meanwhile_is_not_overwritten() -> None:
    """Between reading and writing a refresh may have stored another token: that one stays."""
    for name in ("one", "other"):
        add_grant(name)  # of one millisecond perhaps: then chance decides which comes first
    run = move_to_newest_key(COLUMNS[0], RING, "default", 1)
    assert next(run)[:2] == (1, 0)
    moved = f"refresh-{Grant.objects.get(key_id=NEWEST).identity.sub}"
    renewed = Grant.objects.exclude(key_id=NEWEST).get()  # which is read and sealed by now
    renewed.generation = 4
    renewed.refresh_token = OLD_RING.seal("renewed", renewed.context(4))
    renewed.save()
    assert next(run)[:2] == (0, 1)
    assert list(run) == []
    assert opened(RING) == {moved, "renewed"}
    assert reseal().startswith("1 tokens")
    assert opened(KeyRing([NEW])) == {moved, "renewed"}


@pytest.mark.django_db
def test_M52_a_run_that_ended_halfway_is_taken_up() -> None:
    """Each batch is written for good; another run does the others."""
    for number in range(6):
        add_grant(f"user{number}")
    before = opened(OLD_RING)
    run = move_to_newest_key(COLUMNS[0], RING, "default", 2)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert Grant.objects.filter(key_id=NEWEST).count() == 2
    assert opened(RING) == before
    assert reseal().startswith("4 tokens")
    assert opened(KeyRing([NEW])) == before


# What does not open

UNOPENED: list[tuple[str, Callable[[Grant], str], str]] = [
    ("plain text", lambda _: "the-secret-token", "seal.broken in oidc_rp_grant"),
    ("cut short", lambda grant: grant.refresh_token[:-4], "seal.broken in oidc_rp_grant"),
    ("of another row", lambda _: sealed_elsewhere(), "seal.broken in oidc_rp_grant"),
    (
        "of a key that was lost",
        lambda grant: KeyRing([LOST]).seal("the-secret-token", grant.context(3)),
        f"seal.key_unknown {KeyRing([LOST]).key_ids[0]} in oidc_rp_grant",
    ),
]


def sealed_elsewhere() -> str:
    context = Context("oidc_rp_grant", "refresh_token", "0" * 32, ISS, "user0", 3)
    return OLD_RING.seal("the-secret-token", context)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("spoil", "reason"), [row[1:] for row in UNOPENED], ids=[row[0] for row in UNOPENED]
)
def test_M52_what_does_not_open_is_told_and_the_others_are_moved(
    spoil: Callable[[Grant], str], reason: str
) -> None:
    """Reason, key id and row; never what is in it. The row stays as it is."""
    grants = [add_grant(f"user{number}") for number in range(3)]
    envelope = spoil(grants[1])
    Grant.objects.filter(pk=grants[1].pk).update(refresh_token=envelope)
    with pytest.raises(CommandError) as caught:
        reseal(batch_size=1)
    assert str(caught.value).split("\n") == [
        "1 tokens could not be opened.",
        f"  1: {reason}",
        f"  oidc_rp_grant {grants[1].pk}",
    ]
    assert caught.value.returncode == 1
    moved = dict(Grant.objects.values_list("pk", "key_id"))
    assert moved.pop(grants[1].pk) == OLD_RING.key_ids[0]
    assert set(moved.values()) == {NEWEST}
    assert Grant.objects.get(pk=grants[1].pk).refresh_token == envelope


@pytest.mark.django_db
def test_M52_an_envelope_without_its_key_id_is_told() -> None:
    """The index knows nothing of it, and still it is looked at."""
    grant = add_grant("user", refresh_token="the-secret-token", key_id="")
    with pytest.raises(CommandError, match=grant.pk):
        reseal()


@pytest.mark.django_db
def test_M52_twenty_ids_are_named_and_the_others_counted() -> None:
    """A million of them would be no help."""
    for number in range(23):
        add_grant(f"user{number}", refresh_token="the-secret-token")
    with pytest.raises(CommandError) as caught:
        reseal(batch_size=5)
    lines = str(caught.value).split("\n")
    assert lines[:2] == ["23 tokens could not be opened.", "  23: seal.broken in oidc_rp_grant"]
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 2 + 20 + 1


@pytest.mark.django_db
def test_M52_keys_that_are_still_needed_are_named() -> None:
    """Whoever wants to remove a key learns whether it may go."""
    add_grant("user", refresh_token="the-secret-token")
    out = io.StringIO()
    with pytest.raises(CommandError):
        call_command("oidc_reseal", stdout=out)
    assert out.getvalue().split("\n")[1:] == [
        f"Still in use: {OLD_RING.key_ids[0]}. Run this again before you remove them.",
        "",
    ]


@pytest.mark.django_db
def test_M52_a_key_that_was_removed_too_soon_is_told_from_an_older_one() -> None:
    """It is to be put back, and the older one may go; with a row of each, each is told."""
    lost = KeyRing([LOST])
    add_grant("user", lost)
    missing = (
        f"Not in TOKEN_KEYS: {lost.key_ids[0]}. Put each back as the last one and run this "
        "again, or the tokens that it sealed are lost."
    )
    for name, older in (
        ("", "No stored token needs an older key."),
        ("other", f"Still in use: {OLD_RING.key_ids[0]}. Run this again before you remove them."),
    ):
        if name:
            add_grant(name, refresh_token="the-secret-token")
        out = io.StringIO()
        with pytest.raises(CommandError):
            call_command("oidc_reseal", stdout=out)
        assert out.getvalue().split("\n")[1:] == [missing, older, ""]


@pytest.mark.django_db
def test_M53_no_token_and_no_key_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Not in the output, not in logs."""
    grant = add_grant("user")
    add_access_token(grant, "target")
    add_grant("other", refresh_token="refresh-other")
    out = io.StringIO()
    with caplog.at_level("DEBUG", "oidc_rp"), pytest.raises(CommandError) as caught:
        call_command("oidc_reseal", stdout=out, verbosity=3)
    for secret in ("refresh-", "access-", NEW, OLD, "v1."):
        assert secret not in out.getvalue() + caplog.text + str(caught.value)


# How it is told


@pytest.mark.django_db
def test_a_bar_moves_on_a_terminal() -> None:
    """It is drawn over itself, and is full in the end."""
    for number in range(4):
        add_grant(f"user{number}")
    screen = Screen()
    call_command("oidc_reseal", stdout=screen, batch_size=1)
    bars = screen.getvalue().split("\n")[0].split("\r")[1:]
    assert [bar[:32] for bar in bars] == [
        f"[{'#' * filled}{'.' * (30 - filled)}]" for filled in (7, 15, 22, 30)
    ]
    assert bars[-1].startswith(f"[{'#' * 30}]  4 of 4 tokens, ")


@pytest.mark.django_db
def test_verbosity_0_says_nothing() -> None:
    """For cron."""
    add_grant("user")
    assert reseal(verbosity=0) == ""


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("keys", "options"), [([], {}), (["no key"], {}), ([NEW], {"batch_size": 0})]
)
def test_what_cannot_be_done_is_a_command_error(
    settings: Settings, keys: list[str], options: dict[str, Any]
) -> None:
    """No ring, a wrong ring, no batch: told, before anything is read."""
    settings.OIDC_RP = {"TOKEN_KEYS": keys}
    with pytest.raises(CommandError):
        reseal(**options)


@pytest.mark.django_db
def test_M52_what_waits_in_the_journal_is_stored_first_and_moved(settings: Settings) -> None:
    """Here, and left by a process that is gone: else only the key that is to go would open it."""
    settings.OIDC_RP = {"TOKEN_KEYS": [OLD]}
    waiting = {}
    for name in ("here", "elsewhere"):
        grant = grants.load(add_grant(name, lease_until=timezone.now() - DAY).pk)
        waiting[grant.pk] = f"the next of {name}"
        token = RefreshToken(waiting[grant.pk])
        journal.stash(
            grants.rotation(grant, token, None, grants.ANY, lifetime=None, idle_lifetime=DAY)
        )
    del journal._entries[grant.pk]  # of the process that is gone; the cache has it
    settings.OIDC_RP = {"TOKEN_KEYS": [NEW, OLD]}
    assert reseal().endswith("No stored token needs an older key.\n")
    settings.OIDC_RP = {"TOKEN_KEYS": [NEW]}
    for pk, token in waiting.items():
        assert grants.refresh_token(grants.load(pk)).reveal() == token
    assert journal.waiting() == ()
    cache.clear()


# Where there is nothing yet


@pytest.mark.parametrize("command", ["oidc_reseal", "oidc_refresh", "oidc_prune"])
def test_before_migrate_a_command_says_so(command: str, tmp_path: Path) -> None:
    """A sentence, and no traceback."""
    site = Site({"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "empty.sqlite3")})
    assert site.complaint("-m", "django", command) == (
        "CommandError: Database 'default' lacks tables of oidc_rp; run `manage.py migrate` first.\n"
    )


@pytest.mark.parametrize("command", ["oidc_reseal", "oidc_refresh", "oidc_prune"])
def test_a_database_that_cannot_be_reached_is_told(command: str, tmp_path: Path) -> None:
    """In the database's own words."""
    missing = str(tmp_path / "no directory" / "site.sqlite3")
    site = Site({"ENGINE": "django.db.backends.sqlite3", "NAME": missing})
    assert site.complaint("-m", "django", command) == (
        "CommandError: Database 'default' cannot be used: unable to open database file\n"
    )


def test_a_database_that_is_none_is_told() -> None:
    """Of the option --database."""
    with pytest.raises(CommandError) as caught:
        reseal(database="nope")
    assert str(caught.value) == "DATABASES has no 'nope'."


# Real databases, real processes

GRANTS = 150


def fill() -> None:
    """In a process of its own: grants of the old key."""
    call_command("migrate", verbosity=0)
    with transaction.atomic():
        for number in range(GRANTS):
            add_access_token(add_grant(f"user{number}"), str(number))
            add_revocation(f"user{number}")


def tell() -> None:
    """In a process of its own: how many rows the newest key sealed, and how many tokens open."""
    newest = sum(column.rows("default").filter(key_id=NEWEST).count() for column in COLUMNS)
    sys.stdout.write(f"{newest} {len(opened(RING))}")


class Site:
    """Processes of a site on one database."""

    def __init__(self, database: dict[str, Any]) -> None:
        site = {
            "database": database | {"ATOMIC_REQUESTS": False},
            "secret_key": "s" * 50,
            "oidc_rp": {"PROVIDERS": {}, "TOKEN_KEYS": [NEW, OLD]},
            "api": "",
        }
        self.environment = os.environ | {
            "SITE": json.dumps(site),
            "DJANGO_SETTINGS_MODULE": "tests.servers.site_settings",
        }

    def start(self, *arguments: str, stdout: int) -> "subprocess.Popen[str]":
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command, env=self.environment, cwd=ROOT, text=True, stdout=stdout, stderr=PIPE
        )

    def complaint(self, *arguments: str) -> str:
        process = self.start(*arguments, stdout=PIPE)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, "")
        return err

    def output(self, *arguments: str) -> str:
        process = self.start(*arguments, stdout=PIPE)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        return out

    def run(self, function: str) -> str:
        code = f"import django; django.setup(); from tests import test_reseal as t; t.{function}()"
        return self.output("-c", code)

    def kill_at_the_first_bar(self, *arguments: str) -> None:
        """Run a command on a terminal, and kill it when its progress bar appears."""
        ours, theirs = os.openpty()
        process = self.start(*arguments, stdout=theirs)
        os.close(theirs)
        try:
            shown = b""
            while b"[" not in shown:
                shown += os.read(ours, 1)
        finally:
            process.kill()
            process.communicate(timeout=60)
            os.close(ours)
        assert process.returncode == -signal.SIGKILL

    def newest(self) -> int:
        """Rows of the newest key; every token opens, however far the move is."""
        newest, opening = self.run("tell").split()
        assert int(opening) == 3 * GRANTS
        return int(newest)


@pytest.mark.parametrize(
    "server",
    [
        sqlite,
        pytest.param(postgresql, marks=pytest.mark.servers),
        pytest.param(mariadb, marks=pytest.mark.servers),
    ],
)
def test_M52_a_killed_run_loses_nothing_and_is_taken_up(
    server: Callable[[], DatabaseServer],
) -> None:
    """SIGKILL at any moment: every token opens, by one key or the other; another run ends it."""
    site = Site(server().new_database())
    site.run("fill")
    assert site.newest() == 0
    command = ("-m", "django", "oidc_reseal", "--batch-size")
    site.kill_at_the_first_bar(*command, "1")
    moved = site.newest()
    assert 0 < moved < 3 * GRANTS
    assert site.output(*command, "50").split("\n")[-3:] == [
        f"{3 * GRANTS - moved:,} tokens are sealed with the newest key now.",
        "No stored token needs an older key.",
        "",
    ]
    assert site.newest() == 3 * GRANTS
