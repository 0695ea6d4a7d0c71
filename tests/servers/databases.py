"""PostgreSQL, MariaDB and Redis, tuned to forget: nothing of a test outlives its run."""

from __future__ import annotations

import itertools
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from .daemons import Account, Daemon, find_program, free_port, run, succeeds

MOST_CONNECTIONS = 400
"""More than all callers of a herd together, each with a connection of the refresh's own."""

HOST = "127.0.0.1"


@dataclass(frozen=True)
class DatabaseServer:
    """A database server that runs. client: the command that runs a statement, up to it."""

    kind: str
    engine: str
    port: int
    user: str
    password: str = field(repr=False)
    maintenance: str
    client: Sequence[str] = field(repr=False)
    client_environment: dict[str, str] = field(repr=False)
    daemon: Daemon = field(repr=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def settings(self, name: str | None = None) -> dict[str, Any]:
        """Return an entry for DATABASES; Django's test runner makes a database beside it."""
        return {
            "ENGINE": self.engine,
            "HOST": HOST,
            "PORT": str(self.port),
            "USER": self.user,
            "PASSWORD": self.password,
            "NAME": name or self.maintenance,
        }

    def new_database(self) -> dict[str, Any]:
        """Make an empty database; return the entry for DATABASES."""
        name = f"oidc_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.settings(name)

    def execute(self, statement: str, database: str = "") -> str:
        """Run a statement through the server's own client; return what it printed."""
        command = [*self.client, *([database] if database else [])]
        done = subprocess.run(
            command,
            input=statement,
            env=self.client_environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


@cache
def postgresql() -> DatabaseServer:
    """Return the PostgreSQL server of this process; started at the first call."""
    account, package = Account("postgres"), "postgresql"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: int(f.parent.name))
    initdb, program, psql, pg_isready = [
        find_program(name, package, *reversed(installed))
        for name in ("initdb", "postgres", "psql", "pg_isready")
    ]
    folder, port, password = account.new_folder(), free_port(), token_urlsafe()
    account.write(folder / "password", password)
    run(
        account,
        folder,
        *[initdb, "--no-sync", "--no-instructions", "--auth=scram-sha-256"],
        *["--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"],
        *[f"--pwfile={folder}/password", f"--pgdata={folder}/data"],
    )
    options = {
        "listen_addresses": HOST,
        "port": port,
        "unix_socket_directories": folder,
        "max_connections": MOST_CONNECTIONS,
        "shared_buffers": "64MB",
        "max_wal_size": "256MB",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [program, f"-D{folder}/data", *flags]
    daemon = Daemon(command, account=account, folder=folder, ending_signal=signal.SIGINT)
    daemon.wait_for(succeeds(pg_isready, "-q", "-h", HOST, "-p", str(port)))
    return DatabaseServer(
        kind="postgresql",
        engine="django.db.backends.postgresql",
        port=port,
        user="postgres",
        password=password,
        maintenance="postgres",
        client=[psql, "-XqAt", "-v", "ON_ERROR_STOP=1", "-h", HOST, "-p", str(port), "-Upostgres"],
        client_environment={"PGPASSWORD": password},
        daemon=daemon,
    )


@cache
def mariadb() -> DatabaseServer:
    """Return the MariaDB server of this process; started at the first call."""
    account, package = Account("mysql"), "mariadb-server"
    install, program, client, admin = [
        find_program(name, package)
        for name in ("mariadb-install-db", "mariadbd", "mariadb", "mariadb-admin")
    ]
    folder, port, password = account.new_folder(), free_port(), token_urlsafe()
    user = f"django@'{HOST}'"
    first = [f"CREATE USER {user} IDENTIFIED BY '{password}';\n", f"GRANT ALL ON *.* TO {user};\n"]
    account.write(folder / "first.sql", "".join(first))
    run(
        account,
        folder,
        *[install, "--no-defaults", "--skip-test-db", "--skip-name-resolve"],
        *["--auth-root-authentication-method=socket", f"--datadir={folder}/data"],
        f"--tmpdir={folder}",  # each server that starts empties the one that all would share
    )
    options = {
        "datadir": folder / "data",
        "tmpdir": folder,
        "socket": folder / "socket",
        "pid-file": folder / "pid",
        "init-file": folder / "first.sql",
        "bind-address": HOST,
        "port": port,
        "max-connections": MOST_CONNECTIONS,
        "character-set-server": "utf8mb4",
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-buffer-pool-size": "64M",
        "innodb-log-file-size": "32M",
        "innodb-doublewrite": 0,
        "innodb-fast-shutdown": 2,
        "performance-schema": 0,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [program, "--no-defaults", "--skip-log-bin", "--skip-name-resolve", *flags]
    daemon = Daemon(command, account=account, folder=folder)
    address = ["--no-defaults", f"--host={HOST}", f"--port={port}", "--protocol=tcp"]
    ping, environment = [admin, *address, "--user=django", "ping"], {"MYSQL_PWD": password}
    daemon.wait_for(succeeds(*ping, environment=environment))
    return DatabaseServer(
        kind="mariadb",
        engine="tests.servers.pymysql_backend",
        port=port,
        user="django",
        password=password,
        maintenance="mysql",
        client=[client, *address, "--user=django", "--batch", "--skip-column-names"],
        client_environment=environment,
        daemon=daemon,
    )


@dataclass(frozen=True)
class SQLiteFiles:
    """SQLite as a DatabaseServer: each new database is a file."""

    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="oidc-")
    )
    kind: str = "sqlite"
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def settings(self, name: str = "default") -> dict[str, Any]:
        """Return an entry for DATABASES, whose tests are on a file, too."""
        files = [f"{self.folder.name}/{name}.sqlite3", f"{self.folder.name}/test_{name}.sqlite3"]
        engine, options = "django.db.backends.sqlite3", {"timeout": 20}
        return {"ENGINE": engine, "NAME": files[0], "OPTIONS": options, "TEST": {"NAME": files[1]}}

    def new_database(self) -> dict[str, Any]:
        """Return the entry for DATABASES of a file that is not yet there."""
        return self.settings(f"oidc_{next(self._numbers)}")


@cache
def sqlite() -> SQLiteFiles:
    """Return the SQLite files of this process."""
    return SQLiteFiles()


@dataclass(frozen=True)
class RedisServer:
    """A Redis server that runs. url: with its password, for CACHES."""

    url: str = field(repr=False)
    daemon: Daemon = field(repr=False)

    def settings(self) -> dict[str, Any]:
        """Return an entry for CACHES."""
        return {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": self.url}


@cache
def redis() -> RedisServer:
    """Return the Redis server of this process; started at the first call."""
    account, package = Account("redis"), "redis-server"
    program, client = find_program("redis-server", package), find_program("redis-cli", package)
    folder, port, password = account.new_folder(), free_port(), token_urlsafe()
    options = {
        "bind": HOST,
        "port": port,
        "requirepass": password,
        "save": '""',
        "appendonly": "no",
        "dir": folder,
        "maxmemory": "64mb",
    }
    lines = [f"{name} {value}\n" for name, value in options.items()]
    account.write(folder / "redis.conf", "".join(lines))
    daemon = Daemon([program, f"{folder}/redis.conf"], account=account, folder=folder)
    # It answers PING before a password, too: with NOAUTH.
    daemon.wait_for(succeeds(client, "-h", HOST, "-p", str(port), "ping"))
    return RedisServer(f"redis://:{password}@{HOST}:{port}/0", daemon)
