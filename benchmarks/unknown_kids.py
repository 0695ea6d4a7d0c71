"""JWKS fetches when every callback brings an ID Token with a random `kid` that nobody published.

Four processes share Django's cache (files), each has signed somebody in before, and 1,000 logins
go through them; every ID Token is honest but for its `kid`. Whoever answers each with a fetch can
be made to flood its own OP by anybody who can start a login.
"""

import math
import tempfile
import time
from dataclasses import dataclass

from .contenders import OURS, PEERS
from .provider import RunningProvider, running_provider
from .relying_party_site import Callbacks, running_sites

PROCESSES = 4
CALLBACKS = 1000


@dataclass(frozen=True)
class Fetches:
    """JWKS fetches of all processes together. minutes: begun ones, during which they happened."""

    fetches: int
    seconds: float
    signed_in: int

    @property
    def note(self) -> str:
        """Core §3.1.3.7, 6 lets TLS stand in for the signature in the code flow."""
        return f"{self.signed_in:,} signed in: TLS stands in for keys" if self.signed_in else ""

    @property
    def minutes(self) -> int:
        return math.ceil(self.seconds / 60)


def measure() -> dict[str, Fetches]:
    with running_provider() as provider:
        return {name: _fetches(name, provider) for name in (OURS, *PEERS)}


def _fetches(name: str, provider: RunningProvider) -> Fetches:
    provider.sign_honestly()
    with (
        tempfile.TemporaryDirectory() as cache,
        running_sites([name] * PROCESSES, provider.metadata, cache) as sites,
    ):
        provider.sign_under_unknown_kids()
        provider.take_calls()
        start = time.monotonic()
        for site in sites:
            site.send(Callbacks(CALLBACKS // PROCESSES, accepted=False))
        signed_in = sum(site.cost().signed_in for site in sites)
        seconds = time.monotonic() - start
        return Fetches(provider.take_calls()["jwks"], seconds, signed_in)
