"""What may go wrong around a refresh, in real processes on real servers: killed, paused, cut off.

The promise everywhere (docs/refresh.md): one token call, nobody fails, and nobody has to sign in
again unless the OP truly ended the grant. What came to pass stands in the row and in its timeline.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import requests

from tests.servers import NpmOP, TinyOP, mariadb, npm_op, postgresql, redis, sqlite, tiny_op
from tests.servers.daemons import find_program
from tests.servers.project import Caller, Site, ask_all

pytestmark = pytest.mark.servers

SERVERS: dict[str, Callable[[], Any]] = {
    "postgresql": postgresql,
    "mariadb": mariadb,
    "sqlite": sqlite,
}
GRAPH = "https://graph.example"
PROCESSES, THREADS = 4, 16
OVERLAP = 12
"""Seconds; a lease of 4 s, and as much again for a machine that has other things to do."""

T = TypeVar("T")
Outcomes = list[dict[str, Any]]


@dataclass
class Lab:
    """A site on one database, processes that call an API through it, and the OP.

    callers: processes that nothing happens to. spares: some that are started already.
    """

    site: Site
    op: TinyOP
    stack: ExitStack
    callers: list[Caller] = field(default_factory=list)
    spares: list[Caller] = field(default_factory=list)
    people: int = 0
    web_servers: "Web | None" = None

    def start(self, processes: int) -> "Lab":
        self.site.manage("migrate", "--verbosity=0")
        self.callers = self.stack.enter_context(self.site.callers(processes))
        self.spares = [self.new_caller(), self.new_caller()]
        return self

    def new_caller(self, site: Site | None = None, **environment: str) -> Caller:
        site = site or self.site
        return self.stack.enter_context(site.callers(1, environment))[0]

    def victim(self, point: str = "", signal: str = "") -> Caller:
        """A process of one's own; it gets this signal at this point of its next refresh."""
        self.spares.append(self.new_caller())
        victim = self.spares.pop(0)
        if point:
            victim.ask("signal_at", point=point, name=signal)
        return victim

    def sign_in(self) -> int:
        """Sign somebody new in; return the key of the user."""
        self.people += 1
        self.op.expect(f"person-{self.people}")
        return self.sign_in_again()

    def sign_in_again(self, caller: int = 0) -> int:
        return int(self.callers[caller].ask("sign_in", slug="op"))

    def signed_in_and_expired(self) -> int:
        user = self.sign_in()
        self.expire()
        return user

    def expire(self) -> None:
        """Let no access token open the API any more, as everybody knows."""
        assert self.callers[0].ask("expire") >= 1
        self.op.expire_access_tokens()

    def grant(self, user: int) -> dict[str, Any]:
        (grant,) = self.callers[0].ask("grants", user=user)
        return dict(grant)

    def events(self, user: int) -> list[list[str]]:
        return [list(event) for event in self.callers[0].ask("events", user=user)]

    def call(self, user: int, caller: Caller | None = None, count: int = 1, **more: Any) -> Counter:
        caller = caller or self.callers[0]
        return told(caller.ask("call", user=user, provider="op", count=count, **more))

    def web(self) -> "Web":
        """The web servers, started when they are needed."""
        if self.web_servers is None:
            options = dict(self.site.provider) | {"SCOPES": ["openid", "calendar"]}
            site = replace(self.site, provider=options)
            servers = [self.stack.enter_context(site.gunicorn(workers=1)) for _ in range(2)]
            self.web_servers = Web(servers)
        return self.web_servers


def told(outcomes: Outcomes) -> "Counter[Any]":
    """How often which came of a call: an error's code, or the status that the API answered."""
    return Counter(one["code"] or one["status"] for one in outcomes)


def start_calls(caller: Caller, user: int, count: int = 1, **more: Any) -> None:
    caller.tell("call", user=user, provider="op", count=count, **more)


def eventually(question: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def once_rotated(op: TinyOP, seconds: float, start: Callable[[], T]) -> T:
    """Start what refreshes; return when the OP has rotated. It tells so many seconds later."""
    before = op.control(refresh_delay=seconds)["rotations"]
    started = start()
    eventually(lambda: op.control()["rotations"] > before)
    op.control(refresh_delay=0)
    return started


@contextmanager
def at_the_op(op: TinyOP | NpmOP, **expected: int) -> Iterator[None]:
    """What the OP counts meanwhile; no family is lost, unless that is expected."""
    before = op.control()
    yield
    after = op.control()
    expected = {"families_lost": 0} | expected
    assert {name: after[name] - before[name] for name in expected} == expected


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def running_op(stack: ExitStack) -> TinyOP:
    op = tiny_op()
    stack.callback(op.stop)
    op.control(api_audiences={"graph": GRAPH})
    return op


@pytest.fixture
def op(running_op: TinyOP) -> TinyOP:
    running_op.be_honest()
    return running_op


@pytest.fixture(scope="module")
def labs(stack: ExitStack, running_op: TinyOP) -> Callable[[str], Lab]:
    """A lab for each database, by its name, and " with redis" when the site has a shared cache;
    started when it is needed."""
    started: dict[str, Lab] = {}

    def lab(name: str) -> Lab:
        if name not in started:
            database, _, with_redis = name.partition(" ")
            options = running_op.options
            options["API_ORIGINS"] = {"": options["API_ORIGINS"], GRAPH: options["API_ORIGINS"]}
            cache = redis().settings() if with_redis else None
            site = Site(SERVERS[database]().new_database(), options, running_op.api, cache=cache)
            started[name] = Lab(site, running_op, stack).start(1 if with_redis else PROCESSES)
        return started[name]

    return lab


@pytest.fixture(params=["postgresql"])
def lab(request: pytest.FixtureRequest, labs: Callable[[str], Lab], op: TinyOP) -> Lab:
    return labs(request.param)


on_every_database = pytest.mark.parametrize("lab", SERVERS, indirect=True)


# Many at once


@on_every_database
def test_M55_a_herd_costs_one_refresh(lab: Lab) -> None:
    """64 callers in four processes find the token expired, several times over."""
    lab.op.control(refresh_delay=0.3)
    user = lab.sign_in()
    for _ in range(3):
        lab.expire()
        with at_the_op(lab.op, refreshes=1, rotations=1, api_calls=PROCESSES * THREADS):
            order = {"user": user, "provider": "op", "count": THREADS}
            outcomes = ask_all(lab.callers, "call", **order)
        assert told(outcomes) == {200: PROCESSES * THREADS}
    grant = lab.grant(user)
    assert (grant["status"], grant["generation"], grant["refreshes"]) == ("open", 4, 3)
    assert [event[:2] for event in lab.events(user)] == [["refreshed", ""]] * 3


@on_every_database
def test_M55_a_herd_in_the_soft_window_does_not_wait(lab: Lab) -> None:
    """The token is due and still good: all have it at once, and one refresh goes on beside."""
    order = {"user": lab.sign_in(), "provider": "op", "count": THREADS}
    ask_all(lab.callers, "call", **order)  # so that all are connected
    user = order["user"]
    lab.op.control(refresh_delay=3)
    assert lab.callers[0].ask("expire", seconds=60, lifetime=1000) >= 1
    with at_the_op(lab.op, refreshes=1, rotations=1):
        outcomes = ask_all(lab.callers, "call", **order)
        assert told(outcomes) == {200: PROCESSES * THREADS}
        assert lab.grant(user)["refreshes"] == 0  # they were all served before it ended
        eventually(lambda: lab.grant(user)["refreshes"] == 1)
        assert lab.call(user, lab.callers[1]) == {200: 1}


# A transaction that is rolled back


@dataclass
class Web:
    """Two web servers of one site, each one process, and a browser that is signed in at both."""

    addresses: list[str]
    browser: requests.Session = field(default_factory=requests.Session)

    def sign_in(self) -> None:
        self.browser.close()
        self.browser = requests.Session()
        self.browser.trust_env = False
        home = self.get(0, "/oidc/op/login/?next=/home/")
        assert (home.status_code, home.url) == (200, f"{self.addresses[0]}/home/")

    def get(self, server: int, path: str) -> requests.Response:
        return self.browser.get(f"{self.addresses[server]}{path}", timeout=20)

    def call(self, server: int) -> Any:
        outcome = self.get(server, "/call/").json()
        return outcome["code"] or outcome["status"]

    def log_out(self, server: int) -> int:
        self.get(server, "/admin/login/")  # sets the CSRF cookie
        form = {"csrfmiddlewaretoken": self.browser.cookies["csrftoken"]}
        url = f"{self.addresses[server]}/oidc/logout/"
        return self.browser.post(url, form, allow_redirects=False, timeout=20).status_code


@pytest.fixture
def web(lab: Lab) -> Iterator[Web]:
    """Somebody new, whose grant ends with the browser session."""
    lab.op.control(always_refresh_token=True)
    lab.people += 1
    lab.op.expect(f"person-{lab.people}")
    web = lab.web()
    web.sign_in()
    yield web
    web.browser.close()


@pytest.mark.parametrize("path", ["/call-and-raise/", "/write-call-and-raise/"])
@pytest.mark.parametrize("lab", ["postgresql", "sqlite"], indirect=True)
def test_M55_a_view_that_raises_takes_nothing_back(lab: Lab, web: Web, path: str) -> None:
    """Its transaction is rolled back, and the rotated token is stored all the same."""
    lab.expire()
    with at_the_op(lab.op, refreshes=1, rotations=1):
        assert web.get(0, path).status_code == 500
        assert web.call(1) == 200
    lab.expire()
    with at_the_op(lab.op, refreshes=1, rotations=1):
        assert web.call(1) == 200
    grant = lab.callers[0].ask("grants")[-1]
    assert (grant["status"], grant["generation"], grant["durable"]) == ("open", 3, False)


# A process that dies


@pytest.mark.parametrize(
    ("point", "refreshes", "rotations"), [("claimed", 1, 1), ("answered", 2, 2), ("stored", 1, 1)]
)
def test_M55_a_killed_process_costs_nobody_a_login(
    lab: Lab, point: str, refreshes: int, rotations: int
) -> None:
    """SIGKILL before the call, after the answer, after the commit; the OP has an overlap."""
    lab.op.control(overlap=OVERLAP)
    user = lab.signed_in_and_expired()
    victim = lab.victim(point, "SIGKILL")
    with at_the_op(lab.op, refreshes=refreshes, rotations=rotations):
        start_calls(victim, user, 4)
        victim.wait_until_killed()
        left = lab.grant(user)
        assert left["lease_owner"].startswith(f"{victim.worker}:" * (point != "stored"))
        assert lab.call(user, count=8) == {200: 8}
    assert_open_and_at_rest(lab, user, refreshes=1)
    rescuer = lab.callers[0].worker
    assert (
        lab.events(user)
        == {
            "claimed": [
                ["in_doubt", "refresh.lease_ended", left["lease_owner"]],
                ["refreshed", "", rescuer],
            ],
            "answered": [
                ["in_doubt", "refresh.lease_ended", left["lease_owner"]],
                ["refreshed", "", rescuer],
            ],
            "stored": [],  # it died before it could tell; the row itself says who refreshed
        }[point]
    )
    refreshed_by = victim.worker if point == "stored" else rescuer
    assert lab.grant(user)["refreshed_by"] == refreshed_by
    assert_next_expiry_is_ordinary(lab, user)


def assert_open_and_at_rest(lab: Lab, user: int, refreshes: int) -> None:
    grant = lab.grant(user)
    assert (grant["status"], grant["refreshes"]) == ("open", refreshes)
    assert (grant["lease_owner"], grant["in_doubt_since"], grant["failures"]) == ("", False, 0)


def assert_next_expiry_is_ordinary(lab: Lab, user: int, caller: Caller | None = None) -> None:
    """One refresh, one rotation, for callers of two processes."""
    lab.op.be_honest()
    lab.expire()
    with at_the_op(lab.op, refreshes=1, rotations=1):
        callers = [caller or lab.callers[0], lab.callers[1]]
        assert told(ask_all(callers, "call", user=user, provider="op", count=4)) == {200: 8}


@pytest.mark.parametrize("lab", ["mariadb", "sqlite"], indirect=True)
def test_M55_a_process_that_is_killed_while_the_op_answers_is_replaced(lab: Lab) -> None:
    """The OP has rotated; another process repeats within the overlap."""
    lab.op.control(overlap=OVERLAP)
    user, victim = lab.signed_in_and_expired(), lab.victim()
    with at_the_op(lab.op, refreshes=2, rotations=2):
        once_rotated(lab.op, 3, lambda: start_calls(victim, user, 4))
        victim.kill()
        assert lab.call(user, count=8) == {200: 8}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert [event[:2] for event in lab.events(user)] == [
        ["in_doubt", "refresh.lease_ended"],
        ["refreshed", ""],
    ]
    assert_next_expiry_is_ordinary(lab, user)


def test_M55_without_an_overlap_the_loss_has_a_name(lab: Lab) -> None:
    """No client can repair it: told is what, when and who; the access token is used to its end."""
    user = lab.sign_in()
    victim, rescuer = lab.victim("answered", "SIGKILL"), lab.callers[0]
    assert rescuer.ask("expire", seconds=60, lifetime=1000) >= 1
    with at_the_op(lab.op, refreshes=2, rotations=1, families_lost=1):
        start_calls(victim, user)
        victim.wait_until_killed()
        killed = lab.grant(user)["lease_owner"]
        assert killed.startswith(f"{victim.worker}:")

        def is_closed() -> bool:
            assert rescuer.ask("token", user=user, provider="op") == ""
            return bool(lab.grant(user)["status"] == "closed")

        eventually(is_closed)
        assert rescuer.ask("token", user=user, provider="op") == ""
        lab.expire()
        assert lab.call(user, lab.callers[1], count=4) == {"grant.rotation_lost": 4}
    grant = lab.grant(user)
    assert (grant["close_reason"], grant["last_error"]) == ("rotation_lost", "token.invalid_grant")
    assert lab.events(user) == [
        ["in_doubt", "refresh.lease_ended", killed],
        ["closed", "rotation_lost", rescuer.worker],
    ]
    assert lab.sign_in_again() == user
    assert lab.call(user, lab.callers[1], count=4) == {200: 4}
    assert_open_and_at_rest(lab, user, refreshes=0)
    assert_next_expiry_is_ordinary(lab, user)


# An OP that is slow, a process that is


def test_M55_an_op_slower_than_lease_and_patience_is_asked_once(lab: Lab) -> None:
    """Callers give up after REFRESH_WAIT, the call does not; others do not call beside it."""
    site = replace(lab.site, options={"REFRESH_WAIT": 1})
    hasty, patient = lab.new_caller(site), lab.callers[0]
    user = lab.signed_in_and_expired()
    with at_the_op(lab.op, refreshes=1, rotations=1):
        once_rotated(lab.op, 5.5, lambda: start_calls(hasty, user, 4))
        start_calls(patient, user, 4)
        outcomes = hasty.answer()
        assert told(outcomes) == {"refresh.waiting": 4}
        assert max(one["waited_ms"] for one in outcomes) < 5000
        assert told(patient.answer()) == {200: 4}
        assert lab.call(user, hasty, count=4) == {200: 4}
    assert lab.events(user) == [["refreshed", "", hasty.worker]]
    assert_next_expiry_is_ordinary(lab, user, hasty)


def test_M55_a_process_that_slept_through_its_lease_comes_too_late(lab: Lab) -> None:
    """SIGSTOP while its answer is in the mail. Another repeats; what the sleeper has is dropped."""
    lab.op.control(overlap=OVERLAP)
    user, sleeper = lab.signed_in_and_expired(), lab.victim("answered", "SIGSTOP")
    with at_the_op(lab.op, refreshes=2, rotations=2):
        start_calls(sleeper, user, 4)
        sleeper.wait_until_stopped()
        owner = lab.grant(user)["lease_owner"]
        assert lab.call(user, count=4) == {200: 4}
        sleeper.resume()
        assert told(sleeper.answer()) == {200: 4}
        assert lab.call(user, sleeper, count=4) == {200: 4}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert lab.events(user) == [
        ["in_doubt", "refresh.lease_ended", owner],
        ["refreshed", "", lab.callers[0].worker],
        ["late_result", "", sleeper.worker],
    ]
    assert_next_expiry_is_ordinary(lab, user, sleeper)


# A database that is away


@contextmanager
def away(database: str) -> Iterator[None]:
    """PostgreSQL refuses this database to everybody."""
    server = postgresql()
    server.execute(
        f"ALTER DATABASE {database} ALLOW_CONNECTIONS false;"
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE datname = '{database}'"
    )
    yield
    server.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize("killed", [False, True], ids=["it lives", "it is killed"])
@pytest.mark.parametrize("lab", ["postgresql with redis"], indirect=True)
def test_M55_a_token_that_the_database_does_not_take_is_kept(lab: Lab, killed: bool) -> None:
    """The database goes while the OP answers. The callers have their token, and the OP is not
    asked again: the process stores it later; when it is killed, another does, from the cache."""
    user, holder = lab.signed_in_and_expired(), lab.victim()
    grant = lab.grant(user)["id"]
    with at_the_op(lab.op, refreshes=1, rotations=1):
        once_rotated(lab.op, 2, lambda: start_calls(holder, user, 4))
        with away(lab.site.database["NAME"]):
            assert told(holder.answer()) == {200: 4}
            if killed:
                holder.kill()
        lab.callers = [lab.victim(), lab.victim()]  # the others have lost their connections
        if not killed:
            eventually(lambda: lab.grant(user)["refreshes"] == 1)
        assert lab.call(user, count=8) == {200: 8}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert ["rotation_stored_late", "", holder.worker] in lab.events(user)
    assert not lab.callers[0].ask("is_in_cache", grant=grant)
    assert_next_expiry_is_ordinary(lab, user)


# Logins and logouts in between


def test_M60_a_logout_beats_the_refresh_of_another_process(lab: Lab, web: Web) -> None:
    """What comes late is not stored, and whoever received it has it revoked (T18)."""
    lab.expire()
    with at_the_op(lab.op, refreshes=1, rotations=1, revocations=2), ThreadPoolExecutor() as pool:
        called = once_rotated(lab.op, 2.5, lambda: pool.submit(web.call, 0))
        assert web.log_out(1) == 302  # on to the OP
        assert called.result() == "grant.logout"
        eventually(lambda: lab.callers[0].ask("pending_revocations") == 0)
    grant = lab.callers[0].ask("grants")[-1]
    assert (grant["status"], grant["close_reason"]) == ("closed", "logout")
    assert (grant["refreshes"], grant["lease_owner"]) == (0, "")


def test_M60_a_user_who_is_shut_out_while_another_process_refreshes_stays_out(lab: Lab) -> None:
    """The same for a durable grant, which ends with the account."""
    user = lab.signed_in_and_expired()
    with at_the_op(lab.op, refreshes=1, rotations=1, revocations=2):
        once_rotated(lab.op, 2, lambda: start_calls(lab.callers[1], user, 4))
        lab.callers[0].ask("deactivate", user=user)
        assert told(lab.callers[1].answer()) == {"account.inactive": 4}
        assert lab.call(user) == {"account.inactive": 1}
        eventually(lambda: lab.callers[0].ask("pending_revocations") == 0)
    grant = lab.grant(user)
    assert (grant["status"], grant["close_reason"]) == ("closed", "deactivated")
    assert lab.events(user) == [["closed", "deactivated", lab.callers[0].worker]]


def test_M55_a_login_beats_the_refresh_of_another_process(lab: Lab) -> None:
    """The new grant's token is stored and used (T15), the late result is dropped (T6)."""
    user = lab.signed_in_and_expired()
    with at_the_op(lab.op, refreshes=1, rotations=1, revocations=1):
        once_rotated(lab.op, 2, lambda: start_calls(lab.callers[1], user, 4))
        assert lab.sign_in_again() == user
        assert told(lab.callers[1].answer()) == {200: 4}
        eventually(lambda: lab.callers[0].ask("pending_revocations") == 0)
    assert_open_and_at_rest(lab, user, refreshes=0)
    assert lab.events(user) == [["late_result", "", lab.callers[1].worker]]
    assert_next_expiry_is_ordinary(lab, user)


# Several APIs


@on_every_database
def test_M55_two_apis_at_once_are_two_calls_one_after_the_other(lab: Lab) -> None:
    """Each caller has the token of its own API, and no refresh token is spent twice."""
    user, graph = lab.sign_in(), {"resource": GRAPH, "url": f"{lab.op.issuer}/api/graph"}
    assert lab.call(user, **graph) == {200: 1}
    lab.op.control(refresh_delay=0.3)
    for refreshes in (3, 5):
        lab.expire()
        with at_the_op(lab.op, refreshes=2, rotations=2, api_calls=32):
            for caller, more in zip(lab.callers, [{}, graph, {}, graph], strict=True):
                start_calls(caller, user, 8, **more)
            assert [told(caller.answer()) for caller in lab.callers] == [{200: 8}] * 4
        assert_open_and_at_rest(lab, user, refreshes)


# Clocks that are wrong


def fake_time(seconds: int) -> dict[str, str]:
    """Let a process believe that it is so much later; how time passes stays the same."""
    name = "faketime"
    program = Path(find_program(name, name))  # Debian has its library in a folder per architecture
    (library, *_) = (program.parents[1] / "lib").glob(f"*/{name}/lib{name}.so.1")
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def test_M55_a_host_whose_clock_is_wrong_refreshes_as_the_others_do(lab: Lab) -> None:
    """Five minutes fast, five minutes slow: each in turn finds the token expired, and what it
    stores is good for all. (SQLite has no clock but that of its one host.)"""
    wrong = [lab.new_caller(**fake_time(seconds)) for seconds in (300, -300)]
    user = lab.sign_in()
    for turn, caller in enumerate([*wrong, lab.callers[1], wrong[0]], start=1):
        lab.expire()
        with at_the_op(lab.op, refreshes=1, rotations=1):
            assert lab.call(user, caller, 4) == {200: 4}
            everybody = [*wrong, lab.callers[2]]
            assert told(ask_all(everybody, "call", user=user, provider="op", count=4)) == {200: 12}
        assert_open_and_at_rest(lab, user, refreshes=turn)
    assert [event[0] for event in lab.events(user)].count("refreshed") == 4
    assert lab.callers[0].ask("expire", seconds=200, lifetime=600) >= 1
    with at_the_op(lab.op, refreshes=0):
        assert told(ask_all(everybody, "call", user=user, provider="op", count=4)) == {200: 12}


# An OP in trouble


@pytest.mark.parametrize(
    ("fault", "rotations"),
    [("reset_before_rotation", 1), ("reset_after_rotation", 2), ("truncated_after_rotation", 2)],
)
def test_M55_an_answer_that_never_comes_is_asked_for_once_more_by_one(
    lab: Lab, fault: str, rotations: int
) -> None:
    """Thirty-two callers in four processes, and two calls."""
    user = lab.signed_in_and_expired()
    lab.op.control(overlap=OVERLAP, refresh_fault=fault, refresh_fault_times=1)
    with at_the_op(lab.op, refreshes=2, rotations=rotations):
        outcomes = ask_all(lab.callers, "call", user=user, provider="op", count=8)
        assert told(outcomes) == {200: 32}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert [event[0] for event in lab.events(user)] == ["in_doubt", "refreshed"]
    assert_next_expiry_is_ordinary(lab, user)


@pytest.mark.parametrize("fault", ["503", "429"])
def test_M55_a_pause_that_the_op_asks_for_is_kept_by_every_process(lab: Lab, fault: str) -> None:
    """One is told so; the others do not ask."""
    user = lab.signed_in_and_expired()
    lab.op.control(refresh_fault=fault, refresh_fault_times=1, retry_after="100")
    with at_the_op(lab.op, refreshes=1, rotations=0):
        assert lab.call(user, lab.callers[1], 4) == {"refresh.backing_off": 4}
        assert lab.call(user, lab.callers[2], 4) == {"refresh.backing_off": 4}
        lab.callers[0].ask("rest", seconds=95)
        assert lab.call(user, lab.callers[2], 4) == {"refresh.backing_off": 4}
    assert lab.grant(user)["status"] == "open"
    lab.callers[0].ask("rest", seconds=10)
    with at_the_op(lab.op, refreshes=1, rotations=1):
        outcomes = ask_all(lab.callers, "call", user=user, provider="op", count=8)
        assert told(outcomes) == {200: 32}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert [event[0] for event in lab.events(user)] == ["backing_off", "refreshed"]


def test_M55_an_op_that_refuses_the_client_is_left_alone_by_every_process(lab: Lab) -> None:
    """Its circuit is open for all people; once the mistake is mended nobody has to sign in."""
    user, another = lab.sign_in(), lab.sign_in()
    lab.expire()
    lab.op.control(refresh_fault="invalid_client")
    with at_the_op(lab.op, refreshes=1, rotations=0):
        assert lab.call(user, lab.callers[1], 4) == {"refresh.circuit_open": 4}
        assert lab.call(user, lab.callers[2], 4) == {"refresh.circuit_open": 4}
        assert lab.call(another, lab.callers[3], 4) == {"refresh.circuit_open": 4}
    assert lab.events(user) == [["circuit_opened", "token.invalid_client", lab.callers[1].worker]]
    assert lab.events(another) == []
    lab.op.be_honest()
    lab.callers[0].ask("rest", seconds=20)
    with at_the_op(lab.op, refreshes=2, rotations=2):
        assert lab.call(user, lab.callers[2], 4) == {200: 4}
        assert lab.call(another, lab.callers[3], 4) == {200: 4}
    assert_open_and_at_rest(lab, user, refreshes=1)
    assert_open_and_at_rest(lab, another, refreshes=1)


# Another's OP


@pytest.fixture(scope="module")
def certified_op(stack: ExitStack) -> NpmOP:
    op = npm_op()
    stack.callback(op.stop)
    return op


@pytest.fixture
def certified_site(labs: Callable[[str], Lab], certified_op: NpmOP) -> Site:
    return replace(labs("postgresql").site, provider=certified_op.options, api=certified_op.api)


def test_M55_the_certified_op_ends_what_a_killed_process_had_spent(
    certified_site: Site, certified_op: NpmOP
) -> None:
    """What no client can repair has a name, and a login mends it."""
    with certified_site.callers(2) as (victim, rescuer):
        user = rescuer.ask("sign_in", slug="op")
        rescuer.ask("expire")
        victim.ask("signal_at", point="answered", name="SIGKILL")
        with at_the_op(certified_op, refreshes=1, refused=1, families_lost=1):
            start_calls(victim, user)
            victim.wait_until_killed()
            rescuer.tell("call", user=user, provider="op", count=8)
            assert told(rescuer.answer()) == {"grant.rotation_lost": 8}
        assert [event[:2] for event in rescuer.ask("events", user=user)] == [
            ["in_doubt", "refresh.lease_ended"],
            ["closed", "rotation_lost"],
        ]
        assert rescuer.ask("sign_in", slug="op") == user
        rescuer.tell("call", user=user, provider="op", count=8)
        assert told(rescuer.answer()) == {200: 8}


def test_M55_the_certified_op_loses_no_family(certified_site: Site, certified_op: NpmOP) -> None:
    """It has no overlap. A herd over five expiries; a process killed; and then an end in order,
    after which its one person has no account here any more."""
    with certified_site.callers(3) as (victim, *herd):
        user = victim.ask("sign_in", slug="op")
        for _ in range(5):
            victim.ask("expire")
            with at_the_op(certified_op, refreshes=1, refused=0):
                outcomes = ask_all(herd, "call", user=user, provider="op", count=16)
                assert told(outcomes) == {200: 32}
        victim.ask("expire")
        victim.ask("signal_at", point="stored", name="SIGKILL")
        with at_the_op(certified_op, refreshes=1, refused=0):
            start_calls(victim, user, 4)
            victim.wait_until_killed()
            assert told(ask_all(herd, "call", user=user, provider="op", count=4)) == {200: 8}
        (grant,) = herd[0].ask("grants", user=user)
        assert (grant["status"], grant["refreshes"]) == ("open", 6)
        herd[0].ask("remember", user=user)
        with at_the_op(certified_op, revocations=1):
            herd[1].ask("deactivate", user=user)
            eventually(lambda: herd[1].ask("pending_revocations") == 0)
        assert herd[0].ask("spend_remembered") == "invalid_grant"
