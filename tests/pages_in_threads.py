"""Pages whose token is renewed in a thread of its own, as on a server; see test_middleware.py.

DATABASE=sqlite python -m pytest --ds=tests.servers.settings tests/pages_in_threads.py
"""

import threading
import time

import pytest

from oidc_rp.testing import OpenIDProvider, held_back
from oidc_rp.testing.browser import Browser
from tests.test_api import options, set_up, signed_in
from tests.test_middleware import expire, site

__all__ = ["options", "set_up", "signed_in", "site"]

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_page_waits_for_a_second_and_the_renewal_goes_on(
    op: OpenIDProvider, signed_in: Browser
) -> None:
    """A page that calls an API waits for it longer: it needs the token."""
    expire()
    told = threading.Event()
    op.answer["token"] = held_back(told)
    began = time.monotonic()
    assert signed_in.client.get("/plain/").content == b"plain"
    assert 0.9 < time.monotonic() - began < 4
    threading.Timer(1.5, told.set).start()
    response = signed_in.client.get("/calling/", {"url": f"{op.origin}/api/any"})
    assert b"/api/any" in response.content
    assert op.refreshes == 1
