"""Provider metadata (Discovery §3 and §4, RFC 8414)."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.protocol.metadata import (
    ProviderMetadata,
    discovery_url,
    is_loopback,
    read_provider_metadata,
    url_is_allowed,
)
from oidc_rp.testing import REMOVE, merged

from .examples import ISSUER, awkward, fuzz, no_other_error, refusal

GOOD: dict[str, Any] = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/auth?realm=a",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": f"{ISSUER}/jwks",
    "userinfo_endpoint": "https://api.op.example:8443/userinfo",
    "pushed_authorization_request_endpoint": f"{ISSUER}/par",
    "revocation_endpoint": f"{ISSUER}/revoke",
    "id_token_signing_alg_values_supported": ["RS256", "none"],
    "userinfo_signing_alg_values_supported": ["ES256"],
    "token_endpoint_auth_methods_supported": ["client_secret_post"],
    "ui_locales_supported": ["de", "zh-Hans"],
    "authorization_response_iss_parameter_supported": True,
    "require_pushed_authorization_requests": True,
    "something_new": {"a": 1},
}
ENDPOINTS = [
    "authorization_endpoint",
    "token_endpoint",
    "jwks_uri",
    "userinfo_endpoint",
    "pushed_authorization_request_endpoint",
    "revocation_endpoint",
]
LISTS = [name for name in GOOD if name.endswith("_supported") and "iss_parameter" not in name]
FLAGS = [
    "authorization_response_iss_parameter_supported",
    "require_pushed_authorization_requests",
]


def read(changes: dict[str, Any], issuer: str = ISSUER, **options: Any) -> ProviderMetadata:
    return read_provider_metadata(merged(GOOD, changes), issuer, **options)


def test_a_good_document() -> None:
    """Every member that we act on comes out as it was published."""
    metadata = read({})
    for name in GOOD.keys() - {"something_new"}:
        value = GOOD[name]
        assert getattr(metadata, name) == (tuple(value) if isinstance(value, list) else value)
    assert metadata.endpoints() == {name: GOOD[name] for name in ENDPOINTS}


def test_what_the_specification_says_of_absent_members() -> None:
    """Discovery §3 and RFC 8414 §2: the defaults of what is absent, or null."""
    for absent in (REMOVE, None):
        optional = GOOD.keys() - {"issuer", "authorization_endpoint", "token_endpoint"}
        metadata = read(dict.fromkeys(optional, absent))
        assert metadata.id_token_signing_alg_values_supported == ("RS256",)
        assert metadata.token_endpoint_auth_methods_supported == ("client_secret_basic",)
        assert metadata.userinfo_signing_alg_values_supported == ()
        assert metadata.ui_locales_supported == ()
        assert metadata.jwks_uri is metadata.userinfo_endpoint is None
        assert metadata.revocation_endpoint is None
        assert not metadata.authorization_response_iss_parameter_supported
        assert not metadata.require_pushed_authorization_requests
        assert metadata.endpoints().keys() == {"authorization_endpoint", "token_endpoint"}


@pytest.mark.parametrize(
    ("issuer", "url"),
    [
        ("https://op.example", "https://op.example/.well-known/openid-configuration"),
        ("https://op.example/", "https://op.example/.well-known/openid-configuration"),
        ("https://op.example/a/b", "https://op.example/a/b/.well-known/openid-configuration"),
        ("https://op.example/a/", "https://op.example/a/.well-known/openid-configuration"),
        ("https://op.example/a//", "https://op.example/a//.well-known/openid-configuration"),
    ],
)
def test_M23_the_discovery_url_is_the_issuer_less_one_slash(issuer: str, url: str) -> None:
    """One trailing slash is taken off for the URL (Discovery §4), and for nothing else."""
    assert discovery_url(issuer) == url


def test_M37_a_template_publishes_one_document() -> None:
    """The document of all tenants is found, and names the template as its issuer."""
    issuer = "https://login.op.example/{tenantid}/v2.0"
    assert discovery_url(issuer) == (
        "https://login.op.example/organizations/v2.0/.well-known/openid-configuration"
    )
    assert read({"issuer": issuer}, issuer).issuer == issuer


@pytest.mark.parametrize(
    "issuer",
    [
        REMOVE,
        None,
        "",
        ISSUER + "/",
        ISSUER.upper(),
        ISSUER + ":443",
        ISSUER + " ",
        "https://evil.example",
        "http://op.example",
        [ISSUER],
        {ISSUER: 1},
        True,
    ],
)
def test_M46_the_document_is_the_issuers_own(issuer: object) -> None:
    """`issuer` equals the configured one byte for byte (Discovery §4.3)."""
    with refusal("discovery.issuer"):
        read({"issuer": issuer})


def test_M46_a_trailing_slash_is_part_of_the_issuer() -> None:
    """Configured with a slash, published without: refused."""
    assert read({"issuer": ISSUER + "/"}, ISSUER + "/").issuer == ISSUER + "/"
    with refusal("discovery.issuer"):
        read({}, ISSUER + "/")


BAD_URLS: list[Any] = [
    "http://op.example/x",
    "http://127.0.0.1/x",
    "ftp://op.example/x",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "data:text/html,x",
    "//op.example/x",
    "/x",
    "op.example/x",
    "https:",
    "https://",
    "https:///x",
    "https://:443/x",
    "https://user@op.example/x",
    "https://user:password@op.example/x",
    "https://op.example@evil.example/x",
    "https://evil.example\\@op.example/x",
    "https://evil.example\\.op.example/x",
    "https://op.example/x#fragment",
    "https://op.example/x#",
    "https://op.example/x?a=b#",
    pytest.param("https://op.example/" + "x" * 2048, id="too long"),
    "https://op.example:port/x",
    "https://op.example:99999/x",
    "https://[::1/x",
    "https://op.example/a b",
    "https://op.example/a\r\nX-Evil: 1",
    "https://op.example/\t",
    "\nhttps://op.example/",
    " https://op.example/",
    "https://op.example/\0",
    "https://\u043ep.example/",
    "https://op.example/\u00e9",
    "",
    1,
    True,
    ["https://op.example/x"],
    {"url": "https://op.example/x"},
]


@pytest.mark.parametrize("name", ENDPOINTS)
@pytest.mark.parametrize("url", BAD_URLS)
def test_M46_endpoints_are_https(name: str, url: Any) -> None:
    """Any other scheme, user names, fragments, odd characters and hosts are refused."""
    with refusal(f"discovery.{name}"):
        read({name: url})


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint"])
def test_M46_the_two_endpoints_of_the_code_flow_are_required(name: str) -> None:
    """Without them there is no login."""
    for absent in (REMOVE, None):
        with refusal(f"discovery.{name}"):
            read({name: absent})


@pytest.mark.parametrize(
    ("url", "on", "off"),
    [
        ("https://op.example/x", True, True),
        ("https://127.0.0.1/x", True, True),
        ("HTTPS://OP.example/x?y=1", True, True),
        ("https://[2001:db8::1]:8443/x", True, True),
        ("http://127.0.0.1:9000/x", True, False),
        ("http://127.8.9.10/x", True, False),
        ("http://localhost:9000/x", True, False),
        ("http://[::1]:9000/x", True, False),
        ("http://op.example/x", False, False),
        ("http://0.0.0.0/x", False, False),
        ("http://10.0.0.1/x", False, False),
        ("http://169.254.169.254/latest", False, False),
        ("http://localhost.evil.example/x", False, False),
        ("http://127.0.0.1.evil.example/x", False, False),
        ("http://localhost@evil.example/x", False, False),
        ("http://2130706433/x", False, False),
        ("http://127.1/x", False, False),
    ],
)
def test_M45_loopback_http_is_a_switch_for_this_machine_only(url: str, on: bool, off: bool) -> None:
    """http goes to 127.0.0.0/8, ::1 and localhost, and only where that is switched on."""
    assert url_is_allowed(url, loopback_http=True) is on
    assert url_is_allowed(url, loopback_http=False) is off


def test_loopback_is_loopback() -> None:
    """Names that only look like this machine are not."""
    assert is_loopback("localhost")
    assert is_loopback("127.0.0.1")
    assert not is_loopback("localhost.localdomain")
    assert not is_loopback("")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    "value", ["RS256", 1, True, {"RS256": 1}, [1], ["RS256", None], [["RS256"]]]
)
def test_a_list_is_a_list_of_texts(name: str, value: Any) -> None:
    """A text is not taken for a list of its characters."""
    with refusal(f"discovery.{name}"):
        read({name: value})


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["true", "false", 1, 0, [], {}])
def test_a_flag_is_a_boolean(name: str, value: Any) -> None:
    """ "false" is not true, and 1 is no boolean: a check hangs on it."""
    with refusal(f"discovery.{name}"):
        read({name: value})


def test_oidcc_client_test_discovery_openid_config() -> None:
    """The document comes as text, and members that we do not know are ignored."""
    assert read(json.loads(json.dumps(GOOD))) == read({})


def test_oidcc_client_test_discovery_issuer_mismatch() -> None:
    with refusal("discovery.issuer"):
        read({"issuer": ISSUER + "/INVALID"})


@fuzz
@given(st.dictionaries(st.sampled_from(list(GOOD)), awkward), st.booleans())
def test_any_document_is_read_or_refused(changes: dict[str, Any], loopback_http: bool) -> None:
    """No document makes anything but this issuer's metadata or a refusal."""
    with no_other_error():
        metadata = read(changes, loopback_http=loopback_http)
        assert metadata.issuer == ISSUER
        assert all(url.startswith("https://") for url in metadata.endpoints().values())


@fuzz
@given(st.text() | st.from_regex(r"https?://[^/]{0,20}(:\d{0,6})?/.{0,10}"))
def test_any_url_is_allowed_or_not(url: str) -> None:
    """No text makes anything but yes or no; http is never yes without the switch."""
    assert url_is_allowed(url, loopback_http=False) in (False, url.lower().startswith("https:"))
