"""What the browser's session remembers of a login: before it, and after it.

Before: the pending logins, keyed by `state`, so that a response is worth nothing without the
cookie of the browser that asked (M4 to M6). After: who is signed in through which provider.
"""

import logging
import threading
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from datetime import timezone as tz
from hmac import compare_digest
from json import dumps
from secrets import token_urlsafe
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends import signed_cookies
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.core.cache import cache
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from .errors import InvalidResponse
from .grants import Owner
from .protocol.authentication import ANYHOW, AuthenticationRequest, StepUp
from .relying_party import Login

logger = logging.getLogger("oidc_rp")

PENDING = "oidc_rp_pending"
BROWSER = "oidc_rp_browser"
CURRENT = "oidc_rp_login"
LOCAL = "oidc_rp_local_login"
NOTICE = "oidc_rp_notice"
LOGGED_OUT = "oidc_rp_logged_out"
MAX_PENDING = 7
MAX_SIZE = 3000
"""Characters of all pending logins as JSON: with signed_cookies they share 4 kB with the rest."""
SIGN_IN, LINK, RENEW, STEP_UP = "", "link", "renew", "step_up"
"""What a login is for: to sign in, to link an identity to whoever is signed in, to have the OP
vouch for a session again, or to authenticate more recently or more strongly."""

LIFETIME = 600
"""Seconds from the start of a login to its callback."""
MAX_USED_HERE = 1000
MAX_ACR_LENGTH, MAX_AMR = 100, 8
"""What is longer is not noted: it would not fit into a cookie."""


@dataclass(frozen=True, slots=True)
class PendingLogin:
    """An authentication request on its way, and where to go after it.

    created_at: seconds since the epoch; since: the same by the database's clock, where that is
    another one. next_url: checked when it was stored, and again at use.
    linker: the key of the user who started it by a form of ours; only to that one may it link.
    purpose: SIGN_IN, LINK, RENEW or STEP_UP. browser: as browser_of() said when the response came;
    it is not stored with it.
    """

    provider: str
    request: AuthenticationRequest
    next_url: str
    created_at: float
    linker: str = ""
    purpose: str = SIGN_IN
    since: float = 0.0
    browser: str = field(repr=False, default="")


def remember(session: SessionBase, pending: PendingLogin) -> None:
    """Keep a pending login in this browser's session, at the cost of its oldest ones."""
    state = pending.request.state
    stored = {key: value for key, value in _pending(session).items() if key != state}
    stored[state] = _stored(pending)
    while len(stored) > MAX_PENDING or (len(stored) > 1 and len(dumps(stored)) > MAX_SIZE):
        del stored[next(iter(stored))]  # the oldest: a dict, and JSON, keep the order
    session[PENDING] = stored
    session.setdefault(BROWSER, token_urlsafe(12))


def take(request: HttpRequest, state: str) -> PendingLogin:
    """Return the pending login of `state` and make it unusable, before anything else happens.

    It is gone from the stored session when this returns, and no second request goes on with it.
    Raises InvalidResponse "state.unknown", "state.used" or "state.expired".
    """
    browser = browser_of(request.session)
    pending = _popped(request.session, state)
    if pending is None:
        raise InvalidResponse("state.unknown", "no login of this browser has this state")
    _store_now(request)
    if not _first_use(request.session, state):
        raise InvalidResponse("state.used", "this response was already used")
    if not 0 <= timezone.now().timestamp() - pending.created_at <= LIFETIME:
        raise InvalidResponse("state.expired", expected=f"within {LIFETIME} s")
    return replace(pending, browser=browser)


def _popped(session: SessionBase, state: str) -> PendingLogin | None:
    stored = _pending(session)
    if state not in stored:
        return None
    pending = _loaded(state, stored.pop(state))
    session[PENDING] = stored
    return pending


def _pending(session: SessionBase) -> dict[str, Any]:
    stored = session.get(PENDING)
    return dict(stored) if isinstance(stored, dict) else {}


def _stored(pending: PendingLogin) -> dict[str, Any]:
    """As JSON; the state is the key, what is at its default is left out to save room."""
    request = {
        name: value
        for name, value in asdict(pending.request).items()
        if value not in (None, "", ())
    }
    del request["state"]
    return {
        "provider": pending.provider,
        "request": request,
        "next": pending.next_url,
        "created_at": pending.created_at,
        "linker": pending.linker,
    } | {
        name: value
        for name, value in (("purpose", pending.purpose), ("since", pending.since))
        if value
    }


def _loaded(state: str, stored: dict[str, Any]) -> PendingLogin:
    given = dict(stored["request"])
    for name in ("acr_values", "amr_values"):
        given[name] = tuple(given.get(name, ()))
    return PendingLogin(
        provider=stored["provider"],
        request=AuthenticationRequest(**given, state=state),
        next_url=stored["next"],
        created_at=float(stored["created_at"]),
        linker=stored["linker"],
        purpose=stored.get("purpose", SIGN_IN),
        since=float(stored.get("since", 0.0)),
    )


def _store_now(request: HttpRequest) -> None:
    """Write the session and read it anew, so that what other tabs store meanwhile is kept."""
    session = request.session
    try:
        session.save()
    except UpdateError as error:
        if isinstance(error.__context__, OperationalError | InterfaceError):
            raise  # not stored is not consumed
        # Another tab has just signed in, under a new session key.
        request.session = type(session)(None)
        return
    request.session = type(session)(session.session_key)
    # A session that lives in its cookie is only stored when the browser gets the new cookie.
    request.session.modified = isinstance(session, signed_cookies.SessionStore)


_used_here: dict[str, None] = {}
_used_lock = threading.Lock()


def _first_use(session: SessionBase, state: str) -> bool:
    """Whether nobody else is using this state: two requests at the same moment, a copied cookie.

    A stored session forgets the state for every process; this one remembers it for the requests
    that had read the session before. A session in a cookie can be brought back, so all processes
    remember it, in Django's cache; not for stored ones: a small cache would lose other entries.
    """
    with _used_lock:
        if state in _used_here:
            return False
        _used_here[state] = None
        if len(_used_here) > MAX_USED_HERE:
            del _used_here[next(iter(_used_here))]
    return not isinstance(session, signed_cookies.SessionStore) or _first_use_anywhere(state)


def _first_use_anywhere(state: str) -> bool:
    key = "oidc_rp:state:" + salted_hmac("oidc_rp.state", state, algorithm="sha256").hexdigest()
    # Without a cache the session, PKCE and the code itself still make it single.
    try:
        return cache.add(key, 1, LIFETIME) or cache.get(key) is None  # failing caches may be silent
    except Exception:  # each cache backend has its own kinds
        logger.warning("the cache fails: no memory of used states", exc_info=True)
        return True


@dataclass(frozen=True, slots=True)
class CurrentLogin:
    """How this browser session signed in. No token is in it; `grant` is the id of what keeps them,
    `session` that of its row in the index of sessions.

    scope: as granted to the access token. expires_at: of the access token, aware, or None.
    auth_time: when the person last authenticated at the OP, aware, or None.
    at: when this session signed in here, aware; None in a session older than this field.
    asked: what that login was asked for besides a plain sign-in.
    """

    provider: str
    iss: str
    sub: str
    scope: str
    expires_at: datetime | None
    auth_time: datetime | None
    acr: str | None
    amr: tuple[str, ...]
    grant: str = ""
    at: datetime | None = None
    session: str = ""
    asked: StepUp = ANYHOW


def note_local_login(request: Any, user: Any, **_: Any) -> None:
    """A receiver of user_logged_in: this session's own login, by other means than an OP."""
    if hasattr(request, "session") and not hasattr(user, "oidc_sign_in"):
        request.session.pop(CURRENT, None)
        request.session[LOCAL] = timezone.now().timestamp()


def signed_in_locally(request: HttpRequest, within: timedelta) -> bool:
    """Whether this very session began with a local login, so long ago at most."""
    age: float = timezone.now().timestamp() - request.session.get(LOCAL, 0)
    return 0 <= age < within.total_seconds() and _is_its_own(request)


def _is_its_own(request: HttpRequest) -> bool:
    """Whether the user of this request is the session's: a middleware of the site may have put
    somebody else there (a token in a header, support staff), of whom the session says nothing."""
    user: Any = request.user
    if not user.is_authenticated:
        return False
    return bool(request.session.get(SESSION_KEY) == user._meta.pk.value_to_string(user))


def clear_for(request: HttpRequest, user: Any, *, keep_anonymous: bool) -> None:
    """Empty the session for somebody who signs in, and give it a new key.

    Kept: the pending logins of other tabs, and that they are of one browser; what the same user
    had; what an anonymous visitor left, if the site asks for that.
    """
    session = request.session
    known = request.user.is_authenticated
    keep = request.user.pk == user.pk if known else keep_anonymous
    if not keep:
        for key in set(session.keys()) - {PENDING, BROWSER}:
            del session[key]
    elif known:
        session.cycle_key()  # Django's login() does it for everybody else


def store_login(
    session: SessionBase,
    login: Login,
    grant: str = "",
    row: str = "",
    request: AuthenticationRequest | None = None,
    at: float | None = None,
) -> None:
    """Note in the session, after its key has changed, how it signed in.

    grant: the id, if any. row: the id of its row in the index of sessions. request: what was asked.
    at: when it signed in, if that is not now.
    """
    claims = login.id_token.claims
    acr, amr = claims.get("acr"), claims.get("amr")
    expires_at = login.tokens.expires_at
    session[CURRENT] = {
        "provider": login.provider.slug,
        "iss": login.id_token.iss,
        "sub": login.id_token.sub,
        "scope": login.tokens.scope,
        "expires_at": None if expires_at is None else expires_at.timestamp(),
        "auth_time": login.id_token.auth_time,
        "acr": acr if _is_short(acr) else None,
        "amr": [*filter(_is_short, amr)][:MAX_AMR] if isinstance(amr, list) else [],
        "grant": grant,
        "at": timezone.now().timestamp() if at is None else at,
        "session": row,
        "asked": [request.max_age, request.acr_values, request.amr_values] if request else [],
    }


def _is_short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_ACR_LENGTH


def current_login(request: HttpRequest) -> CurrentLogin | None:
    """Return how this browser session signed in; None when it did not, or not through an OP."""
    stored = request.session.get(CURRENT)
    if not isinstance(stored, dict) or not _is_its_own(request):
        return None
    login = CurrentLogin(**{**stored, "amr": tuple(stored["amr"])})
    return replace(
        login,
        expires_at=_moment(stored["expires_at"]),
        auth_time=_moment(stored["auth_time"]),
        at=_moment(stored.get("at")),
        asked=_asked(stored.get("asked")),
    )


def _asked(stored: Any) -> StepUp:
    max_age, acr, amr = stored or (None, (), ())
    return StepUp(max_age, tuple(acr), tuple(amr))


def utc_now() -> datetime:
    """The time, aware whatever USE_TZ says: moments that are kept are so, too."""
    return datetime.now(tz.utc)


def _moment(seconds: float | None) -> datetime | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz.utc)


@dataclass(frozen=True, slots=True)
class Held:
    """The ids of what belongs to a session: its grant, its row in the index; "" for none."""

    grant: str
    row: str


def held_by(session: SessionBase) -> Held:
    """What belongs to this session."""
    return Held(grant_of(session), row_of(session))


def grant_of(session: SessionBase) -> str:
    """The id of the grant that this session holds, or an empty text."""
    stored = session.get(CURRENT)
    return str(stored.get("grant", "")) if isinstance(stored, dict) else ""


def began_at(session: SessionBase) -> float | None:
    """When this session signed in through an OP, in seconds since the epoch; None if unknown."""
    stored = session.get(CURRENT)
    return stored.get("at") if isinstance(stored, dict) else None


def row_of(session: SessionBase) -> str:
    """The id of this session's row in the index of sessions, or an empty text."""
    stored = session.get(CURRENT)
    return str(stored.get("session", "")) if isinstance(stored, dict) else ""


def expect_return(session: SessionBase, next_url: str) -> str:
    """Remember, in the session of somebody who has just signed out, where to go when the OP has
    done its part; return the `state` that comes back (RP-Initiated Logout §2)."""
    state = token_urlsafe(24)
    session[LOGGED_OUT] = {"state": state, "next": next_url, "at": timezone.now().timestamp()}
    return state


def take_return(session: SessionBase, state: str) -> str | None:
    """Where to go after the logout of this state; None for one that is not this browser's."""
    stored = session.pop(LOGGED_OUT, None)
    expected = str(stored.get("state", "")) if isinstance(stored, dict) else ""
    if not expected or not compare_digest(state.encode("utf-8", "replace"), expected.encode()):
        return None
    age = timezone.now().timestamp() - float(stored["at"])
    return str(stored["next"]) if 0 <= age <= LIFETIME else None


def leave_notice(session: SessionBase, notice: str) -> None:
    """Have the next page of ours tell something, once."""
    session[NOTICE] = notice


def browser_of(session: SessionBase) -> str:
    """What all logins of a browser have in common until it signs out, whatever becomes of the
    session's key; "" before the first one."""
    return str(session.get(BROWSER, ""))


def owner_of(request: HttpRequest) -> Owner | None:
    """Whose grant this browser session may use; None when it has none."""
    grant, user = grant_of(request.session), request.user
    if not grant or not user.is_authenticated or not user.is_active:
        return None
    return Owner(user.pk, grant, loaded=True)
