from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.contrib.auth import views
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from oauth2_provider.models import get_application_model


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "provider/home.html")


class LoginView(views.LoginView):
    """The login page, which says to which client the way leads on."""

    template_name = "provider/login.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(client=self._client(), **kwargs)

    def _client(self) -> Any:
        query = parse_qs(urlsplit(self.get_redirect_url()).query)
        client_id = query.get("client_id", [""])[0]
        return get_application_model().objects.filter(client_id=client_id).first()
