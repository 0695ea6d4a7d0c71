"""Linked identities in the admin: to look at, to unlink, never to make up."""

from datetime import datetime, timedelta
from datetime import timezone as tz
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from oidc_rp.admin import IdentityInline, add_inline, state_of
from oidc_rp.models import DatabaseClock, Event, Grant, Identity, StoredAccessToken

LIST = "/admin/oidc_rp/identity/"
USERS = "/admin/auth/user/"

pytestmark = pytest.mark.django_db


def identity(number: int, **fields: Any) -> Identity:
    user = User.objects.create_user(f"jane{number}", f"doe{number}@example.com")
    given = {"provider": "op", "iss": "https://op.example", "sub": f"sub-{number}"} | fields
    return Identity.objects.create(user=user, **given)


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
        "provider",
        "created_at",
        "last_login_at",
        "sub",
    ]
    for shown in (one.sub, "jane1", "Jane &lt;Doe&gt;"):
        assert shown in response.content.decode()


def test_the_list_falls_back_on_what_the_op_told(root: Client) -> None:
    """A person without a name is listed by address, or by nothing, never as an error."""
    identity(1, claims={"name": None, "email": "jane@op.example"})
    identity(2, claims={})
    assert "jane@op.example" in root.get(LIST).content.decode()


def test_the_list_is_searched(root: Client) -> None:
    """By the start of a user name or address, and by the exact subject."""
    identity(1)
    identity(2, sub="sub 2")
    identity(11)
    assert subs(root, q="jane") == {"sub-1", "sub 2", "sub-11"}
    assert subs(root, q="JANE2") == {"sub 2"}
    assert subs(root, q="doe1@") == {"sub-1"}
    assert subs(root, q="sub-1") == {"sub-1"}
    assert subs(root, q='"sub 2"') == {"sub 2"}
    assert subs(root, q="sub-") == set()
    assert subs(root, q="example.com") == set()


def test_the_list_is_filtered_by_provider(root: Client) -> None:
    """One provider's identities, or all."""
    identity(1)
    identity(2, provider="other")
    assert subs(root, provider="other") == {"sub-2"}


def test_the_list_costs_as_many_queries_for_a_hundred_as_for_one(root: Client) -> None:
    """No query for each row."""
    counts = []
    for numbers in (range(1), range(1, 100)):
        for number in numbers:
            identity(number)
        with CaptureQueriesContext(connection) as queries:
            root.get(LIST)
        counts.append(len(queries))
    assert counts[0] == counts[1]


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


NOON = datetime(2026, 3, 1, 12, tzinfo=tz.utc)


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
        ({"status": "closed", "close_reason": "rotation_lost"}, "closed: rotation_lost"),
    ],
)
def test_the_state_of_a_grant_is_seen_at_a_glance(columns: dict[str, Any], state: str) -> None:
    """By the database's clock, as refresh.py sees it."""
    now = Grant.objects.annotate(now=DatabaseClock())
    one = grant_of(identity(1))
    times = {
        name: now.get().now + value if isinstance(value, timedelta) else value  # type: ignore[attr-defined]
        for name, value in columns.items()
    }
    Grant.objects.filter(pk=one.pk).update(**times)
    assert str(state_of(now.get())).startswith(state)


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
        "2026-03-01 12:00:00, web-1:42 (#7)",
        "2026-03-01 12:5",  # a minute before the end, less the grant's own jitter
        "2026-03-01 12:00:00 transport.timeout",
        "0011223344556677",
    ):
        assert shown in page


def test_M53_no_token_is_shown_not_even_sealed(root: Client) -> None:
    """Neither on the identity's page nor in the question before it is deleted."""
    one = identity(1)
    grant = grant_of(one)
    StoredAccessToken.objects.create(grant=grant, access_token="v1.00112233.sealed-access-token")
    for action in ("change", "delete"):
        page = root.get(f"{LIST}{one.pk}/{action}/").content.decode()
        assert "sealed" not in page
        assert "v1." not in page


def test_the_identitys_page_tells_what_happened(root: Client) -> None:
    """The newest first, some fifty of them, as text."""
    one = identity(1)
    grant = grant_of(one)
    for number in range(60):
        Event.objects.create(
            identity=one, grant=grant, at=NOON, name="refreshed", code=f"n{number}", actor="<b>web"
        )
    page = root.get(f"{LIST}{one.pk}/change/").content.decode()
    assert page.count("<td>refreshed</td>") == 50
    assert page.index("<td>n59</td>") < page.index("<td>n10</td>")
    assert "<td>n9</td>" not in page
    assert "<td>&lt;b&gt;web</td>" in page
    titles = ("when", "event", "code", "by", "grant")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    assert f"<thead><tr>{head}</tr></thead>" in page
    assert f'<td><span title="{grant.pk}">{grant.pk[-8:]}</span></td>' in page


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({}, 1),
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


def test_the_identitys_page_costs_as_much_with_many_grants(root: Client) -> None:
    """No query for each grant, token or event."""
    one, counts = identity(1), []
    for number in (1, 20):
        for _ in range(number):
            StoredAccessToken.objects.create(grant=grant_of(one))
        with CaptureQueriesContext(connection) as queries:
            root.get(f"{LIST}{one.pk}/change/")
        counts.append(len(queries))
    assert counts[0] == counts[1]


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
    assert ("<td>in_doubt</td>" in page) == events
    assert 'name="grants-0-scope"' not in page


def test_deleting_unlinks_after_a_question(root: Client) -> None:
    """An operator unlinks an identity by deleting it; the user stays."""
    one = identity(1)
    question = root.get(f"{LIST}{one.pk}/delete/").content.decode()
    assert "sub-1 (op)" in question
    assert Identity.objects.exists()
    root.post(f"{LIST}{one.pk}/delete/", {"post": "yes"})
    assert not Identity.objects.exists()
    assert User.objects.filter(pk=one.user_id).exists()


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
