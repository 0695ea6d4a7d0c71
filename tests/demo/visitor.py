"""Somebody with a browser that knows links and forms, and no JavaScript."""

import re
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urljoin

import requests

from tests.demo.conftest import Demo


class Visitor:
    """Signs in, presses buttons, and reads what comes: `text` is the page without its markup."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.browser = requests.Session()
        self.browser.trust_env = False
        self.page = requests.Response()

    def go(self, path: str) -> None:
        self._at(self.browser.get(urljoin(self.demo.site, path), timeout=30))

    def sign_in(self, slug: str = "demo-rs256") -> None:
        self.go(f"/oidc/{slug}/login/")
        if self.page.url.startswith(f"{self.demo.provider}/login/"):
            credentials = {"username": self.demo.username, "password": self.demo.password}
            self.send(self.page.url, next=self.hidden("next"), **credentials)
        assert self.page.url == f"{self.demo.site}/profile/"

    def press(self, path: str, **fields: str) -> str:
        """Send the form of the profile page that goes to this path; return what it came to."""
        self.go("/profile/")
        assert f'action="{path}"' in self.page.text
        self.send(path, **fields)
        return self.result

    def send(self, path: str, **fields: str) -> None:
        """Send a form of this page, as a browser does."""
        form = {"csrfmiddlewaretoken": self.hidden("csrfmiddlewaretoken"), **fields}
        url, headers = urljoin(self.page.url, path), {"Referer": self.page.url}
        self._at(self.browser.post(url, form, headers=headers, timeout=30))

    def hidden(self, name: str) -> str:
        found = re.search(rf'name="{name}" value="([^"]*)"', self.page.text)
        assert found, name
        return unescape(found[1])

    def link(self, words: str) -> str:
        found = re.search(rf'<a [^>]*href="([^"]+)"[^>]*>{re.escape(words)}</a>', self.page.text)
        assert found, words
        return unescape(found[1])

    @property
    def text(self) -> str:
        return text_of(self.page.text)

    @property
    def result(self) -> str:
        found = re.search(r'<section class="result.*?</section>', self.page.text, re.S)
        assert found, self.text
        return text_of(found[0])

    @property
    def timeline(self) -> list[str]:
        found = re.search(r'<ol class="timeline">(.*?)</ol>', self.page.text, re.S)
        return re.findall(r"<strong>(.*?)</strong>", found[1]) if found else []

    def _at(self, response: requests.Response) -> None:
        self.page = response
        assert response.status_code == 200, response.url


def text_of(markup: str) -> str:
    """Return the words of a page, one blank between them."""
    words: list[str] = []
    reader = HTMLParser()
    reader.handle_data = words.append  # type: ignore[method-assign]
    reader.feed(markup)
    return " ".join(" ".join(words).split())
