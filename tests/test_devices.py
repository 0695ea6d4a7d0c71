"""Browsers and systems by the names that people know, from what browsers really send."""

import pytest

from oidc_rp.devices import browser_of, system_of

WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15"
ANDROID = f"Mozilla/5.0 (Linux; Android 14; SM-S921B) {WEBKIT}"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {WEBKIT}"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
FIREFOX = "Gecko/20100101 Firefox/128.0"

AGENTS = [
    ("Chrome", "Windows", f"{WINDOWS} Chrome/126.0.0.0 Safari/537.36"),
    ("Chrome", "macOS", f"{MAC} {WEBKIT} Chrome/126.0.0.0 Safari/537.36"),
    ("Chrome", "Android", f"{ANDROID} Chrome/126.0.0.0 Mobile Safari/537.36"),
    ("Chrome", "iPhone", f"{IPHONE} (KHTML, like Gecko) CriOS/126.0 Mobile/15E148 Safari/604.1"),
    (
        "Chrome",
        "ChromeOS",
        f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {WEBKIT} Chrome/126.0.0.0 Safari/537.36",
    ),
    (
        "Chromium",
        "Linux",
        f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} Ubuntu Chromium/126.0.0.0 Chrome/126.0.0.0"
        " Safari/537.36",
    ),
    (
        "Chrome",
        "Linux",
        f"Mozilla/5.0 (X11; Linux x86_64) {WEBKIT} HeadlessChrome/126.0.0.0 Safari/537.36",
    ),
    ("Edge", "Windows", f"{WINDOWS} Chrome/126.0.0.0 Safari/537.36 Edg/126.0.0.0"),
    ("Edge", "Windows", f"{WINDOWS} Chrome/64.0.3282.140 Safari/537.36 Edge/18.17763"),
    ("Edge", "Android", f"{ANDROID} Chrome/126.0.0.0 Mobile Safari/537.36 EdgA/126.0.0.0"),
    ("Edge", "iPhone", f"{IPHONE} (KHTML, like Gecko) Version/17.0 EdgiOS/126.0 Safari/605.1.15"),
    ("Opera", "Windows", f"{WINDOWS} Chrome/124.0.0.0 Safari/537.36 OPR/110.0.0.0"),
    ("Opera", "iPhone", f"{IPHONE} (KHTML, like Gecko) Version/17.5 Mobile Safari/604.1 OPT/4.7"),
    ("Vivaldi", "Windows", f"{WINDOWS} Chrome/124.0.0.0 Safari/537.36 Vivaldi/6.7"),
    (
        "Samsung Internet",
        "Android",
        f"{ANDROID} SamsungBrowser/25.0 Chrome/121.0.0.0 Mobile Safari/537.36",
    ),
    ("WeChat", "Android", f"{ANDROID} Version/4.0 Chrome/116.0 MicroMessenger/8.0.49 Mobile"),
    ("Firefox", "Windows", f"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) {FIREFOX}"),
    ("Firefox", "Linux", f"Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:128.0) {FIREFOX}"),
    (
        "Firefox",
        "Android",
        "Mozilla/5.0 (Android 14; Mobile; rv:128.0) Gecko/128.0 Firefox/128.0",
    ),
    (
        "Firefox",
        "iPhone",
        f"{IPHONE} (KHTML, like Gecko) FxiOS/128.0 Mobile/15E148 Safari/605.1.15",
    ),
    ("Safari", "iPhone", f"{IPHONE} (KHTML, like Gecko) Version/17.5 Mobile/15E148 Safari/604.1"),
    ("Safari", "macOS", f"{MAC} AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605"),
    (
        "Safari",
        "iPad",
        "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko)"
        " Version/16.6 Mobile/15E148 Safari/604.1",
    ),
    ("", "iPhone", f"{IPHONE} (KHTML, like Gecko) Mobile/15E148"),
    ("curl", "", "curl/8.5.0"),
    ("Python", "", "python-requests/2.32.3"),
    ("Python", "", "python-httpx/0.27.0"),
    ("Python", "", "Python-urllib/3.11"),
    ("Python", "", "Python/3.11 aiohttp/3.9.5"),
    ("", "", ""),
    ("", "", "Mozilla/5.0"),
    ("", "", "<script>alert(1)</script>"),
]


@pytest.mark.parametrize(("browser", "system", "user_agent"), AGENTS)
def test_a_browser_and_its_system(browser: str, system: str, user_agent: str) -> None:
    """Nearly every browser bears the names of others, too; "" is one that nobody knows."""
    assert (browser_of(user_agent), system_of(user_agent)) == (browser, system)


@pytest.mark.parametrize("hostile", ["\x00", "\u202e", "é" * 5000, "Chrome" * 1000])
def test_any_text_is_a_user_agent(hostile: str) -> None:
    """Only names of ours come out, whatever came in."""
    assert browser_of(hostile) in ("", "Chrome")
    assert system_of(hostile) == ""
