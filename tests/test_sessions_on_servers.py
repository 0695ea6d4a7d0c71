"""Sessions and their ends between several processes: the certified OP, gunicorn, Redis, PostgreSQL.

Two workers serve one site; any of them may get the OP's back-channel request, and none of them has
the session in its memory.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests

from oidc_rp.testing.browser import read_form
from tests.servers import NpmOP, npm_op, postgresql, redis, tiny_op
from tests.servers.daemons import free_port
from tests.servers.project import Site
from tests.settings import MIDDLEWARE

pytestmark = pytest.mark.servers

RENEWAL = "oidc_rp.middleware.SessionRenewal"
ENGINES = ["db", "cached_db", "cache", "signed_cookies"]


def site_of(provider: dict[str, Any], api: str, engine: str) -> Site:
    """A migrated site on PostgreSQL and Redis, with this session engine."""
    site = Site(
        postgresql().new_database(),
        provider,
        api,
        cache=redis().settings(),
        settings={
            "SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}",
            "MIDDLEWARE": [*MIDDLEWARE, RENEWAL],
        },
    )
    site.manage("migrate", "--verbosity=0")
    return site


@dataclass(frozen=True)
class Visitor:
    """A browser that follows redirects and submits the OP's forms."""

    address: str
    session: requests.Session

    def get(self, url: str) -> requests.Response:
        return self._arrived(self.session.get(urljoin(self.address, url), timeout=10))

    def press(self, path: str, **fields: str) -> requests.Response:
        """Send a form of the site, as its page of linked identities would."""
        page = self.session.get(f"{self.address}/oidc/identities/", timeout=10)
        found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        assert found, page.text
        form = {"csrfmiddlewaretoken": found[1], **fields}
        headers = {"Referer": page.url}
        url = urljoin(self.address, path)
        return self._arrived(self.session.post(url, form, headers=headers, timeout=10))

    def is_signed_in(self) -> bool:
        """Asked several times, so that each worker may answer."""
        answers = [
            self.session.get(f"{self.address}/private/", allow_redirects=False, timeout=10)
            for _ in range(6)
        ]
        statuses = {answer.status_code for answer in answers}
        assert statuses in ({200}, {302}), statuses
        return statuses == {200}

    def _arrived(self, answer: requests.Response) -> requests.Response:
        while urlsplit(answer.url).netloc != urlsplit(self.address).netloc:
            form = read_form(answer.text)
            if form.method != "post":
                break
            url = urljoin(answer.url, form.action)
            answer = self.session.post(url, form.fields, timeout=10)
        return answer


def visitor(address: str, cookies: Any = None) -> Visitor:
    session = requests.Session()
    session.trust_env = False
    session.cookies.update(cookies or {})
    return Visitor(address, session)


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def certified_op(port: int) -> Iterator[NpmOP]:
    site = f"http://127.0.0.1:{port}/oidc"
    op = npm_op(
        redirect_uris=[f"{site}/op/callback/"],
        post_logout_redirect_uris=[f"{site}/logged-out/"],
        backchannel_logout_uri=f"{site}/op/backchannel-logout/",
    )
    yield op
    op.stop()


def signed_in(address: str) -> Visitor:
    somebody = visitor(address)
    home = somebody.get("/oidc/op/login/?next=/home/")
    assert (home.status_code, home.url) == (200, f"{address}/home/")
    return somebody


@pytest.mark.parametrize("engine", ENGINES)
def test_M57_M58_a_logout_at_the_certified_op_ends_the_session_of_every_process(
    certified_op: NpmOP, port: int, engine: str
) -> None:
    """By its logout token; another browser's session at the same OP goes on."""
    site = site_of(certified_op.options, certified_op.api, engine)
    with site.gunicorn(workers=2, port=port) as address:
        one, other = signed_in(address), signed_in(address)
        before = certified_op.control()
        of_the_op = {
            cookie.name: cookie.value
            for cookie in one.session.cookies
            if cookie.name not in ("sessionid", "csrftoken")
        }
        elsewhere = visitor(address, of_the_op)
        left = elsewhere.get(f"{certified_op.issuer}/session/end")
        assert (left.status_code, "You are signed out." in left.text) == (200, True)
        after = certified_op.control()
        told = {name: after[name] - before[name] for name in after if after[name] != before[name]}
        assert told == {"logouts": 1, "backchannel_logouts": 1}
        assert (one.is_signed_in(), other.is_signed_in()) == (False, True)


def test_M56_a_logout_here_ends_the_session_at_the_certified_op(
    certified_op: NpmOP, port: int
) -> None:
    """id_token_hint, client_id, the registered URI and state are taken; the OP tells us in turn."""
    site = site_of(certified_op.options, certified_op.api, "cache")
    with site.gunicorn(workers=2, port=port) as address:
        somebody = signed_in(address)
        before = certified_op.control()
        page = somebody.press("/oidc/logout/", next="/home/?bye")
        assert (page.status_code, page.url) == (200, f"{address}/home/?bye")
        assert page.text == ""  # nobody's name
        after = certified_op.control()
        assert after["logouts"] - before["logouts"] == 1
        assert after["backchannel_failures"] == before["backchannel_failures"]
        assert not somebody.is_signed_in()


def test_M57_a_logout_token_is_taken_once_by_all_processes_together() -> None:
    """The memory of what was taken is the database's, not a process's."""
    op = tiny_op()
    site = site_of(op.options, op.api, "cache")
    try:
        with site.gunicorn(workers=2) as address:
            signed_in(address)
            token = op.control("/logout_token")["logout_token"]

            def send(_: int) -> int:
                url = f"{address}/oidc/op/backchannel-logout/"
                return requests.post(url, {"logout_token": token}, timeout=10).status_code

            assert send(0) == 200
            with ThreadPoolExecutor(4) as threads:
                assert list(threads.map(send, range(8))) == [400] * 8
    finally:
        op.stop()


def test_M38_everywhere_else_is_everywhere_on_one_cache() -> None:
    """One click ends the sessions that other processes keep in Redis."""
    op = tiny_op()
    site = site_of(op.options, op.api, "cache")
    try:
        with site.gunicorn(workers=2) as address:
            one, *others = (signed_in(address) for _ in range(4))
            page = one.press("/oidc/identities/", action="end_other_sessions", confirmed="1")
            assert "You are signed out everywhere else." in page.text
            assert one.is_signed_in()
            assert [other.is_signed_in() for other in others] == [False] * 3
    finally:
        op.stop()
