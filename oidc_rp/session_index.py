"""The index of browser sessions: a row for each that began at an OP, kept true, and the marks of
what was logged out. No session is ended here: see closing.py.
"""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from datetime import timezone as tz
from hashlib import sha256
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.db import IntegrityError, connections, models
from django.http import HttpRequest

from . import conf, session_store
from .errors import ConfigurationError, SealError
from .grants import database
from .models import (
    CLOCKS,
    EPOCH,
    MICROSECOND,
    DatabaseClock,
    Grant,
    Identity,
    LogoutMark,
    Session,
    digest,
)
from .own_connection import transaction_on
from .protocol.id_token import MAX_SUB_LENGTH
from .protocol.tokens import IdToken
from .relying_party import Login
from .sealing import key_id, key_ring
from .sessions import PendingLogin

MAX_USER_AGENT = 256
SEEN_EVERY = timedelta(minutes=5)
"""How exact `last_seen_at` is: so often a request is noted at most."""


def database_now() -> float:
    """Seconds since the epoch by the database's clock, which marks are stamped with."""
    connection = connections[database()]
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {CLOCKS[connection.vendor]}")
        return float(cursor.fetchone()[0]) / 1e6


def rows() -> "models.QuerySet[Any, Any]":
    """All rows, where they are written."""
    found: models.QuerySet[Any, Any] = models.QuerySet(Session, using=database())
    return found


def add(request: HttpRequest, login: Login, identity: Identity, grant: Grant | None) -> Session:
    """Write the row of a session that has just begun, under its new key."""
    row: Any = Session(
        identity=identity,
        provider=login.provider.slug,
        session_key=session_store.key_of(request.session),
        auth_hash=_auth_hash(request.session),
        user_agent=request.headers.get("User-Agent", "").replace("\x00", "")[:MAX_USER_AGENT],
        **dict.fromkeys(("created_at", "last_seen_at", "renewed_at"), DatabaseClock()),
    )
    for name, value in _told_by(login, row, grant).items():
        setattr(row, name, value)
    row.save(using=database(), force_insert=True)
    return row  # type: ignore[no-any-return]


def renew(row_id: str, login: Login, identity: Identity, grant: Grant | None) -> Session | None:
    """Bring the row of a session that goes on up to a new login of the same person; None when it
    has ended. The row stays: requests that have read the session before still find it."""
    row: Any = Session(pk=row_id, identity=identity)
    changes = _told_by(login, row, grant)
    if not changes["sid"]:  # the OP does not name its session again; it may still name it later
        kept = rows().filter(pk=row_id).values_list("sid", "sid_digest").first()
        changes["sid"], changes["sid_digest"] = kept or ("", None)
    row.sid = changes["sid"]
    now = {"renewed_at": DatabaseClock(), "tried_at": None, "failed_at": None}
    alive_still = rows().filter(pk=row_id, identity=identity, ended_at=None)
    return row if alive_still.update(**changes, **now) else None


def _told_by(login: Login, row: Session, grant: Grant | None) -> dict[str, Any]:
    """What a login says of a session; row: where its ID Token is sealed to."""
    id_token, claims = login.id_token, login.id_token.claims
    sid, acr, amr = _sid(claims.get("sid")), claims.get("acr"), claims.get("amr")
    sealed = ""
    if login.tokens.id_token is not None and conf.token_keys():
        sealed = key_ring().seal(login.tokens.id_token.reveal(), row.context())
    return {
        "grant": grant,
        "sid": sid,
        "sid_digest": digest(id_token.iss, sid) if sid else None,
        "auth_time": _moment(id_token.auth_time),
        "acr": acr if isinstance(acr, str) else "",
        "amr": [item for item in amr if isinstance(item, str)] if isinstance(amr, list) else [],
        "id_token": sealed,
        "key_id": key_id(sealed) if sealed else "",
    }


def remove(row_id: str) -> Any:
    """Delete the row of a session that goes on under another one, or is over; return it, with its
    identity, if it had not ended before."""
    this = rows().filter(pk=row_id)
    row = this.select_related("identity").first() if row_id else None
    if row is None:
        return None
    ends_now = bool(this.filter(ended_at=None).delete()[0])
    if not ends_now:
        this.delete()
    return row if ends_now else None


def read(row_id: str) -> Any:
    """The row of this id, with the database's time as `.now`, or None; one look-up by its key."""
    clock = CLOCKS[connections[database()].vendor]
    table = Session._meta.db_table
    statement = f"SELECT {table}.*, {clock} AS now FROM {table} WHERE id = %s"  # noqa: S608
    row: Any = next(iter(rows().raw(statement, [row_id])), None)
    if row is not None:
        row.now = EPOCH + row.now * MICROSECOND
    return row


def id_token_of(row: Session) -> IdToken | None:
    """The ID Token of the session's login, for `id_token_hint` and nothing else; None where it was
    not kept or does not open."""
    if not row.id_token:
        return None
    with suppress(SealError, ConfigurationError):
        return IdToken(key_ring().open(row.id_token, row.context()))
    return None


_SEEN = "_oidc_rp_session"


def keep_in_view(request: HttpRequest, row: Session) -> None:
    """Let whoever handles this request find the row that its session came with."""
    setattr(request, _SEEN, row)


def seen(request: HttpRequest) -> Any:
    """The row that the session of this request came with, as read() returned it; None for none, or
    where nobody has looked."""
    return getattr(request, _SEEN, None)


def note_seen(row: Session) -> None:
    """The session is in use."""
    rows().filter(pk=row.pk).update(last_seen_at=DatabaseClock())


def keep_true(row: Session, session: SessionBase) -> None:
    """Note a session's key and password hash, where a view has changed them."""
    now = {"session_key": session_store.key_of(session), "auth_hash": _auth_hash(session)}
    changed = {name: value for name, value in now.items() if getattr(row, name) != value}
    if changed:
        rows().filter(pk=row.pk).update(**changed)


def with_password_of(user: Any) -> "models.QuerySet[Any, Any]":
    """The sessions of a user that a change of the password has not ended."""
    hashes = [""]
    if hasattr(user, "get_session_auth_hash"):
        hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    known = [_digest_of(text) for text in hashes]
    return rows().filter(identity__user=user, ended_at=None, auth_hash__in=known)


def alive(user: Any) -> list[Any]:
    """The sessions that a user is signed in with, the latest first, with their identities."""
    found = list(with_password_of(user).select_related("identity").order_by("-id"))
    there = session_store.alive([row.session_key for row in found])
    return [row for row in found if row.session_key in there]


# What was logged out


def _marks() -> "models.QuerySet[Any, Any]":
    found: models.QuerySet[Any, Any] = models.QuerySet(LogoutMark, using=database())
    return found


def of_sid(iss: str, sid: str) -> str:
    """The subject of a mark: one session of the OP."""
    return _digest_of(f"sid {digest(iss, sid)}")


def of_sub(iss: str, sub: str) -> str:
    """The subject of a mark: all sessions of a person."""
    return _digest_of(f"sub {digest(iss, sub)}")


def of_nameless(iss: str, sub: str) -> str:
    """The subject of a mark: those sessions of a person that the OP has given no sid."""
    return _digest_of(f"nameless {digest(iss, sub)}")


def of_browser(browser: str) -> str:
    """The subject of a mark: whatever a browser had begun; browser: as in sessions.browser_of()."""
    return _digest_of(f"browser {browser}")


def mark(subject: str, issued_by: str = "", jti: str = "") -> Any:
    """Remember that this was logged out, before anything is ended; return the mark.

    issued_by, jti: of the logout token that says so; issuer and client, for whom it is unique. A
    mark that is done already says that the token was taken before; one that is not, that whoever
    took it did not come to its end.
    """
    told = digest(issued_by, jti) if jti else None
    for _attempt in range(2):
        found = _marks().filter(jti=told).first() if told else None
        if found is not None:
            return found
        with suppress(IntegrityError), transaction_on(database()):
            return _marks().create(subject=subject, jti=told, at=DatabaseClock())
    raise AssertionError("a mark that is there cannot be read")  # pragma: no cover


def mark_people(identities: Iterable[Identity], spared: str = "") -> None:
    """Remember that each of them was logged out everywhere, before anything is ended.

    spared: the browser whose own logins go on, as in sessions.browser_of(); "" for none.
    """
    rows: list[Any] = []
    for one in identities:
        row = LogoutMark(subject=of_sub(one.iss, one.sub), at=DatabaseClock())
        row.jti = _sparing(spared, row.pk) if spared else None
        rows.append(row)
    with transaction_on(database()):
        _marks().bulk_create(rows)


def _sparing(browser: str, mark: str) -> str:
    """What stands in a mark, in the place of a logout token, when it does not mean this browser."""
    return digest(f"browser {browser}", mark)


def done(marked: LogoutMark) -> None:
    """All that a mark speaks of has ended."""
    _marks().filter(pk=marked.pk).update(done_at=DatabaseClock())


def was_logged_out(row: Session, identity: Identity, pending: PendingLogin) -> bool:
    """Whether a logout came for this session while its login was under way (M60).

    Asked once the row is there: whichever of the two is written first, the other one sees it.
    """
    subjects = [of_sub(identity.iss, identity.sub)]
    named = of_sid(identity.iss, row.sid) if row.sid else ""
    subjects += [named or of_nameless(identity.iss, identity.sub)]
    subjects += [of_browser(pending.browser)] if pending.browser else []
    since = _moment(pending.since or pending.created_at)
    found = _marks().filter(subject__in=subjects, at__gte=since).values_list("pk", "jti")
    return any(told != _sparing(pending.browser, mark) for mark, told in found)


# Values


def _sid(value: Any) -> str:
    """What the OP calls its session; what no logout token could name is no name."""
    return value if isinstance(value, str) and len(value) <= MAX_SUB_LENGTH else ""


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, tz=tz.utc)


def _auth_hash(session: SessionBase) -> str:
    return _digest_of(str(session.get(HASH_SESSION_KEY, "")))


def _digest_of(text: str) -> str:
    return sha256(text.encode()).hexdigest()
