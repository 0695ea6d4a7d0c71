"""Provider metadata: what an OP publishes of itself (Discovery §3 and §4, RFC 8414)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from ..errors import InvalidResponse

MAX_URL_LENGTH = 2048

TENANT = "{tenantid}"
"""The placeholder that multi-tenant OPs put into their issuer (M37)."""


@dataclass(frozen=True, slots=True)
class ProviderMetadata:
    """The members of a discovery document that we act on, checked."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str | None
    userinfo_endpoint: str | None
    pushed_authorization_request_endpoint: str | None
    revocation_endpoint: str | None
    end_session_endpoint: str | None
    id_token_signing_alg_values_supported: tuple[str, ...]
    userinfo_signing_alg_values_supported: tuple[str, ...]
    token_endpoint_auth_methods_supported: tuple[str, ...]
    ui_locales_supported: tuple[str, ...]
    authorization_response_iss_parameter_supported: bool
    require_pushed_authorization_requests: bool

    def endpoints(self) -> dict[str, str]:
        """Every URL in here by its metadata name, to tell when one changes."""
        return {
            name: value
            for name in (*_REQUIRED_ENDPOINTS, *_OPTIONAL_ENDPOINTS)
            if (value := getattr(self, name)) is not None
        }


_REQUIRED_ENDPOINTS = ("authorization_endpoint", "token_endpoint")
_OPTIONAL_ENDPOINTS = (
    "jwks_uri",
    "userinfo_endpoint",
    "pushed_authorization_request_endpoint",
    "revocation_endpoint",
    "end_session_endpoint",
)


def discovery_url(issuer: str) -> str:
    """Where an issuer publishes its metadata (Discovery §4): the issuer less one trailing slash.

    A multi-tenant issuer publishes one document for every tenant, under "organizations".
    """
    issuer = issuer.replace(TENANT, "organizations")
    return issuer.removesuffix("/") + "/.well-known/openid-configuration"


def issuers_of(issuer: str, tenants: Collection[str]) -> tuple[str, ...]:
    """Every `iss` that may come from this issuer: one, or one for each tenant (M37)."""
    if TENANT not in issuer:
        return (issuer,)
    return tuple(issuer.replace(TENANT, tenant) for tenant in sorted(tenants))


def url_is_allowed(url: object, *, loopback_http: bool) -> bool:
    """Whether we may talk to `url`: https, or http to this machine where that is switched on."""
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL_LENGTH:
        return False
    if not url.isascii() or not url.isprintable() or any(c in url for c in ' "<>\\#'):
        return False
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - an impossible port raises
    except ValueError:
        return False
    if not parts.hostname or "@" in parts.netloc:
        return False
    if parts.scheme == "http":
        return loopback_http and is_loopback(parts.hostname)
    return parts.scheme == "https"


def is_loopback(hostname: str) -> bool:
    """Whether this name or address never leaves the machine (RFC 6761 §6.3, RFC 8252 §7.3)."""
    if hostname == "localhost":
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False


def read_provider_metadata(
    document: Mapping[str, Any], issuer: str, *, loopback_http: bool = False
) -> ProviderMetadata:
    """Return the metadata when it is this issuer's own and every endpoint may be used.

    issuer: as configured; compared byte for byte (Discovery §4.3), so that no other party's
    document is taken for this one's. Raises InvalidResponse "discovery.issuer",
    "discovery.<member>".
    """
    if document.get("issuer") != issuer:
        raise InvalidResponse("discovery.issuer", expected=issuer, received=document.get("issuer"))
    for name in _REQUIRED_ENDPOINTS:
        _check_endpoint(document, name, loopback_http)
    for name in _OPTIONAL_ENDPOINTS:
        if document.get(name) is not None:
            _check_endpoint(document, name, loopback_http)
    return ProviderMetadata(
        issuer=issuer,
        authorization_endpoint=document["authorization_endpoint"],
        token_endpoint=document["token_endpoint"],
        jwks_uri=document.get("jwks_uri"),
        userinfo_endpoint=document.get("userinfo_endpoint"),
        pushed_authorization_request_endpoint=document.get("pushed_authorization_request_endpoint"),
        revocation_endpoint=document.get("revocation_endpoint"),
        end_session_endpoint=document.get("end_session_endpoint"),
        id_token_signing_alg_values_supported=_names(
            document, "id_token_signing_alg_values_supported", ("RS256",)
        ),
        userinfo_signing_alg_values_supported=_names(
            document, "userinfo_signing_alg_values_supported"
        ),
        token_endpoint_auth_methods_supported=_names(
            document, "token_endpoint_auth_methods_supported", ("client_secret_basic",)
        ),
        ui_locales_supported=_names(document, "ui_locales_supported"),
        authorization_response_iss_parameter_supported=_flag(
            document, "authorization_response_iss_parameter_supported"
        ),
        require_pushed_authorization_requests=_flag(
            document, "require_pushed_authorization_requests"
        ),
    )


def _check_endpoint(document: Mapping[str, Any], name: str, loopback_http: bool) -> None:
    if not url_is_allowed(document.get(name), loopback_http=loopback_http):
        raise InvalidResponse(
            f"discovery.{name}", expected="an https URL", received=document.get(name)
        )


def _names(
    document: Mapping[str, Any], name: str, default: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """An array of strings; the default is what the specification says of an absent member."""
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidResponse(f"discovery.{name}", expected="an array of strings")
    return tuple(value)


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name, False)
    if not isinstance(value, bool | None):
        raise InvalidResponse(f"discovery.{name}", expected="a boolean")
    return bool(value)
