"""What is wrong with a configuration, found before a user finds it: `manage.py oidc_doctor`.

The settings are looked at, Django's checks of oidc_rp among them, and each OP is asked twice: for
its metadata and for its keys, through the hardened transport and past every cache. Nothing is
stored, and no secret is sent.
"""

from .examination import examine, slugs
from .findings import ERROR, OK, WARNING, Finding

__all__ = ["ERROR", "OK", "WARNING", "Finding", "examine", "slugs"]
