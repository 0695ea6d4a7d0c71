"""Authentication request and response (Core §3.1.2 and §5.5, RFC 7636, RFC 9126, RFC 9207)."""

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import Any
from urllib.parse import urlencode

from ..errors import InvalidResponse, OPError
from .tokens import AuthorizationCode

PROTECTED_PARAMETERS = frozenset(
    """
    response_type response_mode client_id redirect_uri scope state nonce code_challenge
    code_challenge_method max_age acr_values request request_uri client_secret
    """.split()
)
"""Parameters that no setting and no hook may add or replace: our checks rest on them."""

MAX_REQUEST_URI_LENGTH = 2048

_TOKENS = ("access_token", "id_token", "refresh_token")
_SINGLE = ("state", "code", "iss", "error", "error_description", "error_uri", "session_state")
_CODE = re.compile(r"[\x20-\x7e]{1,4096}")  # VSCHAR, RFC 6749 App. A.11; the longest seen is 2 kB
_ERROR = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]{1,64}")  # RFC 6749 App. A.7


@dataclass(frozen=True, slots=True)
class StepUp:
    """How recently and how strongly somebody must have authenticated (RFC 9470 §4).

    max_age: seconds since then; None = ever. acr_values, amr_values: one of each must be among
    what the OP says; () = any.
    """

    max_age: int | None = None
    acr_values: tuple[str, ...] = ()
    amr_values: tuple[str, ...] = ()


ANYHOW = StepUp()


@dataclass(frozen=True, slots=True)
class AuthenticationRequest:
    """What was asked of the OP. Kept until the callback: it decides which checks apply there.

    max_age, acr_values, amr_values: as in StepUp.
    """

    issuer: str
    client_id: str
    redirect_uri: str
    scope: str
    response_mode: str = "query"
    max_age: int | None = None
    acr_values: tuple[str, ...] = ()
    amr_values: tuple[str, ...] = ()
    state: str = field(repr=False, default="")
    nonce: str = field(repr=False, default="")
    code_verifier: str = field(repr=False, default="")


def authentication_request(
    random: Callable[[int], str],
    *,
    issuer: str,
    client_id: str,
    redirect_uri: str,
    scope: str,
    response_mode: str = "query",
    max_age: int | None = None,
    acr_values: tuple[str, ...] = (),
    amr_values: tuple[str, ...] = (),
) -> AuthenticationRequest:
    """Return a request with new state, nonce and code_verifier.

    random: number of octets -> URL-safe text of that many random octets, as secrets.token_urlsafe.
    """
    return AuthenticationRequest(
        issuer=issuer,
        client_id=client_id,
        redirect_uri=redirect_uri,
        scope=scope,
        response_mode=response_mode,
        max_age=max_age,
        acr_values=acr_values,
        amr_values=amr_values,
        state=random(24),
        nonce=random(24),
        code_verifier=random(32),  # 43 characters, the fewest that RFC 7636 §4.1 allows
    )


def request_parameters(
    request: AuthenticationRequest, additional: Mapping[str, Any]
) -> dict[str, str]:
    """The parameters of the authentication request (Core §3.1.2.1, RFC 7636 §4.3).

    additional: already free of PROTECTED_PARAMETERS; what cannot be sent is not in it.
    """
    parameters = {str(name): str(value) for name, value in additional.items()}
    parameters |= {
        "response_type": "code",
        "client_id": request.client_id,
        "redirect_uri": request.redirect_uri,
        "scope": request.scope,
        "state": request.state,
        "nonce": request.nonce,
        "code_challenge": code_challenge(request.code_verifier),
        "code_challenge_method": "S256",
    }
    if request.response_mode != "query":
        parameters["response_mode"] = request.response_mode
    if request.max_age is not None:
        parameters["max_age"] = str(request.max_age)
    if request.acr_values:
        parameters["acr_values"] = " ".join(request.acr_values)
    return parameters


def essential_claims(claims: object, step_up: StepUp) -> str:
    """Return the `claims` parameter that calls the wanted acr and amr essential (Core §5.5.1.1).

    claims: what is asked for anyway, as a mapping or as JSON text; what is neither is left out.
    """
    if isinstance(claims, str):
        try:
            claims = json.loads(claims)
        except ValueError:
            claims = None
    asked = dict(claims) if isinstance(claims, Mapping) else {}
    of_id_token = asked.get("id_token")
    essential = {
        name: {"essential": True, "values": list(values)}
        for name, values in (("acr", step_up.acr_values), ("amr", step_up.amr_values))
        if values
    }
    asked["id_token"] = dict(of_id_token if isinstance(of_id_token, Mapping) else {}) | essential
    return json.dumps(asked, default=str)


def code_challenge(code_verifier: str) -> str:
    """BASE64URL(SHA256(ASCII(code_verifier))), RFC 7636 §4.2."""
    return urlsafe_b64encode(sha256(code_verifier.encode("ascii")).digest()).rstrip(b"=").decode()


def authorization_url(authorization_endpoint: str, parameters: Mapping[str, str]) -> str:
    """The URL that the browser is sent to; the endpoint may have a query (RFC 6749 §3.1)."""
    separator = "&" if "?" in authorization_endpoint else "?"
    return f"{authorization_endpoint}{separator}{urlencode(parameters)}"


def read_pushed_response(status: int, document: Mapping[str, Any]) -> str:
    """Return the request_uri of a pushed authorization response (RFC 9126 §2.2)."""
    if "error" in document:
        raise op_error("par", document)
    request_uri = document.get("request_uri")
    if not isinstance(request_uri, str) or not 0 < len(request_uri) <= MAX_REQUEST_URI_LENGTH:
        request_uri = None
    if status not in (200, 201) or request_uri is None:
        raise InvalidResponse("par.request_uri", expected="201 with a request_uri", received=status)
    return request_uri


def read_authentication_response(
    parameters: Mapping[str, Sequence[str]],
    request: AuthenticationRequest,
    *,
    response_mode: str,
    issuers: Sequence[str],
    iss_required: bool,
) -> AuthorizationCode:
    """Return the code of a response to `request` (Core §3.1.2.5 to §3.1.2.7).

    response_mode: how it came. issuers: what `iss` may be (one, or a tenant's each).
    iss_required: the OP's metadata announces `iss` (RFC 9207 §2.4).
    Raises InvalidResponse, or OPError when the OP answered with an error; that is read last,
    so that an error is believed only from the OP that was asked.
    """
    for name in _SINGLE:
        if len(parameters.get(name, ())) > 1:
            raise InvalidResponse("response.repeated", f"{name} comes more than once")
    if any(name in parameters for name in _TOKENS):
        raise InvalidResponse("response.token", "only a code may come through the browser")
    if response_mode != request.response_mode:
        raise InvalidResponse(
            "response.mode", expected=request.response_mode, received=response_mode
        )
    values = {name: items[0] for name, items in parameters.items() if items}
    state = values.get("state", "").encode("utf-8", "replace")
    if not state or not compare_digest(state, request.state.encode()):
        raise InvalidResponse("state.unknown", "the state is not this request's")
    if iss_required and "iss" not in values:  # an error is worth a look in the log, no more
        error = values.get("error")
        raise InvalidResponse("response.iss_missing", expected=list(issuers), received=error)
    if "iss" in values and values["iss"] not in issuers:
        raise InvalidResponse("response.iss", expected=list(issuers), received=values["iss"])
    if "error" in values:
        raise op_error("authorization", values)
    code = values.get("code", "")
    if not _CODE.fullmatch(code):
        raise InvalidResponse("response.code", "no authorization code")
    return AuthorizationCode(code)


def op_error(where: str, answer: Mapping[str, Any]) -> OPError:
    """The OP's error as an exception; what is no error code of RFC 6749 becomes "error"."""
    error, description = answer.get("error"), answer.get("error_description")
    if not isinstance(error, str) or not _ERROR.fullmatch(error):
        error = "error"
    if not isinstance(description, str):
        description = ""
    return OPError(where, error, "".join(c for c in description[:200] if c.isprintable()))
