import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth import views
from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from oauth2_provider.models import (
    get_access_token_model,
    get_application_model,
    get_refresh_token_model,
)
from oauth2_provider.views import ConnectDiscoveryInfoView

from demo_site.installation import ISSUER, SITE_ORIGINS


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
    context = {"accesses": _accesses(request.user), "site": f"{SITE_ORIGINS[0]}/profile/"}
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


class DiscoveryView(ConnectDiscoveryInfoView):  # type: ignore[misc]
    """django-oauth-toolkit's, and the revocation endpoint (RFC 8414 §2), which is not in it."""

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response: HttpResponse = super().get(request, *args, **kwargs)
        endpoint = f"{ISSUER}{reverse('oauth2_provider:revoke-token')}"
        told = {**json.loads(response.content), "revocation_endpoint": endpoint}
        response.content = json.dumps(told).encode()
        return response


class LoginView(views.LoginView):
    """The login page, which says to which client the way leads on."""

    template_name = "provider/login.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(client=self._client(), **kwargs)

    def _client(self) -> Any:
        query = parse_qs(urlsplit(self.get_redirect_url()).query)
        client_id = query.get("client_id", [""])[0]
        return get_application_model().objects.filter(client_id=client_id).first()
