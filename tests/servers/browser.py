"""The browser of the tests, for an OP with pages and cookies of its own."""

from urllib.parse import urljoin, urlsplit

import requests
from django.test import Client
from requests.cookies import RequestsCookieJar

from oidc_rp.testing.browser import Browser, Callback, Fields, read_form

MOST_STEPS = 12


class FollowingBrowser(Browser):
    """It follows the OP's redirects, and submits its forms, until one leaves the OP.

    op_cookies: what the OP knows this browser by; a session there lasts from visit to visit.
    """

    def __init__(self, client: Client | None = None, *, verify: str | None = None) -> None:
        super().__init__(client, verify=verify)
        self.op_cookies = RequestsCookieJar()

    def visit_op(self, authorization_url: str) -> Callback:
        url, op = authorization_url, urlsplit(authorization_url).netloc
        fields: Fields | None = None
        trusted = self.verify or True
        with requests.Session() as session:
            session.trust_env, session.cookies = False, self.op_cookies
            for _ in range(MOST_STEPS):
                method = "GET" if fields is None else "POST"
                answer = session.request(
                    method, url, data=fields, allow_redirects=False, timeout=10, verify=trusted
                )
                if answer.is_redirect:
                    url, fields = urljoin(url, answer.headers["Location"]), None
                else:
                    form = read_form(answer.text)
                    assert form.method == "post", (answer.status_code, answer.text)
                    url, fields = urljoin(url, form.action), form.fields
                if urlsplit(url).netloc != op:
                    return Callback(url, fields)
        raise AssertionError(f"more than {MOST_STEPS} steps at the OP")
