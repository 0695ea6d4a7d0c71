"""The documentation says what the code does. `make docs` builds it; this needs no Sphinx."""

import re
from pathlib import Path

from docs._ext import from_code
from oidc_rp import conf, refusals

DOCS = Path(__file__).parent.parent / "docs"


def first_cells(table: str) -> set[str]:
    """The names in code that the rows of a table begin with."""
    return set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def test_the_reference_has_every_setting() -> None:
    """Each with its sentence."""
    told = from_code.provider_settings()
    assert first_cells(told) == set(conf.OPTIONS)
    assert all(field.metadata["sentence"] in told for field in conf.OPTIONS.values())
    assert "*a number of seconds from 1 to 60*; default `10.0`" in told
    assert first_cells(from_code.site_settings()) == conf.TOP_OPTIONS


def test_the_reference_has_every_code() -> None:
    """What is explained to people and what is told to operators."""
    told = {code.removesuffix(".*") for code in first_cells(from_code.refusals_told())}
    assert told == set(refusals.EXPLANATIONS)
    assert "id_token.alg" in first_cells(from_code.codes())


def test_the_reference_has_every_signal_command_and_url() -> None:
    """By what the code says of each."""
    assert "request, user, identity" in from_code.signals_sent()
    assert len(first_cells(from_code.signals_sent())) == 6
    assert "oidc_rp:backchannel_logout" in first_cells(from_code.url_names())
    assert "## `manage.py oidc_reseal`" in from_code.commands()
    assert "| `--limit LIMIT` | rows to list (" in from_code.commands()
    assert "%(" not in from_code.commands()


def test_the_reference_has_every_check_with_its_hint() -> None:
    """Where the hint is one text of the source, what is put into it as well."""
    told = from_code.system_checks()
    assert {"oidc_rp.E001", "oidc_rp.E022", "oidc_rp.W008"} <= first_cells(told)
    assert "HMAC needs 32 octets (RFC 7518 §3.2)" in told
    assert "Put 'oidc_rp.middleware.SessionRenewal' in its place" in told


def test_the_threat_model_has_the_tests_of_every_promise() -> None:
    """Each number of promises.md, with the tests that bear it."""
    promised = set(re.findall(r"\*\*(M\d+[ab]?)\*\*", (DOCS / "promises.md").read_text()))
    assert set(from_code.promise_tests()) == promised
    assert set(re.findall(r"^- \*\*(M\d+[ab]?)\*\*", from_code.promises(), re.M)) == promised
    assert "`test_callback.py::test_M3_single_use`" in from_code.promises()


def test_links_lead_to_pages() -> None:
    """Of the pages in folders, too; Sphinx also looks at what stands behind the #."""
    for page in DOCS.glob("*/*.md"):
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
