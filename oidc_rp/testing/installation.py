"""The project's own providers, at the kit's OP: what a site's tests run against.

Only where the OP is changes. What the project asks for and how it treats people (SCOPES,
algorithms, CLAIMS, GROUPS, ...) stays as it stands in the settings, and the OP adapts to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.core.cache import cache
from django.test import override_settings

from oidc_rp import conf
from oidc_rp.discovery import document_key
from oidc_rp.sealing import generate_key

from .provider import OpenIDProvider

ELSEWHERE: Mapping[str, None] = dict.fromkeys(
    "METADATA TENANTS CA_BUNDLE REDIRECT_URIS POST_LOGOUT_REDIRECT_URIS".split()
)
"""Options that belong to the real OP and the real site; a test has another of both."""

PRIVATE_MEMBERS = frozenset("d p q dp dq qi oth k".split())


@dataclass
class Installation:
    """An OP that providers of the project are at now. serving: whose client it suits."""

    op: OpenIDProvider
    slugs: list[str]
    serving: str = ""

    def serve(self, slug: str) -> None:
        """Have the OP suit this provider's client, unless it does: a test may have bent it."""
        if slug != self.serving:
            serve(self.op, conf.given()["PROVIDERS"][slug])
            self.serving = slug


_installations: list[Installation] = []
"""Those that go on, the innermost last."""


def settings_for(op: OpenIDProvider, slugs: Collection[str] | None = None) -> dict[str, Any]:
    """Return OIDC_RP of the project with the providers of these slugs, or all, at this OP.

    TOKEN_KEYS are made where there are none. Raises LookupError for a slug that is not there.
    """
    providers = _own_providers()
    moved = {slug: _at(op, providers[slug]) for slug in _chosen(providers, slugs)}
    keys = conf.token_keys() or (generate_key(),)
    return conf.given() | {"PROVIDERS": providers | moved, "TOKEN_KEYS": list(keys)}


@contextmanager
def installed(op: OpenIDProvider, slugs: Collection[str] | None = None) -> Iterator[OpenIDProvider]:
    """Run the project with its providers, or those of these slugs, at this OP; then as before.

    One inside the other gives different providers different OPs.
    """
    with override_settings(OIDC_RP=settings_for(op, slugs)), serving(op, slugs):
        yield op


@contextmanager
def serving(op: OpenIDProvider, slugs: Collection[str] | None = None) -> Iterator[OpenIDProvider]:
    """Have the OP be the one of these providers, whose settings say so already."""
    installation = Installation(op, _chosen(conf.given()["PROVIDERS"], slugs))
    _forget_documents(op)
    for slug in reversed(installation.slugs):  # the first has the last word
        installation.serve(slug)
    _installations.append(installation)
    try:
        yield op
    finally:
        _installations.remove(installation)


def installation_of(slug: str) -> Installation | None:
    """Return where this provider is now, None where nobody installed an OP for it."""
    return next((found for found in reversed(_installations) if slug in found.slugs), None)


def first_slug() -> str:
    """Return the slug of the provider that the settings name first."""
    return _chosen(_own_providers(), None)[0]


def provider_options(op: OpenIDProvider) -> dict[str, Any]:
    """Return what a provider's options say of this OP: all that is needed to sign in there."""
    return {
        "ISSUER": op.issuer,
        "CLIENT_ID": op.client_id,
        "CLIENT_SECRET": op.client_secret,
        "ALLOW_LOOPBACK_HTTP": True,
    }


def serve(op: OpenIDProvider, options: Mapping[str, Any]) -> None:
    """Have the OP be what a client of these provider options needs."""
    options = conf.with_defaults(options)
    op.post_logout_redirect_uris = None
    op.signing_alg = options.get("ID_TOKEN_SIGNED_RESPONSE_ALG") or op.signing_alg
    op.userinfo_signing_alg = options.get("USERINFO_SIGNED_RESPONSE_ALG") or ""
    op.userinfo_jwt = bool(op.userinfo_signing_alg)
    op.id_token_carries_claims = options.get("USERINFO") is False
    _know(op.acr_values_supported, options.get("DEFAULT_ACR_VALUES") or ())
    if method := options.get("TOKEN_ENDPOINT_AUTH_METHOD"):
        _know(op.metadata["token_endpoint_auth_methods_supported"], [method])
    if jwk := options.get("PRIVATE_KEY"):
        public = {name: value for name, value in jwk.items() if name not in PRIVATE_MEMBERS}
        _know(op.client_jwk.setdefault("keys", []), [public])


def _know(known: list[Any], more: Collection[Any]) -> None:
    known.extend(item for item in more if item not in known)


def _own_providers() -> dict[str, dict[str, Any]]:
    """Return the options of every provider of the project, whether dicts or callables."""
    providers = _read(conf.given().get("PROVIDERS") or {})
    return {slug: _read(options) for slug, options in providers.items()}


def _read(value: Mapping[str, Any] | str | Callable[[], Any]) -> dict[str, Any]:
    return dict(value if isinstance(value, Mapping) else conf.read_callable(value)())


def _chosen(providers: Mapping[str, Any], slugs: Collection[str] | None) -> list[str]:
    """Return the slugs that are meant, in the order of the settings."""
    if not providers:
        raise LookupError("OIDC_RP['PROVIDERS'] is empty: there is nothing to sign in at")
    if unknown := set(slugs or ()) - providers.keys():
        raise LookupError(f"OIDC_RP['PROVIDERS'] has no {', '.join(map(repr, sorted(unknown)))}")
    return [slug for slug in providers if slugs is None or slug in slugs]


def _at(op: OpenIDProvider, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a provider, moved to this OP; its API is one that tokens may go to."""
    moved = {**options, **ELSEWHERE, **provider_options(op)}
    if options.get("TOKEN_ENDPOINT_AUTH_METHOD") == "none":
        del moved["CLIENT_SECRET"]
    if op.issuer.startswith("https:"):
        moved["CA_BUNDLE"] = conf.with_defaults(options).get("CA_BUNDLE")
    if origins := options.get("API_ORIGINS"):
        by_resource = origins if isinstance(origins, Mapping) else {"": origins}
        moved["API_ORIGINS"] = {**by_resource, "": [*by_resource.get("", ()), op.origin]}
    return moved


def _forget_documents(op: OpenIDProvider) -> None:
    """Drop what an OP at the same port may have left in a cache that outlives it (discovery.py)."""
    cache.delete_many([document_key(op.url(name)) for name in ("discovery", "jwks")])
