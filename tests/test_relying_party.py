"""What one provider is asked after the login: to refresh, to prove it, to revoke."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.core.cache import cache

from oidc_rp import conf
from oidc_rp import testing as provider
from oidc_rp.errors import InvalidResponse, OIDCError, OPError, TransportError
from oidc_rp.protocol.tokens import AccessToken, IdToken, RefreshToken
from oidc_rp.relying_party import RelyingParty
from oidc_rp.testing import REMOVE, OpenIDProvider

from .conftest import Configure

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
SCOPE = "openid offline_access calendar"


@pytest.fixture
def rp(op: OpenIDProvider, configure: Configure) -> RelyingParty:
    """The OP's client; the time of both stands still."""
    op.now = NOW.timestamp
    return RelyingParty(conf.provider("op"), clock=lambda: NOW)


def failure(call: Callable[[], object]) -> Any:
    """Return the error that a call ends with."""
    with pytest.raises(OIDCError) as raised:
        call()
    return raised.value


def refresh(rp: RelyingParty, refresh_token: str, **options: str) -> Any:
    return rp.refresh(RefreshToken(refresh_token), requested_scope=SCOPE, **options)


# Refresh


def test_a_refresh_is_one_authenticated_request(op: OpenIDProvider, rp: RelyingParty) -> None:
    """RFC 6749 §6: the tokens of the answer, counted from when the request was sent."""
    old = op.issue()
    response = refresh(rp, old["refresh_token"])
    assert op.calls("token") == op.refreshes == op.rotations == 1
    request = op.requests_to("token")[0]
    assert request.form == {
        "grant_type": ["refresh_token"],
        "refresh_token": [old["refresh_token"]],
    }
    assert request.headers["Authorization"].startswith("Basic ")
    assert response.refresh_token not in (None, RefreshToken(old["refresh_token"]))
    assert (response.problem, response.idle_lifetime) == (None, None)
    assert response.tokens.refresh_token == response.refresh_token
    assert response.tokens.scope == SCOPE
    assert response.tokens.expires_at == NOW + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("parameter", "sent"),
    [
        ("resource", {"resource": ["https://graph.example"], "scope": ["calendar"]}),
        ("audience", {"audience": ["https://graph.example"], "scope": ["calendar"]}),
        ("scope", {"scope": ["calendar"]}),
    ],
)
def test_the_api_is_named_as_the_op_wants_it(
    op: OpenIDProvider, configure: Configure, parameter: str, sent: dict[str, list[str]]
) -> None:
    """RESOURCE_PARAMETER: RFC 8707's `resource`, `audience`, or nothing but scopes."""
    configure(RESOURCE_PARAMETER=parameter)
    op.scope_audiences = {"calendar": "https://graph.example"} if parameter == "scope" else {}
    op.api_audiences["graph"] = "https://graph.example"
    rp, old = RelyingParty(conf.provider("op")), op.issue()
    response = refresh(rp, old["refresh_token"], resource="https://graph.example", scope="calendar")
    form = op.requests_to("token")[0].form
    assert {name: form[name] for name in form.keys() - {"grant_type", "refresh_token"}} == sent
    headers = {"Authorization": f"Bearer {response.tokens.access_token.reveal()}"}
    assert rp._transport.get(op.origin + "/api/graph", headers).status == 200


def test_what_the_answer_does_not_say(op: OpenIDProvider, rp: RelyingParty) -> None:
    """No new refresh token, no lifetime, no scope: as asked (RFC 6749 §5.1, §6)."""
    op.rotation = False
    op.refresh_response = dict.fromkeys(("refresh_token", "expires_in", "scope"), REMOVE)
    response = refresh(rp, op.issue()["refresh_token"])
    assert (response.refresh_token, response.tokens.expires_at) == (None, None)
    assert response.tokens.scope == SCOPE
    op.refresh_response = {"scope": "openid", "refresh_expires_in": 1800}
    response = refresh(rp, op.issue()["refresh_token"])
    assert (response.tokens.scope, response.idle_lifetime) == ("openid", 1800.0)


def test_M55_a_rotated_token_comes_through_with_an_unusable_answer(
    op: OpenIDProvider, rp: RelyingParty
) -> None:
    op.refresh_response = {"access_token": REMOVE}
    response = refresh(rp, op.issue()["refresh_token"])
    assert (response.tokens, response.problem.code) == (None, "token.access_token")
    assert refresh(rp, response.refresh_token.reveal()).refresh_token is not None
    assert op.families_lost == 0


@pytest.mark.parametrize(
    ("fault", "kind", "code", "status", "retry_after"),
    [
        ("invalid_grant", OPError, "token.invalid_grant", 400, None),
        ("invalid_client", OPError, "token.invalid_client", 401, None),
        ("use_dpop_nonce", OPError, "token.use_dpop_nonce", 400, None),
        ("server_error", OPError, "token.server_error", 500, None),
        ("503_json", OPError, "token.temporarily_unavailable", 503, 7.0),
        ("429", OPError, "token.error", 429, 7.0),
        ("503", TransportError, "transport.status", 503, 7.0),
        ("500", TransportError, "transport.status", 500, None),
        ("reset_before_rotation", TransportError, "transport.broken", None, None),
        ("reset_after_rotation", TransportError, "transport.broken", None, None),
        ("closed_after_rotation", TransportError, "transport.broken", None, None),
        ("truncated_after_rotation", TransportError, "transport.broken", None, None),
    ],
)
def test_M55_what_went_wrong_and_when_to_try_again(
    op: OpenIDProvider,
    rp: RelyingParty,
    fault: str,
    kind: type[OIDCError],
    code: str,
    status: int | None,
    retry_after: float | None,
) -> None:
    """The OP's own words, a proxy's page and a broken line are told apart (T8 to T12)."""
    op.refresh_fault, op.retry_after = fault, "7"
    old = op.issue()["refresh_token"]
    error = failure(lambda: refresh(rp, old))
    assert (type(error), error.code) == (kind, code)
    assert (error.status, error.retry_after) == (status, retry_after)
    assert getattr(error, "sent", True) is True
    assert op.refreshes == 1
    assert op.rotations == ("after" in fault)
    assert old not in f"{error} {error!r} {error.expected} {error.received}"


def test_M55_a_200_that_is_no_json_is_told_apart(op: OpenIDProvider, rp: RelyingParty) -> None:
    """A page in the place of tokens: whether the OP has rotated, nobody knows (T12)."""
    op.refresh_fault = "page_after_rotation"
    error = failure(lambda: refresh(rp, op.issue()["refresh_token"]))
    assert (type(error), error.code) == (InvalidResponse, "token.json")


def test_M55_nothing_is_sent_to_an_op_that_is_down(op: OpenIDProvider, rp: RelyingParty) -> None:
    """With metadata at hand and without: the refresh token is not spent."""
    rp.metadata()
    op.stop()
    error = failure(lambda: refresh(rp, "r1"))
    assert (type(error), error.code, error.sent) == (TransportError, "transport.broken", False)
    cache.clear()
    newcomer = RelyingParty(rp.provider)
    error = failure(lambda: refresh(newcomer, "r1"))
    assert (type(error), error.code, error.sent) == (TransportError, "transport.broken", False)
    error = failure(lambda: newcomer.revoke(RefreshToken("r1")))
    assert (type(error), error.code, error.sent) == (TransportError, "transport.broken", False)


@pytest.mark.parametrize(
    ("misbehaviour", "code"),
    [
        (provider.close_connection(), "transport.broken"),
        (provider.raw(503, {"Retry-After": "9"}), "discovery.status"),
        (provider.sending({"issuer": "https://other.example"}), "discovery.issuer"),
        (provider.not_json(), "discovery.json"),
    ],
)
def test_M55_nothing_is_sent_when_the_metadata_cannot_be_had(
    op: OpenIDProvider, rp: RelyingParty, misbehaviour: provider.Misbehaviour, code: str
) -> None:
    """The discovery's failure is none of the refresh token's."""
    op.answer["discovery"] = misbehaviour
    error = failure(lambda: refresh(rp, "r1"))
    assert (type(error), error.code, error.sent) == (TransportError, code, False)
    assert op.calls("token") == 0


def test_M55_nothing_is_sent_when_the_client_cannot_authenticate(
    op: OpenIDProvider, rp: RelyingParty
) -> None:
    """An OP that takes no secret any more: our settings are to be mended, the grant is not."""
    op.metadata["token_endpoint_auth_methods_supported"] = ["private_key_jwt"]
    error = failure(lambda: refresh(rp, "r1"))
    code = "discovery.token_endpoint_auth_methods_supported"
    assert (type(error), error.code, error.sent) == (TransportError, code, False)
    assert op.calls("token") == 0


# The refreshed ID Token (Core §12.2)


def proven(op: OpenIDProvider, rp: RelyingParty, **claims: Any) -> Any:
    """Refresh, with these claims in the new ID Token, and validate that."""
    old = op.issue()
    op.refreshed_id_token_claims = claims
    id_token = refresh(rp, old["refresh_token"]).tokens.id_token
    said = provider.decode_jws(old["id_token"])[1]
    kept = {name: said[name] for name in ("aud", "auth_time")}
    return rp.validated_refreshed(id_token, iss=op.issuer, sub=op.person["sub"], previous=kept)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"auth_time": REMOVE},
        {"nonce": "the one of the login, which nobody kept"},
        {"azp": "rp-client"},
        {"acr": "urn:other"},
        {"aud": ["rp-client"]},
    ],
)
def test_M30_a_refreshed_id_token_of_the_same_sign_in(
    op: OpenIDProvider, rp: RelyingParty, claims: dict[str, Any]
) -> None:
    """A nonce is not asked for; what was not kept is not compared."""
    assert proven(op, rp, **claims).sub == op.person["sub"]


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "somebody else"}, "id_token.sub"),
        ({"iss": "https://other.example"}, "id_token.iss"),
        ({"aud": "another client"}, "id_token.aud"),
        ({"auth_time": 1}, "id_token.auth_time"),
        ({"exp": 1}, "id_token.exp"),
        ({"azp": "another client"}, "id_token.azp"),
    ],
)
def test_M30_a_refreshed_id_token_of_another_sign_in(
    op: OpenIDProvider, rp: RelyingParty, claims: dict[str, Any], code: str
) -> None:
    assert failure(lambda: proven(op, rp, **claims)).code == code


def test_M30_somebody_else_is_somebody_else_only_by_a_good_signature(
    op: OpenIDProvider, rp: RelyingParty
) -> None:
    """A forged ID Token about another person is a bad signature, and closes nobody's grant."""
    forged = op.sign({"iss": op.issuer, "sub": "other"}, key=provider.SigningKey.generate("RS256"))
    error = failure(
        lambda: rp.validated_refreshed(IdToken(forged), iss=op.issuer, sub="me", previous={})
    )
    assert error.code == "id_token.kid"


@pytest.mark.parametrize(
    ("kept", "code"),
    [
        ({"aud": ["another"]}, "id_token.aud"),
        ({"azp": "rp-client"}, "id_token.azp"),
        ({"auth_time": 5}, "id_token.auth_time"),
        ({"nonce": "the first"}, "id_token.nonce"),
    ],
)
def test_M30_what_was_kept_is_compared(
    op: OpenIDProvider, rp: RelyingParty, kept: dict[str, Any], code: str
) -> None:
    """Whatever of the first ID Token the caller still has."""
    op.id_token_claims = {"nonce": "the second"}
    id_token, sub = IdToken(op.issue()["id_token"]), op.person["sub"]
    assert rp.validated_refreshed(id_token, iss=op.issuer, sub=sub, previous={}).sub == sub
    error = failure(lambda: rp.validated_refreshed(id_token, iss=op.issuer, sub=sub, previous=kept))
    assert error.code == code


# Revocation (RFC 7009)


def test_a_refresh_token_is_revoked(op: OpenIDProvider, rp: RelyingParty) -> None:
    """One authenticated request with the hint; the token is good for nothing afterwards."""
    old = op.issue()["refresh_token"]
    assert rp.revoke(RefreshToken(old), "refresh_token") is True
    request = op.requests_to("revocation")[0]
    assert request.form == {"token": [old], "token_type_hint": ["refresh_token"]}
    assert request.headers["Authorization"].startswith("Basic ")
    assert op.revocations == [("refresh_token", old)]
    assert failure(lambda: refresh(rp, old)).code == "token.invalid_grant"
    assert op.families_lost == 0


def test_a_token_that_the_op_does_not_know_is_revoked(op: OpenIDProvider, rp: RelyingParty) -> None:
    assert rp.revoke(AccessToken("unknown")) is True
    op.answer["revocation"] = provider.sending({"error": "invalid_token"}, 400)
    assert rp.revoke(AccessToken("unknown")) is True
    op.answer["revocation"] = provider.raw(200, {"Content-Type": "text/html"}, b"<h1>Bye</h1>")
    assert rp.revoke(AccessToken("unknown")) is True


def test_an_op_without_revocation(op: OpenIDProvider, rp: RelyingParty) -> None:
    """Nothing is sent where the metadata names no endpoint."""
    del op.metadata["revocation_endpoint"]
    assert rp.revoke(RefreshToken("r1"), "refresh_token") is False
    assert op.calls("revocation") == 0


@pytest.mark.parametrize(
    ("misbehaviour", "kind", "code", "status", "retry_after"),
    [
        (
            provider.sending({"error": "unsupported_token_type"}, 400),
            OPError,
            "revocation.unsupported_token_type",
            400,
            None,
        ),
        (provider.raw(503, {"Retry-After": "4"}), OPError, "revocation.error", 503, 4.0),
        (provider.close_connection(), TransportError, "transport.broken", None, None),
    ],
)
def test_a_revocation_that_failed(
    op: OpenIDProvider,
    rp: RelyingParty,
    misbehaviour: provider.Misbehaviour,
    kind: type[OIDCError],
    code: str,
    status: int | None,
    retry_after: float | None,
) -> None:
    """RFC 7009 §2.2.1: final, later, or nobody knows."""
    op.answer["revocation"] = misbehaviour
    error = failure(lambda: rp.revoke(RefreshToken("r1"), "refresh_token"))
    assert (type(error), error.code) == (kind, code)
    assert (error.status, error.retry_after) == (status, retry_after)
