"""Views that want a recent, or a strong, authentication: the answer to everybody else (RFC 9470).

    @require_auth(max_age=300)                       authenticated within five minutes
    @require_auth(acr="urn:example:mfa")             in this way, or one of several
    class Payout(RequireAuthMixin, View): ...        the same for a class

Whoever lacks it is sent to the OP, which is asked for it; what comes back is checked before the
session says so. An OP that ignores the request ends at a refusal, and nobody goes round in circles.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import wraps
from typing import Any
from zlib import crc32

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url

from . import conf, grants, session_index, session_store
from .errors import ConfigurationError, LoginRefused, StepUpRequired
from .login_urls import (
    MAX_ADDED_SCOPE,
    answer_with_login,
    is_page_visit,
    login_url,
    way_back,
)
from .models import Grant
from .protocol.authentication import StepUp
from .refusals import refuse
from .sessions import CurrentLogin, current_login, signed_in_locally, utc_now

ERROR = "insufficient_user_authentication"
JUST_NOW = timedelta(seconds=30)
"""A login so short ago that did not help would not help a second time."""

ROUNDS = "oidc_rp_rounds"
MAX_ROUNDS = 3
"""How often a page sends its visitor to sign in without a pause of JUST_NOW."""

View = Callable[..., Any]
Names = str | Sequence[str]


def require_auth(
    *, max_age: int | None = None, acr: Names = (), amr: Names = ()
) -> Callable[[View], View]:
    """Let a view, sync or async, see only those who have authenticated as it says.

    max_age: seconds since they did. acr, amr: a value, or several of which one must be there
    (Core §2). Somebody who is not signed in at all is sent to sign in.
    """
    wanted = StepUp(max_age, _names(acr), _names(amr))

    def decorate(view: View) -> View:
        if iscoroutinefunction(view):

            @wraps(view)
            async def aguarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                answer = await sync_to_async(answer_to)(request, wanted)
                return answer or await view(request, *args, **kwargs)

            return aguarded

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return answer_to(request, wanted) or view(request, *args, **kwargs)

        return guarded

    return decorate


class RequireAuthMixin:
    """What require_auth is for a function; stands before View in the bases of a class."""

    required_max_age: int | None = None
    required_acr: Names = ()
    required_amr: Names = ()

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """A response, or the promise of one where the methods are async."""
        if getattr(self, "view_is_async", False):
            return self._adispatch(request, *args, **kwargs)
        answer = answer_to(request, self._wanted())
        return answer or super().dispatch(request, *args, **kwargs)  # type: ignore[misc]

    async def _adispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        answer = await sync_to_async(answer_to)(request, self._wanted())
        return answer or await super().dispatch(request, *args, **kwargs)  # type: ignore[misc]

    def _wanted(self) -> StepUp:
        return StepUp(self.required_max_age, _names(self.required_acr), _names(self.required_amr))


def answer_to(request: HttpRequest, wanted: StepUp) -> HttpResponse | None:
    """None for somebody who has authenticated as is wanted, else where to do so."""
    login = _login_of(request)
    if not request.user.is_authenticated:
        return _not_stored(answer_with_login(request, _local_login_url(way_back(request))))
    if login is None:
        return _of_a_local_login(request, wanted)
    if satisfies(login, wanted):
        return None
    url = login_url(
        login.provider,
        next_url=way_back(request),
        scopes=_granted(login),
        step_up=wanted,
        user_pk=request.user.pk,
    )
    return _sent(request, login, wanted, url)


def answer_to_challenge(request: HttpRequest, error: StepUpRequired) -> HttpResponse:
    """The answer for a view whose API wants more than the token's login proves.

    That is the login of this session, unless the token is of a durable grant: there another
    browser may have signed in since, in a weaker way.
    """
    login = _login_of(request)
    if login is None or not error.login_url:
        return useless(request)
    strict = satisfies(login, error.step_up, leeway=timedelta(0))  # the API's clock has the say
    if strict and not _durable(login):
        return useless(request)
    return _sent(request, login, error.step_up, error.login_url)


def _login_of(request: HttpRequest) -> CurrentLogin | None:
    """The login of this session; where that lives in its cookie, as the index knows it: the cookie
    may be an older one, from before a renewal."""
    login, row = current_login(request), session_index.seen(request)
    if login is None or row is None or not session_store.lives_in_cookie():
        return login
    return replace(login, acr=row.acr or None, amr=tuple(row.amr), auth_time=row.auth_time)


def _sent(request: HttpRequest, login: CurrentLogin, wanted: StepUp, url: str) -> HttpResponse:
    """Send somebody to the OP, for whom that can help: nobody goes round in circles."""
    just_now = login.at is not None and abs(utc_now() - login.at) < JUST_NOW
    if just_now and _asked(login, wanted):
        return useless(request)
    if is_page_visit(request) and _goes_round(request, in_a_row=just_now):
        return useless(request)
    return _not_stored(answer_with_login(request, url, ERROR))


def _goes_round(request: HttpRequest, *, in_a_row: bool) -> bool:
    """Whether this page sends its visitor to sign in again and again: by two requirements that no
    login fulfils together, or to a login page that sends back whoever is signed in."""
    now, this = utc_now().timestamp(), crc32(request.path.encode("utf-8", "replace"))
    page, rounds, last = request.session.get(ROUNDS) or (0, 0, 0.0)
    if page != this or not in_a_row or abs(now - last) >= JUST_NOW.total_seconds():
        rounds = 0
    if rounds >= MAX_ROUNDS:
        return True
    request.session[ROUNDS] = [this, rounds + 1, now]
    return False


def _granted(login: CurrentLogin) -> tuple[str, ...]:
    """All that the grant of this session allows, if that is more than every login asks for: its
    tokens are to be those of the stronger login, and not those that it had before."""
    rows = Grant.objects.using(grants.database()).filter(pk=login.grant, status=Grant.OPEN)
    kept = rows.values_list("scope", flat=True).first() if login.grant else None
    granted = tuple(dict.fromkeys(f"{login.scope} {kept or ''}".split()))
    provider = conf.providers().get(login.provider)
    helps = provider is not None and not set(granted) <= set(provider.scopes)
    return granted if helps and len(" ".join(granted)) <= MAX_ADDED_SCOPE else ()


def _durable(login: CurrentLogin) -> bool:
    rows = Grant.objects.using(grants.database()).filter(pk=login.grant, durable=True)
    return bool(login.grant) and rows.exists()


def satisfies(login: CurrentLogin, wanted: StepUp, leeway: timedelta | None = None) -> bool:
    """Whether this login is as recent and as strong as wanted, within the clocks' leeway; that is
    the provider's, if none is given."""
    if wanted.acr_values and login.acr not in wanted.acr_values:
        return False
    if wanted.amr_values and not set(wanted.amr_values) & set(login.amr):
        return False
    if wanted.max_age is None:
        return True
    if login.auth_time is None:
        return False
    age, ours = utc_now() - login.auth_time, _leeway(login.provider)
    return -ours <= age <= timedelta(seconds=wanted.max_age) + (ours if leeway is None else leeway)


def useless(request: HttpRequest) -> HttpResponse:
    """Another login would not help: the OP, the API, or this site's settings are not what they
    are taken for."""
    if not is_page_visit(request):
        return _not_stored(JsonResponse({"error": ERROR}, status=403))
    error = LoginRefused("step_up.useless", "the login that was just made does not satisfy it")
    return _not_stored(refuse(request, error, None))


def is_fresh(request: HttpRequest, within: timedelta) -> bool:
    """Whether who is signed in here has just shown who they are (M38).

    An OP that does not say when (`auth_time` is for those who asked) is believed for a login of
    this very session.
    """
    login = current_login(request)
    if login is None:
        return signed_in_locally(request, within)
    moment = login.auth_time or login.at
    return moment is not None and -_leeway(login.provider) <= utc_now() - moment <= within


def freshen_url(request: HttpRequest, within: timedelta, next_url: str) -> str:
    """The login after which somebody is_fresh."""
    login = current_login(request)
    if login is None:
        return _local_login_url(next_url)
    max_age = int(within.total_seconds()) if login.auth_time is not None else None
    wanted = StepUp(max_age)
    return login_url(login.provider, next_url=next_url, step_up=wanted, user_pk=request.user.pk)


def _of_a_local_login(request: HttpRequest, wanted: StepUp) -> HttpResponse | None:
    """A password of this site proves when somebody came, and nothing that an OP could say."""
    age = wanted.max_age
    plain = not wanted.acr_values and not wanted.amr_values
    if plain and (age is None or signed_in_locally(request, timedelta(seconds=age) + JUST_NOW)):
        return None
    url = (
        _local_login_url(way_back(request)) if plain else login_url("", next_url=way_back(request))
    )
    if is_page_visit(request) and _goes_round(request, in_a_row=True):
        return useless(request)
    return _not_stored(answer_with_login(request, url, ERROR))


def _local_login_url(next_url: str) -> str:
    return redirect_to_login(next_url).url if next_url else resolve_url(settings.LOGIN_URL)


def _asked(login: CurrentLogin, wanted: StepUp) -> bool:
    """Whether this very login was asked for what is wanted now, or for more."""
    asked = login.asked
    if wanted.max_age is not None and (asked.max_age is None or asked.max_age > wanted.max_age):
        return False
    pairs = ((asked.acr_values, wanted.acr_values), (asked.amr_values, wanted.amr_values))
    return all(not want or (had and set(had) <= set(want)) for had, want in pairs)


def _leeway(slug: str) -> timedelta:
    try:
        return conf.provider(slug).login_leeway
    except ConfigurationError:
        return timedelta(0)


def _names(value: Names) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _not_stored(response: HttpResponse) -> HttpResponse:
    response["Cache-Control"] = "no-store"
    return response
