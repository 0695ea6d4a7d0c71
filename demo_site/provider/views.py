import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from django.conf import settings
from django.contrib.auth import logout, views
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import redirect_to_login
from django.db import transaction
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from django.views.generic import TemplateView
from oauth2_provider import views as oauth2
from oauth2_provider.models import (
    get_access_token_model,
    get_application_model,
    get_refresh_token_model,
)
from oauthlib.common import add_params_to_uri

from demo_site.installation import ISSUER, SITE_ORIGINS
from demo_site.provider import sessions
from demo_site.provider.backchannel_logout import TOLD, telling_clients
from demo_site.provider.models import AMR, PASSWORD, SECOND_FACTOR


@dataclass(frozen=True)
class Access:
    """What one client has of a person, as the provider itself counts it."""

    client: Any
    sign_ins: int
    refreshes: int
    is_open: bool


@never_cache
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    context = {
        "accesses": _accesses(request.user),
        "site": f"{SITE_ORIGINS[0]}/profile/",
        "told": request.session.pop(TOLD, []),
    }
    return render(request, "provider/home.html", context)


def _accesses(user: Any) -> list[Access]:
    """Every refresh token that was ever given out is a row here: the first of a family comes with
    a sign-in, each other one with a refresh."""
    if not user.is_authenticated:
        return []
    theirs = Q(refreshtoken__user=user)
    counted = get_application_model().objects.annotate(
        given=Count("refreshtoken", filter=theirs),
        families=Count("refreshtoken__token_family", filter=theirs, distinct=True),
        live=Count("refreshtoken", filter=theirs & Q(refreshtoken__revoked=None)),
    )
    return [
        Access(client, client.families, client.given - client.families, client.live > 0)
        for client in counted.filter(given__gt=0).order_by("pk")
    ]


@require_POST
@login_required
def take_back(request: HttpRequest) -> HttpResponse:
    """End what a client may do: its tokens of this person are good for nothing from now on."""
    client_id = request.POST.get("client_id", "")
    client = get_object_or_404(get_application_model(), client_id=client_id)
    theirs = {"user": request.user, "application": client}
    with transaction.atomic():
        for token in get_refresh_token_model().objects.filter(revoked=None, **theirs):
            token.revoke()
        get_access_token_model().objects.filter(**theirs).delete()
    return redirect("home")


class DiscoveryView(oauth2.ConnectDiscoveryInfoView):  # type: ignore[misc]
    """django-oauth-toolkit's, and what is not in it."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().get(request, *args, **kwargs)
        told = json.loads(response.content) | {
            "revocation_endpoint": f"{ISSUER}{reverse('oauth2_provider:revoke-token')}",
            "acr_values_supported": list(AMR),
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
        }
        response.content = json.dumps(told).encode()
        return response


class AuthorizationView(oauth2.AuthorizationView):  # type: ignore[misc]
    """django-oauth-toolkit's, and what a client may ask of the login (Core §3.1.2.1)."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if {"login", "select_account"} & {*self._prompt} or sessions.is_older_than(
            self._max_age, request
        ):
            return self.handle_no_permission()
        if "none" not in self._prompt and self._acr_asked == SECOND_FACTOR != self._acr:
            query = urlencode({"next": request.get_full_path()})
            return redirect(f"{reverse('second_factor')}?{query}")
        response: HttpResponse = super().get(request, *args, **kwargs)
        return response

    @property
    def _prompt(self) -> list[str]:
        return self.request.GET.get("prompt", "").split()

    @property
    def _max_age(self) -> int:
        max_age = self.request.GET.get("max_age", "")
        return int(max_age) if max_age.isdecimal() else settings.SESSION_COOKIE_AGE

    @property
    def _acr_asked(self) -> str | None:
        """The first of acr_values that means something here."""
        asked = self.request.GET.get("acr_values", "").split()
        return next((acr for acr in asked if acr in AMR), None)

    @property
    def _acr(self) -> str:
        """What the login was worth, or as much of it as was asked for."""
        acr: str = self.request.session[sessions.LOGIN]["acr"]
        return PASSWORD if self._acr_asked == PASSWORD else acr

    def handle_no_permission(self) -> HttpResponse:
        """Ask for the password, or answer login_required when nothing may be asked."""
        if "none" in self._prompt:
            response: HttpResponse = super().handle_no_permission()
            return response
        return self.handle_prompt_login()

    def handle_prompt_login(self) -> HttpResponse:
        """Ask for the password, and come back with a request that asks for no login any more."""
        query = self.request.GET.copy()
        for asked in ("prompt", "max_age"):
            query.pop(asked, None)
        return redirect_to_login(f"{self.request.path}?{query.urlencode()}")

    def create_authorization_response(
        self, request: HttpRequest, scopes: str, credentials: dict[str, Any], allow: bool
    ) -> Any:
        """Let the validator know of which login the code will be."""
        login = {**request.session[sessions.LOGIN], "acr": self._acr}
        told = {**credentials, "login": login}
        return super().create_authorization_response(request, scopes, told, allow)

    def redirect(self, redirect_to: str, application: Any) -> HttpResponse:
        """Say who answers in errors, too (RFC 9207 §2)."""
        if "iss" not in parse_qs(urlsplit(redirect_to).query):
            redirect_to = add_params_to_uri(redirect_to, {"iss": ISSUER})
        response: HttpResponse = super().redirect(redirect_to, application)
        return response


class OnTheWay(views.RedirectURLMixin):
    """A page on the way back to `next`, which says to which client that leads."""

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(client=self._client(), **kwargs)

    def _client(self) -> Any:
        query = parse_qs(urlsplit(self.get_redirect_url()).query)
        client_id = query.get("client_id", [""])[0]
        return get_application_model().objects.filter(client_id=client_id).first()


class LoginView(OnTheWay, views.LoginView):
    """The login page."""

    template_name = "provider/login.html"

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        user = self.request.user
        if user.is_authenticated and user != form.get_user():
            with telling_clients(self.request):
                logout(self.request)
        response = super().form_valid(form)
        sessions.begin(self.request)
        return response


@method_decorator(never_cache, name="dispatch")
class SecondFactorView(LoginRequiredMixin, OnTheWay, TemplateView):
    """A pretended second factor: one button."""

    template_name = "provider/second_factor.html"
    next_page = "home"

    def post(self, request: HttpRequest) -> HttpResponse:
        sessions.add_second_factor(request)
        return redirect(self.get_success_url())


class LogoutView(views.LogoutView):
    """The provider's own "Log out"."""

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        with telling_clients(request):
            return super().post(request, *args, **kwargs)


class RPInitiatedLogoutView(oauth2.RPInitiatedLogoutView):  # type: ignore[misc]
    """Logout at a client's wish (RP-Initiated Logout 1.0)."""

    def do_logout(self, *args: Any, **kwargs: Any) -> HttpResponse:
        with telling_clients(self.request):
            response: HttpResponse = super().do_logout(*args, **kwargs)
        return response
