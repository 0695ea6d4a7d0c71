"""Close the grants that nobody can use any more, and delete what is old."""

from datetime import timedelta
from typing import Any

from django.core.checks import Tags
from django.core.management import BaseCommand, CommandParser

from ... import grants
from ...upkeep import prune
from ..tables import require_tables


class Command(BaseCommand):
    # Ours; those of the models would need the database, and fail without a sentence.
    requires_system_checks = [Tags.security]
    """Close the grants that nobody can use any more; delete closed grants, tokens and events.

    Safe to run twice at once, and to kill.
    """

    help = "Close the grants and sessions that nobody can use any more, and delete what is old."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--days", type=int, default=30, help="how long closed grants stay (%(default)s)"
        )
        parser.add_argument(
            "--events-days", type=int, help="how long events stay (the setting EVENT_RETENTION)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        require_tables(grants.database())
        days = options["events_days"]
        done = prune(
            closed_for=timedelta(days=options["days"]),
            events_for=None if days is None else timedelta(days=days),
        )
        if options["verbosity"]:
            self.stdout.write(
                f"{done.closed:,} grants closed, {done.sessions:,} sessions found over. "
                f"Deleted: {done.grants:,} closed grants, "
                f"{done.access_tokens:,} access tokens, {done.events:,} events, "
                f"{done.circuits:,} circuits."
            )
