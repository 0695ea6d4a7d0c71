"""Somebody of the support desk looks at a linked identity in a real browser, and acts.

The site is the demo's; the OpenID Provider is the test kit's, which does what a test tells it.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser, Page, expect

from demo_site.run import Project, prepare, serving, wait_until_it_answers
from oidc_rp.testing import OpenIDProvider
from tests.demo.conftest import free_ports
from tests.demo.test_browser import SCREENSHOTS

pytestmark = pytest.mark.browser

SIZES = {"desk": (1280, 800), "phone": (390, 844)}


@dataclass(frozen=True)
class Desk:
    """The demo site, and the provider that its people sign in at, with no page."""

    site: str
    op: OpenIDProvider

    def sign_in(self, page: Page) -> None:
        page.goto(f"{self.site}/oidc/demo-rs256/login/")
        expect(page).to_have_url(f"{self.site}/profile/")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder, (port,) = tmp_path_factory.mktemp("desk"), free_ports(1)
    names = ("demo site", "tests.demo.at_the_kit", port, "--port", "prepare_site", "/")
    site = Project(*names, folder / "site.log")
    with OpenIDProvider() as op:
        op.person |= {"name": "Inês Calder", "groups": ["staff"]}
        op.access_token_lifetime = 3600.0
        own = {"DEMO_DIR": str(folder), "DEMO_PORT": str(port), "KIT_ISSUER": op.issuer}
        client = {"KIT_CLIENT_ID": op.client_id, "KIT_CLIENT_SECRET": op.client_secret}
        environment = {**os.environ, **own, **client}
        prepare(site, environment)
        with serving(site, environment) as server:
            wait_until_it_answers(site, server)
            yield Desk(site.url, op)


def identity(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.site}/admin/oidc_rp/identity/")
    page.locator("#result_list tbody th a").first.click()
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()


def providers(page: Page, desk: Desk) -> None:
    page.goto(f"{desk.site}/admin/oidc_rp/identity/")
    page.get_by_role("link", name="Providers").click()
    expect(page.get_by_role("heading", level=1, name="Providers")).to_be_visible()
    expect(page.get_by_text(desk.op.keys[0].kid)).to_be_visible()


def question(page: Page, desk: Desk) -> None:
    identity(page, desk)
    page.get_by_role("link", name="End sessions").click()
    expect(page.get_by_role("link", name="No, take me back")).to_be_visible()


def confirm(page: Page, desk: Desk, action: str) -> None:
    identity(page, desk)
    page.get_by_role("link", name=action).click()
    page.get_by_role("button", name=action).click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_fit(browser: Browser, desk: Desk, size: str, scheme: str) -> None:
    """No page is wider than the window: what is wider scrolls in a box of its own."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    desk.sign_in(page)
    pages: dict[str, Callable[[Page, Desk], None]] = {
        "identity": identity,
        "providers": providers,
        "question": question,
    }
    for name, opened in pages.items():
        opened(page, desk)
        page.screenshot(path=SCREENSHOTS / f"admin-{name}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    context.close()


def test_tokens_are_renewed_and_sessions_ended(page: Page, desk: Desk) -> None:
    """Each after a question; the timeline says who did it, and the browser is signed out."""
    desk.sign_in(page)
    refreshes = desk.op.refreshes
    confirm(page, desk, "Renew tokens now")
    expect(page.get_by_role("cell", name="refreshed").first).to_be_visible()
    assert desk.op.refreshes == refreshes + 1
    confirm(page, desk, "End sessions")
    page.goto(f"{desk.site}/profile/")
    expect(page).to_have_url(f"{desk.site}/oidc/login/?next=/profile/")
    desk.sign_in(page)
    identity(page, desk)
    ended = page.get_by_role("row").filter(has_text="session_ended").first
    expect(ended).to_contain_text("oidc_")  # the name that the backend made for this user


def test_a_family_that_the_provider_ended_needs_a_sign_in(page: Page, desk: Desk) -> None:
    """The operator who renews is told, and the page says what has to happen."""
    desk.sign_in(page)
    desk.op.end_grants()
    confirm(page, desk, "Renew tokens now")
    expect(page.get_by_text("was not renewed")).to_be_visible()
    expect(page.get_by_text("needs sign-in").first).to_be_visible()
    desk.sign_in(page)
    identity(page, desk)
    expect(page.get_by_text("healthy").first).to_be_visible()


def test_tokens_are_revoked_at_the_provider(page: Page, desk: Desk) -> None:
    """The provider is told, and the reason is not that somebody signed out."""
    desk.sign_in(page)
    desk.op.revocations.clear()
    confirm(page, desk, "Revoke tokens at the provider")
    expect(page.get_by_text("revoked").first).to_be_visible()
    for _ in range(100):
        if desk.op.revocations:
            break
        page.wait_for_timeout(100)
    assert [kind for kind, _ in desk.op.revocations] == ["refresh_token"]
