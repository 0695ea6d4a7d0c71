"""An attack, and the ways to bend an honest walk: each takes one bite out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..conf import Provider
from ..protocol import jose
from ..testing import (
    Misbehaviour,
    raw,
    redirect_to,
)
from ..testing.browser import Response
from .stage import ELSEWHERE, Scene

Attempt = Callable[[Scene], Response]
Forge = Callable[[Scene, dict[str, Any]], str]
Code = str | Callable[[Provider], str]

STRANGER = "https://attacker.example"
SOMEBODY_ELSE = "somebody else"
HOUR = 3600
TWO_MEGABYTES = 2 << 20

SIGNED_IN, SESSION_ENDED = "somebody is signed in", "a session has ended"
TOKEN_GIVEN = "a token was given out"  # noqa: S105 - what an attack is after
TAKEN_OVER = "somebody else's account was taken over"
SENT_AWAY = "the browser was sent to another site"

WITHOUT_REFUSAL = frozenset({TAKEN_OVER, SENT_AWAY})
"""Goals that an attack may miss without a refusal: the stranger is somebody new, the browser
stays here."""


def always(provider: Provider) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to break a promise.

    code: what the check refuses it by that it is aimed at, and no other; "account" is any of the
    account.* codes, "" none; where it depends on the provider, a function of it. attempt: makes
    it, and returns the site's last answer. goal: what has come of it where it gets through. fits:
    whether it is one for this provider. options: over the provider's own. untouched: endpoints that
    nobody may ask.
    """

    promise: str
    code: Code = field(repr=False)
    sentence: str
    attempt: Attempt = field(repr=False)
    goal: str = SIGNED_IN
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
        scene.op.userinfo_jwt, scene.op.userinfo_signing_alg = True, userinfo_alg(scene)
        scene.op.userinfo_claims |= changes
        return scene.sign_in()

    return attempt


def forged_userinfo(forge: Forge) -> Attempt:
    """Sign in with the signed UserInfo response that is made of honest claims so."""

    def attempt(scene: Scene) -> Response:
        payload = scene.op.person | {"iss": scene.iss, "aud": scene.op.client_id}
        return answers("userinfo", jwt_answer(forge(scene, payload)))(scene)

    return attempt


def metadata(**changes: Any) -> Attempt:
    """Sign in where the OP publishes such metadata."""

    def attempt(scene: Scene) -> Response:
        scene.op.metadata |= changes
        return scene.sign_in()

    return attempt


def person(**changes: Any) -> Attempt:
    """Sign in as somebody of whom the OP says so."""

    def attempt(scene: Scene) -> Response:
        scene.op.person |= changes
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


def userinfo_alg(scene: Scene) -> str:
    """What the site takes signed UserInfo by: HMAC only where the settings say so."""
    own = "RS256" if scene.alg in jose.HMAC_ALGORITHMS else scene.alg
    return scene.provider.userinfo_signed_response_alg or own


def jwt_answer(jws: str) -> Misbehaviour:
    return raw(200, {"Content-Type": "application/jwt"}, jws.encode())
