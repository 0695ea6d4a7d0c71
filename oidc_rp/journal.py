"""Rotated tokens that the database has not taken yet: sealed, in this process and in the cache.

A refresh token that the OP has spent is gone; its successor is here until it is stored. Whoever
reads a grant looks here first, and nobody asks the OP with the spent token while an entry exists.
"""

import logging
import os
import threading
from dataclasses import asdict, replace
from typing import Any

from django.core.cache import cache

from .grants import Rotation

logger = logging.getLogger("oidc_rp")

LIFETIME = 24 * 60 * 60
"""Seconds that the cache keeps an entry; the process keeps it for as long as it lives."""

_entries: dict[str, Rotation] = {}
_lock = threading.Lock()


def stash(rotation: Rotation) -> None:
    """Keep this outcome until it is stored; it follows what waits already for the same grant."""
    with _lock:
        waits = _entries.get(rotation.grant)
        if waits is not None and waits.generation + 1 == rotation.generation:
            rotation = replace(rotation, since=waits.since)
        _entries[rotation.grant] = rotation
    try:
        cache.set(_key(rotation.grant), asdict(rotation), LIFETIME)
    except Exception:  # noqa: BLE001 - each cache backend has its own kinds
        logger.warning("the cache fails: a rotated token is kept in this process only")


def find(grant: str, generation: int, *, elsewhere: bool) -> Rotation | None:
    """The outcome that waits to replace this generation of the grant, or None.

    elsewhere: look also for what another process has, in the cache.
    """
    with _lock:
        found = _entries.get(grant)
    if elsewhere:
        both = [entry for entry in (found, _cached(grant)) if entry is not None]
        found = max(both, key=lambda entry: entry.generation, default=None)
    return found if found is not None and found.generation >= generation else None


def waiting() -> tuple[Rotation, ...]:
    """Every outcome that this process still has to store."""
    with _lock:
        return tuple(_entries.values())


def drop(rotation: Rotation) -> None:
    """Forget an outcome that is stored, or that the grant has outlived."""
    with _lock:
        waits = _entries.get(rotation.grant)
        if waits is not None and waits.generation > rotation.generation:
            return  # a later one, which is not stored yet
        _entries.pop(rotation.grant, None)
    cached = _cached(rotation.grant)
    if cached is not None and cached.generation > rotation.generation:
        return
    try:
        cache.delete(_key(rotation.grant))
    except Exception:  # noqa: BLE001
        logger.warning("the cache fails: an entry of the journal stays until it expires")


def _cached(grant: str) -> Rotation | None:
    try:
        found: Any = cache.get(_key(grant))
        return None if found is None else Rotation(**found)
    except Exception:  # noqa: BLE001
        return None


def _key(grant: str) -> str:
    return f"oidc_rp:rotation:{grant}"


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _entries.clear()  # they are the parent's to store


os.register_at_fork(after_in_child=_after_fork)
