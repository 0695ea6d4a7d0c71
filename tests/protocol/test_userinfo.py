"""UserInfo response (Core §5.3)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.protocol import jose
from oidc_rp.protocol.userinfo import read_userinfo_response
from oidc_rp.testing import REMOVE, SigningKey, base64url, merged

from .examples import (
    ASYMMETRIC,
    CLIENT_ID,
    HMAC,
    ISSUER,
    SECRET,
    SUB,
    awkward,
    compact,
    fuzz,
    hmac_keys,
    key,
    key_set,
    no_other_error,
    refusal,
)

PLAIN = {"sub": SUB, "name": "Jane Doe", "email": "janedoe@example.com", "middle_name": None}
SIGNED = PLAIN | {"iss": ISSUER, "aud": CLIENT_ID}
RS256 = frozenset({"RS256"})


def read(body: bytes, content_type: str = "application/json", **options: Any) -> Any:
    usual: dict[str, Any] = {
        "sub": SUB,
        "iss": ISSUER,
        "client_id": CLIENT_ID,
        "keys": lambda: key_set(key("RS256")),
        "algorithms": RS256,
    }
    return read_userinfo_response(body, content_type, **usual | options)


def read_plain(changes: dict[str, Any], **options: Any) -> Any:
    return read(json.dumps(merged(PLAIN, changes)).encode(), **options)


def read_signed(changes: dict[str, Any], **options: Any) -> Any:
    return read(compact(merged(SIGNED, changes)).encode(), "application/jwt", **options)


def no_keys() -> jose.KeySet:
    raise AssertionError("keys are asked for where nothing is signed")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON", ""]
)
def test_a_plain_response(content_type: str) -> None:
    """Claims come out as they were sent, and no keys are fetched for them."""
    assert read(json.dumps(PLAIN).encode(), content_type, keys=no_keys) == PLAIN


@pytest.mark.parametrize(
    "content_type", ["application/jwt", "application/jwt; charset=utf-8", "APPLICATION/JWT"]
)
def test_a_signed_response(content_type: str) -> None:
    """A JWT of this issuer for this client."""
    assert read(compact(SIGNED).encode(), content_type) == SIGNED


@pytest.mark.parametrize("alg", [*ASYMMETRIC, *HMAC])
def test_a_response_signed_with_any_algorithm(alg: str) -> None:
    """Each algorithm where it is the one that is allowed, and only there."""
    by: SigningKey | bytes = SECRET.encode() if alg in HMAC else key(alg)
    body = compact(SIGNED, by=by, alg=alg).encode()
    keys = hmac_keys() if alg in HMAC else key_set(key(alg))
    answer = read(body, "application/jwt", keys=lambda: keys, algorithms=frozenset({alg}))
    assert answer == SIGNED
    with refusal("userinfo.alg"):
        others = frozenset({*ASYMMETRIC, *HMAC}) - {alg}
        read(body, "application/jwt", keys=lambda: keys, algorithms=others)


@pytest.mark.parametrize(
    "sub",
    ["somebody-else", SUB + " ", SUB.swapcase() + "0", "", None, REMOVE, int(SUB), [SUB], True],
)
def test_M31_sub_is_that_of_the_id_token(sub: object) -> None:
    """Plain or signed: another `sub`, none, or one of another type is refused (§5.3.2)."""
    with refusal("userinfo.sub"):
        read_plain({"sub": sub})
    with refusal("userinfo.sub"):
        read_signed({"sub": sub})


@pytest.mark.parametrize(
    ("bite", "code"),
    [
        ({"iss": REMOVE}, "userinfo.iss"),
        ({"iss": None}, "userinfo.iss"),
        ({"iss": ISSUER + "/"}, "userinfo.iss"),
        ({"iss": [ISSUER]}, "userinfo.iss"),
        ({"iss": "https://evil.example"}, "userinfo.iss"),
        ({"aud": REMOVE}, "userinfo.aud"),
        ({"aud": None}, "userinfo.aud"),
        ({"aud": "somebody-else"}, "userinfo.aud"),
        ({"aud": []}, "userinfo.aud"),
        ({"aud": [CLIENT_ID, 1]}, "userinfo.aud"),
        ({"aud": {CLIENT_ID: 1}}, "userinfo.aud"),
    ],
)
def test_M31_a_signed_response_names_issuer_and_client(bite: dict[str, Any], code: str) -> None:
    """A JWT for somebody else, or by somebody else, is refused (§5.3.2)."""
    assert read_signed({"aud": [CLIENT_ID]})["aud"] == [CLIENT_ID]
    with refusal(code):
        read_signed(bite)


def test_M31_signed_is_not_replaced_by_plain() -> None:
    """Where the settings ask for a signature, a plain answer is refused, whatever it says."""
    assert read_signed({}, must_be_signed=True) == SIGNED
    for content_type in ("application/json", "", "application/jwt+json", "text/html"):
        with refusal("userinfo.content_type"):
            read(json.dumps(SIGNED).encode(), content_type, must_be_signed=True)


UNSIGNED = f"eyJhbGciOiJub25lIn0.{base64url(json.dumps(SIGNED).encode())}."


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (UNSIGNED.encode(), "userinfo.alg"),
        (UNSIGNED.encode() + b"AA", "userinfo.alg"),
        (compact(SIGNED, by=key("RS256", "stranger")).encode(), "userinfo.kid"),
        (compact(SIGNED, by=key("RS256").public_pem, alg="HS256").encode(), "userinfo.alg"),
        (compact(SIGNED, header={"crit": ["a"]}).encode(), "userinfo.crit"),
        (f"{compact(SIGNED).rpartition('.')[0]}.AAAA".encode(), "userinfo.signature"),
        (compact(b"[]").encode(), "userinfo.json"),
        (b"a.b.c.d.e", "userinfo.format"),
        (b"\xff.\xff.\xff", "userinfo.format"),
        (b"", "userinfo.format"),
        (json.dumps(SIGNED).encode(), "userinfo.format"),
        (b"x" * 70_000, "userinfo.size"),
    ],
)
def test_M18_a_jwt_is_verified_like_any_other(body: bytes, code: str) -> None:
    """`none`, strangers, confusion and malformed ones are refused here as well."""
    with refusal(code):
        read(body, "application/jwt")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"<html>", b'{"sub": "a", "sub": "a"}', b"\xff"]
)
def test_a_plain_response_is_a_json_object(body: bytes) -> None:
    """Anything else is refused."""
    with refusal("userinfo.json"):
        read(body)


def test_a_jwt_that_says_it_is_json_is_refused() -> None:
    """The content type decides, and is not guessed."""
    with refusal("userinfo.json"):
        read(compact(SIGNED).encode(), "application/json")


def test_oidcc_client_test_userinfo_invalid_sub() -> None:
    with refusal("userinfo.sub"):
        read_plain({"sub": SUB + "INVALID"})


@fuzz
@given(
    st.binary(max_size=100)
    | st.dictionaries(st.sampled_from(["sub", "iss", "aud", "name"]), awkward).map(
        lambda changes: json.dumps(SIGNED | changes).encode()
    ),
    st.sampled_from(["application/json", "application/jwt", "text/html"]) | st.text(),
    st.booleans(),
)
def test_any_body_is_read_or_refused(body: bytes, content_type: str, must_be_signed: bool) -> None:
    """No answer of the UserInfo endpoint makes anything but this person's claims, or a refusal."""
    with no_other_error():
        assert read(body, content_type, must_be_signed=must_be_signed)["sub"] == SUB


@fuzz
@given(st.dictionaries(st.sampled_from(["sub", "iss", "aud", "azp"]), awkward))
def test_any_signed_claims_are_read_or_refused(changes: dict[str, Any]) -> None:
    """A good signature alone opens nothing."""
    with no_other_error():
        answer = read_signed(changes)
        assert (answer["sub"], answer["iss"]) == (SUB, ISSUER)
