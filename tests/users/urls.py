"""The URLs of a site without the admin."""

from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def whoami(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


urlpatterns = [path("oidc/", include("oidc_rp.urls")), path("home/", whoami)]
