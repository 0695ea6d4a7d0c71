"""Logout request (RP-Initiated Logout §2) and logout token (Back-Channel Logout §2.4, §2.6)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from ..errors import InvalidIdToken, InvalidResponse
from . import jose
from .authentication import authorization_url
from .id_token import MAX_LEEWAY, MAX_SUB_LENGTH, ExpectedIdToken, check_aud, check_times
from .metadata import ProviderMetadata, issuers_of
from .strict_json import json_object
from .tokens import IdToken

EVENT = "http://schemas.openid.net/event/backchannel-logout"

MAX_TOKEN_AGE = timedelta(minutes=5)
"""An older logout token is refused, whatever its `exp`: so long, and no longer, its `jti` has to be
remembered."""

STANDARD, AUTH0, COGNITO, LOCAL = "standard", "auth0", "cognito", "local"
END_SESSION = (STANDARD, AUTH0, COGNITO, LOCAL)
"""How a logout goes on at the OP: as RP-Initiated Logout says, in its own way, or not at all."""

# Auth0 and Cognito have paths beside their authorization endpoint, and names of their own. The
# end_session_endpoint that their metadata may name is another place, and knows no such names.
_OWN_PATHS = {AUTH0: "/v2/logout", COGNITO: "/logout"}
_OWN_RETURNS = {AUTH0: "returnTo", COGNITO: "logout_uri"}


MAX_URL_LENGTH = 7000
"""Characters of a logout request: common servers read 8 kB of a request line, and answer 414."""


@dataclass(frozen=True, slots=True)
class LogoutRequest:
    """What the OP is told when a session ends here; what is "" or None is not sent."""

    client_id: str
    post_logout_redirect_uri: str
    state: str = field(repr=False)
    id_token_hint: IdToken | None = None
    ui_locales: str | None = None


def logout_url(request: LogoutRequest, metadata: ProviderMetadata, style: str) -> str | None:
    """Return where to send the browser to, so that the OP's session ends as well (§2).

    style: one of END_SESSION. None where the OP has no such place. An ID Token that makes the URL
    too long is left out: better that the OP asks the person than that nothing comes of it.
    """
    url = _logout_url(request, metadata, style)
    if url is not None and len(url) > MAX_URL_LENGTH:
        url = _logout_url(replace(request, id_token_hint=None), metadata, style)
    return url


def _logout_url(request: LogoutRequest, metadata: ProviderMetadata, style: str) -> str | None:
    endpoint, parameters = metadata.end_session_endpoint, {"client_id": request.client_id}
    if style in _OWN_PATHS:
        origin = urlsplit(metadata.authorization_endpoint)
        endpoint = f"{origin.scheme}://{origin.netloc}{_OWN_PATHS[style]}"
        parameters[_OWN_RETURNS[style]] = request.post_logout_redirect_uri
    elif style == STANDARD:
        parameters["post_logout_redirect_uri"] = request.post_logout_redirect_uri
        if request.state:
            parameters["state"] = request.state
        if request.id_token_hint is not None:
            parameters["id_token_hint"] = request.id_token_hint.reveal()
        if request.ui_locales:
            parameters["ui_locales"] = request.ui_locales
    else:
        endpoint = None
    return None if endpoint is None else authorization_url(endpoint, parameters)


@dataclass(frozen=True, slots=True)
class LogoutTokenClaims:
    """A logout token after every check; at least one of sub and sid is there."""

    iss: str
    sub: str | None
    sid: str | None
    jti: str
    iat: float


def validate_logout_token(
    logout_token: str, expected: ExpectedIdToken, keys: jose.KeySet, now: datetime
) -> LogoutTokenClaims:
    """Return the claims of a logout token that passes every check of §2.6.

    logout_token: compact JWS, as received. Raises InvalidResponse "logout_token.<claim>".
    Not checked here: that `jti` is new (whoever remembers it does).
    """
    try:
        jws = jose.parse(logout_token)
        typ = jws.unverified_header.get("typ", "logout+jwt")
        if not isinstance(typ, str) or typ.lower() not in ("logout+jwt", "jwt"):
            raise InvalidResponse("typ", expected="logout+jwt", received=typ)
        jose.verify(jws, keys, expected.algorithms)
        claims = json_object(jws.unverified_payload, "payload")
        check_aud(claims, expected.client_id, expected.trusted_audiences)
        leeway, moment = min(expected.leeway, MAX_LEEWAY).total_seconds(), now.timestamp()
        _, iat = check_times(claims, moment, leeway)
        if iat < moment - MAX_TOKEN_AGE.total_seconds() - leeway:
            raise InvalidResponse("iat", "too old", received=iat)
        return _read(claims, issuers_of(expected.issuer, expected.tenants), iat)
    except InvalidResponse as error:
        name = error.claim if isinstance(error, InvalidIdToken) else error.code
        raise InvalidResponse(
            f"logout_token.{name}",
            error.message,
            expected=error.expected,
            received=error.received,
        ) from error


def _read(claims: Mapping[str, Any], issuers: Collection[str], iat: float) -> LogoutTokenClaims:
    iss = claims.get("iss")
    if not isinstance(iss, str) or iss not in issuers:
        raise InvalidResponse("iss", expected=list(issuers), received=iss)
    if "nonce" in claims:  # an ID Token in disguise (§2.4)
        raise InvalidResponse("nonce", "a logout token has none")
    events = claims.get("events")
    if not isinstance(events, dict) or not isinstance(events.get(EVENT), dict):
        raise InvalidResponse("events", expected=EVENT)
    sub, sid, jti = (_text(claims, name) for name in ("sub", "sid", "jti"))
    if jti is None:
        raise InvalidResponse("jti", "missing")
    if sub is None and sid is None:
        raise InvalidResponse("sub", "neither sub nor sid")
    return LogoutTokenClaims(iss, sub, sid, jti, iat)


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_SUB_LENGTH):
        raise InvalidResponse(name, "not a string of 1 to 255 characters")
    return value
