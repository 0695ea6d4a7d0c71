"""Linked identities and their grants in the admin: to look at, never to make up."""

import json
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model, Prefetch, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.functional import Promise
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from .models import DatabaseClock, Grant, Identity, StoredAccessToken
from .refresh import expiry

FIELDS = ("user", "provider", "iss", "sub", "created_at", "last_login_at", "verified_claims")
EVENTS_SHOWN = 50


class _ReadOnly:
    """A person is (iss, sub) because an OP said so; nobody types one in."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    @admin.display(description=_("claims"))
    def verified_claims(self, identity: Identity) -> SafeString:
        """The last verified claims, as text."""
        text = json.dumps(identity.claims, indent=2, ensure_ascii=False, sort_keys=True)
        return format_html("<pre>{}</pre>", text)


def state_of(grant: Any) -> str | Promise:
    """Where a grant stands, at a glance. grant.now: the database's time (refresh.py draws it)."""
    if grant.status != Grant.OPEN:
        return _("closed: %(reason)s") % {"reason": grant.close_reason}
    if grant.lease_until is not None and grant.lease_until >= grant.now:
        return _("renewing")
    if grant.in_doubt_since is not None or grant.lease_until is not None:
        return _("in doubt: an attempt ended without an answer")
    if grant.not_before is not None and grant.not_before > grant.now:
        return _("backing off until %(time)s") % {"time": _moment(grant.not_before)}
    return _("healthy") if grant.key_id else _("healthy, without a refresh token")


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"


class GrantInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """What an identity has granted: how its tokens fare, and nothing of the tokens themselves."""

    model = Grant
    extra = 0
    can_delete = False
    fields = (
        "state",
        "durable",
        "granted_scope",
        "last_renewal",
        "next_renewal",
        "last_trouble",
        "key",
    )
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any, Any]":
        tokens = StoredAccessToken.objects.only("grant_id", "sent_at", "expires_at")
        with_tokens = Prefetch("access_tokens", tokens, to_attr="tokens")
        rows = super().get_queryset(request).defer("refresh_token").prefetch_related(with_tokens)
        grants: QuerySet[Any, Any] = rows.annotate(now=DatabaseClock())
        return grants

    @admin.display(description=_("state"))
    def state(self, grant: Any) -> str | Promise:
        return state_of(grant)

    @admin.display(description=_("scope"))
    def granted_scope(self, grant: Grant) -> str:
        return str(grant.scope)

    @admin.display(description=_("last renewal"))
    def last_renewal(self, grant: Any) -> str:
        """When, by which process, and which one it was."""
        if grant.refreshed_at is None:
            return ""
        return f"{_moment(grant.refreshed_at)}, {grant.refreshed_by} (#{grant.refreshes})"

    @admin.display(description=_("next renewal"))
    def next_renewal(self, grant: Any) -> str:
        """At the first use after this moment; never without a refresh token or after the end."""
        if grant.status != Grant.OPEN or not grant.key_id:
            return ""
        return _moment(min(filter(None, map(self._soft_expiry, grant.tokens)), default=None))

    def _soft_expiry(self, token: Any) -> datetime | None:
        if token.expires_at is None:
            return None
        soft, _hard = expiry(token.grant_id, (token.expires_at - token.sent_at).total_seconds())
        moment: datetime = token.sent_at + timedelta(seconds=soft)
        return moment

    @admin.display(description=_("last error"))
    def last_trouble(self, grant: Any) -> str:
        return f"{_moment(grant.last_error_at)} {grant.last_error}" if grant.last_error else ""

    @admin.display(description=_("key id"))
    def key(self, grant: Grant) -> str:
        return str(grant.key_id)


@admin.register(Identity)
class IdentityAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    inlines = [GrantInline]
    list_display = ("user", "person", "provider", "created_at", "last_login_at", "sub")
    list_filter = ("provider", "last_login_at")
    date_hierarchy = None
    ordering = ("-last_login_at",)
    readonly_fields = (*FIELDS, "timeline")
    search_help_text = _("User name, e-mail address, or the exact sub")

    class Media:
        css = {"all": ["oidc_rp/admin.css"]}

    @admin.display(description=_("name"))
    def person(self, identity: Identity) -> str:
        """What the OP calls this person: a user name made by us would tell an operator little."""
        told = (identity.claims.get(name) for name in ("name", "email", "preferred_username"))
        return next((str(value) for value in told if value), "")

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        """The timeline only for who may view events."""
        may = request.user.has_perm("oidc_rp.view_event")
        return (*FIELDS, "timeline") if may else FIELDS

    @admin.display(description=_("timeline"))
    def timeline(self, identity: Identity) -> SafeString:
        """What happened to the tokens: when, what, why, and who did it; the newest first."""
        events = identity.events.order_by("-pk")[:EVENTS_SHOWN]
        rows = (
            (_moment(e.at), e.name, e.code, e.actor, e.grant_id or "", (e.grant_id or "")[-8:])
            for e in events
        )
        titles = ((title,) for title in (_("when"), _("event"), _("code"), _("by"), _("grant")))
        cells = (
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>"
            '<td><span title="{}">{}</span></td></tr>'
        )
        return format_html(
            "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>",
            format_html_join("", '<th scope="col">{}</th>', titles),
            format_html_join("", cells, rows),
        )

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        model: Any = get_user_model()
        fields = {model.USERNAME_FIELD, model.get_email_field_name()}
        names = {field.name for field in model._meta.get_fields()}
        return ("sub__exact", *(f"user__{name}__istartswith" for name in sorted(fields & names)))


class IdentityInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """A user's linked identities, for the admin page of the user."""

    model = Identity
    extra = 0
    can_delete = False
    show_change_link = True
    fields = ("provider", "sub", "created_at", "last_login_at")
    readonly_fields = fields


def add_inline(site: admin.AdminSite = admin.site) -> None:
    """Show the identities on the page of the user model, where that is registered already."""
    user_admin: Any = site._registry.get(get_user_model())
    if user_admin is not None and IdentityInline not in user_admin.inlines:
        user_admin.inlines = [*user_admin.inlines, IdentityInline]


add_inline()  # once more when every admin module is there: see apps.py
