"""UserInfo response (Core §5.3)."""

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InvalidIdToken, InvalidResponse
from . import jose
from .id_token import check_aud
from .strict_json import json_object


def read_userinfo_response(
    body: bytes,
    content_type: str,
    *,
    sub: str,
    iss: str,
    client_id: str,
    keys: Callable[[], jose.KeySet],
    algorithms: frozenset[str],
    must_be_signed: bool = False,
) -> Mapping[str, Any]:
    """Return the claims of a UserInfo response about `sub` (Core §5.3.2, §5.3.4).

    sub, iss: of the validated ID Token; before `sub` is found equal no claim is used.
    keys, algorithms: for a signed response; it must carry `iss` and `aud` of ours, too.
    Raises InvalidResponse "userinfo.<what>".
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "application/jwt":
        claims = _signed_claims(body, keys(), algorithms)
        _check_parties(claims, iss, client_id)
    elif must_be_signed:
        raise InvalidResponse(
            "userinfo.content_type", expected="application/jwt", received=media_type[:64]
        )
    else:
        claims = json_object(body, "userinfo.json")
    if not isinstance(claims.get("sub"), str) or claims["sub"] != sub:
        raise InvalidResponse("userinfo.sub", "speaks of somebody else than the ID Token")
    return claims


def _signed_claims(body: bytes, keys: jose.KeySet, algorithms: frozenset[str]) -> Mapping[str, Any]:
    try:
        jws = jose.parse(body.decode("ascii", "replace").strip())
        jose.verify(jws, keys, algorithms)
        return json_object(jws.unverified_payload, "json")
    except InvalidResponse as error:
        raise InvalidResponse(
            f"userinfo.{error.code}",
            error.message,
            expected=error.expected,
            received=error.received,
        ) from error


def _check_parties(claims: Mapping[str, Any], iss: str, client_id: str) -> None:
    if claims.get("iss") != iss:
        raise InvalidResponse("userinfo.iss", expected=iss, received=claims.get("iss"))
    try:
        check_aud({"aud": claims.get("aud")} | {"azp": client_id}, client_id)
    except InvalidIdToken as error:
        raise InvalidResponse(
            "userinfo.aud", expected=error.expected, received=error.received
        ) from error
