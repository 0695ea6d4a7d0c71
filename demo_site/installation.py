"""What one installation of the demo has of its own: addresses, secrets, a signing key, databases.

Both projects, the site and the provider, read it; nothing of it is in the repository. It lives in
the folder `.demo/` (or DEMO_DIR), is made on first use, and may be deleted to start afresh.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from oidc_rp.sealing import generate_key

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

CALENDAR = f"{ISSUER}/api/calendar/"
CONTACTS = f"{ISSUER}/api/contacts/"
ID_TOKEN_INSTEAD = f"{ISSUER}/api/id-token-instead/"

# SQLite for a server with several threads: readers go on while one writes, and a transaction
# that will write waits for its turn at its begin, where waiting is possible.
SQLITE_OPTIONS = {
    "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL",
    "transaction_mode": "IMMEDIATE",
    "timeout": 10,
}


def sqlite(name: str) -> dict[str, Any]:
    """Return the DATABASES of a project that keeps its data in this file of the folder."""
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / name}
    return {"default": {**database, "OPTIONS": SQLITE_OPTIONS}}


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
    token_key: str = field(default_factory=generate_key)
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
