from typing import Any

from django.contrib.auth.models import Group, Permission
from django.core.management import BaseCommand, call_command

MAY_VIEW = ["user", "group", "identity", "grant", "event"]


class Command(BaseCommand):
    """Prepare the database of the demo site; nothing is lost when run again."""

    help = __doc__ or ""

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", verbosity=0, interactive=False)
        call_command("createcachetable", verbosity=0)
        viewers, _ = Group.objects.get_or_create(name="Identity viewers")
        viewers.permissions.set(
            Permission.objects.filter(codename__in=[f"view_{name}" for name in MAY_VIEW])
        )
