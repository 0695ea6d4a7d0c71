"""What the provider remembers of a login, for the ID Tokens that come of it."""

from typing import Any

from django.db import models
from django.utils.crypto import salted_hmac

PASSWORD = "urn:demo:password"
SECOND_FACTOR = "urn:demo:second-factor"
AMR = {PASSWORD: ["pwd"], SECOND_FACTOR: ["pwd", "otp"]}  # by acr; the words are RFC 8176's


class Login(models.Model):
    """A login as it was when a client got an authorization code. The ID Tokens of that code, and
    of the refresh tokens after it, tell this, whatever the person does here meanwhile (Core §12.2).

    session: names the provider's own login session. auth_time: seconds since the epoch.
    """

    client = models.ForeignKey("oauth2_provider.Application", models.CASCADE)
    session = models.CharField(max_length=32, db_index=True)
    auth_time = models.PositiveBigIntegerField()
    acr = models.CharField(max_length=64)
    grant = models.OneToOneField("oauth2_provider.Grant", models.SET_NULL, null=True)
    id_tokens = models.ManyToManyField("oauth2_provider.IDToken")

    def __str__(self) -> str:
        return f"{self.client}, {self.acr}"

    @property
    def claims(self) -> dict[str, Any]:
        return {
            "sid": sid_of(self.session, self.client),
            "auth_time": self.auth_time,
            "acr": self.acr,
            "amr": AMR[self.acr],
        }


def sid_of(session: str, client: Any) -> str:
    """Return how a client knows a login session: each by another name."""
    return salted_hmac("sid", f"{client.client_id} {session}", algorithm="sha256").hexdigest()
