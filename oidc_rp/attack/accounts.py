"""People whom the OP vouches for, and who are to get no account, or not that one.

Where a stranger has what somebody else is known by, a site may refuse them or make them an account
of their own: what is judged is whose account they end up in.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from django.contrib.auth import get_user_model

from .. import accounts
from ..conf import Provider
from ..models import Identity
from ..testing.browser import Response
from .calls import keeps_tokens
from .stage import Scene, new_browser
from .walks import TAKEN_OVER, TOKEN_GIVEN, Attack, Attempt, person

UNVERIFIED = {"email_verified": False, "xms_edov": False}
UNSAID = dict.fromkeys(UNVERIFIED)
VERIFIED = {"email_verified": True, "xms_edov": True, "oid": "oidc-attack"}
"""As the OP says it, and as Entra does, where each tenant writes what it likes (M34). Null says
nothing."""


def _stranger(likeness: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]]) -> Attempt:
    """Sign in as a stranger who is like somebody that has an account here.

    likeness: (that user, the claims they are known by) -> claims of the stranger.
    """

    def attempt(scene: Scene) -> Response:
        known = dict(scene.op.person)
        scene.victim = _user_known_by(known, scene)
        scene.op.person |= _nobody_yet(known) | dict(likeness(scene.victim, known))
        scene.browser = new_browser()
        return scene.sign_in()

    return attempt


def _user_known_by(claims: Mapping[str, Any], scene: Scene) -> Any:
    """A user with this address and name, made as the site makes one: by a sign-in. The OP has
    nothing to do with them any more."""
    scene.sign_in()
    user = scene.user()
    Identity.objects.filter(user=user, iss=scene.iss).delete()
    model: Any = get_user_model()
    by_claims = {
        model.USERNAME_FIELD: "preferred_username",
        model.get_email_field_name(): "email",
    }
    provider = replace(scene.provider, claims=by_claims)
    accounts.set_fields(user, accounts.user_fields(accounts.VerifiedClaims(claims, provider)))
    return user


def _nobody_yet(known: Mapping[str, Any]) -> dict[str, str]:
    name, domain = f"stranger-{secrets.token_hex(6)}", str(known["email"]).rpartition("@")[2]
    return {"sub": name, "preferred_username": name, "email": f"{name}@{domain}"}


def _of_the_domain(scene: Scene) -> str:
    return min(scene.provider.email_domains)


def _with_two_ats(scene: Scene) -> Response:
    return person(email=f"a@attacker.example@{_of_the_domain(scene)}")(scene)


def _deactivate(scene: Scene) -> None:
    """Behind the back of every receiver, as an import or another program does it."""
    get_user_model()._base_manager.filter(pk=scene.user().pk).update(is_active=False)


def _inactive(scene: Scene) -> Response:
    scene.sign_in()
    _deactivate(scene)
    scene.browser = new_browser()
    return scene.sign_in()


def _token_of_inactive(scene: Scene) -> Response:
    scene.sign_in()
    _deactivate(scene)
    return scene.ask_for_token()


def _links_by_email(provider: Provider) -> bool:
    return provider.dangerously_link_by_email is not None


def _names_domains(provider: Provider) -> bool:
    return bool(provider.email_domains)


def _may_be_inactive(provider: Provider) -> bool:
    return accounts.claim_field("is_active") is not None


ACCOUNTS = (
    Attack(
        "M33",
        "account",
        "A stranger with the e-mail address of somebody who has an account here.",
        _stranger(lambda user, known: {"email": known["email"]} | UNVERIFIED),
        goal=TAKEN_OVER,
    ),
    Attack(
        "M33",
        "account",
        "A stranger with such an address, and nobody says whether it is verified.",
        _stranger(lambda user, known: {"email": known["email"]} | UNSAID),
        goal=TAKEN_OVER,
    ),
    Attack(
        "M33",
        "account",
        "A stranger with the user name of somebody who has an account here.",
        _stranger(lambda user, known: {"preferred_username": user.get_username()}),
        goal=TAKEN_OVER,
    ),
    Attack(
        "M34",
        "account",
        "A stranger with somebody's verified address, whose owner does not confirm it.",
        _stranger(lambda user, known: {"email": known["email"]} | VERIFIED),
        goal=TAKEN_OVER,
        fits=_links_by_email,
    ),
    Attack(
        "M36",
        "account.email_domain",
        "An address in another domain.",
        person(email="a@attacker.example"),
        fits=_names_domains,
    ),
    Attack(
        "M36",
        "account.email_domain",
        "An address with two @, the last of them before the right domain.",
        _with_two_ats,
        fits=_names_domains,
    ),
    Attack(
        "M36",
        "account.email_domain",
        "An address in the right domain that is not verified.",
        person(**UNVERIFIED),
        fits=_names_domains,
    ),
    Attack(
        "M38",
        "account.inactive",
        "Somebody whose account here is not active.",
        _inactive,
        fits=_may_be_inactive,
    ),
    Attack(
        "M38",
        "account.inactive",
        "A token for somebody whose account here is not active any more.",
        _token_of_inactive,
        goal=TOKEN_GIVEN,
        fits=lambda provider: keeps_tokens(provider) and _may_be_inactive(provider),
    ),
)
