"""Verified claims -> user: find, link, create, refuse (Core §5.7, M33 to M38).

A person is (iss, sub). No e-mail address or name ever selects a user here, unless the site says so
twice: by a hook or an option of its own, and by an account that passes every condition below.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from django.conf import settings
from django.contrib.auth import get_backends, get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import Group
from django.core.exceptions import (
    FieldDoesNotExist,
    ObjectDoesNotExist,
    PermissionDenied,
    SuspiciousOperation,
    ValidationError,
)
from django.db import DataError, IntegrityError, models, router, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from .conf import Provider, providers
from .errors import LoginRefused
from .models import Identity, email_of
from .relying_party import Login

logger = logging.getLogger("oidc_rp")

# About the token or the sign-in, not about the person; UserInfo has no say in them.
_PROTOCOL_CLAIMS = frozenset(
    "iss sub aud exp iat nbf jti azp auth_time nonce acr amr sid at_hash c_hash s_hash".split()
)
_TRANSIENT_CLAIMS = frozenset("nonce at_hash c_hash s_hash".split())
_BOOLEAN_CLAIMS = ("email_verified", "phone_number_verified")
_BOOLEANS = {"true": True, "false": False}
_NEVER_BY_CLAIMS = frozenset({"password", "is_staff", "is_superuser"})
_NOT_STORED = (IntegrityError, DataError, ValidationError, OverflowError)
FRESH = timedelta(minutes=5)
"""How long ago a local login may be that confirms a link."""


class VerifiedClaims(dict[str, Any]):
    """The claims of one sign-in after every check, `iss` and `sub` always among them."""

    def __init__(self, claims: Mapping[str, Any], provider: Provider) -> None:
        super().__init__(claims)
        self.provider = provider

    def look_up(self, path: str) -> Any:
        """The claim of this name, or else what a path of names joined by dots leads to; or None."""
        if path in self:
            return self[path]
        found: Any = self
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


class AccountHooks(Protocol):
    """What a site may decide about accounts, with the names of mozilla-django-oidc."""

    def verify_claims(self, claims: Any) -> bool: ...
    def filter_users_by_claims(self, claims: Any) -> Any: ...
    def create_user(self, claims: Any) -> Any: ...
    def update_user(self, user: Any, claims: Any) -> Any: ...
    def describe_user_by_claims(self, claims: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a login belongs to. linked: the identity is new to this site."""

    user: AbstractBaseUser
    identity: Identity
    linked: bool


def account_for(login: Login, hooks: AccountHooks, local_user: Any = None) -> Account:
    """Return the account of whoever signed in, made or linked now if the settings want that.

    local_user: who has just signed in on this site by other means and asked to link, or None.
    Raises LoginRefused "account.<why>".
    """
    claims = verified_claims(login)
    with _refusing() as known:
        _check_claims(claims, hooks)
        identity, linked = Identity.objects.find(claims["iss"], claims["sub"]), False
        if identity is None:
            identity, linked = _new_identity(claims, hooks, local_user)
        known.append(identity)
        user = _up_to_date(identity, claims, hooks, new=linked)
    return Account(user, identity, linked)


def link(login: Login, hooks: AccountHooks, user: Any) -> Account:
    """Return the account of `user`, who asked for it, with the identity that signed in (M38).

    The user's own fields and groups stay as they are. An identity of somebody else is not moved:
    raises LoginRefused "account.linked_elsewhere", and "account.<why>".
    """
    claims = verified_claims(login)
    with _refusing() as known:
        _check_claims(claims, hooks)
        _check_active(user)
        identity, linked = Identity.objects.find(claims["iss"], claims["sub"]), False
        if identity is None:
            identity, linked = _made(claims, lambda: user)
        known.append(identity)
        if identity.user_id != user.pk:
            raise LoginRefused("account.linked_elsewhere", "the identity is somebody else's")
        if not linked:
            _note_login(identity, claims)
    return Account(user, identity, linked)


def renewed(
    identity: Identity,
    provider: Provider,
    hooks: AccountHooks,
    *,
    signed: Mapping[str, Any],
    userinfo: Mapping[str, Any],
) -> None:
    """Bring the account of a session that goes on up to what the OP says now.

    signed, userinfo: the claims of a refreshed ID Token and of UserInfo, after every check. What
    neither names is gone, as at a login; without an ID Token it is as it was, for then not all
    that a login hears was heard. Raises LoginRefused "account.<why>".
    """
    claims, told = {} if signed else dict(identity.claims), _as_one(signed, userinfo)
    for name in ("email", "phone_number"):  # an old word does not vouch for a new value
        if told.get(name) not in (None, claims.get(name)):
            claims.pop(f"{name}_verified", None)
    claims |= {k: v for k, v in told.items() if v is not None and k not in _PROTOCOL_CLAIMS}
    known = _readable(claims | {"iss": identity.iss, "sub": identity.sub}, provider)
    with _refusing():
        _check_claims(known, hooks)
        _up_to_date(identity, known, hooks, new=False, at=identity.last_login_at)


def tells_all(userinfo: Mapping[str, Any], identity: Identity) -> bool:
    """Whether UserInfo names every claim that is known of this person, so that an ID Token would
    tell nothing more."""
    named = {name for name, value in userinfo.items() if value is not None}
    return not identity.claims.keys() - _PROTOCOL_CLAIMS - named


def unlink(identity: Identity, actor: str = "") -> bool:
    """Delete an identity, with its sessions and grants, unless it is its user's last way in.

    actor: who did it, for the timeline. Returns whether it is gone. Two at once lock nobody out:
    they wait for one another.
    """
    with _atomic():
        theirs = identities_of(identity.user_id)
        theirs.update(user=F("user"))  # by a write, and first: SQLite knows no other lock
        if not theirs.filter(pk=identity.pk).exists():
            return True
        if not may_unlink(identity):
            return False
        identity.unlinked_by = actor
        identity.delete()
    return True


def may_unlink(identity: Identity) -> bool:
    """Whether its user has another way in."""
    return identity.pk in unlinkable(identity.user, identities_of(identity.user_id))


def unlinkable(user: Any, identities: Iterable[Identity]) -> set[Any]:
    """The keys of those, of all of a user's identities, that leave another way in when they go.

    That is a password that a backend asks for, or an identity whose issuer is one of ours, whatever
    that provider was called when it was linked.
    """
    rows = list(identities)
    if user.has_usable_password() and _takes_passwords():
        return {row.pk for row in rows}
    issuers = {iss for provider in providers().values() for iss in provider.issuers()}
    ways_in = {row.pk for row in rows if row.iss in issuers}
    return {row.pk for row in rows if ways_in - {row.pk}}


def _takes_passwords() -> bool:
    """Whether a backend compares what somebody types with the password of their user.

    Of others nobody can tell: one that is there for permissions alone also has `authenticate()`.
    """
    return any(map(_takes_password, get_backends()))


def _takes_password(backend: Any) -> bool:
    if not isinstance(backend, ModelBackend) or hasattr(backend, "verify_claims"):
        return False
    try:
        inspect.signature(backend.authenticate).bind(None, username="", password="")
    except TypeError:
        return False  # as authenticate() itself passes over it
    return True


def identities_of(user_pk: Any) -> "models.QuerySet[Any, Any]":
    """The identities of a user, where they are written: a replica may not know the latest."""
    alias = router.db_for_write(Identity)
    return Identity.objects.using(alias).filter(user=user_pk)


@contextmanager
def _refusing() -> Iterator[list[Identity]]:
    """What a hook, a model or the database refuses is a refusal of ours, and says of whom.

    Yields a list for the identity, once it is known.
    """
    known: list[Identity] = []
    try:
        with _as_refusals():
            yield known
    except LoginRefused as error:
        for identity in known:
            error.identity, error.user = identity.pk, identity.user_id
        raise


@contextmanager
def _as_refusals() -> Iterator[None]:
    """Raise LoginRefused for what a hook, a model or the database raises."""
    try:
        yield
    except (SuspiciousOperation, PermissionDenied) as error:
        raise LoginRefused("account.hook", "a hook of this site refused") from error
    except _NOT_STORED as error:
        raise LoginRefused("account.collision", "these details cannot be stored") from error
    except ObjectDoesNotExist as error:
        raise LoginRefused("account.unknown", "the user was deleted meanwhile") from error


def _up_to_date(
    identity: Identity,
    claims: VerifiedClaims,
    hooks: AccountHooks,
    *,
    new: bool,
    at: datetime | None = None,
) -> Any:
    """Have account and identity say what the claims do; at: of the last login, if not now."""
    user: Any = identity.user
    _check_active(user)
    if not new or claims.provider.groups_claim:
        with _atomic():
            _note_login(identity, claims, at)  # first, so that SQLite waits here for its lock
            if not new:
                user = _updated(user, claims, hooks)
            _apply_groups(user, claims)
    _check_active(user)  # a hook or a claim may have changed that
    return user


def _atomic() -> AbstractContextManager[None]:
    """A transaction on the database that identities are written to."""
    return transaction.atomic(using=router.db_for_write(Identity))


def verified_claims(login: Login) -> VerifiedClaims:
    """ID Token and UserInfo as one; the ID Token is signed and wins. Null means not said."""
    return _readable(_as_one(login.id_token.claims, login.userinfo), login.provider)


def _as_one(signed: Mapping[str, Any], userinfo: Mapping[str, Any]) -> dict[str, Any]:
    claims = {k: v for k, v in userinfo.items() if k not in _PROTOCOL_CLAIMS}
    for name in ("email", "phone_number"):  # UserInfo vouches for its own value, for no other
        if signed.get(name) not in (None, claims.get(name)):
            claims.pop(f"{name}_verified", None)
    return claims | {k: v for k, v in signed.items() if v is not None}


def _readable(claims: Mapping[str, Any], provider: Provider) -> VerifiedClaims:
    claims = {k: v for k, v in claims.items() if v is not None and k not in _TRANSIENT_CLAIMS}
    for name in _BOOLEAN_CLAIMS:
        if isinstance(claims.get(name), str):
            claims[name] = _BOOLEANS.get(claims[name].lower(), claims[name])
    return VerifiedClaims(claims, provider)


def user_fields(claims: VerifiedClaims) -> dict[str, Any]:
    """What CLAIMS says of this user's fields; a value that does not fit its field is left out."""
    values = {}
    for name, claim in claims.provider.claims.items():
        field, value = claim_field(name), claims.look_up(claim)
        if field is None or value is None:
            continue
        try:
            values[name] = field.clean(_fitting(field, value), None)
        except (ValidationError, TypeError, ValueError, LookupError, ArithmeticError):
            continue
    return values


def claim_field(name: str) -> "models.Field[Any, Any] | None":
    """The field of the user model that a claim may fill: no key, relation, file or privilege."""
    try:
        field = get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    if not isinstance(field, models.Field) or field.is_relation or field.primary_key:
        return None
    return None if name in _NEVER_BY_CLAIMS or isinstance(field, models.FileField) else field


def set_fields(user: Any, values: Mapping[str, Any]) -> None:
    """Store what differs, in one statement.

    What the database refuses, such as an address that is somebody else's by now, stays as it
    was: nobody is locked out by it.
    """
    changed = {name: value for name, value in values.items() if getattr(user, name) != value}
    if changed and not _saved(user, changed) and len(changed) > 1:
        for name, value in changed.items():
            _saved(user, {name: value})


def _saved(user: Any, values: Mapping[str, Any]) -> bool:
    before = {name: getattr(user, name) for name in values}
    _assign(user, values)
    try:
        with _atomic():
            user.save(update_fields=list(values))
    except _NOT_STORED:
        _assign(user, before)
        logger.warning("claims not stored user=%s fields=%s", user.pk, sorted(values))
        return False
    return True


def _assign(user: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(user, name, value)


def _fitting(field: "models.Field[Any, Any]", value: Any) -> Any:
    """The claim as its field takes it; raises for one of another kind."""
    if isinstance(field, models.JSONField):
        return value
    if isinstance(field, models.BooleanField):
        return _BOOLEANS[value.lower()] if isinstance(value, str) else value
    if isinstance(value, bool | dict | list):
        raise TypeError("a boolean or a structure in a plain field")
    if isinstance(field, models.DateTimeField):
        return _moment(value)
    if field.name == get_user_model().USERNAME_FIELD:
        value = get_user_model().normalize_username(str(value))
    if isinstance(field, models.EmailField):
        value = BaseUserManager.normalize_email(str(value))
    return value


def _moment(value: Any) -> datetime:
    """A NumericDate, as Core §5.1 has updated_at, or ISO 8601 text, as some OPs send it."""
    utc = timezone.get_fixed_timezone(0)
    is_text = isinstance(value, str)
    moment = parse_datetime(value) if is_text else datetime.fromtimestamp(value, utc)
    if moment is None:
        raise ValueError("not a time")
    if timezone.is_naive(moment):
        moment = timezone.make_aware(moment, utc)
    moment = moment.astimezone(utc)  # raises for what no database keeps
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def _check_active(user: Any) -> None:
    if not user.is_active:
        raise LoginRefused("account.inactive", "the local user is not active")


def _updated(user: Any, claims: VerifiedClaims, hooks: AccountHooks) -> Any:
    """The same user, as update_user of this site returns it."""
    updated = hooks.update_user(user, claims)
    if getattr(updated, "pk", None) != user.pk:
        raise LoginRefused("account.hook", "update_user of this site returned somebody else")
    return updated


def _check_claims(claims: VerifiedClaims, hooks: AccountHooks) -> None:
    if not hooks.verify_claims(claims):
        raise LoginRefused("account.claims", "verify_claims of this site refused")
    domains = claims.provider.email_domains
    if domains and not (_vouched_email(claims) and email_domain(claims["email"]) in domains):
        raise LoginRefused("account.email_domain", expected=sorted(domains))


def email_domain(email: str) -> str | None:
    """The domain of an address with exactly one "@", in lower case; None where that is unclear."""
    local_part, _, domain = email.strip().rpartition("@")
    if not local_part or not domain or "@" in local_part or not domain.isascii():
        return None
    return domain.lower().removesuffix(".")


def _vouched_email(claims: VerifiedClaims) -> bool:
    """Whether the OP vouches for the address. A tenant may write any address into its directory;
    there it takes the claim that says the tenant owns the domain, and immutable ids (M34)."""
    email = claims.get("email")
    if not isinstance(email, str) or email_domain(email) is None:
        return False
    if claims.provider.tenants:
        owned = claims.get("xms_edov") in (True, 1, "1", "true")
        return owned and all(isinstance(claims.get(name), str) for name in ("oid", "tid"))
    return claims.get("email_verified") is True


def _new_identity(
    claims: VerifiedClaims, hooks: AccountHooks, local_user: Any
) -> tuple[Identity, bool]:
    """Link to a user that the site chose, or make one, and the identity with it, or neither."""
    user = _chosen_user(claims, hooks) or _user_by_email(claims, local_user)
    if user is None and not claims.provider.create_users:
        about = hooks.describe_user_by_claims(claims)
        raise LoginRefused("account.unknown", f"no user for {about}")
    return _made(claims, lambda: user or hooks.create_user(claims))


def _made(claims: VerifiedClaims, user_for_it: Callable[[], Any]) -> tuple[Identity, bool]:
    """Make the identity, and its user if need be, or neither."""
    try:
        with _atomic():
            user = user_for_it()
            if user is None:
                raise LoginRefused("account.hook", "create_user of this site made nobody")
            identity = Identity.objects.create(
                user=user,
                provider=claims.provider.slug,
                iss=claims["iss"],
                sub=claims["sub"],
                claims=dict(claims),
            )
            return identity, True
    except IntegrityError:
        # Either the same person came twice at once, and the other request made the identity; or
        # name or address are somebody else's, and that is no reason to become somebody else.
        found = Identity.objects.find(claims["iss"], claims["sub"])
        if found is None:
            raise
        return found, False


def _chosen_user(claims: VerifiedClaims, hooks: AccountHooks) -> Any:
    """The one user that the site's filter_users_by_claims names, if it may be linked (M34)."""
    found = hooks.filter_users_by_claims(claims)
    if isinstance(found, models.QuerySet) and found.query.is_empty():
        return None  # none(), as nearly always: no statement need be composed to find nobody
    users: Sequence[Any] = [] if found is None else list(found[:2])
    return _linkable(users, claims) if users else None


def _user_by_email(claims: VerifiedClaims, local_user: Any) -> Any:
    """The account that carries the OP's verified address, once its owner has signed in locally."""
    is_verified = claims.provider.dangerously_link_by_email
    if is_verified is None or not _vouched_email(claims):
        return None
    model: Any = get_user_model()
    same_email = {f"{model.get_email_field_name()}__iexact": claims["email"]}
    found = model._default_manager.filter(**same_email)
    users = [user for user in found if _same(getattr(user, model.get_email_field_name()), claims)]
    if not users:
        return None
    user = _linkable(users, claims)
    if not is_verified(user):
        raise LoginRefused("account.match", "this site has not verified the address")
    if local_user is None or local_user.pk != user.pk:
        raise LoginRefused("account.confirm", "a fresh local login must confirm the link")
    return user


def _same(email: str, claims: VerifiedClaims) -> bool:
    """Whether this is the address, and not only in the eyes of a database's collation."""
    other: str = claims["email"]
    return email == other or ((email + other).isascii() and email.lower() == other.lower())


def _linkable(users: Sequence[Any], claims: VerifiedClaims) -> Any:
    """The user, if it is exactly one, nobody privileged, and no other subject's at this OP."""
    user = users[0]
    if len(users) > 1:
        raise LoginRefused("account.match", "more than one user matches")
    _check_active(user)
    if getattr(user, "is_staff", False) or getattr(user, "is_superuser", False):
        raise LoginRefused("account.match", "a privileged user is linked by hand only")
    if Identity.objects.filter(user=user, iss=claims["iss"]).exists():
        raise LoginRefused("account.match", "the user is linked to another subject of this OP")
    return user


def _note_login(identity: Identity, claims: VerifiedClaims, at: datetime | None = None) -> None:
    """Note claims and time, unless an operator has unlinked the identity at this very moment."""
    identity.claims, identity.last_login_at = dict(claims), at or timezone.now()
    identity.provider, identity.email = claims.provider.slug, email_of(claims)
    names = ("claims", "email", "last_login_at", "provider")
    noted = {name: getattr(identity, name) for name in names}
    if not Identity.objects.filter(pk=identity.pk).update(**noted):
        raise LoginRefused("account.unknown", "the identity was unlinked meanwhile")


def _apply_groups(user: Any, claims: VerifiedClaims) -> None:
    """Give and take what GROUPS, STAFF_GROUPS and SUPERUSER_GROUPS name, and nothing else.

    A claim that is not there, null, or no text and no list, changes nothing; an empty list takes
    all of it away.
    """
    provider = claims.provider
    if provider.groups_claim is None:
        return
    values = _group_values(claims.look_up(provider.groups_claim))
    if values is None:
        return
    _set_groups(user, provider, values)


def _set_groups(user: Any, provider: Provider, values: frozenset[str]) -> None:
    flags = {"is_staff": provider.staff_groups, "is_superuser": provider.superuser_groups}
    set_fields(
        user, {name: bool(values & given) for name, given in flags.items() if given is not None}
    )
    managed = set(provider.groups.values())
    wanted = {group for value, group in provider.groups.items() if value in values}
    if managed:
        has = set(user.groups.filter(name__in=managed).values_list("name", flat=True))
        user.groups.remove(*Group.objects.filter(name__in=has - wanted))
        user.groups.add(*_groups(wanted - has))


def _group_values(claim: Any) -> frozenset[str] | None:
    if isinstance(claim, str):
        return frozenset({claim})
    if not isinstance(claim, list):
        return None
    return frozenset(item for item in claim if isinstance(item, str))


def _groups(names: Iterable[str]) -> list[Group]:
    return [Group.objects.get_or_create(name=name)[0] for name in sorted(names)]
