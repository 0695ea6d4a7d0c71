"""How sites keep tokens that write it themselves: a row for each user."""

from typing import Any

from django.conf import settings
from django.db import models


class PlainToken(models.Model):
    """A user's tokens. expires_at: seconds since the epoch, of the access token."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    access_token = models.TextField()
    refresh_token = models.TextField()
    expires_at = models.FloatField()

    def __str__(self) -> str:
        return f"tokens of {self.user_id}"

    def take(self, response: dict[str, Any], now: float) -> None:
        """Take over a token response."""
        self.access_token = response["access_token"]
        self.refresh_token = response.get("refresh_token", self.refresh_token)
        self.expires_at = now + response["expires_in"]

    def as_dict(self, now: float) -> dict[str, Any]:
        """Return the token as OAuth libraries have it."""
        return {
            "token_type": "Bearer",
            "access_token": self.access_token,
            "refresh_token": self.refresh_token,
            "expires_at": self.expires_at,
            "expires_in": self.expires_at - now,
        }
