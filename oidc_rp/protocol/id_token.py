"""ID Token validation (Core §3.1.3.7, §3.1.3.8, §12.2)."""

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any, NamedTuple, TypeGuard

from ..errors import InvalidIdToken, InvalidJOSE, InvalidResponse
from . import jose
from .metadata import TENANT
from .strict_json import json_object
from .tokens import AccessToken, IdToken

MAX_LEEWAY = timedelta(seconds=60)
MAX_SUB_LENGTH = 255  # Core §2
_LAST_SECOND = 253402300799  # of the year 9999: what a datetime can hold


@dataclass(frozen=True, slots=True)
class ExpectedIdToken:
    """What the settings and the authentication request say an ID Token must be.

    algorithms: allowed `alg` values. trusted_audiences: who else may be named in `aud`.
    nonce: None where none was sent. max_age: seconds, None = not asked. acr_values, amr_values:
    one of them must be there, () = not asked.
    tenants: where `issuer` is a template with {tenantid}: the tenants that may sign in.
    """

    issuer: str
    client_id: str
    algorithms: frozenset[str]
    nonce: str | None = field(repr=False)
    leeway: timedelta = MAX_LEEWAY
    trusted_audiences: frozenset[str] = frozenset()
    max_age: int | None = None
    acr_values: tuple[str, ...] = ()
    amr_values: tuple[str, ...] = ()
    tenants: frozenset[str] = frozenset()


class IdTokenClaims(NamedTuple):
    """The claims of an ID Token after every check; made by validate_id_token and by nothing else.

    auth_time: seconds since the epoch. alg: the algorithm that the signature was verified with.
    claims: every member, as sent.
    """

    iss: str
    sub: str
    aud: tuple[str, ...]
    exp: float
    iat: float
    alg: str
    claims: Mapping[str, Any]

    @property
    def auth_time(self) -> float | None:
        """When the person last authenticated, if the OP says so in a form that can be read."""
        value = self.claims.get("auth_time")
        return value if _is_time(value) else None


def validate_id_token(
    id_token: IdToken, expected: ExpectedIdToken, keys: jose.KeySet, now: datetime
) -> IdTokenClaims:
    """Return the claims of an ID Token that passes every check of Core §3.1.3.7.

    id_token: compact JWS, as received; encrypted ID Tokens are refused.
    now: aware; exp, iat and auth_time are compared within expected.leeway, forgivingly only.
    Raises InvalidIdToken with .code and .claim; the token itself is never in the message.
    Not checked here: at_hash, see check_at_hash (§3.1.3.8).
    """
    try:
        jws = jose.parse(id_token.reveal())
        _check_typ(jws.unverified_header)
        alg = jose.verify(jws, keys, expected.algorithms)  # steps 6 to 8
        claims = json_object(jws.unverified_payload, "payload")
    except InvalidResponse as error:
        raise InvalidIdToken(
            error.code, error.message, expected=error.expected, received=error.received
        ) from error
    if "events" in claims:  # a Security Event Token, such as a logout token (Back-Channel §2.4)
        raise InvalidIdToken("events", "not an ID Token")
    iss = _check_iss(claims, expected)  # step 2
    aud = check_aud(claims, expected.client_id, expected.trusted_audiences)  # steps 3 to 5
    moment, leeway = now.timestamp(), min(expected.leeway, MAX_LEEWAY).total_seconds()
    exp, iat = check_times(claims, moment, leeway)  # steps 9 and 10
    _check_nonce(claims, expected.nonce)  # step 11
    _check_acr(claims, expected.acr_values)  # step 12
    _check_amr(claims, expected.amr_values)
    _check_auth_time(claims, expected.max_age, moment, leeway)  # step 13
    return IdTokenClaims(iss, check_sub(claims), aud, exp, iat, alg, claims)


def check_at_hash(id_token: IdTokenClaims, access_token: AccessToken) -> None:
    """Check that this access token was issued with this ID Token (Core §3.1.3.8).

    Optional in the code flow; where it is present, it must be right.
    """
    at_hash = id_token.claims.get("at_hash")
    if at_hash is None and "at_hash" not in id_token.claims:
        return
    digest = jose.hash_function(id_token.alg)(access_token.reveal().encode()).digest()
    left_half = urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    if not isinstance(at_hash, str) or not compare_digest(at_hash.encode(), left_half.encode()):
        raise InvalidIdToken("at_hash", "not the hash of this access token")


def check_refreshed_id_token(refreshed: IdTokenClaims, original: IdTokenClaims) -> None:
    """Check that an ID Token from a refresh speaks of the same sign-in (Core §12.2)."""
    for name in ("iss", "sub"):
        before, after = getattr(original, name), getattr(refreshed, name)
        if after != before:
            raise InvalidIdToken(name, "changed at the refresh", expected=before, received=after)
    if {*refreshed.aud} != {*original.aud}:
        before, after = original.aud, refreshed.aud
        raise InvalidIdToken("aud", "changed at the refresh", expected=before, received=after)
    if refreshed.claims.get("azp") != original.claims.get("azp"):
        raise InvalidIdToken("azp", "came or went at the refresh")
    for name in ("auth_time", "nonce"):
        told = refreshed.claims.get(name)  # null says nothing
        if told is not None and told != original.claims.get(name):
            raise InvalidIdToken(name, "changed at the refresh")


def lasting_claims(original: IdTokenClaims) -> dict[str, Any]:
    """Return what an ID Token from a refresh is compared with (Core §12.2), as JSON can hold it.

    None is a claim that may not come later. An `auth_time` may: nobody knows that it changed.
    """
    claims = original.claims
    lasting = {"aud": list(original.aud), "azp": claims.get("azp"), "nonce": claims.get("nonce")}
    auth_time = claims.get("auth_time")
    return lasting if auth_time is None else lasting | {"auth_time": auth_time}


def check_aud(
    claims: Mapping[str, Any], client_id: str, trusted: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Return `aud` as a tuple when it names this client and nobody untrusted (steps 3 to 5)."""
    aud = claims.get("aud")
    audiences = (aud,) if isinstance(aud, str) else _texts(aud)
    if client_id not in audiences:
        raise InvalidIdToken("aud", expected=client_id, received=aud)
    if len(audiences) > 1 and (untrusted := set(audiences) - trusted - {client_id}):
        raise InvalidIdToken("aud", "names an untrusted audience", received=sorted(untrusted))
    azp = claims.get("azp")
    if azp != client_id and ("azp" in claims or len(audiences) > 1):
        raise InvalidIdToken("azp", expected=client_id, received=azp)
    return audiences


def _texts(aud: object) -> tuple[str, ...]:
    if not isinstance(aud, list) or not all(isinstance(item, str) for item in aud):
        raise InvalidIdToken("aud", "not a string or an array of strings")
    return tuple(aud)


def check_times(claims: Mapping[str, Any], moment: float, leeway: float) -> tuple[float, float]:
    """Return `exp` and `iat`, both required; `nbf` is checked where present (RFC 7519 §4.1).

    moment: seconds since the epoch. leeway: seconds by which the clocks may differ.
    """
    exp, iat = _time(claims, "exp"), _time(claims, "iat")
    if moment >= exp + leeway:
        raise InvalidIdToken("exp", "expired", expected=f"> {int(moment)}", received=exp)
    if iat > moment + leeway:
        raise InvalidIdToken("iat", "in the future", expected=f"<= {int(moment)}", received=iat)
    if "nbf" in claims and _time(claims, "nbf") > moment + leeway:
        raise InvalidIdToken("nbf", "not valid yet", received=claims["nbf"])
    return exp, iat


def check_sub(claims: Mapping[str, Any]) -> str:
    """Return `sub`: 1 to 255 characters, never changed in any way (Core §2, §5.7)."""
    sub = claims.get("sub")
    if not isinstance(sub, str) or not 0 < len(sub) <= MAX_SUB_LENGTH:
        raise InvalidIdToken("sub", expected="a string of 1 to 255 characters")
    return sub


def _check_typ(unverified_header: Mapping[str, Any]) -> None:
    """Refuse a JWT that says it is of another kind: logout+jwt, at+jwt, ... (RFC 8725 §3.11)."""
    typ = unverified_header.get("typ", "JWT")
    if not isinstance(typ, str) or typ.lower().endswith("+jwt"):
        raise InvalidJOSE("typ", "a token of another kind", expected="JWT", received=typ)


def _check_iss(claims: Mapping[str, Any], expected: ExpectedIdToken) -> str:
    iss, issuer = claims.get("iss"), expected.issuer
    if TENANT in issuer:
        tid = claims.get("tid")
        if not isinstance(tid, str) or tid not in expected.tenants:
            raise InvalidIdToken("tid", expected=sorted(expected.tenants), received=tid)
        issuer = issuer.replace(TENANT, tid)
    if not isinstance(iss, str) or iss != issuer:
        raise InvalidIdToken("iss", expected=issuer, received=iss)
    return iss


def _check_nonce(claims: Mapping[str, Any], nonce: str | None) -> None:
    received = claims.get("nonce")
    if nonce is None:
        return
    if not isinstance(received, str) or not compare_digest(received.encode(), nonce.encode()):
        raise InvalidIdToken("nonce", "missing" if received is None else "not the one sent")


def _check_acr(claims: Mapping[str, Any], acr_values: tuple[str, ...]) -> None:
    if acr_values and claims.get("acr") not in acr_values:
        raise InvalidIdToken("acr", expected=acr_values, received=claims.get("acr"))


def _check_amr(claims: Mapping[str, Any], amr_values: tuple[str, ...]) -> None:
    """Core §2 has no way to ask for methods but the `claims` parameter; whoever did is answered."""
    received = claims.get("amr")
    methods = received if isinstance(received, list) else []
    if amr_values and not any(method in amr_values for method in methods):
        raise InvalidIdToken("amr", expected=amr_values, received=received)


def _check_auth_time(
    claims: Mapping[str, Any], max_age: int | None, moment: float, leeway: float
) -> None:
    if max_age is None:
        return
    auth_time = _time(claims, "auth_time")
    if not moment - max_age - leeway <= auth_time <= moment + leeway:
        raise InvalidIdToken("auth_time", expected=f"within {max_age} s", received=auth_time)


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if not _is_time(value):
        raise InvalidIdToken(name, "not a NumericDate", received=type(value).__name__)
    return value


def _is_time(value: object) -> TypeGuard[float]:
    """A NumericDate (RFC 7519 §2) that a datetime can hold; booleans are no numbers."""
    return type(value) in (int, float) and 0 <= value <= _LAST_SECOND  # type: ignore[operator]
