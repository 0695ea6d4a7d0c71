"""What pyproject.toml promises of dependencies is what the two pairs of `make test-all` run on."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGING = Path(__file__).parent
ROOT = PACKAGING.parents[1]
PIN = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
LOWER_BOUND = re.compile(r'^    "([\w.-]+)>=([\w.]+)', re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    return dict(PIN.findall(path.read_text()))


def release(version: str) -> tuple[int, ...]:
    """42 and 42.0.0 are one release."""
    return tuple([*map(int, version.split(".")), 0, 0][:3])


def test_the_oldest_pair_runs_each_lower_bound() -> None:
    bounds = dict(LOWER_BOUND.findall((ROOT / "pyproject.toml").read_text()))
    oldest = pins(PACKAGING / "oldest.txt")
    assert len(bounds) == 5
    assert {name: release(oldest[name]) for name in bounds} == {
        name: release(version) for name, version in bounds.items()
    }


def test_the_newest_pair_runs_a_newer_django_than_requirements_txt() -> None:
    usual = pins(ROOT / "requirements.txt")["Django"]
    assert release(usual)[:2] == (5, 2)
    assert release(pins(PACKAGING / "newest.txt")["Django"]) > release(usual)
