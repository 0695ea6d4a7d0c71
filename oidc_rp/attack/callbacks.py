"""Callbacks that are mixed up."""

from __future__ import annotations

from typing import Any

from django.urls import reverse

from ..conf import Provider
from ..testing import REMOVE, sending
from ..testing.browser import Callback, Response
from ..visits import LANDED
from .id_tokens import from_the_other_tenant, has_two_tenants
from .stage import Scene, new_browser
from .walks import (
    SENT_AWAY,
    STRANGER,
    Attack,
    Attempt,
    answers,
    callback,
    claims_by,
    metadata,
    repeated,
)


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


def _on_the_way_to(next_url: str) -> Attempt:
    """Sign in honestly, when the link to it has said where to go then."""
    return lambda scene: scene.come_back(scene.answered(next_url=next_url))


def _pushes(provider: Provider) -> bool:
    return provider.require_pushed_authorization_requests


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
        claims_by(from_the_other_tenant),
        fits=has_two_tenants,
    ),
    Attack("M9", "response.repeated", "A callback with state twice.", repeated("state")),
    Attack("M9", "response.repeated", "A callback with code twice.", repeated("code")),
    Attack("M9", "response.repeated", "A callback with iss twice.", repeated("iss")),
    Attack(
        "M9",
        "response.repeated",
        "A callback with error twice.",
        callback(code=REMOVE, error=["access_denied"] * 2),
    ),
    Attack(
        "M10", "state.unknown", "An error with a foreign state.", _foreign_error(state="foreign")
    ),
    Attack("M10", "response.iss", "An error of another OP.", _foreign_error(iss=STRANGER)),
    Attack("M11", "initiate.iss", "A login that another issuer initiates.", _initiated_by_stranger),
    Attack(
        "M12",
        "",
        "A login whose next is another site.",
        _on_the_way_to(f"{STRANGER}/"),
        goal=SENT_AWAY,
    ),
    Attack(
        "M12",
        "",
        "A login whose next is another host, and looks like a path.",
        _on_the_way_to(f"{STRANGER.removeprefix('https:')}/"),
        goal=SENT_AWAY,
    ),
    Attack(
        "M15",
        "par.invalid_request",
        "A pushed request that the OP refuses.",
        answers("par", sending({"error": "invalid_request"}, 400)),
        fits=_pushes,
    ),
    Attack(
        "M15",
        "par.endpoint",
        "An OP that takes no pushed requests any more.",
        metadata(pushed_authorization_request_endpoint=None),
        fits=_pushes,
    ),
    Attack(
        "M16", "response.mode", "A response in a mode that was not asked for.", _in_another_mode
    ),
)
