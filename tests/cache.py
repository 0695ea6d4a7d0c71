"""Caches that fail, each in its own way."""

from typing import Any

from django.core.cache.backends.base import BaseCache


class RaisingCache(BaseCache):
    """Its server is down, and it says so."""

    def __init__(self, location: str, params: dict[str, Any]) -> None:
        super().__init__(params)

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        raise ConnectionError("the cache server is down")

    add = get = set = touch = delete = clear = _fail


class SilentCache(RaisingCache):
    """Its server is down, and it keeps that to itself."""

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        return None

    add = get = set = touch = delete = clear = _fail
