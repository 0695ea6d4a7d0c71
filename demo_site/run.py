"""Run the demo: prepare both projects, serve both, stop both.

python -m demo_site.run [--port 8000] [--op-port 9000]
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from demo_site.installation import BASE_DIR, FOLDER, USERNAME, load_secrets

SECONDS_TO_START = 60
SECONDS_TO_STOP = 5
# A plain kill and a closed terminal end the demo as Ctrl-C does, so that no server is left.
ENDING_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class DemoError(Exception):
    """The demo cannot run; the message says what to do."""


@dataclass(frozen=True)
class Project:
    """One of the two projects, and where it listens."""

    name: str
    settings: str
    port: int
    option: str
    prepare: str
    first_path: str
    log: Path

    @property
    def make_option(self) -> str:
        """The option as make takes it."""
        return self.option.removeprefix("--").replace("-", "_").upper()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def main(arguments: Sequence[str] | None = None) -> int:
    return run_to_the_end(projects(arguments))


def run_to_the_end(both: list[Project]) -> int:
    """Run until interrupted, or until a server dies; return the exit status."""
    os.umask(0o077)
    for number in ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        run(both)
    except DemoError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.")
    return 0


def projects(arguments: Sequence[str] | None) -> list[Project]:
    parser = argparse.ArgumentParser(prog="python -m demo_site.run", description="Run the demo.")
    parser.add_argument("--port", type=int, default=8000, help="port of the demo site (8000)")
    parser.add_argument("--op-port", type=int, default=9000, help="port of the provider (9000)")
    options = parser.parse_args(arguments)
    return [
        Project(
            "OpenID Provider",
            "demo_site.provider.settings",
            options.op_port,
            "--op-port",
            "prepare_provider",
            "/.well-known/openid-configuration",
            FOLDER / "provider.log",
        ),
        Project(
            "demo site",
            "demo_site.settings",
            options.port,
            "--port",
            "prepare_site",
            "/",
            FOLDER / "site.log",
        ),
    ]


def run(both: list[Project]) -> None:
    check_ports(both)
    provider, site = both
    environment = {
        **os.environ,
        "DEMO_DIR": str(FOLDER),
        "DEMO_HTTPS": "",
        "DEMO_OP_PORT": str(provider.port),
        "DEMO_PORT": str(site.port),
        "PYTHONUNBUFFERED": "1",
    }
    secrets = load_secrets()
    print("Preparing the databases …", flush=True)
    for project in both:
        prepare(project, environment)
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(project, environment)) for project in both]
        for project, server in zip(both, servers, strict=True):
            wait_until_it_answers(project, server)
        print(welcome(both, secrets.password), flush=True)
        wait_until_one_ends(both, servers)


def check_ports(both: list[Project]) -> None:
    """Raise DemoError when a port cannot be had, naming the option that changes it."""
    if both[0].port == both[1].port:
        raise DemoError(f"Both servers cannot share port {both[0].port}: change {both[0].option}.")
    for project in both:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", project.port))
            except (OSError, OverflowError) as error:
                raise DemoError(_cannot_listen(project, error)) from error


def _cannot_listen(project: Project, error: Exception) -> str:
    return (
        f"Port {project.port}, for the {project.name}, cannot be used"
        f" ({getattr(error, 'strerror', None) or error}).\n"
        f"Stop the program that has it, or choose another port: "
        f"make demo {project.make_option}={min(project.port + 10, 65500)}"
    )


def _django(project: Project, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "django", *arguments, f"--settings={project.settings}"]


def prepare(project: Project, environment: dict[str, str]) -> None:
    command = _django(project, project.prepare)
    done = subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"The {project.name} cannot be prepared:\n{done.stderr}")


@contextmanager
def serving(project: Project, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Serve a project in a process of its own; it is gone when the block is left."""
    command = _django(project, "runserver", "--noreload", f"127.0.0.1:{project.port}")
    with project.log.open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=BASE_DIR,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone; we stop the servers
        )
    try:
        yield server
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End a server, and be not disturbed at that."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING_SIGNALS}
    server.terminate()
    try:
        server.wait(SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    for number, handler in before.items():
        signal.signal(number, handler)


def wait_until_it_answers(project: Project, server: subprocess.Popen[bytes]) -> None:
    direct = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        check_alive(project, server)
        try:
            with direct.open(project.url + project.first_path, timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.1)
    raise DemoError(f"The {project.name} does not answer; see {project.log}")


def wait_until_one_ends(both: list[Project], servers: list[subprocess.Popen[bytes]]) -> None:
    while True:
        for project, server in zip(both, servers, strict=True):
            check_alive(project, server)
        time.sleep(0.5)


def check_alive(project: Project, server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        last_lines = project.log.read_text(errors="replace").splitlines()[-15:]
        reason = "\n".join(["", *last_lines, "", f"All of it: {project.log}"])
        raise DemoError(f"The {project.name} has ended.{reason}")


def welcome(both: list[Project], password: str) -> str:
    provider, site = both
    return f"""
  Demo site         {site.url}    open this one
  OpenID Provider   {provider.url}

  Sign in as        {USERNAME}
  Password          {password}

  Logs are in {FOLDER}. Ctrl-C stops both servers.
"""


if __name__ == "__main__":
    sys.exit(main())
