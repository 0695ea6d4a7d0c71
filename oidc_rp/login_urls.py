"""Where a login of ours starts: its URL, the way back from it, what it asks for besides."""

from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.core import signing
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.urls import NoReverseMatch, reverse
from django.utils.http import url_has_allowed_host_and_scheme, urlencode

from .errors import InvalidResponse
from .protocol.authentication import ANYHOW, StepUp

SCOPES_FIELD_NAME = "scopes"
STEP_UP_FIELD_NAME = "step_up"
LOGIN_URL_HEADER = "X-Login-URL"
MAX_ADDED_SCOPE = 1000
"""Characters of the scopes that one login adds, as the wire has them: they are kept until then."""

SCOPES_LIFETIME = 3600
"""Seconds for which a link is good that adds scopes, or wants more than a plain login."""

_SAFE_METHODS = ("GET", "HEAD")


def login_url(
    slug: str,
    *,
    next_url: str = "",
    scopes: Collection[str] = (),
    step_up: StepUp = ANYHOW,
    user_pk: Any = None,
) -> str:
    """Return the URL that starts a login at this provider, the chooser's where slug is "".

    scopes, step_up: what the login asks for besides the provider's own. They are signed for the
    user of this key and for SCOPES_LIFETIME, so that nobody's link makes somebody else consent to
    more. "" where this site's URLs have no login.
    """
    try:
        url = reverse("oidc_rp:login", args=[slug]) if slug else reverse("oidc_rp:login_chooser")
    except NoReverseMatch:
        return ""
    query = {REDIRECT_FIELD_NAME: next_url} if next_url else {}
    if scopes:
        query[SCOPES_FIELD_NAME] = signing.dumps(" ".join(scopes), salt=_salt(slug, user_pk))
    if step_up != ANYHOW and slug:
        wanted = [step_up.max_age, step_up.acr_values, step_up.amr_values]
        query[STEP_UP_FIELD_NAME] = signing.dumps(wanted, salt=_salt(slug, user_pk, "step_up"))
    return f"{url}?{urlencode(query)}" if query else url


def added_scopes(slug: str, signed: str, user_pk: Any) -> tuple[str, ...]:
    """Return the scopes that `login_url` signed for this provider and this user.

    Raises InvalidResponse "scopes.signature" for anything else; "" is none.
    """
    if not signed:
        return ()
    try:
        scope = signing.loads(signed, salt=_salt(slug, user_pk), max_age=SCOPES_LIFETIME)
        return tuple(str(scope).split())
    except signing.BadSignature as error:
        raise InvalidResponse("scopes.signature", "no link of this site for this user") from error


def asked_step_up(slug: str, signed: str, user_pk: Any) -> StepUp:
    """Return what `login_url` signed for this provider and this user.

    Raises InvalidResponse "step_up.signature" for anything else; "" is ANYHOW.
    """
    if not signed:
        return ANYHOW
    try:
        salt = _salt(slug, user_pk, "step_up")
        max_age, acr, amr = signing.loads(signed, salt=salt, max_age=SCOPES_LIFETIME)
        return StepUp(max_age, tuple(acr), tuple(amr))
    except signing.BadSignature as error:
        raise InvalidResponse("step_up.signature", "no link of this site for this user") from error


def _salt(slug: str, user_pk: Any, kind: str = "scopes") -> str:
    return f"oidc_rp.{kind}.{slug}.{user_pk}"


def answer_with_login(
    request: HttpRequest, url: str, error: str = "login_required"
) -> HttpResponse:
    """Send a browser to a login; tell a script where it is, which cannot go there itself."""
    if url and is_page_visit(request):
        return HttpResponseRedirect(url)
    response = JsonResponse({"error": error, "login_url": url}, status=401)
    if url:
        response[LOGIN_URL_HEADER] = url
    if url and "HX-Request" in request.headers:
        response["HX-Redirect"] = url  # htmx leaves the page for it, whatever the status
    return response


def way_back(request: HttpRequest) -> str:
    """Return the page to come back to after a login: this one, or the one that caused it.

    A POST cannot be repeated by a redirect, and what a script fetches is no page.
    """
    if request.method in _SAFE_METHODS and not by_script(request):
        return request.get_full_path()
    referer = request.headers.get("Referer", "")
    hosts, https = {request.get_host()}, request.is_secure()
    if not url_has_allowed_host_and_scheme(referer, allowed_hosts=hosts, require_https=https):
        return ""
    page = urlsplit(referer)
    return f"{page.path}?{page.query}" if page.query else page.path


def by_script(request: HttpRequest) -> bool:
    """Whether a script asked (fetch, XMLHttpRequest, htmx), as far as the request says so."""
    mode = request.headers.get("Sec-Fetch-Mode")
    if mode is not None and mode != "navigate":
        return True
    asked_with = request.headers.get("X-Requested-With", "")
    return asked_with.lower() == "xmlhttprequest" or "HX-Request" in request.headers


def is_fetched(request: HttpRequest) -> bool:
    """Whether a script asked that can read the answer; nobody reads one in place of an image."""
    return by_script(request) and request.headers.get("Sec-Fetch-Dest", "empty") == "empty"


def is_page_visit(request: HttpRequest) -> bool:
    """Whether a browser wants to show the answer in its window, so that a redirect leads on.

    That of a form too: its view has failed already, and the way back is the page it stood on.
    """
    if by_script(request):
        return False
    if request.headers.get("Sec-Fetch-Mode") == "navigate":
        return request.headers.get("Sec-Fetch-Dest", "document") == "document"
    return accepts_html(request)


def is_prefetch(request: HttpRequest) -> bool:
    """Whether a browser only looks ahead, and nobody may ever see the answer."""
    names = ("Sec-Purpose", "Purpose", "X-Moz")
    purpose = " ".join(request.headers.get(name, "") for name in names)
    return "prefetch" in purpose or "prerender" in purpose


def accepts_html(request: HttpRequest) -> bool:
    """Whether the Accept header names HTML itself: `*/*` is what every program says."""
    return "text/html" in request.headers.get("Accept", "")
