"""Every error of oidc_rp, divided by who has to act.

    OIDCError
    ├── ConfigurationError    our settings cannot be used: the developer
    ├── TransportError        the OP cannot be reached or understood: its operator, or the network's
    ├── OPError               the OP said no, in its own words
    ├── InvalidResponse       the OP's message, or the browser's, breaks the specification
    │   ├── InvalidJOSE         a JWS that cannot be trusted, before we know what it is for
    │   └── InvalidIdToken      an ID Token that fails a check of Core §3.1.3.7; .claim names it
    ├── LoginRefused          all is well formed, our policy says no
    ├── LoginRequired         no token can be had until the person signs in again; .login_url
    │   └── StepUpRequired      ... and more recently, or more strongly, than they did; .step_up
    ├── TemporarilyUnavailable  nothing is lost, only later: after .retry_after seconds
    ├── OriginNotAllowed      a token would go where no token of this provider may go: the developer
    ├── InsufficientScope     an API asks for more than was granted; .scopes, .login_url
    └── SealError             what is stored does not open: the operator of this site

Codes are stable: tests, logs and the reference in the README name them. Messages may change.
No code, message, `expected` or `received` ever holds a token, authorization code, secret or state;
of a URL, which others may have written, neither what stands before its host, nor query or fragment.
"""

import copyreg
import re
from typing import Any


def url_without_secrets(url: str) -> str:
    """A URL without what may be a password: before its host, in its query or its fragment."""
    return _without_query(_without_password(url))


def _without_password(url: str) -> str:
    before, at, host = url.rpartition("@")
    scheme = before.partition("//")[0] + "//" if "//" in before else ""
    return f"{scheme}***@{host}" if at else url


def _without_query(url: str) -> str:
    return _QUERY_OR_FRAGMENT.sub(r"\1***", url)


_QUERY_OR_FRAGMENT = re.compile(r"([?#]).*", re.DOTALL)


def _without_secrets(value: Any) -> Any:
    """The same, of every text in here that may be a URL, however it is nested."""
    if isinstance(value, str):
        may_be = "/" in value or ":" in value.rpartition("@")[0]  # no address of e-mail
        return url_without_secrets(value) if may_be else _without_query(value)
    if isinstance(value, dict):
        return {_without_secrets(name): _without_secrets(item) for name, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind(map(_without_secrets, value))
    return value


class OIDCError(Exception):
    """An error with a stable `code`, and what was expected and received where that is no secret."""

    def __init__(
        self, code: str, message: str = "", *, expected: object = None, received: object = None
    ) -> None:
        self.code = code
        self.message = message or code
        self.expected = _without_secrets(expected)
        self.received = _without_secrets(received)
        super().__init__(f"{code}: {self.message}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles, as task queues make them, are of this class, whatever it takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigurationError(OIDCError):
    """The settings of this site or of one provider cannot be used."""


class TransportError(OIDCError):
    """The OP cannot be reached, is too slow, answers too much, or not in its own language.

    sent: False when certainly no octet of the request has left: to repeat it spends nothing twice.
    status, retry_after (seconds): of an answer that is not the OP's own, such as a proxy's page.
    """

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        expected: object = None,
        received: object = None,
        sent: bool = True,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.sent = sent
        self.status = status
        self.retry_after = retry_after
        super().__init__(code, message, expected=expected, received=received)


class OPError(OIDCError):
    """The OP answered with an error (RFC 6749 §4.1.2.1 and §5.2, Core §3.1.2.6).

    error: the OP's `error`, e.g. "access_denied"; at most 64 characters of the spec's alphabet.
    error_description: the OP's own words, cut short; whoever shows them escapes them.
    status, retry_after (seconds): how it came, where it came from the OP directly.
    """

    status: int | None = None
    retry_after: float | None = None

    def __init__(self, where: str, error: str, error_description: str = "") -> None:
        self.error = error
        self.error_description = error_description
        code = error if error in KNOWN_OP_ERRORS else "error"
        super().__init__(f"{where}.{code}", "the OP answered with an error", received=error)


class InvalidResponse(OIDCError):
    """A message from the OP or through the browser breaks the specification."""


class InvalidJOSE(InvalidResponse):
    """A JWS, JOSE header or key that is refused; `code` is bare ("alg"), its reader prefixes it."""


class InvalidIdToken(InvalidResponse):
    """An ID Token that fails a check; `claim` is the claim or header member that failed."""

    def __init__(
        self, claim: str, message: str = "", *, expected: object = None, received: object = None
    ) -> None:
        self.claim = claim
        super().__init__(f"id_token.{claim}", message, expected=expected, received=received)


class LoginRefused(OIDCError):
    """The OP vouches for this person, and our policy still says no.

    identity, user: keys of who it is, where that person is known here.
    """

    identity: Any = None
    user: Any = None


class LoginRequired(OIDCError):
    """No token can be had for this person until a new login; no API has done anything.

    login_url: where that login starts, on this site; "" where no page can start one.
    """

    def __init__(self, code: str, message: str = "", *, login_url: str = "") -> None:
        self.login_url = login_url
        super().__init__(code, message)


class StepUpRequired(LoginRequired):
    """A view or an API wants a more recent or a stronger authentication (RFC 9470 §3).

    step_up: what is wanted, a protocol.authentication.StepUp.
    """

    def __init__(self, code: str, message: str = "", *, step_up: Any, login_url: str = "") -> None:
        self.step_up = step_up
        super().__init__(code, message, login_url=login_url)


class TemporarilyUnavailable(OIDCError):
    """No token can be had at the moment, and nothing is lost; no API has done anything.

    retry_after: seconds after which it is worth another try.
    """

    def __init__(self, code: str, message: str = "", *, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(code, message)


class OriginNotAllowed(OIDCError):
    """A token for one API was about to go to the origin of another; nothing was sent (M54)."""


class InsufficientScope(OIDCError):
    """An API wants scopes that were not granted (RFC 6750 §3.1).

    scopes: those that are missing. login_url: the login of this site that asks for them.
    """

    def __init__(self, scopes: tuple[str, ...], *, login_url: str = "") -> None:
        self.scopes = scopes
        self.login_url = login_url
        message = f"more scopes are needed: {' '.join(scopes)}" if scopes else "the API says so"
        super().__init__("api.insufficient_scope", message, expected=scopes)


class SealError(OIDCError):
    """A stored token that is not what was sealed, or whose key is not in TOKEN_KEYS (M51)."""


# RFC 6749 §4.1.2.1 and §5.2, Core §3.1.2.6, RFC 9126 §2.3, RFC 6750 §3.1, RFC 8707 §2, RFC 9470 §3,
# RFC 7009 §2.2.1, RFC 9449 §8
KNOWN_OP_ERRORS = frozenset(
    """
    access_denied account_selection_required consent_required insufficient_scope
    insufficient_user_authentication interaction_required invalid_client invalid_grant
    invalid_request invalid_request_object invalid_request_uri invalid_scope invalid_target
    invalid_token login_required registration_not_supported request_not_supported
    request_uri_not_supported server_error temporarily_unavailable unauthorized_client
    unmet_authentication_requirements unsupported_grant_type unsupported_response_type
    unsupported_token_type use_dpop_nonce
    """.split()
)
