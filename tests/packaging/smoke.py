"""Install the wheel where nothing else is, and sign in with it.

    python -m tests.packaging.smoke dist/oidc_rp-0.1.0-py3-none-any.whl

The wheel goes into a new virtual environment, outside the checkout, with a scratch project that
has the dozen lines of the README. The demo's embedded provider runs from the checkout, with the
Python that runs this script. A person then signs in over HTTP: at an RS256 client, at an HS256 one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from demo_site.installation import HS256_CLIENT_ID, RS256_CLIENT_ID, USERNAME

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGE = CHECKOUT / "oidc_rp"
SECONDS_TO_START = 60
MOST_PAGES = 6
"""A sign-in takes fewer; more would be a loop."""

ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("PYTHON", "DJANGO_", "DEMO_", "VIRTUAL_ENV", "MAKE"))
}
"""Nothing in it leads the scratch project into the checkout."""

SETTINGS = """
INSTALLED_APPS = [*INSTALLED_APPS, "oidc_rp"]
AUTHENTICATION_BACKENDS = [
    "oidc_rp.backends.OIDCBackend",
    "django.contrib.auth.backends.ModelBackend",
]
OIDC_RP = {{
    "PROVIDERS": {{
        "demo-rs256": {{
            "LABEL": "RS256",
            "ISSUER": {issuer!r},
            "CLIENT_ID": {rs256_client_id!r},
            "CLIENT_SECRET": {rs256_client_secret!r},
            "SCOPES": ["openid", "profile", "email"],
        }},
        "demo-hs256": {{
            "LABEL": "HS256",
            "ISSUER": {issuer!r},
            "CLIENT_ID": {hs256_client_id!r},
            "CLIENT_SECRET": {hs256_client_secret!r},
            "SCOPES": ["openid", "profile", "email"],
            "ID_TOKEN_SIGNED_RESPONSE_ALG": "HS256",
        }},
    }},
    "TOKEN_KEYS": [{token_key!r}],
    "ALLOW_LOOPBACK_HTTP": True,
}}
LOGIN_URL = "oidc_rp:login_chooser"
LOGIN_REDIRECT_URL = "/"
"""

URLS = """
from django.contrib.auth.decorators import login_required
from django.http import JsonResponse
from django.urls import include, path


@login_required
def home(request):
    identities = request.user.oidc_identities.values("provider", "iss", "sub")
    return JsonResponse({"username": request.user.get_username(), "identities": [*identities]})


urlpatterns = [path("oidc/", include("oidc_rp.urls")), path("", home)]
"""

Command = list["str | Path"]


def main(wheel: Path) -> None:
    check_contents(wheel)
    with tempfile.TemporaryDirectory(prefix="smoke-") as name, ExitStack() as stack:
        folder = Path(name)
        python = install(wheel, folder / "venv")
        site_port, op_port = free_ports(2)
        site, issuer = f"http://127.0.0.1:{site_port}", f"http://127.0.0.1:{op_port}"
        secrets = stack.enter_context(provider(folder / "op", site_port, op_port))
        project = start_project(python, folder / "scratch", issuer, secrets)
        stack.enter_context(serving([python, "manage.py"], site_port, project))
        by_rs256 = sign_in(site, "demo-rs256", secrets["password"])
        by_hs256 = sign_in(site, "demo-hs256", secrets["password"])
        assert by_rs256[0] == by_hs256[0] == issuer, (by_rs256, by_hs256)
    assert by_rs256[1] != by_hs256[1], "each client has a sub of its own (Core 8.1)"
    print("smoke: the wheel installs where nothing else is, and signs in with RS256 and HS256.")


# ---- the wheel ------------------------------------------------------------------------------


def check_contents(wheel: Path) -> None:
    """The wheel holds all files of oidc_rp, and nothing but them and its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    ours = {path.relative_to(CHECKOUT).as_posix() for path in files}
    assert names == ours, f"missing: {ours - names}; not ours: {names - ours}"
    for needed in (
        r"oidc_rp/py\.typed",
        r"oidc_rp/templates/oidc_rp/login_chooser\.html",
        r"oidc_rp/static/oidc_rp/oidc_rp\.css",
        r"oidc_rp/migrations/0001_initial\.py",
        r"oidc_rp/locale/\w+/LC_MESSAGES/django\.mo",
    ):
        assert any(re.fullmatch(needed, name) for name in names), f"not in the wheel: {needed}"


def install(wheel: Path, venv: Path) -> Path:
    """Return the Python of a new virtual environment that holds the wheel and what it asks for."""
    run([sys.executable, "-m", "venv", venv], CHECKOUT)
    python = venv / "bin" / "python"
    pip: Command = [python, "-m", "pip", "--disable-pip-version-check"]
    # Which packages are installed is the wheel's word alone; their versions are the pinned ones.
    pins = CHECKOUT / "requirements.txt"
    run([*pip, "install", "--quiet", "--constraint", pins, wheel.resolve()], venv)
    run([*pip, "check"], venv)
    where = run([python, "-c", "import oidc_rp; print(oidc_rp.__file__)"], venv)
    assert Path(where.strip()).is_relative_to(venv), where
    return python


# ---- the scratch project, and the provider --------------------------------------------------


def start_project(python: Path, folder: Path, issuer: str, secrets: dict[str, str]) -> Path:
    """Start a project as Django does, add our dozen lines, check and migrate it."""
    folder.mkdir()
    run([python, "-m", "django", "startproject", "scratch", "."], folder)
    values = secrets | {
        "issuer": issuer,
        "rs256_client_id": RS256_CLIENT_ID,
        "hs256_client_id": HS256_CLIENT_ID,
    }
    with (folder / "scratch" / "settings.py").open("a") as settings:
        settings.write(SETTINGS.format(**values))
    (folder / "scratch" / "urls.py").write_text(URLS)
    run([python, "manage.py", "check", "--fail-level", "WARNING"], folder)
    run([python, "manage.py", "migrate", "--verbosity", "0"], folder)
    return folder


@contextmanager
def provider(folder: Path, site_port: int, op_port: int) -> Iterator[dict[str, str]]:
    """Serve the demo's embedded provider; yield its clients' secrets and its user's password."""
    environment = {
        "DEMO_DIR": str(folder),
        "DEMO_PORT": str(site_port),
        "DEMO_OP_PORT": str(op_port),
        "DJANGO_SETTINGS_MODULE": "demo_site.provider.settings",
    }
    django: Command = [sys.executable, "-m", "django"]
    run([*django, "prepare_provider"], CHECKOUT, environment)
    with serving(django, op_port, CHECKOUT, environment):
        yield json.loads((folder / "secrets.json").read_text())


@contextmanager
def serving(
    django: Command, port: int, cwd: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Run a project's server until the block is left; show its log when the block fails."""
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*django, "runserver", "--noreload", f"127.0.0.1:{port}"],
            cwd=cwd,
            env=ENVIRONMENT | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_it_listens(port, server)
            yield
        except BaseException:
            log.seek(0)
            print(f"smoke: the log of {cwd.name}:\n{log.read()}", file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(10)


def wait_until_it_listens(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server has ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def run(command: Command, cwd: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end and return what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=ENVIRONMENT | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"smoke: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


# ---- the person -----------------------------------------------------------------------------


def sign_in(site: str, slug: str, password: str) -> tuple[str, str]:
    """Walk from the home page through chooser and provider, back to the home page.

    Returns `(iss, sub)` of the one identity that the signed-in user has.
    """
    browser = requests.Session()
    browser.trust_env = False
    answer = browser.get(f"{site}/", timeout=30)
    answer = browser.get(link_to(answer, f"/oidc/{slug}/login/"), timeout=30)
    for _ in range(MOST_PAGES):
        if answer.url == f"{site}/":
            break
        answer = submit(browser, answer, {"username": USERNAME, "password": password})
    assert (answer.status_code, answer.url) == (200, f"{site}/"), describe(answer)
    (identity,) = answer.json()["identities"]
    return identity["iss"], identity["sub"]


def link_to(answer: requests.Response, path: str) -> str:
    links = [urljoin(answer.url, link) for link in Page.of(answer).links]
    (link,) = (link for link in links if urlsplit(link).path == path)
    return link


def submit(
    browser: requests.Session, answer: requests.Response, typed: dict[str, str]
) -> requests.Response:
    """Send the page's one form, with what a person types into the fields that it has."""
    assert answer.status_code == 200, describe(answer)
    (form,) = Page.of(answer).forms
    fields = {name: typed.get(name, value) for name, value in form.fields.items()}
    url = urljoin(answer.url, form.action)
    # Django's CSRF check wants a Referer where there is no Origin, as browsers send one.
    headers = {"Referer": answer.url}
    if form.method == "post":
        return browser.post(url, data=fields, headers=headers, timeout=30)
    return browser.get(url, params=fields, headers=headers, timeout=30)


def describe(answer: requests.Response) -> str:
    return f"{answer.status_code} at {urlsplit(answer.url).path}: {Page.of(answer).text}"


@dataclass
class Form:
    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """The links, the forms and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.forms: list[Form] = []
        self.text = ""

    @classmethod
    def of(cls, answer: requests.Response) -> Page:
        page = cls()
        page.feed(answer.text)
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        elif tag == "form":
            method = attributes.get("method", "get").lower()
            self.forms.append(Form(attributes.get("action", ""), method))
        elif tag == "input" and self.forms and "name" in attributes:
            self.forms[-1].fields[attributes["name"]] = attributes.get("value", "")

    def handle_data(self, data: str) -> None:
        self.text += " ".join(data.split()) + " "


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
