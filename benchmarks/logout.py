"""Back-channel logout: whether it grows with the number of sessions that others have.

Two sites, each with a PostgreSQL database of its own on one server, are told in turn to sign
somebody out: one of a million sessions, or one of a thousand. Who it is is chosen at random, has a
grant that ends with the session, and signs in again afterwards, so that the numbers stay. The whole
request is measured, from the OP's POST to the answer, keys cached: the signature, the mark, and the
thread with a database connection of its own in which the sessions end.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tests.servers import postgresql

from .contenders import OURS
from .logout_site import (
    BY_SID,
    BY_SID_AND_SUB,
    BY_SUB,
    LogoutSite,
    Statement,
    Took,
    logout_site_settings,
)
from .measure import paired, ratios
from .provider import RunningProvider, running_provider
from .remote import Remote, remote
from .report import Line, Table
from .sign_ins import SignIn

MANY, FEW = 1_000_000, 1_000
ROUNDS, LOGOUTS = 30, 4
WAYS = (BY_SID, BY_SID_AND_SUB, BY_SUB)
EVERYWHERE, TWICE = 200, 2
"""Sessions of one person and of another one, each with a grant, who are signed out by sub."""

ROUNDS_BY_SUB = 12

Pairs = Sequence[tuple[Took, Took]]


@dataclass(frozen=True)
class Site:
    """A running site, and the OP that tells it whom to sign out."""

    remote: Remote
    provider: RunningProvider

    def one(self, by: str) -> list[SignIn]:
        """Choose somebody; return what a logout ends."""
        (sign_ins,) = self.remote.call("some", by, 1)
        return list(sign_ins)

    def somebody_with(self, sessions: int) -> list[SignIn]:
        """Sign somebody new in so often."""
        return list(self.remote.call("somebody_with", sessions))

    def some(self, by: str) -> Took:
        """Sign a few people out, chosen at random."""
        return self._log_out(by, self.remote.call("some", by, LOGOUTS))

    def everywhere(self, sign_ins: Sequence[SignIn]) -> Took:
        """Sign one person out of all these sessions."""
        return self._log_out(BY_SUB, [sign_ins])

    def statements(self, by: str, sign_ins: Sequence[SignIn]) -> list[Statement]:
        """Sign one person out, and return what the database was asked meanwhile."""
        run: list[Statement] = self.remote.call(
            "statements", *self._tokens(by, [sign_ins]), sign_ins
        )
        return run

    def _log_out(self, by: str, ended: Sequence[Sequence[SignIn]]) -> Took:
        took: Took = self.remote.call("log_out", self._tokens(by, ended), ended)
        return took

    def _tokens(self, by: str, ended: Sequence[Sequence[SignIn]]) -> list[str]:
        return self.provider.logout_tokens(
            [
                {
                    "sub": None if by == BY_SID else sign_in.sub,
                    "sid": None if by == BY_SUB else sign_in.sid,
                }
                for sign_in, *_ in ended
            ]
        )


@contextmanager
def running_site(provider: RunningProvider, sessions: int) -> Iterator[Site]:
    """A site with so many sessions; its database goes when the block ends."""
    database = postgresql().new_database()
    try:
        options = logout_site_settings(database, provider.metadata)
        with remote(LogoutSite, options, sessions) as site:
            _tell(f"storing {sessions:,} sessions ...")
            _tell(f"they take {site.call('fill')}")
            yield Site(site, provider)
    finally:
        postgresql().execute(f"DROP DATABASE {database['NAME']} WITH (FORCE)")


def _tell(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


def tables() -> list[Table]:
    """The rows for __main__. Raises ServerError when there is no PostgreSQL."""
    with running_provider() as provider:
        provider.always_give_refresh_tokens()
        with running_site(provider, FEW) as few, running_site(provider, MANY) as many:
            _tell(f"signing out, {(ROUNDS + 1) * LOGOUTS} times each way on each site ...")
            growth = {
                f"{OURS}, by {by}": _in_turn(partial(few.some, by), partial(many.some, by), ROUNDS)
                for by in WAYS
            }
            run = {f"{OURS}, by {by}": many.statements(by, many.one(by)) for by in WAYS}
            twice, everywhere = many.somebody_with(TWICE), many.somebody_with(EVERYWHERE)
            of_two, of_all = (many.statements(BY_SUB, who) for who in (twice, everywhere))
            _tell(f"signing out of {EVERYWHERE} sessions, and of {TWICE} ...")
            sessions = _in_turn(
                partial(many.everywhere, twice), partial(many.everywhere, everywhere), ROUNDS_BY_SUB
            )
    title = "Time of a back-channel logout"
    return [
        _time_table(f"{title} among {MANY:,} sessions ÷ {FEW:,} (PostgreSQL)", growth, 1.5),
        _plans_table({**run, f"{OURS}, by {BY_SUB}, {EVERYWHERE} sessions": of_all}),
        _statements_table(of_two, of_all),
        _time_table(f"{title} by sub that ends {EVERYWHERE} ÷ {TWICE}", {OURS: sessions}, None),
    ]


def _in_turn(base: Callable[[], Took], other: Callable[[], Took], rounds: int) -> Pairs:
    return paired({"base": base, "other": other}, "base", rounds)["other"]


def _time_table(title: str, taken: Mapping[str, Pairs], target: float | None) -> Table:
    whole = ratios(_seconds(taken, lambda took: took.whole), "")
    statements = ratios(_seconds(taken, lambda took: took.in_statements), "")
    lines = [
        Line(
            name,
            whole[name].median,
            [
                f"{whole[name].median:.2f}",
                f"{whole[name].smallest:.2f} to {whole[name].largest:.2f}",
                f"{whole[name].microseconds / 1000:.1f}",
                f"{statements[name].median:.2f}",
                f"{statements[name].microseconds / 1000:.1f}",
            ],
        )
        for name in taken
    ]
    heads = ["ratio (median)", "smallest to largest", "ms", "its statements alone", "ms of these"]
    return Table(title, heads, lines, {} if target is None else dict.fromkeys(taken, target))


def _seconds(
    taken: Mapping[str, Pairs], seconds: Callable[[Took], float]
) -> dict[str, list[tuple[float, float]]]:
    return {
        name: [(seconds(base), seconds(other)) for base, other in pairs]
        for name, pairs in taken.items()
    }


def _plans_table(run: Mapping[str, Sequence[Statement]]) -> Table:
    """What the plans of the real statements say, of all tables that grow with the sessions."""
    lines = []
    for name, statements in run.items():
        found = Counter(
            f"{table} ({statement.verb})"
            for statement in statements
            for table in sorted(statement.not_by_index)
        )
        told = ", ".join(found) or "none, index look-ups only"
        indexes = sorted(set().union(*(statement.indexes for statement in statements)))
        lines.append(Line(name, found.total(), [told, str(len(statements)), ", ".join(indexes)]))
    title = f"Tables that a logout among {MANY:,} sessions reads otherwise than by an index"
    heads = ["tables", "statements", "looked up in"]
    return Table(title, heads, lines, dict.fromkeys(run, 0.0))


def _statements_table(twice: Sequence[Statement], everywhere: Sequence[Statement]) -> Table:
    """Whether a statement does for all sessions; a table may have several, for other things."""
    more = f"{OURS}, more of them for {EVERYWHERE} sessions than for {TWICE}"
    again = f"{OURS}, UPDATEs and DELETEs that were run more than once"
    counts = {
        f"{OURS}, {TWICE} sessions": len(twice),
        f"{OURS}, {EVERYWHERE} sessions": len(everywhere),
        more: len(everywhere) - len(twice),
        again: len(_run_again(everywhere)),
    }
    told = [_told(twice), _told(everywhere), "", ", ".join(_run_again(everywhere))]
    lines = [
        Line(name, count, [str(count), text])
        for (name, count), text in zip(counts.items(), told, strict=True)
    ]
    title = "SQL statements of a back-channel logout by sub, each session with a grant"
    return Table(title, ["statements", "of these, for each table"], lines, {more: 0.0, again: 0.0})


def _run_again(statements: Sequence[Statement]) -> list[str]:
    """What changes a table, and was run again for other rows."""
    changes = [each for each in statements if each.verb in ("UPDATE", "DELETE")]
    times = Counter(each.shape for each in changes)
    return sorted({f"{each.table} {each.verb}" for each in changes if times[each.shape] > 1})


def _told(statements: Sequence[Statement]) -> str:
    """How many of which verb for each table, as they came."""
    tables: dict[str, Counter[str]] = {}
    for statement in statements:
        tables.setdefault(statement.table, Counter())[statement.verb] += 1
    return "; ".join(f"{table} {_verbs(verbs)}".strip() for table, verbs in tables.items())


def _verbs(verbs: Counter[str]) -> str:
    return ", ".join(verb if times == 1 else f"{times} {verb}" for verb, times in verbs.items())
