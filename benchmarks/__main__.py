"""Print the numbers that oidc_rp promises, beside those of its peers: `python -m benchmarks`.

The exit code is 1 when a target is missed.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from tests.servers import ServerError

from . import admin, callback, chart, herd, logout, outbound, reseal, unknown_kids, validation
from .contenders import OURS, OURS_WITHOUT_USERINFO
from .databases import DATABASES
from .herd import Rounds
from .measure import Ratio
from .names import AUTHLIB, NO_LOCK, REQUESTS_OAUTHLIB, ROW_LOCK
from .report import Line, Table, as_json, as_markdown, as_text, not_measured


def validation_table() -> Table:
    return _ratio_table(
        "Complete ID Token validation (RS256, 2048 bits, key loaded) ÷ bare OpenSSL verification "
        "of the same signature",
        validation.measure(),
        target=2.0,
    )


def callback_tables() -> list[Table]:
    results = callback.measure()
    title = "CPU of a whole callback request, {} user, {} ÷ a bare Django view that {} and logs in"
    tables = []
    for user, does in (("new", "creates the user"), ("returning", "gets the user")):
        stubbed, network = results.op_stubbed[user], results.with_network[user]
        tables += [
            _ratio_table(title.format(user, "OP stubbed", does), stubbed, target=1.6),
            _ratio_table(title.format(user, "OP on loopback", does), network, target=None),
        ]
    return [*tables, _calls_table(results.calls)]


def _ratio_table(title: str, ratios: dict[str, Ratio], target: float | None) -> Table:
    lines = [
        Line(
            name,
            ratio.median,
            [
                f"{ratio.median:.2f}",
                f"{ratio.smallest:.2f} to {ratio.largest:.2f}",
                f"{ratio.microseconds:,.0f}",
            ],
        )
        for name, ratio in ratios.items()
    ]
    heads = ["ratio (median)", "smallest to largest", "µs CPU"]
    return Table(title, heads, lines, {} if target is None else {OURS: target})


def _calls_table(calls: dict[str, dict[str, int]]) -> Table:
    lines = [
        Line(name, sum(made.values()), [str(sum(made.values())), _endpoints(made)])
        for name, made in calls.items()
    ]
    targets = {OURS: 2.0, OURS_WITHOUT_USERINFO: 1.0}
    return Table("Network calls per login with warm caches", ["calls", "to"], lines, targets)


def _endpoints(made: dict[str, int]) -> str:
    return ", ".join(name if n == 1 else f"{n} {name}" for name, n in sorted(made.items()))


def unknown_kids_table() -> Table:
    title = (
        f"JWKS fetches for {unknown_kids.CALLBACKS:,} callbacks with a random unknown kid, "
        f"{unknown_kids.PROCESSES} processes sharing a cache, per minute begun"
    )
    lines = [
        Line(
            name,
            fetched.fetches / fetched.minutes,
            [str(fetched.fetches), f"{fetched.seconds:.0f} s", fetched.note],
        )
        for name, fetched in unknown_kids.measure().items()
    ]
    return Table(title, ["fetches", "during", ""], lines, {OURS: 3.0})


Measured = TypeVar("Measured")


def _on(
    databases: Iterable[str],
    title: str,
    measure: Callable[[str], Measured],
    table: Callable[[str, Measured], Table],
) -> list[Table]:
    """Measure on each database; one whose server is not there is told, and missed."""
    tables = []
    for database in databases:
        on = f"{title}, {database}"
        try:
            tables.append(table(on, measure(database)))
        except ServerError as error:
            tables.append(not_measured(on, OURS, error))
    return tables


def outbound_tables(_: "Options") -> list[Table]:
    title = "Time of an outbound call with a fresh token ÷ a kept requests.Session.get"
    return _on(outbound.ON, title, outbound.measure, _outbound_table)


def _outbound_table(title: str, measured: outbound.Outbound) -> Table:
    table = _ratio_table(title, measured.ratios, None)
    for line in table.lines:
        line.cells.append(str(measured.queries[line.name]))
    heads = [*table.heads[:2], "µs", "queries a call"]
    return replace(table, heads=heads, targets={outbound.OURS: 1.15, outbound.OURS_AGAIN: 1.15})


def herd_tables(options: "Options") -> list[Table]:
    title = f"{herd.PROCESSES * herd.THREADS} callers at the moment of expiry"

    def measure(database: str) -> dict[str, Rounds]:
        ways = herd.at_expiry(database, options.runs)
        options.measured["herd", database] = ways
        return ways

    return _on(DATABASES, title, measure, _herd_table)


def _herd_table(title: str, ways: dict[str, Rounds]) -> Table:
    ours = [name for name in ways if name.startswith(OURS)]
    lines = [Line(name, rounds.spoiled, _herd_cells(rounds)) for name, rounds in ways.items()]
    heads = ["expiries", "of them spoiled", "token calls", "failed calls", "families lost"]
    return Table(title, [*heads, "p50 ms", "slowest ms"], lines, dict.fromkeys(ours, 0.0))


def _herd_cells(rounds: Rounds) -> list[str]:
    counts = len(rounds.rounds), rounds.spoiled, sum(rounds.token_calls)
    failed = rounds.failures.total(), rounds.families_lost
    waits = rounds.p50 * 1000, rounds.slowest * 1000
    return [*map(str, counts + failed), *(f"{wait:,.0f}" for wait in waits)]


def soft_window_tables(options: "Options") -> list[Table]:
    title = "p50 of the callers while the old token is still good ÷ p50 with no refresh due"

    def measure(database: str) -> dict[str, Rounds]:
        ways = herd.in_soft_window(database)
        options.measured["soft_window", database] = ways
        return ways

    return _on(DATABASES, title, measure, _soft_window_table)


def _soft_window_table(title: str, ways: dict[str, Rounds]) -> Table:
    lines = [
        Line(
            name,
            None if rounds.spoiled else rounds.slowdown,
            [f"{rounds.slowdown:.2f}", *_herd_cells(rounds)],
        )
        for name, rounds in ways.items()
    ]
    heads = ["ratio", "herds", "of them spoiled", "token calls", "failed calls", "families lost"]
    return Table(title, [*heads, "p50 ms", "slowest ms"], lines, {OURS: 1.2})


def reseal_tables(_: "Options") -> list[Table]:
    try:
        return reseal.tables()
    except ServerError as error:
        return [not_measured("Re-sealing tokens to a new key", OURS, error)]


def logout_tables(_: "Options") -> list[Table]:
    try:
        return logout.tables()
    except ServerError as error:
        return [not_measured("Back-channel logout", OURS, error)]


def admin_tables(_: "Options") -> list[Table]:
    try:
        return admin.tables()
    except ServerError as error:
        return [not_measured("The admin", OURS, error)]


CHARTED = "PostgreSQL"
CHARTED_WAYS = {
    "herd": (OURS, NO_LOCK, ROW_LOCK, AUTHLIB, REQUESTS_OAUTHLIB),
    "soft_window": (OURS, NO_LOCK, ROW_LOCK, AUTHLIB),
}


def herd_chart(measured: dict[tuple[str, str], dict[str, Rounds]]) -> str | None:
    """Draw the herd at expiry and in the soft window; None unless both were measured."""
    titles = {
        "herd": f"At expiry, the OP takes {herd.REFRESH:g} s",
        "soft_window": f"Old token still good, the OP takes {herd.SOFT_REFRESH:g} s",
    }
    panels = [
        chart.Panel(title, {name: _charted(_all_runs(ways, name)) for name in CHARTED_WAYS[row]})
        for row, title in titles.items()
        if (ways := measured.get((row, CHARTED))) is not None
    ]
    if len(panels) < len(titles):
        return None
    who = f"{herd.PROCESSES * herd.THREADS} callers in {herd.PROCESSES} processes"
    title = f"{who} want one user's token at the same moment"
    subtitle = f"{CHARTED}, and a strict OP: a refresh token spent twice ends its family"
    return chart.draw(title, subtitle, panels)


def _all_runs(ways: dict[str, Rounds], name: str) -> Rounds:
    """The herds of a way; ours may have run several times."""
    same = [ways[way] for way in ways if way == name or way.startswith(f"{name}, run ")]
    return Rounds([taken for rounds in same for taken in rounds.rounds])


def _charted(rounds: Rounds) -> chart.Line:
    served = [call.seconds * 1000 for call in rounds.calls if not call.failure]
    lost, all_rounds = rounds.families_lost, len(rounds.rounds)
    percent = 100 * len(served) / len(rounds.calls)
    note = f"{percent:.3g} % served, {lost} of {all_rounds} families lost"
    return chart.Line(served, len(rounds.calls), note)


@dataclass
class Options:
    """What the rows are told. measured: what the chart is drawn from, by row and database."""

    runs: int
    measured: dict[tuple[str, str], dict[str, Rounds]] = field(default_factory=dict)


ROWS: dict[str, Callable[[Options], list[Table]]] = {
    "validation": lambda _: [validation_table()],
    "callback": lambda _: callback_tables(),
    "unknown_kids": lambda _: [unknown_kids_table()],
    "outbound": outbound_tables,
    "herd": herd_tables,
    "soft_window": soft_window_tables,
    "reseal": reseal_tables,
    "logout": logout_tables,
    "admin": admin_tables,
}


def main() -> int:
    arguments = _arguments()
    start, tables, options = time.monotonic(), [], Options(arguments.runs)
    for row in arguments.rows or ROWS:
        print(f"measuring {row} ...", file=sys.stderr, flush=True)
        tables += ROWS[row](options)
    seconds = time.monotonic() - start
    print((as_markdown if arguments.markdown else as_text)(tables))
    where = f"Python {platform.python_version()} on {platform.machine()}"
    print(f"\n{where}, {seconds:.0f} s; details in {arguments.json}", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(as_json(tables, where), indent=2, ensure_ascii=False))
    if (svg := herd_chart(options.measured)) is not None:
        arguments.chart.parent.mkdir(parents=True, exist_ok=True)
        arguments.chart.write_text(svg)
        print(f"the herd is drawn in {arguments.chart}", file=sys.stderr)
    return 1 if any(table.missed for table in tables) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a README")
    parser.add_argument(
        "--json", type=Path, default=Path(".test/bench.json"), help="where the numbers are written"
    )
    parser.add_argument(
        "--runs", type=int, default=1, help="how often in a row our herd's expiries are measured"
    )
    parser.add_argument(
        "--chart",
        type=Path,
        default=Path(".test/herd.svg"),
        help="where the herd is drawn, when herd and soft_window are both measured",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
