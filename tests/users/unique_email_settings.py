"""A site whose addresses are unique, on a database in a file that threads share."""

import os
import tempfile

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as APPS

INSTALLED_APPS = [*APPS, "tests.users"]
AUTH_USER_MODEL = "users.UniqueEmailUser"
AUTHENTICATION_BACKENDS = [
    "tests.users.backends.Meeting",
    "django.contrib.auth.backends.ModelBackend",
]
DATABASE_FILE = os.path.join(tempfile.mkdtemp(), "test.sqlite3")
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE_FILE,
        "TEST": {"NAME": DATABASE_FILE},
    }
}
