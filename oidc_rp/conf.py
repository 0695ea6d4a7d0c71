"""The one typed place for our settings: the dict OIDC_RP, read once into frozen values.

Nothing is read at import and nothing raises there. Mistakes become system checks (checks.py);
a provider that cannot be read is refused at its login and leaves the others alone.
"""

import json
import logging
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import timedelta
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.signals import setting_changed
from django.core.validators import slug_re
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from .errors import ConfigurationError, InvalidJOSE, InvalidResponse, url_without_secrets
from .protocol import jose
from .protocol.authentication import PROTECTED_PARAMETERS
from .protocol.bearer import origin_of
from .protocol.logout import END_SESSION, STANDARD
from .protocol.metadata import TENANT, issuers_of, read_provider_metadata, url_is_allowed
from .protocol.token_endpoint import AUTH_METHODS
from .protocol.tokens import ClientSecret, PrivateKey

logger = logging.getLogger("oidc_rp")

RESERVED_SLUGS = frozenset({"login", "logout", "logged-out", "identities"})
MAX_SLUG_LENGTH = 50


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong in the settings: the id of its system check, what, and how to mend it."""

    id: str
    message: str
    hint: str


# How each option is read: a function that returns the value, or raises ValueError with its wish.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a text that is not empty")
    return value


def _label(value: Any) -> str | Promise:
    """Also a lazy translation, which stays one."""
    return value if isinstance(value, Promise) else _text(value)


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


def _domains(value: Any) -> frozenset[str]:
    domains = frozenset(item.lower().removesuffix(".") for item in _set(value))
    if not all(domain.isascii() and not set(domain) & set("@*/ ") for domain in domains):
        raise ValueError('a list of domains such as "example.com" (others as "xn--...")')
    return domains


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


def _api_origins(value: Any) -> dict[str, tuple[str, ...]]:
    """{resource: origins}; a list is of the API that needs no naming."""
    wish = 'a list of origins such as "https://api.example", or {resource: list}'
    if isinstance(value, list | tuple):
        value = {"": value} if value else {}
    try:
        origins = {resource: _names(items) for resource, items in _mapping(value).items()}
    except ValueError as error:
        raise ValueError(wish) from error
    if any(origin_of(item) != item for items in origins.values() for item in items):
        raise ValueError(wish)
    return origins


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
    try:
        ssl.create_default_context(cafile=Path(value))
    except (OSError, TypeError, ValueError) as error:
        wish = "the path of a PEM file; verification cannot be switched off"
        raise ValueError(wish) from error
    return str(value)


def read_callable(value: Any) -> Callable[..., Any]:
    """Return the callable, or what its dotted path names; raises ValueError."""
    found: Any = None
    with suppress(ImportError):
        found = import_string(value) if isinstance(value, str) else value
    if not callable(found):
        raise ValueError("a callable or the dotted path of one")
    return found  # type: ignore[no-any-return]


def _option(read: Callable[[Any], Any], sentence: str, default: Any = MISSING) -> Any:
    """A field of Provider that is read from the option of the same name in upper case."""
    metadata = {"read": read, "sentence": sentence}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


_ASYMMETRIC = tuple(sorted(jose.ASYMMETRIC_ALGORITHMS))
_ANY_ALGORITHM = tuple(sorted(jose.ALGORITHMS))
DEFAULT_CLAIMS = {"email": "email", "first_name": "given_name", "last_name": "family_name"}


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One relying party: this site as one client at one OP. Options: these names in upper case."""

    slug: str
    issuer: str = _option(_text, "The issuer identifier, byte for byte as the OP writes it.")
    client_id: str = _option(_text, "The client identifier that the OP gave to this site.")
    client_secret: ClientSecret | None = _option(
        _secret, "The client secret; required unless the client authenticates otherwise.", None
    )
    label: str | Promise = _option(_label, "The name on the button; the slug if not set.", "")
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
    private_key: PrivateKey | None = _option(
        _private_key, "The private JWK, as a dict, that signs private_key_jwt assertions.", None
    )
    default_max_age: int | None = _option(
        _max_age, "Seconds since the person last authenticated; asked for and enforced.", None
    )
    default_acr_values: tuple[str, ...] = _option(
        _names, "Authentication contexts, one of which must come back.", ()
    )
    redirect_uris: tuple[str, ...] = _option(
        _names, "A list; the first is sent, instead of the URL built from the request's host.", ()
    )
    post_logout_redirect_uris: tuple[str, ...] = _option(
        _names,
        "Where the OP sends the browser after a logout: a list; the first is sent, instead of the "
        "URL built from the request's host.",
        (),
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
    api_origins: dict[str, tuple[str, ...]] = _option(
        _api_origins,
        "The origins that access tokens may be sent to: a list, or {resource: list} where each "
        'API has tokens of its own, "" being the API that needs no naming.',
        {},
    )
    resource_parameter: str = _option(
        _one_of("resource", "audience", "scope"),
        "What tells the OP which API a token is for: `resource` (RFC 8707), `audience`, or "
        "nothing but `scope`.",
        "resource",
    )
    revoke_superseded: bool | None = _option(
        _flag,
        "Revoke the old refresh token when a new login brings another. If not set, wherever "
        "that does not end the new one as well.",
        None,
    )
    in_doubt: str = _option(
        _one_of("repeat", "reauth"),
        "What to do when nobody knows whether a refresh token was spent: send it once more, or "
        "ask the person to sign in.",
        "repeat",
    )
    refresh_idle_lifetime: float = _option(
        _seconds(60, 3650 * 86400),
        "Seconds after which the OP forgets a refresh token that nobody used.",
        14 * 86400.0,
    )
    end_session: str = _option(
        _one_of(*END_SESSION),
        "How a logout goes on at the OP: `standard` (RP-Initiated Logout, where its metadata names "
        "an end_session_endpoint), `auth0`, `cognito`, or `local`: not at all.",
        STANDARD,
    )
    logout_ends_offline_access: bool = _option(
        _flag,
        "A logout also ends what was granted for times when the person is away, and revokes it.",
        False,
    )
    session_renewal: float | None = _option(
        _seconds(1, 3650 * 86400),
        "Seconds after which the OP has to vouch for a session again; needs the middleware "
        "`SessionRenewal`.",
        None,
    )
    session_renewal_failed: str = _option(
        _one_of("sign_out", "ask"),
        "What becomes of a session that the OP vouches for no more: it ends (`sign_out`), or goes "
        "on and asks (`ask`).",
        "sign_out",
    )
    userinfo: bool = _option(_flag, "Ask the UserInfo endpoint for claims at each sign-in.", True)
    timeout: float = _option(_seconds(1, 60), "Seconds for one call to the OP, in all.", 10.0)
    leeway: float = _option(
        _seconds(0, 60), "Seconds by which the OP's clock and ours may differ.", 60.0
    )
    create_users: bool = _option(_flag, "Create a local user at the first sign-in.", True)
    claims: dict[str, str] = _option(
        _text_mapping, "User fields to fill at each sign-in: {field: claim}.", DEFAULT_CLAIMS
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
        _domains,
        "Only people with a verified e-mail address in these domains may sign in.",
        frozenset(),
    )
    dangerously_link_by_email: Callable[..., Any] | None = _option(
        read_callable,
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
    def offline(self) -> bool:
        """Whether a refresh token of this provider outlives the browser session (Core §11)."""
        by_google = self.authorization_params.get("access_type") == "offline"
        return by_google or "offline_access" in self.scopes

    def origins_for(self, resource: str) -> tuple[str, ...]:
        """Where a token for this resource may go ("" is the API that needs no naming; M54).

        A resource that API_ORIGINS does not name is its own origin, if that is listed.
        """
        if resource in self.api_origins:
            return self.api_origins[resource]
        own = origin_of(resource)
        return (own,) if own is not None and own in self.api_origins.get("", ()) else ()

    @property
    def login_leeway(self) -> timedelta:
        return timedelta(seconds=self.leeway)

    def issuers(self) -> tuple[str, ...]:
        """Every `iss` that may come back: one, or one for each tenant."""
        return issuers_of(self.issuer, self.tenants)


OPTIONS: dict[str, Field[Any]] = {
    item.name.upper(): item for item in fields(Provider) if "read" in item.metadata
}
"""Every provider option and its field; .metadata["sentence"] says what it is for."""

OWN_OPTIONS = frozenset(
    "ISSUER CLIENT_ID CLIENT_SECRET PRIVATE_KEY LABEL METADATA REDIRECT_URIS TENANTS "
    "POST_LOGOUT_REDIRECT_URIS API_ORIGINS".split()
)
"""What each provider says for itself."""

SHARED_OPTIONS = frozenset(OPTIONS.keys() - OWN_OPTIONS)
"""What may stand at the top as well, for all providers."""

TOP_OPTIONS = frozenset(
    "PROVIDERS TOKEN_KEYS KEEP_ANONYMOUS_SESSION REFRESH_WAIT WORKER_TIMEOUT OWN_CONNECTION "
    "EVENT_RETENTION".split()
)
"""What is said once for the whole site."""

_SAID_ANYWHERE = TOP_OPTIONS | OPTIONS.keys()


def read_provider(slug: Any, options: Mapping[str, Any]) -> tuple[Provider | None, list[Mistake]]:
    """Return the provider of this slug, or None, and every mistake in its options."""
    where = f"OIDC_RP['PROVIDERS'][{slug!r}]"
    mistakes = [*_slug_mistakes(slug), *unknown_options(options, OPTIONS, where)]
    values: dict[str, Any] = {}
    for name, item in OPTIONS.items():
        sentence, required = item.metadata["sentence"], _is_required(item)
        if options.get(name) is not None:
            try:
                values[item.name] = item.metadata["read"](options[name])
            except ValueError as error:
                empty = isinstance(options[name], str) and not options[name]
                do = "Fill it in, here or where it comes from" if empty else "Correct it"
                hint = f"{do}: {sentence}" if required else f"{do}, or leave it out: {sentence}"
                mistakes.append(Mistake("E004", f"{where}[{name!r}] should be {error}.", hint))
        elif required:
            mistakes.append(Mistake("E002", f"{where} lacks {name!r}.", f"Add it: {sentence}"))
    if mistakes:
        return None, mistakes
    provider = Provider(slug=slug, **({"label": slug} | values))
    mistakes = list(_contradictions(provider, where))
    return (None if mistakes else provider), mistakes


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _slug_mistakes(slug: Any) -> Iterator[Mistake]:
    if not isinstance(slug, str) or not slug_re.match(slug) or len(slug) > MAX_SLUG_LENGTH:
        hint = (
            f"Take at most {MAX_SLUG_LENGTH} letters, digits, hyphens and underscores, as in URLs."
        )
        yield Mistake("E008", f"OIDC_RP['PROVIDERS'] has {slug!r}, which is no slug.", hint)
    elif slug in RESERVED_SLUGS:
        hint = "Take another name; at the OP the callback URL changes with it."
        yield Mistake("E008", f"{slug!r} cannot be a provider's slug: it is a URL of ours.", hint)


def unknown_options(
    options: Mapping[str, Any], known: Collection[str], where: str
) -> Iterator[Mistake]:
    """A mistake for each option that is not known here, with the near one or the right place."""
    for name in options:
        if name in known:
            continue
        near = get_close_matches(str(name).upper(), sorted(known), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Remove it: the README lists all options."
        if name in OWN_OPTIONS:
            hint = "It belongs to one provider: move it into PROVIDERS."
        elif name in TOP_OPTIONS:
            hint = "It is for the whole site: move it to the top of OIDC_RP."
        yield Mistake("E003", f"{where} has an unknown option {name!r}.", hint)


def _contradictions(provider: Provider, where: str) -> Iterator[Mistake]:
    """What each option allows and all together do not."""
    yield from _issuer_mistakes(provider, where)
    yield from _client_mistakes(provider, where)
    yield from _metadata_mistakes(provider, where)
    if wrong := PROTECTED_PARAMETERS & set(provider.authorization_params):
        hint = "Remove them: our checks rest on these, and their values come from other options."
        names = ", ".join(sorted(wrong))
        yield Mistake("E014", f"{where}['AUTHORIZATION_PARAMS'] cannot set {names}.", hint)
    for name in ("REDIRECT_URIS", "POST_LOGOUT_REDIRECT_URIS"):
        for uri in getattr(provider, name.lower()):
            if not url_is_allowed(uri, loopback_http=True):
                hint = "Write an absolute https URL, as registered at the OP."
                yield Mistake("E004", f"{where}[{name!r}] has {url_without_secrets(uri)!r}.", hint)
    for origin in {origin for origins in provider.api_origins.values() for origin in origins}:
        if not url_is_allowed(origin, loopback_http=provider.allow_loopback_http):
            hint = "Write it with https, for access tokens travel over nothing else; for an API on "
            hint += "this machine ALLOW_LOOPBACK_HTTP permits http."
            yield Mistake(
                "E004", f"{where}['API_ORIGINS'] has {url_without_secrets(origin)!r}.", hint
            )
    grants = provider.groups or provider.staff_groups or provider.superuser_groups
    if grants and not provider.groups_claim:
        hint = (
            "Add it: GROUPS, STAFF_GROUPS and SUPERUSER_GROUPS speak of the values of that claim."
        )
        yield Mistake("E002", f"{where} lacks 'GROUPS_CLAIM'.", hint)


def _issuer_mistakes(provider: Provider, where: str) -> Iterator[Mistake]:
    sample = provider.issuer.replace(TENANT, "tenant")
    if not url_is_allowed(sample, loopback_http=provider.allow_loopback_http) or "?" in sample:
        hint = "Write an https URL; for an OP on this machine ALLOW_LOOPBACK_HTTP permits http."
        yield Mistake(
            "E005",
            f"{where}['ISSUER'] is no https URL: {url_without_secrets(provider.issuer)!r}.",
            hint,
        )
    if (TENANT in provider.issuer) != bool(provider.tenants):
        hint = f"Write {TENANT} in ISSUER, and in TENANTS every tenant you trust; or neither."
        yield Mistake("E015", f"{where} has one of ISSUER's {TENANT} and TENANTS only.", hint)
    if TENANT in provider.issuer and str(provider.token_endpoint_auth_method).endswith("_jwt"):
        hint = (
            "Take another TOKEN_ENDPOINT_AUTH_METHOD: an assertion names one issuer (RFC 7523 §3)."
        )
        yield Mistake("E015", f"{where} has many tenants and client assertions.", hint)


def _client_mistakes(provider: Provider, where: str) -> Iterator[Mistake]:
    method, secret = provider.token_endpoint_auth_method, provider.client_secret
    signing_alg = provider.token_endpoint_auth_signing_alg
    algorithms = {provider.id_token_signed_response_alg, provider.userinfo_signed_response_alg}
    needs_hmac = algorithms & jose.HMAC_ALGORITHMS or method == "client_secret_jwt"
    if secret is None and method not in ("none", "private_key_jwt"):
        hint = (
            'Add "CLIENT_SECRET", which the OP gave to this site. For a public client, which has '
            'none, set TOKEN_ENDPOINT_AUTH_METHOD to "none".'
        )
        yield Mistake("E002", f"{where} lacks 'CLIENT_SECRET'.", hint)
    elif needs_hmac:
        try:
            jose.hmac_keys(secret or ClientSecret(""))
        except InvalidJOSE:
            hint = f"Get a new secret: HMAC needs {jose.MIN_SECRET_BYTES} octets (RFC 7518 §3.2)."
            yield Mistake("E006", f"{where}['CLIENT_SECRET'] is too short for HMAC.", hint)
    if method == "client_secret_jwt" and signing_alg not in (None, *jose.HMAC_ALGORITHMS):
        hint = "Take HS256, HS384 or HS512: client_secret_jwt signs with these (Core §9)."
        yield Mistake("E004", f"{where}['TOKEN_ENDPOINT_AUTH_SIGNING_ALG'] does not fit.", hint)
    if method == "private_key_jwt":
        try:
            key = provider.private_key or PrivateKey("{}")
            jose.check_private_jwk(json.loads(key.reveal()), signing_alg or "RS256")
        except InvalidJOSE as error:
            hint = (
                "Write a private JWK of the algorithm's type, as a dict; its `kid` is sent along."
            )
            yield Mistake("E009", f"{where}['PRIVATE_KEY']: {error.message}.", hint)


def _metadata_mistakes(provider: Provider, where: str) -> Iterator[Mistake]:
    """METADATA may be all there is, or override a part of what discovery will tell."""
    endpoints = {"authorization_endpoint", "token_endpoint"}
    told = {"issuer": provider.issuer} | dict.fromkeys(endpoints, "https://op.invalid")
    hint = "Correct it: RFC 8414 §2 tells the names and types of its members."
    try:
        read_provider_metadata(
            told | provider.metadata, provider.issuer, loopback_http=provider.allow_loopback_http
        )
    except InvalidResponse as error:
        yield Mistake("E013", f"{where}['METADATA'] is refused: {error}.", hint)
    algs = {provider.id_token_signed_response_alg, provider.userinfo_signed_response_alg or "HS256"}
    by_key = bool(algs - jose.HMAC_ALGORITHMS)
    if endpoints <= set(provider.metadata) and by_key and not provider.metadata.get("jwks_uri"):
        hint = "Add it: with both endpoints here nothing is discovered, and signatures need keys."
        yield Mistake("E013", f"{where}['METADATA'] lacks 'jwks_uri'.", hint)


_NOT_GIVEN = object()
_known: dict[Any, tuple[tuple[Any, ...], Provider | None, str]] = {}
"""slug -> what was read, and the provider or its mistakes, for as long as that stays the same."""


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "OIDC_RP":
        _known.clear()


setting_changed.connect(_forget)


def given() -> dict[str, Any]:
    """OIDC_RP as it stands in the settings; empty where it is missing or no dict."""
    value = getattr(settings, "OIDC_RP", None)
    return value if isinstance(value, dict) else {}


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one provider, over those that stand at the top of OIDC_RP for all."""
    return {n: value for n, value in given().items() if n in SHARED_OPTIONS} | dict(options)


def written_providers() -> dict[Any, tuple[Provider | None, list[Mistake]]]:
    """The providers whose options stand in the settings, each as `read_provider` reads it.

    Nothing is logged, and no callable is called: it may need a database that is not there yet.
    """
    options_of = given().get("PROVIDERS")
    return {
        slug: read_provider(slug, with_defaults(options))
        for slug, options in (options_of.items() if isinstance(options_of, dict) else ())
        if isinstance(options, dict)
    }


def unknown_at_top() -> list[str]:
    """What refuses every provider: it may have been meant to say something for all (M40)."""
    return [mistake.message for mistake in unknown_options(given(), _SAID_ANYWHERE, "OIDC_RP")]


def _dict_from(value: Any, code: str, where: str) -> dict[Any, Any]:
    """The dict, or what its callable returns at this moment.

    Raises ConfigurationError `code`, whatever a callable of the site raises or returns.
    """
    try:
        found = value if isinstance(value, dict) else read_callable(value)()
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__} is no dict")
    except Exception as error:
        of_the_site = callable(value) or isinstance(value, str)  # else a traceback tells nothing
        logger.error("%s cannot be read", where, exc_info=of_the_site)
        raise ConfigurationError(code, f"{where} cannot be read") from error
    return found


def _options() -> dict[Any, Any]:
    value = given().get("PROVIDERS")
    return _dict_from(value, "configuration.providers", "OIDC_RP['PROVIDERS']")


def _provider(slug: str, all_options: dict[Any, Any]) -> Provider:
    given_options = all_options.get(slug, _NOT_GIVEN)
    del all_options  # a traceback may be shown with its variables, and here they hold secrets
    if given_options is _NOT_GIVEN:
        raise ConfigurationError("provider.unknown", "no provider of this name")
    where = f"OIDC_RP['PROVIDERS'][{slug!r}]"
    options = with_defaults(_dict_from(given_options, "configuration.provider", where))
    known, unknown = _known.get(slug), unknown_at_top()
    if known is None or known[0] != (options, unknown):
        found, mistakes = read_provider(slug, options)
        told = "; ".join([*unknown, *(mistake.message for mistake in mistakes)])
        if told:
            found = None
            logger.error("provider %r cannot be used: %s", slug, told)
        if known is not None and found == known[1]:
            found = known[1]  # the same value stays the same object, and keeps its caches
        known = _known[slug] = ((deepcopy(options), unknown), found, told)
    found, told = known[1:]
    del given_options, options, known
    if found is None:
        raise ConfigurationError("configuration.provider", told)
    return found


def provider(slug: str) -> Provider:
    """Return the provider of this slug.

    Raises ConfigurationError "provider.unknown" where there is none, "configuration.provider"
    where its options cannot be used: no login goes on with half a configuration (M40).
    """
    return _provider(slug, _options())


def providers() -> dict[str, Provider]:
    """Every provider that can be used, in the order of the settings."""
    found: dict[str, Provider] = {}
    if given().get("PROVIDERS") is None:
        return found  # the checks tell that, and whoever asks for one provider
    with suppress(ConfigurationError):
        all_options = _options()
        for slug in all_options:
            with suppress(ConfigurationError):
                found[slug] = _provider(slug, all_options)
    return found


def keep_anonymous_session() -> bool:
    """Whether what an anonymous visitor left in the session stays there at sign-in (M39)."""
    return given().get("KEEP_ANONYMOUS_SESSION") is True


def token_keys() -> tuple[str, ...]:
    """TOKEN_KEYS, newest first; sealing.py reads them. What is no text is "", which is no key."""
    keys = given().get("TOKEN_KEYS") or ()
    if not isinstance(keys, list | tuple):
        return ()
    return tuple([key if isinstance(key, str) else "" for key in keys])


def _top_number(name: str, default: float) -> float:
    value: Any = given().get(name)
    return float(value) if type(value) in (int, float) and value > 0 else default


def refresh_wait() -> float:
    """Seconds that a caller waits for another's refresh at most."""
    return _top_number("REFRESH_WAIT", 12.0)


def worker_timeout() -> float:
    """Seconds after which the web server kills a worker that does not answer."""
    return _top_number("WORKER_TIMEOUT", 30.0)


def own_connection() -> bool:
    """Whether refreshes may open a database connection of their own."""
    return given().get("OWN_CONNECTION") is not False


MAX_RETENTION = 36_500
"""Days: no database has a clock that goes back much further."""


def event_retention() -> timedelta:
    """How long events stay in the timeline."""
    return timedelta(days=min(_top_number("EVENT_RETENTION", 180), MAX_RETENTION))
