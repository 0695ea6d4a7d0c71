"""Where an attack happens: the project as it is, an OP on loopback, and nothing that stays."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import django
from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME, SESSION_KEY, get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.cache import caches
from django.core.signals import got_request_exception
from django.db import connections, transaction
from django.dispatch import Signal
from django.http import HttpResponse, HttpResponseForbidden
from django.test import Client, override_settings
from django.urls import get_resolver, reverse

from .. import api, conf, session_index, signals
from ..errors import OIDCError
from ..models import Identity
from ..protocol import jose
from ..protocol.metadata import TENANT
from ..testing import OpenIDProvider, SigningKey
from ..testing.browser import Browser, Callback, Response
from ..testing.installation import serve
from ..testing.tokens import expire_tokens

ELSEWHERE = "/elsewhere"
"""A path of the OP that nobody has a reason to ask for."""

FORM = "application/x-www-form-urlencoded"
_OUTSIDE_SIGNALS = (user_logged_in, user_logged_out, user_login_failed, got_request_exception)


class LeadsElsewhere(Exception):
    """The site's login leads to another place than the OP; the message is its URL, no query."""


class NobodySignedIn(Exception):
    """An attack that begins with an honest sign-in has not begun."""


@dataclass
class Scene:
    """One OP, one provider of the project that is moved there, and the browser of one person.

    iss: what the OP's tokens say. other_slug: another provider of the site, for mix-ups.
    refusals: the codes of what the last step was refused by. victim: the user whose account an
    attack is after, if that is what it is after.
    """

    provider: conf.Provider
    op: OpenIDProvider
    iss: str
    other_slug: str
    browser: Browser = field(default_factory=lambda: new_browser())
    refusals: list[str] = field(default_factory=list)
    victim: Any = None

    @property
    def alg(self) -> str:
        return self.op.signing_alg

    def begin(self, browser: Browser | None = None, next_url: str = "") -> Response:
        """Press the button; return what the site answers: the way to the OP, or a refusal."""
        self.refusals.clear()
        url = reverse("oidc_rp:login", args=[self.provider.slug])
        query = {REDIRECT_FIELD_NAME: next_url} if next_url else {}
        return (browser or self.browser).client.get(url, query)

    def answered(self, browser: Browser | None = None, next_url: str = "") -> Callback:
        """Return the OP's honest answer to a login that begins now."""
        return self._at_the_op(self.begin(browser, next_url))

    def come_back(self, callback: Callback, browser: Browser | None = None) -> Response:
        """Bring an answer to the site, in this browser from now on."""
        self.refusals.clear()
        self.browser = browser or self.browser
        return self.browser.come_back(callback, cross_site=False)

    def sign_in(self) -> Response:
        """Walk a whole sign-in, as far as the site lets it go."""
        begun = self.begin()
        if "Location" not in begun.headers:
            return begun
        return self.come_back(self._at_the_op(begun))

    def _at_the_op(self, begun: Response) -> Callback:
        """Follow the site to the OP, and to nobody else: a page of its own may lead anywhere."""
        location = begun.headers["Location"]
        if not location.startswith(f"{self.op.origin}/"):
            raise LeadsElsewhere(location.partition("?")[0])
        return self.browser.visit_op(location)

    def logout_token(self, **changes: Any) -> str:
        return self.op.logout_token(**({"iss": self.iss} | changes))

    def log_out(self, *logout_tokens: str) -> Response:
        """Tell the site's back channel to log out, as the OP does."""
        self.refusals.clear()
        url = reverse("oidc_rp:backchannel_logout", args=[self.provider.slug])
        body = urlencode([("logout_token", one) for one in logout_tokens])
        return new_browser().client.post(url, body, FORM)

    def ask_for_token(self) -> HttpResponse:
        """Ask in a view of the site's for an access token, when the one that is kept has ended."""
        expire_tokens(self._person())
        return self._answered_by(lambda: api.access_token(self._person(), self.provider.slug))

    def call(self, url: str) -> HttpResponse:
        """Call an API in a view of the site's."""
        calls = api.session_for(self._person(), self.provider.slug)
        return self._answered_by(lambda: calls.get(url, timeout=5))

    def _person(self) -> Any:
        return Identity.objects.get(iss=self.iss, sub=self.op.person["sub"]).user

    def _answered_by(self, step: Callable[[], Any]) -> HttpResponse:
        self.refusals.clear()
        try:
            step()
        except OIDCError as error:
            self.note_refusal(error)
            return HttpResponseForbidden()
        return HttpResponse()

    def is_signed_in(self) -> bool:
        """Whether this browser's session is somebody's."""
        return self._user_key() is not None

    def user(self) -> Any:
        """The user whose session this browser's is. Raises NobodySignedIn."""
        key, model = self._user_key(), get_user_model()
        if key is None:
            raise NobodySignedIn
        return model._base_manager.get(pk=model._meta.pk.to_python(key))

    def is_taken_over(self) -> bool:
        """Whether the victim's account is open to the OP's person: now, or the next time."""
        theirs = Identity.objects.filter(user=self.victim, sub=self.op.person["sub"])
        return theirs.exists() or (self.is_signed_in() and self.user() == self.victim)

    def _user_key(self) -> Any:
        client = self.browser.client
        if settings.SESSION_COOKIE_NAME not in client.cookies:
            return None
        return client.session.get(SESSION_KEY)

    def has_open_session(self) -> bool:
        """Whether nobody has ended the session that began at this OP."""
        rows = session_index.rows().filter(identity__iss=self.iss, ended_at=None)
        return bool(rows.exists())

    def note_refusal(self, error: Any, **_: Any) -> None:
        self.refusals.append(error.code)


def new_browser() -> Browser:
    """A browser that sees an error page where a view fails, and no exception."""
    return Browser(Client(raise_request_exception=False))


@contextmanager
def scene_of(
    provider: conf.Provider,
    keys: list[SigningKey],
    claims: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Iterator[Scene]:
    """A fresh OP and the project's provider moved there; all is undone when it is over.

    keys: the OP's. claims: over those of the person. options: over those of the provider.
    """
    path = "/organizations" if provider.tenants else ""
    with OpenIDProvider(issuer_path=path, keys=keys) as op, ExitStack() as stack:
        scene = Scene(provider, op, *_identity_of(op, provider))
        client_key = _suit(op, provider, scene.iss, claims)
        replaced = _settings(scene, _options(provider, op, client_key) | dict(options))
        stack.enter_context(override_settings(**replaced))
        stack.callback(_forget_cached, list(replaced["CACHES"]))
        for alias in connections:
            stack.enter_context(_rolled_back(alias))
        signals.login_failed.connect(scene.note_refusal)
        stack.callback(signals.login_failed.disconnect, scene.note_refusal)
        yield scene


def _forget_cached(aliases: list[str]) -> None:
    for alias in aliases:
        caches[alias].clear()


@contextmanager
def _rolled_back(alias: str) -> Iterator[None]:
    with transaction.atomic(using=alias):
        try:
            yield
        finally:
            transaction.set_rollback(True, using=alias)


def _identity_of(op: OpenIDProvider, provider: conf.Provider) -> tuple[str, str]:
    """The `iss` of the OP's tokens, and a slug that the provider has not."""
    tenant = min(provider.tenants, default="")
    iss = f"{op.origin}/{tenant}" if tenant else op.issuer
    return iss, "attacker" if provider.slug != "attacker" else "another"


def _suit(
    op: OpenIDProvider, provider: conf.Provider, iss: str, claims: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Have the OP be what this client needs; return the client's private JWK, if it has one."""
    name = f"oidc-attack-{secrets.token_hex(6)}"
    domain = min(provider.email_domains, default="oidc-attack.invalid")
    own = {"sub": name, "preferred_username": name, "email": f"{name}@{domain}"}
    op.person |= own | dict(claims)
    if provider.tenants:
        op.metadata["issuer"] = f"{op.origin}/{TENANT}"
        op.id_token_claims |= {"iss": iss, "tid": min(provider.tenants)}
        op.authorization_params["iss"] = op.userinfo_claims["iss"] = iss
    key = _client_key(provider)
    own_options = {name: getattr(provider, item.name) for name, item in conf.OPTIONS.items()}
    serve(op, own_options | {"PRIVATE_KEY": key})
    return key


def _client_key(provider: conf.Provider) -> dict[str, Any] | None:
    """A key like the client's own, which stays where it is; None where it has none."""
    if provider.private_key is None:
        return None
    return SigningKey.generate(provider.token_endpoint_auth_signing_alg or "RS256").private_jwk


def _options(
    provider: conf.Provider, op: OpenIDProvider, private_key: dict[str, Any] | None
) -> dict[str, Any]:
    """The provider's options as they stand, but for where its OP is and who the client is there."""
    own = {name: getattr(provider, item.name) for name, item in conf.OPTIONS.items()}
    public = provider.token_endpoint_auth_method == "none"  # noqa: S105
    hmac = provider.id_token_signed_response_alg in jose.HMAC_ALGORITHMS
    return own | {
        "ISSUER": f"{op.origin}/{TENANT}" if provider.tenants else op.issuer,
        "CLIENT_ID": op.client_id,
        "CLIENT_SECRET": None if public and not hmac else op.client_secret,
        "PRIVATE_KEY": private_key,
        "METADATA": {},
        "CA_BUNDLE": None,
        "ALLOW_LOOPBACK_HTTP": True,
        "CREATE_USERS": True,  # else nobody could sign in whom the site does not know already
    }


def _settings(scene: Scene, options: dict[str, Any]) -> dict[str, Any]:
    """What is replaced for as long as a scene goes on."""
    slug, tag = scene.provider.slug, secrets.token_hex(6)
    stranger = options | {"ISSUER": f"{scene.op.origin}{ELSEWHERE}", "TENANTS": ()}
    providers = {slug: options, scene.other_slug: stranger}
    memory = "django.core.cache.backends.locmem.LocMemCache"
    return {
        "OIDC_RP": conf.given() | {"PROVIDERS": providers, "OWN_CONNECTION": False},
        "ALLOWED_HOSTS": [*settings.ALLOWED_HOSTS, "testserver"],
        "CACHES": {
            alias: {"BACKEND": memory, "LOCATION": f"oidc_attack-{tag}-{alias}"}
            for alias in settings.CACHES
        },
        "SESSION_ENGINE": "django.contrib.sessions.backends.cache",
        "SECURE_SSL_REDIRECT": False,
        "PREPEND_WWW": False,
        **_mail(),
    }


def _mail() -> dict[str, Any]:
    """No mail leaves: Django has MAILERS from 6.1 on, and EMAIL_BACKEND before."""
    dummy = "django.core.mail.backends.dummy.EmailBackend"
    if django.VERSION < (6, 1):
        return {"EMAIL_BACKEND": dummy}
    aliases = {"default", *getattr(settings, "MAILERS", {})}
    return {"MAILERS": {alias: {"BACKEND": dummy} for alias in aliases}}


@contextmanager
def unheard() -> Iterator[None]:
    """Nobody outside hears of it: no log record, and no receiver of the project."""
    _ = get_resolver().url_patterns  # what the project's views connect, they have connected now
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    own = [signal for signal in vars(signals).values() if isinstance(signal, Signal)]
    try:
        with ExitStack() as stack:
            for signal in (*own, *_OUTSIDE_SIGNALS):
                stack.enter_context(_muted(signal))
            yield
    finally:
        logging.disable(before)


@contextmanager
def _muted(signal: Signal) -> Iterator[None]:
    """Leave a signal the receivers of Django and of this app alone."""
    before = signal.receivers
    signal.receivers = [entry for entry in before if _is_ours(entry[1])]
    signal.sender_receivers_cache.clear()
    try:
        yield
    finally:
        signal.receivers = before
        signal.sender_receivers_cache.clear()


def _is_ours(receiver: Any) -> bool:
    found = receiver() if hasattr(receiver, "__callback__") else receiver  # a weak reference
    return str(getattr(found, "__module__", "")).startswith(("oidc_rp.", "django."))


def refusal_code(scene: Scene, response: Response) -> str:
    """The code that the last step was refused by, "" for none."""
    if scene.refusals:
        return scene.refusals[-1]
    if response.headers.get("Content-Type", "").startswith("application/json"):
        description = str(json.loads(response.content).get("error_description", ""))
        return description.partition(" ")[0]
    return ""
