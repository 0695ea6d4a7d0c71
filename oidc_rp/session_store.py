"""Django's stored sessions from outside their requests: which are still there, and deleting many.

Each engine of Django is served by one call for all keys; one of a site's own key by key.
"""

from collections.abc import Collection, Iterator, Sequence
from importlib import import_module
from itertools import islice
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends import cache, cached_db, db, file, signed_cookies
from django.contrib.sessions.backends.base import SessionBase
from django.core.cache import caches
from django.db import router
from django.utils import timezone

from .own_connection import transaction_on

AT_ONCE = 500
"""Keys that one statement names: SQLite once took 999 values, and nobody has more sessions."""


def _engine() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore


def lives_in_cookie() -> bool:
    """Whether a session is where nobody but its browser has it (signed_cookies)."""
    return issubclass(_engine(), signed_cookies.SessionStore)


def key_of(session: SessionBase) -> str:
    """The key that a session is stored under; "" where it lives in its cookie."""
    stored = not isinstance(session, signed_cookies.SessionStore)
    return str(session.session_key or "") if stored else ""


def delete(keys: Collection[str]) -> None:
    """Delete these sessions; those that are not there are no mistake.

    Raises what the engine does; one of a site's own has been asked for all of them by then.
    """
    engine = _engine()
    in_database = engine.delete in (db.SessionStore.delete, cached_db.SessionStore.delete)
    in_cache = engine.delete in (cache.SessionStore.delete, cached_db.SessionStore.delete)
    for some in _batches([key for key in keys if key]):
        if in_database:
            rows = _rows(engine)
            with transaction_on(rows.db):
                rows.filter(session_key__in=some).delete()
        if in_cache:
            _cache().delete_many([engine.cache_key_prefix + key for key in some])
        if not in_database and not in_cache:
            _delete_each(engine, some)


def _delete_each(engine: Any, keys: Sequence[str]) -> None:
    failure = None
    for key in keys:
        try:
            engine().delete(key)
        except Exception as error:  # noqa: BLE001 - each engine has its own kinds
            failure = error
    if failure is not None:
        raise failure


def alive(keys: Collection[str]) -> set[str]:
    """Those of these keys that the store still has; all of them where sessions live in cookies."""
    engine = _engine()
    if issubclass(engine, signed_cookies.SessionStore):
        return set(keys)
    found: set[str] = set()
    for some in _batches([key for key in keys if key]):
        if issubclass(engine, db.SessionStore):
            rows = _rows(engine).filter(session_key__in=some, expire_date__gt=timezone.now())
            found.update(rows.values_list("session_key", flat=True))
        else:
            found.update(key for key in some if _has(engine, key))
    return found


def _has(engine: Any, key: str) -> bool:
    """Whether the store has this session, and it has not expired."""
    if not issubclass(engine, file.SessionStore):
        return bool(engine().exists(key))
    session = engine(key)  # a file stays until somebody reads it, and then another one is made
    session.load()
    if session.session_key not in (None, key):
        session.delete()
    return bool(session.session_key == key)


def _batches(keys: Sequence[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while some := list(islice(left, AT_ONCE)):
        yield some


def _rows(engine: Any) -> Any:
    model = engine.get_model_class()
    return model._default_manager.using(router.db_for_write(model))


def _cache() -> Any:
    return caches[settings.SESSION_CACHE_ALIAS]
