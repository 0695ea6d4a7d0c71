"""Print the numbers that oidc_rp promises, beside those of its peers: `python -m benchmarks`.

The exit code is 1 when a target is missed.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import callback, unknown_kids, validation
from .contenders import OURS, OURS_WITHOUT_USERINFO
from .measure import Ratio
from .report import Line, Table, as_json, as_markdown, as_text


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


ROWS: dict[str, Callable[[], list[Table]]] = {
    "validation": lambda: [validation_table()],
    "callback": callback_tables,
    "unknown_kids": lambda: [unknown_kids_table()],
}


def main() -> int:
    arguments = _arguments()
    start, tables = time.monotonic(), []
    for row in arguments.rows or ROWS:
        print(f"measuring {row} ...", file=sys.stderr, flush=True)
        tables += ROWS[row]()
    seconds = time.monotonic() - start
    print((as_markdown if arguments.markdown else as_text)(tables))
    where = f"Python {platform.python_version()} on {platform.machine()}"
    print(f"\n{where}, {seconds:.0f} s; details in {arguments.json}", file=sys.stderr)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(as_json(tables, where), indent=2, ensure_ascii=False))
    return 1 if any(table.missed for table in tables) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="row", help=f"only these: {', '.join(ROWS)}")
    parser.add_argument("--markdown", action="store_true", help="tables to paste into a README")
    parser.add_argument(
        "--json", type=Path, default=Path(".test/bench.json"), help="where the numbers are written"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
