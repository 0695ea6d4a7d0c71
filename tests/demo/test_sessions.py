"""Sessions of the demo in real browsers: linked, ended from elsewhere, renewed, strengthened."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.demo.conftest import Demo, running_demo
from tests.demo.test_browser import BUTTONS, choose, claim, log_in_at_the_provider, sign_in

pytestmark = pytest.mark.browser

ENGINES = ["db", "cache", "cached_db", "file", "signed_cookies"]


def sign_ins(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.site}/oidc/identities/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Your sign-ins")


def is_signed_in(page: Page, demo: Demo) -> bool:
    page.goto(f"{demo.site}/profile/")
    return page.url == f"{demo.site}/profile/"


def at_the_provider(context: BrowserContext, demo: Demo, browser: Browser) -> Page:
    """Another browser of the same person, logged in at the provider and nowhere else."""
    cookies = [each for each in context.cookies() if each["name"].startswith("provider_")]
    other = browser.new_context()
    other.add_cookies(cookies)  # type: ignore[arg-type]
    page = other.new_page()
    page.goto(demo.provider)
    expect(page.get_by_text("You are logged in as")).to_be_visible()
    return page


@pytest.fixture(params=ENGINES)
def on_engine(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Demo]:
    monkeypatch.setenv("DEMO_SESSION_ENGINE", request.param)
    with running_demo(tmp_path_factory.mktemp("demo"), "tests.demo.engines") as started:
        yield started


def test_M58_a_logout_at_the_provider_ends_the_session_at_once(
    on_engine: Demo, browser: Browser, context: BrowserContext, page: Page
) -> None:
    """On every session engine; another person's session goes on."""
    demo = on_engine
    sign_in(page, demo)
    stranger = browser.new_context().new_page()
    sign_in(stranger, demo, username="rui")
    elsewhere = at_the_provider(context, demo, browser)
    elsewhere.get_by_role("button", name="Log out").click()
    expect(elsewhere.get_by_text("told, 200")).to_be_visible()
    assert not is_signed_in(page, demo)  # at the first look, once the provider's page is there
    assert is_signed_in(stranger, demo)


def test_M56_signing_out_here_signs_out_at_the_provider(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(re.compile(re.escape(f"{demo.site}/oidc/logged-out/")))
    expect(page.get_by_text("was told, too")).to_be_visible()
    page.goto(demo.provider)
    expect(page.get_by_role("link", name="Log in")).to_be_visible()
    page.goto(f"{demo.site}/profile/")
    choose(page, BUTTONS["rs256"])
    expect(page.get_by_label("Password")).to_be_visible()


def test_M38_two_providers_lead_to_one_account_once_they_are_linked(page: Page, demo: Demo) -> None:
    """Linked, used, unlinked; the last way in stays."""
    sign_in(page, demo, username="rui")
    page.goto(demo.site)
    name = page.get_by_text("Rui Tavares")
    expect(name).to_be_visible()
    sign_ins(page, demo)
    expect(page.get_by_text("Your only way to sign in")).to_be_visible()
    expect(page.get_by_role("button", name=re.compile("^Unlink "))).to_have_count(0)
    page.get_by_role("button", name="Link Demo Provider, HS256", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("The sign-in is linked to your account.")
    expect(page.get_by_role("button", name=re.compile("^Unlink "))).to_have_count(2)
    page.get_by_role("button", name="Sign out", exact=True).click()

    sign_in(page, demo, BUTTONS["hs256"], username="rui")
    sign_ins(page, demo)
    used_here = page.get_by_role("listitem").filter(has_text="used here")
    expect(used_here).to_contain_text("Demo Provider, HS256")
    expect(page.get_by_role("button", name=re.compile("^Unlink "))).to_have_count(2)

    page.get_by_role("button", name="Unlink Demo Provider, rui").click()
    page.get_by_role("link", name="Leave it as it is").click()
    page.get_by_role("button", name="Unlink Demo Provider, rui").click()
    page.get_by_role("button", name="Unlink", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("not linked to your account any more")
    expect(page.get_by_text("Your only way to sign in")).to_be_visible()


def test_M38_an_identity_of_another_account_is_not_moved(page: Page, demo: Demo) -> None:
    sign_in(page, demo, BUTTONS["hs256"])
    page.goto(f"{demo.site}/oidc/demo-rs256/login/")
    expect(page).to_have_url(f"{demo.site}/profile/")
    sign_ins(page, demo)
    page.get_by_role("button", name="Link Demo Provider, HS256", exact=True).click()
    expect(page.get_by_text("account.linked_elsewhere")).to_be_visible()
    expect(page.get_by_text("belongs to another account")).to_be_visible()


def test_signing_out_one_session_and_then_everywhere_else(
    page: Page, demo: Demo, browser: Browser
) -> None:
    """The others end at once, this one goes on."""
    others = [browser.new_context().new_page() for _ in range(3)]
    for each in (page, *others):
        sign_in(each, demo)
    sign_ins(page, demo)
    there = page.get_by_role("button", name="Sign out there")
    before = there.count()
    assert before >= 3
    there.first.click()  # the latest
    expect(page.get_by_role("status")).to_have_text("That session is signed out.")
    expect(there).to_have_count(before - 1)
    assert [is_signed_in(each, demo) for each in others] == [True, True, False]
    sign_ins(page, demo)
    page.get_by_role("button", name="Sign out everywhere else").click()
    page.get_by_role("button", name="Sign out everywhere else").click()
    expect(page.get_by_role("status")).to_have_text("You are signed out everywhere else.")
    expect(there).to_have_count(0)
    assert [is_signed_in(each, demo) for each in (page, *others)] == [True, False, False, False]


def change_row(demo: Demo, changes: str) -> None:
    """Change the latest row of the site's index of sessions, as time would."""
    with closing(sqlite3.connect(demo.folder / "site.sqlite3", timeout=10)) as database:
        latest = "(SELECT max(id) FROM oidc_rp_session)"
        with database:
            database.execute(f"UPDATE oidc_rp_session SET {changes} WHERE id = {latest}")


def read_row(demo: Demo, column: str) -> object:
    with closing(sqlite3.connect(demo.folder / "site.sqlite3", timeout=10)) as database:
        statement = f"SELECT {column} FROM oidc_rp_session ORDER BY id DESC LIMIT 1"
        return database.execute(statement).fetchone()[0]


def test_a_page_that_wants_a_fresh_sign_in(page: Page, demo: Demo) -> None:
    """After a while it asks for the password again, and for that alone."""
    sign_in(page, demo)
    page.goto(f"{demo.site}/safe/")
    expect(page.get_by_role("heading", level=1)).to_have_text("The safe")
    page.goto(f"{demo.site}/safe/vault/")
    page.get_by_role("button", name="Confirm on your other device").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("The vault in the safe")
    expect(page.get_by_text("pwd, otp")).to_be_visible()
    page.goto(f"{demo.site}/safe/vault/")
    expect(page).to_have_url(f"{demo.site}/safe/vault/")


def test_a_session_is_renewed_without_a_redirect(page: Page, demo: Demo) -> None:
    """By the refresh token; the visitor sees nothing of it, and the provider is asked once."""
    sign_in(page, demo)
    hours_ago = "renewed_at - 7200000000"
    change_row(demo, f"renewed_at = {hours_ago}")
    before = read_row(demo, "renewed_at")
    visited: list[str] = []
    page.on("request", lambda request: visited.append(request.url))
    assert is_signed_in(page, demo)
    assert not [url for url in visited if url.startswith(demo.provider)]
    after = read_row(demo, "renewed_at")
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after - before > 7000 * 1_000_000


def test_a_session_without_a_refresh_token_is_renewed_by_a_silent_redirect(
    page: Page, demo: Demo
) -> None:
    """With prompt=none: through the provider and back, with no question."""
    sign_in(page, demo)
    change_row(demo, "renewed_at = renewed_at - 7200000000, grant_id = NULL")
    before = read_row(demo, "renewed_at")
    visited: list[str] = []
    page.on("request", lambda request: visited.append(request.url))
    page.goto(f"{demo.site}/profile/?tab=2")
    expect(page).to_have_url(f"{demo.site}/profile/?tab=2")
    asked = [url for url in visited if url.startswith(f"{demo.provider}/authorize/")]
    assert len(asked) == 1
    assert "prompt=none" in asked[0]
    assert read_row(demo, "renewed_at") != before
    assert claim(page, "email") == "ines@demo.example"


def test_a_session_that_the_provider_has_ended_ends_at_its_renewal(page: Page, demo: Demo) -> None:
    """Nobody is logged in there any more: the silent redirect comes back with a no."""
    sign_in(page, demo)
    page.context.clear_cookies(name=re.compile("^provider_"))
    change_row(demo, "renewed_at = renewed_at - 7200000000, grant_id = NULL")
    page.goto(f"{demo.site}/profile/")
    expect(page).to_have_url(f"{demo.site}/oidc/login/?next=/profile/")
    choose(page, BUTTONS["rs256"])
    log_in_at_the_provider(page, demo)
    expect(page).to_have_url(f"{demo.site}/profile/")
