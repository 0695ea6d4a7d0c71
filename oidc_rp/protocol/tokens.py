"""Three tokens, three jobs: distinct types, so that one cannot stand in for another.

What passes through here is a secret. `str()` and `repr()` are redacted, so that no log line,
traceback or debug page shows it; whoever must send it asks for `.reveal()`, which is easy to grep.
"""


class _Secret:
    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself, for the one place that sends or validates it."""
        return self._value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: redacted>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash((type(self), self._value))

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{type(self).__name__} is not serialised")


class IdToken(_Secret):
    """Proof, for this site, that somebody signed in (Core §2); not yet validated, not for APIs."""


class AccessToken(_Secret):
    """A key for an API (RFC 6749 §1.4). Opaque to us; never proof of who signed in."""


class RefreshToken(_Secret):
    """A key for new access tokens (RFC 6749 §1.5)."""


class AuthorizationCode(_Secret):
    """What the browser brings back, good once at the token endpoint (RFC 6749 §1.3.1)."""


class ClientSecret(_Secret):
    """The secret that this client shares with the OP (RFC 6749 §2.3.1)."""


class PrivateKey(_Secret):
    """A private JWK (RFC 7517) as JSON text, for client assertions and for nothing else."""
