"""What a template says about signing in: the buttons, one login's address, our stylesheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from django import template
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.template import Context
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.http import urlencode

from oidc_rp import conf, session_index
from oidc_rp.login_urls import login_url, way_back

register = template.Library()

DEFAULT_ICON = "oidc_rp/icons/openid.svg"


class LoginButton(TypedDict):
    """One provider, as a template shows it; {% include %} takes the first `icon` that exists."""

    slug: str
    label: str | Promise
    icon: Sequence[str]
    url: str


@register.simple_tag(takes_context=True)
def oidc_login_url(context: Context, slug: str) -> str:
    """Return the address that starts a login at the provider, with the page's `next`."""
    return _login_url(slug, _next_url(context))


@register.simple_tag(takes_context=True)
def oidc_providers(context: Context) -> list[LoginButton]:
    """Return what the buttons are made of, for a page that draws its own."""
    next_url = _next_url(context)
    try:
        reverse("oidc_rp:login_chooser")
    except NoReverseMatch:  # another URLconf of this site, say another host's, without our URLs
        return []
    return [
        LoginButton(
            slug=provider.slug,
            label=provider.label,
            icon=(provider.icon, DEFAULT_ICON),
            url=_login_url(provider.slug, next_url),
        )
        for provider in conf.providers().values()
    ]


@register.simple_tag(takes_context=True)
def oidc_sign_in_again(context: Context) -> str:
    """Return the address of a login where the OP vouches for this session no more, and the site's
    settings let it go on and ask (SESSION_RENEWAL_FAILED); else nothing."""
    request = context.get("request") or getattr(context, "request", None)
    if not isinstance(request, HttpRequest):
        return ""
    row = session_index.seen(request)
    if row is None or row.failed_at is None:
        return ""
    return login_url(row.provider, next_url=way_back(request))


@register.inclusion_tag("oidc_rp/_login_buttons.html", takes_context=True)
def oidc_login_buttons(context: Context) -> dict[str, Any]:
    """Show a button for each provider, or nothing where none is configured.

    A link, or for somebody who is signed in already a form, which may link an account.
    """
    return {
        "providers": oidc_providers(context),
        "next": _next_url(context),
        "request": context.get("request"),
    }


@register.simple_tag
def oidc_static(path: str) -> str:
    """Return the URL of a static file, or "" where this site cannot tell it.

    A refusal must be shown on a site without static files too, so {% static %} is too strict here:
    it raises without STATIC_URL and for files that were never collected.
    """
    try:
        url = static(path)
    except (ImproperlyConfigured, ValueError):
        return ""
    return "" if url == path else url


def _login_url(slug: str, next_url: str) -> str:
    url = reverse("oidc_rp:login", args=[slug])
    return f"{url}?{urlencode({'next': next_url})}" if next_url else url


def _next_url(context: Context) -> str:
    """Return where the person wants to go; the login view decides whether it is safe.

    A page may use the name `next` for something else, a page number say: only text counts.
    """
    request = context.get("request") or getattr(context, "request", None)
    asked = request.GET.get("next") if isinstance(request, HttpRequest) else None
    for next_url in (context.get("next"), asked):
        if next_url and isinstance(next_url, str):
            return next_url
    return ""
