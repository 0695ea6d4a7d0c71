"""What the OP says of itself: metadata, issuer, clock, keys and algorithms."""

import json
import os
import ssl
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from ..conf import Provider
from ..discovery import is_fixed, metadata_reader
from ..errors import InvalidResponse, OIDCError
from ..protocol import jose
from ..protocol.metadata import (
    TENANT,
    ProviderMetadata,
    discovery_url,
    url_is_allowed,
)
from ..protocol.strict_json import json_object
from ..transport import Answer, Transport
from .abilities import LOOKS
from .findings import Finding, doubtful, fine, listed, shown, shown_url, wrong

CLOCKS_DIFFER = 5.0
"""Seconds of difference between two clocks that are worth a word."""


def op_findings(provider: Provider) -> Iterator[Finding]:
    transport = Transport(timeout=provider.timeout, ca_bundle=provider.ca_bundle)
    published = yield from _discovered(provider, transport)
    if published is None:
        return
    # Whether the issuer is right has been said; the rest is worth a look in either case.
    document = {**published, **provider.metadata, "issuer": provider.issuer}
    try:
        metadata = metadata_reader(provider)(document)
    except InvalidResponse as error:
        yield wrong(
            "metadata",
            f"The metadata is refused: {error.code}, received {shown_url(error.received)!r}.",
            "No sign-in goes on with an endpoint that may not be used.",
            "Ask the operator of the OP; METADATA overrides single members.",
        )
        return
    yield from _key_findings(provider, metadata, transport)
    for look in LOOKS:
        yield from look(provider, metadata, document)


def _discovered(
    provider: Provider, transport: Transport
) -> Generator[Finding, None, dict[str, Any] | None]:
    """Return the discovery document, None where there is none to go on with."""
    if is_fixed(provider):
        yield fine("discovery", "METADATA has both endpoints: nothing is discovered.")
        return {}
    if "/.well-known/" in provider.issuer:
        yield _well_known(provider)
        return None
    url = discovery_url(provider.issuer)
    try:
        begun = time.time()
        answer = transport.get(url)
        rtt = time.time() - begun
        document = _document(answer, "discovery.json")
    except OIDCError as error:
        yield _not_fetched("discovery", "metadata", url, error)
        return None
    yield fine("discovery", f"{url} answers.")
    yield _clock(provider, answer, begun + rtt / 2, rtt)
    yield _issuer(provider, document.get("issuer"))
    return document


def _document(answer: Answer, code: str) -> dict[str, Any]:
    if answer.status != 200:
        raise InvalidResponse("discovery.status", expected=200, received=answer.status)
    return json_object(answer.body, code)


def _well_known(provider: Provider) -> Finding:
    issuer = provider.issuer.partition("/.well-known/")[0]
    return wrong(
        "issuer",
        "ISSUER is the URL of the metadata, not the issuer.",
        "The issuer is what the metadata calls `issuer`; the rest of the URL is added.",
        f'"ISSUER": {json.dumps(issuer)}, and run this command again.',
    )


_REASONS: Mapping[str, tuple[str, str]] = {
    "transport.tls": (
        "The OP's certificate is not one that this machine trusts for this name.",
        "An authority of your own: name its PEM file in CA_BUNDLE. Expired, or for another name: "
        "the operator of the OP. Verification cannot be switched off.",
    ),
    "transport.name": (
        "The name cannot be resolved from here.",
        "Look for a slip in ISSUER, then at the DNS of this machine.",
    ),
    "transport.timeout": (
        "Nothing came within TIMEOUT.",
        "Look for a firewall between this machine and the OP.",
    ),
    "transport.broken": (
        "The connection was refused, or ended before the answer did.",
        "Look at the port and the scheme in ISSUER, and for a firewall in between.",
    ),
    "transport.redirect": (
        "Redirects are not followed: what is at the other end is another issuer's.",
        "Open the URL in a browser, and write the `issuer` of the document where it leads.",
    ),
    "discovery.status": (
        "There is no such document: the issuer has another path, or the OP is down.",
        "Open the URL in a browser; the OP's own pages name the issuer, with its path "
        "(/realms/..., /oidc, /v2.0).",
    ),
}
"""Why a document cannot be had, and what to do, by the code of the error."""


_NO_DOCUMENT = (
    "What came is no such document: a proxy's or a firewall's page, or a broken OP.",
    "Open the URL in a browser, and tell the operator of whoever answers.",
)


def _not_fetched(code: str, document: str, url: str, error: OIDCError) -> Finding:
    why, mend = _REASONS.get(error.code, _NO_DOCUMENT)
    details = [f"{error.code}: {error.message}", _certificate_problem(error)]
    if error.code == "discovery.status":
        details = [f"it answers {error.received}"]
    if error.code.startswith("transport.") and _has_proxy():
        mend += " The proxy that the environment names is not used."
    told = ", ".join(filter(None, details))
    what = f"The {document} cannot be had from {shown_url(url)} ({told})."
    return wrong(code, what, f"{why} Without it nobody can sign in.", mend)


def _certificate_problem(error: BaseException | None) -> str:
    """What OpenSSL says of the certificate: "certificate has expired", for instance."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return shown(error.verify_message)
        error = error.__cause__ or error.__context__
    return ""


def _has_proxy() -> bool:
    return any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"))


def _clock(provider: Provider, answer: Answer, now: float, rtt: float) -> Finding:
    """The OP's Date has whole seconds, and was written somewhere within the round trip."""
    if answer.now is None:
        what = "The OP's answer tells no time (Date): the clocks were not compared."
        why = "With a clock that is not ours ID Tokens are refused (id_token.iat, id_token.exp)."
        return doubtful("clock", what, why, "Compare the two clocks yourself.")
    ahead, slack = answer.now + 0.5 - now, 0.5 + rtt / 2
    told = f"The OP's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours"
    mend = "Have NTP set the clock of this machine (`timedatectl`); if it is right, ask the OP."
    if ahead - slack > provider.leeway:
        why = f"Its ID Tokens come from the future by more than LEEWAY ({provider.leeway:g} s): "
        return wrong("clock", f"{told}.", f"{why}id_token.iat refuses each sign-in.", mend)
    if -ahead - slack > provider.leeway:
        why = f"More than LEEWAY ({provider.leeway:g} s): an ID Token may have expired when it "
        return wrong("clock", f"{told}.", f"{why}comes, and id_token.exp refuses it.", mend)
    if abs(ahead) - slack > CLOCKS_DIFFER:
        why = f"LEEWAY ({provider.leeway:g} s) still makes up for it; clocks drift on."
        return doubtful("clock", f"{told}.", why, mend)
    return fine("clock", "The OP's clock and ours agree.")


def _issuer(provider: Provider, published: object) -> Finding:
    if published == provider.issuer:
        return fine("issuer", f"The issuer is exactly {provider.issuer}")
    why = (
        "Issuers are compared byte for byte (Discovery §4.3): discovery.issuer refuses each "
        "sign-in."
    )
    if not isinstance(published, str) or not _is_issuer(published, provider):
        what = f"The metadata names as `issuer` what is no https URL: {shown_url(published)!r}."
        return wrong("issuer", what, why, "Tell the operator of the OP.")
    what = (
        f"ISSUER is {provider.issuer!r}, the OP calls itself {shown(published)!r}: "
        f"{_difference(provider.issuer, published)}."
    )
    return wrong("issuer", what, why, _issuer_mend(provider, published))


def _is_issuer(url: str, provider: Provider) -> bool:
    """Whether this may be an issuer: a URL that may be used, without a query (Discovery §3)."""
    sample = url.replace(TENANT, "tenant")
    return "?" not in url and url_is_allowed(sample, loopback_http=provider.allow_loopback_http)


def _issuer_mend(provider: Provider, published: str) -> str:
    line = f'"ISSUER": {json.dumps(published)},'
    if TENANT in published and not provider.tenants:
        line += ' "TENANTS": ["..."],'
    if urlsplit(published).netloc == urlsplit(provider.issuer).netloc:
        return f"Write {line}"
    return f"If that is who you mean, write {line}"


def _difference(ours: str, theirs: str) -> str:
    """Say in words how two issuers differ."""
    if ours.removesuffix("/") == theirs.removesuffix("/"):
        return (
            "ISSUER lacks the slash at its end"
            if theirs.endswith("/")
            else ("ISSUER has a slash at its end that does not belong there")
        )
    if ours.lower() == theirs.lower():
        return "they differ in upper and lower case"
    mine, its = urlsplit(ours), urlsplit(theirs)
    parts = {
        "scheme": (mine.scheme, its.scheme),
        "host": (mine.hostname, its.hostname),
        "port": (mine.port, its.port),
        "path": (mine.path, its.path),
    }
    different = [name for name, (one, other) in parts.items() if one != other]
    return f"they differ in {' and '.join(different) or 'spelling'}"


def _key_findings(
    provider: Provider, metadata: ProviderMetadata, transport: Transport
) -> Iterator[Finding]:
    configured = provider.id_token_signed_response_alg
    published = metadata.id_token_signing_alg_values_supported
    algorithms = frozenset(
        {configured} if configured else jose.ASYMMETRIC_ALGORITHMS & {*published}
    )
    if not algorithms:
        yield _no_algorithm(published)
        return
    if configured and configured not in published:
        yield doubtful(
            "alg",
            f"ID_TOKEN_SIGNED_RESPONSE_ALG is {configured}, and the OP names {listed(published)}.",
            "An ID Token that is signed otherwise is refused by id_token.alg.",
            "Compare with the client's registration at the OP; without the option any asymmetric "
            "algorithm that the OP names will do.",
        )
    signed = {"ID Token": algorithms, "UserInfo response": _userinfo_algorithms(provider, metadata)}
    by_key = {what: algs for what, algs in signed.items() if not algs <= jose.HMAC_ALGORITHMS}
    if not by_key:
        yield fine("jwks", f"ID Tokens are signed with the client secret ({configured}): no keys.")
    elif metadata.jwks_uri is None:
        yield wrong(
            "jwks",
            "The metadata names no jwks_uri.",
            f"Without the OP's keys no {' and no '.join(by_key)} can be verified.",
            'METADATA may name it: "METADATA": {"jwks_uri": "https://..."},',
        )
    else:
        yield from _published_key_findings(by_key, metadata.jwks_uri, transport)


def _userinfo_algorithms(provider: Provider, metadata: ProviderMetadata) -> frozenset[str]:
    """What a UserInfo response has to be signed with; empty where none has to be."""
    alg = provider.userinfo_signed_response_alg
    is_asked = provider.userinfo and metadata.userinfo_endpoint is not None
    return frozenset({alg} if alg and is_asked else ())


def _no_algorithm(published: Collection[str]) -> Finding:
    hmac = sorted(jose.HMAC_ALGORITHMS & {*published})
    mend = "Ask the operator of the OP for RS256, or another asymmetric algorithm."
    if hmac:
        mend = f'"ID_TOKEN_SIGNED_RESPONSE_ALG": "{hmac[0]}", which relies on CLIENT_SECRET alone.'
    return wrong(
        "alg",
        f"The OP signs ID Tokens with {listed(published)} only.",
        "None of them is accepted unless the settings name it: id_token.alg refuses each sign-in.",
        mend,
    )


def _published_key_findings(
    signed: Mapping[str, frozenset[str]], jwks_uri: str, transport: Transport
) -> Iterator[Finding]:
    """signed: what has to be verified by one of these keys -> the algorithms that will do."""
    try:
        document = _document(transport.get(jwks_uri), "discovery.json")
        keys = jose.read_jwks(document).keys
    except OIDCError as error:
        yield _not_fetched("jwks", "key set", jwks_uri, error)
        return
    usable = f"{len(keys)} of {len(document['keys'])} keys at {shown_url(jwks_uri)} can be used"
    wanted = frozenset().union(*signed.values())
    fitting = sorted(alg for alg in wanted if any(key.fits(alg) for key in keys))
    for what, algorithms in signed.items():
        if not algorithms & {*fitting}:
            yield _no_key(what, f"{usable}, and none is for {listed(algorithms)}.")
            return
    yield fine("jwks", f"{usable}, for {listed(fitting)}.")
    if unclear := [alg for alg in fitting if _is_doubtful([k for k in keys if k.fits(alg)])]:
        yield doubtful(
            "jwks_kid",
            f"Several keys for {listed(unclear)} have no `kid`, or the same one.",
            "Which of them a signature means cannot be told: id_token.kid or userinfo.kid refuses "
            "it.",
            "Have the operator of the OP give each key a `kid` of its own (Core §10.1).",
        )


def _no_key(what: str, told: str) -> Finding:
    option, code = {
        "ID Token": ("ID_TOKEN_SIGNED_RESPONSE_ALG", "id_token.kid"),
        "UserInfo response": ("USERINFO_SIGNED_RESPONSE_ALG", "userinfo.kid"),
    }[what]
    return wrong(
        "jwks",
        told,
        f"No {what} can be verified: {code} refuses each sign-in. RSA keys of less than 2048 bits, "
        "and keys for encryption, are not used.",
        f"Set {option} to what the OP signs with, or have its operator publish such a key.",
    )


def _is_doubtful(keys: Collection[jose.Key]) -> bool:
    kids = [key.kid for key in keys]
    return len(kids) > 1 and (None in kids or len({*kids}) < len(kids))
