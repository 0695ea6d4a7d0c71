"""The admin: whether its pages stay usable with a million linked identities.

A PostgreSQL database of its own is filled with people, one in twenty of them signed in; then each
page is opened once, and the database is asked for the plan of every statement that it runs.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers import postgresql

from .admin_site import AdminSite, admin_site_settings
from .logout_site import WATCHED, Statement, reads_whole
from .provider import running_provider
from .remote import Remote, remote
from .report import Line, Table

PEOPLE = 1_000_000
QUERIES = 19
"""The most that a page may ask."""


@contextmanager
def running_site(people: int) -> Iterator[Remote]:
    """A site with so many linked identities; its database goes when the block ends."""
    database = postgresql().new_database()
    try:
        with running_provider() as provider:
            options = admin_site_settings(database, provider.metadata)
            with remote(AdminSite, options, people) as site:
                print(f"  storing {people:,} identities ...", file=sys.stderr, flush=True)
                print(f"  they take {site.call('fill')}", file=sys.stderr, flush=True)
                yield site
    finally:
        postgresql().execute(f"DROP DATABASE {database['NAME']} WITH (FORCE)")


def tables() -> list[Table]:
    """The rows for __main__. Raises ServerError when there is no PostgreSQL."""
    queries, whole = [], []
    with running_site(PEOPLE) as site:
        for name, path in site.call("pages").items():
            start = time.perf_counter()
            status, statements = site.call("look", path)
            milliseconds = (time.perf_counter() - start) * 1000
            if status != 200:
                raise RuntimeError(f"{name}: {status}")
            cells = [str(len(statements)), f"{milliseconds:.0f}"]
            queries.append(Line(name, len(statements), cells))
            whole.append(_read_whole(name, statements))
    title = f"A page of the admin with {PEOPLE:,} linked identities (PostgreSQL)"
    heads, names = ["queries", "ms, EXPLAIN of each included"], [line.name for line in queries]
    return [
        Table(title, heads, queries, dict.fromkeys(names, float(QUERIES))),
        Table(
            "Tables that it reads otherwise than by an index",
            ["tables", "looked up in"],
            whole,
            dict.fromkeys(names, 0.0),
        ),
    ]


def _read_whole(name: str, statements: list[Statement]) -> Line:
    found = sorted({table for one in statements if one.plan for table in _unbounded(one.plan)})
    indexes = sorted(set().union(*(statement.indexes for statement in statements)))
    return Line(name, len(found), [", ".join(found) or "none", ", ".join(indexes)])


def _unbounded(node: dict[str, Any], limited: bool = False) -> Iterator[str]:
    """The watched tables that are read from end to end. A page of rows in the order of an index,
    which stops at a LIMIT, is not."""
    limited = node["Node Type"] == "Limit" or (limited and node["Node Type"] != "Sort")
    paged = limited and "Index" in node["Node Type"]
    if node.get("Relation Name") in WATCHED and reads_whole(node) and not paged:
        yield node["Relation Name"]
    for below in node.get("Plans", []):
        yield from _unbounded(below, limited)
