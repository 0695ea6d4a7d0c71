"""Modules of tests whose threads share a database: each runs in a process of its own, on a file or
a server, for SQLite in memory lets no thread wait for another.
"""

import os
import subprocess
import sys
from pathlib import Path


def assert_passes(module: str, database: str = "") -> None:
    """Run tests/<module>.py. database: as in tests/servers/settings.py; "" is the one that these
    tests run on, and a SQLite file where that is in memory."""
    command = [sys.executable, "-m", "pytest", "-q", "--ds=tests.servers.settings"]
    chosen = {"DATABASE": database} if database else {}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", f"tests/{module}.py"],
        env={"DATABASE": "sqlite"} | os.environ | chosen,
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
