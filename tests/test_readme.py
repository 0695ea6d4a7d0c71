"""The README says what the code does: its tables are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from oidc_rp import checks, conf

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def between(name: str) -> str:
    return README.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def settings_table() -> str:
    """The table of settings, made of the fields of conf.Provider."""
    lines = ["| option | what it says | default |", "|---|---|---|"]
    for name, field in conf.OPTIONS.items():
        star = "" if name in conf.OWN_OPTIONS else " *"
        lines.append(f"| `{name}`{star} | {field.metadata['sentence']} | {default_of(field)} |")
    return "\n".join(lines) + "\n"


def default_of(field: "conf.Field[object]") -> str:
    if field.default_factory is not conf.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is conf.MISSING:
        return "required"
    if field.default is None or field.default in ("", frozenset(), ()):
        return ""
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{default!r}`"


def codes() -> Iterator[str]:
    """Every code that the source names as a whole."""
    known = re.compile(
        r"(state|response|authorization|par|token|id_token|userinfo|discovery|jwks|transport"
        r"|account|provider|configuration)\.[a-z_]+"
    )
    for path in (ROOT / "oidc_rp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and known.fullmatch(node.value):
                yield node.value


def test_settings_are_all_in_the_readme() -> None:
    """Each option stands in the README with the sentence and the default that it has in conf.py."""
    assert between("settings") == settings_table()


def test_codes_are_all_in_the_readme() -> None:
    """Each code stands in the README's table, by itself or with its kind."""
    told = set(re.findall(r"`([a-z_]+\.(?:[a-z_]+|\*))`", between("codes")))
    missing = {
        code for code in codes() if code not in told and f"{code.partition('.')[0]}.*" not in told
    }
    assert missing == set()


def test_check_ids_are_all_in_the_readme() -> None:
    """Each system check stands in the README."""
    found: set[str] = set()
    for module in (checks, conf):
        source = Path(str(module.__file__)).read_text()
        found |= set(re.findall(r'"(?:oidc_rp\.)?([EW]\d{3})"', source))
    assert found
    assert found == set(re.findall(r"`oidc_rp\.([EW]\d{3})`", README))


def test_each_promise_has_a_test_that_bears_its_number() -> None:
    """Each number in docs/promises.md stands in the name of a test, and no other does."""
    promised = set(re.findall(r"\*\*(M\d+[ab]?)\*\*", (ROOT / "docs/promises.md").read_text()))
    names = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"def test_((?:M\d+[ab]?_)+)", names)
    assert {number for numbers in named for number in numbers.split("_") if number} == promised
