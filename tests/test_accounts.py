"""Verified claims -> user: a person is (iss, sub), and nothing else chooses an account."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models.signals import post_delete, pre_save
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from oidc_rp import accounts, conf, sessions
from oidc_rp.accounts import VerifiedClaims, account_for, email_domain
from oidc_rp.backends import OIDCBackend
from oidc_rp.errors import LoginRefused
from oidc_rp.models import Identity
from oidc_rp.protocol.id_token import IdTokenClaims
from oidc_rp.protocol.token_endpoint import TokenResponse
from oidc_rp.protocol.tokens import AccessToken
from oidc_rp.relying_party import Login
from oidc_rp.testing import REMOVE, OpenIDProvider, merged
from oidc_rp.testing.browser import Browser, Response
from tests.conftest import Configure
from tests.test_conf import GOOD

ROOT = Path(__file__).parent.parent
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
OIDC_BACKEND = "oidc_rp.backends.OIDCBackend"


def outcome(response: Response) -> str:
    """The code of a refusal, or where a sign-in led to."""
    if response.status_code == 302:
        return str(response.url)
    assert 400 <= response.status_code < 500
    assert response.templates[0].name == "oidc_rp/refusal.html"
    return str(response.context["code"])


def sign_in(browser: Browser | None = None) -> User:
    """Sign in, in a new browser unless one is given; return who is signed in."""
    browser = browser or Browser()
    assert outcome(browser.sign_in("op")) == "/home/"
    return User.objects.get(pk=browser.client.session["_auth_user_id"])


def refusal(browser: Browser | None = None) -> str:
    """Be refused; return the code. Nobody is signed in."""
    browser = browser or Browser()
    before = browser.client.session.get("_auth_user_id")
    code = outcome(browser.sign_in("op"))
    assert "." in code
    assert browser.client.session.get("_auth_user_id") == before
    return code


@pytest.fixture(autouse=True)
def _site(request: pytest.FixtureRequest) -> None:
    """A site with one OP and a database, where a test signs somebody in."""
    if "op" in request.fixturenames:
        request.getfixturevalue("browser")


# The first sign-in and the next


def test_first_sign_in_creates_a_user(op: OpenIDProvider) -> None:
    """A user with the mapped claims, no password, no privilege, and an identity with all claims."""
    user = sign_in()
    assert (user.email, user.first_name, user.last_name) == ("janedoe@example.com", "Jane", "Doe")
    assert user.username.startswith("oidc_")
    assert not user.has_usable_password()
    assert not user.is_staff
    assert not user.is_superuser
    identity = user.oidc_identities.get()  # type: ignore[attr-defined]
    assert (identity.provider, identity.iss, identity.sub) == ("op", op.issuer, "248289761001")
    assert identity.claims["address"] == op.person["address"]
    assert identity.claims["iss"] == op.issuer
    assert not {"nonce", "at_hash"} & set(identity.claims)
    assert timezone.now() - identity.created_at < timedelta(minutes=1)


def test_M33_second_sign_in_finds_by_iss_and_sub_whatever_else_changes(op: OpenIDProvider) -> None:
    """The same subject with another name and address is the same user, brought up to date."""
    before = sign_in()
    op.person |= {"email": "other@example.com", "given_name": "Janet", "preferred_username": "x"}
    after = sign_in()
    assert after == before
    assert (after.email, after.first_name) == ("other@example.com", "Janet")
    identity = Identity.objects.get()
    assert identity.claims["email"] == "other@example.com"
    assert identity.last_login_at > identity.created_at


@pytest.mark.parametrize(
    ("known", "claims"),
    [
        ({"username": "j.doe"}, {}),
        ({"username": "janedoe@example.com"}, {}),
        ({"username": "jane", "email": "janedoe@example.com"}, {}),
        ({"username": "248289761001"}, {}),
        ({"username": "jane"}, {"upn": "jane", "preferred_username": "jane", "name": "jane"}),
    ],
)
def test_M33_no_address_or_name_selects_a_user(
    op: OpenIDProvider, known: dict[str, str], claims: dict[str, str]
) -> None:
    """Somebody who is called like a local user is somebody else."""
    local = User.objects.create_user(**known)
    op.person |= claims
    user = sign_in()
    assert user != local
    assert not local.oidc_identities.exists()  # type: ignore[attr-defined]
    local.refresh_from_db()
    assert local.last_login is None


def test_another_subject_is_another_user(op: OpenIDProvider) -> None:
    """Two people with one address stay two."""
    first = sign_in()
    op.person["sub"] = "another"
    assert sign_in() != first


def test_the_same_sub_at_another_issuer_is_another_user(op: OpenIDProvider) -> None:
    """sub means nothing without iss."""
    stranger = User.objects.create_user("stranger")
    Identity.objects.create(
        user=stranger, provider="other", iss="https://other.example", sub=op.person["sub"]
    )
    assert sign_in() != stranger


def test_create_users_can_be_switched_off(op: OpenIDProvider, configure: Configure) -> None:
    """With CREATE_USERS False only who is known may come; nothing is stored of the others."""
    configure(CREATE_USERS=False)
    assert refusal() == "account.unknown"
    assert not User.objects.exists()
    user = User.objects.create_user("jane")
    Identity.objects.create(user=user, provider="op", iss=op.issuer, sub=op.person["sub"])
    assert sign_in() == user


def test_M35_a_taken_user_name_signs_in_as_nobody(configure: Configure) -> None:
    """A collision at creation is a refusal: no other account, and nothing left behind."""
    configure(CLAIMS={"username": "preferred_username", "email": "email"})
    local = User.objects.create_user("j.doe", "janedoe@example.com")
    assert refusal() == "account.collision"
    assert list(User.objects.all()) == [local]
    assert not Identity.objects.exists()


@pytest.fixture
def cleaned() -> Iterator[None]:
    """A site whose users are validated whenever they are saved."""

    def clean(instance: User, **_: Any) -> None:
        instance.full_clean(exclude=["password"])

    pre_save.connect(clean, sender=User)
    yield
    pre_save.disconnect(clean, sender=User)


def test_M35_a_taken_user_name_that_validation_finds_is_a_refusal(
    op: OpenIDProvider, configure: Configure, cleaned: None
) -> None:
    """A model that validates when it saves refuses before the database does: the same outcome."""
    configure(CLAIMS={"username": "preferred_username", "first_name": "given_name"})
    local = User.objects.create_user("j.doe")
    assert Browser().sign_in("op").status_code == 403
    assert refusal() == "account.collision"
    assert list(User.objects.all()) == [local]
    op.person["preferred_username"] = "jane"
    user = sign_in()
    op.person |= {"preferred_username": "j.doe", "given_name": "Janet"}
    again = sign_in()
    assert (again.pk, again.username, again.first_name) == (user.pk, "jane", "Janet")


def test_M35_a_name_that_becomes_taken_is_not_taken_over(
    op: OpenIDProvider, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    """A collision at a later sign-in keeps the old name, stores the rest, locks nobody out."""
    configure(CLAIMS={"username": "preferred_username", "first_name": "given_name"})
    user = sign_in()
    local = User.objects.create_user("root")
    op.person |= {"preferred_username": "root", "given_name": "Janet"}
    again = sign_in()
    assert again == user != local
    assert (again.username, again.first_name) == ("j.doe", "Janet")
    assert any("claims not stored" in record.getMessage() for record in caplog.records)


def test_M38_an_inactive_user_is_refused(op: OpenIDProvider) -> None:
    """Whoever was deactivated does not sign in, and nothing of them changes."""
    user = sign_in()
    User.objects.update(is_active=False)
    op.person["given_name"] = "Janet"
    assert refusal() == "account.inactive"
    user.refresh_from_db()
    assert user.first_name == "Jane"


def test_M38_a_user_who_becomes_inactive_is_signed_out(op: OpenIDProvider) -> None:
    """Deactivating ends the sessions that there are: the next request is nobody's."""
    browser = Browser()
    sign_in(browser)
    assert browser.client.get("/private/").status_code == 200
    User.objects.update(is_active=False)
    assert browser.client.get("/private/").status_code == 302


def test_M38_a_claim_that_deactivates_signs_nobody_in(
    op: OpenIDProvider, configure: Configure
) -> None:
    """An `active` claim mapped to is_active takes effect at once."""
    configure(CLAIMS={"is_active": "active"})
    sign_in()
    op.person["active"] = False
    assert refusal() == "account.inactive"
    assert not User.objects.get().is_active


# What claims say


@pytest.mark.parametrize("value", [None, REMOVE])
@pytest.mark.parametrize("name", ["given_name", "email", "address", "family_name"])
def test_null_and_missing_claims_change_nothing(
    op: OpenIDProvider, name: str, value: object
) -> None:
    """GenAuth sends null for what it does not know."""
    before = sign_in()
    op.person = merged(op.person, {name: value})
    after = sign_in()
    assert (after.email, after.first_name, after.last_name) == (
        before.email,
        before.first_name,
        before.last_name,
    )
    assert name not in Identity.objects.get().claims


def test_updated_at_may_be_text(op: OpenIDProvider, configure: Configure) -> None:
    """A NumericDate or ISO 8601 text: both are kept, and both fill a field."""
    configure(CLAIMS={"date_joined": "updated_at"})
    assert sign_in().date_joined.timestamp() == 1311280970
    for text in ("2024-02-03T04:05:06.000Z", "2024-02-03T05:05:06+01:00", "2024-02-03 04:05:06"):
        op.person["updated_at"] = text
        assert sign_in().date_joined.isoformat() == "2024-02-03T04:05:06+00:00"
        assert Identity.objects.get().claims["updated_at"] == text


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-10:00", 253402300800, -1e20]
)
def test_a_time_beyond_the_calendar_is_left_out(
    op: OpenIDProvider, configure: Configure, moment: object
) -> None:
    """What no database keeps in UTC fills no field, and stops nobody."""
    configure(CLAIMS={"date_joined": "updated_at"})
    op.person["updated_at"] = moment
    for _ in range(2):
        assert timezone.now() - sign_in().date_joined < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("told", "read"),
    [(True, True), ("true", True), ("True", True), (False, False), ("false", False), ("no", "no")],
)
def test_booleans_as_text_are_read_as_what_they_say(
    op: OpenIDProvider, told: object, read: object
) -> None:
    """ "true" is true and "false" is false; any other text stays text."""
    op.person |= {"email_verified": told, "phone_number_verified": told}
    sign_in()
    claims = Identity.objects.get().claims
    assert (claims["email_verified"], claims["phone_number_verified"]) == (read, read)


def test_the_id_token_wins_over_userinfo(op: OpenIDProvider) -> None:
    """What is signed counts more, and UserInfo has no say about the sign-in itself."""
    op.id_token_claims |= {"given_name": "Signed", "family_name": None}
    op.userinfo_claims |= {"iss": "https://x.example", "aud": "x", "exp": 1, "acr": "high"}
    user = sign_in()
    assert (user.first_name, user.last_name) == ("Signed", "Doe")
    claims = Identity.objects.get().claims
    assert (claims["iss"], claims["aud"]) == (op.issuer, op.client_id)
    assert "acr" not in claims


HOSTILE = [
    5,
    -1.5e300,
    True,
    [],
    ["Jane"],
    {},
    {"a": {"b": []}},
    "x" * 200_000,
    "not an address",
    "<script>alert(1)</script>" * 20,
    "\u202e\u0301\U0001f600" * 100,
    10**400,
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("again", [False, True])
def test_hostile_claims_are_left_out(
    op: OpenIDProvider, configure: Configure, value: object, again: bool
) -> None:
    """A value that does not fit its field fills nothing: at creation, and at the next sign-in."""
    configure(
        CLAIMS={
            "email": "email",
            "first_name": "given_name",
            "date_joined": "updated_at",
            "is_active": "active",
        }
    )
    if again:
        sign_in()
    names = ("email", "given_name", "updated_at", "active", "address", "email_verified")
    op.person |= dict.fromkeys(names, value)
    op.person |= {"active": None} if value is not True else {}
    user = sign_in()
    user.full_clean(exclude=["password"])
    assert user.email == ("janedoe@example.com" if again else "")


def test_a_name_is_normalised_as_django_does(op: OpenIDProvider, configure: Configure) -> None:
    """A user name in another Unicode form, or a domain in capitals, is not stored as a second."""
    configure(CLAIMS={"username": "preferred_username", "email": "email"})
    op.person |= {"preferred_username": "\uff4a\uff41\uff4e\uff45", "email": "Jane@EXAMPLE.com"}
    for _ in range(2):
        user = sign_in()
        assert (user.username, user.email) == ("jane", "Jane@example.com")


def test_a_returning_user_costs_no_write_that_changes_nothing(op: OpenIDProvider) -> None:
    """The user's row is written for last_login alone when the claims say the same."""
    sign_in()
    browser = Browser()
    callback = browser.visit_op(browser.start("op"))
    with CaptureQueriesContext(
        connection,
    ) as queries:
        browser.come_back(callback)
    table = connection.ops.quote_name("auth_user")
    writes = [q["sql"] for q in queries if q["sql"].startswith(f"UPDATE {table} ")]
    assert len(writes) == 1
    assert "last_login" in writes[0]


# Groups and privileges

CLAIM = "https://example.com/roles"


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("groups", {"groups": ["editor", "other"]}),
        ("groups", {"groups": "editor"}),
        ("groups", {"groups": ["editor", 5, None, {"x": 1}]}),
        ("realm_access.roles", {"realm_access": {"roles": ["editor"]}}),
        (CLAIM, {CLAIM: ["editor"]}),
        ("a.b", {"a.b": ["editor"], "a": {"b": ["writer"]}}),
    ],
)
def test_groups_are_added_from_a_claim(
    op: OpenIDProvider, configure: Configure, path: str, claims: dict[str, Any]
) -> None:
    """The claim has that exact name, dots and all, or lies at that path."""
    configure(GROUPS_CLAIM=path, GROUPS={"editor": "Editors", "writer": "Writers"})
    op.person |= claims
    assert [group.name for group in sign_in().groups.all()] == ["Editors"]


def test_groups_are_removed_and_only_those_that_are_managed(
    op: OpenIDProvider, configure: Configure
) -> None:
    """What the OP gave it takes; what the site gave stays."""
    configure(GROUPS_CLAIM="groups", GROUPS={"editor": "Editors", "chief": "Editors", "w": "W"})
    op.person["groups"] = ["editor", "w", "Admins"]
    user = sign_in()
    user.groups.add(Group.objects.create(name="Local"), Group.objects.create(name="Admins"))
    for groups, expected in [
        (["chief"], ["Admins", "Editors", "Local"]),
        ([], ["Admins", "Local"]),
        (["w"], ["Admins", "Local", "W"]),
    ]:
        op.person["groups"] = groups
        sign_in()
        assert sorted(user.groups.values_list("name", flat=True)) == expected


@pytest.mark.parametrize("claim", [REMOVE, None, 5, True, {"editor": True}])
def test_a_groups_claim_that_is_missing_changes_nothing(
    op: OpenIDProvider, configure: Configure, claim: object
) -> None:
    """Only a list, or one text, says what somebody is; silence does not take it away."""
    configure(
        GROUPS_CLAIM="groups",
        GROUPS={"editor": "Editors"},
        STAFF_GROUPS=["admin"],
        SUPERUSER_GROUPS=["root"],
    )
    op.person["groups"] = ["editor", "admin", "root"]
    sign_in()
    op.person = merged(op.person, {"groups": claim})
    user = sign_in()
    assert (user.groups.count(), user.is_staff, user.is_superuser) == (1, True, True)


@pytest.mark.parametrize(
    ("groups", "staff", "superuser"),
    [
        (["admin"], True, False),
        (["root"], False, True),
        (["admin", "root"], True, True),
        (["editor"], False, False),
        (["ADMIN", "admin ", "administrator"], False, False),
        ([], False, False),
    ],
)
def test_privileges_are_set_and_unset_by_groups(
    op: OpenIDProvider, configure: Configure, groups: list[str], staff: bool, superuser: bool
) -> None:
    """Any of the named groups sets the flag and none of them unsets it, whatever it was."""
    configure(GROUPS_CLAIM="groups", STAFF_GROUPS=["admin"], SUPERUSER_GROUPS=["root"])
    op.person["groups"] = groups
    for flags in ({}, {"is_staff": True, "is_superuser": True}, {"is_staff": False}):
        User.objects.update(**flags) if flags else None
        user = sign_in()
        assert (user.is_staff, user.is_superuser) == (staff, superuser)


def test_privileges_come_from_nothing_else(op: OpenIDProvider, configure: Configure) -> None:
    """Claims that are called like a privilege give none, and a flag set here stays."""
    configure(CLAIMS={"is_staff": "is_staff", "is_superuser": "is_superuser", "id": "id"})
    op.person |= {"is_staff": True, "is_superuser": True, "id": 99, "groups": ["admin"]}
    user = sign_in()
    assert (user.is_staff, user.is_superuser, user.groups.count()) == (False, False, 0)
    assert user.pk != 99
    User.objects.update(is_staff=True)
    op.person["is_staff"] = False
    assert sign_in().is_staff


# E-mail domains


@pytest.mark.parametrize(
    ("email", "domain"),
    [
        ("jane@example.com", "example.com"),
        (" Jane@EXAMPLE.com. ", "example.com"),
        ("jane+x@sub.example.com", "sub.example.com"),
        ("jane@evil.example@example.com", None),
        ('"jane@example.com"@evil.example', None),
        ("jane@example.com@evil.example", None),
        ("jane@\uff45xample.com", None),
        ("jane@exämple.com", None),
        ("jane@example.com\u200b", None),
        ("example.com", None),
        ("@example.com", None),
        ("jane@", None),
        ("@", None),
        ("", None),
    ],
)
def test_M36_an_address_has_one_domain_or_none(email: str, domain: str | None) -> None:
    """The domain is what follows the only "@", normalised; where that is unclear there is none."""
    assert email_domain(email) == domain


@pytest.mark.parametrize(
    ("code", "claims"),
    [
        ("/home/", {}),
        ("/home/", {"email": "jane@Example.COM"}),
        ("/home/", {"email": "jane@xn--bcher-kva.example"}),
        ("account.email_domain", {"email": "jane@other.example"}),
        ("account.email_domain", {"email": "jane@sub.example.com"}),
        ("account.email_domain", {"email": "jane@notexample.com"}),
        ("account.email_domain", {"email": "jane@example.com.evil.example"}),
        ("account.email_domain", {"email": "evil@evil.example@example.com"}),
        ("account.email_domain", {"email": "jane@exa\u200bmple.com"}),
        ("account.email_domain", {"email": ["jane@example.com"]}),
        ("account.email_domain", {"email": None}),
        ("account.email_domain", {"email_verified": False}),
        ("account.email_domain", {"email_verified": None}),
        ("account.email_domain", {"email_verified": "yes"}),
        ("account.email_domain", {"email_verified": 1}),
    ],
)
def test_M36_only_verified_addresses_in_the_allowed_domains_may_come(
    op: OpenIDProvider, configure: Configure, code: str, claims: dict[str, Any]
) -> None:
    """Equality of whole domains, on an address that the OP vouches for."""
    configure(EMAIL_DOMAINS=["EXAMPLE.com", "xn--bcher-kva.example"])
    op.person |= claims
    assert outcome(Browser().sign_in("op")) == code
    assert User.objects.exists() == (code == "/home/")


@pytest.mark.parametrize(
    ("code", "signed"),
    [
        ("/home/", {}),
        ("/home/", {"email": "janedoe@example.com"}),
        ("/home/", {"email": "boss@example.com", "email_verified": True}),
        ("account.email_domain", {"email": "boss@example.com"}),
        ("account.email_domain", {"email": "boss@example.com", "email_verified": None}),
        ("account.email_domain", {"email": "JaneDoe@example.com"}),
    ],
)
def test_M36_userinfo_vouches_for_its_own_address_and_no_other(
    op: OpenIDProvider, configure: Configure, code: str, signed: dict[str, Any]
) -> None:
    """email_verified says something of the address that came with it."""
    configure(EMAIL_DOMAINS=["example.com"])
    op.id_token_claims |= signed
    op.userinfo_claims |= {"email": "janedoe@example.com", "email_verified": True}
    assert outcome(Browser().sign_in("op")) == code


def test_M36_the_domain_is_asked_at_each_sign_in(op: OpenIDProvider, configure: Configure) -> None:
    """Whoever leaves the company stays out, known or not."""
    configure(EMAIL_DOMAINS=["example.com"])
    sign_in()
    op.person["email"] = "jane@other.example"
    assert refusal() == "account.email_domain"


# Tenants


def multi_tenant(op: OpenIDProvider, configure: Configure, **options: Any) -> None:
    """Make the OP one with a tenant in its issuer, as Entra ID does, and "one" the only guest."""
    template = op.origin + "/{tenantid}/v2.0"
    op.metadata["issuer"] = template
    configure(ISSUER=template, TENANTS=["one"], **options)
    from_tenant(op, "one")


def from_tenant(op: OpenIDProvider, tenant: str, **claims: Any) -> None:
    iss = f"{op.origin}/{tenant}/v2.0"
    op.authorization_params["iss"] = iss
    op.id_token_claims |= {"iss": iss, "tid": tenant} | claims


@pytest.fixture
def op_of_tenants(signing_key: Any) -> Any:
    with OpenIDProvider(keys=[signing_key], issuer_path="/organizations/v2.0") as provider:
        yield provider


class TestTenants:
    """ISSUER with {tenantid}, and TENANTS, from the settings to the identity."""

    @pytest.fixture
    def op(self, op_of_tenants: OpenIDProvider) -> OpenIDProvider:
        return op_of_tenants

    def test_M37_a_person_of_a_trusted_tenant_signs_in(
        self, op: OpenIDProvider, configure: Configure
    ) -> None:
        """The identity has the tenant's own issuer."""
        multi_tenant(op, configure)
        sign_in()
        assert Identity.objects.get().iss == f"{op.origin}/one/v2.0"

    @pytest.mark.parametrize(
        ("code", "tenant", "claims"),
        [
            ("response.iss", "two", {}),
            ("id_token.tid", "one", {"tid": "two"}),
            ("id_token.tid", "one", {"tid": REMOVE}),
            ("id_token.tid", "one", {"tid": ["one"]}),
            ("id_token.tid", "one", {"tid": "ONE"}),
            ("id_token.iss", "one", {"iss": "https://op.example/one/v2.0"}),
            ("id_token.iss", "one", {"iss": REMOVE}),
        ],
    )
    def test_M37_iss_must_be_that_of_an_allowed_tenant(
        self,
        op: OpenIDProvider,
        configure: Configure,
        code: str,
        tenant: str,
        claims: dict[str, Any],
    ) -> None:
        """Another tenant, no tenant, or an issuer that is not the tenant's own: refused."""
        multi_tenant(op, configure)
        from_tenant(op, tenant, **claims)
        assert refusal() == code
        assert not User.objects.exists()

    def test_M37_the_template_itself_is_no_issuer(
        self, op: OpenIDProvider, configure: Configure
    ) -> None:
        """A token that says {tenantid} says nothing."""
        multi_tenant(op, configure)
        op.id_token_claims |= {"iss": op.origin + "/{tenantid}/v2.0", "tid": "{tenantid}"}
        assert refusal() == "id_token.tid"

    @pytest.mark.parametrize(
        ("code", "claims"),
        [
            ("/home/", {"oid": "o1", "xms_edov": True}),
            ("/home/", {"oid": "o1", "xms_edov": "1"}),
            ("account.email_domain", {"oid": "o1"}),
            ("account.email_domain", {"xms_edov": True}),
            ("account.email_domain", {"oid": "o1", "xms_edov": False}),
            ("account.email_domain", {"oid": "o1", "xms_edov": "0"}),
        ],
    )
    def test_M34_a_tenants_word_for_an_address_takes_xms_edov_oid_and_tid(
        self, op: OpenIDProvider, configure: Configure, code: str, claims: dict[str, Any]
    ) -> None:
        """email_verified is not enough where a tenant writes its own directory."""
        multi_tenant(op, configure, EMAIL_DOMAINS=["example.com"])
        from_tenant(op, "one", **claims)
        assert outcome(Browser().sign_in("op")) == code


# Linking by e-mail: dangerous, and so with conditions


def verified(user: User) -> bool:
    return user.first_name != "unverified"


def local_user(username: str = "jane", **fields: Any) -> User:
    given = {"email": "JaneDoe@example.com", "password": "pw"} | fields
    return User.objects.create_user(username, **given)


def link(user: User, *, by_post: bool = True) -> tuple[Browser, str]:
    """Sign in locally, press the button, come back; return the browser and the outcome."""
    browser = Browser()
    assert browser.client.login(username=user.username, password="pw")
    if by_post:
        return browser, by_button(browser)
    return browser, outcome(browser.sign_in("op"))


def by_button(browser: Browser) -> str:
    """Press the button, come back; return the outcome."""
    url = browser.client.post("/oidc/op/login/").headers["Location"]
    return outcome(browser.come_back(browser.visit_op(url)))


def age_local_login(browser: Browser, age: timedelta) -> None:
    """Let this session's local login be so long ago."""
    session = browser.client.session
    session[sessions.LOCAL] -= age.total_seconds()
    session.save()


@pytest.fixture
def linking(op: OpenIDProvider, configure: Configure) -> None:
    configure(DANGEROUSLY_LINK_BY_EMAIL=verified)


@pytest.mark.usefixtures("linking")
def test_M34_linking_by_e_mail_from_refusal_to_link(op: OpenIDProvider) -> None:
    """Refused at first; linked after a local login and a button pressed; then it signs in."""
    jane = local_user()
    assert refusal() == "account.confirm"
    assert not Identity.objects.exists()
    browser, where = link(jane)
    assert where == "/home/"
    assert browser.client.session["_auth_user_id"] == str(jane.pk)
    assert Identity.objects.get().user == jane
    assert sign_in() == jane
    assert User.objects.count() == 1


@pytest.mark.usefixtures("linking")
def test_M11_M38_a_login_started_by_GET_links_nothing(op: OpenIDProvider) -> None:
    """A link that somebody was made to follow does not link; only a form of ours does."""
    jane = local_user()
    _, where = link(jane, by_post=False)
    assert where == "account.confirm"
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("linking")
def test_M38_a_local_login_of_long_ago_links_nothing(op: OpenIDProvider) -> None:
    """Whoever left the browser open must sign in again."""
    jane, browser = local_user(), Browser()
    browser.client.force_login(jane, MODEL_BACKEND)
    age_local_login(browser, accounts.FRESH + timedelta(seconds=1))
    assert by_button(browser) == "account.confirm"


@pytest.mark.usefixtures("linking")
def test_M38_a_fresh_login_elsewhere_confirms_nothing_here(op: OpenIDProvider) -> None:
    """A session of ten days ago stays one of ten days ago, whoever has just signed in elsewhere."""
    jane, browser = local_user(), Browser()
    browser.client.force_login(jane, MODEL_BACKEND)
    age_local_login(browser, timedelta(days=10))
    assert Client().login(username="jane", password="pw")
    jane.refresh_from_db()
    assert jane.last_login is not None
    assert timezone.now() - jane.last_login < accounts.FRESH
    assert by_button(browser) == "account.confirm"
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("linking")
def test_M11_M38_a_button_pressed_by_nobody_links_nobody_who_comes_later(
    op: OpenIDProvider,
) -> None:
    """Only the user who pressed the button has asked to link."""
    local_user()
    browser = Browser()
    callback = browser.visit_op(browser.client.post("/oidc/op/login/").headers["Location"])
    assert browser.client.login(username="jane", password="pw")
    assert outcome(browser.come_back(callback)) == "account.confirm"
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("linking")
def test_M38_a_password_typed_after_a_login_through_an_op_confirms(op: OpenIDProvider) -> None:
    """The same user, in the same session, has signed in by other means now."""
    jane, browser = local_user(), Browser()
    Identity.objects.create(user=jane, provider="op", iss=op.issuer, sub=op.person["sub"])
    assert sign_in(browser) == jane
    Identity.objects.all().delete()
    assert by_button(browser) == "account.confirm"
    assert browser.client.login(username="jane", password="pw")
    assert by_button(browser) == "/home/"
    assert Identity.objects.get().user == jane


@pytest.mark.usefixtures("linking")
def test_M38_somebody_else_who_is_signed_in_is_not_linked(op: OpenIDProvider) -> None:
    """The link lands on the account that carries the address, or nowhere."""
    jane, eve = local_user(), local_user("eve", email="eve@example.com")
    _, where = link(eve)
    assert where == "account.confirm"
    assert not Identity.objects.filter(user__in=[jane, eve]).exists()


@pytest.mark.usefixtures("linking")
def test_M38_a_login_through_an_op_confirms_no_link(op: OpenIDProvider) -> None:
    """What confirms is a login by other means than the one to be linked."""
    op.person["email"] = "first@example.com"
    browser = Browser()
    user = sign_in(browser)
    op.person |= {"sub": "another", "email": "first@example.com"}
    url = browser.client.post("/oidc/op/login/").headers["Location"]
    assert outcome(browser.come_back(browser.visit_op(url))) == "account.match"
    assert user.oidc_identities.count() == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("linking")
@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("account.match", {"is_staff": True}),
        ("account.match", {"is_superuser": True}),
        ("account.match", {"first_name": "unverified"}),
    ],
)
def test_M34_not_every_account_may_be_linked(
    op: OpenIDProvider, code: str, fields: dict[str, Any]
) -> None:
    """Nobody privileged, and only an address that this site has verified itself."""
    assert link(local_user(**fields))[1] == code
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("linking")
def test_M38_an_inactive_account_is_not_linked(op: OpenIDProvider) -> None:
    """Signing in elsewhere does not bring a closed account back."""
    local_user(is_active=False)
    assert refusal() == "account.inactive"


@pytest.mark.usefixtures("linking")
def test_M34_two_accounts_with_one_address_are_not_linked(op: OpenIDProvider) -> None:
    """Exactly one user, or none."""
    jane = local_user()
    local_user("jane2", email="janedoe@EXAMPLE.COM")
    assert link(jane)[1] == "account.match"
    assert not Identity.objects.exists()


@pytest.mark.usefixtures("linking")
def test_M34_an_account_of_another_subject_is_not_linked(op: OpenIDProvider) -> None:
    """One person at one OP is one account's; a recycled address is somebody else's."""
    jane = local_user()
    Identity.objects.create(user=jane, provider="op", iss=op.issuer, sub="the one before")
    assert link(jane)[1] == "account.match"
    assert Identity.objects.count() == 1


@pytest.mark.usefixtures("linking")
@pytest.mark.parametrize(
    "claims",
    [
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": 1},
        {"email_verified": "yes"},
        {"email_verified": ["true"]},
        {"email": ""},
        {"email": "janedoe@example.com@example.com"},
    ],
)
def test_M34_an_address_that_the_op_does_not_vouch_for_links_nothing(
    op: OpenIDProvider, claims: dict[str, Any]
) -> None:
    """email_verified must be true; then it is another account, as without the option."""
    jane = local_user()
    local_user("nobody", email="")
    op.person |= claims
    browser, where = link(jane)
    assert where == "/home/"
    assert browser.client.session["_auth_user_id"] != str(jane.pk)
    assert User.objects.count() == 3


@pytest.mark.parametrize(
    ("email", "claim", "same"),
    [
        ("mike@x.example", "mike@x.example", True),
        ("Mike@X.example", "mike@x.EXAMPLE", True),
        ("jörg@x.example", "jörg@x.example", True),
        ("mike@x.example", "m\u0131ke@x.example", False),
        ("m\u0131ke@x.example", "mike@x.example", False),
        ("JÖRG@x.example", "jörg@x.example", False),
        (
            "mike@x.example",
            "mi\u212ae@x.example",
            False,
        ),  # the sign for kelvin, a "k" in lower case
        ("mike@x.example", "mike@x.example ", False),
        ("mike@x.example", "mïke@x.example", False),
    ],
)
def test_M34_addresses_that_a_database_takes_for_one_are_two(
    email: str, claim: str, same: bool
) -> None:
    """Capitals make no difference in ASCII; anything else must be equal as it stands."""
    assert accounts._same(email, VerifiedClaims({"email": claim}, provider_with())) == same


def test_M34_nothing_is_linked_by_default(op: OpenIDProvider) -> None:
    """Without the option a fresh local login and a button pressed link nothing."""
    jane = local_user()
    browser, where = link(jane)
    assert where == "/home/"
    assert browser.client.session["_auth_user_id"] != str(jane.pk)
    assert not jane.oidc_identities.exists()  # type: ignore[attr-defined]


# Linking and unlinking by hand; the page itself is in test_identities.py


def test_M38_link_takes_an_identity_that_nobody_has(op: OpenIDProvider, db: None) -> None:
    """No user is made, found or filled, whatever the claims and the options say."""
    provider = provider_with(DANGEROUSLY_LINK_BY_EMAIL=verified, CREATE_USERS=True)
    login = login_with(provider, {"email": "eve@example.com", "email_verified": True})
    jane, _eve = local_user(), local_user("eve", email="eve@example.com")
    linked = accounts.link(login, OIDCBackend(), jane)
    assert (linked.user, linked.identity.user, linked.linked) == (jane, jane, True)
    again = accounts.link(login, OIDCBackend(), jane)
    assert (again.identity, again.linked) == (linked.identity, False)
    jane.refresh_from_db()
    assert jane.email == "JaneDoe@example.com"
    assert User.objects.count() == 2


def link_refused(login: Login, user: User) -> str:
    with pytest.raises(LoginRefused) as refused:
        accounts.link(login, OIDCBackend(), user)
    return refused.value.code


def test_M38_link_moves_nothing_and_nobody(db: None) -> None:
    """Neither what is somebody else's, nor to somebody inactive or barred."""
    login = login_with(provider_with(), {})
    jane, eve = local_user(), local_user("eve", email="eve@example.com")
    assert link_refused(login, local_user("gone", is_active=False)) == "account.inactive"
    barred = login_with(provider_with(EMAIL_DOMAINS=["corp.example"]), {})
    assert link_refused(barred, jane) == "account.email_domain"
    assert not Identity.objects.exists()
    identity = accounts.link(login, OIDCBackend(), jane).identity
    assert link_refused(login, eve) == "account.linked_elsewhere"
    assert Identity.objects.get() == identity
    assert Identity.objects.get().user == jane


@pytest.mark.django_db(transaction=True)
def test_M38_link_to_a_user_who_was_deleted_meanwhile_is_a_refusal() -> None:
    """The database has the last word."""
    deleted = local_user("deleted")
    User.objects.filter(pk=deleted.pk).delete()
    assert link_refused(login_with(provider_with(), {}), deleted) == "account.collision"
    assert not Identity.objects.exists()


def ways_in(op: OpenIDProvider, *isses: str) -> tuple[User, list[Identity]]:
    """Somebody with these identities and no password."""
    user = User.objects.create_user("jane")
    rows = [
        Identity.objects.create(user=user, provider="op", iss=iss or op.issuer, sub=str(number))
        for number, iss in enumerate(isses)
    ]
    return user, rows


def test_M38_the_last_way_in_is_not_unlinked(op: OpenIDProvider) -> None:
    """What another user has is no way in, nor what no provider of this site vouches for."""
    _jane, (identity, elsewhere) = ways_in(op, "", "https://other.example")
    other = User.objects.create_user("other")
    Identity.objects.create(user=other, provider="op", iss=op.issuer, sub="other")
    assert not accounts.may_unlink(identity)
    assert not accounts.unlink(identity)
    assert accounts.unlink(elsewhere)
    assert not accounts.unlink(identity)
    assert Identity.objects.filter(pk=identity.pk).exists()


@pytest.mark.parametrize(
    ("backends", "may"),
    [
        ([OIDC_BACKEND, MODEL_BACKEND], True),
        (["tests.test_accounts.Subclass", "tests.test_backends.AnswersEverybody"], True),
        ([OIDC_BACKEND], False),
        (["tests.test_accounts.Subclass"], False),
        ([OIDC_BACKEND, "tests.test_accounts.ForPermissions"], False),
        ([OIDC_BACKEND, "django.contrib.auth.backends.RemoteUserBackend"], False),
    ],
)
def test_M38_a_password_is_a_way_in_where_a_backend_asks_for_it(
    op: OpenIDProvider, settings: Any, backends: list[str], may: bool
) -> None:
    """A backend for the word of an OP does not, nor one for permissions or for another proof."""
    user, (identity,) = ways_in(op, "")
    user.set_password("pw")
    user.save()
    settings.AUTHENTICATION_BACKENDS = backends
    assert accounts.unlink(Identity.objects.get()) is may
    assert Identity.objects.filter(pk=identity.pk).exists() is not may


class ForPermissions(BaseBackend):
    """Signs in nobody, as those for permissions of single objects do not."""

    def authenticate(self, request: Any, username: Any = None, password: Any = None) -> None:
        return None


class Subclass(OIDCBackend):
    """A site's own."""


def test_M38_unlinking_what_is_gone_tells_nobody_again(op: OpenIDProvider) -> None:
    """Somebody else, or another tab, was quicker."""
    user, (identity, kept) = ways_in(op, "", "")
    told: list[Any] = []

    def receive(instance: Identity, **_: Any) -> None:
        told.append(instance.sub)

    post_delete.connect(receive, sender=Identity)
    try:
        stale = Identity.objects.get(pk=identity.pk)
        assert accounts.unlink(identity)
        assert accounts.unlink(stale)
    finally:
        post_delete.disconnect(receive, sender=Identity)
    assert told == ["0"]
    assert list(user.oidc_identities.all()) == [kept]  # type: ignore[attr-defined]


# Whatever comes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=200),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)
NAMES = "email email_verified given_name family_name updated_at groups active name".split()


def provider_with(**options: Any) -> conf.Provider:
    provider, mistakes = conf.read_provider("op", GOOD | options)
    assert provider is not None, mistakes
    return provider


def login_with(provider: conf.Provider, userinfo: dict[str, Any]) -> Login:
    claims = {"iss": provider.issuer, "sub": "s", "aud": "rp", "exp": 2, "iat": 1}
    id_token = IdTokenClaims(
        iss=provider.issuer, sub="s", aud=("rp",), exp=2, iat=1, alg="RS256", claims=claims
    )
    tokens = TokenResponse(
        access_token=AccessToken("a"),
        id_token=None,
        refresh_token=None,
        scope="openid",
        expires_at=None,
    )
    return Login(provider, id_token, userinfo, tokens)


class AnyClaims(TestCase):
    """Properties of account_for, whatever an OP says of a person."""

    @settings(
        max_examples=60,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(first=st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, JSON)), again=JSON)
    def test_any_claims_make_an_account_or_a_refusal(
        self, first: dict[str, Any], again: Any
    ) -> None:
        """No claim makes anything but an account or a LoginRefused, at first and afterwards."""
        options = {
            "CLAIMS": conf.DEFAULT_CLAIMS
            | {"date_joined": "updated_at", "is_active": "active", "username": "name"},
            "GROUPS_CLAIM": "groups",
            "GROUPS": {"a": "A"},
            "STAFF_GROUPS": ["b"],
        }
        provider = provider_with(**options)
        for userinfo in (first, dict.fromkeys(NAMES, again)):
            try:
                account = account_for(login_with(provider, userinfo), OIDCBackend())
            except LoginRefused:
                continue
            assert (account.identity.iss, account.identity.sub) == (provider.issuer, "s")
        assert Identity.objects.count() <= 1

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(st.text(max_size=30))
    def test_a_domain_is_what_follows_the_only_at(self, email: str) -> None:
        """Where there is a domain, there is one "@", and both sides say something."""
        domain = email_domain(email)
        if domain is not None:
            assert email.count("@") == 1
            assert domain.isascii()
            assert domain == domain.lower()

    @settings(max_examples=100, derandomize=True, deadline=None)
    @given(JSON, st.text("ab.", max_size=6))
    def test_any_path_leads_to_a_claim_or_to_none(self, claims: Any, path: str) -> None:
        """A path through anything never raises."""
        given_claims = claims if isinstance(claims, dict) else {"a": claims}
        VerifiedClaims(given_claims, provider_with()).look_up(path)


# Other user models, other databases: AUTH_USER_MODEL is one for a whole process


@pytest.mark.parametrize("scenario", ["email_user", "unique_email"])
def test_custom_user_models(scenario: str, tmp_path: Path) -> None:
    """The scenarios of tests/users/ pass, each with a user model and settings of its own."""
    command = [sys.executable, "-m", "pytest", f"tests/users/{scenario}.py", "-q"]
    command += [f"--ds=tests.users.{scenario}_settings", "-p", "no:cacheprovider"]
    command += [f"--basetemp={tmp_path / 'inner'}"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
