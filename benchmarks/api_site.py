"""A Django site that calls an API in a user's name, in a process of its own."""

import logging
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import django
from django.conf import settings

from oidc_rp.sealing import generate_key

from .contenders import CONTENDERS, OURS, django_settings
from .databases import Database

SCOPES = ["openid", "offline_access", "calendar"]


def api_site_settings(
    database: Database, metadata: dict[str, Any], api_origin: str
) -> dict[str, Any]:
    """Return the settings of the site; processes with the same ones are workers of one site."""
    options = django_settings(CONTENDERS[OURS], metadata, None)
    options["DATABASES"] = {"default": database}
    options["INSTALLED_APPS"].append("benchmarks")
    options["SECRET_KEY"] = secrets.token_urlsafe(50)
    options["OIDC_RP"]["TOKEN_KEYS"] = [generate_key()]
    options["OIDC_RP"]["PROVIDERS"]["op"] |= {
        "SCOPES": SCOPES,
        "API_ORIGINS": [api_origin],
        "AUTHORIZATION_PARAMS": {"login_hint": "somebody"},
    }
    return options


def set_up(options: dict[str, Any]) -> None:
    """Be a worker of the site from now on."""
    settings.configure(**options)
    logging.disable(logging.CRITICAL)  # what fails is counted
    django.setup()


class Call(NamedTuple):
    """How a call ended: after so many seconds, and why it failed, if it did."""

    seconds: float
    failure: str


class APISite:
    """One of the workers: makes the calls of a herd, a thread for each.

    Threads and their database connections are kept, as under a WSGI server with CONN_MAX_AGE.
    """

    def __init__(self, options: dict[str, Any], metadata: dict[str, Any], threads: int) -> None:
        set_up(options)
        from .ways import WAYS, Site  # Django's models can be had from here on

        self._site, self._ways = Site(metadata), WAYS
        self._threads, self._count = ThreadPoolExecutor(threads), threads

    def migrate(self) -> None:
        """Make the tables. That of PlainToken comes last: it refers to the user's."""
        from django.core.management import call_command
        from django.db import connection

        from .models import PlainToken

        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            editor.create_model(PlainToken)

    def sign_in(self, way: str) -> None:
        """Let the user have tokens of a new grant."""
        self._ways[way](self._site).sign_in()

    def expire(self, way: str, left: float) -> None:
        """Let the user's access token end in so many seconds."""
        self._ways[way](self._site).expire(left)

    def settle(self) -> None:
        """Wait until nothing is under way in the background."""
        while any(thread.name == "oidc_rp" for thread in threading.enumerate()):
            time.sleep(0.02)

    def call(self, way: str, url: str, at: float, raises: bool) -> list[Call]:
        """Call the API from all threads at the moment `at` of time.monotonic().

        raises: whether the views raise afterwards, so that a transaction is rolled back.
        """
        view = self._ways[way](self._site).view

        def one(_: int) -> Call:
            time.sleep(max(at - time.monotonic(), 0))
            start = time.perf_counter()
            try:
                status = view(url, raises)
                failure = "" if status == 200 else str(status)
            except Exception as error:  # noqa: BLE001 - each way has its own
                failure = getattr(error, "code", None) or type(error).__name__
            return Call(time.perf_counter() - start, str(failure))

        return list(self._threads.map(one, range(self._count)))
