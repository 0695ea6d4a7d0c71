"""A site in several processes at once: gunicorn workers, and callers that are told what to do.

site = Site(postgresql().new_database(), op.options, op.api)
site.manage("migrate")
with site.callers(4) as callers:
    user = callers[0].ask("sign_in", slug="op")
    callers[0].ask("expire")
    outcomes = ask_all(callers, "call", user=user, provider="op", count=16)
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_bytes, token_urlsafe
from typing import Any

import requests

from .daemons import Account, Daemon, free_port

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS_FOR_A_SIGNAL = 20


def new_token_key() -> str:
    return urlsafe_b64encode(token_bytes(32)).decode()


@dataclass(frozen=True, repr=False)
class Site:
    """A site with one provider, "op".

    database: an entry for DATABASES. provider: its options in OIDC_RP. api: what the callers call.
    options: more of OIDC_RP. cache: an entry for CACHES. settings: any others. Set in the
    environment of each process: TOKEN_KEYS, one SECRET_KEY.
    """

    database: Mapping[str, Any]
    provider: Mapping[str, Any]
    api: str
    options: Mapping[str, Any] = field(default_factory=dict)
    cache: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    secret_key: str = field(default_factory=lambda: token_urlsafe(50))
    token_key: str = field(default_factory=new_token_key)

    @property
    def environment(self) -> dict[str, str]:
        oidc_rp = {"PROVIDERS": {"op": self.provider}, "TOKEN_KEYS": [self.token_key]}
        site = {
            "database": self.database,
            "secret_key": self.secret_key,
            "oidc_rp": oidc_rp | dict(self.options),
            "api": self.api,
            "cache": self.cache,
            "settings": dict(self.settings),
        }
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.servers.site_settings",
            "PYTHONPATH": str(CHECKOUT),
            "SITE": json.dumps(site),
        }

    def manage(self, *arguments: str) -> str:
        """Run a command of manage.py; return what it printed."""
        command = [sys.executable, "-m", "django", *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextmanager
    def callers(
        self, count: int, environment: Mapping[str, str] | None = None
    ) -> Iterator[list[Caller]]:
        """Run so many callers; whoever still lives at the end is ended. environment: more of it."""
        with ExitStack() as stack:
            callers = [Caller(self.environment | dict(environment or {})) for _ in range(count)]
            for caller in callers:
                stack.callback(caller.end)
            yield callers

    @contextmanager
    def gunicorn(self, workers: int = 2, threads: int = 8, port: int = 0) -> Iterator[str]:
        """Serve the site by so many processes; give its address. port: a free one, if not given."""
        ourselves, port = Account(), port or free_port()
        command = [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}"]
        command += [f"--workers={workers}", f"--threads={threads}", "--worker-class=gthread"]
        daemon = Daemon(
            [*command, "django.core.wsgi:get_wsgi_application()"],
            account=ourselves,
            folder=ourselves.new_folder(),
            ending_signal=signal.SIGINT,  # which does not wait for connections that are kept
            environment=self.environment,
        )
        address = f"http://127.0.0.1:{port}"
        try:
            daemon.wait_for(lambda: _answers(address))
            yield address
        finally:
            daemon.stop()


def _answers(address: str) -> bool:
    try:
        return requests.get(f"{address}/home/", timeout=10).status_code == 200
    except requests.ConnectionError:
        return False


class Caller:
    """A process of caller.py; see there for its orders."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.servers.caller"],
            env=environment,
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, order: str, **arguments: Any) -> Any:
        """Give an order and wait for its answer."""
        self.tell(order, **arguments)
        return self.answer()

    def tell(self, order: str, **arguments: Any) -> None:
        """Give an order, and do not wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([order, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the answer to the oldest order that has none yet; EOFError: it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise EOFError("the caller has ended")
        answer = json.loads(line)
        assert "raised" not in answer, answer["raised"]
        return answer["result"]

    @property
    def worker(self) -> str:
        """What the site calls this process: host and process id."""
        return f"{socket.gethostname()[:60]}:{self.process.pid}"

    def kill(self) -> None:
        """Kill it as the kernel does that is out of memory."""
        self.process.kill()
        self.process.wait()

    def wait_until_killed(self) -> None:
        """Wait until it has killed itself."""
        assert self.process.wait(SECONDS_FOR_A_SIGNAL) == -signal.SIGKILL

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself."""
        status = Path(f"/proc/{self.process.pid}/stat")
        deadline = time.monotonic() + SECONDS_FOR_A_SIGNAL
        while status.read_text().rpartition(")")[2].split()[0] != "T":
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def resume(self) -> None:
        """Let it go on, as if nothing had been."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End it at once; nothing that it still does is of use to anybody."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()


def ask_all(callers: Sequence[Caller], order: str, **arguments: Any) -> list[Any]:
    """Give all of them an order at the same moment; return all that they answer, in one list."""
    for caller in callers:
        caller.tell(order, **arguments)
    return [answer for caller in callers for answer in caller.answer()]
