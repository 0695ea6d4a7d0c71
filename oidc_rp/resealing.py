"""Every column of sealed tokens: which keys are in use there, and how a key is replaced (M52)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from django.db import connections, models, transaction
from django.db.models import F, Value

from .errors import SealError
from .models import Grant, PendingRevocation, Session, StoredAccessToken
from .sealing import Context, KeyRing


class Column(NamedTuple):
    """A column of envelopes, and the way to what its seals are bound to.

    The model's context() tells the same of one row; here it is read with a page of rows.
    """

    model: type[models.Model]
    name: str
    iss: str
    sub: str
    generation: F | Value

    @property
    def table(self) -> str:
        return self.model._meta.db_table

    def rows(self, using: str) -> "models.QuerySet[Any, Any]":
        """All rows of the table, on this database."""
        return models.QuerySet(self.model, using=using)

    def sealed(self, using: str) -> "models.QuerySet[Any, Any]":
        """Those that hold an envelope."""
        sealed: models.QuerySet[Any, Any] = self.rows(using).exclude(**{self.name: ""})
        return sealed


COLUMNS = (
    Column(Grant, "refresh_token", "identity__iss", "identity__sub", F("generation")),
    Column(
        StoredAccessToken,
        "access_token",
        "grant__identity__iss",
        "grant__identity__sub",
        F("generation"),
    ),
    Column(Session, "id_token", "identity__iss", "identity__sub", Value(0)),
    Column(PendingRevocation, "token", "iss", "sub", Value(0)),
)


class Moved(NamedTuple):
    """What became of one batch.

    changed: rows that somebody else wrote meanwhile, and sealed. unopened: id and reason of each.
    """

    moved: int
    changed: int
    unopened: list[tuple[str, SealError]]

    @property
    def read(self) -> int:
        return self.moved + self.changed + len(self.unopened)


class _Row(NamedTuple):
    id: str
    envelope: str
    iss: str
    sub: str
    generation: int


class _Sealed(NamedTuple):
    """envelopes: id, old envelope, new envelope. unopened: id and reason."""

    envelopes: list[tuple[str, str, str]]
    unopened: list[tuple[str, SealError]]


def key_ids_in_use(column: Column, using: str) -> Iterator[str]:
    """The ids of the keys that sealed this column; one look-up in its index for each."""
    rows, found = column.rows(using), ""
    while found := rows.filter(key_id__gt=found).aggregate(next=models.Min("key_id"))["next"]:
        yield found


def rows_to_move(column: Column, ring: KeyRing, using: str) -> int:
    """How many rows the newest key has not sealed."""
    return int(column.sealed(using).exclude(key_id=ring.key_ids[0]).count())


def move_to_newest_key(
    column: Column, ring: KeyRing, using: str, batch_size: int
) -> Iterator[Moved]:
    """Seal this column with the newest key, one batch in one short transaction after the other.

    What was moved is no longer looked for, so that another run goes on where this one ended.
    A batch is sealed in a thread while the database writes the one before.
    """
    waiting: Future[_Sealed] | None = None
    with ThreadPoolExecutor(1) as sealer:
        for page in _pages(column, ring, using, batch_size):
            sealing = sealer.submit(_seal, column, page, ring)
            if waiting is not None:
                yield _store(column, waiting.result(), ring, using)
            waiting = sealing
    if waiting is not None:
        yield _store(column, waiting.result(), ring, using)


def _pages(column: Column, ring: KeyRing, using: str, size: int) -> Iterator[list[_Row]]:
    """The rows to move, by keyset: a page costs the same wherever it begins."""
    fields = ("pk", column.name, column.iss, column.sub, column.generation)
    # No key id beside an envelope is a mistake too, and is to be told.
    for key_id in ("", *key_ids_in_use(column, using)):
        if key_id == ring.key_ids[0]:
            continue
        rows, last = column.sealed(using).filter(key_id=key_id).order_by("pk"), ""
        while page := [_Row(*row) for row in rows.filter(pk__gt=last).values_list(*fields)[:size]]:
            yield page
            last = page[-1].id


def _seal(column: Column, page: Sequence[_Row], ring: KeyRing) -> _Sealed:
    sealed = _Sealed([], [])
    for row in page:
        context = Context(column.table, column.name, row.id, row.iss, row.sub, row.generation)
        try:
            envelope = ring.seal(ring.open(row.envelope, context), context)
        except SealError as error:
            sealed.unopened.append((row.id, error))
        else:
            sealed.envelopes.append((row.id, row.envelope, envelope))
    return sealed


def _store(column: Column, sealed: _Sealed, ring: KeyRing, using: str) -> Moved:
    """Write each new envelope where the old one still stands."""
    moved = 0
    if sealed.envelopes:
        connection = connections[using]
        store = _store_at_once if connection.vendor == "postgresql" else _store_one_by_one
        table, name = map(connection.ops.quote_name, (column.table, column.name))
        with transaction.atomic(using), connection.cursor() as cursor:
            store(cursor, table, name, sealed.envelopes, ring.key_ids[0])
            moved = int(cursor.rowcount)
    return Moved(moved, len(sealed.envelopes) - moved, sealed.unopened)


def _store_at_once(
    cursor: Any, table: str, name: str, envelopes: Sequence[tuple[str, str, str]], key_id: str
) -> None:
    # Neither ids nor envelopes have a blank; an array would be quoted item by item, and slowly.
    statement = f"""
        UPDATE {table} SET {name} = new.envelope, key_id = %s
        FROM unnest(string_to_array(%s, ' '), string_to_array(%s, ' '), string_to_array(%s, ' '))
            AS new (id, old_envelope, envelope)
        WHERE {table}.id = new.id AND {table}.{name} = new.old_envelope
    """  # noqa: S608 - names of our own
    cursor.execute(statement, [key_id, *map(" ".join, zip(*envelopes, strict=True))])


def _store_one_by_one(
    cursor: Any, table: str, name: str, envelopes: Sequence[tuple[str, str, str]], key_id: str
) -> None:
    statement = f"UPDATE {table} SET {name} = %s, key_id = %s WHERE id = %s AND {name} = %s"  # noqa: S608
    cursor.executemany(statement, [(new, key_id, pk, old) for pk, old, new in envelopes])
