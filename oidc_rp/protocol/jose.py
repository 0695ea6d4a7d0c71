"""Compact JWS and JWK sets, strictly (RFC 7515, 7517, 7518, 8037, 8725). Alone imports josepy.

josepy does the cryptography; every decision is taken here: size, alphabet, form, algorithm and
key are settled before a signature is looked at, and one kind of error comes out (InvalidJOSE).
"""

import json
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256, sha384, sha512
from string import ascii_letters, digits
from types import MappingProxyType
from typing import Any, NamedTuple

import josepy
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import InvalidJOSE, InvalidResponse
from .strict_json import json_object
from .tokens import ClientSecret, PrivateKey

MAX_LENGTH = 64 * 1024
"""Characters of the longest JWS that is looked at; no header field carries a longer one."""

MIN_SECRET_BYTES = 32
"""Octets of the shortest client secret that may key an HMAC (RFC 7518 §3.2 for HS256)."""

ASYMMETRIC_ALGORITHMS = frozenset(
    "RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA".split()
)
HMAC_ALGORITHMS = frozenset("HS256 HS384 HS512".split())
ALGORITHMS = ASYMMETRIC_ALGORITHMS | HMAC_ALGORITHMS

_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519"}
_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP", "HS": "oct"}
_HASHES = {"256": sha256, "384": sha384, "512": sha512, "DSA": sha512}
_RSA_BITS = range(2048, 16384 + 1)
_STANDARD_BASE64 = bytes.maketrans(b"-_", b"+/")
_LAST_CHARACTERS = (None, b"", b"AQgw", b"AEIMQUYcgkosw048")  # by length modulo 4
_BASE64URL = (ascii_letters + digits + "-_").encode()


def hash_function(alg: str) -> Callable[[bytes], Any]:
    """The hashlib function of the hash in `alg`, as at_hash wants it (Core §3.1.3.6)."""
    if alg not in ALGORITHMS:
        raise InvalidJOSE("alg", received=alg)
    return _HASHES[alg[2:]]


@dataclass(frozen=True, slots=True)
class Key:
    """One verification key with what its JWK says it is for (RFC 7517 §4)."""

    kty: str
    crv: str | None
    kid: str | None
    alg: str | None
    material: Any  # a public key of `cryptography`, or the octets of an HMAC key

    def __repr__(self) -> str:
        return f"<Key {self.kty} kid={self.kid!r}>"

    def fits(self, alg: str) -> bool:
        """Whether this key is of the type and curve of `alg`, and not reserved for another."""
        return (
            self.kty == _KEY_TYPES[alg[:2]]
            and self.crv == _CURVES.get(alg)
            and self.alg in (None, alg)
        )


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys that may verify; the caller decides where they come from, never the token."""

    keys: tuple[Key, ...]

    def key_for(self, alg: str, kid: str | None) -> Key:
        """Return the one key for `alg` and `kid`; none, or several, is InvalidJOSE "kid"."""
        keys = [key for key in self.keys if (kid is None or key.kid == kid) and key.fits(alg)]
        if len(keys) != 1:
            raise InvalidJOSE("kid", f"{len(keys)} keys fit", expected="one key", received=kid)
        return keys[0]


class JWS(NamedTuple):  # made for every token, and thrice as fast as a frozen dataclass
    """A well-formed compact JWS (RFC 7515 §3.1), nothing of it proven yet."""

    unverified_header: Mapping[str, Any]
    unverified_payload: bytes
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return f"<JWS {dict(self.unverified_header)!r}>"


def parse(text: str) -> JWS:
    """Take a compact JWS apart: exactly three parts, one spelling, a JSON object as header.

    The signature may be empty, so that "none" is refused by its name ("alg") in verify().
    Raises InvalidJOSE "size", "format", "header", or "crit" (we understand no extension,
    RFC 7515 §4.1.11). Header members that carry or point to keys (jwk, jku, x5c, x5u) are not read.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidJOSE("size", expected=MAX_LENGTH, received=len(text))
    octets = text.encode("ascii", "replace")
    if octets.translate(None, _BASE64URL) != b"..":
        raise InvalidJOSE("format", "not a compact JWS")
    header, payload, signature = octets.split(b".")
    signing_input = octets[: -len(signature) - 1]
    return JWS(_header(header), _decode(payload), signing_input, _decode(signature))


@lru_cache(maxsize=64)  # an OP writes the same header into each of its tokens
def _header(part: bytes) -> Mapping[str, Any]:
    try:
        unverified_header = json_object(_decode(part), "header")
    except InvalidResponse as error:
        raise InvalidJOSE(error.code, error.message) from error
    if "crit" in unverified_header:
        raise InvalidJOSE("crit", "an extension that we do not understand")
    return MappingProxyType(unverified_header)


def verify(jws: JWS, keys: KeySet, algorithms: Collection[str]) -> str:
    """Verify the signature with a key of ours and return the algorithm used (RFC 8725 §3.1).

    algorithms: what the settings allow; the header may only name one of them.
    Raises InvalidJOSE "alg", "kid" or "signature".
    """
    alg, kid = jws.unverified_header.get("alg"), jws.unverified_header.get("kid")
    if not isinstance(alg, str) or alg not in algorithms or alg not in ALGORITHMS:
        raise InvalidJOSE("alg", expected=sorted(algorithms), received=alg)
    if kid is not None and not isinstance(kid, str):
        raise InvalidJOSE("kid", "kid is not a string", received=type(kid).__name__)
    # An HMAC key is our own client secret, which has no kid, whatever the header calls it.
    key = keys.key_for(alg, None if alg in HMAC_ALGORITHMS else kid)
    if not _signature_holds(alg, key.material, jws.signing_input, jws.signature):
        raise InvalidJOSE("signature")
    return alg


def hmac_keys(secret: ClientSecret) -> KeySet:
    """The client secret as the one key of HS256 to HS512 (Core §10.1); at least 32 octets."""
    octets = secret.reveal().encode()
    if len(octets) < MIN_SECRET_BYTES:
        raise InvalidJOSE("client_secret", expected=f">= {MIN_SECRET_BYTES} octets")
    return KeySet((Key("oct", None, None, None, octets),))


def read_jwks(document: Mapping[str, Any]) -> KeySet:
    """Read a JWK set (RFC 7517 §5); keys that we cannot use are left out, one by one.

    Left out: private and symmetric keys' secrets (never read), use other than "sig", key_ops
    without "verify", RSA under 2048 bits, unknown types and curves, anything malformed.
    Raises InvalidResponse "jwks.document" when it is no key set at all.
    """
    members = document.get("keys")
    if not isinstance(members, list):
        raise InvalidResponse("jwks.document", "no array of keys")
    return KeySet(tuple(key for member in members if (key := _read_key(member)) is not None))


def sign(claims: Mapping[str, Any], alg: str, key: PrivateKey | ClientSecret) -> str:
    """Return `claims` as a compact JWS, for client assertions (RFC 7523 §3; Core §9).

    key: a private JWK as JSON text, or the client secret for HS256 to HS512.
    """
    header: dict[str, Any] = {"alg": alg, "typ": "JWT"}
    if isinstance(key, ClientSecret):
        material: Any = hmac_keys(key).keys[0].material
    else:
        jwk = json_object(key.reveal(), "jwk")
        material = _private_material(jwk)
        if isinstance(kid := jwk.get("kid"), str):
            header["kid"] = kid
    signing_input = ".".join(_encode(json.dumps(part).encode()) for part in (header, claims))
    return f"{signing_input}.{_encode(_signature(alg, material, signing_input.encode()))}"


def check_private_jwk(jwk: Mapping[str, Any], alg: str) -> None:
    """Raise InvalidJOSE "jwk" when this private JWK cannot, or may not, sign with `alg`."""
    key = _read_key({**jwk, "key_ops": None})  # a private key's key_ops speak of signing
    try:
        if key is None or not key.fits(alg):
            raise ValueError("its type, curve, size, use or alg")
        _signature(alg, _private_material(jwk), b"")
    except Exception as error:  # josepy and cryptography raise many kinds for one bad key
        raise InvalidJOSE("jwk", f"not a private key for {alg}") from error


def _decode(part: bytes) -> bytes:
    """base64url without padding, and only in the one spelling that encoding gives (RFC 7515 §2)."""
    # The last character may carry no bits beyond the last octet.
    tail = _LAST_CHARACTERS[len(part) % 4]
    if tail is not None and part[-1] not in tail:
        raise InvalidJOSE("format", "not canonical base64url")
    return a2b_base64(part.translate(_STANDARD_BASE64) + b"==")


def _encode(octets: bytes) -> str:
    return urlsafe_b64encode(octets).rstrip(b"=").decode()


def _read_key(jwk: Any) -> Key | None:
    if not isinstance(jwk, dict) or jwk.get("use") not in (None, "sig"):
        return None
    key_ops = jwk.get("key_ops")
    if key_ops is not None and not (isinstance(key_ops, list) and "verify" in key_ops):
        return None
    kid, alg = jwk.get("kid"), jwk.get("alg")
    if not isinstance(kid, str | None) or not isinstance(alg, str | None):
        return None
    try:
        material = _public_material(jwk)
    except Exception:  # noqa: BLE001 - seven kinds are known; the key is left out for any
        return None
    crv = jwk["crv"] if jwk["kty"] in ("EC", "OKP") else None
    return Key(jwk["kty"], crv, kid, alg, material)


def _public_material(jwk: Mapping[str, Any]) -> Any:
    """The public key in a JWK; only public members are handed on. Raises whatever goes wrong."""
    if jwk["kty"] == "OKP" and jwk["crv"] == "Ed25519":
        return Ed25519PublicKey.from_public_bytes(_decode(jwk["x"].encode()))
    members = {"RSA": ("n", "e"), "EC": ("crv", "x", "y")}[jwk["kty"]]
    key: Any = josepy.JWK.from_json({"kty": jwk["kty"], **{name: jwk[name] for name in members}})
    if isinstance(key, josepy.JWKRSA) and key.key.key_size not in _RSA_BITS:
        raise InvalidJOSE("jwk", "RSA key size")
    return key.key._wrapped


def _private_material(jwk: Mapping[str, Any]) -> Any:
    if jwk["kty"] == "OKP" and jwk["crv"] == "Ed25519":
        return Ed25519PrivateKey.from_private_bytes(_decode(jwk["d"].encode()))
    key: Any = josepy.JWK.from_json(dict(jwk))
    return key.key._wrapped


def _signature_holds(alg: str, key: Any, signing_input: bytes, signature: bytes) -> bool:
    try:
        if alg == "EdDSA":  # RFC 8037, which josepy lacks
            key.verify(signature, signing_input)
            return True
        return bool(josepy.JWASignature.from_json(alg).verify(key, signing_input, signature))
    except (InvalidSignature, ValueError):
        return False


def _signature(alg: str, key: Any, signing_input: bytes) -> bytes:
    if alg == "EdDSA":
        return bytes(key.sign(signing_input))
    algorithm: Any = josepy.JWASignature.from_json(alg)
    if alg.startswith("PS"):  # josepy salts with the longest salt; RFC 7518 §3.5 wants the hash's
        salted = padding.PSS(padding.MGF1(algorithm.hash), padding.PSS.DIGEST_LENGTH)
        return bytes(key.sign(signing_input, salted, algorithm.hash))
    return bytes(algorithm.sign(key, signing_input))
