"""One provider and this site as its client: asks the OP, believes only what the protocol proves."""

import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from django.utils import timezone

from . import conf
from .discovery import Published, published_keys, published_metadata
from .errors import ConfigurationError, InvalidResponse, OIDCError, OPError, TransportError
from .protocol import jose
from .protocol.authentication import (
    ANYHOW,
    PROTECTED_PARAMETERS,
    AuthenticationRequest,
    StepUp,
    authentication_request,
    authorization_url,
    essential_claims,
    read_authentication_response,
    read_pushed_response,
    request_parameters,
)
from .protocol.id_token import (
    ExpectedIdToken,
    IdTokenClaims,
    check_at_hash,
    check_aud,
    check_refreshed_id_token,
    validate_id_token,
)
from .protocol.logout import (
    LogoutRequest,
    LogoutTokenClaims,
    logout_url,
    validate_logout_token,
)
from .protocol.metadata import ProviderMetadata
from .protocol.strict_json import json_object
from .protocol.token_endpoint import (
    ClientAuthentication,
    RefreshResponse,
    TokenResponse,
    authenticate_client,
    choose_auth_method,
    code_request,
    read_refresh_response,
    read_revocation_response,
    read_token_response,
    refresh_request,
    revocation_request,
)
from .protocol.tokens import AccessToken, AuthorizationCode, IdToken, RefreshToken
from .protocol.userinfo import read_userinfo_response
from .transport import Answer, Transport

logger = logging.getLogger("oidc_rp")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody signed in: validated claims, and the tokens that came with them.

    userinfo: the claims of the UserInfo endpoint, about the same `sub`; empty when not asked.
    """

    provider: conf.Provider
    id_token: IdTokenClaims = field(repr=False)  # its nonce is nobody's business
    userinfo: Mapping[str, Any] = field(repr=False)
    tokens: TokenResponse


class RelyingParty:
    """This site as a client of one provider. Safe to share between threads."""

    def __init__(self, provider: conf.Provider, clock: Callable[[], datetime] = timezone.now):
        self.provider = provider
        self._clock = clock
        self._transport = Transport(timeout=provider.timeout, ca_bundle=provider.ca_bundle)
        self.metadata = published_metadata(provider, self._transport)
        self._keys: Published[jose.KeySet] | None = None
        self._keys_uri: str | None = None
        self._lock = threading.Lock()

    # The login

    def begin_login(
        self,
        redirect_uri: str,
        additional: Mapping[str, Any],
        more_scopes: Sequence[str] = (),
        step_up: StepUp = ANYHOW,
    ) -> tuple[str, AuthenticationRequest]:
        """Return where to send the browser, and the request to keep until it comes back.

        additional: further parameters, e.g. prompt, login_hint, ui_locales, claims (a dict).
        more_scopes, step_up: what this login asks for besides what the settings do.
        """
        provider, metadata = self.provider, self.metadata()
        ages = [age for age in (provider.default_max_age, step_up.max_age) if age is not None]
        if step_up.acr_values or step_up.amr_values:
            claims = essential_claims(additional.get("claims"), step_up)
            additional = {**additional, "claims": claims}
        request = authentication_request(
            secrets.token_urlsafe,
            issuer=provider.issuer,
            client_id=provider.client_id,
            redirect_uri=redirect_uri,
            scope=" ".join(dict.fromkeys((*provider.scopes, *more_scopes))),
            response_mode=provider.response_mode,
            max_age=min(ages, default=None),
            acr_values=step_up.acr_values or provider.default_acr_values,
            amr_values=step_up.amr_values,
        )
        parameters = request_parameters(request, _additional(additional))
        if (
            provider.require_pushed_authorization_requests
            or metadata.require_pushed_authorization_requests
        ):
            parameters = self._push(parameters, metadata)
        return authorization_url(metadata.authorization_endpoint, parameters), request

    def finish_login(
        self,
        parameters: Mapping[str, Sequence[str]],
        response_mode: str,
        request: AuthenticationRequest,
    ) -> Login:
        """Return the login that the response to `request` proves; nothing is asked of the OP
        after a check has failed."""
        code = read_authentication_response(
            parameters,
            request,
            response_mode=response_mode,
            issuers=self.provider.issuers(),
            iss_required=self.metadata().authorization_response_iss_parameter_supported,
        )
        tokens = self._spend(code, request)
        if tokens.id_token is None:
            raise InvalidResponse("token.id_token", "missing")
        id_token = self._validated(
            tokens.id_token,
            issuer=request.issuer,
            client_id=request.client_id,
            nonce=request.nonce,
            max_age=request.max_age,
            acr_values=request.acr_values,
            amr_values=request.amr_values,
        )
        check_at_hash(id_token, tokens.access_token)
        if parameters.get("iss", [id_token.iss])[0] != id_token.iss:  # one tenant for another
            raise InvalidResponse("response.iss", expected=id_token.iss)
        userinfo = self.userinfo(tokens.access_token, iss=id_token.iss, sub=id_token.sub)
        return Login(self.provider, id_token, userinfo, tokens)

    # What follows it

    def refresh(
        self,
        refresh_token: RefreshToken,
        *,
        scope: str = "",
        resource: str = "",
        requested_scope: str,
    ) -> RefreshResponse:
        """Spend `refresh_token`, by one request, and return what came of it.

        scope, resource: what the access token is for; "" for all that was granted, and for the
        OP's default. requested_scope: what an answer without `scope` grants.
        Raises TransportError, with .sent False when the token cannot have been spent; OPError,
        with .status and .retry_after; InvalidResponse "token.<member>" for a 200 without any token.
        The ID Token is not looked at: keep the tokens, then ask validated_refreshed.
        """
        parameters = refresh_request(
            refresh_token,
            scope=scope,
            resource=resource,
            resource_parameter=self.provider.resource_parameter,
        )
        with _nothing_sent():
            endpoint = self.metadata().token_endpoint
            form, headers = self._authenticated(parameters)
        sent_at = self._clock()
        answer = self._transport.post(endpoint, form, headers)
        with _told_by(answer):
            return read_refresh_response(
                answer.status,
                _document(answer, "token.json"),
                requested_scope=requested_scope,
                sent_at=sent_at,
            )

    def validated_refreshed(
        self, id_token: IdToken, *, iss: str, sub: str, previous: Mapping[str, Any]
    ) -> IdTokenClaims:
        """Return the claims of an ID Token from a refresh, about the same sign-in (Core §12.2).

        previous: lasting_claims of the ID Token of that sign-in; what was not kept is not compared.
        Raises InvalidIdToken; .claim "iss", "tid" or "sub" is somebody else, vouched for by the OP.
        """
        provider = self.provider
        refreshed = self._validated(id_token, issuer=provider.issuer, client_id=provider.client_id)
        known = {**refreshed.claims, **previous}
        known = {name: value for name, value in known.items() if value is not None}
        aud = check_aud(known, provider.client_id, provider.trusted_audiences)
        original = refreshed._replace(iss=iss, sub=sub, aud=aud, claims=known)
        check_refreshed_id_token(refreshed, original)
        return refreshed

    def revoke(self, token: RefreshToken | AccessToken, token_type_hint: str = "") -> bool:
        """Tell the OP that a token is of no use any more (RFC 7009).

        True: it is good for nothing now. False: this OP revokes no tokens.
        Raises TransportError; OPError, with .status and .retry_after.
        """
        with _nothing_sent():
            endpoint = self.metadata().revocation_endpoint
            if endpoint is None:
                return False
            form, headers = self._authenticated(revocation_request(token, token_type_hint))
        answer = self._transport.post(endpoint, form, headers)
        with _told_by(answer):
            read_revocation_response(answer.status, _document_or_none(answer))
        return True

    def logout_url(self, request: LogoutRequest) -> str | None:
        """Return where to send the browser to end the OP's session too; None: nowhere."""
        return logout_url(request, self.metadata(), self.provider.end_session)

    def received_logout(self, logout_token: str) -> LogoutTokenClaims:
        """Return whom a logout token signs out (Back-Channel Logout §2.6).

        Raises InvalidResponse "logout_token.<claim>". That its `jti` is new is not checked here.
        """
        expected = self._expected(self.provider.issuer, self.provider.client_id)
        return _with_keys(
            self._key_sets(expected.algorithms),
            lambda keys: validate_logout_token(logout_token, expected, keys(), self._clock()),
        )

    def userinfo(self, access_token: AccessToken, *, iss: str, sub: str) -> Mapping[str, Any]:
        """Return the claims of the UserInfo endpoint about this very person (Core §5.3).

        Empty where it is not to be asked. Raises TransportError, InvalidResponse.
        """
        provider, metadata = self.provider, self.metadata()
        if not provider.userinfo or metadata.userinfo_endpoint is None:
            return {}
        answer = self._transport.get(
            metadata.userinfo_endpoint, {"Authorization": f"Bearer {access_token.reveal()}"}
        )
        if answer.status != 200:
            raise InvalidResponse("userinfo.status", expected=200, received=answer.status)
        algorithms = self._algorithms(
            provider.userinfo_signed_response_alg, metadata.userinfo_signing_alg_values_supported
        )
        return _with_keys(
            self._key_sets(algorithms),
            lambda keys: read_userinfo_response(
                answer.body,
                answer.content_type,
                sub=sub,
                iss=iss,
                client_id=provider.client_id,
                keys=keys,
                algorithms=algorithms,
                must_be_signed=provider.userinfo_signed_response_alg is not None,
            ),
        )

    # The steps

    def _push(self, parameters: Mapping[str, str], metadata: ProviderMetadata) -> dict[str, str]:
        """Push the request; only its reference goes through the browser (RFC 9126 §4).

        There is no falling back to the query: whoever asked for PAR relies on it.
        """
        endpoint = metadata.pushed_authorization_request_endpoint
        if endpoint is None:
            raise InvalidResponse("par.endpoint", "the OP's metadata names none")
        answer = self._post(endpoint, parameters)
        request_uri = read_pushed_response(answer.status, _document(answer, "par.json"))
        return {"client_id": self.provider.client_id, "request_uri": request_uri}

    def _spend(self, code: AuthorizationCode, request: AuthenticationRequest) -> TokenResponse:
        sent_at = self._clock()
        answer = self._post(self.metadata().token_endpoint, code_request(code, request))
        tokens = read_token_response(
            answer.status,
            _document(answer, "token.json"),
            requested_scope=request.scope,
            sent_at=sent_at,
        )
        if set(tokens.scope.split()) != set(request.scope.split()):
            told = {"expected": request.scope, "received": tokens.scope}
            extra = {"code": "token.scope_changed", "provider": self.provider.slug, **told}
            logger.info("the OP granted another scope: %s", told, extra=extra)
        return tokens

    def _post(self, endpoint: str, parameters: Mapping[str, str]) -> Answer:
        form, headers = self._authenticated(parameters)
        return self._transport.post(endpoint, form, headers)

    def _authenticated(
        self, parameters: Mapping[str, str]
    ) -> tuple[dict[str, str], dict[str, str]]:
        provider = self.provider
        supported = self.metadata().token_endpoint_auth_methods_supported
        client = ClientAuthentication(
            client_id=provider.client_id,
            method=provider.token_endpoint_auth_method
            or choose_auth_method(supported, provider.client_secret),
            client_secret=provider.client_secret,
            private_key=provider.private_key,
            signing_alg=provider.token_endpoint_auth_signing_alg,
        )
        return authenticate_client(
            parameters,
            client,
            issuer=provider.issuer,
            now=self._clock(),
            random=secrets.token_urlsafe,
        )

    def _validated(
        self, id_token: IdToken, *, issuer: str, client_id: str, **asked: Any
    ) -> IdTokenClaims:
        """asked: nonce, max_age, acr_values, amr_values, as far as they were."""
        expected = self._expected(issuer, client_id, **asked)
        return _with_keys(
            self._key_sets(expected.algorithms),
            lambda keys: validate_id_token(id_token, expected, keys(), self._clock()),
        )

    def _expected(self, issuer: str, client_id: str, **asked: Any) -> ExpectedIdToken:
        provider = self.provider
        return ExpectedIdToken(
            issuer=issuer,
            client_id=client_id,
            algorithms=self._algorithms(
                provider.id_token_signed_response_alg,
                self.metadata().id_token_signing_alg_values_supported,
            ),
            leeway=provider.login_leeway,
            trusted_audiences=provider.trusted_audiences,
            tenants=provider.tenants,
            **{"nonce": None, **asked},
        )

    # Keys

    def _algorithms(self, configured: str | None, published: Sequence[str]) -> frozenset[str]:
        """The settings decide; else the metadata, but never for HMAC (RFC 8725 §3.1)."""
        if configured is not None:
            return frozenset({configured})
        return jose.ASYMMETRIC_ALGORITHMS & frozenset(published)

    def _key_sets(self, algorithms: frozenset[str]) -> Iterator[jose.KeySet]:
        """Yield the keys at hand, then newer ones for as long as none fits (Core §10.1.1)."""
        if algorithms and algorithms <= jose.HMAC_ALGORITHMS:
            yield self._hmac_keys()
        else:
            yield from self._published_keys().values()

    def _hmac_keys(self) -> jose.KeySet:
        secret = self.provider.client_secret
        if secret is None:
            raise ConfigurationError("configuration.client_secret", "HMAC needs CLIENT_SECRET")
        return jose.hmac_keys(secret)

    def _published_keys(self) -> Published[jose.KeySet]:
        jwks_uri = self.metadata().jwks_uri
        if jwks_uri is None:
            raise InvalidResponse("discovery.jwks_uri", "the OP's metadata names none")
        with self._lock:  # one for all threads: it is what fetches one at a time
            if self._keys is None or self._keys_uri != jwks_uri:
                self._keys, self._keys_uri = published_keys(self._transport, jwks_uri), jwks_uri
            return self._keys


def _with_keys(
    key_sets: Iterator[jose.KeySet], read: Callable[[Callable[[], jose.KeySet]], T]
) -> T:
    """What `read` returns with the first keys of which one fits; it asks when it needs any."""
    refused = InvalidResponse("jwks.none", "no keys")
    while True:
        try:
            return read(lambda: next(key_sets))
        except StopIteration:
            raise refused from None
        except InvalidResponse as error:
            if error.code.partition(".")[2] not in ("kid", "signature"):
                raise
            refused = error


def _document(answer: Answer, code: str) -> dict[str, Any]:
    """The JSON object of an answer; an error page of some proxy is told by its status."""
    try:
        return json_object(answer.body, code)
    except InvalidResponse:
        if answer.status != 200:
            raise TransportError(
                "transport.status",
                received=answer.status,
                status=answer.status,
                retry_after=answer.retry_after,
            ) from None
        raise


def _document_or_none(answer: Answer) -> dict[str, Any] | None:
    try:
        return json_object(answer.body, "json")
    except InvalidResponse:
        return None


@contextmanager
def _nothing_sent() -> Iterator[None]:
    """What fails before a token is sent is a TransportError that says so."""
    try:
        yield
    except OIDCError as error:
        raise TransportError(
            error.code,
            error.message,
            expected=error.expected,
            received=error.received,
            sent=False,
            status=getattr(error, "status", None),
            retry_after=getattr(error, "retry_after", None),
        ) from error


@contextmanager
def _told_by(answer: Answer) -> Iterator[None]:
    """The OP's error knows how it came: whoever may ask again has to know when."""
    try:
        yield
    except OPError as error:
        error.status, error.retry_after = answer.status, answer.retry_after
        raise


def _additional(parameters: Mapping[str, Any]) -> dict[str, str]:
    if wrong := PROTECTED_PARAMETERS & set(parameters):
        raise ConfigurationError(
            "configuration.parameters", f"these cannot be set: {', '.join(sorted(wrong))}"
        )
    return {name: _as_text(value) for name, value in parameters.items() if value is not None}


def _as_text(value: Any) -> str:
    """As the wire has it: `claims` and its like as JSON, lists separated by spaces."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return json.dumps(value, default=str) if isinstance(value, dict) else str(value)


_relying_parties: dict[str, RelyingParty] = {}
_lock = threading.RLock()


def relying_party(slug: str) -> RelyingParty:
    """Return the relying party of this slug, with its caches, for as long as its settings stay.

    Raises ConfigurationError as conf.provider does.
    """
    provider = conf.provider(slug)
    known = _relying_parties.get(slug)
    if known is None or known.provider is not provider:
        with _lock:  # threads that come at once share one, and with it one fetch at a time
            known = _relying_parties.get(slug)
            if known is None or known.provider != provider:
                known = _relying_parties[slug] = RelyingParty(provider)
    return known


# A forked worker must not share its parent's connections to the OP.
def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _relying_parties.clear()


os.register_at_fork(after_in_child=_after_fork)
