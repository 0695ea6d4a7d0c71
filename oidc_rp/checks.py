"""Settings mistakes, told when the project starts. Each id is in the README."""

from base64 import urlsafe_b64decode
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from hashlib import new as hashed_by
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.checks import CheckMessage, Error, Tags, register
from django.core.checks import Warning as Caution
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router
from django.urls import NoReverseMatch, reverse
from django.utils.encoding import force_bytes
from django.utils.module_loading import import_string

from . import accounts, conf
from .backends import OIDCBackend
from .conf import Mistake
from .errors import ConfigurationError
from .models import Grant
from .resealing import COLUMNS, Column, key_ids_in_use
from .sealing import is_key, key_ring

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
_LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"
_PER_PROCESS_CACHES = ("locmem.LocMemCache", "dummy.DummyCache")
_BACKENDS = ("oidc_rp.backends.OIDCBackend", "django.contrib.auth.backends.ModelBackend")
_RENEWAL = "oidc_rp.middleware.TokenRenewal"
_SESSION_RENEWAL = "oidc_rp.middleware.SessionRenewal"
_SESSION_REFRESH = "mozilla_django_oidc.middleware.SessionRefresh"
_INEQUALITY = "Write a number: TIMEOUT of the OP < REFRESH_WAIT < WORKER_TIMEOUT, in seconds."
_NEW_KEY = "`manage.py oidc_generate_key` prints a key for it."

Read = Mapping[Any, tuple[conf.Provider | None, list[Mistake]]]
"""slug -> its provider, or None, and the mistakes in its options: what conf.read_provider says."""


@register(Tags.security)
def check_settings(**_: Any) -> list[CheckMessage]:
    """The dict OIDC_RP itself."""
    return list(_settings_messages(conf.written_providers()))


@register(Tags.security)
def check_installation(**_: Any) -> list[CheckMessage]:
    """What the app needs around it: backend, middleware, cookies, URLs."""
    return list(_installation_messages(_usable(conf.written_providers())))


@register(Tags.security)
def check_providers(**_: Any) -> list[CheckMessage]:
    """What is allowed, and worth a second look."""
    return list(_provider_messages(_usable(conf.written_providers())))


@register(Tags.security)
def check_refresh(**_: Any) -> list[CheckMessage]:
    """What tokens need that are kept and refreshed."""
    return list(_refresh_messages(_usable(conf.written_providers())))


def messages_about(read: Read) -> list[CheckMessage]:
    """What these four say where the providers are those; the doctor reads callables' as well."""
    usable = _usable(read)
    return [
        *_settings_messages(read),
        *_installation_messages(usable),
        *_provider_messages(usable),
        *_refresh_messages(usable),
    ]


def _usable(read: Read) -> list[conf.Provider]:
    return [provider for provider, _ in read.values() if provider is not None]


@register(Tags.database)
def check_stored_keys(databases: Collection[str] | None = None, **_: Any) -> list[CheckMessage]:
    """The keys of stored tokens, on the databases named: `check --database default`, `migrate`."""
    return [message for alias in databases or () for message in _stored_key_messages(alias)]


@register(Tags.security, deploy=True)
def check_deployment(**_: Any) -> list[CheckMessage]:
    """What matters where several processes serve one site."""
    database = router.db_for_write(Grant)
    return [*_cache_messages(), *_sqlite_messages(database), *_stored_key_messages(database)]


def _cache_messages() -> Iterator[CheckMessage]:
    backend = settings.CACHES.get("default", {}).get("BACKEND", "")
    if str(backend).endswith(_PER_PROCESS_CACHES):
        yield Caution(
            "The default cache is not shared between processes.",
            hint="Use Redis, Memcached or the database as cache. Now each process fetches keys for "
            "itself, and the limits on fetching hold for each alone.",
            id="oidc_rp.W005",
        )


def _sqlite_messages(database: str) -> Iterator[CheckMessage]:
    if conf.token_keys() and not settings.DEBUG and connections[database].vendor == "sqlite":
        yield Caution(
            f"Refresh tokens are kept in SQLite (database {database!r}).",
            hint="Use PostgreSQL, MariaDB or MySQL. SQLite lets one writer in at a time: a new "
            "token cannot be stored while a request writes, and is lost if the process dies then.",
            id="oidc_rp.W006",
        )


def _stored_key_messages(database: str) -> Iterator[CheckMessage]:
    """Stored tokens whose key nobody has any more (M52); a few look-ups, however many tokens."""
    try:
        known = set(key_ring().key_ids)
        missing = _stored_key_ids(database) - known
    except (DatabaseError, ImproperlyConfigured, ConfigurationError):
        return  # Not migrated yet, out of reach, or DATABASES is empty; a wrong key is E010.
    for key_id in sorted(missing):
        yield Error(
            f"Stored tokens need key {key_id}, which is not in OIDC_RP['TOKEN_KEYS'].",
            hint="Put the key back, as the last one, and run `manage.py oidc_reseal` before you "
            "remove it. If it is lost, these people have to sign in again.",
            id="oidc_rp.E020",
        )


def _stored_key_ids(database: str) -> set[str]:
    tables = connections[database].introspection.table_names()
    return {
        key_id
        for column in COLUMNS
        if _is_kept_in(column, database) and column.table in tables
        for key_id in key_ids_in_use(column, database)
    }


def _is_kept_in(column: Column, database: str) -> bool:
    return router.allow_migrate_model(database, column.model)


def _refresh_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    yield from _unsealed_messages(providers)
    yield from _time_messages(providers)
    yield from _atomic_requests_messages()


def _unsealed_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    if conf.given().get("TOKEN_KEYS"):
        return
    for provider in providers:
        if provider.offline or provider.api_origins:
            yield Error(
                f"OIDC_RP['PROVIDERS'][{provider.slug!r}] brings tokens to keep, and "
                "OIDC_RP['TOKEN_KEYS'] is empty.",
                hint=f"Add TOKEN_KEYS: tokens are never stored unsealed. {_NEW_KEY}",
                id="oidc_rp.E019",
            )


def _time_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    """TIMEOUT < REFRESH_WAIT < WORKER_TIMEOUT, where tokens are refreshed."""
    if not conf.token_keys():
        return
    wait, worker = conf.refresh_wait(), conf.worker_timeout()
    for provider in providers:
        if provider.timeout >= wait:
            yield Error(
                f"OIDC_RP['PROVIDERS'][{provider.slug!r}]: TIMEOUT ({provider.timeout:g} s) is "
                f"not less than REFRESH_WAIT ({wait:g} s).",
                hint="Lower TIMEOUT or raise REFRESH_WAIT: who waits for another's refresh waits "
                "at least as long as the OP may take.",
                id="oidc_rp.E021",
            )
    if wait >= worker:
        yield Error(
            f"REFRESH_WAIT ({wait:g} s) is not less than WORKER_TIMEOUT ({worker:g} s).",
            hint="Lower REFRESH_WAIT, or raise WORKER_TIMEOUT, which is when your web server kills "
            "a worker (gunicorn --timeout): a refresh is to be over by then.",
            id="oidc_rp.E021",
        )


def _atomic_requests_messages() -> Iterator[CheckMessage]:
    database = router.db_for_write(Grant)
    atomic = connections[database].settings_dict.get("ATOMIC_REQUESTS")
    renewed_before = _has_middleware(_RENEWAL) and conf.own_connection()
    if conf.token_keys() and atomic and not renewed_before:
        yield Caution(
            f"Tokens are refreshed inside of ATOMIC_REQUESTS (database {database!r}).",
            hint=f"Add {_RENEWAL!r} to MIDDLEWARE, behind {_AUTHENTICATION!r}: it renews tokens "
            "before the view and its transaction begin. Leave OWN_CONNECTION alone, and allow a "
            "second connection for each worker: a refresh is stored over that one, so that a view "
            "that raises does not roll it back.",
            id="oidc_rp.W007",
        )


def _settings_messages(read: Read) -> Iterator[CheckMessage]:
    for mistake in _settings_mistakes(read):
        yield Error(mistake.message, hint=mistake.hint, id=f"oidc_rp.{mistake.id}")


def _settings_mistakes(read: Read) -> Iterator[Mistake]:
    given = conf.given()
    if not given:
        hint = "Add the dict OIDC_RP with PROVIDERS; the README shows one."
        yield Mistake("E001", "OIDC_RP is missing, empty or no dict.", hint)
        return
    known = conf.TOP_OPTIONS | conf.SHARED_OPTIONS
    yield from conf.unknown_options(given, known, "OIDC_RP")
    yield from _token_key_mistakes(given.get("TOKEN_KEYS", []))
    yield from _top_value_mistakes(given)
    if not isinstance(given.get("KEEP_ANONYMOUS_SESSION", False), bool):
        hint = "Write True to keep in the session what an anonymous visitor left there."
        message = "OIDC_RP['KEEP_ANONYMOUS_SESSION'] should be True or False."
        yield Mistake("E004", message, hint)
    yield from _callable_mistakes(given.get("PROVIDERS"))
    seen: dict[tuple[str, str], str] = {}
    for provider, mistakes in read.values():
        yield from mistakes
        if provider is None:
            continue
        twin = seen.setdefault((provider.issuer, provider.client_id), provider.slug)
        if twin != provider.slug:
            message = f"Providers {twin!r} and {provider.slug!r} are one client at one issuer."
            yield Mistake("E007", message, "Remove one of them.")


def _top_value_mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    for name in ("REFRESH_WAIT", "WORKER_TIMEOUT"):
        value = given.get(name, 1)
        if type(value) not in (int, float) or not value > 0:
            yield Mistake("E004", f"OIDC_RP[{name!r}] should be seconds, more than 0.", _INEQUALITY)
    kept = given.get("EVENT_RETENTION", 1)
    if type(kept) not in (int, float) or not 0 < kept <= conf.MAX_RETENTION:
        hint = "Write a number of days: oidc_prune deletes events that are older."
        message = f"OIDC_RP['EVENT_RETENTION'] should be days, at most {conf.MAX_RETENTION}."
        yield Mistake("E004", message, hint)
    if given.get("OWN_CONNECTION") not in (None, True, False):
        hint = "Write False to take the connection of the caller always; None decides by itself."
        yield Mistake("E004", "OIDC_RP['OWN_CONNECTION'] should be None or False.", hint)


def _callable_mistakes(providers: Any) -> Iterator[Mistake]:
    hint = "Write a dict: PROVIDERS maps slugs to the options of an OP; a callable may return it."
    where = "OIDC_RP['PROVIDERS']"
    given = {where: providers}
    if isinstance(providers, dict):
        given = {f"{where}[{slug!r}]": options for slug, options in providers.items()}
    for name, value in given.items():
        if not isinstance(value, dict) and (problem := _callable_problem(value)):
            yield Mistake("E012", f"{name} {problem}.", hint)


def _callable_problem(value: Any) -> str:
    """Why nothing can be called here; it is imported, and not called."""
    try:
        conf.read_callable(value)
    except ValueError as error:
        return f"should be a dict, {error}"
    except Exception as error:  # noqa: BLE001 - a module of the site may raise anything
        return f"names a module that raises {type(error).__name__}"
    return ""


def _token_key_mistakes(keys: Any) -> Iterator[Mistake]:
    hint = f"Write a list of keys, the newest first. {_NEW_KEY}"
    if not isinstance(keys, list | tuple):
        yield Mistake("E010", "OIDC_RP['TOKEN_KEYS'] should be a list.", hint)
        return
    derived = _made_of_secret_keys()
    for number, key in enumerate(keys):
        if not is_key(key):
            yield Mistake("E010", f"OIDC_RP['TOKEN_KEYS'][{number}] is no key.", hint)
        elif urlsafe_b64decode(key[:43] + "=") in derived:
            message = f"OIDC_RP['TOKEN_KEYS'][{number}] is made of SECRET_KEY."
            yield Mistake("E010", message, f"Replace it: whoever has one has both. {_NEW_KEY}")


def _made_of_secret_keys() -> set[bytes]:
    """32 octets as people make them of SECRET_KEY."""
    secrets: Sequence[Any] = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return {octets for secret in secrets for octets in _made_of(force_bytes(secret))}


def _made_of(secret: bytes) -> Iterator[bytes]:
    yield from (secret[:32], secret[-32:], secret.ljust(32, b"0")[:32])
    for name in ("md5", "sha1", "sha256", "sha512"):
        hashed = hashed_by(name, secret, usedforsecurity=False)
        yield from (hashed.digest()[:32], hashed.hexdigest()[:32].encode())
    if is_key(as_key := secret[:43].decode(errors="replace")):
        yield urlsafe_b64decode(as_key + "=")


def _installation_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    yield from _backend_messages()
    yield from _middleware_messages(providers)
    yield from _cookie_messages()
    yield from _cookie_name_messages()
    yield from _session_messages()
    yield from _broken_cache_messages()
    yield from _url_messages()


def _backend_messages() -> Iterator[CheckMessage]:
    paths: Any = settings.AUTHENTICATION_BACKENDS
    backends = {path: _imported(path) for path in ([paths] if isinstance(paths, str) else paths)}
    ours = [b for b in backends.values() if isinstance(b, type) and issubclass(b, OIDCBackend)]
    broken = [path for path, backend in backends.items() if not callable(backend)]
    for path in broken:
        near = get_close_matches(path, _BACKENDS, n=1, cutoff=0.9)
        hint = f"Did you mean {near[0]!r}?" if near else "Correct it, or remove it."
        message = f"AUTHENTICATION_BACKENDS has {path!r}, which cannot be imported."
        yield Error(message, hint=f"{hint} Now each sign-in is an error.", id="oidc_rp.E027")
    if isinstance(paths, str):
        hint = "Write a list; one item in parentheses needs a comma behind it."
        yield Error("AUTHENTICATION_BACKENDS is a text.", hint=hint, id="oidc_rp.E027")
    elif not ours and not broken:  # else the one that was meant may be among them
        hint = 'Add "oidc_rp.backends.OIDCBackend", or a subclass of yours.'
        yield Error("AUTHENTICATION_BACKENDS lacks OIDCBackend.", hint=hint, id="oidc_rp.E011")
    for backend in ours:
        for hook in PROTOCOL_HOOKS:
            if getattr(backend, hook) is not getattr(OIDCBackend, hook):
                yield Caution(
                    f"{backend.__name__}.{hook} is never called.",
                    hint="Remove it: oidc_rp itself proves who signs in. Account hooks are called.",
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
    except Exception:  # noqa: BLE001 - a module of the site may raise anything
        return None


def _middleware_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    session, authentication = _place(_SESSION), _place(_AUTHENTICATION)
    if session is None:
        hint = f"Add {_SESSION!r} to MIDDLEWARE, before {_AUTHENTICATION!r}."
        yield Error("MIDDLEWARE lacks SessionMiddleware.", hint=hint, id="oidc_rp.E016")
    if authentication is None:
        hint = f"Add {_AUTHENTICATION!r} to MIDDLEWARE, behind {_SESSION!r}."
        yield Error("MIDDLEWARE lacks AuthenticationMiddleware.", hint=hint, id="oidc_rp.E016")
    if session is not None and authentication is not None and authentication < session:
        hint = f"Move {_SESSION!r} before {_AUTHENTICATION!r}."
        message = "AuthenticationMiddleware stands before SessionMiddleware."
        yield Error(message, hint=hint, id="oidc_rp.E016")
    for path, meant in _misspelt().items():
        message = f"MIDDLEWARE has {path!r}, which is no middleware."
        yield Error(message, hint=f"Did you mean {meant!r}?", id="oidc_rp.E024")
    yield from _session_renewal_messages(providers)
    yield from _token_renewal_messages()


def _misspelt() -> dict[str, str]:
    """What MIDDLEWARE names of ours that is no middleware -> the one that was probably meant."""
    ours = (_SESSION_RENEWAL, _RENEWAL)
    return {
        path: get_close_matches(path, ours, n=1, cutoff=0)[0]
        for path in settings.MIDDLEWARE
        if path.startswith("oidc_rp.") and not callable(_imported(path))
    }


def _session_renewal_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    """What works with SessionRenewal only, where that is missing or stands in the wrong place."""
    if _has_middleware(_SESSION_REFRESH):
        hint = f"Put {_SESSION_RENEWAL!r} in its place, and set SESSION_RENEWAL."
        yield Caution("MIDDLEWARE has SessionRefresh.", hint=hint, id="oidc_rp.W008")
    place = _place(_SESSION_RENEWAL)
    if place is not None:
        hint = f"Move {_SESSION_RENEWAL!r} right behind {_AUTHENTICATION!r}."
        for path, is_behind in ((_AUTHENTICATION, True), (_LOGIN_REQUIRED, False)):
            other = _place(path)
            if other is not None and is_behind is not (other < place):
                where = "before" if is_behind else "behind"
                message = f"SessionRenewal stands {where} {path.rpartition('.')[2]}."
                yield Error(message, hint=hint, id="oidc_rp.E022")
        return
    if _SESSION_RENEWAL in _misspelt().values():
        return  # its name is told
    hint = f"Add {_SESSION_RENEWAL!r} to MIDDLEWARE, right behind {_AUTHENTICATION!r}."
    if settings.SESSION_ENGINE.endswith(".signed_cookies"):
        message = "Sessions live in cookies, and nothing refuses those that have ended."
        yield Error(message, hint=hint, id="oidc_rp.E022")
    if any(provider.session_renewal is not None for provider in providers):
        yield Error("SESSION_RENEWAL is set, and nothing does it.", hint=hint, id="oidc_rp.E022")


def _token_renewal_messages() -> Iterator[CheckMessage]:
    """It works before AuthenticationMiddleware too, but then before SessionRenewal and others."""
    place, authentication = _place(_RENEWAL), _place(_AUTHENTICATION)
    if place is not None and authentication is not None and place < authentication:
        hint = f"Move {_RENEWAL!r} behind {_AUTHENTICATION!r}."
        message = "TokenRenewal stands before AuthenticationMiddleware."
        yield Caution(message, hint=hint, id="oidc_rp.W009")


def _has_middleware(path: str) -> bool:
    """Whether this middleware is there, or one that is made of it."""
    return _place(path) is not None


def _place(path: str) -> int | None:
    """Where in MIDDLEWARE this one stands, or one that is made of it."""
    wanted = import_string(path)
    for place, item in enumerate(settings.MIDDLEWARE):
        found = _imported(item)
        if item == path or (isinstance(found, type) and issubclass(found, wanted)):
            return place
    return None


def _cookie_messages() -> Iterator[CheckMessage]:
    """Of the session, and of the forms on our pages: Django raises for any other value."""
    for name in ("SESSION_COOKIE_SAMESITE", "CSRF_COOKIE_SAMESITE"):
        value = getattr(settings, name)
        if value and str(value).lower() not in ("lax", "strict", "none"):
            yield Error(
                f"{name} is {value!r}, and no response can set that cookie.",
                hint='Set it to "Lax", which is Django\'s default, "Strict", "None" or False.',
                id="oidc_rp.E023",
            )


def _cookie_name_messages() -> Iterator[CheckMessage]:
    for cookie in ("SESSION", "CSRF"):
        if lacking := lacking_for_prefix(cookie):
            name = getattr(settings, f"{cookie}_COOKIE_NAME")
            yield Error(
                f"{cookie}_COOKIE_NAME is {name!r}, and no browser keeps that cookie.",
                hint=f"Write {', '.join(lacking)}: its name asks for that (RFC 6265bis §4.1.3). Or "
                "take another name.",
                id="oidc_rp.E029",
            )


def lacking_for_prefix(cookie: str) -> list[str]:
    """What settings lack that a name like "__Host-sid" asks for; cookie: "SESSION" or "CSRF"."""
    if cookie == "CSRF" and settings.CSRF_USE_SESSIONS:
        return []
    value = {
        name: getattr(settings, f"{cookie}_COOKIE_{name}")
        for name in ("NAME", "SECURE", "PATH", "DOMAIN")
    }
    name = str(value["NAME"]).lower()
    is_host = name.startswith("__host-")
    lacks = {
        "SECURE = True": (is_host or name.startswith("__secure-")) and not value["SECURE"],
        'PATH = "/"': is_host and value["PATH"] != "/",
        "DOMAIN = None": is_host and value["DOMAIN"],
    }
    return [f"{cookie}_COOKIE_{what}" for what, is_lacking in lacks.items() if is_lacking]


def _session_messages() -> Iterator[CheckMessage]:
    engine, age = str(settings.SESSION_ENGINE), settings.SESSION_COOKIE_AGE
    problem = session_problem()
    if problem and not any(map(_cache_problem, session_caches())):
        near = get_close_matches(engine, _SESSION_ENGINES, n=1, cutoff=0.9)
        hint = f"Did you mean {near[0]!r}?" if near else "Take one of Django's, and add its app."
        if engine in _SESSION_ENGINES:
            hint = "Add what it needs, or take another one of Django's."
        message = f"Nobody can have a session: SESSION_ENGINE {engine!r} {problem}."
        yield Error(message, hint=hint, id="oidc_rp.E025")
    if type(age) not in (int, float) or not age > 0:
        hint = (
            "Write seconds, more than 0: sessions have to last until browsers are back from the OP."
        )
        message = f"Nobody can have a session: SESSION_COOKIE_AGE is {age!r}."
        yield Error(message, hint=hint, id="oidc_rp.E028")


_SESSION_ENGINES = [
    f"django.contrib.sessions.backends.{name}"
    for name in ("db", "cached_db", "cache", "file", "signed_cookies")
]


def session_problem() -> str:
    """Why no session can begin; "" where nothing is known to be wrong."""
    try:
        store = import_module(settings.SESSION_ENGINE).SessionStore()
        getattr(store, "model", None)  # which raises where its app is missing
    except (ImportError, AttributeError, TypeError, ValueError):
        return "has no SessionStore"
    except RuntimeError:
        return "keeps rows, and 'django.contrib.sessions' is not in INSTALLED_APPS"
    except ImproperlyConfigured as error:  # of a cache, or of SESSION_FILE_PATH
        return f"cannot be used: {str(error).rstrip('.')}"
    except Exception as error:  # noqa: BLE001 - an engine of the site may raise anything
        return f"raises {type(error).__name__}"
    return ""


def session_caches() -> list[str]:
    """The cache that sessions live in, if they do."""
    in_cache = settings.SESSION_ENGINE.rpartition(".")[2] in ("cache", "cached_db")
    return [settings.SESSION_CACHE_ALIAS] if in_cache else []


def _broken_cache_messages() -> Iterator[CheckMessage]:
    """Of sessions, and of ours, which is the default one: each request for it is an error."""
    for alias in dict.fromkeys(["default", *session_caches()]):
        if problem := _cache_problem(alias):
            hint = "Correct its entry in CACHES."
            if alias not in settings.CACHES:
                hint = "Add it to CACHES, or correct SESSION_CACHE_ALIAS where that names it."
            message = f"The cache {alias!r} cannot be used: {problem}."
            yield Error(message, hint=hint, id="oidc_rp.E026")


def _cache_problem(alias: str) -> str:
    if alias not in settings.CACHES:
        return "there is none"
    try:
        caches[alias]
    except (ImproperlyConfigured, ImportError):
        return "its BACKEND cannot be imported"  # nor shown: it may be a URL by mistake
    except KeyError as error:
        return f"its entry lacks {error}"
    except Exception as error:  # noqa: BLE001 - a backend of the site may raise anything
        return f"it raises {type(error).__name__}"
    return ""


def _url_messages() -> Iterator[CheckMessage]:
    if not getattr(settings, "ROOT_URLCONF", None):
        return
    try:
        reverse("oidc_rp:login_chooser")
    except NoReverseMatch:
        hint = 'Add path("oidc/", include("oidc_rp.urls")) to the root URLconf.'
        yield Error("The URLs of oidc_rp are not included.", hint=hint, id="oidc_rp.E017")


def _provider_messages(providers: Iterable[conf.Provider]) -> Iterator[CheckMessage]:
    for provider in providers:
        where = f"OIDC_RP['PROVIDERS'][{provider.slug!r}]"
        yield from _permission_messages(provider, where)
        yield from _user_model_messages(provider, where)


def _permission_messages(provider: conf.Provider, where: str) -> Iterator[CheckMessage]:
    """What is allowed, and should be meant so."""
    if provider.allow_loopback_http and not settings.DEBUG:
        hint = "Remove ALLOW_LOOPBACK_HTTP where others use this site: it is for development."
        yield Caution(f"{where} allows plain http.", hint=hint, id="oidc_rp.W002")
    if provider.dangerously_link_by_email is not None:
        hint = (
            "Make sure that this OP proves addresses, then silence this check: whoever controls "
            "one there may ask to be linked to its account here."
        )
        yield Caution(f"{where} links accounts by e-mail.", hint=hint, id="oidc_rp.W004")


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
            hint="Remove it: CLAIMS maps plain fields of the user model to claims, {field: claim}. "
            "Groups, is_staff and is_superuser come from GROUPS_CLAIM alone.",
            id="oidc_rp.E018",
        )
