from typing import Any

from django.db import migrations

from oidc_rp.models import email_of

BATCH = 1000


def fill(apps: Any, schema_editor: Any) -> None:
    """Give the rows there are what the new columns say: an address, and whose events they are."""
    using = schema_editor.connection.alias
    identity_of = apps.get_model("oidc_rp", "Identity").objects.using(using)
    event_of = apps.get_model("oidc_rp", "Event").objects.using(using)
    last = 0
    while page := list(identity_of.filter(pk__gt=last).order_by("pk")[:BATCH]):
        last = page[-1].pk
        for identity in page:
            identity.email = email_of(identity.claims)
            whose = {"user_id": identity.user_id, "provider": identity.provider}
            event_of.filter(identity_id=identity.pk).update(**whose)
        identity_of.bulk_update(page, ["email"])


class Migration(migrations.Migration):
    dependencies = [("oidc_rp", "0004_operations")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop, elidable=True)]
