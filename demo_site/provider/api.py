"""The provider's APIs: a calendar, contacts, and one experiment. Scopes decide (RFC 6750)."""

import json
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe
from oauth2_provider.models import get_refresh_token_model
from oauth2_provider.oauth2_backends import get_oauthlib_core
from oauthlib.common import Request as OAuthRequest

from demo_site.installation import CALENDAR
from demo_site.provider.models import Login
from demo_site.provider.validator import DemoValidator

APPOINTMENTS = [  # days from today, time, what
    (0, "18:30", "Choir, second rehearsal"),
    (1, "09:00", "Dentist"),
    (3, "13:15", "Lunch with Rui, Mercado de Arroios"),
]
PEOPLE = ["Rui Tavares", "Marta Nóbrega", "Dr. Pires, dentist"]

Guarded = Callable[[HttpRequest, Any], HttpResponse]


def needs(scope: str) -> Callable[[Guarded], Callable[[HttpRequest], HttpResponse]]:
    """Let a view see those who bring an access token with this scope: (request, AccessToken)."""

    def guard(view: Guarded) -> Callable[[HttpRequest], HttpResponse]:
        @never_cache
        @csrf_exempt  # a token in a header is sent by no form
        @wraps(view)
        def guarded(request: HttpRequest) -> HttpResponse:
            if "Authorization" not in request.headers:
                return _challenge(401)
            is_valid, checked = get_oauthlib_core().verify_request(request, scopes=[])
            if not is_valid:
                return _challenge(401, error="invalid_token")
            if not checked.access_token.allow_scopes([scope]):
                return _challenge(403, error="insufficient_scope", scope=scope)
            return view(request, checked.access_token)

        return guarded

    return guard


def _challenge(status: int, **parameters: str) -> HttpResponse:
    """Refuse as RFC 6750 §3 says; without a token there is no error to tell."""
    told = {"realm": "Demo Provider", **parameters}
    response = JsonResponse({"error": parameters.get("error", "no_token")}, status=status)
    challenge = ", ".join(f'{name}="{value}"' for name, value in told.items())
    response["WWW-Authenticate"] = f"Bearer {challenge}"
    return response


@require_safe
@needs("calendar")
def calendar(request: HttpRequest, token: Any) -> HttpResponse:
    """What is next, and how many access tokens of this sign-in came before the one shown here."""
    today = timezone.localdate()
    appointments = [
        {"day": (today + timedelta(days=days)).isoformat(), "time": time, "what": what}
        for days, time, what in APPOINTMENTS
    ]
    answer = {"of": token.user.get_full_name(), "appointments": appointments}
    return JsonResponse({**answer, "token_number": _number(token)})


@require_safe
@needs("contacts")
def contacts(request: HttpRequest, token: Any) -> HttpResponse:
    return JsonResponse({"of": token.user.get_full_name(), "people": PEOPLE})


def _number(token: Any) -> int:
    """Return 1 for the access token of the sign-in itself, 2 after the first refresh, and so on."""
    refresh_tokens = get_refresh_token_model().objects
    current = refresh_tokens.filter(access_token=token).first()
    if current is None:
        return 1
    family = refresh_tokens.filter(token_family=current.token_family, pk__lte=current.pk)
    return int(family.count())


@require_POST
@needs("openid")
def id_token_instead(request: HttpRequest, token: Any) -> HttpResponse:
    """Play a site that mistakes its ID Token for an access token; tell what the calendar answers.

    The ID Token is a real one, of this person for this client. It is made for this, sent to the
    calendar over HTTP, and forgotten: the site never sees it.
    """
    bearer = {"Authorization": f"Bearer {_id_token(token)}"}
    direct = build_opener(ProxyHandler({}))
    try:
        with direct.open(Request(CALENDAR, headers=bearer), timeout=5) as response:  # noqa: S310 - our own
            status, headers, body = response.status, response.headers, response.read(10_000)
    except HTTPError as refusal:
        with refusal:
            status, headers, body = refusal.code, refusal.headers, refusal.read(10_000)
    told = {"status": status, "www_authenticate": headers.get("WWW-Authenticate", "")}
    sent = {"aud": token.application.client_id, "alg": token.application.algorithm}
    return JsonResponse({"id_token": sent, "answer": {**told, "body": json.loads(body)}})


def _id_token(token: Any) -> str:
    request = OAuthRequest(CALENDAR)
    request.user, request.client, request.scopes = token.user, token.application, ["openid"]
    request.login = Login.objects.get(id_tokens__access_token=token)
    claims = {"aud": token.application.client_id, "iat": int(timezone.now().timestamp())}
    return str(DemoValidator().finalize_id_token(claims, {}, None, request))
