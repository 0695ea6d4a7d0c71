"""JSON from strangers, read once and strictly (RFC 8259; RFC 7515 §4; RFC 7519 §4)."""

import json
from collections.abc import Iterable
from typing import Any, NoReturn

from ..errors import InvalidResponse

MAX_DEPTH = 30
"""Levels of objects and arrays; what is deeper, databases and templates choke on."""


def json_object(text: bytes | str, code: str) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Refused, each as InvalidResponse with `code`: anything but an object, duplicate members,
    NaN and infinities (1e999 too), text that is not UTF-8, strings with U+0000 or lone
    surrogates (no database keeps them), more than 30 levels, numbers beyond what Python reads.
    """
    try:
        text = (text if isinstance(text, bytes) else text.encode("utf-8")).decode("utf-8")
        value, end = _DECODER.raw_decode(text := text.strip(_WHITESPACE))
        if end != len(text):
            raise ValueError("something follows")
        if text.count("{") + text.count("[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise ValueError("too deep")
        if "\\u" in text:
            _check_characters(value)
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(code, "not strict JSON") from error
    if not isinstance(value, dict):
        raise InvalidResponse(code, "not a JSON object", received=type(value).__name__)
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:  # an infinity
        raise ValueError("not finite")
    return number


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [child for item in level for child in _children(item)]
    return depth - 1


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_characters(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    text.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    if "\\u0000" in text.replace(r"\\", ""):  # an escaped backslash begins no escape
        raise ValueError("U+0000")


_WHITESPACE = " \t\n\r"
_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_float=_finite, parse_constant=_constant
)
