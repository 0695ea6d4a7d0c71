"""`python -m demo_site.run`: ports, and the end of both servers."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo_site.run import ENDING_SIGNALS, stop
from tests.demo.conftest import ROOT, free_ports, read_welcome, start_demo, stop_demo


def run_to_its_end(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demo_site.run", *arguments],
        cwd=ROOT,
        env={**os.environ, "DEMO_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(("option", "other"), [("--port", "--op-port"), ("--op-port", "--port")])
def test_a_taken_port_is_named_with_the_option_that_changes_it(
    tmp_path: Path, option: str, other: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_to_its_end(tmp_path, option, str(port), other, str(free_ports(1)[0]))
    assert ended.returncode == 1
    assert f"Port {port}, " in ended.stderr
    assert f"make demo {option[2:].replace('-', '_').upper()}=" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_port_cannot_serve_both(tmp_path: Path) -> None:
    ended = run_to_its_end(tmp_path, "--port", "8123", "--op-port", "8123")
    assert ended.returncode == 1
    assert "--op-port" in ended.stderr


def test_secrets_are_for_the_owner_only_and_stay(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    script = "from demo_site.installation import load_secrets; print(load_secrets().password)"
    first, second = (
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, "DEMO_DIR": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert first == second
    assert (folder / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def started(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A demo that answers, and its two ports."""
    ports = free_ports(2)
    process = start_demo(tmp_path, *ports)
    try:
        welcome = read_welcome(process)
        assert "Password" in welcome, welcome
        yield process, ports
    finally:
        stop_demo(process, signal.SIGINT)


@pytest.mark.browser
def test_a_plain_kill_stops_both_servers(
    started: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, ports = started
    assert stop_demo(process, signal.SIGTERM) == 0
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.browser
def test_when_one_server_ends_the_other_is_stopped(
    started: tuple[subprocess.Popen[str], list[int]],
) -> None:
    process, ports = started
    os.kill(server_of(process.pid, "demo_site.provider.settings"), signal.SIGKILL)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "has ended" in said
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_who_stops_a_server_can_be_ended_as_before() -> None:
    """Signals are held back while it ends, and no longer."""
    before = [signal.getsignal(number) for number in ENDING_SIGNALS]
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        stop(server)
    assert server.returncode == -signal.SIGTERM
    assert [signal.getsignal(number) for number in ENDING_SIGNALS] == before


def server_of(parent: int, settings: str) -> int:
    """Return the pid of the child that serves with these settings (Linux)."""
    (children,) = Path(f"/proc/{parent}/task").glob("*/children")
    (server,) = [
        int(pid)
        for pid in children.read_text().split()
        if f"--settings={settings}" in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    return server
