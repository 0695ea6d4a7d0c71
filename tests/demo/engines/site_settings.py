import os

from demo_site.installation import FOLDER
from demo_site.settings import *  # noqa: F403

SESSION_ENGINE = f"django.contrib.sessions.backends.{os.environ['DEMO_SESSION_ENGINE']}"
SESSION_FILE_PATH = str(FOLDER)
