"""What this site knows of each configured OP, for the admin: told by the cache and the database.

Nothing is fetched: a page that asks an OP which is out of reach would not come.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from django.core.cache import cache

from . import conf, events
from .admin_health import moment
from .discovery import FRESH, STALE, document_key, is_fixed, metadata_reader
from .errors import OIDCError
from .models import DatabaseClock, Event, ProviderCircuit
from .protocol import jose
from .protocol.metadata import ProviderMetadata, discovery_url

T = TypeVar("T")

LOOKED_THROUGH = 10_000
"""So many of the latest events are searched for what went wrong."""

SHOWN_OF_A_KIND = 2
"""So that what strangers can bring about hides nothing else."""

TROUBLE = (
    events.LOGIN_REFUSED,
    events.LOGOUT_REFUSED,
    events.REFRESH_FAILED,
    events.ID_TOKEN_REFUSED,
    events.IN_DOUBT,
    events.BACKING_OFF,
    events.CIRCUIT_OPENED,
    events.TARGET_REFUSED,
)


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """What everybody may know of a key; alg: "" where its JWK does not say."""

    kid: str
    kty: str
    alg: str


@dataclass(frozen=True, slots=True)
class Document:
    """How long ago one was fetched, in seconds; None: the cache has none. fixed: by METADATA."""

    age: float | None = None
    fixed: bool = False

    @property
    def state(self) -> str:
        if self.fixed:
            return "fixed"
        if self.age is None:
            return "unknown"
        return "fresh" if self.age < FRESH else "old" if self.age < STALE else "stale"

    @property
    def minutes(self) -> int:
        return int((self.age or 0.0) // 60)


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """One configured OP. circuit: its row, with `.now`, or None. errors: the latest events."""

    provider: conf.Provider
    metadata: Document
    keys_document: Document
    keys: tuple[PublishedKey, ...]
    circuit: Any
    errors: tuple[Any, ...]

    @property
    def open_until(self) -> str:
        """Until when nobody asks it for tokens; "" where it may be asked."""
        is_open = self.circuit is not None and self.circuit.not_before > self.circuit.now
        return moment(self.circuit.not_before) if is_open else ""

    @property
    def refused(self) -> str:
        """When and why it last refused this client, as far as that is still kept."""
        if self.circuit is None:
            return ""
        return f"{moment(self.circuit.last_error_at)} {self.circuit.last_error}"

    @property
    def told(self) -> list[tuple[str, Any, Any]]:
        """Each of the errors: when it was, and what it says."""
        said = events.EVENTS
        return [(moment(event.at), said.get(event.name, ""), event) for event in self.errors]


def statuses() -> list[ProviderStatus]:
    """Of every provider that can be used, in the order of the settings; a few statements."""
    rows: Any = ProviderCircuit.objects.annotate(now=DatabaseClock())
    circuits = {row.provider: row for row in rows}
    errors = _latest_errors()
    return [
        _status(provider, circuits.get(slug), tuple(errors.get(slug, ())))
        for slug, provider in conf.providers().items()
    ]


def _latest_errors() -> dict[str, list[Any]]:
    latest = Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    recent = Event.objects.filter(pk__gt=latest - LOOKED_THROUGH, name__in=TROUBLE)
    found: dict[str, list[Any]] = {}
    of_one_kind: Counter[tuple[str, str]] = Counter()
    for event in recent.order_by("-pk"):
        of_one_kind[event.provider, event.name] += 1
        if of_one_kind[event.provider, event.name] <= SHOWN_OF_A_KIND:
            found.setdefault(event.provider, []).append(event)
    return found


def _status(provider: conf.Provider, circuit: Any, errors: tuple[Any, ...]) -> ProviderStatus:
    metadata, document = _metadata(provider)
    jwks_uri = metadata.jwks_uri if metadata is not None else None
    key_set, keys_document = _cached(jwks_uri, jose.read_jwks) if jwks_uri else (None, Document())
    keys = tuple(_public(key_set)) if key_set is not None else ()
    return ProviderStatus(provider, document, keys_document, keys, circuit, errors)


def _metadata(provider: conf.Provider) -> tuple[ProviderMetadata | None, Document]:
    """As discovery.published_metadata makes it of settings and what was discovered."""
    read = metadata_reader(provider)
    if not is_fixed(provider):
        return _cached(discovery_url(provider.issuer), read)
    with suppress(OIDCError):  # what is wrong with it is told at the next sign-in
        return read({"issuer": provider.issuer}), Document(fixed=True)
    return None, Document(fixed=True)


def _cached(url: str, read: Callable[[dict[str, Any]], T]) -> tuple[T | None, Document]:
    """What the workers share of a document (discovery.py); nothing where that cannot be used."""
    try:
        shared = cache.get(document_key(url))
        age = max(0.0, time.time() - float(shared["fetched_at"]))
        int(age)  # not one that is no number, or endless
        return read(shared["document"]), Document(age)
    except Exception:  # noqa: BLE001 - not there, not readable, or the cache fails in its own way
        return None, Document()


def _public(keys: jose.KeySet) -> Iterator[PublishedKey]:
    for key in keys.keys:
        kty = f"{key.kty} {key.crv}" if key.crv else key.kty
        yield PublishedKey(key.kid or "", kty, key.alg or "")
