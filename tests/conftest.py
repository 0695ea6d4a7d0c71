"""One OP for each test that asks for it, and a site that knows it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from pytest_django import Settings

from oidc_rp.testing import OpenIDProvider, SigningKey
from oidc_rp.testing.browser import Browser


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate("RS256")


@pytest.fixture
def op(signing_key: SigningKey) -> Iterator[OpenIDProvider]:
    """An OP over real HTTP; a test may bend it as it likes."""
    with OpenIDProvider(keys=[signing_key]) as provider:
        yield provider


Configure = Callable[..., None]


@pytest.fixture
def configure(op: OpenIDProvider, settings: Settings) -> Configure:
    """Set OIDC_RP to one provider, "op": what every site needs, and the options given."""
    cache.clear()

    def set_options(**options: Any) -> None:
        provider = {
            "ISSUER": op.issuer,
            "CLIENT_ID": op.client_id,
            "CLIENT_SECRET": op.client_secret,
            "ALLOW_LOOPBACK_HTTP": True,
        }
        settings.OIDC_RP = {"PROVIDERS": {"op": provider | options}}

    set_options()
    return set_options


@pytest.fixture
def browser(configure: Configure, db: None) -> Browser:
    return Browser()
