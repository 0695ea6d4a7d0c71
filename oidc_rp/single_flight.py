"""One piece of work at a time for a key in this process; whoever asks meanwhile shares it."""

import os
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from .own_connection import detached

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Flight(Generic[T]):
    """Work under way, and what it is for. hurry: set when somebody waits for it."""

    aim: object
    future: "Future[T]"
    hurry: threading.Event


class SingleFlight(Generic[T]):
    """Starts work in threads of its own, never two at once for one key."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)  # threads do not come along

    def _forget(self) -> None:
        # Re-entrant: a flight may land before its callback is added, in the thread that adds it.
        self._lock = threading.RLock()
        self._flights: dict[Hashable, Flight[T]] = {}

    def join(
        self, key: Hashable, aim: object, work: Callable[[], T], delay: float = 0.0
    ) -> Flight[T]:
        """The flight of this key, whatever its aim; one for `work`, if there is none.

        delay: seconds that the work may be put off, until somebody joins who cannot wait.
        """
        with self._lock:
            flight = self._flights.get(key)
            if flight is None or flight.future.done():
                hurry = threading.Event()

                def put_off() -> T:
                    hurry.wait(delay)
                    return work()

                flight = self._flights[key] = Flight(aim, detached(put_off), hurry)
                flight.future.add_done_callback(lambda _: self._land(key, flight))
            if not delay:
                flight.hurry.set()
            return flight

    def _land(self, key: Hashable, flight: Flight[T]) -> None:
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]
