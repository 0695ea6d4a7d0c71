"""Logout requests (RP-Initiated Logout §2); logout tokens (Back-Channel Logout §2.4 and §2.6), and
how they differ from ID Tokens."""

from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidResponse
from oidc_rp.protocol.id_token import validate_id_token
from oidc_rp.protocol.logout import (
    EVENT,
    LogoutRequest,
    LogoutTokenClaims,
    logout_url,
    validate_logout_token,
)
from oidc_rp.protocol.metadata import ProviderMetadata, read_provider_metadata
from oidc_rp.protocol.tokens import IdToken
from oidc_rp.testing import REMOVE, base64url, merged

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


METADATA = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth",
    "token_endpoint": f"{ISSUER}/token",
    "end_session_endpoint": f"{ISSUER}/end?realm=a",
}
RETURN = "https://rp.example/oidc/logged-out/"


def metadata(**changes: Any) -> ProviderMetadata:
    return read_provider_metadata(merged(METADATA, changes), ISSUER)


def request(**changes: Any) -> LogoutRequest:
    return LogoutRequest(
        **{
            "client_id": CLIENT_ID,
            "post_logout_redirect_uri": RETURN,
            "state": "s&=",
            "id_token_hint": IdToken("a.b.c"),
            "ui_locales": "de",
        }
        | changes
    )


def asked(url: str | None) -> tuple[str, list[tuple[str, str]]]:
    """The URL up to its query, and the parameters in their order of names."""
    assert url is not None
    parts = urlsplit(url)
    return parts._replace(query="").geturl(), sorted(parse_qsl(parts.query, True, True))


def test_M56_a_logout_request() -> None:
    """RP-Initiated Logout §2; the endpoint may have a query of its own."""
    assert asked(logout_url(request(), metadata(), "standard")) == (
        f"{ISSUER}/end",
        [
            ("client_id", CLIENT_ID),
            ("id_token_hint", "a.b.c"),
            ("post_logout_redirect_uri", RETURN),
            ("realm", "a"),
            ("state", "s&="),
            ("ui_locales", "de"),
        ],
    )


def test_M56_what_is_not_there_is_not_sent() -> None:
    """Without the ID Token client_id says who asks (§2)."""
    bare = request(id_token_hint=None, ui_locales=None, state="")
    assert asked(logout_url(bare, metadata(), "standard"))[1] == [
        ("client_id", CLIENT_ID),
        ("post_logout_redirect_uri", RETURN),
        ("realm", "a"),
    ]


def sent_with(id_token: str) -> list[str]:
    """The names of what is sent when there is this ID Token."""
    url = logout_url(request(id_token_hint=IdToken(id_token)), metadata(), "standard")
    return [name for name, _ in asked(url)[1]]


def test_M56_an_id_token_that_no_url_can_carry_is_left_out() -> None:
    """One with all the groups of a large organisation; the OP asks the person then."""
    without = ["client_id", "post_logout_redirect_uri", "realm", "state", "ui_locales"]
    assert sent_with("a.b." + "c" * 6000) == sorted([*without, "id_token_hint"])
    assert sent_with("a.b." + "c" * 8000) == without


def test_M56_no_endpoint_and_local_are_nowhere_to_go() -> None:
    assert logout_url(request(), metadata(end_session_endpoint=REMOVE), "standard") is None
    assert logout_url(request(), metadata(), "local") is None


@pytest.mark.parametrize("published", [REMOVE, f"{ISSUER}/oidc/logout"])
@pytest.mark.parametrize(
    ("style", "path", "name"),
    [("auth0", "/v2/logout", "returnTo"), ("cognito", "/logout", "logout_uri")],
)
def test_M56_two_that_have_ways_of_their_own(
    style: str, path: str, name: str, published: object
) -> None:
    """Their path, with their parameters, beside the authorization endpoint: an endpoint that their
    metadata names meanwhile is the standard's, and does not know these parameters. No ID Token
    goes there."""
    known = metadata(
        authorization_endpoint="https://login.example:8443/oauth2/authorize?a=b",
        end_session_endpoint=published,
    )
    assert asked(logout_url(request(), known, style)) == (
        f"https://login.example:8443{path}",
        [("client_id", CLIENT_ID), (name, RETURN)],
    )


def test_M53_the_repr_of_a_logout_request_shows_no_secret() -> None:
    """The ID Token and the state are for the OP alone."""
    told = request(state="the-state", id_token_hint=IdToken("head.body.signature"))
    assert "the-state" not in repr(told)
    assert "head.body" not in repr(told)


def logout_token(changes: dict[str, Any], header: dict[str, Any] | None = None) -> str:
    return compact(merged(GOOD, changes), TYP if header is None else header)


def validated(text: str, **changes: Any) -> LogoutTokenClaims:
    return validate_logout_token(text, expected(**changes), key_set(key("RS256")), NOW)


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
        ({"iat": MOMENT - 361}, "logout_token.iat"),
        ({"iat": str(MOMENT)}, "logout_token.iat"),
        ({"iat": -1}, "logout_token.iat"),
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
        ({"nonce": ""}, "logout_token.nonce"),
        ({"sub": REMOVE, "sid": REMOVE}, "logout_token.sub"),
        ({"sub": ""}, "logout_token.sub"),
        ({"sub": 1}, "logout_token.sub"),
        ({"sub": "x" * 256}, "logout_token.sub"),
        ({"sid": []}, "logout_token.sid"),
        ({"sid": ""}, "logout_token.sid"),
        ({"sid": "x" * 256}, "logout_token.sid"),
        ({"nbf": MOMENT + 61}, "logout_token.nbf"),
        ({"azp": "somebody-else"}, "logout_token.azp"),
    ],
)
def test_each_step_of_back_channel_2_6(bite: dict[str, Any], code: str) -> None:
    """Each check refuses its own mistake by its own name."""
    with refusal(code):
        validated(logout_token(bite))


@pytest.mark.parametrize(("leeway", "oldest"), [(0, 300), (30, 330), (60, 360), (600, 360)])
def test_M57_five_minutes_old_at_most(leeway: int, oldest: int) -> None:
    """A good one that an OP could not deliver for longer is refused, whatever its exp says: its jti
    need not be remembered for ever. The clocks may differ as much as the settings say."""
    options = {"leeway": timedelta(seconds=leeway)}
    later = {"exp": MOMENT + 86400}
    assert validated(logout_token(later | {"iat": MOMENT - oldest}), **options).jti == "bWJq"
    with refusal("logout_token.iat"):
        validated(logout_token(later | {"iat": MOMENT - oldest - 1}), **options)


def test_M57_members_that_nobody_knows_are_ignored() -> None:
    """Of the token and of its event."""
    more = {"events": {EVENT: {"reason": "x"}, "https://op.example/event": {}}, "trace_id": [1]}
    assert validated(logout_token(more)) == validated(logout_token({}))


def test_M37_every_tenant_that_may_sign_in_may_sign_out() -> None:
    """And nobody else's does."""
    tenants = {
        "issuer": "https://op.example/{tenantid}/v2.0",
        "tenants": frozenset({"a", "b"}),
    }
    for tenant in ("a", "b"):
        iss = f"https://op.example/{tenant}/v2.0"
        assert validated(logout_token({"iss": iss}), **tenants).iss == iss
    for iss in ("https://op.example/c/v2.0", "https://op.example/{tenantid}/v2.0", ISSUER):
        with refusal("logout_token.iss"):
            validated(logout_token({"iss": iss}), **tenants)


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
