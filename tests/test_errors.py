"""Errors travel: to another process by pickle, as task queues send them, and through copies."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oidc_rp import errors
from oidc_rp.errors import OIDCError
from oidc_rp.protocol.authentication import StepUp


def op_error() -> errors.OPError:
    """With what its reader adds."""
    error = errors.OPError("refresh", "invalid_grant", "it was used before")
    error.status, error.retry_after = 400, 2.5
    return error


EXAMPLES: list[OIDCError] = [
    OIDCError("some.code", "a message", expected=["one"], received=None),
    errors.ConfigurationError("provider.unknown", "no provider of this name"),
    errors.TransportError("transport.tls", expected="https://op.example", sent=False, status=502),
    op_error(),
    errors.InvalidResponse("token.token_type", expected="Bearer", received="mac"),
    errors.InvalidJOSE("alg"),
    errors.InvalidIdToken("aud", "names an untrusted audience", expected="rp", received=["x"]),
    errors.LoginRefused("account.inactive"),
    errors.LoginRequired("grant.logout", "the grant has ended", login_url="/oidc/op/login/"),
    errors.StepUpRequired("api.step_up", step_up=StepUp(300, ("gold",)), login_url="/login/"),
    errors.TemporarilyUnavailable("refresh.waiting", retry_after=1.0),
    errors.OriginNotAllowed("api.origin", received="https://other.example"),
    errors.InsufficientScope(("calendar", "mail"), login_url="/oidc/op/login/?scopes=x"),
    errors.SealError("seal.key_unknown", received="0123456789abcdef"),
]


def pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle {number}": pickled(number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
}


def tree(kind: type[OIDCError]) -> Iterator[type[OIDCError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def test_every_error_of_the_tree_has_an_example() -> None:
    """A new one is tried here, too."""
    ours = {kind for kind in tree(OIDCError) if kind.__module__.startswith("oidc_rp")}
    assert {type(error) for error in EXAMPLES} == ours


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives(error: OIDCError, way: Callable[[Any], Any]) -> None:
    """Class, code, message and all attributes are those that it had."""
    again = way(error)
    assert type(again) is type(error)
    assert again is not error
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


class OfASite(errors.LoginRefused):
    """A hook's own error, made in its own way."""

    def __init__(self, person: str, *, department: str) -> None:
        self.department = department
        super().__init__("site.department", f"{person} is not of {department}")


def test_an_error_of_a_site_survives() -> None:
    """Whatever its constructor takes."""
    again = pickle.loads(pickle.dumps(OfASite("jane", department="sales")))
    assert (type(again), again.code, again.department) == (OfASite, "site.department", "sales")
