"""A signed-in user's own page: which identities are linked, and where they are signed in (M38)."""

from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import logout as auth_logout
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render, resolve_url
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.views.decorators.csrf import csrf_protect

from . import accounts, closing, conf, events, grants, session_index, sessions
from .devices import browser_of, system_of
from .errors import InvalidResponse
from .models import Identity, Session
from .relying_party import relying_party
from .step_up import freshen_url, is_fresh
from .visits import RefusingView, parameters_of, public, start_login

NOTICES: dict[str, str | Promise] = {
    "linked": _("The sign-in is linked to your account."),
    "linked_before": _("That sign-in was linked to your account already, and still is."),
    "unlinked": _("The sign-in is not linked to your account any more."),
    "ended": _("That session is signed out."),
    "others_ended": _("You are signed out everywhere else."),
    "stale": _(
        "You last proved more than five minutes ago who you are. Sign in once more, then go on."
    ),
    "last_way_in": _("This is your only way to sign in, so it stays."),
}


@dataclass(frozen=True, slots=True)
class LinkedIdentity:
    """One identity as the page shows it. about: the person's address or name at the OP, or sub."""

    row: Identity
    label: str | Promise
    about: str
    here: bool


@dataclass(frozen=True, slots=True)
class SignedIn:
    """One session as the page shows it. lately: it is in use, as far as that is noted."""

    row: Session
    label: str | Promise
    browser: str
    system: str
    here: bool
    lately: bool


@method_decorator([*public, csrf_protect], name="dispatch")
class IdentitiesView(RefusingView):
    """Linked identities and sessions: link another, unlink, sign out one or all the others.

    Each form says what it is for in `action`. What changes who may sign in wants a fresh sign-in;
    what cannot be taken back is asked for once more.
    """

    http_method_names = ["get", "head", "post"]

    def get(self, request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect_to_login(request.path)
        return render(request, "oidc_rp/identities.html", self._context(request))

    def post(self, request: HttpRequest) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect_to_login(request.path)
        actions = {
            "link": self._link,
            "unlink": self._unlink,
            "end_session": self._end_session,
            "end_other_sessions": self._end_other_sessions,
        }
        act = actions.get(parameters_of(request).get("action", ""))
        if act is None:
            raise InvalidResponse("identities.action", "no such action")
        return act(request)

    def _link(self, request: HttpRequest) -> HttpResponse:
        party = relying_party(request.POST.get("provider", ""))
        if not is_fresh(request, accounts.FRESH):
            return _back(request, "stale")
        linker, purpose = str(request.user.pk), sessions.LINK
        again = self._own(request).filter(provider=party.provider.slug).exists()
        asked = {"prompt": "select_account"} if again else {}  # else single sign-on brings the same
        return start_login(
            request, party, request.path, linker=linker, purpose=purpose, additional=asked
        )

    def _unlink(self, request: HttpRequest) -> HttpResponse:
        identity = self._own(request).filter(pk=_key(request, "identity")).first()
        if identity is None:
            return _back(request, "unlinked")
        if not accounts.may_unlink(identity):
            return _back(request, "last_way_in")
        if not is_fresh(request, accounts.FRESH):
            return _back(request, "stale")
        linked = _linked(identity, request, _labels())
        if "confirmed" not in request.POST:
            return render(request, "oidc_rp/unlink.html", {"linked": linked})
        if not accounts.unlink(identity, events.by_user(request.user.pk)):
            return _back(request, "last_way_in")
        return _signed_out(request) if linked.here else _back(request, "unlinked")

    def _end_session(self, request: HttpRequest) -> HttpResponse:
        row = _record_id(request, "session")
        if row and row == sessions.row_of(request.session):
            return _signed_out(request)
        one = session_index.rows().filter(identity__user=request.user, pk=row)
        closing.end_sessions(one, grants.LOGOUT, actor=events.by_user(request.user.pk))
        return _back(request, "ended")

    def _end_other_sessions(self, request: HttpRequest) -> HttpResponse:
        if "confirmed" not in request.POST:
            return render(request, "oidc_rp/end_other_sessions.html", self._context(request))
        here = {
            "but": sessions.row_of(request.session),
            "spared": sessions.browser_of(request.session),
        }
        actor = events.by_user(request.user.pk)
        closing.sign_out(list(self._own(request)), grants.LOGOUT, **here, actor=actor)
        return _back(request, "others_ended")

    def _context(self, request: HttpRequest) -> dict[str, Any]:
        notice, labels = request.session.pop(sessions.NOTICE, None), _labels()
        owned = list(self._own(request))
        identities = [_linked(row, request, labels) for row in owned]
        alive = session_index.alive(request.user)
        signed_in = [_signed_in(row, request, labels) for row in alive]
        return {
            "identities": identities,
            "unlinkable": accounts.unlinkable(request.user, owned),
            "sessions": sorted(signed_in, key=lambda one: not one.here),
            "others": sum(not one.here for one in signed_in),
            "linked_slugs": {one.row.provider for one in identities},
            "notice": NOTICES.get(notice),
            "notice_code": notice,
            "freshen_url": _freshen_url(request, labels),
        }

    def _own(self, request: HttpRequest) -> Any:
        return accounts.identities_of(request.user.pk).order_by("pk").select_related("user")


def _key(request: HttpRequest, name: str) -> int:
    """A key of the form, as far as it is one."""
    value = request.POST.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else -1


def _record_id(request: HttpRequest, name: str) -> str:
    """The id of a record in the form, as far as it is one."""
    value: str = request.POST.get(name, "")
    return value if value.isascii() and value.isalnum() else ""


def _back(request: HttpRequest, notice: str) -> HttpResponse:
    sessions.leave_notice(request.session, notice)
    return HttpResponseRedirect(reverse("oidc_rp:identities"))


def _signed_out(request: HttpRequest) -> HttpResponse:
    """This very session is over, too."""
    auth_logout(request)
    return HttpResponseRedirect(reverse("oidc_rp:login_chooser"))


Labels = dict[str, str | Promise]


def _freshen_url(request: HttpRequest, labels: Labels) -> str:
    """Where to sign in once more; "" where the only links would lead to somebody else's sign-in, or
    to nothing: our chooser asks for no password, a provider that is gone for nobody."""
    login = sessions.current_login(request)
    if login is None and resolve_url(settings.LOGIN_URL) == reverse("oidc_rp:login_chooser"):
        return ""
    gone = login is not None and login.provider not in labels
    return "" if gone else freshen_url(request, accounts.FRESH, request.path)


def _labels() -> Labels:
    """What each provider is called; asked once for a page, for the site may look it up."""
    return {slug: provider.label for slug, provider in conf.providers().items()}


def _linked(row: Identity, request: HttpRequest, labels: Labels) -> LinkedIdentity:
    login = sessions.current_login(request)
    here = login is not None and (login.iss, login.sub) == (row.iss, row.sub)
    told = (row.claims.get(name) for name in ("email", "preferred_username", "name"))
    about = next((text for text in told if isinstance(text, str) and text), row.sub)
    return LinkedIdentity(row, labels.get(row.provider, row.provider), about, here)


def _signed_in(row: Session, request: HttpRequest, labels: Labels) -> SignedIn:
    agent, here = row.user_agent, row.pk == sessions.row_of(request.session)
    lately = sessions.utc_now() - row.last_seen_at < 2 * session_index.SEEN_EVERY
    browser, system = browser_of(agent), system_of(agent)
    label = labels.get(row.provider, row.provider)
    return SignedIn(row, label, browser, system, here, lately)
