"""Forged ID Tokens."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from ..conf import Provider
from ..protocol import jose
from ..testing import (
    LOGOUT_EVENT,
    REMOVE,
    SigningKey,
    base64url,
)
from ..testing.browser import Response
from .stage import ELSEWHERE, Scene
from .walks import (
    HOUR,
    SOMEBODY_ELSE,
    STRANGER,
    Attack,
    Attempt,
    Code,
    claims,
    claims_by,
    forged,
    header,
)


def keyed(by_key: str, by_secret: str) -> Code:
    """One code where keys sign ID Tokens, and another where the client secret does (HMAC)."""
    return lambda provider: by_key if signs_by_key(provider) else by_secret


@cache
def strangers_key(alg: str) -> SigningKey | bytes:
    """A key of this algorithm that the OP knows nothing of."""
    return b"s" * 64 if alg in jose.HMAC_ALGORITHMS else SigningKey.generate(alg)


def ops_kid(scene: Scene, alg: str) -> dict[str, str]:
    """The header that names the OP's key of this algorithm; a secret has no name."""
    return {} if alg in jose.HMAC_ALGORITHMS else {"kid": scene.op.key_for(alg).kid}


def _hmac_alg(scene: Scene) -> str:
    return "HS256" if signs_by_key(scene.provider) else scene.alg


def _by_stranger(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, key=strangers_key(scene.alg), alg=scene.alg)


def _under_the_ops_kid(scene: Scene, payload: dict[str, Any]) -> str:
    kid = ops_kid(scene, scene.alg)
    return scene.op.sign(payload, kid, strangers_key(scene.alg), scene.alg)


def _key_in_header(scene: Scene, payload: dict[str, Any]) -> str:
    key = strangers_key(scene.alg)
    octets = {"kty": "oct", "k": base64url(key)} if isinstance(key, bytes) else {}
    jwk = key.public_jwk if isinstance(key, SigningKey) else octets
    return scene.op.sign(payload, {"jwk": jwk}, key, scene.alg)


def _keys_at_a_url(name: str) -> Attempt:
    """The header names a place of the attacker's."""

    def forge(scene: Scene, payload: dict[str, Any]) -> str:
        named = {name: scene.op.origin + ELSEWHERE}
        return scene.op.sign(payload, named, strangers_key(scene.alg), scene.alg)

    return forged(forge)


def _certificate_in_header(scene: Scene, payload: dict[str, Any]) -> str:
    key = strangers_key(scene.alg)
    x5c = [_certificate(key)] if isinstance(key, SigningKey) else []
    return scene.op.sign(payload, {"x5c": x5c}, key, scene.alg)


def _certificate(key: SigningKey) -> str:
    """A certificate that a key has signed for itself, as `x5c` has it (RFC 7515 §4.1.6)."""
    private, name, now = key.private_key, x509.Name([]), datetime.now(timezone.utc)
    builder = x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1))
    builder = builder.not_valid_after(now + timedelta(hours=1))
    digest = None if isinstance(private, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    octets = builder.sign(private, digest).public_bytes(serialization.Encoding.DER)
    return b64encode(octets).decode()


def _by_public_key(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, key=scene.op.keys[0].public_pem, alg=_hmac_alg(scene))


def _by_no_secret(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, key=b"", alg=_hmac_alg(scene))


def _by_client_secret(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, alg="HS256")


def _in_another_algorithm(scene: Scene, payload: dict[str, Any]) -> str:
    """Signed well, with another key that the OP publishes."""
    other = "RS256" if scene.alg == "ES256" else "ES256"
    return scene.op.sign(_without_at_hash(payload), alg=other)


def _in_an_algorithm_of_another_key(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(_without_at_hash(payload), key=scene.op.key_for("RS256"), alg="RS384")


def _without_at_hash(payload: dict[str, Any]) -> dict[str, Any]:
    """It would be one of another algorithm."""
    return {name: value for name, value in payload.items() if name != "at_hash"}


def unsigned(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, alg="none")


def _without_signature(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload).rpartition(".")[0] + "."


def _changed_afterwards(scene: Scene, payload: dict[str, Any]) -> str:
    head, _, signature = scene.op.sign(payload).split(".")
    other = json.dumps(payload | _somebody_else(scene)).encode()
    return f"{head}.{base64url(other)}.{signature}"


def _with_sub_twice(scene: Scene, payload: dict[str, Any]) -> str:
    text = json.dumps(payload)[:-1] + ", " + json.dumps(_somebody_else(scene))[1:]
    return scene.op.sign(text.encode())


def _somebody_else(scene: Scene) -> dict[str, str]:
    """Claims of another person; UserInfo agrees, so that it is not what refuses them."""
    scene.op.userinfo_claims["sub"] = SOMEBODY_ELSE
    return {"sub": SOMEBODY_ELSE}


def _key_for_encryption(scene: Scene) -> Response:
    scene.op.key_for(scene.alg).jwk_members["use"] = "enc"
    try:
        return scene.sign_in()
    finally:
        del scene.op.key_for(scene.alg).jwk_members["use"]


def _no_kid_and_two_keys(scene: Scene) -> Response:
    scene.op.key_for(scene.alg)
    scene.op.keys.append(SigningKey.generate(scene.alg))
    scene.op.id_token_header["kid"] = REMOVE
    return scene.sign_in()


def _logged_in_too_long_ago(scene: Scene) -> dict[str, Any]:
    return {"auth_time": int(time.time()) - (scene.provider.default_max_age or 0) - HOUR}


def _for_a_trusted_audience(scene: Scene) -> dict[str, Any]:
    """And for this client; who of them it was issued to, it does not say."""
    return {"aud": [scene.op.client_id, min(scene.provider.trusted_audiences)], "azp": REMOVE}


def _of_the_other_tenant(scene: Scene) -> dict[str, Any]:
    """The issuer of a tenant that is listed, too."""
    return {"iss": f"{scene.op.origin}/{max(scene.provider.tenants)}"}


def from_the_other_tenant(scene: Scene) -> dict[str, Any]:
    """An honest ID Token of that tenant; UserInfo agrees."""
    changed = _of_the_other_tenant(scene) | {"tid": max(scene.provider.tenants)}
    scene.op.userinfo_claims["iss"] = changed["iss"]
    return changed


def signs_by_key(provider: Provider) -> bool:
    return provider.id_token_signed_response_alg not in jose.HMAC_ALGORITHMS


def _names_alg(provider: Provider) -> bool:
    return provider.id_token_signed_response_alg is not None


def _names_no_alg(provider: Provider) -> bool:
    return not _names_alg(provider)


def _asks_for_max_age(provider: Provider) -> bool:
    return provider.default_max_age is not None


def _asks_for_acr(provider: Provider) -> bool:
    return bool(provider.default_acr_values)


def _trusts_audiences(provider: Provider) -> bool:
    return bool(provider.trusted_audiences)


def _has_tenants(provider: Provider) -> bool:
    return bool(provider.tenants)


def has_two_tenants(provider: Provider) -> bool:
    return len(provider.tenants) > 1


_no_such_key = keyed("id_token.kid", "id_token.signature")
_wrong_alg = keyed("id_token.alg", "id_token.signature")

ID_TOKENS = (
    Attack(
        "M17",
        "id_token.format",
        "An ID Token of four parts.",
        forged(lambda s, p: s.op.sign(p) + ".AAAA"),
    ),
    Attack(
        "M17",
        "id_token.format",
        "An ID Token that ends in padding.",
        forged(lambda s, p: s.op.sign(p) + "=="),
    ),
    Attack(
        "M17",
        "id_token.payload",
        "An ID Token whose payload names sub twice.",
        forged(_with_sub_twice),
    ),
    Attack(
        "M17",
        "id_token.payload",
        "An ID Token whose payload is a list.",
        forged(lambda s, p: s.op.sign(b"[]")),
    ),
    Attack("M18", "id_token.alg", "An unsigned ID Token (alg none).", forged(unsigned)),
    Attack(
        "M18",
        "id_token.signature",
        "An ID Token without its signature.",
        forged(_without_signature),
    ),
    Attack(
        "M18", _wrong_alg, "HMAC with the OP's public key as the secret.", forged(_by_public_key)
    ),
    Attack(
        "M18",
        "id_token.alg",
        "An algorithm that the settings do not name.",
        forged(_in_another_algorithm),
        fits=_names_alg,
    ),
    Attack(
        "M19",
        _no_such_key,
        "An ID Token signed with a key that is not the OP's.",
        forged(_by_stranger),
    ),
    Attack(
        "M19",
        "id_token.signature",
        "Another key's signature under the OP's own kid.",
        forged(_under_the_ops_kid),
        fits=signs_by_key,
    ),
    Attack(
        "M19",
        "id_token.signature",
        "Claims that were changed after signing.",
        forged(_changed_afterwards),
    ),
    Attack(
        "M19",
        "id_token.kid",
        "A key that is published for encryption.",
        _key_for_encryption,
        fits=signs_by_key,
    ),
    Attack(
        "M19",
        "id_token.kid",
        "An algorithm that the OP's key is not for.",
        forged(_in_an_algorithm_of_another_key),
        fits=_names_no_alg,
    ),
    Attack("M20", _no_such_key, "The attacker's key in the header (jwk).", forged(_key_in_header)),
    Attack(
        "M20",
        _no_such_key,
        "The attacker's keys at a URL in the header (jku).",
        _keys_at_a_url("jku"),
    ),
    Attack(
        "M20",
        _no_such_key,
        "The attacker's certificate in the header (x5c).",
        forged(_certificate_in_header),
        fits=signs_by_key,
    ),
    Attack(
        "M20",
        _no_such_key,
        "The attacker's certificate at a URL in the header (x5u).",
        _keys_at_a_url("x5u"),
    ),
    Attack("M20", "id_token.crit", "A crit that nobody understands.", header(crit=["x"], x=1)),
    Attack("M21", _wrong_alg, "HMAC with an empty secret.", forged(_by_no_secret)),
    Attack(
        "M21",
        "id_token.alg",
        "HMAC with the client secret, where the settings name no HMAC.",
        forged(_by_client_secret),
        fits=signs_by_key,
    ),
    Attack(
        "M22",
        "id_token.kid",
        "No kid, where two keys fit.",
        _no_kid_and_two_keys,
        fits=signs_by_key,
    ),
    Attack("M23", "id_token.iss", "The ID Token of another issuer.", claims(iss=STRANGER)),
    Attack(
        "M23",
        "id_token.iss",
        "An issuer with one slash more.",
        claims_by(lambda s: {"iss": s.iss + "/"}),
    ),
    Attack("M24", "id_token.aud", "An ID Token for another client.", claims(aud="another-client")),
    Attack("M24", "id_token.aud", "An ID Token without aud.", claims(aud=REMOVE)),
    Attack(
        "M24",
        "id_token.aud",
        "An audience beside this client that nobody trusts.",
        claims_by(lambda s: {"aud": [s.op.client_id, STRANGER], "azp": s.op.client_id}),
    ),
    Attack(
        "M24",
        "id_token.azp",
        "An ID Token issued to another client (azp).",
        claims(azp="another-client"),
    ),
    Attack(
        "M24",
        "id_token.azp",
        "Two audiences that are trusted, and no azp.",
        claims_by(_for_a_trusted_audience),
        fits=_trusts_audiences,
    ),
    Attack("M25", "id_token.exp", "An ID Token without exp.", claims(exp=REMOVE)),
    Attack(
        "M25",
        "id_token.exp",
        "An expired ID Token.",
        claims_by(lambda s: {"exp": int(time.time()) - HOUR}),
    ),
    Attack("M25", "id_token.exp", "An exp beyond every calendar.", claims(exp=1e300)),
    Attack("M25", "id_token.exp", "An exp below zero.", claims(exp=-1)),
    Attack("M25", "id_token.exp", "An exp that is true.", claims(exp=True)),
    Attack("M25", "id_token.payload", "An exp that is no number (NaN).", claims(exp=float("nan"))),
    Attack("M25", "id_token.iat", "An ID Token without iat.", claims(iat=REMOVE)),
    Attack("M25", "id_token.iat", "An iat below zero.", claims(iat=-1)),
    Attack("M25", "id_token.iat", "An iat that is true.", claims(iat=True)),
    Attack(
        "M25",
        "id_token.iat",
        "An iat in the future.",
        claims_by(lambda s: {"iat": int(time.time()) + HOUR}),
    ),
    Attack(
        "M25",
        "id_token.nbf",
        "An ID Token that is not valid yet (nbf).",
        claims_by(lambda s: {"nbf": int(time.time()) + HOUR}),
    ),
    Attack("M26", "id_token.nonce", "An ID Token without the nonce.", claims(nonce=REMOVE)),
    Attack("M26", "id_token.nonce", "The nonce of another login.", claims(nonce="another")),
    Attack(
        "M27",
        "id_token.at_hash",
        "The ID Token of another access token (at_hash).",
        claims(at_hash="A" * 22),
    ),
    Attack("M28", "id_token.sub", "An ID Token about nobody.", claims(sub=REMOVE)),
    Attack("M28", "id_token.sub", "A sub of 256 characters.", claims(sub="x" * 256)),
    Attack("M28", "id_token.sub", "A sub that is a number.", claims(sub=1)),
    Attack(
        "M29",
        "id_token.auth_time",
        "Somebody who authenticated too long ago.",
        claims_by(_logged_in_too_long_ago),
        fits=_asks_for_max_age,
    ),
    Attack(
        "M29",
        "id_token.auth_time",
        "No auth_time.",
        claims(auth_time=REMOVE),
        fits=_asks_for_max_age,
    ),
    Attack(
        "M29",
        "id_token.acr",
        "An acr that was not asked for.",
        claims(acr="none-of"),
        fits=_asks_for_acr,
    ),
    Attack(
        "M32",
        "id_token.typ",
        "A logout token as ID Token.",
        forged(lambda s, p: s.logout_token(nonce=p["nonce"])),
    ),
    Attack(
        "M32",
        "id_token.events",
        "A logout token as ID Token, and its typ is JWT.",
        claims(events={LOGOUT_EVENT: {}}),
    ),
    Attack(
        "M37",
        "id_token.tid",
        "A tenant that is not listed.",
        claims(tid="another"),
        fits=_has_tenants,
    ),
    Attack(
        "M37",
        "id_token.iss",
        "The issuer of another tenant than its tid.",
        claims_by(_of_the_other_tenant),
        fits=has_two_tenants,
    ),
    Attack(
        "M41a",
        "id_token.alg",
        "UserInfo for a forged ID Token.",
        forged(unsigned),
        untouched=("userinfo",),
    ),
)
