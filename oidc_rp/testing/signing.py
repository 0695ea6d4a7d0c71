"""Keys, signatures and compact JWS as an OP makes them, honest or forged: the standard library and
`cryptography` alone, so that a mistake shared with what they are to test cannot hide."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

REMOVE: Final = object()
"""As a value in one of the merged dicts: leave this member out."""

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

DIGESTS: dict[str, hashes.HashAlgorithm] = {
    "256": hashes.SHA256(),
    "384": hashes.SHA384(),
    "512": hashes.SHA512(),
}
CURVES: dict[str, ec.EllipticCurve] = {
    "256": ec.SECP256R1(),
    "384": ec.SECP384R1(),
    "512": ec.SECP521R1(),
}
CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
CURVES_BY_NAME = {CURVE_NAMES[curve.name]: curve for curve in CURVES.values()}
SIGNING_ALGS = [kind + size for kind in ("RS", "PS", "ES", "HS") for size in DIGESTS] + ["EdDSA"]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it; members that are REMOVE are left out."""
    return {name: value for name, value in {**base, **changes}.items() if value is not REMOVE}


def base64url(data: bytes) -> str:
    """Encode as RFC 7515 §2 says: URL-safe, no padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def base64url_decode(text: str) -> bytes:
    """Decode what base64url() made."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


# Keys and signatures (RFC 7515, 7517, 7518, 8037)


def base64url_uint(number: int, length: int | None = None) -> str:
    """Encode a number as RFC 7518 §2 says; `length` in bytes, the shortest by default."""
    return base64url(number.to_bytes(length or (number.bit_length() + 7) // 8, "big"))


@dataclass
class SigningKey:
    """A private key with the members its public JWK shows.

    jwk_members: merged over the public JWK, to publish a wrong `use`, another `kid`, no `alg`.
    """

    alg: str
    kid: str
    private_key: PrivateKey
    jwk_members: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def generate(cls, alg: str, kid: str | None = None, bits: int = 2048) -> SigningKey:
        """Make a fresh key for a JWS `alg`; `bits` is the size of an RSA modulus."""
        kid = kid or f"{alg.lower()}-{secrets.token_hex(4)}"
        if alg == "EdDSA":
            return cls(alg, kid, ed25519.Ed25519PrivateKey.generate())
        if alg.startswith("ES"):
            return cls(alg, kid, ec.generate_private_key(CURVES[alg[2:]]))
        return cls(alg, kid, rsa.generate_private_key(public_exponent=65537, key_size=bits))

    @property
    def public_jwk(self) -> dict[str, Any]:
        """The JWK as published."""
        own = {"kid": self.kid, "use": "sig", "alg": self.alg}
        return merged(own | jwk_numbers(self.private_key.public_key()), self.jwk_members)

    @property
    def private_jwk(self) -> dict[str, Any]:
        """The JWK with its private part, for a client that authenticates with this key."""
        return self.public_jwk | private_jwk_numbers(self.private_key)

    @property
    def public_pem(self) -> bytes:
        """The public key as anybody can download it: the "secret" of an HS256 forgery."""
        return self.private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, signing_input: bytes, alg: str | None = None) -> bytes:
        """Return the raw JWS signature, by another `alg` of the same key type when given."""
        alg, key = alg or self.alg, self.private_key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(signing_input)
        digest = DIGESTS[alg[2:]]
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(signing_input, rsa_padding(alg, digest), digest)
        r, s = decode_dss_signature(key.sign(signing_input, ec.ECDSA(digest)))
        length = (key.curve.key_size + 7) // 8
        return r.to_bytes(length, "big") + s.to_bytes(length, "big")


def rsa_padding(alg: str, digest: hashes.HashAlgorithm) -> padding.AsymmetricPadding:
    """Return PSS with a salt as long as the digest (RFC 7518 §3.5), or PKCS #1 v1.5."""
    if alg.startswith("PS"):
        return padding.PSS(padding.MGF1(digest), digest.digest_size)
    return padding.PKCS1v15()


def jwk_numbers(key: PublicKey) -> dict[str, Any]:
    """Return the members of a JWK that are the public key itself."""
    if isinstance(key, rsa.RSAPublicKey):
        rsa_numbers = key.public_numbers()
        return {
            "kty": "RSA",
            "n": base64url_uint(rsa_numbers.n),
            "e": base64url_uint(rsa_numbers.e),
        }
    if isinstance(key, ec.EllipticCurvePublicKey):
        point, length = key.public_numbers(), (key.curve.key_size + 7) // 8
        coordinates = {"x": base64url_uint(point.x, length), "y": base64url_uint(point.y, length)}
        return {"kty": "EC", "crv": CURVE_NAMES[key.curve.name], **coordinates}
    return {"kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_bytes_raw())}


def private_jwk_numbers(key: PrivateKey) -> dict[str, Any]:
    """Return the members of a JWK that are the private part of the key."""
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        parts = {"d": numbers.d, "p": numbers.p, "q": numbers.q}
        parts |= {"dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
        return {name: base64url_uint(number) for name, number in parts.items()}
    if isinstance(key, ec.EllipticCurvePrivateKey):
        length = (key.curve.key_size + 7) // 8
        return {"d": base64url_uint(key.private_numbers().private_value, length)}
    return {"d": base64url(key.private_bytes_raw())}


def public_key(jwk: Mapping[str, Any]) -> PublicKey:
    """Read a public JWK."""
    if jwk["kty"] == "OKP":
        return ed25519.Ed25519PublicKey.from_public_bytes(base64url_decode(jwk["x"]))
    members = ("e", "n") if jwk["kty"] == "RSA" else ("x", "y")
    first, second = (int.from_bytes(base64url_decode(jwk[name]), "big") for name in members)
    if jwk["kty"] == "RSA":
        return rsa.RSAPublicNumbers(first, second).public_key()
    curve = CURVES_BY_NAME[jwk["crv"]]
    return ec.EllipticCurvePublicNumbers(first, second, curve).public_key()


def verify(alg: str, key: PublicKey | bytes, signing_input: bytes, signature: bytes) -> None:
    """Check a raw JWS signature; raises InvalidSignature."""
    if isinstance(key, bytes):
        if not hmac.compare_digest(hmac_signature(alg, key, signing_input), signature):
            raise InvalidSignature
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(signature, signing_input)
    elif isinstance(key, rsa.RSAPublicKey):
        digest = DIGESTS[alg[2:]]
        key.verify(signature, signing_input, rsa_padding(alg, digest), digest)
    else:
        half = (key.curve.key_size + 7) // 8
        r, s = (int.from_bytes(part, "big") for part in (signature[:half], signature[half:]))
        key.verify(encode_dss_signature(r, s), signing_input, ec.ECDSA(DIGESTS[alg[2:]]))


def hmac_signature(alg: str, key: bytes, signing_input: bytes) -> bytes:
    """Return the signature of HS256, HS384 or HS512."""
    return hmac.digest(key, signing_input, "sha" + alg[2:])


def decode_jws(jws: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    """Return header, claims, signing input and signature; nothing is verified."""
    header, payload, signature = jws.split(".")
    signing_input = f"{header}.{payload}".encode()
    parts = json.loads(base64url_decode(header)), json.loads(base64url_decode(payload))
    return *parts, signing_input, base64url_decode(signature)


def verified_claims(jws: str, key: PublicKey | bytes) -> dict[str, Any]:
    """Return the claims of a compact JWS once its signature is verified with `key`."""
    header, claims, signing_input, signature = decode_jws(jws)
    verify(header["alg"], key, signing_input, signature)
    return claims


def half_hash(alg: str, value: str) -> str:
    """Return the at_hash of an access token (Core §3.1.3.6); Ed25519 goes with SHA-512."""
    name = "sha" + (alg[2:] if alg[2:] in DIGESTS else "512")
    digest = hashlib.new(name, value.encode()).digest()
    return base64url(digest[: len(digest) // 2])


def signature(alg: str, key: SigningKey | bytes | None, signing_input: bytes) -> bytes:
    """Return the raw signature by whatever key is given; empty for "none"."""
    if key is None or alg == "none":
        return b""
    if isinstance(key, bytes):
        return hmac_signature(alg, key, signing_input)
    return key.sign(signing_input, alg)
