"""The tests' OP in a process of its own, so that its CPU is nobody's cost."""

import multiprocessing
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tests.provider import OpenIDProvider, somebody

CLIENT_ID = "benchmark-client"
CLIENT_SECRET = "a-benchmark-secret-of-more-than-thirty-two-bytes"


class HintedProvider(OpenIDProvider):
    """Signs in whoever `login_hint` names, without a page."""

    def __init__(self) -> None:
        super().__init__()
        self.client_id, self.client_secret = CLIENT_ID, CLIENT_SECRET

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

    def take_calls(self) -> Counter[str]:
        """Count the requests per endpoint since the last time; the browser's are left out."""
        calls = Counter(str(request.endpoint or request.path) for request in self.requests)
        self.forget_requests()
        del calls["authorization"]
        return calls


def _serve(connection: Connection) -> None:
    with HintedProvider() as provider:
        connection.send(provider.metadata)
        while (method := connection.recv()) is not None:
            connection.send(getattr(provider, method)())


@dataclass(frozen=True)
class RunningProvider:
    """The running OP as a benchmark sees it: its metadata, and what it was asked."""

    metadata: dict[str, Any]
    connection: Connection

    def sign_under_unknown_kids(self) -> None:
        self._call("sign_under_unknown_kids")

    def sign_honestly(self) -> None:
        self._call("sign_honestly")

    def take_calls(self) -> Counter[str]:
        calls: Counter[str] = self._call("take_calls")
        return calls

    def _call(self, method: str) -> Any:
        self.connection.send(method)
        return self.connection.recv()


@contextmanager
def running_provider() -> Iterator[RunningProvider]:
    """Run the OP until the end of the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        yield RunningProvider(ours.recv(), ours)
    finally:
        ours.send(None)
        process.join(5)
