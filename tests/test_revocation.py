"""Revocation (RFC 7009): after commit, again until the OP has understood, to nobody else."""

import contextlib
import logging
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction

from oidc_rp import closing, grants, journal, refresh, revocation, upkeep
from oidc_rp.errors import LoginRequired
from oidc_rp.grants import Owner
from oidc_rp.models import DatabaseClock, Grant, Identity, PendingRevocation
from oidc_rp.refresh import usable_token
from oidc_rp.sealing import generate_key
from oidc_rp.testing import OpenIDProvider, SigningKey, first, raw, reset, sending
from oidc_rp.testing.browser import Browser
from tests.tokens import (
    Site,
    assert_closed,
    bound,
    during,
    expire,
    grant,
    history,
    make_revocations_due,
    owner,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "owner", "site"]

pytestmark = pytest.mark.django_db(transaction=True)


def refresh_tokens(op: OpenIDProvider) -> list[tuple[str, str]]:
    return [("refresh_token", token) for token in op._refresh_tokens]


def revoked(op: OpenIDProvider) -> list[tuple[str, str]]:
    """What the OP was told, once nothing is left to tell."""
    wait_until(lambda: to_revoke() == [])
    return op.revocations


def unlink(owner: Owner) -> None:
    Identity.objects.get(user=owner.user_id).delete()


def deactivate(owner: Owner) -> None:
    user = get_user_model().objects.get(pk=owner.user_id)
    user.is_active = False
    user.save()


def delete(owner: Owner) -> None:
    get_user_model().objects.get(pk=owner.user_id).delete()


def end(owner: Owner) -> None:
    assert closing.end(owner.grant, grants.LOGOUT)


ENDINGS: dict[str, Any] = {
    "unlinked": unlink,
    "deactivated": deactivate,
    "deleted": delete,
    "logged out": end,
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_M55_T18_the_refresh_token_is_revoked_after_commit(
    op: OpenIDProvider, owner: Owner, ending: Any
) -> None:
    expected = refresh_tokens(op)
    with transaction.atomic():
        ending(owner)
        assert op.calls("revocation") == 0
        assert len(to_revoke()) == 1
    assert revoked(op) == expected
    assert op.calls("revocation") == 1
    [request] = op.requests_to("revocation")
    assert request.form["token_type_hint"] == ["refresh_token"]


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS)
def test_M55_T18_and_not_after_a_rollback(op: OpenIDProvider, owner: Owner, ending: Any) -> None:
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        ending(owner)
        raise ZeroDivisionError
    assert to_revoke() == []
    assert revocation.work_off() == 0
    assert op.calls("revocation") == 0
    assert grant(owner).status == "open"
    assert history(owner) == []


def test_M38_a_deactivated_users_grant_is_closed_with_its_reason(
    op: OpenIDProvider, owner: Owner
) -> None:
    deactivate(owner)
    assert_closed(owner, "deactivated")
    assert history(owner) == [("closed", "deactivated")]
    assert len(revoked(op)) == 1


def test_a_closed_grant_is_not_ended_twice(op: OpenIDProvider, owner: Owner) -> None:
    assert closing.end(owner.grant, grants.LOGOUT)
    assert not closing.end(owner.grant, grants.UNLINKED)
    assert not closing.end("0" * 32, grants.LOGOUT)
    assert_closed(owner, "logout")
    delete(owner)
    assert len(revoked(op)) == 1


BUSY = {
    "503": (raw(503, {"Retry-After": "3000"}), "revocation.error"),
    "429": (sending({"error": "slow_down"}, 429), "revocation.error"),
    "server_error": (sending({"error": "server_error"}, 500), "revocation.server_error"),
    "invalid_client": (sending({"error": "invalid_client"}, 401), "revocation.invalid_client"),
    "400": (sending({"error": "invalid_client"}, 400), "revocation.invalid_client"),
    "reset": (reset(after=False), "transport.broken"),
}


@pytest.mark.parametrize(("fault", "code"), BUSY.values(), ids=BUSY)
def test_M55_it_is_tried_again_later(
    op: OpenIDProvider, owner: Owner, fault: Any, code: str
) -> None:
    op.answer["revocation"] = fault
    end(owner)
    wait_until(lambda: to_revoke() == [("logout", code)])
    row = PendingRevocation.objects.get()
    assert row.attempts == 1
    pause = (row.not_before - grant(owner).now).total_seconds()
    assert 25 < pause <= 30 or (code == "revocation.error" and 2900 < pause <= 3000)
    assert revocation.work_off() == 0
    assert op.calls("revocation") == 1
    del op.answer["revocation"]
    make_revocations_due()
    assert revocation.work_off() == 1
    assert len(revoked(op)) == 1


def test_M55_it_is_not_tried_for_ever(
    op: OpenIDProvider, owner: Owner, caplog: pytest.LogCaptureFixture
) -> None:
    op.answer["revocation"] = raw(503)
    end(owner)
    wait_until(lambda: to_revoke() == [("logout", "revocation.error")])
    for _ in range(revocation.MAX_ATTEMPTS):
        make_revocations_due()
        revocation.work_off()
    assert to_revoke() == []
    assert op.calls("revocation") == revocation.MAX_ATTEMPTS
    told = [record.levelno for record in caplog.records if "not revoked" in record.message]
    assert told == [logging.ERROR]


@pytest.mark.parametrize("error", ["unsupported_token_type", "invalid_request", "invalid_token"])
def test_what_would_be_the_same_another_time_is_not_tried_again(
    op: OpenIDProvider, owner: Owner, error: str
) -> None:
    op.answer["revocation"] = sending({"error": error}, 400)
    end(owner)
    wait_until(lambda: to_revoke() == [])
    assert op.calls("revocation") == 1


def test_an_op_that_revokes_nothing_is_not_asked(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    op.metadata.pop("revocation_endpoint")
    site.learns()
    end(owner)
    wait_until(lambda: to_revoke() == [])
    assert op.calls("revocation") == 0


def test_M41_it_goes_to_no_other_client_or_op(
    op: OpenIDProvider, owner: Owner, site: Site, signing_key: SigningKey
) -> None:
    with OpenIDProvider(keys=[signing_key]) as other:
        site.has(ISSUER=other.issuer)
        end(owner)
        wait_until(lambda: to_revoke() == [])
        assert other.calls("revocation") == 0
    assert op.calls("revocation") == 0


def test_M41_nor_in_the_name_of_another_client(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(CLIENT_ID="another")
    end(owner)
    wait_until(lambda: to_revoke() == [])
    assert op.calls("revocation") == 0


def test_M51_what_waits_is_sealed(op: OpenIDProvider, owner: Owner, site: Site) -> None:
    op.answer["revocation"] = raw(503)
    end(owner)
    wait_until(lambda: to_revoke() == [("logout", "revocation.error")])
    [token] = op._refresh_tokens
    row = PendingRevocation.objects.get()
    assert token not in row.token
    assert row.token.startswith(f"v1.{row.key_id}.")
    del op.answer["revocation"]
    site.has(top={"TOKEN_KEYS": [generate_key()]})
    make_revocations_due()
    assert revocation.work_off() == 0
    assert to_revoke() == [("logout", "seal.key_unknown")]
    site.has()
    make_revocations_due()
    assert revocation.work_off() == 1
    assert op.revocations == [("refresh_token", token)]


def test_one_that_does_not_open_is_given_up(op: OpenIDProvider, owner: Owner) -> None:
    op.answer["revocation"] = raw(503)
    end(owner)
    wait_until(lambda: to_revoke() == [("logout", "revocation.error")])
    PendingRevocation.objects.update(sub="somebody else")
    make_revocations_due()
    assert revocation.work_off() == 1
    assert (to_revoke(), op.calls("revocation")) == ([], 1)


def test_a_row_that_another_worker_has_is_left_to_it(op: OpenIDProvider, owner: Owner) -> None:
    op.answer["revocation"] = raw(503)
    end(owner)
    wait_until(lambda: to_revoke() == [("logout", "revocation.error")])
    make_revocations_due()
    mine = PendingRevocation.objects.get()
    assert revocation._taken(mine)
    assert not revocation._taken(mine)
    assert revocation.work_off() == 0
    assert op.calls("revocation") == 1


@pytest.mark.parametrize("keys", [[], [generate_key()], ["no key"]])
def test_without_keys_a_grant_can_still_be_ended(
    op: OpenIDProvider, owner: Owner, site: Site, keys: list[str]
) -> None:
    """Its token cannot be read, so it cannot be revoked; that keeps nobody from deleting it."""
    site.has(top={"TOKEN_KEYS": keys})
    end(owner)
    assert_closed(owner, "logout")
    delete(owner)
    assert not Grant.objects.exists()
    assert op.calls("revocation") == 0


# What a refresh brought meanwhile


def test_M55_T7_T18_what_waits_for_a_grant_that_ends_is_revoked(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    """The successor was never stored: a caller had rolled it back."""
    site.has(top={"OWN_CONNECTION": False})
    expire()
    with contextlib.suppress(ZeroDivisionError), transaction.atomic():
        usable_token(owner)
        raise ZeroDivisionError
    [spent], [successor] = op._spent_refresh_tokens, op._refresh_tokens
    end(owner)
    assert revoked(op) == [("refresh_token", spent)]
    refresh.store_waiting()
    assert revoked(op) == [("refresh_token", spent), ("refresh_token", successor)]
    assert journal.waiting() == ()
    assert_closed(owner, "logout")


@pytest.mark.parametrize(("told", "times"), [(True, 2), (False, 0)])
def test_M55_T18_a_late_result_is_revoked_unless_that_ends_its_heir(
    op: OpenIDProvider, site: Site, browser: Browser, told: bool, times: int
) -> None:
    owner = signed_in_here(site, browser, op, REVOKE_SUPERSEDED=told)
    expire()
    supersede = during(lambda: closing.end_session_grant(owner.grant, grants.SUPERSEDED))
    op.answer["token"] = first(1, supersede)
    with pytest.raises(LoginRequired) as raised:
        usable_token(owner)
    assert raised.value.code == "grant.superseded"
    assert op.refreshes == 1
    assert len(revoked(op)) == op.calls("revocation") == times


@pytest.mark.parametrize(("told", "times"), [(True, 1), (False, 0)])
def test_a_session_grant_that_is_pruned_is_revoked_unless_that_ends_others(
    op: OpenIDProvider, site: Site, browser: Browser, told: bool, times: int
) -> None:
    owner = signed_in_here(site, browser, op, REVOKE_SUPERSEDED=told)
    Grant.objects.update(created_at=DatabaseClock(timedelta(days=-20)))
    assert upkeep.prune().closed == 1
    assert_closed(owner, "expired")
    assert len(revoked(op)) == op.calls("revocation") == times


def test_a_grant_that_was_read_long_ago_is_deleted_with_the_token_it_has_now(
    op: OpenIDProvider, owner: Owner
) -> None:
    stale = Grant.objects.get()
    expire()
    usable_token(owner)
    expected = refresh_tokens(op)
    stale.delete()
    assert revoked(op) == expected


def test_a_user_who_is_deleted_while_the_op_answers(op: OpenIDProvider, owner: Owner) -> None:
    expire()
    op.answer["token"] = first(1, during(lambda: delete(owner)))
    with pytest.raises(LoginRequired) as raised:
        usable_token(owner)
    assert raised.value.code == "grant.none"
    assert not Grant.objects.exists()
    [spent], [successor] = op._spent_refresh_tokens, op._refresh_tokens
    assert revoked(op) == [("refresh_token", spent), ("refresh_token", successor)]
