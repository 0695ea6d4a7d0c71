"""Settings mistakes, told when the project starts. Each id is in the README."""

from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from . import conf
from .backends import OIDCBackend

PROTOCOL_HOOKS = (
    "get_token",
    "verify_token",
    "get_payload_data",
    "retrieve_matching_jwk",
    "get_userinfo",
    "get_or_create_user",
    "store_tokens",
    "raise_token_response_error",
    "_verify_jws",
)
"""Hooks of mozilla-django-oidc that decide about trust; we never call them."""

_SESSION = "django.contrib.sessions.middleware.SessionMiddleware"
_AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
_PER_PROCESS_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")


@register(Tags.security)
def check_settings(**_: Any) -> list[CheckMessage]:
    """The dict OIDC_RP itself."""
    return [
        Error(mistake.message, hint=mistake.hint or None, id=f"oidc_rp.{mistake.id}")
        for mistake in conf.mistakes()
    ]


@register(Tags.security)
def check_installation(**_: Any) -> list[CheckMessage]:
    """What the app needs around it: backend, middleware, URLs, templates."""
    return [*_backend_messages(), *_middleware_messages(), *_url_messages()]


@register(Tags.security)
def check_providers(**_: Any) -> list[CheckMessage]:
    """What is allowed, and worth a second look."""
    # A callable is not asked here: checks run before the database is there.
    if not isinstance(getattr(settings, "OIDC_RP", None), dict):
        return []
    if not isinstance(settings.OIDC_RP.get("PROVIDERS"), dict):
        return []
    return [
        message
        for provider in conf.providers().values()
        for message in _provider_messages(provider)
    ]


@register(Tags.security, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """What matters where several processes serve one site."""
    backend = settings.CACHES.get("default", {}).get("BACKEND", "")
    if not str(backend).endswith(_PER_PROCESS_CACHES):
        return []
    return [
        Warning(
            "The default cache is not shared between processes.",
            hint="Each process then fetches keys for itself, and the limits on fetching hold for "
            "each alone. Use Redis, Memcached or the database as cache.",
            id="oidc_rp.W005",
        )
    ]


def _backend_messages() -> Iterator[CheckMessage]:
    backends = [_imported(path) for path in settings.AUTHENTICATION_BACKENDS]
    ours = [b for b in backends if isinstance(b, type) and issubclass(b, OIDCBackend)]
    if not ours:
        hint = 'Add "oidc_rp.backends.OIDCBackend", or a subclass of yours.'
        yield Error("AUTHENTICATION_BACKENDS lacks OIDCBackend.", hint=hint, id="oidc_rp.E011")
    for backend in ours:
        for hook in PROTOCOL_HOOKS:
            if getattr(backend, hook) is not getattr(OIDCBackend, hook):
                yield Warning(
                    f"{backend.__name__}.{hook} is never called.",
                    hint="oidc_rp proves who signs in by itself; the account hooks are called.",
                    id="oidc_rp.W001",
                )
        if backend.filter_users_by_claims is not OIDCBackend.filter_users_by_claims:
            yield Warning(
                f"{backend.__name__}.filter_users_by_claims decides which account a new identity "
                "belongs to.",
                hint="Make sure that nobody but the OP's operators can choose the claims it looks "
                "at, then silence this check.",
                id="oidc_rp.W003",
            )


def _imported(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError:
        return None


def _middleware_messages() -> Iterator[CheckMessage]:
    for path in (_SESSION, _AUTHENTICATION):
        name = path.rpartition(".")[2]
        classes = [_imported(item) for item in settings.MIDDLEWARE]
        if not any(isinstance(c, type) and issubclass(c, import_string(path)) for c in classes):
            yield Error(f"MIDDLEWARE lacks {name}.", hint=f"Add {path!r}.", id="oidc_rp.E016")


def _url_messages() -> Iterator[CheckMessage]:
    if not getattr(settings, "ROOT_URLCONF", None):
        return
    try:
        reverse("oidc_rp:login_chooser")
    except NoReverseMatch:
        hint = 'Add path("oidc/", include("oidc_rp.urls")) to the root URLconf.'
        yield Error("The URLs of oidc_rp are not included.", hint=hint, id="oidc_rp.E017")


def _provider_messages(provider: conf.Provider) -> Iterator[CheckMessage]:
    where = f"OIDC_RP['PROVIDERS'][{provider.slug!r}]"
    if provider.allow_loopback_http and not settings.DEBUG:
        hint = "It is meant for development and tests."
        yield Warning(f"{where} allows plain http.", hint=hint, id="oidc_rp.W002")
    if provider.dangerously_link_by_email is not None:
        hint = "Whoever controls an address at this OP may ask to be linked to its account here."
        yield Warning(f"{where} links accounts by e-mail.", hint=hint, id="oidc_rp.W004")
    for name in provider.claims:
        try:
            get_user_model()._meta.get_field(name)
        except FieldDoesNotExist:
            if provider.claims[name] != OPTIONAL_CLAIMS.get(name):
                hint = "CLAIMS maps fields of the user model to claims: {field: claim}."
                yield Error(
                    f"{where}['CLAIMS'] names no field: {name!r}.", hint=hint, id="oidc_rp.E018"
                )


OPTIONAL_CLAIMS = conf.OPTIONS["CLAIMS"].default_factory()  # type: ignore[misc, operator]
"""The default map: a custom user model need not have all of its fields."""
