"""What the embedded provider says about its users, by scope."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from django.template.loader import render_to_string
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.common import Request

from demo_site.installation import ISSUER

# The claims that GenAuth, too, sends without a value.
NULL_CLAIMS = ["middle_name", "nickname", "profile", "website", "gender", "birthdate"]


class DemoValidator(OAuth2Validator):  # type: ignore[misc]
    """django-oauth-toolkit's rules, with the standard claims of Core §5.1 and offline_access."""

    oidc_claim_scope = {**OAuth2Validator.oidc_claim_scope, "groups": "groups"}

    def get_additional_claims(self) -> dict[str, Callable[[Request], Any]]:
        nulls: dict[str, Callable[[Request], Any]] = dict.fromkeys(NULL_CLAIMS, _null)
        return {
            **nulls,
            "sub": lambda request: str(uuid5(NAMESPACE_URL, f"{ISSUER}/users/{request.user.pk}")),
            "name": lambda request: request.user.get_full_name(),
            "given_name": lambda request: request.user.first_name,
            "family_name": lambda request: request.user.last_name,
            "preferred_username": lambda request: request.user.get_username(),
            "picture": lambda request: _picture(request.user.first_name, request.user.last_name),
            "zoneinfo": lambda request: "Europe/Lisbon",
            "locale": lambda request: "pt-PT",
            "updated_at": _updated_at,
            "email": lambda request: request.user.email,
            "email_verified": lambda request: True,
            "address": lambda request: {
                "street_address": "Rua do Exemplo 7",
                "postal_code": "1100-001",
                "locality": "Lisboa",
                "country": "PT",
            },
            "groups": lambda request: list(request.user.groups.values_list("name", flat=True)),
        }

    def validate_jwt_bearer_token(self, token: str, scopes: list[str], request: Request) -> bool:
        """Take no ID Token for an access token, as django-oauth-toolkit would: it says who signed
        in, to one site, and opens nothing (RFC 9068 §5 and Core §2 tell them apart)."""
        return False

    def _save_bearer_token(
        self, token: dict[str, Any], request: Request, *args: Any, **kwargs: Any
    ) -> Any:
        """Give a refresh token only to whom asked for one (Core §11)."""
        if "offline_access" not in request.scopes:
            token.pop("refresh_token", None)
        return super()._save_bearer_token(token, request, *args, **kwargs)


def _null(request: Request) -> None:
    return None


def _updated_at(request: Request) -> int | str:
    """Return seconds (Core §5.1), or text to the HS256 client: GenAuth sends text, too."""
    joined: datetime = request.user.date_joined
    if request.client.algorithm == "HS256":
        return joined.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return int(joined.timestamp())


def _picture(given_name: str, family_name: str) -> str:
    """Return a drawn picture inside a URL, so that showing it asks no server."""
    svg = render_to_string("provider/picture.svg", {"initials": given_name[:1] + family_name[:1]})
    return f"data:image/svg+xml,{quote(svg.strip())}"
