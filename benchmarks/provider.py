"""The tests' OP in a process of its own, so that its CPU is nobody's cost."""

import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from oidc_rp.testing import OpenIDProvider, null_removes, somebody

from .remote import Remote, remote

CLIENT_ID = "benchmark-client"
CLIENT_SECRET = "a-benchmark-secret-of-more-than-thirty-two-bytes"


class HintedProvider(OpenIDProvider):
    """Signs in whoever `login_hint` names, without a page."""

    def __init__(self) -> None:
        super().__init__()
        self.client_id, self.client_secret = CLIENT_ID, CLIENT_SECRET
        self.access_token_lifetime = 3600.0

    def _issue_code(self, params: dict[str, str]) -> str:
        sub = params["login_hint"]
        names = {"sub": sub, "preferred_username": sub, "email": f"{sub}@example.com"}
        self.person = somebody() | names
        return super()._issue_code(params)

    def sign_under_unknown_kids(self) -> None:
        """Give every ID Token from now on a `kid` of its own, which no key set has."""
        self.make_id_token = lambda claims, header: self.sign(
            claims, header | {"kid": secrets.token_hex(8)}
        )

    def sign_honestly(self) -> None:
        self.make_id_token = None

    def refreshes_take(self, seconds: float) -> None:
        """Rotate at once, and answer so much later."""
        self.refresh_delay = seconds

    def always_give_refresh_tokens(self) -> None:
        """Without offline_access as well: such a grant belongs to its browser session."""
        self.always_refresh_token = True

    def logout_tokens(self, subjects: list[dict[str, str | None]]) -> list[str]:
        """Return a logout token about each; `sub` or `sid` may be None."""
        return [self.logout_token(**null_removes(subject)) for subject in subjects]

    def start(self) -> dict[str, Any]:
        """Listen; return the metadata."""
        self.__enter__()
        return self.metadata

    def take_calls(self) -> Counter[str]:
        """Count the requests per endpoint since the last time; the browser's are left out."""
        calls = Counter(str(request.endpoint or request.path) for request in self.requests)
        self.forget_requests()
        del calls["authorization"]
        return calls


@dataclass(frozen=True)
class RunningProvider:
    """The running OP as a benchmark sees it: its metadata, and what it was asked and told."""

    metadata: dict[str, Any]
    remote: Remote

    def sign_under_unknown_kids(self) -> None:
        self.remote.call("sign_under_unknown_kids")

    def sign_honestly(self) -> None:
        self.remote.call("sign_honestly")

    def take_calls(self) -> Counter[str]:
        calls: Counter[str] = self.remote.call("take_calls")
        return calls

    def refreshes_take(self, seconds: float) -> None:
        self.remote.call("refreshes_take", seconds)

    def expire_access_tokens(self) -> None:
        self.remote.call("expire_access_tokens")

    def always_give_refresh_tokens(self) -> None:
        self.remote.call("always_give_refresh_tokens")

    def logout_tokens(self, subjects: list[dict[str, str | None]]) -> list[str]:
        """Return a logout token about each; `sub` or `sid` may be None."""
        tokens: list[str] = self.remote.call("logout_tokens", subjects)
        return tokens

    def counters(self) -> dict[str, int]:
        """Return what the OP has counted since it runs: "refreshes", "families_lost" and more."""
        counters: dict[str, int] = self.remote.call("counters")
        return counters


@contextmanager
def running_provider() -> Iterator[RunningProvider]:
    """Run the OP until the end of the block."""
    with remote(HintedProvider) as provider:
        yield RunningProvider(provider.call("start"), provider)
