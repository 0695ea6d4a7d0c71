"""HTTP to the provider, and nothing else: one hardened door (M41 to M45).

No redirects, a total deadline, a cap on the decoded body, nothing believed from the environment
(proxies, .netrc, CA bundles), TLS 1.2 or newer and always verified, no cookies kept.
"""

import io
import re
import socket
import ssl
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util.ssl_ import create_urllib3_context
from urllib3.util.ssl_match_hostname import CertificateError

from .errors import TransportError

MAX_BODY = 1024 * 1024
"""Octets of the largest decoded answer that is read; metadata and key sets have some 10 kB."""

MAX_RETRY_AFTER = 24 * 60 * 60.0
"""Seconds; an OP that asks for a longer pause is asked again after a day."""

CONNECT_TIMEOUT = 3.0
"""Seconds for one address to accept a connection, TLS handshake included."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the OP answered, whole and within bounds.

    retry_after: the seconds of pause that it asks for, if any (RFC 9110 §10.2.3).
    now: what time it is by the clock of its server, in seconds since the epoch, if it tells.
    """

    status: int
    content_type: str
    body: bytes
    retry_after: float | None = None
    now: float | None = None

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.content_type}: {len(self.body)} octets>"


class Transport:
    """The one way to an OP.

    timeout: seconds that a whole call may take, from connecting to the last octet of the body.
    ca_bundle: path of a PEM file that replaces the public certificate authorities.
    """

    def __init__(self, *, timeout: float, ca_bundle: str | None = None) -> None:
        self._timeout = Timeout(total=timeout, connect=min(CONNECT_TIMEOUT, timeout))
        self._verify = ca_bundle or True
        # The adapter alone: what a requests.Session adds is what must not happen here (redirects,
        # cookies, .netrc, proxies and certificate authorities from the environment).
        self._adapter = _DeadlineAdapter()

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Answer:
        """GET `url`. Raises TransportError; any HTTP status but a redirect is an answer."""
        return self._send(requests.Request("GET", url, headers=_HEADERS | dict(headers or {})))

    def post(
        self, url: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Answer:
        """POST `form`, form-encoded. Raises TransportError as get does."""
        headers = _HEADERS | dict(headers or {})
        return self._send(requests.Request("POST", url, headers=headers, data=form))

    def _send(self, request: requests.Request) -> Answer:
        try:
            with self._adapter.send(
                request.prepare(),
                stream=True,
                timeout=self._timeout.clone(),  # type: ignore[arg-type]  # handed on as it is
                verify=self._verify,
            ) as response:
                return _read(response)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            sent = not isinstance(error, requests.exceptions.InvalidURL)
            raise _translated(error, request.url, sent=sent) from error


_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "oidc_rp"}


def _read(response: requests.Response) -> Answer:
    if response.status_code < 200:  # 103: an interim answer; the final one follows, for nobody
        raise TransportError("transport.broken", "an interim answer")
    if 300 <= response.status_code < 400:
        raise TransportError(
            "transport.redirect",
            "redirects are not followed",
            received=response.status_code,
            status=response.status_code,
        )
    body = response.raw.read(MAX_BODY + 1, decode_content=False)
    body = _decoded(body, response.headers.get("Content-Encoding", "identity").strip().lower())
    if len(body) > MAX_BODY:
        raise TransportError("transport.too_large", expected=f"<= {MAX_BODY} octets")
    if response.raw.length_remaining:
        raise TransportError("transport.broken", "the answer ends before its announced length")
    content_type = response.headers.get("Content-Type", "")
    retry_after, now = read_retry_after(response.headers), read_now(response.headers)
    return Answer(response.status_code, content_type, body, retry_after, now)


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of Retry-After (RFC 9110 §10.2.3), from 0 to a day; None for none.

    A moment is one of the answer's own clock where it tells that (Date), else of ours.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"-?[0-9]+", value):
        seconds = float(value)
    else:
        until, now = _moment(value), _moment(headers.get("Date", ""))
        if until is None:
            return None
        seconds = until - (time.time() if now is None else now)
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def read_now(headers: Mapping[str, str]) -> float | None:
    """Return the moment of Date, and for a cache's answer its Age on top; None for none.

    RFC 9110 §6.6.1 and RFC 9111 §5.1; a Date has whole seconds.
    """
    made_at, age = _moment(headers.get("Date", "")), headers.get("Age", "0").strip()
    if made_at is None or not re.fullmatch(r"[0-9]{1,9}", age):
        return None
    return made_at + int(age)


def _moment(http_date: str) -> float | None:
    """Seconds since the epoch of an HTTP-date (RFC 9110 §5.6.7), which is always of GMT."""
    try:
        return parsedate_to_datetime(http_date).replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _decoded(body: bytes, encoding: str) -> bytes:
    """Undo a compression that was not asked for, as far as one octet beyond the cap."""
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate") or len(body) > MAX_BODY:
        raise TransportError("transport.encoding", expected="identity", received=encoding[:64])
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_BODY + 1)
    except zlib.error as error:
        raise TransportError("transport.encoding", "broken compression") from error


def _translated(error: Exception, url: str, *, sent: bool) -> TransportError:
    """One of our codes for what requests, urllib3 and the socket raise; of their text only the
    kind is kept, and of the URL no query."""
    reason = getattr(error.args[0], "reason", None) if error.args else None
    kind, at = type(reason or error).__name__, url.partition("?")[0]
    if isinstance(error, requests.exceptions.SSLError | ssl.SSLError | CertificateError):
        problem = f"TLS or certificate refused ({kind})"
        return TransportError("transport.tls", problem, expected=at, sent=sent)
    if isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error):
        problem = f"no answer in time ({kind})"
        return TransportError("transport.timeout", problem, expected=at, sent=sent)
    if isinstance(error, socket.gaierror | UnicodeError):
        problem = f"no address for this name ({kind})"
        return TransportError("transport.name", problem, expected=at, sent=sent)
    problem = f"no whole answer ({kind})"
    return TransportError("transport.broken", problem, expected=at, sent=sent)


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until a moment, not for a time per read: drops do not fill a bucket."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(remaining)
        return self._file.readinto(buffer)

    def readall(self) -> bytes:
        # http.client reads without a bound for one thing: a chunk of the size "-1".
        raise OSError("an answer is never read without a bound")

    def close(self) -> None:
        self._file.close()
        super().close()


class _DeadlineSocket:
    """A socket whose timeout counts from when it is set to the end of the answer."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deadline = 0.0

    def settimeout(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._sock.settimeout(seconds)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class _Deadline:
    sock: Any
    host: str
    port: int
    timeout: Any

    def _new_conn(self) -> socket.socket:
        """Try one address after the other, all within the time for one: a name may have many.

        Resolving the name is the system's; its time is not counted.
        """
        addresses = socket.getaddrinfo(self.host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        until, problem = time.monotonic() + self.timeout, OSError("no address")
        for family, kind, protocol, _, address in addresses:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(max(until - time.monotonic(), 0.001))
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem

    def connect(self) -> None:
        """Connect, TLS handshake included. Nothing of a request has been sent when this fails."""
        try:
            super().connect()  # type: ignore[misc]
        except (HTTPError, OSError, ValueError) as error:
            raise _translated(error, f"{self.host}:{self.port}", sent=False) from error
        self.sock = _DeadlineSocket(self.sock)


class _HTTPConnection(_Deadline, HTTPConnection):
    pass


class _HTTPSConnection(_Deadline, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Not when octets that nobody asked for wait behind the last answer, deciphered already."""
        return super().is_connected and not self.sock.pending()


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _DeadlineAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        context = create_urllib3_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        super().init_poolmanager(*args, ssl_context=context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
