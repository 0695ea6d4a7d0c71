"""Where the browser comes back to: the redirect URI as it is built, and as it is registered."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.http import HttpRequest
from django.http.request import validate_host
from django.urls import NoReverseMatch, Resolver404, resolve, reverse
from django.utils.translation import get_language, override

from ..conf import Provider
from ..errors import url_without_secrets
from ..protocol.metadata import (
    is_loopback,
)
from ..visits import redirect_uri
from .findings import WARNING, Finding, doubtful, fine, wrong
from .site import MAX_HOSTS, PROXY_HEADER, proxy_header, samesite


def redirect_findings(provider: Provider) -> Iterator[Finding]:
    try:
        paths = callback_paths(provider.slug)
    except NoReverseMatch:
        return  # E017
    yield from _cookie_path_findings(provider, paths)
    yield from _cookie_domain_findings(provider)
    yield from _secure_cookie_findings(provider)
    if provider.redirect_uris:
        yield from _written_redirect_findings(provider)
    else:
        yield from _built_redirect_findings(provider)
    if provider.response_mode == "form_post" and samesite() != "none":
        yield fine(
            "form_post",
            "form_post comes without the session cookie (SameSite): a small page of this site "
            "sends the response again.",
        )


def callback_paths(slug: str) -> dict[str, str | None]:
    """Each path of the callback and a language that has it: below i18n_patterns there are several.

    Raises NoReverseMatch.
    """
    paths: dict[str, str | None] = {}
    for language in (get_language(), *dict(settings.LANGUAGES)):
        with override(language):
            paths.setdefault(reverse("oidc_rp:callback", args=[slug]), language)
    return paths


def _cookie_path_findings(provider: Provider, paths: Collection[str]) -> Iterator[Finding]:
    """An error, unless the server may send a prefix (SCRIPT_NAME), of which no setting speaks."""
    cookie_path: Any = settings.SESSION_COOKIE_PATH
    if provider.redirect_uris:
        paths = [urlsplit(provider.redirect_uris[0]).path]
    left_out = [path for path in paths if not _path_matches(path, cookie_path)]
    if not left_out:
        return
    what = f"SESSION_COOKIE_PATH {cookie_path!r} leaves out {_first(left_out)}"
    finding = wrong(
        "cookie_path",
        f"{what}.",
        "The browser comes back without its cookie: each sign-in ends with state.no_cookie.",
        'SESSION_COOKIE_PATH = "/"',
    )
    if _server_may_send_prefix() and not provider.redirect_uris and _is_path(cookie_path):
        finding = replace(
            finding,
            level=WARNING,
            what=f"{what}, unless the server sends SCRIPT_NAME, which cannot be seen from here.",
            mend=f"{finding.mend}. If it does: FORCE_SCRIPT_NAME, or REDIRECT_URIS, says it here.",
        )
    yield finding


def _server_may_send_prefix() -> bool:
    return settings.FORCE_SCRIPT_NAME is None


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/")


def _path_matches(path: str, cookie_path: Any) -> bool:
    """RFC 6265 §5.1.4; without a slash first, it is the path of whatever sets it (§5.2.4)."""
    if not _is_path(cookie_path):
        return False
    return path == cookie_path or path.startswith(f"{cookie_path.removesuffix('/')}/")


def _cookie_domain_findings(provider: Provider) -> Iterator[Finding]:
    """An error where nobody can sign in, and a warning where the domain fits another host."""
    domain = str(settings.SESSION_COOKIE_DOMAIN or "").lower().removeprefix(".")
    reached = _reached_hosts(provider)
    left_out = [host for host, named in reached.items() if not _keeps_cookie(host, named, domain)]
    if domain and left_out:
        finding = wrong(
            "cookie_domain",
            f"SESSION_COOKIE_DOMAIN {settings.SESSION_COOKIE_DOMAIN!r} leaves out "
            f"{_first(left_out)}.",
            "No browser keeps such a cookie: each sign-in there ends with state.no_cookie.",
            "SESSION_COOKIE_DOMAIN = None, for the cookie is then of the host that sets it.",
        )
        yield finding if len(left_out) == len(reached) else replace(finding, level=WARNING)


def _reached_hosts(provider: Provider) -> dict[str, str]:
    """Each host that the browser comes back to, and how ALLOWED_HOSTS names it."""
    if provider.redirect_uris:
        host = urlsplit(provider.redirect_uris[0]).hostname or ""
        return {host: host}
    return {
        urlsplit(uri).hostname or "": named
        for named in _allowed_hosts()
        for uri in _uri_at(named.removeprefix("."), provider)
    }


def _keeps_cookie(host: str, named: str, domain: str) -> bool:
    """Whether the cookie comes back to this host or, named ".example.com", to one below it."""
    return _domain_matches(host, domain) or (named.startswith(".") and domain.endswith(f".{host}"))


def _domain_matches(host: str, domain: str) -> bool:
    """RFC 6265 §5.1.3; a name without a dot is one that no browser takes, but the host's own."""
    if host == domain:
        return True
    return "." in domain and host.endswith(f".{domain}") and not _is_address(host)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


def _secure_cookie_findings(provider: Provider) -> Iterator[Finding]:
    """Of http on this machine; http elsewhere is no redirect URI that is in order."""
    uris = provider.redirect_uris[:1] or _built_uris(provider)
    here = [uri for uri in uris if urlsplit(uri).scheme == "http" and not _is_plain(uri)]
    if settings.SESSION_COOKIE_SECURE and here and len(here) == len(uris):
        yield doubtful(
            "cookie_secure",
            f"SESSION_COOKIE_SECURE is on, and the browser comes back to "
            f"{url_without_secrets(here[0])}",
            "Not every browser keeps such a cookie that came over http, even from this machine: "
            "the sign-in then ends with state.no_cookie.",
            "SESSION_COOKIE_SECURE = False in the settings for development.",
        )


def _written_redirect_findings(provider: Provider) -> Iterator[Finding]:
    parts, uri = urlsplit(provider.redirect_uris[0]), url_without_secrets(provider.redirect_uris[0])
    callback = next(iter(callback_paths(provider.slug)))
    prefix = _prefix_of(parts.path, provider.slug)
    if prefix is None:
        yield wrong(
            "redirect_uri",
            f"REDIRECT_URIS names {uri}, which is not the callback of this provider.",
            "The OP sends the browser to a page that cannot finish the sign-in.",
            f'"REDIRECT_URIS": ["{parts.scheme}://{parts.netloc}{callback}"], also at the OP.',
        )
    elif not _is_allowed_host(parts.hostname or ""):
        yield wrong(
            "redirect_uri",
            f"REDIRECT_URIS names {uri}, and ALLOWED_HOSTS lacks {parts.hostname!r}.",
            "Django answers 400 when the browser comes back.",
            f'Add "{parts.hostname}" to ALLOWED_HOSTS.',
        )
    elif prefix:
        yield doubtful(
            "redirect_uri",
            f"REDIRECT_URIS names {uri}, below {prefix}, of which no setting speaks.",
            "It is the callback if the server sends SCRIPT_NAME, which cannot be seen from here.",
            f'FORCE_SCRIPT_NAME = "{prefix}" says it here; or correct REDIRECT_URIS.',
        )
    else:
        yield fine("redirect_uri", f"Register at the OP: {uri}")


def _prefix_of(path: str, slug: str) -> str | None:
    """What the server has to strip so that this path leads to the callback; None if nothing does.

    FORCE_SCRIPT_NAME is part of the callback's path already.
    """
    if _is_callback(path, slug):
        return ""
    behind = [known for known in callback_paths(slug) if path.endswith(known)]
    return path.removesuffix(behind[0]) if behind and _server_may_send_prefix() else None


def _is_callback(path: str, slug: str) -> bool:
    """Whether this path leads to the callback of this provider, below any script prefix."""
    if path in callback_paths(slug):
        return True
    try:
        found = resolve(path)
    except Resolver404:
        return False
    return found.view_name.endswith("oidc_rp:callback") and found.kwargs.get("slug") == slug


def _is_allowed_host(host: str) -> bool:
    return validate_host(f"[{host}]" if ":" in host else host, _allowed_hosts())


def _allowed_hosts() -> list[str]:
    """ALLOWED_HOSTS, and what Django takes for it under DEBUG where it is empty."""
    if _is_at_runserver():
        return [".localhost", "127.0.0.1", "[::1]"]
    return list(settings.ALLOWED_HOSTS)


_RUNSERVER = "127.0.0.1:8000"
"""Where `manage.py runserver` listens unless it is told otherwise."""


def _is_at_runserver() -> bool:
    """Whether Django serves any port of this machine, and nothing else."""
    return settings.DEBUG and not settings.ALLOWED_HOSTS


def _is_plain(uri: str) -> bool:
    """Whether this is http, and leaves the machine."""
    parts = urlsplit(uri)
    return parts.scheme == "http" and not is_loopback(parts.hostname or "")


def _built_redirect_findings(provider: Provider) -> Iterator[Finding]:
    uris = _built_uris(provider)
    plain = [uri for uri in uris if _is_plain(uri)]
    good = [uri for uri in uris if uri not in plain]
    if good and len(callback_paths(provider.slug)) > 1:
        yield doubtful(
            "redirect_uri",
            f"The redirect URI depends on the language: {_first(good)}",
            "A sign-in sends the one of the page where it began, and the OP refuses one that is "
            "not registered.",
            "Register each, or move the include of oidc_rp.urls out of i18n_patterns. Or write "
            f'"REDIRECT_URIS": ["{good[0]}"], which is sent whatever the language is.',
        )
    elif good and _is_at_runserver():
        yield fine(
            "redirect_uri",
            "ALLOWED_HOSTS is empty: register what the browser's address bar has, and "
            f"{urlsplit(good[0]).path} behind it, such as {good[0]}",
        )
    elif good:
        yield fine("redirect_uri", f"Register at the OP: {_first(good)}")
    if plain:
        no_cookie = " SESSION_COOKIE_SECURE keeps the session cookie from http as well."
        # No error: the server may know by itself of the proxy's https, as gunicorn can.
        yield doubtful(
            "redirect_uri",
            f"The redirect URI is built as {_first(plain)}",
            "It is what Django builds where no SECURE_PROXY_SSL_HEADER says that a proxy ends "
            "TLS. The OP refuses it unless it is registered so, and most register https only."
            + (no_cookie if settings.SESSION_COOKIE_SECURE else ""),
            f"Behind such a proxy: {PROXY_HEADER}, and have the proxy set that header always. "
            f'Or write "REDIRECT_URIS": ["https{plain[0][4:]}"], and register it.',
        )


def _uri_at(host: str, provider: Provider) -> Iterator[str]:
    with suppress(DisallowedHost, ImproperlyConfigured):  # told by allowed_hosts, proxy_header
        yield redirect_uri(_request_at(host), provider)


def _built_uris(provider: Provider) -> list[str]:
    """The redirect URI at each host and in each language, as far as the settings name them."""
    allowed = [_RUNSERVER] if _is_at_runserver() else _allowed_hosts()
    hosts = dict.fromkeys(host.removeprefix(".") for host in allowed)
    uris: list[str] = []
    for language in callback_paths(provider.slug).values():
        with override(language):
            uris += [uri for host in hosts for uri in _uri_at(host, provider)]
    return uris


def _first(items: Sequence[str]) -> str:
    more = len(items) - MAX_HOSTS
    return ", ".join(items[:MAX_HOSTS]) + (f" and {more} more" if more > 0 else "")


def _request_at(host: str) -> HttpRequest:
    """A request as it arrives from the proxy that the settings speak of, if one can be there."""
    request = HttpRequest()
    request.META = {"SERVER_NAME": host, "SERVER_PORT": "80", "HTTP_HOST": host}
    if settings.USE_X_FORWARDED_HOST:
        request.META["HTTP_X_FORWARDED_HOST"] = host
    if (header := proxy_header()) and not _is_at_runserver():
        name = header[0].upper().replace("-", "_")
        request.META[name if name.startswith("HTTP_") else f"HTTP_{name}"] = header[1]
    return request
