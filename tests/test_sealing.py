"""Sealed tokens: what opens, and all that does not (M51, M52)."""

import copy
import pickle
import re
import traceback
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from oidc_rp.errors import ConfigurationError, SealError
from oidc_rp.sealing import (
    Context,
    KeyRing,
    generate_key,
    hkdf_expand,
    hkdf_extract,
    is_key,
    key_id,
    key_ring,
)

OLD, NEW, OTHER = "A" * 43, "B" * 42 + "A=", "C" * 42 + "A"
HERE = Context("oidc_rp_grant", "refresh_token", "0" * 32, "https://op.example", "248289761001", 7)
TOKEN = "the-refresh-token"
RING = KeyRing([OLD])
ENVELOPE = RING.seal(TOKEN, HERE)


def refusal(ring: KeyRing, envelope: str, context: Context = HERE) -> str:
    with pytest.raises(SealError) as caught:
        ring.open(envelope, context)
    assert TOKEN not in repr(vars(caught.value))
    return caught.value.code


@given(st.text(), st.tuples(*[st.text()] * 5, st.integers()))
def test_what_was_sealed_opens_in_its_place(plain: str, place: Any) -> None:
    """Whatever the text and the place are."""
    context = Context(*place)
    assert RING.open(RING.seal(plain, context), context) == plain


def test_an_envelope_is_printable_ascii_and_never_twice_the_same() -> None:
    """Version, key id, and base64url of salt, nonce, ciphertext and tag."""
    assert re.fullmatch(r"v1\.[0-9a-f]{16}\.[A-Za-z0-9_-]+", ENVELOPE)
    assert len(ENVELOPE) == len("v1..") + 16 + -(-(16 + 12 + len(TOKEN) + 16) * 4 // 3)
    assert len({RING.seal(TOKEN, HERE) for _ in range(100)}) == 100


def test_M51_another_implementation_opens_an_envelope() -> None:
    """AES-256-GCM, a key of the record's own by HKDF-SHA256, and the place as associated data."""
    version, kid, encoded = ENVELOPE.split(".")
    sealed = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))

    def derived(info: bytes, length: int) -> bytes:
        return HKDF(SHA256(), length, b"oidc_rp TOKEN_KEYS", info).derive(bytes(32))

    assert derived(b"oidc_rp key id", 8).hex() == kid
    texts = "".join(f"{len(text)}:{text}" for text in HERE[:-1])
    place = f"{version} {kid} {texts}{HERE.generation}"
    opened = AESGCM(derived(b"oidc_rp record " + sealed[:16], 32)).decrypt(
        sealed[16:28], sealed[28:], place.encode()
    )
    assert opened == TOKEN.encode()


ELSEWHERE: list[tuple[str, dict[str, Any]]] = [
    ("another table", {"table": "oidc_rp_pendingrevocation"}),
    ("another column", {"column": "access_token"}),
    ("another row", {"row": "1" * 32}),
    ("another issuer", {"iss": "https://op.example/"}),
    ("another user", {"sub": "248289761002"}),
    ("an older generation", {"generation": 6}),
    (
        "characters moved from issuer to subject",
        {"iss": "https://op.exampl", "sub": "e248289761001"},
    ),
    ("a quote that would end the subject", {"sub": '248289761001", 7', "generation": 0}),
]


@pytest.mark.parametrize("place", [place for _, place in ELSEWHERE], ids=[n for n, _ in ELSEWHERE])
def test_M51_an_envelope_that_was_moved_does_not_open(place: dict[str, Any]) -> None:
    """It is bound to table, column, row, issuer, subject and generation."""
    assert refusal(RING, ENVELOPE, HERE._replace(**place)) == "seal.broken"


@given(
    st.tuples(*[st.text(max_size=3)] * 5, st.integers()),
    st.tuples(*[st.text(max_size=3)] * 5, st.integers()),
)
def test_M51_two_places_are_never_taken_for_one(one: Any, other: Any) -> None:
    """The associated data of two places that differ differ."""
    envelope = RING.seal(TOKEN, Context(*one))
    if one != other:
        assert refusal(RING, envelope, Context(*other)) == "seal.broken"


@pytest.mark.parametrize("position", range(len(ENVELOPE)))
def test_M51_no_flipped_bit_opens(position: int) -> None:
    """A flipped bit is a typed error, in whichever character of the envelope."""
    for bit in range(8):
        flipped = chr(ord(ENVELOPE[position]) ^ 1 << bit)
        code = refusal(RING, ENVELOPE[:position] + flipped + ENVELOPE[position + 1 :])
        in_key_id = 3 <= position < 19 and flipped in "0123456789abcdef"
        assert code == ("seal.key_unknown" if in_key_id else "seal.broken")


@given(st.binary(min_size=1, max_size=80), st.integers(min_value=0, max_value=79))
def test_M51_no_octets_but_those_sealed_open(mask: bytes, at: int) -> None:
    """The same for any change to salt, nonce, ciphertext and tag."""
    head, _, encoded = ENVELOPE.rpartition(".")
    sealed = urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    mask = (bytes(at % len(sealed)) + mask)[: len(sealed)].ljust(len(sealed), b"\0")
    changed = bytes(a ^ b for a, b in zip(sealed, mask, strict=True))
    envelope = f"{head}.{urlsafe_b64encode(changed).rstrip(b'=').decode()}"
    if any(mask):
        assert refusal(RING, envelope) == "seal.broken"
    else:
        assert RING.open(envelope, HERE) == TOKEN


HOSTILE: list[tuple[str, Callable[[str], str]]] = [
    ("plain text", lambda _: TOKEN),
    ("empty", lambda _: ""),
    ("a JWT", lambda _: "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln"),
    ("plain text behind our prefix", lambda envelope: envelope[:20] + TOKEN),
    ("prefix only", lambda envelope: envelope[:20]),
    ("cut short", lambda envelope: envelope[:-1]),
    ("cut to less than salt, nonce and tag", lambda envelope: envelope[:40]),
    ("one group longer", lambda envelope: envelope + "AAAA"),
    ("padded", lambda envelope: envelope + "=" * (-len(envelope.rpartition(".")[2]) % 4)),
    ("a line feed at the end", lambda envelope: envelope + "\n"),
    ("blanks around", lambda envelope: f" {envelope} "),
    ("another version", lambda envelope: "v2" + envelope[2:]),
    ("no version", lambda envelope: envelope[3:]),
    ("a key id in capitals", lambda envelope: envelope[:3] + "ABCDEF0123456789" + envelope[19:]),
    ("a key id cut short", lambda envelope: envelope[:18] + envelope[19:]),
    ("digits of another script", lambda envelope: envelope[:3] + "٣" * 16 + envelope[19:]),
    ("letters of another script", lambda envelope: envelope[:-1] + "\u0410"),
    ("the standard alphabet", lambda envelope: envelope[:-1] + "+"),
    ("a NUL", lambda envelope: envelope.replace(".", "\0")),
    ("a lone surrogate", lambda envelope: envelope + "\ud800"),
    ("twice", lambda envelope: envelope * 2),
]


@pytest.mark.parametrize(
    "spoil", [spoil for _, spoil in HOSTILE], ids=[name for name, _ in HOSTILE]
)
def test_M51_what_is_no_envelope_of_ours_does_not_open(spoil: Callable[[str], str]) -> None:
    """Nothing is passed through, plain text least of all."""
    assert refusal(RING, spoil(ENVELOPE)) == "seal.broken"


@given(st.text())
def test_M51_no_text_opens_by_chance(text: str) -> None:
    """Any text at all is a typed error."""
    assert refusal(RING, text) == "seal.broken"
    assert refusal(RING, ENVELOPE[:20] + text) == "seal.broken"


@pytest.mark.parametrize("length", [44, 45, 46])
def test_M51_an_envelope_has_one_spelling(length: int) -> None:
    """The bits that base64 leaves over in its last character are zero."""
    plain = "x" * (length - 44)
    envelope = RING.seal(plain, HERE)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spellings = [envelope[:-1] + last for last in alphabet]
    assert [spelling for spelling in spellings if opens(spelling)] == [envelope]


def opens(envelope: str) -> bool:
    try:
        RING.open(envelope, HERE)
    except SealError:
        return False
    return True


def test_M51_another_key_under_the_same_id_does_not_open() -> None:
    """The key id is told by the envelope, and proves nothing."""
    other = KeyRing([OTHER])
    renamed = f"v1.{other.key_ids[0]}.{ENVELOPE[20:]}"
    assert refusal(other, renamed) == "seal.broken"


def test_M51_an_unknown_key_is_named() -> None:
    """Who lost a key learns which one."""
    with pytest.raises(SealError) as caught:
        KeyRing([NEW, OTHER]).open(ENVELOPE, HERE)
    assert caught.value.code == "seal.key_unknown"
    assert caught.value.received == key_id(ENVELOPE) == RING.key_ids[0]


def test_M52_the_first_key_seals_and_all_open() -> None:
    """A new key goes to the front; what the old one sealed opens as before."""
    ring = KeyRing([NEW, OLD])
    assert ring.key_ids == (*KeyRing([NEW]).key_ids, *RING.key_ids)
    assert ring.open(ENVELOPE, HERE) == TOKEN
    assert key_id(ring.seal(TOKEN, HERE)) == ring.key_ids[0]
    assert KeyRing([OLD, NEW]).open(ring.seal(TOKEN, HERE), HERE) == TOKEN


def test_M52_an_empty_ring_seals_nothing() -> None:
    """No key is an error, never plain text; the token is not in the traceback's variables."""
    with pytest.raises(SealError) as caught:
        KeyRing([]).seal(TOKEN, HERE)
    assert caught.value.code == "seal.no_key"
    assert "plain" not in caught.tb.tb_next.tb_frame.f_locals  # type: ignore[union-attr]
    assert refusal(KeyRing([]), ENVELOPE) == "seal.key_unknown"


@pytest.mark.parametrize("text", ["", TOKEN, "v1..", ENVELOPE[:-1] + "!"])
def test_what_is_no_envelope_names_no_key(text: str) -> None:
    """key_id() reads envelopes, and only those."""
    with pytest.raises(SealError) as caught:
        key_id(text)
    assert caught.value.code == "seal.broken"


# RFC 5869, Appendix A.1 to A.3 (SHA-256): salt, IKM, info, PRK, the first 32 octets of OKM
VECTORS = [
    (
        "000102030405060708090a0b0c",
        "0b" * 22,
        "f0f1f2f3f4f5f6f7f8f9",
        "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf",
    ),
    (
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0x50)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c",
    ),
    (
        "",
        "0b" * 22,
        "",
        "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d",
    ),
]


@pytest.mark.parametrize("vector", VECTORS, ids=["A.1", "A.2", "A.3"])
def test_hkdf_is_that_of_rfc_5869(vector: tuple[str, ...]) -> None:
    """The published vectors as they stand; one block is all that a key takes."""
    salt, ikm, info, prk, okm = map(bytes.fromhex, vector)
    assert hkdf_extract(salt, ikm) == prk
    assert hkdf_expand(prk)(info) == okm


# Keys


def test_M52_a_generated_key_is_32_octets_and_new() -> None:
    """As TOKEN_KEYS wants it."""
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(urlsafe_b64decode(key)) for key in keys} == {32}
    assert all(map(is_key, keys))


NO_KEYS = ["", "A" * 42, "A" * 44, "A" * 43 + "==", "!" * 43, " " + OLD, OLD + "\n", "é" * 43]


@pytest.mark.parametrize("wrong", [*NO_KEYS, b"A" * 43, None])
def test_M52_a_wrong_key_is_a_configuration_error(wrong: Any) -> None:
    """It is named by its place; no key is in the error or in the traceback's variables."""
    assert not is_key(wrong)
    with pytest.raises(ConfigurationError) as caught:
        KeyRing([OLD, wrong])
    assert caught.value.code == "configuration.token_keys"
    assert "TOKEN_KEYS'][1]" in caught.value.message
    assert "keys" not in caught.tb.tb_next.tb_frame.f_locals  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", ["no key", 5, None, [OLD], {"key": OLD}])
def test_M53_no_frame_of_a_traceback_holds_a_key(settings: Settings, wrong: Any) -> None:
    """When one key is wrong, the error reports that are sent show none of the others."""
    settings.OIDC_RP = {"TOKEN_KEYS": [NEW, OLD, wrong, OTHER]}
    with pytest.raises(ConfigurationError) as caught:
        key_ring()
    assert "TOKEN_KEYS'][2]" in caught.value.message
    frames = [frame for frame, _ in traceback.walk_tb(caught.tb)][1:]  # without this function's
    assert frames
    shown = repr([frame.f_locals for frame in frames])
    assert not any(key in shown for key in (NEW, OLD, OTHER))


def test_padding_is_optional() -> None:
    """With it or without, it is the same key."""
    assert KeyRing([OLD + "="]).key_ids == KeyRing([OLD]).key_ids
    assert len(KeyRing([OLD, OLD + "="]).key_ids) == 1


def test_M53_a_ring_shows_key_ids_only() -> None:
    """Not in repr, and not in a pickle or a copy, which would reach caches and logs."""
    assert repr(RING) == str(RING) == f"<KeyRing: {RING.key_ids[0]}>"
    assert repr(KeyRing([])) == "<KeyRing: empty>"
    assert repr(next(iter(RING._keys.values()))) == f"<Key {RING.key_ids[0]}: redacted>"
    for serialise in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            serialise(RING)


def test_a_key_id_tells_nothing_about_its_key() -> None:
    """It is derived like a record's key, not a hash that could be tried against a weak key."""
    assert RING.key_ids == (
        HKDF(SHA256(), 8, b"oidc_rp TOKEN_KEYS", b"oidc_rp key id").derive(bytes(32)).hex(),
    )


def test_the_ring_follows_the_settings(settings: Settings) -> None:
    """It is made once, and again when TOKEN_KEYS has changed."""
    settings.OIDC_RP = {"TOKEN_KEYS": [NEW, OLD]}
    assert key_ring().key_ids == KeyRing([NEW, OLD]).key_ids
    assert key_ring() is key_ring()
    settings.OIDC_RP = {"TOKEN_KEYS": [OTHER]}
    assert key_ring().key_ids == KeyRing([OTHER]).key_ids
    settings.OIDC_RP = {}
    assert key_ring().key_ids == ()
