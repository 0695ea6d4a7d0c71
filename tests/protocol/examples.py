"""A good example of everything that an OP sends; each test takes one bite out of it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from oidc_rp.errors import OIDCError
from oidc_rp.protocol import jose
from oidc_rp.protocol.id_token import ExpectedIdToken
from oidc_rp.protocol.tokens import ClientSecret
from oidc_rp.testing import SigningKey, base64url, merged, signature

ISSUER = "https://op.example"
CLIENT_ID = "rp-client"
NONCE = "n-0S6_WzA2Mj"
SUB = "248289761001"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
MOMENT = int(NOW.timestamp())
SECRET = "thirty-two-octets-or-more-of-secret"
ASYMMETRIC = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
ASYMMETRIC += ["EdDSA"]
HMAC = ["HS256", "HS384", "HS512"]

fuzz = settings(max_examples=100, derandomize=True, deadline=None, database=None)
"""The same inputs at every run, so that a failure is nobody's bad luck."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
awkward = json_values | st.sampled_from(
    [10**400, -(10**400), 1e308, float("nan"), float("inf"), True, "", "\ud800", "\0", [[]], {}]
)
"""Anything JSON can say, and what Python's own parser lets through besides."""


@contextmanager
def refusal(code: str) -> Iterator[None]:
    """Expect an OIDCError with exactly this code."""
    with pytest.raises(OIDCError) as caught:
        yield
    assert caught.value.code == code


def no_other_error() -> AbstractContextManager[None]:
    """A valid result is fine, and so is a typed refusal; any other exception fails the test."""
    return suppress(OIDCError)


@cache
def key(alg: str, name: str = "one", bits: int = 2048) -> SigningKey:
    """A key of the OP; the same at each call. RSA keys of one name differ in `alg` alone."""
    if alg[:2] in ("RS", "PS") and alg != "RS256":
        return SigningKey(alg, f"{alg}-{name}", key("RS256", name, bits).private_key)
    return SigningKey.generate(alg, kid=f"{alg}-{name}", bits=bits)


def key_set(*keys: SigningKey) -> jose.KeySet:
    """The keys that the OP publishes, as we read them."""
    return jose.read_jwks({"keys": [item.public_jwk for item in keys]})


def claims(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The claims of a good ID Token (Core §2); REMOVE as a value leaves a claim out."""
    good = {
        "iss": ISSUER,
        "sub": SUB,
        "aud": CLIENT_ID,
        "exp": MOMENT + 300,
        "iat": MOMENT - 1,
        "auth_time": MOMENT - 10,
        "nonce": NONCE,
    }
    return merged(good, changes or {})


def compact(
    payload: Mapping[str, Any] | bytes | None = None,
    header: Mapping[str, Any] | None = None,
    *,
    by: SigningKey | bytes | None = None,
    alg: str | None = None,
) -> str:
    """A compact JWS of a payload, the good claims by default.

    by: a key of the OP, or the octets of an HMAC key. header: merged over the honest one, it may
    lie; `alg` alone decides how the signature is made.
    """
    by = key("RS256") if by is None else by
    alg = alg or (by.alg if isinstance(by, SigningKey) else "HS256")
    honest = {"alg": alg} | ({"kid": by.kid} if isinstance(by, SigningKey) else {})
    octets = payload if isinstance(payload, bytes) else json.dumps(payload or claims()).encode()
    return compact_of(json.dumps(merged(honest, header or {})).encode(), octets, by, alg)


def compact_of(header: bytes, payload: bytes, by: SigningKey | bytes, alg: str) -> str:
    """A compact JWS of these very octets."""
    signing_input = f"{base64url(header)}.{base64url(payload)}"
    return f"{signing_input}.{base64url(signature(alg, by, signing_input.encode()))}"


def expected(**changes: Any) -> ExpectedIdToken:
    """What the settings and the request ask of the ID Token."""
    good = {
        "issuer": ISSUER,
        "client_id": CLIENT_ID,
        "algorithms": frozenset({"RS256"}),
        "nonce": NONCE,
    }
    return ExpectedIdToken(**good | changes)


def hmac_keys(secret: str = SECRET) -> jose.KeySet:
    return jose.hmac_keys(ClientSecret(secret))
