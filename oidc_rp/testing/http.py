"""HTTP as the OP speaks it: what arrived, what it answers, and answers gone wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import socketserver
import ssl
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.message import Message
from email.utils import formatdate
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from .provider import OpenIDProvider

Form = dict[str, list[str]]


@dataclass(frozen=True)
class RecordedRequest:
    """One request as it arrived. `endpoint` is the name of the endpoint, None elsewhere."""

    method: str
    path: str
    endpoint: str | None
    query: Form
    headers: Message
    form: Form
    body: bytes


@dataclass(frozen=True)
class Answer:
    """One HTTP response; Content-Length is added unless `headers` has one of its own."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Refused(Exception):
    """An OAuth error response (RFC 6749 §4.1.2.1, §5.2; RFC 6750 §3)."""

    error: str
    description: str
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, str]:
        return {"error": self.error, "error_description": self.description}

    @property
    def answer(self) -> Answer:
        return json_answer(self.members, self.status, self.headers)


def json_answer(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return `value` as an application/json answer that nobody may store."""
    own = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(status, json.dumps(value).encode(), own | dict(headers or {}))


class Handler(BaseHTTPRequestHandler):
    """One connection; `request_read` is what arrived, `genuine()` what an honest OP answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    request_read: RecordedRequest

    @property
    def provider(self) -> OpenIDProvider:
        return self.server.provider

    def do_GET(self) -> None:
        self.request_read = request = self._read()
        if request.path.startswith("/control"):
            self.send(self.provider.control(request))
            return
        self.provider.record(request)
        if misbehave := self.provider.misbehaviour(request):
            misbehave(self)
        else:
            self.send(self.genuine())

    do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = do_GET

    def _read(self) -> RecordedRequest:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_form = self.headers.get_content_type() == "application/x-www-form-urlencoded"
        return RecordedRequest(
            method=self.command,
            path=url.path,
            endpoint=self.provider.endpoints.get(url.path),
            query=parse_qs(url.query, keep_blank_values=True),
            headers=self.headers,
            form=parse_qs(body.decode(), keep_blank_values=True) if is_form else {},
            body=body,
        )

    def genuine(self) -> Answer:
        """Return what the endpoint answers when it does not misbehave, and the time there."""
        date = formatdate(self.provider.now(), usegmt=True)
        answer = self.provider.respond(self.request_read)
        return replace(answer, headers={"Date": date} | answer.headers)

    def send(self, answer: Answer) -> None:
        """Write a whole answer at once."""
        body = b"" if self.command == "HEAD" else answer.body
        self.write(self.head(answer) + body)

    def head(self, answer: Answer) -> bytes:
        """Return the status line and the headers of an answer as they go over the wire."""
        headers = {"Content-Length": str(len(answer.body))} | answer.headers
        if self.close_connection:
            headers["Connection"] = "close"
        phrase = HTTPStatus(answer.status).phrase
        lines = [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([f"HTTP/1.1 {answer.status} {phrase}", *lines, "", ""]).encode()

    def write(self, data: bytes) -> None:
        self.wfile.write(data)

    def reset(self) -> None:
        """End the connection so that the client meets ECONNRESET, not an orderly end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def write_slowly(self, data: bytes, interval: float) -> None:
        """Write a byte, wait `interval` seconds, write the next; ends when the server stops."""
        for position in range(len(data)):
            self.write(data[position : position + 1])
            if self.provider.stopped.wait(interval):
                break

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent: `requests` is the log."""


Misbehaviour = Callable[[Handler], None]


def raw(status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Misbehaviour:
    """Answer exactly this; a Content-Length in `headers` may lie, for the connection is closed."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send(Answer(status, body, dict(headers or {})))

    return answer


def sending(value: object, status: int = 200) -> Misbehaviour:
    """Answer this value as JSON."""
    return lambda handler: handler.send(json_answer(value, status))


def not_json() -> Misbehaviour:
    """Answer a page where JSON belongs."""
    return raw(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Maintenance</title>")


def redirect_to(url: str, status: int = 307) -> Misbehaviour:
    """Send the caller elsewhere."""
    return raw(status, {"Location": url})


def close_connection() -> Misbehaviour:
    """Hang up without a byte."""

    def answer(handler: Handler) -> None:
        handler.close_connection = True

    return answer


def slow(seconds: float) -> Misbehaviour:
    """Keep silent for a while, then answer honestly."""

    def answer(handler: Handler) -> None:
        handler.provider.stopped.wait(seconds)
        handler.send(handler.genuine())

    return answer


def held(until: threading.Event) -> Misbehaviour:
    """Answer honestly once the test sets `until` (at most ten seconds later)."""

    def answer(handler: Handler) -> None:
        until.wait(10)
        handler.send(handler.genuine())

    return answer


def late(seconds: float) -> Misbehaviour:
    """Do at once what was asked, and tell it after a while."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.provider.stopped.wait(seconds)
        handler.send(genuine)

    return answer


def held_back(until: threading.Event) -> Misbehaviour:
    """Do at once what was asked, and tell it once the test sets `until` (at most 10 s later)."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        until.wait(10)
        handler.send(genuine)

    return answer


def reset(*, after: bool) -> Misbehaviour:
    """Reset the connection, before or after having done what was asked."""

    def answer(handler: Handler) -> None:
        if after:
            handler.genuine()
        handler.reset()

    return answer


def after_doing(misbehaviour: Misbehaviour) -> Misbehaviour:
    """Do what was asked, and then answer as `misbehaviour` does."""

    def answer(handler: Handler) -> None:
        handler.genuine()
        misbehaviour(handler)

    return answer


def truncated() -> Misbehaviour:
    """Do what was asked, announce the whole answer, send the first half and hang up."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.close_connection = True
        handler.write(handler.head(genuine) + genuine.body[: len(genuine.body) // 2])

    return answer


def asking_for_patience(status: int, body: bytes = b"") -> Misbehaviour:
    """Answer with a status and op.retry_after."""

    def answer(handler: Handler) -> None:
        raw(status, {"Retry-After": handler.provider.retry_after}, body)(handler)

    return answer


OAUTH_ERRORS = {
    error: sending({"error": error, "error_description": "on demand"}, status)
    for status, errors in (
        (400, "invalid_grant invalid_request invalid_scope invalid_target unauthorized_client"),
        (400, "unsupported_grant_type use_dpop_nonce"),
        (401, "invalid_client"),
        (500, "server_error"),
    )
    for error in errors.split()
}

REFRESH_FAULTS: dict[str, Misbehaviour] = OAUTH_ERRORS | {
    "reset_before_rotation": reset(after=False),
    "reset_after_rotation": reset(after=True),
    "closed_before_rotation": close_connection(),
    "closed_after_rotation": after_doing(close_connection()),
    "truncated_after_rotation": truncated(),
    "page_after_rotation": after_doing(not_json()),
    "500": raw(500, {"Content-Type": "text/html"}, b"<h1>Internal Server Error</h1>"),
    "503": asking_for_patience(503, b"<h1>Service Unavailable</h1>"),
    "503_json": asking_for_patience(503, b'{"error": "temporarily_unavailable"}'),
    "429": asking_for_patience(429, b'{"error": "slow_down"}'),
}
"""What op.refresh_fault may say; it hits the refreshes alone, never the logins."""


def first(count: int, misbehaviour: Misbehaviour) -> Misbehaviour:
    """Misbehave for the first `count` requests, be honest afterwards."""
    numbers = itertools.count(1)

    def answer(handler: Handler) -> None:
        if next(numbers) <= count:
            misbehaviour(handler)
        else:
            handler.send(handler.genuine())

    return answer


def drip(body: bytes | None = None, interval: float = 0.1) -> Misbehaviour:
    """Answer a byte at a time, the honest body unless another is given."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        whole = genuine if body is None else Answer(200, body, genuine.headers)
        handler.write(handler.head(whole))
        handler.write_slowly(whole.body, interval)
        handler.close_connection = True

    return answer


def drip_headers(interval: float = 0.1) -> Misbehaviour:
    """Answer honestly, but a byte at a time from the status line on."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.write_slowly(handler.head(genuine) + genuine.body, interval)
        handler.close_connection = True

    return answer


def huge_header(size: int = 100_000) -> Misbehaviour:
    """Answer honestly, with one more header of `size` characters."""

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        handler.send(Answer(genuine.status, genuine.body, {**genuine.headers, "X": "x" * size}))

    return answer


def gzip_bomb(decoded_size: int) -> Misbehaviour:
    """Answer the honest JSON, followed by blanks up to `decoded_size`, all of it gzipped.

    It stays a valid document: nothing but a limit on the decoded size can refuse it.
    """

    def answer(handler: Handler) -> None:
        genuine = handler.genuine()
        headers = {**genuine.headers, "Content-Encoding": "gzip"}
        handler.send(Answer(200, gzipped_with_blanks(genuine.body, decoded_size), headers))

    return answer


@cache
def gzipped_with_blanks(body: bytes, decoded_size: int) -> bytes:
    """Return `body` and blanks, `decoded_size` bytes in all, as one gzip stream."""
    deflate, block = zlib.compressobj(level=1, wbits=31), b" " * (1 << 20)
    blocks, rest = divmod(max(decoded_size - len(body), 0), len(block))
    parts = [deflate.compress(body), *(deflate.compress(block) for _ in range(blocks))]
    return b"".join([*parts, deflate.compress(block[:rest]), deflate.flush()])


def endless() -> Misbehaviour:
    """Answer blanks without an end, as fast as they are read."""
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"

    def answer(handler: Handler) -> None:
        headers = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        handler.close_connection = True
        handler.write(f"HTTP/1.1 200 OK\r\n{headers}".encode())
        while not handler.provider.stopped.is_set():
            handler.write(chunk)

    return answer


def issue_certificate(directory: Path, host: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """Return a server context for `host`, and the PEM file that lets a client trust it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, address = datetime.now(timezone.utc), x509.IPAddress(ip_address("127.0.0.1"))
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host), address]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = directory / "op-key.pem", directory / "op-certificate.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file


# The server


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection; stop() also ends the connections that clients keep."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, provider: OpenIDProvider, tls: ssl.SSLContext | None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.provider = provider
        self.tls = tls
        self.failures: list[BaseException] = []
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self.server_close()
        for connection in list(self._connections):
            hang_up(connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.tls:  # the handshake happens in the connection's thread, at the first read
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what a handler raised, unless it was only the client hanging up."""
        failure = cast("BaseException", sys.exc_info()[1])
        if not isinstance(failure, OSError):
            self.failures.append(failure)


def hang_up(connection: socket.socket) -> None:
    """End a connection that its handler may be reading from."""
    with contextlib.suppress(OSError):  # the client was quicker
        connection.shutdown(socket.SHUT_RDWR)


def is_refresh(request: RecordedRequest) -> bool:
    return request.endpoint == "token" and request.form.get("grant_type") == ["refresh_token"]


def is_from_a_program(request: RecordedRequest, host: str) -> bool:
    """Whether no web page that a developer has open can have sent this wish: it names this very
    host, no origin, and what it says is JSON by POST. host: with the port."""
    headers = request.headers
    if "Origin" in headers or headers.get_all("Host") != [host]:
        return False
    if request.method == "GET":
        return request.path == "/control" and not request.body
    is_json = headers.get_content_type() == "application/json"
    says_nothing = not request.body and "Content-Type" not in headers
    return request.method == "POST" and (is_json or says_nothing)
