"""Servers in child processes that are gone when this process is.

At an ordinary end they are stopped and their folders removed. When this process is killed, the
kernel ends them (setpriv --pdeathsig; their folders stay), so start them in the main thread: for
the kernel the thread that started them is the parent.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS_TO_START = 30
SECONDS_TO_STOP = 10


class ServerError(Exception):
    """A server that the tests need cannot be had; the message says what to do."""


def find_program(name: str, package: str, *folders: Path) -> str:
    """Return the path of a program, also where Debian has it beside PATH."""
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", ""), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise ServerError(f"{name} was not found. On Debian and Ubuntu: apt install {package}")
    return found


def free_port() -> int:
    """Return a port of the loopback interface that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Account:
    """Who runs a server: an account of its own when we are root and name one, else we ourselves."""

    name: str = ""

    @property
    def entry(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0 or not self.name:
            return None
        try:
            return pwd.getpwnam(self.name)
        except KeyError:
            raise ServerError(f"There is no account {self.name} on this machine.") from None

    def new_folder(self) -> Path:
        """Make an empty folder that is this account's alone; its path is short, for sockets."""
        folder = Path(tempfile.mkdtemp(prefix="oidc-"))
        if self.entry is not None:
            os.chown(folder, self.entry.pw_uid, self.entry.pw_gid)
        return folder

    def write(self, file: Path, text: str) -> None:
        """Write a file that this account alone can read."""
        file.touch(mode=0o600)
        file.write_text(text)
        if self.entry is not None:
            os.chown(file, self.entry.pw_uid, self.entry.pw_gid)

    def command(self, ending_signal: signal.Signals) -> list[str]:
        """Return what goes before a command: become the account, and end with the parent."""
        become = []
        if self.entry is not None:
            ids = [f"--reuid={self.entry.pw_uid}", f"--regid={self.entry.pw_gid}"]
            become = [*ids, "--init-groups"]
        setpriv = find_program("setpriv", "util-linux")
        return [setpriv, *become, f"--pdeathsig={ending_signal.name.removeprefix('SIG')}", "--"]


class Daemon:
    """A running server.

    folder: all that it keeps, removed at its end; its log is there, too. ending_signal: what ends
    it at once and in order.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        account: Account,
        folder: Path,
        ending_signal: signal.Signals = signal.SIGTERM,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.folder, self._ending_signal = Path(command[0]).name, folder, ending_signal
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*account.command(ending_signal), *command],
                cwd=folder,
                env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone; we stop the servers
            )
        self._owner = os.getpid()
        atexit.register(self.stop)

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until the server answers; raises ServerError with the end of its log."""
        deadline = time.monotonic() + SECONDS_TO_START
        while not ready():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                log = "\n".join(self.log().splitlines()[-20:])
                self.stop()
                how = "has ended" if ended else f"does not answer after {SECONDS_TO_START} s"
                raise ServerError(f"{self.name} {how}. The end of its log:\n{log}")
            time.sleep(0.03)

    def log(self) -> str:
        """Return all that the server has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def stop(self) -> None:
        """End the server and remove its folder; does nothing the second time, or in a child."""
        if os.getpid() != self._owner:
            return
        if self.process.poll() is None:
            self.process.send_signal(self._ending_signal)
            try:
                self.process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def run(account: Account, folder: Path, *command: str) -> None:
    """Run a command to its end as this account; raises ServerError with what it wrote."""
    become = account.command(signal.SIGKILL)
    done = subprocess.run(
        [*become, *command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise ServerError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")


def succeeds(*command: str, environment: Mapping[str, str] | None = None) -> Callable[[], bool]:
    """Return a question that is answered by the exit status of a command."""

    def ready() -> bool:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        done = subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, **quiet)
        return done.returncode == 0

    return ready
