"""Where the browser comes back to: the redirect URI as it is built, and as it is registered."""

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import DisallowedHost, ImproperlyConfigured
from django.http import HttpRequest
from django.http.request import validate_host
from django.urls import NoReverseMatch, Resolver404, resolve, reverse

from ..conf import Provider, url_without_secrets
from ..protocol.metadata import (
    is_loopback,
)
from ..visits import redirect_uri
from .findings import Finding, doubtful, fine, listed, wrong
from .site import MAX_HOSTS, PROXY_HEADER, proxy_header, samesite


def redirect_findings(provider: Provider) -> Iterator[Finding]:
    try:
        path = reverse("oidc_rp:callback", args=[provider.slug])
    except NoReverseMatch:
        return  # E017
    if not _path_matches(path, settings.SESSION_COOKIE_PATH):
        yield wrong(
            "cookie_path",
            f"SESSION_COOKIE_PATH {settings.SESSION_COOKIE_PATH!r} leaves out {path}.",
            "The browser comes back without its cookie: each sign-in ends with state.no_cookie.",
            'SESSION_COOKIE_PATH = "/"',
        )
    yield from _cookie_domain_findings(provider)
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


def _path_matches(path: str, cookie_path: str) -> bool:
    """RFC 6265 §5.1.4."""
    return path == cookie_path or path.startswith(f"{cookie_path.removesuffix('/')}/")


def _cookie_domain_findings(provider: Provider) -> Iterator[Finding]:
    domain = (settings.SESSION_COOKIE_DOMAIN or "").lower().removeprefix(".")
    uris = provider.redirect_uris or [uri for host in _hosts() for uri in _uri_at(host, provider)]
    hosts = dict.fromkeys(urlsplit(uri).hostname or "" for uri in uris)
    left_out = [host for host in hosts if not _domain_matches(host, domain)]
    if domain and left_out:
        yield wrong(
            "cookie_domain",
            f"SESSION_COOKIE_DOMAIN {domain!r} leaves out {listed(left_out)}.",
            "No browser keeps such a cookie: each sign-in there ends with state.no_cookie.",
            "SESSION_COOKIE_DOMAIN = None, for the cookie is then of the host that sets it.",
        )


def _domain_matches(host: str, domain: str) -> bool:
    """RFC 6265 §5.1.3; a name without a dot is one that no browser takes, but the host's own."""
    if host == domain:
        return True
    return "." in domain and host.endswith(f".{domain}") and not _is_address(host)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(host))
    return False


def _written_redirect_findings(provider: Provider) -> Iterator[Finding]:
    parts, uri = urlsplit(provider.redirect_uris[0]), url_without_secrets(provider.redirect_uris[0])
    callback = reverse("oidc_rp:callback", args=[provider.slug])
    if not _is_callback(parts.path, provider.slug):
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
    else:
        yield fine("redirect_uri", f"Register at the OP: {uri}")


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
    if settings.DEBUG and not settings.ALLOWED_HOSTS:  # any port of this machine
        path = reverse("oidc_rp:callback", args=[provider.slug])
        yield fine(
            "redirect_uri",
            f"ALLOWED_HOSTS is empty: register what the browser's address bar has, and {path} "
            f"behind it, such as http://127.0.0.1:8000{path}",
        )
    elif good := [uri for uri in uris if uri not in plain]:
        more = _hosts_left_out()
        told = f"; {more} more hosts were not looked at" if more else ""
        yield fine("redirect_uri", f"Register at the OP: {', '.join(good)}{told}")
    if plain:
        # No error: the server may know by itself of the proxy's https, as gunicorn can.
        yield doubtful(
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
    """The hosts of the site as far as the settings name them, MAX_HOSTS at most."""
    return _named_hosts()[:MAX_HOSTS]


def _hosts_left_out() -> int:
    return max(0, len(_named_hosts()) - MAX_HOSTS)


def _named_hosts() -> list[str]:
    return [host.removeprefix(".") for host in settings.ALLOWED_HOSTS if host != "*"]


def _request_at(host: str) -> HttpRequest:
    """A request as it arrives from the proxy that the settings speak of."""
    request = HttpRequest()
    request.META = {"SERVER_NAME": host, "SERVER_PORT": "80", "HTTP_HOST": host}
    if settings.USE_X_FORWARDED_HOST:
        request.META["HTTP_X_FORWARDED_HOST"] = host
    if header := proxy_header():
        name = header[0].upper().replace("-", "_")
        request.META[name if name.startswith("HTTP_") else f"HTTP_{name}"] = header[1]
    return request
