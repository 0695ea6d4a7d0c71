"""A session follows the OP: from time to time the OP has to vouch for it again (SESSION_RENEWAL).

By the refresh token, beside the request; without one by a login with prompt=none (Core §3.1.2.1),
which middleware.SessionRenewal starts. What was tried, and failed, stands in the row of the
session, so that nobody is sent round in circles and one request of many does it:

    tried_at    somebody is at it, or it came to nothing: nobody tries for AGAIN_AFTER
    failed_at   the OP said no, and the session goes on (`ask`): nobody tries for SESSION_RENEWAL
"""

import logging
import time
from collections.abc import Mapping
from concurrent.futures import wait as wait_for
from datetime import timedelta
from enum import Enum
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, load_backend
from django.contrib.auth import logout as auth_logout
from django.core.exceptions import ObjectDoesNotExist
from django.db import router
from django.db.models import Q
from django.http import HttpRequest

from . import accounts, closing, conf, events, grants, refresh, session_index, sessions
from .errors import (
    InvalidIdToken,
    InvalidResponse,
    LoginRefused,
    LoginRequired,
    OIDCError,
    OPError,
    TemporarilyUnavailable,
)
from .grants import Owner
from .models import DatabaseClock, Grant, Identity, Session
from .own_connection import must_share
from .relying_party import RelyingParty, relying_party
from .sessions import PendingLogin
from .single_flight import SingleFlight

logger = logging.getLogger("oidc_rp")

AGAIN_AFTER = timedelta(seconds=60)
"""A renewal that came to nothing is not tried again before; nor is one that is still under way."""

WAIT = 3.0
"""Seconds that a request waits for its renewal; it goes on without, and the next one knows more."""

# What an OP answers when the person would have to act (Core §3.1.2.6), may not go on, or has not
# signed in as the settings want it
REFUSALS = frozenset(
    """
    login_required interaction_required consent_required account_selection_required access_denied
    unmet_authentication_requirements
    """.split()
)

# No of the OP, or of this site, where a refresh was tried. For any other reason to have no token
# the person may still be signed in at the OP: a login with prompt=none finds out.
_NO = frozenset(
    """
    grant.revoked_or_expired grant.subject_changed grant.deactivated account.inactive
    refresh.interaction_required
    """.split()
)
_ABOUT_THE_LOGIN = frozenset({"acr", "amr", "auth_time"})


class Outcome(Enum):
    """What came of a refresh. BY_LOGIN: nothing, and only a login can tell."""

    GOES_ON = "goes on"
    ENDED = "ended"
    BY_LOGIN = "by login"


_flights: SingleFlight[Outcome] = SingleFlight()


# When


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
    return tried is None or row.now - tried > AGAIN_AFTER


def begin(row: Any) -> bool:
    """Whether this request is to renew the session: the first of those that come at once."""
    mine = Q(tried_at=row.tried_at) if row.tried_at else Q(tried_at=None)
    rows = session_index.rows().filter(mine, pk=row.pk, ended_at=None)
    return bool(rows.update(tried_at=DatabaseClock()))


def has_refresh_token(row: Session) -> bool:
    """Whether the OP can be asked beside the request."""
    grant = Grant.objects.using(grants.database()).filter(pk=row.grant_id, status=Grant.OPEN)
    return row.grant_id is not None and grant.exclude(key_id="").exists()


# By the refresh token


def by_refresh_token(request: HttpRequest, row: Session, provider: conf.Provider) -> Outcome:
    """Have the OP vouch for this session by a refresh, and wait a little for what comes of it.

    When it would not, the session ends here and now, or is marked (SESSION_RENEWAL_FAILED).
    """
    path, user_pk = request.session[BACKEND_SESSION_KEY], request.user.pk

    def work() -> Outcome:
        try:
            return _renewed(row, provider, load_backend(path), user_pk)
        except Exception:  # of a hook, or of a database: nobody has said no
            logger.exception("session %s: not renewed", row.pk)
            return Outcome.GOES_ON

    if must_share(grants.database()):
        outcome = work()
    else:
        flight = _flights.join(row.pk, None, work)
        if not wait_for([flight.future], WAIT).done:
            return Outcome.GOES_ON
        outcome = flight.future.result()
    if outcome is Outcome.GOES_ON and not _read_anew(request):
        outcome = Outcome.ENDED
    if outcome is Outcome.ENDED:
        sign_out(request)
    return outcome


def sign_out(request: HttpRequest) -> None:
    """Let nobody be signed in for the rest of this request, whoever has asked before who is."""
    auth_logout(request)
    for name in ("_cached_user", "_acached_user"):
        vars(request).pop(name, None)


def _read_anew(request: HttpRequest) -> bool:
    """Let this very request see what has become of the user; False if there is none any more."""
    user: Any = request.user
    vars(request).pop("_acached_user", None)
    try:
        user.refresh_from_db(using=router.db_for_write(Identity))
    except ObjectDoesNotExist:
        return False
    for name in ("_perm_cache", "_user_perm_cache", "_group_perm_cache"):
        if hasattr(user, name):
            delattr(user, name)
    return True


def _renewed(row: Session, provider: conf.Provider, hooks: Any, user_pk: Any) -> Outcome:
    """Ask the OP, and note what it says."""
    try:
        identity = row.identity
        if identity.user_id != user_pk:
            raise LoginRefused("session.other_person", "the identity is another user's now")
        signed, userinfo = _told_by_refresh(row, provider)
        accounts.renewed(identity, provider, hooks, signed=signed, userinfo=userinfo)
    except ObjectDoesNotExist:
        return Outcome.ENDED  # unlinked meanwhile
    except OIDCError as error:
        return _seen_to(row, error)
    renewed = {"renewed_at": DatabaseClock(), "tried_at": None, "failed_at": None}
    there = session_index.rows().filter(pk=row.pk, ended_at=None).update(**renewed)
    return Outcome.GOES_ON if there else Outcome.ENDED


def _seen_to(row: Session, error: OIDCError) -> Outcome:
    """What becomes of a session whose refresh brought nothing."""
    if _is_final(error):
        return Outcome.GOES_ON if _goes_on(row, error) else Outcome.ENDED
    _note_nothing(row, error)
    if not isinstance(error, LoginRequired):
        return Outcome.GOES_ON
    there = session_index.rows().filter(pk=row.pk, ended_at=None).update(tried_at=None)
    return Outcome.BY_LOGIN if there else Outcome.ENDED


Told = tuple[Mapping[str, Any], Mapping[str, Any]]


def _told_by_refresh(row: Any, provider: conf.Provider) -> Told:
    """What the OP says of the person now, by a refreshed ID Token and by UserInfo.

    Whoever else is refreshing is waited for: until then the old token says nothing. Raises
    LoginRequired when there is no token to be had.
    """
    identity, party = row.identity, relying_party(provider.slug)
    until = time.monotonic() + WAIT
    while (grant := grants.load(row.grant_id or "")) is not None:
        if _is_recent(grant, provider) and (told := _told_by_userinfo(grant, party)) is not None:
            return {}, told
        token = refresh.renew_early(grant.pk, grant.generation)
        if isinstance(token, refresh.UsableToken):
            iss, sub = identity.iss, identity.sub
            userinfo = party.userinfo(token.access_token, iss=iss, sub=sub)
            return token.claims, userinfo
        if time.monotonic() > until:
            message = "another process is refreshing, and that takes its time"
            raise TemporarilyUnavailable("refresh.waiting", message, retry_after=1.0)
        time.sleep(0.05)
    raise LoginRequired("grant.none", "the grant was deleted")


def _is_recent(grant: Any, provider: conf.Provider) -> bool:
    """Whether a call to an API has just renewed it: that was the OP's word, too."""
    every = timedelta(seconds=provider.session_renewal or 0)
    return grant.refreshed_at is not None and grant.now - grant.refreshed_at < every


def _told_by_userinfo(grant: Any, party: RelyingParty) -> Mapping[str, Any] | None:
    """What UserInfo says to the token at hand, if that is all there is to say; what an ID Token
    alone tells was not read when an API call refreshed it."""
    identity = grant.identity
    token = refresh.usable_token(Owner(identity.user_id, grant.pk))
    try:
        told = party.userinfo(token.access_token, iss=identity.iss, sub=identity.sub)
    except InvalidResponse as error:
        if _is_refused_by_userinfo(error):
            return None  # this token; the next one may be good
        raise
    return told if told and accounts.tells_all(told, identity) else None


# By a login


def not_renewed(request: HttpRequest, error: OIDCError, pending: PendingLogin) -> None:
    """See to a session whose login came to nothing; not to one that began after that login did."""
    login = sessions.current_login(request)
    if login is None or login.at is None or login.provider != pending.provider:
        return
    row = session_index.read(login.session) if login.session else None
    if row is None or login.at.timestamp() > pending.created_at:
        return
    if not _is_final(error):
        _note_nothing(row, error)
        session_index.rows().filter(pk=row.pk).update(tried_at=DatabaseClock())
    elif not _goes_on(row, error):
        sign_out(request)


# What the OP said


def _is_final(error: OIDCError) -> bool:
    """Whether the OP, or this site, says no; else nobody has said anything."""
    if isinstance(error, OPError):
        return error.error in REFUSALS
    if isinstance(error, InvalidIdToken):  # it vouches, and not as the settings demand
        return error.claim in _ABOUT_THE_LOGIN
    if isinstance(error, InvalidResponse):
        return _is_refused_by_userinfo(error) or error.code == "userinfo.sub"
    return isinstance(error, LoginRefused) or error.code in _NO


def _is_refused_by_userinfo(error: InvalidResponse) -> bool:
    return error.code == "userinfo.status" and error.received in (401, 403)


def _note_nothing(row: Session, error: OIDCError) -> None:
    extra = {"code": error.code}
    logger.warning("session %s: not renewed, nobody said why: %s", row.pk, error.code, extra=extra)


def _goes_on(row: Any, error: OIDCError) -> bool:
    """Do what SESSION_RENEWAL_FAILED says; whether the session goes on."""
    logger.info("session %s: not renewed, %s", row.pk, error.code, extra={"code": error.code})
    this = session_index.rows().filter(pk=row.pk)
    provider = conf.providers().get(row.provider)
    if provider is None or provider.session_renewal_failed != "ask" or not _may_ask(error):
        closing.end_sessions(this, grants.NOT_RENEWED)
        return False
    if not this.filter(ended_at=None).update(failed_at=DatabaseClock()):
        return False
    row.failed_at = row.now  # for whoever asks in this very request
    events.note(events.of_session(row), events.NOT_RENEWED, error.code)
    return True


def _may_ask(error: OIDCError) -> bool:
    """Somebody else at the OP, or a person whom this site refuses, is not asked."""
    elsewhere = ("account.inactive", "grant.deactivated", "grant.subject_changed", "userinfo.sub")
    return not isinstance(error, LoginRefused) and error.code not in elsewhere
