"""Clients are told when a login session ends (Back-Channel Logout 1.0)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin
from uuid import uuid4

import requests
from django.http import HttpRequest
from jwcrypto.jwt import JWT
from oauth2_provider.models import get_application_model

from demo_site.installation import ISSUER
from demo_site.provider.models import sid_of
from demo_site.provider.sessions import LOGIN
from demo_site.provider.validator import sub_of

EVENT = "http://schemas.openid.net/event/backchannel-logout"
SECONDS_TO_ANSWER = 3
SECONDS_GOOD = 120
TOLD = "told"  # in the session after the one that ended: what the clients answered


@contextmanager
def telling_clients(request: HttpRequest) -> Iterator[None]:
    """Tell each client that took part in this login session that the block has ended it."""
    session = request.session.get(LOGIN, {}).get("session", "")
    clients = get_application_model().objects.filter(login__session=session).distinct()
    told = [(client, logout_token(client, request.user, session)) for client in clients]
    yield
    if told:
        request.session[TOLD] = [_tell(client, token) for client, token in told]


def logout_token(client: Any, user: Any, session: str) -> str:
    """Return a logout token (§2.4), signed as the client's ID Tokens are."""
    key, now = client.jwk_key, int(time.time())
    header = {"typ": "logout+jwt", "alg": client.algorithm}
    if client.algorithm == client.RS256_ALGORITHM:
        header["kid"] = key.thumbprint()
    claims = {
        "iss": ISSUER,
        "sub": sub_of(user, client),
        "aud": client.client_id,
        "iat": now,
        "exp": now + SECONDS_GOOD,
        "jti": str(uuid4()),
        "events": {EVENT: {}},
        "sid": sid_of(session, client),
    }
    token = JWT(header=header, claims=claims)
    token.make_signed_token(key)
    return str(token.serialize())


def _tell(client: Any, token: str) -> dict[str, Any]:
    """Send a logout token (§2.5), and return what to show of it; no answer is no error here."""
    url = urljoin(client.redirect_uris.split()[0], "../backchannel-logout/")
    with requests.Session() as direct:
        direct.trust_env = False
        try:
            answer = direct.post(
                url,
                {"logout_token": token},
                timeout=SECONDS_TO_ANSWER,
                allow_redirects=False,
            )
        except requests.RequestException:
            return {"client": client.name, "algorithm": client.algorithm}
    return {"client": client.name, "algorithm": client.algorithm, "status": answer.status_code}
