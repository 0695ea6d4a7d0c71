"""What one installation of the demo has of its own: addresses, secrets, a signing key, databases.

Both projects, the site and the provider, read it; nothing of it is in the repository. It lives in
the folder `.demo/` (or DEMO_DIR), is made on first use, and may be deleted to start afresh.
"""

import json
import os
from base64 import urlsafe_b64encode
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_bytes, token_urlsafe

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

BASE_DIR = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("DEMO_DIR") or BASE_DIR / ".demo").resolve()

SITE_PORT = int(os.environ.get("DEMO_PORT", "8000"))
PROVIDER_PORT = int(os.environ.get("DEMO_OP_PORT", "9000"))
HTTPS = os.environ.get("DEMO_HTTPS") == "1"  # both behind a proxy that speaks TLS
SCHEME = "https" if HTTPS else "http"
ISSUER = f"{SCHEME}://127.0.0.1:{PROVIDER_PORT}"
SITE_ORIGINS = [f"{SCHEME}://{host}:{SITE_PORT}" for host in ("127.0.0.1", "localhost")]

USERNAME = "ines"
RS256_CLIENT_ID = "demo-site-rs256"
HS256_CLIENT_ID = "demo-site-hs256"


def _token_key() -> str:
    return urlsafe_b64encode(token_bytes(32)).decode()


def _signing_key() -> str:
    """Return a new RSA key in PEM; the provider signs RS256 ID Tokens with it."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


@dataclass(frozen=True, repr=False)
class Secrets:
    """The secrets of one installation; never printed, apart from the demo user's password."""

    site_secret_key: str = field(default_factory=lambda: token_urlsafe(64))
    provider_secret_key: str = field(default_factory=lambda: token_urlsafe(64))
    rs256_client_secret: str = field(default_factory=lambda: token_urlsafe(48))
    hs256_client_secret: str = field(default_factory=lambda: token_urlsafe(48))
    token_key: str = field(default_factory=_token_key)
    password: str = field(default_factory=lambda: token_urlsafe(9))
    signing_key: str = field(default_factory=_signing_key)


def load_secrets() -> Secrets:
    """Return this installation's secrets, made and kept in `secrets.json` the first time."""
    path = FOLDER / "secrets.json"
    if not path.exists():
        FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(Secrets()), file, indent=2)
    return Secrets(**json.loads(path.read_text(encoding="utf-8")))
