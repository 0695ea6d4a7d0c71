"""Callbacks that come at the same moment; see test_callback.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/callbacks_in_threads.py
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from pytest_django import Settings

from oidc_rp.models import Event
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file", "signed_cookies"])
def test_M3_of_parallel_callbacks_with_one_state_exactly_one_succeeds(
    op: OpenIDProvider, configure: Configure, settings: Settings, tmp_path: Path, engine: str
) -> None:
    """Eight threads bring one response with one cookie: one signs in, the code is spent once."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    browser = Browser()
    callback = browser.visit_op(browser.start("op"))
    cookies, start = browser.client.cookies, Barrier(8, timeout=10)

    def come_back(_: int) -> int:
        client = Client()
        client.cookies = cookies.copy()  # type: ignore[assignment]
        start.wait()
        try:
            return client.get(callback.url).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(come_back, range(8)))
    assert sorted(statuses) == [302, *[400] * 7]
    assert op.calls("token") == 1
    assert get_user_model().objects.count() == 1
    refused = Event.objects.filter(name="login_refused").values_list("code", flat=True)
    assert len(refused) == 7
    assert set(refused) <= {"state.used", "state.unknown"}  # whether the session was read before
