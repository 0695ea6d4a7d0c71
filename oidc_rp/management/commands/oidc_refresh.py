"""Renew the durable grants that the OP would soon forget."""

from datetime import timedelta
from typing import Any

from django.core.checks import Tags
from django.core.management import BaseCommand, CommandError, CommandParser

from ... import grants
from ...upkeep import Shard, renew_idle
from ..tables import require_tables


class Command(BaseCommand):
    # Ours; those of the models would need the database, and fail without a sentence.
    requires_system_checks = [Tags.security]
    """Renew the durable grants that the OP would soon forget; revoke what was given up.

    Safe to run twice at once, and to kill. The exit code is 1 when a grant could not be renewed
    for a reason that may pass; a grant that only a login can replace is told, and is no failure.
    """

    help = "Renew the durable grants that the OP would soon forget."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--within",
            type=int,
            metavar="SECONDS",
            help="renew what the OP would forget so soon (when a quarter of the idle time is left)",
        )
        parser.add_argument("--shard", default="1/1", metavar="I/N", help="part I of N, from 1 on")
        parser.add_argument("--limit", type=int, default=10_000, help="grants to try (%(default)s)")

    def handle(self, *args: Any, **options: Any) -> None:
        within, shard = options["within"], _shard(options["shard"])
        require_tables(grants.database())
        done = renew_idle(
            within=None if within is None else timedelta(seconds=within),
            shard=shard,
            limit=options["limit"],
            tell=lambda grant, code: self.stderr.write(f"grant {grant}: {code}"),
        )
        if options["verbosity"]:
            self.stdout.write(
                f"{done.renewed:,} renewed, {done.left:,} left to others, {done.ended:,} ended, "
                f"{done.failed:,} failed; {done.stored:,} stored from the journal, "
                f"{done.revoked:,} revoked."
            )
        if done.failed:
            raise CommandError(f"{done.failed:,} could not be renewed this time.")


def _shard(text: str) -> Shard:
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return Shard(int(number), int(count))
    raise CommandError(f"--shard should be 1/4 to 4/4, for example, and not {text!r}.")
