"""Attack this project's own settings, in this process, and say what is refused."""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.core.checks import Tags
from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError
from django.urls import NoReverseMatch

from ... import conf, grants
from ...attack import NotProven, Outcome, run
from ...attack.outcomes import CAME_TO_NOTHING, REFUSED, REFUSED_OTHERWISE
from ...errors import ConfigurationError
from ..tables import require_tables

NOTHING_PROVEN = 2


class Command(BaseCommand):
    """Run the project's settings against an OP that misbehaves, and print what is refused.

    The OP is in this process; nothing stays in the database, the cache or the sessions. The exit
    code is 1 if anything was not refused by the check that it is aimed at, or a provider cannot be
    used; 2 if at one of them not even an honest sign-in succeeds.
    """

    help = "Run the project's settings against a misbehaving provider, and print what is refused."
    # Ours; those of the models would need the database, and fail without a sentence.
    requires_system_checks = [Tags.security]

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", nargs="?", help="of one provider; all of them if not given")
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
        parser.add_argument(
            "--claims", default="{}", help="claims that a person needs here, as a JSON object"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise CommandError(
                "Settings are replaced for the whole process meanwhile: run it in one of its own."
            )
        require_tables(grants.database())
        claims = _claims(options["claims"])
        slugs = [options["slug"]] if options["slug"] else _slugs()
        unusable = {slug: _why_unusable(slug) for slug in slugs}
        usable = [slug for slug in slugs if not unusable[slug]]
        found, unproven = {}, []
        for slug in usable:
            try:
                found[slug] = self._attacked(slug, claims, quiet=options["json"])
            except NotProven as error:
                proves = "so the refusal of an attack would prove nothing."
                unproven.append(f"{slug}: {error}; {proves}")
        if options["json"]:
            told = [_as_json(slug, outcomes) for slug, outcomes in found.items()]
            self.stdout.write(json.dumps({"providers": told}, indent=2))
        problems = _problems(outcome for outcomes in found.values() for outcome in outcomes)
        problems += [why for why in unusable.values() if why]
        problems += unproven
        if problems:
            raise CommandError("\n".join(problems), returncode=NOTHING_PROVEN if unproven else 1)

    def _attacked(self, slug: str, claims: dict[str, Any], *, quiet: bool) -> list[Outcome]:
        outcomes = []
        try:
            for outcome in run(slug, claims):
                outcomes.append(outcome)
                if not quiet:
                    self._tell(outcome)
        except NoReverseMatch as error:
            raise CommandError(f"The URLs of oidc_rp are not included: {error}") from error
        except DatabaseError as error:
            raise CommandError(f"A database of this project cannot be used: {error}") from error
        if not quiet:
            self.stdout.write(f"{slug}: {_summary(outcomes)}")
        return outcomes

    def _tell(self, outcome: Outcome) -> None:
        style = self.style.SUCCESS if outcome.withstood else self.style.ERROR
        attack, told = outcome.attack, style(outcome.told.ljust(38))
        self.stdout.write(f"{attack.promise:<5} {told} {attack.sentence}")


def _slugs() -> list[Any]:
    """Every provider that the settings name, whether or not it can be used."""
    given = conf.given().get("PROVIDERS") or {}
    try:
        named = list(given if isinstance(given, dict) else conf.read_callable(given)())
    except Exception as error:
        kind = type(error).__name__
        raise CommandError(f"OIDC_RP['PROVIDERS'] cannot be read: {kind}.") from error
    if not named:
        raise CommandError("OIDC_RP['PROVIDERS'] has no provider.")
    return named


def _why_unusable(slug: Any) -> str:
    """Why a provider is not attacked; "" where it can be."""
    try:
        conf.provider(slug)
    except ConfigurationError as error:
        known = ", ".join(conf.providers()) or "none"
        there = f"; there are: {known}" if error.code == "provider.unknown" else ""
        return f"{slug} is not attacked: {error}{there}"
    return ""


def _summary(outcomes: list[Outcome]) -> str:
    count = Counter(outcome.verdict for outcome in outcomes)
    others = {REFUSED_OTHERWISE: "otherwise", CAME_TO_NOTHING: "came to nothing"}
    more = "".join(f", {count[name]:,} {told}" for name, told in others.items() if count[name])
    return f"{count[REFUSED]:,} of {len(outcomes):,} attacks refused{more}."


def _problems(outcomes: Iterable[Outcome]) -> list[str]:
    """A sentence about what was not refused, and one about what proves nothing."""
    count = Counter(outcome.verdict for outcome in outcomes)
    otherwise = count.pop(REFUSED_OTHERWISE, 0)
    through = count.total() - count[REFUSED] - count[CAME_TO_NOTHING]
    not_refused = f"{_attacks(through)} not refused."
    of_no_proof = f"{_attacks(otherwise)} refused otherwise, which proves nothing."
    return [not_refused] * bool(through) + [of_no_proof] * bool(otherwise)


def _attacks(number: int) -> str:
    return "1 attack was" if number == 1 else f"{number:,} attacks were"


def _claims(text: str) -> dict[str, Any]:
    try:
        claims = json.loads(text)
    except ValueError as error:
        raise CommandError(f"--claims is not JSON: {error}") from error
    if not isinstance(claims, dict):
        raise CommandError("--claims is not a JSON object.")
    return claims


def _as_json(slug: str, outcomes: list[Outcome]) -> dict[str, Any]:
    count = Counter(outcome.verdict for outcome in outcomes)
    return {
        "provider": slug,
        "refused": count[REFUSED],
        "refused_otherwise": count[REFUSED_OTHERWISE],
        "came_to_nothing": count[CAME_TO_NOTHING],
        "attacks": [
            {
                "promise": outcome.attack.promise,
                "attack": outcome.attack.sentence,
                "verdict": outcome.verdict,
                "code": outcome.code,
                "expected": outcome.expected,
                "problem": outcome.got_through or outcome.failed,
            }
            for outcome in outcomes
        ],
    }
