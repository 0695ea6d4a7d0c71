"""All of it in its order: the site, then each provider."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from .. import conf
from ..errors import ConfigurationError
from .findings import ERROR, Finding, wrong
from .op import op_findings
from .providers import Providers, find_providers
from .redirects import redirect_findings
from .site import check_findings, kept_token_findings, site_findings


def slugs() -> list[str]:
    """Every provider that the settings or their callable name, whether or not it can be used."""
    return list(find_providers().read)


def examine(slug: str | None = None) -> Iterator[Finding]:
    """Look at the whole site, then at each provider or at the one of this slug.

    Raises ConfigurationError "provider.unknown".
    """
    found = find_providers()
    chosen = [each for each in found.read if slug in (None, each)]
    if slug is not None and not chosen and not found.problem:
        raise ConfigurationError("provider.unknown", "no provider of this name")
    told = list(check_findings(found.read))
    yield from (finding for finding in told if not finding.provider)
    yield from site_findings()
    if not chosen and not {"oidc_rp.E001", "oidc_rp.E012"} & {finding.code for finding in told}:
        yield _no_provider(found.problem)
    for each in chosen:
        yield from (finding for finding in told if finding.provider == each)
        for finding in _provider_findings(each, found, told):
            yield replace(finding, provider=each)


_CALL_IT = "Call it in `manage.py shell`: what it raises there says where."


def _no_provider(problem: str) -> Finding:
    why = "Nobody can sign in."
    if problem:
        return wrong("providers", f"OIDC_RP['PROVIDERS'] cannot be read: {problem}.", why, _CALL_IT)
    return wrong("providers", "OIDC_RP['PROVIDERS'] is empty.", why, "The README shows a provider.")


def _provider_findings(slug: str, found: Providers, told: Collection[Finding]) -> Iterator[Finding]:
    provider, _ = found.read[slug]
    problems = _problems(slug, found, {finding.what for finding in told})
    if provider is not None and not problems:
        yield from kept_token_findings(provider)
        yield from redirect_findings(provider)
        yield from op_findings(provider)
    elif problems and not any(one.level == ERROR for one in told if one.provider == slug):
        options = "Correct its options, or those at the top of OIDC_RP."
        yield wrong(
            "provider",
            f"This provider cannot be used: {'; '.join(problems)}",
            "No sign-in goes on with half a configuration.",
            _CALL_IT if slug in found.unread else options,
        )


def _problems(slug: str, found: Providers, said: Collection[str]) -> list[str]:
    """Why sign-ins refuse this provider, as far as that is not said of it already."""
    unread = [f"{found.unread[slug]}."] if slug in found.unread else []
    mistakes = [mistake.message for mistake in found.read[slug][1] if mistake.message not in said]
    return [*conf.unknown_at_top(), *unread, *mistakes]
