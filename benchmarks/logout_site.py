"""A Django site that is told to sign people out, in a process of its own, and what that takes."""

import json
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlencode

from .api_site import api_site_settings, set_up
from .databases import Database
from .measure import collected_garbage
from .sign_ins import GRANT_EVERY, SESSIONS_OF_A_PERSON, SignIn, usual

BY_SID, BY_SID_AND_SUB, BY_SUB = "sid", "sid and sub", "sub"

WATCHED = {
    "auth_user",
    "django_session",
    *(
        f"oidc_rp_{name}"
        for name in "session grant storedaccesstoken identity logoutmark event".split()
    ),
}
"""The tables that grow with the number of people and sessions."""


def logout_site_settings(database: Database, metadata: dict[str, Any]) -> dict[str, Any]:
    """Settings of a site whose grants belong to browser sessions."""
    options = api_site_settings(database, metadata, metadata["issuer"])
    options["OIDC_RP"]["PROVIDERS"]["op"]["SCOPES"] = ["openid", "calendar"]
    return options


class Took(NamedTuple):
    """Median seconds of a logout: all of it, and what its statements took."""

    whole: float
    in_statements: float


@dataclass(frozen=True)
class Statement:
    """A statement that was run. plan: PostgreSQL's, as EXPLAIN (FORMAT JSON) tells it."""

    sql: str
    seconds: float
    plan: dict[str, Any] | None

    @property
    def table(self) -> str:
        """The table that it is about; "" for what is about none, as SET."""
        found = re.search(r'(?:FROM|INTO|UPDATE) "?(\w+)', self.sql)
        return found[1] if found else ""

    @property
    def verb(self) -> str:
        return self.sql.split()[0]

    @property
    def shape(self) -> str:
        """The statement itself, however many values a list in it has."""
        return re.sub(r"\(%s(?:, %s)*\)", "(...)", self.sql)

    @property
    def not_by_index(self) -> set[str]:
        """The watched tables that it reads from end to end."""
        read = [node for node in self._nodes() if node.get("Relation Name") in WATCHED]
        return {node["Relation Name"] for node in read if reads_whole(node)}

    @property
    def indexes(self) -> set[str]:
        """The indexes that it looks something up in."""
        return {node["Index Name"] for node in self._nodes() if "Index Cond" in node}

    def _nodes(self) -> Iterator[dict[str, Any]]:
        """Every node of the plan."""
        left = [self.plan] if self.plan else []
        while left:
            yield (node := left.pop())
            left += node.get("Plans", [])


def reads_whole(node: dict[str, Any]) -> bool:
    """Whether it reads a table without asking an index; a bitmap comes from one, below it."""
    kind: str = node["Node Type"]
    return kind.endswith("Scan") and kind != "Bitmap Heap Scan" and "Index Cond" not in node


@dataclass
class Statements:
    """Notes every statement of this process: a list for each connection, whichever thread's.

    explains: whether their plans are asked for, right before they are run.
    """

    logs: list[list[Statement]] = field(default_factory=list)
    explains: bool = False

    def watch(self, connection: Any, **_: Any) -> None:
        """A receiver of connection_created."""
        self.logs.append([])
        connection.execute_wrappers = [partial(self._note, self.logs[-1])]

    def _note(
        self, log: list[Statement], execute: Any, sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        plan = None
        if self.explains and re.match("SELECT|INSERT|UPDATE|DELETE", sql):
            execute(f"EXPLAIN (FORMAT JSON) {sql}", params, many, context)
            (told,) = context["cursor"].fetchone()
            plan = (json.loads(told) if isinstance(told, str) else told)[0]["Plan"]
        start = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            log.append(Statement(sql, time.perf_counter() - start, plan))

    @contextmanager
    def noted(self) -> Iterator[list[Statement]]:
        """Gather what a logout runs: the request, and the thread that ends sessions for it.

        Left out is the thread that tells the OP which tokens to revoke, one by one, afterwards.
        """
        for log in self.logs:
            log.clear()
        request, found = self.logs[0], list[Statement]()
        yield found
        ending = [log for log in self.logs[1:] if any(_ends(statement) for statement in log)]
        found += [statement for log in (request, *ending) for statement in log]
        del self.logs[1:]


def _ends(statement: Statement) -> bool:
    return statement.table == "oidc_rp_session"


class LogoutSite:
    """A site with a number of browser sessions, on a PostgreSQL database of its own."""

    def __init__(self, options: dict[str, Any], sessions: int) -> None:
        set_up(options)
        from django.db.backends.signals import connection_created

        self._statements, self._sessions = Statements(), sessions
        connection_created.connect(self._statements.watch)
        self._people = sessions

    def fill(self) -> str:
        """Make the tables, sign all of them in, and return how large the database is."""
        from django.core.management import call_command
        from django.db import connection
        from django.test import Client

        from .many_sessions import ManySessions

        call_command("migrate", verbosity=0)
        self._many, self._op = ManySessions(), Client(SERVER_NAME="127.0.0.1")
        self._many.fill(self._sessions)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_size_pretty(pg_database_size(current_database()))")
            return str(cursor.fetchone()[0])

    # Whom to sign out

    def some(self, by: str, count: int) -> list[list[SignIn]]:
        """Choose people, each with a grant, at random; return the sign-ins that a logout of each
        one ends."""
        first = random.sample(range(0, self._sessions, GRANT_EVERY), count)
        ends = SESSIONS_OF_A_PERSON if by == BY_SUB else 1
        return [[usual(number + more) for more in range(ends)] for number in first]

    def somebody_with(self, sessions: int) -> list[SignIn]:
        """Sign somebody new in so often, with a grant each time."""
        self._people += 1
        numbers = range(self._people * 1_000, self._people * 1_000 + sessions)
        sign_ins = [SignIn(number, self._people, True) for number in numbers]
        self._many.add_people([self._people])
        self._many.add(sign_ins)
        return sign_ins

    # Logouts

    def log_out(self, tokens: Sequence[str], ended: Sequence[Sequence[SignIn]]) -> Took:
        """Receive logout tokens, and let the people of each sign in again afterwards."""
        whole, in_statements = [], []
        for token, sign_ins in zip(tokens, ended, strict=True):
            with self._statements.noted() as statements:
                whole.append(self._log_out(token))
            in_statements.append(sum(statement.seconds for statement in statements))
            self._check_ended(sign_ins)
        self._many.add([sign_in for sign_ins in ended for sign_in in sign_ins])
        return Took(statistics.median(whole), statistics.median(in_statements))

    def statements(self, token: str, sign_ins: Sequence[SignIn]) -> list[Statement]:
        """Receive one logout token; return what was run, and by which plans."""
        self._statements.explains = True
        try:
            with self._statements.noted() as statements:
                self._log_out(token)
        finally:
            self._statements.explains = False
        self._check_ended(sign_ins)
        self._many.add(sign_ins)
        return statements

    def _log_out(self, token: str) -> float:
        """Return the seconds until the OP has its answer; then let all come to rest."""
        body, form = urlencode({"logout_token": token}), "application/x-www-form-urlencoded"
        with collected_garbage():
            start = time.perf_counter()
            response = self._op.post("/op/backchannel-logout/", body, content_type=form)
            seconds = time.perf_counter() - start
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {response.content!r}")
        while any(thread.name == "oidc_rp" for thread in threading.enumerate()):
            time.sleep(0.002)
        return seconds

    def _check_ended(self, sign_ins: Sequence[SignIn]) -> None:
        """Raise unless these sessions are gone, and nothing is left of what was granted to them."""
        from django.contrib.sessions.models import Session as StoredSession

        from oidc_rp.models import Grant, PendingRevocation, Session, digest

        sids = [digest(self._many.iss, sign_in.sid) for sign_in in sign_ins]
        keys = [sign_in.session_key for sign_in in sign_ins]
        person = Grant.objects.filter(identity__digest=digest(self._many.iss, sign_ins[0].sub))
        left = Counter(
            sessions=Session.objects.filter(sid_digest__in=sids).count(),
            stored=StoredSession.objects.filter(session_key__in=keys).count(),
            grants=person.filter(status=Grant.OPEN).count(),
            revocations=PendingRevocation.objects.count(),
        )
        if left.total():
            raise RuntimeError(f"a logout has left {left}")
