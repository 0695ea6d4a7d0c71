"""The tests' own OpenID Provider as a process of its own; it misbehaves on demand.

See oidc_rp/testing/provider.py: what `control` sets are attributes of its OpenIDProvider.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import requests

from oidc_rp.testing import REMOVE, merged, somebody

from .daemons import Account, Daemon
from .project import CHECKOUT

HONEST = {
    "access_token_lifetime": 3600,
    "always_refresh_token": False,
    "overlap": 0,
    "refresh_delay": 0,
    "refresh_fault": "",
    "refresh_fault_times": None,
    "retry_after": "2",
}


@dataclass(frozen=True)
class TinyOP:
    """The OP, running. It signs in whoever `person` names, without a page."""

    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    daemon: Daemon = field(repr=False)
    session: requests.Session = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        """The options of a provider in OIDC_RP."""
        return {
            "ISSUER": self.issuer,
            "CLIENT_ID": self.client_id,
            "CLIENT_SECRET": self.client_secret,
            "ALLOW_LOOPBACK_HTTP": True,
            "SCOPES": ["openid", "offline_access", "calendar"],
            "API_ORIGINS": [self.issuer],
        }

    @property
    def api(self) -> str:
        """A resource server that takes the OP's access tokens."""
        return f"{self.issuer}/api/calendar"

    def control(self, path: str = "", **settings: Any) -> dict[str, Any]:
        """Set attributes, if any are given; return what was counted since the start."""
        answer = self.session.post(f"{self.issuer}/control{path}", json=settings, timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def be_honest(self) -> None:
        self.control(**HONEST)

    def expect(self, sub: str) -> None:
        """Sign in this person from now on."""
        person = merged(somebody(), {"sub": sub, "preferred_username": sub, "middle_name": REMOVE})
        self.control(person=person)

    def expire_access_tokens(self) -> None:
        self.control("/expire")

    def stop(self) -> None:
        self.session.close()
        self.daemon.stop()


def tiny_op() -> TinyOP:
    """Start an OP of one's own; it ends with this process, or at stop()."""
    ourselves = Account()
    daemon = Daemon(
        [sys.executable, "-m", "oidc_rp.testing"],
        account=ourselves,
        folder=ourselves.new_folder(),
        environment={"PYTHONPATH": str(CHECKOUT)},
    )
    daemon.wait_for(lambda: "\n" in daemon.log())
    session = requests.Session()
    session.trust_env = False
    op = TinyOP(**json.loads(daemon.log().splitlines()[0]), daemon=daemon, session=session)
    op.be_honest()
    return op
