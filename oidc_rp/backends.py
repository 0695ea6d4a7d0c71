"""django.contrib.auth's door: a response from an OP in, a user out."""

from dataclasses import dataclass, field
from secrets import token_urlsafe
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.db import models
from django.http import HttpRequest
from mozilla_django_oidc.auth import OIDCAuthenticationBackend

from . import accounts, sessions
from .errors import InvalidResponse, LoginRefused
from .relying_party import Login, relying_party
from .sessions import PendingLogin, signed_in_locally


@dataclass(frozen=True, slots=True)
class CallbackResponse:
    """What came back through the browser, for the login that it belongs to. Its repr shows nothing.

    redirect_uri: where it came to, as that URL is registered at the OP.
    """

    provider: str
    redirect_uri: str
    response_mode: str
    parameters: dict[str, list[str]] = field(repr=False)
    pending: PendingLogin = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignIn:
    """A login and its account, noted on the user that authenticate() returns."""

    login: Login
    account: accounts.Account


class OIDCBackend(OIDCAuthenticationBackend):  # type: ignore[misc]  # the package has no types
    """Signs people in at the providers of OIDC_RP.

    A site may subclass it. The account hooks of mozilla-django-oidc work as they do there, and
    get the verified claims, `iss` and `sub` among them: verify_claims, filter_users_by_claims,
    create_user, update_user, get_username, describe_user_by_claims. What proves who somebody is
    has no hooks: it is in relying_party.py and protocol/.

    Nothing is read or kept in an instance: Django makes one at every permission check.
    """

    def __init__(self) -> None:
        pass  # the parent would read its own settings

    @property
    def UserModel(self) -> Any:
        return get_user_model()

    def authenticate(
        self, request: HttpRequest | None, oidc: CallbackResponse | None = None, **credentials: Any
    ) -> Any:
        """Return the user that an OP vouches for; None when asked for anything else.

        Raises OIDCError, not None: a refusal has a code and a reason.
        """
        if request is None or oidc is None:
            return None
        party, pending = relying_party(oidc.provider), oidc.pending
        asked = pending.request
        if (pending.provider, asked.issuer, asked.client_id, asked.redirect_uri) != (
            oidc.provider,
            party.provider.issuer,
            party.provider.client_id,
            oidc.redirect_uri,
        ):
            raise InvalidResponse("state.provider", "the login was started elsewhere")
        login = party.finish_login(oidc.parameters, oidc.response_mode, asked)
        account = self._account(request, login, pending)
        account.user.oidc_sign_in = SignIn(login, account)  # type: ignore[attr-defined]
        return account.user

    def _account(
        self, request: HttpRequest, login: Login, pending: PendingLogin
    ) -> accounts.Account:
        """The account that this login is for, by what it was started for."""
        if pending.purpose == sessions.LINK:
            return accounts.link(login, self, _linker(request, pending))
        if pending.purpose in (sessions.RENEW, sessions.STEP_UP):
            _check_same_person(request, login)
        return accounts.account_for(login, self, _local_user(request, pending))

    # Django's own again: the parent's would let somebody go on who is no longer active (M38).
    get_user = ModelBackend.get_user

    # Account hooks, for a site to override

    def verify_claims(self, claims: Any) -> bool:
        """Whether this person may sign in at all."""
        return True

    def filter_users_by_claims(self, claims: Any) -> Any:
        """The existing user that a new identity belongs to: nobody, unless a site knows better."""
        return self.UserModel._default_manager.none()

    def get_username(self, claims: Any) -> str:
        """A user name that is nobody else's and tells nothing."""
        return f"oidc_{token_urlsafe(12)}"

    def create_user(self, claims: Any) -> Any:
        """Make a user from what CLAIMS maps, with a user name where the model has one."""
        model, values = self.UserModel, accounts.user_fields(claims)
        for name in sorted({model.USERNAME_FIELD, *model.REQUIRED_FIELDS} - values.keys()):
            field = model._meta.get_field(name)
            if isinstance(field, models.EmailField) and (field.unique or not field.blank):
                raise LoginRefused("account.email_missing", "the user model needs an address")
            if name == model.USERNAME_FIELD:
                values[name] = self.get_username(claims)
            elif not (field.blank or field.null or field.has_default()):
                raise LoginRefused("account.claims", f"the user model needs {name!r}")
        if not values[model.USERNAME_FIELD]:
            raise LoginRefused("account.hook", "get_username of this site gave no name")
        return model._default_manager.create_user(**values)

    def update_user(self, user: Any, claims: Any) -> Any:
        """Fill the fields of a returning user from what CLAIMS maps."""
        accounts.set_fields(user, accounts.user_fields(claims))
        return user

    def describe_user_by_claims(self, claims: Any) -> str:
        """Words for the log."""
        return f"sub {claims['sub']!r} of {claims['iss']!r}"


def _check_same_person(request: HttpRequest, login: Login) -> None:
    """A session that goes on is that of the person who began it."""
    current = sessions.current_login(request)
    if current is None:
        raise LoginRefused("session.ended", "nobody is signed in any more")
    if (current.iss, current.sub) != (login.id_token.iss, login.id_token.sub):
        raise LoginRefused("session.other_person", "somebody else signed in at the OP")


def _linker(request: HttpRequest, pending: PendingLogin) -> Any:
    """Who asked for the link, and is still signed in here (M38)."""
    user = request.user
    if not user.is_authenticated or pending.linker != str(user.pk):
        raise LoginRefused("account.link", "whoever asked for the link is not signed in any more")
    return user


def _local_user(request: HttpRequest, pending: PendingLogin) -> Any:
    """Who has just signed in here by other means, and pressed a button to link (M11, M34)."""
    user = request.user
    started = user.is_authenticated and pending.linker == str(user.pk)
    return user if started and signed_in_locally(request, accounts.FRESH) else None
