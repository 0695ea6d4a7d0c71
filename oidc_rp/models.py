"""Who is linked by (iss, sub), where they are signed in, and the tokens that are kept for them,
sealed; knows no HTTP."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from datetime import timezone as tz
from hashlib import sha256
from secrets import token_hex
from time import time_ns
from typing import Any, NoReturn

from django.conf import settings
from django.db import models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from .sealing import Context


class IdentityManager(models.Manager["Identity"]):
    """Finds a person as Core §5.7 says: by iss and sub together, and by nothing else."""

    def find(self, iss: str, sub: str) -> "Identity | None":
        """Return the identity of (iss, sub); one look-up in a unique index."""
        # Plain SQL: to compose a statement takes Django four times as long as to run this one.
        by_digest = f"SELECT * FROM {self.model._meta.db_table} WHERE digest = %s"  # noqa: S608
        # On the primary: a replica may not know yet who has just signed up.
        primary = self.db_manager(router.db_for_write(self.model))
        found = next(iter(primary.raw(by_digest, [digest(iss, sub)])), None)
        return found if found and (found.iss, found.sub) == (iss, sub) else None


def digest(iss: str, sub: str) -> str:
    """A text that is equal when iss and sub are, byte for byte, whatever a database's collation."""
    return sha256(f"{len(iss)}:{iss}{sub}".encode()).hexdigest()


class Identity(models.Model):
    """One person at one OP, linked to a local user. `claims`: what was last verified of them."""

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        related_name="oidc_identities",
        verbose_name=_("user"),
    )
    provider = models.SlugField(_("provider"), max_length=50)
    iss = models.TextField(_("issuer (iss)"))
    sub = models.CharField(_("subject (sub)"), max_length=255, db_index=True)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    claims = models.JSONField(_("claims"), default=dict)
    # Of the claims, in lower case: what an operator searches by. It identifies nobody (Core §5.7).
    email = models.CharField(max_length=254, default="", db_index=True, editable=False)
    created_at = models.DateTimeField(_("first login"), default=timezone.now)
    last_login_at = models.DateTimeField(_("last login"), default=timezone.now)

    objects = IdentityManager()

    unlinked_by = ""
    """Who deletes it, for the timeline; set by whoever does."""

    class Meta:
        verbose_name = _("linked identity")
        verbose_name_plural = _("linked identities")
        permissions = [
            ("end_sessions", _("Can end the sessions of a linked identity")),
            ("renew_tokens", _("Can renew the tokens of a linked identity")),
            ("revoke_tokens", _("Can revoke the tokens of a linked identity")),
            ("unlink_identity", _("Can unlink an identity from its user")),
        ]

    def __str__(self) -> str:
        return f"{self.sub} ({self.provider})"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Save; the digest always is that of iss and sub, and email that of the claims."""
        self.digest = digest(self.iss, self.sub)
        self.email = email_of(self.claims)
        super().save(*args, **kwargs)


def email_of(claims: Mapping[str, Any]) -> str:
    """The e-mail address among the claims as it is searched by: in lower case, "" for none."""
    email = claims.get("email")
    return email.lower()[:254] if isinstance(email, str) else ""


EPOCH = datetime(1970, 1, 1, tzinfo=tz.utc)
MICROSECOND = timedelta(microseconds=1)

CLOCKS = {
    "postgresql": "(EXTRACT(EPOCH FROM CLOCK_TIMESTAMP()) * 1000000)::bigint",
    "mysql": "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6))",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000",
}
"""The database's own clock as an InstantField keeps a time: hosts may differ, it does not."""


class InstantField(models.BigIntegerField):  # type: ignore[type-arg]
    """A moment: an aware datetime in Python, whole microseconds since the epoch when stored.

    So one plain expression compares it with the database's clock, on every database and whatever
    USE_TZ and TIME_ZONE say.
    """

    description = _("Moment")

    def from_db_value(self, value: int | None, *_: Any) -> datetime | None:
        return None if value is None else EPOCH + value * MICROSECOND

    def get_prep_value(self, value: Any) -> int | None:
        if isinstance(value, datetime):
            if timezone.is_naive(value):  # as Django's now() is without USE_TZ: of TIME_ZONE
                value = timezone.make_aware(value, timezone.get_default_timezone())
            return (timezone.localtime(value, tz.utc) - EPOCH) // MICROSECOND
        return super().get_prep_value(value)  # type: ignore[no-any-return]

    def to_python(self, value: Any) -> datetime | None:
        if value is None or isinstance(value, datetime):
            return value
        return EPOCH + int(value) * MICROSECOND


class DatabaseClock(models.Func):
    """The time by the database's clock, or so much later, as the value of an InstantField."""

    output_field = InstantField()
    arity = 0

    def __init__(self, later: timedelta = timedelta(0)) -> None:
        super().__init__()
        self.later = later // MICROSECOND

    def as_sql(self, compiler: Any, connection: BaseDatabaseWrapper, *_: Any, **__: Any) -> Any:
        return f"({CLOCKS[connection.vendor]} + {self.later})", []


def record_id() -> str:
    """A key that is known before the row is written, so that a seal can name it; grows with time
    (48 bits of milliseconds, 80 random), so that rows which are made together lie together."""
    return f"{time_ns() // 1_000_000:012x}{token_hex(10)}"


def _sealed() -> Any:
    return models.TextField(editable=False, default="")


def _key_id() -> Any:
    return models.CharField(max_length=16, editable=False, default="")


def _record_id() -> Any:
    return models.CharField(
        primary_key=True, max_length=32, default=record_id, editable=False, serialize=False
    )


class Grant(models.Model):
    """What one person allowed this site at one OP: a refresh token, and who may spend it now.

    A durable grant (offline access) is one row for each identity and client, whatever logins come;
    the others belong to the browser session that holds their id. The columns from `lease_owner` to
    `last_error_at` are the state of refresh.py, where the transitions are drawn. original_claims:
    what a refreshed ID Token has to repeat of the one that the refresh token came with (M30); None
    where that was not kept.
    """

    OPEN, CLOSED = "open", "closed"

    id = _record_id()
    identity = models.ForeignKey(
        Identity, on_delete=models.CASCADE, related_name="grants", verbose_name=_("identity")
    )
    provider = models.SlugField(_("provider"), max_length=50, db_index=False)
    client_id = models.TextField()
    durable = models.BooleanField(_("offline access"), default=False)
    # The digest of identity and client for the durable one; databases let many rows have no slot.
    slot = models.CharField(max_length=64, null=True, editable=False)  # noqa: DJ001
    scope = models.TextField(_("scope"), default="")
    refresh_token = _sealed()
    key_id = _key_id()
    original_claims = models.JSONField(null=True, editable=False)
    generation = models.PositiveIntegerField(default=1)
    status = models.CharField(max_length=6, default=OPEN)
    lease_owner = models.CharField(max_length=100, default="", editable=False)
    lease_until = InstantField(null=True, editable=False)
    attempt_started_at = InstantField(null=True, editable=False)
    in_doubt_since = InstantField(null=True, editable=False)
    not_before = InstantField(null=True, editable=False)
    forced_at = InstantField(null=True, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False)
    last_error = models.CharField(max_length=100, default="", editable=False)
    last_error_at = InstantField(null=True, editable=False)
    close_reason = models.CharField(max_length=50, default="", editable=False)
    closed_at = InstantField(null=True, editable=False)
    created_at = InstantField(default=timezone.now, editable=False)
    refreshed_at = InstantField(null=True, editable=False)
    refreshed_by = models.CharField(max_length=100, default="", editable=False)
    refreshes = models.PositiveIntegerField(default=0, editable=False)
    idle_until = InstantField(null=True, editable=False, db_index=True)

    class Meta:
        verbose_name = _("grant")
        verbose_name_plural = _("grants")
        constraints = [models.UniqueConstraint(fields=["slot"], name="oidc_rp_one_durable_grant")]
        # Not by db_index: PostgreSQL would add a second one, for LIKE, and write both each time.
        indexes = [models.Index(fields=["key_id", "id"], name="oidc_rp_grant_key")]

    def __str__(self) -> str:
        return f"{self.provider} {self.status} ({self.id})"

    def context(self, generation: int) -> Context:
        """Where the refresh token of this generation is sealed to."""
        identity = self.identity
        table = self._meta.db_table
        return Context(table, "refresh_token", self.pk, identity.iss, identity.sub, generation)


class StoredAccessToken(models.Model):
    """The access token of a grant for one API.

    resource, scope: as asked for; both empty for the token that comes without asking.
    granted_scope: as the OP says. sent_at: when the request for it was sent, by the database's
    clock, and expires_at by the same, so that no host's clock matters; None: the OP does not say.
    """

    id = _record_id()
    grant = models.ForeignKey(
        Grant, on_delete=models.CASCADE, related_name="access_tokens", db_index=False
    )
    resource = models.TextField(default="")
    scope = models.TextField(default="")
    target = models.CharField(max_length=64, editable=False)
    granted_scope = models.TextField(default="")
    access_token = _sealed()
    key_id = _key_id()
    generation = models.PositiveIntegerField(default=1)
    sent_at = InstantField(default=timezone.now)
    expires_at = InstantField(null=True)

    class Meta:
        verbose_name = _("access token")
        verbose_name_plural = _("access tokens")
        constraints = [
            models.UniqueConstraint(fields=["grant", "target"], name="oidc_rp_one_token_per_target")
        ]
        indexes = [models.Index(fields=["key_id", "id"], name="oidc_rp_access_token_key")]

    def __str__(self) -> str:
        return f"{self.resource or self.grant_id} ({self.id})"

    def context(self) -> Context:
        """Where this access token is sealed to."""
        identity, table = self.grant.identity, self._meta.db_table
        return Context(table, "access_token", self.pk, identity.iss, identity.sub, self.generation)


class Session(models.Model):
    """One browser session of an identity: what a logout finds, and "where am I signed in" shows.

    Its id stands in the data of Django's session; a session whose row is gone, or has ended, is
    good for nothing. session_key: Django's, "" where the session lives in its cookie. auth_hash: a
    digest of the user's session hash, another one once the password has changed. sid_digest: of
    (iss, sid). renewed_at: when the OP last vouched for it; tried_at, failed_at: when it was asked
    to, and would not. ended_at: it is over, and still to be deleted from the store.
    """

    id = _record_id()
    identity = models.ForeignKey(
        Identity, on_delete=models.CASCADE, related_name="sessions", verbose_name=_("identity")
    )
    grant = models.ForeignKey(
        Grant, null=True, on_delete=models.SET_NULL, related_name="sessions", db_index=False
    )
    provider = models.SlugField(_("provider"), max_length=50, db_index=False)
    sid = models.CharField(_("session (sid)"), max_length=255, default="")
    sid_digest = models.CharField(max_length=64, null=True, editable=False)  # noqa: DJ001
    session_key = models.CharField(max_length=255, default="", editable=False)
    auth_hash = models.CharField(max_length=64, default="", editable=False)
    auth_time = InstantField(_("authenticated"), null=True)
    acr = models.TextField(default="")
    amr = models.JSONField(default=list)
    id_token = _sealed()
    key_id = _key_id()
    user_agent = models.TextField(default="")
    created_at = InstantField(_("signed in"), default=timezone.now)
    last_seen_at = InstantField(_("last seen"), default=timezone.now)
    renewed_at = InstantField(default=timezone.now)
    tried_at = InstantField(null=True, editable=False)
    failed_at = InstantField(null=True, editable=False)
    ended_at = InstantField(null=True, editable=False)

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        # Not by db_index: PostgreSQL would add a second one, for LIKE, and write both each time.
        indexes = [
            models.Index(fields=["sid_digest"], name="oidc_rp_session_sid"),
            models.Index(fields=["grant"], name="oidc_rp_session_grant"),
            models.Index(fields=["last_seen_at"], name="oidc_rp_session_seen"),
            models.Index(fields=["key_id", "id"], name="oidc_rp_session_key"),
        ]

    def __str__(self) -> str:
        return f"{self.provider} ({self.id})"

    def context(self) -> Context:
        """Where the ID Token of this session is sealed to."""
        identity, table = self.identity, self._meta.db_table
        return Context(table, "id_token", self.pk, identity.iss, identity.sub, 0)


class LogoutMark(models.Model):
    """Somebody, or one session, was logged out: so that no logout token is taken twice, and that a
    login which was under way comes too late (M57, M60).

    subject: a digest of what was logged out, see session_index.py. jti: a digest of the logout
    token's (iss, jti); for a logout of our own None, or one of the browser whose logins are spared.
    done_at: when all its sessions had ended.
    """

    id = _record_id()
    subject = models.CharField(max_length=64)
    jti = models.CharField(max_length=64, null=True)  # noqa: DJ001
    at = InstantField(default=timezone.now, db_index=True)
    done_at = InstantField(null=True)

    class Meta:
        verbose_name = _("logout mark")
        verbose_name_plural = _("logout marks")
        constraints = [models.UniqueConstraint(fields=["jti"], name="oidc_rp_one_logout_token")]
        indexes = [models.Index(fields=["subject"], name="oidc_rp_logout_subject")]

    def __str__(self) -> str:
        return f"{self.subject[:12]} ({self.id})"


class PendingRevocation(models.Model):
    """A token that the OP is still to be told about (RFC 7009). Written in the transaction that
    ends its grant, sent after it, and tried again until the OP has understood."""

    id = _record_id()
    provider = models.SlugField(max_length=50, db_index=False)
    client_id = models.TextField()
    iss = models.TextField()
    sub = models.CharField(max_length=255)
    token = _sealed()
    key_id = _key_id()
    reason = models.CharField(max_length=50)
    attempts = models.PositiveIntegerField(default=0)
    last_error = models.CharField(max_length=100, default="")
    not_before = InstantField(default=timezone.now, db_index=True)
    created_at = InstantField(default=timezone.now)

    class Meta:
        verbose_name = _("pending revocation")
        verbose_name_plural = _("pending revocations")
        indexes = [models.Index(fields=["key_id", "id"], name="oidc_rp_revocation_key")]

    def __str__(self) -> str:
        return f"{self.provider} {self.reason} ({self.id})"

    def context(self) -> Context:
        """Where this token is sealed to."""
        return Context(self._meta.db_table, "token", self.pk, self.iss, self.sub, 0)


class ProviderCircuit(models.Model):
    """A provider that refuses this client: nobody asks it for tokens before `not_before`."""

    provider = models.SlugField(primary_key=True, max_length=50)
    not_before = InstantField()
    failures = models.PositiveIntegerField(default=1)
    last_error = models.CharField(max_length=100)
    last_error_at = InstantField()

    class Meta:
        verbose_name = _("provider circuit")
        verbose_name_plural = _("provider circuits")

    def __str__(self) -> str:
        return f"{self.provider} ({self.last_error})"


class EventQuerySet(models.QuerySet["Event"]):
    """Events are added and read. Whoever prunes them says so, by a query set of another kind."""

    def update(self, **kwargs: Any) -> NoReturn:
        raise TypeError("events are never changed")

    def delete(self) -> NoReturn:
        raise TypeError("events are deleted by oidc_prune, or with their user")

    def bulk_create(
        self,
        objs: Any,
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if update_conflicts:
            raise TypeError("events are never changed")
        return super().bulk_create(objs, batch_size, ignore_conflicts, False, *args, **kwargs)


class Event(models.Model):
    """One thing that happened: what, when, to whom, why, and who did it; see events.py.

    Never changed, and deleted by age alone, or with the user. identity: None where nobody was known
    (a login that was refused), or once it is unlinked. reference: what a refusal's page tells.

    The database does not hold an event to those whom it names: one of them may be deleted at this
    moment, and a constraint that is looked at last would then undo all of the caller's transaction.
    """

    identity = models.ForeignKey(
        Identity, null=True, on_delete=models.SET_NULL, related_name="events", db_constraint=False
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.CASCADE,
        related_name="oidc_events",
        db_constraint=False,
    )
    grant = models.ForeignKey(
        Grant,
        null=True,
        on_delete=models.SET_NULL,
        related_name="events",
        db_index=False,
        db_constraint=False,
    )
    provider = models.SlugField(max_length=50, default="", db_index=False)
    at = InstantField(default=timezone.now)
    name = models.CharField(max_length=50)
    code = models.CharField(max_length=100, default="")
    actor = models.CharField(max_length=100, default="")
    reference = models.CharField(max_length=20, default="")

    objects = EventQuerySet.as_manager()

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["grant"], name="oidc_rp_event_grant"),
            models.Index(fields=["reference"], name="oidc_rp_event_reference"),
            models.Index(fields=["at"], name="oidc_rp_event_at"),
        ]

    def __str__(self) -> str:
        return f"{self.name} {self.code}".strip()

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("events are never changed")
        super().save(*args, **kwargs | {"force_insert": True})

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("events are deleted by oidc_prune, or with their user")
