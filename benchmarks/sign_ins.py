"""Browser sessions by number: all that tells one from another follows from that."""

from hashlib import md5
from typing import NamedTuple
from uuid import UUID

SESSIONS_OF_A_PERSON = 2
GRANT_EVERY = 4
"""One session of so many has a grant of its own: the first one of every second person."""


class SignIn(NamedTuple):
    """A browser session of a person. has_grant: one that ends with it."""

    number: int
    person: int
    has_grant: bool

    @property
    def sid(self) -> str:
        return str(UUID(_text("sid", self.number)))

    @property
    def sub(self) -> str:
        return sub_of(self.person)

    @property
    def session_key(self) -> str:
        return _text("session", self.number)


def usual(number: int) -> SignIn:
    """One of the many."""
    return SignIn(number, number // SESSIONS_OF_A_PERSON, number % GRANT_EVERY == 0)


def sub_of(person: int) -> str:
    return str(UUID(_text("sub", person)))


def _text(kind: str, number: int) -> str:
    return md5(f"{kind} {number}".encode()).hexdigest()
