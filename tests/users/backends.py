"""A backend whose sign-ins wait for each other, so that they really come at once."""

from threading import Barrier
from typing import Any

from oidc_rp.backends import OIDCBackend

meeting = Barrier(1)
"""What the next sign-ins meet at before any of them creates a user; a test replaces it."""


class Meeting(OIDCBackend):
    def create_user(self, claims: Any) -> Any:
        meeting.wait(timeout=10)
        return super().create_user(claims)
