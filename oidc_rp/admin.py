"""Linked identities in the admin: to look at, never to make up."""

import json
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from .models import Identity

FIELDS = ("user", "provider", "iss", "sub", "created_at", "last_login_at", "verified_claims")


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


@admin.register(Identity)
class IdentityAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("user", "person", "provider", "created_at", "last_login_at", "sub")
    list_filter = ("provider", "last_login_at")
    date_hierarchy = None
    ordering = ("-last_login_at",)
    fields = FIELDS
    readonly_fields = FIELDS
    search_help_text = _("User name, e-mail address, or the exact sub")

    @admin.display(description=_("name"))
    def person(self, identity: Identity) -> str:
        """What the OP calls this person: a user name made by us would tell an operator little."""
        told = (identity.claims.get(name) for name in ("name", "email", "preferred_username"))
        return next((str(value) for value in told if value), "")

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
