"""One OP for each test that asks for it, and a site that knows it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import cache
from pytest_django import Settings

from oidc_rp.testing import Browser, OpenIDProvider, SigningKey, provider_options

pytest_plugins = ["oidc_rp.testing.pytest_plugin"]


@pytest.fixture(scope="session")
def signing_key(oidc_signing_key: SigningKey) -> SigningKey:
    return oidc_signing_key


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
        settings.OIDC_RP = {"PROVIDERS": {"op": provider_options(op) | options}}

    set_options()
    return set_options


@pytest.fixture
def browser(configure: Configure, db: None) -> Browser:
    return Browser()
