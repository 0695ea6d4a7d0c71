"""The demo, started as a person starts it, and a browser to look at it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

ROOT = Path(__file__).resolve().parent.parent.parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

TOLD = r"^  (?:Demo site|OpenID Provider|Sign in as|Password) +(\S+)"


@dataclass(frozen=True)
class Demo:
    """What the demo prints when both servers answer."""

    site: str
    provider: str
    username: str
    password: str
    folder: Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def start_demo(
    folder: Path, port: int, op_port: int, module: str = "demo_site.run"
) -> subprocess.Popen[str]:
    options = ["--port", str(port), "--op-port", str(op_port)]
    command = [sys.executable, "-m", module, *options]
    environment = {**os.environ, "DEMO_DIR": str(folder)}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def read_welcome(process: subprocess.Popen[str]) -> str:
    """Return what the demo prints until it says how to stop it, or all of it when it ends."""
    printed = ""
    assert process.stdout
    for line in process.stdout:
        printed += line
        if "Ctrl-C" in line:
            break
    return printed


def stop_demo(process: subprocess.Popen[str], number: signal.Signals) -> int:
    if process.poll() is None:
        process.send_signal(number)
    process.communicate(timeout=20)
    return process.returncode


@contextmanager
def running_demo(folder: Path, module: str = "demo_site.run") -> Iterator[Demo]:
    process = start_demo(folder, *free_ports(2), module)
    try:
        welcome = read_welcome(process)
        told = re.findall(TOLD, welcome, re.M)
        assert len(told) == 4, welcome
        site, provider, username, password = told
        yield Demo(site, provider, username, password, folder)
    finally:
        status = stop_demo(process, signal.SIGINT)
    assert status == 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running_demo(tmp_path_factory.mktemp("demo")) as started:
        yield started


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    """While it runs, Django's ORM takes the thread for async code: so no longer than a module."""
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGUMENTS)
    yield started
    started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(viewport={"width": 1280, "height": 800})
    opened.set_default_timeout(15_000)
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
