"""Logged out by the OP's signed word (Back-Channel Logout): whom it ends, and what is refused."""

import io
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import groupby
from secrets import token_hex
from typing import Any
from urllib.parse import urlencode

import pytest
from asgiref.sync import async_to_sync
from django.contrib.sessions.models import Session as StoredSession
from django.core.cache import cache
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.test import AsyncClient, Client
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp.errors import LoginRequired
from oidc_rp.grants import Owner
from oidc_rp.models import (
    DatabaseClock,
    Event,
    Grant,
    Identity,
    LogoutMark,
    PendingRevocation,
    Session,
    StoredAccessToken,
    digest,
)
from oidc_rp.refresh import usable_token
from oidc_rp.sealing import key_id, key_ring
from oidc_rp.testing import (
    LOGOUT_EVENT,
    REMOVE,
    OpenIDProvider,
    SigningKey,
    base64url,
    close_connection,
    not_json,
    raw,
)
from oidc_rp.testing.browser import Browser, Response
from oidc_rp.upkeep import prune
from tests.conftest import Configure
from tests.in_threads import assert_passes
from tests.logout import (
    BACKCHANNEL,
    FORM,
    FRONTCHANNEL,
    assert_no_session,
    assert_refused,
    assert_signed_out,
    change_password,
    cookie,
    give_password,
    is_stored,
    marks,
    renewal,
    row,
    rows,
    send,
    share_connection,
    sign_out,
    statements,
    who,
)
from tests.test_sessions import engine
from tests.tokens import (
    Site,
    assert_closed,
    bound,
    during,
    expire,
    failing_at,
    grant,
    history,
    owner,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "engine", "owner", "renewal", "site"]

pytestmark = pytest.mark.django_db(transaction=True)

LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"
MAX_BODY = 64 * 1024


class Crowd:
    """Three sessions of the OP's person and one of somebody else, each in a browser of its own."""

    def __init__(self, op: OpenIDProvider) -> None:
        self.browsers: dict[str, Browser] = {}
        self.sids: dict[str, str] = {}
        for name in ("desk", "phone", "sofa"):
            self._signs_in(op, name)
        jane, op.person = op.person, {"sub": "somebody else"}
        self._signs_in(op, "stranger")
        op.person = jane

    def _signs_in(self, op: OpenIDProvider, name: str) -> None:
        self.sids[name] = op.new_login().sid
        self.browsers[name] = Browser()
        assert self.browsers[name].sign_in("op").status_code == 302

    def left(self) -> str:
        """Who is signed in still; as the index says, and as the next request of each does."""
        there = [name for name, browser in self.browsers.items() if who(browser)]
        assert {row(self.browsers[name]).pk for name in there} == rows()
        return " ".join(there)


@pytest.fixture
def crowd(site: Site, browser: Browser, op: OpenIDProvider) -> Crowd:
    return Crowd(op)


EVERYBODY = "desk phone sofa stranger"


# Whom it ends


def test_M58_by_sid_exactly_that_session(
    engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd
) -> None:
    keys = {name: cookie(browser) for name, browser in crowd.browsers.items()}
    assert_signed_out(sign_out(op, sub=REMOVE, sid=crowd.sids["phone"]))
    assert crowd.left() == "desk sofa stranger"
    if engine != "signed_cookies":
        stored = [name for name, key in keys.items() if is_stored(key)]
        assert " ".join(stored) == "desk sofa stranger"


def test_M58_by_sub_every_session_of_that_person(
    engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd
) -> None:
    """And nobody else's."""
    keys = {name: cookie(browser) for name, browser in crowd.browsers.items()}
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert crowd.left() == "stranger"
    if engine != "signed_cookies":
        assert [name for name, key in keys.items() if is_stored(key)] == ["stranger"]


def test_M58_by_both_that_session_of_that_person(
    engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd
) -> None:
    """What names two that do not belong together names nobody."""
    assert_signed_out(sign_out(op, sid=crowd.sids["stranger"]))
    assert crowd.left() == EVERYBODY
    assert_signed_out(sign_out(op, sid=crowd.sids["sofa"]))
    assert crowd.left() == "desk phone stranger"


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file"], indirect=True)
def test_M58_without_the_middleware_as_well(engine: str, op: OpenIDProvider, crowd: Crowd) -> None:
    """A stored session is deleted; only one in a cookie needs SessionRenewal."""
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert crowd.left() == "stranger"


def test_M58_byte_for_byte(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    """No collation makes one sub, or sid, out of two."""
    for name, named in (("sub", "somebody else"), ("sid", crowd.sids["phone"])):
        for other in (str.swapcase, "{} ".format, " {}".format, "{}\u0301".format):
            assert_signed_out(sign_out(op, **{"sub": REMOVE, "sid": REMOVE, name: other(named)}))
    assert crowd.left() == EVERYBODY


def test_M58_sessions_that_the_op_gave_no_name_end_by_sub(
    op: OpenIDProvider, renewal: None, crowd: Crowd
) -> None:
    """No sid names them, not even an empty one."""
    op.id_token_claims["sid"] = REMOVE
    nameless = Browser()
    nameless.sign_in("op")
    assert_refused(sign_out(op, sub=REMOVE, sid=""), "logout_token.sid")
    assert who(nameless)
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert (who(nameless), crowd.left()) == ("", "stranger")


def test_M58_another_op_that_says_the_same_ends_nothing(
    op: OpenIDProvider,
    renewal: None,
    crowd: Crowd,
    settings: Settings,
    signing_key: SigningKey,
) -> None:
    """A person and a session are the OP's that names them; its own path alone is open to it."""
    with OpenIDProvider(keys=[signing_key]) as other:
        theirs = settings.OIDC_RP["PROVIDERS"]["op"] | {
            "ISSUER": other.issuer,
            "CLIENT_SECRET": other.client_secret,
        }
        settings.OIDC_RP = settings.OIDC_RP | {
            "PROVIDERS": settings.OIDC_RP["PROVIDERS"] | {"other": theirs}
        }
        browser = Browser()
        other.person, other.login.sid = op.person, crowd.sids["desk"]
        assert browser.sign_in("other").status_code == 302
        told = {"logout_token": other.logout_token(sub=REMOVE)}
        assert_refused(send(told), "logout_token.iss")
        assert_refused(send({"logout_token": op.logout_token()}, slug="other"), "logout_token.iss")
        assert_signed_out(send(told, slug="other"))
        assert who(browser) == ""
        assert crowd.left() == EVERYBODY
        assert_signed_out(send({"logout_token": other.logout_token(sid=REMOVE)}, slug="other"))
        assert crowd.left() == EVERYBODY


def test_M58_a_session_whose_key_has_changed_ends(
    engine: str, renewal: None, op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """By Django's own page for a new password; SessionRenewal keeps the index true."""
    settings.ROOT_URLCONF = "tests.logout"
    browser.sign_in("op")
    give_password(browser)
    browser.sign_in("op")
    before = cookie(browser)
    change_password(browser)
    assert cookie(browser) != before
    assert who(browser)
    key = cookie(browser)
    assert_signed_out(sign_out(op, sub=REMOVE))
    assert who(browser) == ""
    if engine != "signed_cookies":
        assert not is_stored(key)


def test_M58_what_was_granted_to_the_session_alone_goes_with_it(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Closed for this reason by this OP, and revoked there; a durable grant is not meant to."""
    durable = Owner(1)
    browser.sign_in("op")
    durable = Owner(int(browser.client.session["_auth_user_id"]), Grant.objects.get().pk)
    others, mine = Browser(), Browser()
    left = signed_in_here(site, others, op)
    op.new_login()
    bound = signed_in_here(site, mine, op)
    usable_token(bound)
    assert_signed_out(sign_out(op))
    assert_closed(bound, "backchannel_logout")
    assert not StoredAccessToken.objects.filter(grant=bound.grant).exists()
    assert history(bound)[-1] == ("closed", "backchannel_logout")
    assert Event.objects.get(name="closed").actor == "OP op"
    ended = Event.objects.get(name="session_ended")
    assert (ended.code, ended.actor) == ("backchannel_logout", "OP op")
    assert (grant(durable).status, grant(left).status) == ("open", "open")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1
    with pytest.raises(LoginRequired) as raised:
        usable_token(bound)
    assert raised.value.code == "grant.backchannel_logout"
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert rows() == set()
    assert_closed(left, "backchannel_logout")
    assert grant(durable).status == "open"
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 2


def test_M58_by_sub_all_of_them(op: OpenIDProvider, site: Site, browser: Browser) -> None:
    """Each refresh token is revoked, once the sessions are gone."""
    keys, owners = [], []
    for each in (browser, Browser(), Browser()):
        op.new_login()
        owners.append(signed_in_here(site, each, op))
        keys.append(cookie(each))
    seen: list[Any] = []
    op.answer["revocation"] = during(lambda: seen.append((rows(), [*map(is_stored, keys)])))
    assert_signed_out(sign_out(op, sid=REMOVE))
    for each in owners:
        assert_closed(each, "backchannel_logout")
    wait_until(lambda: to_revoke() == [])
    assert seen == [(set(), [False] * 3)] * 3
    assert len(op.revocations) == 3


def test_M58_without_a_revocation_that_would_end_more(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Where one token revoked ends all that the person granted."""
    owner = signed_in_here(site, browser, op, REVOKE_SUPERSEDED=False)
    assert_signed_out(sign_out(op))
    assert_closed(owner, "backchannel_logout")
    assert (to_revoke(), op.calls("revocation")) == ([], 0)


def test_M58_whatever_was_wrong_with_the_grant_stays_to_be_read(
    op: OpenIDProvider, bound: Owner
) -> None:
    """As with a grant that is closed alone; its lease is nobody's, and no trace of the work."""
    Grant.objects.update(last_error="refresh.transport", lease_owner="busy:1", failures=3)
    assert_signed_out(sign_out(op))
    closed = assert_closed(bound, "backchannel_logout")
    assert (closed.last_error, closed.failures, closed.generation) == ("refresh.transport", 0, 2)


def test_M58_many_sessions_take_one_statement_for_each_table(
    op: OpenIDProvider, site: Site, browser: Browser, settings: Settings
) -> None:
    """Two hundred, each with a grant and a stored session, cost what three do."""
    share_connection(settings)
    told = []
    for count in (3, 200):
        browser.sign_in("op")
        sessions_of(Identity.objects.get(), count)
        with statements() as noted:
            assert_signed_out(sign_out(op, sid=REMOVE))
        assert rows() == set()
        assert StoredSession.objects.count() == 0
        assert set(Grant.objects.filter(durable=False).values_list("status", flat=True)) == {
            "closed"
        }
        noted = [one for one in noted if "revocation" not in one[1] or one[0] == "INSERT"]
        told.append([one for one, _ in groupby(noted)])  # SQLite takes 999 values in one statement
        PendingRevocation.objects.all().delete()
        Grant.objects.filter(durable=False).delete()
    assert told[0] == told[1]
    assert told[1] == [
        ("SELECT", "oidc_rp_logoutmark"),
        ("INSERT", "oidc_rp_logoutmark"),
        ("SELECT", "oidc_rp_identity"),
        ("SELECT", "oidc_rp_session"),
        ("UPDATE", "oidc_rp_session"),
        ("INSERT", "oidc_rp_event"),  # session_ended
        ("UPDATE", "oidc_rp_grant"),
        ("SELECT", "oidc_rp_grant"),
        ("INSERT", "oidc_rp_pendingrevocation"),
        ("DELETE", "oidc_rp_storedaccesstoken"),
        ("UPDATE", "oidc_rp_grant"),
        ("DELETE", "django_session"),
        ("DELETE", "oidc_rp_session"),
        ("INSERT", "oidc_rp_event"),  # closed
        ("UPDATE", "oidc_rp_logoutmark"),
    ]


def sessions_of(identity: Identity, count: int) -> None:
    """Make so many more sessions of this person, each with a grant of its own."""
    later = timezone.now() + timedelta(days=1)
    made = []
    for _ in range(count - 1):
        grant = Grant(identity=identity, provider="op", client_id="rp-client", scope="openid")
        grant.refresh_token = key_ring().seal(token_hex(8), grant.context(1))
        grant.key_id = key_id(grant.refresh_token)
        session = Session(identity=identity, grant=grant, provider="op", session_key=token_hex(16))
        session.sid, session.sid_digest = token_hex(8), digest(identity.iss, token_hex(8))
        made.append((grant, session, StoredSession(session.session_key, "", later)))
    for model, column in ((Grant, 0), (Session, 1), (StoredSession, 2)):
        model.objects.bulk_create([each[column] for each in made])  # type: ignore[attr-defined]


# What is answered


def test_M57_200_when_nobody_is_there(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    """Whoever it was is not signed in any more, which is what the OP wanted."""
    assert_signed_out(sign_out(op, sid="nobody's"))
    assert_signed_out(sign_out(op, sub="nobody", sid=REMOVE))
    assert_signed_out(sign_out(op, sub="nobody", sid="nobody's"))
    assert crowd.left() == EVERYBODY
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert_signed_out(sign_out(op, sid=REMOVE))
    assert crowd.left() == "stranger"


def test_M57_no_session_is_made_or_asked_for(
    op: OpenIDProvider, browser: Browser, settings: Settings
) -> None:
    """By a client without cookies; whoever must be signed in elsewhere, and for whatever form."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, LOGIN_REQUIRED]
    browser.sign_in("op")
    op_client = Client(enforce_csrf_checks=True)
    body = urlencode({"logout_token": op.logout_token()})
    response = op_client.post(BACKCHANNEL, body, FORM)
    assert (response.status_code, [*response.cookies]) == (200, [])
    assert StoredSession.objects.count() == 0
    body = urlencode({"logout_token": "rubbish"})
    response = op_client.post(BACKCHANNEL, body, FORM)
    assert (response.status_code, [*response.cookies]) == (400, [])
    assert StoredSession.objects.count() == 0


def test_M57_members_and_parameters_that_nobody_knows_are_ignored(
    op: OpenIDProvider, renewal: None, crowd: Crowd
) -> None:
    token = op.logout_token(
        sid=crowd.sids["desk"], trace_id="x", events={LOGOUT_EVENT: {"a": 1}, "b": {}}, toe=1
    )
    assert_signed_out(send({"logout_token": token, "state": "a", "iss": "b", "sid": ["c", "d"]}))
    assert crowd.left() == "phone sofa stranger"


def test_M57_without_exp_type_or_sub(op: OpenIDProvider, renewal: None, crowd: Crowd) -> None:
    """The type came late to the specification; exp is required by it."""
    for typ in (REMOVE, "JWT", "LOGOUT+jwt"):
        token = op.logout_token(sid=crowd.sids["desk"], header={"typ": typ})
        assert_signed_out(send({"logout_token": token}))
    assert_refused(sign_out(op, exp=REMOVE), "logout_token.exp")
    assert crowd.left() == "phone sofa stranger"


# What is refused


def minutes(number: float) -> Callable[[OpenIDProvider], float]:
    return lambda op: op.now() + 60 * number


BITES: dict[str, tuple[dict[str, Any], str]] = {
    "iss missing": ({"iss": REMOVE}, "logout_token.iss"),
    "iss another's": ({"iss": "https://evil.example"}, "logout_token.iss"),
    "iss with a slash": ({"iss": lambda op: op.issuer + "/"}, "logout_token.iss"),
    "aud missing": ({"aud": REMOVE}, "logout_token.aud"),
    "aud another's": ({"aud": "somebody-else"}, "logout_token.aud"),
    "aud untrusted": ({"aud": ["rp-client", "somebody-else"]}, "logout_token.aud"),
    "azp another's": ({"azp": "somebody-else"}, "logout_token.azp"),
    "iat missing": ({"iat": REMOVE}, "logout_token.iat"),
    "iat to come": ({"iat": minutes(2)}, "logout_token.iat"),
    "iat too old": ({"iat": minutes(-7)}, "logout_token.iat"),
    "iat too old, exp far": ({"iat": minutes(-7), "exp": minutes(700)}, "logout_token.iat"),
    "iat no number": ({"iat": "now"}, "logout_token.iat"),
    "exp missing": ({"exp": REMOVE}, "logout_token.exp"),
    "exp past": ({"exp": minutes(-2)}, "logout_token.exp"),
    "exp boolean": ({"exp": True}, "logout_token.exp"),
    "nbf to come": ({"nbf": minutes(2)}, "logout_token.nbf"),
    "jti missing": ({"jti": REMOVE}, "logout_token.jti"),
    "jti empty": ({"jti": ""}, "logout_token.jti"),
    "jti no text": ({"jti": 5}, "logout_token.jti"),
    "jti too long": ({"jti": "x" * 256}, "logout_token.jti"),
    "event missing": ({"events": REMOVE}, "logout_token.events"),
    "event another": ({"events": {"https://op.example/event": {}}}, "logout_token.events"),
    "event no object": ({"events": {LOGOUT_EVENT: True}}, "logout_token.events"),
    "event a list": ({"events": [LOGOUT_EVENT]}, "logout_token.events"),
    "nonce": ({"nonce": "n"}, "logout_token.nonce"),
    "nonce null": ({"nonce": None}, "logout_token.nonce"),
    "sub and sid missing": ({"sub": REMOVE, "sid": REMOVE}, "logout_token.sub"),
    "sub and sid null": ({"sub": None, "sid": None}, "logout_token.sub"),
    "sub no text": ({"sub": 5}, "logout_token.sub"),
    "sub too long": ({"sub": "x" * 256}, "logout_token.sub"),
    "sid no text": ({"sid": ["a"]}, "logout_token.sid"),
    "sid empty": ({"sid": ""}, "logout_token.sid"),
    "typ at+jwt": ({"header": {"typ": "at+jwt"}}, "logout_token.typ"),
    "typ secevent+jwt": ({"header": {"typ": "secevent+jwt"}}, "logout_token.typ"),
    "crit": ({"header": {"crit": ["b64"]}}, "logout_token.crit"),
    "alg none": ({"alg": "none"}, "logout_token.alg"),
    "alg HS256 by the public key": ({"alg": "HS256", "key": b"x" * 32}, "logout_token.alg"),
    "kid unknown": ({"header": {"kid": "unknown"}}, "logout_token.kid"),
    "another's key": ({"key": SigningKey.generate("RS256", "another")}, "logout_token.kid"),
}


@pytest.mark.parametrize(("bite", "code"), BITES.values(), ids=BITES)
def test_M57_each_bite_of_the_token_is_refused(
    op: OpenIDProvider,
    browser: Browser,
    caplog: pytest.LogCaptureFixture,
    bite: dict[str, Any],
    code: str,
) -> None:
    """400, an error in JSON with the reference of the log, no cookie; and nobody is signed out."""
    browser.sign_in("op")
    before = rows()
    changes = {name: value(op) if callable(value) else value for name, value in bite.items()}
    token = op.logout_token(**changes)
    reference = assert_refused(send({"logout_token": token}), code)
    assert (rows(), marks()) == (before, 0)
    assert who(browser)
    (record,) = [record for record in caplog.records if getattr(record, "reference", None)]
    assert (record.reference, record.code, record.provider) == (reference, code, "op")  # type: ignore[attr-defined]
    assert record.levelno == logging.WARNING
    assert token not in caplog.text
    assert token.split(".")[1] not in caplog.text
    assert assert_refused(send({"logout_token": token}), code) != reference
    assert_signed_out(sign_out(op))
    assert who(browser) == ""


def test_M57_a_signature_that_does_not_hold(op: OpenIDProvider, browser: Browser) -> None:
    """Another payload under it, another key of the same kid, a bit turned."""
    browser.sign_in("op")
    header, payload, signature = op.logout_token().split(".")
    other = op.logout_token(sid="another").split(".")[1]
    forger = SigningKey.generate("RS256", op.keys[0].kid)
    turned = signature[:-8] + ("A" if signature[-8] != "A" else "B") + signature[-7:]
    for forged in (
        f"{header}.{other}.{signature}",
        f"{header}.{payload}.{turned}",
        op.logout_token(key=forger),
    ):
        assert_refused(send({"logout_token": forged}), "logout_token.signature")
    assert who(browser)
    assert marks() == 0


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE"])
@pytest.mark.parametrize("signed", ["", "AAAA"])
def test_M18_none_is_none_on_the_back_channel_too(
    op: OpenIDProvider, browser: Browser, configure: Configure, alg: str, signed: str
) -> None:
    """Whatever the OP's metadata says that it supports."""
    op.metadata["id_token_signing_alg_values_supported"] = ["RS256", "none", alg]
    configure(TIMEOUT=9)
    browser.sign_in("op")
    header = base64url(json.dumps({"alg": alg, "typ": "logout+jwt"}).encode())
    token = f"{header}.{op.logout_token().split('.')[1]}.{signed}"
    assert_refused(send({"logout_token": token}), "logout_token.alg")
    assert who(browser)


def test_M32_an_id_token_is_no_logout_token(op: OpenIDProvider, browser: Browser) -> None:
    """Not even the one of this very login, which names its sid; nor without nonce."""
    issued: list[str] = []
    op.make_id_token = lambda claims, header: issued.append(op.sign(claims, header)) or issued[-1]  # type: ignore[func-returns-value]
    browser.sign_in("op")
    assert_refused(send({"logout_token": issued[0]}), "logout_token.nonce")
    op.id_token_claims["nonce"] = REMOVE
    Browser().sign_in("op")
    assert_refused(send({"logout_token": issued[1]}), "logout_token.events")
    assert who(browser)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "logout_token.missing"),
        ({"logout": "x"}, "logout_token.missing"),
        ({"Logout_Token": "x"}, "logout_token.missing"),
        ({"logout_token[]": "x"}, "logout_token.missing"),
        ({"logout_token": ""}, "logout_token.format"),
        ({"logout_token": "a.b"}, "logout_token.format"),
        ({"logout_token": "é.b.c"}, "logout_token.format"),
        ({"logout_token": "\x00"}, "logout_token.format"),
        ({"logout_token": "....." * 100}, "logout_token.format"),
        ({"logout_token": "e30.e30."}, "logout_token.alg"),
        ("", "logout_token.missing"),
        ("&&&;;;===", "logout_token.missing"),
        ("logout_token", "logout_token.format"),
        ("logout_token=%ff%fe%zz", "logout_token.format"),
        (b"\xff\xfe\x00", "logout_token.missing"),
        (b"logout_token=\xff\xfe.\x80.\x81", "logout_token.format"),
        ("a=b&" * 1001, "logout_token.unreadable"),
        ("&" * 5000, "logout_token.unreadable"),
        ("x" * (MAX_BODY + 1), "logout_token.too_large"),
        ("logout_token=" + "x" * MAX_BODY, "logout_token.too_large"),
        ("x" * 3_000_000, "logout_token.too_large"),
    ],
)
def test_M57_a_body_that_cannot_be_taken(
    op: OpenIDProvider, browser: Browser, body: Any, code: str
) -> None:
    assert_refused(send(body), code)
    assert marks() == 0


def test_M9_the_token_comes_once(op: OpenIDProvider, browser: Browser) -> None:
    """Not twice, were it the same; and not in the query, which logs remember."""
    browser.sign_in("op")
    token = op.logout_token()
    for twice in ([token, token], [token, "x"], ["", token]):
        assert_refused(send({"logout_token": twice}), "logout_token.repeated")
    path = f"{BACKCHANNEL}?{urlencode({'logout_token': token})}"
    assert_refused(Client().post(path, "a=b", FORM), "logout_token.missing")
    assert who(browser)
    assert_signed_out(Client().post(path, urlencode({"logout_token": token}), FORM))
    assert who(browser) == ""


def test_M57_64_kibibytes_are_taken_and_no_octet_more(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    body = urlencode({"logout_token": op.logout_token(), "more": ""})
    assert_refused(send(body + "x" * (MAX_BODY + 1 - len(body))), "logout_token.too_large")
    assert who(browser)
    assert_signed_out(send(body + "x" * (MAX_BODY - len(body))))
    assert who(browser) == ""


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "text/plain",
        "application/jwt",
        "application/logout+jwt",
        "",
        "application/x-www-form-urlencodedx",
        "application/x-www-form-urlencoded, text/plain",
    ],
)
def test_M57_any_other_content_type_is_refused(
    op: OpenIDProvider, browser: Browser, content_type: str
) -> None:
    """Whatever is in it (§2.5)."""
    token = op.logout_token()
    form = urlencode({"logout_token": token})
    parts = f'--b\r\nContent-Disposition: form-data; name="logout_token"\r\n\r\n{token}\r\n--b--'
    for body in (form, json.dumps({"logout_token": token}), token, parts):
        assert_refused(send(body, content_type=content_type), "logout_token.content_type")
    assert marks() == 0


def test_M57_a_form_in_parts_is_a_form(op: OpenIDProvider, browser: Browser) -> None:
    """What §2.5 does not ask for, and hurts nobody; its size has the same bound."""
    browser.sign_in("op")
    kind = "multipart/form-data; boundary=b"
    head = '--b\r\nContent-Disposition: form-data; name="logout_token"\r\n\r\n'
    for broken, code in (
        ("--b", "logout_token.missing"),
        (head, "logout_token.format"),
        (head + "x" * MAX_BODY, "logout_token.too_large"),
        (f"{head}a.b.c\r\n--b--", "logout_token.format"),
        (f"{head}a.b.c\r\n{head}a.b.c\r\n--b--", "logout_token.repeated"),
    ):
        assert_refused(send(broken, content_type=kind), code)
    assert who(browser)
    assert_signed_out(send(f"{head}{op.logout_token()}\r\n--b--", content_type=kind))
    assert who(browser) == ""


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded; charset=utf-8",
        "Application/X-WWW-Form-URLEncoded",
        "application/x-www-form-urlencoded;charset=utf-16",
        "application/x-www-form-urlencoded; charset=hex",
        "application/x-www-form-urlencoded; charset=nothing",
    ],
)
def test_M57_a_form_is_a_form_whatever_it_says_of_its_letters(
    op: OpenIDProvider, browser: Browser, content_type: str
) -> None:
    """All of a JWT is ASCII; a character set that misleads Django misleads nobody here."""
    browser.sign_in("op")
    body = urlencode({"logout_token": op.logout_token()}).encode()
    status, _, answer = over_wsgi(body, CONTENT_LENGTH=str(len(body)), CONTENT_TYPE=content_type)
    assert (status, answer) == (200, b"")
    assert who(browser) == ""


PARTS = "multipart/form-data"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (PARTS, "--b"),
        (f"{PARTS}; boundary=", "--b"),
        (f"{PARTS}; boundary={'b' * 300}", "--b"),
        (f"{PARTS}; boundary=\xff", "--b"),
        (f'{PARTS}; boundary="b', "--b"),
        (f"{PARTS}; boundary=b", '{head}"x"\r\n\r\nx\r\n' * 1001),
        (f"{PARTS}; boundary=b; charset=hex", '{head}"logout_token"\r\n\r\na.b.c\r\n--b--'),
        (f"{PARTS}; boundary=b; charset=nothing", '{head}"logout_token"\r\n\r\na.b.c\r\n--b--'),
        (f"{PARTS}; boundary=b; charset=utf-16", '{head}"logout_token"\r\n\r\na.b.c\r\n--b--'),
        (f"{PARTS}; boundary=b", '{head}"logout_token"; filename="a"\r\n\r\na.b.c\r\n--b--'),
        (f"{PARTS}; boundary=b", '{head}"\xff\x00"\r\n\r\na.b.c\r\n--b--'),
        (
            f"{PARTS}; boundary=b",
            '{head}"logout_token"\r\nContent-Transfer-Encoding: base64\r\n\r\n*\r\n--b--',
        ),
    ],
)
def test_M57_parts_that_no_form_has(
    op: OpenIDProvider, browser: Browser, content_type: str, body: str
) -> None:
    """Whatever Django's parser makes of them: the OP is told that its request is wrong."""
    head = "--b\r\nContent-Disposition: form-data; name="
    octets = body.replace("{head}", head).encode("latin-1")
    length = str(len(octets))
    status, headers, answer = over_wsgi(octets, CONTENT_LENGTH=length, CONTENT_TYPE=content_type)
    assert (status, headers["Cache-Control"]) == (400, "no-store")
    assert json.loads(answer)["error"] == "invalid_request"
    assert marks() == 0


@pytest.mark.parametrize("method", ["get", "put", "delete", "patch", "head", "options", "trace"])
def test_M57_by_post_alone(op: OpenIDProvider, browser: Browser, method: str) -> None:
    browser.sign_in("op")
    query = urlencode({"logout_token": op.logout_token()})
    for slug in ("op", "unknown"):
        path = f"/oidc/{slug}/backchannel-logout/?{query}"
        response = Client().generic(method.upper(), path, query, FORM)
        assert response.status_code == 405
        assert response.headers["Allow"] == "POST"
        assert [*response.cookies] == []
    assert who(browser)


class Broken(io.RawIOBase):
    """A connection that breaks while the body is read."""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionResetError("the client has gone")

    readline = read  # type: ignore[assignment]


def over_wsgi(body: Any, **environ: Any) -> tuple[int, dict[str, str], bytes]:
    """Post as a server does: the body is a stream, and the headers may say what they like."""
    told: dict[str, Any] = {}

    def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
        told.update(status=int(status[:3]), headers=dict(headers))

    request = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": BACKCHANNEL,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body) if isinstance(body, bytes) else body,
        "CONTENT_TYPE": FORM,
    } | environ
    answer = b"".join(WSGIHandler()(request, start_response))
    return told["status"], told["headers"], answer


@pytest.mark.parametrize(
    ("length", "status"),
    [
        ("", 400),
        ("-1", 400),
        ("0", 400),
        ("ten", 400),
        ("1e3", 400),
        ("100", 400),
        ("999999999999999999999", 200),
        ("the length", 200),
    ],
)
def test_M57_whatever_the_length_is_said_to_be(
    op: OpenIDProvider, browser: Browser, length: str, status: int
) -> None:
    """What is there within that length is read, and never more than 64 KiB."""
    browser.sign_in("op")
    body = urlencode({"logout_token": op.logout_token()}).encode()
    length = str(len(body)) if length == "the length" else length
    answered, headers, _ = over_wsgi(body, CONTENT_LENGTH=length)
    assert (answered, headers["Cache-Control"]) == (status, "no-store")
    assert bool(who(browser)) == (status == 400)


def test_M57_a_body_without_an_end_is_not_read_to_it(op: OpenIDProvider, browser: Browser) -> None:
    class Endless(io.RawIOBase):
        read_so_far = 0

        def readable(self) -> bool:
            return True

        def read(self, size: int | None = -1) -> bytes:
            assert size is not None
            assert 0 < size <= MAX_BODY + 1
            self.read_so_far += size
            return b"x" * size

    endless = Endless()
    status, _, answer = over_wsgi(endless, CONTENT_LENGTH=str(10**12))
    assert (status, json.loads(answer)["error"]) == (400, "invalid_request")
    assert "logout_token.too_large" in json.loads(answer)["error_description"]
    assert endless.read_so_far <= 2 * MAX_BODY


def test_M57_a_connection_that_breaks(op: OpenIDProvider, browser: Browser) -> None:
    status, headers, answer = over_wsgi(Broken(), CONTENT_LENGTH="100")
    assert (status, headers["Cache-Control"]) == (400, "no-store")
    assert "logout_token.unreadable" in json.loads(answer)["error_description"]


def test_M57_under_asgi(engine: str, renewal: None, op: OpenIDProvider, crowd: Crowd) -> None:
    """The same through Django's ASGI handler: a good one, one that is too large, one by GET."""
    client = AsyncClient()
    post, get = async_to_sync(client.post), async_to_sync(client.get)
    body = urlencode({"logout_token": op.logout_token(sid=crowd.sids["desk"])})
    assert_signed_out(post(BACKCHANNEL, body, content_type=FORM))
    assert_refused(post(BACKCHANNEL, body, content_type=FORM), "logout_token.jti")
    too_large = body + "x" * MAX_BODY
    assert_refused(post(BACKCHANNEL, too_large, content_type=FORM), "logout_token.too_large")
    assert get(BACKCHANNEL).status_code == 405
    named = {"iss": op.issuer, "sid": crowd.sids["sofa"]}
    assert_no_session(get(FRONTCHANNEL, named))
    assert crowd.left() == "phone stranger"


def test_M57_an_unknown_provider(op: OpenIDProvider, browser: Browser) -> None:
    browser.sign_in("op")
    told = {"logout_token": op.logout_token()}
    assert_refused(send(told, slug="nobody"), "provider.unknown")
    assert who(browser)


def test_M57_a_provider_that_is_set_up_wrongly(
    op: OpenIDProvider, browser: Browser, configure: Configure
) -> None:
    configure(TIMEOUT="soon")
    assert_refused(sign_out(op), "configuration.provider", "temporarily_unavailable")


@pytest.mark.parametrize(
    ("endpoint", "fault", "code"),
    [
        ("discovery", raw(503), "discovery.status"),
        ("discovery", close_connection(), "transport.broken"),
        ("jwks", raw(503), "discovery.status"),
        ("jwks", not_json(), "discovery.json"),
        ("jwks", close_connection(), "transport.broken"),
    ],
)
def test_M57_an_op_that_cannot_be_asked_for_its_keys(
    op: OpenIDProvider, browser: Browser, endpoint: str, fault: Any, code: str
) -> None:
    """It may try again: nothing is remembered of the token."""
    op.answer[endpoint] = fault
    assert_refused(sign_out(op), code, "temporarily_unavailable")
    assert marks() == 0


# Keys


def test_M57_a_key_that_is_new_is_fetched_at_once(
    op: OpenIDProvider, renewal: None, crowd: Crowd
) -> None:
    """Rotation works with the first logout after it; the old one is no key any more."""
    old = op.keys[0]
    op.rotate_keys()
    op.forget_requests()
    assert_signed_out(sign_out(op, sid=crowd.sids["desk"]))
    assert op.calls("jwks") == 1
    assert_refused(sign_out(op, sid=crowd.sids["phone"], key=old), "logout_token.kid")
    assert crowd.left() == "phone sofa stranger"


def test_M47_no_flood_of_unknown_keys_is_one_of_fetches(
    op: OpenIDProvider, browser: Browser
) -> None:
    browser.sign_in("op")
    op.forget_requests()
    for number in range(12):
        assert_refused(sign_out(op, header={"kid": f"k{number}"}), "logout_token.kid")
    assert op.calls("jwks") <= 3


def test_M21_a_provider_that_signs_by_the_client_secret(
    op: OpenIDProvider, configure: Configure, browser: Browser
) -> None:
    """HS256 where the settings say so, and nothing else then."""
    configure(ID_TOKEN_SIGNED_RESPONSE_ALG="HS256")
    op.signing_alg = "HS256"
    assert browser.sign_in("op").status_code == 302
    assert_refused(sign_out(op, alg="RS256", key=op.key_for("RS256")), "logout_token.alg")
    assert_refused(sign_out(op, key=b"x" * 32), "logout_token.signature")
    assert_refused(sign_out(op, key=op.keys[0].public_pem), "logout_token.signature")
    assert who(browser)
    assert_signed_out(sign_out(op))
    assert who(browser) == ""


@pytest.mark.parametrize("alg", ["ES256", "PS256", "EdDSA"])
def test_M18_other_algorithms_of_the_op(op: OpenIDProvider, browser: Browser, alg: str) -> None:
    op.signing_alg = alg
    assert browser.sign_in("op").status_code == 302
    assert_signed_out(sign_out(op))
    assert who(browser) == ""


# Taken once


CACHES = [
    "django.core.cache.backends.locmem.LocMemCache",
    "django.core.cache.backends.dummy.DummyCache",
    "tests.cache.RaisingCache",
    "tests.cache.SilentCache",
]


@pytest.mark.parametrize("backend", CACHES)
def test_M57_a_token_is_taken_once_whatever_the_cache_remembers(
    op: OpenIDProvider, browser: Browser, settings: Settings, backend: str
) -> None:
    """The memory is the database's: of all processes, and of those that start anew."""
    settings.CACHES = {"default": {"BACKEND": backend}}
    browser.sign_in("op")
    token = op.logout_token(sid=REMOVE)
    assert_signed_out(send({"logout_token": token}))
    assert who(browser) == ""
    browser.sign_in("op")
    with suppress(ConnectionError):
        cache.clear()
    assert_refused(send({"logout_token": token}), "logout_token.jti")
    assert who(browser)


def test_M57_the_same_jti_in_another_token_is_refused_too(
    op: OpenIDProvider, renewal: None, crowd: Crowd
) -> None:
    """It is the jti that is remembered, whoever the token speaks of."""
    assert_signed_out(sign_out(op, jti="one", sid=crowd.sids["desk"]))
    assert_refused(sign_out(op, jti="one", sid=crowd.sids["phone"]), "logout_token.jti")
    assert_refused(sign_out(op, jti="one", sid=REMOVE), "logout_token.jti")
    assert_signed_out(sign_out(op, jti="One", sid=crowd.sids["phone"]))
    assert crowd.left() == "sofa stranger"


def test_M57_a_token_of_nobody_is_taken_once_as_well(op: OpenIDProvider, browser: Browser) -> None:
    """It may be somebody's who is signing in now."""
    token = op.logout_token(sid="nobody's")
    assert_signed_out(send({"logout_token": token}))
    assert_refused(send({"logout_token": token}), "logout_token.jti")


def test_M57_it_is_remembered_for_longer_than_it_is_good(
    op: OpenIDProvider, browser: Browser
) -> None:
    """Five minutes and the clocks' difference; oidc_prune forgets it after a day."""
    token = op.logout_token()
    assert_signed_out(send({"logout_token": token}))
    LogoutMark.objects.update(at=DatabaseClock(-timedelta(minutes=10)))
    prune()
    assert_refused(send({"logout_token": token}), "logout_token.jti")


HALF_WAY = {
    "mark": ("INSERT", "oidc_rp_logoutmark"),
    "look-up": ("SELECT", "oidc_rp_logoutmark"),
    "sessions": ("UPDATE", "oidc_rp_session"),
    "sessions found": ("SELECT", "oidc_rp_session"),
    "identity": ("SELECT * FROM oidc_rp_identity", "oidc_rp_identity"),
    "done": ("UPDATE", "oidc_rp_logoutmark"),
}


@pytest.mark.parametrize(("verb", "table"), HALF_WAY.values(), ids=HALF_WAY)
def test_M57_a_first_try_that_failed_half_way_can_be_repeated(
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    settings: Settings,
    verb: str,
    table: str,
) -> None:
    """400 tells the OP so; by then it is not taken yet."""
    owner = signed_in_here(site, browser, op)
    token = op.logout_token(sid=REMOVE)
    share_connection(settings)
    with failing_at(verb, table):
        response = send({"logout_token": token})
    assert_refused(response, "logout.database", "temporarily_unavailable")
    assert_signed_out(send({"logout_token": token}))
    assert (who(browser), rows()) == ("", set())
    assert_closed(owner, "backchannel_logout")
    assert_refused(send({"logout_token": token}), "logout_token.jti")


@pytest.mark.parametrize(
    ("verb", "table"),
    [
        ("UPDATE", "oidc_rp_grant"),
        ("INSERT", "oidc_rp_pendingrevocation"),
        ("DELETE", "oidc_rp_storedaccesstoken"),
        ("DELETE", "oidc_rp_session"),
        ("DELETE", "django_session"),
        ("INSERT", "oidc_rp_event"),
    ],
)
def test_M58_what_cannot_be_done_at_once_is_done_by_oidc_prune(
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    renewal: None,
    settings: Settings,
    verb: str,
    table: str,
) -> None:
    """The sessions have ended whatever fails; the OP need not ask again."""
    owner = signed_in_here(site, browser, op)
    key = cookie(browser)
    share_connection(settings)
    with failing_at(verb, table):
        assert_signed_out(sign_out(op))
    assert who(browser) == ""
    Grant.objects.update(created_at=DatabaseClock(-timedelta(hours=25)))
    prune()
    assert rows() == set()
    assert not is_stored(key)
    assert grant(owner).status == "closed"
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


# Logout beats what is in flight (M60)


def refused(response: Response) -> str:
    assert response.status_code == 403, (response.status_code, response.content)
    return str(response.context["code"])


@pytest.mark.parametrize("by", ["sid", "sub", "both"])
def test_M60_a_logout_beats_a_login_in_flight(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser, by: str
) -> None:
    """It comes while the token endpoint answers: nobody is signed in, and nothing is left."""
    named = {"sid": {"sub": REMOVE}, "sub": {"sid": REMOVE}, "both": {}}[by]
    answers: list[Response] = []
    op.always_refresh_token = True
    site.has(SCOPES=["openid", "calendar"])
    op.answer["token"] = during(lambda: answers.append(sign_out(op, **named)))
    response = browser.sign_in("op")
    del op.answer["token"]
    assert_signed_out(answers[0])
    assert refused(response) == "session.ended"
    assert "_auth_user_id" not in browser.client.session
    assert (who(browser), rows()) == ("", set())
    assert set(Grant.objects.values_list("status", flat=True)) == {"closed"}
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1
    op.new_login()
    assert browser.sign_in("op").status_code == 302
    assert who(browser)


def test_M60_one_of_somebody_else_beats_nobody(
    engine: str, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """Another session of the same person, another person."""
    others = [{"sid": "another's"}, {"sub": "somebody else", "sid": REMOVE}]
    op.answer["token"] = during(lambda: [sign_out(op, **named) for named in others])
    assert browser.sign_in("op").status_code == 302
    assert who(browser)
    assert LogoutMark.objects.exclude(jti=None).count() == 2


def test_M60_a_login_that_begins_after_the_logout_succeeds(
    engine: str, renewal: None, op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """At once, in the same browser and in another, of the same session at the OP even."""
    for _ in range(3):
        assert browser.sign_in("op").status_code == 302
        assert_signed_out(sign_out(op))
        assert_signed_out(sign_out(op, sid=REMOVE))
        assert who(browser) == ""
    assert browser.sign_in("op").status_code == 302
    other = Browser()
    assert other.sign_in("op").status_code == 302
    assert (bool(who(browser)), bool(who(other))) == (True, True)


MOMENTS = {
    "before the row": ("INSERT", "oidc_rp_session", False),
    "after the row": ("INSERT", "oidc_rp_session", True),
    "before the marks are read": ("SELECT", "oidc_rp_logoutmark", False),
    "after the marks are read": ("SELECT", "oidc_rp_logoutmark", True),
}


def once(verb: str, table: str, after: bool, act: Callable[[], Any]) -> Callable[..., Any]:
    """An execute_wrapper that acts once: before the first such statement, or when it is over, which
    is before the next one: what it returns is read until then."""
    state = {"waits": True, "next": False}

    def watch(execute: Any, sql: str, *rest: Any) -> Any:
        hit = state["waits"] and sql.startswith(verb) and table in sql
        now = state["next"] or (hit and not after)
        if hit:
            state["waits"] = False
        state["next"] = hit and after
        if now:
            act()
        return execute(sql, *rest)

    return watch


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("by", ["sid", "sub"])
def test_M60_at_whatever_moment_it_comes(
    engine: str,
    renewal: None,
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    moment: tuple[str, str, bool],
    by: str,
) -> None:
    """Whichever is written first, the row or the mark, the other one sees it."""
    verb, table, after = moment
    come: list[Response] = []
    named = {"sid": {"sub": REMOVE}, "sub": {"sid": REMOVE}}[by]

    watch = once(verb, table, after, lambda: come.append(sign_out(op, **named)))
    callback = browser.visit_op(browser.start("op"))
    browser.client.raise_request_exception = False
    with connections["default"].execute_wrapper(watch):
        response = browser.come_back(callback)
    assert_signed_out(come[0])
    assert response.status_code < 500
    assert who(browser) == ""
    assert rows() == set()


STEPS = {
    "before the mark": ("INSERT", "oidc_rp_logoutmark", False),
    "after the mark": ("INSERT", "oidc_rp_logoutmark", True),
    "before the rows are read": ("SELECT", "oidc_rp_session", False),
    "after the rows are read": ("SELECT", "oidc_rp_session", True),
    "before they end": ("UPDATE", "oidc_rp_session", False),
    "after they have ended": ("UPDATE", "oidc_rp_session", True),
    "before all is done": ("UPDATE", "oidc_rp_logoutmark", False),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("by", ["sid", "sub"])
def test_M60_at_whatever_step_a_login_gets_in_between(
    engine: str,
    renewal: None,
    op: OpenIDProvider,
    site: Site,
    browser: Browser,
    settings: Settings,
    step: tuple[str, str, bool],
    by: str,
) -> None:
    """The mark is written before anybody looks for rows: a login that comes from there on finds
    it. Another session is there, so that there is something to end."""
    verb, table, after = step
    Browser().sign_in("op")
    share_connection(settings)
    named = {"sid": {"sub": REMOVE}, "sub": {"sid": REMOVE}}[by]
    callback = browser.visit_op(browser.start("op"))
    browser.client.raise_request_exception = False
    came: list[int] = []

    watch = once(verb, table, after, lambda: came.append(browser.come_back(callback).status_code))
    with connections["default"].execute_wrapper(watch):
        assert_signed_out(sign_out(op, **named))
    assert came == [302 if step == STEPS["before the mark"] else 403]
    assert who(browser) == ""
    assert rows() == set()


def test_M60_a_logout_beats_a_refresh_in_flight(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """T18: what the refresh brings is not stored, and is revoked."""
    bound = signed_in_here(site, browser, op)
    expire()
    op.answer["token"] = during(lambda: sign_out(op))
    with pytest.raises(LoginRequired) as raised:
        usable_token(bound)
    assert raised.value.code == "grant.backchannel_logout"
    assert_closed(bound, "backchannel_logout")
    wait_until(lambda: to_revoke() == [])
    assert {kind for kind, _ in op.revocations} == {"refresh_token"}
    assert op.families_lost == 0
    newest = [*op._refresh_tokens][-1]
    assert ("refresh_token", newest) in op.revocations


def test_M60_a_renewal_of_the_session_in_flight(
    op: OpenIDProvider, site: Site, browser: Browser, renewal: None
) -> None:
    """By prompt=none, in a session that is logged out meanwhile."""
    site.has(SESSION_RENEWAL=60, SCOPES=["openid"], API_ORIGINS=[])
    browser.sign_in("op")
    Session.objects.update(renewed_at=DatabaseClock(-timedelta(minutes=5)))
    page = browser.client.get(
        "/home/", headers={"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    )
    assert page.status_code == 302
    op.answer["token"] = during(lambda: sign_out(op))
    response = browser.come_back(browser.visit_op(page.headers["Location"]))
    assert response.status_code in (302, 403)
    assert (who(browser), rows()) == ("", set())


# Threads, and connections of their own


@pytest.mark.parametrize(
    "database",
    [
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.servers),
        pytest.param("mariadb", marks=pytest.mark.servers),
    ],
)
def test_M57_with_threads_and_connections_of_their_own(database: str) -> None:
    """The tests of logout_in_threads.py: no thread can share SQLite in memory."""
    assert_passes("logout_in_threads", database)


# Anything at all


ANY = hypothesis_settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = ["iss", "aud", "iat", "exp", "nbf", "jti", "events", "sub", "sid", "nonce", "azp", "typ"]


def assert_answered(response: Response) -> None:
    assert response.status_code in (200, 400), response.status_code
    assert response.headers["Cache-Control"] == "no-store"
    assert [*response.cookies] == []
    assert StoredSession.objects.count() == 0


@ANY
@given(
    body=st.binary(max_size=200)
    | st.dictionaries(st.sampled_from(["logout_token", "a"]), st.text(max_size=50)).map(urlencode)
    | st.text(max_size=100),
    content_type=st.sampled_from([FORM, FORM + ";charset=utf-16", "text/plain", ""]),
)
def test_M57_whatever_is_posted(
    op: OpenIDProvider, browser: Browser, body: Any, content_type: str
) -> None:
    """200 or 400, never a failure, never a session."""
    assert_answered(send(body, content_type=content_type))


@ANY
@given(
    claims=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), VALUES, max_size=4),
    header=st.dictionaries(st.sampled_from(["typ", "kid", "alg", "crit", "jwk"]), VALUES),
)
def test_M57_whatever_is_signed(
    op: OpenIDProvider, browser: Browser, claims: dict[str, Any], header: dict[str, Any]
) -> None:
    """Claims that Python would write into JSON and no database would take among them."""
    assert_answered(send({"logout_token": op.logout_token(header=header, **forgive(claims))}))


def forgive(claims: dict[str, Any]) -> dict[str, Any]:
    """Without those that logout_token() takes for itself."""
    return {name: value for name, value in claims.items() if name not in ("header", "key", "alg")}


@ANY
@given(sid=st.text(max_size=300), sub=st.text(max_size=300), jti=st.text(max_size=300))
def test_M57_whatever_texts_name_somebody(
    op: OpenIDProvider, browser: Browser, sid: str, sub: str, jti: str
) -> None:
    for named in ({"sid": sid}, {"sid": REMOVE, "sub": sub}, {"sid": sid, "sub": sub}):
        assert_answered(sign_out(op, jti=jti, **named))
