"""What happened: the vocabulary of the timeline, and the only place that adds to it.

Each event is a row of Event, a record of the logger "oidc_rp" and a count (telemetry.py). A row is
never changed; oidc_prune deletes it by its age, and a user who is deleted takes it along.
"""

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

from django.core.cache import cache
from django.db import DatabaseError, InterfaceError, router
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from . import telemetry
from .models import DatabaseClock, Event
from .own_connection import transaction_on

logger = logging.getLogger("oidc_rp")

EVENTS: dict[str, Promise] = {}
"""The name of each event, and what it says in one sentence."""


def _event(name: str, sentence: Promise) -> str:
    EVENTS[name] = sentence
    return name


# Logins and sessions
SIGNED_IN = _event("signed_in", _("Somebody signed in."))
LOGIN_REFUSED = _event("login_refused", _("A sign-in was refused; the code says why."))
SESSION_RENEWED = _event("session_renewed", _("A silent login vouched for a session again."))
NOT_RENEWED = _event(
    "not_renewed", _("The provider does not vouch for a session, which goes on and asks.")
)
SESSION_ENDED = _event("session_ended", _("A browser session has ended; the code is the reason."))
LOGOUT_REFUSED = _event(
    "logout_refused", _("A logout by the provider was refused; the code says why.")
)

# Identities
IDENTITY_LINKED = _event("identity_linked", _("The identity was linked to its user."))
IDENTITY_UNLINKED = _event("identity_unlinked", _("An identity of this user was unlinked."))

# Grants
TOKENS_KEPT = _event(
    "tokens_kept", _("A login that signed nobody in brought tokens for background jobs.")
)
REFRESHED = _event("refreshed", _("New tokens are stored; a code says what in the answer was odd."))
REFRESH_FAILED = _event(
    "refresh_failed", _("An answer without an access token, or a seal whose key is missing.")
)
ID_TOKEN_REFUSED = _event("id_token_refused", _("The refreshed ID Token is not what it should be."))
LATE_RESULT = _event("late_result", _("Another result of a refresh was stored first."))
ROTATION_STORED_LATE = _event("rotation_stored_late", _("What waited in the journal is stored."))
IN_DOUBT = _event(
    "in_doubt", _("An attempt ended without an answer: nobody knows whether the token was spent.")
)
BACKING_OFF = _event("backing_off", _("The provider is busy or out of reach."))
CIRCUIT_OPENED = _event("circuit_opened", _("The provider refuses this client."))
TARGET_REFUSED = _event(
    "target_refused", _("The provider gives no token for this one API or scope.")
)
CLOSED = _event("closed", _("The grant has ended; the code is the reason."))


# Whose doing, and in whose timeline


USER = "user "


def by_user(key: Any) -> str:
    """The actor where a user of this site did it, whose primary key this is."""
    return f"{USER}{key}"


@dataclass(frozen=True, slots=True)
class Whose:
    """Keys of those whom an event is about, as far as they are known, and the provider's slug."""

    identity: Any = None
    user: Any = None
    grant: str | None = None
    provider: str = ""


def of_identity(identity: Any, grant: Any = None) -> Whose:
    """grant: the one that it was about, or None."""
    pk = None if grant is None else grant.pk
    return Whose(identity.pk, identity.user_id, pk, identity.provider)


def of_grant(grant: Any) -> Whose:
    return Whose(grant.identity_id, grant.identity.user_id, grant.pk, grant.provider)


def of_session(row: Any) -> Whose:
    """row: of the index of sessions; its grant, if it has one, has events of its own."""
    return Whose(row.identity_id, row.identity.user_id, None, row.provider)


# Adding to it


def note(whose: Whose, name: str, code: str = "", actor: str = "") -> None:
    """Add an event, after the fact and outside its transaction; a failure breaks nothing.

    actor: who did it; this worker, if not told.
    """
    note_all([whose], name, code, actor)


def note_all(whose: Iterable[Whose], name: str, code: str = "", actor: str = "") -> None:
    """Add the same to several timelines, in one statement."""
    events = [_row(one, name, code, actor) for one in whose]
    for event in events:
        telemetry.count(name, event.code, event.provider)
        identity, grant = event.identity_id, event.grant_id
        logger.info("identity %s, grant %s: %s %s", identity, grant, name, code, extra=_told(event))
    _store(events)


def refused(
    name: str, code: str, provider: str, reference: str, whose: Callable[[], Whose]
) -> None:
    """Add a refusal, which has its line in the log already, as long as there is room.

    Anybody can be refused as often as they like: only the first REFUSALS_A_MINUTE of a room() have
    a row, and none while the cache fails; one more, of the code UNNOTED, tells that there were
    others.
    provider: a slug that is one of ours, or "". whose: asked for a row.
    """
    telemetry.count(name, code, provider)
    number = _number(name, code)
    if number <= REFUSALS_A_MINUTE:
        about = replace(whose(), provider=provider)
        _store([_row(about, name, code, "", reference)])
    elif number == REFUSALS_A_MINUTE + 1:
        _store([_row(Whose(), name, UNNOTED)])


REFUSALS_A_MINUTE = 60
UNNOTED = "more"
PROVEN = frozenset({"id_token", "userinfo", "account", "session"})
"""Kinds of codes that nobody comes to but by a login at an OP. Each of these codes has room of its
own: strangers, for nothing, and somebody who is always refused take none from the others."""


def room(name: str, code: str, at: float) -> str:
    """The cache's key of how many such refusals there were in a minute; at: seconds since 1970."""
    kind = code.partition(".")[0]
    shared = kind if kind in PROVEN else "any"
    own = kind in PROVEN and _OURS.fullmatch(code)  # a hook of the site may put anything into one
    return f"oidc_rp:{name}:{code if own else shared}:{int(at) // 60}"


_OURS = re.compile(r"[a-z_]+\.[a-z_]{1,50}")


def _number(name: str, code: str) -> float:
    """How many there are with this one; inf while nobody can count."""
    key = room(name, code, time.time())
    try:
        cache.add(key, 0, 120)
        return int(cache.incr(key))
    except Exception:  # noqa: BLE001 - each cache backend has its own kinds
        return inf


def _row(whose: Whose, name: str, code: str, actor: str = "", reference: str = "") -> Any:
    return Event(
        identity_id=whose.identity,
        user_id=whose.user,
        grant_id=whose.grant,
        provider=whose.provider,
        at=DatabaseClock(),
        name=name,
        code=code[:100],
        actor=(actor or worker())[:100],
        reference=reference,
    )


def _told(event: Any) -> dict[str, Any]:
    """The event as a log record carries it."""
    return {
        "event": event.name,
        "code": event.code,
        "provider": event.provider,
        "identity": event.identity_id,
        "user": event.user_id,
        "grant": event.grant_id,
        "actor": event.actor,
    }


def _store(events: list[Any]) -> None:
    alias = router.db_for_write(Event)
    try:
        with transaction_on(alias):
            Event.objects.using(alias).bulk_create(events)
    except (DatabaseError, InterfaceError):
        logger.exception("%s could not be noted", events[0].name)


@lru_cache(maxsize=1)
def _host() -> str:
    return socket.gethostname()[:60]


def worker() -> str:
    """Who acts where nobody else does: host and process."""
    return f"{_host()}:{os.getpid()}"
