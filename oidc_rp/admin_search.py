"""How the admin finds people among millions: each kind of search term by an index of its own.

One condition across joins would read whole tables; so each look-up brings some keys, and the list
is of those.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.core.paginator import Paginator
from django.utils.functional import cached_property

from . import conf
from .models import Event, Identity, Session, digest

FOUND = 1000
"""The most that one kind of look-up brings."""

LONGEST = 255
"""Characters of the longest thing that there is to search for, a sub."""

COUNTED = 5000
"""The most rows that a list counts, and shows page by page."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Pages through the first rows only: to count a million of them takes longer than to look."""

    @cached_property
    def count(self) -> int:
        """How many there are, or COUNTED if there are more."""
        rows: Any = self.object_list
        return int(rows.order_by("-pk").values("pk")[:COUNTED].count())


def keys_found(term: str, *, sessions: bool, events: bool) -> set[int]:
    """The keys of the identities that a search term means, some thousands at most.

    term: the beginning of a user name or e-mail address, or all of a sub; where sessions and events
    may be seen, also of a sid or a reference.
    """
    text = _unquoted(term.strip()).replace("\x00", "")
    if not 0 < len(text) <= LONGEST:
        return set()
    found = [*_look_ups(text)]
    found += [_of_sid(text)] if sessions else []
    found += [_of_reference(text)] if events else []
    return {key for keys in found for key in keys}


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _look_ups(text: str) -> Iterator[Iterable[int]]:
    rows = Identity.objects.order_by("-pk")
    yield rows.filter(sub=text).values_list("pk", flat=True)[:FOUND]
    yield rows.filter(email__startswith=text.lower()).values_list("pk", flat=True)[:FOUND]
    yield identities_of(_named(text))


def _named(text: str) -> list[Any]:
    """The keys of the users whose name begins so; or is so, where its column has a collation of its
    own: for one that is not deterministic PostgreSQL compares no beginnings."""
    model: Any = get_user_model()
    name = model.USERNAME_FIELD
    whole = getattr(model._meta.get_field(name), "db_collation", None)
    meant = {name if whole else f"{name}__startswith": text}
    return list(model._default_manager.filter(**meant).values_list("pk", flat=True)[:FOUND])


def identities_of(users: Iterable[Any]) -> Iterable[int]:
    keys = list(users)
    return Identity.objects.filter(user__in=keys).values_list("pk", flat=True) if keys else ()


def _of_sid(sid: str) -> Iterable[int]:
    """Whose session an OP calls so; sessions are found by a digest of iss and sid."""
    issuers = {iss for provider in conf.providers().values() for iss in provider.issuers()}
    digests = [digest(iss, sid) for iss in issuers]
    found = Session.objects.filter(sid_digest__in=digests)
    return found.values_list("identity_id", flat=True)[:FOUND]


def refusals_of(reference: str) -> list[Any]:
    """The events with this reference, which the page of a refusal tells; "" is nobody's."""
    text = reference.strip().lower().replace("\x00", "")
    if not 0 < len(text) <= LONGEST:
        return []
    return list(Event.objects.filter(reference=text)[:10])


def _of_reference(reference: str) -> Iterable[int]:
    events = refusals_of(reference)
    yield from (event.identity_id for event in events if event.identity_id is not None)
    yield from identities_of({event.user_id for event in events if event.user_id is not None})
