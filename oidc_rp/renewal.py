"""A session follows the OP: from time to time the OP has to vouch for it again (SESSION_RENEWAL).

By the refresh token, beside the request; without one by a login with prompt=none (Core §3.1.2.1),
which middleware.SessionRenewal starts. What was tried, and failed, stands in the row of the
session, so that nobody is sent round in circles and one request of many does it.
"""

import logging
from collections.abc import Mapping
from concurrent.futures import wait as wait_for
from datetime import timedelta
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, load_backend
from django.contrib.auth import logout as auth_logout
from django.db import DatabaseError, InterfaceError
from django.db.models import Q
from django.http import HttpRequest

from . import accounts, closing, conf, grants, refresh, session_index, sessions
from .errors import (
    InvalidResponse,
    LoginRefused,
    LoginRequired,
    OIDCError,
    OPError,
)
from .grants import Owner
from .models import DatabaseClock, Grant, Session
from .own_connection import must_share
from .relying_party import relying_party
from .single_flight import SingleFlight

logger = logging.getLogger("oidc_rp")

AGAIN_AFTER = timedelta(seconds=60)
"""A renewal that came to nothing is not tried again before; nor is one that is still under way."""

WAIT = 3.0
"""Seconds that a request waits for its renewal; it goes on without, and the next one knows more."""

# What an OP answers to prompt=none when the person would have to act (Core §3.1.2.6)
INTERACTION = frozenset(
    "login_required interaction_required consent_required account_selection_required".split()
)

_flights: SingleFlight[bool] = SingleFlight()


def is_due(row: Any, provider: conf.Provider) -> bool:
    """Whether the OP should vouch for this session again, and has not just been asked to.

    row: as session_index.read() returns it.
    """
    if provider.session_renewal is None:
        return False
    every = timedelta(seconds=provider.session_renewal)
    return row.now - row.renewed_at > every and _rested(row, every)


def _rested(row: Any, every: timedelta) -> bool:
    tried, failed = row.tried_at, row.failed_at
    if failed is not None and row.now - failed < every:
        return False
    return tried is None or row.now - tried > min(AGAIN_AFTER, every)


def begin(row: Any) -> bool:
    """Whether this request is to renew the session: the first of those that come at once."""
    mine = Q(tried_at=row.tried_at) if row.tried_at else Q(tried_at=None)
    rows = session_index.rows().filter(mine, pk=row.pk, ended_at=None)
    return bool(rows.update(tried_at=DatabaseClock()))


def has_refresh_token(row: Session) -> bool:
    """Whether the OP can be asked beside the request."""
    grant = Grant.objects.using(grants.database()).filter(pk=row.grant_id, status=Grant.OPEN)
    return row.grant_id is not None and grant.exclude(key_id="").exists()


def by_refresh_token(request: HttpRequest, row: Session, provider: conf.Provider) -> None:
    """Have the OP vouch for this session by a refresh, and wait a little for what comes of it.

    When it would not, the session ends here and now, or is marked (SESSION_RENEWAL_FAILED).
    """
    path = request.session[BACKEND_SESSION_KEY]

    def work() -> bool:
        return _renewed(row, provider, load_backend(path))

    if must_share(grants.database()):
        goes_on = work()
    else:
        flight = _flights.join(row.pk, None, work)
        if not wait_for([flight.future], WAIT).done:
            return
        goes_on = flight.future.result()
    if not goes_on:
        auth_logout(request)


def not_renewed(request: HttpRequest, error: OIDCError) -> None:
    """See to a session whose login with prompt=none came to nothing."""
    row_id = sessions.row_of(request.session)
    row = session_index.read(row_id) if row_id else None
    if row is not None and _is_final(error) and not _goes_on(row, error):
        auth_logout(request)


def _renewed(row: Session, provider: conf.Provider, hooks: Any) -> bool:
    """Ask the OP, and note what it says; whether the session goes on."""
    try:
        identity = row.identity
        told = _told_by_refresh(row, provider)
        accounts.renewed(identity, provider, told, hooks)
    except (DatabaseError, InterfaceError):
        logger.exception("session %s: not renewed, the database fails", row.pk)
    except OIDCError as error:
        return not _is_final(error) or _goes_on(row, error)
    else:
        renewed = {"renewed_at": DatabaseClock(), "tried_at": None, "failed_at": None}
        session_index.rows().filter(pk=row.pk).update(**renewed)
    return True


def _told_by_refresh(row: Session, provider: conf.Provider) -> Mapping[str, Any]:
    """What the OP says of the person now. Raises LoginRequired when it would give no token."""
    owner, token = Owner(row.identity.user_id, str(row.grant_id)), None
    grant = grants.load(owner.grant)
    if grant is not None and not _is_recent(grant, provider):
        token = refresh.renew_early(grant.pk, grant.generation)
    if not isinstance(token, refresh.UsableToken):
        token = refresh.usable_token(owner)
    identity, party = row.identity, relying_party(provider.slug)
    userinfo = party.userinfo(token.access_token, iss=identity.iss, sub=identity.sub)
    return {**userinfo, **token.claims}


def _is_recent(grant: Any, provider: conf.Provider) -> bool:
    """Whether a call to an API has just renewed it: that was the OP's word, too."""
    every = timedelta(seconds=provider.session_renewal or 0)
    return grant.refreshed_at is not None and grant.now - grant.refreshed_at < every


def _is_final(error: OIDCError) -> bool:
    """Whether the OP, or this site, says no; else nobody has said anything."""
    if isinstance(error, OPError):
        return error.error in INTERACTION or error.error == "access_denied"
    if isinstance(error, InvalidResponse):
        refused = error.code == "userinfo.status" and error.received in (401, 403)
        return refused or error.code == "userinfo.sub"
    return isinstance(error, LoginRefused | LoginRequired)


def _goes_on(row: Any, error: OIDCError) -> bool:
    """Do what SESSION_RENEWAL_FAILED says; whether the session goes on."""
    logger.info("session %s: not renewed, %s", row.pk, error.code, extra={"code": error.code})
    this = session_index.rows().filter(pk=row.pk)
    if _may_ask(row, error):
        this.update(failed_at=DatabaseClock())
        grants.note_all([(row.identity_id, None)], "not_renewed", error.code)
        return True
    closing.end_sessions(this, grants.NOT_RENEWED)
    return False


def _may_ask(row: Any, error: OIDCError) -> bool:
    """Somebody else at the OP, or a person whom this site refuses, is not asked."""
    if isinstance(error, LoginRefused) or error.code == "account.inactive":
        return False
    provider = conf.providers().get(row.provider)
    return provider is not None and provider.session_renewal_failed == "ask"
