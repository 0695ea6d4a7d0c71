"""Tokens at rest: AES-256-GCM under a key of each record's own (M51, M52).

An envelope is `v1.<key id>.<base64url of salt, nonce, ciphertext and tag>`. The key id names the
key of the ring; HKDF-SHA256 (RFC 5869) makes of it and the salt the key that seals this record
alone, so that no nonce budget is ever in play. What is sealed is bound to its place by Context.
"""

import hmac
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import conf
from .errors import ConfigurationError, SealError

VERSION = "v1"

_KEY_OCTETS = 32
_SALT_OCTETS = 16
_NONCE_OCTETS = 12
_TAG_OCTETS = 16
_KEY = re.compile(r"[A-Za-z0-9_-]{43}=?", re.ASCII)
_ENVELOPE = re.compile(VERSION + r"\.([0-9a-f]{16})\.([A-Za-z0-9_-]+)", re.ASCII)

_URL_SAFE, _STANDARD = bytes.maketrans(b"+/", b"-_"), bytes.maketrans(b"-_", b"+/")


class Context(NamedTuple):
    """Where a sealed token stands and whose it is; elsewhere it does not open."""

    table: str
    column: str
    row: str
    iss: str
    sub: str
    generation: int


class KeyRing:
    """The keys of TOKEN_KEYS: the first seals, all open."""

    __slots__ = ("_keys",)

    def __init__(self, keys: Sequence[str]) -> None:
        """keys: as generate_key() makes them, newest first.

        Raises ConfigurationError "configuration.token_keys" when one of them is no key.
        """
        wrong = [number for number, key in enumerate(keys) if not is_key(key)]
        self._keys = {} if wrong else {key.id: key for key in map(_Key, keys)}
        del keys  # a traceback may be shown with its variables
        if wrong:
            message = f"OIDC_RP['TOKEN_KEYS'][{wrong[0]}] is no key"
            raise ConfigurationError("configuration.token_keys", message)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, newest first; an id tells nothing about its key."""
        return tuple(self._keys)

    def seal(self, plain: str, context: Context) -> str:
        """Return the envelope of `plain`: printable ASCII, another one each time.

        Raises SealError "seal.no_key" when the ring is empty: nothing is ever stored plain.
        """
        key = next(iter(self._keys.values()), None)
        if key is None:
            del plain  # a traceback may be shown with its variables
            raise SealError("seal.no_key", "OIDC_RP['TOKEN_KEYS'] is empty")
        random = os.urandom(_SALT_OCTETS + _NONCE_OCTETS)
        salt, nonce = random[:_SALT_OCTETS], random[_SALT_OCTETS:]
        octets = plain.encode("utf-8", "surrogatepass")
        ciphertext = key.cipher(salt).encrypt(nonce, octets, _associated_data(key.id, context))
        return f"{VERSION}.{key.id}.{_encode(random + ciphertext)}"

    def open(self, envelope: str, context: Context) -> str:
        """Return what was sealed for this very context.

        Raises SealError "seal.key_unknown" (received: the key id) when its key is not in the ring,
        "seal.broken" for whatever else is wrong: plain text is never passed through.
        """
        key_id, sealed = _take_apart(envelope)
        key = self._keys.get(key_id)
        if key is None:
            raise SealError("seal.key_unknown", "not a key of TOKEN_KEYS", received=key_id)
        salt, nonce = sealed[:_SALT_OCTETS], sealed[_SALT_OCTETS:][:_NONCE_OCTETS]
        ciphertext = sealed[_SALT_OCTETS + _NONCE_OCTETS :]
        try:
            octets = key.cipher(salt).decrypt(nonce, ciphertext, _associated_data(key_id, context))
        except InvalidTag as error:
            raise SealError("seal.broken", "not what was sealed in this place") from error
        return octets.decode("utf-8", "surrogatepass")

    def __repr__(self) -> str:
        return f"<KeyRing: {', '.join(self._keys) or 'empty'}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("KeyRing is not serialised")


def key_ring() -> KeyRing:
    """The ring of TOKEN_KEYS; made once, and again when the setting has changed."""
    return _key_ring(conf.token_keys())


# Found by the keys themselves, so it is never out of date. No function of ours is between, whose
# frame would show them in the traceback of a wrong one.
_key_ring = lru_cache(maxsize=4)(KeyRing)


def generate_key() -> str:
    """A new key for TOKEN_KEYS: 32 random octets in URL-safe base64."""
    return urlsafe_b64encode(os.urandom(_KEY_OCTETS)).decode()


def is_key(text: object) -> bool:
    """Whether this is 32 octets in URL-safe base64, with or without padding."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def key_id(envelope: str) -> str:
    """The id of the key that sealed this; SealError "seal.broken" when it is no envelope."""
    return _take_apart(envelope)[0]


class _Key:
    """One key of the ring, ready to make record keys. Shows its id only."""

    __slots__ = ("_expand", "id")

    def __init__(self, text: str) -> None:
        octets = urlsafe_b64decode(text[:43] + "=")
        self._expand = hkdf_expand(hkdf_extract(b"oidc_rp TOKEN_KEYS", octets))
        self.id = self._expand(b"oidc_rp key id")[:8].hex()

    def cipher(self, salt: bytes) -> AESGCM:
        """AES-256-GCM under the key of the record that has this salt."""
        return AESGCM(self._expand(b"oidc_rp record " + salt))

    def __repr__(self) -> str:
        return f"<Key {self.id}: redacted>"


def hkdf_extract(salt: bytes, input_keying_material: bytes) -> bytes:
    """HKDF-Extract with SHA-256 (RFC 5869 §2.2)."""
    return hmac.digest(salt, input_keying_material, "sha256")


def hkdf_expand(pseudorandom_key: bytes) -> Callable[[bytes], bytes]:
    """HKDF-Expand with SHA-256 under this key: `info` -> 32 octets, T(1) of RFC 5869 §2.3.

    An HMAC that is keyed once and copied for each record takes 2.0 µs; hmac.digest takes 3.5, and
    HKDFExpand of `cryptography` 5.9.
    """
    keyed = hmac.new(pseudorandom_key, digestmod="sha256")

    def expand(info: bytes) -> bytes:
        state = keyed.copy()
        state.update(info + b"\x01")
        return state.digest()

    return expand


def _associated_data(key_id: str, context: Context) -> bytes:
    """All that an envelope is bound to; each text behind its length, so that none runs over."""
    table, column, row, iss, sub, generation = context
    return (
        f"{VERSION} {key_id} {len(table)}:{table}{len(column)}:{column}{len(row)}:{row}"
        f"{len(iss)}:{iss}{len(sub)}:{sub}{generation}"
    ).encode("utf-8", "surrogatepass")


def _take_apart(envelope: str) -> tuple[str, bytes]:
    """The key id, and salt, nonce, ciphertext and tag; only of the one spelling that we write."""
    found = _ENVELOPE.fullmatch(envelope)
    if found is None:
        raise SealError("seal.broken", "not an envelope")
    key_id, encoded = found.groups()
    sealed = _decode(encoded)
    if len(sealed) < _SALT_OCTETS + _NONCE_OCTETS + _TAG_OCTETS:
        raise SealError("seal.broken", "an envelope cut short")
    return key_id, sealed


def _encode(octets: bytes) -> str:
    return b2a_base64(octets, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


def _decode(encoded: str) -> bytes:
    """base64url without padding (RFC 7515 §2); b"" for a spelling that encoding does not give."""
    if len(encoded) % 4 == 1:
        return b""
    octets = a2b_base64(encoded.encode().translate(_STANDARD) + b"==")
    return octets if _encode(octets) == encoded else b""
