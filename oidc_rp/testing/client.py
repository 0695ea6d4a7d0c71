"""Somebody signs in, in one line: the real walk from the site to the OP and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user
from django.test import Client

from .browser import Browser, Response
from .installation import first_slug, installation_of, installed
from .provider import OpenIDProvider, somebody
from .signing import merged


class SignInRefused(AssertionError):
    """The site did not let the person in. `response` is its page, `code` the refusal's."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.code = str((response.context or {}).get("code", ""))
        super().__init__(f"the sign-in was refused: {response.status_code} {self.code}")


def sign_in(
    client: Client,
    sub: str | None = None,
    claims: Mapping[str, Any] | None = None,
    *,
    provider: str | None = None,
    op: OpenIDProvider | None = None,
    acr: str | None = None,
    amr: Sequence[str] | None = None,
    auth_time: datetime | int | None = None,
) -> Any:
    """Sign a person in at the kit's OP, through the site's own views; return the user.

    sub: who; the OP's person by default. Somebody else has claims of their own, of that name.
    claims: merged over the person's; REMOVE leaves one out.
    provider: a slug of OIDC_RP; the first one by default.
    op: by default the installed one; another is installed for as long as the sign-in takes.
    acr, amr, auth_time: of the session at the OP, which is a new one. The OP insists on them,
    whatever the site asks for.
    Raises SignInRefused where the site does not let the person in.
    """
    slug = first_slug() if provider is None else provider
    with _at_op(op, slug) as at:
        at.person = person_of(at, sub, claims or {})
        with _login(at, acr, amr, auth_time):
            response = Browser(client).sign_in(slug)
        user = get_user(response.wsgi_request)
    if response.status_code >= 400 or not user.is_authenticated:
        raise SignInRefused(response)
    return user


class OIDCClient(Client):
    """Django's test client, with somebody who can sign in."""

    def sign_in(self, sub: str | None = None, **options: Any) -> Any:
        """Sign a person in and return the user: sign_in(client, ...)."""
        return sign_in(self, sub, **options)


def person_of(op: OpenIDProvider, sub: str | None, claims: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims about this person: those that the OP knows, or those of somebody new."""
    if sub is None or sub == op.person["sub"]:
        return merged(op.person, claims)
    own = {"sub": sub, "preferred_username": sub, "email": f"{sub}@example.com"}
    return merged(somebody() | own, claims)


@contextmanager
def _at_op(op: OpenIDProvider | None, slug: str) -> Iterator[OpenIDProvider]:
    """The OP that this provider is at, installed for the time where it is not."""
    installation = installation_of(slug)
    if installation is not None and op in (None, installation.op):
        installation.serve(slug)
        yield installation.op
    elif op is not None:
        with installed(op, [slug]):
            yield op
    else:
        raise LookupError(f"{slug!r} is at no OP of the test: see oidc_rp.testing.installed")


@contextmanager
def _login(
    op: OpenIDProvider,
    acr: str | None,
    amr: Sequence[str] | None,
    auth_time: datetime | int | None,
) -> Iterator[None]:
    """A new session at the OP, which stays as it is where the test says how it is."""
    login, before = op.new_login(), (op.ignores_acr_values, op.ignores_max_age)
    login.acr, login.amr = acr or "", list(amr or ())
    if auth_time is not None:
        login.auth_time = _seconds(auth_time)
    op.ignores_acr_values |= acr is not None
    op.ignores_max_age |= auth_time is not None
    try:
        yield
    finally:
        op.ignores_acr_values, op.ignores_max_age = before


def _seconds(moment: datetime | int) -> int:
    return int(moment.timestamp()) if isinstance(moment, datetime) else moment
