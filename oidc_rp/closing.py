"""The end of a grant (T18): logout, another login, unlinking, a user who is no longer active.

The grant is closed first and the OP told after commit: whoever is refreshing it comes too late, and
an OP that is down keeps nobody signed in (M56, M60).
"""

import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.db import DatabaseError, InterfaceError

from . import conf, grants, signals
from .models import Grant, Identity
from .protocol.tokens import RefreshToken
from .sessions import grant_of

logger = logging.getLogger("oidc_rp")


def end(grant_id: str, reason: str, *, revoke: bool = True, actor: str = "") -> bool:
    """Close a grant, whoever may be refreshing it, and tell the OP after commit.

    reason: one of those in grants.py. Returns whether it was open.
    """
    for attempt in range(grants.ATTEMPTS):
        grant = grants.load(grant_id, locked=attempt > 0)
        if grant is None or grant.status != Grant.OPEN:
            return False
        if grants.close(grant, reason, revoke=revoke):
            tell_closed(grant, reason, "", actor)
            return True
    logger.error("grant %s: not closed, it changes all the time", grant_id)
    return False


def end_session_grant(
    grant_id: str, reason: str, *, heir: RefreshToken | None = None, actor: str = ""
) -> bool:
    """Close the grant that a browser session leaves behind; a durable one outlives it.

    It is revoked where that ends nothing but this very grant. heir: the token that follows it,
    which may be the same one.
    """
    bound = Grant.objects.using(grants.database()).select_related("identity")
    grant = bound.filter(pk=grant_id, durable=False).first() if grant_id else None
    if grant is None:
        return False
    provider = conf.providers().get(grant.provider)
    revoke = provider is not None and grants.revokes_superseded(provider)
    revoke = revoke and (heir is None or grants.opened(grant) != heir)
    return end(grant_id, reason, revoke=revoke, actor=actor)


def forget_session(request: Any, **_: Any) -> None:
    """End this session's own grant; a receiver of user_logged_out, and of a local user_logged_in.

    A database that fails keeps nobody signed in (M56); oidc_prune closes the grant then.
    """
    if not hasattr(request, "session"):
        return
    try:
        end_session_grant(grant_of(request.session), grants.LOGOUT)
    except (DatabaseError, InterfaceError):
        logger.exception("the grant of a session that ends was not closed")


def forget_replaced_session(request: Any, user: Any, **_: Any) -> None:
    """End this session's grant when its user signs in anew by other means than an OP."""
    if not hasattr(user, "oidc_sign_in"):
        forget_session(request)


def forget_user(instance: Any, created: bool, **_: Any) -> None:
    """End every grant of a user who is no longer active; a receiver of the user's post_save."""
    if not isinstance(instance, get_user_model()) or created or instance.is_active:
        return
    rows = Grant.objects.using(grants.database()).filter(status=Grant.OPEN)
    for grant_id in rows.filter(identity__user=instance).values_list("pk", flat=True):
        end(grant_id, grants.DEACTIVATED)


def forget_grant(instance: Any, **_: Any) -> None:
    """Have the refresh token of a deleted grant revoked; a receiver of its pre_delete, which comes
    also when its identity or user is deleted."""
    # As it stands now: somebody may be refreshing it, and nobody may begin until it is deleted.
    grant = grants.load(instance.pk, locked=True)
    token = grants.opened(grant) if grant is not None and grant.status == Grant.OPEN else None
    if token is not None:
        grants.pend_revocation(grant, token, grants.UNLINKED)


def tell_closed(grant: Any, reason: str, code: str, actor: str = "") -> None:
    """Say that a grant is closed: in its timeline, and to whoever listens."""
    grants.note(grant, "closed", reason, actor)
    told = {"identity": grant.identity, "grant": grant, "reason": reason}
    signals.send_after_commit(signals.grant_closed, Identity, **told)
