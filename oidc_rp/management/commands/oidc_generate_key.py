"""Print a new key for OIDC_RP["TOKEN_KEYS"]."""

from typing import Any

from django.core.management import BaseCommand

from ...sealing import generate_key


class Command(BaseCommand):
    """Print a new key for OIDC_RP["TOKEN_KEYS"], and nothing else."""

    help = __doc__ or ""
    requires_system_checks = ()  # they ask for the key that this prints

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(generate_key())
        if self.stdout.isatty():
            self.stderr.write(
                "Keep it like a password, apart from SECRET_KEY. Put it first in "
                "OIDC_RP['TOKEN_KEYS'], then run oidc_reseal; older keys stay until that is done.",
                self.style.NOTICE,
            )
