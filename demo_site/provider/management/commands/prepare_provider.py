from typing import Any

from django.contrib.auth.models import Group, User
from django.core.management import BaseCommand, call_command
from oauth2_provider.models import get_application_model

from demo_site.installation import (
    HS256_CLIENT_ID,
    RS256_CLIENT_ID,
    SITE_ORIGINS,
    USERNAME,
    load_secrets,
)


class Command(BaseCommand):
    """Prepare the embedded provider: its database, its two users, its two clients."""

    help = __doc__ or ""

    def handle(self, *args: Any, **options: Any) -> None:
        secrets = load_secrets()
        call_command("migrate", verbosity=0, interactive=False)
        _keep_user(USERNAME, "Inês", "Calder", secrets.password, groups=["staff"])
        _keep_user("rui", "Rui", "Tavares", secrets.password, groups=[])
        _keep_client(RS256_CLIENT_ID, "demo-rs256", "RS256", secrets.rs256_client_secret)
        _keep_client(HS256_CLIENT_ID, "demo-hs256", "HS256", secrets.hs256_client_secret)


def _keep_user(
    username: str, first_name: str, last_name: str, password: str, *, groups: list[str]
) -> None:
    email = f"{username}@demo.example"
    names = {"first_name": first_name, "last_name": last_name, "email": email}
    user, _ = User.objects.update_or_create(username=username, defaults=names)
    user.groups.set([Group.objects.get_or_create(name=name)[0] for name in groups])
    if not user.check_password(password):
        user.set_password(password)
        user.save()


def _keep_client(client_id: str, slug: str, algorithm: str, client_secret: str) -> None:
    """Register a client; its secret is kept as it is, because HS256 signs with it."""
    Application = get_application_model()
    here = [f"{origin}/oidc/{slug}/callback/" for origin in SITE_ORIGINS]
    afterwards = [f"{origin}/oidc/logged-out/" for origin in SITE_ORIGINS]
    defaults = {
        "name": "Demo Site",
        "client_type": Application.CLIENT_CONFIDENTIAL,
        "authorization_grant_type": Application.GRANT_AUTHORIZATION_CODE,
        "redirect_uris": " ".join(here),
        "post_logout_redirect_uris": " ".join(afterwards),
        "client_secret": client_secret,
        "hash_client_secret": False,
        "algorithm": algorithm,
        "skip_authorization": True,
    }
    Application.objects.update_or_create(client_id=client_id, defaults=defaults)
