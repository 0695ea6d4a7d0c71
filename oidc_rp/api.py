"""Calling APIs in a person's name: an ordinary requests.Session whose token is our business.

    session_for(request).get("https://api.example/calendar")         this browser session's grant
    session_for(user, provider="op").post(url, json=...)             the durable one, for a job
    requests.get(url, auth=BearerAuth(request))                      the same, as requests auth

A call: look whether its token may go there at all (M54), take a token that is still good, send;
when the API says that it is good no more, renew it once and send once more (RFC 6750 §3.1).
"""

import os
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from traceback import clear_frames
from typing import Any, cast

import requests
from asgiref.sync import sync_to_async
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from requests.cookies import RequestsCookieJar
from requests.hooks import default_hooks

from . import conf
from .errors import (
    ConfigurationError,
    InsufficientScope,
    LoginRequired,
    OIDCError,
    OriginNotAllowed,
    StepUpRequired,
    TemporarilyUnavailable,
)
from .grants import Owner, Target
from .login_urls import MAX_ADDED_SCOPE, login_url, way_back
from .protocol.authentication import ANYHOW, StepUp
from .protocol.bearer import Challenge, origin_of, read_challenges
from .protocol.metadata import url_is_allowed
from .protocol.tokens import AccessToken
from .refresh import UsableToken, ausable_token, usable_token
from .sessions import CURRENT, owner_of

DEFAULT_TIMEOUT = 10.0
"""Seconds to connect, and between two octets of the answer, for a call that names no timeout."""

MAX_ACR_VALUES = 400
"""Characters of the acr_values of an API's challenge that a login is asked for: they are kept until
it comes back, and afterwards, in a session that may live in a cookie."""


def session_for(
    who: Any, provider: str | None = None, *, resource: str = "", scopes: Collection[str] = ()
) -> "APISession":
    """Return a requests.Session that calls APIs in a person's name.

    who: a request, which means the grant of its browser session; or a user, which means the
    durable grant at `provider` (a slug; needed where the site has several).
    resource, scopes: which API, where the provider has tokens for each of them (RFC 8707).
    Each call raises, before anything is sent, OriginNotAllowed, LoginRequired or
    TemporarilyUnavailable; and InsufficientScope when the API wants more than was granted. A 401
    whose token could not be renewed is the call's answer, as any other.
    """
    return APISession(BearerAuth(who, provider, resource=resource, scopes=scopes))


def access_token(
    who: Any, provider: str | None = None, *, resource: str = "", scopes: Collection[str] = ()
) -> AccessToken:
    """Return a good access token, for a client that is neither requests nor httpx.

    `.reveal()` gives its text; that it goes to the origins of its API only is then your business.
    Arguments and errors are those of session_for.
    """
    return Caller(who, provider, resource, scopes).token().access_token


async def aaccess_token(
    who: Any, provider: str | None = None, *, resource: str = "", scopes: Collection[str] = ()
) -> AccessToken:
    """Return what access_token does, in async code; cancelling it cancels no refresh on its way.

    who: a request, or a user that is loaded already (`await request.auser()`).
    """
    return (await Caller(who, provider, resource, scopes).atoken()).access_token


class Caller:
    """Somebody in whose name one API is called: what every HTTP client's auth here is made of."""

    def __init__(
        self,
        who: Any,
        provider: str | None = None,
        resource: str = "",
        scopes: Collection[str] = (),
    ) -> None:
        self._request = who if hasattr(who, "META") else None
        self._user = None if hasattr(who, "META") else who
        self._provider = provider
        self._target = _target(resource, scopes if isinstance(scopes, str) else " ".join(scopes))

    def token(
        self,
        url: str | None = None,
        rejected: AccessToken | None = None,
        wait: float | None = None,
    ) -> UsableToken:
        """Return a token that may go to `url`; another than `rejected`, if there is one.

        url: None when the token is not sent by us. wait: seconds for its renewal at most, if not
        REFRESH_WAIT. Raises as session_for tells.
        """
        owner, slug = self._owner(url)
        found = self._kept(owner, rejected)
        if found is None:
            try:
                found = usable_token(owner, self._target, rejected=rejected, wait=wait)
            except LoginRequired as error:
                raise self._with_login_url(error, slug) from error
            self._keep(owner, found)
        return found

    async def atoken(
        self, url: str | None = None, rejected: AccessToken | None = None
    ) -> UsableToken:
        """Return what `token` does. Sessions, users and settings may need the database."""
        owner, slug = await sync_to_async(self._owner)(url)
        found = self._kept(owner, rejected)
        if found is None:
            try:
                found = await ausable_token(owner, self._target, rejected=rejected)
            except LoginRequired as error:
                raise self._with_login_url(error, slug) from error
            self._keep(owner, found)
        return found

    def refused(self, status: int, www_authenticate: Iterable[str], token: UsableToken) -> bool:
        """Whether this answer says that `token` is good no more, which a renewal may mend.

        Raises InsufficientScope when it says that the token never was good enough, and
        StepUpRequired when the person's authentication was not (RFC 9470 §3).
        """
        challenge = read_challenges(www_authenticate) if status in (401, 403) else None
        if challenge is None:
            return False
        if status == 403 and challenge.error == "insufficient_scope":
            raise self._insufficient(challenge.scopes, token)
        if status == 401 and challenge.error == "insufficient_user_authentication":
            raise self._step_up(challenge, token)
        return status == 401 and challenge.error == "invalid_token"

    # Whose token

    def _owner(self, url: str | None) -> tuple[Owner, str]:
        """Return the owner and the slug, once it is known that the token may go to `url`."""
        owner, slug = self._session_owner() if self._request else self._user_owner()
        provider = self._configured(slug)
        if url is not None:
            _check_origin(url, provider, self._target.resource)
        return owner, slug

    def _configured(self, slug: str) -> conf.Provider:
        """An operator may take a provider away, or break its options, while people are here."""
        try:
            return conf.provider(slug)
        except ConfigurationError as error:
            if error.code == "provider.unknown":
                gone = LoginRequired("api.no_grant", "this provider is configured no more")
                raise self._with_login_url(gone, "") from error
            raise _cannot_be_used() from error

    def _session_owner(self) -> tuple[Owner, str]:
        request: Any = self._request
        owner, login = owner_of(request), request.session.get(CURRENT)
        held = login["provider"] if isinstance(login, dict) else ""
        slug = self._provider or held
        if owner is None or slug != held:
            error = LoginRequired("api.no_grant", "no grant of this provider in this session")
            raise self._with_login_url(error, slug)
        return owner, slug

    def _user_owner(self) -> tuple[Owner, str]:
        slug = self._provider or _only_provider()
        if getattr(self._user, "pk", None) is None:
            raise self._with_login_url(LoginRequired("api.no_grant", "nobody is signed in"), slug)
        return Owner(self._user.pk, provider=slug), slug  # type: ignore[union-attr]

    # What further calls in the same web request need not ask again

    def _kept(self, owner: Owner, rejected: AccessToken | None) -> UsableToken | None:
        """A token of before, if it is still fresh; one that was rejected is kept no longer."""
        kept = getattr(self._request, _KEPT, {})
        if rejected is not None:
            kept.pop((owner, self._target), None)
        found: UsableToken | None = kept.get((owner, self._target))
        return found if found and time.monotonic() < found.fresh_until else None

    def _keep(self, owner: Owner, found: UsableToken) -> None:
        if self._request is not None:
            kept = self._request.__dict__.setdefault(_KEPT, {})
            kept[owner, self._target] = found

    # What is told to whoever cannot be helped here

    def _with_login_url(self, error: LoginRequired, slug: str) -> LoginRequired:
        """A new error: others who waited for the same refresh have this one in their hands."""
        url = self._login_url(slug or _some_provider())
        return LoginRequired(error.code, error.message, login_url=url)

    def _insufficient(self, needed: Iterable[str], token: UsableToken) -> InsufficientScope:
        """A login is no help where nothing is known to be missing. It asks for what was granted
        as well: a new grant takes the place of the old one."""
        granted = token.scope.split()
        missing = tuple(dict.fromkeys(scope for scope in needed if scope not in granted))
        asked = tuple(dict.fromkeys((*self._granted(token), *missing)))
        helps = missing and len(" ".join(asked)) <= MAX_ADDED_SCOPE
        url = self._login_url(token.provider, asked) if helps else ""
        return InsufficientScope(missing, login_url=url)

    def _step_up(self, challenge: Challenge, token: UsableToken) -> StepUpRequired:
        """That login asks for what was granted as well: its tokens take the old ones' place."""
        wanted = StepUp(challenge.max_age, tuple(challenge.acr_values.split()))
        asked = self._granted(token)
        scopes = asked if len(" ".join(asked)) <= MAX_ADDED_SCOPE else ()
        helps = len(challenge.acr_values) <= MAX_ACR_VALUES
        message = "the API wants a more recent or a stronger authentication"
        return StepUpRequired(
            "api.step_up",
            message,
            step_up=wanted,
            login_url=self._login_url(token.provider, scopes, wanted) if helps else "",
        )

    def _granted(self, token: UsableToken) -> tuple[str, ...]:
        """All that this grant allows: a token for one API of several has less, and a login that
        asked for less has left a durable grant as it was."""
        at_login = str(self._request.session[CURRENT]["scope"]) if self._request else ""
        return tuple(dict.fromkeys(f"{at_login} {token.grant_scope} {token.scope}".split()))

    def _login_url(self, slug: str, scopes: Collection[str] = (), step_up: StepUp = ANYHOW) -> str:
        next_url = way_back(self._request) if self._request else ""
        user = self._request.user if self._request else self._user
        user_pk = getattr(user, "pk", None)
        return login_url(slug, next_url=next_url, scopes=scopes, step_up=step_up, user_pk=user_pk)


_KEPT = "_oidc_rp_tokens"
_target = lru_cache(maxsize=256)(Target)


def _check_origin(url: str, provider: conf.Provider, resource: str) -> None:
    """A token goes to the origins of the API that it is for, and to no other (M54)."""
    origin, allowed = origin_of(url), provider.origins_for(resource)
    if origin not in allowed or not _is_allowed(origin, loopback_http=provider.allow_loopback_http):
        raise OriginNotAllowed(
            "api.origin",
            f"API_ORIGINS does not name {origin or 'an origin such as this'} for this token",
            expected=allowed,
            received=origin,
        )


_is_allowed = lru_cache(maxsize=256)(url_is_allowed)


def _only_provider() -> str:
    slugs = [*conf.providers()]
    if not slugs:
        raise _cannot_be_used()
    if len(slugs) != 1:
        raise ConfigurationError("configuration.provider", "say which provider's token is meant")
    return slugs[0]


def _cannot_be_used() -> TemporarilyUnavailable:
    message = "the settings of this provider cannot be used"
    return TemporarilyUnavailable("refresh.provider", message, retry_after=30.0)


def _some_provider() -> str:
    """The one provider; with several of them "", which leads to the chooser."""
    slugs = [*conf.providers()]
    return slugs[0] if len(slugs) == 1 else ""


# requests


class BearerAuth(AuthBase):
    """Authentication for requests: an access token, where it may go. Arguments as session_for's.

    Proxies, CA bundle and time limits are those of the requests session that it is used with, from
    the environment too, and errors of that session may show the token: session_for has neither.
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

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the header of a request that is about to be sent."""
        token = self._caller.token(request.url)
        # requests makes its own kind of request; ours knows what becomes of it further on.
        request.__class__ = _BearingRequest
        cast(_BearingRequest, request).bear(_Bearing(self._caller, token, origin_of(request.url)))
        return request


class APISession(requests.Session):
    """A requests.Session with a person's token, which believes nothing from the environment.

    Connections are kept for the next session, cookies and headers are not.
    """

    def __init__(self, auth: BearerAuth) -> None:
        # The parent's __init__ makes two pools for each session: half its cost, and never used.
        vars(self).update(_DEFAULTS, auth=auth, trust_env=False)
        self.headers, self.cookies = _DEFAULTS["headers"].copy(), RequestsCookieJar()
        self.hooks, self.params, self.proxies = default_hooks(), {}, {}
        self.adapters = OrderedDict.fromkeys(("https://", "http://"), _connections)

    def merge_environment_settings(
        self, url: Any, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        """What the call says, else what this session says."""
        return {
            "proxies": {**self.proxies, **(proxies or {})},
            "stream": self.stream if stream is None else stream,
            "verify": self.verify if verify is None else verify,
            "cert": self.cert if cert is None else cert,
        }

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send, within DEFAULT_TIMEOUT unless another is given."""
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = DEFAULT_TIMEOUT
        try:
            return super().send(request, **kwargs)
        except BaseException as error:  # also a generator's of the caller, a worker's time limit
            _forget_header(error)
            raise


class _Connections(HTTPAdapter):
    """Connections to APIs, for all sessions: they carry nothing of whom they were opened for."""

    def close(self) -> None:
        """Not with one session: others use them."""


_connections = _Connections(pool_connections=32, pool_maxsize=32)
_DEFAULTS = vars(requests.Session())


# A forked worker must not share its parent's connections.
def _after_fork() -> None:
    global _connections
    _connections = _Connections(pool_connections=32, pool_maxsize=32)


os.register_at_fork(after_in_child=_after_fork)


class _BearingRequest(requests.PreparedRequest):
    """A request that bears a token, and those that follow it when it is redirected."""

    bearing: "_Bearing"
    redirected = False

    def bear(self, bearing: "_Bearing") -> None:
        self.bearing = bearing
        self.headers["Authorization"] = _header(bearing.token.access_token)
        self.hooks["response"].append(bearing.answered)

    def copy(self) -> "_BearingRequest":
        """Return the request to follow a redirect with."""
        copied: Any = super().copy()
        copied.__class__ = _BearingRequest
        copied.bearing, copied.redirected = self.bearing, True
        return copied  # type: ignore[no-any-return]

    def prepare_cookies(self, cookies: Any) -> None:
        """Of each redirect: here its URL is known, and nothing is sent yet."""
        super().prepare_cookies(cookies)
        if origin_of(self.url) != self.bearing.origin:
            self.headers.pop("Authorization", None)

    def prepare_auth(self, auth: Any, url: Any = "") -> None:
        """Of each redirect: requests would put what .netrc says in our header's place (M44)."""

    def __reduce__(self) -> Any:
        """Pickled, as a part of its response, it is an ordinary request without the token."""
        plain = requests.PreparedRequest()
        vars(plain).update(vars(self), headers=self.headers.copy())
        plain.headers.pop("Authorization", None)
        plain.hooks = {
            event: [hook for hook in hooks if hook != self.bearing.answered]
            for event, hooks in self.hooks.items()
        }
        del vars(plain)["bearing"]
        return requests.PreparedRequest, (), vars(plain)


class _Authorization(str):
    """The value of the header; whoever prints the headers does not print it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'Bearer [redacted]'"


def _header(token: AccessToken) -> str:
    return _Authorization(f"Bearer {token.reveal()}")


@dataclass(slots=True)
class _Bearing:
    """One call, redirects and replay included: its token, where that goes, if it was renewed."""

    caller: Caller
    token: UsableToken
    origin: str | None
    renewed: bool = False

    def answered(
        self, response: requests.Response, *_: Any, **sending: Any
    ) -> requests.Response | None:
        """A hook of requests: return another response in place of one that refuses the token."""
        if self._refused(response) and not self.renewed:
            return self._renew(response, sending)
        return None

    def _refused(self, response: requests.Response) -> bool:
        """Whether the API refused our token; a stranger behind a redirect never saw it."""
        if "Authorization" not in response.request.headers:
            return False
        challenges = [response.headers.get("WWW-Authenticate", "")]
        try:
            return self.caller.refused(response.status_code, challenges, self.token)
        except (InsufficientScope, StepUpRequired):
            response.close()
            raise

    def _renew(self, response: requests.Response, sending: Any) -> requests.Response | None:
        """Renew the token, once; send the request again if its body is still there.

        What fails is raised where the API has refused all there was. After a redirect it has taken
        the first request, and its refusal of the second belongs to the caller.
        """
        self.renewed, refused = True, self.token.access_token
        request = cast(_BearingRequest, response.request)
        body: Any = request.body
        replayable = body is None or isinstance(body, str | bytes | bytearray)
        try:
            self.token = self.caller.token(request.url, rejected=refused)
        except OIDCError:
            if not request.redirected:
                response.close()
                raise
        if not replayable or self.token.access_token == refused:
            return None
        response.close()  # unread: nobody knows how long it is
        request.headers["Authorization"] = _header(self.token.access_token)
        return self._again(response, sending)

    def _again(self, response: requests.Response, sending: Any) -> requests.Response:
        """Send what `response` answers once more. In place: redirects copy the first request."""
        connection: HTTPAdapter = response.connection
        again = connection.send(response.request, **sending)
        again.history.append(response)
        self._refused(again)
        return again


def _forget_header(error: BaseException) -> None:
    """Empty what the calls that failed still hold, so that no report of the error shows it."""
    link: BaseException | None = error
    while link is not None:
        clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
