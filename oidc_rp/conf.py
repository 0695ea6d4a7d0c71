"""The one typed place for our settings: the dict OIDC_RP, read once into frozen values.

Nothing is read at import and nothing raises there. Mistakes become system checks (checks.py);
a provider that cannot be read is refused at its login and leaves the others alone.
"""

import binascii
import json
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.core.signals import setting_changed
from django.core.validators import validate_slug
from django.core.exceptions import ValidationError
from django.utils.module_loading import import_string

from .errors import ConfigurationError, InvalidJOSE, InvalidResponse
from .protocol import jose
from .protocol.authentication import PROTECTED_PARAMETERS
from .protocol.metadata import TENANT, read_provider_metadata, url_is_allowed
from .protocol.token_endpoint import AUTH_METHODS
from .protocol.tokens import ClientSecret, PrivateKey

RESERVED_SLUGS = frozenset({"login", "logout", "identities"})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong in the settings: the id of its system check, what, and how to mend it."""

    id: str
    message: str
    hint: str


# How each option is read: a function that returns the value or raises ValueError with what it wants.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a text that is not empty")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("True or False")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
        raise ValueError("a list of texts")
    return tuple(value)


def _set(value: Any) -> frozenset[str]:
    return frozenset(_names(list(value) if isinstance(value, set | frozenset) else value))


def _scopes(value: Any) -> tuple[str, ...]:
    if "openid" not in _names(value):
        raise ValueError('a list of scopes with "openid" (Core §3.1.2.1)')
    return tuple(value)


def _secret(value: Any) -> ClientSecret:
    return ClientSecret(_text(value))


def _private_key(value: Any) -> PrivateKey:
    if not isinstance(value, dict):
        raise ValueError("a private JWK as a dict (RFC 7517)")
    return PrivateKey(json.dumps(value))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError("a dict")
    return dict(value)


def _text_mapping(value: Any) -> dict[str, str]:
    if not all(isinstance(item, str) for item in _mapping(value).values()):
        raise ValueError("a dict of texts")
    return dict(value)


def _seconds(low: int, high: int) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"a number of seconds from {low} to {high}")
        return float(value)

    return read


def _max_age(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a whole number of seconds")
    return value


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(sorted(choices)))
        return str(value)

    return read


def _file(value: Any) -> str:
    if not isinstance(value, str | Path) or not Path(value).is_file():
        raise ValueError("the path of a PEM file; verification cannot be switched off")
    return str(value)


def _callable(value: Any) -> Callable[..., Any]:
    try:
        found = import_string(value) if isinstance(value, str) else value
    except ImportError:
        found = None
    if not callable(found):
        raise ValueError("a callable or the dotted path of one")
    return found  # type: ignore[no-any-return]


def _option(read: Callable[[Any], T], sentence: str, default: Any = MISSING) -> T:
    """A field of Provider that is read from the option of the same name in upper case."""
    metadata = {"read": read, "sentence": sentence}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)  # type: ignore[no-any-return]


_ASYMMETRIC = tuple(sorted(jose.ASYMMETRIC_ALGORITHMS))
_ANY_ALGORITHM = tuple(sorted(jose.ALGORITHMS))
_CLAIMS = {"email": "email", "first_name": "given_name", "last_name": "family_name"}


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One relying party: this site as one client at one OP. Options are these names in upper case."""

    slug: str
    issuer: str = _option(_text, "The issuer identifier, byte for byte as the OP writes it.")
    client_id: str = _option(_text, "The client identifier that the OP gave to this site.")
    client_secret: ClientSecret | None = _option(
        _secret, "The client secret; required unless the client authenticates otherwise.", None
    )
    label: str = _option(_text, "The name on the button; the slug if not set.", "")
    icon: str = _option(
        _text, "A template with an inline SVG for the button.", "oidc_rp/icons/openid.svg"
    )
    scopes: tuple[str, ...] = _option(
        _scopes, "The scopes to ask for.", ("openid", "profile", "email")
    )
    id_token_signed_response_alg: str | None = _option(
        _one_of(*_ANY_ALGORITHM),
        "The one algorithm of ID Tokens; HS256 to HS512 only if set here. "
        "If not set, whatever asymmetric algorithms the OP's metadata lists.",
        None,
    )
    userinfo_signed_response_alg: str | None = _option(
        _one_of(*_ANY_ALGORITHM), "UserInfo must be signed, with this algorithm.", None
    )
    token_endpoint_auth_method: str | None = _option(
        _one_of(*AUTH_METHODS),
        "How this client authenticates; chosen from the OP's metadata if not set. "
        '"none" for a public client.',
        None,
    )
    token_endpoint_auth_signing_alg: str | None = _option(
        _one_of(*_ANY_ALGORITHM),
        "The algorithm of client assertions (private_key_jwt: RS256, client_secret_jwt: HS256).",
        None,
    )
    private_jwk: PrivateKey | None = _option(
        _private_key, "The private JWK, as a dict, that signs private_key_jwt assertions.", None
    )
    default_max_age: int | None = _option(
        _max_age, "Seconds since the person last authenticated; asked for and enforced.", None
    )
    default_acr_values: tuple[str, ...] = _option(
        _names, "Authentication contexts, one of which must come back.", ()
    )
    redirect_uris: tuple[str, ...] = _option(
        _names, "The registered callback URL; built from the request's host if not set.", ()
    )
    response_mode: str = _option(
        _one_of("query", "form_post"), "How the OP sends the browser back.", "query"
    )
    require_pushed_authorization_requests: bool = _option(
        _flag, "Push the request to the OP first (RFC 9126), or do not log in.", False
    )
    metadata: dict[str, Any] = _option(
        _mapping, "Overrides discovery (RFC 8414 names); with the endpoints, replaces it.", {}
    )
    authorization_params: dict[str, Any] = _option(
        _mapping, "Parameters to add to the authentication request; dicts are sent as JSON.", {}
    )
    ca_bundle: str | None = _option(
        _file, "A PEM file that replaces the public certificate authorities.", None
    )
    allow_loopback_http: bool = _option(
        _flag, "Let an issuer on this machine be plain http; for development only.", False
    )
    trusted_audiences: frozenset[str] = _option(
        _set, "Other audiences that an ID Token may name.", frozenset()
    )
    tenants: frozenset[str] = _option(
        _set, "With {tenantid} in ISSUER: the tenants whose people may sign in.", frozenset()
    )
    api_origins: tuple[str, ...] = _option(
        _names, "The origins that access tokens may be sent to.", ()
    )
    userinfo: bool = _option(_flag, "Ask the UserInfo endpoint for claims at each sign-in.", True)
    timeout: float = _option(_seconds(1, 60), "Seconds for one call to the OP, in all.", 10.0)
    leeway: float = _option(
        _seconds(0, 60), "Seconds by which the OP's clock and ours may differ.", 60.0
    )
    create_users: bool = _option(_flag, "Create a local user at the first sign-in.", True)
    claims: dict[str, str] = _option(
        _text_mapping, "User fields to fill at each sign-in: {field: claim}.", _CLAIMS
    )
    groups_claim: str | None = _option(_text, "The claim that lists a person's groups.", None)
    groups: dict[str, str] = _option(
        _text_mapping, "Values of GROUPS_CLAIM and the Django groups they add and remove.", {}
    )
    staff_groups: frozenset[str] | None = _option(
        _set, "Values of GROUPS_CLAIM, any of which sets is_staff; none of them unsets it.", None
    )
    superuser_groups: frozenset[str] | None = _option(
        _set, "Values of GROUPS_CLAIM, any of which sets is_superuser, none unsets it.", None
    )
    email_domains: frozenset[str] = _option(
        _set,
        "Only people with a verified e-mail address in these domains may sign in.",
        frozenset(),
    )
    dangerously_link_by_email: Callable[..., Any] | None = _option(
        _callable,
        "Let somebody who has just signed in locally link the identity that carries the verified "
        "e-mail address of that account. The value is a callable, or its dotted path: "
        "user -> whether this site has verified that user's address.",
        None,
    )

    @cached_property
    def scope(self) -> str:
        """The wire string of SCOPES."""
        return " ".join(self.scopes)

    @property
    def login_leeway(self) -> timedelta:
        return timedelta(seconds=self.leeway)

    def issuers(self) -> tuple[str, ...]:
        """Every `iss` that may come back: one, or one for each tenant."""
        if TENANT not in self.issuer:
            return (self.issuer,)
        return tuple(self.issuer.replace(TENANT, tenant) for tenant in sorted(self.tenants))


OPTIONS: dict[str, Field[Any]] = {
    item.name.upper(): item for item in fields(Provider) if "read" in item.metadata
}
"""Every provider option and its field; .metadata["sentence"] says what it is for."""

OWN_OPTIONS = frozenset(
    "ISSUER CLIENT_ID CLIENT_SECRET PRIVATE_JWK LABEL METADATA REDIRECT_URIS TENANTS "
    "API_ORIGINS".split()
)
"""What each provider says for itself; any other option may stand at the top, for all of them."""

TOP_OPTIONS = frozenset({"PROVIDERS", "TOKEN_KEYS", "KEEP_ANONYMOUS_SESSION"})


def read_provider(slug: str, options: Any) -> tuple[Provider | None, list[Mistake]]:
    """Return the provider of this slug, or None, and every mistake in its options."""
    where = f"OIDC_RP['PROVIDERS'][{slug!r}]"
    mistakes = list(_slug_mistakes(slug))
    try:
        options = _callable(options)() if isinstance(options, str) else options
        options = _mapping(options)
    except ValueError as error:
        return None, [*mistakes, Mistake("E004", f"{where} should be {error}.", "")]
    mistakes += _unknown(options, frozenset(OPTIONS), where)
    values: dict[str, Any] = {}
    for name, item in OPTIONS.items():
        if options.get(name) is not None:
            try:
                values[item.name] = item.metadata["read"](options[name])
            except ValueError as error:
                mistakes.append(Mistake("E004", f"{where}[{name!r}] should be {error}.", ""))
        elif item.default is MISSING and item.default_factory is MISSING:
            hint = item.metadata["sentence"]
            mistakes.append(Mistake("E002", f"{where} lacks {name!r}.", hint))
    if mistakes:
        return None, mistakes
    values["label"] = values.get("label") or slug
    provider = Provider(slug=slug, **values)
    mistakes = list(_contradictions(provider, where))
    return (None if mistakes else provider), mistakes


def _slug_mistakes(slug: Any) -> Iterator[Mistake]:
    try:
        validate_slug(slug)
    except ValidationError:
        hint = "A slug has letters, digits, hyphens and underscores; it is a part of URLs."
        yield Mistake("E008", f"OIDC_RP['PROVIDERS'] has {slug!r}, which is no slug.", hint)
    if slug in RESERVED_SLUGS:
        yield Mistake("E008", f"{slug!r} cannot be a provider's slug: it is a URL of ours.", "")


def _unknown(options: Mapping[str, Any], known: frozenset[str], where: str) -> Iterator[Mistake]:
    for name in options:
        if name not in known:
            near = get_close_matches(str(name).upper(), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "The README lists all options."
            yield Mistake("E003", f"{where} has an unknown option {name!r}.", hint)


def _contradictions(provider: Provider, where: str) -> Iterator[Mistake]:
    """What each option allows and all together do not."""
    yield from _issuer_mistakes(provider, where)
    yield from _client_mistakes(provider, where)
    if wrong := PROTECTED_PARAMETERS & set(provider.authorization_params):
        hint = "Our checks rest on these; their values come from other options."
        names = ", ".join(sorted(wrong))
        yield Mistake("E014", f"{where}['AUTHORIZATION_PARAMS'] cannot set {names}.", hint)
    for uri in provider.redirect_uris:
        if not url_is_allowed(uri, loopback_http=True):
            hint = "An absolute https URL, as registered at the OP."
            yield Mistake("E004", f"{where}['REDIRECT_URIS'] has {uri!r}.", hint)
    if provider.metadata.get("authorization_endpoint"):
        document = {"issuer": provider.issuer} | provider.metadata
        try:
            loopback_http = provider.allow_loopback_http
            read_provider_metadata(document, provider.issuer, loopback_http=loopback_http)
        except InvalidResponse as error:
            yield Mistake("E013", f"{where}['METADATA'] is refused: {error}.", "")
    grants = provider.groups or provider.staff_groups or provider.superuser_groups
    if grants and not provider.groups_claim:
        hint = "GROUPS, STAFF_GROUPS and SUPERUSER_GROUPS speak of the values of that claim."
        yield Mistake("E002", f"{where} lacks 'GROUPS_CLAIM'.", hint)


def _issuer_mistakes(provider: Provider, where: str) -> Iterator[Mistake]:
    sample = provider.issuer.replace(TENANT, "tenant")
    if not url_is_allowed(sample, loopback_http=provider.allow_loopback_http) or "?" in sample:
        hint = "An https URL; for an OP on this machine ALLOW_LOOPBACK_HTTP permits http."
        yield Mistake("E005", f"{where}['ISSUER'] is no https URL: {provider.issuer!r}.", hint)
    if (TENANT in provider.issuer) != bool(provider.tenants):
        hint = f"ISSUER with {TENANT} and TENANTS go together; name every tenant you trust."
        yield Mistake("E015", f"{where} has one of ISSUER's {TENANT} and TENANTS only.", hint)


def _client_mistakes(provider: Provider, where: str) -> Iterator[Mistake]:
    method, secret = provider.token_endpoint_auth_method, provider.client_secret
    algorithms = {provider.id_token_signed_response_alg, provider.userinfo_signed_response_alg}
    needs_hmac = algorithms & jose.HMAC_ALGORITHMS or method == "client_secret_jwt"
    if secret is None and method not in ("none", "private_key_jwt"):
        hint = 'Or set TOKEN_ENDPOINT_AUTH_METHOD to "none" for a public client.'
        yield Mistake("E002", f"{where} lacks 'CLIENT_SECRET'.", hint)
    elif needs_hmac:
        try:
            jose.hmac_keys(secret or ClientSecret(""))
        except InvalidJOSE:
            hint = f"HMAC needs {jose.MIN_SECRET_BYTES} octets (RFC 7518 §3.2): get a new secret."
            yield Mistake("E006", f"{where}['CLIENT_SECRET'] is too short for HMAC.", hint)
    if method == "private_key_jwt":
        alg = provider.token_endpoint_auth_signing_alg or "RS256"
        try:
            key = provider.private_jwk or PrivateKey("{}")
            jose.check_private_jwk(json.loads(key.reveal()), alg)
        except InvalidJOSE as error:
            hint = "A private JWK of the algorithm's type, as a dict; its `kid` is sent along."
            yield Mistake("E009", f"{where}['PRIVATE_JWK']: {error.message}.", hint)


class _Settings:
    """OIDC_RP as read: one Provider for each slug, kept while its options stay the same."""

    def __init__(self) -> None:
        value = getattr(settings, "OIDC_RP", None)
        self._given: dict[str, Any] = value if isinstance(value, dict) else {}
        self._read: dict[str, tuple[Any, Provider | None, list[Mistake]]] = {}

    def options(self) -> dict[str, Any]:
        """slug -> options as given; a callable for PROVIDERS is asked each time, without arguments.

        Raises ConfigurationError when there is no mapping to be had.
        """
        given = self._given.get("PROVIDERS")
        try:
            return _mapping(_callable(given)() if not isinstance(given, dict) else given)
        except ValueError as error:
            raise ConfigurationError(
                "configuration.providers", f"OIDC_RP['PROVIDERS'] should be {error}"
            ) from error

    def read(self, slug: str, options: Any) -> tuple[Provider | None, list[Mistake]]:
        if isinstance(options, dict):
            defaults = {
                name: value
                for name, value in self._given.items()
                if name in OPTIONS and name not in OWN_OPTIONS
            }
            options = defaults | options
        known = self._read.get(slug)
        if known is None or known[0] != options or isinstance(options, str):
            provider, mistakes = read_provider(slug, options)
            if known is not None and provider == known[1]:
                provider = known[1]  # the same value stays the same object, and keeps its caches
            known = self._read[slug] = (options, provider, mistakes)
        return known[1], known[2]

    def mistakes(self) -> list[Mistake]:
        """Every mistake in the dict itself. A callable is not called: it may need the database."""
        if not self._given:
            hint = "Add the dict OIDC_RP with PROVIDERS; the README shows one."
            return [Mistake("E001", "OIDC_RP is missing or no dict.", hint)]
        where, known = "OIDC_RP", TOP_OPTIONS | (frozenset(OPTIONS) - OWN_OPTIONS)
        found = [*_unknown(self._given, known, where), *_token_key_mistakes(self._given)]
        if not isinstance(self._given.get("KEEP_ANONYMOUS_SESSION", False), bool):
            message = "OIDC_RP['KEEP_ANONYMOUS_SESSION'] should be True or False."
            found.append(Mistake("E004", message, ""))
        given = self._given.get("PROVIDERS")
        if not isinstance(given, dict):
            try:
                _callable(given)
            except ValueError as error:
                message = f"OIDC_RP['PROVIDERS'] should be a dict, {error}."
                found.append(Mistake("E012", message, "It maps slugs to the options of an OP."))
            return found
        seen: dict[tuple[str, str], str] = {}
        for slug, options in given.items():
            if isinstance(options, str):
                continue
            provider, mistakes = self.read(slug, options)
            found += mistakes
            if (
                provider
                and (twin := seen.setdefault((provider.issuer, provider.client_id), slug)) != slug
            ):
                message = f"Providers {twin!r} and {slug!r} are one client at one issuer."
                found.append(Mistake("E007", message, "Remove one of them."))
        return found


def _token_key_mistakes(given: Mapping[str, Any]) -> Iterator[Mistake]:
    keys = given.get("TOKEN_KEYS", [])
    hint = "Each is 32 random octets in URL-safe base64; the newest first."
    if not isinstance(keys, list | tuple):
        yield Mistake("E010", "OIDC_RP['TOKEN_KEYS'] should be a list.", hint)
        return
    for number, key in enumerate(keys):
        try:
            octets = urlsafe_b64decode(key)
        except (binascii.Error, TypeError, ValueError):
            octets = b""
        if len(octets) != 32:
            yield Mistake("E010", f"OIDC_RP['TOKEN_KEYS'][{number}] is no key.", hint)


_current: _Settings | None = None


def _settings() -> _Settings:
    global _current
    if _current is None:
        _current = _Settings()
    return _current


def _forget(*, setting: str, **_: Any) -> None:
    global _current
    if setting == "OIDC_RP":
        _current = None


setting_changed.connect(_forget)


def provider(slug: str) -> Provider:
    """Return the provider of this slug.

    Raises ConfigurationError "provider.unknown" where there is none, "configuration.provider"
    where its options cannot be used: no login goes on with half a configuration (M40).
    """
    options = _settings().options()
    if slug not in options:
        raise ConfigurationError("provider.unknown", "no provider of this name")
    found, mistakes = _settings().read(slug, options[slug])
    if found is None:
        told = "; ".join(mistake.message for mistake in mistakes)
        raise ConfigurationError("configuration.provider", told)
    return found


def providers() -> dict[str, Provider]:
    """Every provider that can be used, in the order of the settings."""
    try:
        options = _settings().options()
    except ConfigurationError:
        return {}
    read = {slug: _settings().read(slug, given)[0] for slug, given in options.items()}
    return {slug: found for slug, found in read.items() if found is not None}


def keep_anonymous_session() -> bool:
    """Whether what an anonymous visitor left in the session stays there at sign-in (M39)."""
    return _settings()._given.get("KEEP_ANONYMOUS_SESSION") is True


def mistakes() -> list[Mistake]:
    """Every mistake in OIDC_RP, for the system checks."""
    return _settings().mistakes()
