"""The state machine of a grant: an access token that is good now, by one refresh for everybody.

                 T1 T2 token still good               T10 T11 busy or unreachable
                      ╭───╮                          ╭────────────▶ BACKOFF ──╮
                      ▼   │    T3 claim the lease    │                        │ not_before
    login ─────────▶  IDLE ─────────────────────▶ CALLING                     │
     T15               ▲ ▲                        │  │  │                     │
                       │ ╰────T5 T6 stored────────╯  │  ╰─T12 T13 no answer─▶ IN_DOUBT
                       │                             │                        │ T14 repeat once
                       ╰──T9 the provider's circuit──┤       CALLING ◀────────╯
                                                     ├─T7 stored later─▶ STASHED ─▶ IDLE
    CLOSED ◀── T18 logout, T19 another subject ──────┤
                                                     ╰─T8 invalid_grant─▶ DEAD

Two numbers, two jobs: the lease says who may call, the generation says whose result is stored.
The work runs in a thread and on a connection of its own, so that no caller can undo or cancel it.
"""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from secrets import token_hex
from traceback import clear_frames
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django.utils import timezone

from . import circuit, closing, conf, events, grants, journal, session_index, signals
from .errors import (
    ConfigurationError,
    InvalidIdToken,
    InvalidResponse,
    LoginRequired,
    OIDCError,
    OPError,
    SealError,
    TemporarilyUnavailable,
    TransportError,
)
from .grants import ANY, Owner, Reading, Rotation, Target
from .models import DatabaseClock, Grant, Identity
from .own_connection import (
    caller_may_roll_back,
    detached,
    impatient,
    is_detached,
    must_share,
)
from .protocol.id_token import check_at_hash
from .protocol.token_endpoint import MAX_LIFETIME, RefreshResponse, TokenResponse
from .protocol.tokens import AccessToken, RefreshToken
from .relying_party import RelyingParty, relying_party
from .single_flight import Flight, SingleFlight

logger = logging.getLogger("oidc_rp")

LEASE = timedelta(seconds=4)
"""How long a dead worker keeps others from calling. Short, so that the repeat comes while the OP
still takes the old token; a living one lets its lease grow every HEARTBEAT seconds."""

LONG_LEASE = timedelta(seconds=20)
"""The lease where the caller's connection is all there is, and nobody can let it grow."""

HEARTBEAT = 1.0
SECOND_LOOK = 2.0
"""Seconds to wait for another's result after an invalid_grant, before it is believed."""

MAX_PAUSE = 300.0
"""Seconds; the longest that an OP is left in peace which does not ask for more itself."""

FORCED_EVERY = timedelta(seconds=30)

# What an OP says of this client, and not of this grant (RFC 6749 §5.2)
_CLIENT_ERRORS = frozenset(
    """
    invalid_client unauthorized_client invalid_request invalid_scope unsupported_grant_type
    """.split()
)
_TARGET_ERRORS = frozenset({"invalid_scope", "invalid_request"})
_INTERACTION = frozenset(
    "interaction_required login_required consent_required account_selection_required".split()
)
_NOT_THIS_OP = frozenset({"transport.tls", "transport.name"})


@dataclass(frozen=True, slots=True)
class UsableToken:
    """An access token that is good now.

    scope: as granted. provider: slug. fresh_until, good_until: moments of time.monotonic(), when
    it is time to renew it, and when it can be used no more. grant_scope: all that its grant allows.
    claims: of the ID Token that came with it in this very refresh, validated.
    """

    access_token: AccessToken
    scope: str
    provider: str
    fresh_until: float
    good_until: float
    grant_scope: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fresh_for(self) -> float:
        """Seconds until it should be renewed; 0 or less: it should be already, and still works."""
        return self.fresh_until - time.monotonic()


@dataclass(frozen=True, slots=True)
class Want:
    """What somebody asks of a grant. rejected: the token that an API said is invalid (T16).

    eager: the old token still works, so nobody waits for this one (T2).
    """

    grant: str
    target: Target
    rejected: AccessToken | None = None
    eager: bool = False


Step = UsableToken | Flight[UsableToken]


def usable_token(
    owner: Owner,
    target: Target = ANY,
    *,
    rejected: AccessToken | None = None,
    wait: float | None = None,
) -> UsableToken:
    """Return an access token of `owner` for `target`; while it is fresh, by one statement.

    rejected: the token that the API answered invalid_token to. It is renewed, but at most once in
    30 s for a grant: the same token comes back where that does not help.
    wait: seconds for another's refresh, or one's own; REFRESH_WAIT if not given.
    Raises LoginRequired, TemporarilyUnavailable; OPError for a target that the OP refuses.
    """
    until = time.monotonic() + (conf.refresh_wait() if wait is None else wait)
    step, want = _first_step(owner, target, rejected)
    while not isinstance(step, UsableToken):
        if not wait_for([step.future], max(until - time.monotonic(), 0)).done:
            raise TemporarilyUnavailable("refresh.waiting", _WAITED, retry_after=1.0)
        step = _next_step(want, step)
    return step


async def ausable_token(
    owner: Owner,
    target: Target = ANY,
    *,
    rejected: AccessToken | None = None,
    wait: float | None = None,
) -> UsableToken:
    """usable_token for async code. To cancel whoever waits cancels no call that is under way."""
    until = time.monotonic() + (conf.refresh_wait() if wait is None else wait)
    step, want = await sync_to_async(_first_step)(owner, target, rejected)
    while not isinstance(step, UsableToken):
        waiting = asyncio.wrap_future(step.future)
        waiting.add_done_callback(_look_at)
        await asyncio.wait([waiting], timeout=max(until - time.monotonic(), 0))
        if not step.future.done():
            raise TemporarilyUnavailable("refresh.waiting", _WAITED, retry_after=1.0)
        step = await sync_to_async(_next_step)(want, step)
    return step


def _look_at(waiting: "asyncio.Future[UsableToken]") -> None:
    """What failed is told by the flight itself; asyncio need not log it as seen by nobody."""
    if not waiting.cancelled():
        waiting.exception()


_WAITED = "the token is being renewed, and that takes longer than REFRESH_WAIT"
_flights: SingleFlight[UsableToken] = SingleFlight()

_resting: dict[str, float] = {}
"""Grant -> until when (time.monotonic()) its provider is not worth asking for a token to come."""


def _first_step(owner: Owner, target: Target, rejected: AccessToken | None) -> tuple[Step, Want]:
    """The token at hand (T1, T2), or the flight that will bring one."""
    with _database_errors(), _usable_settings():
        reading = grants.read(owner, target)
    if reading is None:
        raise LoginRequired("grant.none", "nothing was granted, or not in this session")
    if not reading.user_is_active:
        raise LoginRequired("account.inactive", "the local user is not active")
    _check_client(_provider(reading.provider), reading.client_id, reading.iss)
    want = Want(reading.grant, target, rejected)
    token = _at_hand(reading)
    if token is None or token.access_token == rejected:
        return _take_off(want), want
    resting = _resting.get(reading.grant, 0.0) > time.monotonic()
    if token.fresh_for <= 0 and reading.may_be_renewed and not resting:
        _take_off(replace(want, eager=True), otherwise=token)
    return token, want


def _next_step(want: Want, flight: Flight[UsableToken]) -> Step:
    """What a finished flight brought, if it was for the same API; else a flight of our own."""
    aim, error = cast(Want, flight.aim), flight.future.exception()
    if isinstance(error, Blocked):
        return renew(want)
    if aim.target == want.target and want.rejected in (None, aim.rejected):
        # An eager one may have left the old token as it was; the others end with one just made.
        if error is None and (not aim.eager or _still_good(flight.future.result())):
            return flight.future.result()
        if error is not None and not aim.eager:
            raise _of_ones_own(error)
    return _take_off(want)


def _of_ones_own(error: BaseException) -> BaseException:
    """The same error for one of several callers, who may add to it where its login starts."""
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    return copied


def _still_good(token: UsableToken) -> bool:
    return token.good_until > time.monotonic()


def _take_off(want: Want, otherwise: UsableToken | None = None) -> Step:
    """Renew in a thread of its own, or join whoever does; here, where no other thread could."""
    alias = grants.database()
    if is_detached():  # a receiver of ours asks: it cannot wait for the thread that it is in
        return renew(want)
    if not must_share(alias):
        in_write = connections[alias].in_atomic_block
        # On SQLite whoever may have written must not join a flight that may wait for him.
        key = (want.grant, in_write and connections[alias].vendor == "sqlite")
        work = partial(renew, want, patient=not in_write)
        # Not all workers at once, and not while the calls of this very moment are on their way.
        delay = random.uniform(0.05, 0.5) if want.eager else 0.0  # noqa: S311 - no secret
        return _flights.join(key, want, work, delay)
    try:
        return renew(want)
    except OIDCError:
        if otherwise is None:
            raise
        return otherwise


class Blocked(Exception):
    """SQLite: the caller's own transaction keeps every other connection from writing."""


@contextmanager
def _writing(*, patient: bool) -> Iterator[None]:
    """Raise Blocked for a database that is locked, where its lock may be the very caller's."""
    if patient or connections[grants.database()].vendor != "sqlite":
        yield
        return
    try:
        with impatient(grants.database()):
            yield
    except OperationalError as error:
        raise Blocked from error


def renew(want: Want, *, patient: bool = True) -> UsableToken:
    """Walk the drawing from where the grant stands, until there is a token or a reason why not.

    patient: False where a database that is locked may be waiting for the very caller (SQLite).
    """
    until, pause, may_reject = time.monotonic() + conf.refresh_wait(), 0.02, True
    while True:
        with _database_errors():
            grant, reading = _current(want)
            token = _at_hand(reading)
            if token is not None and token.access_token == want.rejected and may_reject:
                may_reject = False
                generation = reading.generation or 0
                with _writing(patient=patient):
                    if grants.reject(grant, generation, want.target, every=FORCED_EVERY):
                        continue  # T16: expired from now on
            if token is not None and (token.fresh_for > 0 or not want.eager):
                return token
            if (stashed := _stashed(grant)) is not None:
                with _writing(patient=patient):
                    store_stashed(stashed)
                continue
            _check_target(want)
            attempt = Attempt(grant, want.target, _party(grant))
            if attempt.claim(patient=patient):
                if (renewed := attempt.run()) is not None:
                    return renewed
                continue
        if want.eager and token is not None:
            return token  # T2: somebody else is renewing it
        if time.monotonic() > until:
            raise TemporarilyUnavailable("refresh.waiting", _WAITED, retry_after=1.0)
        time.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - T4, jitter
        pause = min(pause * 1.5, 0.1)


def _current(want: Want) -> tuple[Any, Reading]:
    """The grant and its token as they stand on the primary. Raises LoginRequired."""
    grant = grants.load(want.grant)
    if grant is None:
        raise LoginRequired("grant.none", "the grant was deleted")
    user = grant.identity.user
    if not user.is_active:
        raise LoginRequired("account.inactive", "the local user is not active")
    reading = grants.read(Owner(user.pk, grant.pk), want.target)
    if reading is None:
        raise LoginRequired("grant.none", "the grant was deleted")
    return grant, reading


def _at_hand(reading: Reading) -> UsableToken | None:
    """The stored access token, as long as it can be used."""
    if reading.sealed is None or reading.sent_at is None:
        return None
    told = reading.expires_at is not None
    lifetime = (cast(int, reading.expires_at) - reading.sent_at) / 1e6 if told else None
    soft, hard = expiry(reading.grant, lifetime)
    sent_at = time.monotonic() - (reading.now - reading.sent_at) / 1e6
    if sent_at + hard <= time.monotonic():
        return None
    try:
        access_token = grants.access_token(reading)
    except (SealError, ConfigurationError) as error:
        logger.error("grant %s: its access token does not open: %s", reading.grant, error)
        return None
    until = sent_at + soft, sent_at + hard
    scope = reading.granted_scope or ""
    return UsableToken(access_token, scope, reading.provider, *until, reading.scope)


def expiry(grant: str, lifetime: float | None) -> tuple[float, float]:
    """Seconds after which a token should be renewed, and after which it is used no more.

    They count from when the request for it was sent. Early enough for one that lives long, not at
    every call for one that does not; and not for all grants of a morning in the same minute.
    lifetime: None where the OP does not tell; it is used until an API refuses it, for a day.
    """
    if lifetime is None:
        return MAX_LIFETIME.total_seconds(), MAX_LIFETIME.total_seconds()
    jitter = int(grant[-4:], 16) / 0x10000 * lifetime / 10  # the same for a grant on every host
    soft = lifetime - min(60.0, lifetime / 5) - jitter
    return soft, lifetime - min(5.0, lifetime / 10)


def _party(grant: Any) -> RelyingParty:
    """Who may ask the OP for this grant now. Raises LoginRequired, TemporarilyUnavailable."""
    if grant.status != Grant.OPEN:
        raise LoginRequired(f"grant.{grant.close_reason}", "the grant has ended")
    if not grant.refresh_token:
        raise LoginRequired("grant.no_refresh_token", "the OP gave no refresh token")
    _check_client(_provider(grant.provider), grant.client_id, grant.identity.iss)
    try:
        party = relying_party(grant.provider)
        party.metadata()
    except OIDCError as error:
        logger.error("grant %s: provider %s: %s", grant.pk, grant.provider, error)
        raise _rest(grant.pk, "refresh.provider", 30.0) from error
    if (left := circuit.seconds_open(grant.provider)) > 0:
        raise _rest(grant.pk, "refresh.circuit_open", left)
    if grant.not_before is not None and grant.not_before > grant.now:
        left = (grant.not_before - grant.now).total_seconds()
        message = f"the OP was busy or out of reach ({grant.last_error})"
        raise TemporarilyUnavailable("refresh.backing_off", message, retry_after=left)
    return party


@contextmanager
def _usable_settings() -> Iterator[None]:
    """A provider that an operator has removed or broken is one that cannot be asked now."""
    try:
        yield
    except ConfigurationError as error:
        if error.code == "provider.unknown":
            raise LoginRequired("grant.none", "no provider of this name") from error
        message = "the settings of this provider cannot be used"
        raise TemporarilyUnavailable("refresh.provider", message, retry_after=30.0) from error


def _provider(slug: str) -> conf.Provider:
    with _usable_settings():
        return conf.provider(slug)


TARGET_REST = 30.0
_refused: dict[tuple[str, Target], tuple[float, OPError]] = {}
"""What the OP would not give a token for, until when it is not asked again, and what it said."""


def _check_target(want: Want) -> None:
    if len(_refused) >= 1000:
        _refused.clear()
    until, error = _refused.get((want.grant, want.target), (0.0, None))
    if error is not None and until > time.monotonic():
        raise _of_ones_own(error)


def _check_client(provider: conf.Provider, client_id: str, iss: str) -> None:
    """The slug still means the OP and the client that the grant is of: no other OP is sent its
    refresh token, and no other's API its access token."""
    if provider.client_id != client_id:
        raise LoginRequired("grant.client_changed", "CLIENT_ID is another one now")
    if iss not in provider.issuers():
        raise LoginRequired("grant.issuer_changed", "ISSUER is another one now")


@contextmanager
def _database_errors() -> Iterator[None]:
    """A database that fails is told as what it is to the caller: nothing now, later again."""
    try:
        yield
    except (DatabaseError, InterfaceError) as error:  # a read-only one says InternalError
        logger.exception("no token: the database fails")
        connections[grants.database()].close_if_unusable_or_obsolete()
        message = "the database fails"
        raise TemporarilyUnavailable("refresh.database", message, retry_after=5.0) from error


def _rest(grant: str, code: str, seconds: float) -> TemporarilyUnavailable:
    if len(_resting) >= 1000:
        _resting.clear()
    _resting[grant] = time.monotonic() + min(seconds, 30.0)
    return TemporarilyUnavailable(code, "the provider cannot be asked now", retry_after=seconds)


@contextmanager
def _forgotten_frames() -> Iterator[None]:
    """Empty what the calls that failed still hold: the form with the token, a client secret."""
    try:
        yield
    except OIDCError as error:
        link: BaseException | None = error
        while link is not None:
            clear_frames(link.__traceback__)
            link = link.__cause__ or link.__context__
        error.__cause__ = error.__context__ = None
        raise


class Attempt:
    """One call to the OP under a lease: from CALLING to wherever its answer leads.

    Each step returns a token to publish, or None: look again where the grant stands.
    """

    def __init__(self, grant: Any, target: Target, party: RelyingParty) -> None:
        self.grant, self.target, self.party = grant, target, party
        self.owner = f"{events.worker()}:{token_hex(8)}"

    def claim(self, *, patient: bool) -> bool:
        """Take the lease (T3, T14); one that has ended without a result counts as T13."""
        with _writing(patient=patient):
            sharing = must_share(grants.database())  # and so there is nobody to let it grow
            lease = LONG_LEASE if sharing else LEASE
            return grants.claim(self.grant, self.owner, lease=lease)

    def run(self) -> UsableToken | None:
        """Ask the OP, and see to what it answers."""
        claimed = self.grant
        self.grant = grants.load(claimed.pk)
        if self.grant is None or self.grant.lease_owner != self.owner:
            return None  # T15, T18: a login or logout came first
        if journal.find(self.grant.pk, self.grant.generation, elsewhere=True) is not None:
            grants.release(self.grant, self.owner)
            return None  # T7: its last lease ended, or a caller rolled back, after we had looked
        marked = self.grant.in_doubt_since is not None and claimed.in_doubt_since is None
        if marked and self.grant.last_error_at == claimed.last_error_at:  # T13: nobody told why
            events.note(
                events.of_grant(self.grant),
                events.IN_DOUBT,
                "refresh.lease_ended",
                claimed.lease_owner,
            )
        if self.grant.in_doubt_since is not None and self.party.provider.in_doubt == "reauth":
            self._close(grants.ROTATION_LOST, "refresh.in_doubt")
            return None
        try:
            refresh_token = grants.refresh_token(self.grant)
        except (SealError, ConfigurationError) as error:
            self._sealed(error)
            return None
        if refresh_token is None:
            return None
        with self._lease_kept():
            return self._ask(refresh_token)

    def _ask(self, refresh_token: RefreshToken) -> UsableToken | None:
        sent_at, self.sent = timezone.now(), time.monotonic()
        try:
            with _forgotten_frames():
                answer = self._answer(refresh_token)
        except OPError as error:
            self._refused(error)
        except TransportError as error:
            self._unreachable(error)
        except ConfigurationError as error:
            self._client_refused(error)
        except InvalidResponse as error:
            self._in_doubt(error)
        else:
            return self._answered(answer, refresh_token, sent_at)
        return None

    def _answer(self, refresh_token: RefreshToken) -> RefreshResponse:
        for last in (False, True):
            try:
                return self.party.refresh(
                    refresh_token,
                    scope=self.target.scope,
                    resource=self.target.resource,
                    requested_scope=self.target.scope or self.grant.scope,
                )
            except TransportError as error:
                if error.sent or last or error.code in _NOT_THIS_OP:
                    raise  # T11 is for what was never sent, and for once
        raise AssertionError  # pragma: no cover

    # What an answer leads to

    def _answered(
        self, answer: RefreshResponse, refresh_token: RefreshToken, sent_at: datetime
    ) -> UsableToken | None:
        """T5: store first, then validate, then publish."""
        tokens, provider = answer.tokens, self.party.provider
        expires_at = tokens.expires_at if tokens is not None else None
        lifetime = None if expires_at is None else expires_at - sent_at
        idle = timedelta(seconds=answer.idle_lifetime or provider.refresh_idle_lifetime)
        rotation = grants.rotation(
            self.grant,
            answer.refresh_token or refresh_token,
            tokens,
            self.target,
            lifetime=lifetime,
            idle_lifetime=idle,
        )
        if caller_may_roll_back(grants.database()):
            journal.stash(rotation)
            transaction.on_commit(partial(journal.drop, rotation), using=grants.database())
        try:
            if not grants.store(rotation):
                self._too_late(answer)
                return None
        except (DatabaseError, InterfaceError) as error:
            self._stash(rotation, error)
        self.grant.generation += 1
        with suppress(DatabaseError, InterfaceError):  # the token goes out, whatever else fails
            circuit.close(self.grant.provider)
        if tokens is None:
            self._without_access_token(answer.problem)
            return None
        claims = self._check_id_token(tokens)
        return replace(self._publish(tokens, lifetime, answer.problem), claims=claims)

    def _publish(
        self, tokens: TokenResponse, lifetime: timedelta | None, problem: OIDCError | None
    ) -> UsableToken:
        events.note(events.of_grant(self.grant), events.REFRESHED, problem.code if problem else "")
        told = {"identity": self.grant.identity, "grant": self.grant}
        with suppress(DatabaseError, InterfaceError):  # nothing is committed without a database
            signals.send_after_commit(signals.tokens_refreshed, Identity, **told)
        soft, hard = expiry(self.grant.pk, lifetime.total_seconds() if lifetime else None)
        until = self.sent + soft, self.sent + hard
        provider, scope = self.grant.provider, self.grant.scope
        return UsableToken(tokens.access_token, tokens.scope, provider, *until, scope)

    def _without_access_token(self, problem: OIDCError | None) -> None:
        """The refresh token was rotated, and is kept; the rest of the answer is of no use."""
        code, failures = problem.code if problem else "token.access_token", self.grant.failures + 1
        grants.pause(self.grant, timedelta(seconds=_pause(failures, None)), code, failures)
        events.note(events.of_grant(self.grant), events.REFRESH_FAILED, code)

    def _check_id_token(self, tokens: TokenResponse) -> Mapping[str, Any]:
        """T19: an invalid ID Token changes nothing, one about somebody else ends the grant."""
        identity, previous = self.grant.identity, self.grant.original_claims or {}
        if tokens.id_token is None:
            return {}
        try:
            claims = self.party.validated_refreshed(
                tokens.id_token, iss=identity.iss, sub=identity.sub, previous=previous
            )
            check_at_hash(claims, tokens.access_token)
            return claims.claims
        except InvalidIdToken as error:
            events.note(events.of_grant(self.grant), events.ID_TOKEN_REFUSED, error.code)
            if error.claim in ("iss", "tid", "sub"):
                closing.end(self.grant.pk, grants.SUBJECT_CHANGED)
                theirs = session_index.rows().filter(identity=identity)
                closing.end_sessions(theirs, grants.SUBJECT_CHANGED)
                message = "the OP answered for somebody else"
                raise LoginRequired(f"grant.{grants.SUBJECT_CHANGED}", message) from error
        except OIDCError as error:  # no keys to be had at the moment, for instance
            events.note(events.of_grant(self.grant), events.ID_TOKEN_REFUSED, error.code)
        return {}

    def _too_late(self, answer: RefreshResponse) -> None:
        """T6: another result is stored, and ours is dropped. T18: the grant is closed, and what
        was just received is revoked."""
        grant = grants.load(self.grant.pk)
        if grant is not None and grant.status == Grant.OPEN:
            events.note(events.of_grant(grant), events.LATE_RESULT)
            return
        if answer.refresh_token is not None and _is_to_be_revoked(self.grant):
            grants.pend_revocation(self.grant, answer.refresh_token, "late_result")

    def _stash(self, rotation: Rotation, error: Exception) -> None:
        """T7: the database refuses the new token; the journal has it until it is stored."""
        logger.error("grant %s: rotation at risk, %s", rotation.grant, type(error).__name__)
        journal.stash(rotation)
        if not must_share(grants.database()):  # else the next reader stores it
            detached(partial(_store_until_stored, rotation, self.owner))

    def _refused(self, error: OPError) -> None:
        status = error.status or 400
        if error.error == "invalid_grant":
            self._invalid_grant(error)
        elif status == 429 or status >= 500:
            self._back_off(error, error.retry_after)
        elif error.error in _INTERACTION:
            self._back_off(error, 60.0)
            raise LoginRequired("refresh.interaction_required", "the OP wants to see the person")
        elif error.error == "invalid_target" or (
            error.error in _TARGET_ERRORS and self.target != ANY
        ):
            grants.release(self.grant, self.owner)
            events.note(events.of_grant(self.grant), events.TARGET_REFUSED, error.code)
            _refused[self.grant.pk, self.target] = (time.monotonic() + TARGET_REST, error)
            raise error  # it is this target that is refused, and nothing else
        elif error.error in _CLIENT_ERRORS:
            self._client_refused(error)
        else:
            self._back_off(error, error.retry_after)

    def _invalid_grant(self, error: OPError) -> None:
        """T8: believed only when no other result is there, or on its way."""
        in_doubt = self.grant.in_doubt_since is not None
        for pause in (0.0, SECOND_LOOK) if in_doubt else (0.0,):
            time.sleep(pause)
            now = grants.load(self.grant.pk)
            if now is None or now.lease_owner != self.owner:
                return
            if _stashed(now) is not None:
                grants.release(self.grant, self.owner)
                return
        self._close(grants.ROTATION_LOST if in_doubt else grants.REVOKED_OR_EXPIRED, error.code)

    def _client_refused(self, error: OIDCError) -> None:
        """T9: it is the configuration; the grant stays as it was, the provider rests."""
        logger.error("provider %s refuses this client: %s", self.grant.provider, error)
        pause = circuit.open_for(self.grant.provider, error.code)
        changes = _error(error)
        if isinstance(error, OPError) and error.error in _TARGET_ERRORS:
            # It may be this grant alone, so that others ask before it does so again.
            changes["not_before"] = DatabaseClock(pause * 2)
        grants.release(self.grant, self.owner, **changes)
        events.note(events.of_grant(self.grant), events.CIRCUIT_OPENED, error.code)

    def _unreachable(self, error: TransportError) -> None:
        if error.code in _NOT_THIS_OP and not error.sent:
            self._client_refused(error)
        elif error.sent and error.status is None and error.code != "transport.redirect":
            self._in_doubt(error)
        else:
            self._back_off(error, error.retry_after)

    def _back_off(self, error: OIDCError, retry_after: float | None) -> None:
        """T10: leave the OP in peace for a while. T11: it could not be reached twice."""
        pause = timedelta(seconds=_pause(self.grant.failures + 1, retry_after))
        changes = _error(error) | {"failures": self.grant.failures + 1}
        if getattr(error, "status", None) == 504:  # a gateway's patience ended, not the OP's work
            changes["in_doubt_since"] = self._in_doubt_since
        grants.release(self.grant, self.owner, not_before=DatabaseClock(pause), **changes)
        events.note(events.of_grant(self.grant), events.BACKING_OFF, error.code)

    def _in_doubt(self, error: OIDCError) -> None:
        """T12: sent, and no answer. At once once more (T14), then at growing intervals."""
        changes = _error(error) | {"in_doubt_since": self._in_doubt_since}
        if self.grant.in_doubt_since is not None:
            changes["failures"] = self.grant.failures + 1
            pause = timedelta(seconds=_pause(changes["failures"], None))
            changes["not_before"] = DatabaseClock(pause)
        grants.release(self.grant, self.owner, **changes)
        events.note(events.of_grant(self.grant), events.IN_DOUBT, error.code)

    @property
    def _in_doubt_since(self) -> Any:
        return self.grant.in_doubt_since or self.grant.attempt_started_at

    def _sealed(self, error: OIDCError) -> None:
        """A token that does not open: a missing key can come back, a broken seal cannot."""
        if error.code == "seal.broken":
            self._close(grants.SEAL_BROKEN, error.code)
            return
        logger.error("grant %s: %s", self.grant.pk, error)
        grants.release(self.grant, self.owner, **_error(error))
        if self.grant.last_error != error.code:  # told once, however often it is found
            events.note(events.of_grant(self.grant), events.REFRESH_FAILED, error.code)
        raise TemporarilyUnavailable(error.code, "TOKEN_KEYS lacks a key", retry_after=300.0)

    def _close(self, reason: str, code: str) -> None:
        self.grant.last_error, self.grant.last_error_at = code, self.grant.now
        if grants.close(self.grant, reason, revoke=False, keep_access=True):
            closing.tell_closed(self.grant, reason, code)

    @contextmanager
    def _lease_kept(self) -> Iterator[None]:
        """Let the lease grow for as long as this process lives and waits for the OP."""
        done = threading.Event()

        def keep() -> None:
            while not done.wait(HEARTBEAT):
                try:
                    if not grants.keep_lease(self.grant, self.owner, lease=LEASE):
                        return
                except (DatabaseError, InterfaceError):
                    connections[grants.database()].close()  # a broken one; the next try has its own

        if not must_share(grants.database()):
            detached(keep)
        try:
            yield
        finally:
            done.set()


def renew_early(grant_id: str, generation: int) -> UsableToken | bool:
    """Spend the refresh token of this generation, however long its access token is still good.

    Returns what that brought; True where it had waited in the journal; False where somebody else
    has spent it, or is about to. Not for a transaction of the
    caller's. Raises LoginRequired when the grant has ended, TemporarilyUnavailable.
    """
    while (grant := grants.load(grant_id)) is not None and grant.generation == generation:
        if not grant.identity.user.is_active:
            raise LoginRequired("account.inactive", "the local user is not active")
        if store_found(grant_id):
            return True
        attempt = Attempt(grant, ANY, _party(grant))
        if not attempt.claim(patient=True):
            return False
        if (renewed := attempt.run()) is not None:
            return renewed
    if grant is not None and grant.status != Grant.OPEN:
        raise LoginRequired(f"grant.{grant.close_reason}", "the grant has ended")
    return False


# What an attempt needs


def _error(error: OIDCError) -> dict[str, Any]:
    return {"last_error": error.code[:100], "last_error_at": DatabaseClock()}


def _pause(failures: int, retry_after: float | None) -> float:
    """Seconds to wait after so many failures: what the OP asks for, or full jitter (T10)."""
    longest = min(2.0 ** min(failures, 10), MAX_PAUSE)
    jitter = random.uniform(min(0.5, longest), longest)  # noqa: S311 - no secret
    return max(jitter, retry_after or 0.0)


# The journal's entries come home (T7)


def _stashed(grant: Any) -> Rotation | None:
    """The outcome that waits for this grant. The cache is asked when somebody has left an attempt
    unfinished, as whoever cannot store its result does; and where one may be rolled back, which
    leaves no trace in the database."""
    alias = grants.database()
    abandoned = grant.lease_until is not None and grant.lease_until <= grant.now
    unfinished = abandoned or grant.in_doubt_since is not None
    undoable = connections[alias].vendor == "sqlite" or must_share(alias)
    return journal.find(grant.pk, grant.generation, elsewhere=unfinished or undoable)


def store_stashed(rotation: Rotation) -> None:
    """Store an outcome that waited in the journal; raises DatabaseError, and it still waits."""
    stored, alias = grants.store(rotation), grants.database()
    if stored and caller_may_roll_back(alias):
        transaction.on_commit(partial(journal.drop, rotation), using=alias)
    else:
        journal.drop(rotation)
    grant = grants.load(rotation.grant)
    if stored and grant is not None:
        events.note(events.of_grant(grant), events.ROTATION_STORED_LATE, "", rotation.refreshed_by)
    elif grant is not None and grant.status != Grant.OPEN and _is_to_be_revoked(grant):
        with suppress(SealError):  # T18: whoever stored it would have had it revoked
            token = grants.unstored_token(grant, rotation)
            grants.pend_revocation(grant, token, "late_result")


def _is_to_be_revoked(grant: Any) -> bool:
    """Whether what comes late for a closed grant may be revoked: not where that ends its heir."""
    try:
        return grants.revokes_superseded(conf.provider(grant.provider))
    except ConfigurationError:
        return False


def store_found(grant_id: str) -> bool:
    """Store the outcome that waits for this grant, here or in the cache; whether there was one."""
    grant = grants.load(grant_id)
    rotation = None if grant is None else _stashed(grant)
    if rotation is not None:
        store_stashed(rotation)
    return rotation is not None


def store_waiting(**_: Any) -> None:
    """Store what this process still has in its journal; a receiver of request_finished."""
    for rotation in journal.waiting():
        with suppress(DatabaseError, InterfaceError):
            store_stashed(rotation)


_TRY_FOR = 60.0


def _store_until_stored(rotation: Rotation, owner: str) -> None:
    """Try for a minute, and keep others from asking; after that the next reader does."""
    until, pause = time.monotonic() + _TRY_FOR, 0.1
    mine = Grant(pk=rotation.grant, generation=rotation.generation)
    while time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 2, 1.0)
        try:
            grants.keep_lease(mine, owner, lease=LEASE)
            store_stashed(rotation)
            return
        except (DatabaseError, InterfaceError):
            connections[grants.database()].close()
