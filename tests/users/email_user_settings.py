"""A site whose users are known by an address, without the admin and its templates."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as APPS

INSTALLED_APPS = [*(app for app in APPS if app != "django.contrib.admin"), "tests.users"]
AUTH_USER_MODEL = "users.EmailUser"
ROOT_URLCONF = "tests.users.urls"
