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
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oidc_rp import testing as provider
from oidc_rp.errors import TransportError
from oidc_rp.testing import Misbehaviour, OpenIDProvider, issue_certificate
from oidc_rp.transport import MAX_BODY, Transport, read_retry_after

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


def failure(call: Callable[[], object]) -> tuple[str, bool]:
    """Return the code of the TransportError that a call ends with, and whether anything left."""
    with pytest.raises(TransportError) as raised:
        call()
    return raised.value.code, raised.value.sent


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
    for url in ("https://op.invalid/", "https://" + "a" * 64 + ".example/"):
        assert refused(lambda url=url: transport.get(url)) == "transport.name"
    assert refused(lambda: transport.get("https://[::1")) == "transport.broken"


# What has left, and what may be tried again (REFRESH.md, T9 to T12)

FORM = {"refresh_token": "r3fresh"}


def test_M55_nothing_has_left_when_nobody_listens(op: OpenIDProvider, transport: Transport) -> None:
    """Refused connections, names without an address, URLs that are none."""
    op.stop()
    assert failure(lambda: transport.post(op.url("token"), FORM)) == ("transport.broken", False)
    assert failure(lambda: transport.post("https://op.invalid/", FORM)) == ("transport.name", False)
    assert failure(lambda: transport.post("https://[::1", FORM)) == ("transport.broken", False)


def test_M55_nothing_has_left_when_a_connection_takes_too_long() -> None:
    """A server whose queue is full answers nothing at all."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        queue = [socket.socket() for _ in range(4)]
        for waiting in queue:
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        url = f"http://127.0.0.1:{server.getsockname()[1]}/token"
        impatient = Transport(timeout=0.5)
        assert failure(lambda: impatient.post(url, FORM)) == ("transport.timeout", False)
        for waiting in queue:
            waiting.close()


def test_M55_nothing_has_left_when_the_handshake_fails(op: OpenIDProvider, tmp_path: Path) -> None:
    """An unknown certificate, one for another name, a server that talks no TLS or hangs up."""
    context, certificate = issue_certificate(tmp_path, "op.example")
    trusting, strict = Transport(timeout=5, ca_bundle=str(certificate)), Transport(timeout=5)
    with secure_op(op, context, "localhost") as secure:
        url = secure.url("token")
        assert failure(lambda: strict.post(url, FORM)) == ("transport.tls", False)
        assert failure(lambda: trusting.post(url, FORM)) == ("transport.tls", False)
        assert secure.requests == []
    url = op.url("token").replace("http:", "https:")
    assert failure(lambda: strict.post(url, FORM)) == ("transport.tls", False)
    with listening(lambda connection: connection.close()) as origin:
        code, sent = failure(lambda: strict.post(origin.replace("http:", "https:"), FORM))
        assert (code in ("transport.tls", "transport.broken"), sent) == (True, False)
    with listening(lambda connection: time.sleep(3)) as origin:
        url, impatient = origin.replace("http:", "https:"), Transport(timeout=0.5)
        assert failure(lambda: impatient.post(url, FORM)) == ("transport.timeout", False)


@pytest.mark.parametrize(
    ("misbehaviour", "code"),
    [
        pytest.param(provider.reset(after=False), "transport.broken", id="reset before"),
        pytest.param(provider.reset(after=True), "transport.broken", id="reset after"),
        pytest.param(provider.close_connection(), "transport.broken", id="closed"),
        pytest.param(provider.truncated(), "transport.broken", id="truncated"),
        pytest.param(provider.slow(5), "transport.timeout", id="silence"),
        pytest.param(provider.drip(b" " * 200), "transport.timeout", id="drops"),
        pytest.param(provider.redirect_to("/elsewhere"), "transport.redirect", id="redirect"),
        pytest.param(provider.endless(), "transport.too_large", id="endless"),
        pytest.param(
            provider.raw(200, {"Content-Encoding": "br"}, b"x"), "transport.encoding", id="brotli"
        ),
        pytest.param(
            provider.raw(200, {"Transfer-Encoding": "chunked"}, b"5\r\nab"),
            "transport.broken",
            id="truncated chunk",
        ),
        pytest.param(lambda handler: handler.write(b"junk\r\n\r\n"), "transport.broken", id="junk"),
    ],
)
@pytest.mark.parametrize("kept", [True, False], ids=["kept connection", "new connection"])
def test_M55_a_request_may_have_arrived_when_its_answer_did_not(
    op: OpenIDProvider, transport: Transport, misbehaviour: Misbehaviour, code: str, kept: bool
) -> None:
    """From the first octet on nobody knows what the OP did: it has seen the token."""
    if kept:
        transport.get(op.url("jwks"))
    op.answer["token"] = misbehaviour
    assert failure(lambda: transport.post(op.url("token"), FORM)) == (code, True)
    assert op.requests_to("token")[0].form == {"refresh_token": ["r3fresh"]}
    assert op.calls("token") == 1


def test_M55_a_client_that_a_tls_server_refuses_later_has_sent(
    op: OpenIDProvider, tmp_path: Path
) -> None:
    """TLS 1.3 refuses a client without a certificate after its handshake: octets have left."""
    context, certificate = issue_certificate(tmp_path, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(str(certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    trusting = Transport(timeout=5, ca_bundle=str(certificate))
    with secure_op(op, context, "localhost") as secure:
        code, sent = failure(lambda: trusting.post(secure.url("token"), FORM))
    assert (code in ("transport.tls", "transport.broken"), sent) == (True, True)


DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, 120.0),
        ({"Retry-After": " 0 "}, 0.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "86401"}, 86400.0),
        ({"Retry-After": "9" * 5000}, 86400.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Wednesday, 21-Oct-15 07:28:30 GMT", "Date": DATE}, 30.0),
        ({"Retry-After": "Wed Oct 21 07:28:30 2015", "Date": DATE}, 30.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:27:00 GMT", "Date": DATE}, 0.0),
        ({"Retry-After": "Thu, 21 Oct 2055 07:28:00 GMT", "Date": DATE}, 86400.0),
        ({"Retry-After": DATE}, 0.0),
        ({"Retry-After": DATE, "Date": "today"}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86400.0),
        *(
            ({"Retry-After": junk, "Date": DATE}, None)
            for junk in ("", "soon", "1.5", "1e3", "0x10", "\u0661", "1 2", "--1", "1, 2")
        ),
        ({"Retry-After": "Wed, 99 Oct 2015 07:28:30 GMT", "Date": DATE}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, or a moment by the clock of whoever wrote it (RFC 9110 §10.2.3); at most a day."""
    assert read_retry_after(headers) == seconds


def test_retry_after_by_our_clock() -> None:
    """Without a Date the moment is compared with our own clock."""
    header = formatdate(time.time() + 100, usegmt=True)
    assert read_retry_after({"Retry-After": header}) == pytest.approx(100, abs=5)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.text() | st.from_regex(r"[A-Z][a-z]{2}, ..? [A-Z]\w\w \d{1,6} \d*:\d*:\d* \w*"), st.text()
)
def test_any_retry_after_is_a_pause_or_none(value: str, date: str) -> None:
    seconds = read_retry_after({"Retry-After": value, "Date": date})
    assert seconds is None or 0 <= seconds <= 86400


def test_an_answer_tells_its_retry_after(op: OpenIDProvider, transport: Transport) -> None:
    op.answer["jwks"] = provider.raw(503, {"Retry-After": "7"})
    answer = transport.get(op.url("jwks"))
    assert (answer.status, answer.retry_after) == (503, 7.0)
    del op.answer["jwks"]
    assert transport.get(op.url("jwks")).retry_after is None


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
