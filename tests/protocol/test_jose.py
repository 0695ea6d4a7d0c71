"""Compact JWS and JWK sets: what is verified, by which key, and everything that is refused."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidResponse, OIDCError
from oidc_rp.protocol import jose
from oidc_rp.protocol.tokens import ClientSecret, PrivateKey
from oidc_rp.testing import (
    DIGESTS,
    REMOVE,
    SigningKey,
    base64url,
    base64url_decode,
    decode_jws,
    hmac_signature,
    merged,
    verified_claims,
)

from .examples import (
    ASYMMETRIC,
    HMAC,
    SECRET,
    awkward,
    compact,
    compact_of,
    fuzz,
    hmac_keys,
    json_values,
    key,
    key_set,
    no_other_error,
    refusal,
)

JWT_OF_RFC_7515 = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)
JOE = b'{"iss":"joe",\r\n "exp":1300819380,\r\n "http://example.com/is_root":true}'

RFC_7515_A_1_KEY = (
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"
)
RFC_7515_A_1 = (
    f"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{JWT_OF_RFC_7515}"
    ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
)
RFC_7515_A_2_KEY = {
    "kty": "RSA",
    "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0"
    "Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5r"
    "exMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXF"
    "vUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "e": "AQAB",
}
RFC_7515_A_2 = (
    f"eyJhbGciOiJSUzI1NiJ9.{JWT_OF_RFC_7515}"
    ".cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5j"
    "ujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L0"
    "7Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUip"
    "UTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw"
)
RFC_7515_A_3_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
RFC_7515_A_3 = (
    f"eyJhbGciOiJFUzI1NiJ9.{JWT_OF_RFC_7515}"
    ".DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
)
RFC_7515_A_4_KEY = {
    "kty": "EC",
    "crv": "P-521",
    "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
    "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
}
RFC_7515_A_4 = (
    "eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA"
    ".AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8Ga"
    "SwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn"
)
RFC_8037_A_KEY = {
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
}
RFC_8037_A_4 = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    ".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)
VECTORS = [
    ("RS256", RFC_7515_A_2_KEY, RFC_7515_A_2, JOE),
    ("ES256", RFC_7515_A_3_KEY, RFC_7515_A_3, JOE),
    ("ES512", RFC_7515_A_4_KEY, RFC_7515_A_4, b"Payload"),
    ("EdDSA", RFC_8037_A_KEY, RFC_8037_A_4, b"Example of Ed25519 signing"),
]


def verified(text: str, keys: jose.KeySet, *algorithms: str) -> bytes:
    """The payload, once the signature holds."""
    jws = jose.parse(text)
    assert jose.verify(jws, keys, algorithms) == jws.unverified_header["alg"]
    return jws.unverified_payload


def bent(text: str) -> str:
    """The same JWS with one bit of its signature flipped."""
    signing_input, _, signature = text.rpartition(".")
    octets = base64url_decode(signature)
    return f"{signing_input}.{base64url(bytes([octets[0] ^ 1]) + octets[1:])}"


# Published vectors


@pytest.mark.parametrize(("alg", "jwk", "jws", "payload"), VECTORS)
def test_vectors_of_rfc_7515_and_rfc_8037(
    alg: str, jwk: dict[str, Any], jws: str, payload: bytes
) -> None:
    """RFC 7515 A.2, A.3, A.4 and RFC 8037 A.4 verify as published; with one bit flipped not."""
    keys = jose.read_jwks({"keys": [jwk]})
    assert verified(jws, keys, alg) == payload
    with refusal("signature"):
        verified(bent(jws), keys, alg)


def test_vector_of_rfc_7515_a_1() -> None:
    """RFC 7515 A.1 verifies with its HS256 key, which is no text and so no client secret."""
    octets = base64url_decode(RFC_7515_A_1_KEY)
    keys = jose.KeySet((jose.Key("oct", None, None, None, octets),))
    assert verified(RFC_7515_A_1, keys, "HS256") == JOE
    with refusal("signature"):
        verified(bent(RFC_7515_A_1), keys, "HS256")


def test_vector_of_rfc_8037_a_4_is_what_we_sign() -> None:
    """Ed25519 is deterministic: the key of RFC 8037 A.1 gives the very signature of A.4."""
    d = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
    signing_input, _, signature = RFC_8037_A_4.rpartition(".")
    private = jose._private_material(RFC_8037_A_KEY | {"d": d})
    assert base64url(jose._signature("EdDSA", private, signing_input.encode())) == signature


# Every algorithm


@pytest.mark.parametrize("alg", ASYMMETRIC)
def test_a_signature_by_the_published_key_holds(alg: str) -> None:
    """Each algorithm verifies with its own key, and with nobody else's."""
    jws = compact(b"{}", by=key(alg))
    assert verified(jws, key_set(key(alg)), alg) == b"{}"
    stranger = SigningKey(alg, key(alg).kid, key(alg, "stranger").private_key)
    for forged in (bent(jws), compact(b"{}", by=stranger)):
        with refusal("signature"):
            verified(forged, key_set(key(alg)), alg)


@pytest.mark.parametrize("alg", HMAC)
def test_a_signature_by_the_client_secret_holds(alg: str) -> None:
    """Each HMAC verifies with the client secret, and with no other."""
    assert verified(compact(b"{}", by=SECRET.encode(), alg=alg), hmac_keys(), alg) == b"{}"
    with refusal("signature"):
        verified(compact(b"{}", by=b"another" * 9, alg=alg), hmac_keys(), alg)


@pytest.mark.parametrize("alg", [*ASYMMETRIC, *HMAC])
@pytest.mark.parametrize("length", [0, 1, 32, 63, 64, 65, 96, 132, 256, 1000])
def test_a_signature_of_any_length_is_refused(alg: str, length: int) -> None:
    """Octets that are no signature are refused, whatever their number."""
    jws = compact(b"{}", by=b"x", alg="HS256", header={"alg": alg}).rpartition(".")[0]
    keys = hmac_keys() if alg in HMAC else key_set(key(alg))
    with refusal("signature"):
        verified(f"{jws}.{base64url(b'1' * length)}", keys, alg)


@pytest.mark.parametrize("alg", ["ES256", "ES384", "ES512"])
def test_an_ecdsa_signature_has_one_form(alg: str) -> None:
    """DER, zeros, and r or s beyond the order are refused (RFC 7518 §3.4)."""
    own, text = key(alg), compact(b"{}", by=key(alg))
    signing_input, _, signature = text.rpartition(".")
    half = len(base64url_decode(signature)) // 2
    assert isinstance(own.private_key, ec.EllipticCurvePrivateKey)
    der = own.private_key.sign(signing_input.encode(), ec.ECDSA(DIGESTS[alg[2:]]))
    for octets in (der, bytes(2 * half), b"\xff" * 2 * half, base64url_decode(signature)[1:]):
        with refusal("signature"):
            verified(f"{signing_input}.{base64url(octets)}", key_set(own), alg)


# M17 to M22


GOOD = compact(b"{}", by=key("RS256"))
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "format"),
        (".", "format"),
        ("..", "header"),
        (f"{HEADER}.{PAYLOAD}", "format"),
        (f"{GOOD}.", "format"),
        (f"{GOOD}.{SIGNATURE}", "format"),
        (f"{HEADER}.a.b.c.d", "format"),  # JWE (RFC 7516 §3.1)
        (f".{PAYLOAD}.{SIGNATURE}", "header"),
        ('{"payload": "e30", "signatures": []}', "format"),
        ('{"payload": "e30", "protected": "e30", "signature": "AA"}', "format"),
        (f"{base64url(b'null')}.{PAYLOAD}.{SIGNATURE}", "header"),
        (f"{base64url(b'[]')}.{PAYLOAD}.{SIGNATURE}", "header"),
        (f"{base64url(b'not JSON')}.{PAYLOAD}.{SIGNATURE}", "header"),
        (f"{base64url(b'[' * 30_000)}.{PAYLOAD}.{SIGNATURE}", "header"),
        ("e30." + "e" * 65536 + ".e30", "size"),
    ],
)
def test_M17_only_three_parts_in_compact_form(text: str, code: str) -> None:
    """Anything but three base64url parts, the first a JSON object, is refused."""
    assert verified(GOOD, key_set(key("RS256")), "RS256") == b"{}"
    with refusal(code):
        jose.parse(text)


@pytest.mark.parametrize("duplicate", [b'{"alg":"RS256","alg":"none"}', b'{"alg":1,"\\u0061lg":2}'])
def test_M17_duplicate_header_members_are_refused(duplicate: bytes) -> None:
    """A header that says `alg` twice is refused, signed or not."""
    with refusal("header"):
        jose.parse(compact_of(duplicate, b"{}", key("RS256"), "RS256"))


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize(
    "spelling",
    [
        "{}=",
        "{}==",
        "{}\n",
        " {}",
        "{}\0",
        "{}!",
        "%41{}",
        "\u0430{}",  # a Cyrillic letter
        "\uff21{}",  # a full-width letter
        "+{}",
        "/{}",
    ],
)
def test_M17_a_token_has_one_spelling(position: int, spelling: str) -> None:
    """Padding, white space and foreign characters inside a part are refused, not skipped."""
    parts = GOOD.split(".")
    parts[position] = spelling.format(parts[position])
    with refusal("format"):
        jose.parse(".".join(parts))


@pytest.mark.parametrize("octets", [b"1", b"12", b"123", b"1234"])
def test_M17_trailing_bits_are_zero(octets: bytes) -> None:
    """Of the spellings that decode to the same octets, only the one that encoding gives is read."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    part = base64url(octets)
    read = []
    for last in alphabet:
        try:
            jws = jose.parse(f"e30.e30.{part[:-1]}{last}")
        except OIDCError:
            continue
        read.append(jws.signature)
    assert read.count(octets) == 1
    assert len(set(read)) == len(read)
    with refusal("format"):
        jose.parse(f"e30.e30.{'A' * (4 * len(octets) + 1)}")


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, REMOVE, 0, ["RS256"]])
@pytest.mark.parametrize("signature", ["", "AA", SIGNATURE])
def test_M18_alg_none_is_refused_always(alg: object, signature: str) -> None:
    """`none` in any spelling, with or without a signature, is no algorithm, allowed or not."""
    header = json.dumps(merged({"kid": key("RS256").kid}, {"alg": alg})).encode()
    forged = f"{base64url(header)}.{PAYLOAD}.{signature}"
    for algorithms in (["RS256"], ["RS256", "none", "None", "NONE", "nOnE", ""], []):
        with refusal("alg"):
            jose.verify(jose.parse(forged), key_set(key("RS256")), algorithms)


@pytest.mark.parametrize("alg", ["RS384", "PS256", "ES256", "HS256", "EdDSA", "rs256", "RS256 "])
def test_M18_the_algorithm_comes_from_the_settings(alg: str) -> None:
    """A good signature by an algorithm that is not allowed is refused."""
    jws = compact(b"{}", by=key("RS256"), header={"alg": alg})
    with refusal("alg"):
        verified(jws, key_set(key("RS256")), "RS256")


@pytest.mark.parametrize(
    "name", ["public_pem", "public_der", "public_pkcs1", "jwk", "n", "raw PEM without the end"]
)
def test_M18_the_public_key_is_no_hmac_secret(name: str) -> None:
    """HS256 keyed with the RSA public key, in whatever form, is refused (RFC 8725 §2.1)."""
    own = key("RS256")
    public = own.private_key.public_key()
    encoding, form = serialization.Encoding, serialization.PublicFormat
    secrets = {
        "public_pem": own.public_pem,
        "public_der": public.public_bytes(encoding.DER, form.SubjectPublicKeyInfo),
        "public_pkcs1": public.public_bytes(encoding.PEM, form.PKCS1),
        "jwk": json.dumps(own.public_jwk).encode(),
        "n": base64url_decode(own.public_jwk["n"]),
        "raw PEM without the end": own.public_pem.rstrip(),
    }
    forged = compact(b"{}", by=secrets[name], alg="HS256", header={"kid": own.kid})
    with refusal("alg"):
        verified(forged, key_set(own), "RS256")
    for_anything = SigningKey("RS256", own.kid, own.private_key, {"alg": REMOVE, "use": REMOVE})
    for keys in (key_set(own), key_set(for_anything)):
        with refusal("kid"):  # even were HS256 allowed: published keys never key an HMAC
            verified(forged, keys, "RS256", "HS256")
    with refusal("kid"):  # nor does the secret verify what is signed with a key
        verified(GOOD, hmac_keys(), "RS256", "HS256")


def test_M19_a_symmetric_key_in_the_key_set_is_not_read() -> None:
    """A JWKS is public: what it says is a secret cannot be one (RFC 7517 §9.2)."""
    oct_key = {"kty": "oct", "k": base64url(SECRET.encode()), "kid": "one"}
    keys = jose.read_jwks({"keys": [oct_key]})
    assert keys.keys == ()
    with refusal("kid"):
        verified(compact(b"{}", by=SECRET.encode(), alg="HS256"), keys, "HS256")


@pytest.mark.parametrize(
    ("alg", "members"),
    [
        ("RS256", {"use": "enc"}),
        ("RS256", {"use": "SIG"}),
        ("RS256", {"use": ["sig"]}),
        ("RS256", {"key_ops": ["sign"]}),
        ("RS256", {"key_ops": ["encrypt", "wrapKey"]}),
        ("RS256", {"key_ops": []}),
        ("RS256", {"key_ops": "verify"}),
        ("RS256", {"key_ops": 5}),
        ("RS256", {"key_ops": {"verify": True}}),
        ("RS256", {"alg": "RS512"}),
        ("RS256", {"alg": "PS256"}),
        ("RS256", {"alg": "RSA-OAEP"}),
        ("RS256", {"alg": ["RS256"]}),
        ("RS256", {"alg": "HS256"}),
        ("RS256", {"kid": "another"}),
        ("RS256", {"kid": 1}),
        ("RS256", {"kid": REMOVE}),
        ("RS256", {"kty": "EC"}),
        ("RS256", {"kty": "rsa"}),
        ("ES256", {"crv": "P-384"}),
        ("ES256", {"alg": "ES384"}),
        ("ES256", {"kty": "RSA"}),
        ("EdDSA", {"crv": "Ed448"}),
        ("EdDSA", {"crv": "X25519"}),
        ("EdDSA", {"use": "enc"}),
    ],
)
def test_M19_the_jwk_must_fit(alg: str, members: Mapping[str, Any]) -> None:
    """The key that signed is refused when its JWK says that it is for something else."""
    jws = compact(b"{}", by=key(alg))
    bent_key = SigningKey(alg, key(alg).kid, key(alg).private_key, dict(members))
    assert verified(jws, key_set(key(alg)), alg) == b"{}"
    with refusal("kid"):
        verified(jws, key_set(bent_key), alg)


@pytest.mark.parametrize(
    "members",
    [
        {"use": REMOVE, "alg": REMOVE},
        {"use": None, "alg": None, "key_ops": None},
        {"key_ops": ["verify"]},
        {"use": REMOVE, "key_ops": ["sign", "verify"]},
        {"x5c": ["AAAA"], "x5u": "https://evil.example/", "unknown": {"a": []}},
    ],
)
def test_M19_what_a_jwk_does_not_say_does_not_forbid(members: dict[str, Any]) -> None:
    """`use`, `alg` and `key_ops` are optional (RFC 7517 §4), null is absent, others are ignored."""
    own = key("RS256")
    bent_key = SigningKey("RS256", own.kid, own.private_key, members)
    assert verified(GOOD, key_set(bent_key), "RS256") == b"{}"


@pytest.mark.parametrize(
    ("alg", "curve"), [("ES256", "ES384"), ("ES384", "ES256"), ("ES512", "ES384")]
)
def test_M19_an_es256_header_with_a_p_384_key_is_refused(alg: str, curve: str) -> None:
    """ES256 is P-256 with SHA-256 and nothing else (RFC 7518 §3.4), though the maths would work."""
    other = SigningKey(curve, "other", key(curve).private_key, {"alg": REMOVE})
    signing_input = f"{base64url(json.dumps({'alg': alg}).encode())}.e30"
    signature = other.sign(signing_input.encode(), alg)
    with refusal("kid"):
        verified(f"{signing_input}.{base64url(signature)}", key_set(other), alg)


@pytest.mark.parametrize("bits", [1024, 2040])
def test_M19_an_rsa_key_has_2048_bits(bits: int) -> None:
    """A shorter RSA key is not read (RFC 7518 §3.3)."""
    short = key("RS256", "short", bits=bits)
    assert key_set(short).keys == ()
    with refusal("kid"):
        verified(compact(b"{}", by=short), key_set(short), "RS256")


@pytest.mark.parametrize("name", ["jwk", "x5c", "jku", "x5u"])
def test_M20_the_header_never_supplies_keys(name: str) -> None:
    """A token that brings its own key, signed with it, is refused like any other stranger's."""
    attacker = key("RS256", "attacker")
    values = {"jwk": attacker.public_jwk, "x5c": ["MIIB"], "jku": "https://evil.example/jwks"}
    header = {name: values.get(name, "https://evil.example/cert")}
    known_kid = {"kid": key("RS256").kid}
    for bent_header, code in ((header, "kid"), (header | known_kid, "signature")):
        with refusal(code):
            jws = compact(b"{}", by=attacker, header=bent_header)
            verified(jws, key_set(key("RS256")), "RS256")
    with refusal("kid"):
        verified(compact(b"{}", by=attacker, header=header), jose.KeySet(()), "RS256")


def test_M20_a_good_token_may_carry_key_hints() -> None:
    """`x5t`, `jku` and the like are ignored, not refused, where the known key signed."""
    header = {"jku": "https://op.example/jwks", "x5t": "AAAA", "jwk": {"kty": "oct", "k": "AA"}}
    assert verified(compact(b"{}", header=header), key_set(key("RS256")), "RS256")


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "exp", {}])
def test_M20_crit_is_refused(crit: object) -> None:
    """We understand no extension, so whatever is critical is refused (RFC 7515 §4.1.11)."""
    with refusal("crit"):
        jose.parse(compact(b"{}", header={"crit": crit, "b64": False, "exp": 1}))


@pytest.mark.parametrize("secret", ["", "secret", "x" * 31, "\u00e9" * 15])
def test_M21_a_short_secret_keys_no_hmac(secret: str) -> None:
    """A client secret under 32 octets is refused, the empty one first of all (RFC 7518 §3.2)."""
    for good in ("x" * 32, "\u00e9" * 16):
        assert hmac_keys(good).keys
    with refusal("client_secret"):
        hmac_keys(secret)
    with refusal("client_secret"):
        jose.sign({}, "HS256", ClientSecret(secret))


def test_M21_hmac_is_the_settings_choice_alone() -> None:
    """A token signed with the right secret is refused where HMAC is not configured."""
    jws = compact(b"{}", by=SECRET.encode(), alg="HS256")
    assert verified(jws, hmac_keys(), "HS256")
    for algorithms in (ASYMMETRIC, ["HS384", "HS512"]):
        with refusal("alg"):
            verified(jws, hmac_keys(), *algorithms)


def test_M21_the_kid_of_an_hmac_is_not_looked_at() -> None:
    """The client secret has no kid, whatever an OP calls it."""
    jws = compact(b"{}", by=SECRET.encode(), alg="HS256", header={"kid": "secret-1"})
    assert verified(jws, hmac_keys(), "HS256")


def test_M22_without_kid_one_fitting_key_is_found() -> None:
    """No kid: the one key that fits in type, curve and alg is used, the others do not count."""
    keys = key_set(key("ES256"), key("RS256"), key("EdDSA"), key("ES384"), key("PS256"))
    for alg in ("ES256", "RS256", "EdDSA", "ES384", "PS256"):
        assert verified(compact(b"{}", by=key(alg), header={"kid": REMOVE}), keys, alg)


def test_M22_without_kid_several_fitting_keys_are_refused() -> None:
    """No kid and two keys that fit: refused, though the first one signed."""
    keys = key_set(key("RS256"), key("RS256", "two"))
    assert verified(GOOD, keys, "RS256")
    for kid in (REMOVE, None):
        with refusal("kid"):
            verified(compact(b"{}", header={"kid": kid}), keys, "RS256")


@pytest.mark.parametrize("turn", [1, -1])
def test_M22_keys_of_one_kid_are_chosen_by_type(turn: int) -> None:
    """Several keys with one kid are told apart by type and curve, in whatever order they come."""
    twins = [
        SigningKey(alg, "same", key(alg).private_key, {"alg": REMOVE})
        for alg in ("RS256", "ES256", "ES384", "EdDSA")
    ]
    for twin in twins:
        assert verified(compact(b"{}", by=twin), key_set(*twins[::turn]), twin.alg)


@pytest.mark.parametrize("turn", [1, -1])
def test_M22_two_fitting_keys_of_one_kid_are_refused(turn: int) -> None:
    """One kid, one type, two keys: refused, whichever comes first."""
    twins = [SigningKey("RS256", "same", key("RS256", name).private_key) for name in ("one", "two")]
    with refusal("kid"):
        verified(compact(b"{}", by=twins[0]), key_set(*twins[::turn]), "RS256")


@pytest.mark.parametrize("kid", [1, True, ["one"], {"kid": "one"}, ""])
def test_M22_a_kid_is_a_text_that_is_known(kid: object) -> None:
    """A kid of another type, or empty, finds nothing, though one key is all there is."""
    with refusal("kid"):
        verified(compact(b"{}", header={"kid": kid}), key_set(key("RS256")), "RS256")
    if kid != "":  # the client secret has any name, but a name is a text (RFC 7515 §4.1.4)
        with refusal("kid"):
            verified(compact(b"{}", by=SECRET.encode(), header={"kid": kid}), hmac_keys(), "HS256")


# Key sets

RSA, EC, OKP = (key(alg).public_jwk for alg in ("RS256", "ES256", "EdDSA"))
ED448 = base64url(ed448.Ed448PrivateKey.generate().public_key().public_bytes_raw())


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        1,
        "key",
        [],
        {},
        {"kty": None},
        {"kty": []},
        {"kty": {"a": 1}},
        {"kty": "PQC", "kid": "future"},
        {"kty": "OKP"},
        {"kty": "OKP", "crv": "Ed448", "x": ED448},
        {"kty": "OKP", "crv": "X25519", "x": OKP["x"]},
        OKP | {"x": "AA"},
        OKP | {"x": None},
        OKP | {"x": ""},
        OKP | {"crv": ["Ed25519"]},
        merged(RSA, {"n": REMOVE}),
        merged(RSA, {"e": REMOVE}),
        RSA | {"n": 65537},
        RSA | {"n": None},
        RSA | {"n": ""},
        RSA | {"n": "\u00e9"},
        RSA | {"n": "!!!!"},
        RSA | {"n": "A"},
        RSA | {"e": ""},
        RSA | {"e": "AQ"},  # 1: everything verifies
        RSA | {"e": "Ag"},  # 2
        RSA | {"e": []},
        RSA | {"kid": []},
        RSA | {"key_ops": 7},
        RSA | {"key_ops": True},
        RSA | {"use": {}},
        EC | {"x": EC["y"]},  # a point that is not on the curve
        EC | {"x": base64url(bytes(32)), "y": base64url(bytes(32))},
        EC | {"x": "AA"},
        EC | {"y": 1},
        EC | {"crv": "P-256K"},
        EC | {"crv": "secp256k1"},
        EC | {"crv": None},
        EC | {"crv": []},
        merged(EC, {"crv": REMOVE}),
    ],
)
def test_one_malformed_key_does_not_fail_the_set(malformed: Any) -> None:
    """What cannot be used is left out; the good key beside it is found."""
    keys = jose.read_jwks({"keys": [malformed, RSA, malformed]})
    assert [item.kid for item in keys.keys] == [RSA["kid"]]
    assert verified(GOOD, keys, "RS256") == b"{}"


@pytest.mark.parametrize("document", [{}, {"keys": None}, {"keys": {}}, {"keys": "RSA"}, RSA])
def test_what_is_no_key_set_is_refused(document: dict[str, Any]) -> None:
    """A document without an array of keys is refused; an empty array is a set of no keys."""
    assert jose.read_jwks({"keys": []}).keys == ()
    with refusal("jwks.document"):
        jose.read_jwks(document)


def test_a_private_part_is_never_read() -> None:
    """An OP that publishes its private key by mistake still gives us a public one only."""
    for alg in ("RS256", "ES256", "EdDSA"):
        (read,) = jose.read_jwks({"keys": [key(alg).private_jwk]}).keys
        assert not hasattr(read.material, "sign")
        assert verified(compact(b"{}", by=key(alg)), jose.KeySet((read,)), alg)


def test_no_key_and_no_token_is_shown() -> None:
    """`repr` of a key, of a key set and of a JWS shows neither a secret nor a token."""
    shown = f"{hmac_keys()!r} {hmac_keys().keys[0]!r} {jose.parse(GOOD)!r}"
    for secret in (SECRET, PAYLOAD, SIGNATURE):
        assert secret not in shown


# What we sign


@pytest.mark.parametrize("alg", ASYMMETRIC)
def test_what_we_sign_others_verify(alg: str) -> None:
    """Our own JWS verifies with cryptography alone, each of twenty times; it carries the kid."""
    private_jwk = json.dumps(key(alg).private_jwk)
    for number in range(20 if alg.startswith("E") else 2):
        jws = jose.sign({"jti": number}, alg, PrivateKey(private_jwk))
        assert verified_claims(jws, key(alg).private_key.public_key()) == {"jti": number}
        assert decode_jws(jws)[0] == {"alg": alg, "typ": "JWT", "kid": key(alg).kid}


@pytest.mark.parametrize("alg", ["PS256", "PS384", "PS512"])
def test_our_ps_signatures_have_a_salt_as_long_as_the_hash(alg: str) -> None:
    """RFC 7518 §3.5 fixes the length of the salt, and others refuse any other."""
    jws = jose.sign({}, alg, PrivateKey(json.dumps(key(alg).private_jwk)))
    *_, signing_input, signature = decode_jws(jws)
    public, digest = key(alg).private_key.public_key(), DIGESTS[alg[2:]]
    assert isinstance(public, rsa.RSAPublicKey)
    exact = padding.PSS(padding.MGF1(digest), digest.digest_size)
    public.verify(signature, signing_input, exact, digest)


@pytest.mark.parametrize("alg", HMAC)
def test_what_we_sign_with_the_secret_others_verify(alg: str) -> None:
    """An HMAC of ours verifies with the standard library."""
    jws = jose.sign({"a": "\u00e9"}, alg, ClientSecret(SECRET))
    header, claims, signing_input, signature = decode_jws(jws)
    assert (header, claims) == ({"alg": alg, "typ": "JWT"}, {"a": "\u00e9"})
    assert signature == hmac_signature(alg, SECRET.encode(), signing_input)


@pytest.mark.parametrize(
    ("alg", "signed_with", "members"),
    [
        ("RS256", "ES256", {}),
        ("ES256", "ES384", {"alg": REMOVE}),
        ("ES384", "ES256", {"alg": REMOVE}),
        ("EdDSA", "RS256", {}),
        ("RS256", "EdDSA", {}),
        ("PS256", "RS256", {}),  # reserved by its `alg`
        ("HS256", "RS256", {}),
        ("none", "RS256", {"alg": REMOVE}),
        ("RS256", "RS256", {"use": "enc"}),
        ("RS256", "RS256", {"d": REMOVE}),
        ("RS256", "RS256", {"n": "AA"}),
        ("ES256", "ES256", {"d": "AA"}),
        ("EdDSA", "EdDSA", {"d": None}),
    ],
)
def test_a_private_jwk_that_cannot_sign_is_told(
    alg: str, signed_with: str, members: dict[str, Any]
) -> None:
    """A private JWK must be complete and of the algorithm's type, curve and purpose."""
    private = key(signed_with).private_jwk | {"key_ops": ["sign"]}
    jose.check_private_jwk(private, signed_with)
    with refusal("jwk"):
        jose.check_private_jwk(merged(private, members), alg)


def test_a_short_private_rsa_key_is_told() -> None:
    """We do not sign with RSA keys that we would not believe."""
    with refusal("jwk"):
        jose.check_private_jwk(key("RS256", "short", bits=1024).private_jwk, "RS256")


# Anything at all

ANY_KEYS = key_set(key("RS256"), key("ES256"), key("EdDSA"))
ALL = frozenset({*ASYMMETRIC, *HMAC, "none"})
jwk_members = st.sampled_from(["kty", "crv", "kid", "use", "alg", "key_ops", "n", "e", "x", "y"])


@fuzz
@given(
    st.text() | st.from_regex(r"[\w.=-]*\.[\w.=-]*\.[\w.=-]*") | st.text("e30.-_A=", max_size=40)
)
def test_any_text_is_a_jws_or_refused(text: str) -> None:
    """No text makes anything but a JWS or a refusal, and none of these verifies."""
    with no_other_error():
        jws = jose.parse(text)
        with pytest.raises(InvalidResponse):
            jose.verify(jws, ANY_KEYS, ALL)


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "jku", "x5c", "zip", "b64"]),
        st.sampled_from([*sorted(ALL), key("RS256").kid, key("ES256").kid]) | awkward,
    ),
    st.binary(max_size=300),
)
def test_any_header_is_refused_with_a_strangers_signature(
    header: dict[str, Any], signature: bytes
) -> None:
    """No header opens the door for a signature that our keys did not make."""
    text = f"{base64url(json.dumps(header).encode())}.e30.{base64url(signature)}"
    with pytest.raises(InvalidResponse):
        jose.verify(jose.parse(text), ANY_KEYS, ALL)


@fuzz
@given(
    st.lists(
        awkward
        | st.builds(
            lambda base, members: {**base, **members},
            st.sampled_from([RSA, EC, OKP]),
            st.dictionaries(jwk_members, awkward | st.text("AQAB_-9+/= ", max_size=50)),
        ),
        max_size=4,
    )
)
def test_any_key_set_is_read_or_refused(members: list[Any]) -> None:
    """No key makes anything but a key or a gap, and the good key beside it stays."""
    keys = jose.read_jwks({"keys": [*members, key("RS256", "good").public_jwk]})
    assert keys.keys[-1].kid == key("RS256", "good").kid


@fuzz
@given(st.dictionaries(st.sampled_from(["keys", "kty"]), awkward) | st.just({"keys": json_values}))
def test_any_jwks_document_is_read_or_refused(document: dict[str, Any]) -> None:
    """No document makes anything but a key set or a refusal."""
    with no_other_error():
        assert isinstance(jose.read_jwks(document), jose.KeySet)
