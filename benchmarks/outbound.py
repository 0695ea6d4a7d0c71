"""An outbound call with a fresh token ÷ the same GET by a kept requests.Session without a token.

The time of a whole call is measured, to an API on loopback in a process of its own. The site keeps
its tokens in a SQLite file or in PostgreSQL. With a new web request, as at its first call, the
token comes from the database; further calls within it need no query. The request has its user
loaded, as in any view that has looked who is signed in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests

from .api_site import api_site_settings, set_up
from .calendar_api import CalendarAPI
from .databases import DATABASES, Database
from .measure import Ratio, paired, ratios, seconds_per_call
from .names import AUTHLIB, NO_LOCK, REQUESTS_OAUTHLIB
from .provider import running_provider
from .remote import remote

BARE = "a kept requests.Session, no token"
OURS = "oidc_rp, a new web request"
OURS_AGAIN = "oidc_rp, further calls in one web request"
OURS_FOR_USER = "oidc_rp, for a user, without a request"
ROUNDS, CALLS = 20, 40


def _prepared() -> Database:
    """As Django's documentation has it; behind a transaction pooler it must be one that can."""
    options = {"server_side_binding": True, "prepare_threshold": 1}
    return DATABASES["PostgreSQL"]() | {"OPTIONS": options}


ON: dict[str, Callable[[], Database]] = {
    "SQLite": DATABASES["SQLite"],
    "PostgreSQL": DATABASES["PostgreSQL"],
    "PostgreSQL, prepared statements": _prepared,
}


@dataclass(frozen=True)
class Outbound:
    """The ratios, and how many queries one call makes, by contender."""

    ratios: dict[str, Ratio]
    queries: dict[str, int]


class OutboundSite:
    """A site with somebody signed in who has a token that is good for an hour."""

    def __init__(self, options: dict[str, Any], metadata: dict[str, Any], api: str) -> None:
        set_up(options)
        self._metadata, self._url = metadata, f"{api}/calendar"

    def measure(self) -> Outbound:
        calls = self._calls()
        queries = {name: self._queries(call) for name, call in calls.items()}
        slices = {name: seconds_per_call(call, CALLS) for name, call in calls.items()}
        return Outbound(ratios(paired(slices, BARE, ROUNDS), BARE), queries)

    def _calls(self) -> dict[str, Callable[[], object]]:
        """Sign in and return every contender's call."""
        from django.core.management import call_command
        from django.db import connection

        from oidc_rp.api import session_for

        from .models import PlainToken
        from .ways import WAYS, OidcRP, Site

        call_command("migrate", verbosity=0)
        with connection.schema_editor() as editor:
            editor.create_model(PlainToken)
        site, url = Site(self._metadata), self._url
        request = OidcRP(site).sign_in()
        naive = {name: WAYS[name](site) for name in (NO_LOCK, AUTHLIB, REQUESTS_OAUTHLIB)}
        naive[NO_LOCK].sign_in()  # all of them read the same row
        new_requests, kept, user = _copies(request), requests.Session(), request.user
        same_request = next(new_requests)
        return {
            BARE: lambda: kept.get(url),
            OURS: lambda: session_for(next(new_requests)).get(url),
            OURS_AGAIN: lambda: session_for(same_request).get(url),
            OURS_FOR_USER: lambda: session_for(user, provider="op").get(url),
            **{name: lambda way=way: way.call(url) for name, way in naive.items()},
        }

    def _queries(self, call: Callable[[], object]) -> int:
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        call()
        with CaptureQueriesContext(connection) as captured:
            call()
        return len(captured)


def _copies(request: Any) -> Iterator[Any]:
    """Further web requests of the same session; to make one takes a microsecond."""
    known = dict(request.__dict__)
    while True:
        made = object.__new__(type(request))
        made.__dict__.update(known)
        yield made


def measure(database: str) -> Outbound:
    """Raises ServerError when there is no such database server."""
    entry = ON[database]()
    with running_provider() as provider, remote(CalendarAPI) as api:
        origin = api.call("origin")
        options = api_site_settings(entry, provider.metadata, origin)
        with remote(OutboundSite, options, provider.metadata, origin) as site:
            measured: Outbound = site.call("measure")
            return measured
