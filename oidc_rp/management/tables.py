"""What the commands need before they begin."""

from django.apps import apps
from django.core.management import CommandError
from django.db import DatabaseError, connections, router


def require_tables(using: str) -> None:
    """Raise CommandError unless this database can be used, and has the tables of oidc_rp."""
    if using not in connections:
        raise CommandError(f"DATABASES has no {using!r}.")
    try:
        there = set(connections[using].introspection.table_names())
    except DatabaseError as error:
        raise CommandError(f"Database {using!r} cannot be used: {error}") from error
    if (
        not {
            model._meta.db_table
            for model in apps.get_app_config("oidc_rp").get_models()
            if router.allow_migrate_model(using, model)
        }
        <= there
    ):
        raise CommandError(
            f"Database {using!r} lacks tables of oidc_rp; run `manage.py migrate` first."
        )
