"""Ways to call an API in a user's name with a token that expires: ours, and what is written today.

The naive ones are what tutorials and the libraries' documentation lead to, on the same Django,
database and OP. Each is a view's work for one call. Needs Django to be set up.
"""

import os
import time
from datetime import timedelta
from functools import cached_property
from typing import Any

import requests
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from django.contrib.auth import get_user_model
from django.db import transaction
from django.test import Client
from django.utils import timezone
from requests_oauthlib import OAuth2Session as RequestsOAuthlibSession

from oidc_rp.api import session_for
from oidc_rp.models import StoredAccessToken
from oidc_rp.testing.browser import Browser

from .api_site import SCOPES
from .models import PlainToken
from .names import AUTHLIB, NO_LOCK, OURS, OURS_IN_TRANSACTION, REQUESTS_OAUTHLIB, ROW_LOCK
from .provider import CLIENT_ID, CLIENT_SECRET

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # the OP is on loopback, without TLS

LIFETIME = 3600.0
EARLY = 60
"""Seconds before its end in which a token is renewed already; Authlib's default."""


class Site:
    """What all ways share: the OP's endpoints, and who is called for, loaded as in any view."""

    def __init__(self, metadata: dict[str, Any]) -> None:
        self.token_endpoint = metadata["token_endpoint"]
        self.issue_url = metadata["issuer"] + "/control/issue"

    @cached_property
    def user(self) -> Any:
        """The user whose tokens are in a PlainToken."""
        return get_user_model()._default_manager.get_or_create(username="caller")[0]

    @cached_property
    def linked_user(self) -> Any:
        """The user who signed in through oidc_rp."""
        return get_user_model()._default_manager.get(oidc_identities__isnull=False)


class RolledBack(Exception):
    """What a view raises after it has called the API."""


class Way:
    """One way; in_transaction: the whole view is one transaction, as with ATOMIC_REQUESTS."""

    in_transaction = False

    def __init__(self, site: Site) -> None:
        self.site = site

    def view(self, url: str, raises: bool) -> int:
        """Call the API once, and return the status."""
        if not self.in_transaction:
            return self.call(url)
        try:
            with transaction.atomic():
                status = self.call(url)
                if raises:
                    raise RolledBack
        except RolledBack:
            pass
        return status

    def call(self, url: str) -> int:
        raise NotImplementedError

    def sign_in(self) -> None:
        """Have tokens of a new grant."""
        response = requests.post(self.site.issue_url, json={"scope": " ".join(SCOPES)}, timeout=10)
        PlainToken.objects.filter(user=self.site.user).delete()
        token = PlainToken(user=self.site.user)
        token.take(response.json(), time.time())
        token.save()

    def expire(self, left: float) -> None:
        PlainToken.objects.update(expires_at=time.time() + left)


class OidcRP(Way):
    def call(self, url: str) -> int:
        return session_for(self.site.linked_user, provider="op").get(url).status_code

    def sign_in(self) -> Any:
        """Return a request of the browser that signed in, its session and user loaded."""
        browser = Browser(Client(SERVER_NAME="127.0.0.1"))
        browser.sign_in("op")
        request = browser.client.get("/bare/begin/").wsgi_request
        if not request.user.is_authenticated:
            raise RuntimeError("nobody is signed in")
        return request

    def expire(self, left: float) -> None:
        ends = timezone.now() + timedelta(seconds=left)
        sent = ends - timedelta(seconds=LIFETIME)
        StoredAccessToken.objects.update(expires_at=ends, sent_at=sent)


class OidcRPInTransaction(OidcRP):
    in_transaction = True


class NoLock(Way):
    """Read, look at the clock, refresh, save. Its connections are kept, as a careful site does."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.http = requests.Session()

    def call(self, url: str) -> int:
        token = self.token()
        if token.expires_at < time.time() + EARLY:
            token.take(self.refreshed(token), time.time())
            token.save()
        headers = {"Authorization": f"Bearer {token.access_token}"}
        return self.http.get(url, headers=headers, timeout=30).status_code

    def token(self) -> PlainToken:
        return PlainToken.objects.get(user=self.site.user)

    def refreshed(self, token: PlainToken) -> dict[str, Any]:
        form = {"grant_type": "refresh_token", "refresh_token": token.refresh_token}
        client = (CLIENT_ID, CLIENT_SECRET)
        response = self.http.post(self.site.token_endpoint, data=form, auth=client, timeout=30)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer


class RowLock(NoLock):
    """The same, with the row locked until the end of the view's transaction."""

    in_transaction = True

    def token(self) -> PlainToken:
        return PlainToken.objects.select_for_update().get(user=self.site.user)


class Authlib(Way):
    """Automatic refresh as Authlib documents it."""

    def call(self, url: str) -> int:
        token = PlainToken.objects.get(user=self.site.user)

        def update_token(response: dict[str, Any], **_: Any) -> None:
            token.take(response, time.time())
            token.save()

        session = AuthlibSession(
            CLIENT_ID,
            CLIENT_SECRET,
            token=token.as_dict(time.time()),
            token_endpoint=self.site.token_endpoint,
            update_token=update_token,
        )
        status: int = session.get(url).status_code
        return status


class RequestsOAuthlib(Way):
    """Automatic refresh as requests-oauthlib documents it, its third recipe."""

    def call(self, url: str) -> int:
        token = PlainToken.objects.get(user=self.site.user)

        def token_updater(response: dict[str, Any]) -> None:
            token.take(response, time.time())
            token.save()

        session = RequestsOAuthlibSession(
            CLIENT_ID,
            token=token.as_dict(time.time()),
            auto_refresh_url=self.site.token_endpoint,
            auto_refresh_kwargs={"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET},
            token_updater=token_updater,
        )
        return session.get(url).status_code


WAYS: dict[str, type[Way]] = {
    OURS: OidcRP,
    OURS_IN_TRANSACTION: OidcRPInTransaction,
    NO_LOCK: NoLock,
    ROW_LOCK: RowLock,
    AUTHLIB: Authlib,
    REQUESTS_OAUTHLIB: RequestsOAuthlib,
}
