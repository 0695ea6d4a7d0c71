from typing import Any

from django.contrib.auth.models import Group, Permission
from django.core.management import BaseCommand, call_command

MAY_VIEW = ["user", "group", "identity", "session", "grant", "event", "providercircuit"]
MAY_DO = ["end_sessions", "renew_tokens", "revoke_tokens", "unlink_identity"]


class Command(BaseCommand):
    """Prepare the database of the demo site; nothing is lost when run again."""

    help = __doc__ or ""

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        call_command("createcachetable", verbosity=0)
        support, _ = Group.objects.get_or_create(name="Support desk")
        names = [*(f"view_{name}" for name in MAY_VIEW), *MAY_DO]
        support.permissions.set(Permission.objects.filter(codename__in=names))
