"""A browser for full-stack tests: Django's test client towards the RP, real HTTP towards the OP.

Each step of a sign-in can be taken alone, so that a test, or a second browser, can replay,
reorder or bend it:

    callback = browser.visit_op(browser.start("op", next="/profile/"))
    response = browser.come_back(callback.bent(state="somebody else's"))

A view of the RP may send the browser to the OP as well, to end a session there or to renew one:

    response = browser.follow(browser.client.post("/oidc/logout/"))
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPSConnection
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from django.conf import settings
from django.test import Client
from django.urls import reverse

from .signing import merged

Response = Any
"""What Django's test client returns: a response with `context`, `templates` and more."""

Fields = list[tuple[str, str]]


@dataclass(frozen=True)
class Callback:
    """How the OP sends the browser back: a GET of `url` with a query, or a POST of `fields`."""

    url: str
    fields: Fields | None = None

    @property
    def params(self) -> Fields:
        """The parameters of the authentication response, wherever they travel."""
        if self.fields is not None:
            return self.fields
        return parse_qsl(urlsplit(self.url).query, keep_blank_values=True)

    def bent(self, **changes: object) -> Callback:
        """Return this with parameters replaced; REMOVE leaves one out, a list repeats it."""
        params = parse_qsl(urlencode(merged(dict(self.params), changes), doseq=True), True)
        if self.fields is not None:
            return replace(self, fields=params)
        return replace(self, url=urlsplit(self.url)._replace(query=urlencode(params)).geturl())


class Browser:
    """One person's browser; its cookies are those of `client`.

    verify: the PEM file of an OP with a certificate of its own.
    """

    def __init__(self, client: Client | None = None, *, verify: str | None = None) -> None:
        self.client = client or Client()
        self.verify = verify

    def sign_in(self, slug: str, **query: str) -> Response:
        """Walk a whole sign-in; return the response of the callback, past a landing step."""
        return self.land(self.come_back(self.visit_op(self.start(slug, **query))))

    def follow(self, response: Response) -> Response:
        """Go to the OP as the RP's response says, and come back; return what the RP answers."""
        return self.land(self.come_back(self.visit_op(self._location(response))))

    def start(
        self,
        slug: str,
        next: str | None = None,  # noqa: A002
        **query: str,
    ) -> str:
        """Ask the RP for a login; return the URL of the authentication request."""
        query = query if next is None else query | {"next": next}
        url = reverse("oidc_rp:login", args=[slug])
        return self._location(self.client.get(url, query, secure=settings.SECURE_SSL_REDIRECT))

    def visit_op(self, authorization_url: str) -> Callback:
        """Be signed in by the OP; return how it sends the browser back."""
        status, location, text = self._fetch(authorization_url)
        if location:
            return Callback(location)
        if status != 200:
            raise AssertionError(f"the OP answered {status}: {text}")
        form = read_form(text)
        return Callback(urljoin(authorization_url, form.action), form.fields)

    def come_back(self, callback: Callback | str, *, cross_site: bool = True) -> Response:
        """Follow the OP's answer to the RP, with the cookies that SameSite lets through."""
        callback = Callback(callback) if isinstance(callback, str) else callback
        held_back = self._held_back(callback) if cross_site else SimpleCookie()
        for name in held_back:
            del self.client.cookies[name]
        try:
            return self._send(callback)
        finally:
            for name in held_back.keys() - self.client.cookies.keys():
                self.client.cookies[name] = held_back[name]

    def land(self, response: Response) -> Response:
        """Submit the same-site landing form when the RP answered with one."""
        if "oidc_rp/landing.html" not in [template.name for template in response.templates]:
            return response
        url, form = response.wsgi_request.build_absolute_uri(), read_form(response.content.decode())
        action = urljoin(url, form.action)
        if form.method == "post":
            return self.come_back(Callback(action, form.fields), cross_site=False)
        submitted = urlsplit(action)._replace(query=urlencode(form.fields)).geturl()
        return self.come_back(Callback(submitted), cross_site=False)

    def _fetch(self, url: str) -> tuple[int, str, str]:
        """Get a page of the OP; return its status, its Location and its text."""
        parts = urlsplit(url)
        connection = HTTPConnection(parts.netloc, timeout=10)
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self.verify)
            connection = HTTPSConnection(parts.netloc, timeout=10, context=context)
        try:
            connection.request("GET", f"{parts.path}?{parts.query}")
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Location", ""), answer.read().decode()
        finally:
            connection.close()

    def _location(self, response: Response) -> str:
        if response.status_code not in (302, 303):
            raise AssertionError(f"no redirect: {response.status_code} {response.content!r}")
        return str(response.headers["Location"])

    def _held_back(self, callback: Callback) -> SimpleCookie:
        """Return the cookies that no browser sends when another site starts the request."""
        sent = ("none",) if callback.fields is not None else ("none", "lax", "")
        held_back = SimpleCookie()
        for name, cookie in self.client.cookies.items():
            if str(cookie["samesite"]).lower() not in sent:
                held_back[name] = cookie
        return held_back

    def _send(self, callback: Callback) -> Response:
        url = urlsplit(callback.url)
        path = f"{url.path}?{url.query}" if url.query else url.path
        headers = {"host": url.netloc} if url.netloc else None
        secure = url.scheme == "https"
        if callback.fields is None:
            return self.client.get(path, headers=headers, secure=secure)
        body, content_type = urlencode(callback.fields), "application/x-www-form-urlencoded"
        return self.client.post(path, body, content_type, headers=headers, secure=secure)


class Form(HTMLParser):
    """The form of a page, and the named inputs in it."""

    def __init__(self) -> None:
        super().__init__()
        self.action = ""
        self.method = "get"
        self.fields: Fields = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = values.get("action", "")
            self.method = values.get("method", "get").lower()
        elif tag == "input" and "name" in values:
            self.fields.append((values["name"], values.get("value", "")))


def read_form(page: str) -> Form:
    """Read the one form of a page."""
    form = Form()
    form.feed(page)
    return form
