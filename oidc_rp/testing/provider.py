"""A tiny OpenID Provider, and an API, over real HTTP; it signs for real and misbehaves on demand.

It knows neither oidc_rp nor josepy: the standard library and `cryptography` alone, so that a
mistake shared by both sides cannot hide. Everything a test may change is an attribute of
OpenIDProvider; what a test may ask is `requests` and `calls()`.

    with OpenIDProvider() as op:
        op.id_token_claims["aud"] = "somebody-else"         # a claim bent
        op.id_token_claims["nonce"] = REMOVE                # a claim left out
        op.make_id_token = lambda claims, header: op.sign(claims, alg="none")
        op.answer["token"] = redirect_to("https://attacker.example/")
        op.answer["jwks"] = first(1, drip())                # once; honest afterwards
        op.refresh_fault = "reset_after_rotation"           # see REFRESH_FAULTS
        op.login.auth_time -= 3600                          # see Login
        op.logout_token(events=REMOVE)                      # one to post to the back channel

Tests of several processes run it as one of its own: `python -m oidc_rp.testing --port 9000`. It
prints a line of JSON (issuer, client_id, client_secret) and listens to POST and GET /control.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import hashlib
import html
import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from email.message import Message
from types import TracebackType
from typing import Any
from urllib.parse import unquote_plus, urlencode, urlsplit

from cryptography.exceptions import InvalidSignature

from .http import (
    REFRESH_FAULTS,
    Answer,
    Form,
    Misbehaviour,
    RecordedRequest,
    Refused,
    Server,
    is_from_a_program,
    is_refresh,
    json_answer,
    late,
)
from .signing import (
    REMOVE,
    SIGNING_ALGS,
    PublicKey,
    SigningKey,
    base64url,
    decode_jws,
    half_hash,
    merged,
    public_key,
    signature,
    verified_claims,
)

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"


def somebody() -> dict[str, Any]:
    """Return the claims of Core §5.1 about a person."""
    return {
        "sub": "248289761001",
        "name": "Jane Doe",
        "given_name": "Jane",
        "family_name": "Doe",
        "middle_name": None,
        "preferred_username": "j.doe",
        "email": "janedoe@example.com",
        "email_verified": True,
        "picture": "https://op.example/janedoe/me.jpg",
        "locale": "en-GB",
        "zoneinfo": "Europe/London",
        "address": {"street_address": "1 High Street", "locality": "York", "country": "GB"},
        "updated_at": 1311280970,
    }


@dataclass
class Login:
    """The person's session at the OP, in the words of ID Tokens (Core §2); acr "" is none."""

    auth_time: int
    sid: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    acr: str = ""
    amr: list[str] = field(default_factory=list)

    @property
    def claims(self) -> dict[str, Any]:
        optional = {"acr": self.acr, "amr": list(self.amr)}
        said = {name: value for name, value in optional.items() if value}
        return {"sid": self.sid, "auth_time": self.auth_time} | said


@dataclass
class Grant:
    """What one authorization led to; every token of it lives and dies with it.

    login: as it was at that moment, whatever becomes of the OP's session.
    """

    person: dict[str, Any]
    request: dict[str, str]
    login: Login
    code_expires_at: float
    code_used: bool = False
    revoked: bool = False
    previous_refresh_token: str = ""
    rotated_at: float = 0.0

    @property
    def scopes(self) -> list[str]:
        return self.request["scope"].split()


@dataclass
class IssuedAccessToken:
    """An access token, and the one API that takes it; audience "" is the default one."""

    grant: Grant
    scopes: list[str]
    audience: str
    expires_at: float


class OpenIDProvider:
    """An OpenID Provider with one client and one person, who is signed in without a page.

    The same server has an API at /api/<anything>, which takes the access tokens.

    host: the name in `issuer`; the server itself listens on 127.0.0.1 only. port: 0 for any.
    tls: a server context makes it https.
    """

    def __init__(
        self,
        *,
        issuer_path: str = "",
        trailing_slash: bool = False,
        host: str = "127.0.0.1",
        signing_alg: str = "RS256",
        keys: Sequence[SigningKey] = (),
        tls: ssl.SSLContext | None = None,
        port: int = 0,
    ) -> None:
        self.stopped = threading.Event()
        self._server = Server(self, tls, port)
        port = self._server.server_address[1]
        self.origin = f"{'https' if tls else 'http'}://{host}:{port}"
        self.issuer = self.origin + issuer_path + ("/" if trailing_slash else "")
        self.endpoints = self._endpoint_paths()
        self.metadata: dict[str, Any] = self._metadata()

        self.client_id = "rp-client"
        # Characters that must be form-encoded in Basic client authentication (RFC 6749 §2.3.1).
        self.client_secret = secrets.token_urlsafe(33) + ":+% &="
        self.client_jwk: dict[str, Any] = {}
        """The client's public JWK, or JWK Set, for private_key_jwt."""
        self.redirect_uris: list[str] | None = None
        """The registered ones; None: any."""
        self.post_logout_redirect_uris: list[str] | None = ["http://testserver/oidc/logged-out/"]
        """The registered ones; None: any."""
        self.person: dict[str, Any] = somebody()
        """Its claims may change: who keeps its `sub` is the same person, at UserInfo as well."""
        self.disabled = False
        """True: the person cannot sign in any more, and gets no tokens."""

        self.now: Callable[[], float] = time.time
        self.login = Login(int(self.now()))
        """What ID Tokens say of the session at the OP; another one begins with new_login()."""
        self.signed_in = True
        """False: prompt=none is answered login_required."""
        self.prompt_none_error: str | None = None
        """What prompt=none is answered with, whoever is signed in."""
        self.ignores_max_age = False
        """True: a login that is too old goes on as it is."""
        self.acr_values_supported: list[str] = ["gold", "silver"]
        """What the person can do when an authentication request asks for it."""
        self.ignores_acr_values = False
        """True: the acr stays as it is, even where another one is called essential."""

        self.access_token_lifetime = 60.0
        self.id_token_lifetime = 300
        self.id_token_carries_claims = False
        self.id_token_on_refresh = True
        self.signing_alg = signing_alg
        self.keys: list[SigningKey] = list(keys) or [SigningKey.generate("RS256")]

        self.id_token_claims: dict[str, Any] = {}
        self.id_token_header: dict[str, Any] = {}
        self.make_id_token: Callable[[dict[str, Any], dict[str, Any]], str] | None = None
        self.token_response: dict[str, Any] = {}
        self.userinfo_claims: dict[str, Any] = {}
        self.userinfo_jwt = False
        self.userinfo_signing_alg = ""
        """The algorithm of signed UserInfo; "": that of ID Tokens."""
        self.authorization_params: dict[str, Any] = {}
        self.answer: dict[str, Misbehaviour] = {}

        self.always_refresh_token = False
        """True: a login brings a refresh token without offline_access, too."""
        self.rotation = True
        """False: a refresh answers with the refresh token that it was sent."""
        self.overlap = 0.0
        """Seconds in which the refresh token before the last one still works, and yields one."""
        self.refresh_delay = 0.0
        """Seconds between the rotation and the answer that tells of it."""
        self.refresh_fault = ""
        """One of REFRESH_FAULTS."""
        self.refresh_fault_times: int | None = None
        """How often it happens; None: always."""
        self.retry_after = "2"
        self.refresh_response: dict[str, Any] = {}
        """As token_response, in answers to refreshes alone."""
        self.refreshed_id_token_claims: dict[str, Any] = {}
        """As id_token_claims, in refreshed ID Tokens alone."""
        self.scope_audiences: dict[str, str] = {}
        """Scopes that name an API: an access token that has one is for that audience."""
        self.revocation_ends_consent = False
        """Google's habit: to revoke any token of a person ends all that the person granted."""
        self.api_audiences: dict[str, str] = {}
        """What /api/<name> takes, besides the default audience: {"graph": "https://graph.example"}."""
        self.api_scopes: dict[str, str] = {"calendar": "calendar"}
        """The scope that /api/<name> asks for."""
        self.api_acr_values: list[str] = []
        """The API takes no access token of a login whose acr is not one of these; []: any."""
        self.api_max_age: int | None = None
        """The API takes no access token of a login that is older, in seconds."""

        self.refreshes = 0
        """Refresh requests that arrived, whatever became of them."""
        self.rotations = 0
        """Refresh tokens that were issued for another one."""
        self.families_lost = 0
        """Grants that ended because a spent refresh token came again."""
        self.revocations: list[tuple[str, str]] = []
        """What was revoked by the client: ("refresh_token" or "access_token", the token)."""

        self._lock = threading.RLock()
        self._requests: list[RecordedRequest] = []
        self._pushed: dict[str, dict[str, str]] = {}
        self._codes: dict[str, Grant] = {}
        self._access_tokens: dict[str, IssuedAccessToken] = {}
        self._refresh_tokens: dict[str, Grant] = {}
        self._spent_refresh_tokens: dict[str, Grant] = {}
        self._assertions_seen: set[str] = set()

    def __enter__(self) -> OpenIDProvider:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; an exception inside the provider surfaces here unless the test raised first."""
        self.stop()
        if self._server.failures and raised is None:
            raise self._server.failures[0]

    def stop(self) -> None:
        """Be down from now on: connections are refused and the kept ones are ended."""
        self.stopped.set()
        self._server.stop()

    # What it was asked

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests received so far, oldest first."""
        with self._lock:
            return list(self._requests)

    def requests_to(self, name: str) -> list[RecordedRequest]:
        """Return the requests to an endpoint ("token") or a path ("/token")."""
        return [request for request in self.requests if name in (request.endpoint, request.path)]

    def calls(self, name: str) -> int:
        """Count the requests to an endpoint ("token") or a path ("/token")."""
        return len(self.requests_to(name))

    def forget_requests(self) -> None:
        with self._lock:
            self._requests.clear()

    def record(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)
            self.refreshes += is_refresh(request)

    def counters(self) -> dict[str, int]:
        """Return what was counted so far."""
        with self._lock:
            return {
                "requests": len(self._requests),
                "refreshes": self.refreshes,
                "rotations": self.rotations,
                "families_lost": self.families_lost,
                "revocations": len(self.revocations),
                "api_calls": sum(request.path.startswith("/api/") for request in self._requests),
            }

    # What it is told to do

    def misbehaviour(self, request: RecordedRequest) -> Misbehaviour | None:
        """Return how to answer this request other than at once and honestly."""
        chosen = self.answer.get(request.endpoint or request.path) or self.answer.get(request.path)
        if chosen or not is_refresh(request):
            return chosen
        with self._lock:
            if self.refresh_fault and self.refresh_fault_times != 0:
                if self.refresh_fault_times is not None:
                    self.refresh_fault_times -= 1
                return REFRESH_FAULTS[self.refresh_fault]
        return late(self.refresh_delay) if self.refresh_delay else None

    def new_login(self) -> Login:
        """Let another session at the OP begin, as after a logout there, and return it."""
        self.login = Login(int(self.now()))
        return self.login

    def logout_token(
        self,
        *,
        header: Mapping[str, Any] | None = None,
        key: SigningKey | bytes | None = None,
        alg: str | None = None,
        **changes: Any,
    ) -> str:
        """Return a logout token (Back-Channel Logout §2.4) about the person and the login.

        changes: merged over its claims. header, key, alg: as in sign(), honest or forged.
        """
        now = int(self.now())
        claims = {
            "iss": self.issuer,
            "aud": self.client_id,
            "iat": now,
            "exp": now + 120,
            "jti": secrets.token_urlsafe(16),
            "events": {LOGOUT_EVENT: {}},
            "sub": self.person["sub"],
            "sid": self.login.sid,
        }
        header = {"typ": "logout+jwt"} | dict(header or {})
        return self.sign(merged(claims, changes), header, key, alg)

    def issue(self, scope: str = "openid offline_access calendar", sub: str = "") -> dict[str, Any]:
        """Return a token response for a new grant, as if somebody had just signed in."""
        with self._lock:
            person = copy.deepcopy(self.person) | ({"sub": sub} if sub else {})
            request = {"client_id": self.client_id, "scope": scope}
            login = copy.deepcopy(self.login)
            grant = Grant(person, request, login, code_expires_at=0, code_used=True)
            return merged(self._tokens(grant, grant.scopes), self.token_response)

    def expire_access_tokens(self) -> None:
        """Let no access token issued so far open the API any more, whatever was promised."""
        with self._lock:
            for issued in self._access_tokens.values():
                issued.expires_at = 0

    def end_grants(self, sub: str = "") -> None:
        """End every grant, or those of one person, as when people take back what they allowed:
        not the client's fault."""
        with self._lock:
            for grant in self._grants():
                grant.revoked |= sub in ("", grant.person["sub"])

    def lose_next_rotation(self) -> None:
        """Rotate the refresh token that comes next, and hang up before the new one is told."""
        self.fail_refreshes("closed_after_rotation", times=1)

    def fail_refreshes(self, fault: str, times: int | None = None) -> None:
        """Answer refreshes with one of REFRESH_FAULTS, so often or always; "" ends that."""
        self.refresh_fault, self.refresh_fault_times = fault, times

    def control(self, request: RecordedRequest) -> Answer:
        """Take attributes by POST /control (null in a member of one means REMOVE), tell the
        counters by GET; POST /control/issue answers issue(**JSON), POST /control/expire expires,
        POST /control/new_login begins a login and tells it, and POST /control/logout_token answers
        {"logout_token": logout_token(**JSON)}, where null means REMOVE as well. What a web page may
        have sent is refused: JSON says that it is (application/json), and comes without Origin."""
        if not is_from_a_program(request, urlsplit(self.origin).netloc):
            return Refused("access_denied", "this is not for web pages", 403).answer
        sent = json.loads(request.body or b"{}")
        if request.path == "/control/issue":
            return json_answer(self.issue(**sent))
        if request.path == "/control/new_login":
            return json_answer(asdict(self.new_login()))
        if request.path == "/control/logout_token":
            return json_answer({"logout_token": self.logout_token(**null_removes(sent))})
        if request.path == "/control/expire":
            self.expire_access_tokens()
        for name, value in sent.items():
            if name.startswith("_") or callable(getattr(self, name)):
                raise AttributeError(name)
            with self._lock:
                setattr(self, name, self._told(name, value))
        return json_answer(self.counters())

    def _told(self, name: str, value: Any) -> Any:
        """Return the attribute that JSON stands for; of the login, members alone will do."""
        if name == "login":
            return replace(self.login, **value)
        return null_removes(value) if isinstance(value, dict) else value

    # What it says of itself

    def url(self, endpoint: str) -> str:
        """Return the URL of an endpoint by its name."""
        path = next(path for path, name in self.endpoints.items() if name == endpoint)
        return self.origin + path

    def _endpoint_paths(self) -> dict[str, str]:
        base = urlsplit(self.issuer.removesuffix("/")).path
        names = ("authorization", "token", "userinfo", "jwks", "par", "revocation")
        return {f"{base}/{name}": name for name in names} | {
            f"{base}/end-session": "end_session",
            f"{base}/.well-known/openid-configuration": "discovery",
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": self.url("authorization"),
            "token_endpoint": self.url("token"),
            "userinfo_endpoint": self.url("userinfo"),
            "jwks_uri": self.url("jwks"),
            "pushed_authorization_request_endpoint": self.url("par"),
            "revocation_endpoint": self.url("revocation"),
            "end_session_endpoint": self.url("end_session"),
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
            "frontchannel_logout_supported": True,
            "frontchannel_logout_session_supported": True,
            "claims_parameter_supported": True,
            "scopes_supported": ["openid", "profile", "email", "address", "offline_access"],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query", "form_post"],
            "grant_types_supported": ["authorization_code", "refresh_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": list(SIGNING_ALGS),
            "userinfo_signing_alg_values_supported": list(SIGNING_ALGS),
            "token_endpoint_auth_methods_supported": [
                "client_secret_basic",
                "client_secret_post",
                "client_secret_jwt",
                "private_key_jwt",
            ],
            "token_endpoint_auth_signing_alg_values_supported": list(SIGNING_ALGS),
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def rotate_keys(self) -> None:
        """Replace every key by a new one with a new kid; the old ones are gone."""
        self.keys = [SigningKey.generate(key.alg) for key in self.keys]

    def key_for(self, alg: str) -> SigningKey:
        """Return the published key of this `alg`; makes and publishes one when there is none."""
        with self._lock:
            key = next((key for key in self.keys if key.alg == alg), None)
            if key is None:
                key = SigningKey.generate(alg)
                self.keys.append(key)
            return key

    def sign(
        self,
        claims: Mapping[str, Any] | bytes,
        header: Mapping[str, Any] | None = None,
        key: SigningKey | bytes | None = None,
        alg: str | None = None,
    ) -> str:
        """Return a compact JWS, honest or forged.

        claims: the payload; bytes go in as they are.
        header: merged over the honest header; it may lie, for `alg` alone decides the signature.
        key: bytes are an HMAC secret; by default the published key, or the client secret for HS.
        alg: "none" leaves the signature empty.
        """
        alg = alg or (key.alg if isinstance(key, SigningKey) else self.signing_alg)
        if key is None and alg != "none":
            key = self.client_secret.encode() if alg.startswith("HS") else self.key_for(alg)
        own = {"alg": alg, "typ": "JWT"}
        own |= {"kid": key.kid} if isinstance(key, SigningKey) else {}
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        parts = json.dumps(merged(own, header or {})).encode(), payload
        signing_input = ".".join(map(base64url, parts)).encode()
        return f"{signing_input.decode()}.{base64url(signature(alg, key, signing_input))}"

    # Endpoints

    def respond(self, request: RecordedRequest) -> Answer:
        """Return the honest answer to a request."""
        methods = {"discovery": "GET", "jwks": "GET"} | dict.fromkeys(
            ("par", "token", "revocation"), "POST"
        )
        if request.path.startswith("/api/"):
            return self._api(request)
        if request.endpoint is None:
            return Answer(404)
        if request.method not in methods.get(request.endpoint, "GET POST").split():
            return Answer(405)
        try:
            with self._lock:
                endpoint: Callable[[RecordedRequest], Answer]
                endpoint = getattr(self, f"_{request.endpoint}_endpoint")
                return endpoint(request)
        except Refused as refused:
            return refused.answer
        except ValueError as malformed:
            return Refused("invalid_request", str(malformed)).answer

    def _discovery_endpoint(self, request: RecordedRequest) -> Answer:
        return json_answer(self.metadata)

    def _jwks_endpoint(self, request: RecordedRequest) -> Answer:
        return json_answer({"keys": [key.public_jwk for key in self.keys]})

    def _par_endpoint(self, request: RecordedRequest) -> Answer:
        """Take a pushed authorization request (RFC 9126 §2)."""
        params = single_values(request.form)
        self._authenticate_client(request, params)
        if "request_uri" in params:
            raise Refused("invalid_request", "request_uri cannot be pushed")
        self._check_client(params)
        self._check_authorization_request(params)
        request_uri = f"urn:ietf:params:oauth:request_uri:{secrets.token_urlsafe(16)}"
        self._pushed[request_uri] = params
        return json_answer({"request_uri": request_uri, "expires_in": 60}, 201)

    def _authorization_endpoint(self, request: RecordedRequest) -> Answer:
        """Sign the person in and send the browser back (Core §3.1.2, RFC 9207)."""
        params = self._authorization_request(request)
        self._check_client(params)
        try:
            self._check_authorization_request(params)
            self._authenticate_person(params)
            answer = {"code": self._issue_code(params)}
        except Refused as refused:
            answer = refused.members
        if "state" in params:
            answer["state"] = params["state"]
        if self.metadata.get("authorization_response_iss_parameter_supported"):
            answer["iss"] = self.issuer
        return authorization_response(params, merged(answer, self.authorization_params))

    def _authorization_request(self, request: RecordedRequest) -> dict[str, str]:
        """Return the parameters, those pushed before when a request_uri names them."""
        params = single_values(request.query if request.method == "GET" else request.form)
        if "request_uri" not in params:
            if self.metadata.get("require_pushed_authorization_requests"):
                raise Refused("invalid_request", "the request must be pushed")
            return params
        pushed = self._pushed.pop(params["request_uri"], None)
        if pushed is None or pushed.get("client_id") != params.get("client_id"):
            raise Refused("invalid_request_uri", "unknown, spent, or another client's")
        return pushed

    def _check_client(self, params: Mapping[str, str]) -> None:
        """Refuse before anything is sent to a redirect_uri that nobody vouches for."""
        redirect_uri = params.get("redirect_uri", "")
        if params.get("client_id") != self.client_id:
            raise Refused("unauthorized_client", "unknown client_id")
        if urlsplit(redirect_uri).scheme not in ("http", "https"):
            raise Refused("invalid_request", "redirect_uri is missing or not absolute")
        if self.redirect_uris is not None and redirect_uri not in self.redirect_uris:
            raise Refused("invalid_request", "redirect_uri is not registered")

    def _check_authorization_request(self, params: Mapping[str, str]) -> None:
        prompts = params.get("prompt", "").split()
        if params.get("response_type") != "code":
            raise Refused("unsupported_response_type", "only code")
        if params.get("response_mode", "query") not in ("query", "form_post"):
            raise Refused("invalid_request", "only query and form_post")
        if "openid" not in params.get("scope", "").split():
            raise Refused("invalid_scope", "scope lacks openid")
        if params.get("code_challenge_method") != "S256":
            raise Refused("invalid_request", "code_challenge_method must be S256")
        if not re.fullmatch(r"[A-Za-z0-9_-]{43}", params.get("code_challenge", "")):
            raise Refused("invalid_request", "code_challenge is not a SHA-256 digest")
        if "none" in prompts and len(prompts) > 1:
            raise Refused("invalid_request", "prompt=none stands alone")
        if not isinstance(json.loads(params.get("claims", "{}")), dict):
            raise Refused("invalid_request", "claims is not an object")

    def _authenticate_person(self, params: Mapping[str, str]) -> None:
        """Bring the login to what the request asks for (Core §3.1.2.1 and §5.5.1.1)."""
        prompts = params.get("prompt", "").split()
        too_old = "max_age" in params and self._is_too_old(int(params["max_age"]))
        if "none" in prompts:
            self._go_on_silently(too_old)
        elif self.disabled:
            raise Refused("access_denied", "the person is disabled")
        elif too_old or "login" in prompts:
            self.login.auth_time = int(self.now())
        if not self.ignores_acr_values:
            self._authenticate_as_strongly(params, silently="none" in prompts)

    def _is_too_old(self, max_age: int) -> bool:
        return not self.ignores_max_age and self.login.auth_time < self.now() - max_age

    def _go_on_silently(self, too_old: bool) -> None:
        """Refuse prompt=none where a page would have to be shown."""
        if self.prompt_none_error is not None:
            raise Refused(self.prompt_none_error, "on demand")
        if self.disabled or too_old or not self.signed_in:
            raise Refused("login_required", "nobody is signed in, or too long ago")

    def _authenticate_as_strongly(self, params: Mapping[str, str], *, silently: bool) -> None:
        """Let acr become the first one asked for that is supported; that takes a page."""
        wanted, essential = wanted_acr_values(params)
        supported = [acr for acr in wanted if acr in self.acr_values_supported]
        if supported and not silently:
            self.login.acr = supported[0]
        if essential and self.login.acr not in wanted:
            error = "login_required" if silently else "unmet_authentication_requirements"
            raise Refused(error, "no acr that was asked for")

    def _issue_code(self, params: dict[str, str]) -> str:
        code, now = secrets.token_urlsafe(24), self.now()
        person, login = copy.deepcopy(self.person), copy.deepcopy(self.login)
        self._codes[code] = Grant(person, params, login, code_expires_at=now + 60)
        return code

    def _end_session_endpoint(self, request: RecordedRequest) -> Answer:
        """End the login, and send the browser back where it may go (RP-Initiated Logout §2, §3)."""
        params = single_values(request.query if request.method == "GET" else request.form)
        self._check_logout_request(params)
        self.new_login()
        if "post_logout_redirect_uri" not in params:
            return page("<!doctype html><title>Signed out</title><p>You are signed out.")
        state = {"state": params["state"]} if "state" in params else {}
        return redirection(params["post_logout_redirect_uri"], state)

    def _check_logout_request(self, params: Mapping[str, str]) -> None:
        """Refuse to send the browser where no client of ours wants it."""
        if "id_token_hint" in params:
            aud = self._own_claims(params["id_token_hint"]).get("aud")
            if self.client_id not in (aud if isinstance(aud, list) else [aud]):
                raise Refused("invalid_request", "id_token_hint is another client's")
        if params.get("client_id", self.client_id) != self.client_id:
            raise Refused("invalid_request", "unknown client_id")
        if "post_logout_redirect_uri" not in params:
            return
        if not params.keys() & {"id_token_hint", "client_id"}:
            raise Refused("invalid_request", "neither id_token_hint nor client_id")
        registered = self.post_logout_redirect_uris
        if registered is not None and params["post_logout_redirect_uri"] not in registered:
            raise Refused("invalid_request", "post_logout_redirect_uri is not registered")

    def _own_claims(self, jws: str) -> dict[str, Any]:
        """Return the claims of what this OP signed, however long ago."""
        header, *_ = decode_jws(jws)
        named = [key for key in self.keys if key.kid == header.get("kid")]
        keys: list[PublicKey | bytes] = [key.private_key.public_key() for key in named]
        if str(header.get("alg")).startswith("HS"):
            keys = [self.client_secret.encode()]
        for key in keys:
            with contextlib.suppress(InvalidSignature, KeyError):
                return verified_claims(jws, key)
        raise Refused("invalid_request", "not signed by us")

    def _token_endpoint(self, request: RecordedRequest) -> Answer:
        form = single_values(request.form)
        self._authenticate_client(request, form)
        grant_types = {"authorization_code": self._redeem_code, "refresh_token": self._refresh}
        if form.get("grant_type") not in grant_types:
            raise Refused("unsupported_grant_type", "authorization_code or refresh_token")
        if self.disabled:
            raise Refused("invalid_grant", "the person is disabled")
        response = grant_types[form["grant_type"]](form)
        return json_answer(merged(response, self.token_response))

    def _redeem_code(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Redeem a code once; a second use ends the whole grant (RFC 6749 §4.1.2)."""
        grant = self._codes.get(form.get("code", ""))
        if grant is None or self.now() > grant.code_expires_at:
            raise Refused("invalid_grant", "unknown or expired code")
        if grant.code_used:
            grant.revoked = True
            raise Refused("invalid_grant", "the code was used before")
        if form.get("redirect_uri") != grant.request["redirect_uri"]:
            raise Refused("invalid_grant", "redirect_uri is not that of the request")
        if code_challenge(form.get("code_verifier", "")) != grant.request["code_challenge"]:
            raise Refused("invalid_grant", "code_verifier does not fit")
        grant.code_used = True
        return self._tokens(grant, grant.scopes, nonce=grant.request.get("nonce"))

    def _grants(self) -> Iterator[Grant]:
        yield from self._refresh_tokens.values()
        yield from self._spent_refresh_tokens.values()
        yield from (issued.grant for issued in self._access_tokens.values())

    def _refresh(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Rotate a refresh token; a spent one ends the whole grant (RFC 9700 §4.14.2)."""
        refresh_token = form.get("refresh_token", "")
        grant = self._grant_of(refresh_token)
        scopes = form.get("scope", grant.request["scope"]).split()
        if not set(scopes) <= set(grant.scopes):
            raise Refused("invalid_scope", "more than was granted")
        audience = form.get("resource", form.get("audience", ""))
        tokens = self._tokens(grant, scopes, audience, refreshed=refresh_token)
        if not self.id_token_on_refresh:
            tokens = merged(tokens, {"id_token": REMOVE})
        return merged(tokens, self.refresh_response)

    def _grant_of(self, refresh_token: str) -> Grant:
        """Return the grant of a refresh token that may be spent now."""
        grant = self._refresh_tokens.get(refresh_token)
        spent = self._spent_refresh_tokens.get(refresh_token)
        if spent and not self._in_overlap(refresh_token, spent):
            self.families_lost += not spent.revoked
            spent.revoked = True
        grant = grant or spent
        if grant is None or grant.revoked:
            raise Refused("invalid_grant", "unknown, spent or revoked refresh token")
        return grant

    def _in_overlap(self, refresh_token: str, grant: Grant) -> bool:
        """Whether this spent token is the one before the last, and was spent just now."""
        immediately_previous = refresh_token == grant.previous_refresh_token
        return immediately_previous and self.now() < grant.rotated_at + self.overlap

    def _tokens(
        self,
        grant: Grant,
        scopes: list[str],
        audience: str = "",
        *,
        nonce: str | None = None,
        refreshed: str | None = None,
    ) -> dict[str, Any]:
        """Issue tokens; `refreshed` is the refresh token that was sent, None at a login."""
        access_token, lifetime = secrets.token_urlsafe(32), self.access_token_lifetime
        for scope in scopes:
            audience = self.scope_audiences.get(scope, audience)
        issued = IssuedAccessToken(grant, scopes, audience, self.now() + lifetime)
        self._access_tokens[access_token] = issued
        tokens = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": int(lifetime) if lifetime == int(lifetime) else lifetime,
            "scope": " ".join(scopes),
            "id_token": self._id_token(grant, access_token, nonce, refreshed is not None),
        }
        if self.always_refresh_token or "offline_access" in grant.scopes:
            tokens["refresh_token"] = self._next_refresh_token(grant, refreshed)
        return tokens

    def _next_refresh_token(self, grant: Grant, refreshed: str | None) -> str:
        if refreshed is not None and not self.rotation:
            return refreshed
        refresh_token = secrets.token_urlsafe(32)
        self._refresh_tokens[refresh_token] = grant
        if refreshed is not None:
            self.rotations += 1
        if refreshed in self._refresh_tokens:  # else it is in its overlap, spent already
            self._spent_refresh_tokens[refreshed] = self._refresh_tokens.pop(refreshed)
            grant.previous_refresh_token, grant.rotated_at = refreshed, self.now()
        return refresh_token

    def _id_token(self, grant: Grant, access_token: str, nonce: str | None, refreshed: bool) -> str:
        claims = self._honest_id_token_claims(grant, access_token)
        if nonce is not None:
            claims["nonce"] = nonce
        if self.id_token_carries_claims:
            claims = self._person_of(grant) | claims
        claims = merged(claims, self.id_token_claims)
        if refreshed:
            claims = merged(claims, self.refreshed_id_token_claims)
        if self.make_id_token is None:
            return self.sign(claims, self.id_token_header)
        honest_header, *_ = decode_jws(self.sign({}))
        return self.make_id_token(claims, merged(honest_header, self.id_token_header))

    def _honest_id_token_claims(self, grant: Grant, access_token: str) -> dict[str, Any]:
        """Return the claims of Core §2, and no claim about the person but sub."""
        now = int(self.now())
        return grant.login.claims | {
            "iss": self.issuer,
            "sub": grant.person["sub"],
            "aud": self.client_id,
            "exp": now + self.id_token_lifetime,
            "iat": now,
            "at_hash": half_hash(self.signing_alg, access_token),
        }

    def _person_of(self, grant: Grant) -> dict[str, Any]:
        """Return what is known today of whoever signed in."""
        same = self.person.get("sub") == grant.person["sub"]
        return copy.deepcopy(self.person) if same else grant.person

    def _userinfo_endpoint(self, request: RecordedRequest) -> Answer:
        """Tell who the access token speaks for (Core §5.3); an ID Token opens nothing."""
        person = self._person_of(self._presented(request).grant)
        if not self.userinfo_jwt:
            return json_answer(merged(person, self.userinfo_claims))
        claims = person | {"iss": self.issuer, "aud": self.client_id}
        alg = self.userinfo_signing_alg or None
        jws = self.sign(merged(claims, self.userinfo_claims), alg=alg)
        return Answer(200, jws.encode(), {"Content-Type": "application/jwt"})

    def _presented(self, request: RecordedRequest) -> IssuedAccessToken:
        """Return what is known of the Bearer token of a request, if it is good."""
        scheme, _, access_token = request.headers.get("Authorization", "").partition(" ")
        issued = self._access_tokens.get(access_token)
        if (
            scheme != "Bearer"
            or issued is None
            or issued.grant.revoked
            or self.now() >= issued.expires_at
        ):
            raise challenged(401, "invalid_token", "no access token of ours")
        return issued

    def _revocation_endpoint(self, request: RecordedRequest) -> Answer:
        """Revoke a token; one that is not known is revoked already (RFC 7009 §2.2)."""
        form = single_values(request.form)
        self._authenticate_client(request, form)
        token = form.get("token")
        if token is None:
            raise Refused("invalid_request", "token is missing")
        grant = self._refresh_tokens.get(token) or self._spent_refresh_tokens.get(token)
        issued = self._access_tokens.get(token)
        if grant is not None:
            self.revocations.append(("refresh_token", token))
            grant.revoked = True
        elif issued is not None:
            self.revocations.append(("access_token", token))
            grant, issued.expires_at = issued.grant, 0
        if grant is not None and self.revocation_ends_consent:
            for other in self._grants():
                other.revoked = other.revoked or other.person["sub"] == grant.person["sub"]
        return Answer(200)

    # The API

    def _api(self, request: RecordedRequest) -> Answer:
        """Tell the caller what arrived, if its access token is good for this API (RFC 6750 §3)."""
        name = request.path.removeprefix("/api/").partition("/")[0]
        scope = self.api_scopes.get(name, "")
        try:
            with self._lock:
                if "Authorization" not in request.headers:
                    return Answer(401, headers={"WWW-Authenticate": 'Bearer realm="api"'})
                issued = self._presented(request)
                if issued.audience != self.api_audiences.get(name, ""):
                    raise challenged(401, "invalid_token", "for another audience")
                if scope and scope not in issued.scopes:
                    raise challenged(403, "insufficient_scope", "needs more", scope=scope)
                self._check_login(issued.grant.login)
        except Refused as refused:
            return refused.answer
        return json_answer(
            {
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "body": request.body.decode("utf-8", "replace"),
                "scheme": request.headers["Authorization"].partition(" ")[0],
                "sub": issued.grant.person["sub"],
                "scope": " ".join(issued.scopes),
                "audience": issued.audience,
            }
        )

    def _check_login(self, login: Login) -> None:
        """Refuse an access token whose login is too weak or too old for the API (RFC 9470 §3)."""
        too_weak = self.api_acr_values and login.acr not in self.api_acr_values
        age = int(self.now()) - login.auth_time
        if not too_weak and (self.api_max_age is None or age <= self.api_max_age):
            return
        wanted = {"acr_values": " ".join(self.api_acr_values)} if self.api_acr_values else {}
        if self.api_max_age is not None:
            wanted["max_age"] = str(self.api_max_age)
        raise challenged(401, "insufficient_user_authentication", "needs another login", **wanted)

    # Client authentication (RFC 6749 §2.3, Core §9)

    def _authenticate_client(self, request: RecordedRequest, form: Mapping[str, str]) -> None:
        method = presented_method(request.headers, form)
        if method not in self.metadata.get(
            "token_endpoint_auth_methods_supported", ["client_secret_basic"]
        ):
            raise invalid_client(f"{method} is not supported")
        if method.endswith("_jwt"):
            self._check_assertion(method, form)
        else:
            self._check_secret(method, request.headers, form)

    def _check_secret(self, method: str, headers: Message, form: Mapping[str, str]) -> None:
        client_id, client_secret = presented_secret(headers, form)
        if form.get("client_id", client_id) != client_id or client_id != self.client_id:
            raise invalid_client("unknown client_id")
        if method != "none" and not secrets.compare_digest(
            client_secret.encode(), self.client_secret.encode()
        ):
            raise invalid_client("wrong secret")

    def _check_assertion(self, method: str, form: Mapping[str, str]) -> None:
        """Check a client assertion (RFC 7523 §3): for us alone, short-lived, used once."""
        if form.get("client_assertion_type") != (
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        ):
            raise invalid_client("wrong client_assertion_type")
        claims = self._assertion_claims(method, form["client_assertion"])
        if not claims.get("iss") == claims.get("sub") == self.client_id:
            raise invalid_client("iss and sub must be the client_id")
        if claims.get("aud") != self.issuer:
            raise invalid_client("aud must be the issuer, as one string")
        if not self.now() < claims.get("exp", 0) <= self.now() + 61:
            raise invalid_client("exp must be at most 60 s away")
        if not claims.get("jti") or claims["jti"] in self._assertions_seen:
            raise invalid_client("jti must be new")
        self._assertions_seen.add(claims["jti"])

    def _assertion_claims(self, method: str, assertion: str) -> dict[str, Any]:
        for key in self._client_keys(method):
            with contextlib.suppress(InvalidSignature, KeyError):
                return verified_claims(assertion, key)
        raise invalid_client("no key of the client fits the assertion")

    def _client_keys(self, method: str) -> Iterator[PublicKey | bytes]:
        if method == "client_secret_jwt":
            yield self.client_secret.encode()
        else:
            yield from map(public_key, self.client_jwk.get("keys", [self.client_jwk]))


def single_values(form: Form) -> dict[str, str]:
    """Return the parameters, none of which may come twice (RFC 6749 §3.1)."""
    repeated = [name for name, values in form.items() if len(values) > 1]
    if repeated:
        raise Refused("invalid_request", f"repeated: {', '.join(repeated)}")
    return {name: values[0] for name, values in form.items()}


def null_removes(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON says of a merged dict: it has no REMOVE but null."""
    return {name: REMOVE if value is None else value for name, value in members.items()}


def wanted_acr_values(params: Mapping[str, str]) -> tuple[list[str], bool]:
    """Return the acr that a request asks for, in its order, and whether it is essential
    (Core §3.1.2.1 and §5.5.1.1)."""
    claims = json.loads(params.get("claims", "{}"))
    acr = (claims.get("id_token") or {}).get("acr") or {}
    values = acr.get("values", [acr["value"]] if "value" in acr else [])
    essential = bool(values) and acr.get("essential") is True
    return params.get("acr_values", "").split() + values, essential


def code_challenge(code_verifier: str) -> str | None:
    """Return the S256 challenge of a verifier (RFC 7636 §4.2), None for a malformed one."""
    if not re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", code_verifier):
        return None
    return base64url(hashlib.sha256(code_verifier.encode()).digest())


def authorization_response(request: Mapping[str, str], answer: Mapping[str, Any]) -> Answer:
    """Carry the answer to the redirect_uri, in its query or in a form that posts itself."""
    if request.get("response_mode") == "form_post":
        return form_post(request["redirect_uri"], answer)
    return redirection(request["redirect_uri"], answer)


def redirection(uri: str, params: Mapping[str, Any]) -> Answer:
    """Send the browser to `uri`, with these parameters beside those of its own."""
    separator = "&" if urlsplit(uri).query else "?"
    location = uri + separator + urlencode(params, doseq=True) if params else uri
    return Answer(302, headers={"Location": location, "Cache-Control": "no-store"})


def page(text: str) -> Answer:
    """Return a page of the OP."""
    return Answer(200, text.encode(), {"Content-Type": "text/html; charset=utf-8"})


def form_post(redirect_uri: str, answer: Mapping[str, Any]) -> Answer:
    """Return the page of OAuth 2.0 Form Post Response Mode §2."""
    fields = "".join(
        f'<input type="hidden" name="{html.escape(name)}" value="{html.escape(str(value))}">'
        for name, values in answer.items()
        for value in (values if isinstance(values, list) else [values])
    )
    return page(
        '<!doctype html><html lang="en"><title>Signing in</title>'
        '<body onload="document.forms[0].submit()">'
        f'<form method="post" action="{html.escape(redirect_uri)}">{fields}'
        "<button>Continue</button></form>"
    )


def presented_method(headers: Message, form: Mapping[str, str]) -> str:
    """Return the one method of client authentication that a request uses."""
    methods = []
    if "Authorization" in headers:
        methods.append("client_secret_basic")
    if "client_secret" in form:
        methods.append("client_secret_post")
    if "client_assertion" in form:
        alg = decode_jws(form["client_assertion"])[0].get("alg", "")
        methods.append("client_secret_jwt" if alg.startswith("HS") else "private_key_jwt")
    if len(methods) > 1:
        raise Refused("invalid_request", "more than one method of client authentication")
    return methods[0] if methods else "none"


def presented_secret(headers: Message, form: Mapping[str, str]) -> tuple[str, str]:
    """Return client_id and client_secret; in Basic both are form-encoded (RFC 6749 §2.3.1)."""
    if "Authorization" not in headers:
        return form.get("client_id", ""), form.get("client_secret", "")
    scheme, _, credentials = headers["Authorization"].partition(" ")
    if scheme != "Basic":
        raise invalid_client("only Basic")
    client_id, _, client_secret = base64.b64decode(credentials).decode().partition(":")
    return unquote_plus(client_id), unquote_plus(client_secret)


def invalid_client(description: str) -> Refused:
    """Return the refusal of a client that did not prove who it is (RFC 6749 §5.2)."""
    return Refused("invalid_client", description, 401, {"WWW-Authenticate": "Basic"})


def challenged(status: int, error: str, description: str, **params: str) -> Refused:
    """Return the refusal of a request for its access token (RFC 6750 §3)."""
    params = {"error": error, "error_description": description} | params
    challenge = ", ".join(f'{name}="{value}"' for name, value in params.items())
    return Refused(error, description, status, {"WWW-Authenticate": f"Bearer {challenge}"})
