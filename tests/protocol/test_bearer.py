"""What an API says of its token, and whose URL that is (RFC 6750 §3, RFC 9110 §11.6.1)."""

import time
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.protocol.bearer import MAX_CHALLENGES, Challenge, origin_of, read_challenges

from .examples import awkward, fuzz

INVALID = Challenge(error="invalid_token")


@pytest.mark.parametrize(
    ("field", "challenge"),
    [
        ("Bearer", Challenge()),
        ('Bearer realm="example"', Challenge()),
        (
            'Bearer realm="example", error="invalid_token", '
            'error_description="The access token expired"',
            Challenge(error="invalid_token", error_description="The access token expired"),
        ),
        (
            'Bearer error="insufficient_scope", scope="openid  calendar"',
            Challenge(error="insufficient_scope", scope="openid  calendar"),
        ),
        (
            'Bearer error="insufficient_user_authentication", max_age="5", acr_values="myACR x"',
            Challenge(error="insufficient_user_authentication", max_age=5, acr_values="myACR x"),
        ),
    ],
)
def test_the_examples_of_the_specifications(field: str, challenge: Challenge) -> None:
    """RFC 6750 §3 and §3.1, RFC 9470 §3."""
    assert read_challenges([field]) == challenge


@pytest.mark.parametrize(
    "fields",
    [
        ["bearer error=invalid_token"],
        ['BEARER ERROR = "invalid_token"'],
        ['Bearer\terror\t=\t"invalid_token"\t'],
        [', ,Bearer error="invalid_token",,'],
        ['Bearer realm="x" error="invalid_token"'],
        ['Bearer error="invalid\\_token"'],
        ['Bearer error="invalid_token", error="insufficient_scope"'],
        ['Basic realm="x", Bearer error="invalid_token", Digest nonce="n", error="other"'],
        ["Negotiate", "NTLM", 'Bearer error="invalid_token"'],
        ['Negotiate YWJj==, Bearer error="invalid_token"'],
        ['Basic realm="a, Bearer error=\\"x\\"", Bearer error="invalid_token"'],
        ['Bearer realm="x"', 'Bearer error="invalid_token"'],
        ['Bearer realm="x", Bearer error="invalid_token", Bearer error="later"'],
        ['Bearer error="invalid_token", scope="unterminated'],
        ['Bearer error="invalid_token", \x00'],
        ['DPoP error="use_dpop_nonce", Bearer error="invalid_token"'],
    ],
)
def test_a_challenge_among_others(fields: list[str]) -> None:
    """Any case, any blanks, any neighbours, several in one field or one in each."""
    assert read_challenges(fields) == INVALID


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [""],
        [",,"],
        ['Basic realm="Bearer"'],
        ['Basic realm="a\\", Bearer error=x"'],
        ["Bearerx error=invalid_token"],
        ["xBearer"],
        ['"Bearer" error="invalid_token"'],
        ["error=invalid_token"],
        ['DPoP error="invalid_token"'],
        ["\u0412earer error=invalid_token"],
        ['Bearer error="invalid_token"' + " " * MAX_CHALLENGES],
        ['Bearer error="invalid_token"'] * 300,
    ],
)
def test_what_is_no_bearer_challenge(fields: list[str]) -> None:
    """Other schemes, junk, and more than anybody writes."""
    assert read_challenges(fields) is None


@pytest.mark.parametrize(
    ("field", "challenge"),
    [
        ('Bearer error="in\x07valid"', Challenge()),
        ('Bearer error=""', Challenge(error="error")),
        ('Bearer error="' + "x" * 65 + '"', Challenge(error="error")),
        ('Bearer error="a\\"b"', Challenge(error="error")),
        ('Bearer scope="a\\"b"', Challenge()),
        ('Bearer scope="a\u00e9"', Challenge()),
        ('Bearer max_age="-1"', Challenge()),
        ('Bearer max_age="1e9"', Challenge()),
        ('Bearer max_age="\u0661"', Challenge()),
        ('Bearer max_age="' + "9" * 10 + '"', Challenge()),
        ('Bearer acr_values="a\u202eb"', Challenge()),
        (
            'Bearer error=x, error_description="' + "y" * 300 + '"',
            Challenge(error="x", error_description="y" * 200),
        ),
        (
            'Bearer error=x, error_description="<b>\u202e\u00a0&"',
            Challenge(error="x", error_description="<b>&"),
        ),
    ],
)
def test_values_that_are_none(field: str, challenge: Challenge) -> None:
    """What an API may not write is not handed on; its words are cut short."""
    assert read_challenges([field]) == challenge


def test_scopes() -> None:
    assert Challenge(scope=" a  b ").scopes == ("a", "b")
    assert Challenge().scopes == ()


@pytest.mark.parametrize(
    "field",
    [
        "Bearer " + "a " * 4000,
        "Bearer " + "a=" * 4000,
        'Bearer a="' + "\\" * 8000,
        "Bearer a" + " " * 8000,
        "Bearer " + 'a="' * 2600,
        "," * 8000,
    ],
)
def test_no_field_takes_long(field: str) -> None:
    """What takes a moment for one character takes no minute for 8,000."""
    started = time.process_time()
    read_challenges([field])
    assert time.process_time() - started < 1


pieces = st.sampled_from(
    ["Bearer", "Basic", "error", "scope", "=", '"', "\\", ",", " ", "\t", "==", "invalid_token"]
)


@fuzz
@given(st.lists(st.text(max_size=50) | st.lists(pieces).map("".join), max_size=4))
def test_any_field_is_read_or_not(fields: list[str]) -> None:
    """No text raises, and what comes out is bounded."""
    challenge = read_challenges(fields)
    if challenge is not None:
        assert len(challenge.error) <= 64
        assert len(challenge.error_description) <= 200
        assert challenge.error.isprintable()


# Origins


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://api.example", "https://api.example"),
        ("https://api.example/", "https://api.example"),
        ("https://api.example?x#y", "https://api.example"),
        ("https://api.example#y", "https://api.example"),
        ("HTTPS://API.Example:443/A?B=https://evil.example/@#\u00e9", "https://api.example"),
        ("https://api.example:8443/x", "https://api.example:8443"),
        ("https://api.example:00443/x", "https://api.example"),
        ("https://api.example:80", "https://api.example:80"),
        ("http://api.example:80/x", "http://api.example"),
        ("http://api.example:443", "http://api.example:443"),
        ("http://127.0.0.1:9000/api", "http://127.0.0.1:9000"),
        ("https://[::1]/x", "https://[::1]"),
        ("https://[2001:DB8:0:0::1]:8443", "https://[2001:db8::1]:8443"),
        ("https://xn--pi-8cd.example", "https://xn--pi-8cd.example"),
        ("https://api_1.example./x", "https://api_1.example."),
        ("https://api.example/\u00e9 \u3002", "https://api.example"),
        ("https://api.example//evil.example", "https://api.example"),
    ],
)
def test_M54_the_origin_of_a_url(url: str, origin: str) -> None:
    """Scheme, host, and the port where it is not the scheme's own, in one spelling."""
    assert origin_of(url) == origin
    assert origin_of(origin) == origin


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.example",
        "//api.example/",
        "/x",
        "https:",
        "https://",
        "https:///x",
        "https:api.example",
        "https:/api.example",
        "ftp://api.example",
        "wss://api.example",
        "file://api.example/etc/passwd",
        "javascript://api.example/%0aalert(1)",
        "http\u017f://api.example",
        " https://api.example",
        "\thttps://api.example",
        "https ://api.example",
        "https://user@api.example",
        "https://user:password@api.example",
        "https://api.example@evil.example",
        "https://api.example:443@evil.example",
        "https://@api.example",
        "https://api.example\\@evil.example",
        "https://evil.example\\.api.example",
        "https://evil.example\\/api.example",
        "https:\\\\api.example",
        "https://api.example/\\evil.example",
        "https://api.example\n.evil.example",
        "https://api.example\r\nX: y",
        "https://api.example/\r\nX-Evil: 1",
        "https://api.example/\0",
        "https://api.ex\tample/",
        "https://api.example\x7f",
        "https://api.example\x85.evil.example",
        "https://api example/",
        "https://api.example /",
        "https://api%2eexample/",
        "https://api.example%00.evil.example",
        "https://api.example%40evil.example",
        "https://\u0430pi.example",
        "https://api\u3002example",
        "https://api.example\uff0fevil.example",
        "https://api.example\u2044evil.example",
        "https://api.example\uff20evil.example",
        "https://api.example\uff1a443",
        "https://\u212aube.example",
        "https://api.example:",
        "https://api.example:/",
        "https://api.example:0",
        "https://api.example:65536",
        "https://api.example:123456",
        "https://api.example:-1",
        "https://api.example:+443",
        "https://api.example:4 43",
        "https://api.example:\u0664\u0664\u0663",
        "https://api.example:443:443",
        "https://api.example;evil.example",
        "https://api.example,evil.example",
        "https://*.example",
        "https://[::1",
        "https://::1]",
        "https://[::1]evil.example",
        "https://[::1%25eth0]",
        "https://[127.0.0.1]",
        "https://[v1.fe80]",
        "https://[:::]",
        None,
        1,
        b"https://api.example",
        ["https://api.example"],
    ],
)
def test_M54_what_two_parsers_may_read_in_two_ways_has_no_origin(url: Any) -> None:
    """When in doubt, nobody's: a token goes to no such place."""
    assert origin_of(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.evil.example",
        "https://evilapi.example",
        "https://api.example.",
        "https://api.example:444",
        "http://api.example",
        "https://evil.example/https://api.example",
        "https://evil.example?@api.example",
        "https://evil.example#@api.example",
        "https://xn--pi-8cd.example",
    ],
)
def test_M54_what_only_looks_like_it_is_another_origin(url: str) -> None:
    assert origin_of(url) not in (None, "https://api.example")


@fuzz
@given(awkward | st.text() | st.from_regex(r"https?://[^/]{0,30}(:\d{0,6})?/.{0,10}"))
def test_any_text_has_one_origin_or_none(url: Any) -> None:
    """Whatever has an origin is ASCII, and its origin's origin is itself."""
    origin = origin_of(url)
    if origin is not None:
        assert origin.isascii()
        assert origin == origin.lower() == origin_of(origin)


@fuzz
@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_every_address_has_one_spelling(address: IPv6Address, port: int) -> None:
    assert origin_of(f"https://[{address.exploded}]:{port}") == origin_of(
        f"https://[{address.compressed.upper()}]:{port}"
    )
