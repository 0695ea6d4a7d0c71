"""Fixtures for pytest: an OP for each test that asks for it, and a client that can sign in there.

Found by pytest wherever oidc_rp is installed. With plug-ins by entry points switched off:
`pytest_plugins = ["oidc_rp.testing.pytest_plugin"]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from oidc_rp.testing import OIDCClient, OpenIDProvider, SigningKey, settings_for
from oidc_rp.testing.installation import serving


@pytest.fixture(scope="session")
def oidc_signing_key() -> SigningKey:
    """The key that all OPs of the run sign with at first: a new one takes a moment to make."""
    return SigningKey.generate("RS256")


@pytest.fixture
def oidc_provider(oidc_signing_key: SigningKey, settings: Any) -> Iterator[OpenIDProvider]:
    """An OP of the test's own, which the project's providers are at until it ends."""
    with OpenIDProvider(keys=[oidc_signing_key]) as op:
        # By pytest-django's fixture: what a test changes by it is undone in one order with this.
        settings.OIDC_RP = settings_for(op)
        with serving(op):
            yield op


@pytest.fixture
def oidc_client(oidc_provider: OpenIDProvider, db: None) -> OIDCClient:
    """Django's test client, with sign_in(sub=..., claims=...)."""
    return OIDCClient()
