"""What is wrong with a configuration, found before a user finds it: `manage.py oidc_doctor`.

The settings are looked at, Django's checks of oidc_rp among them, and each OP is asked twice: for
its metadata and for its keys, through the hardened transport and past every cache. Nothing is
stored, and no secret is sent.
"""

import json
import os
import ssl
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from re import compile as pattern
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core import checks as django_checks
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.core.management import CommandError
from django.db import DatabaseError, router
from django.http import HttpRequest
from django.http.request import validate_host
from django.urls import NoReverseMatch, Resolver404, resolve, reverse

from . import checks, conf, grants
from .conf import Provider
from .errors import ConfigurationError, InvalidResponse, OIDCError
from .management.tables import require_tables
from .protocol import jose
from .protocol.logout import STANDARD
from .protocol.metadata import (
    TENANT,
    ProviderMetadata,
    discovery_url,
    is_loopback,
    read_provider_metadata,
    url_is_allowed,
)
from .protocol.strict_json import json_object
from .protocol.token_endpoint import choose_auth_method
from .resealing import COLUMNS, key_ids_in_use
from .sealing import key_ring
from .transport import Answer, Transport
from .visits import redirect_uri

OK, WARNING, ERROR = "ok", "warning", "error"

MAX_SHOWN = 200
"""Characters of what an OP says that are repeated."""

MAX_HOSTS = 10
"""So many of ALLOWED_HOSTS are looked at, each for its redirect URI."""

CLOCKS_DIFFER = 5.0
"""Seconds of difference between two clocks that are worth a word."""

PROXY_HEADER = 'SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")'


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    code: stable, "doctor.<name>" or the id of a system check. level: OK, WARNING or ERROR.
    provider: its slug, "" for what concerns the whole site. what: one line, and for what is not in
    order why it matters and how to mend it; a system check tells both in `mend`.
    """

    code: str
    level: str
    provider: str
    what: str
    why: str = ""
    mend: str = ""


def _ok(code: str, what: str) -> Finding:
    return Finding(f"doctor.{code}", OK, "", what)


def _warning(code: str, what: str, why: str, mend: str) -> Finding:
    return Finding(f"doctor.{code}", WARNING, "", what, why, mend)


def _error(code: str, what: str, why: str, mend: str) -> Finding:
    return Finding(f"doctor.{code}", ERROR, "", what, why, mend)


def slugs() -> list[str]:
    """Every provider that the settings name; of those that a callable names, the usable ones."""
    providers = conf.given().get("PROVIDERS")
    return [str(slug) for slug in (providers if isinstance(providers, dict) else conf.providers())]


def examine(slug: str | None = None) -> Iterator[Finding]:
    """Look at the whole site, then at each provider or at the one of this slug.

    Raises ConfigurationError "provider.unknown".
    """
    chosen = slugs() if slug is None else [slug]
    if slug is not None and slug not in slugs():
        _known(slug)
    told = list(_check_findings())
    yield from (finding for finding in told if not finding.provider)
    yield from _site_findings()
    if not chosen:
        yield _error(
            "providers",
            "OIDC_RP['PROVIDERS'] has no provider that can be used.",
            "Nobody can sign in.",
            "The README shows a provider; what a callable of yours raises is in the log.",
        )
    for each in chosen:
        of_checks = [finding for finding in told if finding.provider == each]
        for finding in (*of_checks, *_provider_findings(each, of_checks)):
            yield replace(finding, provider=each)


def _known(slug: str) -> None:
    try:
        conf.provider(slug)
    except ConfigurationError as error:
        if error.code == "provider.unknown":
            raise


# The site


_WSGI_HEADER = pattern(r"HTTP_[A-Z0-9_]+")
_PROVIDER = pattern(r"OIDC_RP\['PROVIDERS'\]\['([-\w]+)'\]")


def _check_findings() -> Iterator[Finding]:
    """What Django's checks say, each by its id; those that are silenced stay so."""
    for message in (
        *checks.check_settings(),
        *checks.check_installation(),
        *checks.check_providers(),
        *checks.check_refresh(),
        *checks.check_deployment(),
    ):
        # One process serves a site under DEBUG, so that its cache is shared.
        if message.is_silenced() or (message.id == "oidc_rp.W005" and settings.DEBUG):
            continue
        level = ERROR if message.level >= django_checks.ERROR else WARNING
        of_provider = _PROVIDER.search(message.msg)
        slug = of_provider[1] if of_provider else ""
        yield Finding(str(message.id), level, slug, message.msg, mend=str(message.hint or ""))


def _site_findings() -> Iterator[Finding]:
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
        yield _warning(
            "stored_keys",
            f"Stored keys were not looked at: {_shown(error)}",
            "A token whose key is not in TOKEN_KEYS does not open: that person has to sign in.",
            "Run this command where the database of the site can be used.",
        )
        return
    if not missing:
        yield _ok("stored_keys", "Every stored token has its key in TOKEN_KEYS.")


def _stored_key_ids() -> set[str]:
    using = grants.database()
    columns = [c for c in COLUMNS if router.allow_migrate_model(using, c.model)]
    return {key_id for column in columns for key_id in key_ids_in_use(column, using)}


def _proxy_header() -> tuple[str, str] | None:
    """SECURE_PROXY_SSL_HEADER where it is one: a name and a value."""
    value: Any = settings.SECURE_PROXY_SSL_HEADER
    is_pair = isinstance(value, tuple | list) and len(value) == 2
    return tuple(value) if is_pair and all(isinstance(item, str) for item in value) else None


def _proxy_findings() -> Iterator[Finding]:
    if settings.SECURE_PROXY_SSL_HEADER is None:
        return
    header = _proxy_header()
    if header is None or not _WSGI_HEADER.fullmatch(header[0]):
        yield _error(
            "proxy_header",
            f"SECURE_PROXY_SSL_HEADER is {_shown(settings.SECURE_PROXY_SSL_HEADER)}, which "
            "no request has.",
            "Django then takes every request for plain http, and builds http:// redirect URIs, "
            "which the OP refuses.",
            f"Name the header as WSGI does: {PROXY_HEADER}",
        )


def _host_findings() -> Iterator[Finding]:
    hosts = settings.ALLOWED_HOSTS
    if not hosts and not settings.DEBUG:
        yield _error(
            "allowed_hosts",
            "ALLOWED_HOSTS is empty, and DEBUG is off.",
            "Django answers every request with 400.",
            'Name the host of the site: ALLOWED_HOSTS = ["www.example.com"]',
        )
    elif "*" in hosts:
        yield _warning(
            "allowed_hosts",
            "ALLOWED_HOSTS allows every host.",
            "The redirect URI is built from whatever host a request names.",
            "Name the hosts of the site in ALLOWED_HOSTS, or write REDIRECT_URIS for each "
            "provider.",
        )

    for host in hosts:
        if "/" in host or (":" in host and not host.startswith("[")):
            yield _error(
                "allowed_hosts",
                f"ALLOWED_HOSTS has {host!r}, which no request names.",
                "Django answers 400 to every request for it.",
                "Write the host alone, without a scheme, a port or a path.",
            )


def _cookie_findings() -> Iterator[Finding]:
    secure = settings.SESSION_COOKIE_SECURE
    if _samesite() == "none" and not secure:
        yield _error(
            "cookie_samesite",
            'SESSION_COOKIE_SAMESITE is "None", and SESSION_COOKIE_SECURE is off.',
            "Browsers throw such a cookie away: each sign-in ends with state.no_cookie.",
            "SESSION_COOKIE_SECURE = True",
        )
    elif not secure and not settings.DEBUG:
        yield _warning(
            "cookie_secure",
            "SESSION_COOKIE_SECURE is off.",
            "The session cookie also goes over plain http, where others can read it.",
            "SESSION_COOKIE_SECURE = True",
        )


def _samesite() -> str:
    return str(settings.SESSION_COOKIE_SAMESITE or "").lower()


def _session_findings() -> Iterator[Finding]:
    """Sessions that live in a cache of each process alone; those in cookies are told by E022."""
    engine = settings.SESSION_ENGINE.rpartition(".")[2]
    if engine not in ("cache", "cached_db"):
        yield _ok("sessions", f"Sessions: {settings.SESSION_ENGINE}.")
        return
    alias = settings.SESSION_CACHE_ALIAS
    backend = str(settings.CACHES.get(alias, {}).get("BACKEND", "")).rpartition(".")[2]
    keeps_nothing = backend == "DummyCache" and engine == "cache"
    if keeps_nothing or (backend in ("LocMemCache", "DummyCache") and not settings.DEBUG):
        yield _error(
            "sessions",
            f"Sessions live in the cache {alias!r}, which is a {backend}.",
            "Each process has sessions of its own, or none: who comes back from the OP to another "
            "process meets state.no_cookie or state.unknown, and a logout ends there alone.",
            "Use Redis, Memcached or the database as that cache, or "
            'SESSION_ENGINE = "django.contrib.sessions.backends.db"',
        )
    else:
        yield _ok("sessions", f"Sessions live in the cache {alias!r} ({backend}).")


# One provider


def _provider_findings(slug: str, told: Collection[Finding]) -> Iterator[Finding]:
    try:
        provider = conf.provider(slug)
    except ConfigurationError as error:
        if not any(finding.level == ERROR for finding in told):
            yield _error(
                "provider",
                f"This provider cannot be used: {error.message}",
                "No sign-in goes on with half a configuration.",
                "Correct its options, or the callable that they come from.",
            )
        return
    yield from _kept_token_findings(provider, {finding.code for finding in told})
    yield from _redirect_findings(provider)
    yield from _op_findings(provider)


def _kept_token_findings(provider: Provider, told: Collection[str]) -> Iterator[Finding]:
    """TOKEN_KEYS and the times, also where options come from a callable, which no check calls."""
    if not (provider.offline or provider.api_origins):
        return
    if not conf.token_keys():
        if "oidc_rp.E019" not in told:
            yield _error(
                "token_keys",
                "This provider brings tokens to keep, and TOKEN_KEYS is empty.",
                "Tokens are never stored unsealed.",
                "`manage.py oidc_generate_key` prints a key for it.",
            )
        return
    timeout, wait, worker = provider.timeout, conf.refresh_wait(), conf.worker_timeout()
    times = f"TIMEOUT {timeout:g} s, REFRESH_WAIT {wait:g} s, WORKER_TIMEOUT {worker:g} s"
    if timeout < wait < worker:
        yield _ok("times", f"Each less than the next: {times}.")
    elif "oidc_rp.E021" not in told and timeout >= wait:
        yield _error(
            "times",
            f"TIMEOUT is not less than REFRESH_WAIT: {times}.",
            "Who waits for another's refresh gives up while the OP may still answer.",
            "Each has to be less than the next; REFRESH_WAIT stands at the top of OIDC_RP.",
        )


# Where the browser comes back to


def _redirect_findings(provider: Provider) -> Iterator[Finding]:
    try:
        path = reverse("oidc_rp:callback", args=[provider.slug])
    except NoReverseMatch:
        return  # E017
    if not path.startswith(settings.SESSION_COOKIE_PATH):
        yield _error(
            "cookie_path",
            f"SESSION_COOKIE_PATH {settings.SESSION_COOKIE_PATH!r} leaves out {path}.",
            "The browser comes back without its cookie: each sign-in ends with state.no_cookie.",
            'SESSION_COOKIE_PATH = "/"',
        )
    if provider.redirect_uris:
        yield from _written_redirect_findings(provider)
    else:
        yield from _built_redirect_findings(provider)
    if provider.response_mode == "form_post" and _samesite() != "none":
        yield _ok(
            "form_post",
            "form_post comes without the session cookie (SameSite): a small page of this site "
            "sends the response again.",
        )


def _written_redirect_findings(provider: Provider) -> Iterator[Finding]:
    uri = provider.redirect_uris[0]
    parts = urlsplit(uri)
    callback = reverse("oidc_rp:callback", args=[provider.slug])
    if not _is_callback(parts.path, provider.slug):
        yield _error(
            "redirect_uri",
            f"REDIRECT_URIS names {uri}, which is not the callback of this provider.",
            "The OP sends the browser to a page that cannot finish the sign-in.",
            f'"REDIRECT_URIS": ["{parts.scheme}://{parts.netloc}{callback}"], also at the OP.',
        )
    elif not _is_allowed_host(parts.hostname or ""):
        yield _error(
            "redirect_uri",
            f"REDIRECT_URIS names {uri}, and ALLOWED_HOSTS lacks {parts.hostname!r}.",
            "Django answers 400 when the browser comes back.",
            f'Add "{parts.hostname}" to ALLOWED_HOSTS.',
        )
    else:
        yield _ok("redirect_uri", f"Register at the OP: {uri}")


def _is_callback(path: str, slug: str) -> bool:
    """Whether this path leads to the callback of this provider, below any script prefix."""
    prefix = reverse("oidc_rp:callback", args=[slug])
    try:
        found = resolve(path)
    except Resolver404:
        return path == prefix
    return found.view_name.endswith("oidc_rp:callback") and found.kwargs.get("slug") == slug


def _is_allowed_host(host: str) -> bool:
    allowed = settings.ALLOWED_HOSTS
    if settings.DEBUG and not allowed:
        allowed = [".localhost", "127.0.0.1", "[::1]"]
    return validate_host(f"[{host}]" if ":" in host else host, allowed)


def _is_plain(uri: str) -> bool:
    """Whether this is http, and leaves the machine."""
    parts = urlsplit(uri)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def _built_redirect_findings(provider: Provider) -> Iterator[Finding]:
    uris = [uri for host in _hosts() for uri in _uri_at(host, provider)]
    plain = [uri for uri in uris if _is_plain(uri)]
    if good := [uri for uri in uris if uri not in plain]:
        yield _ok("redirect_uri", f"Register at the OP: {', '.join(good)}")
    if plain:
        # No error: the server may know by itself of the proxy's https, as gunicorn can.
        yield _warning(
            "redirect_uri",
            f"The redirect URI is built as {', '.join(plain)}",
            "It is what Django builds where no SECURE_PROXY_SSL_HEADER says that a proxy ends "
            "TLS. The OP refuses it unless it is registered so, and most register https only.",
            f"Behind such a proxy: {PROXY_HEADER}, and have the proxy set that header always. "
            f'Or write "REDIRECT_URIS": ["https{plain[0][4:]}"], and register it.',
        )


def _uri_at(host: str, provider: Provider) -> Iterator[str]:
    with suppress(DisallowedHost, ImproperlyConfigured):  # told by allowed_hosts, proxy_header
        yield redirect_uri(_request_at(host), provider)


def _hosts() -> list[str]:
    """The hosts of the site as far as the settings name them; runserver's where they need not."""
    if settings.DEBUG and not settings.ALLOWED_HOSTS:
        return ["localhost:8000"]
    named = [host.removeprefix(".") for host in settings.ALLOWED_HOSTS if host != "*"]
    return named[:MAX_HOSTS]


def _request_at(host: str) -> HttpRequest:
    """A request as it arrives from the proxy that the settings speak of."""
    request = HttpRequest()
    request.META = {"SERVER_NAME": host, "SERVER_PORT": "80", "HTTP_HOST": host}
    if settings.USE_X_FORWARDED_HOST:
        request.META["HTTP_X_FORWARDED_HOST"] = host
    if header := _proxy_header():
        name = header[0].upper().replace("-", "_")
        request.META[name if name.startswith("HTTP_") else f"HTTP_{name}"] = header[1]
    return request


# What the OP says of itself


def _op_findings(provider: Provider) -> Iterator[Finding]:
    transport = Transport(timeout=provider.timeout, ca_bundle=provider.ca_bundle)
    published = yield from _discovered(provider, transport)
    if published is None:
        return
    # Whether the issuer is right has been said; the rest is worth a look in either case.
    document = {**published, **provider.metadata, "issuer": provider.issuer}
    try:
        loopback = provider.allow_loopback_http
        metadata = read_provider_metadata(document, provider.issuer, loopback_http=loopback)
    except InvalidResponse as error:
        yield _error(
            "metadata",
            f"The metadata is refused: {error.code}, received {_shown(error.received)!r}.",
            "No sign-in goes on with an endpoint that may not be used.",
            "Ask the operator of the OP; METADATA overrides single members.",
        )
        return
    yield from _key_findings(provider, metadata, transport)
    for look in _LOOKS:
        yield from look(provider, metadata, document)


def _discovered(
    provider: Provider, transport: Transport
) -> Generator[Finding, None, dict[str, Any] | None]:
    """Return the discovery document, None where there is none to go on with."""
    if {"authorization_endpoint", "token_endpoint"} <= provider.metadata.keys():
        yield _ok("discovery", "METADATA has both endpoints: nothing is discovered.")
        return {}
    if "/.well-known/" in provider.issuer:
        yield _well_known(provider)
        return None
    url = discovery_url(provider.issuer)
    try:
        begun = time.time()
        answer = transport.get(url)
        rtt = time.time() - begun
        document = _document(answer, "discovery.json")
    except OIDCError as error:
        yield _not_fetched("discovery", "metadata", url, error)
        return None
    yield _ok("discovery", f"{url} answers.")
    yield _clock(provider, answer, begun + rtt / 2, rtt)
    yield _issuer(provider, document.get("issuer"))
    return document


def _document(answer: Answer, code: str) -> dict[str, Any]:
    if answer.status != 200:
        raise InvalidResponse("discovery.status", expected=200, received=answer.status)
    return json_object(answer.body, code)


def _well_known(provider: Provider) -> Finding:
    issuer = provider.issuer.partition("/.well-known/")[0]
    return _error(
        "issuer",
        "ISSUER is the URL of the metadata, not the issuer.",
        "The issuer is what the metadata calls `issuer`; the rest of the URL is added.",
        f'"ISSUER": {json.dumps(issuer)}, and run this command again.',
    )


_REASONS: Mapping[str, tuple[str, str]] = {
    "transport.tls": (
        "The OP's certificate is not one that this machine trusts for this name.",
        "An authority of your own: name its PEM file in CA_BUNDLE. Expired, or for another name: "
        "the operator of the OP. Verification cannot be switched off.",
    ),
    "transport.name": (
        "The name cannot be resolved from here.",
        "Look for a slip in ISSUER, then at the DNS of this machine.",
    ),
    "transport.timeout": (
        "Nothing came within TIMEOUT.",
        "Look for a firewall between this machine and the OP.",
    ),
    "transport.broken": (
        "The connection was refused, or ended before the answer did.",
        "Look at the port and the scheme in ISSUER, and for a firewall in between.",
    ),
    "transport.redirect": (
        "Redirects are not followed: what is at the other end is another issuer's.",
        "Open the URL in a browser, and write the `issuer` of the document where it leads.",
    ),
    "discovery.status": (
        "There is no such document: the issuer has another path, or the OP is down.",
        "Open the URL in a browser; the OP's own pages name the issuer, with its path "
        "(/realms/..., /oidc, /v2.0).",
    ),
}
"""Why a document cannot be had, and what to do, by the code of the error."""

_NO_DOCUMENT = (
    "What came is no such document: a proxy's or a firewall's page, or a broken OP.",
    "Open the URL in a browser, and tell the operator of whoever answers.",
)


def _not_fetched(code: str, document: str, url: str, error: OIDCError) -> Finding:
    why, mend = _REASONS.get(error.code, _NO_DOCUMENT)
    details = [f"{error.code}: {error.message}", _certificate_problem(error)]
    if error.code == "discovery.status":
        details = [f"it answers {error.received}"]
    if error.code.startswith("transport.") and _has_proxy():
        mend += " The proxy that the environment names is not used."
    told = ", ".join(filter(None, details))
    what = f"The {document} cannot be had from {url} ({told})."
    return _error(code, what, f"{why} Without it nobody can sign in.", mend)


def _certificate_problem(error: BaseException | None) -> str:
    """What OpenSSL says of the certificate: "certificate has expired", for instance."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return _shown(error.verify_message)
        error = error.__cause__ or error.__context__
    return ""


def _has_proxy() -> bool:
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))


def _clock(provider: Provider, answer: Answer, now: float, rtt: float) -> Finding:
    """The OP's Date has whole seconds, and was written somewhere within the round trip."""
    if answer.now is None:
        return _ok("clock", "The OP's answer tells no time (Date): the clocks were not compared.")
    ahead, slack = answer.now + 0.5 - now, 0.5 + rtt / 2
    told = f"The OP's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    mend = "Have NTP set the clock of this machine (`timedatectl`); if it is right, ask the OP."
    if ahead - slack > provider.leeway:
        why = f"Its ID Tokens come from the future by more than LEEWAY ({provider.leeway:g} s): "
        return _error("clock", f"{told}.", f"{why}id_token.iat refuses each sign-in.", mend)
    if -ahead - slack > provider.leeway:
        why = f"More than LEEWAY ({provider.leeway:g} s): an ID Token may have expired when it "
        return _error("clock", f"{told}.", f"{why}comes, and id_token.exp refuses it.", mend)
    if abs(ahead) - slack > CLOCKS_DIFFER:
        why = f"LEEWAY ({provider.leeway:g} s) still makes up for it; clocks drift on."
        return _warning("clock", f"{told}.", why, mend)
    return _ok("clock", "The OP's clock and ours agree.")


def _issuer(provider: Provider, published: object) -> Finding:
    if published == provider.issuer:
        return _ok("issuer", f"The issuer is exactly {provider.issuer}")
    why = (
        "Issuers are compared byte for byte (Discovery §4.3): discovery.issuer refuses each "
        "sign-in."
    )
    if not isinstance(published, str) or not url_is_allowed(
        published.replace(TENANT, "tenant"), loopback_http=provider.allow_loopback_http
    ):
        what = f"The metadata names as `issuer` what is no https URL: {_shown(published)!r}."
        return _error("issuer", what, why, "Tell the operator of the OP.")
    what = (
        f"ISSUER is {provider.issuer!r}, the OP calls itself {_shown(published)!r}: "
        f"{_difference(provider.issuer, published)}."
    )
    return _error("issuer", what, why, _issuer_mend(provider, published))


def _issuer_mend(provider: Provider, published: str) -> str:
    line = f'"ISSUER": {json.dumps(published)},'
    if TENANT in published and not provider.tenants:
        line += ' "TENANTS": ["..."],'
    if urlsplit(published).netloc == urlsplit(provider.issuer).netloc:
        return f"Write {line}"
    return f"If that is who you mean, write {line}"


def _difference(ours: str, theirs: str) -> str:
    """Say in words how two issuers differ."""
    if ours.removesuffix("/") == theirs.removesuffix("/"):
        return (
            "ISSUER lacks the slash at its end"
            if theirs.endswith("/")
            else ("ISSUER has a slash at its end that does not belong there")
        )
    if ours.lower() == theirs.lower():
        return "they differ in upper and lower case"
    mine, its = urlsplit(ours), urlsplit(theirs)
    parts = {
        "scheme": (mine.scheme, its.scheme),
        "host": (mine.hostname, its.hostname),
        "port": (mine.port, its.port),
        "path": (mine.path, its.path),
    }
    different = [name for name, (one, other) in parts.items() if one != other]
    return f"they differ in {' and '.join(different) or 'spelling'}"


# Keys and algorithms


def _key_findings(
    provider: Provider, metadata: ProviderMetadata, transport: Transport
) -> Iterator[Finding]:
    configured = provider.id_token_signed_response_alg
    published = metadata.id_token_signing_alg_values_supported
    algorithms = frozenset(
        {configured} if configured else jose.ASYMMETRIC_ALGORITHMS & {*published}
    )
    if not algorithms:
        yield _no_algorithm(published)
        return
    if configured and configured not in published:
        yield _warning(
            "alg",
            f"ID_TOKEN_SIGNED_RESPONSE_ALG is {configured}, and the OP names {_list(published)}.",
            "An ID Token that is signed otherwise is refused by id_token.alg.",
            "Compare with the client's registration at the OP; without the option any asymmetric "
            "algorithm that the OP names will do.",
        )
    if algorithms <= jose.HMAC_ALGORITHMS:
        yield _ok("jwks", f"ID Tokens are signed with the client secret ({configured}): no keys.")
    elif metadata.jwks_uri is None:
        yield _error(
            "jwks",
            "The metadata names no jwks_uri.",
            "Without the OP's keys no ID Token can be verified.",
            'METADATA may name it: "METADATA": {"jwks_uri": "https://..."},',
        )
    else:
        yield from _published_key_findings(algorithms, metadata.jwks_uri, transport)


def _no_algorithm(published: Collection[str]) -> Finding:
    hmac = sorted(jose.HMAC_ALGORITHMS & {*published})
    mend = "Ask the operator of the OP for RS256, or another asymmetric algorithm."
    if hmac:
        mend = f'"ID_TOKEN_SIGNED_RESPONSE_ALG": "{hmac[0]}", which relies on CLIENT_SECRET alone.'
    return _error(
        "alg",
        f"The OP signs ID Tokens with {_list(published)} only.",
        "None of them is accepted unless the settings name it: id_token.alg refuses each sign-in.",
        mend,
    )


def _published_key_findings(
    algorithms: frozenset[str], jwks_uri: str, transport: Transport
) -> Iterator[Finding]:
    try:
        document = _document(transport.get(jwks_uri), "discovery.json")
        keys = jose.read_jwks(document).keys
    except OIDCError as error:
        yield _not_fetched("jwks", "key set", jwks_uri, error)
        return
    usable = f"{len(keys)} of {len(document['keys'])} keys at {jwks_uri} can be used"
    fitting = sorted(alg for alg in algorithms if any(key.fits(alg) for key in keys))
    if not fitting:
        yield _error(
            "jwks",
            f"{usable}, and none is for {_list(algorithms)}.",
            "No ID Token can be verified: id_token.kid refuses each sign-in. RSA keys of less "
            "than 2048 bits, and keys for encryption, are not used.",
            "Set ID_TOKEN_SIGNED_RESPONSE_ALG to what the OP signs with, or have its operator "
            "publish such a key.",
        )
        return
    yield _ok("jwks", f"{usable}, for {_list(fitting)}.")
    if doubtful := [alg for alg in fitting if _is_doubtful([k for k in keys if k.fits(alg)])]:
        yield _warning(
            "jwks_kid",
            f"Several keys for {_list(doubtful)} have no `kid`, or the same one.",
            "Which of them an ID Token means cannot be told: id_token.kid refuses it.",
            "Have the operator of the OP give each key a `kid` of its own (Core §10.1).",
        )


def _is_doubtful(keys: Collection[jose.Key]) -> bool:
    kids = [key.kid for key in keys]
    return len(kids) > 1 and (None in kids or len({*kids}) < len(kids))


# What the OP can do, and what the settings ask for


def _client_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    method = provider.token_endpoint_auth_method
    supported = metadata.token_endpoint_auth_methods_supported
    if method is not None and method != "none" and method not in supported:
        yield _warning(
            "client_authentication",
            f"TOKEN_ENDPOINT_AUTH_METHOD is {method}, and the OP names {_list(supported)}.",
            "Its token endpoint probably answers invalid_client.",
            "Compare with the client's registration at the OP.",
        )
        return
    try:
        method = method or choose_auth_method(supported, provider.client_secret)
    except InvalidResponse:
        yield _error(
            "client_authentication",
            f"The OP takes {_list(supported)}, and the settings have a client secret alone.",
            "No code can be redeemed: each sign-in is refused.",
            '"TOKEN_ENDPOINT_AUTH_METHOD": "private_key_jwt" with PRIVATE_KEY, or '
            '"client_secret_jwt".',
        )
        return
    yield _ok("client_authentication", f"The client authenticates by {method}.")


def _pkce_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    methods = document.get("code_challenge_methods_supported")
    if isinstance(methods, list | tuple) and "S256" in methods:
        yield _ok("pkce", "The OP has PKCE with S256.")
        return
    told = "does not say that it has PKCE" if methods is None else f"has PKCE with {_list(methods)}"
    yield _warning(
        "pkce",
        f"The OP {told}; it should name S256 (code_challenge_methods_supported).",
        "It is sent always; an OP that ignores it leaves a stolen code to the nonce alone, and one "
        "that knows only `plain` may refuse the request.",
        "Ask the operator of the OP. Some have it and do not say so.",
    )


def _iss_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if metadata.authorization_response_iss_parameter_supported:
        yield _ok("iss_parameter", "Each response has to name its issuer (RFC 9207).")
    else:
        yield _ok(
            "iss_parameter",
            "The OP's responses do not name their issuer (RFC 9207): the callback of this "
            "provider, which is its own, tells them apart.",
        )


def _par_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    wanted = provider.require_pushed_authorization_requests
    wanted = wanted or metadata.require_pushed_authorization_requests
    if wanted and metadata.pushed_authorization_request_endpoint is None:
        yield _error(
            "par",
            "Requests have to be pushed; no pushed_authorization_request_endpoint is published.",
            "There is no falling back: par.endpoint refuses each sign-in.",
            "Take REQUIRE_PUSHED_AUTHORIZATION_REQUESTS away, or ask the operator of the OP.",
        )


def _response_mode_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    modes = document.get("response_modes_supported", ["query", "fragment"])
    if not isinstance(modes, list | tuple) or provider.response_mode in modes:
        return
    yield _warning(
        "response_mode",
        f"RESPONSE_MODE is {provider.response_mode}, and the OP names {_list(modes)}.",
        "The OP may refuse the request, or send the response in a way that is refused here.",
        f'"RESPONSE_MODE": "{"query" if "query" in modes else "form_post"}", if the OP has it.',
    )


def _scope_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    scopes = document.get("scopes_supported")
    if isinstance(scopes, list | tuple) and "offline_access" in {*provider.scopes} - _texts(scopes):
        yield _warning(
            "scopes",
            "SCOPES has offline_access, and the OP does not name it.",
            "Without a refresh token, calls to APIs end with the first access token.",
            "Some OPs have another way, Google's for instance: "
            '"AUTHORIZATION_PARAMS": {"access_type": "offline", "prompt": "consent"},',
        )


def _revocation_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if metadata.revocation_endpoint is not None:
        yield _ok("revocation", f"Tokens are revoked at {metadata.revocation_endpoint}")
    elif provider.offline or provider.api_origins:
        yield _warning(
            "revocation",
            "The OP names no revocation_endpoint.",
            "After a logout its tokens are forgotten here, and go on working until they expire.",
            "Keep the lifetime of refresh tokens at the OP short; METADATA may name an endpoint.",
        )


def _logout_findings(
    provider: Provider, metadata: ProviderMetadata, document: Mapping[str, Any]
) -> Iterator[Finding]:
    if provider.end_session == STANDARD and metadata.end_session_endpoint is None:
        yield _warning(
            "end_session",
            "The OP names no end_session_endpoint.",
            "A logout here leaves the session at the OP: the next sign-in asks nobody.",
            '"END_SESSION": "auth0" or "cognito" for these two, "local" if it is meant so.',
        )
    else:
        where = "ends here alone" if provider.end_session == "local" else "goes on at the OP"
        yield _ok("end_session", f"A logout {where} (END_SESSION {provider.end_session}).")
    if document.get("backchannel_logout_supported") is True:
        yield from _backchannel_findings(provider)


def _backchannel_findings(provider: Provider) -> Iterator[Finding]:
    try:
        path = reverse("oidc_rp:backchannel_logout", args=[provider.slug])
    except NoReverseMatch:
        return
    yield _ok("backchannel_logout", f"The OP has back-channel logout; register {path} there.")


_Look = Callable[[Provider, ProviderMetadata, Mapping[str, Any]], Iterator[Finding]]
_LOOKS: tuple[_Look, ...] = (
    _client_findings,
    _pkce_findings,
    _iss_findings,
    _par_findings,
    _response_mode_findings,
    _scope_findings,
    _revocation_findings,
    _logout_findings,
)


def _texts(values: Collection[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def _list(values: object) -> str:
    names = values if isinstance(values, list | tuple | set | frozenset) else [values]
    return _shown(", ".join(sorted(map(str, names))) or "nothing")


def _shown(value: object) -> str:
    """What strangers say, on one line of a terminal and not too long."""
    text = str(value)[:MAX_SHOWN]
    return "".join(char if char.isprintable() else " " for char in text)
