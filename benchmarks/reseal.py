"""Moving every stored token to a new key, on PostgreSQL, while others use the database.

Each contender is a process of its own on a database of its own with as many grants; meanwhile
another process reads single grants, and keeps how long each query took.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tests.servers import postgresql

from .contenders import OURS
from .report import Line, Table

ROWS = 100_000
FEW_ROWS = 10_000
OLD, NEW = "A" * 43, "B" * 43
BATCH = 500
TOKEN = "r" * 64
PAUSE = 0.002

LOOP, BULK_UPDATE = "a loop of save()", f"bulk_update, {BATCH} at once"
QUERY_TIMES = "milliseconds"


@dataclass(frozen=True)
class Run:
    """One contender's move of `rows` tokens. p99: milliseconds of others' queries meanwhile."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_megabytes: float
    p99: float = 0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def tables() -> list[Table]:
    """The rows for __main__: time per token, memory, and the others' waiting time."""
    runs = {
        OURS: measure("move", ROWS),
        BULK_UPDATE: measure("bulk_update", FEW_ROWS),
        LOOP: measure("save_loop", FEW_ROWS),
    }
    few = measure("move", FEW_ROWS)
    undisturbed = measure("rest", FEW_ROWS)
    title = "Re-sealing tokens to a new key (PostgreSQL), µs a token (20,000 a second are 50)"
    speed = [
        Line(name, 1e6 / run.rows_per_second, [f"{1e6 / run.rows_per_second:.0f}", *_cells(run)])
        for name, run in runs.items()
    ]
    growth = runs[OURS].peak_megabytes / few.peak_megabytes
    memory = Line(OURS, growth, [f"{growth:.2f}", f"{few.peak_megabytes:.0f} MB"])
    waiting = [
        Line(name, run.p99, [f"{run.p99:.1f}"])
        for name, run in {**runs, "nobody re-seals": undisturbed}.items()
    ]
    return [
        Table(title, ["µs", "tokens/s", "µs CPU, client", "rows"], speed, {OURS: 50.0}),
        Table(
            f"Peak memory of re-sealing {ROWS:,} tokens ÷ {FEW_ROWS:,}",
            ["ratio", f"at {FEW_ROWS:,}"],
            [memory],
            {OURS: 1.1},
        ),
        Table("p99 of other users' queries meanwhile, ms", ["ms"], waiting, {OURS: 15.0}),
    ]


def _cells(run: Run) -> list[str]:
    cpu = run.cpu_seconds / run.rows * 1e6
    return [f"{run.rows_per_second:,.0f}", f"{cpu:.0f}", f"{run.rows:,}"]


def measure(contender: str, rows: int) -> Run:
    """Fill a new database, let the contender move its tokens, and watch another's queries."""
    database = postgresql().new_database()
    _call(database, "fill", rows).communicate()
    watcher = _call(database, "watch", rows)
    moved, _ = _call(database, contender, rows).communicate()
    told, _ = watcher.communicate("end\n")
    p99 = statistics.quantiles(json.loads(told)[QUERY_TIMES], n=100)[98]
    postgresql().execute(f"DROP DATABASE {database['NAME']}")
    return Run(**json.loads(moved) | {"p99": p99})


def _call(database: dict[str, Any], function: str, rows: int) -> "subprocess.Popen[str]":
    """Call one of FUNCTIONS in a process of its own; it prints JSON."""
    site = {
        "database": database | {"ATOMIC_REQUESTS": False},
        "secret_key": "s" * 50,
        "oidc_rp": {"PROVIDERS": {}, "TOKEN_KEYS": [NEW, OLD]},
        "api": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.reseal", function, str(rows)],
        env=os.environ
        | {"SITE": json.dumps(site), "DJANGO_SETTINGS_MODULE": "tests.servers.site_settings"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# In processes of their own


def fill(rows: int) -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection

    from oidc_rp.models import Grant, Identity, digest
    from oidc_rp.sealing import KeyRing

    call_command("migrate", verbosity=0)
    ring, iss = KeyRing([OLD]), "https://op.example"
    for start in range(0, rows, 5000):
        names = [f"user{number}" for number in range(start, min(start + 5000, rows))]
        users = User.objects.bulk_create([User(username=name) for name in names])
        identities = Identity.objects.bulk_create(
            Identity(
                user=user,
                provider="op",
                iss=iss,
                sub=user.username,
                digest=digest(iss, user.username),
            )
            for user in users
        )
        grants = [Grant(identity=identity, provider="op") for identity in identities]
        for grant in grants:
            grant.refresh_token = ring.seal(TOKEN, grant.context(1))
            grant.key_id = ring.key_ids[0]
        Grant.objects.bulk_create(grants)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")


def move() -> None:
    from django.core.management import call_command

    call_command("oidc_reseal", batch_size=BATCH, verbosity=0)


def save_loop() -> None:
    for grant in _resealed_grants():
        grant.save(update_fields=["refresh_token", "key_id"])


def bulk_update() -> None:
    from itertools import islice

    from oidc_rp.models import Grant

    grants = _resealed_grants()
    while batch := list(islice(grants, BATCH)):
        Grant.objects.bulk_update(batch, ["refresh_token", "key_id"])


def _resealed_grants() -> Any:
    from oidc_rp.models import Grant
    from oidc_rp.sealing import key_ring

    ring = key_ring()
    for grant in Grant.objects.select_related("identity").iterator(BATCH):
        context = grant.context(grant.generation)
        grant.refresh_token = ring.seal(ring.open(grant.refresh_token, context), context)
        grant.key_id = ring.key_ids[0]
        yield grant


def rest() -> None:
    time.sleep(5)


def watch(rows: int) -> list[float]:
    """Read one grant after the other until standard input speaks; milliseconds of each query."""
    import random

    from oidc_rp.models import Grant

    ids = list(Grant.objects.values_list("pk", flat=True)[:1000])
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    taken = []
    while not ended.wait(PAUSE):
        pk = random.choice(ids)
        start = time.perf_counter()
        Grant.objects.filter(pk=pk).values_list("status").get()
        taken.append((time.perf_counter() - start) * 1000)
    return taken


CONTENDERS: dict[str, Callable[[], None]] = {
    "move": move,
    "save_loop": save_loop,
    "bulk_update": bulk_update,
    "rest": rest,
}


def main() -> None:
    import django

    function, rows = sys.argv[1], int(sys.argv[2])
    django.setup()
    if function == "fill":
        fill(rows)
    elif function == "watch":
        json.dump({QUERY_TIMES: watch(rows)}, sys.stdout)
    else:
        start, cpu = time.perf_counter(), time.process_time()
        CONTENDERS[function]()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        json.dump(asdict(Run(rows, seconds, cpu, peak)), sys.stdout)


if __name__ == "__main__":
    main()
