"""Settings mistakes, told when the project starts. Each id is in the README."""

import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Caution
from django.urls import NoReverseMatch, reverse
from django.utils.module_loading import import_string

from . import accounts, conf
from .backends import OIDCBackend
from .conf import Mistake

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
_TOKEN_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?")


@register(Tags.security)
def check_settings(**_: Any) -> list[CheckMessage]:
    """The dict OIDC_RP itself."""
    return [
        Error(mistake.message, hint=mistake.hint, id=f"oidc_rp.{mistake.id}")
        for mistake in _settings_mistakes()
    ]


@register(Tags.security)
def check_installation(**_: Any) -> list[CheckMessage]:
    """What the app needs around it: backend, middleware, URLs, templates."""
    return [*_backend_messages(), *_middleware_messages(), *_url_messages()]


@register(Tags.security)
def check_providers(**_: Any) -> list[CheckMessage]:
    """What is allowed, and worth a second look."""
    return [
        message
        for provider, _mistakes in _written_providers()
        if provider is not None
        for message in _provider_messages(provider)
    ]


@register(Tags.security, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """What matters where several processes serve one site."""
    backend = settings.CACHES.get("default", {}).get("BACKEND", "")
    if not str(backend).endswith(_PER_PROCESS_CACHES):
        return []
    return [
        Caution(
            "The default cache is not shared between processes.",
            hint="Each process then fetches keys for itself, and the limits on fetching hold for "
            "each alone. Use Redis, Memcached or the database as cache.",
            id="oidc_rp.W005",
        )
    ]


def _settings_mistakes() -> Iterator[Mistake]:
    given = conf.given()
    if not given:
        hint = "Add the dict OIDC_RP with PROVIDERS; the README shows one."
        yield Mistake("E001", "OIDC_RP is missing, empty or no dict.", hint)
        return
    known = conf.TOP_OPTIONS | conf.OPTIONS.keys() - conf.OWN_OPTIONS
    yield from conf.unknown_options(given, known, "OIDC_RP")
    yield from _token_key_mistakes(given.get("TOKEN_KEYS", []))
    if not isinstance(given.get("KEEP_ANONYMOUS_SESSION", False), bool):
        hint = "True keeps in the session what an anonymous visitor left there."
        message = "OIDC_RP['KEEP_ANONYMOUS_SESSION'] should be True or False."
        yield Mistake("E004", message, hint)
    yield from _callable_mistakes(given.get("PROVIDERS"))
    seen: dict[tuple[str, str], str] = {}
    for provider, mistakes in _written_providers():
        yield from mistakes
        if provider is None:
            continue
        twin = seen.setdefault((provider.issuer, provider.client_id), provider.slug)
        if twin != provider.slug:
            message = f"Providers {twin!r} and {provider.slug!r} are one client at one issuer."
            yield Mistake("E007", message, "Remove one of them.")


def _written_providers() -> Iterator[tuple[conf.Provider | None, list[Mistake]]]:
    """The providers whose options stand in the settings, each as it was read.

    A callable is not called: it may need the database, which is not there yet.
    """
    providers = conf.given().get("PROVIDERS")
    for slug, options in providers.items() if isinstance(providers, dict) else ():
        if isinstance(options, dict):
            yield conf.read_provider(slug, conf.with_defaults(options))


def _callable_mistakes(providers: Any) -> Iterator[Mistake]:
    hint = "PROVIDERS maps slugs to the options of an OP; either may come from a callable."
    where = "OIDC_RP['PROVIDERS']"
    given = {where: providers}
    if isinstance(providers, dict):
        given = {f"{where}[{slug!r}]": options for slug, options in providers.items()}
    for name, value in given.items():
        try:
            isinstance(value, dict) or conf.read_callable(value)
        except ValueError as error:
            yield Mistake("E012", f"{name} should be a dict, {error}.", hint)


def _token_key_mistakes(keys: Any) -> Iterator[Mistake]:
    hint = "Each is 32 random octets in URL-safe base64; the newest first."
    if not isinstance(keys, list | tuple):
        yield Mistake("E010", "OIDC_RP['TOKEN_KEYS'] should be a list.", hint)
        return
    for number, key in enumerate(keys):
        if not isinstance(key, str) or not _TOKEN_KEY.fullmatch(key):
            yield Mistake("E010", f"OIDC_RP['TOKEN_KEYS'][{number}] is no key.", hint)


def _backend_messages() -> Iterator[CheckMessage]:
    backends = [_imported(path) for path in settings.AUTHENTICATION_BACKENDS]
    ours = [b for b in backends if isinstance(b, type) and issubclass(b, OIDCBackend)]
    if not ours:
        hint = 'Add "oidc_rp.backends.OIDCBackend", or a subclass of yours.'
        yield Error("AUTHENTICATION_BACKENDS lacks OIDCBackend.", hint=hint, id="oidc_rp.E011")
    for backend in ours:
        for hook in PROTOCOL_HOOKS:
            if getattr(backend, hook) is not getattr(OIDCBackend, hook):
                yield Caution(
                    f"{backend.__name__}.{hook} is never called.",
                    hint="oidc_rp proves who signs in by itself; the account hooks are called.",
                    id="oidc_rp.W001",
                )
        if backend.filter_users_by_claims is not OIDCBackend.filter_users_by_claims:
            yield Caution(
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
        yield Caution(f"{where} allows plain http.", hint=hint, id="oidc_rp.W002")
    if provider.dangerously_link_by_email is not None:
        hint = "Whoever controls an address at this OP may ask to be linked to its account here."
        yield Caution(f"{where} links accounts by e-mail.", hint=hint, id="oidc_rp.W004")
    yield from _user_model_messages(provider, where)


def _user_model_messages(provider: conf.Provider, where: str) -> Iterator[CheckMessage]:
    """What the user model lacks, or no claim may fill. It need not have all of the default map."""
    needed = {
        "DANGEROUSLY_LINK_BY_EMAIL": provider.dangerously_link_by_email
        and get_user_model().get_email_field_name(),
        "GROUPS": provider.groups and "groups",
        "STAFF_GROUPS": provider.staff_groups is not None and "is_staff",
        "SUPERUSER_GROUPS": provider.superuser_groups is not None and "is_superuser",
    }
    names = {field.name for field in get_user_model()._meta.get_fields()}
    wrong = [(option, name) for option, name in needed.items() if name and name not in names]
    wrong += [
        ("CLAIMS", name)
        for name, claim in provider.claims.items()
        if accounts.claim_field(name) is None and conf.DEFAULT_CLAIMS.get(name) != claim
    ]
    for option, name in wrong:
        yield Error(
            f"{where}[{option!r}] needs {name!r} of the user model, and cannot have it.",
            hint="CLAIMS maps plain fields of the user model to claims: {field: claim}. "
            "Groups, is_staff and is_superuser come from GROUPS_CLAIM alone.",
            id="oidc_rp.E018",
        )
