"""Somebody of the support desk looks at a linked identity in a real browser, and acts."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.demo.conftest import Demo
from tests.demo.test_browser import SCREENSHOTS, sign_in

pytestmark = pytest.mark.browser

SIZES = {"desk": (1280, 800), "phone": (390, 844)}

Opened = Callable[[Page, Demo], None]


def identity(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.site}/admin/oidc_rp/identity/")
    page.locator("#result_list tbody th a").first.click()
    expect(page.get_by_role("heading", name="Timeline")).to_be_visible()


def providers(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.site}/admin/oidc_rp/identity/")
    page.get_by_role("link", name="Providers").click()
    expect(page.get_by_role("heading", level=1, name="Providers")).to_be_visible()
    expect(page.get_by_text("RS256").first).to_be_visible()


def question(page: Page, demo: Demo) -> None:
    identity(page, demo)
    page.get_by_role("link", name="End sessions").click()
    expect(page.get_by_role("link", name="No, take me back")).to_be_visible()


def confirm(page: Page, demo: Demo, action: str) -> None:
    identity(page, demo)
    page.get_by_role("link", name=action).click()
    page.get_by_role("button", name=action).click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_fit(browser: Browser, demo: Demo, size: str, scheme: str) -> None:
    """No page is wider than the window: what is wider scrolls in a box of its own."""
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if scheme == "dark" else "light",
    )
    page = context.new_page()
    sign_in(page, demo)
    pages: dict[str, Opened] = {
        "identity": identity,
        "providers": providers,
        "question": question,
    }
    for name, opened in pages.items():
        opened(page, demo)
        page.screenshot(path=SCREENSHOTS / f"admin-{name}-{size}-{scheme}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    context.close()


def test_tokens_are_renewed_and_sessions_ended(page: Page, demo: Demo) -> None:
    """Each after a question; the timeline says who did it, and the browser is signed out."""
    sign_in(page, demo)
    confirm(page, demo, "Renew tokens now")
    identity(page, demo)
    expect(page.get_by_role("cell", name="refreshed").first).to_be_visible()
    confirm(page, demo, "End sessions")
    page.goto(f"{demo.site}/profile/")
    expect(page).to_have_url(f"{demo.site}/oidc/login/?next=/profile/")
    page.goto(f"{demo.site}/oidc/demo-rs256/login/")  # the provider still knows who it is
    identity(page, demo)
    ended = page.get_by_role("row").filter(has_text="session_ended").first
    expect(ended).to_contain_text("user ")
