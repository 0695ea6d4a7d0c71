"""A person signs in at the embedded provider, in a real browser."""

import json
import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Request, expect

from tests.demo.conftest import ROOT, Demo
from tests.demo.looks import problems_of

pytestmark = pytest.mark.browser

SCREENSHOTS = ROOT / ".test" / "screenshots"
UNKNOWN_STATE = "/oidc/demo-rs256/callback/?code=x&state=unknown"
BUTTONS = {"rs256": "Sign in with Demo Provider", "hs256": "Sign in with Demo Provider, HS256"}
SLUGS = {"rs256": "demo-rs256", "hs256": "demo-hs256"}
MANY = "Call it 20 times at once"


def choose(page: Page, button: str) -> None:
    page.get_by_role("link", name=button, exact=True).click()


def log_in_at_the_provider(page: Page, demo: Demo, username: str = "") -> None:
    expect(page).to_have_url(re.compile(re.escape(demo.provider)))
    page.get_by_label("Username").fill(username or demo.username)
    page.get_by_label("Password").fill(demo.password)
    page.get_by_role("button", name="Log in").click()


def sign_in(page: Page, demo: Demo, button: str = BUTTONS["rs256"], username: str = "") -> None:
    page.goto(demo.site)
    choose(page, button)
    log_in_at_the_provider(page, demo, username)
    expect(page).to_have_url(f"{demo.site}/profile/")


def claim(page: Page, name: str) -> str:
    row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
    return row.get_by_role("cell").inner_text()


@pytest.mark.parametrize("algorithm", BUTTONS)
def test_sign_in_see_the_claims_see_the_admin_sign_out(
    page: Page, demo: Demo, algorithm: str
) -> None:
    page.goto(demo.site)
    page.get_by_role("link", name="Sign in", exact=True).click()
    expect(page).to_have_url(f"{demo.site}/oidc/login/")
    choose(page, BUTTONS[algorithm])
    log_in_at_the_provider(page, demo)

    expect(page).to_have_url(f"{demo.site}/profile/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Inês Calder")
    assert claim(page, "iss") == demo.provider
    sub = claim(page, "sub")
    assert claim(page, "email") == "ines@demo.example"
    assert claim(page, "email_verified") == "yes"
    assert claim(page, "groups") == "staff"
    assert "Lisboa" in claim(page, "address")
    expect(page.get_by_text("birthdate")).to_have_count(0)
    expect(page.get_by_role("timer")).to_have_text(re.compile(r"^[01]:\d\d left$"))

    page.get_by_role("link", name="Admin").click()
    page.goto(f"{demo.site}/admin/oidc_rp/identity/?q={sub}")
    expect(page.locator("#result_list tbody tr")).to_have_count(1)
    page.locator("#result_list tbody th a").click()
    page.locator("details:has(pre) > summary").first.click()
    expect(page.get_by_text("ines@demo.example").first).to_be_visible()
    expect(page.get_by_role("button", name="Save")).to_have_count(0)
    page.locator(".field-user a").click()
    expect(page.get_by_role("heading", name="Linked identities")).to_be_visible()

    page.goto(f"{demo.site}/profile/")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("You are signed out")
    page.goto(f"{demo.site}/profile/")
    expect(page).to_have_url(f"{demo.site}/oidc/login/?next=/profile/")


def test_each_client_has_a_sub_of_its_own_and_the_second_asks_no_password(
    page: Page, demo: Demo
) -> None:
    sign_in(page, demo, BUTTONS["rs256"])
    first = claim(page, "sub")
    page.goto(f"{demo.site}/oidc/{SLUGS['hs256']}/login/")
    expect(page).to_have_url(f"{demo.site}/profile/")
    assert claim(page, "sub") != first
    assert claim(page, "email") == "ines@demo.example"


def test_the_access_token_is_seen_to_expire_and_the_session_goes_on(page: Page, demo: Demo) -> None:
    page.clock.install()
    sign_in(page, demo)
    page.clock.fast_forward("01:30")
    expect(page.get_by_role("timer")).to_have_text("expired")
    page.get_by_role("link", name="Profile").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Inês Calder")


def press(page: Page, name: str) -> Locator:
    """Press a button of the profile page; return the section that shows what it came to."""
    page.get_by_role("button", name=name, exact=True).click()
    expect(page).to_have_url(re.compile(r"/profile/#result$"))
    return page.locator("#result")


def test_m55_twenty_calls_at_the_moment_of_expiry_are_one_refresh(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    result = press(page, MANY)
    expect(result.get_by_role("heading")).to_have_text("20 of 20 calls answered")
    expect(result.locator("dl div").first).to_have_text(re.compile(r"^\s*refresh\s*1\s*$"))
    expect(result.locator("dl div").last).to_contain_text("No. 2")
    expect(result).to_be_in_viewport()
    expect(page.get_by_role("timer")).to_have_text(re.compile(r"^(1:00|0:5\d) left$"))
    timeline = page.get_by_role("region", name="What happened to this grant")
    expect(timeline.get_by_role("listitem").first).to_contain_text("Tokens renewed")
    page.reload()
    expect(page.locator("#result")).to_have_count(0)


def test_calls_with_a_good_token_need_no_refresh(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    expect(page.get_by_text("one may refresh it")).to_be_visible()
    page.get_by_label("at the moment the access token expires").uncheck()
    expect(page.get_by_text("one may refresh it")).to_be_hidden()
    result = press(page, MANY)
    expect(result.locator("dl div").first).to_have_text(re.compile(r"^\s*refreshes\s*0\s*$"))
    expect(page.get_by_label("at the moment the access token expires")).not_to_be_checked()


def test_an_id_token_is_refused_by_the_calendar(page: Page, demo: Demo) -> None:
    sign_in(page, demo, BUTTONS["hs256"])
    result = press(page, "Send the ID Token instead")
    expect(result.get_by_role("heading")).to_have_text("The calendar refused the ID Token")
    expect(result).to_contain_text('error="invalid_token"')
    expect(result).to_contain_text("an ID Token: HS256, aud demo-site-hs256")


def test_a_missing_scope_is_asked_for_by_a_link(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    result = press(page, "Read the contacts")
    expect(result.get_by_role("heading")).to_have_text("The contacts want more than you allowed")
    result.get_by_role("link", name="Allow contacts").click()
    expect(page).to_have_url(f"{demo.site}/profile/")
    result = press(page, "Read the contacts")
    expect(result.get_by_role("heading")).to_have_text("The contacts answered")


def test_access_taken_back_at_the_provider_leads_to_a_new_sign_in(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    page.goto(demo.provider)
    page.get_by_role("button", name="Take back its access").first.click()
    page.goto(f"{demo.site}/profile/")
    result = press(page, "Call it once")
    expect(result).to_contain_text("grant.revoked_or_expired")
    expect(page.get_by_text("No more. The grant ended")).to_be_visible()
    result.get_by_role("link", name="Sign in again").click()
    expect(page).to_have_url(f"{demo.site}/profile/")
    result = press(page, "Call it once")
    expect(result.get_by_role("heading")).to_have_text("The calendar answered")


def test_a_page_that_needs_a_login_comes_after_it(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.site}/admin/oidc_rp/identity/?q=ines")
    choose(page, BUTTONS["rs256"])
    log_in_at_the_provider(page, demo)
    expect(page).to_have_url(f"{demo.site}/admin/oidc_rp/identity/?q=ines")


def test_a_wrong_password_is_told_at_the_provider(page: Page, demo: Demo) -> None:
    page.goto(demo.site)
    choose(page, BUTTONS["rs256"])
    page.get_by_label("Username").fill(demo.username)
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("correct username and password")
    log_in_at_the_provider(page, demo)
    expect(page).to_have_url(f"{demo.site}/profile/")


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this text or label has the focus, and shows it."""
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        label = "e => (e.labels && e.labels[0] ? e.labels[0].innerText : e.innerText).trim()"
        if focused.count() and focused.evaluate(label).rstrip(":") == name:
            assert focused.evaluate("e => parseFloat(getComputedStyle(e).outlineWidth)") >= 2
            return
    raise AssertionError(f"Tab does not reach {name!r}")


def test_the_keyboard_alone_is_enough(page: Page, demo: Demo) -> None:
    page.goto(demo.site)
    tab_to(page, BUTTONS["rs256"])
    page.keyboard.press("Enter")
    expect(page.get_by_label("Username")).to_be_focused()
    page.keyboard.type(demo.username)
    tab_to(page, "Password")
    page.keyboard.type(demo.password)
    tab_to(page, "Log in")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{demo.site}/profile/")
    tab_to(page, "Skip to the content")
    tab_to(page, "Sign out")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("You are signed out")


@pytest.fixture
def page_without_javascript(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False)
    yield context.new_page()
    context.close()


def test_no_javascript_is_needed(page_without_javascript: Page, demo: Demo) -> None:
    page = page_without_javascript
    sign_in(page, demo)
    expect(page.get_by_role("timer")).to_have_text(
        re.compile(r"^\d\d? s left, when this page was made$")
    )
    result = press(page, MANY)
    expect(result.get_by_role("heading")).to_have_text("20 of 20 calls answered")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("You are signed out")


def test_a_callback_that_nobody_asked_for_is_refused_in_plain_words(page: Page, demo: Demo) -> None:
    page.goto(demo.site)
    choose(page, BUTTONS["rs256"])
    response = page.goto(f"{demo.site}{UNKNOWN_STATE}")
    assert response
    assert response.status == 400
    expect(page.get_by_role("heading", level=1)).to_contain_text("did not work")
    expect(page.get_by_text("state.unknown")).to_be_visible()
    page.get_by_role("link", name="Try again").click()
    choose(page, BUTTONS["rs256"])
    log_in_at_the_provider(page, demo)
    expect(page.get_by_role("heading", level=1)).to_have_text("Inês Calder")


def test_a_login_abandoned_by_a_second_tab_still_ends_well(
    context: BrowserContext, demo: Demo
) -> None:
    first, second = context.new_page(), context.new_page()
    for page, button in ((first, BUTTONS["rs256"]), (second, BUTTONS["hs256"])):
        page.goto(demo.site)
        choose(page, button)
        expect(page.get_by_label("Username")).to_be_visible()
    log_in_at_the_provider(second, demo)
    expect(second).to_have_url(f"{demo.site}/profile/")
    first.reload()
    log_in_at_the_provider(first, demo)
    expect(first).to_have_url(f"{demo.site}/profile/")


def test_no_other_server_is_asked(page: Page, demo: Demo) -> None:
    asked: set[str] = set()

    def note(request: Request) -> None:
        parts = urlsplit(request.url)
        asked.add(f"{parts.scheme}://{parts.netloc}" if parts.scheme != "data" else "data")

    page.context.on("request", note)
    sign_in(page, demo)
    page.goto(f"{demo.site}/admin/oidc_rp/identity/")
    assert asked - {"data"} == {demo.site, demo.provider}


def test_nothing_secret_is_logged(page: Page, demo: Demo) -> None:
    sign_in(page, demo)
    secrets = json.loads((demo.folder / "secrets.json").read_text()).values()
    for log in (demo.folder / "site.log", demo.folder / "provider.log"):
        written = log.read_text()
        assert "/callback/ HTTP" in written or "/token/ HTTP" in written
        for secret in ("?", "&", "eyJ", *secrets):  # no query, no JWT
            assert secret not in written


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("size", "width", "height"), [("desk", 1280, 800), ("phone", 390, 844)])
def test_every_page_looks_right(
    browser: Browser,
    demo: Demo,
    size: str,
    width: int,
    height: int,
    scheme: Literal["light", "dark"],
) -> None:
    """The whole walk, photographed; problems of all pages are told at once."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1
    )
    page = context.new_page()
    problems: list[str] = []

    def look(name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{scheme}.png", full_page=True)
        for seen in (width, 320):  # a desk page enlarged to 400 % is 320 wide (WCAG 1.4.10)
            page.set_viewport_size({"width": seen, "height": height})
            problems.extend(f"{name} at {seen}: {problem}" for problem in problems_of(page))
        page.set_viewport_size({"width": width, "height": height})

    page.goto(demo.site)
    look("home")
    page.goto(f"{demo.site}/profile/")
    look("chooser")
    page.goto(f"{demo.site}/admin/")
    page.screenshot(path=SCREENSHOTS / f"admin-login-{size}-{scheme}.png", full_page=True)
    page.goto(f"{demo.site}/profile/")
    choose(page, BUTTONS["rs256"])
    look("provider-login")
    page.goto(f"{demo.site}{UNKNOWN_STATE}")
    look("refusal")
    page.goto(demo.provider)
    look("provider-home")
    sign_in(page, demo)
    look("profile")
    for button, name in [
        (MANY, "called-many"),
        ("Call it once", "called-once"),
        ("Send the ID Token instead", "id-token-refused"),
        ("Read the contacts", "scope-missing"),
    ]:
        press(page, button)
        look(name)
    page.goto(demo.provider)
    look("provider-accesses")
    page.get_by_role("button", name="Take back its access").first.click()
    page.goto(f"{demo.site}/profile/")
    press(page, "Call it once")
    look("access-gone")
    page.goto(f"{demo.provider}/authorize/?client_id=nobody")
    look("provider-refusal")
    page.goto(demo.site)
    look("home-signed-in")
    for name, path in [("admin-list", ""), ("admin-detail", None)]:
        if path is None:
            page.locator("#result_list tbody th a").first.click()
        else:
            page.goto(f"{demo.site}/admin/oidc_rp/identity/")
        page.screenshot(path=SCREENSHOTS / f"{name}-{size}-{scheme}.png", full_page=True)
    page.goto(f"{demo.site}/oidc/identities/")
    look("identities")
    if page.get_by_role("button", name="Sign out everywhere else").count():
        page.get_by_role("button", name="Sign out everywhere else").click()
        look("end-other-sessions")
    page.goto(f"{demo.site}/safe/vault/")
    look("provider-second-factor")
    page.get_by_role("button", name="Confirm on your other device").click()
    look("vault")
    page.goto(f"{demo.site}/safe/")
    look("safe")
    page.goto(demo.site)
    page.get_by_role("button", name="Sign out").click()
    look("signed-out")
    sign_in(page, demo, username="rui")
    page.goto(f"{demo.site}/oidc/identities/")
    link = page.get_by_role("button", name="Link Demo Provider, HS256", exact=True)
    if link.count():
        link.click()
        expect(page.get_by_role("status")).to_have_text("The sign-in is linked to your account.")
    look("identities-two")
    page.get_by_role("button", name="Unlink").first.click()
    look("unlink")
    context.close()
    assert problems == []
