"""ID Token validation: Core §3.1.3.7 step by step, each step with one bite taken out."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidIdToken, OIDCError
from oidc_rp.protocol import jose
from oidc_rp.protocol.id_token import (
    ExpectedIdToken,
    IdTokenClaims,
    check_at_hash,
    check_refreshed_id_token,
    lasting_claims,
    validate_id_token,
)
from oidc_rp.protocol.logout import EVENT
from oidc_rp.protocol.tokens import AccessToken, IdToken
from oidc_rp.testing import REMOVE, SigningKey, base64url, half_hash

from .examples import (
    ASYMMETRIC,
    CLIENT_ID,
    HMAC,
    ISSUER,
    MOMENT,
    NONCE,
    NOW,
    SECRET,
    SUB,
    awkward,
    claims,
    compact,
    compact_of,
    expected,
    fuzz,
    hmac_keys,
    key,
    key_set,
    no_other_error,
    refusal,
)

TENANT_ISSUER = "https://login.op.example/{tenantid}/v2.0"
ACCESS_TOKEN = AccessToken("SlAV32hkKG")


def validated(
    text: str, keys: jose.KeySet | None = None, seconds: float = 0, **changes: Any
) -> IdTokenClaims:
    """The claims of this ID Token, `seconds` after NOW; `changes` are to what is expected."""
    keys = keys or key_set(key("RS256"))
    moment = NOW + timedelta(seconds=seconds)
    return validate_id_token(IdToken(text), expected(**changes), keys, moment)


def with_claims(changes: dict[str, Any]) -> str:
    return compact(claims(changes))


def test_a_good_id_token() -> None:
    """Every claim of a good ID Token comes out as it was sent."""
    assert validated(compact()) == IdTokenClaims(
        iss=ISSUER,
        sub=SUB,
        aud=(CLIENT_ID,),
        exp=MOMENT + 300,
        iat=MOMENT - 1,
        alg="RS256",
        claims=claims(),
    )


@pytest.mark.parametrize(
    ("step", "bite", "code"),
    [
        ("2", {"iss": "https://other.example"}, "id_token.iss"),
        ("2", {"iss": REMOVE}, "id_token.iss"),
        ("3", {"aud": "somebody-else"}, "id_token.aud"),
        ("3", {"aud": REMOVE}, "id_token.aud"),
        ("3", {"aud": [CLIENT_ID, "untrusted"], "azp": CLIENT_ID}, "id_token.aud"),
        ("4", {"azp": "somebody-else"}, "id_token.azp"),
        ("9", {"exp": MOMENT - 61}, "id_token.exp"),
        ("9", {"exp": REMOVE}, "id_token.exp"),
        ("10", {"iat": MOMENT + 61}, "id_token.iat"),
        ("10", {"iat": REMOVE}, "id_token.iat"),
        ("11", {"nonce": "another"}, "id_token.nonce"),
        ("11", {"nonce": REMOVE}, "id_token.nonce"),
        ("12", {"acr": "urn:weak"}, "id_token.acr"),
        ("12", {"acr": REMOVE}, "id_token.acr"),
        ("13", {"auth_time": MOMENT - 400}, "id_token.auth_time"),
        ("13", {"auth_time": REMOVE}, "id_token.auth_time"),
        ("§2", {"sub": REMOVE}, "id_token.sub"),
    ],
)
def test_each_step_of_core_3_1_3_7(step: str, bite: dict[str, Any], code: str) -> None:
    """Each step of Core §3.1.3.7 refuses its own mistake by its own name."""
    asked: dict[str, Any] = {"max_age": 300, "acr_values": ("urn:strong", "urn:stronger")}
    assert validated(with_claims({"acr": "urn:strong"}), **asked).sub == SUB
    with refusal(code):
        validated(with_claims({"acr": "urn:strong"} | bite), **asked)


@pytest.mark.parametrize("alg", [*ASYMMETRIC, *HMAC])
def test_steps_6_to_8_every_algorithm(alg: str) -> None:
    """Each algorithm signs an ID Token where it is the one that is expected, and only there."""
    by: SigningKey | bytes = SECRET.encode() if alg in HMAC else key(alg)
    keys = hmac_keys() if alg in HMAC else key_set(key(alg))
    id_token = compact(by=by, alg=alg)
    assert validated(id_token, keys, algorithms=frozenset({alg})).alg == alg
    for others in (frozenset({*ASYMMETRIC, *HMAC}) - {alg}, frozenset[str]()):
        with refusal("id_token.alg"):
            validated(id_token, keys, algorithms=others)


# M17 to M22: the form and the signature; test_jose.py has the details


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "id_token.format"),
        ("a.b.c.d.e", "id_token.format"),
        (json.dumps({"payload": "e30", "signatures": []}), "id_token.format"),
        (compact() + ".", "id_token.format"),
        (compact() + "=", "id_token.format"),
        (compact(b"[]"), "id_token.payload"),
        (compact(b'"text"'), "id_token.payload"),
        (compact(b"not JSON"), "id_token.payload"),
        (compact(json.dumps(claims()).encode("utf-16")), "id_token.payload"),
        (compact(header={"crit": ["exp"]}), "id_token.crit"),
        (compact(header={"kid": "unknown"}), "id_token.kid"),
        ("x" * 65537, "id_token.size"),
    ],
)
def test_M17_only_a_compact_jws_of_an_object(text: str, code: str) -> None:
    """An ID Token in any other form is refused."""
    with refusal(code):
        validated(text)


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "exp", "nonce", "unknown"])
def test_M17_duplicate_claims_are_refused(name: str) -> None:
    """Two claims of one name are refused, though both say the same."""
    value = json.dumps(claims({"unknown": 1})[name])
    payload = json.dumps(claims({"unknown": 1}))[:-1] + f', "{name}": {value}}}'
    with refusal("id_token.payload"):
        validated(compact(payload.encode()))


@pytest.mark.parametrize("payload", [b"", b"e30"])
def test_M17_a_detached_payload_is_refused(payload: bytes) -> None:
    """A JWS whose payload is empty or elsewhere (RFC 7515 App. F) is no ID Token."""
    with refusal("id_token.payload"):
        validated(compact_of(b'{"alg":"RS256"}', payload, key("RS256"), "RS256"))


# M23: iss


@pytest.mark.parametrize(
    "iss",
    [
        ISSUER + "/",
        ISSUER + "/tenant",
        ISSUER + "?",
        ISSUER + "#",
        ISSUER + ":443",
        ISSUER.upper(),
        ISSUER.replace("https", "http"),
        ISSUER.removeprefix("https://"),
        ISSUER[:-1],
        f" {ISSUER}",
        f"{ISSUER}\n",
        "https://op.example.evil.example",
        "https://evil.example/?https://op.example",
        "https://\u043ep.example",  # a Cyrillic o
        [ISSUER],
        {ISSUER: 1},
        "",
        None,
        True,
        0,
    ],
)
def test_M23_iss_is_the_same_string(iss: object) -> None:
    """`iss` equals the issuer byte for byte: no substring, no slash, no case, no list."""
    with refusal("id_token.iss"):
        validated(with_claims({"iss": iss}))


def test_M23_a_trailing_slash_is_part_of_the_issuer() -> None:
    """An issuer that ends in a slash is met by that one only."""
    assert validated(with_claims({"iss": ISSUER + "/"}), issuer=ISSUER + "/").iss == ISSUER + "/"
    with refusal("id_token.iss"):
        validated(compact(), issuer=ISSUER + "/")


# M24: aud and azp


@pytest.mark.parametrize(
    "bite",
    [
        {"aud": CLIENT_ID},
        {"aud": [CLIENT_ID]},
        {"aud": CLIENT_ID, "azp": CLIENT_ID},
        {"aud": [CLIENT_ID, "api"], "azp": CLIENT_ID},
        {"aud": ["api", CLIENT_ID, "other-api"], "azp": CLIENT_ID},
    ],
)
def test_M24_trusted_audiences(bite: dict[str, Any]) -> None:
    """The client, alone or among audiences that the settings trust."""
    trusted = frozenset({"api", "other-api"})
    aud = bite["aud"]
    read = validated(with_claims(bite), trusted_audiences=trusted).aud
    assert read == ((aud,) if isinstance(aud, str) else tuple(aud))


@pytest.mark.parametrize(
    ("bite", "code"),
    [
        ({"aud": "api"}, "id_token.aud"),
        ({"aud": ["api"]}, "id_token.aud"),
        ({"aud": []}, "id_token.aud"),
        ({"aud": ""}, "id_token.aud"),
        ({"aud": f"{CLIENT_ID} api"}, "id_token.aud"),
        ({"aud": f"{CLIENT_ID}-2"}, "id_token.aud"),
        ({"aud": CLIENT_ID.upper()}, "id_token.aud"),
        ({"aud": [CLIENT_ID, 1], "azp": CLIENT_ID}, "id_token.aud"),
        ({"aud": [[CLIENT_ID]]}, "id_token.aud"),
        ({"aud": {CLIENT_ID: True}}, "id_token.aud"),
        ({"aud": None}, "id_token.aud"),
        ({"aud": True}, "id_token.aud"),
        ({"aud": [CLIENT_ID, "untrusted"], "azp": CLIENT_ID}, "id_token.aud"),
        ({"aud": [CLIENT_ID, "api", "untrusted"], "azp": CLIENT_ID}, "id_token.aud"),
        ({"aud": [CLIENT_ID, "api"]}, "id_token.azp"),
        ({"aud": [CLIENT_ID, "api"], "azp": "api"}, "id_token.azp"),
        ({"azp": "somebody-else"}, "id_token.azp"),
        ({"azp": [CLIENT_ID]}, "id_token.azp"),
        ({"azp": None}, "id_token.azp"),
        ({"azp": ""}, "id_token.azp"),
    ],
)
def test_M24_aud_and_azp(bite: dict[str, Any], code: str) -> None:
    """Every other audience must be trusted, several need `azp`, and `azp` is this client."""
    with refusal(code):
        validated(with_claims(bite), trusted_audiences=frozenset({"api"}))


# M25: times

NO_NUMERIC_DATES: list[Any] = [
    str(MOMENT + 300),
    "2026-01-02T03:04:05Z",
    True,
    False,
    None,
    [],
    [MOMENT],
    {},
    -1,
    -0.5,
    10**18,
    10**400,
    -(10**400),
    1e300,
]


@pytest.mark.parametrize("name", ["exp", "iat", "nbf", "auth_time"])
@pytest.mark.parametrize("value", NO_NUMERIC_DATES)
def test_M25_times_are_numbers_of_seconds(name: str, value: Any) -> None:
    """Texts, booleans, null, negative and huge numbers are no NumericDate (RFC 7519 §2)."""
    assert validated(with_claims({name: MOMENT - 1.5} if name != "exp" else {}), max_age=60)
    with refusal(f"id_token.{name}"):
        validated(with_claims({name: value}), max_age=60)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])
def test_M25_what_is_no_number_in_json_is_refused(value: str) -> None:
    """NaN, infinities and numbers that Python cannot hold are no JSON to us."""
    payload = json.dumps(claims({"exp": "?"})).replace('"?"', value)
    with refusal("id_token.payload"):
        validated(compact(payload.encode()))


@pytest.mark.parametrize(
    ("leeway", "name", "offset", "good"),
    [
        (60, "exp", 1, True),
        (60, "exp", 0, True),
        (60, "exp", -59, True),
        (60, "exp", -59.5, True),
        (60, "exp", -60, False),
        (60, "exp", -61, False),
        (0, "exp", 1, True),
        (0, "exp", 0, False),  # "on or after" (RFC 7519 §4.1.4)
        (0, "exp", -1, False),
        (3600, "exp", -61, False),  # whatever the caller says, 60 s at most
        (60, "iat", 0, True),
        (60, "iat", 60, True),
        (60, "iat", 61, False),
        (0, "iat", 0, True),
        (0, "iat", 1, False),
        (3600, "iat", 61, False),
        (60, "iat", -(10**6), True),
        (60, "nbf", 60, True),
        (60, "nbf", 61, False),
        (0, "nbf", 1, False),
    ],
)
def test_M25_leeway_forgives_and_never_punishes(
    leeway: int, name: str, offset: float, good: bool
) -> None:
    """An ID Token is good for 0 to 60 s longer than it says, never shorter."""
    id_token = with_claims({name: MOMENT + offset})
    if good:
        assert validated(id_token, leeway=timedelta(seconds=leeway))
    else:
        with refusal(f"id_token.{name}"):
            validated(id_token, leeway=timedelta(seconds=leeway))


def test_M25_an_id_token_expires() -> None:
    """The same ID Token is good now and refused when its time has come."""
    assert validated(compact(), seconds=359)
    with refusal("id_token.exp"):
        validated(compact(), seconds=360)


# M26: nonce


@pytest.mark.parametrize(
    "bite",
    [
        {"nonce": REMOVE},
        {"nonce": None},
        {"nonce": ""},
        {"nonce": NONCE.upper()},
        {"nonce": NONCE + " "},
        {"nonce": NONCE[:-1]},
        {"nonce": [NONCE]},
        {"nonce": True},
        {"nonce": "\u00e9"},
        {"nonce": REMOVE, "nonce_supported": False},
        {"nonce": REMOVE, "amr": ["none"], "typ": "ID", "nonce_required": False},
    ],
)
def test_M26_the_nonce_that_was_sent_comes_back(bite: dict[str, Any]) -> None:
    """Missing, different or of another type: refused; nothing in the token switches that off."""
    with refusal("id_token.nonce"):
        validated(with_claims(bite))


def test_M26_no_nonce_was_sent() -> None:
    """Where none was sent, as at a refresh, none is asked for."""
    assert validated(with_claims({"nonce": REMOVE}), nonce=None)


def test_M26_the_nonce_is_not_told() -> None:
    """Neither the one sent nor the one received is in the error, or in what was expected."""
    with pytest.raises(InvalidIdToken) as caught:
        validated(with_claims({"nonce": "received-nonce"}))
    error = caught.value
    assert error.expected is error.received is None
    assert NONCE not in f"{error} {expected()!r}"


# M27: at_hash


@pytest.mark.parametrize("alg", [*ASYMMETRIC, *HMAC])
def test_M27_at_hash_of_every_algorithm(alg: str) -> None:
    """The left half of the hash of the access token, by the hash of the algorithm."""
    by: SigningKey | bytes = SECRET.encode() if alg in HMAC else key(alg)
    keys = hmac_keys() if alg in HMAC else key_set(key(alg))

    def bound(at_hash: str) -> IdTokenClaims:
        id_token = compact(claims({"at_hash": at_hash}), by=by, alg=alg)
        return validated(id_token, keys, algorithms=frozenset({alg}))

    good = bound(half_hash(alg, ACCESS_TOKEN.reveal()))
    check_at_hash(good, ACCESS_TOKEN)
    for wrong in (
        bound(half_hash(alg, "another")),
        bound(half_hash("RS384" if alg.endswith("256") else "RS256", ACCESS_TOKEN.reveal())),
    ):
        with refusal("id_token.at_hash"):
            check_at_hash(wrong, ACCESS_TOKEN)


@pytest.mark.parametrize("at_hash", ["", None, 1, True, [], ["x"], {}, "\u00e9", "A" * 1000])
def test_M27_an_at_hash_that_is_present_is_checked(at_hash: object) -> None:
    """Whatever it is, if it is there it must be right; the padded spelling is wrong, too."""
    right = half_hash("RS256", ACCESS_TOKEN.reveal())
    for wrong in (at_hash, right + "==", right[:-1], right.lower()):
        with refusal("id_token.at_hash"):
            check_at_hash(validated(with_claims({"at_hash": wrong})), ACCESS_TOKEN)


def test_M27_at_hash_is_optional_in_the_code_flow() -> None:
    """Core §3.1.3.6: an ID Token from the token endpoint may come without."""
    check_at_hash(validated(compact()), ACCESS_TOKEN)


@pytest.mark.parametrize("alg", ["none", "", "XX256", "RS1", "ES256K"])
def test_M27_an_unknown_algorithm_is_a_failure(alg: str) -> None:
    """With no known hash there is no comparing, and so no success."""
    at_hash = {"at_hash": half_hash("RS256", ACCESS_TOKEN.reveal())}
    odd = IdTokenClaims(ISSUER, SUB, (CLIENT_ID,), MOMENT, MOMENT, alg, at_hash)
    with pytest.raises(OIDCError):
        check_at_hash(odd, ACCESS_TOKEN)


# M28: sub


@pytest.mark.parametrize(
    "sub", ["a", "A", " a ", "a" * 255, "\u00e9", "e\u0301", "1\u2028", "null"]
)
def test_M28_sub_is_kept_as_it_is(sub: str) -> None:
    """`sub` is never trimmed, folded or normalised (Core §5.7)."""
    assert validated(with_claims({"sub": sub})).sub == sub


@pytest.mark.parametrize("sub", ["", "a" * 256, 1, 0, None, True, [], [SUB], {"id": SUB}, 1.5])
def test_M28_sub_is_a_string_of_1_to_255(sub: object) -> None:
    """Anything else names nobody."""
    with refusal("id_token.sub"):
        validated(with_claims({"sub": sub}))


# M29: max_age and acr


@pytest.mark.parametrize(
    ("auth_time", "good"),
    [(-300, True), (-360, True), (-361, False), (60, True), (61, False), (0, True)],
)
def test_M29_max_age_is_enforced(auth_time: int, good: bool) -> None:
    """`auth_time` is at most max_age ago, and not in the future, with the leeway."""
    id_token = with_claims({"auth_time": MOMENT + auth_time})
    if good:
        assert validated(id_token, max_age=300).auth_time == MOMENT + auth_time
    else:
        with refusal("id_token.auth_time"):
            validated(id_token, max_age=300)


def test_M29_max_age_zero_is_asked_for() -> None:
    """max_age=0 is no "not asked": it wants a fresh login."""
    assert validated(with_claims({"auth_time": MOMENT}), max_age=0)
    for bite in ({"auth_time": REMOVE}, {"auth_time": MOMENT - 61}):
        with refusal("id_token.auth_time"):
            validated(with_claims(bite), max_age=0)


@pytest.mark.parametrize("auth_time", [REMOVE, "yesterday", True, -1, None])
def test_M29_auth_time_is_optional_where_it_was_not_asked_for(auth_time: Any) -> None:
    """Not asked, not refused; what cannot be read is not told either."""
    assert validated(with_claims({"auth_time": auth_time})).auth_time is None


@pytest.mark.parametrize(
    "acr", ["urn:weak", "", "urn:strong urn:stronger", ["urn:strong"], None, 0, REMOVE]
)
def test_M29_acr_is_one_of_those_asked_for(acr: object) -> None:
    """An `acr` that was not asked for is refused; where none was asked for any will do."""
    assert validated(with_claims({"acr": acr}))
    with refusal("id_token.acr"):
        validated(with_claims({"acr": acr}), acr_values=("urn:strong", "urn:stronger"))


@pytest.mark.parametrize("amr", [["otp"], ["pwd", "otp"], ["hwk", "hwk"], [["pwd"], "otp", 1]])
def test_M29_amr_names_one_of_the_methods_that_were_asked_for(amr: object) -> None:
    assert validated(with_claims({"amr": amr}), amr_values=("otp", "hwk"))


@pytest.mark.parametrize(
    "amr", [["pwd"], [], "otp", {"otp": 1}, [["otp"]], ["OTP"], ["otp hwk"], None, 0, REMOVE]
)
def test_M29_amr_without_them_is_refused(amr: object) -> None:
    """And where none was asked for, any will do."""
    assert validated(with_claims({"amr": amr}))
    with refusal("id_token.amr"):
        validated(with_claims({"amr": amr}), amr_values=("otp", "hwk"))


# M30: refresh


def refreshed(changes: dict[str, Any]) -> IdTokenClaims:
    changes = {"iat": MOMENT, "nonce": REMOVE} | changes
    return validated(
        with_claims(changes),
        nonce=None,
        issuer=changes.get("iss", ISSUER),
        trusted_audiences=frozenset({"api"}),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"auth_time": REMOVE},
        {"auth_time": None},
        {"nonce": NONCE},
        {"nonce": None},
        {"aud": [CLIENT_ID]},
        {"exp": MOMENT + 9999},
        {"acr": "urn:other"},
    ],
)
def test_M30_a_refreshed_id_token_of_the_same_sign_in(changes: dict[str, Any]) -> None:
    """A new `iat`, no nonce, no `auth_time`: as Core §12.2 allows."""
    check_refreshed_id_token(refreshed(changes), validated(compact()))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"iss": "https://other.example"}, "id_token.iss"),
        ({"sub": "somebody-else"}, "id_token.sub"),
        ({"sub": SUB + " "}, "id_token.sub"),
        ({"aud": [CLIENT_ID, "api"], "azp": CLIENT_ID}, "id_token.aud"),
        ({"auth_time": MOMENT}, "id_token.auth_time"),
        ({"nonce": "another"}, "id_token.nonce"),
        ({"azp": CLIENT_ID}, "id_token.azp"),
    ],
)
def test_M30_a_refreshed_id_token_of_another_sign_in(changes: dict[str, Any], code: str) -> None:
    """Another issuer, person, audience, `azp`, sign-in or nonce is refused (Core §12.2)."""
    with refusal(code):
        check_refreshed_id_token(refreshed(changes), validated(compact()))


def test_M30_audiences_are_a_set() -> None:
    """An array of JSON has an order, and `aud` means nothing by it."""
    both = {"azp": CLIENT_ID, "aud": ["api", CLIENT_ID]}
    original = validated(
        with_claims(both | {"aud": [CLIENT_ID, "api"]}), trusted_audiences=frozenset({"api"})
    )
    check_refreshed_id_token(refreshed(both), original)


def test_M30_what_is_kept_of_the_original() -> None:
    """`auth_time` where it was told; without one, any may come later."""
    kept = lasting_claims(validated(with_claims({"auth_time": MOMENT})))
    assert kept == {"aud": [CLIENT_ID], "azp": None, "nonce": NONCE, "auth_time": MOMENT}
    for unsaid in (REMOVE, None):
        assert "auth_time" not in lasting_claims(validated(with_claims({"auth_time": unsaid})))


def test_M30_azp_stays_when_it_was_there() -> None:
    """Core §12.2: `azp` is the same, so it does not go away either."""
    with refusal("id_token.azp"):
        check_refreshed_id_token(refreshed({}), validated(with_claims({"azp": CLIENT_ID})))


def test_M30_what_the_original_did_not_say_cannot_come_later() -> None:
    """An `auth_time` or nonce that the original lacks is a change."""
    original = validated(with_claims({"auth_time": REMOVE, "nonce": REMOVE}), nonce=None)
    check_refreshed_id_token(refreshed({"auth_time": REMOVE}), original)
    for bite, code in (
        ({"auth_time": MOMENT}, "id_token.auth_time"),
        ({"auth_time": REMOVE, "nonce": NONCE}, "id_token.nonce"),
    ):
        with refusal(code):
            check_refreshed_id_token(refreshed(bite), original)


# M32: other kinds of JWT


@pytest.mark.parametrize("typ", ["JWT", "jwt", "application/jwt", "JOSE", REMOVE])
def test_M32_typ_of_an_id_token(typ: object) -> None:
    """`typ` is JWT or absent; an unspecific one is let through."""
    assert validated(compact(header={"typ": typ}))


@pytest.mark.parametrize(
    "typ",
    ["logout+jwt", "LOGOUT+JWT", "application/logout+jwt", "at+jwt", "dpop+jwt", 1, None, ["JWT"]],
)
def test_M32_a_jwt_of_another_kind_is_refused(typ: object) -> None:
    """What says that it is a logout token or an access token is no ID Token (RFC 8725 §3.11)."""
    with refusal("id_token.typ"):
        validated(compact(header={"typ": typ}))


@pytest.mark.parametrize("events", [{EVENT: {}}, {}, None, []])
def test_M32_a_logout_token_without_typ_is_refused(events: object) -> None:
    """`events` is the mark of a Security Event Token, even with a nonce beside it."""
    with refusal("id_token.events"):
        validated(with_claims({"events": events}))


# M37: multi-tenant issuers


@pytest.mark.parametrize(
    ("iss", "tid", "code"),
    [
        ("https://login.op.example/t1/v2.0", "t1", None),
        ("https://login.op.example/t2/v2.0", "t2", None),
        ("https://login.op.example/t3/v2.0", "t3", "id_token.tid"),
        ("https://login.op.example/t1/v2.0", "t2", "id_token.iss"),
        ("https://login.op.example/t3/v2.0", "t1", "id_token.iss"),
        ("https://login.op.example/t1/v2.0", REMOVE, "id_token.tid"),
        ("https://login.op.example/t1/v2.0", None, "id_token.tid"),
        ("https://login.op.example/t1/v2.0", ["t1"], "id_token.tid"),
        ("https://login.op.example/t1/v2.0", "", "id_token.tid"),
        ("https://login.op.example/t1/v2.0", "T1", "id_token.tid"),
        (TENANT_ISSUER, "{tenantid}", "id_token.tid"),
        (TENANT_ISSUER, "t1", "id_token.iss"),
        ("https://evil.example/t1/v2.0", "t1", "id_token.iss"),
        (REMOVE, "t1", "id_token.iss"),
    ],
)
def test_M37_tenant_and_iss_agree(iss: Any, tid: Any, code: str | None) -> None:
    """`iss` is the template with the token's `tid`, and the settings name that tenant."""
    id_token = with_claims({"iss": iss, "tid": tid})
    asked: dict[str, Any] = {"issuer": TENANT_ISSUER, "tenants": frozenset({"t1", "t2"})}
    if code is None:
        assert validated(id_token, **asked).iss == iss
    else:
        with refusal(code):
            validated(id_token, **asked)


def test_M37_no_tenants_no_sign_in() -> None:
    """A template with an empty list lets nobody in."""
    id_token = with_claims({"iss": "https://login.op.example/t1/v2.0", "tid": "t1"})
    with refusal("id_token.tid"):
        validated(id_token, issuer=TENANT_ISSUER)


# The RP modules of the OpenID conformance suite


def test_oidcc_client_test() -> None:
    """A good ID Token is accepted."""
    assert validated(compact())


def test_oidcc_client_test_invalid_iss() -> None:
    with refusal("id_token.iss"):
        validated(with_claims({"iss": ISSUER + "INVALID"}))


def test_oidcc_client_test_missing_sub() -> None:
    with refusal("id_token.sub"):
        validated(with_claims({"sub": REMOVE}))


def test_oidcc_client_test_invalid_aud() -> None:
    with refusal("id_token.aud"):
        validated(with_claims({"aud": CLIENT_ID + "1"}))


def test_oidcc_client_test_missing_aud() -> None:
    with refusal("id_token.aud"):
        validated(with_claims({"aud": REMOVE}))


def test_oidcc_client_test_missing_iat() -> None:
    with refusal("id_token.iat"):
        validated(with_claims({"iat": REMOVE}))


def test_oidcc_client_test_nonce_invalid() -> None:
    with refusal("id_token.nonce"):
        validated(with_claims({"nonce": NONCE[::-1]}))


def test_oidcc_client_test_kid_absent_single_jwks() -> None:
    """One key and no kid: accepted."""
    assert validated(compact(header={"kid": REMOVE}))


def test_oidcc_client_test_kid_absent_multiple_jwks() -> None:
    """Several keys and no kid: the suite lets an RP refuse, and M22 says that we do."""
    keys = key_set(key("RS256"), key("RS256", "two"))
    with refusal("id_token.kid"):
        validated(compact(header={"kid": REMOVE}), keys)


def test_oidcc_client_test_idtoken_sig_rs256() -> None:
    assert validated(compact(by=key("RS256"))).alg == "RS256"


@pytest.mark.parametrize("algorithms", [{"RS256"}, {"RS256", "none"}, {"none"}])
def test_oidcc_client_test_idtoken_sig_none(algorithms: set[str]) -> None:
    """An unsigned ID Token is refused, and not even a setting could let it in."""
    header = base64url(b'{"alg":"none"}')
    unsigned = f"{header}.{compact().split('.')[1]}."
    with refusal("id_token.alg"):
        validated(unsigned, algorithms=frozenset(algorithms))


@pytest.mark.parametrize("alg", ["RS256", "ES256", "HS256"])
def test_oidcc_client_test_invalid_sig(alg: str) -> None:
    """invalid-sig-rs256, -es256 and -hs256: one bit of the signature is wrong."""
    by: SigningKey | bytes = SECRET.encode() if alg in HMAC else key(alg)
    keys = hmac_keys() if alg in HMAC else key_set(key(alg))
    signing_input, _, signature = compact(by=by, alg=alg).rpartition(".")
    bent = ("A" if signature[5] != "A" else "B").join([signature[:5], signature[6:]])
    with refusal("id_token.signature"):
        validated(f"{signing_input}.{bent}", keys, algorithms=frozenset({alg}))


def test_oidcc_client_test_signing_key_rotation() -> None:
    """After a rotation the old keys do not find the new kid, the new keys do."""
    rotated = compact(by=key("RS256", "rotated"))
    with refusal("id_token.kid"):
        validated(rotated, key_set(key("RS256")))
    assert validated(rotated, key_set(key("RS256", "rotated")))


# Anything at all


@fuzz
@given(st.dictionaries(st.sampled_from([*claims(), "azp", "acr", "nbf", "tid", "events"]), awkward))
def test_any_claims_are_accepted_or_refused(changes: dict[str, Any]) -> None:
    """Whatever a signed token claims, the answer is claims that hold or a typed refusal."""
    with no_other_error():
        read = validated(with_claims(changes), max_age=60, trusted_audiences=frozenset({"api"}))
        check_at_hash(read, ACCESS_TOKEN)
        assert (read.iss, read.claims["nonce"], CLIENT_ID in read.aud) == (ISSUER, NONCE, True)
        assert type(read.sub) is str
        assert read.sub
        assert read.exp > MOMENT - 60


@fuzz
@given(st.dictionaries(st.sampled_from(["at_hash", "auth_time", "nonce", "azp"]), awkward))
def test_any_refreshed_claims_are_accepted_or_refused(changes: dict[str, Any]) -> None:
    """Neither at_hash nor the comparison with the original raises anything else."""
    with no_other_error():
        odd = validated(with_claims(changes), nonce=None)
        check_refreshed_id_token(odd, validated(compact()))
        check_at_hash(odd, ACCESS_TOKEN)


@fuzz
@given(st.binary(max_size=200))
def test_any_payload_is_accepted_or_refused(payload: bytes) -> None:
    """Octets under a good signature are no ID Token by that."""
    with pytest.raises(InvalidIdToken):
        validated(compact_of(b'{"alg":"RS256"}', payload, key("RS256"), "RS256"))


@fuzz
@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidIdToken):
        validated(text)


def test_a_refusal_names_its_claim_and_not_the_token() -> None:
    """`.claim` and `.code` tell what failed; the token is not in the message."""
    id_token = with_claims({"iss": "https://other.example"})
    with pytest.raises(InvalidIdToken) as caught:
        validated(id_token)
    error = caught.value
    assert (error.claim, error.code) == ("iss", "id_token.iss")
    assert (error.expected, error.received) == (ISSUER, "https://other.example")
    assert id_token.split(".")[1] not in f"{error!r} {error} {error.expected} {error.received}"


def test_expected_id_token_asks_for_everything_by_default() -> None:
    """Nothing has to be switched on: what may be left out weakens no check."""
    least = ExpectedIdToken(ISSUER, CLIENT_ID, frozenset({"RS256"}), NONCE)
    assert (least.trusted_audiences, least.tenants) == (frozenset(), frozenset())
    assert least.leeway == timedelta(seconds=60)
