"""What the OP publishes, metadata and keys: fetched lazily, checked, kept, and kept fresh."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import cache
from pytest_django import Settings

from oidc_rp import discovery
from oidc_rp import testing as provider
from oidc_rp.discovery import published_keys
from oidc_rp.errors import InvalidResponse, OIDCError
from oidc_rp.protocol import jose
from oidc_rp.relying_party import relying_party
from oidc_rp.testing import OpenIDProvider, SigningKey, issue_certificate
from oidc_rp.testing.browser import Browser
from oidc_rp.transport import Transport
from tests.conftest import Configure


def test_M46_discovery(op: OpenIDProvider, configure: Configure) -> None:
    """The document of the issuer is read once, when it is needed, and never at import."""
    party = relying_party("op")
    assert op.requests == []
    assert party.metadata().token_endpoint == op.url("token")
    assert party.metadata() is party.metadata()
    assert op.calls("discovery") == 1


@pytest.mark.parametrize(("path", "slash"), [("", False), ("", True), ("/a", False), ("/a", True)])
def test_M23_the_discovery_url_is_the_issuer_less_one_slash(
    signing_key: SigningKey, settings: Settings, db: None, path: str, slash: bool
) -> None:
    """The issuer stays as it is, byte for byte; a login works with and without a slash."""
    with OpenIDProvider(keys=[signing_key], issuer_path=path, trailing_slash=slash) as op:
        settings.OIDC_RP = {"PROVIDERS": {"op": options(op)}}
        assert Browser().sign_in("op").status_code == 302


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"issuer": "https://other.example"}, "discovery.issuer"),
        ({"issuer": provider.REMOVE}, "discovery.issuer"),
        ({"issuer": None}, "discovery.issuer"),
        ({"issuer": ["http://127.0.0.1"]}, "discovery.issuer"),
        ({"authorization_endpoint": "http://op.example/a"}, "discovery.authorization_endpoint"),
        ({"authorization_endpoint": provider.REMOVE}, "discovery.authorization_endpoint"),
        ({"authorization_endpoint": "javascript:alert(1)"}, "discovery.authorization_endpoint"),
        ({"token_endpoint": "http://op.example/token"}, "discovery.token_endpoint"),
        ({"token_endpoint": "https://user@op.example/token"}, "discovery.token_endpoint"),
        ({"token_endpoint": 5}, "discovery.token_endpoint"),
        ({"jwks_uri": "file:///etc/passwd"}, "discovery.jwks_uri"),
        ({"jwks_uri": "http://10.0.0.1/jwks"}, "discovery.jwks_uri"),
        ({"userinfo_endpoint": "ftp://op.example/"}, "discovery.userinfo_endpoint"),
        (
            {"id_token_signing_alg_values_supported": "RS256"},
            "discovery.id_token_signing_alg_values_supported",
        ),
    ],
)
def test_M46_a_document_is_refused(
    op: OpenIDProvider, configure: Configure, changes: dict[str, Any], code: str
) -> None:
    """Another issuer's document, and any endpoint that is not https, is not used."""
    op.metadata = provider.merged(op.metadata, changes)
    assert refused(relying_party("op").metadata) == code


@pytest.mark.parametrize(
    ("misbehaviour", "code"),
    [
        (provider.not_json(), "discovery.json"),
        (provider.raw(200, {}, b""), "discovery.json"),
        (provider.raw(200, {}, b"[]"), "discovery.json"),
        (provider.raw(200, {}, b'{"issuer": "a", "issuer": "b"}'), "discovery.json"),
        (provider.raw(200, {}, b'{"issuer": "\xff"}'), "discovery.json"),
        (provider.raw(200, {}, b"[" * 100_000), "discovery.json"),
        (provider.raw(404), "discovery.status"),
        (provider.raw(500, {}, b"{}"), "discovery.status"),
        (provider.redirect_to("https://attacker.example/"), "transport.redirect"),
        (provider.close_connection(), "transport.broken"),
    ],
)
def test_M46_an_answer_that_is_no_document_is_refused(
    op: OpenIDProvider, configure: Configure, misbehaviour: provider.Misbehaviour, code: str
) -> None:
    op.answer["discovery"] = misbehaviour
    assert refused(relying_party("op").metadata) == code


def test_oidcc_client_test_discovery_issuer_mismatch(op: OpenIDProvider, browser: Browser) -> None:
    """No login starts at an OP that says it is somebody else."""
    op.metadata["issuer"] = "https://other.example"
    response = browser.client.get("/oidc/op/login/")
    assert (response.status_code, response.context["code"]) == (400, "discovery.issuer")
    assert op.calls("authorization") == 0


def test_M45_plain_http_only_on_loopback_and_when_switched_on(configure: Configure) -> None:
    """Without the switch, and for any other host, an http issuer is no configuration."""
    configure(ALLOW_LOOPBACK_HTTP=False)
    assert refused(lambda: relying_party("op")) == "configuration.provider"
    for issuer in ("http://op.example", "http://127.0.0.1.op.example", "http://2130706433"):
        configure(ISSUER=issuer)
        assert refused(lambda: relying_party("op")) == "configuration.provider"


def test_M45_a_login_over_tls_with_an_authority_of_our_own(
    signing_key: SigningKey, settings: Settings, db: None, tmp_path: Path
) -> None:
    """CA_BUNDLE lets a private authority in; without it the OP cannot be reached."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    with OpenIDProvider(keys=[signing_key], tls=context, host="localhost") as op:
        secure = options(op) | {"ALLOW_LOOPBACK_HTTP": False}
        settings.OIDC_RP = {"PROVIDERS": {"op": secure | {"CA_BUNDLE": str(certificate)}}}
        assert Browser(verify=str(certificate)).sign_in("op").status_code == 302
        settings.OIDC_RP = {"PROVIDERS": {"op": secure}}
        cache.clear()
        response = Browser().client.get("/oidc/op/login/")
        assert (response.status_code, response.context["code"]) == (424, "transport.tls")


def test_M46_metadata_overrides_discovery(op: OpenIDProvider, configure: Configure) -> None:
    """What METADATA names is ours to say; the rest is discovered."""
    configure(METADATA={"userinfo_endpoint": op.origin + "/elsewhere"})
    metadata = relying_party("op").metadata()
    assert metadata.userinfo_endpoint == op.origin + "/elsewhere"
    assert metadata.token_endpoint == op.url("token")


def test_M46_metadata_alone_is_enough(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """An OP without discovery works: nothing is asked for what the settings say."""
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    configure(METADATA={name: op.metadata[name] for name in names})
    assert browser.sign_in("op").status_code == 302
    assert op.calls("discovery") == op.calls("userinfo") == 0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what moves the clock on, by a little more than an hour."""

    def move(seconds: float = discovery.FRESH + 1) -> None:
        before = time.time
        monkeypatch.setattr(time, "time", lambda: before() + seconds)

    return move


def test_M46_changed_endpoints_raise_an_event(
    op: OpenIDProvider,
    configure: Configure,
    later: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The document is read again after an hour; what changed in it is told, and only that."""
    party = relying_party("op")
    party.metadata()
    later()
    party.metadata()
    assert op.calls("discovery") == 2
    assert caplog.records == []
    op.metadata["token_endpoint"] = op.origin + "/token2"
    later()
    assert party.metadata().token_endpoint == op.origin + "/token2"
    told = [record for record in caplog.records if vars(record).get("code") == "discovery.changed"]
    assert [(vars(record)["issuer"], vars(record)["changed"]) for record in told] == [
        (op.issuer, ["token_endpoint"])
    ]


@pytest.mark.parametrize("change", ["down", "other issuer", "endpoint not https"])
def test_M46_stale_use_while_the_op_is_down(
    op: OpenIDProvider, configure: Configure, later: Callable[..., None], change: str
) -> None:
    """A document that was good is used for a day when no good one can be had, not longer."""
    party = relying_party("op")
    metadata = party.metadata()
    if change == "down":
        op.stop()
    elif change == "other issuer":
        op.metadata["issuer"] = "https://other.example"
    else:
        op.metadata["token_endpoint"] = "http://attacker.example/"
    later()
    assert party.metadata() == metadata
    later(discovery.STALE)
    assert refused(party.metadata).startswith(("transport.", "discovery."))


def test_M46_a_failed_fetch_is_not_repeated_at_once(
    op: OpenIDProvider, configure: Configure
) -> None:
    """An OP in trouble is left alone for some seconds; the refusal stays the same."""
    op.answer["discovery"] = provider.raw(503)
    for _ in range(20):
        assert refused(relying_party("op").metadata) == "discovery.status"
    assert op.calls("discovery") == 1


def test_M46_nobody_queues_behind_an_op_that_hangs(
    op: OpenIDProvider, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waited for a call that timed out shares its refusal; the pause counts from its end."""
    clock, began = time.time, time.time()
    # Ten times as fast: one second passes for the ten of the default timeout.
    monkeypatch.setattr(time, "time", lambda: began + 10 * (clock() - began))
    configure(TIMEOUT=1)
    op.answer["discovery"] = provider.slow(30)
    party, codes, started = relying_party("op"), [], time.monotonic()
    run_together([lambda: codes.append(refused(party.metadata))] * 4)
    assert time.monotonic() - started < 2.5
    assert codes == ["transport.timeout"] * 4
    assert op.calls("discovery") == 1


def test_M46_threads_that_ask_first_at_once_fetch_once(
    op: OpenIDProvider, configure: Configure
) -> None:
    """On fresh settings eight threads share one relying party, and with it one fetch."""
    op.answer["discovery"] = provider.slow(0.2)
    start, parties = threading.Barrier(8), []

    def ask() -> None:
        start.wait(10)
        party = relying_party("op")
        party.metadata()
        parties.append(party)

    run_together([ask] * 8)
    assert len(parties) == 8
    assert len(set(map(id, parties))) == 1
    assert op.calls("discovery") == 1


def test_refusals_repeated_from_memory_do_not_grow(
    op: OpenIDProvider, configure: Configure
) -> None:
    """A failure that is told again keeps none of the requests that were told before."""
    op.answer["discovery"] = provider.raw(503)
    for _ in range(50):
        with pytest.raises(InvalidResponse) as raised:
            relying_party("op").metadata()
    assert len(raised.traceback) < 10


# Keys (M47)


def test_oidcc_client_test_signing_key_rotation(op: OpenIDProvider, browser: Browser) -> None:
    """After a rotation the next login works at once."""
    browser.sign_in("op")
    op.rotate_keys()
    assert browser.sign_in("op").status_code == 302
    assert op.calls("jwks") == 2


def test_oidcc_client_test_signing_key_rotation_just_before_signing(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A key that is new since the login started is fetched in the same login."""
    browser.sign_in("op")
    callback = browser.visit_op(browser.start("op"))
    op.rotate_keys()
    assert browser.come_back(callback).status_code == 302


def test_M47_the_same_kid_for_a_new_key(op: OpenIDProvider, browser: Browser) -> None:
    """An OP that replaces a key under its old kid is followed, too."""
    browser.sign_in("op")
    op.keys = [SigningKey.generate("RS256", kid=op.keys[0].kid)]
    assert browser.sign_in("op").status_code == 302


def test_M47_a_new_key_of_signed_userinfo(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """UserInfo may be signed with a key that no ID Token has shown before."""
    op.userinfo_jwt = True
    op.make_id_token = lambda claims, header: op.sign(
        claims, key=op.client_secret.encode(), alg="HS256"
    )
    configure(ID_TOKEN_SIGNED_RESPONSE_ALG="HS256", USERINFO_SIGNED_RESPONSE_ALG="RS256")
    assert browser.sign_in("op").status_code == 302
    op.rotate_keys()
    assert browser.sign_in("op").status_code == 302
    assert op.calls("jwks") == 2


def test_M47_unsigned_userinfo_needs_no_keys(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """An HMAC client of an OP without jwks_uri signs in."""
    op.signing_alg = "HS256"
    del op.metadata["jwks_uri"]
    configure(ID_TOKEN_SIGNED_RESPONSE_ALG="HS256")
    assert browser.sign_in("op").status_code == 302


def test_M47_at_most_3_forced_refetches_a_minute(op: OpenIDProvider, browser: Browser) -> None:
    """However many unknown kids come, the OP is asked for keys three times, and then left alone."""
    op.id_token_header["kid"] = "unknown"
    for _ in range(8):
        response = browser.sign_in("op")
        assert (response.status_code, response.context["code"]) == (400, "id_token.kid")
    assert op.calls("jwks") <= 3


def test_M47_one_login_forces_one_fetch(op: OpenIDProvider, browser: Browser) -> None:
    """One unknown kid does not use up what a minute has."""
    browser.sign_in("op")
    op.id_token_header["kid"] = "unknown"
    browser.sign_in("op")
    assert op.calls("jwks") == 2


def test_M47_stamped_before_the_fetch(op: OpenIDProvider, browser: Browser) -> None:
    """Fetches that fail count as well."""
    browser.sign_in("op")
    op.id_token_header["kid"] = "unknown"
    op.answer["jwks"] = provider.raw(500)
    for _ in range(8):
        assert browser.sign_in("op").context["code"] == "id_token.kid"
    assert op.calls("jwks") <= 4


def test_M47_a_cache_that_drops_the_stamps_opens_nothing(
    op: OpenIDProvider, browser: Browser
) -> None:
    """A process counts its own fetches, too, for a cache that is small or emptied."""
    op.id_token_header["kid"] = "unknown"
    for _ in range(8):
        browser.sign_in("op")
        cache.clear()
    assert op.calls("jwks") <= 3


def test_M47_one_fetch_at_a_time_per_process(op: OpenIDProvider, configure: Configure) -> None:
    """Sixteen threads that miss the keys at once fetch them once."""
    op.answer["jwks"] = provider.slow(0.2)
    keys = published_keys(Transport(timeout=5), op.url("jwks"))
    found: list[jose.KeySet] = []
    threads = [threading.Thread(target=lambda: found.append(keys.get())) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert op.calls("jwks") == 1


def test_M47_a_kid_is_looked_for_in_what_others_fetched_and_then_at_the_op(
    op: OpenIDProvider, configure: Configure
) -> None:
    """Keys that another process shared need no fetch; when they do not do, the OP is asked."""
    ours = published_keys(Transport(timeout=5), op.url("jwks"))
    theirs = published_keys(Transport(timeout=5), op.url("jwks"))
    first = ours.get()
    op.rotate_keys()
    list(zip(range(2), theirs.values(), strict=False))  # they were told of a new kid
    op.rotate_keys()
    op.forget_requests()
    kids = [value.keys[0].kid for value in ours.values()]
    assert kids[0] == first.keys[0].kid
    assert kids[-1] == op.keys[0].kid
    assert len(kids) == 3
    assert op.calls("jwks") == 1


@pytest.mark.parametrize(
    "misbehaviour", [provider.raw(500), provider.not_json(), provider.close_connection()]
)
def test_M47_old_keys_are_usable_while_the_uri_is_down(
    op: OpenIDProvider,
    browser: Browser,
    later: Callable[..., None],
    misbehaviour: provider.Misbehaviour,
) -> None:
    """Whoever is known goes on signing in for a day; then the keys are too old to trust."""
    keys = published_keys(Transport(timeout=5), op.url("jwks"))
    old = keys.get()
    op.answer["jwks"] = misbehaviour
    later()
    assert keys.get() is old
    later(discovery.STALE)
    with pytest.raises(OIDCError):
        keys.get()


def test_M47_a_login_with_old_keys(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    op.answer["jwks"] = provider.raw(500)
    assert browser.sign_in("op").status_code == 302


def test_M47_a_malformed_key_is_skipped_and_not_fatal(op: OpenIDProvider, browser: Browser) -> None:
    """What one cannot read does not stand in the way of the others."""
    good = op.keys[0].public_jwk
    bad: list[Any] = [None, 5, {}, {"kty": "RSA"}, {"kty": "OKP", "crv": "X"}, good | {"n": "!"}]
    op.answer["jwks"] = provider.sending({"keys": [*bad, good]})
    assert browser.sign_in("op").status_code == 302


BACKENDS = {
    "raises": "tests.cache.RaisingCache",
    "is silent": "tests.cache.SilentCache",
    "dummy": "django.core.cache.backends.dummy.DummyCache",
}


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_M47_throttle_closed_when_the_cache_fails(
    op: OpenIDProvider, browser: Browser, settings: Settings, backend: str
) -> None:
    """Logins go on with the keys at hand; nobody makes us fetch without a count."""
    settings.CACHES = {"default": {"BACKEND": backend}}
    assert browser.sign_in("op").status_code == 302
    op.id_token_header["kid"] = "unknown"
    for _ in range(5):
        assert browser.sign_in("op").context["code"] == "id_token.kid"
    assert op.calls("jwks") == 1
    op.id_token_header.clear()
    assert browser.sign_in("op").status_code == 302


YEAR = 365 * 24 * 60 * 60


def test_M47_a_document_from_the_future_is_not_adopted(
    op: OpenIDProvider, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One machine with a wrong clock does not make the others keep its keys for a year."""
    now = time.time
    theirs = published_keys(Transport(timeout=5), op.url("jwks"))
    with monkeypatch.context() as wrong_clock:
        wrong_clock.setattr(time, "time", lambda: now() + YEAR)
        theirs.get()
    op.rotate_keys()
    ours = published_keys(Transport(timeout=5), op.url("jwks"))
    assert ours.get().keys[0].kid == op.keys[0].kid
    assert op.calls("jwks") == 2


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        [],
        {},
        {"document": 1},
        {"document": {"keys": []}},
        {"fetched_at": "x"},
        {"fetched_at": "x", "document": {"keys": []}},
        {"fetched_at": float("nan"), "document": {"keys": []}},
        {"fetched_at": 1.0},
        {"fetched_at": 1.0, "document": []},
        {"fetched_at": 1.0, "document": None},
    ],
    ids=repr,
)
def test_M47_a_cache_entry_of_another_shape_is_ignored(
    op: OpenIDProvider, configure: Configure, entry: object
) -> None:
    """What another version of this library, or anybody else, left in the cache is no document."""
    keys = published_keys(Transport(timeout=5), op.url("jwks"))
    if isinstance(entry, dict) and entry.get("fetched_at") == 1.0:
        entry = entry | {"fetched_at": time.time()}
    cache.set(keys._key, entry)
    assert keys.get().keys[0].kid == op.keys[0].kid
    assert op.calls("jwks") == 1


def test_M47_stamps_from_the_future_do_not_close_the_throttle_for_ever(
    op: OpenIDProvider, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they have left the cache, new keys are found again, not only when that day has come."""
    now = time.time
    theirs, ours = (published_keys(Transport(timeout=5), op.url("jwks")) for _ in range(2))
    with monkeypatch.context() as wrong_clock:
        wrong_clock.setattr(time, "time", lambda: now() + YEAR)
        for _ in range(discovery.FORCED_FETCHES):
            list(theirs.values())
    list(ours.values())
    cache.clear()
    op.rotate_keys()
    assert [value.keys[0].kid for value in ours.values()][-1] == op.keys[0].kid


START = """
import json, sys, django
from django.conf import settings

settings.configure(**json.loads(sys.argv[1]))
django.setup()
"""
CREATE_CACHE = (
    START
    + """
from django.core.management import call_command

call_command("createcachetable")
"""
)
HAVE_KEYS = (
    START
    + """
from oidc_rp.relying_party import relying_party
from oidc_rp.discovery import published_keys
from oidc_rp.transport import Transport

keys = published_keys(Transport(timeout=10), relying_party("op").metadata().jwks_uri)
keys.get()
"""
)
ASK_FOR_KEYS = (
    HAVE_KEYS
    + """
for _ in range(10):
    list(keys.values())  # as for an ID Token with a kid that nobody has
"""
)


def test_M47_forced_refetches_are_shared_by_all_processes(
    op: OpenIDProvider, tmp_path: Path
) -> None:
    """Four processes with ten unknown kids each ask for the keys three times in all."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "cache.sqlite3")}
    backend = "django.core.cache.backends.db.DatabaseCache"
    given = {
        "DATABASES": {"default": database},
        "CACHES": {"default": {"BACKEND": backend, "LOCATION": "shared_cache"}},
        "INSTALLED_APPS": ["django.contrib.auth", "django.contrib.contenttypes", "oidc_rp"],
        "USE_TZ": True,
        "OIDC_RP": {"PROVIDERS": {"op": options(op)}},
    }
    assert run(CREATE_CACHE, given).wait(60) == 0
    assert run(HAVE_KEYS, given).wait(60) == 0  # whoever has no keys fetches them in any case
    processes = [run(ASK_FOR_KEYS, given) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert 1 <= op.calls("jwks") <= 3


def run_together(calls: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


def run(script: str, given: dict[str, Any]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-c", script, json.dumps(given)]
    return subprocess.Popen(command)


def options(op: OpenIDProvider) -> dict[str, Any]:
    return {
        "ISSUER": op.issuer,
        "CLIENT_ID": op.client_id,
        "CLIENT_SECRET": op.client_secret,
        "ALLOW_LOOPBACK_HTTP": True,
    }


def refused(call: Callable[[], object]) -> str:
    """Return the code of the error that a call ends with."""
    with pytest.raises(OIDCError) as raised:
        call()
    return raised.value.code
