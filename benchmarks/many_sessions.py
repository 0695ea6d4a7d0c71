"""Many browser sessions, each as if somebody had signed in: copies of one real sign-in.

What tells one sign-in from another is its own: sub, sid, their digests, the keys and, where there
is a grant, its sealed refresh token. Needs Django to be set up, on PostgreSQL, which takes the rows
by COPY.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session as StoredSession
from django.db import connection, transaction
from django.db.models import Model
from django.test import Client

from oidc_rp.models import (
    Event,
    Grant,
    Identity,
    LogoutMark,
    Session,
    StoredAccessToken,
    digest,
    record_id,
)
from oidc_rp.sealing import key_ring
from oidc_rp.testing.browser import Browser

from .sign_ins import SignIn, sub_of, usual

AT_ONCE = 50_000
MARK_EVERY = 20
"""There is one mark of an earlier logout for so many sessions."""

AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0"
REFRESH_TOKEN = "r" * 43

Columns = dict[str, Any]


class ManySessions:
    """The rows of one real sign-in, and what is copied from them."""

    def __init__(self) -> None:
        """Sign somebody in through the views."""
        Browser(Client(SERVER_NAME="127.0.0.1", headers={"user-agent": AGENT})).sign_in("op")
        row = Session.objects.select_related("identity").get()
        self.iss = row.identity.iss
        mark = LogoutMark.objects.create(subject=digest(self.iss, row.sid), jti=digest("jti", ""))
        self._rows: dict[type[Model], Columns] = {
            get_user_model(): _columns(get_user_model(), pk=row.identity.user_id),
            Identity: _columns(Identity, pk=row.identity_id),
            Grant: _columns(Grant, pk=row.grant_id),
            StoredAccessToken: _columns(StoredAccessToken, grant_id=row.grant_id),
            Event: _columns(Event, grant_id=row.grant_id),
            Session: _columns(Session, pk=row.pk),
            StoredSession: _columns(StoredSession, pk=row.session_key),
            LogoutMark: _columns(LogoutMark, pk=mark.pk),
        }
        del self._rows[Event]["id"]  # the database counts them

    def fill(self, count: int) -> None:
        """Add so many sessions, and all that belongs to them; have the database look at it."""
        for start in range(0, count, AT_ONCE):
            sign_ins = [usual(number) for number in range(start, min(start + AT_ONCE, count))]
            self.add_people(dict.fromkeys(sign_in.person for sign_in in sign_ins))
            self.add(sign_ins)
            self._add_marks(sign_ins[::MARK_EVERY])
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")

    def add_people(self, people: Iterable[int]) -> None:
        users = [{"id": _pk(person), "username": f"person {person}"} for person in people]
        self._copy(get_user_model(), users)
        self._copy(Identity, map(self._identity, people))

    def add(self, sign_ins: Sequence[SignIn]) -> None:
        """Let people sign in who are known."""
        granted = [(sign_in, record_id()) for sign_in in sign_ins if sign_in.has_grant]
        grants = {sign_in.number: grant for sign_in, grant in granted}
        self._copy(Grant, (self._grant(*pair) for pair in granted))
        tokens = ({"id": record_id(), "grant_id": grant} for _, grant in granted)
        self._copy(StoredAccessToken, tokens)
        events = (
            {"identity_id": _pk(sign_in.person), "grant_id": grant} for sign_in, grant in granted
        )
        self._copy(Event, events)
        self._copy(Session, (self._session(one, grants.get(one.number)) for one in sign_ins))
        self._copy(StoredSession, ({"session_key": one.session_key} for one in sign_ins))

    def _add_marks(self, sign_ins: Iterable[SignIn]) -> None:
        marks = (
            {"id": record_id(), "subject": _digest("mark", one), "jti": _digest("jti", one)}
            for one in sign_ins
        )
        self._copy(LogoutMark, marks)

    def _identity(self, person: int) -> Columns:
        pk, sub = _pk(person), sub_of(person)
        told = {"sub": sub, "digest": digest(self.iss, sub), "email": f"person{person}@example.com"}
        return {"id": pk, "user_id": pk} | told

    def _grant(self, sign_in: SignIn, grant: str) -> Columns:
        identity = Identity(iss=self.iss, sub=sign_in.sub)
        context = Grant(id=grant, identity=identity).context(1)
        sealed = key_ring().seal(REFRESH_TOKEN, context)
        return {"id": grant, "identity_id": _pk(sign_in.person), "refresh_token": sealed}

    def _session(self, sign_in: SignIn, grant: str | None) -> Columns:
        seen = self._rows[Session]["last_seen_at"] + sign_in.number
        return {
            "id": record_id(),
            "identity_id": _pk(sign_in.person),
            "grant_id": grant,
            "sid": sign_in.sid,
            "sid_digest": digest(self.iss, sign_in.sid),
            "session_key": sign_in.session_key,
            "last_seen_at": seen,
        }

    def _copy(self, model: type[Model], changes: Iterable[Columns]) -> None:
        """Add a row for each: that of the real sign-in, with these columns changed."""
        row, table = self._rows[model], model._meta.db_table
        statement = f"COPY {table} ({', '.join(row)}) FROM STDIN"
        with transaction.atomic(), connection.cursor() as cursor:
            # What they refer to is there: nobody has to look, a million times.
            cursor.execute("SET LOCAL session_replication_role = replica")
            with cursor.copy(statement) as copy:
                for values in _merged(row, changes):
                    copy.write_row(values)


def _merged(row: Columns, changes: Iterable[Columns]) -> Iterator[list[Any]]:
    for changed in changes:
        yield list((row | changed).values())


def _columns(model: type[Model], **key: Any) -> Columns:
    """A row as it stands in the database."""
    (pk,) = model._default_manager.filter(**key).values_list("pk", flat=True)
    table, key_column = model._meta.db_table, model._meta.pk.column
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {table} WHERE {key_column} = %s", [pk])
        return dict(
            zip([column.name for column in cursor.description], cursor.fetchone(), strict=True)
        )


def _pk(person: int) -> int:
    """The key of a person's user and identity; those before belong to the real sign-in."""
    return 1_000 + person


def _digest(kind: str, sign_in: SignIn) -> str:
    return digest(kind, str(sign_in.number))
