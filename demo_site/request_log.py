"""Logging for two development servers whose URLs carry authorization codes."""

import logging
from typing import Any


class PathOnly(logging.Filter):
    """Cut the query off logged request lines: a callback's query holds the authorization code."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_without_query, record.args))
        return True


def _without_query(argument: Any) -> Any:
    """Turn 'GET /callback/?code=x HTTP/1.1' into 'GET /callback/ HTTP/1.1'."""
    if not isinstance(argument, str) or "?" not in argument:
        return argument
    path, _, rest = argument.partition("?")
    _, space, version = rest.rpartition(" ")
    return f"{path}{space}{version}"


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"path_only": {"()": PathOnly}},
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "django": {"handlers": ["stderr"], "level": "INFO"},
        "django.server": {
            "handlers": ["stderr"],
            "filters": ["path_only"],
            "level": "INFO",
            "propagate": False,
        },
        "oidc_rp": {"handlers": ["stderr"], "level": "INFO"},
    },
}
