"""A herd: 64 callers in four processes want the same user's token at the same moment.

At expiry the old token opens nothing any more. In the soft window it is still good, but due. The OP
is strict: refresh tokens rotate, and one that is spent twice ends its family. Every caller calls
the OP's API, which looks at the token that it gets; between the rounds the token is made to expire,
in the database and, for the first kind, at the OP. A family that is lost is signed in again.
"""

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from .api_site import APISite, Call, api_site_settings
from .databases import DATABASES
from .names import AUTHLIB, NO_LOCK, OURS, OURS_IN_TRANSACTION, REQUESTS_OAUTHLIB, ROW_LOCK
from .provider import RunningProvider, running_provider
from .remote import Remote, remote

PROCESSES, THREADS = 4, 16
EXPIRIES, NAIVE_EXPIRIES = 20, 5
SOFT_ROUNDS, NAIVE_SOFT_ROUNDS = 10, 3
ROW_LOCK_EXPIRIES = 20
REFRESH, SOFT_REFRESH = 0.3, 1.0
"""Seconds that the OP takes for a refresh: at expiry, and in the soft window."""

LEFT = 20.0
"""Seconds that a token in its soft window is still good."""

RAISING = (4,)
"""The expiries, one of 20, after which every view raises that can; so chance does not decide
whether the one that has refreshed is among them."""


@dataclass(frozen=True)
class Round:
    """One herd: its calls, and what the OP counted meanwhile."""

    calls: list[Call]
    token_calls: int
    families_lost: int

    @property
    def p50(self) -> float:
        """Seconds until half of the calls had ended."""
        return statistics.median(call.seconds for call in self.calls)

    @property
    def failures(self) -> Counter[str]:
        return Counter(call.failure for call in self.calls if call.failure)

    @property
    def is_as_promised(self) -> bool:
        """One token call, whatever the number of callers; nothing failed, nothing lost."""
        return self.token_calls == 1 and not self.failures and not self.families_lost


@dataclass(frozen=True)
class Rounds:
    """The herds of one way, one after another. before: those with no refresh due."""

    rounds: list[Round]
    before: list[Round] = field(default_factory=list)

    @property
    def calls(self) -> list[Call]:
        return [call for taken in self.rounds for call in taken.calls]

    @property
    def token_calls(self) -> list[int]:
        return [taken.token_calls for taken in self.rounds]

    @property
    def failures(self) -> Counter[str]:
        return sum((taken.failures for taken in self.rounds), Counter())

    @property
    def families_lost(self) -> int:
        return sum(taken.families_lost for taken in self.rounds)

    @property
    def spoiled(self) -> int:
        """How many herds did not go as promised."""
        return sum(not taken.is_as_promised for taken in self.rounds)

    @property
    def p50(self) -> float:
        """Seconds until half of all calls had ended."""
        return statistics.median(call.seconds for call in self.calls)

    @property
    def slowest(self) -> float:
        return max(call.seconds for call in self.calls)

    @property
    def slowdown(self) -> float:
        """The p50 of a herd ÷ that of the herd before it, which had no refresh due."""
        pairs = zip(self.rounds, self.before, strict=True)
        return statistics.median(due.p50 / fresh.p50 for due, fresh in pairs)


class Herd:
    """The workers of one site on one database, and the OP that they ask."""

    def __init__(self, provider: RunningProvider, workers: Sequence[Remote]) -> None:
        self.provider, self.workers = provider, workers
        self.url = provider.metadata["issuer"] + "/api/calendar"

    def at_expiry(self, way: str, rounds: int) -> Rounds:
        self.provider.refreshes_take(REFRESH)
        self._begin(way)
        return Rounds([self._expired(way, number in RAISING) for number in range(rounds)])

    def in_soft_window(self, way: str, rounds: int) -> Rounds:
        self.provider.refreshes_take(SOFT_REFRESH)
        self._begin(way)
        both = [(self._round(way), self._due(way)) for _ in range(rounds)]
        return Rounds([due for _, due in both], [fresh for fresh, _ in both])

    def _begin(self, way: str) -> None:
        self.workers[0].call("sign_in", way)
        self._round(way)  # connections are made, modules imported, metadata fetched

    def _expired(self, way: str, raises: bool) -> Round:
        self.workers[0].call("expire", way, -1.0)
        self.provider.expire_access_tokens()
        return self._round(way, raises)

    def _due(self, way: str) -> Round:
        self.workers[0].call("expire", way, LEFT)
        return self._round(way)

    def _round(self, way: str, raises: bool = False) -> Round:
        before, at = self.provider.counters(), time.monotonic() + 0.2
        for worker in self.workers:
            worker.send("call", way, self.url, at, raises)
        calls = [call for worker in self.workers for call in worker.result()]
        for worker in self.workers:
            worker.call("settle")
        after = self.provider.counters()
        told = {name: after[name] - before[name] for name in ("refreshes", "families_lost")}
        if told["families_lost"]:
            self.workers[0].call("sign_in", way)
        return Round(calls, told["refreshes"], told["families_lost"])


@contextmanager
def running_herd(database: str) -> Iterator[Herd]:
    """Prepare everything; raises ServerError when there is no such database server."""
    entry = DATABASES[database]()
    with ExitStack() as stack:
        provider = stack.enter_context(running_provider())
        metadata = provider.metadata
        options = api_site_settings(entry, metadata, metadata["issuer"])
        workers = [
            stack.enter_context(remote(APISite, options, metadata, THREADS))
            for _ in range(PROCESSES)
        ]
        workers[0].call("migrate")
        yield Herd(provider, workers)


def at_expiry(database: str, runs: int) -> dict[str, Rounds]:
    """Return the herds at expiry of every way; ours so many times in a row."""
    with running_herd(database) as herd:
        ours = {
            OURS if runs == 1 else f"{OURS}, run {run}": herd.at_expiry(OURS, EXPIRIES)
            for run in range(1, runs + 1)
        }
        return ours | {
            OURS_IN_TRANSACTION: herd.at_expiry(OURS_IN_TRANSACTION, EXPIRIES),
            NO_LOCK: herd.at_expiry(NO_LOCK, NAIVE_EXPIRIES),
            ROW_LOCK: herd.at_expiry(ROW_LOCK, ROW_LOCK_EXPIRIES),
            AUTHLIB: herd.at_expiry(AUTHLIB, NAIVE_EXPIRIES),
            REQUESTS_OAUTHLIB: herd.at_expiry(REQUESTS_OAUTHLIB, NAIVE_EXPIRIES),
        }


def in_soft_window(database: str) -> dict[str, Rounds]:
    """Return the herds of every way that renews before expiry; requests-oauthlib does not."""
    with running_herd(database) as herd:
        ours = {OURS: herd.in_soft_window(OURS, SOFT_ROUNDS)}
        naive = (NO_LOCK, ROW_LOCK, AUTHLIB)
        return ours | {way: herd.in_soft_window(way, NAIVE_SOFT_ROUNDS) for way in naive}
