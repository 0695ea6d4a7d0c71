"""The demo site with every logger at DEBUG, SQL and its parameters included."""

from copy import deepcopy
from typing import Any

from demo_site.request_log import LOGGING as USUAL
from demo_site.settings import *  # noqa: F403

LOGGING: dict[str, Any] = deepcopy(USUAL)
LOGGING["root"] = {"handlers": ["stderr"], "level": "DEBUG"}
for logger in LOGGING["loggers"].values():
    logger["level"] = "DEBUG"
    logger["propagate"] = False
