"""The URLs of the test site: ours, the admin, and pages that want a signed-in user."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

from oidc_rp.step_up import require_auth


def whoami(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


urlpatterns = [
    path("oidc/", include("oidc_rp.urls")),
    path("admin/", admin.site.urls),
    path("home/", whoami),
    path("private/", login_required(whoami)),
    path("bank/", require_auth(max_age=300)(whoami)),
]
