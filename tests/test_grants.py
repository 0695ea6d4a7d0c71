"""What a login leaves behind, and how it ends: durable grants, and those of a browser session."""

from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.test.utils import isolate_apps
from django.utils import timezone
from pytest_django import Settings

from oidc_rp import api, closing, conf, grants
from oidc_rp.errors import LoginRequired
from oidc_rp.grants import Owner
from oidc_rp.models import Event, Grant, Identity, StoredAccessToken
from oidc_rp.refresh import usable_token
from oidc_rp.sealing import key_ring
from oidc_rp.testing import REMOVE, OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.tokens import (
    HOUR,
    Site,
    assert_at_rest,
    assert_closed,
    bound,
    every_token,
    expire,
    failing_at,
    grant,
    history,
    owner,
    signed_in,
    signed_in_here,
    site,
    to_revoke,
    wait_until,
)

__all__ = ["bound", "owner", "site"]

pytestmark = pytest.mark.django_db(transaction=True)


def token(owner: Owner) -> str:
    return usable_token(owner).access_token.reveal()


def needs_login(owner: Owner) -> str:
    with pytest.raises(LoginRequired) as raised:
        usable_token(owner)
    return raised.value.code


def renew(owner: Owner) -> str:
    expire()
    return token(owner)


# What is kept


def test_M51_a_login_leaves_sealed_tokens(op: OpenIDProvider, owner: Owner) -> None:
    row, stored = grant(owner), StoredAccessToken.objects.get()
    [refresh_token], [access_token] = op._refresh_tokens, op._access_tokens
    assert row.refresh_token.startswith(f"v1.{row.key_id}.")
    assert key_ring().open(row.refresh_token, row.context(1)) == refresh_token
    assert key_ring().open(stored.access_token, stored.context()) == access_token
    assert (row.provider, row.client_id, row.status) == ("op", op.client_id, "open")
    assert (row.generation, row.durable, row.scope) == (1, True, "openid calendar offline_access")
    assert stored.expires_at is not None
    assert stored.expires_at - stored.sent_at == pytest.approx(
        timedelta(seconds=HOUR), abs=timedelta(seconds=5)
    )
    assert row.idle_until - row.created_at == timedelta(days=14)
    assert token(owner) == access_token


def test_an_idle_lifetime_is_the_ops_or_the_settings(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    site.has(REFRESH_IDLE_LIFETIME=600)
    owner = signed_in(browser, op)
    row = grant(owner)
    assert row.idle_until - row.created_at == timedelta(seconds=600)
    op.refresh_response["refresh_expires_in"] = 1800
    renew(owner)
    row = grant(owner)
    assert row.idle_until - row.now == pytest.approx(
        timedelta(seconds=1800), abs=timedelta(seconds=10)
    )


def test_a_token_without_expires_in_is_kept_too(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    op.token_response["expires_in"] = REMOVE
    owner = signed_in(browser, op)
    assert StoredAccessToken.objects.get().expires_at is None
    assert usable_token(owner).fresh_for > HOUR
    assert op.refreshes == 0


def test_another_scope_than_asked_for_is_kept(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    op.token_response["scope"] = "openid"
    owner = signed_in(browser, op)
    assert grant(owner).scope == "openid"
    assert usable_token(owner).scope == "openid"


def test_nothing_is_kept_that_nobody_can_use(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    site.has(SCOPES=["openid"], API_ORIGINS=[])
    assert signed_in(browser, op).grant == ""
    assert not Grant.objects.exists()


def test_M51_without_keys_nothing_is_kept_and_the_login_goes_on(
    op: OpenIDProvider, site: Site, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    site.has(top={"TOKEN_KEYS": []})
    assert signed_in(browser, op).grant == ""
    assert not Grant.objects.exists()
    assert "TOKEN_KEYS is empty" in caplog.text


# A durable grant


def test_M55_T15_a_new_login_replaces_the_tokens_of_the_durable_grant(
    op: OpenIDProvider, owner: Owner
) -> None:
    [old] = op._refresh_tokens
    before = token(owner)
    assert signed_in(Browser(), op) == owner
    assert Grant.objects.count() == 1
    assert token(owner) != before
    assert_at_rest(owner, generation=2, durable=True)
    wait_until(lambda: to_revoke() == [])
    assert op.revocations == [("refresh_token", old)]
    assert renew(owner)
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_M55_T15_two_browsers_share_it(op: OpenIDProvider, owner: Owner, browser: Browser) -> None:
    other = Browser()
    assert signed_in(other, op) == owner
    other.client.logout()
    assert grant(owner).status == "open"
    assert renew(owner)
    assert op.families_lost == 0


def test_M55_T15_the_superseded_token_is_not_revoked_where_that_ends_the_new_one(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    site.has(REVOKE_SUPERSEDED=False)
    op.revocation_ends_consent = True
    assert signed_in(Browser(), op) == owner
    assert (to_revoke(), op.calls("revocation")) == ([], 0)
    assert renew(owner)


@pytest.mark.parametrize(
    ("issuer", "told", "revokes"),
    [
        ("https://op.example", None, True),
        ("https://op.example", False, False),
        ("https://accounts.google.com", None, False),
        ("https://accounts.google.com", True, True),
    ],
)
def test_which_ops_revoke_one_token_alone(
    site: Site, issuer: str, told: bool | None, revokes: bool
) -> None:
    site.has(ISSUER=issuer, **({} if told is None else {"REVOKE_SUPERSEDED": told}))
    assert grants.revokes_superseded(conf.provider("op")) is revokes


def test_M55_T15_an_op_that_gives_a_refresh_token_only_once(
    op: OpenIDProvider, owner: Owner
) -> None:
    """Google's habit: at the second login the first one's token is still the one."""
    sealed, before = grant(owner).refresh_token, token(owner)
    op.token_response["refresh_token"] = REMOVE
    assert signed_in(Browser(), op) == owner
    assert token(owner) != before
    assert_at_rest(owner, generation=1, refresh_token=sealed)
    assert op.calls("revocation") == 0
    del op.token_response["refresh_token"]
    assert renew(owner)
    assert (op.refreshes, op.families_lost) == (1, 0)


def test_T15_and_none_comes_where_the_grant_has_ended(op: OpenIDProvider, owner: Owner) -> None:
    closing.end(owner.grant, grants.LOGOUT)
    op.token_response["refresh_token"] = REMOVE
    other = signed_in(Browser(), op)
    assert other.grant != owner.grant
    assert grant(other).durable is False
    assert token(other)
    del op.token_response["refresh_token"]
    assert signed_in(Browser(), op) == owner
    assert_at_rest(owner, close_reason="")
    assert renew(owner)


def test_T15_a_login_clears_what_was_wrong(op: OpenIDProvider, owner: Owner) -> None:
    op.refresh_fault = "closed_before_rotation"
    expire()
    with pytest.raises(Exception, match="backing_off"):
        usable_token(owner)
    op.refresh_fault = ""
    assert signed_in(Browser(), op) == owner
    assert_at_rest(owner, generation=2)
    assert token(owner)


def test_T15_the_same_refresh_token_again_is_not_revoked(op: OpenIDProvider, owner: Owner) -> None:
    [known] = op._refresh_tokens
    op.token_response["refresh_token"] = known
    assert signed_in(Browser(), op) == owner
    del op.token_response["refresh_token"]
    assert op.calls("revocation") == 0
    assert renew(owner)


def test_each_person_and_each_client_has_a_durable_grant(
    op: OpenIDProvider, owner: Owner, site: Site
) -> None:
    op.person["sub"] = "somebody-else"
    other = signed_in(Browser(), op)
    assert other.grant != owner.grant
    assert Grant.objects.filter(durable=True).count() == 2
    assert token(other) != token(owner)
    assert needs_login(Owner(owner.user_id, other.grant)) == "grant.none"


# A browser session's own


def test_M55_a_session_bound_grant_is_its_sessions(
    op: OpenIDProvider, bound: Owner, site: Site
) -> None:
    other = signed_in_here(site, Browser(), op)
    assert other.user_id == bound.user_id
    assert other.grant != bound.grant
    assert [row.durable for row in Grant.objects.all()] == [False, False]
    assert len({renew(bound), renew(other)}) == 2
    assert needs_login(Owner(bound.user_id, provider="op")) == "grant.none"
    assert op.families_lost == 0


def test_M55_T18_logout_ends_it(
    op: OpenIDProvider, bound: Owner, browser: Browser, site: Site
) -> None:
    other = signed_in_here(site, Browser(), op)
    browser.client.logout()
    assert_closed(bound, "logout")
    assert history(bound)[-1] == ("closed", "logout")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1
    assert needs_login(bound) == "grant.logout"
    assert renew(other)


def test_logout_ends_no_durable_grant(op: OpenIDProvider, owner: Owner, browser: Browser) -> None:
    browser.client.logout()
    assert grant(owner).status == "open"
    assert renew(owner)
    assert op.calls("revocation") == 0


def test_T15_the_next_login_of_the_session_supersedes_it(
    op: OpenIDProvider, bound: Owner, site: Site, browser: Browser
) -> None:
    new = signed_in_here(site, browser, op)
    assert new.grant != bound.grant
    assert_closed(bound, "superseded")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1
    assert renew(new)


def test_T15_without_a_revocation_that_would_end_the_new_one(
    op: OpenIDProvider, bound: Owner, site: Site, browser: Browser
) -> None:
    op.revocation_ends_consent = True
    new = signed_in_here(site, browser, op, REVOKE_SUPERSEDED=False)
    assert_closed(bound, "superseded")
    assert op.revocations == []
    assert renew(new)


def test_a_logout_without_a_session_ends_nothing(op: OpenIDProvider, bound: Owner) -> None:
    Client().logout()
    assert grant(bound).status == "open"


# The end of the person here


def test_M38_deactivation_ends_every_grant(op: OpenIDProvider, owner: Owner, site: Site) -> None:
    other = signed_in_here(site, Browser(), op)
    user = get_user_model().objects.get()
    user.is_active = False
    user.save()
    assert_closed(owner, "deactivated")
    assert_closed(other, "deactivated")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 2
    assert needs_login(owner) == "account.inactive"
    user.is_active = True
    user.save()
    assert needs_login(owner) == "grant.deactivated"


def test_a_user_that_is_saved_keeps_the_grant(op: OpenIDProvider, owner: Owner) -> None:
    get_user_model().objects.get().save()
    assert_at_rest(owner, generation=1)


def test_unlinking_removes_grant_and_tokens(op: OpenIDProvider, owner: Owner) -> None:
    """What happened stays, and whose it was; it goes with the user, or by age."""
    renew(owner)
    user = Identity.objects.get().user
    Identity.objects.get().delete()
    assert not Grant.objects.exists()
    assert not StoredAccessToken.objects.exists()
    names = Event.objects.filter(user=user, identity=None, grant=None).values_list(
        "name", flat=True
    )
    assert {"signed_in", "refreshed"} <= set(names)
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1
    user.delete()
    assert not Event.objects.exists()
    assert needs_login(owner) == "grant.none"


def test_a_worker_is_named_by_host_and_process(op: OpenIDProvider, owner: Owner) -> None:
    renew(owner)
    event = wait_until(lambda: Event.objects.filter(name="refreshed").first())
    assert event.actor == grants.worker() == grant(owner).refreshed_by
    assert len(grants.worker()) <= 100


# What the settings mean now, and what a login may take away


def test_M54_a_fresh_token_of_another_op_is_not_used(
    op: OpenIDProvider, site: Site, owner: Owner
) -> None:
    """A slug that was given to another OP brings that OP's APIs, and no token for them."""
    site.has(ISSUER="https://other.example")
    with pytest.raises(LoginRequired) as refused:
        usable_token(owner)
    assert refused.value.code == "grant.issuer_changed"
    site.has(CLIENT_ID="another")
    with pytest.raises(LoginRequired) as refused:
        usable_token(owner)
    assert refused.value.code == "grant.client_changed"


def test_a_narrower_login_takes_nothing_from_a_wider_grant(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """What was asked for on purpose stays, for this session and for jobs."""
    site.has(SCOPES=["openid", "offline_access", "calendar"])
    wide = signed_in(browser, op)
    token = usable_token(wide)
    site.has(SCOPES=["openid", "offline_access"])
    narrow = signed_in(Browser(), op)
    assert narrow.grant == wide.grant
    assert usable_token(narrow).access_token == token.access_token
    assert "calendar" in grant(wide).scope.split()
    wait_until(lambda: to_revoke() == [] and len(op.revocations) == 1)
    assert usable_token(wide).access_token == token.access_token
    assert op.families_lost == 0


def test_a_narrower_login_replaces_a_grant_that_is_in_doubt(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    """What may be lost already is worth nothing."""
    site.has(SCOPES=["openid", "offline_access", "calendar"])
    wide = signed_in(browser, op)
    Grant.objects.update(in_doubt_since=timezone.now())
    site.has(SCOPES=["openid", "offline_access"])
    assert signed_in(Browser(), op).grant == wide.grant
    assert grant(wide).scope.split() == ["openid", "offline_access"]


@isolate_apps("oidc_rp")
def test_M38_so_does_that_of_a_proxy_of_the_user_model(op: OpenIDProvider, owner: Owner) -> None:
    class Member(User):
        class Meta:
            proxy = True
            app_label = "oidc_rp"

    member = Member.objects.get()
    member.is_active = False
    member.save()
    assert_closed(owner, "deactivated")


# Somebody else's session


def request_of(browser: Browser, user: Any) -> HttpRequest:
    """A request of this browser's, that `user` is said to make."""
    request = RequestFactory().get("/")
    request.session, request.user = browser.client.session, user
    return request


def refused(request: HttpRequest) -> str:
    with pytest.raises(LoginRequired) as raised:
        api.access_token(request)
    return raised.value.code


def test_M54_nobody_gets_a_token_by_wearing_anothers_session(
    op: OpenIDProvider, owner: Owner, browser: Browser
) -> None:
    """django-impersonate and its like replace request.user, and leave the session as it was."""
    somebody_else = get_user_model().objects.create_user("john")
    request = request_of(browser, somebody_else)
    assert refused(request) == "grant.none"
    expire()
    assert refused(request) == "grant.none"
    assert op.refreshes == 0
    itself = request_of(browser, get_user_model().objects.get(pk=owner.user_id))
    assert api.access_token(itself).reveal() in op._access_tokens
    assert refused(request) == "grant.none"


def test_M54_nor_by_a_session_that_is_older_than_a_new_link(
    op: OpenIDProvider, owner: Owner, browser: Browser
) -> None:
    users = get_user_model().objects
    request = request_of(browser, users.get(pk=owner.user_id))
    Identity.objects.update(user=users.create_user("john"))
    assert refused(request) == "grant.none"
    expire()
    assert refused(request) == "grant.none"
    assert op.refreshes == 0


# Which of several


@pytest.mark.parametrize(
    ("client_id", "status"), [("older", "open"), ("older", "closed"), ("", "closed")]
)
def test_no_other_durable_grant_hides_the_open_one(
    op: OpenIDProvider, owner: Owner, client_id: str, status: str
) -> None:
    """CLIENT_ID was changed and changed back; or what was closed is newer."""
    newer = Grant.objects.create(
        identity=Identity.objects.get(),
        provider="op",
        client_id=client_id or op.client_id,
        durable=True,
        slot=sha256(status.encode()).hexdigest(),
        status=status,
        close_reason="revoked_or_expired" if status == "closed" else "",
    )
    assert newer.pk > owner.grant
    assert token(Owner(owner.user_id, provider="op")) == token(owner)
    expire()
    assert token(Owner(owner.user_id, provider="op")) == token(owner)
    assert op.refreshes == 1


def test_T15_the_same_refresh_token_again_in_a_session_is_not_revoked(
    op: OpenIDProvider, site: Site, browser: Browser
) -> None:
    site.has(SCOPES=["openid", "calendar"])
    op.token_response["refresh_token"] = op.issue()["refresh_token"]
    old, new = signed_in(browser, op), signed_in(browser, op)
    del op.token_response["refresh_token"]
    assert_closed(old, "superseded")
    assert (to_revoke(), op.calls("revocation")) == ([], 0)
    assert renew(new)
    assert op.families_lost == 0


def test_T18_a_local_login_of_the_same_user_ends_the_sessions_grant(
    op: OpenIDProvider, bound: Owner, browser: Browser
) -> None:
    user = get_user_model().objects.get(pk=bound.user_id)
    browser.client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    assert_closed(bound, "logout")
    wait_until(lambda: to_revoke() == [])
    assert len(op.revocations) == 1


# A database that fails


def test_M56_a_logout_signs_out_although_the_grant_cannot_be_closed(
    op: OpenIDProvider, bound: Owner, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    with failing_at("UPDATE", "oidc_rp_grant"):
        assert browser.client.post("/oidc/logout/").status_code == 302
    assert "_auth_user_id" not in browser.client.session
    assert "a session ends, and what belongs to it does not" in caplog.text
    assert grant(bound).status == "open"
    assert (to_revoke(), op.calls("revocation")) == ([], 0)


FAILING = {
    "first login, grant": (1, "INSERT", "oidc_rp_grant"),
    "first login, access token": (1, "INSERT", "oidc_rp_storedaccesstoken"),
    "second login, grant": (2, "UPDATE", "oidc_rp_grant"),
    "second login, access token": (2, "INSERT", "oidc_rp_storedaccesstoken"),
    "second login, revocation": (2, "INSERT", "oidc_rp_pendingrevocation"),
}


@pytest.mark.parametrize(("login", "verb", "table"), FAILING.values(), ids=FAILING)
def test_M53_no_token_in_the_debug_page_of_a_login_that_cannot_be_stored(
    op: OpenIDProvider, site: Site, settings: Settings, login: int, verb: str, table: str
) -> None:
    if login == 2:
        signed_in(Browser(), op)
    settings.DEBUG = True
    with failing_at(verb, table):
        response = Browser(Client(raise_request_exception=False)).sign_in("op")
    page = response.content.decode()
    assert response.status_code == 500
    assert "disk full" in page
    issued = every_token(op)
    assert len(issued) == 2 * login
    assert [secret for secret in [*issued, op.client_secret] if secret in page] == []
