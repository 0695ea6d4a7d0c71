"""What the OP can do, and what the settings ask for."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from django.urls import NoReverseMatch, reverse

from ..conf import Provider
from ..errors import InvalidResponse
from ..protocol.logout import STANDARD
from ..protocol.metadata import (
    ProviderMetadata,
)
from ..protocol.token_endpoint import choose_auth_method
from .findings import Finding, doubtful, fine, listed, shown_url, texts, wrong


def _client_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    method = provider.token_endpoint_auth_method
    supported = metadata.token_endpoint_auth_methods_supported
    if method is not None and method != "none" and method not in supported:
        yield doubtful(
            "client_authentication",
            f"TOKEN_ENDPOINT_AUTH_METHOD is {method}, and the OP names {listed(supported)}.",
            "Its token endpoint probably answers invalid_client.",
            "Compare with the client's registration at the OP.",
        )
        return
    try:
        method = method or choose_auth_method(supported, provider.client_secret)
    except InvalidResponse:
        yield wrong(
            "client_authentication",
            f"The OP takes {listed(supported)}, and the settings have a client secret alone.",
            "No code can be redeemed: each sign-in is refused.",
            '"TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt" with PRIVATE_KEY, or '
            '"client_secret_jwt".',
        )
        return
    yield fine("client_authentication", f"The client authenticates by {method}.")


_ASSERTION_ALG = {"client_secret_jwt": "HS256", "private_key_jwt": "RS256"}
"""What signs a client assertion where TOKEN_ENDPOINT_AUTH_SIGNING_ALG is not set."""


def _assertion_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    default = _ASSERTION_ALG.get(provider.token_endpoint_auth_method or "")
    alg = (provider.token_endpoint_auth_signing_alg or default) if default else None
    published = document.get("token_endpoint_auth_signing_alg_values_supported")
    yield from _signing_findings(alg, published, "TOKEN_ENDPOINT_AUTH_SIGNING_ALG")


def _signing_findings(alg: str | None, published: object, option: str) -> Iterator[Finding]:
    """Where the OP names algorithms, and not the one that the settings want."""
    if alg and isinstance(published, list | tuple) and alg not in published:
        yield doubtful(
            "signing_alg",
            f"{option} is {alg}, and the OP names {listed(published)}.",
            "What one of the two signs, the other refuses: each sign-in may fail.",
            "Compare with the client's registration at the OP.",
        )


def _userinfo_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    published = document.get("userinfo_signing_alg_values_supported")
    alg = provider.userinfo_signed_response_alg if provider.userinfo else None
    yield from _signing_findings(alg, published, "USERINFO_SIGNED_RESPONSE_ALG")


def _pkce_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    methods = document.get("code_challenge_methods_supported")
    if isinstance(methods, list | tuple) and "S256" in methods:
        yield fine("pkce", "The OP has PKCE with S256.")
        return
    told = (
        "does not say that it has PKCE" if methods is None else f"has PKCE with {listed(methods)}"
    )
    yield doubtful(
        "pkce",
        f"The OP {told}; it should name S256 (code_challenge_methods_supported).",
        "It is sent always; an OP that ignores it leaves a stolen code to the nonce alone, and one "
        "that knows only `plain` may refuse the request.",
        "Ask the operator of the OP. Some have it and do not say so.",
    )


def _iss_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if metadata.authorization_response_iss_parameter_supported:
        yield fine("iss_parameter", "Each response has to name its issuer (RFC 9207).")
    else:
        yield fine(
            "iss_parameter",
            "The OP's responses do not name their issuer (RFC 9207): the callback of this "
            "provider, which is its own, tells them apart.",
        )


def _par_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    wanted = provider.require_pushed_authorization_requests
    wanted = wanted or metadata.require_pushed_authorization_requests
    if wanted and metadata.pushed_authorization_request_endpoint is None:
        yield wrong(
            "par",
            "Requests have to be pushed; no pushed_authorization_request_endpoint is published.",
            "There is no falling back: par.endpoint refuses each sign-in.",
            "Take REQUIRE_PUSHED_AUTHORIZATION_REQUESTS away, or ask the operator of the OP.",
        )


def _response_mode_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    modes = document.get("response_modes_supported", ["query", "fragment"])
    if not isinstance(modes, list | tuple) or provider.response_mode in modes:
        return
    yield doubtful(
        "response_mode",
        f"RESPONSE_MODE is {provider.response_mode}, and the OP names {listed(modes)}.",
        "The OP may refuse the request, or send the response in a way that is refused here.",
        f'"RESPONSE_MODE": "{"query" if "query" in modes else "form_post"}", if the OP has it.',
    )


def _scope_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    scopes = document.get("scopes_supported")
    if isinstance(scopes, list | tuple) and "offline_access" in {*provider.scopes} - texts(scopes):
        yield doubtful(
            "scopes",
            "SCOPES has offline_access, and the OP does not name it.",
            "Without a refresh token, calls to APIs end with the first access token.",
            "Some OPs have another way, Google's for instance: "
            '"AUTHORIZATION_PARAMS": {"access_type": "offline", "prompt": "consent"},',
        )


def _revocation_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if metadata.revocation_endpoint is not None:
        yield fine("revocation", f"Tokens are revoked at {shown_url(metadata.revocation_endpoint)}")
    elif provider.offline or provider.api_origins:
        yield doubtful(
            "revocation",
            "The OP names no revocation_endpoint.",
            "After a logout its tokens are forgotten here, and go on working until they expire.",
            "Keep the lifetime of refresh tokens at the OP short; METADATA may name an endpoint.",
        )


def _logout_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if provider.end_session == STANDARD and metadata.end_session_endpoint is None:
        yield doubtful(
            "end_session",
            "The OP names no end_session_endpoint.",
            "A logout here leaves the session at the OP: the next sign-in asks nobody.",
            '"END_SESSION": "auth0" or "cognito" for these two, "local" if it is meant so.',
        )
    else:
        where = "ends here alone" if provider.end_session == "local" else "goes on at the OP"
        yield fine("end_session", f"A logout {where} (END_SESSION {provider.end_session}).")
    if document.get("backchannel_logout_supported") is True:
        yield from _backchannel_findings(provider)


def _backchannel_findings(provider: Provider) -> Iterator[Finding]:
    try:
        path = reverse("oidc_rp:backchannel_logout", args=[provider.slug])
    except NoReverseMatch:
        return
    yield fine("backchannel_logout", f"The OP has back-channel logout; register {path} there.")


_Look = Callable[[Provider, ProviderMetadata, Mapping[str, Any]], Iterator[Finding]]


LOOKS: tuple[_Look, ...] = (
    _client_findings,
    _assertion_findings,
    _pkce_findings,
    _iss_findings,
    _par_findings,
    _response_mode_findings,
    _scope_findings,
    _userinfo_findings,
    _revocation_findings,
    _logout_findings,
)
