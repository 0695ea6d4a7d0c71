"""The browser of the tests, for an OP with pages and cookies of its own."""

from urllib.parse import urljoin, urlsplit

import requests

from tests.browser import Browser, Callback

MOST_REDIRECTS = 10


class FollowingBrowser(Browser):
    """It follows the OP's redirects until one leaves the OP."""

    def visit_op(self, authorization_url: str) -> Callback:
        url, op = authorization_url, urlsplit(authorization_url).netloc
        with requests.Session() as session:
            session.trust_env = False
            for _ in range(MOST_REDIRECTS):
                answer = session.get(url, allow_redirects=False, timeout=10, verify=self.verify)
                assert answer.is_redirect, (answer.status_code, answer.text)
                url = urljoin(url, answer.headers["Location"])
                if urlsplit(url).netloc != op:
                    return Callback(url)
        raise AssertionError(f"more than {MOST_REDIRECTS} redirects of the OP")
