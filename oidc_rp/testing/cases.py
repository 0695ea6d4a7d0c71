"""For Django's own test classes: an OP for each test, and somebody who can sign in there."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from django.test import SimpleTestCase

from .client import sign_in
from .installation import installed
from .provider import OpenIDProvider
from .signing import SigningKey

Case: Any = SimpleTestCase if TYPE_CHECKING else object


class ProviderMixin(Case):  # type: ignore[misc]
    """Stand before TestCase, TransactionTestCase or a live-server class among the bases.

    oidc_provider: an OP of the test's own, which the project's providers are at until it ends.
    oidc_slugs: those that are; None for all.
    """

    oidc_slugs: list[str] | None = None
    oidc_provider: OpenIDProvider
    _oidc_key: SigningKey

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        cls._oidc_key = SigningKey.generate("RS256")

    def setUp(self) -> None:
        super().setUp()
        with ExitStack() as stack:
            self.oidc_provider = stack.enter_context(OpenIDProvider(keys=[self._oidc_key]))
            stack.enter_context(installed(self.oidc_provider, self.oidc_slugs))
            self.addCleanup(stack.pop_all().close)

    def oidc_sign_in(self, sub: str | None = None, **options: Any) -> Any:
        """Sign a person in with self.client and return the user: sign_in(self.client, ...)."""
        return sign_in(self.client, sub, **options)
