"""Linked identities in the admin: to look at, to unlink, never to make up."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from datetime import timezone as tz
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.db import OperationalError, connection
from django.db.models import ProtectedError, RestrictedError
from django.db.models.signals import pre_delete
from django.test import Client
from django.test.utils import CaptureQueriesContext

from oidc_rp.admin import IdentityInline, add_inline
from oidc_rp.admin_health import health_of, readable
from oidc_rp.discovery import document_key
from oidc_rp.models import (
    Event,
    Grant,
    Identity,
    ProviderCircuit,
    Session,
    StoredAccessToken,
    digest,
)
from oidc_rp.sealing import generate_key
from oidc_rp.testing import Browser, OpenIDProvider, provider_options
from tests.conftest import Configure

LIST = "/admin/oidc_rp/identity/"
OPTIONS = {"ISSUER": "https://op.example", "CLIENT_ID": "rp", "CLIENT_SECRET": "s"}
NOON = datetime(2026, 3, 1, 12, tzinfo=tz.utc)
USERS = "/admin/auth/user/"

pytestmark = pytest.mark.django_db


def identity(number: int, **fields: Any) -> Identity:
    given = {"provider": "op", "iss": "https://op.example", "sub": f"sub-{number}"} | fields
    if "user" not in given:
        name, address = f"jane{number}", f"doe{number}@example.com"
        given["user"] = User.objects.create_user(name, address)
    return Identity.objects.create(**given)


def staff(*permissions: str) -> Client:
    """A client signed in as a member of the staff who may do this and nothing else."""
    user = User.objects.create_user("operator", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user, "django.contrib.auth.backends.ModelBackend")
    return client


@pytest.fixture
def root(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user, "django.contrib.auth.backends.ModelBackend")
    return client


def subs(client: Client, **query: str) -> set[str]:
    response = client.get(LIST, query)
    assert response.status_code == 200
    return {one.sub for one in response.context["cl"].result_list}


def test_the_list_tells_who_is_linked(root: Client) -> None:
    """User, name, provider, first and last login, subject."""
    one = identity(1, claims={"name": "Jane <Doe>"})
    response = root.get(LIST)
    assert response.context["cl"].list_display[-6:] == [
        "user",
        "person",
        "health",
        "provider",
        "last_login",
        "short_sub",
    ]
    for shown in (one.sub, "jane1", "Jane &lt;Doe&gt;"):
        assert shown in response.content.decode()


def test_the_list_falls_back_on_what_the_op_told(root: Client) -> None:
    """A person without a name is listed by address, or by nothing, never as an error."""
    identity(1, claims={"name": None, "email": "jane@op.example"})
    identity(2, claims={})
    assert "jane@op.example" in root.get(LIST).content.decode()


def test_the_list_is_searched(root: Client) -> None:
    """By the start of a user name or of an address among the claims, and by the exact subject."""
    identity(1, claims={"email": "Doe1@Example.com"})
    identity(2, sub="sub 2")
    identity(11)
    assert subs(root, q="jane") == {"sub-1", "sub 2", "sub-11"}
    assert subs(root, q="jane2") == {"sub 2"}
    assert subs(root, q="DOE1@") == {"sub-1"}
    assert subs(root, q="sub-1") == {"sub-1"}
    for term in ("sub 2", '"sub 2"', " sub 2 "):
        assert subs(root, q=term) == {"sub 2"}
    for term in ("sub-", "example.com", "%", "nobody", '""'):
        assert subs(root, q=term) == set()
    assert len(subs(root, q=" ")) == 3


def test_a_user_name_of_another_collation_is_searched_as_a_whole(
    root: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the database calls equal: PostgreSQL has no LIKE for each collation."""
    identity(1)
    identity(11)
    monkeypatch.setattr(User._meta.get_field("username"), "db_collation", "case_insensitive")
    with CaptureQueriesContext(connection) as asked:
        assert subs(root, q="jane1") == {"sub-1"}
    (found,) = [
        told["sql"] for told in asked if "'jane1'" in told["sql"] and "auth_us" in told["sql"]
    ]
    assert """WHERE "auth_user"."username" = 'jane1'""" in found
    assert subs(root, q="jane") == set()


def test_the_list_is_searched_by_sid(root: Client, settings: Any) -> None:
    """Whose session an OP of this site's calls so."""
    settings.OIDC_RP = {"PROVIDERS": {"op": OPTIONS}}
    for number, iss in enumerate(("https://op.example", "https://gone.example")):
        sid_digest = digest(iss, "sid-7")
        session_of(identity(number, iss=iss), sid="sid-7", sid_digest=sid_digest)
    assert subs(root, q="sid-7") == {"sub-0"}
    assert subs(root, q="sid-") == set()


def test_the_list_is_searched_by_reference(root: Client) -> None:
    """The reference that a refusal's page tells leads to the person, where one is known."""
    one, other = identity(1), identity(2)
    refused = {"name": "login_refused", "code": "state.missing", "provider": "op"}
    Event.objects.create(identity=one, reference="00aabbccdd", **refused)
    Event.objects.create(user=other.user, reference="11aabbccdd", **refused)
    Event.objects.create(reference="22aabbccdd", **refused)
    Event.objects.create(**refused)
    assert subs(root, q="00AABBCCDD") == {"sub-1"}
    assert subs(root, q="11aabbccdd") == {"sub-2"}
    page = root.get(LIST, {"q": "22aabbccdd"}).content.decode()
    for told in ("22aabbccdd", "A sign-in was refused", "state.missing"):
        assert told in page
    assert "A sign-in was refused" not in root.get(LIST).content.decode()
    page = staff("view_identity").get(LIST, {"q": "22aabbccdd"}).content.decode()
    assert "state.missing" not in page


@pytest.mark.parametrize(("since", "found"), [("hour", {"sub-1"}), ("day", {"sub-1", "sub-2"})])
def test_the_list_is_filtered_by_trouble(root: Client, since: str, found: set[str]) -> None:
    """Whose timeline tells of some in the last hour, or day."""
    now = datetime.now(tz.utc)
    for number, hours in ((1, 0.5), (2, 5.0), (3, 50.0)):
        at = now - timedelta(hours=hours)
        Event.objects.create(identity=identity(number), name="in_doubt", at=at)
    Event.objects.create(identity=identity(4), name="signed_in", at=now)
    refused = identity(5)  # while they were signed in here, and at the OP as nobody knows whom
    Event.objects.create(user=refused.user, name="login_refused", at=now)
    assert subs(root, trouble=since) == {*found, "sub-5"}
    assert len(subs(staff("view_identity"), trouble=since)) == 5


def test_the_list_shows_the_worst_of_somebodys_grants(root: Client) -> None:
    """Of the open ones, and what the latest ended with where there is none."""
    one, other, third = identity(1), identity(2), identity(3)
    grant_of(one)
    grant_of(one, not_before=datetime(2999, 1, 1, tzinfo=tz.utc))
    grant_of(one, status="closed", close_reason="seal_broken")
    grant_of(other, pk="1", status="closed", close_reason="logout")
    grant_of(other, pk="2", status="closed", close_reason="rotation_lost")
    page = root.get(LIST).content.decode()
    assert "oidc-waiting" in page
    assert "needs sign-in: rotation_lost" in page
    assert "seal_broken" not in page
    assert third.sub in page
    page = staff("view_identity").get(LIST).content.decode()
    assert "rotation_lost" not in page


WHOLE = re.compile(r"COUNT\(.*(?<!LIMIT 5000\) subquery)$", re.DOTALL)
"""A statement that counts, and not the first five thousand at most."""


@pytest.mark.parametrize(
    "query", [{}, {"p": "1"}, {"provider": "op"}, {"trouble": "day"}, {"q": "jane"}, {"q": "sub-2"}]
)
def test_the_list_costs_as_much_for_thirty_as_for_three(
    root: Client, settings: Any, query: dict[str, str]
) -> None:
    """In less than 20 statements, none of which counts a whole table or joins what it searches."""
    settings.OIDC_RP = {"PROVIDERS": {"op": OPTIONS}}
    counts = []
    for numbers in (range(3), range(3, 30)):
        for number in numbers:
            one = identity(number)
            StoredAccessToken.objects.create(grant=grant_of(one))
            Event.objects.create(identity=one, name="in_doubt")
        with CaptureQueriesContext(connection) as queries:
            assert root.get(LIST, query).status_code == 200
        counts.append(len(queries))
        statements = [told["sql"] for told in queries]
        assert not any(WHOLE.search(sql) for sql in statements), statements
        assert not any(" OR " in sql or "DISTINCT" in sql for sql in statements), statements
    assert counts[0] == counts[1] < 20


def test_the_list_is_filtered_by_provider(root: Client) -> None:
    """One provider's identities, or all."""
    identity(1)
    identity(2, provider="other")
    assert subs(root, provider="other") == {"sub-2"}


def test_the_list_has_pages(root: Client) -> None:
    """Fifty to a page; the latest linked first."""
    for number in range(60):
        identity(number)
    assert subs(root, p="2") == {f"sub-{number}" for number in range(10)}
    assert root.get(LIST, {"p": "3"}).status_code == 302


def test_claims_are_shown_as_text(root: Client) -> None:
    """As JSON that one can read, in order, whatever an OP wrote into them."""
    claims = {"name": "<script>alert(1)</script>", "address": {"locality": "Zürich"}}
    one = identity(1, claims=claims)
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<pre>{\n  &quot;address&quot;: {\n    &quot;locality&quot;: &quot;Zürich&quot;" in page
    assert 'href="/static/oidc_rp/admin.css"' in page  # lets long ones wrap


def test_nothing_can_be_typed_in(root: Client) -> None:
    """Not even a superuser adds or changes an identity: an OP said who somebody is."""
    one = identity(1)
    assert root.get(f"{LIST}add/").status_code == 403
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert 'name="sub"' not in page
    assert 'name="_save"' not in page
    response = root.post(f"{LIST}{one.pk}/change/", {"sub": "mine", "user": "1"})
    assert response.status_code == 403
    one.refresh_from_db()
    assert one.sub == "sub-1"


@pytest.mark.parametrize(
    ("permissions", "listed", "shown", "deleted"),
    [
        ((), 403, 403, 403),
        (("view_identity",), 200, 200, 403),
        (("add_identity",), 403, 403, 403),
        (("change_identity",), 200, 200, 403),
        (("delete_identity",), 403, 403, 200),
        (("view_identity", "delete_identity"), 200, 200, 200),
        (("view_user", "change_user", "delete_user"), 403, 403, 403),
    ],
)
def test_permissions_are_respected(
    permissions: tuple[str, ...], listed: int, shown: int, deleted: int
) -> None:
    """Who may look may look; who may delete unlinks."""
    client, one = staff(*permissions), identity(1)
    assert client.get(LIST).status_code == listed
    assert client.get(f"{LIST}{one.pk}/change/").status_code == shown
    assert client.get(f"{LIST}{one.pk}/delete/").status_code == deleted
    assert client.get(f"{LIST}add/").status_code == 403


def grant_of(one: Identity, **columns: Any) -> Grant:
    """A grant with all that must never be shown."""
    given = {
        "provider": "op",
        "client_id": "rp",
        "scope": "openid calendar",
        "refresh_token": "v1.00112233.sealed-refresh-token",
        "key_id": "0011223344556677",
    }
    return Grant.objects.create(identity=one, **given | columns)


def session_of(one: Identity, **columns: Any) -> Session:
    """A browser session with all that must never be shown."""
    given = {
        "provider": "op",
        "session_key": "key-of-djangos-session",
        "auth_hash": "hash-of-the-password",
        "id_token": "v1.00112233.sealed-id-token",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    }
    return Session.objects.create(identity=one, **given | columns)


@pytest.mark.parametrize(
    ("columns", "state"),
    [
        ({}, "healthy"),
        ({"key_id": "", "refresh_token": ""}, "healthy, without a refresh token"),
        ({"lease_until": timedelta(seconds=60)}, "renewing"),
        (
            {"lease_until": timedelta(seconds=60), "in_doubt_since": timedelta(seconds=-60)},
            "renewing",
        ),
        (
            {"lease_until": timedelta(seconds=-60)},
            "in doubt: an attempt ended without an answer",
        ),
        (
            {"in_doubt_since": timedelta(seconds=-60)},
            "in doubt: an attempt ended without an answer",
        ),
        ({"not_before": timedelta(seconds=-60)}, "healthy"),
        ({"not_before": datetime(2999, 1, 1, tzinfo=tz.utc)}, "backing off until 2"),
        ({"status": "closed", "close_reason": "logout"}, "closed: logout"),
        ({"status": "closed", "close_reason": "rotation_lost"}, "needs sign-in: rotation_lost"),
    ],
)
def test_the_state_of_a_grant_is_seen_at_a_glance(columns: dict[str, Any], state: str) -> None:
    """By the database's clock, as refresh.py sees it."""
    now = readable(Grant.objects.all())
    one = grant_of(identity(1))
    times = {
        name: now.get().now + value if isinstance(value, timedelta) else value
        for name, value in columns.items()
    }
    Grant.objects.filter(pk=one.pk).update(**times)
    assert str(health_of(now.get()).text).startswith(state)


@pytest.mark.parametrize(
    ("seconds", "state"),
    [(60, "healthy, without"), (-60, "needs sign-in"), (None, "healthy, without")],
)
def test_a_grant_without_refresh_token_needs_a_sign_in_after_its_end(
    seconds: int | None, state: str
) -> None:
    """When the access token has expired, nothing but a login brings another one."""
    now = readable(Grant.objects.all())
    grant = grant_of(identity(1), key_id="", refresh_token="")
    ends = None if seconds is None else now.get().now + timedelta(seconds=seconds)
    StoredAccessToken.objects.create(grant=grant, expires_at=ends)
    assert str(health_of(now.get()).text).startswith(state)


def test_the_identitys_page_shows_its_grants(root: Client, settings: Any) -> None:
    """State, scope, last and next renewal, trouble and key id of each."""
    settings.TIME_ZONE = "UTC"
    one = identity(1)
    grant = grant_of(
        one,
        refreshed_at=NOON,
        refreshed_by="web-1:42",
        refreshes=7,
        last_error="transport.timeout",
        last_error_at=NOON,
    )
    StoredAccessToken.objects.create(
        grant=grant,
        access_token="v1.00112233.sealed-access-token",
        sent_at=NOON,
        expires_at=NOON + timedelta(hours=1),
    )
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    for shown in (
        "healthy",
        "openid calendar",
        "2026-03-01 12:00:00 by web-1:42, renewal 7",
        f">{grant.pk[-8:]}<",
        "2026-03-01 12:5",  # a minute before the end, less the grant's own jitter
        "2026-03-01 12:00:00 transport.timeout",
        "0011223344556677",
    ):
        assert shown in page


def test_the_identitys_page_shows_where_somebody_is_signed_in(root: Client, settings: Any) -> None:
    """Device, first and last seen, renewal, acr and sid; sessions, grants and timeline in order."""
    settings.TIME_ZONE = "UTC"
    one = identity(1)
    hour = timedelta(hours=1)
    times = {"created_at": NOON, "last_seen_at": NOON + 2 * hour, "renewed_at": NOON + hour}
    session_of(one, sid="sid-of-the-op", acr="urn:mace:loa:2", **times)
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    for shown in (
        "Firefox Linux",
        "2026-03-01 12:00:00",
        "2026-03-01 13:00:00",
        "2026-03-01 14:00:00",
        "urn:mace:loa:2",
        "sid-of-the-op",
    ):
        assert shown in page
    places = [
        page.index(f'id="{name}-heading"') for name in ("sessions", "grants", "oidc-timeline")
    ]
    assert places == sorted(places)


def test_M53_no_token_is_shown_not_even_sealed(root: Client) -> None:
    """Nor the key of a session: not in a list, on a page, or in the question before an action."""
    one = identity(1)
    grant = grant_of(one)
    session_of(one, grant=grant)
    StoredAccessToken.objects.create(grant=grant, access_token="v1.00112233.sealed-access-token")
    paths = ("change", "delete", *(slug for slug, _ in ACTS))
    for path in (LIST, *(f"{LIST}{one.pk}/{name}/" for name in paths)):
        page = root.get(path).content.decode()
        for hidden in ("sealed", "v1.", "key-of-djangos", "hash-of-the"):
            assert hidden not in page


def test_the_identitys_page_tells_what_happened(root: Client) -> None:
    """The newest first, some fifty of them, as text."""
    one = identity(1)
    grant = grant_of(one)
    for number in range(60):
        Event.objects.create(
            identity=one, grant=grant, at=NOON, name="refreshed", code=f"n{number}", actor="<b>web"
        )
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert page.count(" <code>refreshed</code></td>") == 50
    assert page.index("<td>n59</td>") < page.index("<td>n10</td>")
    assert "<td>n9</td>" not in page
    assert "<td>&lt;b&gt;web</td>" in page
    titles = ("when", "event", "code", "by", "grant", "reference")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    assert f"<thead><tr>{head}</tr></thead>" in page
    assert f'<td><span title="{grant.pk}">{grant.pk[-8:]}</span></td>' in page


def test_the_timeline_has_what_happened_to_the_user_alone(root: Client) -> None:
    """Where nobody knew of which identity it was; what another's is stays there."""
    one = identity(1)
    other = identity(2, provider="other", iss="https://other.example", user=one.user)
    for reference, whose in (("aa", {"identity": one}), ("bb", {}), ("cc", {"identity": other})):
        told = {"provider": "op", "name": "login_refused", "reference": reference} | whose
        Event.objects.create(user=one.user, **told)
    Event.objects.create(user=one.user, provider="other", name="login_refused", reference="dd")
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert re.findall(r"<td>([a-d]{2})</td></tr>", page) == ["dd", "bb", "aa"]
    assert page.count("<code>login_refused</code></td>") == 2
    assert page.count("<code>login_refused</code> (other)</td>") == 1


def test_who_did_it_is_told_by_name(root: Client, admin_user: User) -> None:
    """As long as that user is there; a key that is no key here is told as it stands."""
    one = identity(1)
    for actor in (f"user {admin_user.pk}", "user 999999", "user x'--"):
        Event.objects.create(identity=one, name="session_ended", actor=actor)
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    name = admin_user.get_username()
    for told in (f"user {admin_user.pk} ({name})", "user 999999", "user x&#x27;--"):
        assert f"<td>{told}</td>" in page


def test_moments_are_told_with_their_zone(root: Client, settings: Any) -> None:
    """Every moment in the same way, and in the operator's zone, which the page names."""
    settings.TIME_ZONE = "Asia/Shanghai"
    one = identity(1)
    Identity.objects.update(created_at=NOON, last_login_at=NOON)
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    there = NOON.astimezone(ZoneInfo("Asia/Shanghai"))
    assert page.count(f"{there:%Y-%m-%d %H:%M:%S}") == 2
    assert "Times are those of Asia/Shanghai." in page


def test_a_site_without_time_zones_has_every_page(root: Client, settings: Any) -> None:
    """USE_TZ=False makes Django's own times naive; those that are kept here never are."""
    settings.USE_TZ = False
    one = identity(1)
    session_of(one)
    grant_of(one, not_before=NOON, last_error_at=NOON, last_error="x", refreshed_at=NOON)
    Event.objects.create(identity=one, name="refreshed", reference="0011223344556677")
    for page in ("", f"{one.pk}/change/", f"{one.pk}/delete/", "providers/", "?q=0011223344556677"):
        assert root.get(f"{LIST}{page}").status_code == 200
    assert root.get(f"{USERS}{one.user_id}/change/").status_code == 200


def test_the_list_has_one_order(root: Client) -> None:
    """Whatever the query string asks: another order would read the whole table."""
    for number in range(3):
        identity(number)
    with CaptureQueriesContext(connection) as asked:
        root.get(LIST, {"o": "4.-1"})
    orders = [query["sql"] for query in asked if "ORDER BY" in query["sql"]]
    assert any('"oidc_rp_identity"."id" DESC' in sql for sql in orders)
    assert not any('BY "oidc_rp_identity"."provider"' in sql for sql in orders)
    assert not any('BY "auth_user"' in sql for sql in orders)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({}, 2),  # in the summary, and with the grant
        ({"status": "closed", "close_reason": "logout"}, 0),
        ({"key_id": "", "refresh_token": ""}, 0),
    ],
)
def test_only_a_grant_that_can_be_renewed_shows_when(
    root: Client, settings: Any, columns: dict[str, Any], told: int
) -> None:
    """Not a closed one, and not one without a refresh token."""
    settings.TIME_ZONE = "UTC"
    one = identity(1)
    expires_at = NOON + timedelta(hours=1)
    grant = grant_of(one, **columns)
    StoredAccessToken.objects.create(grant=grant, sent_at=NOON, expires_at=expires_at)
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert page.count("2026-03-01 12:5") == told


def test_the_identitys_page_costs_as_much_for_thirty_as_for_three(root: Client) -> None:
    """In less than 20 statements, none of which counts a whole table."""
    one, counts = identity(1), []
    for number in (3, 27):
        for _ in range(number):
            StoredAccessToken.objects.create(grant=grant_of(one))
            session_of(one)
            Event.objects.create(identity=one, name="refreshed")
        with CaptureQueriesContext(connection) as queries:
            assert root.get(f"{LIST}{one.pk}/change/").status_code == 200
        counts.append(len(queries))
        assert not any(WHOLE.search(told["sql"]) for told in queries)
    assert counts[0] == counts[1] < 20


def test_the_identitys_page_shows_the_latest_of_very_many(root: Client) -> None:
    """Fifty sessions and fifty grants; which of one millisecond, chance decides."""
    one = identity(1)
    for number in range(60):
        grant_of(one, scope=f"grant-{number}.")
        session_of(one, sid=f"sid-{number}.")
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert page.count('field-op_session"') == page.count('field-granted_scope"') == 50


@pytest.mark.parametrize(
    ("permissions", "grants", "events"),
    [((), False, False), (("view_grant",), True, False), (("view_event",), False, True)],
)
def test_grants_and_events_respect_permissions(
    permissions: tuple[str, ...], grants: bool, events: bool
) -> None:
    """Who may see identities does not see by that how their tokens fare."""
    client, one = staff("view_identity", *permissions), identity(1)
    Event.objects.create(identity=one, grant=grant_of(one), name="in_doubt")
    page = client.get(f"{LIST}{one.pk}/change/").content.decode()
    assert ("0011223344556677" in page) == grants
    assert ("<code>in_doubt</code></td>" in page) == events
    assert 'name="grants-0-scope"' not in page


@pytest.mark.parametrize("permissions", [(), ("view_event",), ("view_session",)])
def test_what_may_not_be_seen_is_not_searched(settings: Any, permissions: tuple[str, ...]) -> None:
    """To find somebody by a session or a refusal is to see some of it."""
    settings.OIDC_RP = {"PROVIDERS": {"op": OPTIONS}}
    one = identity(1)
    Event.objects.create(identity=one, name="login_refused", reference="ab12cd34")
    session_of(one, sid="sid-1", sid_digest=digest(one.iss, "sid-1"))
    client = staff("view_identity", *permissions)
    assert (subs(client, q="ab12cd34") == {one.sub}) == ("view_event" in permissions)
    assert (subs(client, q="sid-1") == {one.sub}) == ("view_session" in permissions)


def test_the_question_of_deleting_shows_no_more_than_may_be_seen() -> None:
    """How many sessions and grants go along, and not which."""
    one = with_password(identity(1))
    grant = grant_of(one)
    session_of(one)
    StoredAccessToken.objects.create(grant=grant, resource="https://api.example")
    client = staff("view_identity", "delete_identity")
    page = client.get(f"{LIST}{one.pk}/delete/").content.decode()
    assert "sub-1 (op)" in page
    for hidden in (grant.pk, grant.pk[-8:], "https://api.example", "Firefox"):
        assert hidden not in page


def test_the_history_tells_what_came_of_an_action(root: Client) -> None:
    """One that was refused is not told as done."""
    one = identity(1)
    root.post(f"{LIST}{one.pk}/unlink-identity/", {"confirmed": "yes"})
    assert "Not unlinked" in LogEntry.objects.get().change_message


def test_the_claims_of_a_person_are_shown_without_the_sid(root: Client) -> None:
    """It is a session's, and who may see identities may not see those by that."""
    one = identity(1, claims={"name": "Jane", "sid": "secret-of-a-session"})
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert "&quot;name&quot;: &quot;Jane&quot;" in page
    assert "secret-of-a-session" not in page


def test_deleting_unlinks_after_a_question(root: Client, admin_user: User) -> None:
    """An operator unlinks an identity by deleting it; the user stays."""
    one = with_password(identity(1))
    question = root.get(f"{LIST}{one.pk}/delete/").content.decode()
    assert "sub-1 (op)" in question
    assert Identity.objects.exists()
    root.post(f"{LIST}{one.pk}/delete/", {"post": "yes"})
    assert not Identity.objects.exists()
    assert User.objects.filter(pk=one.user_id).exists()
    event = Event.objects.get(user=one.user_id, name="identity_unlinked")
    assert event.actor == f"user {admin_user.pk}"


def test_deleting_takes_nobodys_last_way_in(root: Client) -> None:
    """Neither on the page nor from the list, where Django's own deletion is not offered."""
    one = identity(1)
    page = root.get(f"{LIST}{one.pk}/delete/").content.decode()
    assert 'value="yes"' not in page
    assert "as the only way for jane1 to sign in" in page
    root.post(f"{LIST}{one.pk}/delete/", {"post": "yes"})
    many = {"action": "delete_selected", "_selected_action": [one.pk], "post": "yes"}
    root.post(LIST, many)
    assert Identity.objects.exists()


# What an operator does

ACTS = (
    ("end-sessions", "end_sessions"),
    ("renew-tokens", "renew_tokens"),
    ("revoke-tokens", "revoke_tokens"),
    ("unlink-identity", "unlink_identity"),
)


def with_password(one: Identity) -> Identity:
    one.user.set_password("so that there is another way in")
    one.user.save()
    return one


@pytest.mark.parametrize(("slug", "name"), ACTS)
def test_each_action_has_a_permission_of_its_own(slug: str, name: str) -> None:
    """Who has it is asked and offered it; who has all others, or may not look, is refused."""
    one = with_password(identity(1))
    url, others = f"{LIST}{one.pk}/{slug}/", [other for _, other in ACTS if other != name]
    client = staff("view_identity", name)
    assert client.get(url).status_code == 200
    assert url in client.get(f"{LIST}{one.pk}/change/").content.decode()
    assert f'<option value="{name}">' in client.get(LIST).content.decode()
    User.objects.filter(username="operator").delete()
    client = staff("view_identity", "delete_identity", "change_identity", *others)
    assert client.get(url).status_code == client.post(url).status_code == 403
    assert url not in client.get(f"{LIST}{one.pk}/change/").content.decode()
    assert f'<option value="{name}">' not in client.get(LIST).content.decode()
    many = {"action": name, "_selected_action": [one.pk], "confirmed": "yes"}
    assert client.post(LIST, many).status_code in (200, 302)
    User.objects.filter(username="operator").delete()
    assert staff(name).post(url).status_code == 403
    assert Identity.objects.filter(pk=one.pk).exists()
    assert not Event.objects.exists()


@pytest.mark.parametrize(("slug", "name"), ACTS)
def test_nothing_is_done_before_the_question_is_answered(
    admin_user: User, slug: str, name: str
) -> None:
    """A question first, on the page and in the list, and no answer without the form's own token."""
    one = with_password(identity(1))
    session_of(one)
    grant_of(one)
    client = Client(enforce_csrf_checks=True)
    client.force_login(admin_user, "django.contrib.auth.backends.ModelBackend")
    url = f"{LIST}{one.pk}/{slug}/"
    assert "sub-1 (op)" in client.get(url).content.decode()
    assert client.post(url, {"confirmed": "yes"}).status_code == 403
    client = Client()
    client.force_login(admin_user, "django.contrib.auth.backends.ModelBackend")
    question = client.post(LIST, {"action": name, "_selected_action": [one.pk]})
    assert "csrfmiddlewaretoken" in question.content.decode()
    assert "sub-1 (op)" in question.content.decode()
    assert Identity.objects.exists()
    assert Session.objects.filter(ended_at=None).exists()
    assert Grant.objects.get().status == "open"
    assert not Event.objects.exists()


def test_the_question_says_who_of_them_asks(root: Client, admin_user: User) -> None:
    """Nobody ends their own session unawares."""
    mine, other = identity(1, user=admin_user), identity(2)
    chosen = {"action": "end_sessions", "_selected_action": [mine.pk, other.pk]}
    question = root.post(LIST, chosen).content.decode()
    assert f"<li>{admin_user} (you): sub-1 (op)</li>" in question
    assert "<li>jane2: sub-2 (op)</li>" in question


def answer(client: Client, one: Identity, name: str, from_list: bool) -> str:
    """Confirm an action, and return what the next page says."""
    fields = {"action": name, "_selected_action": [one.pk], "confirmed": "yes"}
    url = LIST if from_list else f"{LIST}{one.pk}/{name.replace('_', '-')}/"
    return client.post(url, fields, follow=True).content.decode()


@pytest.mark.parametrize("from_list", [True, False])
def test_an_operator_ends_sessions(root: Client, admin_user: User, from_list: bool) -> None:
    """Those of the identity, and no others; the timeline tells who did it."""
    one, other = identity(1), identity(2)
    for whose in (one, one, other):
        session_of(whose)
    assert "2 sessions ended." in answer(root, one, "end_sessions", from_list)
    assert Session.objects.get().identity == other
    told = one.events.filter(name="session_ended")
    assert {event.actor for event in told} == {f"user {admin_user.pk}"}
    assert LogEntry.objects.filter(object_id=str(one.pk)).count() == 1


@pytest.mark.parametrize("from_list", [True, False])
def test_M60_an_operator_who_ends_sessions_beats_a_login_in_flight(
    root: Client, op: OpenIDProvider, browser: Browser, from_list: bool
) -> None:
    """Whoever is at the OP meanwhile does not come in, and who begins afterwards does; nor is
    anybody else kept out."""
    browser.sign_in("op")
    one, in_flight, stranger = Identity.objects.get(), Browser(), Browser()
    callback = in_flight.visit_op(in_flight.start("op"))
    op.person["sub"] = "stranger"
    of_a_stranger = stranger.visit_op(stranger.start("op"))
    assert "1 session ended." in answer(root, one, "end_sessions", from_list)
    assert in_flight.come_back(callback).context["code"] == "session.ended"
    assert not Session.objects.exists()
    assert stranger.come_back(of_a_stranger).status_code == 302
    op.person["sub"] = one.sub
    assert in_flight.sign_in("op").status_code == 302
    assert Session.objects.filter(identity=one, ended_at=None).count() == 1


@pytest.mark.parametrize("from_list", [True, False])
def test_an_operator_unlinks(root: Client, admin_user: User, from_list: bool) -> None:
    """As its user would, but for the last way in."""
    one, last = with_password(identity(1)), identity(2)
    assert "Unlinked from jane1: sub-1 (op)." in answer(root, one, "unlink_identity", from_list)
    assert "Not unlinked, as the only way for jane2" in answer(
        root, last, "unlink_identity", from_list
    )
    assert Identity.objects.get() == last
    told = Event.objects.get(name="identity_unlinked")
    assert told.actor == f"user {admin_user.pk}"


def test_an_action_is_for_a_hundred_at_most(root: Client) -> None:
    """More would have the operator, and the OP, wait for too long."""
    keys = [identity(number).pk for number in range(101)]
    fields = {"action": "end_sessions", "_selected_action": keys, "confirmed": "yes"}
    assert "Choose 100 at most." in root.post(LIST, fields, follow=True).content.decode()


def test_an_action_on_nobody_leads_to_the_list(root: Client) -> None:
    """Somebody else was faster, or the address was made up."""
    for key in ("4711", "no-key"):
        assert root.get(f"{LIST}{key}/end-sessions/").headers["Location"] == LIST


@pytest.fixture
def signed_in(browser: Browser, configure: Any, settings: Any) -> Identity:
    """Somebody who signed in for real, and has a refresh token."""
    configure(SCOPES=["openid", "offline_access"])
    settings.OIDC_RP = {**settings.OIDC_RP, "TOKEN_KEYS": [generate_key()]}
    browser.sign_in("op")
    return Identity.objects.get()


@pytest.mark.parametrize("from_list", [True, False])
def test_an_operator_renews_tokens(root: Client, signed_in: Identity, from_list: bool) -> None:
    """Each refresh token is spent at once, however fresh the access token is."""
    assert "is renewed." in answer(root, signed_in, "renew_tokens", from_list)
    assert Grant.objects.get().refreshes == 1


def test_an_operator_is_told_why_tokens_are_not_renewed(
    root: Client, op: OpenIDProvider, signed_in: Identity
) -> None:
    """By a code, and without a token in it."""
    op.end_grants()
    page = answer(root, signed_in, "renew_tokens", False)
    assert "was not renewed: grant.revoked_or_expired." in page
    assert "no refresh token to renew with" in answer(root, signed_in, "renew_tokens", False)


@pytest.mark.parametrize("from_list", [True, False])
def test_an_operator_revokes_tokens(
    root: Client, admin_user: User, signed_in: Identity, from_list: bool
) -> None:
    """Closed here, and to be told to the OP."""
    assert "1 grant closed" in answer(root, signed_in, "revoke_tokens", from_list)
    assert Grant.objects.get().status == "closed"
    assert signed_in.events.get(name="closed").actor == f"user {admin_user.pk}"


# What the database refuses


@contextmanager
def refusing(verb: str, column: str) -> Iterator[None]:
    """A database that gives up waiting for a lock, at statements with this verb and column."""

    def refuse(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        if sql.startswith(verb) and column in sql:
            raise OperationalError("canceling statement due to lock timeout")
        return execute(sql, *rest)

    with connection.execute_wrapper(refuse):
        yield


def answer_for_all(client: Client, name: str, chosen: list[Identity]) -> str:
    fields = {"action": name, "_selected_action": [one.pk for one in chosen], "confirmed": "yes"}
    response = client.post(LIST, fields, follow=True)
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("error", [ProtectedError, RestrictedError])
def test_what_a_model_of_the_site_protects_keeps_no_other_from_being_unlinked(
    transactional_db: None,
    root: Client,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    atomic: bool,
) -> None:
    """The operator is told which one stays; the history has both."""
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    chosen = [with_password(identity(number)) for number in (1, 2, 3)]

    def protect(instance: Any, **_: Any) -> None:
        if instance.pk == chosen[1].pk:
            raise error("kept by a model of the site", {instance})

    pre_delete.connect(protect, sender=Identity)
    try:
        page = answer_for_all(root, "unlink_identity", chosen)
        alone = answer(root, chosen[1], "unlink_identity", False)
    finally:
        pre_delete.disconnect(protect, sender=Identity)
    for told in ("Unlinked from jane1: sub-1 (op).", "Unlinked from jane3: sub-3 (op)."):
        assert told in page
    refused = f"The database refused it: sub-2 (op), {error.__name__}."
    assert refused in page
    assert refused in alone
    assert Identity.objects.get() == chosen[1]
    for one, count in zip(chosen, (1, 2, 1), strict=True):
        assert LogEntry.objects.filter(object_id=str(one.pk)).count() == count
    history = LogEntry.objects.filter(object_id=str(chosen[1].pk))
    assert all(refused in entry.change_message for entry in history)
    assert Event.objects.filter(name="identity_unlinked").count() == 2


@pytest.mark.parametrize(
    ("name", "verb", "column"),
    [
        ("end_sessions", "INSERT", "logoutmark"),
        ("end_sessions", "UPDATE", '"ended_at"'),
        ("renew_tokens", "UPDATE", '"lease_owner"'),
        ("revoke_tokens", "UPDATE", '"closed_at"'),
        ("unlink_identity", "DELETE", "oidc_rp_identity"),
    ],
)
@pytest.mark.parametrize("from_list", [True, False])
def test_what_the_database_refuses_is_told_and_no_error(
    root: Client, signed_in: Identity, from_list: bool, name: str, verb: str, column: str
) -> None:
    """A lock that somebody holds, say; nothing is done then, and the history says so."""
    with_password(signed_in)
    with refusing(verb, column):
        page = answer(root, signed_in, name, from_list)
    assert "The database refused it:" in page
    assert "OperationalError." in page
    assert "OperationalError." in LogEntry.objects.get().change_message
    assert Identity.objects.filter(pk=signed_in.pk).exists()
    assert Session.objects.get().ended_at is None
    assert (Grant.objects.get().status, Grant.objects.get().refreshes) == ("open", 0)


def test_what_is_refused_for_one_grant_is_done_for_the_others(
    root: Client, signed_in: Identity
) -> None:
    """What was done is told beside what was not."""
    other = grant_of(signed_in, key_id="", refresh_token="")
    held = Grant.objects.exclude(pk=other.pk).get()

    def refuse(execute: Callable[..., Any], sql: str, params: Any, *rest: Any) -> Any:
        if sql.startswith("UPDATE") and '"closed_at"' in sql and held.pk in params:
            raise OperationalError("canceling statement due to lock timeout")
        return execute(sql, params, *rest)

    with connection.execute_wrapper(refuse):
        page = answer(root, signed_in, "revoke_tokens", False)
    assert "1 grant closed" in page
    assert f"The database refused it: op open ({held.pk}), OperationalError." in page
    assert {grant.pk: grant.status for grant in Grant.objects.all()} == {
        held.pk: "open",
        other.pk: "closed",
    }


def test_the_users_page_shows_the_identities(root: Client) -> None:
    """One row for each, with a link to all of it, and nothing to type."""
    one = identity(1)
    page = root.get(f"{USERS}{one.user_id}/change/").content.decode()
    assert "sub-1" in page
    assert f"{LIST}{one.pk}/change/" in page
    assert "oidc_identities-0-sub" not in page
    assert "oidc_identities-0-DELETE" not in page
    assert root.get(f"{USERS}add/").status_code == 200


def test_the_users_page_can_still_be_saved(root: Client) -> None:
    """The inline does not stand in the way of what the page is for."""
    one = identity(1)
    url = f"{USERS}{one.user_id}/change/"
    form = root.get(url).context["adminform"].form
    fields = {name: value for name, value in form.initial.items() if value is not None}
    fields |= {"first_name": "Janet", "date_joined_0": "2024-01-01", "date_joined_1": "00:00:00"}
    fields |= {"groups": [], "user_permissions": []}
    for number, inline in enumerate(root.get(url).context["inline_admin_formsets"]):
        assert number == 0
        management = inline.formset.management_form
        fields |= {management.add_prefix(name): v for name, v in management.initial.items()}
    response = root.post(url, fields)
    assert response.status_code == 302, response.context["errors"]
    assert User.objects.get(pk=one.user_id).first_name == "Janet"
    assert Identity.objects.get().sub == "sub-1"


@pytest.mark.parametrize(("more", "seen"), [((), False), (("view_identity",), True)])
def test_the_inline_respects_permissions(more: tuple[str, ...], seen: bool) -> None:
    """Who may see users but no identities sees none."""
    client, one = staff("view_user", *more), identity(1)
    page = client.get(f"{USERS}{one.user_id}/change/").content.decode()
    assert ("sub-1" in page) == seen


def test_the_inline_joins_a_user_admin_once() -> None:
    """A site's own user admin gets it too; a second time changes nothing."""
    site = admin.AdminSite()
    add_inline(site)

    class OwnUserAdmin(UserAdmin):  # type: ignore[type-arg]
        inlines = ()

    site.register(User, OwnUserAdmin)
    for _ in range(2):
        add_inline(site)
    assert site._registry[User].inlines == [IdentityInline]
    assert OwnUserAdmin.inlines == ()


def test_the_admins_login_page_has_our_buttons(settings: Any) -> None:
    """Who comes for the admin may sign in at an OP, and comes back to the admin."""
    provider = {"ISSUER": "https://op.example", "CLIENT_ID": "rp", "CLIENT_SECRET": "s"}
    settings.OIDC_RP = {"PROVIDERS": {"company": provider}}
    page = Client().get("/admin/login/?next=/admin/auth/").content.decode()
    assert 'href="/oidc/company/login/?next=%2Fadmin%2Fauth%2F"' in page
    assert 'name="password"' in page


# Providers

PROVIDERS = f"{LIST}providers/"


def test_the_providers_page_tells_what_is_known(
    root: Client, op: OpenIDProvider, signed_in: Identity
) -> None:
    """Issuer, age of the metadata, keys, circuit and errors of each; no secret, and no request."""
    ProviderCircuit.objects.create(
        provider="op",
        not_before=datetime(2999, 1, 1, tzinfo=tz.utc),
        failures=3,
        last_error="invalid_client",
        last_error_at=NOON,
    )
    Event.objects.create(provider="op", name="login_refused", code="id_token.aud")
    for number in range(7):
        code = f"transport.timeout{number}"
        Event.objects.create(provider="op", name="backing_off", code=code, reference="")
    asked = len(op.requests)
    page = root.get(PROVIDERS).content.decode()
    assert len(op.requests) == asked
    kid = op.keys[0].kid
    for shown in (
        op.issuer,
        "less than a minute old",
        kid,
        "RSA",
        "invalid_client",
        "after 3 refusals",
    ):
        assert shown in page
    assert page.count("transport.timeout") == 2
    assert (
        page.index("transport.timeout6")
        < page.index("transport.timeout5")
        < page.index("login_refused")
    )
    assert provider_options(op)["CLIENT_SECRET"] not in page
    assert PROVIDERS in root.get(LIST).content.decode()


def test_the_providers_page_asks_no_provider(root: Client, configure: Any, op: Any) -> None:
    """What the cache does not have is told as such."""
    page = root.get(PROVIDERS).content.decode()
    assert page.count("not in the cache") == 2
    assert not op.requests
    names = ("authorization_endpoint", "token_endpoint", "jwks_uri")
    configure(METADATA=dict.fromkeys(names, f"{op.issuer}/there"))
    assert "as the settings say" in root.get(PROVIDERS).content.decode()


def test_the_providers_page_has_a_permission_of_its_own(settings: Any) -> None:
    """Errors only for who may view events."""
    settings.OIDC_RP = {"PROVIDERS": {"op": OPTIONS}}
    Event.objects.create(provider="op", name="backing_off", code="transport.timeout")
    client = staff("view_identity", "view_event")
    assert client.get(PROVIDERS).status_code == 403
    assert PROVIDERS not in client.get(LIST).content.decode()
    User.objects.filter(username="operator").delete()
    page = staff("view_providercircuit").get(PROVIDERS).content.decode()
    assert "https://op.example" in page
    assert "transport.timeout" not in page


def test_the_providers_page_costs_as_much_for_many_events(root: Client, settings: Any) -> None:
    """And for many providers."""
    counts = []
    for number in (3, 30):
        slugs = [f"op{one}" for one in range(number)]
        settings.OIDC_RP = {"PROVIDERS": dict.fromkeys(slugs, OPTIONS)}
        for slug in slugs:
            Event.objects.create(provider=slug, name="backing_off")
        with CaptureQueriesContext(connection) as queries:
            assert root.get(PROVIDERS).status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1] < 20


# Hostile input


@pytest.mark.parametrize(
    "query", ["provider=%00", "provider=%25", "trouble=x", f"q={'%25' * 60_000}", "q=%25"]
)
def test_what_cannot_be_there_is_not_found(root: Client, browser: Browser, query: str) -> None:
    browser.sign_in("op")
    response = root.get(f"{LIST}?{query}")
    assert response.status_code == 200
    assert len(response.context["cl"].result_list) == (query == "trouble=x")


@pytest.mark.parametrize(
    "query", ["claims__x=1", "sub__regex=(", "sub=%00", "user__password__startswith=a", "email=a"]
)
def test_nobody_looks_up_by_other_columns(root: Client, query: str) -> None:
    """Such a look-up could read the whole table, or a column that is nobody's business."""
    assert root.get(f"{LIST}?{query}").status_code == 400


@pytest.mark.parametrize("fetched_at", ["nan", "inf", "-inf", "1e400", None, [], "x"])
def test_a_document_of_no_age_is_not_known(
    root: Client, op: OpenIDProvider, configure: Configure, fetched_at: Any
) -> None:
    shared = {"document": dict(op.metadata), "fetched_at": fetched_at}
    cache.set(document_key(op.url("discovery")), shared)
    response = root.get(f"{LIST}providers/")
    assert response.status_code == 200
    assert "not in the cache" in response.content.decode()
