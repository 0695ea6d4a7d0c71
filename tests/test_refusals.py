"""Refusals: what a user reads, what the log says, and that both name one reference."""

import ast
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from django.template import engines
from django.test import Client
from pytest_django import Settings

import oidc_rp
from oidc_rp import refusals
from oidc_rp import testing as provider
from oidc_rp.errors import (
    KNOWN_OP_ERRORS,
    ConfigurationError,
    InvalidIdToken,
    InvalidResponse,
    LoginRefused,
    OIDCError,
    OPError,
    TransportError,
)
from oidc_rp.models import Identity
from oidc_rp.signals import login_failed
from oidc_rp.testing import OpenIDProvider
from oidc_rp.testing.browser import Browser
from tests.conftest import Configure

CODE = re.compile(r"[a-z_]+(\.[a-z_]+)+")
PREFIXES = {"InvalidIdToken": "id_token."}
PACKAGE = Path(oidc_rp.__file__).parent


def codes_raised() -> set[str]:
    """Every code that a literal in the source gives to an error; "x.*" where a part is computed."""
    errors = {"OIDCError", "ConfigurationError", "TransportError", "InvalidResponse"}
    errors |= {"LoginRefused", "InvalidIdToken", "OPError"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                name, given = node.func.id, node.args[0]
                if name in errors:
                    found.add(PREFIXES.get(name, "") + literal(given))
                elif name in ("json_object", "_document"):
                    found.add(literal(node.args[1]))
                elif name == "op_error":
                    found |= {f"{literal(given)}.{error}" for error in KNOWN_OP_ERRORS | {"error"}}
    return {code for code in found if "." in code and not code.startswith("*")}


def literal(node: ast.expr) -> str:
    """The text of a literal, and "*" for what is not."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    return "*"


def test_every_code_has_an_explanation() -> None:
    """By itself or by what stands before its dot; nothing is raised that nobody can explain."""
    codes = codes_raised()
    assert {"state.unknown", "id_token.iss", "transport.timeout", "token.json"} <= codes
    assert {"par.invalid_request", "account.inactive", "provider.unknown"} <= codes
    assert len(codes) > 60
    known = refusals.EXPLANATIONS
    assert {code for code in codes if not {code, code.partition(".")[0]} & known.keys()} == set()


def test_every_explanation_is_of_a_code() -> None:
    """No sentence is left over from a code that is raised no more."""
    codes = codes_raised()
    prefixes = {code.partition(".")[0] for code in codes}
    exact = {code for code in refusals.EXPLANATIONS if "." in code}
    assert {code for code in refusals.EXPLANATIONS if "." not in code} <= prefixes
    computed = {code for code in exact if f"{code.partition('.')[0]}.*" in codes}
    assert exact - computed <= codes


def test_codes_are_spelt_alike() -> None:
    for code in codes_raised() | refusals.EXPLANATIONS.keys():
        assert CODE.fullmatch(code.replace("*", "x")) or "." not in code, code


ERRORS: dict[str, tuple[OIDCError, int]] = {
    "state": (InvalidResponse("state.unknown"), 400),
    "id token": (InvalidIdToken("iss", expected="a", received="b"), 400),
    "op": (OPError("authorization", "access_denied"), 400),
    "op's own": (OPError("token", "own_error"), 400),
    "transport": (TransportError("transport.timeout"), 424),
    "policy": (LoginRefused("account.inactive"), 403),
    "configuration": (ConfigurationError("configuration.provider"), 400),
    "provider": (ConfigurationError("provider.unknown"), 404),
    "a code of tomorrow": (InvalidResponse("new.thing"), 400),
    "no dot": (InvalidResponse("odd"), 400),
}


@pytest.mark.parametrize(("error", "status"), ERRORS.values(), ids=ERRORS)
def test_every_refusal_is_a_4xx_page_with_sentence_advice_and_reference(
    browser: Browser, caplog: pytest.LogCaptureFixture, error: OIDCError, status: int
) -> None:
    """The reference on the page is the one in the log line, and there is one such line."""
    request = browser.client.get("/home/").wsgi_request
    response = refusals.refuse(request, error, "op", "/private/")
    page = response.content.decode()
    assert response.status_code == status == refusals.status_of(error)
    told = refusals.explanation(error.code)
    sentence = engines["django"].from_string("{{ sentence }}").render({"sentence": told.sentence})
    assert sentence in page
    assert error.code in page
    (record,) = [record for record in caplog.records if record.name == "oidc_rp"]
    fields = vars(record)
    assert (fields["code"], fields["provider"]) == (error.code, "op")
    assert fields["reference"] in page
    assert f"reference={fields['reference']}" in record.getMessage()
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "/oidc/login/?next=%2Fprivate%2F" in page


def test_references_are_new_each_time(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        browser.client.get("/oidc/op/callback/?state=x")
    references = [
        vars(record)["reference"] for record in caplog.records if record.name == "oidc_rp"
    ]
    assert len(set(references)) == 5


class Told:
    """What login_failed was sent with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> None:
        self.calls.append(arguments)


@pytest.fixture
def told() -> Any:
    receiver = Told()
    login_failed.connect(receiver)
    yield receiver
    login_failed.disconnect(receiver)


def test_login_failed_is_sent_once_with_the_code(browser: Browser, told: Told) -> None:
    """With the error and the reference of the page; a login that succeeds sends none."""
    browser.sign_in("op")
    assert told.calls == []
    response = browser.client.get("/oidc/op/callback/?state=x")
    (call,) = told.calls
    assert (call["sender"], call["provider"]) == (Identity, "op")
    assert call["error"].code == response.context["code"] == "state.unknown"
    assert call["reference"] == response.context["reference"]
    assert call["request"] is response.wsgi_request


def test_a_failing_receiver_breaks_nothing(
    browser: Browser, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, the others are told, and the page is shown."""

    def fail(**_: Any) -> None:
        raise RuntimeError("a bug of this site")

    login_failed.connect(fail)
    try:
        response = browser.client.get("/oidc/op/callback/?state=x")
    finally:
        login_failed.disconnect(fail)
    assert (response.status_code, len(told.calls)) == (400, 1)
    assert "a bug of this site" in caplog.text


def test_the_page_offers_a_way_on_and_no_circle(browser: Browser) -> None:
    """Try again leads to the chooser: never straight to the OP, which would send one back."""
    response = browser.client.get("/oidc/op/callback/?state=x&next=https://evil.example/")
    assert response.context["retry_url"] == "/oidc/login/"
    assert "evil.example" not in response.content.decode()


def test_trying_again_still_leads_to_where_one_wanted_to_go(
    browser: Browser, op: OpenIDProvider
) -> None:
    """A refused callback does not lose the pending login's `next`."""
    op.id_token_claims["aud"] = "somebody-else"
    response = browser.sign_in("op", next="/private/")
    assert response.status_code == 400
    assert response.context["retry_url"] == "/oidc/login/?next=%2Fprivate%2F"


def test_the_page_names_the_provider_as_people_know_it(
    browser: Browser, configure: Configure
) -> None:
    configure(LABEL="Gen<Auth>")
    page = browser.client.get("/oidc/op/callback/?state=x").content.decode()
    assert "Gen&lt;Auth&gt;" in page
    assert "Gen<Auth>" not in page


HOSTILE = [
    "x\r\nERROR forged line",
    "x\x1b[2J",
    "x\u2028forged",
    "x\x00y",
    "%s%s%n",
    "{0.__class__}",
    "x" * 10_000,
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("name", ["state", "error", "error_description", "iss", "code"])
def test_no_line_can_be_forged_in_the_log(
    browser: Browser, caplog: pytest.LogCaptureFixture, name: str, hostile: str
) -> None:
    """Whatever comes through the browser, a refusal is one short line of printable characters."""
    callback = browser.visit_op(browser.start("op"))
    caplog.clear()
    response = browser.come_back(callback.bent(**{"error": "access_denied", name: hostile}))
    assert response.status_code == 400
    lines = [record.getMessage() for record in caplog.records if record.name == "oidc_rp"]
    assert len(lines) == 1
    assert lines[0].isprintable()
    assert len(lines[0]) < 1500
    values = {key: str(value) for key, value in vars(caplog.records[0]).items()}
    assert values["received"].isprintable()


@pytest.mark.parametrize("hostile", HOSTILE[:3])
@pytest.mark.parametrize(
    "claim", ["iss", "aud", "azp", "exp", "acr", "sub", "nonce", "at_hash", "kid"]
)
def test_no_line_can_be_forged_by_the_op(
    op: OpenIDProvider,
    browser: Browser,
    configure: Configure,
    caplog: pytest.LogCaptureFixture,
    claim: str,
    hostile: str,
) -> None:
    configure(DEFAULT_ACR_VALUES=["gold"])
    bent = op.id_token_header if claim == "kid" else op.id_token_claims
    bent[claim] = hostile if claim != "sub" else [hostile]
    response = browser.sign_in("op")
    assert response.context["code"].startswith("id_token.")
    lines = [record.getMessage() for record in caplog.records if record.name == "oidc_rp"]
    assert all(line.isprintable() and len(line) < 1500 for line in lines)
    assert "<script>" not in response.content.decode()


def test_what_was_expected_and_received_is_in_the_log_and_not_on_the_page(
    op: OpenIDProvider, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    op.id_token_claims["iss"] = "https://other.example"
    response = browser.sign_in("op")
    record = next(record for record in caplog.records if record.name == "oidc_rp")
    assert vars(record)["expected"] == repr(op.issuer)
    assert vars(record)["received"] == "'https://other.example'"
    assert "other.example" not in response.content.decode()


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("/oidc/op/callback/?state=x", logging.WARNING),
        ("/oidc/nobody/login/", logging.WARNING),
        ("/oidc/op/login/", logging.ERROR),
    ],
)
def test_what_needs_somebody_to_act_is_an_error(
    op: OpenIDProvider,
    browser: Browser,
    caplog: pytest.LogCaptureFixture,
    path: str,
    level: int,
) -> None:
    """A stranger's bad link is a warning; an OP that is down, or settings, are errors."""
    op.answer["discovery"] = provider.close_connection()
    browser.client.get(path)
    levels = [record.levelno for record in caplog.records if "refused" in record.getMessage()]
    assert levels == [level]


def test_a_refusal_needs_no_static_files_and_no_session(
    configure: Configure, settings: Settings, db: None
) -> None:
    """The page is shown on a site that has set up next to nothing."""
    settings.STATIC_URL = None
    response = Client().get("/oidc/op/callback/?state=x")
    assert response.status_code == 400
    assert "Set-Cookie" not in response.headers


def test_a_refusal_is_not_cached(browser: Browser) -> None:
    response = browser.client.get("/oidc/op/callback/?state=x")
    assert "no-store" in response.headers["Cache-Control"]
