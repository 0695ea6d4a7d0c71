"""Calling APIs in a person's name with httpx, sync and async: `pip install "oidc_rp[httpx]"`.

    httpx.get(url, auth=BearerAuth(request))
    async with httpx.AsyncClient(auth=BearerAuth(request)) as client: await client.get(url)

The rules are those of api.py. Environment, time limits and redirects are your client's business;
httpx itself takes the header off when a redirect leaves the origin. One that goes from http to
https on the standard ports of the same host is no such redirect to httpx: only for an http origin,
which ALLOW_LOOPBACK_HTTP must have permitted.
"""

from collections.abc import AsyncGenerator, Collection, Generator
from typing import Any, cast

from .api import Caller
from .errors import OIDCError
from .refresh import UsableToken

try:
    import httpx
except ImportError as error:
    raise ImportError('oidc_rp.httpx needs httpx: pip install "oidc_rp[httpx]"') from error


class BearerAuth(httpx.Auth):
    """Authentication for httpx: an access token, where it may go.

    Arguments and errors are those of oidc_rp.api.session_for.
    """

    def __init__(
        self,
        who: Any,
        provider: str | None = None,
        *,
        resource: str = "",
        scopes: Collection[str] = (),
    ) -> None:
        self._caller = Caller(who, provider, resource, scopes)

    def sync_auth_flow(
        self, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, None]:
        url = str(request.url)
        token = self._caller.token(url)
        _bear(request, token)
        response = yield request
        if not self._refused(response, token):
            return
        try:
            renewed = self._caller.token(url, rejected=token.access_token)
        except OIDCError:
            if response.request is request:
                raise
            return  # the API took the request before it redirected: its refusal is the caller's
        if _may_repeat(request, response) and renewed.access_token != token.access_token:
            cast(httpx.SyncByteStream, response.stream).close()
            response.stream = _NOT_READ
            _bear(request, renewed)
            self._refused((yield request), renewed)

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        url = str(request.url)
        token = await self._caller.atoken(url)
        _bear(request, token)
        response = yield request
        if not self._refused(response, token):
            return
        try:
            renewed = await self._caller.atoken(url, rejected=token.access_token)
        except OIDCError:
            if response.request is request:
                raise
            return  # the API took the request before it redirected: its refusal is the caller's
        if _may_repeat(request, response) and renewed.access_token != token.access_token:
            await cast(httpx.AsyncByteStream, response.stream).aclose()
            response.stream = _NOT_READ
            _bear(request, renewed)
            self._refused((yield request), renewed)

    def _refused(self, response: httpx.Response, token: UsableToken) -> bool:
        """Whether the API refused our token; a stranger behind a redirect never saw it."""
        if "Authorization" not in response.request.headers:
            return False
        challenges = response.headers.get_list("WWW-Authenticate")
        return self._caller.refused(response.status_code, challenges, token)


def _bear(request: httpx.Request, token: UsableToken) -> None:
    request.headers["Authorization"] = f"Bearer {token.access_token.reveal()}"


def _may_repeat(request: httpx.Request, response: httpx.Response) -> bool:
    """Whether it is this very request that was refused, not one that a redirect made of it: then
    the first was accepted. And whether its body is in memory, or none."""
    return response.request is request and isinstance(request.stream, httpx.ByteStream)


_NOT_READ = httpx.ByteStream(b"")
"""The body of a refusal that a repetition replaces: httpx would read it without a bound."""
