"""The servers of tests/servers: that they are real, fit for what is tested on them, and end."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.cache.backends.redis import RedisCache
from pytest_django import Settings

from oidc_rp.models import Identity
from tests.servers import NpmOP, mariadb, npm_op, postgresql, redis, sqlite
from tests.servers.browser import FollowingBrowser
from tests.servers.daemons import free_port
from tests.servers.project import CHECKOUT, Site, ask_all

pytestmark = pytest.mark.servers

DATABASES = [sqlite, postgresql, mariadb]


@pytest.fixture(scope="module")
def site_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def certified_op(site_port: int) -> Iterator[NpmOP]:
    """The OP from npm; it sends browsers back to the test client, and to a site on site_port."""
    hosts = ["testserver", f"127.0.0.1:{site_port}"]
    op = npm_op(redirect_uris=[f"http://{host}/oidc/op/callback/" for host in hosts])
    yield op
    op.stop()


@pytest.mark.parametrize("server", [postgresql, mariadb])
def test_a_database_server_wants_a_password_and_gives_empty_databases(server: Any) -> None:
    """Two new databases are two, and nobody comes in without the password."""
    started, (one, other) = server(), (server().new_database(), server().new_database())
    assert server() is started
    for number, database in enumerate([one, other]):
        started.execute("CREATE TABLE mark (number INT)", database["NAME"])
        started.execute(f"INSERT INTO mark VALUES ({number})", database["NAME"])
    assert started.execute("SELECT number FROM mark", one["NAME"]).split() == ["0"]
    assert started.execute("SELECT number FROM mark", other["NAME"]).split() == ["1"]
    nobody = {"PGPASSWORD": "wrong", "MYSQL_PWD": "wrong"}
    refused = subprocess.run(
        started.client, env=nobody, input="SELECT 1", text=True, capture_output=True
    )
    assert (refused.returncode != 0, refused.stdout) == (True, "")


def test_redis_is_a_cache_of_django() -> None:
    """What was put in comes out, in another connection, too."""
    server = redis().settings()["LOCATION"]
    RedisCache(server, {}).set("name", ["value"])
    assert RedisCache(server, {}).get("name") == ["value"]


END_WITH_THE_PARENT = """
import os, signal
from tests.servers import postgresql, mariadb, redis
for server in (postgresql, mariadb, redis):
    print(server().daemon.process.pid, server().daemon.folder, flush=True)
os.kill(os.getpid(), signal.{signal})
"""


def gone(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"  # only not yet reaped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_servers_end_with_the_process_that_started_them(number: signal.Signals) -> None:
    """Also when that one is killed."""
    code = END_WITH_THE_PARENT.format(signal=number.name)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert done.returncode == -number
    servers = [line.split() for line in done.stdout.splitlines()]
    assert len(servers) == 3
    deadline = time.monotonic() + 20
    while not all(gone(int(pid)) for pid, _ in servers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for _, folder in servers:
        shutil.rmtree(folder)


@pytest.mark.django_db
def test_the_certified_op_signs_in(certified_op: NpmOP, settings: Settings) -> None:
    """A whole sign-in: discovery, PKCE, an ID Token that passes every check, UserInfo."""
    settings.OIDC_RP = {"PROVIDERS": {"op": certified_op.options}, "TOKEN_KEYS": []}
    response = FollowingBrowser().sign_in("op")
    assert (response.status_code, response.headers["Location"]) == (302, "/home/")
    identity = Identity.objects.get()
    assert (identity.iss, identity.sub) == (certified_op.issuer, "ines")
    assert identity.claims["email"] == "ines@op.example"


@pytest.fixture(params=DATABASES, ids=lambda server: server.__name__)
def site(request: pytest.FixtureRequest, certified_op: NpmOP) -> Site:
    """A migrated site on each database, that knows the certified OP."""
    site = Site(request.param().new_database(), certified_op.options, certified_op.api)
    site.manage("migrate", "--verbosity=0")
    return site


def test_callers_in_processes_share_one_refresh(site: Site, certified_op: NpmOP) -> None:
    """Sixteen callers in two processes find the token expired: one token call, nobody fails."""
    with site.callers(2) as callers:
        user = callers[0].ask("sign_in", slug="op")
        for _ in range(3):
            before = certified_op.control()
            assert callers[0].ask("expire") == 1
            outcomes = ask_all(callers, "call", user=user, provider="op", count=8)
            after = certified_op.control()
            assert [(one["status"], one["code"]) for one in outcomes] == [(200, "")] * 16
            assert after["refreshes"] - before["refreshes"] == 1
            assert after["families_lost"] == before["families_lost"]
        (grant,) = callers[0].ask("grants")
    assert (grant["status"], grant["refreshes"], grant["durable"]) == ("open", 3, True)


def test_a_site_of_gunicorn_workers_calls_the_api(
    site: Site, certified_op: NpmOP, site_port: int
) -> None:
    """A browser signs in at one worker and calls through any; a view that raises costs nothing."""
    with site.gunicorn(port=site_port) as address, requests.Session() as browser:
        browser.trust_env = False
        home = browser.get(f"{address}/oidc/op/login/?next=/home/", timeout=10)
        assert (home.status_code, home.url) == (200, f"{address}/home/")
        assert browser.get(f"{address}/call-and-raise/", timeout=10).status_code == 500
        assert browser.get(f"{address}/call/", timeout=10).json()["status"] == 200
