"""Logout tokens (Back-Channel Logout §2.4 and §2.6), and how they differ from ID Tokens."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidResponse
from oidc_rp.protocol.id_token import validate_id_token
from oidc_rp.protocol.logout import EVENT, LogoutTokenClaims, validate_logout_token
from oidc_rp.protocol.tokens import IdToken
from tests.provider import REMOVE, base64url, merged

from .examples import (
    CLIENT_ID,
    ISSUER,
    MOMENT,
    NONCE,
    NOW,
    SUB,
    awkward,
    claims,
    compact,
    expected,
    fuzz,
    key,
    key_set,
    no_other_error,
    refusal,
)

GOOD = {
    "iss": ISSUER,
    "sub": SUB,
    "aud": CLIENT_ID,
    "iat": MOMENT - 1,
    "exp": MOMENT + 119,
    "jti": "bWJq",
    "sid": "08a5019c",
    "events": {EVENT: {}},
}
TYP = {"typ": "logout+jwt"}


def logout_token(changes: dict[str, Any], header: dict[str, Any] | None = None) -> str:
    return compact(merged(GOOD, changes), TYP if header is None else header)


def validated(text: str) -> LogoutTokenClaims:
    return validate_logout_token(text, expected(), key_set(key("RS256")), NOW)


@pytest.mark.parametrize("header", [TYP, {}, {"typ": "JWT"}, {"typ": "LOGOUT+JWT"}])
def test_a_good_logout_token(header: dict[str, Any]) -> None:
    """With the type, or, as older OPs send it, without."""
    assert validated(logout_token({}, header)) == LogoutTokenClaims(
        iss=ISSUER, sub=SUB, sid="08a5019c", jti="bWJq", iat=MOMENT - 1
    )


def test_sub_or_sid_is_enough() -> None:
    """One of the two names whom to sign out."""
    assert validated(logout_token({"sub": REMOVE})).sub is None
    assert validated(logout_token({"sid": REMOVE, "events": {EVENT: {"a": 1}, "b": 1}})).sid is None


@pytest.mark.parametrize(
    ("bite", "code"),
    [
        ({"iss": REMOVE}, "logout_token.iss"),
        ({"iss": ISSUER + "/"}, "logout_token.iss"),
        ({"iss": [ISSUER]}, "logout_token.iss"),
        ({"aud": REMOVE}, "logout_token.aud"),
        ({"aud": "somebody-else"}, "logout_token.aud"),
        ({"aud": [CLIENT_ID, "untrusted"]}, "logout_token.aud"),
        ({"iat": REMOVE}, "logout_token.iat"),
        ({"iat": MOMENT + 61}, "logout_token.iat"),
        ({"exp": REMOVE}, "logout_token.exp"),
        ({"exp": MOMENT - 60}, "logout_token.exp"),
        ({"exp": True}, "logout_token.exp"),
        ({"jti": REMOVE}, "logout_token.jti"),
        ({"jti": ""}, "logout_token.jti"),
        ({"jti": 1}, "logout_token.jti"),
        ({"jti": "x" * 256}, "logout_token.jti"),
        ({"events": REMOVE}, "logout_token.events"),
        ({"events": {}}, "logout_token.events"),
        ({"events": [EVENT]}, "logout_token.events"),
        ({"events": EVENT}, "logout_token.events"),
        ({"events": {EVENT: None}}, "logout_token.events"),
        ({"events": {EVENT + "/": {}}}, "logout_token.events"),
        ({"nonce": NONCE}, "logout_token.nonce"),
        ({"nonce": None}, "logout_token.nonce"),
        ({"sub": REMOVE, "sid": REMOVE}, "logout_token.sub"),
        ({"sub": ""}, "logout_token.sub"),
        ({"sub": 1}, "logout_token.sub"),
        ({"sid": []}, "logout_token.sid"),
    ],
)
def test_each_step_of_back_channel_2_6(bite: dict[str, Any], code: str) -> None:
    """Each check refuses its own mistake by its own name."""
    with refusal(code):
        validated(logout_token(bite))


@pytest.mark.parametrize("typ", ["at+jwt", "secevent+jwt", "dpop+jwt", "", None, 1])
def test_M32_a_jwt_of_another_kind_is_no_logout_token(typ: object) -> None:
    """Explicit typing tells them apart (RFC 8725 §3.11)."""
    with refusal("logout_token.typ"):
        validated(logout_token({}, {"typ": typ}))


@pytest.mark.parametrize("header", [{}, {"typ": "JWT"}, TYP])
@pytest.mark.parametrize("nonce", [NONCE, REMOVE])
def test_M32_an_id_token_is_no_logout_token(header: dict[str, Any], nonce: object) -> None:
    """With or without nonce, even if it called itself one: it has no event."""
    id_token = compact(claims({"nonce": nonce, "sid": "a", "jti": "b"}), header)
    with pytest.raises(InvalidResponse) as caught:
        validated(id_token)
    assert caught.value.code in ("logout_token.nonce", "logout_token.events")


@pytest.mark.parametrize(
    ("header", "code"),
    [(TYP, "id_token.typ"), ({}, "id_token.events"), ({"typ": "JWT"}, "id_token.events")],
)
def test_M32_a_logout_token_is_no_id_token(header: dict[str, Any], code: str) -> None:
    """By its type, and without one by its event; not even where no nonce is expected."""
    for nonce in (None, NONCE):
        with refusal(code):
            validate_id_token(
                IdToken(logout_token({}, header)), expected(nonce=nonce), key_set(key("RS256")), NOW
            )


@pytest.mark.parametrize("alg", ["none", "None", "NONE"])
@pytest.mark.parametrize("signature", ["", "AA"])
def test_M18_none_is_refused_on_the_back_channel_too(alg: str, signature: str) -> None:
    """An unsigned logout token signs nobody out."""
    header = base64url(f'{{"alg":"{alg}","typ":"logout+jwt"}}'.encode())
    payload = logout_token({}).split(".")[1]
    with refusal("logout_token.alg"):
        validated(f"{header}.{payload}.{signature}")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "logout_token.format"),
        (logout_token({}) + "=", "logout_token.format"),
        (compact(b"[]", TYP), "logout_token.payload"),
        (compact(GOOD, TYP, by=key("RS256", "stranger")), "logout_token.kid"),
        (logout_token({}, TYP | {"crit": ["a"]}), "logout_token.crit"),
        (compact(GOOD, TYP, by=key("RS256").public_pem, alg="HS256"), "logout_token.alg"),
    ],
)
def test_the_form_and_the_signature(text: str, code: str) -> None:
    """The same strictness as for ID Tokens."""
    with refusal(code):
        validated(text)


@fuzz
@given(st.dictionaries(st.sampled_from([*GOOD, "nonce"]), awkward))
def test_any_claims_are_accepted_or_refused(changes: dict[str, Any]) -> None:
    """Whatever a signed token claims, the answer is whom to sign out or a typed refusal."""
    with no_other_error():
        read = validated(logout_token(changes))
        assert read.iss == ISSUER
        assert read.sub or read.sid


@fuzz
@given(st.text(max_size=100))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidResponse):
        validated(text)
