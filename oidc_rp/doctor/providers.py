"""Every provider that the settings name, those of callables as well, which no check calls."""

from dataclasses import dataclass, field
from typing import Any

from .. import conf
from ..checks import Read


@dataclass(frozen=True, slots=True)
class Providers:
    """What was read, and what could not be.

    read: by slug, (None, []) where the options cannot be had. unread: why they cannot be, by slug.
    problem: why not even the slugs can be had, "" where they can.
    """

    read: Read = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    problem: str = ""


class _CannotBeHad(Exception):
    """What a callable of the site raises or returns, without its values: they may be secrets."""


def find_providers() -> Providers:
    """Call each callable once, and read what it returns; nothing is logged."""
    try:
        named = _had(conf.given().get("PROVIDERS"))
    except _CannotBeHad as error:
        return Providers(problem=str(error))
    found = Providers(read := {})
    for slug, options in named.items():
        try:
            read[str(slug)] = conf.read_provider(slug, conf.with_defaults(_had(options)))
        except _CannotBeHad as error:
            read[str(slug)] = (None, [])
            found.unread[str(slug)] = str(error)
    return found


def _had(value: Any) -> dict[Any, Any]:
    """The dict, or what its callable returns at this moment; raises _CannotBeHad."""
    if isinstance(value, dict):
        return value
    try:
        found = conf.read_callable(value)
    except Exception as error:
        raise _CannotBeHad("it is neither a dict nor a callable that can be imported") from error
    try:
        options = found()
    except Exception as error:
        raise _CannotBeHad(f"its callable raises {type(error).__name__}") from error
    if not isinstance(options, dict):
        raise _CannotBeHad(f"its callable returns a {type(options).__name__}, which is no dict")
    return options
