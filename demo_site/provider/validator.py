"""What the embedded provider says about its users, by scope, and about their logins."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, uuid5

from django.template.loader import render_to_string
from django.utils.crypto import salted_hmac
from oauth2_provider.oauth2_validators import OAuth2Validator
from oauthlib.common import Request
from oauthlib.oauth2 import InvalidGrantError

from demo_site.installation import HS256_CLIENT_ID, ISSUER
from demo_site.provider.models import Login

# The claims that GenAuth, too, sends without a value.
NULL_CLAIMS = ["middle_name", "nickname", "profile", "website", "gender", "birthdate"]
# What ID Tokens say beside the claims about the person.
ID_TOKEN_CLAIMS = ["iss", "aud", "iat", "exp", "jti", "nonce", "sid", "auth_time", "acr", "amr"]


class DemoValidator(OAuth2Validator):  # type: ignore[misc]
    """django-oauth-toolkit's rules, with the standard claims of Core §5.1 and offline_access."""

    oidc_claim_scope = {**OAuth2Validator.oidc_claim_scope, "groups": "groups"}

    def get_additional_claims(self) -> dict[str, Callable[[Request], Any]]:
        nulls: dict[str, Callable[[Request], Any]] = dict.fromkeys(NULL_CLAIMS, _null)
        return {
            **nulls,
            "sub": lambda request: sub_of(request.user, request.client),
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

    def get_discovery_claims(self, request: Request) -> list[str]:
        return [*super().get_discovery_claims(request), *ID_TOKEN_CLAIMS]

    def validate_silent_login(self, request: Request) -> bool:
        return True  # the view has looked at the login

    def validate_silent_authorization(self, request: Request) -> bool:
        return bool(request.client.skip_authorization)

    def _create_authorization_code(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Remember of which login the code is; the token request comes without a session."""
        grant = super()._create_authorization_code(request, *args, **kwargs)
        Login.objects.create(grant=grant, client=request.client, **request.login)
        return grant

    def validate_code(
        self, client_id: str, code: str, client: Any, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        request.login = Login.objects.filter(grant__code=code).first()
        return bool(super().validate_code(client_id, code, client, request, *args, **kwargs))

    def validate_refresh_token(
        self, refresh_token: str, client: Any, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        is_valid = super().validate_refresh_token(refresh_token, client, request, *args, **kwargs)
        if is_valid:
            of_it = {"id_tokens__access_token__refresh_token": request.refresh_token_instance}
            request.login = Login.objects.filter(**of_it).first()
        return bool(is_valid)

    def get_id_token_dictionary(
        self, token: dict[str, Any], token_handler: Any, request: Request
    ) -> tuple[dict[str, Any], datetime]:
        if request.login is None:  # the grant is older than the table of logins
            raise InvalidGrantError(request=request)
        claims, expires = super().get_id_token_dictionary(token, token_handler, request)
        return {**claims, **request.login.claims}, expires

    def _save_id_token(self, jti: str, request: Request, *args: Any, **kwargs: Any) -> Any:
        id_token = super()._save_id_token(jti, request, *args, **kwargs)
        request.login.id_tokens.add(id_token)
        return id_token

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


def sub_of(user: Any, client: Any) -> str:
    """Return who somebody is to a client. The HS256 client sees a pairwise identifier, which nobody
    can lead back to the public one (Core §8.1); its sector is that client alone."""
    if client.client_id == HS256_CLIENT_ID:
        return salted_hmac("sub", f"{client.client_id} {user.pk}", algorithm="sha256").hexdigest()
    return str(uuid5(NAMESPACE_URL, f"{ISSUER}/users/{user.pk}"))


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
