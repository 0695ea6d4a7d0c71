"""Token request and response, client authentication (RFC 6749, RFC 7523, Core §9)."""

import contextlib
import json
import secrets
from base64 import b64decode
from datetime import timedelta
from typing import Any
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidResponse, OPError
from oidc_rp.protocol.authentication import AuthenticationRequest
from oidc_rp.protocol.token_endpoint import (
    ClientAuthentication,
    RefreshResponse,
    TokenResponse,
    authenticate_client,
    choose_auth_method,
    code_request,
    read_refresh_response,
    read_revocation_response,
    read_token_response,
    refresh_request,
    revocation_request,
)
from oidc_rp.protocol.tokens import (
    AccessToken,
    AuthorizationCode,
    ClientSecret,
    IdToken,
    PrivateKey,
    RefreshToken,
)
from oidc_rp.testing import REMOVE, decode_jws, merged, verified_claims

from .examples import (
    CLIENT_ID,
    ISSUER,
    MOMENT,
    NOW,
    SECRET,
    awkward,
    fuzz,
    key,
    no_other_error,
    refusal,
)

FORM = {"grant_type": "authorization_code", "code": "SplxlOBeZQQYbYS6WxSbIA"}
GOOD = {
    "access_token": "SlAV32hkKG",
    "token_type": "Bearer",
    "refresh_token": "8xLOxBtZp8",
    "expires_in": 3600,
    "id_token": "a.b.c",
    "scope": "openid email",
}


def client(method: str, **options: Any) -> ClientAuthentication:
    good: dict[str, Any] = {"client_id": CLIENT_ID, "client_secret": ClientSecret(SECRET)}
    return ClientAuthentication(method=method, **good | options)


def authenticated(who: ClientAuthentication) -> tuple[dict[str, str], dict[str, str]]:
    return authenticate_client(FORM, who, issuer=ISSUER, now=NOW, random=secrets.token_urlsafe)


def read(changes: dict[str, Any], status: int = 200, scope: str = "openid") -> TokenResponse:
    document = merged(GOOD, changes)
    return read_token_response(status, document, requested_scope=scope, sent_at=NOW)


# The request


def test_the_token_request() -> None:
    """The code, the redirect_uri of the request, and the verifier (RFC 7636 §4.5)."""
    request = AuthenticationRequest(
        ISSUER, CLIENT_ID, "https://rp.example/cb", "openid", state="s", code_verifier="v" * 43
    )
    assert code_request(AuthorizationCode("the-code"), request) == {
        "grant_type": "authorization_code",
        "code": "the-code",
        "redirect_uri": "https://rp.example/cb",
        "code_verifier": "v" * 43,
    }


@pytest.mark.parametrize(
    ("client_id", "client_secret"),
    [
        (CLIENT_ID, SECRET),
        ("https://rp.example/", "a:b"),
        ("rp client", "+ %&=/?#"),
        ("rp:client", "%3A"),
        ("\u00e9\u4e2d", "\U0001f600"),
    ],
)
def test_M41b_basic_form_encodes_both_halves(client_id: str, client_secret: str) -> None:
    """Whatever they hold, id and secret arrive as they are (RFC 6749 §2.3.1)."""
    who = client(
        "client_secret_basic", client_id=client_id, client_secret=ClientSecret(client_secret)
    )
    parameters, headers = authenticated(who)
    scheme, _, credentials = headers["Authorization"].partition(" ")
    halves = b64decode(credentials, validate=True).decode("ascii").split(":")
    assert (scheme, [unquote_plus(half) for half in halves]) == (
        "Basic",
        [client_id, client_secret],
    )
    assert parameters == FORM  # one method only: nothing in the body (RFC 6749 §2.3)


def test_basic_by_hand() -> None:
    """A vector: "a b:c" and "%+" become a+b%3Ac and %25%2B."""
    who = client("client_secret_basic", client_id="a b:c", client_secret=ClientSecret("%+"))
    assert authenticated(who)[1] == {"Authorization": "Basic YStiJTNBYzolMjUlMkI="}


def test_client_secret_post_and_none() -> None:
    """The secret is in the body, or nowhere; there is no header then."""
    body = FORM | {"client_id": CLIENT_ID}
    assert authenticated(client("client_secret_post")) == (body | {"client_secret": SECRET}, {})
    assert authenticated(client("none")) == (body, {})
    assert "client_id" not in FORM


ASSERTIONS = [
    ("private_key_jwt", alg) for alg in (None, "RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA")
] + [("client_secret_jwt", alg) for alg in (None, "HS256", "HS384", "HS512")]


@pytest.mark.parametrize(("method", "alg"), ASSERTIONS)
def test_M48_a_client_assertion(method: str, alg: str | None) -> None:
    """`aud` is the issuer as one string, exp at most 60 s away, iss and sub are the client."""
    own = key(alg or "RS256") if method == "private_key_jwt" else None
    private_key = own and PrivateKey(json.dumps(own.private_jwk))
    who = client(method, private_key=private_key, signing_alg=alg)
    parameters, headers = authenticated(who)
    assert headers == {}
    assert parameters.keys() - FORM.keys() == {
        "client_id",
        "client_assertion",
        "client_assertion_type",
    }
    assert parameters["client_assertion_type"] == (
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    )
    assertion = parameters["client_assertion"]
    public = own.private_key.public_key() if own else SECRET.encode()
    claims = verified_claims(assertion, public)
    assert decode_jws(assertion)[0]["alg"] == (alg or ("RS256" if own else "HS256"))
    assert len(claims.pop("jti")) >= 22
    assert claims == {
        "iss": CLIENT_ID,
        "sub": CLIENT_ID,
        "aud": ISSUER,
        "iat": MOMENT,
        "exp": MOMENT + 60,
    }


def test_M48_every_send_has_a_new_jti() -> None:
    """Two sends of one request carry two assertions (RFC 7523 §3)."""
    sent = [authenticated(client("client_secret_jwt"))[0]["client_assertion"] for _ in range(20)]
    assert len({decode_jws(assertion)[1]["jti"] for assertion in sent}) == 20


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (client("client_secret_basic", client_secret=None), "client.client_secret"),
        (client("client_secret_post", client_secret=None), "client.client_secret"),
        (client("client_secret_jwt", client_secret=None), "client.client_secret"),
        (client("client_secret_jwt", client_secret=ClientSecret("short")), "client_secret"),
        (client("private_key_jwt"), "client.private_key"),
    ],
)
def test_a_client_that_cannot_authenticate_sends_nothing(
    who: ClientAuthentication, code: str
) -> None:
    """Without the secret or the key that the method needs there is no request."""
    with refusal(code):
        authenticated(who)


@pytest.mark.parametrize(
    ("supported", "secret", "method"),
    [
        (("client_secret_basic",), SECRET, "client_secret_basic"),
        (("client_secret_post", "client_secret_basic"), SECRET, "client_secret_basic"),
        (("private_key_jwt", "client_secret_post"), SECRET, "client_secret_post"),
        (("client_secret_basic",), None, "none"),
    ],
)
def test_the_method_is_chosen_from_the_metadata(
    supported: tuple[str, ...], secret: str | None, method: str
) -> None:
    """Basic before post, as RFC 6749 §2.3.1 prefers; a public client has none."""
    assert choose_auth_method(supported, ClientSecret(secret) if secret else None) == method


@pytest.mark.parametrize("supported", [(), ("private_key_jwt",), ("none",)])
def test_no_method_that_works_is_told(supported: tuple[str, ...]) -> None:
    """We do not guess, and a secret is not dropped because the OP would do without."""
    with refusal("discovery.token_endpoint_auth_methods_supported"):
        choose_auth_method(supported, ClientSecret(SECRET))


# Refresh and revocation requests


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({}, {}),
        ({"scope": "a b"}, {"scope": "a b"}),
        ({"resource": "https://api.example"}, {"resource": "https://api.example"}),
        (
            {"resource": "urn:api", "resource_parameter": "audience", "scope": "a"},
            {"audience": "urn:api", "scope": "a"},
        ),
        ({"resource": "urn:api", "resource_parameter": "scope", "scope": "a"}, {"scope": "a"}),
        ({"resource_parameter": "audience"}, {}),
    ],
)
def test_the_refresh_request(options: dict[str, str], parameters: dict[str, str]) -> None:
    """RFC 6749 §6, and the API that the token is for (RFC 8707 §2.2), where one is named."""
    assert refresh_request(RefreshToken("r1"), **options) == {
        "grant_type": "refresh_token",
        "refresh_token": "r1",
        **parameters,
    }


def test_the_revocation_request() -> None:
    """RFC 7009 §2.1; the hint is optional."""
    assert revocation_request(RefreshToken("r1"), "refresh_token") == {
        "token": "r1",
        "token_type_hint": "refresh_token",
    }
    assert revocation_request(AccessToken("a1"), "") == {"token": "a1"}


# The response


def test_a_good_token_response() -> None:
    """The example of Core §3.1.3.3."""
    assert read({}) == TokenResponse(
        access_token=AccessToken("SlAV32hkKG"),
        id_token=IdToken("a.b.c"),
        refresh_token=RefreshToken("8xLOxBtZp8"),
        scope="openid email",
        expires_at=NOW + timedelta(hours=1),
    )


@pytest.mark.parametrize("token_type", ["Bearer", "bearer", "BEARER"])
def test_M49_token_type_bearer_in_any_case(token_type: str) -> None:
    """RFC 6749 §5.1: the value is case insensitive."""
    assert read({"token_type": token_type})


@pytest.mark.parametrize(
    "token_type", ["DPoP", "mac", "", " Bearer", "Bearer ", None, REMOVE, 1, True, ["Bearer"], {}]
)
def test_M49_another_token_type_is_refused(token_type: object) -> None:
    """What is not asked for is refused: such a token would be used wrongly (RFC 6749 §7.1)."""
    with refusal("token.token_type"):
        read({"token_type": token_type})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("access_token", absent) for absent in (REMOVE, None)],
        *(
            (name, value)
            for name in ("access_token", "id_token", "refresh_token")
            for value in (
                "",
                "a b",
                "a\r\nX-Evil: 1",
                "\u00e9",
                "\0",
                1,
                True,
                ["a"],
                {},
                "x" * 65537,
            )
        ),
    ],
)
def test_M49_a_token_is_a_text_that_fits_a_header(name: str, value: object) -> None:
    """Anything else is refused, without being told."""
    with refusal(f"token.{name}"):
        read({name: value})


def test_M49_optional_members_may_be_absent_or_null() -> None:
    """Core asks for an ID Token at the login; whether this is one the caller knows."""
    for absent in (REMOVE, None):
        changes = dict.fromkeys(("id_token", "refresh_token", "expires_in"), absent)
        read_response = read(changes)
        assert (read_response.id_token, read_response.refresh_token) == (None, None)
        assert read_response.expires_at is None


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [
        (60, 60),
        (60.5, 60.5),
        ("60", 60),
        (0, 0),
        (-1, 0),
        (-(10**400), 0),
        (86400, 86400),
        (86401, 86400),
        (10**18, 86400),
        (10**400, 86400),
        (1e308, 86400),
        ("9" * 4000, 86400),
    ],
)
def test_M49_the_lifetime_is_clamped(expires_in: Any, seconds: float) -> None:
    """From 0 to a day, counted from when the request was sent; never an overflow."""
    assert read({"expires_in": expires_in}).expires_at == NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "expires_in", ["", "soon", "-1", "1.5", "1e3", "\u0661", "\u00b2", True, [], {}, float("nan")]
)
def test_M49_a_lifetime_that_is_no_number_is_refused(expires_in: object) -> None:
    """Text that is no whole number, booleans and the like."""
    with refusal("token.expires_in"):
        read({"expires_in": expires_in})


@pytest.mark.parametrize(
    ("scope", "granted"),
    [
        ("openid", "openid"),
        ("openid email extra", "openid email extra"),
        (REMOVE, "openid profile"),
        (None, "openid profile"),
    ],
)
def test_M49_the_granted_scope_is_recorded(scope: object, granted: str) -> None:
    """What the OP granted, more or less than was asked; absent means as asked (RFC 6749 §5.1)."""
    assert read({"scope": scope}, scope="openid profile").scope == granted


@pytest.mark.parametrize("scope", [["openid"], 1, True, {}, 'a"b', "a\\b", "a\nb", "x" * 4097])
def test_M49_a_scope_is_a_text(scope: object) -> None:
    """Anything beyond the alphabet of RFC 6749 App. A.4 is refused."""
    with refusal("token.scope"):
        read({"scope": scope})


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (400, {"error": "invalid_grant"}, "token.invalid_grant"),
        (401, {"error": "invalid_client"}, "token.invalid_client"),
        (200, GOOD | {"error": "invalid_grant"}, "token.invalid_grant"),
        (400, {"error": "odd"}, "token.error"),
        (400, {"error": 1}, "token.error"),
        (400, {}, "token.error"),
        (500, GOOD, "token.error"),
        (201, GOOD, "token.error"),
        (302, GOOD, "token.error"),
    ],
)
def test_an_error_response_is_the_ops_error(
    status: int, document: dict[str, Any], code: str
) -> None:
    """RFC 6749 §5.2: anything but 200 without `error` is a refusal by the OP."""
    with refusal(code):
        read_token_response(status, document, requested_scope="openid", sent_at=NOW)


def test_the_ops_words_are_kept_short() -> None:
    """The description is cut, and control characters are left out."""
    document = {"error": "invalid_grant", "error_description": "a\x1b" + "b" * 999}
    with pytest.raises(OPError) as caught:
        read_token_response(400, document, requested_scope="openid", sent_at=NOW)
    assert caught.value.error_description == "a" + "b" * 198


@pytest.mark.parametrize(
    ("idle", "seconds"),
    [
        (1800, 1800.0),
        (0.5, 0.5),
        (3650 * 86400 + 1, 315360000.0),
        (10**400, 315360000.0),
        (float("inf"), 315360000.0),
        *[(nothing, None) for nothing in (REMOVE, None, 0, -1, float("nan"), True, "60", [], {})],
    ],
)
def test_the_idle_lifetime_of_the_refresh_token(idle: object, seconds: float | None) -> None:
    """Keycloak's `refresh_expires_in`, at most ten years; whatever else it says is ignored."""
    assert read({"refresh_expires_in": idle}).idle_lifetime == seconds
    assert refreshed({"refresh_expires_in": idle}).idle_lifetime == seconds


# The response to a refresh


def refreshed(changes: dict[str, Any], status: int = 200, scope: str = "openid") -> RefreshResponse:
    document = merged(GOOD, changes)
    return read_refresh_response(status, document, requested_scope=scope, sent_at=NOW)


def told(response: RefreshResponse) -> tuple[str | None, str | None, str | None]:
    """Return the refresh token, the access token and the code of the problem."""
    return (
        response.refresh_token and response.refresh_token.reveal(),
        response.tokens and response.tokens.access_token.reveal(),
        response.problem and response.problem.code,
    )


def test_a_good_refresh_response() -> None:
    """The same tokens as in a token response, and the new refresh token beside them."""
    assert refreshed({"refresh_expires_in": 1800}) == RefreshResponse(
        refresh_token=RefreshToken("8xLOxBtZp8"),
        tokens=read({"refresh_expires_in": 1800}),
        problem=None,
        idle_lifetime=1800.0,
    )


@pytest.mark.parametrize("absent", [REMOVE, None])
def test_a_refresh_response_of_an_op_that_does_not_rotate(absent: object) -> None:
    """RFC 6749 §6: without a new refresh token the old one stays."""
    changes = {"refresh_token": absent, "id_token": absent, "expires_in": absent, "scope": absent}
    response = refreshed(changes, scope="calendar")
    assert told(response) == (None, "SlAV32hkKG", None)
    assert response.tokens is not None
    assert (response.tokens.scope, response.tokens.expires_at) == ("calendar", None)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"access_token": REMOVE}, "token.access_token"),
        ({"access_token": "a b"}, "token.access_token"),
        ({"access_token": 1, "id_token": []}, "token.access_token"),
        ({"token_type": "DPoP"}, "token.token_type"),
        ({"token_type": REMOVE}, "token.token_type"),
        ({"scope": ["openid"]}, "token.scope"),
        ({"expires_in": "soon"}, "token.expires_in"),
    ],
)
def test_M55_a_rotated_refresh_token_is_never_lost(changes: dict[str, Any], code: str) -> None:
    """The old one is spent: whatever else the answer lacks, the new one is handed over."""
    assert told(refreshed(changes)) == ("8xLOxBtZp8", None, code)
    for absent in (REMOVE, None, "", 1, ["8xLOxBtZp8"]):
        with refusal(code):
            refreshed(changes | {"refresh_token": absent})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"id_token": 1}, ("8xLOxBtZp8", "SlAV32hkKG", "token.id_token")),
        ({"id_token": ""}, ("8xLOxBtZp8", "SlAV32hkKG", "token.id_token")),
        ({"refresh_token": "a b"}, (None, "SlAV32hkKG", "token.refresh_token")),
        ({"refresh_token": {}, "id_token": 1}, (None, "SlAV32hkKG", "token.id_token")),
    ],
)
def test_a_good_access_token_outlives_its_companions(
    changes: dict[str, Any], expected: tuple[str | None, ...]
) -> None:
    """What cannot be read is left out and told (REFRESH.md, T19: keep the tokens)."""
    response = refreshed(changes)
    assert told(response) == expected
    assert response.tokens is not None
    assert (response.tokens.refresh_token, response.refresh_token) == (response.refresh_token,) * 2
    assert response.tokens.id_token == (None if "id_token" in changes else IdToken("a.b.c"))


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (400, {"error": "invalid_grant"}, "token.invalid_grant"),
        (401, {"error": "invalid_client"}, "token.invalid_client"),
        (400, {"error": "use_dpop_nonce"}, "token.use_dpop_nonce"),
        (503, {"error": "temporarily_unavailable"}, "token.temporarily_unavailable"),
        (200, GOOD | {"error": "invalid_grant"}, "token.invalid_grant"),
        (500, GOOD, "token.error"),
        (400, {"refresh_token": []}, "token.error"),
    ],
)
def test_an_error_response_to_a_refresh(status: int, document: dict[str, Any], code: str) -> None:
    """RFC 6749 §5.2: what comes with an error is not believed."""
    with refusal(code):
        read_refresh_response(status, document, requested_scope="", sent_at=NOW)


# The response to a revocation


@pytest.mark.parametrize(
    ("status", "document"),
    [
        (200, None),
        (200, {}),
        (200, {"error": "never looked at"}),
        (204, None),
        (400, {"error": "invalid_token"}),
    ],
)
def test_what_is_revoked_is_revoked(status: int, document: dict[str, Any] | None) -> None:
    """RFC 7009 §2.2: a token that the OP does not know is no error; Google says one."""
    assert read_revocation_response(status, document) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("status", "document", "code"),
    [
        (400, {"error": "unsupported_token_type"}, "revocation.unsupported_token_type"),
        (401, {"error": "invalid_client"}, "revocation.invalid_client"),
        (503, None, "revocation.error"),
        (503, {}, "revocation.error"),
        (404, {"error": 1}, "revocation.error"),
        (302, None, "revocation.error"),
    ],
)
def test_a_revocation_that_failed(status: int, document: dict[str, Any] | None, code: str) -> None:
    """RFC 7009 §2.2.1."""
    with refusal(code):
        read_revocation_response(status, document)


def test_no_token_is_shown() -> None:
    """`str` and `repr` of what holds tokens and secrets are redacted; equality is by type."""
    private_key = PrivateKey('{"d": "private"}')
    shown = f"{read({})!r} {read({})} {client('private_key_jwt', private_key=private_key)!r}"
    shown += f"{refreshed({})!r} {refreshed({'access_token': 1})}"
    for secret in ("SlAV32hkKG", "8xLOxBtZp8", "a.b.c", SECRET, 'private"'):
        assert secret not in shown
    assert AccessToken("a") == AccessToken("a")
    assert AccessToken("a") != IdToken("a")
    assert AccessToken("a") != "a"


# Anything at all


@fuzz
@given(
    st.integers(100, 599) | st.just(200),
    st.dictionaries(
        st.sampled_from([*GOOD, "error", "error_description"]),
        awkward | st.sampled_from(list(GOOD.values())),
    ),
    st.booleans(),
)
def test_any_token_response_is_read_or_refused(
    status: int, changes: dict[str, Any], whole: bool
) -> None:
    """No answer of the token endpoint makes anything but tokens or a refusal."""
    document = GOOD | changes if whole else changes
    with no_other_error():
        answer = read_token_response(status, document, requested_scope="openid", sent_at=NOW)
        assert answer.access_token.reveal()
        assert answer.expires_at is None or NOW <= answer.expires_at <= NOW + timedelta(days=1)


members = st.dictionaries(
    st.sampled_from([*GOOD, "refresh_expires_in", "error", "error_description"]),
    awkward | st.sampled_from(list(GOOD.values())),
)


@fuzz
@given(st.integers(100, 599) | st.just(200), members, st.booleans())
def test_M55_any_answer_to_a_refresh_is_read_or_refused(
    status: int, changes: dict[str, Any], whole: bool
) -> None:
    """No answer is taken for nothing, none raises anything else, no readable token is lost."""
    document = GOOD | changes if whole else changes
    try:
        response = read_refresh_response(status, document, requested_scope="a", sent_at=NOW)
    except InvalidResponse:
        assert status == 200
        assert document.get("refresh_token") not in GOOD.values()
    except OPError:
        assert status != 200 or "error" in document
    else:
        assert response.refresh_token or response.tokens
        assert response.tokens or response.problem
        if document.get("refresh_token") in GOOD.values():
            assert response.refresh_token == RefreshToken(document["refresh_token"])


@fuzz
@given(st.integers(100, 599), st.none() | members)
def test_any_answer_to_a_revocation_is_read_or_refused(
    status: int, document: dict[str, Any] | None
) -> None:
    """A success, or the OP's error."""
    with contextlib.suppress(OPError):
        read_revocation_response(status, document)
        assert status < 300 or document == {**(document or {}), "error": "invalid_token"}
