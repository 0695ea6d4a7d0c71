"""The attacks, by the promise of docs/promises.md that each of them breaks where it gets through.

Each begins as an honest walk, with one bite taken out of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from django.urls import reverse

from ..conf import Provider
from ..protocol import jose
from ..testing import (
    LOGOUT_EVENT,
    REMOVE,
    Misbehaviour,
    SigningKey,
    base64url,
    drip,
    gzip_bomb,
    not_json,
    raw,
    redirect_to,
)
from ..testing.browser import Callback, Response
from ..testing.http import Handler
from ..visits import LANDED
from .stage import ELSEWHERE, Scene, new_browser

Attempt = Callable[[Scene], Response]
Forge = Callable[[Scene, dict[str, Any]], str]
Code = str | Callable[[Provider], str]

STRANGER = "https://attacker.example"
SOMEBODY_ELSE = "somebody else"
HOUR = 3600
TWO_MEGABYTES = 2 << 20


def always(provider: Provider) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to break a promise.

    code: what the check refuses it by that it is aimed at, and no other; where that depends on the
    provider, a function of it. attempt: makes it, and returns the site's last answer. of_logout: it
    is to end a session, not to begin one. fits: whether it is one for this provider. options: over
    the provider's own. untouched: endpoints that nobody may ask.
    """

    promise: str
    code: Code = field(repr=False)
    sentence: str
    attempt: Attempt = field(repr=False)
    of_logout: bool = False
    fits: Callable[[Provider], bool] = field(default=always, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()

    def code_at(self, provider: Provider) -> str:
        """What this provider's site refuses it by."""
        return self.code if isinstance(self.code, str) else self.code(provider)


# How to bend an honest walk


def claims(**changes: Any) -> Attempt:
    """Sign in with an ID Token whose claims are changed so; of a `sub`, UserInfo says the same."""
    return claims_by(lambda scene: changes)


def claims_by(changes: Callable[[Scene], Mapping[str, Any]]) -> Attempt:
    def attempt(scene: Scene) -> Response:
        changed = changes(scene)
        scene.op.id_token_claims |= changed
        if "sub" in changed:
            scene.op.userinfo_claims["sub"] = changed["sub"]
        return scene.sign_in()

    return attempt


def header(**changes: Any) -> Attempt:
    """Sign in with an ID Token that is signed well, under such a header."""
    return forged(lambda scene, payload: scene.op.sign(payload, changes))


def forged(forge: Forge) -> Attempt:
    """Sign in with the ID Token that is made of honest claims so."""

    def attempt(scene: Scene) -> Response:
        scene.op.make_id_token = lambda payload, _: forge(scene, payload)
        return scene.sign_in()

    return attempt


def tokens(**changes: Any) -> Attempt:
    """Sign in with a token response whose members are changed so."""

    def attempt(scene: Scene) -> Response:
        scene.op.token_response |= changes
        return scene.sign_in()

    return attempt


def userinfo(**changes: Any) -> Attempt:
    """Sign in with a UserInfo response whose claims are changed so."""

    def attempt(scene: Scene) -> Response:
        scene.op.userinfo_claims |= changes
        return scene.sign_in()

    return attempt


def signed_userinfo(**changes: Any) -> Attempt:
    """Sign in with a UserInfo response that is signed well, and whose claims are changed so."""

    def attempt(scene: Scene) -> Response:
        scene.op.userinfo_jwt, scene.op.userinfo_signing_alg = True, _userinfo_alg(scene)
        scene.op.userinfo_claims |= changes
        return scene.sign_in()

    return attempt


def forged_userinfo(forge: Forge) -> Attempt:
    """Sign in with the signed UserInfo response that is made of honest claims so."""

    def attempt(scene: Scene) -> Response:
        payload = scene.op.person | {"iss": scene.iss, "aud": scene.op.client_id}
        return answers("userinfo", _jwt(forge(scene, payload)))(scene)

    return attempt


def metadata(**changes: Any) -> Attempt:
    """Sign in where the OP publishes such metadata."""

    def attempt(scene: Scene) -> Response:
        scene.op.metadata |= changes
        return scene.sign_in()

    return attempt


def answers(endpoint: str, misbehaviour: Misbehaviour) -> Attempt:
    """Sign in where an endpoint answers so."""

    def attempt(scene: Scene) -> Response:
        scene.op.answer[endpoint] = misbehaviour
        return scene.sign_in()

    return attempt


def redirected(endpoint: str) -> Attempt:
    """Sign in where an endpoint sends the site elsewhere."""

    def attempt(scene: Scene) -> Response:
        scene.op.answer[endpoint] = redirect_to(scene.op.origin + ELSEWHERE)
        return scene.sign_in()

    return attempt


def callback(**changes: Any) -> Attempt:
    """Come back with parameters that are changed so; a list repeats one."""

    def attempt(scene: Scene) -> Response:
        return scene.come_back(scene.answered().bent(**changes))

    return attempt


def repeated(name: str) -> Attempt:
    """Come back with a parameter twice."""

    def attempt(scene: Scene) -> Response:
        honest = scene.answered()
        value = dict(honest.params)[name]
        return scene.come_back(honest.bent(**{name: [value, value]}))

    return attempt


def logout(forge: Callable[[Scene], str]) -> Attempt:
    """Send a logout token about somebody who is signed in."""

    def attempt(scene: Scene) -> Response:
        scene.sign_in()
        return scene.log_out(forge(scene))

    return attempt


def logout_token(**changes: Any) -> Attempt:
    """Send a logout token that is signed well, and whose claims are changed so."""
    return logout(lambda scene: scene.logout_token(**changes))


# Forged ID Tokens


def keyed(by_key: str, by_secret: str) -> Code:
    """One code where keys sign ID Tokens, and another where the client secret does (HMAC)."""
    return lambda provider: by_key if _by_key(provider) else by_secret


@cache
def _strangers_key(alg: str) -> SigningKey | bytes:
    """A key of this algorithm that the OP knows nothing of."""
    return b"s" * 64 if alg in jose.HMAC_ALGORITHMS else SigningKey.generate(alg)


def _ops_kid(scene: Scene, alg: str) -> dict[str, str]:
    """The header that names the OP's key of this algorithm; a secret has no name."""
    return {} if alg in jose.HMAC_ALGORITHMS else {"kid": scene.op.key_for(alg).kid}


def _hmac_alg(scene: Scene) -> str:
    return "HS256" if _by_key(scene.provider) else scene.alg


def _by_stranger(scene: Scene, payload: dict[str, Any]) -> str:
    return scene.op.sign(payload, key=_strangers_key(scene.alg), alg=scene.alg)


def _under_the_ops_kid(scene: Scene, payload: dict[str, Any]) -> str:
    kid = _ops_kid(scene, scene.alg)
    return scene.op.sign(payload, kid, _strangers_key(scene.alg), scene.alg)


def _key_in_header(scene: Scene, payload: dict[str, Any]) -> str:
    key = _strangers_key(scene.alg)
    octets = {"kty": "oct", "k": base64url(key)} if isinstance(key, bytes) else {}
    jwk = key.public_jwk if isinstance(key, SigningKey) else octets
    return scene.op.sign(payload, {"jwk": jwk}, key, scene.alg)


def _key_elsewhere(scene: Scene, payload: dict[str, Any]) -> str:
    jku = {"jku": scene.op.origin + ELSEWHERE}
    return scene.op.sign(payload, jku, _strangers_key(scene.alg), scene.alg)


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


def _unsigned(scene: Scene, payload: dict[str, Any]) -> str:
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


def _of_the_other_tenant(scene: Scene) -> dict[str, Any]:
    """The issuer of a tenant that is listed, too."""
    return {"iss": f"{scene.op.origin}/{max(scene.provider.tenants)}"}


def _from_the_other_tenant(scene: Scene) -> dict[str, Any]:
    """An honest ID Token of that tenant; UserInfo agrees."""
    changed = _of_the_other_tenant(scene) | {"tid": max(scene.provider.tenants)}
    scene.op.userinfo_claims["iss"] = changed["iss"]
    return changed


def _by_key(provider: Provider) -> bool:
    return provider.id_token_signed_response_alg not in jose.HMAC_ALGORITHMS


def _names_alg(provider: Provider) -> bool:
    return provider.id_token_signed_response_alg is not None


def _names_no_alg(provider: Provider) -> bool:
    return not _names_alg(provider)


def _asks_for_max_age(provider: Provider) -> bool:
    return provider.default_max_age is not None


def _asks_for_acr(provider: Provider) -> bool:
    return bool(provider.default_acr_values)


def _has_tenants(provider: Provider) -> bool:
    return bool(provider.tenants)


def _has_two_tenants(provider: Provider) -> bool:
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
    Attack("M18", "id_token.alg", "An unsigned ID Token (alg none).", forged(_unsigned)),
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
        fits=_by_key,
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
        fits=_by_key,
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
        forged(_key_elsewhere),
    ),
    Attack("M20", "id_token.crit", "A crit that nobody understands.", header(crit=["x"], x=1)),
    Attack("M21", _wrong_alg, "HMAC with an empty secret.", forged(_by_no_secret)),
    Attack(
        "M21",
        "id_token.alg",
        "HMAC with the client secret, where the settings name no HMAC.",
        forged(_by_client_secret),
        fits=_by_key,
    ),
    Attack(
        "M22", "id_token.kid", "No kid, where two keys fit.", _no_kid_and_two_keys, fits=_by_key
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
    Attack("M25", "id_token.exp", "An ID Token without exp.", claims(exp=REMOVE)),
    Attack(
        "M25",
        "id_token.exp",
        "An expired ID Token.",
        claims_by(lambda s: {"exp": int(time.time()) - HOUR}),
    ),
    Attack("M25", "id_token.exp", "An exp beyond every calendar.", claims(exp=1e300)),
    Attack("M25", "id_token.iat", "An ID Token without iat.", claims(iat=REMOVE)),
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
        fits=_has_two_tenants,
    ),
    Attack(
        "M41a",
        "id_token.alg",
        "UserInfo for a forged ID Token.",
        forged(_unsigned),
        untouched=("userinfo",),
    ),
)


# Callbacks that are mixed up


def _another_logins_code(scene: Scene) -> Response:
    other = dict(scene.answered(new_browser()).params)["code"]
    return scene.come_back(scene.answered().bent(code=other))


def _used_before(scene: Scene) -> Response:
    """The first use is refused: what it used up is gone all the same."""
    honest = scene.answered()
    scene.come_back(honest.bent(iss=STRANGER))
    return scene.come_back(honest)


def _without_cookie(scene: Scene) -> Response:
    """Past the landing page, which would only have the browser come again."""
    landed = scene.answered().bent(**{LANDED: "1"})
    return scene.come_back(landed, new_browser())


def _in_another_browser(scene: Scene) -> Response:
    honest, other = scene.answered(), new_browser()
    scene.begin(other)
    return scene.come_back(honest, other)


def _at_another_provider(scene: Scene) -> Response:
    honest = scene.answered()
    own, other = (
        reverse("oidc_rp:callback", args=[slug]) for slug in (scene.provider.slug, scene.other_slug)
    )
    return scene.come_back(Callback(honest.url.replace(own, other), honest.fields))


def _in_another_mode(scene: Scene) -> Response:
    """A query instead of a form, or the other way round."""
    honest = scene.answered()
    if honest.fields is None:
        return scene.come_back(Callback(honest.url.partition("?")[0], honest.params))
    bare = Callback(honest.url + "?code=")
    return scene.come_back(bare.bent(**dict(honest.params)))


def _foreign_error(**changes: Any) -> Attempt:
    return callback(code=REMOVE, error="access_denied", **changes)


def _initiated_by_stranger(scene: Scene) -> Response:
    url = reverse("oidc_rp:initiate", args=[scene.provider.slug])
    return scene.browser.client.get(url, {"iss": STRANGER})


CALLBACKS = (
    Attack(
        "M1",
        "response.token",
        "An access token in the callback.",
        callback(access_token="x"),  # noqa: S106
    ),
    Attack(
        "M1",
        "response.token",
        "An ID Token in the callback.",
        callback(id_token="x.y.z"),  # noqa: S106
    ),
    Attack("M2", "token.invalid_grant", "A code that another login brought.", _another_logins_code),
    Attack("M3", "state.unknown", "A response for the second time.", _used_before),
    Attack("M4", "state.missing", "A callback without state.", callback(state=REMOVE)),
    Attack("M4", "state.unknown", "A callback with a made-up state.", callback(state="made-up")),
    Attack("M4", "state.no_cookie", "A callback without a cookie.", _without_cookie),
    Attack("M5", "state.unknown", "A response in another browser.", _in_another_browser),
    Attack(
        "M6", "state.provider", "A response at another provider's callback.", _at_another_provider
    ),
    Attack(
        "M7",
        "response.iss",
        "A response of another OP (iss).",
        callback(iss=STRANGER),
        untouched=("token",),
    ),
    Attack(
        "M7",
        "response.iss_missing",
        "A response without the iss that was announced.",
        callback(iss=REMOVE),
    ),
    Attack(
        "M7",
        "response.iss",
        "A response of one tenant, and the ID Token of another.",
        claims_by(_from_the_other_tenant),
        fits=_has_two_tenants,
    ),
    Attack("M9", "response.repeated", "A callback with state twice.", repeated("state")),
    Attack("M9", "response.repeated", "A callback with code twice.", repeated("code")),
    Attack("M9", "response.repeated", "A callback with iss twice.", repeated("iss")),
    Attack(
        "M10", "state.unknown", "An error with a foreign state.", _foreign_error(state="foreign")
    ),
    Attack("M10", "response.iss", "An error of another OP.", _foreign_error(iss=STRANGER)),
    Attack("M11", "initiate.iss", "A login that another issuer initiates.", _initiated_by_stranger),
    Attack(
        "M16", "response.mode", "A response in a mode that was not asked for.", _in_another_mode
    ),
)


# Answers of the OP that are poison


def _asks_userinfo(provider: Provider) -> bool:
    return provider.userinfo


def _asks_signed_userinfo(provider: Provider) -> bool:
    return provider.userinfo and provider.userinfo_signed_response_alg is not None


def _no_userinfo(provider: Provider) -> str:
    """A page is the wrong kind of answer where a signed one must come, and no JSON elsewhere."""
    signed = provider.userinfo_signed_response_alg is not None
    return "userinfo.content_type" if signed else "userinfo.json"


def _userinfo_alg(scene: Scene) -> str:
    """What the site takes signed UserInfo by: HMAC only where the settings say so."""
    own = "RS256" if scene.alg in jose.HMAC_ALGORITHMS else scene.alg
    return scene.provider.userinfo_signed_response_alg or own


def _userinfo_by_stranger(scene: Scene, payload: dict[str, Any]) -> str:
    alg = _userinfo_alg(scene)
    return scene.op.sign(payload, _ops_kid(scene, alg), _strangers_key(alg), alg)


def _unsigned_userinfo(scene: Scene) -> Response:
    scene.op.userinfo_jwt = False
    return scene.sign_in()


def _json(body: bytes) -> Misbehaviour:
    return raw(200, {"Content-Type": "application/json"}, body)


def _jwt(jws: str) -> Misbehaviour:
    return raw(200, {"Content-Type": "application/jwt"}, jws.encode())


def _padded(size: int) -> Misbehaviour:
    """Answer honestly, and blanks up to this size: nothing but a limit can refuse it."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.close_connection = True
        handler.send(replace(genuine, body=genuine.body.ljust(size)))

    return answer


ANSWERS = (
    Attack(
        "M31",
        "userinfo.sub",
        "UserInfo about somebody else.",
        userinfo(sub=SOMEBODY_ELSE),
        fits=_asks_userinfo,
    ),
    Attack(
        "M31", "userinfo.sub", "UserInfo about nobody.", userinfo(sub=REMOVE), fits=_asks_userinfo
    ),
    Attack(
        "M31",
        _no_userinfo,
        "A page as UserInfo.",
        answers("userinfo", not_json()),
        fits=_asks_userinfo,
    ),
    Attack(
        "M31",
        "userinfo.content_type",
        "UserInfo without the signature that was asked for.",
        _unsigned_userinfo,
        fits=_asks_signed_userinfo,
    ),
    Attack(
        "M31",
        "userinfo.alg",
        "Signed UserInfo whose alg is none.",
        forged_userinfo(_unsigned),
        fits=_asks_userinfo,
    ),
    Attack(
        "M31",
        "userinfo.signature",
        "UserInfo with another key's signature under the OP's own kid.",
        forged_userinfo(_userinfo_by_stranger),
        fits=_asks_userinfo,
    ),
    Attack(
        "M31",
        "userinfo.iss",
        "Signed UserInfo of another issuer.",
        signed_userinfo(iss=STRANGER),
        fits=_asks_userinfo,
    ),
    Attack(
        "M31",
        "userinfo.aud",
        "Signed UserInfo for another client.",
        signed_userinfo(aud="another-client"),
        fits=_asks_userinfo,
    ),
    Attack("M41", "transport.redirect", "A token endpoint that redirects.", redirected("token")),
    Attack(
        "M41",
        "transport.redirect",
        "UserInfo that redirects.",
        redirected("userinfo"),
        fits=_asks_userinfo,
    ),
    Attack(
        "M41", "transport.redirect", "A key set that redirects.", redirected("jwks"), fits=_by_key
    ),
    Attack(
        "M42",
        "transport.timeout",
        "A byte now and then, for ever.",
        answers("token", drip()),
        options={"TIMEOUT": 1},
    ),
    Attack(
        "M43",
        "transport.too_large",
        "Tokens in an answer of two megabytes.",
        answers("token", _padded(TWO_MEGABYTES)),
    ),
    Attack(
        "M43",
        "transport.too_large",
        "Two megabytes, well compressed.",
        answers("token", gzip_bomb(TWO_MEGABYTES)),
    ),
    Attack("M46", "discovery.issuer", "Metadata of another issuer.", metadata(issuer=STRANGER)),
    Attack(
        "M46",
        "discovery.token_endpoint",
        "A token endpoint without TLS.",
        metadata(token_endpoint="http://attacker.example/token"),  # noqa: S106
    ),
    Attack("M46", "discovery.json", "A page as metadata.", answers("discovery", not_json())),
    Attack("M49", "token.json", "A page as token response.", answers("token", not_json())),
    Attack("M49", "token.json", "A list as token response.", answers("token", _json(b"[]"))),
    Attack(
        "M49",
        "token.token_type",
        "A token_type that is not Bearer.",
        tokens(token_type="DPoP"),  # noqa: S106
    ),
    Attack(
        "M49",
        "token.access_token",
        "A token response without access token.",
        tokens(access_token=REMOVE),
    ),
    Attack("M49", "token.id_token", "A token response without ID Token.", tokens(id_token=REMOVE)),
)


# Logouts that the OP did not mean


def _id_token_instead(scene: Scene) -> str:
    now = int(time.time())
    times = {"iat": now, "exp": now + 60}
    who = {"iss": scene.iss, "aud": scene.op.client_id, "sub": scene.op.person["sub"]}
    return scene.op.sign(who | times | {"nonce": "x", "sid": scene.op.login.sid})


def _twice(scene: Scene) -> Response:
    """About somebody who signs in again between the two."""
    scene.sign_in()
    sent = scene.logout_token()
    scene.log_out(sent)
    scene.sign_in()
    return scene.log_out(sent)


def _two_at_once(scene: Scene) -> Response:
    scene.sign_in()
    return scene.log_out(scene.logout_token(), scene.logout_token())


def _by_a_frame(scene: Scene) -> Response:
    scene.sign_in()
    url = reverse("oidc_rp:frontchannel_logout", args=[scene.provider.slug])
    named = {"iss": STRANGER, "sid": scene.op.login.sid}
    return new_browser().client.get(url, named)


def _logout_by_stranger(scene: Scene) -> str:
    return scene.op.logout_token(key=_strangers_key(scene.alg), alg=scene.alg, iss=scene.iss)


def _logout_under_the_ops_kid(scene: Scene) -> str:
    kid, key = _ops_kid(scene, scene.alg), _strangers_key(scene.alg)
    return scene.op.logout_token(header=kid, key=key, alg=scene.alg, iss=scene.iss)


def _logout_of_another_typ(scene: Scene) -> str:
    return scene.op.logout_token(header={"typ": "at+jwt"}, iss=scene.iss)


def _expired_logout(scene: Scene) -> str:
    return scene.logout_token(exp=int(time.time()) - HOUR)


def _stale_logout(scene: Scene) -> str:
    return scene.logout_token(iat=int(time.time()) - HOUR)


def _of_logout(
    promise: str,
    code: Code,
    sentence: str,
    attempt: Attempt,
    fits: Callable[[Provider], bool] = always,
) -> Attack:
    return Attack(promise, code, sentence, attempt, of_logout=True, fits=fits)


LOGOUTS = (
    _of_logout("M9", "logout_token.repeated", "Two logout tokens at once.", _two_at_once),
    _of_logout(
        "M18",
        "logout_token.alg",
        "An unsigned logout token.",
        logout(lambda s: s.logout_token(alg="none")),
    ),
    _of_logout(
        "M32", "logout_token.nonce", "An ID Token as logout token.", logout(_id_token_instead)
    ),
    _of_logout(
        "M32", "logout_token.nonce", "A logout token with a nonce.", logout_token(nonce="x")
    ),
    _of_logout(
        "M32",
        "logout_token.events",
        "A logout token without events.",
        logout_token(events=REMOVE),
    ),
    _of_logout(
        "M32",
        "logout_token.typ",
        "A logout token that says it is an access token (typ).",
        logout(_logout_of_another_typ),
    ),
    _of_logout(
        "M57",
        keyed("logout_token.kid", "logout_token.signature"),
        "A logout token of another key.",
        logout(_logout_by_stranger),
    ),
    _of_logout(
        "M57",
        "logout_token.signature",
        "A logout token of another key under the OP's own kid.",
        logout(_logout_under_the_ops_kid),
        fits=_by_key,
    ),
    _of_logout(
        "M57",
        "logout_token.iss",
        "A logout token of another issuer.",
        logout_token(iss=STRANGER),
    ),
    _of_logout(
        "M57",
        "logout_token.aud",
        "A logout token for another client.",
        logout_token(aud="another-client"),
    ),
    _of_logout("M57", "logout_token.jti", "A logout token without jti.", logout_token(jti=REMOVE)),
    _of_logout("M57", "logout_token.jti", "A logout token for the second time.", _twice),
    _of_logout("M57", "logout_token.iat", "A logout token of an hour ago.", logout(_stale_logout)),
    _of_logout("M57", "logout_token.exp", "An expired logout token.", logout(_expired_logout)),
    _of_logout(
        "M57",
        "logout_token.sub",
        "A logout token about nobody.",
        logout_token(sub=REMOVE, sid=REMOVE),
    ),
    _of_logout(
        "M57",
        "logout_token.too_large",
        "A logout token that is too large.",
        logout_token(x="x" * 70_000),
    ),
    _of_logout("M59", "logout.iss", "Another issuer's front-channel logout.", _by_a_frame),
)

ATTACKS: tuple[Attack, ...] = (*ID_TOKENS, *CALLBACKS, *ANSWERS, *LOGOUTS)
