"""What an operator may do to linked identities, after a question and each by its own permission."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from django.contrib import messages
from django.db import DatabaseError, InterfaceError, connections, transaction
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from . import accounts, closing, grants, refresh
from .errors import OIDCError
from .models import Grant, Identity
from .own_connection import detached, must_share

logger = logging.getLogger("oidc_rp")

T = TypeVar("T")

_REFUSED = (DatabaseError, InterfaceError)

AT_ONCE = 100
"""The most identities that one action is for: an OP may have to be asked for each of them."""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of an action, for the operator; level: of django.contrib.messages. identity: the
    key of the one that it is about, None for all that were chosen."""

    level: int
    text: str | Promise
    identity: Any = None


@dataclass(frozen=True, slots=True)
class Action:
    """name: also the codename of its permission. run: with the identities and who acts."""

    name: str
    label: str | Promise
    question: str | Promise
    run: Callable[[Sequence[Identity], str], list[Told]]

    @property
    def slug(self) -> str:
        """In its URL."""
        return self.name.replace("_", "-")


def _end_sessions(identities: Sequence[Identity], actor: str) -> list[Told]:
    """Of all at once; of one after the other where the database refuses that."""

    def end(these: Sequence[Identity]) -> int:
        return closing.sign_out(these, grants.LOGOUT, actor=actor)

    refused: list[Told] = []
    try:
        with _savepoint():
            done = [end(identities)]
    except _REFUSED:
        done, refused = _for_each(identities, lambda one: end([one]))
    text = ngettext("%(count)d session ended.", "%(count)d sessions ended.", sum(done))
    return [*_counted(text, done, refused), *refused]


def _revoke_tokens(identities: Sequence[Identity], actor: str) -> list[Told]:
    done, refused = _for_each(
        _open_grants(identities),
        lambda grant: int(closing.end(grant.pk, grants.REVOKED, actor=actor)),
    )
    text = ngettext(
        "%(count)d grant closed; the provider is told.",
        "%(count)d grants closed; the provider is told.",
        sum(done),
    )
    return [*_counted(text, done, refused), *refused]


def _counted(text: str, done: Sequence[int], refused: Sequence[Told]) -> list[Told]:
    """How much was done, where not all of it was refused."""
    if refused and not done:
        return []
    return [Told(messages.SUCCESS, text % {"count": sum(done)})]


def _renew_tokens(identities: Sequence[Identity], actor: str) -> list[Told]:
    renewable = [grant for grant in _open_grants(identities) if grant.key_id]
    done, refused = _for_each(
        renewable, lambda grant: _outside_transactions(lambda: _renewed(grant))
    )
    nothing = Told(messages.WARNING, _("There is no refresh token to renew with."))
    return [*done, *refused] or [nothing]


def _renewed(grant: Any) -> Told:
    """Renew one grant, and say what came of it; a refusal is an answer, too."""
    which = {"grant": grant.pk[-8:], "code": ""}
    whose = grant.identity_id
    try:
        done = refresh.renew_early(grant.pk, grant.generation)
    except OIDCError as error:
        which["code"] = error.code
        return Told(messages.ERROR, _("Grant %(grant)s was not renewed: %(code)s.") % which, whose)
    if not done:
        return Told(
            messages.WARNING, _("Somebody else is renewing grant %(grant)s.") % which, whose
        )
    return Told(messages.SUCCESS, _("Grant %(grant)s is renewed.") % which, whose)


def _unlink_identity(identities: Sequence[Identity], actor: str) -> list[Told]:
    done, refused = _for_each(identities, lambda one: _unlinked(one, actor))
    return [*done, *refused]


def _unlinked(one: Identity, actor: str) -> Told:
    key, names = one.pk, {"identity": str(one), "user": str(one.user)}
    stays = stays_linked(one)
    if not accounts.unlink(one, actor):
        return Told(messages.ERROR, stays, key)
    return Told(messages.SUCCESS, _("Unlinked from %(user)s: %(identity)s.") % names, key)


def stays_linked(identity: Identity) -> str:
    """Why somebody's last way in cannot go."""
    names = {"identity": str(identity), "user": str(identity.user)}
    return _("Not unlinked, as the only way for %(user)s to sign in: %(identity)s.") % names


def _open_grants(identities: Sequence[Identity]) -> list[Any]:
    rows: Any = Grant.objects.using(grants.database()).filter(status=Grant.OPEN)
    theirs = rows.filter(identity__in=[one.pk for one in identities])
    told = ("provider", "status")  # what a grant is called
    return list(theirs.only("generation", "key_id", "identity_id", *told).order_by("pk"))


def _for_each(items: Iterable[Any], act: Callable[[Any], T]) -> tuple[list[T], list[Told]]:
    """Act on each identity or grant; return what came of it, and of which the database refused it.

    That is a lock that somebody holds, or a model of the site that protects what it refers to. It
    keeps no other from its turn, and leaves a transaction of the request's as it was.
    """
    done, refused = [], []
    for item in items:
        names, whose = {"what": str(item)}, getattr(item, "identity_id", item.pk)
        try:
            with _savepoint():
                done.append(act(item))
        except _REFUSED as error:
            logger.exception("admin: the database refused it: %s", names["what"])
            names["why"] = type(error).__name__
            text = _("The database refused it: %(what)s, %(why)s.") % names
            refused.append(Told(messages.ERROR, text, whose))
    return done, refused


def _savepoint() -> AbstractContextManager[None]:
    alias = grants.database()
    return transaction.atomic(using=alias) if connections[alias].in_atomic_block else nullcontext()


def _outside_transactions(work: Callable[[], T]) -> T:
    """Do it here, or in a thread of its own where a transaction of the request's would hold it."""
    alias = grants.database()
    if connections[alias].in_atomic_block and not must_share(alias):
        return detached(work).result()
    return work()


ACTIONS = (
    Action(
        "end_sessions",
        _("End sessions"),
        _("Sign out in every browser? Tokens for background jobs stay."),
        _end_sessions,
    ),
    Action(
        "renew_tokens",
        _("Renew tokens now"),
        _("Renew now? Each refresh token is spent at the provider, which answers with new ones."),
        _renew_tokens,
    ),
    Action(
        "revoke_tokens",
        _("Revoke tokens at the provider"),
        _("Close every grant, and revoke it at the provider? Only a new sign-in brings another."),
        _revoke_tokens,
    ),
    Action(
        "unlink_identity",
        _("Unlink from the user"),
        _("Delete the identity, its sessions and its grants? The user stays."),
        _unlink_identity,
    ),
)
