"""JSON from strangers is read once and strictly."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oidc_rp.errors import InvalidResponse
from oidc_rp.protocol.strict_json import json_object

from .examples import awkward, fuzz, no_other_error, refusal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"{}", {}),
        (b' \t\r\n{"a": [1, 2.5, true, null, "b"]}\n', {"a": [1, 2.5, True, None, "b"]}),
        ('{"name": "Ren\u00e9e"}'.encode(), {"name": "Ren\u00e9e"}),
        (rb'{"name": "Ren\u00e9e \ud83d\ude00"}', {"name": "Ren\u00e9e \U0001f600"}),
        ('{"text": "as text"}', {"text": "as text"}),
        (rb'{"path": "c:\\u0000"}', {"path": r"c:\u0000"}),  # an escaped backslash, then "u0000"
        (b'{"a": {"a": 1}}', {"a": {"a": 1}}),  # a duplicate only within one object
    ],
)
def test_an_object_is_read(text: bytes | str, value: dict[str, Any]) -> None:
    """What is JSON, and an object, comes out as it went in."""
    assert json_object(text, "code") == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"{} {}",
        b"{}x",
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": 01}',
        b'{"a": +1}',
        b'{"a": "tab\there"}',
        b'{"a": "zero\x00here"}',
        b"\xef\xbb\xbf{}",  # a byte order mark (RFC 8259 §8.1)
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',  # a surrogate in UTF-8
        rb'{"a": "\ud800"}',
        rb'{"\udc00": 1}',
        '{"a": "\ud800"}',
        rb'{"a": "\u0000"}',
        rb'{"a": "\\\u0000"}',
        rb'{"\u0000": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes | str) -> None:
    """What is no JSON object, or what no database keeps, is refused with the caller's code."""
    with refusal("code"):
        json_object(text, "code")


def nested(levels: int) -> str:
    """An object with so many levels, itself the first."""
    return '{"a": ' + "[" * (levels - 1) + "1" + "]" * (levels - 1) + "}"


@pytest.mark.parametrize("levels", [1, 29, 30])
def test_thirty_levels_are_read(levels: int) -> None:
    """As deep as that, and as wide as it likes."""
    assert json_object(nested(levels), "code")
    assert json_object(f'{{"wide": [{", ".join([nested(5)] * 100)}]}}', "code")
    assert json_object(json.dumps({"text": "[" * 100 + "{" * 100}), "code")


@pytest.mark.parametrize("text", [nested(31), nested(400), '{"a": ' * 31 + "1" + "}" * 31])
def test_more_than_thirty_levels_are_refused(text: str) -> None:
    """What is deeper, databases and templates choke on."""
    with refusal("code"):
        json_object(text, "code")


@pytest.mark.parametrize(
    "text",
    [
        b'{"iss": "https://op.example", "iss": "https://other.example"}',
        b'{"a": 1, "a": 1}',
        rb'{"iss": 1, "\u0069ss": 2}',
        b'{"deep": [{"a": {"b": 1, "b": 2}}]}',
    ],
)
def test_M17_duplicate_members_are_refused(text: bytes) -> None:
    """Two members of one name, however they are spelled, are refused (RFC 7515 §4)."""
    with refusal("code"):
        json_object(text, "code")


def test_the_refusal_does_not_repeat_what_came() -> None:
    """What cannot be read may hold a secret: no message shows it."""
    with pytest.raises(InvalidResponse) as caught:
        json_object(b'{"access_token": "s3cr3t", ', "token.json")
    assert "s3cr3t" not in f"{caught.value} {caught.value.__cause__}"


@fuzz
@given(st.dictionaries(st.text(), awkward, max_size=4))
def test_any_object_is_read_or_refused(value: dict[str, Any]) -> None:
    """An object is read as it was written, or refused; nothing else is raised."""
    with no_other_error():
        assert json_object(json.dumps(value), "code") == value


@fuzz
@given(st.binary() | st.text() | st.from_regex(r"\{.*\}"))
def test_any_text_is_read_or_refused(text: bytes | str) -> None:
    """Whatever the octets are, they are an object or refused."""
    with no_other_error():
        assert isinstance(json_object(text, "code"), dict)
