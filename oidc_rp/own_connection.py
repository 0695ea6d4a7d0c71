"""Work beside the request: in a thread of its own, and so on a database connection of its own.

What happens there is committed when it is done, whatever becomes of the caller: a view that rolls
back, a browser that hangs up, a task that is cancelled.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from . import conf

logger = logging.getLogger("oidc_rp")

T = TypeVar("T")

# Nobody holds the rows of a grant for long; whoever waits longer than this has met something else.
_SHORT_WAITS = {
    "postgresql": "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '3s'",
    "mysql": "SET SESSION innodb_lock_wait_timeout = 2",
}
_thread = threading.local()


def must_share(alias: str) -> bool:
    """Whether the caller's connection is the only one that sees the data: inside a TestCase, with
    SQLite in memory, or because the setting OWN_CONNECTION says so."""
    connection: Any = connections[alias]
    if connection.vendor == "sqlite" and connection.is_in_memory_db():
        return True
    return _in_testcase(alias) or not conf.own_connection()


def _in_testcase(alias: str) -> bool:
    blocks = connections[alias].atomic_blocks
    return any(getattr(block, "_from_testcase", False) for block in blocks)


def caller_may_roll_back(alias: str) -> bool:
    """Whether what is written here is only as certain as a transaction of the caller's."""
    return connections[alias].in_atomic_block and not is_detached() and not _in_testcase(alias)


def detached(work: Callable[[], T], name: str = "oidc_rp") -> "Future[T]":
    """Start `work` in a thread of its own; a worker that exits waits for it."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever waits may give up, and cancels nothing

    def run() -> None:
        _thread.own = True
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            _close_all()
            future.set_exception(error)
        else:
            _close_all()
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=False).start()
    return future


def _close_all() -> None:
    """Close this thread's connections; one that will not be closed keeps nobody waiting."""
    try:
        connections.close_all()
    except Exception:  # each driver has its own kinds
        logger.warning("a database connection could not be closed", exc_info=True)


def is_detached() -> bool:
    """Whether this code runs in a thread that `detached` started."""
    return getattr(_thread, "own", False)


@contextmanager
def transaction_on(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A transaction that waits for locks two seconds at most, where the connection is our own."""
    connection = connections[alias]
    with transaction.atomic(using=alias):
        if is_detached() and connection.vendor in _SHORT_WAITS:
            with connection.cursor() as cursor:
                cursor.execute(_SHORT_WAITS[connection.vendor])
        yield connection


@contextmanager
def impatient(alias: str) -> Iterator[None]:
    """SQLite: wait a moment only for the lock of the database, which the caller may have."""
    connection = connections[alias]
    usual = connection.settings_dict["OPTIONS"].get("timeout", 5.0)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA busy_timeout = 200")
        try:
            yield
        finally:
            cursor.execute(f"PRAGMA busy_timeout = {int(usual * 1000)}")
