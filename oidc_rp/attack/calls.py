"""Calls of APIs in somebody's name, and the refreshes before them."""

from __future__ import annotations

from typing import Any

from .. import conf
from ..conf import Provider
from ..testing.browser import Response
from .stage import ELSEWHERE, Scene
from .walks import SOMEBODY_ELSE, STRANGER, TOKEN_GIVEN, Attack, Attempt


def _refreshed(**changes: Any) -> Attempt:
    """Call an API when the token has ended; the refreshed ID Token's claims are changed so."""

    def attempt(scene: Scene) -> Response:
        scene.sign_in()
        scene.op.refreshed_id_token_claims |= changes
        return scene.ask_for_token()

    return attempt


def _api_of_a_stranger(scene: Scene) -> Response:
    scene.sign_in()
    return scene.call(scene.op.origin + ELSEWHERE)


def keeps_tokens(provider: Provider) -> bool:
    return provider.offline and bool(conf.token_keys())


CALLS = (
    Attack(
        "M30",
        "grant.subject_changed",
        "A refreshed ID Token about somebody else.",
        _refreshed(sub=SOMEBODY_ELSE),
        goal=TOKEN_GIVEN,
        fits=keeps_tokens,
    ),
    Attack(
        "M30",
        "grant.subject_changed",
        "A refreshed ID Token of another issuer.",
        _refreshed(iss=STRANGER),
        goal=TOKEN_GIVEN,
        fits=keeps_tokens,
    ),
    Attack(
        "M54",
        "api.origin",
        "A token for an API that the settings do not name.",
        _api_of_a_stranger,
        goal=TOKEN_GIVEN,
        fits=keeps_tokens,
    ),
)
