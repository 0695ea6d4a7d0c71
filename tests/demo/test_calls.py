"""Calls to the demo's APIs, by HTTP alone; at the end, what a copy of its data would give away."""

import json
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from django.contrib.sessions.serializers import JSONSerializer
from django.core import signing

from tests.demo.conftest import Demo, running_demo
from tests.demo.recorded.recorder import exchanges
from tests.demo.visitor import Visitor

SEALED = r"v1\.[0-9a-f]{16}\.[A-Za-z0-9_-]+"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo"), "tests.demo.recorded") as started:
        yield started


@pytest.fixture
def visitor(demo: Demo) -> Visitor:
    """Somebody who has just signed in."""
    signed_in = Visitor(demo)
    signed_in.sign_in()
    return signed_in


def calls_to_token_endpoint(demo: Demo, grant_type: str) -> list[dict[str, Any]]:
    return [
        each for each in exchanges(demo.folder) if each["asked"].get("grant_type") == grant_type
    ]


def test_one_call_is_answered_without_a_refresh(visitor: Visitor) -> None:
    result = visitor.press("/profile/calendar/", times="once")
    assert result.startswith("The calendar answered refreshes 0 ")
    assert "No. 1" in result
    assert "Choir, second rehearsal" in result


def test_one_call_after_expiry_is_answered_with_one_refresh(visitor: Visitor) -> None:
    result = visitor.press("/profile/calendar/", times="once", expired="on")
    assert result.startswith("The calendar answered refresh 1 ")
    assert "No. 2" in result
    assert visitor.timeline[0] == "Tokens renewed"


def test_m55_twenty_calls_at_the_moment_of_expiry_are_one_refresh(visitor: Visitor) -> None:
    for number in range(2, 5):
        before = len(calls_to_token_endpoint(visitor.demo, "refresh_token"))
        result = visitor.press("/profile/calendar/", times="many", expired="on")
        assert result.startswith("20 of 20 calls answered refresh 1 ")
        assert result.count("No. ") == 1
        assert f"No. {number} " in result
        asked = calls_to_token_endpoint(visitor.demo, "refresh_token")[before:]
        assert [each["status"] for each in asked] == [200]


def test_twenty_calls_with_a_good_token_need_none(visitor: Visitor) -> None:
    result = visitor.press("/profile/calendar/", times="many")
    assert result.startswith("20 of 20 calls answered refreshes 0 ")


@pytest.mark.parametrize("path", ["calendar", "id-token", "contacts"])
@pytest.mark.parametrize(("sent", "box"), [({}, ""), ({"expired": "on"}, " checked")])
def test_the_checkbox_stays_as_it_was_after_every_button(
    visitor: Visitor, path: str, sent: dict[str, str], box: str
) -> None:
    visitor.press(f"/profile/{path}/", **sent)
    assert f'<input type="checkbox" name="expired" id="expired"{box}>' in visitor.page.text


def test_an_id_token_opens_no_api(visitor: Visitor) -> None:
    result = visitor.press("/profile/id-token/")
    assert result.startswith("The calendar refused the ID Token")
    assert "RS256, aud demo-site-rs256" in result
    assert 'WWW-Authenticate: Bearer realm="Demo Provider", error="invalid_token"' in result


def test_the_id_token_of_a_sign_in_opens_no_api(visitor: Visitor) -> None:
    """As the experiment says, without the experiment: an ID Token just issued to the site."""
    answered = calls_to_token_endpoint(visitor.demo, "authorization_code")[-1]["answered"]
    for path in ("/api/calendar/", "/userinfo/"):
        refused = call_api(visitor.demo, path, answered["id_token"])
        assert refused.status_code == 401
        assert 'error="invalid_token"' in refused.headers["WWW-Authenticate"]
    assert call_api(visitor.demo, "/api/calendar/", answered["access_token"]).status_code == 200


def call_api(demo: Demo, path: str, token: str | None) -> requests.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return requests.get(f"{demo.provider}{path}", headers=headers, timeout=30)


@pytest.mark.parametrize(
    ("token", "challenge"),
    [
        (None, 'Bearer realm="Demo Provider"'),
        ("unknown", 'Bearer realm="Demo Provider", error="invalid_token"'),
    ],
)
def test_the_calendar_challenges_as_rfc_6750_says(
    demo: Demo, token: str | None, challenge: str
) -> None:
    refused = call_api(demo, "/api/calendar/", token)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == challenge


def test_a_missing_scope_is_named_with_the_sign_in_that_asks_for_it(visitor: Visitor) -> None:
    result = visitor.press("/profile/contacts/")
    assert "403 insufficient_scope" in result
    assert "it wants the scope contacts ," in result
    visitor.go(visitor.link("Allow contacts"))
    assert visitor.page.url == f"{visitor.demo.site}/profile/"
    assert visitor.press("/profile/contacts/").startswith("The contacts answered Rui Tavares")


def test_access_taken_back_at_the_provider_ends_in_a_new_sign_in(visitor: Visitor) -> None:
    visitor.go(f"{visitor.demo.provider}/")
    assert "Demo Site RS256" in visitor.text
    visitor.send("/take-back/", client_id="demo-site-rs256")
    visitor.go(visitor.link("Back to the demo site"))
    assert visitor.page.url == f"{visitor.demo.site}/profile/"
    result = visitor.press("/profile/calendar/", times="many")
    assert result.startswith("0 of 20 calls answered refreshes 0 ")
    assert "grant.revoked_or_expired" in result
    assert visitor.timeline[0] == "The grant ended"
    visitor.go(visitor.link("Sign in again"))
    assert visitor.page.url == f"{visitor.demo.site}/profile/"
    assert visitor.press("/profile/calendar/", times="once").startswith("The calendar answered")


def test_a_job_may_call_when_the_person_has_signed_out_and_in_elsewhere(visitor: Visitor) -> None:
    other = Visitor(visitor.demo)
    other.sign_in()
    for each in (visitor, other):
        assert each.press("/profile/calendar/", times="many", expired="on").startswith("20 of 20")


def test_the_refresh_token_that_a_new_sign_in_replaces_is_revoked(visitor: Visitor) -> None:
    metadata = f"{visitor.demo.provider}/.well-known/openid-configuration"
    endpoint = requests.get(metadata, timeout=30).json()["revocation_endpoint"]
    assert endpoint == f"{visitor.demo.provider}/revoke_token/"
    replaced = calls_to_token_endpoint(visitor.demo, "authorization_code")[-1]["answered"]
    Visitor(visitor.demo).sign_in()
    until = time.monotonic() + 20
    while not (told := revocations(visitor.demo, replaced["refresh_token"])):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert [each["status"] for each in told] == [200]
    assert visitor.press("/profile/calendar/", times="once").startswith("The calendar answered")


def revocations(demo: Demo, token: str) -> list[dict[str, Any]]:
    return [each for each in exchanges(demo.folder) if each["asked"].get("token") == token]


def test_calls_are_made_by_post_alone(visitor: Visitor) -> None:
    for path in ("calendar", "contacts", "id-token"):
        refused = visitor.browser.get(f"{visitor.demo.site}/profile/{path}/", timeout=30)
        assert refused.status_code == 405


# What a copy of the data and the logs would give away


def test_m53_m51_a_dump_of_the_database_and_all_logs_hold_no_secret(visitor: Visitor) -> None:
    visitor.press("/profile/calendar/", times="many", expired="on")
    visitor.press("/profile/id-token/")
    visitor.press("/profile/contacts/")
    folder = visitor.demo.folder
    secrets = list(secrets_of(folder))
    dump = dump_of(folder / "site.sqlite3")
    log = (folder / "site.log").read_text()
    assert "DEBUG django.db.backends" in log
    assert "DEBUG urllib3.connectionpool" in log
    assert re.search(SEALED, dump)
    files = b"".join(path.read_bytes() for path in folder.glob("site.sqlite3*"))
    for where, text in {"dump": dump, "log": log, "files": files.decode("latin-1")}.items():
        found = {name for name, secret in secrets if secret[:16] in text or secret[-16:] in text}
        assert found == set(), where


def secrets_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield every secret there is, by name: what the recorder saw, what the installation made."""
    names = {"code", "code_verifier", "refresh_token", "access_token", "id_token", "token"}
    seen: set[str] = set()
    for exchange in exchanges(folder):
        told = {**exchange["asked"], "client_secret": exchange["client_secret"]}
        for source in (told, exchange["answered"]):
            for name in source.keys() & {*names, "client_secret"}:
                seen.add(name)
                yield name, source[name]
    assert seen == {*names, "client_secret"}
    for name, secret in json.loads((folder / "secrets.json").read_text()).items():
        yield name, secret.splitlines()[1] if name == "signing_key" else secret


def dump_of(path: Path) -> str:
    """Return all that is in a SQLite database; what sessions hold in its readable form, too."""
    key = json.loads((path.parent / "secrets.json").read_text())["site_secret_key"]
    connection = sqlite3.connect(path)
    try:
        dump = "\n".join(connection.iterdump())
        rows = connection.execute("SELECT session_data FROM django_session").fetchall()
    finally:
        connection.close()
    salt = "django.contrib.sessions.SessionStore"
    sessions = [
        signing.loads(data, key=key, salt=salt, serializer=JSONSerializer) for (data,) in rows
    ]
    assert sessions
    return f"{dump}\n{json.dumps(sessions)}"
