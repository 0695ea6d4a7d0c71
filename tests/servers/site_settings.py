"""A site on a server of its own, for several processes: SITE is a JSON object in the environment.

database: an entry for DATABASES. secret_key. oidc_rp: OIDC_RP. api: the URL that the views call.
cache: an entry for CACHES, or null for a memory of each process's own. settings: any others.
Every request is one transaction, but for the views that say otherwise.
"""

import json
import os

from tests.settings import *  # noqa: F403

SITE = json.loads(os.environ["SITE"])
SECRET_KEY = SITE["secret_key"]
DATABASES = {"default": {"ATOMIC_REQUESTS": True, **SITE["database"]}}
OIDC_RP = SITE["oidc_rp"]
API = SITE["api"]
if SITE.get("cache"):
    CACHES = {"default": SITE["cache"]}
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "tests.servers.site"
globals().update(SITE.get("settings", {}))
