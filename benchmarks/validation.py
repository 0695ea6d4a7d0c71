"""ID Token validation ÷ bare OpenSSL verification of the same RS256 signature.

Every contender gets the same token and a key that is already loaded, and checks the signature and
as much of iss, aud, exp and nonce as it can; what it lacks is checked as a short application would,
except with mozilla-django-oidc, whose own verify_token() is the whole of it: signature and nonce.
Ours is the complete Core §3.1.3.7; at_hash (§3.1.3.8), optional in the code flow, is its own row.
"""

import base64
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import django
import jwt
from authlib.deprecate import AuthlibDeprecationWarning
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from django.conf import settings
from josepy.jwk import JWKRSA
from josepy.jws import JWS
from joserfc.jwk import RSAKey
from joserfc.jwt import JWTClaimsRegistry
from joserfc.jwt import decode as joserfc_decode

from oidc_rp.protocol.id_token import (
    ExpectedIdToken,
    IdTokenClaims,
    check_at_hash,
    validate_id_token,
)
from oidc_rp.protocol.jose import read_jwks
from oidc_rp.protocol.tokens import AccessToken, IdToken
from oidc_rp.testing import OpenIDProvider, half_hash

from .measure import Ratio, cpu_seconds_per_call, paired, ratios

with warnings.catch_warnings():  # authlib.jose says that joserfc succeeds it: both are measured
    warnings.simplefilter("ignore", AuthlibDeprecationWarning)
    from authlib.jose import JsonWebKey, JsonWebToken
    from authlib.oidc.core import CodeIDToken

BARE = "bare OpenSSL verification"
OURS = "oidc_rp"
NONCE = "n-0S6_WzA2Mj8Jq4f7dLkVbXcEoTtRyUiPaGhZsQw1"
ACCESS_TOKEN = "jHkWEdUXMU1BwAsC4vtUsZwnNvTIxEl0z9K3vx5KF0Y"
ROUNDS = 60

Check = Callable[[], object]


@dataclass(frozen=True)
class Material:
    """One signed ID Token, and the key set that it is verified with."""

    id_token: str
    iss: str
    client_id: str
    jwks_uri: str
    jwk: dict[str, Any]
    pem: bytes

    @classmethod
    def signed_by(cls, provider: OpenIDProvider) -> "Material":
        now, key = int(time.time()), provider.key_for("RS256")
        claims = {
            "iss": provider.issuer,
            "sub": "248289761001",
            "aud": provider.client_id,
            "exp": now + 3600,
            "iat": now,
            "auth_time": now - 5,
            "nonce": NONCE,
            "at_hash": half_hash("RS256", ACCESS_TOKEN),
            "acr": "urn:mace:incommon:iap:silver",
            "amr": ["pwd", "otp"],
            "azp": provider.client_id,
            "sid": "08a5019c-17e1-4977-8f42-65a12843ea02",
        }
        jwks_uri, jwk = provider.metadata["jwks_uri"], key.public_jwk
        id_token = provider.sign(claims)
        return cls(id_token, provider.issuer, provider.client_id, jwks_uri, jwk, key.public_pem)

    def check_claims(self, claims: dict[str, Any]) -> None:
        """Check what a JOSE library leaves to the application."""
        if claims["iss"] != self.iss or claims["aud"] != self.client_id:
            raise ValueError("iss or aud")
        if claims["exp"] < time.time() or claims["nonce"] != NONCE:
            raise ValueError("exp or nonce")


def bare(material: Material) -> Check:
    signing_input, _, signature = material.id_token.rpartition(".")
    octets, message = base64.urlsafe_b64decode(signature + "=="), signing_input.encode()
    verify = jwt.PyJWK(material.jwk).key.verify
    pkcs1, sha256 = padding.PKCS1v15(), hashes.SHA256()
    return lambda: verify(octets, message, pkcs1, sha256)


def by_oidc_rp(material: Material) -> Callable[[], IdTokenClaims]:
    id_token = IdToken(material.id_token)
    expected = ExpectedIdToken(material.iss, material.client_id, frozenset({"RS256"}), NONCE)
    keys = read_jwks({"keys": [material.jwk]})
    return lambda: validate_id_token(id_token, expected, keys, datetime.now(timezone.utc))


def by_oidc_rp_with_at_hash(material: Material) -> Check:
    validated, access_token = by_oidc_rp(material), AccessToken(ACCESS_TOKEN)
    return lambda: check_at_hash(validated(), access_token)


def by_josepy(material: Material) -> Check:
    key = JWKRSA.from_json(material.jwk)

    def check() -> None:
        jws = JWS.from_compact(material.id_token.encode())
        if not jws.verify(key):
            raise ValueError("signature")
        material.check_claims(json.loads(jws.payload))

    return check


def by_pyjwt(material: Material) -> Check:
    key, aud, iss = jwt.PyJWK(material.jwk), material.client_id, material.iss

    def check() -> None:
        claims = jwt.decode(material.id_token, key, ["RS256"], audience=aud, issuer=iss, leeway=60)
        if claims["nonce"] != NONCE:
            raise ValueError("nonce")

    return check


def by_authlib(material: Material) -> Check:
    key, json_web_token = JsonWebKey.import_key(material.jwk), JsonWebToken(["RS256"])
    options = {"iss": {"values": [material.iss]}, "aud": {"values": [material.client_id]}}
    params = {"nonce": NONCE, "client_id": material.client_id, "access_token": ACCESS_TOKEN}

    def check() -> None:
        claims = json_web_token.decode(material.id_token, key, CodeIDToken, options, params)
        claims.validate(leeway=60)

    return check


def by_joserfc(material: Material) -> Check:
    key = RSAKey.import_key(material.jwk)
    claims = JWTClaimsRegistry(
        leeway=60,
        iss={"essential": True, "value": material.iss},
        aud={"essential": True, "value": material.client_id},
        nonce={"essential": True, "value": NONCE},
        exp={"essential": True},
    )
    return lambda: claims.validate(joserfc_decode(material.id_token, key, ["RS256"]).claims)


def by_mozilla(material: Material, key: bytes | None) -> Check:
    """mozilla-django-oidc with a PEM key in the settings, or fetching the JWKS as it does."""
    # It cannot be imported before Django is set up.
    from mozilla_django_oidc.auth import OIDCAuthenticationBackend

    backend = OIDCAuthenticationBackend()
    backend.OIDC_RP_IDP_SIGN_KEY = key
    return lambda: backend.verify_token(material.id_token, nonce=NONCE)


def set_up_mozilla(material: Material) -> None:
    settings.configure(
        INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
        OIDC_OP_TOKEN_ENDPOINT="",
        OIDC_OP_USER_ENDPOINT="",
        OIDC_OP_JWKS_ENDPOINT=material.jwks_uri,
        OIDC_RP_CLIENT_ID=material.client_id,
        OIDC_RP_CLIENT_SECRET="",
        OIDC_RP_SIGN_ALGO="RS256",
    )
    django.setup()


def checks(material: Material) -> dict[str, tuple[Check, int]]:
    """Return every contender's check, and how often a slice calls it."""
    set_up_mozilla(material)
    return {
        BARE: (bare(material), 100),
        OURS: (by_oidc_rp(material), 100),
        f"{OURS}, with at_hash": (by_oidc_rp_with_at_hash(material), 100),
        "Authlib": (by_authlib(material), 50),
        "joserfc": (by_joserfc(material), 50),
        "josepy": (by_josepy(material), 50),
        "PyJWT": (by_pyjwt(material), 50),
        "mozilla-django-oidc, PEM key": (by_mozilla(material, material.pem), 40),
        "mozilla-django-oidc, JWKS URI": (by_mozilla(material, None), 8),
    }


def _measure(material: Material) -> dict[str, Ratio]:
    slices = {name: cpu_seconds_per_call(*job) for name, job in checks(material).items()}
    return ratios(paired(slices, BARE, ROUNDS), BARE)


def measure() -> dict[str, Ratio]:
    """Measure in a process of its own: the OP that serves the JWKS costs the contenders nothing."""
    with OpenIDProvider() as provider, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (Material.signed_by(provider),))
