"""Views that call an API in the name of who is signed in; run under gunicorn by project.Site."""

import time
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from oidc_rp.api import session_for
from oidc_rp.errors import OIDCError
from tests.urls import urlpatterns as test_urlpatterns


def outcome(call: Any) -> dict[str, Any]:
    """Call an API through a session; tell what came of it, and how long that took."""
    began = time.monotonic()
    told: dict[str, Any] = {"ok": False, "code": "", "status": None}
    try:
        told["status"] = call().status_code
        told["ok"] = told["status"] == 200
    except OIDCError as error:
        told["code"] = error.code
    return told | {"waited_ms": round((time.monotonic() - began) * 1000, 1)}


@transaction.non_atomic_requests
def call(request: HttpRequest) -> JsonResponse:
    """Call the API once."""
    return JsonResponse(outcome(lambda: session_for(request).get(settings.API)))


class RolledBack(Exception):
    """What a view may raise after it has called the API."""


def call_and_raise(request: HttpRequest) -> JsonResponse:
    """Call the API once, and have the request's transaction rolled back."""
    raise RolledBack(call(request).content)


def write_call_and_raise(request: HttpRequest) -> JsonResponse:
    """The same, after the transaction has written: on SQLite nobody else can until it ends."""
    get_user_model().objects.filter(pk=request.user.pk).update(first_name="rolled back")
    return call_and_raise(request)


urlpatterns = [
    *test_urlpatterns,
    path("call/", call),
    path("call-and-raise/", call_and_raise),
    path("write-call-and-raise/", write_call_and_raise),
]
