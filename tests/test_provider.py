"""The tests' own OpenID Provider keeps its promises, the bad ones included."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit

import pytest
import requests
from cryptography.exceptions import InvalidSignature
from requests.exceptions import ConnectionError as Unreachable

from oidc_rp.testing import (
    LOGOUT_EVENT,
    REFRESH_FAULTS,
    REMOVE,
    OpenIDProvider,
    SigningKey,
    close_connection,
    code_challenge,
    decode_jws,
    drip,
    drip_headers,
    endless,
    first,
    gzip_bomb,
    half_hash,
    held,
    held_back,
    huge_header,
    issue_certificate,
    late,
    not_json,
    public_key,
    raw,
    redirect_to,
    reset,
    sending,
    slow,
    truncated,
    verified_claims,
)

ROOT = Path(__file__).resolve().parent.parent
CALLBACK = "https://rp.example/callback"
CODE_VERIFIER = "v" * 43
ALGS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate("RS256", kid="one")


@pytest.fixture
def op(key: SigningKey) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(keys=[key]) as provider:
        yield provider


@pytest.fixture
def http() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


class Client:
    """The steps of an honest relying party, with parameters a test may replace."""

    def __init__(self, op: OpenIDProvider, http: requests.Session) -> None:
        self.op = op
        self.http = http

    def request(self, **changes: str) -> dict[str, str]:
        """Return the parameters of an authentication request."""
        return {
            "client_id": self.op.client_id,
            "redirect_uri": CALLBACK,
            "response_type": "code",
            "scope": "openid offline_access",
            "state": "the-state",
            "nonce": "the-nonce",
            "code_challenge": code_challenge(CODE_VERIFIER) or "",
            "code_challenge_method": "S256",
        } | changes

    def authorize(self, **changes: str) -> requests.Response:
        """Send an authentication request."""
        url, params = self.op.url("authorization"), self.request(**changes)
        return self.http.get(url, params=params, allow_redirects=False, timeout=5)

    def answer(self, **changes: str) -> dict[str, list[str]]:
        """Return the parameters that came to the redirect_uri."""
        return parse_qs(urlsplit(self.authorize(**changes).headers["Location"]).query)

    def redeem(self, code: str, **changes: str) -> requests.Response:
        """Send a token request with client_secret_basic."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return self.post(form | {"code_verifier": CODE_VERIFIER} | changes)

    def refresh(self, refresh_token: str, **changes: str) -> requests.Response:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return self.post(form | changes)

    def post(self, form: dict[str, str]) -> requests.Response:
        credentials = quote_plus(self.op.client_id), quote_plus(self.op.client_secret)
        return self.http.post(self.op.url("token"), form, auth=credentials, timeout=5)

    def tokens(self, **changes: str) -> dict[str, Any]:
        """Walk to the token response."""
        response = self.redeem(self.answer(**changes)["code"][0])
        assert response.status_code == 200, response.text
        return dict(response.json())

    def userinfo(self, access_token: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {access_token}"}
        return self.http.get(self.op.url("userinfo"), headers=headers, timeout=5)

    def get(self, endpoint: str, **options: Any) -> requests.Response:
        options = {"allow_redirects": False, "timeout": 5} | options
        return self.http.get(self.op.url(endpoint), **options)


@pytest.fixture
def client(op: OpenIDProvider, http: requests.Session) -> Client:
    return Client(op, http)


def refusal(response: requests.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


# Discovery and keys


@pytest.mark.parametrize(
    ("issuer_path", "trailing_slash", "discovery"),
    [
        ("", False, "/.well-known/openid-configuration"),
        ("", True, "/.well-known/openid-configuration"),
        ("/tenant/oidc", False, "/tenant/oidc/.well-known/openid-configuration"),
        ("/tenant", True, "/tenant/.well-known/openid-configuration"),
    ],
)
def test_discovery_is_at_the_issuer_less_one_slash(
    key: SigningKey,
    http: requests.Session,
    issuer_path: str,
    trailing_slash: bool,
    discovery: str,
) -> None:
    with OpenIDProvider(issuer_path=issuer_path, trailing_slash=trailing_slash, keys=[key]) as op:
        assert op.issuer == op.origin + issuer_path + "/" * trailing_slash
        document = http.get(op.origin + discovery, timeout=5).json()
        assert document["issuer"] == op.issuer
        assert document["token_endpoint"] == op.url("token")
        assert op.calls("discovery") == op.calls(discovery) == 1


def test_metadata_can_be_changed(op: OpenIDProvider, client: Client) -> None:
    op.metadata["issuer"] = "https://other.example"
    assert client.get("discovery").json()["issuer"] == "https://other.example"


@pytest.mark.parametrize("alg", ALGS)
def test_id_token_verifies_with_the_published_key(
    op: OpenIDProvider, client: Client, alg: str
) -> None:
    op.signing_alg = alg
    tokens = client.tokens()
    header = decode_jws(tokens["id_token"])[0]
    [jwk] = [jwk for jwk in client.get("jwks").json()["keys"] if jwk["kid"] == header["kid"]]
    claims = verified_claims(tokens["id_token"], public_key(jwk))
    assert header["alg"] == jwk["alg"] == alg
    assert claims["nonce"] == "the-nonce"
    assert claims["at_hash"] == half_hash(alg, tokens["access_token"])
    assert not {"d", "p", "q"} & set(jwk)
    with pytest.raises(InvalidSignature):
        verified_claims(op.sign(claims, key=SigningKey.generate(alg)), public_key(jwk))


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_hs_signs_with_the_client_secret(op: OpenIDProvider, client: Client, alg: str) -> None:
    op.signing_alg = alg
    id_token = client.tokens()["id_token"]
    assert decode_jws(id_token)[0] == {"alg": alg, "typ": "JWT"}
    assert verified_claims(id_token, op.client_secret.encode())["iss"] == op.issuer


def test_rotated_keys_replace_the_old_ones(op: OpenIDProvider, client: Client) -> None:
    before = client.get("jwks").json()["keys"]
    op.rotate_keys()
    after = client.get("jwks").json()["keys"]
    assert before[0]["kid"] != after[0]["kid"]
    assert before[0]["n"] != after[0]["n"]
    assert decode_jws(client.tokens()["id_token"])[0]["kid"] == after[0]["kid"]


def test_published_jwk_can_lie(op: OpenIDProvider, client: Client) -> None:
    lying = SigningKey("RS256", "two", op.keys[0].private_key, {"use": "enc", "alg": REMOVE})
    op.keys = [lying]
    [jwk] = client.get("jwks").json()["keys"]
    assert jwk["use"] == "enc"
    assert "alg" not in jwk


# The authorization endpoint


def test_authentication_response_carries_code_state_and_iss(
    op: OpenIDProvider, client: Client
) -> None:
    response = client.authorize()
    assert response.status_code == 302
    assert response.headers["Location"].startswith(CALLBACK + "?")
    answer = client.answer()
    assert answer.keys() == {"code", "state", "iss"}
    assert answer["state"] == ["the-state"]
    assert answer["iss"] == [op.issuer]
    op.metadata["authorization_response_iss_parameter_supported"] = False
    assert "iss" not in client.answer()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scope": "profile"}, "invalid_scope"),
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"prompt": "none login"}, "invalid_request"),
        ({"claims": "[]"}, "invalid_request"),
    ],
)
def test_bad_authentication_request_is_answered_with_an_error(
    client: Client, changes: dict[str, str], error: str
) -> None:
    answer = client.answer(**changes)
    assert answer["error"] == [error]
    assert answer["state"] == ["the-state"]
    assert "code" not in answer


@pytest.mark.parametrize("changes", [{"client_id": "x"}, {"redirect_uri": "https://evil.example"}])
def test_nobody_is_sent_to_an_unknown_place(
    op: OpenIDProvider, client: Client, changes: dict[str, str]
) -> None:
    op.redirect_uris = [CALLBACK]
    response = client.authorize(**changes)
    assert response.status_code == 400
    assert "Location" not in response.headers


def test_prompt_none_needs_somebody_signed_in(op: OpenIDProvider, client: Client) -> None:
    assert "code" in client.answer(prompt="none")
    op.signed_in = False
    assert client.answer(prompt="none")["error"] == ["login_required"]


def test_prompt_none_can_be_answered_with_any_error(op: OpenIDProvider, client: Client) -> None:
    op.prompt_none_error = "interaction_required"
    assert client.answer(prompt="none")["error"] == ["interaction_required"]
    assert "code" in client.answer()


def test_form_post_is_a_form_that_posts_itself(client: Client) -> None:
    page = client.authorize(response_mode="form_post", state='"><b>').text
    assert f'<form method="post" action="{CALLBACK}">' in page
    assert 'name="state" value="&quot;&gt;&lt;b&gt;"' in page
    assert 'name="code"' in page


def test_authorization_params_are_merged_over_the_answer(
    op: OpenIDProvider, client: Client
) -> None:
    op.authorization_params = {"code": REMOVE, "error": "access_denied", "state": ["a", "b"]}
    answer = client.answer()
    assert answer["error"] == ["access_denied"]
    assert answer["state"] == ["a", "b"]
    assert "code" not in answer


# The login at the OP


def id_token_claims(tokens: dict[str, Any]) -> dict[str, Any]:
    return decode_jws(tokens["id_token"])[1]


def test_id_tokens_tell_of_the_login(op: OpenIDProvider, client: Client) -> None:
    assert op.login.auth_time == pytest.approx(time.time(), abs=60)
    op.login.auth_time, op.login.acr, op.login.amr = 1_000_000_000, "gold", ["pwd", "otp"]
    claims, login = id_token_claims(client.tokens()), op.login
    assert (claims["sid"], claims["auth_time"]) == (login.sid, 1_000_000_000)
    assert (claims["acr"], claims["amr"]) == ("gold", ["pwd", "otp"])
    assert id_token_claims(op.issue())["sid"] == login.sid


def test_another_login_has_another_sid(op: OpenIDProvider, client: Client) -> None:
    before, op.login.acr = op.login, "gold"
    code = client.answer()["code"][0]
    op.now = lambda: before.auth_time + 100.5
    assert op.new_login() is op.login
    assert op.login.sid != before.sid
    assert (op.login.auth_time, op.login.acr) == (before.auth_time + 100, "")
    assert id_token_claims(client.tokens())["sid"] == op.login.sid
    op.now = time.time
    assert id_token_claims(client.redeem(code).json())["sid"] == before.sid


def test_a_refreshed_id_token_keeps_the_login_of_its_grant(
    op: OpenIDProvider, client: Client
) -> None:
    op.login.acr, op.login.amr = "gold", ["pwd"]
    tokens = client.tokens()
    op.login.auth_time, op.login.acr, op.login.amr = 1, "silver", []
    op.new_login()
    refreshed = id_token_claims(client.refresh(tokens["refresh_token"]).json())
    for name in ("sid", "auth_time", "acr", "amr"):
        assert refreshed[name] == id_token_claims(tokens)[name]


def test_max_age_and_prompt_login_authenticate_again(op: OpenIDProvider, client: Client) -> None:
    """In the same login: its `sid` stays."""
    op.now, sid = lambda: 1_000_000_100.5, op.login.sid
    op.login.auth_time = 1_000_000_000
    assert id_token_claims(client.tokens(max_age="101"))["auth_time"] == 1_000_000_000
    assert id_token_claims(client.tokens(max_age="100"))["auth_time"] == 1_000_000_100
    op.login.auth_time = 1_000_000_000
    claims = id_token_claims(client.tokens(prompt="login"))
    assert (claims["auth_time"], claims["sid"]) == (1_000_000_100, sid)
    assert op.login.auth_time == 1_000_000_100


def test_max_age_can_be_ignored(op: OpenIDProvider, client: Client) -> None:
    op.ignores_max_age, op.login.auth_time = True, 1_000_000_000
    for changes in ({}, {"prompt": "none"}):
        claims = id_token_claims(client.tokens(max_age="0", **changes))
        assert claims["auth_time"] == 1_000_000_000
    assert op.requests_to("authorization")[-1].query["max_age"] == ["0"]


def test_prompt_none_cannot_authenticate_again(op: OpenIDProvider, client: Client) -> None:
    op.login.auth_time = int(time.time()) - 100
    assert client.answer(prompt="none", max_age="99")["error"] == ["login_required"]
    assert "code" in client.answer(prompt="none", max_age="200")


def acr_claim(**request: Any) -> str:
    """Return the `claims` parameter that asks for an acr (Core §5.5)."""
    return json.dumps({"id_token": {"acr": request}})


@pytest.mark.parametrize(
    "changes",
    [
        {"acr_values": "diamond silver gold"},
        {"claims": acr_claim(values=["diamond", "silver", "gold"])},
        {"claims": acr_claim(value="silver", essential=True)},
    ],
)
def test_the_first_acr_that_is_supported_comes_back(
    op: OpenIDProvider, client: Client, changes: dict[str, str]
) -> None:
    assert "acr" not in id_token_claims(client.tokens())
    assert id_token_claims(client.tokens(**changes))["acr"] == "silver"
    assert id_token_claims(client.tokens())["acr"] == op.login.acr == "silver"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({}, "unmet_authentication_requirements"),
        ({"prompt": "none"}, "login_required"),
        ({"claims": acr_claim(values=["diamond"])}, ""),
        ({"acr_values": "diamond", "claims": "{}"}, ""),
    ],
)
def test_an_essential_acr_that_cannot_be_met_is_a_failure(
    client: Client, changes: dict[str, str], error: str
) -> None:
    """Any other is a wish (Core §5.5.1.1)."""
    asked = {"claims": acr_claim(values=["diamond"], essential=True)} | changes
    if error:
        assert client.answer(**asked)["error"] == [error]
    else:
        assert "acr" not in id_token_claims(client.tokens(**asked))


def test_acr_values_can_be_ignored(op: OpenIDProvider, client: Client) -> None:
    op.ignores_acr_values = True
    essential = acr_claim(values=["gold"], essential=True)
    assert "acr" not in id_token_claims(client.tokens(acr_values="gold", claims=essential))


def test_prompt_none_steps_nobody_up(client: Client) -> None:
    assert "acr" not in id_token_claims(client.tokens(prompt="none", acr_values="gold"))


def test_who_is_disabled_gets_no_tokens(op: OpenIDProvider, client: Client) -> None:
    """Nothing ends for good: who is enabled again goes on."""
    refresh_token, code = client.tokens()["refresh_token"], client.answer()["code"][0]
    op.disabled = True
    assert client.answer(prompt="none")["error"] == ["login_required"]
    assert client.answer()["error"] == ["access_denied"]
    assert refusal(client.refresh(refresh_token)) == (400, "invalid_grant")
    assert refusal(client.redeem(code)) == (400, "invalid_grant")
    op.disabled = False
    assert client.refresh(refresh_token).status_code == 200
    assert op.families_lost == 0


# Logout


LOGGED_OUT = "http://testserver/oidc/logged-out/"


def end_session(client: Client, method: str = "GET", **params: str) -> requests.Response:
    url, where = client.op.url("end_session"), "params" if method == "GET" else "data"
    options: dict[str, Any] = {where: params, "allow_redirects": False, "timeout": 5}
    return client.http.request(method, url, **options)


def test_the_metadata_tells_how_to_log_out(op: OpenIDProvider, client: Client) -> None:
    document = client.get("discovery").json()
    assert document["end_session_endpoint"] == op.issuer + "/end-session"
    for channel in ("backchannel", "frontchannel"):
        assert document[f"{channel}_logout_supported"] is True
        assert document[f"{channel}_logout_session_supported"] is True


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_logout_ends_the_login_and_comes_back(
    op: OpenIDProvider, client: Client, method: str
) -> None:
    """An expired ID Token is as good a hint as a fresh one."""
    op.id_token_lifetime, sid = -100, op.login.sid
    params = {"id_token_hint": client.tokens()["id_token"], "state": "a&b"}
    params["post_logout_redirect_uri"] = LOGGED_OUT
    response = end_session(client, method, **params)
    assert response.headers["Location"] == LOGGED_OUT + "?state=a%26b"
    assert op.login.sid != sid
    [request] = op.requests_to("end_session")
    assert (request.query if method == "GET" else request.form).keys() == params.keys()


def test_a_logout_may_name_the_client_alone_and_no_way_back(
    op: OpenIDProvider, client: Client
) -> None:
    found = end_session(client, client_id=op.client_id, post_logout_redirect_uri=LOGGED_OUT)
    assert (found.status_code, found.headers["Location"]) == (302, LOGGED_OUT)
    sid = op.login.sid
    response = end_session(client, state="x")
    assert (response.status_code, "Location" in response.headers) == (200, False)
    assert "signed out" in response.text
    assert op.login.sid != sid


@pytest.mark.parametrize(
    "changes",
    [
        {"post_logout_redirect_uri": LOGGED_OUT + "x"},
        {"client_id": "other"},
        {"id_token_hint": "junk"},
        {"id_token_hint": ""},
    ],
)
def test_a_bad_logout_request_is_refused(
    op: OpenIDProvider, client: Client, changes: dict[str, str]
) -> None:
    params = {"id_token_hint": op.issue()["id_token"], "client_id": op.client_id}
    params |= {"post_logout_redirect_uri": LOGGED_OUT} | changes
    sid = op.login.sid
    assert refusal(end_session(client, **params)) == (400, "invalid_request")
    assert op.login.sid == sid


def test_an_id_token_hint_must_be_of_this_op_and_client(op: OpenIDProvider, client: Client) -> None:
    claims = id_token_claims(op.issue())
    bent = claims | {"aud": "other"}
    forger = SigningKey.generate("RS256", kid=op.keys[0].kid)
    hints = [op.sign(bent), op.sign(claims, key=forger), op.sign(claims, alg="none")]
    hints.append(op.sign(claims, key=b"guessed", alg="HS256"))
    for hint in hints:
        assert refusal(end_session(client, id_token_hint=hint)) == (400, "invalid_request")
    assert end_session(client, id_token_hint=op.sign(claims | {"aud": ["a", op.client_id]})).ok
    op.signing_alg = "HS256"
    assert end_session(client, id_token_hint=op.issue()["id_token"]).ok


def test_a_redirect_needs_to_know_the_client(client: Client) -> None:
    response = end_session(client, post_logout_redirect_uri=LOGGED_OUT)
    assert refusal(response) == (400, "invalid_request")


@pytest.mark.parametrize("alg", ["RS256", "ES256", "HS256"])
def test_logout_token(op: OpenIDProvider, alg: str) -> None:
    op.signing_alg, op.now = alg, lambda: 1_000_000_000.5
    logout_token = op.logout_token()
    key = op.client_secret.encode() if alg == "HS256" else op.key_for(alg).private_key.public_key()
    claims = verified_claims(logout_token, key)
    header = decode_jws(logout_token)[0]
    assert (header["alg"], header["typ"]) == (alg, "logout+jwt")
    assert claims.pop("jti") != decode_jws(op.logout_token())[1]["jti"]
    assert claims == {
        "iss": op.issuer,
        "aud": op.client_id,
        "iat": 1_000_000_000,
        "exp": 1_000_000_120,
        "events": {LOGOUT_EVENT: {}},
        "sub": op.person["sub"],
        "sid": op.login.sid,
    }


def test_a_logout_token_can_be_bent_and_forged(op: OpenIDProvider) -> None:
    bent = op.logout_token(sub=REMOVE, sid="another", nonce="n", header={"typ": REMOVE})
    header, claims, *_ = decode_jws(bent)
    assert header == {"alg": "RS256", "kid": "one"}
    assert ("sub" in claims, claims["sid"], claims["nonce"]) == (False, "another", "n")
    assert op.logout_token(alg="none").endswith(".")
    forged = op.logout_token(key=SigningKey.generate("RS256", kid="one"))
    with pytest.raises(InvalidSignature):
        verified_claims(forged, op.keys[0].private_key.public_key())


# Pushed authorization requests


def test_pushed_request_is_used_once(op: OpenIDProvider, client: Client) -> None:
    op.metadata["require_pushed_authorization_requests"] = True
    assert client.authorize().status_code == 400
    credentials = quote_plus(op.client_id), quote_plus(op.client_secret)
    par = client.http.post(op.url("par"), client.request(), auth=credentials, timeout=5)
    assert par.status_code == 201
    params = {"client_id": op.client_id, "request_uri": par.json()["request_uri"]}
    url = op.url("authorization")
    assert client.http.get(url, params=params, allow_redirects=False).status_code == 302
    assert client.http.get(url, params=params, allow_redirects=False).status_code == 400


# The token endpoint


def test_code_is_good_once_and_its_second_use_ends_the_tokens(client: Client) -> None:
    code = client.answer()["code"][0]
    tokens = client.redeem(code).json()
    assert client.userinfo(tokens["access_token"]).status_code == 200
    assert refusal(client.redeem(code)) == (400, "invalid_grant")
    assert client.userinfo(tokens["access_token"]).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"code_verifier": "w" * 43},
        {"code_verifier": ""},
        {"code_verifier": "too-short"},
        {"redirect_uri": CALLBACK + "/"},
        {"code": "unknown"},
    ],
)
def test_code_needs_its_verifier_and_redirect_uri(client: Client, changes: dict[str, str]) -> None:
    code = client.answer()["code"][0]
    assert refusal(client.redeem(**{"code": code} | changes)) == (400, "invalid_grant")


def test_code_expires(op: OpenIDProvider, client: Client) -> None:
    code = client.answer()["code"][0]
    op.now = lambda: time.time() + 61
    assert refusal(client.redeem(code)) == (400, "invalid_grant")


def test_refresh_token_rotates_and_reuse_ends_the_family(client: Client) -> None:
    old = client.tokens()
    new = client.refresh(old["refresh_token"]).json()
    assert new["refresh_token"] != old["refresh_token"]
    claims = decode_jws(new["id_token"])[1]
    assert "nonce" not in claims
    assert claims["auth_time"] == decode_jws(old["id_token"])[1]["auth_time"]
    assert refusal(client.refresh(old["refresh_token"])) == (400, "invalid_grant")
    assert refusal(client.refresh(new["refresh_token"])) == (400, "invalid_grant")
    assert client.userinfo(new["access_token"]).status_code == 401


def test_refresh_may_narrow_the_scope_only(client: Client) -> None:
    refresh_token = client.tokens()["refresh_token"]
    assert refusal(client.refresh(refresh_token, scope="openid admin")) == (400, "invalid_scope")
    assert client.refresh(refresh_token, scope="openid").json()["scope"] == "openid"


def test_no_offline_access_no_refresh_token(client: Client) -> None:
    assert "refresh_token" not in client.tokens(scope="openid")


# Rotation, and refreshes gone wrong


def test_the_refresh_token_before_the_last_works_for_a_while(
    op: OpenIDProvider, client: Client
) -> None:
    """Auth0's overlap: the immediately previous one alone, and it yields a new one."""
    op.overlap, clock = 5, time.time()
    op.now = lambda: clock
    first_one = client.tokens()["refresh_token"]
    second = client.refresh(first_one).json()["refresh_token"]
    sibling = client.refresh(first_one).json()["refresh_token"]
    assert len({first_one, second, sibling}) == 3
    assert (op.refreshes, op.rotations, op.families_lost) == (2, 2, 0)
    third = client.refresh(second).json()["refresh_token"]
    clock += 5
    assert refusal(client.refresh(second)) == (400, "invalid_grant")
    assert refusal(client.refresh(third)) == (400, "invalid_grant")
    assert op.families_lost == 1


def test_an_older_refresh_token_has_no_overlap(op: OpenIDProvider, client: Client) -> None:
    op.overlap = 60
    first_one = client.tokens()["refresh_token"]
    second = client.refresh(first_one).json()["refresh_token"]
    assert client.refresh(second).status_code == 200
    assert refusal(client.refresh(first_one)) == (400, "invalid_grant")
    assert refusal(client.refresh(first_one)) == (400, "invalid_grant")
    assert op.families_lost == 1


def test_no_rotation(op: OpenIDProvider, client: Client) -> None:
    op.rotation = False
    old = client.tokens()
    new = client.refresh(old["refresh_token"]).json()
    assert new["refresh_token"] == old["refresh_token"]
    assert new["access_token"] != old["access_token"]
    assert (op.refreshes, op.rotations) == (1, 0)


@pytest.mark.parametrize("fault", REFRESH_FAULTS)
def test_a_fault_hits_refreshes_as_often_as_told(
    op: OpenIDProvider, client: Client, fault: str
) -> None:
    """Logins go on; whether the token was spent is what the name says."""
    op.refresh_fault, op.refresh_fault_times = fault, 1
    refresh_token = client.tokens()["refresh_token"]
    with contextlib.suppress(Unreachable, requests.exceptions.ChunkedEncodingError):
        response = client.refresh(refresh_token)
        assert response.status_code != 200 or fault == "page_after_rotation"
    assert (op.refreshes, op.rotations) == (1, "after_rotation" in fault)
    status = 400 if op.rotations else 200
    assert client.refresh(refresh_token).status_code == status
    assert (op.refreshes, op.families_lost) == (2, op.rotations and status == 400)


@pytest.mark.parametrize(
    ("fault", "status", "retry_after"),
    [("500", 500, None), ("503", 503, "2"), ("503_json", 503, "2"), ("429", 429, "2")],
)
def test_a_fault_for_good(
    op: OpenIDProvider, client: Client, fault: str, status: int, retry_after: str | None
) -> None:
    op.refresh_fault, refresh_token = fault, client.tokens()["refresh_token"]
    for _ in range(2):
        response = client.refresh(refresh_token)
        assert (response.status_code, response.headers.get("Retry-After")) == (status, retry_after)


def test_a_reset_is_a_reset(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = reset(after=False)
    with pytest.raises(Unreachable, match="ConnectionResetError"):
        client.get("jwks")


def test_a_truncated_answer_announces_more(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = truncated()
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        client.get("jwks")


def test_a_late_answer_has_rotated_early(op: OpenIDProvider, client: Client) -> None:
    op.refresh_delay = 5
    refresh_token = client.tokens()["refresh_token"]
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    credentials = quote_plus(op.client_id), quote_plus(op.client_secret)
    with pytest.raises(requests.ReadTimeout):
        client.http.post(op.url("token"), form, auth=credentials, timeout=0.2)
    assert op.rotations == 1
    go = threading.Event()
    op.refresh_delay, op.answer["token"] = 0, held_back(go)
    new = op.issue()["refresh_token"]
    threading.Timer(0.05, go.set).start()
    assert client.refresh(new).status_code == 200
    op.answer["token"] = late(0.01)
    assert client.refresh(op.issue()["refresh_token"]).status_code == 200


def test_answers_to_refreshes_can_be_bent(op: OpenIDProvider, client: Client) -> None:
    op.refresh_response = {"expires_in": REMOVE, "refresh_token": REMOVE, "scope": "openid"}
    op.refreshed_id_token_claims = {"sub": "somebody else"}
    old = client.tokens()
    new = client.refresh(old["refresh_token"]).json()
    assert old.keys() - new.keys() == {"expires_in", "refresh_token"}
    assert new["scope"] == "openid"
    assert decode_jws(new["id_token"])[1]["sub"] == "somebody else"
    assert decode_jws(old["id_token"])[1]["sub"] == op.person["sub"]


def test_grants_can_be_issued_and_ended(op: OpenIDProvider, client: Client) -> None:
    tokens = op.issue("openid offline_access", sub="another")
    assert client.userinfo(tokens["access_token"]).json()["sub"] == "another"
    op.end_grants()
    assert client.userinfo(tokens["access_token"]).status_code == 401
    assert refusal(client.refresh(tokens["refresh_token"])) == (400, "invalid_grant")
    assert op.families_lost == 0


# Revocation (RFC 7009)


def revoke(client: Client, **form: str) -> requests.Response:
    credentials = quote_plus(client.op.client_id), quote_plus(client.op.client_secret)
    return client.http.post(client.op.url("revocation"), form, auth=credentials, timeout=5)


def test_a_revoked_refresh_token_ends_its_family_alone(op: OpenIDProvider, client: Client) -> None:
    one, other = op.issue(), op.issue()
    assert revoke(client, token=one["refresh_token"]).status_code == 200
    assert op.revocations == [("refresh_token", one["refresh_token"])]
    assert client.userinfo(one["access_token"]).status_code == 401
    assert refusal(client.refresh(one["refresh_token"])) == (400, "invalid_grant")
    assert client.refresh(other["refresh_token"]).status_code == 200
    assert op.families_lost == 0


def test_a_revoked_access_token_ends_alone(op: OpenIDProvider, client: Client) -> None:
    tokens = op.issue()
    assert revoke(client, token=tokens["access_token"]).status_code == 200
    assert op.revocations == [("access_token", tokens["access_token"])]
    assert client.userinfo(tokens["access_token"]).status_code == 401
    assert client.refresh(tokens["refresh_token"]).status_code == 200


def test_a_revocation_may_end_the_whole_consent(op: OpenIDProvider, client: Client) -> None:
    """As at Google: all grants of the same person."""
    op.revocation_ends_consent = True
    one, other, stranger = op.issue(), op.issue(), op.issue(sub="a stranger")
    assert revoke(client, token=one["access_token"]).status_code == 200
    assert refusal(client.refresh(other["refresh_token"])) == (400, "invalid_grant")
    assert client.refresh(stranger["refresh_token"]).status_code == 200


def test_revocation_needs_the_client_and_a_token(op: OpenIDProvider, client: Client) -> None:
    assert revoke(client, token="unknown").status_code == 200
    assert refusal(revoke(client)) == (400, "invalid_request")
    token = {"token": op.issue()["refresh_token"], "client_id": op.client_id}
    anonymous = client.http.post(op.url("revocation"), token, timeout=5)
    assert refusal(anonymous) == (401, "invalid_client")
    assert op.revocations == []


# The API


def call(client: Client, path: str, token: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    method = options.pop("method", "GET")
    url = client.op.origin + path
    return client.http.request(method, url, headers=headers, timeout=5, **options)


def test_the_api_tells_what_arrived(op: OpenIDProvider, client: Client) -> None:
    token = op.issue()["access_token"]
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        response = call(client, "/api/calendar/1?a=b", token, method=method, data="hello")
        assert response.json() == {
            "method": method,
            "path": "/api/calendar/1",
            "query": {"a": ["b"]},
            "body": "hello",
            "scheme": "Bearer",
            "sub": op.person["sub"],
            "scope": "openid offline_access calendar",
            "audience": "",
        }
    assert op.calls("/api/calendar/1") == 5


def test_the_api_refuses_in_the_words_of_rfc_6750(op: OpenIDProvider, client: Client) -> None:
    """No token: no error; a bad one: invalid_token; too little: the scope that is missing."""
    tokens = op.issue("openid offline_access")
    nothing = client.http.get(op.origin + "/api/calendar", timeout=5)
    assert (nothing.status_code, nothing.content) == (401, b"")
    assert nothing.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    for bad in ("unknown", tokens["id_token"], tokens["refresh_token"]):
        response = call(client, "/api/calendar", bad)
        assert refusal(response) == (401, "invalid_token")
        assert response.headers["WWW-Authenticate"] == (
            'Bearer error="invalid_token", error_description="no access token of ours"'
        )
    response = call(client, "/api/calendar", tokens["access_token"])
    assert refusal(response) == (403, "insufficient_scope")
    assert response.headers["WWW-Authenticate"].endswith(', scope="calendar"')
    assert call(client, "/api/anything", tokens["access_token"]).status_code == 200


def test_access_tokens_expire_at_the_api(op: OpenIDProvider, client: Client) -> None:
    op.access_token_lifetime = 2.5
    tokens = op.issue()
    assert tokens["expires_in"] == 2.5
    assert call(client, "/api/calendar", tokens["access_token"]).status_code == 200
    op.expire_access_tokens()
    response = call(client, "/api/calendar", tokens["access_token"])
    assert refusal(response) == (401, "invalid_token")
    fresh = client.refresh(tokens["refresh_token"]).json()["access_token"]
    op.now = lambda: time.time() + 3
    assert call(client, "/api/calendar", fresh).status_code == 401


@pytest.mark.parametrize(
    ("acr_values", "max_age", "challenge"),
    [
        (["gold", "silver"], None, ', acr_values="gold silver"'),
        ([], 60, ', max_age="60"'),
        (["gold"], 0, ', acr_values="gold", max_age="0"'),
    ],
)
def test_the_api_asks_for_a_better_login(
    op: OpenIDProvider, client: Client, acr_values: list[str], max_age: int | None, challenge: str
) -> None:
    """The challenge of RFC 9470 §3; a refresh does not change the login, another one does."""
    op.api_acr_values, op.api_max_age = acr_values, max_age
    op.login.auth_time -= 100
    tokens = client.tokens(scope="openid offline_access calendar")
    refreshed = client.refresh(tokens["refresh_token"]).json()
    for token in (tokens["access_token"], refreshed["access_token"]):
        response = call(client, "/api/calendar", token)
        assert refusal(response) == (401, "insufficient_user_authentication")
        assert response.headers["WWW-Authenticate"] == (
            'Bearer error="insufficient_user_authentication", '
            f'error_description="needs another login"{challenge}'
        )
    op.now = lambda: 2_000_000_000.9
    better = client.tokens(scope="openid calendar", acr_values="gold", prompt="login")
    assert call(client, "/api/calendar", better["access_token"]).status_code == 200


@pytest.mark.parametrize("parameter", ["resource", "audience", "scope"])
def test_an_access_token_is_for_one_audience(
    op: OpenIDProvider, client: Client, parameter: str
) -> None:
    graph = "https://graph.example"
    op.api_audiences, op.scope_audiences = {"graph": graph}, {"https://graph.example/read": graph}
    tokens = op.issue("openid offline_access https://graph.example/read calendar")
    named = {"scope": f"{graph}/read"} if parameter == "scope" else {parameter: graph}
    form = {"scope": "calendar"} | named
    for_graph = client.refresh(tokens["refresh_token"], **form).json()["access_token"]
    assert call(client, "/api/graph", for_graph).json()["audience"] == graph
    assert refusal(call(client, "/api/calendar", for_graph)) == (401, "invalid_token")
    for_calendar = op.issue()["access_token"]
    assert refusal(call(client, "/api/graph", for_calendar)) == (401, "invalid_token")


# A process of its own


def test_it_runs_as_a_process_of_its_own(http: requests.Session) -> None:
    """It prints who it is, is told by HTTP what to do, and tells what was asked of it."""
    command = [sys.executable, "-m", "oidc_rp.testing", "--overlap", "9", "--seconds", "60"]
    command += ["--lifetime", "7", "--delay", "0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        control = told["issuer"] + "/control"
        tokens = http.post(control + "/issue", json={"sub": "somebody"}, timeout=5).json()
        assert tokens["expires_in"] == 7
        form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
        credentials = quote_plus(told["client_id"]), quote_plus(told["client_secret"])
        url = told["issuer"] + "/token"
        assert http.post(url, form, auth=credentials, timeout=5).status_code == 200
        bent = {"refresh_fault": "429", "refresh_response": {"scope": None}}
        assert http.post(control, json=bent, timeout=5).status_code == 200
        assert http.post(url, form, auth=credentials, timeout=5).status_code == 429
        http.post(control, json={"refresh_fault": ""}, timeout=5)
        answer = http.post(url, form, auth=credentials, timeout=5).json()
        assert "scope" not in answer
        api = {"Authorization": f"Bearer {answer['access_token']}"}
        assert http.get(told["issuer"] + "/api/calendar", headers=api, timeout=5).ok
        login = http.post(control + "/new_login", timeout=5).json()
        http.post(control, json={"login": {"acr": "gold"}}, timeout=5)
        claims = decode_jws(http.post(control + "/issue", timeout=5).json()["id_token"])[1]
        assert (claims["sid"], claims["acr"]) == (login["sid"], "gold")
        sent = {"sub": None, "jti": "new"}
        logout = http.post(control + "/logout_token", json=sent, timeout=5).json()["logout_token"]
        claims = decode_jws(logout)[1]
        assert ("sub" in claims, claims["sid"], claims["jti"]) == (False, login["sid"], "new")
        http.post(control + "/expire", timeout=5)
        assert not http.get(told["issuer"] + "/api/calendar", headers=api, timeout=5).ok
        assert http.get(control, timeout=5).json() == {
            "requests": 5,
            "refreshes": 3,
            "rotations": 2,
            "families_lost": 0,
            "revocations": 0,
            "api_calls": 2,
        }
    finally:
        process.kill()
        process.communicate(timeout=5)


# Client authentication


def send_code(client: Client, op: OpenIDProvider, **authentication: Any) -> requests.Response:
    """Redeem a fresh code with this client authentication."""
    form = {"grant_type": "authorization_code", "redirect_uri": CALLBACK}
    form |= {"code": client.answer()["code"][0], "code_verifier": CODE_VERIFIER}
    auth = authentication.pop("auth", None)
    return client.http.post(op.url("token"), form | authentication, auth=auth, timeout=5)


def assertion(op: OpenIDProvider, key: SigningKey | bytes, **changes: Any) -> dict[str, str]:
    claims: dict[str, Any] = {"iss": op.client_id, "sub": op.client_id, "aud": op.issuer}
    claims |= {"exp": int(time.time()) + 60, "jti": base64.b64encode(bytes(12)).decode()}
    alg = "HS256" if isinstance(key, bytes) else key.alg
    signed = op.sign(claims | changes, key=key, alg=alg)
    return {"client_assertion_type": ASSERTION_TYPE, "client_assertion": signed}


def test_basic_credentials_are_form_decoded(op: OpenIDProvider, client: Client) -> None:
    assert quote_plus(op.client_secret) != op.client_secret
    assert client.tokens()["token_type"] == "Bearer"
    unencoded = send_code(client, op, auth=(op.client_id, op.client_secret))
    assert refusal(unencoded) == (401, "invalid_client")
    assert unencoded.headers["WWW-Authenticate"] == "Basic"


def test_secret_may_be_posted(op: OpenIDProvider, client: Client) -> None:
    good = {"client_id": op.client_id, "client_secret": op.client_secret}
    assert send_code(client, op, **good).status_code == 200
    wrong = good | {"client_secret": "wrong"}
    assert refusal(send_code(client, op, **wrong)) == (401, "invalid_client")
    twice = send_code(client, op, auth=("rp-client", "x"), **good)
    assert refusal(twice) == (400, "invalid_request")


def test_public_client_needs_the_method_none(op: OpenIDProvider, client: Client) -> None:
    assert refusal(send_code(client, op, client_id=op.client_id)) == (401, "invalid_client")
    op.metadata["token_endpoint_auth_methods_supported"] = ["none"]
    assert send_code(client, op, client_id=op.client_id).status_code == 200
    assert refusal(send_code(client, op, client_id="other")) == (401, "invalid_client")


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "PS256"])
def test_private_key_jwt(op: OpenIDProvider, client: Client, alg: str) -> None:
    key = SigningKey.generate(alg)
    op.client_jwk = {"keys": [SigningKey.generate("ES384").public_jwk, key.public_jwk]}
    authentication = assertion(op, key)
    assert send_code(client, op, **authentication).status_code == 200
    assert refusal(send_code(client, op, **authentication)) == (401, "invalid_client")
    too_late = int(time.time()) + 600
    changes: list[dict[str, Any]] = [{"aud": [op.issuer]}, {"exp": too_late}, {"sub": "other"}]
    for change in changes:
        bad = assertion(op, key, jti=str(change), **change)
        assert refusal(send_code(client, op, **bad)) == (401, "invalid_client")
    forged = assertion(op, SigningKey.generate(alg), jti="2")
    assert refusal(send_code(client, op, **forged)) == (401, "invalid_client")


def test_client_secret_jwt(op: OpenIDProvider, client: Client) -> None:
    good = assertion(op, op.client_secret.encode())
    assert send_code(client, op, **good).status_code == 200
    forged = assertion(op, b"another secret", jti="2")
    assert refusal(send_code(client, op, **forged)) == (401, "invalid_client")


# UserInfo


def test_userinfo_wants_an_access_token(op: OpenIDProvider, client: Client) -> None:
    tokens = client.tokens()
    assert client.userinfo(tokens["access_token"]).json() == op.person
    assert refusal(client.userinfo(tokens["id_token"])) == (401, "invalid_token")
    op.now = lambda: time.time() + op.access_token_lifetime
    assert refusal(client.userinfo(tokens["access_token"])) == (401, "invalid_token")


def test_userinfo_can_be_signed_and_changed(op: OpenIDProvider, client: Client) -> None:
    op.userinfo_jwt = True
    op.userinfo_claims = {"sub": "other", "email": REMOVE}
    response = client.userinfo(client.tokens()["access_token"])
    claims = verified_claims(response.text, op.keys[0].private_key.public_key())
    assert response.headers["Content-Type"] == "application/jwt"
    assert (claims["iss"], claims["aud"], claims["sub"]) == (op.issuer, op.client_id, "other")
    assert "email" not in claims


def test_userinfo_tells_what_is_known_today(op: OpenIDProvider, client: Client) -> None:
    access_token = client.tokens()["access_token"]
    op.person["email"] = "jane@new.example"
    assert client.userinfo(access_token).json()["email"] == "jane@new.example"
    op.person = {"sub": "another", "email": "other@example.com"}
    assert client.userinfo(access_token).json()["email"] == "janedoe@example.com"


def test_tokens_speak_for_whoever_signed_in(op: OpenIDProvider, client: Client) -> None:
    code = client.answer()["code"][0]
    op.person["sub"] = "the next one"
    tokens = client.redeem(code).json()
    assert decode_jws(tokens["id_token"])[1]["sub"] == "248289761001"
    assert client.userinfo(tokens["access_token"]).json()["sub"] == "248289761001"


# Tokens bent and forged


def test_id_token_says_sub_and_no_more_of_the_person(op: OpenIDProvider, client: Client) -> None:
    claims = decode_jws(client.tokens()["id_token"])[1]
    of_the_token = {"iss", "sub", "aud", "exp", "iat", "at_hash", "nonce"}
    assert claims.keys() == of_the_token | {"sid", "auth_time"}
    op.id_token_carries_claims = True
    assert decode_jws(client.tokens()["id_token"])[1]["email"] == op.person["email"]


def test_claims_header_and_token_response_can_be_bent(op: OpenIDProvider, client: Client) -> None:
    op.id_token_claims = {"aud": ["a", "b"], "nonce": REMOVE}
    op.id_token_header = {"alg": "none", "kid": REMOVE}
    op.token_response = {"token_type": "DPoP", "expires_in": REMOVE}
    tokens = client.tokens()
    header, claims, *_ = decode_jws(tokens["id_token"])
    assert header == {"alg": "none", "typ": "JWT"}
    assert claims["aud"] == ["a", "b"]
    assert "nonce" not in claims
    assert tokens["token_type"] == "DPoP"
    assert "expires_in" not in tokens


def test_make_id_token_has_the_last_word(op: OpenIDProvider, client: Client) -> None:
    op.make_id_token = lambda claims, header: json.dumps([claims["sub"], header["kid"]])
    assert json.loads(client.tokens()["id_token"]) == [op.person["sub"], "one"]


def test_forgeries(op: OpenIDProvider) -> None:
    assert op.sign({}, alg="none").endswith(".")
    pem = op.keys[0].public_pem
    confused = op.sign({"sub": "x"}, {"kid": "one"}, key=pem, alg="HS256")
    assert decode_jws(confused)[0] == {"alg": "HS256", "typ": "JWT", "kid": "one"}
    assert verified_claims(confused, pem) == {"sub": "x"}
    assert decode_jws(op.sign(b'{"sub": "a", "sub": "b"}'))[1] == {"sub": "b"}


# Answers gone wrong


def test_requests_are_recorded(op: OpenIDProvider, client: Client) -> None:
    client.tokens()
    client.http.get(op.origin + "/elsewhere?a=1&a=2", timeout=5)
    assert [request.endpoint for request in op.requests] == ["authorization", "token", None]
    assert op.calls("token") == op.calls("/token") == op.calls("/elsewhere") == 1
    assert op.requests_to("token")[0].form["code_verifier"] == [CODE_VERIFIER]
    assert op.requests_to("token")[0].headers["authorization"].startswith("Basic ")
    assert op.requests_to("/elsewhere")[0].query == {"a": ["1", "2"]}
    op.forget_requests()
    assert op.requests == []


@pytest.mark.parametrize(
    ("misbehaviour", "status", "header", "body"),
    [
        (raw(503, {"Retry-After": "7"}, b"later"), 503, ("Retry-After", "7"), b"later"),
        (redirect_to("/elsewhere"), 307, ("Location", "/elsewhere"), b""),
        (redirect_to("/elsewhere", 302), 302, ("Location", "/elsewhere"), b""),
        (sending([1]), 200, ("Content-Type", "application/json"), b"[1]"),
        (raw(200, {"Content-Length": "1"}, b"abc"), 200, ("Content-Length", "1"), b"a"),
    ],
)
def test_an_answer_can_be_dictated(
    op: OpenIDProvider,
    client: Client,
    misbehaviour: Any,
    status: int,
    header: tuple[str, str],
    body: bytes,
) -> None:
    op.answer["jwks"] = misbehaviour
    response = client.get("jwks")
    assert (response.status_code, response.headers[header[0]]) == (status, header[1])
    assert response.content == body
    assert op.calls("/elsewhere") == 0


def test_not_json(op: OpenIDProvider, client: Client) -> None:
    op.answer["discovery"] = not_json()
    with pytest.raises(requests.JSONDecodeError):
        client.get("discovery").json()


def test_close_connection_and_then_be_honest(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = first(1, close_connection())
    with pytest.raises(Unreachable):
        client.get("jwks")
    assert client.get("jwks").status_code == 200


def test_drip_outlives_a_socket_timeout(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = drip(b"0123456789" * 3, interval=0.02)
    started = time.monotonic()
    assert client.get("jwks", timeout=0.3).content == b"0123456789" * 3
    assert time.monotonic() - started > 0.3


def test_drip_headers(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = drip_headers(interval=0.0002)
    assert client.get("jwks").json()["keys"][0]["kid"] == "one"


def test_gzip_bomb_is_small_on_the_wire_and_valid(op: OpenIDProvider, client: Client) -> None:
    op.answer["discovery"] = gzip_bomb(3_000_000)
    response = client.get("discovery")
    assert len(response.content) == 3_000_000
    assert int(response.headers["Content-Length"]) < 30_000
    assert response.json()["issuer"] == op.issuer


def test_endless(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = endless()
    with client.get("jwks", stream=True) as response:
        chunks = response.iter_content(1 << 16)
        assert sum(len(next(chunks)) for _ in range(100)) > 5_000_000


def test_huge_header(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = huge_header(50_000)
    assert len(client.get("jwks").headers["X"]) == 50_000
    op.answer["jwks"] = huge_header()
    with pytest.raises(Unreachable):
        client.get("jwks")


def test_slow_and_held_answers_are_honest_in_the_end(op: OpenIDProvider, client: Client) -> None:
    op.answer["jwks"] = slow(0.3)
    with pytest.raises(requests.ReadTimeout):
        client.get("jwks", timeout=0.05)
    go = threading.Event()
    op.answer["jwks"] = held(go)
    threading.Timer(0.05, go.set).start()
    assert client.get("jwks").json()["keys"]


# The server


def test_connections_are_kept_until_the_provider_stops(op: OpenIDProvider, client: Client) -> None:
    with client.get("jwks", stream=True) as response:
        first_connection = response.raw.connection
        assert response.content
    with client.get("jwks", stream=True) as response:
        assert response.raw.connection is first_connection
        assert response.content
    op.stop()
    with pytest.raises(Unreachable):
        client.get("jwks")


def test_junk_is_refused_not_crashed_on(op: OpenIDProvider, client: Client) -> None:
    junk = send_code(client, op, client_assertion="junk", client_assertion_type="x")
    assert refusal(junk) == (400, "invalid_request")
    doubled = client.http.post(op.url("token"), [("code", "1"), ("code", "2")], timeout=5)
    assert refusal(doubled) == (400, "invalid_request")
    assert client.http.put(op.url("token"), timeout=5).status_code == 405
    assert client.http.get(op.origin + "/nowhere", timeout=5).status_code == 404


def test_a_failure_inside_surfaces_when_it_stops(key: SigningKey, http: requests.Session) -> None:
    def broken(claims: object) -> None:
        raise LookupError("a mistake in the test's own answer")

    with pytest.raises(LookupError), OpenIDProvider(keys=[key]) as op:  # noqa: PT012
        op.answer["jwks"] = broken
        with pytest.raises(Unreachable):
            http.get(op.url("jwks"), timeout=5)


def test_https(key: SigningKey, http: requests.Session, tmp_path: Path) -> None:
    context, certificate_file = issue_certificate(tmp_path)
    with OpenIDProvider(keys=[key], tls=context) as op:
        assert op.issuer.startswith("https://127.0.0.1:")
        with pytest.raises(requests.exceptions.SSLError):
            http.get(op.url("jwks"), timeout=5)
        assert http.get(op.url("jwks"), timeout=5, verify=str(certificate_file)).ok
