"""The URLs of a contender's site: its own, and the bare view that it is compared with."""

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import include, path
from django.utils.crypto import get_random_string

BACKEND = "django.contrib.auth.backends.ModelBackend"


def begin(request: HttpRequest) -> HttpResponse:
    """Put into the session what any relying party keeps until the callback."""
    state, nonce = get_random_string(32), get_random_string(32)
    request.session["pending"] = {state: {"nonce": nonce, "code_verifier": get_random_string(43)}}
    return HttpResponseRedirect(f"/bare/callback/?state={state}")


def callback(request: HttpRequest) -> HttpResponse:
    """Create the user that `login_hint` names, or get the one that is there, and log in."""
    users: Any = get_user_model()._default_manager
    sub = request.GET["login_hint"]
    if request.GET["user"] == "new":
        user = users.create_user(sub, f"{sub}@example.com", first_name="Ada", last_name="Lovelace")
    else:
        user = users.get(username=sub)
    login(request, user, BACKEND)
    return HttpResponseRedirect(settings.LOGIN_REDIRECT_URL)


urlpatterns: list[Any] = [path("bare/begin/", begin), path("bare/callback/", callback)]
if settings.CONTENDER_URLS:
    urlpatterns.append(path("", include(settings.CONTENDER_URLS)))
