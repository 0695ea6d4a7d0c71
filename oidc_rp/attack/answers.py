"""Answers of the OP that are poison."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..conf import Provider
from ..testing import (
    REMOVE,
    Misbehaviour,
    drip,
    gzip_bomb,
    not_json,
    raw,
)
from ..testing.browser import Response
from ..testing.http import Handler
from .id_tokens import ops_kid, signs_by_key, strangers_key, unsigned
from .stage import Scene
from .walks import (
    SOMEBODY_ELSE,
    STRANGER,
    TWO_MEGABYTES,
    Attack,
    answers,
    forged_userinfo,
    metadata,
    redirected,
    signed_userinfo,
    tokens,
    userinfo,
    userinfo_alg,
)


def _asks_userinfo(provider: Provider) -> bool:
    return provider.userinfo


def _asks_signed_userinfo(provider: Provider) -> bool:
    return provider.userinfo and provider.userinfo_signed_response_alg is not None


def _no_userinfo(provider: Provider) -> str:
    """A page is the wrong kind of answer where a signed one must come, and no JSON elsewhere."""
    signed = provider.userinfo_signed_response_alg is not None
    return "userinfo.content_type" if signed else "userinfo.json"


def _userinfo_by_stranger(scene: Scene, payload: dict[str, Any]) -> str:
    alg = userinfo_alg(scene)
    return scene.op.sign(payload, ops_kid(scene, alg), strangers_key(alg), alg)


def _unsigned_userinfo(scene: Scene) -> Response:
    scene.op.userinfo_jwt = False
    return scene.sign_in()


def _json(body: bytes) -> Misbehaviour:
    return raw(200, {"Content-Type": "application/json"}, body)


def _padded(size: int) -> Misbehaviour:
    """Answer honestly, and blanks up to this size: nothing but a limit can refuse it."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.close_connection = True
        handler.send(replace(genuine, body=genuine.body.ljust(size)))

    return answer


def _without_tls(name: str, sentence: str) -> Attack:
    """Begin a login where one place of the OP is plain HTTP; nobody need go there."""

    def attempt(scene: Scene) -> Response:
        scene.op.metadata[name] = "http://attacker.example/"
        return scene.begin()

    return Attack("M46", f"discovery.{name}", sentence, attempt)


_ENDPOINTS = {
    "authorization_endpoint": "An authorization endpoint without TLS.",
    "token_endpoint": "A token endpoint without TLS.",
    "userinfo_endpoint": "A UserInfo endpoint without TLS.",
    "jwks_uri": "A key set without TLS.",
}

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
        forged_userinfo(unsigned),
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
        "M41",
        "transport.redirect",
        "A key set that redirects.",
        redirected("jwks"),
        fits=signs_by_key,
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
    *(_without_tls(name, sentence) for name, sentence in _ENDPOINTS.items()),
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
