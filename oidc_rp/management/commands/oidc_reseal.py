"""Seal every stored token with the newest key of OIDC_RP["TOKEN_KEYS"]."""

import time
from collections import Counter
from typing import Any

from django.core.checks import Tags
from django.core.management import BaseCommand, CommandError, CommandParser
from django.core.management.base import OutputWrapper
from django.db import reset_queries

from ... import grants, upkeep
from ...errors import ConfigurationError
from ...resealing import COLUMNS, Moved, key_ids_in_use, move_to_newest_key, rows_to_move
from ...sealing import KeyRing, key_ring
from ..tables import require_tables

IDS_SHOWN = 20


class Command(BaseCommand):
    # Ours; those of the models would need the database, and fail without a sentence.
    requires_system_checks = [Tags.security]
    """Seal every stored token with the newest key of OIDC_RP["TOKEN_KEYS"].

    May be killed and run again at any time, while the site runs. The exit code is 1 when a token
    could not be opened; the others are moved nonetheless.
    """

    help = "Seal every stored token with the newest key of OIDC_RP['TOKEN_KEYS']."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", help="where the tokens are kept")
        parser.add_argument(
            "--batch-size", type=int, default=500, help="rows in one transaction (%(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        using = options["database"] or grants.database()
        if (batch_size := options["batch_size"]) < 1:
            raise CommandError("--batch-size is 1 or more.")
        ring = _ring()
        require_tables(using)
        if using == grants.database():
            upkeep.store_journal()  # sealed with an older key, as what is stored
        found = Findings()
        progress = Progress(
            sum(rows_to_move(column, ring, using) for column in COLUMNS),
            self.stdout if options["verbosity"] else None,
        )
        for column in COLUMNS:
            for moved in move_to_newest_key(column, ring, using, batch_size):
                reset_queries()  # with DEBUG Django keeps what it ran
                found.add(column.table, moved)
                progress.advance(moved.read)
        progress.end()
        if options["verbosity"]:
            self.stdout.write("\n".join([found.summary(), *_older_keys(ring, using)]))
        if found.unopened:
            raise CommandError(found.complaint())


class Findings:
    """What became of all batches; grows with the reasons, not with the rows."""

    def __init__(self) -> None:
        self.moved = self.changed = 0
        self.unopened: Counter[str] = Counter()
        self.ids: list[str] = []

    def add(self, table: str, batch: Moved) -> None:
        self.moved += batch.moved
        self.changed += batch.changed
        for row, error in batch.unopened:
            key = f" {error.received}" if error.received else ""
            self.unopened[f"{error.code}{key} in {table}"] += 1
            if len(self.ids) < IDS_SHOWN:
                self.ids.append(f"{table} {row}")

    def summary(self) -> str:
        changed = f", {self.changed:,} were renewed meanwhile" if self.changed else ""
        if not self.moved and not self.unopened:
            return f"0 tokens had to be moved to the newest key{changed}."
        return f"{self.moved:,} tokens are sealed with the newest key now{changed}."

    def complaint(self) -> str:
        total = self.unopened.total()
        reasons = [f"  {count:,}: {reason}" for reason, count in sorted(self.unopened.items())]
        more = [f"  and {total - len(self.ids):,} more"] if total > len(self.ids) else []
        ids = [f"  {row}" for row in self.ids]
        return "\n".join([f"{total:,} tokens could not be opened.", *reasons, *ids, *more])


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    WIDTH = 30
    SECONDS = 10.0

    def __init__(self, total: int, out: OutputWrapper | None) -> None:
        self.total, self.out = total, out
        self.done = 0
        self.start = self.told = time.monotonic()

    def advance(self, rows: int) -> None:
        self.done += rows
        now = time.monotonic()
        if self.out is None:
            return
        if self.out.isatty():
            self.out.write(f"\r{self._bar()}  {self._text(now)}", ending="")
            self.out.flush()
        elif now - self.told >= self.SECONDS:
            self.told = now
            self.out.write(self._text(now))

    def end(self) -> None:
        if self.out is not None and self.out.isatty() and self.done:
            self.out.write("")

    def _bar(self) -> str:
        filled = min(self.done * self.WIDTH // max(self.total, 1), self.WIDTH)
        return f"[{'#' * filled}{'.' * (self.WIDTH - filled)}]"

    def _text(self, now: float) -> str:
        rate = self.done / max(now - self.start, 0.001)
        return f"{self.done:,} of {max(self.total, self.done):,} tokens, {rate:7,.0f}/s"


def _ring() -> KeyRing:
    try:
        ring = key_ring()
    except ConfigurationError as error:
        raise CommandError(error.message) from error
    if not ring.key_ids:
        raise CommandError("OIDC_RP['TOKEN_KEYS'] is empty; oidc_generate_key prints a key.")
    return ring


def _older_keys(ring: KeyRing, using: str) -> list[str]:
    """What is to be known before an older key is removed, and of one that was removed too soon."""
    used = {key_id for column in COLUMNS for key_id in key_ids_in_use(column, using)}
    told = []
    if lost := sorted(used - set(ring.key_ids)):
        told.append(
            f"Not in TOKEN_KEYS: {', '.join(lost)}. Put each back as the last one and run this "
            "again, or the tokens that it sealed are lost."
        )
    if older := sorted(used.intersection(ring.key_ids[1:])):
        told.append(f"Still in use: {', '.join(older)}. Run this again before you remove them.")
    elif ring.key_ids[1:]:
        told.append("No stored token needs an older key.")
    return told
