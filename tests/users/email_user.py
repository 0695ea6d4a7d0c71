"""Scenarios with EmailUser: run by tests/test_accounts.py, with settings of their own."""

from typing import Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from pytest_django import Settings

from oidc_rp.models import Identity
from oidc_rp.testing import REMOVE, OpenIDProvider, merged
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure
from tests.test_conf import GOOD
from tests.users.models import EmailUser

pytestmark = pytest.mark.usefixtures("browser")


def code_of_refusal() -> str:
    response = Browser().sign_in("op")
    assert response.status_code == 403
    return str(response.context["code"])


def sign_in() -> EmailUser:
    browser = Browser()
    assert browser.sign_in("op").url == "/home/"
    page = browser.client.get("/home/")
    return EmailUser.objects.get(email=page.content.decode())


def test_first_and_second_sign_in(op: OpenIDProvider) -> None:
    """A user without a user name is made from the address, and follows it."""
    user = sign_in()
    assert user.email == "janedoe@example.com"
    op.person["email"] = "jane@example.com"
    assert sign_in() == user
    assert EmailUser.objects.count() == 1


@pytest.mark.parametrize("email", [REMOVE, None, "", 5, "no address", ["a@example.com"]])
def test_without_an_address_there_is_no_user(op: OpenIDProvider, email: Any) -> None:
    """The refusal says what is missing."""
    op.person = merged(op.person, {"email": email})
    assert code_of_refusal() == "account.email_missing"
    assert not EmailUser.objects.exists()
    assert not Identity.objects.exists()


def test_M35_the_address_of_another_is_refused(op: OpenIDProvider) -> None:
    """Never the other account, and nothing is left behind; domains in capitals are the same."""
    other = EmailUser.objects.create_user("janedoe@example.com")
    op.person["email"] = "janedoe@EXAMPLE.com"
    assert code_of_refusal() == "account.collision"
    assert list(EmailUser.objects.all()) == [other]
    assert not Identity.objects.exists()


def test_M35_an_address_that_becomes_anothers_locks_nobody_out(op: OpenIDProvider) -> None:
    """The old address stays, until the new one is free."""
    user, other = sign_in(), EmailUser.objects.create_user("jane@example.com")
    op.person["email"] = "jane@example.com"
    assert sign_in() == user
    other.delete()
    assert sign_in() == user
    user.refresh_from_db()
    assert user.email == "jane@example.com"


def test_fields_of_their_own(op: OpenIDProvider, configure: Configure) -> None:
    """CLAIMS may name any plain field; one that is too long is left out."""
    configure(CLAIMS={"email": "email", "nickname": "name"})
    assert sign_in().nickname == "Jane Doe"
    op.person["name"] = "x" * 21
    assert sign_in().nickname == "Jane Doe"


def test_the_app_works_without_the_admin() -> None:
    """Nothing needs django.contrib.admin."""
    assert not apps.is_installed("django.contrib.admin")


@pytest.mark.parametrize(
    ("codes", "options"),
    [
        ([], {}),
        (["E018"], {"GROUPS_CLAIM": "g", "GROUPS": {"a": "A"}}),
        (["E018"], {"GROUPS_CLAIM": "g", "STAFF_GROUPS": ["a"]}),
        (["E018"], {"GROUPS_CLAIM": "g", "SUPERUSER_GROUPS": ["a"]}),
        (["E018"], {"CLAIMS": {"first_name": "name"}}),
    ],
)
def test_a_model_without_a_field_is_told(
    settings: Settings, codes: list[str], options: dict[str, Any]
) -> None:
    """The default map may name fields that this model lacks; the site's own may not."""
    settings.OIDC_RP = {"PROVIDERS": {"op": GOOD | options}}
    found = [message.id for message in run_checks()]
    assert found == [f"oidc_rp.{code}" for code in codes]
