"""Time travel for kept tokens: the rows are as they will be then, no clock is moved."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.apps import apps

LIFETIME = 3600.0
"""Seconds that the tokens are said to have lived for in all."""


def expire_tokens(user: Any = None, left: float = 0) -> int:
    """Have the kept access tokens, or those of one user, end in so many seconds; return how many.

    With some time left a token is one to renew soon, and still works. By the database's clock. The
    OP goes on taking them: see OpenIDProvider.expire_access_tokens.
    """
    # By way of the registry, so that the kit can be imported before there are any models.
    models: Any = apps.get_app_config("oidc_rp").models_module
    tokens = models.StoredAccessToken.objects.all()
    if user is not None:
        tokens = tokens.filter(grant__identity__user=user)
    sent_at = models.DatabaseClock(timedelta(seconds=left - LIFETIME))
    expires_at = models.DatabaseClock(timedelta(seconds=left))
    return int(tokens.update(sent_at=sent_at, expires_at=expires_at))
