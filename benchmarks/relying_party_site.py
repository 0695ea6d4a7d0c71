"""A contender's Django site, in a process of its own, that is told to receive callbacks."""

import gc
import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from io import BytesIO
from multiprocessing.connection import Connection
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import django
from django.conf import settings
from requests import Request, Response, Session
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

from .contenders import CONTENDERS, Contender, django_settings
from .measure import collected_garbage

RETURNING_SUB = "returning-user"


@dataclass(frozen=True)
class Callbacks:
    """An order to a site: receive so many callbacks.

    user: "new" or "returning". accepted: False when the OP's answers are to be refused.
    """

    count: int
    user: str = "new"
    accepted: bool = True


@dataclass(frozen=True)
class Cost:
    """CPU seconds of this process for one callback, with and without the HTTP connections.

    signed_in: how many of the callbacks signed somebody in.
    """

    with_network: float
    op_stubbed: float
    signed_in: int


class Answer(NamedTuple):
    status: str
    headers: list[tuple[str, str]]


class NetworkMeter:
    """Adds up the CPU that `requests` takes: to prepare, to send and to receive.

    With the OP stubbed, that is left out for everybody. The answer is handed on from memory, so
    that what follows costs what it costs with a stub.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def install(self) -> None:
        send = HTTPAdapter.send

        def send_from_memory(adapter: HTTPAdapter, *args: Any, **kwargs: Any) -> Response:
            response = send(adapter, *args, **kwargs)
            response.raw = from_memory(response.raw)
            return response

        HTTPAdapter.send = self._metered(send_from_memory)  # type: ignore[method-assign]
        for owner, name in ((Session, "request"), (Session, "send"), (Request, "prepare")):
            setattr(owner, name, self._metered(getattr(owner, name)))

    def _metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with its CPU added up, unless it is called by another one of these."""

        @wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.process_time() - start

        return metered


def from_memory(raw: Any) -> HTTPResponse:
    """Return the same response, read to its end."""
    return HTTPResponse(
        BytesIO(raw.read(decode_content=False)),
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        preload_content=False,
        original_response=raw._original_response,
    )


class _Site:
    def __init__(self, contender: Contender) -> None:
        from django.core.handlers.wsgi import WSGIHandler
        from django.test import RequestFactory

        self.contender = contender
        self.application = WSGIHandler()
        self.requests = RequestFactory(SERVER_NAME="127.0.0.1")
        self.network = NetworkMeter()
        self.network.install()
        self.subs = (f"{os.getpid()}-{number}" for number in itertools.count())

    def receive(self, order: Callbacks) -> Cost:
        """Return the cost of one callback; starting the logins is not counted."""
        logging.disable(logging.NOTSET if order.accepted else logging.CRITICAL)
        environs = [self.begun_login(order) for _ in range(order.count)]
        with collected_garbage():
            network, start = self.network.seconds, time.process_time()
            answers = [self.answer(environ) for environ in environs]
            seconds = time.process_time() - start
            network = self.network.seconds - network
        signed_in = sum(map(is_signed_in, answers))
        if order.accepted and signed_in < order.count:
            raise RuntimeError(f"{order.count - signed_in} did not sign in: {answers}")
        return Cost(seconds / order.count, (seconds - network) / order.count, signed_in)

    def begun_login(self, order: Callbacks) -> dict[str, Any]:
        """Start a login in a fresh browser and return the WSGI environment of its callback."""
        from django.test import Client

        browser = Client(SERVER_NAME="127.0.0.1")
        start_login = browser.post if self.contender.starts_by_post else browser.get
        response = start_login(self.contender.login_path)
        sub = next(self.subs) if order.user == "new" else RETURNING_SUB
        callback = self.visit_provider(
            response["Location"], {"login_hint": sub, "user": order.user}
        )
        cookies = "; ".join(f"{name}={item.value}" for name, item in browser.cookies.items())
        return dict(self.requests.get(callback, headers={"cookie": cookies}).environ)

    def visit_provider(self, location: str, hints: dict[str, str]) -> str:
        """Follow the redirect to the OP and return the callback that it redirects to."""
        location += "&" + urlencode(hints)
        url = urlsplit(location)
        if not url.netloc:  # the bare view, which has no OP
            return location
        browser = HTTPConnection(url.netloc)
        browser.request("GET", f"{url.path}?{url.query}")
        callback = urlsplit(browser.getresponse().getheader("Location") or "")
        browser.close()
        return f"{callback.path}?{callback.query}"

    def answer(self, environ: dict[str, Any]) -> Answer:
        """Let Django answer one request, as a WSGI server would."""
        answers: list[Answer] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: Any) -> Any:
            answers.append(Answer(status, headers))

        response = self.application(environ, start_response)
        b"".join(response)
        response.close()
        return answers[0]


def is_signed_in(answer: Answer) -> bool:
    """Whether the callback ended in a session of a signed-in user, and so is worth its time."""
    from django.contrib.auth import SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore

    cookies = SimpleCookie("; ".join(v for name, v in answer.headers if name == "Set-Cookie"))
    if dict(answer.headers).get("Location") != settings.LOGIN_REDIRECT_URL:
        return False
    return "sessionid" in cookies and SESSION_KEY in SessionStore(cookies["sessionid"].value)


def _run(
    connection: Connection, name: str, metadata: dict[str, Any], cache_directory: str | None
) -> None:
    contender = CONTENDERS[name]
    settings.configure(**django_settings(contender, metadata, cache_directory))
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    site = _Site(contender)
    _create_returning_user(site)
    gc.freeze()  # so that collecting garbage between the slices is short
    connection.send("ready")
    while (order := connection.recv()) is not None:
        connection.send(site.receive(order))


def _create_returning_user(site: _Site) -> None:
    if site.contender.urls is None:
        from django.contrib.auth.models import User

        User.objects.create_user(RETURNING_SUB)
    else:
        site.receive(Callbacks(1, user="returning"))


class Site:
    """A running site, as the benchmark sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, order: Callbacks) -> None:
        self._connection.send(order)

    def cost(self) -> Cost:
        """Wait for the order to be done."""
        cost: Cost = self._connection.recv()
        return cost

    def receive(self, order: Callbacks) -> Cost:
        self.send(order)
        return self.cost()


@contextmanager
def running_site(
    name: str, metadata: dict[str, Any], cache_directory: str | None = None
) -> Iterator[Site]:
    """Run the contender's site until the end of the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_run, args=(theirs, name, metadata, cache_directory))
    process.start()
    theirs.close()  # so that a site that dies is an EOFError here, not a wait for ever
    try:
        ours.recv()
        yield Site(ours)
    finally:
        with suppress(BrokenPipeError):
            ours.send(None)
        process.join(5)
        process.kill()


@contextmanager
def running_sites(
    names: Sequence[str], metadata: dict[str, Any], cache_directory: str | None = None
) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        yield [stack.enter_context(running_site(name, metadata, cache_directory)) for name in names]
