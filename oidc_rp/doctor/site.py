"""The site itself: Django's checks, the key ring, proxy, hosts, cookies, sessions."""

from collections.abc import Iterator
from re import compile as pattern
from typing import Any

from django.conf import settings
from django.core import checks as django_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError
from django.db import DatabaseError, router

from .. import checks, conf, grants
from ..conf import Provider
from ..errors import ConfigurationError
from ..management.tables import require_tables
from ..resealing import COLUMNS, key_ids_in_use
from ..sealing import key_ring
from .findings import ERROR, WARNING, Finding, doubtful, fine, shown, shown_url, wrong

MAX_HOSTS = 10
"""So many of ALLOWED_HOSTS, or of their redirect URIs, are told; all of them are looked at."""


PROXY_HEADER = 'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")'


_WSGI_HEADER = pattern(r"HTTP_[A-Z0-9_]+")


_PROVIDER = pattern(r"OIDC_RP\['PROVIDERS'\]\['([-\w]+)'\]")


def check_findings(read: checks.Read) -> Iterator[Finding]:
    """What Django's checks say of these providers, by its id; what is silenced stays so."""
    for message in (*checks.messages_about(read), *checks.check_deployment()):
        # One process serves a site under DEBUG, so that its cache is shared.
        if message.is_silenced() or (message.id == "oidc_rp.W005" and settings.DEBUG):
            continue
        level = ERROR if message.level >= django_checks.ERROR else WARNING
        of_provider = _PROVIDER.search(message.msg)
        slug = of_provider[1] if of_provider else ""
        yield Finding(str(message.id), level, slug, message.msg, mend=str(message.hint or ""))


def site_findings() -> Iterator[Finding]:
    yield from _key_ring_findings()
    yield from _proxy_findings()
    yield from _host_findings()
    yield from _cookie_findings()
    yield from _session_findings()


def _key_ring_findings() -> Iterator[Finding]:
    """Whether each stored token has its key; those without are told by E020."""
    try:
        require_tables(grants.database())
        missing = _stored_key_ids() - set(key_ring().key_ids)
    except (DatabaseError, ImproperlyConfigured, CommandError, ConfigurationError) as error:
        yield doubtful(
            "stored_keys",
            f"Stored keys were not looked at: {shown(error)}",
            "A token whose key is not in TOKEN_KEYS does not open: that person has to sign in.",
            "Run this command where the database of the site can be used.",
        )
        return
    if not missing:
        yield fine("stored_keys", "Every stored token has its key in TOKEN_KEYS.")


def _stored_key_ids() -> set[str]:
    using = grants.database()
    columns = [c for c in COLUMNS if router.allow_migrate_model(using, c.model)]
    return {key_id for column in columns for key_id in key_ids_in_use(column, using)}


def proxy_header() -> tuple[str, str] | None:
    """SECURE_PROXY_SSL_HEADER where it is one: a name and a value."""
    value: Any = settings.SECURE_PROXY_SSL_HEADER
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return tuple(value) if is_pair and all(isinstance(item, str) for item in value) else None


def _proxy_findings() -> Iterator[Finding]:
    if settings.SECURE_PROXY_SSL_HEADER is None:
        return
    header = proxy_header()
    if header is None or not _WSGI_HEADER.fullmatch(header[0]):
        yield wrong(
            "proxy_header",
            f"SECURE_PROXY_SSL_HEADER is {shown(settings.SECURE_PROXY_SSL_HEADER)}, which "
            "no request has.",
            "Django then takes every request for plain http, and builds http:// redirect URIs, "
            "which the OP refuses.",
            f"Name the header as WSGI does: {PROXY_HEADER}",
        )


def _host_findings() -> Iterator[Finding]:
    hosts = settings.ALLOWED_HOSTS
    if not hosts and not settings.DEBUG:
        yield wrong(
            "allowed_hosts",
            "ALLOWED_HOSTS is empty, and DEBUG is off.",
            "Django answers every request with 400.",
            'Name the host of the site: ALLOWED_HOSTS = ["www.example.com"]',
        )
    elif "*" in hosts:
        yield doubtful(
            "allowed_hosts",
            "ALLOWED_HOSTS allows every host.",
            "The redirect URI is built from whatever host a request names.",
            "Name the hosts of the site in ALLOWED_HOSTS, or write REDIRECT_URIS for each "
            "provider.",
        )

    for host in hosts:
        if "/" in host or (":" in host and not host.startswith("[")):
            yield wrong(
                "allowed_hosts",
                f"ALLOWED_HOSTS has {shown_url(host)!r}, which no request names.",
                "Django answers 400 to every request for it.",
                "Write the host alone, without a scheme, a port or a path.",
            )


def _cookie_findings() -> Iterator[Finding]:
    secure = settings.SESSION_COOKIE_SECURE
    if samesite() == "strict":
        yield fine(
            "cookie_samesite",
            "The session cookie is SameSite=Strict: a small page of this site sends each response "
            "of an OP once more, so that it comes along.",
        )
    if samesite() == "none" and not secure:
        yield wrong(
            "cookie_samesite",
            'SESSION_COOKIE_SAMESITE is "None", and SESSION_COOKIE_SECURE is off.',
            "Browsers throw such a cookie away: each sign-in ends with state.no_cookie.",
            "SESSION_COOKIE_SECURE = True",
        )
    elif not secure and not settings.DEBUG and not checks.lacking_for_prefix("SESSION"):  # E029
        yield doubtful(
            "cookie_secure",
            "SESSION_COOKIE_SECURE is off.",
            "The session cookie also goes over plain http, where others can read it.",
            "SESSION_COOKIE_SECURE = True",
        )


def samesite() -> str:
    return str(settings.SESSION_COOKIE_SAMESITE or "").lower()


def _session_findings() -> Iterator[Finding]:
    """Sessions that live in a cache of each process alone; those in cookies are told by E022."""
    if checks.session_problem():
        return  # E025
    engine = settings.SESSION_ENGINE.rpartition(".")[2]
    if engine not in ("cache", "cached_db"):
        yield fine("sessions", f"Sessions: {settings.SESSION_ENGINE}.")
        return
    alias = settings.SESSION_CACHE_ALIAS
    backend = str(settings.CACHES.get(alias, {}).get("BACKEND", "")).rpartition(".")[2]
    keeps_nothing = backend == "DummyCache" and engine == "cache"
    if keeps_nothing or (backend in ("LocMemCache", "DummyCache") and not settings.DEBUG):
        yield wrong(
            "sessions",
            f"Sessions live in the cache {alias!r}, which is a {backend}.",
            "Each process has sessions of its own, or none: who comes back from the OP to another "
            "process meets state.no_cookie or state.unknown, and a logout ends there alone.",
            "Use Redis, Memcached or the database as that cache, or "
            'SESSION_ENGINE = "django.contrib.sessions.backends.db"',
        )
    else:
        yield fine("sessions", f"Sessions live in the cache {alias!r} ({backend}).")


def kept_token_findings(provider: Provider) -> Iterator[Finding]:
    """The times, where tokens are kept; whatever is wrong with them is told by E019 and E021."""
    times = (provider.timeout, conf.refresh_wait(), conf.worker_timeout())
    keeps = conf.token_keys() and (provider.offline or provider.api_origins)
    if keeps and times[0] < times[1] < times[2]:
        told = "TIMEOUT {:g} s, REFRESH_WAIT {:g} s, WORKER_TIMEOUT {:g} s".format(*times)
        yield fine("times", f"Each less than the next: {told}.")
