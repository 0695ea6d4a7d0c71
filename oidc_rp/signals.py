"""What the app tells a site. Sent after commit; a receiver that fails is logged and breaks nothing.

Every signal's sender is the class oidc_rp.models.Identity; all arguments are keywords.
"""

from functools import partial
from typing import Any

from django.db import router, transaction
from django.db.models import Model
from django.dispatch import Signal

signed_in = Signal()
"""Somebody signed in: request, user, identity."""

identity_linked = Signal()
"""An identity now belongs to a user, new or known: request, user, identity."""

identity_unlinked = Signal()
"""An identity belongs to nobody any more: user, identity. Sent whoever unlinked it, an operator in
the admin as well, and not when the user was deleted with it."""

tokens_refreshed = Signal()
"""New tokens are stored: identity, grant. Sent from the thread that refreshed them."""

grant_closed = Signal()
"""No token can be had from a grant any more: identity, grant, reason (str)."""

login_failed = Signal()
"""A login was refused: request, provider (slug or None), error (OIDCError), reference (str)."""


def send_after_commit(signal: Signal, sender: type[Model], **arguments: Any) -> None:
    """Send when the current transaction is committed, at once where there is none."""
    told = partial(signal.send_robust, sender, **arguments)
    transaction.on_commit(told, using=router.db_for_write(sender))
