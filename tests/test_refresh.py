"""The state machine of a grant (docs/refresh.md), transition by transition, at a strict OP.

Each test asserts what the OP was asked, what the caller got, what was lost, and what the row and
the timeline say afterwards.
"""

import contextlib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test import TestCase
from pytest_django import DjangoAssertNumQueries

from oidc_rp import circuit, closing, grants, journal, own_connection, refresh, signals
from oidc_rp.errors import LoginRequired, OPError, TemporarilyUnavailable
from oidc_rp.grants import Owner, Target
from oidc_rp.models import DatabaseClock, Event, Grant, ProviderCircuit, StoredAccessToken
from oidc_rp.protocol.tokens import AccessToken
from oidc_rp.refresh import ausable_token, expiry, usable_token
from oidc_rp.sealing import generate_key
from oidc_rp.testing import (
    REMOVE,
    Handler,
    OpenIDProvider,
    SigningKey,
    first,
    late,
    redirect_to,
    sending,
)
from oidc_rp.testing.browser import Browser
from tests.in_threads import assert_passes
from tests.tokens import (
    HOUR,
    Site,
    abandon,
    assert_at_rest,
    assert_closed,
    bound,
    during,
    enter_soft_window,
    every_token,
    expire,
    grant,
    history,
    hold,
    in_between,
    let_pass,
    owner,
    shown,
    signed_in,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "owner", "site"]

pytestmark = pytest.mark.django_db(transaction=True)


def token(owner: Owner, target: Target = refresh.ANY, **rejected: AccessToken) -> str:
    return usable_token(owner, target, **rejected).access_token.reveal()


def needs_login(owner: Owner, target: Target = refresh.ANY) -> str:
    """The code of the LoginRequired that a caller gets."""
    with pytest.raises(LoginRequired) as raised:
        usable_token(owner, target)
    return raised.value.code


def must_wait(owner: Owner) -> tuple[str, float]:
    """The code of the TemporarilyUnavailable that a caller gets, and the seconds to wait."""
    with pytest.raises(TemporarilyUnavailable) as raised:
        usable_token(owner)
    return raised.value.code, raised.value.retry_after


def good_for_the_op(op: OpenIDProvider, access_token: str) -> bool:
    issued = op._access_tokens[access_token]
    return not issued.grant.revoked


@pytest.fixture
def heard() -> Iterator[list[tuple[str, str]]]:
    """The signals that were sent: name, and reason where there is one."""
    received: list[tuple[str, str]] = []

    def refreshed(identity: Any, grant: Any, **_: Any) -> None:
        assert grant.identity == identity
        received.append(("tokens_refreshed", ""))

    def closed(identity: Any, grant: Any, reason: str, **_: Any) -> None:
        assert grant.identity == identity
        received.append(("grant_closed", reason))

    signals.tokens_refreshed.connect(refreshed)
    signals.grant_closed.connect(closed)
    yield received
    signals.tokens_refreshed.disconnect(refreshed)
    signals.grant_closed.disconnect(closed)


# T1: still good


def test_M55_T1_a_fresh_token_takes_one_statement_and_no_call(
    op: OpenIDProvider, owner: Owner, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    first_time = token(owner)
    with django_assert_num_queries(1):
        assert token(owner) == first_time
    assert op.refreshes == 0
    assert_at_rest(owner, generation=1, refreshes=0)
    assert history(owner) == []


def test_T1_a_users_durable_grant_is_found_by_its_provider(
    op: OpenIDProvider, owner: Owner
) -> None:
    assert token(Owner(owner.user_id, provider="op")) == token(owner)
    assert needs_login(Owner(owner.user_id, provider="other")) == "grant.none"
    assert needs_login(Owner(owner.user_id + 1, owner.grant)) == "grant.none"
    assert needs_login(Owner(owner.user_id, "0" * 32)) == "grant.none"


@pytest.mark.parametrize("lifetime", [10.0, 60.0, 300.0, HOUR, 86400.0])
def test_expiry_is_soft_first_and_the_jitter_is_a_grants_own(lifetime: float) -> None:
    """Soft: 60 s or 20 % before the end, and up to 10 % more; hard: 5 s or 10 %."""
    earliest, latest = expiry("ffff" * 8, lifetime)[0], expiry("0000" * 8, lifetime)[0]
    assert latest == lifetime - min(60.0, lifetime / 5)
    assert earliest == pytest.approx(latest - lifetime / 10, rel=1e-4)
    assert expiry("0000" * 8, lifetime)[1] == lifetime - min(5.0, lifetime / 10)


# T2: the soft window


def test_M55_T2_the_old_token_is_served_while_one_renews_it(
    op: OpenIDProvider, owner: Owner
) -> None:
    old = token(owner)
    enter_soft_window()
    assert token(owner) == old
    wait_until(lambda: grant(owner).generation == 2)
    assert token(owner) != old
    assert (op.refreshes, op.families_lost) == (1, 0)
    wait_until(lambda: history(owner) == [("refreshed", "")])
    assert_at_rest(owner, refreshes=1, refreshed_by=grants.worker())


def test_M55_T2_whoever_loses_the_claim_serves_the_old_token(
    op: OpenIDProvider, owner: Owner
) -> None:
    old = token(owner)
    enter_soft_window()
    hold(owner)
    assert token(owner) == old
    assert op.refreshes == 0
    assert grant(owner).lease_owner == "busy:1"


def test_T2_what_goes_wrong_meanwhile_is_not_the_callers_trouble(
    op: OpenIDProvider, owner: Owner
) -> None:
    old = token(owner)
    enter_soft_window()
    op.refresh_fault = "503"
    assert token(owner) == old
    wait_until(lambda: history(owner) == [("backing_off", "transport.status")])
    assert token(owner) == old
    assert op.refreshes == 1


# T3: expired


def test_M55_T3_T5_an_expired_token_is_renewed_by_one_call(
    op: OpenIDProvider, owner: Owner, heard: list[tuple[str, str]]
) -> None:
    old = token(owner)
    expire()
    new = token(owner)
    assert new != old
    assert good_for_the_op(op, new)
    assert token(owner) == new
    assert (op.refreshes, op.rotations, op.families_lost) == (1, 1, 0)
    row = assert_at_rest(owner, generation=2, refreshes=1, refreshed_by=grants.worker())
    assert abs((row.refreshed_at - row.now).total_seconds()) < 60
    assert history(owner) == [("refreshed", "")]
    assert heard == [("tokens_refreshed", "")]


def test_M55_T3_generation_after_generation(op: OpenIDProvider, owner: Owner) -> None:
    for generation in range(2, 8):
        expire()
        assert good_for_the_op(op, token(owner))
        assert_at_rest(owner, generation=generation)
    assert (op.refreshes, op.families_lost) == (6, 0)


def test_T3_an_inactive_user_gets_nothing_and_the_op_is_not_asked(
    op: OpenIDProvider, owner: Owner
) -> None:
    """M38, at token use and at refresh; update() sends no signal that could end the grant."""
    users = get_user_model().objects
    users.update(is_active=False)
    assert needs_login(owner) == "account.inactive"
    expire()
    assert needs_login(owner) == "account.inactive"
    with pytest.raises(LoginRequired) as raised:
        refresh.renew(refresh.Want(owner.grant, refresh.ANY))
    assert raised.value.code == "account.inactive"
    assert op.refreshes == 0
    users.update(is_active=True)
    assert good_for_the_op(op, token(owner))


def test_T3_a_grant_without_a_refresh_token_ends_with_its_access_token(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    site.has(SCOPES=["openid", "calendar"])
    owner = signed_in(browser, op)
    assert good_for_the_op(op, token(owner))
    enter_soft_window()
    assert good_for_the_op(op, token(owner))
    expire()
    assert needs_login(owner) == "grant.no_refresh_token"
    assert op.refreshes == 0


def test_T3_another_client_or_op_never_sees_the_refresh_token(
    op: OpenIDProvider, owner: Owner, site: Site, signing_key: SigningKey
) -> None:
    expire()
    site.has(CLIENT_ID="another")
    assert needs_login(owner) == "grant.client_changed"
    with OpenIDProvider(keys=[signing_key]) as other:
        site.has(ISSUER=other.issuer)
        assert needs_login(owner) == "grant.issuer_changed"
        assert other.calls("token") == 0
    site.has()
    assert good_for_the_op(op, token(owner))
    assert op.refreshes == 1


def test_T3_a_provider_that_left_the_settings_may_come_back(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    expire()
    site.has(ISSUER="not a URL")
    assert must_wait(owner) == ("refresh.provider", 30.0)
    site.has()
    assert good_for_the_op(op, token(owner))


# T4: somebody else is calling


def test_M55_T4_whoever_waits_in_vain_never_calls(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(top={"REFRESH_WAIT": 1})
    expire()
    hold(owner)
    assert must_wait(owner) == ("refresh.waiting", 1.0)
    assert op.refreshes == 0
    assert grant(owner).lease_owner == "busy:1"
    assert history(owner) == []


# T5: what an answer holds


def test_T5_no_new_refresh_token_keeps_the_old_one(op: OpenIDProvider, owner: Owner) -> None:
    op.rotation = False
    op.refresh_response["refresh_token"] = REMOVE
    for generation in (2, 3):
        expire()
        assert good_for_the_op(op, token(owner))
        assert_at_rest(owner, generation=generation)
    sent = [request.form["refresh_token"] for request in op.requests_to("token")]
    assert sent[0] == sent[1]


def test_T5_no_expires_in_is_used_until_an_api_refuses_it(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_response["expires_in"] = REMOVE
    expire()
    usable = usable_token(owner)
    assert StoredAccessToken.objects.get().expires_at is None
    assert usable.fresh_for == pytest.approx(86400, abs=60)
    assert token(owner) == usable.access_token.reveal()
    assert op.refreshes == 1
    assert token(owner, rejected=usable.access_token) != usable.access_token.reveal()
    assert op.refreshes == 2


def test_T5_no_lifetime_at_all_is_one_call_for_each_use(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_response["expires_in"] = 0
    expire()
    assert token(owner) != token(owner)
    assert (op.refreshes, op.families_lost) == (2, 0)


def test_T5_another_scope_is_told(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_response["scope"] = "openid"
    expire()
    assert usable_token(owner).scope == "openid"
    assert StoredAccessToken.objects.get().granted_scope == "openid"
    assert token(owner)
    assert op.refreshes == 1


@pytest.mark.parametrize(
    ("member", "value", "code"),
    [
        ("token_type", "mac", "token.token_type"),
        ("access_token", REMOVE, "token.access_token"),
        ("expires_in", "soon", "token.expires_in"),
        ("scope", ["calendar"], "token.scope"),
    ],
)
def test_T5_the_new_refresh_token_is_kept_whatever_else_is_wrong(
    op: OpenIDProvider, owner: Owner, member: str, value: object, code: str
) -> None:
    op.refresh_response[member] = value
    expire()
    error, seconds = must_wait(owner)
    assert error == "refresh.backing_off"
    assert 0 < seconds <= 2
    row = grant(owner)
    assert (row.generation, row.status, row.last_error, row.failures) == (2, "open", code, 1)
    assert history(owner) == [("refresh_failed", code)]
    del op.refresh_response[member]
    let_pass()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (2, 0)
    assert_at_rest(owner, generation=3)


def test_T5_answers_of_no_use_are_asked_for_at_growing_intervals(
    op: OpenIDProvider, owner: Owner
) -> None:
    op.refresh_response["expires_in"] = "soon"
    expire()
    for failures in range(1, 6):
        for _ in range(2):
            error, seconds = must_wait(owner)
            assert error == "refresh.backing_off"
            assert 0 < seconds <= 2**failures
        assert (grant(owner).failures, op.refreshes) == (failures, failures)
        let_pass()
    del op.refresh_response["expires_in"]
    assert good_for_the_op(op, token(owner))
    assert_at_rest(owner, generation=7)


# T6: somebody else's result is stored


def test_M55_T6_a_late_result_is_dropped_and_not_revoked(op: OpenIDProvider, owner: Owner) -> None:
    """A new login of the same person comes while the OP answers (T15)."""
    expire()
    op.answer["token"] = first(1, during(lambda: signed_in(Browser(), op)))
    new = token(owner)
    assert good_for_the_op(op, new)
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2, refreshes=0)
    assert ("late_result", "") in history(owner)
    expire()
    assert good_for_the_op(op, token(owner))
    assert op.families_lost == 0


def test_M55_T5_a_slow_winner_is_stored_although_its_lease_is_gone(
    op: OpenIDProvider, owner: Owner
) -> None:
    """The generation alone says whose result counts."""
    expire()
    op.answer["token"] = first(1, during(lambda: abandon(owner, "thief:1")))
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2, refreshes=1)


# T7: the database refuses the new token

REFUSING = {
    "sqlite": [
        "CREATE TRIGGER refusing BEFORE UPDATE OF generation ON oidc_rp_grant "
        "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION refusing() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'disk full'; END $$",
        "CREATE TRIGGER refusing BEFORE UPDATE OF generation ON oidc_rp_grant "
        "FOR EACH ROW EXECUTE FUNCTION refusing()",
    ],
    "mysql": [
        "CREATE TRIGGER refusing BEFORE UPDATE ON oidc_rp_grant FOR EACH ROW "
        "IF NEW.generation <> OLD.generation THEN "
        "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'disk full'; END IF"
    ],
}
ACCEPTING = {
    "sqlite": ["DROP TRIGGER IF EXISTS refusing"],
    "postgresql": ["DROP FUNCTION IF EXISTS refusing CASCADE"],
    "mysql": ["DROP TRIGGER IF EXISTS refusing"],
}


def run_sql(statements: dict[str, list[str]]) -> None:
    with connection.cursor() as cursor:
        for statement in statements[connection.vendor]:
            cursor.execute(statement)


@contextmanager
def refusing_database() -> Iterator[None]:
    """The database stores no new generation."""
    run_sql(REFUSING)
    try:
        yield
    finally:
        run_sql(ACCEPTING)


def test_M55_T7_a_token_that_cannot_be_stored_waits_in_the_journal(
    op: OpenIDProvider, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    expire()
    with refusing_database():
        new = token(owner)
        assert good_for_the_op(op, new)
        assert [entry.grant for entry in journal.waiting()] == [owner.grant]
        assert grant(owner).generation == 1
    assert "rotation at risk" in caplog.text
    assert token(owner) == new
    wait_until(lambda: journal.waiting() == ())
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2, refreshes=1)
    wait_until(lambda: ("rotation_stored_late", "") in history(owner))
    expire()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (2, 0)


def test_M55_T7_nobody_calls_with_the_spent_token_while_the_journal_has_its_successor(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(top={"REFRESH_WAIT": 1})
    expire()
    with refusing_database():
        token(owner)
        with pytest.raises(TemporarilyUnavailable):
            usable_token(owner)
        assert (op.refreshes, op.families_lost) == (1, 0)
    assert good_for_the_op(op, token(owner))
    wait_until(lambda: journal.waiting() == ())
    assert (op.refreshes, op.families_lost) == (1, 0)


# T8: invalid_grant


def test_M55_T8_a_grant_that_the_op_ended_is_closed(
    op: OpenIDProvider, owner: Owner, heard: list[tuple[str, str]]
) -> None:
    op.end_grants()
    expire()
    assert needs_login(owner) == "grant.revoked_or_expired"
    assert needs_login(owner) == "grant.revoked_or_expired"
    assert (op.refreshes, op.families_lost, op.revocations) == (1, 0, [])
    row = assert_closed(owner, "revoked_or_expired")
    assert row.last_error == "token.invalid_grant"
    assert history(owner) == [("closed", "revoked_or_expired")]
    assert heard == [("grant_closed", "revoked_or_expired")]
    assert to_revoke() == []


def test_T8_its_access_token_is_used_to_its_end(op: OpenIDProvider, owner: Owner) -> None:
    old = token(owner)
    op.refresh_fault = "invalid_grant"
    enter_soft_window()
    assert token(owner) == old
    wait_until(lambda: grant(owner).status == "closed")
    assert token(owner) == old
    expire()
    assert needs_login(owner) == "grant.revoked_or_expired"
    assert op.refreshes == 1


def test_M55_T8_after_a_lost_answer_the_reason_is_rotation_lost(
    op: OpenIDProvider, owner: Owner
) -> None:
    op.refresh_fault, op.refresh_fault_times = "reset_after_rotation", 1
    expire()
    assert needs_login(owner) == "grant.rotation_lost"
    assert (op.refreshes, op.families_lost) == (2, 1)
    assert_closed(owner, "rotation_lost")
    assert history(owner) == [("in_doubt", "transport.broken"), ("closed", "rotation_lost")]


def test_M55_T8_it_is_not_believed_when_a_login_came_meanwhile(
    op: OpenIDProvider, owner: Owner
) -> None:
    def end_and_sign_in() -> None:
        op.end_grants()
        signed_in(Browser(), op)

    def refused(handler: Handler) -> None:
        del op.answer["token"]  # the login asks there, too
        in_between(end_and_sign_in)
        handler.send(handler.genuine())

    expire()
    op.answer["token"] = refused
    assert good_for_the_op(op, token(owner))
    assert op.refreshes == 1
    assert_at_rest(owner, generation=2)
    assert "closed" not in dict(history(owner))


# T9: it is this site's client that is refused


@pytest.mark.parametrize(
    "error",
    "invalid_client unauthorized_client invalid_request invalid_scope "
    "unsupported_grant_type".split(),
)
def test_M55_T9_a_refused_client_opens_the_circuit_and_ends_no_grant(
    op: OpenIDProvider, owner: Owner, heard: list[tuple[str, str]], error: str
) -> None:
    expire()
    op.refresh_fault = error
    for _ in range(3):
        code, seconds = must_wait(owner)
        assert code == "refresh.circuit_open"
        assert 0 < seconds <= circuit.FIRST
    assert (op.refreshes, op.families_lost) == (1, 0)
    row = grant(owner)
    assert (row.status, row.generation, row.lease_until) == ("open", 1, None)
    assert (row.last_error, row.in_doubt_since) == (f"token.{error}", None)
    assert history(owner) == [("circuit_opened", f"token.{error}")]
    assert heard == []
    op.refresh_fault = ""
    ProviderCircuit.objects.update(not_before=DatabaseClock())
    # What may be this grant's own fault lets others ask first.
    resting = grant(owner).not_before is not None
    assert resting is (error in ("invalid_request", "invalid_scope"))
    Grant.objects.update(not_before=None)
    assert good_for_the_op(op, token(owner))
    assert not ProviderCircuit.objects.exists()
    assert_at_rest(owner, generation=2)


@pytest.mark.parametrize(
    ("endpoint", "code"),
    [
        ("https://127.0.0.1:{port}/token", "transport.tls"),
        ("https://nowhere.invalid/token", "transport.name"),
    ],
)
def test_M55_T9_so_does_an_op_that_cannot_be_the_one_meant(
    op: OpenIDProvider, owner: Owner, site: Site, endpoint: str, code: str
) -> None:
    expire()
    site.learns(token_endpoint=endpoint.format(port=urlsplit(op.origin).port))
    assert must_wait(owner)[0] == "refresh.circuit_open"
    assert op.refreshes == 0
    assert history(owner) == [("circuit_opened", code)]
    row = grant(owner)
    assert (row.generation, row.status, row.in_doubt_since) == (1, "open", None)


@pytest.mark.parametrize("error", ["invalid_target", "invalid_scope", "invalid_request"])
def test_T9_a_refused_target_is_nobody_elses_trouble(
    op: OpenIDProvider, owner: Owner, error: str
) -> None:
    op.refresh_fault, op.refresh_fault_times = error, 1
    with pytest.raises(OPError) as raised:
        usable_token(owner, Target("https://graph.example", "calendar"))
    assert raised.value.code == f"token.{error}"
    assert not ProviderCircuit.objects.exists()
    assert (grant(owner).lease_until, grant(owner).status) == (None, "open")
    expire()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (2, 0)


@pytest.mark.parametrize("error", ["invalid_request", "invalid_scope"])
def test_M55_T9_what_one_grant_is_refused_keeps_the_others_waiting_once(
    op: OpenIDProvider, owner: Owner, error: str
) -> None:
    """The next to ask is another one, who is answered."""
    op.person["sub"] = "somebody-else"
    other = signed_in(Browser(), op)
    expire()
    op.refresh_fault, op.refresh_fault_times = error, 1
    assert must_wait(owner)[0] == "refresh.circuit_open"
    assert 0 < circuit.seconds_open("op") <= circuit.FIRST
    row, opened = grant(owner), ProviderCircuit.objects.get()
    longer = (row.not_before - opened.not_before).total_seconds()
    assert longer >= circuit.FIRST  # equal, where both are written in one tick of the clock
    assert (row.not_before - row.now).total_seconds() <= 2 * circuit.FIRST
    ProviderCircuit.objects.update(not_before=DatabaseClock())
    assert must_wait(owner)[0] == "refresh.backing_off"
    assert op.refreshes == 1
    assert good_for_the_op(op, token(other))
    assert not ProviderCircuit.objects.exists()
    let_pass()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (3, 0)


def test_T9_a_target_that_was_refused_is_not_asked_for_again_at_once(
    op: OpenIDProvider, owner: Owner
) -> None:
    graph = Target("https://graph.example")
    op.refresh_fault, op.refresh_fault_times = "invalid_target", 1
    errors = []
    for _ in range(3):
        with pytest.raises(OPError) as raised:
            usable_token(owner, graph)
        assert raised.value.code == "token.invalid_target"
        errors.append(raised.value)
    assert len({id(error) for error in errors}) == 3
    assert op.refreshes == 1
    assert good_for_the_op(op, token(owner, Target("https://mail.example")))
    assert op.refreshes == 2


@pytest.mark.parametrize("error", ["invalid_target", "interaction_required"])
def test_M53_no_token_in_the_debug_page_of_what_an_op_refuses(
    op: OpenIDProvider, owner: Owner, error: str
) -> None:
    """Nor a client secret, where the error comes from the caller's own thread."""
    op.answer["token"] = sending({"error": error}, 400)
    expire()
    with pytest.raises((OPError, LoginRequired)) as raised:
        usable_token(owner)
    page = shown(raised.value)
    assert error in page
    issued = every_token(op)
    assert len(issued) == 2
    assert [secret for secret in [*issued, op.client_secret] if secret in page] == []


# T10: the OP is busy


@pytest.mark.parametrize(
    ("fault", "code", "retry_after"),
    [
        ("429", "token.error", "20"),
        ("503", "transport.status", "20"),
        ("503_json", "token.temporarily_unavailable", "20"),
        ("500", "transport.status", None),
        ("server_error", "token.server_error", None),
    ],
)
def test_M55_T10_a_busy_op_is_left_in_peace(
    op: OpenIDProvider, owner: Owner, fault: str, code: str, retry_after: str | None
) -> None:
    op.refresh_fault = fault
    op.retry_after = retry_after or "0"
    expire()
    for _ in range(3):
        error, seconds = must_wait(owner)
        assert error == "refresh.backing_off"
        assert 15 < seconds <= 20 if retry_after else 0 < seconds <= 2
    row = grant(owner)
    assert (row.last_error, row.failures, row.generation) == (code, 1, 1)
    assert (row.lease_until, row.in_doubt_since, row.status) == (None, None, "open")
    let_pass()
    assert must_wait(owner)[0] == "refresh.backing_off"
    assert grant(owner).failures == 2
    assert history(owner) == [("backing_off", code)] * 2
    op.refresh_fault = ""
    let_pass()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (3, 0)
    assert_at_rest(owner, generation=2)


def test_M55_T10_the_old_token_is_served_while_it_works(op: OpenIDProvider, owner: Owner) -> None:
    old = token(owner)
    op.refresh_fault = "429"
    op.retry_after = "20"
    enter_soft_window()
    for _ in range(3):
        assert token(owner) == old
        wait_until(lambda: history(owner) == [("backing_off", "token.error")])
    assert op.refreshes == 1


def test_T10_a_redirect_is_not_followed(
    op: OpenIDProvider, owner: Owner, signing_key: SigningKey
) -> None:
    """M41: neither refresh token nor secret go elsewhere."""
    with OpenIDProvider(keys=[signing_key]) as elsewhere:
        op.answer["token"] = redirect_to(elsewhere.url("token"))
        expire()
        assert must_wait(owner)[0] == "refresh.backing_off"
        assert elsewhere.requests == []
    assert history(owner) == [("backing_off", "transport.redirect")]


def test_T10_an_op_that_wants_to_see_the_person(op: OpenIDProvider, owner: Owner) -> None:
    op.answer["token"] = sending({"error": "interaction_required"}, 400)
    expire()
    assert needs_login(owner) == "refresh.interaction_required"
    assert (op.refreshes, grant(owner).status) == (1, "open")
    assert history(owner) == [("backing_off", "token.interaction_required")]


# T11: nothing was sent


def test_M55_T11_an_op_out_of_reach_has_spent_nothing(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    endpoint = op.metadata["token_endpoint"]
    expire()
    site.learns(token_endpoint=f"http://127.0.0.1:{closed_port()}/token")
    assert must_wait(owner)[0] == "refresh.backing_off"
    row = grant(owner)
    assert (row.last_error, row.failures, row.in_doubt_since) == ("transport.broken", 1, None)
    assert history(owner) == [("backing_off", "transport.broken")]
    site.learns(token_endpoint=endpoint)
    let_pass()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_at_rest(owner, generation=2)


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


# T12, T14: sent, and no answer


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("reset_before_rotation", "transport.broken"),
        ("closed_before_rotation", "transport.broken"),
        ("reset_after_rotation", "transport.broken"),
        ("closed_after_rotation", "transport.broken"),
        ("truncated_after_rotation", "transport.broken"),
        ("page_after_rotation", "token.json"),
    ],
)
def test_M55_T12_T14_a_lost_answer_is_asked_for_again_at_once(
    op: OpenIDProvider, owner: Owner, fault: str, code: str
) -> None:
    op.overlap = 10.0
    op.refresh_fault, op.refresh_fault_times = fault, 1
    expire()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (2, 0)
    sent = [request.form["refresh_token"] for request in op.requests_to("token")]
    assert sent[0] == sent[1]
    assert history(owner) == [("in_doubt", code), ("refreshed", "")]
    assert_at_rest(owner, generation=2, refreshes=1)


def test_M55_T12_an_op_that_is_too_slow(op: OpenIDProvider, owner: Owner, site: Site) -> None:
    """It has rotated, and its answer comes after our patience has ended."""
    site.has(TIMEOUT=1.0)
    op.overlap = 10.0
    expire()
    op.answer["token"] = first(1, late(1.5))
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (2, 0)
    assert history(owner) == [("in_doubt", "transport.timeout"), ("refreshed", "")]


def test_M55_T12_in_doubt_for_longer_it_is_asked_less_and_less(
    op: OpenIDProvider, owner: Owner
) -> None:
    op.refresh_fault = "closed_before_rotation"
    expire()
    assert must_wait(owner)[0] == "refresh.backing_off"
    row = grant(owner)
    assert (op.refreshes, row.failures, row.status) == (2, 1, "open")
    assert row.in_doubt_since is not None
    let_pass()
    assert must_wait(owner)[0] == "refresh.backing_off"
    assert (op.refreshes, grant(owner).failures) == (3, 2)
    assert grant(owner).in_doubt_since == row.in_doubt_since
    op.refresh_fault = ""
    let_pass()
    assert good_for_the_op(op, token(owner))
    assert op.families_lost == 0
    assert_at_rest(owner, generation=2)


def test_M55_T14_an_op_without_overlap_is_not_asked_again(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    """IN_DOUBT = "reauth": the family lives on, should the token not have been spent."""
    site.has(IN_DOUBT="reauth")
    op.refresh_fault, op.refresh_fault_times = "reset_after_rotation", 1
    expire()
    assert needs_login(owner) == "grant.rotation_lost"
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_closed(owner, "rotation_lost")
    assert history(owner) == [("in_doubt", "transport.broken"), ("closed", "rotation_lost")]


# T13: a worker has died


def test_M55_T13_a_lease_that_ended_without_a_result_is_in_doubt(
    op: OpenIDProvider, owner: Owner
) -> None:
    expire()
    abandon(owner, "dead:1")
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert history(owner) == [("in_doubt", "refresh.lease_ended"), ("refreshed", "")]
    assert Event.objects.get(name="in_doubt").actor == "dead:1"
    assert_at_rest(owner, generation=2)


def test_M55_T13_T8_the_reason_is_rotation_lost_when_it_had_spent_the_token(
    op: OpenIDProvider, owner: Owner
) -> None:
    sealed = Grant.objects.filter(pk=owner.grant).values("refresh_token", "generation").get()
    expire()
    token(owner)
    Grant.objects.filter(pk=owner.grant).update(**sealed)  # the store that never came
    expire()
    abandon(owner)
    assert needs_login(owner) == "grant.rotation_lost"
    assert (op.refreshes, op.families_lost) == (2, 1)
    assert_closed(owner, "rotation_lost")
    assert history(owner)[1:] == [("in_doubt", "refresh.lease_ended"), ("closed", "rotation_lost")]


# T15: see test_grants


def test_M55_T15_a_new_login_opens_what_was_closed(
    op: OpenIDProvider, owner: Owner, browser: Browser
) -> None:
    op.end_grants()
    expire()
    assert needs_login(owner) == "grant.revoked_or_expired"
    assert signed_in(browser, op) == owner
    assert good_for_the_op(op, token(owner))
    assert_at_rest(owner, close_reason="", closed_at=None)


# T16: an API says that the token is invalid


def test_M55_T16_a_rejected_token_is_renewed_once_in_a_while(
    op: OpenIDProvider, owner: Owner
) -> None:
    old = usable_token(owner).access_token
    new = usable_token(owner, rejected=old).access_token
    assert new != old
    assert usable_token(owner, rejected=old).access_token == new
    assert op.refreshes == 1
    assert usable_token(owner, rejected=new).access_token == new
    assert op.refreshes == 1
    Grant.objects.update(forced_at=DatabaseClock(timedelta(seconds=-31)))
    assert usable_token(owner, rejected=new).access_token != new
    assert (op.refreshes, op.families_lost) == (2, 0)


def test_M55_T16_another_token_is_not_the_one_that_was_rejected(
    op: OpenIDProvider, owner: Owner
) -> None:
    mine = token(owner)
    assert token(owner, rejected=AccessToken("somebody-elses")) == mine
    assert op.refreshes == 0
    assert grant(owner).forced_at is None


# T17: no DPoP here


def test_T17_an_op_that_asks_for_a_nonce_is_not_asked_in_a_loop(
    op: OpenIDProvider, owner: Owner
) -> None:
    op.refresh_fault = "use_dpop_nonce"
    expire()
    assert must_wait(owner)[0] == "refresh.backing_off"
    assert op.refreshes == 1
    assert history(owner) == [("backing_off", "token.use_dpop_nonce")]


# T18: logout


def test_M55_T18_whoever_comes_late_revokes_what_it_got(
    op: OpenIDProvider, owner: Owner, heard: list[tuple[str, str]]
) -> None:
    expire()
    op.answer["token"] = first(1, during(lambda: closing.end(owner.grant, grants.LOGOUT)))
    assert needs_login(owner) == "grant.logout"
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert_closed(owner, "logout")
    wait_until(lambda: len(op.revocations) == 2)
    assert {kind for kind, _ in op.revocations} == {"refresh_token"}
    assert {revoked for _, revoked in op.revocations} == {
        *op._refresh_tokens,
        *op._spent_refresh_tokens,
    }
    wait_until(lambda: to_revoke() == [])
    assert not StoredAccessToken.objects.exists()
    assert history(owner) == [("closed", "logout")]
    assert heard == [("grant_closed", "logout")]


def test_M55_T18_the_grant_of_a_deleted_user(op: OpenIDProvider, owner: Owner) -> None:
    expire()
    op.answer["token"] = first(1, during(lambda: get_user_model().objects.all().delete()))
    assert needs_login(owner) == "grant.none"
    wait_until(lambda: len(op.revocations) == 2)
    wait_until(lambda: to_revoke() == [])
    assert not Grant.objects.exists()


# T19: the refreshed ID Token


@pytest.mark.parametrize("claim", ["sub", "iss"])
def test_M55_T19_an_answer_for_somebody_else_ends_the_grant(
    op: OpenIDProvider, owner: Owner, heard: list[tuple[str, str]], claim: str
) -> None:
    op.refreshed_id_token_claims[claim] = "https://somebody.example"
    expire()
    assert needs_login(owner) == "grant.subject_changed"
    assert needs_login(owner) == "grant.subject_changed"
    assert op.refreshes == 1
    assert_closed(owner, "subject_changed")
    assert history(owner) == [
        ("id_token_refused", f"id_token.{claim}"),
        ("closed", "subject_changed"),
    ]
    assert heard == [("grant_closed", "subject_changed")]
    wait_until(lambda: len(op.revocations) == 1)
    assert not StoredAccessToken.objects.exists()


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"aud": "another-client"}, "id_token.aud"),
        ({"exp": 1}, "id_token.exp"),
        ({"at_hash": "x"}, "id_token.at_hash"),
    ],
)
def test_M55_T19_an_invalid_id_token_changes_nothing(
    op: OpenIDProvider, owner: Owner, claims: dict[str, Any], code: str
) -> None:
    op.refreshed_id_token_claims |= claims
    expire()
    assert good_for_the_op(op, token(owner))
    assert (op.refreshes, op.families_lost) == (1, 0)
    assert history(owner) == [("id_token_refused", code), ("refreshed", "")]
    assert_at_rest(owner, generation=2)


def test_M55_T19_a_forged_one_does_not_end_the_grant(op: OpenIDProvider, owner: Owner) -> None:
    stranger = SigningKey.generate("RS256", kid=op.keys[0].kid)
    op.make_id_token = lambda claims, header: op.sign({**claims, "sub": "x"}, header, stranger)
    expire()
    assert good_for_the_op(op, token(owner))
    assert history(owner)[0][0] == "id_token_refused"
    assert_at_rest(owner, generation=2)


def test_T19_no_id_token_at_all(op: OpenIDProvider, owner: Owner) -> None:
    op.id_token_on_refresh = False
    expire()
    assert good_for_the_op(op, token(owner))
    assert history(owner) == [("refreshed", "")]


# Several APIs


def test_M55_each_api_has_its_own_token(op: OpenIDProvider, owner: Owner) -> None:
    graph, mail = Target("https://graph.example"), Target("https://mail.example", "openid")
    tokens = [token(owner, target) for target in (refresh.ANY, graph, mail)]
    assert len(set(tokens)) == 3
    assert [token(owner, target) for target in (refresh.ANY, graph, mail)] == tokens
    assert (op.refreshes, op.families_lost) == (2, 0)
    asked = [request.form.get("resource") for request in op.requests_to("token")]
    assert asked == [["https://graph.example"], ["https://mail.example"]]
    assert [op._access_tokens[each].audience for each in tokens] == ["", *map(str, FOR_WHOM)]
    assert usable_token(owner, mail).scope == "openid"


FOR_WHOM = ("https://graph.example", "https://mail.example")


# M51, M53: what is stored, and what leaks


def flipped(envelope: str) -> str:
    """The same with one bit of the ciphertext turned over."""
    place = len(envelope) - 10
    return envelope[:place] + ("A" if envelope[place] != "A" else "B") + envelope[place + 1 :]


def test_M51_a_flipped_bit_in_the_refresh_token_closes_the_grant(
    op: OpenIDProvider, owner: Owner
) -> None:
    sealed = Grant.objects.get().refresh_token
    Grant.objects.update(refresh_token=flipped(sealed))
    assert token(owner)
    expire()
    assert needs_login(owner) == "grant.seal_broken"
    assert op.refreshes == 0
    row = assert_closed(owner, "seal_broken")
    assert row.last_error == "seal.broken"
    assert history(owner) == [("closed", "seal_broken")]


def test_M51_a_flipped_bit_in_the_access_token_is_a_new_one(
    op: OpenIDProvider, owner: Owner
) -> None:
    stored = StoredAccessToken.objects.get()
    stored.access_token = flipped(stored.access_token)
    stored.save()
    assert good_for_the_op(op, token(owner))
    assert op.refreshes == 1
    assert_at_rest(owner, generation=2)


def test_M51_a_token_of_another_row_does_not_open(op: OpenIDProvider, owner: Owner) -> None:
    op.person["sub"] = "somebody-else"
    other = signed_in(Browser(), op)
    stolen = Grant.objects.get(pk=other.grant)
    Grant.objects.filter(pk=owner.grant).update(refresh_token=stolen.refresh_token)
    expire()
    assert needs_login(owner) == "grant.seal_broken"
    assert op.refreshes == 0


def test_M52_a_missing_key_is_not_the_end(op: OpenIDProvider, owner: Owner, site: Site) -> None:
    before = grant(owner)
    for keys in ([generate_key()], ["no key at all"]):
        site.has(top={"TOKEN_KEYS": keys})
        expire()
        code, seconds = must_wait(owner)
        assert code in ("seal.key_unknown", "configuration.token_keys")
        assert seconds > 0
    row = grant(owner)
    assert (row.status, row.generation) == ("open", before.generation)
    assert (row.refresh_token, row.lease_until) == (before.refresh_token, None)
    assert op.refreshes == 0
    site.has()
    assert good_for_the_op(op, token(owner))
    assert_at_rest(owner, generation=2)


def test_M53_no_token_in_logs_or_tables(
    op: OpenIDProvider, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    """Through success, faults and the end; at DEBUG, and with every column of every table."""
    caplog.set_level(logging.DEBUG)
    seen = []
    for fault in ("", "reset_before_rotation", "503", "invalid_client", "page_after_rotation"):
        op.overlap = 10.0
        op.refresh_fault, op.refresh_fault_times = fault, 1
        expire()
        with contextlib.suppress(TemporarilyUnavailable):
            usable = usable_token(owner)
            seen.append(repr(usable))
        let_pass()
        ProviderCircuit.objects.all().delete()
        usable_token(owner, Target("https://graph.example"))
        seen.append(dump())
    closing.end(owner.grant, grants.LOGOUT)
    wait_until(lambda: to_revoke() == [])
    seen += [dump(), caplog.text, *(str(vars(record)) for record in caplog.records)]
    issued = every_token(op)
    assert len(issued) > 10
    assert [secret for secret in issued if any(secret in text for text in seen)] == []
    assert op.client_secret not in "".join(seen)


def dump() -> str:
    """All that is in the database."""
    found = []
    with connection.cursor() as cursor:
        for model in apps.get_models():
            cursor.execute(f"SELECT * FROM {model._meta.db_table}")
            found += map(str, cursor.fetchall())
    assert len(found) > 10
    return "\n".join(found)


# Whose connection, whose thread


def test_M55_asyncio_gets_tokens_the_same_way(op: OpenIDProvider, owner: Owner) -> None:
    async def two() -> tuple[str, str]:
        first_one = await ausable_token(owner)
        return first_one.access_token.reveal(), (await ausable_token(owner)).access_token.reveal()

    expire()
    tokens = async_to_sync(two)()
    assert tokens[0] == tokens[1] == token(owner)
    assert op.refreshes == 1


class InATestCase(TestCase):
    """What a site's own tests are: our connection is the one that sees their data."""

    def test_the_refresh_shares_its_connection(self) -> None:
        assert own_connection.must_share("default")
        assert not own_connection.caller_may_roll_back("default")


def test_OWN_CONNECTION_False_is_the_callers_connection_always(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(top={"OWN_CONNECTION": False})
    assert own_connection.must_share("default")
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        new = token(owner)
        assert grant(owner).generation == 2
        raise ZeroDivisionError
    assert grant(owner).generation == 1
    assert token(owner) == new
    assert_at_rest(owner, generation=2)
    assert ("rotation_stored_late", "") in history(owner)
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_two_refreshes_that_one_rollback_undoes(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    """Two APIs in one view: the second token is the successor of one that was never stored."""
    site.has(top={"OWN_CONNECTION": False})
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        token(owner)
        token(owner, Target("https://graph.example"))
        raise ZeroDivisionError
    assert grant(owner).generation == 1
    assert good_for_the_op(op, token(owner))
    assert op.families_lost == 0
    expire()
    assert good_for_the_op(op, token(owner))
    assert op.families_lost == 0
    assert journal.waiting() == ()


def test_M55_the_next_request_finds_what_a_rollback_undid(
    op: OpenIDProvider, owner: Owner, site: Site, browser: Browser
) -> None:
    site.has(top={"OWN_CONNECTION": False})
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        token(owner)
        raise ZeroDivisionError
    browser.client.get("/home/")
    assert_at_rest(owner, generation=2)


def test_M55_with_threads_and_connections_of_its_own() -> None:
    """The tests of refresh_in_threads.py on a SQLite file: no thread can share one in memory."""
    assert_passes("refresh_in_threads")
