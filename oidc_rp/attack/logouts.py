"""Logouts that the OP did not mean."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.urls import reverse

from ..conf import Provider
from ..testing import REMOVE
from ..testing.browser import Response
from ..testing.signing import base64url_decode
from .id_tokens import keyed, ops_kid, signs_by_key, strangers_key
from .stage import Scene, new_browser
from .walks import (
    HOUR,
    SESSION_ENDED,
    STRANGER,
    Attack,
    Attempt,
    Code,
    always,
    logout,
    logout_token,
)


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


def _by_a_frame(**changes: Any) -> Attempt:
    """Show the page of the front channel, with parameters that are changed so; None drops one."""

    def attempt(scene: Scene) -> Response:
        scene.sign_in()
        url = reverse("oidc_rp:frontchannel_logout", args=[scene.provider.slug])
        named = {"iss": scene.iss, "sid": scene.op.login.sid} | changes
        given = {name: value for name, value in named.items() if value is not None}
        return new_browser().client.get(url, given)

    return attempt


def _events_twice(scene: Scene) -> str:
    """The later of the two is none."""
    payload = base64url_decode(scene.logout_token().split(".")[1])
    return scene.op.sign(payload[:-1] + b', "events": {}}', {"typ": "logout+jwt"})


def _logout_by_stranger(scene: Scene) -> str:
    return scene.op.logout_token(key=strangers_key(scene.alg), alg=scene.alg, iss=scene.iss)


def _logout_under_the_ops_kid(scene: Scene) -> str:
    kid, key = ops_kid(scene, scene.alg), strangers_key(scene.alg)
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
    return Attack(promise, code, sentence, attempt, goal=SESSION_ENDED, fits=fits)


LOGOUTS = (
    _of_logout("M9", "logout_token.repeated", "Two logout tokens at once.", _two_at_once),
    _of_logout(
        "M17",
        "logout_token.payload",
        "A logout token whose payload names its events twice.",
        logout(_events_twice),
    ),
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
        fits=signs_by_key,
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
    _of_logout(
        "M59",
        "logout.iss",
        "Another issuer's front-channel logout.",
        _by_a_frame(iss=STRANGER),
    ),
    _of_logout(
        "M59",
        "logout.sid",
        "A front-channel logout of no session.",
        _by_a_frame(sid=None),
    ),
    _of_logout(
        "M59",
        "logout.sid",
        "A front-channel logout of two sessions at once.",
        _by_a_frame(sid=["one", "two"]),
    ),
)
