"""What an OP writes into its documents to have it in the log: passwords in URLs, and much of it."""

import logging
from typing import Any

import pytest

from oidc_rp.errors import OIDCError
from oidc_rp.models import Event
from oidc_rp.signals import login_failed
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser

SECRET = "S3CRETxyz"
PLANTED = [
    f"https://u:{SECRET}@h/",
    f"https://{SECRET}@h/",
    f"//u:{SECRET}@h/",
    f"u:{SECRET}@h",
    f"https:\\\\u:{SECRET}@h",
    f"see https://u:{SECRET}@h/ and https://v:{SECRET}@h/",
    f"http://h/?key={SECRET}",
    f"http://h/#{SECRET}",
    f"/token?client_secret={SECRET}",
    f"https:/h/t?key={SECRET}",
    f"h/t#{SECRET}",
    f"{SECRET}@h/t",
    [f"https://u:{SECRET}@h/"],
    {"url": [{"at": f"https://u:{SECRET}@h/"}]},
    {f"https://u:{SECRET}@h/": 1},
]


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize("name", ["issuer", "token_endpoint", "userinfo_endpoint", "jwks_uri"])
def test_M53_no_password_of_a_url_in_the_metadata_is_told(
    op: OpenIDProvider, browser: Browser, caplog: pytest.LogCaptureFixture, name: str, planted: Any
) -> None:
    """Neither to the log nor to the page, the timeline, or whoever listens."""
    op.metadata[name] = planted
    heard: list[OIDCError] = []

    def listen(error: OIDCError, **_: Any) -> None:
        heard.append(error)

    login_failed.connect(listen)
    try:
        with caplog.at_level(logging.DEBUG):
            response = browser.client.get("/oidc/op/login/")
    finally:
        login_failed.disconnect(listen)
    assert response.context["code"] == f"discovery.{name}"
    (record,) = [one for one in caplog.records if vars(one).get("event") == "login_refused"]
    assert "***" in vars(record)["received"]
    told = [one.getMessage() + repr(vars(one)) for one in caplog.records if one.name == "oidc_rp"]
    rows = [*Event.objects.values_list()]
    assert len(rows) == 1
    for text in (*told, response.content.decode(), repr(rows), repr(vars(heard[0])), str(heard[0])):
        assert SECRET not in text


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        200,
        "RS256",
        "jane@example.com",
        "https://op.example/tenant/",
        "within 600 s",
        ["rp", "https://api.example"],
        ("calendar", "mail"),
        {"a": [1, None]},
        frozenset({"x"}),
    ],
)
def test_what_is_no_secret_is_told_as_it_is(value: Any) -> None:
    """Of the same type, for whoever compares it."""
    error = OIDCError("some.code", expected=value, received=value)
    assert (error.expected, error.received) == (value, value)
    assert type(error.received) is type(value)


@pytest.mark.parametrize(
    "text", [":" * 1_000_000, "@" * 1_000_000, "?" * 1_000_000, ":@" * 500_000]
)
def test_a_long_text_is_gone_through_once(text: str) -> None:
    """Else the test does not come to its end."""
    error = OIDCError("some.code", received=[text] * 3)
    assert len(error.received) == 3  # type: ignore[arg-type]
