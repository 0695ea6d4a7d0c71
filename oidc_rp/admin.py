"""Linked identities in the admin: where they are signed in, how their tokens fare, what happened.

To look at, and to act on by four actions, each with its own permission; never to make up.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from copy import copy
from datetime import timedelta
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.validators import slug_re
from django.db.models import Max, Model, QuerySet
from django.forms.models import BaseInlineFormSet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from . import accounts, conf, events
from .admin_actions import ACTIONS, AT_ONCE, Action, stays_linked
from .admin_health import (
    SHOWN,
    SHOWN_IN_LIST,
    health_of,
    last_renewal,
    moment,
    next_renewal,
    overall,
    readable,
    times_are_in,
    with_grants,
)
from .admin_providers import statuses
from .admin_search import FOUND, BoundedPaginator, identities_of, keys_found, refusals_of
from .devices import browser_of, system_of
from .models import DatabaseClock, Event, Grant, Identity, Session

NOTHING = "-"
"""As Django shows a value that is not there."""

SHORT = 16
"""Characters of a sub that the list shows."""

PERSON = ("user", "person", "address", "provider", "iss", "sub", "first_login", "last_login")
TOKENS = ("health", "last_renewal", "next_renewal", "scopes", "key_ids")


class _ReadOnly:
    """A person is (iss, sub) because an OP said so; nobody types one in."""

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class _Latest(BaseInlineFormSet):  # type: ignore[type-arg]
    """The first SHOWN rows: one identity may have any number."""

    def get_queryset(self) -> "QuerySet[Any, Any]":
        if not hasattr(self, "_queryset"):
            self._queryset = super().get_queryset()[:SHOWN]
        return self._queryset


class _Part(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """Rows of an identity, on its page."""

    extra = 0
    can_delete = False
    formset = _Latest


class SessionInline(_Part):
    """Where an identity is signed in; neither the ID Token nor the key of Django's session."""

    model = Session
    fields = ("device", "signed_in", "last_seen", "renewed", "context_class", "op_session", "state")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any, Any]":
        hidden = ("id_token", "session_key", "auth_hash")
        rows: QuerySet[Any, Any] = super().get_queryset(request).defer(*hidden).order_by("-pk")
        return rows

    @admin.display(description=_("device"))
    def device(self, row: Session) -> str:
        return f"{browser_of(row.user_agent)} {system_of(row.user_agent)}".strip()

    @admin.display(description=_("signed in"))
    def signed_in(self, row: Session) -> str:
        return moment(row.created_at)

    @admin.display(description=_("last seen"))
    def last_seen(self, row: Session) -> str:
        return moment(row.last_seen_at)

    @admin.display(description=_("renewed"))
    def renewed(self, row: Session) -> str:
        """When the OP last vouched for it, if that is not when it began."""
        return moment(row.renewed_at) if row.renewed_at != row.created_at else ""

    @admin.display(description="acr")
    def context_class(self, row: Session) -> str:
        return str(row.acr)

    @admin.display(description="sid")
    def op_session(self, row: Session) -> str:
        return str(row.sid)

    @admin.display(description=_("state"))
    def state(self, row: Session) -> str | Promise:
        if row.ended_at is not None:
            return _("ended")
        return _("not renewed") if row.failed_at is not None else _("open")


class GrantInline(_Part):
    """What an identity has granted: how its tokens fare, and nothing of the tokens themselves."""

    model = Grant
    fields = (
        "state",
        "name",
        "durable",
        "granted_scope",
        "last_renewal",
        "next_renewal",
        "last_trouble",
        "key",
    )
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any, Any]":
        return readable(super().get_queryset(request))

    @admin.display(description=_("state"))
    def state(self, grant: Any) -> SafeString:
        return health_of(grant).badge()

    @admin.display(description=_("grant"))
    def name(self, grant: Grant) -> SafeString:
        """As the timeline calls it: by its last characters."""
        return format_html('<span title="{}">{}</span>', grant.pk, grant.pk[-8:])

    @admin.display(description=_("scope"))
    def granted_scope(self, grant: Grant) -> str:
        return str(grant.scope)

    @admin.display(description=_("last renewal"))
    def last_renewal(self, grant: Any) -> str:
        return last_renewal(grant)

    @admin.display(description=_("next renewal"))
    def next_renewal(self, grant: Any) -> str:
        return moment(next_renewal(grant))

    @admin.display(description=_("last error"))
    def last_trouble(self, grant: Any) -> str:
        return f"{moment(grant.last_error_at)} {grant.last_error}" if grant.last_error else ""

    @admin.display(description=_("key id"))
    def key(self, grant: Grant) -> str:
        return str(grant.key_id)


class ProviderFilter(admin.SimpleListFilter):
    """By provider, as the settings name them: to ask the table would read all of it."""

    title = _("provider")
    parameter_name = "provider"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        asked = request.GET.get(self.parameter_name, "")
        slugs = dict.fromkeys([*conf.providers(), *filter(None, [asked])])
        return [(slug, slug) for slug in slugs]

    def queryset(self, request: HttpRequest, rows: "QuerySet[Any, Any]") -> "QuerySet[Any, Any]":
        asked = self.value()
        if not asked:
            return rows
        return rows.filter(provider=asked) if slug_re.match(asked) else rows.none()


class TroubleFilter(admin.SimpleListFilter):
    """Whose timeline tells of trouble lately: found by the index of its times."""

    title = _("trouble")
    parameter_name = "trouble"
    SINCE = {"hour": timedelta(hours=1), "day": timedelta(days=1)}
    NAMES = (
        events.LOGIN_REFUSED,
        events.REFRESH_FAILED,
        events.ID_TOKEN_REFUSED,
        events.IN_DOUBT,
        events.BACKING_OFF,
        events.NOT_RENEWED,
        events.TARGET_REFUSED,
    )

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        may = request.user.has_perm("oidc_rp.view_event")
        return [("hour", _("In the last hour")), ("day", _("In the last day"))] if may else []

    def queryset(self, request: HttpRequest, rows: "QuerySet[Any, Any]") -> "QuerySet[Any, Any]":
        since = self.SINCE.get(self.value() or "")
        if since is None:
            return rows
        told = Event.objects.filter(at__gte=DatabaseClock(-since), name__in=self.NAMES)
        known = _latest_of("identity_id", told.exclude(identity=None))
        users = _latest_of("user_id", told.filter(identity=None).exclude(user=None))
        return rows.filter(pk__in={*known, *identities_of(users)})


def _latest_of(whose: str, told: "QuerySet[Any, Any]") -> list[Any]:
    """The keys of those who have these events, whoever had one last first."""
    latest = told.order_by().values(whose).annotate(latest=Max("at")).order_by("-latest")
    return list(latest.values_list(whose, flat=True)[:FOUND])


class IdentityList(ChangeList):
    """Its grants come with a page of identities, by two statements for all of them.

    In one order alone, whatever the query string asks: another would read the whole table.
    """

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        return list(self.model_admin.get_ordering(request))

    def get_queryset(self, request: HttpRequest, *more: Any) -> "QuerySet[Any, Any]":
        rows = super().get_queryset(request, *more)
        may = request.user.has_perm("oidc_rp.view_grant")
        return rows.prefetch_related(with_grants(SHOWN_IN_LIST)) if may else rows


def _for_the_list(action: Action) -> Callable[..., HttpResponse | None]:
    """The action as the list of identities offers it."""

    label: Any = action.label

    @admin.action(description=label, permissions=[action.name])
    def act(owner: "IdentityAdmin", request: HttpRequest, rows: Any) -> HttpResponse | None:
        return owner.act_on_chosen(request, rows, action)

    act.__name__ = action.name
    return act


@admin.register(Identity)
class IdentityAdmin(_ReadOnly, admin.ModelAdmin):  # type: ignore[type-arg]
    inlines = [SessionInline, GrantInline]
    actions = [_for_the_list(action) for action in ACTIONS]
    list_display = ("user", "person", "health", "provider", "last_login", "short_sub")
    list_filter = (ProviderFilter, TroubleFilter)
    list_select_related = ("user",)
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    ordering = ("-pk",)
    sortable_by = ()
    search_fields = ("sub",)  # that there is a search; get_search_results says how
    search_help_text = _(
        "The beginning of a user name or e-mail address; or a sub, sid or reference, exactly"
    )
    readonly_fields = (*PERSON, *TOKENS, "verified_claims")

    class Media:
        css = {"all": ["oidc_rp/admin.css"]}

    # What is shown

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        may = request.user.has_perm("oidc_rp.view_grant")
        return [name for name in self.list_display if may or name != "health"]

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> Any:
        """How the tokens fare only for who may view grants."""
        may = request.user.has_perm("oidc_rp.view_grant")
        tokens = [(_("Tokens"), {"fields": TOKENS})] if may else []
        claims = (_("Claims"), {"fields": ("verified_claims",), "classes": ("collapse",)})
        person = (None, {"fields": PERSON, "description": times_are_in()})
        return [person, *tokens, claims]

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """What the filters ask for alone: any other look-up could read the whole table."""
        return lookup in ("provider", "trouble")

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return IdentityList

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        found = super().get_object(request, object_id, from_field)
        if found is not None and request.user.has_perm("oidc_rp.view_grant"):
            rows: Any = readable(Grant.objects.filter(identity=found))
            setattr(found, "shown_grants", list(rows[:SHOWN]))  # noqa: B010 - as in the list
        return found

    def get_queryset(self, request: HttpRequest) -> "QuerySet[Any, Any]":
        rows: QuerySet[Any, Any] = super().get_queryset(request).select_related("user")
        return rows

    def get_search_results(
        self, request: HttpRequest, queryset: Any, search_term: str
    ) -> tuple[Any, bool]:
        if not search_term.strip():
            return queryset, False
        may = {
            "sessions": request.user.has_perm("oidc_rp.view_session"),
            "events": request.user.has_perm("oidc_rp.view_event"),
        }
        return queryset.filter(pk__in=keys_found(search_term, **may)), False

    @admin.display(description=_("name"))
    def person(self, identity: Identity) -> str:
        """What the OP calls this person: a user name made by us would tell an operator little."""
        told = (identity.claims.get(name) for name in ("name", "email", "preferred_username"))
        return next((str(value)[:100] for value in told if value), "")

    @admin.display(description=_("email address"))
    def address(self, identity: Identity) -> str:
        """By which the search finds it: in lower case, and verified by nobody as such."""
        return str(identity.email) or NOTHING

    @admin.display(description="sub")
    def short_sub(self, identity: Identity) -> SafeString | str:
        """Its two ends; the page of the identity has all of it."""
        if len(identity.sub) <= SHORT:
            return str(identity.sub)
        ends = f"{identity.sub[: SHORT // 2]}…{identity.sub[-SHORT // 2 :]}"
        return format_html('<span title="{}">{}</span>', identity.sub, ends)

    @admin.display(description=_("first login"))
    def first_login(self, identity: Identity) -> str:
        return moment(identity.created_at)

    @admin.display(description=_("last login"))
    def last_login(self, identity: Identity) -> str:
        return moment(identity.last_login_at)

    @admin.display(description=_("claims"))
    def verified_claims(self, identity: Identity) -> SafeString:
        """The last verified claims, as text; a sid is of a session, not of the person."""
        claims = {name: value for name, value in identity.claims.items() if name != "sid"}
        text = json.dumps(claims, indent=2, ensure_ascii=False, sort_keys=True)
        return format_html("<pre>{}</pre>", text)

    @admin.display(description=_("health"))
    def health(self, identity: Any) -> SafeString | str:
        worst = overall(identity.shown_grants)
        return NOTHING if worst is None else worst.badge()

    @admin.display(description=_("last renewal"))
    def last_renewal(self, identity: Any) -> str:
        renewed = [one for one in identity.shown_grants if one.refreshed_at is not None]
        latest = max(renewed, key=lambda one: one.refreshed_at, default=None)
        return last_renewal(latest) if latest is not None else NOTHING

    @admin.display(description=_("next renewal"))
    def next_renewal(self, identity: Any) -> str:
        """The next of all; at the first use after this moment."""
        moments = filter(None, map(next_renewal, identity.shown_grants))
        return moment(min(moments, default=None)) or NOTHING

    @admin.display(description=_("scopes"))
    def scopes(self, identity: Any) -> str:
        """All that the open grants allow together."""
        scopes = [name for one in _open(identity) for name in one.scope.split()]
        return " ".join(dict.fromkeys(scopes)) or NOTHING

    @admin.display(description=_("key id"))
    def key_ids(self, identity: Any) -> str:
        """Of the keys that the refresh tokens are sealed with."""
        return (
            " ".join(dict.fromkeys(one.key_id for one in _open(identity) if one.key_id)) or NOTHING
        )

    # Pages

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        own = [
            path(
                f"<path:object_id>/{action.slug}/",
                view(partial(self.act_on_one, action=action)),
                name=f"oidc_rp_identity_{action.name}",
            )
            for action in ACTIONS
        ]
        providers = path("providers/", view(self.providers), name="oidc_rp_identity_providers")
        return [providers, *own, *super().get_urls()]

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "GET" and request.user.has_perm("oidc_rp.view_event"):
            for event in refusals_of(request.GET.get("q", "")):
                messages.warning(request, _told(event))
        may = request.user.has_perm("oidc_rp.view_providercircuit")
        more = {"oidc_providers_url": self._url("providers") if may else ""}
        return super().changelist_view(request, {**more, **(extra_context or {})})

    def providers(self, request: HttpRequest) -> HttpResponse:
        """Each configured OP, as far as it is known without asking one."""
        if not request.user.has_perm("oidc_rp.view_providercircuit"):
            raise PermissionDenied
        more = {
            "statuses": statuses(),
            "zone": times_are_in(),
            "may_see_events": request.user.has_perm("oidc_rp.view_event"),
            "may_see_list": self.has_view_permission(request),
        }
        return self._page(request, "providers", _("Providers"), more)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """With what may be done, and the timeline for who may view events."""
        identity = context["original"]
        context["oidc_actions"] = [
            (action.label, self._url(action.name, identity.pk))
            for action in ACTIONS
            if self._may(request, action)
        ]
        if request.user.has_perm("oidc_rp.view_event"):
            context["oidc_timeline"] = _timeline(identity)
        return super().render_change_form(request, context, *args, **kwargs)

    # What is done

    def _may(self, request: HttpRequest, action: Action) -> bool:
        seen = self.has_view_permission(request)
        return seen and request.user.has_perm(f"oidc_rp.{action.name}")

    def has_end_sessions_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("oidc_rp.end_sessions")

    def has_renew_tokens_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("oidc_rp.renew_tokens")

    def has_revoke_tokens_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("oidc_rp.revoke_tokens")

    def has_unlink_identity_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("oidc_rp.unlink_identity")

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        """Without Django's own way to delete many: what unlinks asks whether somebody still gets
        in. action_location: Django's, from 6.1 on."""
        where = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = super().get_actions(request, **where)
        actions.pop("delete_selected", None)
        return actions

    def act_on_chosen(
        self, request: HttpRequest, rows: "QuerySet[Any, Any]", action: Action
    ) -> HttpResponse | None:
        """Ask, then act on what is ticked in the list."""
        chosen = list(rows.prefetch_related(None)[: AT_ONCE + 1])
        if len(chosen) > AT_ONCE:
            messages.error(request, _("Choose %(count)d at most.") % {"count": AT_ONCE})
            return None
        if "confirmed" not in request.POST:
            return self._question(request, action, chosen, self._url("changelist"))
        self._act(request, action, chosen)
        return None

    def act_on_one(self, request: HttpRequest, object_id: str, action: Action) -> HttpResponse:
        """Ask, then act on one identity, from its own page."""
        if not self._may(request, action):
            raise PermissionDenied
        found = self.get_object(request, unquote(object_id))
        if found is None:
            return HttpResponseRedirect(self._url("changelist"))
        page = self._url("change", object_id)
        if request.method != "POST":
            return self._question(request, action, [found], page)
        self._act(request, action, [found])
        left = Identity.objects.filter(pk=found.pk).exists()
        return HttpResponseRedirect(page if left else self._url("changelist"))

    def _question(
        self, request: HttpRequest, action: Action, chosen: Sequence[Identity], back: str
    ) -> HttpResponse:
        more = {
            "action": action,
            "chosen": chosen,
            "back": back,
            "checkbox": helpers.ACTION_CHECKBOX_NAME,
        }
        return self._page(request, "confirm_action", action.label, more)

    def _page(
        self, request: HttpRequest, name: str, title: str | Promise, more: dict[str, Any]
    ) -> HttpResponse:
        site = self.admin_site.each_context(request)
        own = {"title": title, "opts": self.opts, "media": self.media}
        request.current_app = self.admin_site.name
        template = f"admin/oidc_rp/identity/{name}.html"
        return TemplateResponse(request, template, {**site, **own, **more})

    def _act(self, request: HttpRequest, action: Action, chosen: Sequence[Identity]) -> None:
        done = action.run([copy(one) for one in chosen], events.by_user(request.user.pk))
        # Only now, for a transaction of the request's may be what the action would wait for; and of
        # the originals, for one that is deleted has no key any more.
        for one in chosen:
            texts = [str(told.text) for told in done if told.identity in (None, one.pk)]
            self.log_change(request, one, f"{action.label}: {' '.join(texts)}")
        for told in done:
            messages.add_message(request, told.level, str(told.text))

    def _url(self, name: str, *args: Any) -> str:
        view = f"admin:{self.opts.app_label}_{self.opts.model_name}_{name}"
        return reverse(view, args=args, current_app=self.admin_site.name)

    # Deleting is unlinking

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """How much goes along, and not what, which is for who may view that; somebody's last way in
        is protected as by accounts.unlink."""
        _all, counts, lacking, protected = super().get_deleted_objects(objs, request)
        kept = [stays_linked(one) for one in objs if not accounts.may_unlink(one)]
        return [str(one) for one in objs], counts, lacking, [*protected, *kept]

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        if not accounts.unlink(obj, events.by_user(request.user.pk)):
            raise PermissionDenied

    def delete_queryset(self, request: HttpRequest, queryset: "QuerySet[Any, Any]") -> None:
        for one in queryset:
            self.delete_model(request, one)


def _open(identity: Any) -> list[Any]:
    return [grant for grant in identity.shown_grants if grant.status == Grant.OPEN]


def _told(event: Any) -> str:
    """A refusal as one line above the list: of most, nobody knows whose they are."""
    sentence = events.EVENTS.get(event.name, event.name)
    reference = _("Reference %(reference)s") % {"reference": event.reference}
    parts = (reference, moment(event.at), event.provider, sentence, event.code)
    return " · ".join(str(part) for part in parts if part)


def _timeline(identity: Identity) -> list[dict[str, Any]]:
    """What happened, the newest first: when, what, why, and who did it.

    With what happened to the user while nobody knew of which identity it was: a login that was
    refused to whoever is signed in here, say.
    """
    theirs = Event.objects.filter(identity=identity).order_by("-pk")[:SHOWN]
    users = Event.objects.filter(identity=None, user=identity.user_id).order_by("-pk")[:SHOWN]
    latest = heapq.merge(theirs, users, key=attrgetter("pk"), reverse=True)
    return _rows(list(islice(latest, SHOWN)), identity)


def _rows(latest: Sequence[Event], identity: Identity) -> list[dict[str, Any]]:
    names = _user_names({one.actor for one in latest})
    return [
        {
            "event": one,
            "at": moment(one.at),
            "sentence": events.EVENTS.get(one.name, ""),
            "provider": one.provider if one.provider != identity.provider else "",
            "actor": f"{one.actor} {names.get(one.actor, '')}".strip(),
        }
        for one in latest
    ]


def _user_names(actors: Iterable[str]) -> dict[str, str]:
    """The user's name, in brackets, for each actor "user <key>" who is still there."""
    users, keys = get_user_model(), {}
    for actor in actors:
        if actor.startswith(events.USER):
            with suppress(ValidationError):
                keys[users._meta.pk.to_python(actor.removeprefix(events.USER))] = actor
    found = users._default_manager.in_bulk(keys)
    return {actor: f"({found[key].get_username()})" for key, actor in keys.items() if key in found}


class IdentityInline(_ReadOnly, admin.TabularInline):  # type: ignore[type-arg]
    """A user's linked identities, for the admin page of the user."""

    model = Identity
    extra = 0
    can_delete = False
    show_change_link = True
    fields = ("provider", "sub", "first_login", "last_login")
    readonly_fields = fields
    first_login = IdentityAdmin.first_login
    last_login = IdentityAdmin.last_login


def add_inline(site: admin.AdminSite = admin.site) -> None:
    """Show the identities on the page of the user model, where that is registered already."""
    user_admin: Any = site._registry.get(get_user_model())
    if user_admin is not None and IdentityInline not in user_admin.inlines:
        user_admin.inlines = [*user_admin.inlines, IdentityInline]


add_inline()  # once more when every admin module is there: see apps.py
