"""List the browser sessions that began at an OpenID Provider, and end them."""

from collections.abc import Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.core.checks import Tags
from django.core.management import BaseCommand, CommandError, CommandParser

from ... import closing, grants, session_index, session_store
from ...devices import browser_of, system_of
from ...models import Identity
from ..tables import require_tables

ALL_AT_ONCE = "Name whose sessions to end: --user, --sub, --sid, --provider, --session, or --all."


class Command(BaseCommand):
    """List sessions, the latest first: id, user, provider, sid, signed in, last seen, browser.

    With --end those that are listed are signed out, on every session engine, and what was granted
    to them alone is revoked; of a person (--user, --sub) also who is on the way in.
    """

    help = "List the browser sessions that began at an OpenID Provider, and end them."
    # Ours; those of the models would need the database, and fail without a sentence.
    requires_system_checks = [Tags.security]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--user", help="of the user of this name")
        parser.add_argument("--sub", help="of the person with this sub")
        parser.add_argument("--sid", help="the OP's session of this sid")
        parser.add_argument("--provider", help="of this provider (slug)")
        parser.add_argument("--session", help="the one of this id")
        parser.add_argument("--limit", type=int, default=100, help="rows to list (%(default)s)")
        parser.add_argument("--end", action="store_true", help="sign them out")
        parser.add_argument("--all", action="store_true", help="with --end: of everybody")

    def handle(self, *args: Any, **options: Any) -> None:
        require_tables(grants.database())
        names = ("user", "sub", "sid", "provider", "session")
        given = {name: options[name] for name in names if options[name] is not None}
        for name, value in given.items():
            if not value:  # a shell's variable that is not set; many sessions have no sid
                raise CommandError(f"--{name} is empty: {ALL_AT_ONCE}")
        rows = self._rows(given)
        if not options["end"]:
            self._list(rows, options["limit"])
        elif not given and not options["all"]:
            raise CommandError(ALL_AT_ONCE)
        else:
            session_index.mark_people(_people(given))
            ended = self._end(rows)
            self.stdout.write(f"{ended:,} sessions ended.")

    def _rows(self, given: dict[str, str]) -> Any:
        by_name = f"identity__user__{get_user_model().USERNAME_FIELD}"
        fields = {
            "user": by_name,
            "sub": "identity__sub",
            "sid": "sid",
            "provider": "provider",
            "session": "pk",
        }
        rows = session_index.rows().filter(ended_at=None)
        rows = rows.filter(**{fields[name]: value for name, value in given.items()})
        if not given.keys() & {"sub", "sid"}:
            return rows
        # No collation of a database makes one person, or one session, out of two.
        found = rows.values_list("pk", "identity__sub", "sid")
        exactly = [
            pk
            for pk, sub, sid in found
            if (given.get("sub", sub), given.get("sid", sid)) == (sub, sid)
        ]
        return rows.filter(pk__in=exactly)

    def _list(self, rows: Any, limit: int) -> None:
        found = list(rows.select_related("identity__user").order_by("-pk")[:limit])
        there = session_store.alive([row.session_key for row in found])
        for row in found:
            if row.session_key in there:
                self.stdout.write("\t".join(_cells(row)))

    def _end(self, rows: Any) -> int:
        """A page at a time: there may be millions."""
        ended = 0
        while page := list(rows.order_by("pk").values_list("pk", flat=True)[:1000]):
            one_page = session_index.rows().filter(pk__in=page)
            ended += closing.end_sessions(one_page, grants.LOGOUT, actor="oidc_sessions")
        return ended


def _people(given: dict[str, str]) -> Iterator[Identity]:
    """Those whose every session is meant: a login of theirs that is under way comes too late."""
    by_person = given.keys() & {"user", "sub"}
    if not by_person or given.keys() & {"sid", "session"}:
        return
    by_name = f"user__{get_user_model().USERNAME_FIELD}"
    fields = {"user": by_name, "sub": "sub", "provider": "provider"}
    rows = Identity.objects.using(grants.database())
    for one in rows.filter(**{fields[name]: value for name, value in given.items()}):
        if given.get("sub", one.sub) == one.sub:  # whatever the database's collation says
            yield one


def _cells(row: Any) -> list[str]:
    device = f"{browser_of(row.user_agent)} {system_of(row.user_agent)}".strip()
    return [
        row.pk,
        row.identity.user.get_username(),
        row.provider,
        row.sid or "-",
        f"{row.created_at:%Y-%m-%d %H:%M}",
        f"{row.last_seen_at:%Y-%m-%d %H:%M}",
        device or "-",
    ]
