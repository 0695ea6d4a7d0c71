"""The documentation says what the code does, and its samples work. `make docs` builds it."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.checks import CheckMessage
from django.test import RequestFactory
from pytest_django import Settings

from docs._ext import from_code
from oidc_rp import checks, conf, refusals, signals
from oidc_rp.errors import LoginRefused
from oidc_rp.models import Identity
from oidc_rp.sealing import generate_key
from oidc_rp.testing import SigningKey

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "tutorial.md", *sorted(DOCS.glob("*/*.md"))]


def samples(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", page.read_text(), re.M | re.S)


PYTHON = [
    pytest.param(sample, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, sample in enumerate(samples(page))
]
SETTINGS = [item for item in PYTHON if re.search(r"^OIDC_RP = ", str(item.values[0]), re.M)]


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


# The samples


@pytest.mark.parametrize("sample", PYTHON)
def test_samples_are_python(sample: str) -> None:
    """Each says in which file it stands, but for those that a page only talks about."""
    ast.parse(sample)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the samples take from the environment."""
    key = SigningKey.generate("ES256")
    monkeypatch.setenv("OIDC_CLIENT_ID", "client")
    monkeypatch.setenv("OIDC_CLIENT_SECRET", "a secret of more than thirty-two octets")
    monkeypatch.setenv("OIDC_TOKEN_KEYS", f"{generate_key()} {generate_key()}")
    monkeypatch.setenv("OIDC_PRIVATE_KEY", json.dumps(key.private_jwk))


def complaints() -> list[CheckMessage]:
    """What our system checks say of the settings of this moment."""
    asked = (checks.check_settings, checks.check_providers, checks.check_refresh)
    return [message for check in asked for message in check()]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("sample", SETTINGS)
def test_samples_of_settings_pass_the_checks(sample: str, settings: Settings) -> None:
    """Each sample is whole, and no check has anything to say about it."""
    names: dict[str, Any] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    exec(sample, names)
    settings.OIDC_RP = names["OIDC_RP"]
    if not isinstance(names["OIDC_RP"]["PROVIDERS"], dict):
        assert names["OIDC_RP"] == {"PROVIDERS": "mysite.tenants.providers"}
        return
    settings.DEBUG = True  # the tutorial's provider is plain http
    assert complaints() == []
    assert set(conf.providers()) == set(names["OIDC_RP"]["PROVIDERS"])


def sample_of(page: str, wanted: str) -> dict[str, Any]:
    """The names that the one sample of a page defines which has this text."""
    (found,) = [sample for sample in samples(DOCS / page) if wanted in sample]
    names: dict[str, Any] = {}
    exec(found, names)
    return names


@pytest.mark.django_db
def test_the_sample_of_user_names(django_user_model: Any) -> None:
    """A name that is taken gets a number."""
    backend = sample_of("howto/custom-user.md", "def get_username")["Backend"]()
    django_user_model.objects.create_user("ada")
    assert backend.get_username({"preferred_username": "Ada"}) == "ada-2"
    assert backend.get_username({}) == "user"


@pytest.mark.django_db
def test_the_sample_of_links_for_users_who_are_there(django_user_model: Any) -> None:
    """The user has the identity, once, and nobody takes it over."""
    names = sample_of("howto/upgrading.md", "def link")
    ada, eve = (django_user_model.objects.create_user(name) for name in ("ada", "eve"))
    for user in (ada, ada, eve):
        names["link"](user, "248289761001")
    identity = Identity.objects.find(names["ISSUER"], "248289761001")
    assert identity is not None
    assert identity.user == ada
    assert Identity.objects.count() == 1


@pytest.mark.django_db
def test_the_sample_of_finding_users_who_are_there(django_user_model: Any) -> None:
    """Without the claim it finds nobody."""
    backend = sample_of("howto/upgrading.md", "employee_number")["Backend"]()
    ada = django_user_model.objects.create_user("4711")
    assert list(backend.filter_users_by_claims({"employee_number": "4711"})) == [ada]
    assert not backend.filter_users_by_claims({})
    assert not backend.filter_users_by_claims({"employee_number": ""})


@pytest.mark.usefixtures("environment")
def test_the_sample_of_groups(request: pytest.FixtureRequest, settings: Settings) -> None:
    """The page's test passes with the page's settings."""
    settings.OIDC_RP = sample_of("howto/groups.md", "GROUPS_CLAIM")["OIDC_RP"]
    client = request.getfixturevalue("oidc_client")
    sample_of("howto/groups.md", "def test_editors")["test_editors"](client)


def test_the_sample_of_a_receiver(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told of refusals."""
    receiver = sample_of("reference/signals.md", "@receiver")["count_refusals"]
    try:
        request, error = RequestFactory().get("/"), LoginRefused("account.unknown")
        signals.login_failed.send(
            Identity, request=request, provider="genauth", error=error, reference="0123456789"
        )
    finally:
        signals.login_failed.disconnect(receiver)
    assert capsys.readouterr().out == "genauth: account.unknown, reference 0123456789\n"


# The tutorial


class Project:
    """An empty directory in which a newcomer does what the tutorial says."""

    def __init__(self, folder: Path, ports: dict[str, str]) -> None:
        self.folder, self.ports = folder, ports
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("DJANGO_")
        } | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}

    def run(self, *arguments: str) -> str:
        """Run Python here, and return what it wrote."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
        ).stdout

    @contextmanager
    def running(self, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process:
            try:
                yield process
            finally:
                process.terminate()

    def write(self, sample: str, **secrets: str) -> None:
        """Put a sample where its first line says: below what is there, or in the place of URLs."""
        for standing, real in (self.ports | secrets).items():
            sample = sample.replace(standing, real)
        path = self.folder / sample.partition("\n")[0].removeprefix("# ")
        before = path.read_text() if path.exists() else ""
        path.write_text(sample if "\nurlpatterns = [" in sample else f"{before}\n{sample}")


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(requests.ConnectionError):
            requests.get(url, timeout=10)
            return
        time.sleep(0.05)
    raise TimeoutError(url)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = Project(tmp_path, {":9000": f":{free_port()}", ":8000": f":{free_port()}"})
    made.run("-m", "django", "startproject", "mysite", ".")
    return made


def sign_out(browser: requests.Session, site: str) -> requests.Response:
    page = browser.get(f"{site}/", timeout=10).text
    (token,) = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    form = {"csrfmiddlewaretoken": token}
    return browser.post(f"{site}/oidc/logout/", data=form, timeout=10)


def test_the_tutorial_works_as_written(project: Project) -> None:
    """From startproject to the calendar of the person who signed in, and the site's own tests."""
    tutorial = DOCS / "tutorial.md"
    port = project.ports[":9000"].removeprefix(":")
    with project.running("-m", "oidc_rp.testing", "--port", port, "--seconds", "120") as op:
        assert op.stdout is not None
        client = json.loads(op.stdout.readline())
        assert (client["client_id"], client["issuer"]) == ("rp-client", f"http://127.0.0.1:{port}")
        secrets = {
            '"CLIENT_SECRET": "..."': f'"CLIENT_SECRET": {client["client_secret"]!r}',
            '["..."]': f"[{generate_key()!r}]",
        }
        for sample in samples(tutorial):
            project.write(sample, **secrets)
        (project.folder / "mysite/templates").mkdir()
        (page,) = samples(tutorial, "html+django")
        (project.folder / "mysite/templates/home.html").write_text(page)
        assert "no issues" in project.run("manage.py", "check")
        project.run("manage.py", "migrate")
        walk_through(project)
        break_and_mend(project)
    assert "\nOK\n" in project.run("manage.py", "test")


def walk_through(project: Project) -> None:
    """What the tutorial's reader does in the browser."""
    site = "http://127.0.0.1" + project.ports[":8000"]
    port = project.ports[":8000"].removeprefix(":")
    with (
        project.running("manage.py", "runserver", "--noreload", port),
        requests.Session() as browser,
    ):
        wait_for(f"{site}/")
        assert "Local Provider" in browser.get(f"{site}/", timeout=10).text
        assert "Hello, Jane." in browser.get(f"{site}/oidc/local/login/", timeout=10).text
        assert browser.get(f"{site}/who-am-i/", timeout=10).json()["claims"]["name"] == "Jane Doe"
        calendar = browser.get(f"{site}/calendar/", timeout=10).json()
        assert calendar["sub"] == "248289761001"
        assert "calendar" in calendar["scope"].split()
        signed_out = sign_out(browser, site)
        assert (signed_out.status_code, signed_out.url.partition("?")[0]) == (
            200,
            f"{site}/oidc/logged-out/",
        )


def break_and_mend(project: Project) -> None:
    """What the doctor says of a wrong issuer is what the tutorial shows, and helps."""
    settings, page = project.folder / "mysite/settings.py", (DOCS / "tutorial.md").read_text()
    right = f'"ISSUER": "http://127.0.0.1{project.ports[":9000"]}",'
    settings.write_text(settings.read_text().replace(right, right.replace('",', '/",')))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        project.run("manage.py", "oidc_doctor", "local")
    (mend,) = re.findall(r"Mend: Write (.+)", failed.value.stdout)
    (why,) = re.findall(r"Why: (.+)", failed.value.stdout)
    assert mend == right
    assert f"Why: {why}\n" in page
    settings.write_text(settings.read_text().replace(right.replace('",', '/",'), mend))
    assert "Errors: 0, warnings: 0" in project.run("manage.py", "oidc_doctor", "local")
