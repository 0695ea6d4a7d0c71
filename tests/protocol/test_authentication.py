"""Authentication request and response (Core §3.1.2, RFC 7636, RFC 9126, RFC 9207)."""

import json
import secrets
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import KNOWN_OP_ERRORS, InvalidResponse, OPError
from oidc_rp.protocol.authentication import (
    AuthenticationRequest,
    StepUp,
    authentication_request,
    authorization_url,
    code_challenge,
    essential_claims,
    read_authentication_response,
    read_pushed_response,
    request_parameters,
)

from .examples import CLIENT_ID, ISSUER, awkward, fuzz, no_other_error, refusal

REDIRECT_URI = "https://rp.example/oidc/op/callback/"
CODE = "SplxlOBeZQQYbYS6WxSbIA"


def a_request(**options: Any) -> AuthenticationRequest:
    good: dict[str, Any] = {
        "issuer": ISSUER,
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": "openid profile",
    }
    return authentication_request(secrets.token_urlsafe, **good | options)


REQUEST = a_request()
GOOD = {"state": [REQUEST.state], "code": [CODE], "iss": [ISSUER]}


def read(
    changes: Mapping[str, list[str]], request: AuthenticationRequest = REQUEST, **how: Any
) -> str:
    """The code of the good response with these changes; an empty list leaves a parameter out."""
    parameters = {name: values for name, values in {**GOOD, **changes}.items() if values}
    how = {"response_mode": "query", "issuers": [ISSUER], "iss_required": True, **how}
    return read_authentication_response(parameters, request, **how).reveal()


# The request


def test_the_authentication_request() -> None:
    """Every parameter of Core §3.1.2.1 and RFC 7636 §4.3, and no other."""
    assert request_parameters(REQUEST, {}) == {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": "openid profile",
        "state": REQUEST.state,
        "nonce": REQUEST.nonce,
        "code_challenge": code_challenge(REQUEST.code_verifier),
        "code_challenge_method": "S256",
    }


def test_what_is_asked_for_is_sent() -> None:
    """max_age (0 as well), acr_values and response_mode are sent where they are set."""
    asked = a_request(max_age=0, acr_values=("urn:a", "urn:b"), response_mode="form_post")
    sent = request_parameters(asked, {})
    assert (sent["max_age"], sent["acr_values"]) == ("0", "urn:a urn:b")
    assert sent["response_mode"] == "form_post"


STRONG = StepUp(300, ("gold", "silver"), ("otp",))
ESSENTIAL = {
    "acr": {"essential": True, "values": ["gold", "silver"]},
    "amr": {"essential": True, "values": ["otp"]},
}
CLAIMS = {"userinfo": {"email": None}, "id_token": {"email": None, "acr": {"value": "x"}}}
BESIDE = {"userinfo": {"email": None}, "id_token": {"email": None} | ESSENTIAL}


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        (None, {"id_token": ESSENTIAL}),
        (CLAIMS, {"userinfo": {"email": None}, "id_token": {"email": None} | ESSENTIAL}),
        (
            json.dumps(CLAIMS),
            {"userinfo": {"email": None}, "id_token": {"email": None} | ESSENTIAL},
        ),
        ({"id_token": None}, {"id_token": ESSENTIAL}),
        ({"id_token": ["acr"]}, {"id_token": ESSENTIAL}),
        ("no JSON", {"id_token": ESSENTIAL}),
        ("[]", {"id_token": ESSENTIAL}),
        (7, {"id_token": ESSENTIAL}),
        ({"x": PurePosixPath("y")}, {"x": "y", "id_token": ESSENTIAL}),
    ],
)
def test_what_is_wanted_is_essential_beside_what_is_asked_for_anyway(
    claims: object, told: dict[str, Any]
) -> None:
    """Core §5.5.1.1: an OP that cannot do it says so, and does not go on."""
    assert json.loads(essential_claims(claims, STRONG)) == told


def test_only_what_is_wanted_is_essential() -> None:
    assert json.loads(essential_claims(None, StepUp(300, ("gold",)))) == {
        "id_token": {"acr": {"essential": True, "values": ["gold"]}}
    }
    assert json.loads(essential_claims(None, StepUp(300, (), ("otp",)))) == {
        "id_token": {"amr": {"essential": True, "values": ["otp"]}}
    }


@fuzz
@given(claims=awkward)
def test_any_claims_of_the_settings_leave_it_essential(claims: object) -> None:
    with no_other_error():
        assert json.loads(essential_claims(claims, STRONG))["id_token"].items() >= ESSENTIAL.items()


def test_M1_only_code_is_asked_for() -> None:
    """No additional parameter turns the response type into another."""
    forged = dict.fromkeys(request_parameters(REQUEST, {}), "forged")
    assert request_parameters(REQUEST, forged) == request_parameters(REQUEST, {})
    sent = request_parameters(REQUEST, forged | {"prompt": "login"})
    assert (sent["response_type"], sent["prompt"]) == ("code", "login")


def test_vector_of_rfc_7636_b() -> None:
    """RFC 7636 App. B."""
    code_verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    assert code_challenge(code_verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_M2_pkce_s256_always_with_a_new_verifier() -> None:
    """Each attempt has its own verifier of 43 to 128 unreserved characters, hashed when sent."""
    requests = [a_request() for _ in range(50)]
    for request in requests:
        sent = request_parameters(request, {"code_challenge_method": "plain"})
        assert sent["code_challenge_method"] == "S256"
        assert sent["code_challenge"] == code_challenge(request.code_verifier)
        assert request.code_verifier not in sent.values()
        assert 43 <= len(request.code_verifier) <= 128
        assert len(urlsafe_b64decode(request.code_verifier + "=")) == 32
    assert len({request.code_verifier for request in requests}) == len(requests)


def test_M3_state_nonce_and_verifier_are_of_the_attempt() -> None:
    """Three values of at least 128 random bits each, none of which is used twice."""
    asked: list[int] = []

    def counted(octets: int) -> str:
        asked.append(octets)
        return secrets.token_urlsafe(octets)

    fixed: dict[str, Any] = {
        "issuer": ISSUER,
        "client_id": CLIENT_ID,
        "redirect_uri": "",
        "scope": "openid",
    }
    requests = [authentication_request(counted, **fixed) for _ in range(50)]
    assert len(asked) == 150
    assert min(asked) >= 16
    used = {value for r in requests for value in (r.state, r.nonce, r.code_verifier)}
    assert len(used) == 150


def test_M41b_state_and_nonce_are_url_safe_and_short() -> None:
    """State and nonce need no escaping; the nonce has at most 43 characters."""
    for request in (a_request() for _ in range(50)):
        assert all(c.isalnum() or c in "-_" for c in request.state + request.nonce)
        assert len(request.nonce) <= 43


def test_no_secret_of_the_request_is_shown() -> None:
    """`repr` shows neither state nor nonce nor code_verifier."""
    for secret in (REQUEST.state, REQUEST.nonce, REQUEST.code_verifier):
        assert secret not in repr(REQUEST)


@pytest.mark.parametrize(
    ("endpoint", "start"),
    [
        ("https://op.example/auth", "https://op.example/auth?"),
        ("https://op.example/auth?realm=a", "https://op.example/auth?realm=a&"),
    ],
)
def test_the_authorization_url(endpoint: str, start: str) -> None:
    """The endpoint's own query stays (RFC 6749 §3.1), values are encoded."""
    sent = {"scope": "openid e&f", "claims": '{"a": "\u00e9 +"}'}
    url = authorization_url(endpoint, sent)
    assert url.startswith(start)
    assert url.isascii()
    assert dict(parse_qsl(urlsplit(url).query)).items() >= sent.items()


# The response


def test_a_good_response() -> None:
    """The code comes out; parameters that are not ours to know are ignored."""
    assert read({}) == CODE
    assert read({"session_state": ["x"], "scope": ["a"], "unknown": ["1", "2"]}) == CODE


@pytest.mark.parametrize("name", ["access_token", "id_token", "refresh_token"])
@pytest.mark.parametrize("value", ["eyJhbGciOiJub25lIn0.e30.", ""])
def test_M1_a_token_in_the_response_is_refused(name: str, value: str) -> None:
    """Only a code may come through the browser, even when a token comes beside a good code."""
    with refusal("response.token"):
        read({name: [value]})


@pytest.mark.parametrize(
    "state",
    [[], [""], ["unknown"], [REQUEST.state.swapcase()], [REQUEST.state + "x"], [a_request().state]],
)
def test_the_state_is_the_one_sent(state: list[str]) -> None:
    """A missing, empty or foreign state is refused."""
    with refusal("state.unknown"):
        read({"state": state})


@pytest.mark.parametrize("state", ["\ud800", "\u00e9", "\0", "?" * 32])
def test_M4_a_request_without_state_has_no_response(state: str) -> None:
    """An attempt whose state is empty is met by nothing, a missing state least of all."""
    without = AuthenticationRequest(ISSUER, CLIENT_ID, REDIRECT_URI, "openid")
    for values in ([], [""], [state]):
        with refusal("state.unknown"):
            read({"state": values}, without)


@pytest.mark.parametrize(
    ("iss", "code"),
    [
        ([], "response.iss_missing"),
        ([""], "response.iss"),
        ([ISSUER + "/"], "response.iss"),
        ([ISSUER.upper()], "response.iss"),
        ([ISSUER + "?"], "response.iss"),
        ([ISSUER[:-1]], "response.iss"),
        (["https://op.example.evil.example"], "response.iss"),
        (["https://evil.example"], "response.iss"),
    ],
)
def test_M7_iss_is_the_same_string(iss: list[str], code: str) -> None:
    """`iss` equals the issuer; missing is refused when the metadata announces it (RFC 9207)."""
    with refusal(code):
        read({"iss": iss})


def test_M7_iss_may_be_absent_where_it_is_not_announced() -> None:
    """Not announced, not required; present, it is compared all the same."""
    assert read({"iss": []}, iss_required=False) == CODE
    assert read({}, iss_required=False) == CODE
    with refusal("response.iss"):
        read({"iss": ["https://evil.example"]}, iss_required=False)


def test_M37_iss_is_one_of_the_tenants() -> None:
    """With several tenants `iss` is one of theirs; the template itself is nobody's."""
    issuers = ["https://op.example/t1", "https://op.example/t2"]
    assert read({"iss": [issuers[1]]}, issuers=issuers) == CODE
    for iss in ("https://op.example/t3", "https://op.example/{tenantid}"):
        with refusal("response.iss"):
            read({"iss": [iss]}, issuers=issuers)


@pytest.mark.parametrize("name", ["state", "code", "iss", "error", "error_description"])
@pytest.mark.parametrize("same", [True, False])
def test_M9_a_repeated_parameter_is_refused(name: str, same: bool) -> None:
    """Twice is refused, whether the two agree or not, and whichever of them is right."""
    value = GOOD.get(name, ["access_denied"])[0]
    for pair in ([value, value if same else "other"], ["" if same else "other", value]):
        with refusal("response.repeated"):
            read({name: pair})


@pytest.mark.parametrize(
    ("bite", "code"),
    [
        ({"state": ["unknown"]}, "state.unknown"),
        ({"state": []}, "state.unknown"),
        ({"iss": ["https://evil.example"]}, "response.iss"),
        ({"iss": []}, "response.iss_missing"),
        ({"id_token": ["x"]}, "response.token"),
        ({"error": ["access_denied", "server_error"]}, "response.repeated"),
    ],
)
def test_M10_an_error_is_believed_after_the_same_checks(
    bite: dict[str, list[str]], code: str
) -> None:
    """An error with a foreign state or `iss` is not the OP's, and is not shown as its own."""
    with refusal("authorization.access_denied"):
        read({"code": [], "error": ["access_denied"]})
    with refusal(code):
        read({"code": [], "error": ["access_denied"]} | bite)


@pytest.mark.parametrize("error", sorted(KNOWN_OP_ERRORS))
def test_M10_known_errors_have_their_own_code(error: str) -> None:
    """An error of the specifications is told by its name, also when a code comes with it."""
    with refusal(f"authorization.{error}"):
        read({"error": [error]})


@pytest.mark.parametrize(
    "error", ["", "x" * 65, "<script>", 'a"b', "a\\b", "a\nb", "\u00e9", "odd"]
)
def test_M10_what_is_no_known_error_is_told_as_error(error: str) -> None:
    """An unknown or malformed error code gives no new code of ours."""
    with refusal("authorization.error"):
        read({"error": [error]})


def test_M10_the_description_is_short_and_printable() -> None:
    """200 characters at most, no control characters, no direction overrides."""
    odd = "no\r\n\0\x1b[31m\u202e\u2066 <b>" + "x" * 10_000
    with pytest.raises(OPError) as caught:
        read({"error": ["access_denied"], "error_description": [odd]})
    told = caught.value.error_description
    assert told.startswith("no[31m <b>x")
    assert told.isprintable()
    assert len(told) <= 200
    assert odd[:50] not in str(caught.value)


@pytest.mark.parametrize("code", [[], [""], ["a\nb"], ["\u00e9"], ["\0"], ["x" * 4097], ["a\n"]])
def test_a_code_is_visible_ascii(code: list[str]) -> None:
    """No code, or one with characters beyond RFC 6749 App. A.11, is refused."""
    for good in ("x" * 4096, "4/0AX4 ~!"):
        assert read({"code": [good]}) == good
    with refusal("response.code"):
        read({"code": code})


@pytest.mark.parametrize(("asked", "came"), [("query", "form_post"), ("form_post", "query")])
def test_M16_the_record_decides_how_the_response_comes(asked: str, came: str) -> None:
    """A response that comes in another mode than was asked for is refused."""
    request = a_request(response_mode=asked)
    state = {"state": [request.state]}
    assert read(state, request, response_mode=asked) == CODE
    with refusal("response.mode"):
        read(state, request, response_mode=came)


def test_no_refusal_tells_state_or_code() -> None:
    """Neither the state nor the code is in a refusal."""
    for bite in ({"iss": ["x"]}, {"state": ["other-state"]}, {"code": ["secret\ncode"]}):
        with pytest.raises(InvalidResponse) as caught:
            read(bite)
        error = caught.value
        told = f"{error} {error.expected} {error.received}"
        for secret in (REQUEST.state, CODE, "other-state", "secret"):
            assert secret not in told


# Pushed authorization requests


def test_M15_a_pushed_request_is_a_reference() -> None:
    """201 and 200 with a request_uri: this is all that goes through the browser."""
    request_uri = "urn:ietf:params:oauth:request_uri:6esc_11ACC5bwc014ltc14eY22c"
    for status in (200, 201):
        document = {"request_uri": request_uri, "expires_in": 60}
        assert read_pushed_response(status, document) == request_uri
    sent = {"client_id": CLIENT_ID, "request_uri": request_uri}
    url = authorization_url("https://op.example/auth", sent)
    assert parse_qs(urlsplit(url).query) == {name: [value] for name, value in sent.items()}


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (201, {}, "par.request_uri"),
        (201, {"request_uri": ""}, "par.request_uri"),
        (201, {"request_uri": None}, "par.request_uri"),
        (201, {"request_uri": ["urn:x"]}, "par.request_uri"),
        (201, {"request_uri": 1}, "par.request_uri"),
        (400, {"request_uri": "urn:x"}, "par.request_uri"),
        (302, {"request_uri": "urn:x"}, "par.request_uri"),
        (500, {}, "par.request_uri"),
        (400, {"error": "invalid_request"}, "par.invalid_request"),
        (401, {"error": "invalid_client"}, "par.invalid_client"),
        (201, {"request_uri": "urn:x", "error": "invalid_request"}, "par.invalid_request"),
        (400, {"error": ["odd"]}, "par.error"),
    ],
)
def test_M15_a_failed_push_is_a_refusal(status: int, document: dict[str, Any], code: str) -> None:
    """There is nothing to fall back to: no request_uri, no login."""
    with refusal(code):
        read_pushed_response(status, document)


# Anything at all


@fuzz
@given(
    st.dictionaries(
        st.sampled_from([*GOOD, "error", "error_description", "id_token", "session_state"]),
        st.lists(st.sampled_from([REQUEST.state, CODE, ISSUER]) | st.text(), max_size=2),
    )
)
def test_any_callback_parameters_are_a_code_or_refused(parameters: dict[str, list[str]]) -> None:
    """No callback makes anything but a code for this very state, or a refusal."""
    with no_other_error():
        read(parameters)
        assert parameters.get("state", GOOD["state"]) == [REQUEST.state]


@fuzz
@given(
    st.integers(100, 599),
    st.dictionaries(st.sampled_from(["request_uri", "error", "error_description"]), awkward),
)
def test_any_pushed_response_is_a_reference_or_refused(
    status: int, document: dict[str, Any]
) -> None:
    """No answer of the PAR endpoint makes anything but a text or a refusal."""
    with no_other_error():
        assert read_pushed_response(status, document)
