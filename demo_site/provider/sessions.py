"""The provider's own login session: when somebody gave the password, and what else."""

import time
from math import inf
from secrets import token_urlsafe

from django.http import HttpRequest

from demo_site.provider.models import PASSWORD, SECOND_FACTOR

LOGIN = "login"  # in Django's session: the fields of a models.Login


def begin(request: HttpRequest) -> None:
    """Write down that the password was given just now. Who gives it again stays in one session."""
    session = request.session.get(LOGIN, {}).get("session") or token_urlsafe(16)
    auth_time = int(time.time())
    request.session[LOGIN] = {"session": session, "auth_time": auth_time, "acr": PASSWORD}


def add_second_factor(request: HttpRequest) -> None:
    request.session[LOGIN] = {**request.session[LOGIN], "acr": SECOND_FACTOR}


def is_older_than(seconds: int, request: HttpRequest) -> bool:
    """Say whether the password was given longer ago; of no login that is true, too."""
    auth_time: float = request.session.get(LOGIN, {}).get("auth_time", -inf)
    return time.time() - auth_time >= seconds
