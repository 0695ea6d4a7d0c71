"""What a template may say of signing in."""

from typing import Any

import pytest
from django.template import Context, Template
from django.test import RequestFactory
from django.utils import translation
from django.utils.translation import gettext_lazy
from pytest_django import Settings

from tests.test_conf import GOOD


def render(source: str, **context: Any) -> str:
    return Template("{% load oidc_rp %}" + source).render(Context(context))


@pytest.fixture(autouse=True)
def _two_providers(settings: Settings) -> None:
    settings.OIDC_RP = {
        "PROVIDERS": {
            "one": GOOD | {"LABEL": "One & <b>Only</b>"},
            "two": GOOD | {"CLIENT_ID": "two", "ICON": "no/such/icon.svg"},
            "broken": {},
        }
    }


def test_the_address_of_a_login() -> None:
    """With the page's next, escaped; and without one."""
    assert render('{% oidc_login_url "one" %}') == "/oidc/one/login/"
    url = render('{% oidc_login_url "one" %}', next="/a?b=c&d=é")
    assert url == "/oidc/one/login/?next=%2Fa%3Fb%3Dc%26d%3D%C3%A9"


def test_a_button_for_each_provider_that_can_be_used() -> None:
    """Real links with labels, escaped, each with an icon; the broken one has none."""
    page = render("{% oidc_login_buttons %}")
    assert page.count("<a ") == 2
    assert "Sign in with One &amp; &lt;b&gt;Only&lt;/b&gt;" in page
    assert 'href="/oidc/two/login/"' in page
    assert page.count("<svg") == 2
    assert "broken" not in page


def test_no_buttons_without_providers(settings: Settings) -> None:
    """A page with the tag works on a site that has no providers, or no settings at all."""
    for value in ({"PROVIDERS": {}}, None):
        settings.OIDC_RP = value
        assert render("{% oidc_login_buttons %}").strip() == ""


def test_what_buttons_are_made_of() -> None:
    """For a page that draws its own."""
    source = "{% oidc_providers as all %}{% for p in all %}{{ p.slug }} {{ p.url }};{% endfor %}"
    assert render(source) == "one /oidc/one/login/;two /oidc/two/login/;"


@pytest.mark.parametrize(
    ("context", "query", "expected"),
    [
        ("/from/context", "/from/query", "%2Ffrom%2Fcontext"),
        (None, "/from/query", "%2Ffrom%2Fquery"),
        (2, "/from/query", "%2Ffrom%2Fquery"),
        ("", '"><script>', "%22%3E%3Cscript%3E"),
    ],
)
def test_next_is_the_pages_or_the_querys(
    rf: RequestFactory, context: Any, query: str, expected: str
) -> None:
    """Only text counts; the login view decides whether it is safe."""
    request = rf.get("/", {"next": query})
    page = render('{% oidc_login_url "one" %}', request=request, next=context)
    assert page == f"/oidc/one/login/?next={expected}"


def test_a_translated_label_follows_the_visitor(settings: Settings) -> None:
    """A lazy label is told in the language of the page."""
    settings.OIDC_RP = {"PROVIDERS": {"one": GOOD | {"LABEL": gettext_lazy("Yes")}}}
    for language, label in (("en", "Yes"), ("de", "Ja")):
        with translation.override(language):
            assert label in render("{% oidc_login_buttons %}")


def test_static_files_that_cannot_be_told(settings: Settings) -> None:
    """A refusal is shown on a site without static files, too."""
    assert render('{% oidc_static "oidc_rp/oidc_rp.css" %}') == "/static/oidc_rp/oidc_rp.css"
    settings.STATIC_URL = None
    assert render('{% oidc_static "oidc_rp/oidc_rp.css" %}') == ""


def test_no_buttons_where_our_urls_are_not(settings: Settings) -> None:
    """A site's other URLconf, another host's say, has a login page without them."""
    settings.ROOT_URLCONF = "django.contrib.auth.urls"
    assert render("{% oidc_login_buttons %}").strip() == ""
    assert render("{% oidc_providers as all %}{{ all|length }}") == "0"
