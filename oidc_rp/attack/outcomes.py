"""What became of each attack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin

from .. import conf
from ..protocol import jose
from ..testing import SigningKey
from ..testing.browser import Response
from .attacks import ATTACKS
from .stage import ELSEWHERE, LeadsElsewhere, Scene, refusal_code, scene_of, unheard
from .walks import (
    SENT_AWAY,
    SESSION_ENDED,
    SIGNED_IN,
    STRANGER,
    TAKEN_OVER,
    TOKEN_GIVEN,
    WITHOUT_REFUSAL,
    Attack,
)

REFUSED, GOT_THROUGH, FAILED = "REFUSED", "GOT THROUGH", "FAILED"
REFUSED_OTHERWISE = "REFUSED OTHERWISE"
"""By another check than the one that it is aimed at: of that one it proves nothing."""
CAME_TO_NOTHING = "CAME TO NOTHING"
"""Without a refusal, where none need be: the attack has not reached its goal."""


class NotProven(Exception):
    """An honest sign-in, or an honest logout, is refused: no refusal of an attack says anything."""

    def __init__(self, what: str, code: str) -> None:
        self.code = code
        super().__init__(f"an honest {what} is refused by {code}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attack, the code that it is to be refused by, the one that refused it, and what went
    wrong; "" for nothing."""

    attack: Attack
    expected: str
    code: str
    got_through: str = ""
    failed: str = ""

    @property
    def verdict(self) -> str:
        if self.got_through:
            return GOT_THROUGH
        if self.failed:
            return FAILED
        if not self.code:
            return CAME_TO_NOTHING
        is_expected = self.expected in (self.code, self.code.partition(".")[0])
        return REFUSED if is_expected else REFUSED_OTHERWISE

    @property
    def withstood(self) -> bool:
        """Whether the site is proof against it."""
        return self.verdict in (REFUSED, CAME_TO_NOTHING)

    @property
    def told(self) -> str:
        """The verdict in one line."""
        if problem := self.got_through or self.failed:
            return f"{self.verdict}: {problem}"
        by = f" by {self.code}" if self.code else ""
        instead = f", not by {self.expected}" if self.expected and not self.withstood else ""
        return f"{self.verdict}{by}{instead}"


def run(
    slug: str, claims: Mapping[str, Any] | None = None, attacks: Iterable[Attack] = ATTACKS
) -> Iterator[Outcome]:
    """Try each of these attacks that fits the settings of this provider.

    claims: over those of the person who signs in, where the project asks for more.
    Raises ConfigurationError as conf.provider does, and NotProven before the first attack.
    """
    provider = conf.provider(slug)
    keys = _keys_for(provider)
    with unheard():
        _be_honest(provider, keys, claims or {})
    for attack in attacks:
        if attack.fits(provider):
            with unheard():  # and not while somebody looks at the outcome
                outcome = _attempt(attack, provider, keys, claims or {})
            yield outcome


def _keys_for(provider: conf.Provider) -> list[SigningKey]:
    """The OP's keys, made once: those of RSA take their time."""
    asked = (provider.id_token_signed_response_alg, provider.userinfo_signed_response_alg)
    algs = {alg or "RS256" for alg in asked} - jose.HMAC_ALGORITHMS
    return [SigningKey.generate(alg) for alg in sorted(algs or {"RS256"})]


def _be_honest(provider: conf.Provider, keys: list[SigningKey], claims: Mapping[str, Any]) -> None:
    with scene_of(provider, keys, claims, {}) as scene:
        try:
            response = scene.sign_in()
        except LeadsElsewhere as error:
            raise NotProven("sign-in", f"a redirect to {error}") from error
        if not scene.is_signed_in():
            raise NotProven("sign-in", _reason(scene, response))
        response = scene.log_out(scene.logout_token())
        if response.status_code != 200 or scene.has_open_session():
            raise NotProven("logout", _reason(scene, response))


def _reason(scene: Scene, response: Response) -> str:
    return refusal_code(scene, response) or f"HTTP {response.status_code}"


def _attempt(
    attack: Attack, provider: conf.Provider, keys: list[SigningKey], claims: Mapping[str, Any]
) -> Outcome:
    with scene_of(provider, [*keys], claims, attack.options) as scene:
        try:
            response = attack.attempt(scene)
        except Exception as error:  # noqa: BLE001 - whatever the project's views, or the walk, raise
            return Outcome(attack, attack.code_at(provider), "", failed=type(error).__name__)
        return _judged(attack, scene, response)


def _judged(attack: Attack, scene: Scene, response: Response) -> Outcome:
    code, status = refusal_code(scene, response), response.status_code
    outcome = Outcome(attack, attack.code_at(scene.provider), code)
    if through := _got_through(attack, scene, response):
        return replace(outcome, got_through=through)
    need_not_refuse = attack.goal in WITHOUT_REFUSAL
    if status < 400 and not need_not_refuse:
        done = attack.goal if attack.goal == TOKEN_GIVEN else f"HTTP {status}"
        return replace(outcome, got_through=done)
    if status >= 500:
        return replace(outcome, failed=f"HTTP {status}")
    if code or (need_not_refuse and scene.is_signed_in()):
        return outcome
    return replace(outcome, failed=f"HTTP {status} without a code")


def _got_through(attack: Attack, scene: Scene, response: Response) -> str:
    if _is_reached(attack.goal, scene, response):
        return attack.goal
    if any(scene.op.calls(name) for name in (ELSEWHERE, *attack.untouched)):
        return "a request went where none belongs"
    return ""


def _is_reached(goal: str, scene: Scene, response: Response) -> bool:
    """Whether it can be seen that it is; of a token, only what the last step answered tells."""
    if goal == SESSION_ENDED:
        return not scene.has_open_session()
    if goal == SIGNED_IN:
        return scene.is_signed_in()
    if goal == TAKEN_OVER:
        return scene.is_taken_over()
    return goal == SENT_AWAY and _leads_to(response, STRANGER)


def _leads_to(response: Response, origin: str) -> bool:
    """Whether a browser would follow it there from a page of a site."""
    place = urljoin("https://site.invalid/", str(response.headers.get("Location", "")))
    return place.startswith(f"{origin}/")
