"""The certified OpenID Provider `oidc-provider` from npm: tests/op_npm/op.mjs in Node.js.

It rotates refresh tokens at every use and knows no overlap: one that comes twice costs the family.
Who signs out there is signed out on the back channel, and the acr MFA is to be had for the asking.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import requests

from .daemons import Account, Daemon, ServerError, find_program, free_port

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE = CHECKOUT / "tests" / "op_npm"
INSTALLED = CHECKOUT / ".test" / "op_npm"
LOCK = "package-lock.json"
OLDEST_NODE = 20
REDIRECT_URIS = ("http://testserver/oidc/op/callback/",)
POST_LOGOUT_REDIRECT_URIS = ("http://testserver/oidc/logged-out/",)
NOBODY_LISTENS = "http://127.0.0.1:9/"
MFA = "urn:test:mfa"
"""The one acr that it supports; its amr is ["pwd", "otp"], else ["pwd"]."""


@dataclass(frozen=True)
class NpmOP:
    """The OP, running. It signs everybody in as `ines`, who consents to everything."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    daemon: Daemon = field(repr=False)
    session: requests.Session = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The options of a provider in OIDC_RP; here offline_access wants consent (Core §11)."""
        return {
            "ISSUER": self.issuer,
            "CLIENT_ID": self.client_id,
            "CLIENT_SECRET": self.client_secret,
            "ALLOW_LOOPBACK_HTTP": True,
            "SCOPES": ["openid", "profile", "email", "offline_access"],
            "AUTHORIZATION_PARAMS": {"prompt": "consent"},
            "API_ORIGINS": [self.issuer],
        }

    @property
    def api(self) -> str:
        """A resource server that takes the OP's access tokens."""
        return f"{self.issuer}/api/calendar"

    def control(self, **settings: float) -> dict[str, int]:
        """Set `token_delay` (seconds), if given; return what came to pass since the start:
        token_calls, refreshes, refused, families_lost, revocations, logouts,
        backchannel_logouts, backchannel_failures."""
        answer = self.session.get(f"{self.issuer}/control", params=settings, timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def stop(self) -> None:
        self.session.close()
        self.daemon.stop()


def npm_op(
    *,
    redirect_uris: Sequence[str] = REDIRECT_URIS,
    post_logout_redirect_uris: Sequence[str] = POST_LOGOUT_REDIRECT_URIS,
    backchannel_logout_uri: str = NOBODY_LISTENS,
    access_token_lifetime: int = 3600,
) -> NpmOP:
    """Start an OP of one's own; it ends with this process, or at stop().

    backchannel_logout_uri: that of a site which runs; the OP waits 2.5 s for its answer.
    """
    node = find_node()
    install()
    port, client_secret = free_port(), token_urlsafe()
    options = {
        "port": port,
        "clientId": "oidc-rp",
        "clientSecret": client_secret,
        "redirectUris": list(redirect_uris),
        "postLogoutRedirectUris": list(post_logout_redirect_uris),
        "backchannelLogoutUri": backchannel_logout_uri,
        "accessTokenLifetime": access_token_lifetime,
    }
    ourselves = Account()
    daemon = Daemon(
        [node, str(INSTALLED / "op.mjs")],
        account=ourselves,
        folder=ourselves.new_folder(),
        environment={"OP": json.dumps(options)},
    )
    session = requests.Session()
    session.trust_env = False
    op = NpmOP(f"http://127.0.0.1:{port}", "oidc-rp", client_secret, daemon, session)
    daemon.wait_for(lambda: _answers(op))
    return op


def _answers(op: NpmOP) -> bool:
    try:
        op.control()
    except requests.ConnectionError:
        return False
    return True


def find_node() -> str:
    """Return the path of Node.js; raises ServerError when it is too old."""
    node = find_program("node", "nodejs")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        raise ServerError(f"Node.js {OLDEST_NODE} or newer is needed; this is {version.stdout}")
    return node


def install() -> None:
    """Install what package-lock.json pins, unless that was done before."""
    shutil.copytree(SOURCE, INSTALLED, dirs_exist_ok=True)
    done = INSTALLED / "node_modules" / LOCK
    if done.exists() and done.read_bytes() == (SOURCE / LOCK).read_bytes():
        return
    command = [find_program("npm", "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True)
    if installed.returncode:
        raise ServerError(f"npm ci failed:\n{installed.stdout}{installed.stderr}")
    shutil.copy(SOURCE / LOCK, done)
