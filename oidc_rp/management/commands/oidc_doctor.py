"""Look for what is wrong with the configuration, and say how to mend it."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser

from ...doctor import ERROR, OK, WARNING, Finding, examine, slugs
from ...errors import ConfigurationError


class Command(BaseCommand):
    """Print each thing that was looked at: OK, WARNING or ERROR, why, and how to mend it.

    Each provider is asked for its metadata and its keys, and for nothing else. The exit code is 1
    if there is an error.
    """

    help = "Look for what is wrong with the configuration, and say how to mend it."
    requires_system_checks = []  # it shows what they say; they would stop at the first error

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("slug", nargs="?", help="of one provider; all of them if not given")
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = self._told(examine(options["slug"]), quiet=options["json"])
        except ConfigurationError as error:
            known = ", ".join(slugs()) or "none"
            told = f"There is no provider {options['slug']!r}; there are: {known}."
            raise CommandError(told) from error
        count = Counter(finding.level for finding in found)
        if options["json"]:
            levels = {"errors": count[ERROR], "warnings": count[WARNING]}
            findings = [asdict(finding) for finding in found]
            self.stdout.write(json.dumps({**levels, "findings": findings}, indent=2))
        else:
            self._sum_up(count)
        if count[ERROR]:
            sys.exit(1)  # all is said; a CommandError would say more

    def _told(self, findings: Iterable[Finding], *, quiet: bool) -> list[Finding]:
        """Return them all; each is printed as soon as it is found."""
        found: list[Finding] = []
        for finding in findings:
            if not quiet:
                if not found or found[-1].provider != finding.provider:
                    self.stdout.write(finding.provider or "The site")
                self._tell(finding)
            found.append(finding)
        return found

    def _tell(self, finding: Finding) -> None:
        styles = {OK: self.style.SUCCESS, WARNING: self.style.WARNING, ERROR: self.style.ERROR}
        word = styles[finding.level](finding.level.upper().ljust(7))
        self.stdout.write(f"  {word}  {finding.what} [{finding.code}]")
        for name, text in (("Why", finding.why), ("Mend", finding.mend)):
            if text:
                self.stdout.write(f"           {name}: {text}")

    def _sum_up(self, count: Counter[str]) -> None:
        style = self.style.ERROR if count[ERROR] else self.style.SUCCESS
        summary = f"Errors: {count[ERROR]}, warnings: {count[WARNING]}, in order: {count[OK]}."
        self.stdout.write(style(summary))
