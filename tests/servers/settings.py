"""The test site on another database: DATABASE is sqlite (a file), postgresql or mariadb."""

import os

from tests.servers import mariadb, postgresql, sqlite
from tests.settings import *  # noqa: F403

STARTERS = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mariadb}

DATABASES = {"default": STARTERS[os.environ["DATABASE"]]().settings()}
