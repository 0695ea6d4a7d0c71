"""An object in a process of its own, whose methods are called from here."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from traceback import format_exc
from typing import Any


class RemoteError(Exception):
    """What a method raised over there; the message is its traceback."""


@dataclass(frozen=True)
class Remote:
    """The object as it is seen from here."""

    connection: Connection

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method and do not wait for it."""
        self.connection.send((method, arguments))

    def result(self) -> Any:
        """Wait for what was sent, and return what it returned."""
        returned, problem = self.connection.recv()
        if problem:
            raise RemoteError(problem)
        return returned

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return what it returns."""
        self.send(method, *arguments)
        return self.result()


@contextmanager
def remote(factory: Callable[..., Any], *arguments: Any) -> Iterator[Remote]:
    """Make `factory(*arguments)` in a process of its own, which ends with the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies is an EOFError here, not a wait for ever
    made = Remote(ours)
    try:
        made.result()
        yield made
    finally:
        with suppress(BrokenPipeError):
            ours.send(None)
        process.join(5)
        process.kill()


def _serve(connection: Connection, factory: Callable[..., Any], arguments: Any) -> None:
    made: list[Any] = []
    _answer(connection, lambda: made.append(factory(*arguments)))
    while (order := connection.recv()) is not None:
        method, arguments = order
        _answer(connection, lambda: getattr(made[0], method)(*arguments))  # noqa: B023


def _answer(connection: Connection, work: Callable[[], Any]) -> None:
    try:
        connection.send((work(), ""))
    except Exception:  # noqa: BLE001 - raised again on the other side
        connection.send((None, format_exc()))
