"""The end of a grant and of a browser session (T18): logout, another login, unlinking, a user who
is no longer active.

What ends is closed first and the OP told after commit: whoever is refreshing a grant comes too
late, and an OP that is down keeps nobody signed in (M56, M58, M60).
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import wait as wait_for
from contextlib import nullcontext
from copy import copy
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError, connections, models, transaction

from . import conf, events, grants, revocation, session_index, session_store, signals
from .errors import TemporarilyUnavailable
from .models import DatabaseClock, Grant, Identity, digest
from .own_connection import caller_may_roll_back, detached, must_share, transaction_on
from .protocol.tokens import RefreshToken
from .sessions import Held, browser_of, held_by

logger = logging.getLogger("oidc_rp")

_FAILURES = (DatabaseError, InterfaceError)


# Grants


def end(grant_id: str, reason: str, *, revoke: bool = True, actor: str = "") -> bool:
    """Close a grant, whoever may be refreshing it, and tell the OP after commit.

    reason: one of those in grants.py. Returns whether it was open.
    """
    for attempt in range(grants.ATTEMPTS):
        grant = grants.load(grant_id, locked=attempt > 0)
        if grant is None or grant.status != Grant.OPEN:
            return False
        if grants.close(grant, reason, revoke=revoke):
            tell_closed(grant, reason, "", actor)
            return True
    logger.error("grant %s: not closed, it changes all the time", grant_id)
    return False


def end_session_grant(
    grant_id: str, reason: str, *, heir: RefreshToken | None = None, actor: str = ""
) -> bool:
    """Close the grant that a browser session leaves behind; a durable one outlives it.

    It is revoked where that ends nothing but this very grant. heir: the token that follows it,
    which may be the same one.
    """
    bound = Grant.objects.using(grants.database()).select_related("identity")
    grant = bound.filter(pk=grant_id, durable=False).first() if grant_id else None
    if grant is None:
        return False
    provider = conf.providers().get(grant.provider)
    revoke = provider is not None and grants.revokes_superseded(provider)
    revoke = revoke and (heir is None or grants.opened(grant) != heir)
    return end(grant_id, reason, revoke=revoke, actor=actor)


def end_offline_access(slug: str, iss: str, sub: str, reason: str, *, actor: str = "") -> None:
    """Close what this person granted at this provider for times when they are away."""
    rows = Grant.objects.using(grants.database()).filter(provider=slug, durable=True)
    theirs = rows.filter(status=Grant.OPEN, identity__digest=digest(iss, sub))
    for grant_id in list(theirs.values_list("pk", flat=True)):
        end(grant_id, reason, actor=actor)


def tell_closed(grant: Any, reason: str, code: str, actor: str = "") -> None:
    """Say that a grant is closed: in its timeline, and to whoever listens."""
    events.note(events.of_grant(grant), events.CLOSED, reason, actor)
    told = {"identity": grant.identity, "grant": grant, "reason": reason}
    signals.send_after_commit(signals.grant_closed, Identity, **told)


# Browser sessions


def end_sessions(
    which: "models.QuerySet[Any, Any]", reason: str, *, revoke: bool = True, actor: str = ""
) -> int:
    """End these rows of the index, their stored sessions, and what was granted to them alone.

    which: of session_index.rows(). From the first write on none of them is good for another
    request; the statements are as many for two hundred as for one. The OP is told last of all.
    Returns how many have ended now; what had ended before, and is still there, goes with them.
    """
    wanted = ("provider", "grant", "session_key", "ended_at", "identity__user")
    rows = list(which.select_related("identity").only(*wanted))
    parts = [rows[first : first + _AT_ONCE] for first in range(0, len(rows), _AT_ONCE)]
    return sum(_end_these(part, reason, revoke, actor) for part in parts)


def sign_out(
    people: Sequence[Identity], reason: str, *, but: str = "", spared: str = "", actor: str = ""
) -> int:
    """End every session of these people, and have each login that is under way come too late (M60).

    but: the id of the row of a session that goes on. spared: its browser, whose logins go on as
    well; see session_index.mark_people(). Returns how many have ended now.

    Beside a transaction of the caller's: logins see the mark before that is over, and sessions that
    are younger than what it sees end as well. On SQLite nobody else writes until then.
    """

    def work() -> int:
        session_index.mark_people(people, spared)
        theirs = session_index.rows().filter(identity__in=[one.pk for one in people])
        return end_sessions(theirs.exclude(pk=but), reason, actor=actor)

    alias = grants.database()
    alone = must_share(alias) or connections[alias].vendor == "sqlite"
    return work() if alone or not caller_may_roll_back(alias) else detached(work).result()


_AT_ONCE = 1000
"""Sessions that one statement names: no database takes any number of values."""


def _end_these(rows: Sequence[Any], reason: str, revoke: bool, actor: str) -> int:
    open_rows = [row for row in rows if row.ended_at is None]
    with transaction_on(grants.database()):
        # By their keys: what PostgreSQL waits for, it compares again, but no look-up in here.
        theirs = session_index.rows().filter(pk__in=[row.pk for row in open_rows], ended_at=None)
        ended = theirs.update(ended_at=DatabaseClock())
    if ended:
        whose = [events.of_session(row) for row in open_rows]
        events.note_all(whose, events.SESSION_ENDED, reason, actor)
    closed = _end_bound([row.grant_id for row in rows if row.grant_id], reason, revoke)
    _forget_stored([(row.pk, row.session_key) for row in rows])
    if closed:
        _tell_all_closed(closed, reason, revoke, actor)
    return ended


def _end_bound(grant_ids: Collection[str], reason: str, revoke: bool) -> list[Any]:
    """Close what sessions leave behind; what somebody holds is left to oidc_prune."""
    try:
        return grants.close_many(grant_ids, reason, revoke=revoke) if grant_ids else []
    except _FAILURES:
        logger.exception("%d sessions have ended, and their grants have not", len(grant_ids))
        return []


def _tell_all_closed(closed: Sequence[Any], reason: str, revoke: bool, actor: str) -> None:
    if revoke:
        revocation.soon()
    events.note_all(map(events.of_grant, closed), events.CLOSED, reason, actor)
    for grant in closed:
        told = {"identity": grant.identity, "grant": grant, "reason": reason}
        signals.send_after_commit(signals.grant_closed, Identity, **told)


def end_row(row_id: str, reason: str, actor: str = "") -> None:
    """End the row of a session that goes on under another one, or is over in this very request."""
    row = session_index.remove(row_id)
    if row is not None:
        events.note(events.of_session(row), events.SESSION_ENDED, reason, actor)


def end_beside(
    which: "models.QuerySet[Any, Any]", reason: str, *, revoke: bool = True, actor: str
) -> None:
    """End these sessions on a connection of our own, for a caller who waits a moment only: what a
    request of the same person holds is waited for two seconds, and not much longer altogether.

    Raises TemporarilyUnavailable when that does not do; the work goes on. Raises a DatabaseError
    or an InterfaceError when they have not ended.
    """

    def work() -> int:
        return end_sessions(which, reason, revoke=revoke, actor=actor)

    if must_share(grants.database()):
        work()
        return
    ended = detached(work)
    if not wait_for([ended], _ANSWER_WITHIN).done:
        raise TemporarilyUnavailable("logout.busy", "not done yet", retry_after=5.0)
    ended.result()


_ANSWER_WITHIN = 8.0


def _forget_stored(ended: Sequence[tuple[str, str]]) -> None:
    """Delete stored sessions, then their rows; ended: ids and session keys.

    After commit, where there is a transaction of the caller's. What another request holds, or a
    server that is down, is tried again beside the request, and then by oidc_prune: the row says
    that it has ended.
    """
    alias = grants.database()
    if caller_may_roll_back(alias):
        transaction.on_commit(partial(_delete, ended), using=alias, robust=True)
    else:
        _delete(ended)


def _delete(ended: Sequence[tuple[str, str]]) -> None:
    if _deleted(ended) or must_share(grants.database()):
        return

    def try_again() -> None:
        until, pause = time.monotonic() + _TRY_FOR, 0.2
        while time.monotonic() < until and not _deleted(ended):
            time.sleep(pause)
            pause = min(pause * 2, 5.0)

    detached(try_again)


_TRY_FOR = 60.0


def _deleted(ended: Sequence[tuple[str, str]]) -> bool:
    try:
        session_store.delete([key for _, key in ended])
        session_index.rows().filter(pk__in=[pk for pk, _ in ended]).delete()
    except Exception as error:  # noqa: BLE001 - each session engine has its own kinds
        # No traceback: its frames, and some engines' messages, hold session keys.
        kind = type(error).__name__
        logger.error("%d sessions have ended, and are not deleted yet: %s", len(ended), kind)
        return False
    return True


# Receivers


def forget_session(request: Any, user: Any = None, **_: Any) -> None:
    """End what belongs to this session alone; a receiver of user_logged_out.

    The stored session goes first, before Django deletes it: whoever is told of its grant, the OP
    too, is told of a session that is over (M56). A database that fails keeps nobody signed in;
    oidc_prune closes the grant then.
    """
    if not hasattr(request, "session"):
        return
    session = request.session
    if browser := browser_of(session):
        _attempt(lambda: session_index.mark(session_index.of_browser(browser)))
    held = held_by(session)
    if held.grant and (key := session_store.key_of(session)):
        _attempt(lambda: session_store.delete([key]))
    _forget_held(held, user)


def forget_replaced_session(request: Any, user: Any, **_: Any) -> None:
    """End what belongs to this session when somebody signs in anew by other means than an OP; a
    receiver of user_logged_in.

    Where it was somebody else's, Django has emptied it: SessionRenewal knows what it was.
    """
    if hasattr(user, "oidc_sign_in") or not hasattr(request, "session"):
        return
    held, seen = held_by(request.session), session_index.seen(request)
    if not held.row and seen is not None:
        held = Held(seen.grant_id or "", seen.pk)
    _forget_held(held, user)


def _forget_held(held: Held, user: Any) -> None:
    actor = events.by_user(user.pk) if user is not None else ""
    _attempt(lambda: end_row(held.row, grants.LOGOUT, actor))
    _attempt(lambda: end_session_grant(held.grant, grants.LOGOUT, actor=actor))


def _attempt(step: Callable[[], Any]) -> None:
    """One of several steps, each of which is worth doing when another one fails; what fails leaves
    a transaction of the caller's as it was."""
    alias = grants.database()
    savepoint = transaction.atomic(using=alias) if connections[alias].in_atomic_block else None
    try:
        with savepoint or nullcontext():
            step()
    except Exception as error:  # noqa: BLE001 - a session engine has its own kinds
        kind = type(error).__name__  # no traceback: its frames hold session keys
        logger.error("a session ends, and what belongs to it does not: %s", kind)


def forget_user(instance: Any, created: bool, **_: Any) -> None:
    """End every session and grant of a user who is no longer active; a receiver of post_save."""
    if not isinstance(instance, get_user_model()) or created or instance.is_active:
        return
    end_sessions(session_index.rows().filter(identity__user=instance), grants.DEACTIVATED)
    rows = Grant.objects.using(grants.database()).filter(status=Grant.OPEN)
    for grant_id in rows.filter(identity__user=instance).values_list("pk", flat=True):
        end(grant_id, grants.DEACTIVATED)


def forget_identity(instance: Identity, **_: Any) -> None:
    """Delete the stored sessions of an identity that is unlinked; a receiver of its pre_delete,
    which comes also when its user is deleted. The rows go with it."""
    keys = session_index.rows().filter(identity=instance).values_list("session_key", flat=True)
    _forget_stored([("", key) for key in keys])


def tell_unlinked(instance: Identity, origin: Any = None, **_: Any) -> None:
    """Say that an identity is unlinked; a receiver of its post_delete. origin: what was deleted."""
    if getattr(origin, "model", type(origin)) is Identity:
        left = events.Whose(user=instance.user_id, provider=instance.provider)
        events.note(left, events.IDENTITY_UNLINKED, "", instance.unlinked_by)
        told = {"user": instance.user, "identity": copy(instance)}  # Django takes the key away
        signals.send_after_commit(signals.identity_unlinked, Identity, **told)


def forget_grant(instance: Any, **_: Any) -> None:
    """Have the refresh token of a deleted grant revoked; a receiver of its pre_delete, which comes
    also when its identity or user is deleted."""
    # As it stands now: somebody may be refreshing it, and nobody may begin until it is deleted.
    grant = grants.load(instance.pk, locked=True)
    token = grants.opened(grant) if grant is not None and grant.status == Grant.OPEN else None
    if token is not None:
        grants.pend_revocation(grant, token, grants.UNLINKED)
