"""All of it in its order: the site, then each provider."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from .. import conf
from ..errors import ConfigurationError
from .findings import ERROR, Finding, wrong
from .op import op_findings
from .redirects import redirect_findings
from .site import check_findings, kept_token_findings, site_findings


def slugs() -> list[str]:
    """Every provider that the settings name; of those that a callable names, the usable ones."""
    providers = conf.given().get("PROVIDERS")
    return [str(slug) for slug in (providers if isinstance(providers, dict) else conf.providers())]


def examine(slug: str | None = None) -> Iterator[Finding]:
    """Look at the whole site, then at each provider or at the one of this slug.

    Raises ConfigurationError "provider.unknown".
    """
    chosen = slugs() if slug is None else [slug]
    if slug is not None and slug not in slugs():
        _known(slug)
    told = list(check_findings())
    yield from (finding for finding in told if not finding.provider)
    yield from site_findings()
    if not chosen:
        yield wrong(
            "providers",
            "OIDC_RP['PROVIDERS'] has no provider that can be used.",
            "Nobody can sign in.",
            "The README shows a provider; what a callable of yours raises is in the log.",
        )
    for each in chosen:
        of_checks = [finding for finding in told if finding.provider == each]
        for finding in (*of_checks, *_provider_findings(each, of_checks)):
            yield replace(finding, provider=each)


def _known(slug: str) -> None:
    try:
        conf.provider(slug)
    except ConfigurationError as error:
        if error.code == "provider.unknown":
            raise


def _read(slug: str) -> conf.Provider:
    """The provider as conf reads it; what is wrong in the settings is told here, not logged.

    Raises ConfigurationError as conf.provider does.
    """
    written = conf.written_providers()
    if slug not in written:
        return conf.provider(slug)
    provider, mistakes = written[slug]
    told = [*conf.unknown_at_top(), *(mistake.message for mistake in mistakes)]
    if provider is None or told:
        raise ConfigurationError("configuration.provider", "; ".join(told))
    return provider


def _provider_findings(slug: str, told: Collection[Finding]) -> Iterator[Finding]:
    try:
        provider = _read(slug)
    except ConfigurationError as error:
        if not any(finding.level == ERROR for finding in told):
            yield wrong(
                "provider",
                f"This provider cannot be used: {error.message}",
                "No sign-in goes on with half a configuration.",
                "Correct its options, those at the top of OIDC_RP, or the callable they come from.",
            )
        return
    yield from kept_token_findings(provider, {finding.code for finding in told})
    yield from redirect_findings(provider)
    yield from op_findings(provider)
