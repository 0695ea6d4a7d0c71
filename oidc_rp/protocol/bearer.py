"""What an API says of the token that it was sent, and where a token goes (RFC 6750 §3, RFC 9470).

An API is a stranger: nothing it writes into a header may do more than be understood or ignored.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address

from .authentication import op_error

MAX_CHALLENGES = 8192
"""Characters of the longest WWW-Authenticate, all its lines together, that is read."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """What an API answered to a Bearer token; "" and None where it does not say.

    error: "invalid_token", "insufficient_scope", ... (RFC 6750 §3.1), at most 64 characters.
    error_description: the API's own words, cut short; whoever shows them escapes them.
    scope: what the resource needs. max_age (seconds), acr_values: how recent and how strong an
    authentication it needs (RFC 9470 §3).
    """

    error: str = ""
    error_description: str = ""
    scope: str = ""
    max_age: int | None = None
    acr_values: str = ""

    @property
    def scopes(self) -> tuple[str, ...]:
        return tuple(self.scope.split())


def read_challenges(values: Iterable[str]) -> Challenge | None:
    """Return the Bearer challenge among those of a response (RFC 9110 §11.6.1), None for none.

    values: of its WWW-Authenticate fields, each with one challenge or several, as they came.
    One that names an error goes before one that does not. What cannot be read ends the reading;
    what was whole before it counts.
    """
    text = ", ".join(values)
    if len(text) > MAX_CHALLENGES:
        return None
    bearer = [params for scheme, params in _challenges(text) if scheme == "bearer"]
    params = next((params for params in bearer if "error" in params), bearer[0] if bearer else None)
    return None if params is None else _challenge(params)


def origin_of(url: object) -> str | None:
    """Return the origin of `url` in its one spelling (RFC 6454 §4), None when there is any doubt.

    That is scheme and host in lower case, and the port where it is not the scheme's own:
    "https://api.example", "http://127.0.0.1:9000". http and https only; an internationalised host
    is written in its ASCII form ("xn--..."). Two parsers must not see two hosts in one text, so
    user names, backslashes, control characters and non-ASCII hosts are nobody's origin.
    """
    match = _URL.match(url) if isinstance(url, str) and not _UNSAFE.search(url) else None
    if match is None:
        return None
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"]
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    number = int(port) if port else _PORTS[scheme]
    if not 0 < number < 65536:
        return None
    return f"{scheme}://{host}" + ("" if number == _PORTS[scheme] else f":{number}")


_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the `token` of RFC 9110 §5.6.2
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})(?=[ \t,]|$)")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_PARAM = re.compile(
    rf"[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})(?=[ \t,]|$)"
    r'|"((?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\.)*)")'
)
_SCOPE = re.compile(r"[\x20\x21\x23-\x5b\x5d-\x7e]*")  # RFC 6749 App. A.4
_SECONDS = re.compile(r"[0-9]{1,9}")

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?=[/?#]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_PORTS = {"http": 80, "https": 443}


def _challenges(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (scheme, parameters), both names in lower case, until something is neither."""
    scheme, params, position = "", dict[str, str](), 0
    while True:
        if scheme and (param := _PARAM.match(text, position)):
            name, token, quoted = param.groups()
            value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            params.setdefault(name.lower(), value)
            position = param.end()
        elif begun := _SCHEME.match(text, position):
            if scheme:
                yield scheme, params
            scheme, params = begun[1].lower(), {}
            token68 = _TOKEN68.match(text, begun.end())
            position = (token68 or begun).end()
        else:
            break
    if scheme:
        yield scheme, params


def _challenge(params: dict[str, str]) -> Challenge:
    said = op_error("token", params) if "error" in params else None
    scope, max_age = params.get("scope", ""), params.get("max_age", "")
    acr_values = params.get("acr_values", "")
    return Challenge(
        error=said.error if said else "",
        error_description=said.error_description if said else "",
        scope=scope if _SCOPE.fullmatch(scope) else "",
        max_age=int(max_age) if _SECONDS.fullmatch(max_age) else None,
        acr_values=acr_values if acr_values.isprintable() else "",
    )
