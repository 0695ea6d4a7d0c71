"""HTTP to the OP: what the transport bears from a server that is slow, large or dishonest."""

import base64
import logging
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from oidc_rp.errors import TransportError
from oidc_rp.transport import MAX_BODY, Transport
from tests import provider
from tests.provider import Misbehaviour, OpenIDProvider, issue_certificate

LIMIT = 3.0
"""Seconds that a call with a timeout of one second may take on a busy machine."""


@pytest.fixture
def transport() -> Transport:
    return Transport(timeout=1)


def refused(call: Callable[[], object]) -> str:
    """Return the code of the TransportError that a call ends with."""
    with pytest.raises(TransportError) as raised:
        call()
    return raised.value.code


def peak_memory(call: Callable[[], object]) -> int:
    """Return the most octets that were allocated while `call` ran, by client and server."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_answer_comes_whole(op: OpenIDProvider, transport: Transport) -> None:
    """Status, content type and body are handed on, whatever the status."""
    answer = transport.get(op.url("jwks"))
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert transport.get(op.origin + "/nowhere").status == 404


def test_requests_carry_no_more_than_they_must(op: OpenIDProvider, transport: Transport) -> None:
    """No version of a library, no compression, no cookie is told to the OP."""
    op.answer["jwks"] = provider.raw(200, {"Set-Cookie": "track=1; Path=/"}, b"{}")
    transport.get(op.url("jwks"))
    transport.get(op.url("jwks"))
    headers = op.requests[-1].headers
    assert headers["User-Agent"] == "oidc_rp"
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_M41_redirects_are_off_on_every_call(
    op: OpenIDProvider, transport: Transport, status: int
) -> None:
    """Neither a GET nor a POST follows a redirect: nothing is sent again, to nobody."""
    with OpenIDProvider(keys=op.keys) as attacker:
        op.answer["token"] = op.answer["jwks"] = provider.redirect_to(attacker.origin, status)
        secret = {"client_secret": "s3cret", "refresh_token": "r3fresh"}
        assert refused(lambda: transport.post(op.url("token"), secret)) == "transport.redirect"
        assert refused(lambda: transport.get(op.url("jwks"))) == "transport.redirect"
        assert attacker.requests == []


def test_M42_a_total_deadline_besides_socket_timeouts(
    op: OpenIDProvider, transport: Transport
) -> None:
    """Drops of a body or of headers, and silence: the whole call ends when its second is over."""
    op.answer["jwks"] = provider.drip(b"{" + b" " * 200 + b"}")
    op.answer["userinfo"] = provider.drip_headers()
    op.answer["discovery"] = provider.slow(5)
    with ThreadPoolExecutor() as pool:
        started = time.monotonic()
        urls = [op.url(endpoint) for endpoint in op.answer]
        codes = pool.map(lambda url: refused(lambda: transport.get(url)), urls)
        assert [*codes] == ["transport.timeout"] * 3
        assert time.monotonic() - started < LIMIT


def test_M42_the_deadline_holds_on_a_kept_connection(
    op: OpenIDProvider, transport: Transport
) -> None:
    """A connection that was good once is not trusted for longer."""
    assert transport.get(op.url("jwks")).status == 200
    op.answer["jwks"] = provider.drip(b"{" + b" " * 200 + b"}")
    started = time.monotonic()
    assert refused(lambda: transport.get(op.url("jwks"))) == "transport.timeout"
    assert time.monotonic() - started < LIMIT
    del op.answer["jwks"]
    assert transport.get(op.url("jwks")).status == 200


def test_M42_endless_interim_answers_end_with_the_deadline(transport: Transport) -> None:
    """ "100 Continue" for ever is no answer either."""

    def talk(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)

    with listening(talk) as origin:
        started = time.monotonic()
        assert refused(lambda: transport.get(origin)) == "transport.timeout"
        assert time.monotonic() - started < LIMIT


def test_M42_a_silent_tls_handshake_ends_with_the_deadline(transport: Transport) -> None:
    """A server that accepts and then says nothing is left."""
    with listening(lambda connection: time.sleep(0.2)) as origin:
        url = origin.replace("http:", "https:")
        started = time.monotonic()
        assert refused(lambda: transport.get(url)) in ("transport.timeout", "transport.tls")
        assert time.monotonic() - started < LIMIT


def test_M43_byte_cap_on_decoded_size(op: OpenIDProvider) -> None:
    """200 MB in 200 kB of gzip, and an answer without an end, are cut off at the cap."""
    patient, codes = Transport(timeout=30), []
    for misbehaviour in (provider.gzip_bomb(200_000_000), provider.endless()):
        op.answer["jwks"] = misbehaviour
        peak = peak_memory(lambda: codes.append(refused(lambda: patient.get(op.url("jwks")))))
        assert peak < 20_000_000
    assert codes == ["transport.too_large"] * 2


def test_M43_a_chunk_of_a_negative_size_is_not_read_without_a_bound() -> None:
    """http.client reads a chunk of the size "-1" to the end of the stream: refused at once."""
    block, head = b"x" * 1_000_000, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n"

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(head)
        for _ in range(5):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)

    codes: list[str] = []
    with listening(talk) as origin:
        started, patient = time.monotonic(), Transport(timeout=10)
        assert peak_memory(lambda: codes.append(refused(lambda: patient.get(origin)))) < 3_000_000
        assert time.monotonic() - started < LIMIT
    assert codes == ["transport.broken"]


def test_an_interim_answer_leaves_nothing_for_the_next_request(
    op: OpenIDProvider, transport: Transport
) -> None:
    """After "103 Early Hints" the final answer comes too late, and to nobody else's question."""

    def early_hints(handler: provider.Handler) -> None:
        handler.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
        time.sleep(0.05)
        handler.send(handler.genuine())

    op.answer["jwks"] = early_hints
    assert refused(lambda: transport.get(op.url("jwks"))) == "transport.broken"
    time.sleep(0.2)
    assert b"token_endpoint" in transport.get(op.url("discovery")).body


@pytest.mark.parametrize(
    ("size", "headers", "code"),
    [
        pytest.param(MAX_BODY, {}, None, id="the most"),
        pytest.param(MAX_BODY + 1, {}, "transport.too_large", id="one more"),
        pytest.param(10, {"Content-Length": "5000"}, "transport.broken", id="cut short"),
        pytest.param(10, {"Content-Encoding": "br"}, "transport.encoding", id="brotli"),
        pytest.param(10, {"Content-Encoding": "gzip"}, "transport.encoding", id="no gzip"),
        pytest.param(10, {"Content-Encoding": "gzip, gzip"}, "transport.encoding", id="twice"),
        pytest.param(10, {"X": "x" * 100_000}, "transport.broken", id="huge header"),
    ],
)
def test_M43_content_length_says_nothing(
    op: OpenIDProvider, transport: Transport, size: int, headers: dict[str, str], code: str | None
) -> None:
    """What arrives is counted; an announced length that is not kept is a broken answer."""
    op.answer["jwks"] = provider.raw(200, headers, b" " * size)
    if code is None:
        assert len(transport.get(op.url("jwks")).body) == size
    else:
        assert refused(lambda: transport.get(op.url("jwks"))) == code


def test_M43_honest_compression_is_read(op: OpenIDProvider, transport: Transport) -> None:
    """Some servers compress without being asked to."""
    op.answer["jwks"] = provider.gzip_bomb(5000)
    answer = transport.get(op.url("jwks"))
    assert answer.body.rstrip().endswith(b"}")
    assert len(answer.body) == 5000


def test_M44_environment_trust_is_off(
    op: OpenIDProvider, transport: Transport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A .netrc entry, proxies and CA bundles in the environment change nothing."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login mallory password m\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere.pem")
    transport.get(op.url("userinfo"), {"Authorization": "Bearer at"})
    transport.get(op.url("jwks"))
    basic = "Basic " + base64.b64encode(b"rp:secret").decode()
    transport.post(op.url("token"), {"code": "c"}, {"Authorization": basic})
    sent = [request.headers["Authorization"] for request in op.requests]
    assert sent == ["Bearer at", None, basic]


@contextmanager
def secure_op(op: OpenIDProvider, tls: ssl.SSLContext, host: str) -> Iterator[OpenIDProvider]:
    with OpenIDProvider(keys=op.keys, tls=tls, host=host) as secure:
        yield secure


def test_M45_certificate_verification(op: OpenIDProvider, tmp_path: Path) -> None:
    """The named authority is believed, for the name in its certificate; nobody else is."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    trusting = Transport(timeout=5, ca_bundle=str(certificate))
    with secure_op(op, context, "localhost") as secure:
        assert trusting.get(secure.url("jwks")).status == 200
        url = secure.url("jwks")
        assert refused(lambda: Transport(timeout=5).get(url)) == "transport.tls"
    other_name, certificate = issue_certificate(tmp_path, "op.example")
    trusting = Transport(timeout=5, ca_bundle=str(certificate))
    with secure_op(op, other_name, "localhost") as secure:
        assert trusting.get(secure.url("jwks").replace("localhost", "127.0.0.1")).status == 200
        assert refused(lambda: trusting.get(secure.url("jwks"))) == "transport.tls"


def test_M45_a_bundle_in_the_environment_lets_nobody_in(
    op: OpenIDProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom to believe is a setting of this provider, not of the process."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(certificate))
    with secure_op(op, context, "localhost") as secure:
        url = secure.url("jwks")
        assert refused(lambda: Transport(timeout=5).get(url)) == "transport.tls"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_M45_tls_1_2_at_least(op: OpenIDProvider, tmp_path: Path) -> None:
    """A server that offers no more than TLS 1.1 is left at the handshake."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    trusting = Transport(timeout=5, ca_bundle=str(certificate))
    with secure_op(op, context, "localhost") as secure:
        assert refused(lambda: trusting.get(secure.url("jwks"))) == "transport.tls"


@pytest.mark.parametrize(
    ("misbehaviour", "code"),
    [
        pytest.param(provider.close_connection(), "transport.broken", id="hangs up"),
        pytest.param(
            lambda handler: handler.write(b"SSH-2.0-OpenSSH\r\n\r\n"), "transport.broken", id="SSH"
        ),
        pytest.param(
            provider.raw(200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"),
            "transport.broken",
            id="broken chunks",
        ),
    ],
)
def test_broken_answers_are_transport_errors(
    op: OpenIDProvider, transport: Transport, misbehaviour: Misbehaviour, code: str
) -> None:
    op.answer["jwks"] = misbehaviour
    assert refused(lambda: transport.get(op.url("jwks"))) == code


def test_nobody_listening_is_a_transport_error(op: OpenIDProvider, transport: Transport) -> None:
    """Refused connections, names that do not exist, ports and hosts that cannot be."""
    op.stop()
    assert refused(lambda: transport.get(op.url("jwks"))) == "transport.broken"
    for url in ("https://op.invalid/", "https://" + "a" * 64 + ".example/", "https://[::1"):
        assert refused(lambda url=url: transport.get(url)) == "transport.broken"


def test_M53_errors_and_logs_of_the_transport_hold_no_secret(
    op: OpenIDProvider, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    """With every logger at DEBUG neither form nor headers are told, nor in the error."""
    caplog.set_level(logging.DEBUG)
    form, headers = {"code": "s3cret-code"}, {"Authorization": "Basic s3cret"}
    answer = transport.post(op.url("token"), form, headers)
    op.answer["token"] = provider.close_connection()
    with pytest.raises(TransportError) as raised:
        transport.post(op.url("token"), form, headers)
    assert "s3cret" not in repr(answer) + repr(raised.value) + caplog.text


@contextmanager
def listening(talk: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that treats each connection as `talk` does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        open_connections: list[socket.socket] = []

        def serve() -> None:
            try:
                while True:
                    connection, _ = server.accept()
                    open_connections.append(connection)
                    talk(connection)
            except OSError:
                pass  # the client or the test has gone

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        server.shutdown(socket.SHUT_RDWR)
        for connection in open_connections:
            connection.close()
