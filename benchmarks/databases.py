"""The databases that are measured on. A server that is not there is told, and misses the target."""

from collections.abc import Callable
from typing import Any

from tests.servers import mariadb, postgresql, sqlite

Database = dict[str, Any]
"""An entry of Django's DATABASES."""


def _sqlite() -> Database:
    """A file, with the write-ahead log that Django's documentation recommends to busy sites."""
    database = sqlite().new_database()
    database["OPTIONS"] |= {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}
    return database


def _mariadb() -> Database:
    """Without TLS: PyMySQL reads all certificate authorities for each connection, used or not."""
    return mariadb().new_database() | {"OPTIONS": {"ssl_disabled": True}}


DATABASES: dict[str, Callable[[], Database]] = {
    "PostgreSQL": lambda: postgresql().new_database(),
    "MariaDB": _mariadb,
    "SQLite": _sqlite,
}
"""Start the server, if there is one, and make a database. Raises ServerError."""
