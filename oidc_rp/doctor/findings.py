"""What the doctor says: findings, each with why it matters and how to mend it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..errors import url_without_secrets

OK, WARNING, ERROR = "ok", "warning", "error"


MAX_SHOWN = 200
"""Characters of what an OP says that are repeated."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    code: stable, "doctor.<name>" or the id of a system check. level: OK, WARNING or ERROR.
    provider: its slug, "" for what concerns the whole site. what: one line, and for what is not in
    order why it matters and how to mend it; a system check tells both in `mend`.
    """

    code: str
    level: str
    provider: str
    what: str
    why: str = ""
    mend: str = ""


def fine(code: str, what: str) -> Finding:
    return Finding(f"doctor.{code}", OK, "", what)


def doubtful(code: str, what: str, why: str, mend: str) -> Finding:
    return Finding(f"doctor.{code}", WARNING, "", what, why, mend)


def wrong(code: str, what: str, why: str, mend: str) -> Finding:
    return Finding(f"doctor.{code}", ERROR, "", what, why, mend)


def texts(values: Collection[Any]) -> set[str]:
    return {value for value in values if isinstance(value, str)}


def listed(values: object) -> str:
    names = values if isinstance(values, list | tuple | set | frozenset) else [values]
    return shown(", ".join(sorted(map(str, names))) or "nothing")


def shown_url(value: object) -> str:
    """A URL, or what stands in its place, without what may be a password."""
    return shown(url_without_secrets(str(value)))


def shown(value: object) -> str:
    """What strangers say, on one line of a terminal and not too long."""
    text = str(value)[:MAX_SHOWN]
    return "".join(char if char.isprintable() else " " for char in text)
