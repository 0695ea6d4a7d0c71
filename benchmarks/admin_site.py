"""A Django site with many linked identities, in a process of its own, whose admin is looked at."""

from typing import Any

from .api_site import set_up
from .databases import Database
from .logout_site import Statement, Statements, logout_site_settings
from .sign_ins import SESSIONS_OF_A_PERSON, SignIn, sub_of, usual

SIGNED_IN_EVERY = 20
"""One person of so many is signed in, twice, and one of those two sessions has a grant."""

ADDED_AT_ONCE = 50_000


def admin_site_settings(database: Database, metadata: dict[str, Any]) -> dict[str, Any]:
    """Settings of a site with the admin."""
    options = logout_site_settings(database, metadata)
    options["INSTALLED_APPS"] += ["django.contrib.admin", "django.contrib.messages"]
    options["MIDDLEWARE"] = [
        *options["MIDDLEWARE"],
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    processors = [
        f"django.{name}"
        for name in (
            "template.context_processors.request",
            "contrib.auth.context_processors.auth",
            "contrib.messages.context_processors.messages",
        )
    ]
    options["TEMPLATES"] = [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": processors},
        }
    ]
    options["STATIC_URL"] = "/static/"
    options["ROOT_URLCONF"] = "benchmarks.admin_urls"
    return options


class AdminSite:
    """A site with a number of linked identities, on a PostgreSQL database of its own."""

    def __init__(self, options: dict[str, Any], people: int) -> None:
        set_up(options)
        from django.db.backends.signals import connection_created

        self._statements, self._people = Statements(), people
        connection_created.connect(self._statements.watch)

    def fill(self) -> str:
        """Make the tables and the people, and return how large the database is."""
        from django.contrib.auth import get_user_model
        from django.core.management import call_command
        from django.db import connection
        from django.test import Client

        from .many_sessions import ManySessions

        call_command("migrate", verbosity=0)
        many = ManySessions()
        for start in range(0, self._people, ADDED_AT_ONCE):
            people = range(start, min(start + ADDED_AT_ONCE, self._people))
            many.add_people(people)
            many.add([one for person in people[::SIGNED_IN_EVERY] for one in _sign_ins(person)])
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("SELECT pg_size_pretty(pg_database_size(current_database()))")
            size = str(cursor.fetchone()[0])
        self._operator = Client(SERVER_NAME="127.0.0.1")
        users: Any = get_user_model()._default_manager
        self._operator.force_login(users.create_superuser("operator"))
        return size

    def pages(self) -> dict[str, str]:
        """What an operator looks at, and where it is; somebody in the middle is looked for."""
        from django.urls import reverse

        from oidc_rp.models import Identity

        person = self._people // 2 // SIGNED_IN_EVERY * SIGNED_IN_EVERY
        listed = reverse("admin:oidc_rp_identity_changelist")
        found = Identity.objects.get(sub=sub_of(person))
        return {
            "list": listed,
            "list, second page": f"{listed}?p=2",
            "list, one provider": f"{listed}?provider=op",
            "search by sub": f"{listed}?q={sub_of(person)}",
            "search by the beginning of an e-mail address": f"{listed}?q={found.email[:-9]}",
            "search by user name": f"{listed}?q=person%20{person}",
            "search by sid": f"{listed}?q={_sign_ins(person)[0].sid}",
            "search for what nobody has": f"{listed}?q=nobody-at-all",
            "detail": reverse("admin:oidc_rp_identity_change", args=[found.pk]),
        }

    def look(self, path: str) -> tuple[int, list[Statement]]:
        """Open a page; return its status, and what was run for it, by which plans."""
        (log, *_) = self._statements.logs
        log.clear()
        self._statements.explains = True
        try:
            response = self._operator.get(path)
        finally:
            self._statements.explains = False
        return response.status_code, list(log)


def _sign_ins(person: int) -> list[SignIn]:
    first = person * SESSIONS_OF_A_PERSON
    return [usual(first + more) for more in range(SESSIONS_OF_A_PERSON)]
