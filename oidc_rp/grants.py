"""What is kept of a grant: each read and each compare-and-set on its row. No HTTP, no waiting.

The generation fences every write: it grows with each stored result, login and logout, and what was
learned under an older one changes nothing (docs/refresh.md).
"""

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from secrets import token_hex
from typing import Any, NamedTuple, cast

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db import IntegrityError, connections, router
from django.db.models import Case, F, Q, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from . import conf
from .errors import ConfigurationError, SealError
from .events import worker as worker
from .models import (
    CLOCKS,
    EPOCH,
    MICROSECOND,
    DatabaseClock,
    Grant,
    Identity,
    PendingRevocation,
    StoredAccessToken,
    record_id,
)
from .own_connection import transaction_on
from .protocol.id_token import lasting_claims
from .protocol.token_endpoint import TokenResponse
from .protocol.tokens import AccessToken, RefreshToken
from .relying_party import Login
from .sealing import Context, key_id, key_ring

logger = logging.getLogger("oidc_rp")

# Why a grant is closed
ROTATION_LOST = "rotation_lost"
REVOKED_OR_EXPIRED = "revoked_or_expired"
SUBJECT_CHANGED = "subject_changed"
SEAL_BROKEN = "seal_broken"
SUPERSEDED = "superseded"
NARROWER = "narrower"
LOGOUT = "logout"
BACKCHANNEL_LOGOUT = "backchannel_logout"
FRONTCHANNEL_LOGOUT = "frontchannel_logout"
REVOKED = "revoked"
NOT_RENEWED = "not_renewed"
DEACTIVATED = "deactivated"
UNLINKED = "unlinked"
EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose grant: the one of this id, as the browser session of this user holds it; or, without
    an id, the durable one of this user at this provider (slug).

    loaded: the request has just loaded this user, who is active; so that is not asked again.
    """

    user_id: Any
    grant: str = ""
    provider: str = ""
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """Which API an access token is for: RFC 8707's `resource`, and a narrower `scope`.

    Empty: what the OP gives without being asked.
    """

    resource: str = ""
    scope: str = ""
    digest: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        scope = " ".join(sorted(self.scope.split()))
        text = f"{len(self.resource)}:{self.resource}{scope}"
        object.__setattr__(self, "scope", scope)
        object.__setattr__(self, "digest", sha256(text.encode()).hexdigest())


ANY = Target()
"""The API whose tokens come without asking, with all the scope that was granted."""


class Reading(NamedTuple):
    """A grant and its access token for one API, as they stand in the database at `now`.

    Moments are microseconds by the database's clock. scope: all that the grant allows.
    """

    now: int
    grant: str
    identity: int
    provider: str
    client_id: str
    iss: str
    sub: str
    user_is_active: bool
    status: str
    lease_until: int | None
    not_before: int | None
    key_id: str
    token: str | None
    sealed: str | None
    granted_scope: str | None
    generation: int | None
    sent_at: int | None
    expires_at: int | None
    scope: str

    @property
    def may_be_renewed(self) -> bool:
        """Whether there is a refresh token, nobody is spending it, and the OP may be asked."""
        is_free = self.lease_until is None or self.lease_until < self.now
        is_due = self.not_before is None or self.not_before <= self.now
        return self.status == Grant.OPEN and bool(self.key_id) and is_free and is_due

    def context(self) -> Context:
        """Where the access token is sealed to."""
        table = StoredAccessToken._meta.db_table
        return Context(
            table, "access_token", self.token or "", self.iss, self.sub, self.generation or 0
        )


def database() -> str:
    """The alias that grants are written to, and so read from: a replica may be behind."""
    return router.db_for_write(Grant)


def read(owner: Owner, target: Target) -> Reading | None:
    """What there is for `owner` to call `target` with; one statement, by unique look-ups.

    Raises ConfigurationError for a provider that cannot be used.
    """
    alias = database()
    user_id = _user_field().get_db_prep_value(owner.user_id, connections[alias])
    if owner.grant:
        values = [owner.grant, target.digest, user_id, owner.grant]
    else:
        client_id = conf.provider(owner.provider).client_id
        values = [target.digest, user_id, owner.provider, client_id]
    if not owner.loaded:
        values.insert(0, user_id)
    with connections[alias].cursor() as cursor:
        cursor.execute(_reading(alias, bool(owner.grant), owner.loaded), values)
        row = cursor.fetchone()
    return row and Reading._make(row)


@lru_cache(maxsize=16)
def _reading(alias: str, by_id: bool, loaded: bool) -> str:
    """Plain SQL: to compose a statement takes Django longer than to run this one.

    A value that is known stands wherever it may, and no table is named without need: PostgreSQL
    takes longer to plan the look-ups than to do them.
    """
    quote, user = connections[alias].ops.quote_name, get_user_model()
    grant, identity = quote(Grant._meta.db_table), quote(Identity._meta.db_table)
    token, users = quote(StoredAccessToken._meta.db_table), quote(user._meta.db_table)
    pk = quote(_user_field().target_field.column)
    is_active, join = "1", ""  # for a property of the class, refresh.py asks
    with suppress(FieldDoesNotExist):
        active: Any = user._meta.get_field("is_active")
        if not loaded:
            is_active = f"u.{quote(active.column)}"
    if not loaded:
        join = f"JOIN {users} u ON u.{pk} = %s "
    its, which = "%s", "g.id = %s"
    if not by_id:  # the open one first: an older client's may be closed, and newer
        its = "g.id"
        which = "g.provider = %s AND g.client_id = %s AND g.durable"
        which += " ORDER BY g.status DESC, g.id DESC LIMIT 1"
    columns = _select(alias, is_active)
    return (
        f"{columns} FROM {grant} g JOIN {identity} i ON i.id = g.identity_id {join}"
        f"LEFT JOIN {token} t ON t.grant_id = {its} AND t.target = %s "
        f"WHERE i.user_id = %s AND {which}"
    )


def _select(alias: str, is_active: str) -> str:
    """The columns of Reading, in their order."""
    return (
        f"SELECT {CLOCKS[connections[alias].vendor]}, g.id, g.identity_id, g.provider, "
        f"g.client_id, i.iss, i.sub, {is_active}, g.status, g.lease_until, g.not_before, g.key_id, "
        f"t.id, t.access_token, t.granted_scope, t.generation, t.sent_at, t.expires_at, g.scope"
    )


def _user_field() -> Any:
    return Identity._meta.get_field("user")


def load(grant: str, *, locked: bool = False) -> Any:
    """The grant as it stands now, with identity, user, and the database's time as `.now`; or None.

    locked: read what is committed, even where an older snapshot belongs to the transaction
    (REPEATABLE READ), and keep it until that ends.
    """
    return _load(locked, pk=grant)


def _load(locked: bool, **key: Any) -> Any:
    rows: Any = Grant.objects.using(database()).annotate(now=DatabaseClock()).filter(**key)
    if not locked:
        return rows.select_related("identity__user").first()
    with transaction_on(database()):
        return rows.select_for_update().first()


ATTEMPTS = 5
"""How often a compare-and-set is tried that must not fail: others come first, but not always."""


# Compare and set


def claim(grant: Grant, owner: str, *, lease: timedelta) -> bool:
    """Take the right to call the OP for this grant, unless somebody has it (T3, T13, T14).

    A lease that ended without a result leaves its mark: nobody knows whether the token was spent.
    """
    free = Q(lease_until=None) | Q(lease_until__lt=DatabaseClock())
    due = Q(not_before=None) | Q(not_before__lte=DatabaseClock())
    unfinished = Case(When(lease_until__isnull=False, then=F("attempt_started_at")))
    with transaction_on(database()):
        # MariaDB and MySQL assign from left to right: what is read must come first.
        return bool(
            _still(grant)
            .filter(free, due)
            .update(
                in_doubt_since=Coalesce(F("in_doubt_since"), unfinished),
                lease_owner=owner,
                lease_until=DatabaseClock(lease),
                attempt_started_at=DatabaseClock(),
            )
        )


def keep_lease(grant: Grant, owner: str, *, lease: timedelta) -> bool:
    """Let the lease end later, if it is still this owner's."""
    with transaction_on(database()):
        mine = _still(grant).filter(lease_owner=owner)
        return bool(mine.update(lease_until=DatabaseClock(lease)))


def release(grant: Grant, owner: str, **changes: Any) -> bool:
    """End this owner's attempt without a result, and note what is known of it."""
    with transaction_on(database()):
        return bool(
            _still(grant)
            .filter(lease_owner=owner)
            .update(lease_owner="", lease_until=None, attempt_started_at=None, **changes)
        )


def pause(grant: Grant, duration: timedelta, code: str, failures: int) -> None:
    """Let nobody ask the OP for this grant for a while."""
    with transaction_on(database()):
        _still(grant).update(
            not_before=DatabaseClock(duration),
            failures=failures,
            last_error=code,
            last_error_at=DatabaseClock(),
        )


def reject(grant: Grant, generation: int, target: Target, *, every: timedelta) -> bool:
    """Take an access token for expired that an API refused, once in `every` for a grant (T16)."""
    rested = Q(forced_at=None) | Q(forced_at__lt=DatabaseClock(-every))
    with transaction_on(database()):
        if not _still(grant).filter(rested).update(forced_at=DatabaseClock()):
            return False
        refused = StoredAccessToken.objects.using(database()).filter(
            grant=grant, target=target.digest, generation=generation
        )
        return bool(refused.update(expires_at=DatabaseClock(), sent_at=DatabaseClock()))


def _still(grant: Grant) -> Any:
    """This very row, if nothing has changed its generation or closed it."""
    return Grant.objects.using(database()).filter(
        pk=grant.pk, generation=grant.generation, status=Grant.OPEN
    )


# What a token response changes


@dataclass(frozen=True, slots=True)
class Rotation:
    """The outcome of a refresh, sealed: it may wait in a journal until the database takes it.

    generation: the one it replaces. since: the earliest one that it does; those between were rolled
    back with their caller. access: columns of the StoredAccessToken, or None.
    """

    grant: str
    since: int
    generation: int
    refresh_token: str
    access: Mapping[str, Any] | None
    refreshed_by: str
    idle_until: int


def rotation(
    grant: Any,
    refresh_token: RefreshToken,
    tokens: TokenResponse | None,
    target: Target,
    *,
    lifetime: timedelta | None,
    idle_lifetime: timedelta,
) -> Rotation:
    """Seal what the OP answered for the generation after this one.

    lifetime: of the access token, from when the request was sent (`grant.now`); None: not told.
    """
    generation = grant.generation + 1
    context = grant.context(generation)
    return Rotation(
        grant=grant.pk,
        since=grant.generation,
        generation=grant.generation,
        refresh_token=key_ring().seal(refresh_token.reveal(), context),
        access=None if tokens is None else _access(grant, generation, tokens, target, lifetime),
        refreshed_by=worker(),
        idle_until=_micros(grant.now + idle_lifetime),
    )


def _access(
    grant: Any,
    generation: int,
    tokens: TokenResponse,
    target: Target,
    lifetime: timedelta | None,
) -> dict[str, Any]:
    row, identity = record_id(), grant.identity
    table = StoredAccessToken._meta.db_table
    context = Context(table, "access_token", row, identity.iss, identity.sub, generation)
    sealed = key_ring().seal(tokens.access_token.reveal(), context)
    return {
        "id": row,
        "grant_id": grant.pk,
        "resource": target.resource,
        "scope": target.scope,
        "target": target.digest,
        "granted_scope": tokens.scope,
        "access_token": sealed,
        "key_id": key_id(sealed),
        "generation": generation,
        "sent_at": _micros(grant.now),
        "expires_at": None if lifetime is None else _micros(grant.now + lifetime),
    }


def store(rotation: Rotation) -> bool:
    """Store the outcome of a refresh, unless the grant has moved on (T5); all of it or nothing.

    Whose lease it is does not matter: the generation alone says whether the result is wanted.
    """
    with transaction_on(database()):
        stored = (
            Grant.objects.using(database())
            .filter(pk=rotation.grant, status=Grant.OPEN)
            .filter(generation__gte=rotation.since, generation__lte=rotation.generation)
            .update(
                refresh_token=rotation.refresh_token,
                key_id=key_id(rotation.refresh_token),
                generation=rotation.generation + 1,
                **_AT_REST,
                refreshed_at=DatabaseClock(),
                refreshed_by=rotation.refreshed_by,
                refreshes=F("refreshes") + 1,
                idle_until=rotation.idle_until,
            )
        )
        if stored and rotation.access is not None:
            _replace_access_token(rotation.access)
    return bool(stored)


def _replace_access_token(columns: Mapping[str, Any]) -> None:
    tokens = StoredAccessToken.objects.using(database())
    tokens.filter(grant=columns["grant_id"], target=columns["target"]).delete()
    tokens.create(**columns)


_AT_REST: dict[str, Any] = {
    "lease_owner": "",
    "lease_until": None,
    "attempt_started_at": None,
    "in_doubt_since": None,
    "not_before": None,
    "failures": 0,
    "last_error": "",
    "last_error_at": None,
}
"""The state of a grant that nobody is refreshing and nothing is wrong with."""


def close(grant: Any, reason: str, *, revoke: bool, keep_access: bool = False) -> bool:
    """End a grant: no refresh token is left in it, and whoever holds its lease comes late (T18).

    revoke: tell the OP, afterwards (revocation.py). keep_access: the access tokens are still good.
    """
    with transaction_on(database()):
        closed = _still(grant).update(
            status=Grant.CLOSED,
            generation=F("generation") + 1,
            refresh_token="",
            key_id="",
            **{**_AT_REST, "last_error": grant.last_error, "last_error_at": grant.last_error_at},
            close_reason=reason,
            closed_at=DatabaseClock(),
            idle_until=None,
        )
        if closed and not keep_access:
            StoredAccessToken.objects.using(database()).filter(grant=grant).delete()
        if closed and revoke and (token := opened(grant)) is not None:
            pend_revocation(grant, token, reason)
    return bool(closed)


def close_many(ids: Collection[str], reason: str, *, revoke: bool) -> list[Any]:
    """End those of these grants that are open and belong to a browser session, whoever may be
    refreshing them; return them as they were. As many statements for one as for many.

    revoke: tell the OP, afterwards, where that ends nothing but the grant itself.
    """
    marker, rows = f"closing:{token_hex(8)}", Grant.objects.using(database())
    at_rest = {name: value for name, value in _AT_REST.items() if "last_error" not in name}
    with transaction_on(database()):
        # First of all, so that nobody changes these rows while they are read.
        taken = rows.filter(pk__in=ids, durable=False, status=Grant.OPEN).update(
            status=Grant.CLOSED,
            generation=F("generation") + 1,
            **{**at_rest, "lease_owner": marker},
            close_reason=reason,
            closed_at=DatabaseClock(),
            idle_until=None,
        )
        if not taken:
            return []
        mine = rows.filter(pk__in=ids, lease_owner=marker)
        closed: list[Any] = list(mine.select_related("identity"))
        for grant in closed:
            grant.generation -= 1  # what its token is sealed for
        if revoke:
            _pend_revocations(closed, reason)
        StoredAccessToken.objects.using(database()).filter(grant__in=closed).delete()
        mine.update(lease_owner="", refresh_token="", key_id="")
    return closed


def _pend_revocations(closed: list[Any], reason: str) -> None:
    providers = conf.providers()
    pending = [
        _pending_revocation(grant, token, reason)
        for grant in closed
        if grant.provider in providers and revokes_superseded(providers[grant.provider])
        if (token := opened(grant)) is not None
    ]
    PendingRevocation.objects.using(database()).bulk_create(pending)


def opened(grant: Grant) -> RefreshToken | None:
    """The refresh token, or None where there is none, or none that opens."""
    try:
        return refresh_token(grant)
    except (SealError, ConfigurationError) as error:
        logger.error("grant %s: its refresh token does not open: %s", grant.pk, error)
        return None


def refresh_token(grant: Grant) -> RefreshToken | None:
    """The refresh token, or None where there is none. Raises SealError."""
    if not grant.refresh_token:
        return None
    if key_id(grant.refresh_token) != grant.key_id:  # not a key that is missing: a bit that is
        raise SealError("seal.broken", "the envelope names another key than its row")
    return RefreshToken(key_ring().open(grant.refresh_token, grant.context(grant.generation)))


def unstored_token(grant: Grant, rotation: Rotation) -> RefreshToken:
    """The refresh token of an outcome that came too late to be stored. Raises SealError."""
    context = grant.context(rotation.generation + 1)
    return RefreshToken(key_ring().open(rotation.refresh_token, context))


def access_token(reading: Reading) -> AccessToken:
    """The access token of a reading that has one. Raises SealError."""
    return AccessToken(key_ring().open(reading.sealed or "", reading.context()))


def pend_revocation(
    grant: Grant, token: RefreshToken | AccessToken, reason: str
) -> PendingRevocation:
    """Note a token that the OP is to revoke, in the transaction that gives it up."""
    revocation = _pending_revocation(grant, token, reason)
    revocation.save(using=database(), force_insert=True)
    return revocation


def _pending_revocation(
    grant: Grant, token: RefreshToken | AccessToken, reason: str
) -> PendingRevocation:
    revocation = PendingRevocation(
        provider=grant.provider,
        client_id=grant.client_id,
        iss=grant.identity.iss,
        sub=grant.identity.sub,
        reason=reason,
        not_before=0,  # at once, however far this host's clock is from the database's
    )
    revocation.token = key_ring().seal(token.reveal(), revocation.context())
    revocation.key_id = key_id(revocation.token)
    return revocation


# A login's tokens


def keep(login: Login, identity: Identity) -> Grant | None:
    """Keep what a login brought, sealed, and return the grant it is in (T15).

    None where nothing is worth keeping: no refresh token, and no API that tokens may be sent to.
    """
    tokens, provider = login.tokens, login.provider
    if tokens.refresh_token is None and not provider.api_origins:
        return None
    if not conf.token_keys():
        logger.error("TOKEN_KEYS is empty: the tokens of provider %s are lost", provider.slug)
        return None
    if not is_offline(login):
        return _new_grant(login, identity, None)
    slot = sha256(f"{identity.pk}:{provider.client_id}".encode()).hexdigest()
    for attempt in range(ATTEMPTS):
        known = _load(attempt > 0, slot=slot)
        if known is not None and _renewed_by_login(known, login):
            return cast(Grant, known)
        if known is None or (tokens.refresh_token is None and known.status != Grant.OPEN):
            with suppress(IntegrityError):  # another login of the same person came first
                return _new_grant(login, identity, slot if tokens.refresh_token else None)
    logger.error("the tokens of a login are lost: its grant changes all the time")
    return None


def how_kept(login: Login, grant: Grant | None) -> str:
    """The code of the event: "kept_wider" where a login was granted less than the grant that works,
    which stays as it was."""
    wider = grant is not None and set(grant.scope.split()) > set(login.tokens.scope.split())
    return "kept_wider" if wider else ""


def is_offline(login: Login) -> bool:
    """Whether its grant outlives the browser session (Core §11)."""
    return login.provider.offline or "offline_access" in login.tokens.scope.split()


def _new_grant(login: Login, identity: Identity, slot: str | None) -> Grant:
    tokens, provider = login.tokens, login.provider
    grant: Any = Grant(
        identity=identity,
        provider=provider.slug,
        client_id=provider.client_id,
        durable=slot is not None,
        slot=slot,
        scope=tokens.scope,
        original_claims=lasting_claims(login.id_token),
    )
    with transaction_on(database()) as connection:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {CLOCKS[connection.vendor]}")
            grant.now = grant.created_at = EPOCH + cursor.fetchone()[0] * MICROSECOND
        if tokens.refresh_token is not None:
            context = grant.context(grant.generation)
            grant.refresh_token = key_ring().seal(tokens.refresh_token.reveal(), context)
            grant.key_id = key_id(grant.refresh_token)
            grant.idle_until = grant.now + _idle_lifetime(login)
        grant.save(using=database(), force_insert=True)
        columns = _access(grant, grant.generation, tokens, ANY, _lifetime(login))
        StoredAccessToken.objects.using(database()).create(**columns)
    return grant  # type: ignore[no-any-return]


def _renewed_by_login(known: Any, login: Login) -> bool:
    """Put a new login's tokens into the durable grant, if it is still as it was read.

    An OP that gives a refresh token at the first login only (Google) leaves the old one good.
    """
    refresh_token, open_now = login.tokens.refresh_token, known.status == Grant.OPEN
    if refresh_token is None and not open_now:
        return False
    if refresh_token is not None and _allows_more(known, login.tokens.scope):
        if revokes_superseded(login.provider):
            pend_revocation(known, refresh_token, NARROWER)
        return True
    generation = known.generation + (refresh_token is not None)
    changes: dict[str, Any] = {"generation": generation}
    if refresh_token is not None:
        sealed = key_ring().seal(refresh_token.reveal(), known.context(generation))
        changes |= _AT_REST | {
            "refresh_token": sealed,
            "key_id": key_id(sealed),
            "status": Grant.OPEN,
            "close_reason": "",
            "closed_at": None,
            "provider": login.provider.slug,
            "scope": login.tokens.scope,
            "original_claims": lasting_claims(login.id_token),
            "idle_until": known.now + _idle_lifetime(login),
        }
    superseded = opened(known) if refresh_token is not None and open_now else None
    with transaction_on(database()):
        rows = Grant.objects.using(database()).filter(pk=known.pk, generation=known.generation)
        if not rows.filter(status=known.status).update(**changes):
            return False
        if refresh_token is not None:
            StoredAccessToken.objects.using(database()).filter(grant=known).delete()
        _replace_access_token(_access(known, generation, login.tokens, ANY, _lifetime(login)))
        if superseded not in (None, refresh_token) and revokes_superseded(login.provider):
            pend_revocation(known, superseded, SUPERSEDED)
    known.generation = generation
    if refresh_token is not None:
        known.scope = login.tokens.scope
    return True


def _allows_more(known: Grant, scope: str) -> bool:
    """Whether a grant that nothing is wrong with allows all of this scope and more: an ordinary
    sign-in must not take from background jobs what a person has once been asked for on purpose."""
    is_well = known.status == Grant.OPEN and bool(known.refresh_token) and not known.failures
    more = set(known.scope.split()) > set(scope.split())
    return is_well and known.in_doubt_since is None and more


def revokes_superseded(provider: conf.Provider) -> bool:
    """Whether to revoke the token that a new login replaces: not where that ends the new one."""
    told = provider.revoke_superseded
    return provider.issuer not in _ONE_CONSENT if told is None else told


# A token revoked there ends everything that the person allowed this client.
_ONE_CONSENT = frozenset({"https://accounts.google.com"})


def _lifetime(login: Login) -> timedelta | None:
    expires_at = login.tokens.expires_at
    return None if expires_at is None else expires_at - timezone.now()


def _idle_lifetime(login: Login) -> timedelta:
    told = login.tokens.idle_lifetime or login.provider.refresh_idle_lifetime
    return timedelta(seconds=told)


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND
