"""Token, refresh and revocation requests, their responses, and client authentication
(RFC 6749 §2.3, §4.1.3, §5, §6; RFC 7009; RFC 8707; Core §9)."""

import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote_plus

from ..errors import InvalidResponse
from . import jose
from .authentication import AuthenticationRequest, op_error
from .tokens import AccessToken, AuthorizationCode, ClientSecret, IdToken, PrivateKey, RefreshToken

AUTH_METHODS = (
    "client_secret_basic",
    "client_secret_post",
    "client_secret_jwt",
    "private_key_jwt",
    "none",
)
MAX_LIFETIME = timedelta(days=1)
"""Longer lifetimes of access tokens are cut to this: an OP's slip must not keep one for ever."""

MAX_IDLE_LIFETIME = timedelta(days=3650)
"""Longer idle times of refresh tokens are cut to this, for the same reason."""

ASSERTION_LIFETIME = timedelta(seconds=60)
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")  # goes into a header: VSCHAR, RFC 6749 App. A.12
_SCOPE = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{0,4096}")  # RFC 6749 App. A.4


@dataclass(frozen=True, slots=True)
class ClientAuthentication:
    """How this client proves at the OP who it is (Core §9).

    signing_alg: of client assertions; only for client_secret_jwt and private_key_jwt.
    """

    client_id: str
    method: str
    client_secret: ClientSecret | None = None
    private_key: PrivateKey | None = None
    signing_alg: str | None = None


@dataclass(frozen=True, slots=True)
class TokenResponse:
    """A token response that keeps to the specification; its tokens are not validated yet.

    scope: as granted. expires_at: of the access token, aware; None when the OP does not say.
    idle_lifetime: seconds after which the OP forgets an unused refresh token, if it says so.
    """

    access_token: AccessToken
    id_token: IdToken | None
    refresh_token: RefreshToken | None
    scope: str
    expires_at: datetime | None
    idle_lifetime: float | None = None


@dataclass(frozen=True, slots=True)
class RefreshResponse:
    """What a refresh brought. A rotated refresh token is never lost over the rest of its answer.

    refresh_token: the new one; None when the OP rotates none, and the old one stays good.
    tokens: None when there is no access token that can be used; `refresh_token` is there then.
    problem: why that is so, or what else was left out: an unreadable ID Token, for instance.
    idle_lifetime: as in TokenResponse.
    """

    refresh_token: RefreshToken | None
    tokens: TokenResponse | None
    problem: InvalidResponse | None
    idle_lifetime: float | None


def code_request(code: AuthorizationCode, request: AuthenticationRequest) -> dict[str, str]:
    """The parameters of the token request that spends `code` (RFC 6749 §4.1.3, RFC 7636 §4.5)."""
    return {
        "grant_type": "authorization_code",
        "code": code.reveal(),
        "redirect_uri": request.redirect_uri,
        "code_verifier": request.code_verifier,
    }


def refresh_request(
    refresh_token: RefreshToken,
    *,
    scope: str = "",
    resource: str = "",
    resource_parameter: str = "resource",
) -> dict[str, str]:
    """The parameters of the token request that spends `refresh_token` (RFC 6749 §6).

    scope: "" for all that was granted. resource: the API that the access token is for
    (RFC 8707 §2.2), "" for the OP's default.
    resource_parameter: what names the API: "resource", "audience", or nothing but "scope".
    """
    request = {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal()}
    if scope:
        request["scope"] = scope
    if resource and resource_parameter != "scope":
        request[resource_parameter] = resource
    return request


def revocation_request(token: RefreshToken | AccessToken, token_type_hint: str) -> dict[str, str]:
    """The parameters of a revocation request (RFC 7009 §2.1).

    token_type_hint: "refresh_token" or "access_token"; "" for none.
    """
    hint = {"token_type_hint": token_type_hint} if token_type_hint else {}
    return {"token": token.reveal()} | hint


def choose_auth_method(supported: tuple[str, ...], client_secret: ClientSecret | None) -> str:
    """The client authentication method where the settings name none: basic before post."""
    if client_secret is None:
        return "none"
    for method in ("client_secret_basic", "client_secret_post"):
        if method in supported:
            return method
    raise InvalidResponse(
        "discovery.token_endpoint_auth_methods_supported",
        "no method that works with a client secret alone; set TOKEN_ENDPOINT_AUTH_METHOD",
        received=supported,
    )


def authenticate_client(
    parameters: Mapping[str, str],
    client: ClientAuthentication,
    *,
    issuer: str,
    now: datetime,
    random: Callable[[int], str],
) -> tuple[dict[str, str], dict[str, str]]:
    """Return (parameters, headers) of a request that this client has authenticated.

    issuer: the one audience of a client assertion, as a string, so that no other OP can use it.
    A new assertion is made for every send: its `jti` is good once (RFC 7523 §3).
    """
    parameters = dict(parameters)
    if client.method == "client_secret_basic":
        return parameters, {"Authorization": _basic(client)}
    parameters["client_id"] = client.client_id
    if client.method == "client_secret_post":
        parameters["client_secret"] = _secret(client).reveal()
    elif client.method != "none":
        parameters["client_assertion_type"] = _ASSERTION_TYPE
        parameters["client_assertion"] = _client_assertion(client, issuer, now, random)
    return parameters, {}


def _basic(client: ClientAuthentication) -> str:
    """Both halves are form-encoded first (RFC 6749 §2.3.1), which many clients forget."""
    halves = (quote_plus(client.client_id), quote_plus(_secret(client).reveal()))
    return "Basic " + b64encode(":".join(halves).encode()).decode()


def _client_assertion(
    client: ClientAuthentication, issuer: str, now: datetime, random: Callable[[int], str]
) -> str:
    secret_based = client.method == "client_secret_jwt"
    key = _secret(client) if secret_based else client.private_key
    if key is None:
        raise InvalidResponse("client.private_key", "private_key_jwt needs PRIVATE_KEY")
    claims = {
        "iss": client.client_id,
        "sub": client.client_id,
        "aud": issuer,
        "jti": random(24),
        "iat": int(now.timestamp()),
        "exp": int((now + ASSERTION_LIFETIME).timestamp()),
    }
    return jose.sign(claims, client.signing_alg or ("HS256" if secret_based else "RS256"), key)


def _secret(client: ClientAuthentication) -> ClientSecret:
    if client.client_secret is None:
        raise InvalidResponse("client.client_secret", f"{client.method} needs CLIENT_SECRET")
    return client.client_secret


def read_token_response(
    status: int, document: Mapping[str, Any], *, requested_scope: str, sent_at: datetime
) -> TokenResponse:
    """Return the tokens of a token response (RFC 6749 §5.1), or raise what it says instead.

    requested_scope: what an absent `scope` means. sent_at: when the request was sent, aware; the
    lifetime counts from there, so that it never seems longer than it is.
    Raises OPError (§5.2), InvalidResponse "token.<member>".
    """
    if status != 200 or "error" in document:
        raise op_error("token", document)
    token_type = document.get("token_type")
    if not isinstance(token_type, str) or token_type.lower() != "bearer":
        raise InvalidResponse("token.token_type", expected="Bearer", received=token_type)
    access_token = _token(document, "access_token")
    if access_token is None:
        raise InvalidResponse("token.access_token", "missing")
    id_token, refresh_token = _token(document, "id_token"), _token(document, "refresh_token")
    return TokenResponse(
        access_token=AccessToken(access_token),
        id_token=None if id_token is None else IdToken(id_token),
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        scope=_scope(document, requested_scope),
        expires_at=_expires_at(document, sent_at),
        idle_lifetime=_idle_lifetime(document),
    )


def read_refresh_response(
    status: int, document: Mapping[str, Any], *, requested_scope: str, sent_at: datetime
) -> RefreshResponse:
    """Return whatever can be used of the answer to a refresh request (RFC 6749 §6).

    The arguments are those of read_token_response, and so are the errors; but what is wrong with
    one member costs no other, as far as that is safe: a lost refresh token is a lost grant.
    Raises OPError; InvalidResponse when there is neither an access nor a refresh token.
    """
    problem, left_out = None, dict[str, Any]()
    for name in ("refresh_token", "id_token"):
        try:
            _token(document, name)
        except InvalidResponse as error:
            problem, left_out[name] = error, None
    document = {**document, **left_out}
    try:
        tokens = read_token_response(
            status, document, requested_scope=requested_scope, sent_at=sent_at
        )
    except InvalidResponse as error:
        tokens, problem = None, error
        if document.get("refresh_token") is None:
            raise
    refresh_token = document.get("refresh_token")
    return RefreshResponse(
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        tokens=tokens,
        problem=problem,
        idle_lifetime=_idle_lifetime(document),
    )


def read_revocation_response(status: int, document: Mapping[str, Any] | None) -> None:
    """Return when the token is good for nothing any more, or raise what the OP says instead.

    document: None when the body is no JSON object; of a success it is never looked at (RFC 7009
    §2.2). A token that the OP does not know is a success; some OPs say invalid_token there.
    Raises OPError "revocation.<error>": unsupported_token_type will not change; a `status` of
    500 and more will (§2.2.1).
    """
    if 200 <= status < 300:
        return
    refused = op_error("revocation", document or {})
    if refused.error != "invalid_token":
        raise refused


def _token(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise InvalidResponse(f"token.{name}", "not a token")
    return value


def _scope(document: Mapping[str, Any], requested: str) -> str:
    scope = document.get("scope")
    if scope is None:
        return requested
    if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
        raise InvalidResponse("token.scope", expected="a string", received=type(scope).__name__)
    return scope


def _expires_at(document: Mapping[str, Any], sent_at: datetime) -> datetime | None:
    """Some OPs send `expires_in` as text; that is read, anything else that is no number refused."""
    expires_in = document.get("expires_in")
    if expires_in is None:
        return None
    if isinstance(expires_in, str) and expires_in.isascii() and expires_in.isdigit():
        expires_in = int(expires_in[:10])
    if type(expires_in) not in (int, float) or expires_in != expires_in:  # NaN equals nothing
        raise InvalidResponse(
            "token.expires_in", "not a number", received=type(expires_in).__name__
        )
    return sent_at + timedelta(seconds=min(max(0, expires_in), MAX_LIFETIME.total_seconds()))


def _idle_lifetime(document: Mapping[str, Any]) -> float | None:
    """Keycloak's `refresh_expires_in`; 0 is its way to say "never", and nothing hangs on it."""
    seconds: Any = document.get("refresh_expires_in")
    if type(seconds) not in (int, float) or not seconds > 0:
        return None
    return float(min(seconds, MAX_IDLE_LIFETIME.total_seconds()))
