"""What tests of logout and of the index of sessions share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.views import PasswordChangeView
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import Client
from django.urls import path
from pytest_django import Settings

from oidc_rp.models import LogoutMark, Session
from oidc_rp.sessions import row_of
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser, Response
from tests.urls import urlpatterns as test_urlpatterns

BACKCHANNEL = "/oidc/op/backchannel-logout/"
FRONTCHANNEL = "/oidc/op/frontchannel-logout/"
FORM = "application/x-www-form-urlencoded"
RENEWAL = "oidc_rp.middleware.SessionRenewal"

urlpatterns = [
    *test_urlpatterns,
    path("password/", PasswordChangeView.as_view(success_url="/home/")),
]
"""For tests that set ROOT_URLCONF to this module."""


@pytest.fixture
def renewal(settings: Settings) -> None:
    """A site with the middleware that refuses what has ended, whatever stores it."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, RENEWAL]


def share_connection(settings: Settings) -> None:
    """Ask all that is asked of the database on this thread's connection, so that a test can see
    it, or let it fail."""
    settings.OIDC_RP = settings.OIDC_RP | {"OWN_CONNECTION": False}


def send(body: Any, *, slug: str = "op", content_type: str = FORM, **more: Any) -> Response:
    """Be the OP and post this to the back channel: a form's parameters, or a body as it is."""
    path = f"/oidc/{slug}/backchannel-logout/"
    data = body if isinstance(body, str | bytes) else urlencode(body, doseq=True)
    return Client().post(path, data, content_type, CONTENT_TYPE=content_type, **more)


def sign_out(op: OpenIDProvider, **changes: Any) -> Response:
    """Post a logout token about the OP's person and login; changes: as in op.logout_token()."""
    return send({"logout_token": op.logout_token(**changes)})


def frame(op: OpenIDProvider, sid: str, iss: str | None = None) -> Response:
    """Be a frame of the OP's page that signs out; no cookie comes along."""
    return Client().get(FRONTCHANNEL, {"iss": iss or op.issuer, "sid": sid})


def assert_signed_out(response: Response) -> None:
    """The OP's answer (Back-Channel Logout §2.8): 200, nothing to store, and no session."""
    assert (response.status_code, response.content) == (200, b"")
    assert_no_session(response)


def assert_refused(response: Response, code: str, error: str = "invalid_request") -> str:
    """400 with a JSON error that names the code; return the reference, which is in the log."""
    assert response.status_code == 400, (response.status_code, response.content)
    assert response.headers["Content-Type"] == "application/json"
    told = response.json()
    assert told["error"] == error
    found, _, reference = told["error_description"].partition(" ")
    assert found == code
    assert_no_session(response)
    return str(reference.strip("()"))


def assert_no_session(response: Response) -> None:
    assert response.headers["Cache-Control"] == "no-store"
    assert [*response.cookies] == []
    assert "Vary" not in response.headers


def who(browser: Browser) -> str:
    """The name of who is signed in, for the site's own views; "" for nobody."""
    response = browser.client.get("/home/")
    assert response.status_code == 200
    return str(response.content.decode())


def cookie(browser: Browser) -> str:
    """The session's cookie, "" for none."""
    morsel = browser.client.cookies.get(django_settings.SESSION_COOKIE_NAME)
    return "" if morsel is None else str(morsel.value)


def is_stored(key: str) -> bool:
    """Whether the session engine still has a session of this key."""
    store = import_module(django_settings.SESSION_ENGINE).SessionStore(key)
    return "_auth_user_id" in store


def row(browser: Browser) -> Session:
    """The row of the index that this browser's session names."""
    return Session.objects.get(pk=row_of(browser.client.session))


def rows() -> set[str]:
    """The ids of all rows."""
    return set(Session.objects.values_list("pk", flat=True))


def marks() -> int:
    return LogoutMark.objects.count()


def give_password(browser: Browser, password: str = "the old one") -> None:
    """Let whoever is signed in have a password; that signs them out."""
    user = get_user_model().objects.get(pk=browser.client.session["_auth_user_id"])
    user.set_password(password)
    user.save()


def change_password(browser: Browser, old: str = "the old one") -> None:
    """Change the password by Django's own view, in this session."""
    new = {"new_password1": "a new one, 1234", "new_password2": "a new one, 1234"}
    response = browser.client.post("/password/", {"old_password": old, **new})
    assert response.status_code == 302, response.content


def another(browser: Browser) -> Browser:
    """A browser with the same cookies: another tab, or a copy of a cookie that somebody kept."""
    copy = Browser()
    copy.client.cookies = browser.client.cookies.copy()  # type: ignore[assignment]
    return copy


def asked(response: Response) -> tuple[str, dict[str, str]]:
    """Where a response sends the browser: the URL up to its query, and the parameters."""
    assert response.status_code == 302, (response.status_code, response.content)
    url = urlsplit(response.headers["Location"])
    params = parse_qsl(url.query, keep_blank_values=True)
    assert len(dict(params)) == len(params)
    return url._replace(query="").geturl(), dict(params)


@contextmanager
def statements() -> Iterator[list[tuple[str, str]]]:
    """Note what is asked of the database, as verb and table; transactions are no statements."""
    noted: list[tuple[str, str]] = []

    def note(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        words = sql.replace("(", " ").replace('"', " ").replace("`", " ").split()
        if words[0] in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            after = {"SELECT": "FROM", "DELETE": "FROM", "INSERT": "INTO", "UPDATE": "UPDATE"}
            noted.append((words[0], words[words.index(after[words[0]]) + 1]))
        return execute(sql, *rest)

    with connection.execute_wrapper(note):
        yield noted


def in_a_thread(action: Callable[[], Any]) -> Any:
    """Act in this thread, which is not the test's, and leave no connection of it."""

    try:
        return action()
    finally:
        for each in connections.all(initialized_only=True):
            BaseDatabaseWrapper.close(each)
