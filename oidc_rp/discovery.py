"""What an OP publishes, metadata and keys: fetched lazily, checked, kept (M46, M47).

Two levels: checked values in this process, and the text in Django's cache, so that all workers
share one fetch. A value is fresh for an hour and good for a day while the OP is down.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, Generic, TypeVar

from django.core.cache import cache

from .conf import Provider
from .errors import InvalidResponse, OIDCError
from .protocol import jose
from .protocol.metadata import ProviderMetadata, discovery_url, read_provider_metadata
from .protocol.strict_json import json_object
from .transport import Transport

logger = logging.getLogger("oidc_rp")

FRESH = 60 * 60
STALE = 24 * 60 * 60
RETRY = 5
FORCED_FETCHES = 3
FORCED_WINDOW = 60
PATIENCE = 2

T = TypeVar("T")


class Published(Generic[T]):
    """One JSON document at one URL of the OP, as the value that `read` makes of it."""

    def __init__(self, transport: Transport, url: str, read: Callable[[dict[str, Any]], T]) -> None:
        self._transport = transport
        self._url = url
        self._read = read
        self._key = document_key(url)
        self._lock = threading.Lock()  # one fetch at a time in this process
        self._value: T | None = None
        self._fetched_at = 0.0
        self._failed_at = 0.0
        self._failure: OIDCError | None = None
        self._forced_at: set[float] = set()

    def get(self) -> T:
        """Return the value. Raises TransportError or InvalidResponse when none can be had."""
        value = self._value
        if value is not None and abs(time.time() - self._fetched_at) < FRESH:
            return value
        # Whoever still has a value goes on with it while somebody else fetches.
        if self._lock.acquire(blocking=value is None):
            try:
                self._renew()
            finally:
                self._lock.release()
        if self._value is None or abs(time.time() - self._fetched_at) > STALE:
            failure = self._failure or InvalidResponse("discovery.stale", "nothing recent to go on")
            raise failure.with_traceback(None)  # raised many times: it must not collect frames
        return self._value

    def values(self) -> Iterator[T]:
        """Yield the value and, as long as it does not do, newer ones.

        What other threads and processes have fetched comes first, then what the OP says now: at
        most 3 times a minute for all processes together, stamped before the fetch; with no cache
        to count in, never.
        """
        asked_at = time.time()
        value: T | None = self.get()
        while value is not None:
            yield value
            value = self._newer(value, asked_at)

    def _newer(self, value: T, asked_at: float) -> T | None:
        with self._lock:
            if self._value is not value or self._adopt_shared():
                return self._value
            tried_at = max(self._fetched_at, self._failed_at)
            if tried_at >= asked_at or not self._may_force():
                return None
            try:
                self._fetch()
            except OIDCError as error:
                self._failed_at = time.time()
                logger.warning("keys not fetched again", extra={"code": error.code})
                return None
            return self._value

    def _renew(self) -> None:
        now = time.time()
        if abs(now - self._fetched_at) < FRESH or abs(now - self._failed_at) < RETRY:
            return
        if self._adopt_shared() and abs(now - self._fetched_at) < FRESH:
            return
        # Counts as a forced fetch, but is not refused: without a value nobody can sign in. Workers
        # that start together wait a moment for the one that is already asking.
        if not self._may_force() and self._forced_at and self._comes_from_others():
            return
        try:
            self._fetch()
        except OIDCError as error:
            self._failed_at, self._failure = time.time(), error
            logger.warning(
                "OP document not fetched code=%s", error.code, extra={"code": error.code}
            )

    def _comes_from_others(self) -> bool:
        for _ in range(PATIENCE * 10):
            time.sleep(0.1)
            if self._adopt_shared():
                return True
        return False

    def _fetch(self) -> None:
        asked_at = time.time()
        answer = self._transport.get(self._url)
        if answer.status != 200:
            raise InvalidResponse("discovery.status", expected=200, received=answer.status)
        document = json_object(answer.body, "discovery.json")
        self._take(document, asked_at)
        _shared_set(self._key, {"document": document, "fetched_at": asked_at})

    def _adopt_shared(self) -> bool:
        """Take what another process fetched after us; it is checked again, like any document."""
        shared = _shared_get(self._key)
        try:
            fetched_at = float(shared["fetched_at"])
            # Nobody fetches in the future: the clock of that machine is wrong.
            if not self._fetched_at < fetched_at <= time.time() + FORCED_WINDOW:
                return False
            self._take(shared["document"], fetched_at)
        except (OIDCError, LookupError, TypeError, ValueError, AttributeError):
            return False
        return True

    def _take(self, document: dict[str, Any], fetched_at: float) -> None:
        value = self._read(document)
        if isinstance(self._value, ProviderMetadata) and isinstance(value, ProviderMetadata):
            _tell_changes(self._value, value)
        self._value, self._fetched_at, self._failure = value, fetched_at, None

    def _may_force(self) -> bool:
        """Whether this process may fetch out of turn now; stamped in the cache if so.

        Stamps once seen are remembered here, too: a small cache may drop them under load.
        """
        now = time.time()
        slots = [f"{self._key}:forced:{slot}" for slot in range(FORCED_FETCHES)]
        try:
            seen = self._forced_at | set(cache.get_many(slots).values())
            self._forced_at = {moment for moment in seen if abs(now - moment) < FORCED_WINDOW}
            if len(self._forced_at) >= FORCED_FETCHES:
                return False
            free = next((key for key in slots if cache.add(key, now, FORCED_WINDOW)), None)
            # A cache that keeps nothing cannot count; and where add() is not atomic, one wins.
            stamped = free is not None and cache.get(free) == now
        except Exception:  # each cache backend has its own kinds
            logger.warning("the cache fails: no keys are fetched out of turn", exc_info=True)
            return False
        if stamped:
            self._forced_at.add(now)
        return stamped


def document_key(url: str) -> str:
    """Where the cache has what all workers share of a document: itself, and when it was fetched."""
    return "oidc_rp:" + sha256(url.encode()).hexdigest()[:32]


def published_metadata(provider: Provider, transport: Transport) -> Callable[[], ProviderMetadata]:
    """Return what returns the OP's metadata: discovered, overridden, or all from METADATA."""
    read = metadata_reader(provider)
    if is_fixed(provider):
        fixed = read({"issuer": provider.issuer})
        return lambda: fixed
    return Published(transport, discovery_url(provider.issuer), read).get


def is_fixed(provider: Provider) -> bool:
    """Whether METADATA says it all, and nothing is discovered."""
    return {"authorization_endpoint", "token_endpoint"} <= provider.metadata.keys()


def metadata_reader(provider: Provider) -> Callable[[Mapping[str, Any]], ProviderMetadata]:
    """Return what makes checked metadata of a discovered document, METADATA laid over it."""
    override = {name: value for name, value in provider.metadata.items() if name != "issuer"}

    def read(document: Mapping[str, Any]) -> ProviderMetadata:
        return read_provider_metadata(
            {**document, **override}, provider.issuer, loopback_http=provider.allow_loopback_http
        )

    return read


def published_keys(transport: Transport, jwks_uri: str) -> "Published[jose.KeySet]":
    """Return the OP's key set (Core §10.1.1)."""
    return Published(transport, jwks_uri, jose.read_jwks)


def _tell_changes(old: ProviderMetadata, new: ProviderMetadata) -> None:
    before, after = old.endpoints(), new.endpoints()
    if before != after:
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        logger.warning(
            "the OP's endpoints changed issuer=%s changed=%s",
            new.issuer,
            changed,
            extra={"code": "discovery.changed", "issuer": new.issuer, "changed": changed},
        )


def _shared_get(key: str) -> Any:
    try:
        return cache.get(key)
    except Exception:  # noqa: BLE001 - as above: a cache that fails is one that has nothing
        return None


def _shared_set(key: str, value: Any) -> None:
    try:
        cache.set(key, value, STALE)
    except Exception:
        logger.warning("the cache fails: the OP's documents are not shared", exc_info=True)
