"""Logout token validation (Back-Channel Logout 1.0 §2.4 and §2.6)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..errors import InvalidIdToken, InvalidResponse
from . import jose
from .id_token import MAX_LEEWAY, MAX_SUB_LENGTH, ExpectedIdToken, check_aud, check_times
from .strict_json import json_object

EVENT = "http://schemas.openid.net/event/backchannel-logout"


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
        leeway = min(expected.leeway, MAX_LEEWAY).total_seconds()
        _, iat = check_times(claims, now.timestamp(), leeway)
        return _read(claims, expected.issuer, iat)
    except InvalidResponse as error:
        name = error.claim if isinstance(error, InvalidIdToken) else error.code
        raise InvalidResponse(
            f"logout_token.{name}",
            error.message,
            expected=error.expected,
            received=error.received,
        ) from error


def _read(claims: Mapping[str, Any], issuer: str, iat: float) -> LogoutTokenClaims:
    if claims.get("iss") != issuer:
        raise InvalidResponse("iss", expected=issuer, received=claims.get("iss"))
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
    return LogoutTokenClaims(issuer, sub, sid, jti, iat)


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_SUB_LENGTH):
        raise InvalidResponse(name, "not a string of 1 to 255 characters")
    return value
