"""Ratios of CPU time, measured in interleaved rounds of one run.

A noisy machine slows neighbours alike: in every round each contender's slice follows a slice of the
baseline and is divided by that one. The median of the rounds is the result; the smallest and the
largest show how steady it was.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Ratio:
    """One contender's cost: microseconds of CPU, and how many times the baseline's that is."""

    microseconds: float
    median: float
    smallest: float
    largest: float


@contextmanager
def collected_garbage() -> Iterator[None]:
    """Collect what came before, and keep the garbage collector out of what is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_seconds_per_call(function: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a slice: it calls `function` so often and returns this process's CPU per call."""

    def timed() -> float:
        with collected_garbage():
            start = time.process_time()
            for _ in range(calls):
                function()
            return (time.process_time() - start) / calls

    return timed


def seconds_per_call(function: Callable[[], object], calls: int) -> Callable[[], float]:
    """Return a slice: it calls `function` so often and returns the time that passes per call."""

    def timed() -> float:
        with collected_garbage():
            start = time.perf_counter()
            for _ in range(calls):
                function()
            return (time.perf_counter() - start) / calls

    return timed


def paired(
    slices: Mapping[str, Callable[[], Sample]], baseline: str, rounds: int
) -> dict[str, list[tuple[Sample, Sample]]]:
    """Run baseline and contender in turn, A B A C A D, so many rounds; return these pairs.

    Each round begins with another contender. A first round warms up and is not returned.
    """
    names = [name for name in slices if name != baseline]
    pairs: dict[str, list[tuple[Sample, Sample]]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            pairs[name].append((slices[baseline](), slices[name]()))
    return {name: taken[1:] for name, taken in pairs.items()}


def ratios(pairs: Mapping[str, Sequence[tuple[float, float]]], baseline: str) -> dict[str, Ratio]:
    """Compare every contender with the baseline, pair by pair."""
    bare = statistics.median(base for taken in pairs.values() for base, _ in taken)
    return {baseline: Ratio(bare * 1e6, 1, 1, 1)} | {
        name: _ratio(taken) for name, taken in pairs.items()
    }


def _ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    quotients = [seconds / base for base, seconds in pairs]
    return Ratio(
        microseconds=statistics.median(seconds for _, seconds in pairs) * 1e6,
        median=statistics.median(quotients),
        smallest=min(quotients),
        largest=max(quotients),
    )
