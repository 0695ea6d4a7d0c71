"""The README says what the code does: its tables are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from django.dispatch import Signal

from docs._ext.from_code import default_of
from oidc_rp import checks, conf, events, grants, signals

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFRESH = (ROOT / "docs/refresh.md").read_text()
EVENTS = (ROOT / "docs/events.md").read_text()


def between(name: str) -> str:
    return README.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def settings_table() -> str:
    """The table of settings, made of the fields of conf.Provider."""
    lines = ["| option | what it says | default |", "|---|---|---|"]
    for name, field in conf.OPTIONS.items():
        star = "" if name in conf.OWN_OPTIONS else " *"
        lines.append(f"| `{name}`{star} | {field.metadata['sentence']} | {default_of(field)} |")
    return "\n".join(lines) + "\n"


def codes() -> Iterator[str]:
    """Every code that the source names as a whole."""
    known = re.compile(
        r"(state|response|authorization|par|token|id_token|userinfo|discovery|jwks|transport"
        r"|account|provider|configuration|grant|refresh|seal|api|scopes|revocation)\.[a-z_]+"
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


def test_settings_of_the_whole_site_are_all_in_the_readme() -> None:
    """Each has a row of its own."""
    assert {name for name in conf.TOP_OPTIONS if f"\n| `{name}` |" not in README} == set()


def test_signals_are_all_in_the_readme() -> None:
    """Each with the arguments that it is sent with."""
    for name, signal in vars(signals).items():
        if isinstance(signal, Signal):
            assert re.search(rf"`{name}\([a-z, ]+\)`", README), name


def test_commands_and_extras_are_all_in_the_readme() -> None:
    """Each command has a row, each extra a line."""
    for path in (ROOT / "oidc_rp/management/commands").glob("[!_]*.py"):
        assert f"| `manage.py {path.stem}` |" in README
    extras = (ROOT / "pyproject.toml").read_text().partition("optional-dependencies]\n")[2]
    for extra in re.findall(r"^(\w+) = ", extras.partition("\n[")[0], re.MULTILINE):
        assert f'"oidc_rp[{extra}]"' in README


def test_links_lead_somewhere() -> None:
    """Every relative link of a page names a file, and a heading where it names one."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text()):
            name, _, anchor = target.partition("#")
            found = (page.parent / name) if name else page
            assert found.exists(), (page.name, target)
            assert not anchor or anchor in headings(found), (page.name, target)


def headings(page: Path) -> set[str]:
    """The anchors of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", text.lower()).replace(" ", "-") for text in found}


def test_events_and_reasons_are_all_in_the_docs() -> None:
    """Each event has its row, with its sentence, and each reason why a grant is closed has one."""
    table = EVENTS.partition("\n## ")[0]
    told = dict(re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", table, re.MULTILINE))
    assert told == {name: str(sentence) for name, sentence in events.EVENTS.items()}
    reasons = {
        value
        for name, value in vars(grants).items()
        if name.isupper() and isinstance(value, str) and value == name.lower()
    }
    assert {"logout", "rotation_lost"} < reasons
    assert {row for row in reasons if f"\n| `{row}` |" not in REFRESH} == set()


def test_the_states_are_drawn_as_the_code_draws_them() -> None:
    """All states and transitions of refresh.py's drawing are in the picture and in the table."""
    source = (ROOT / "oidc_rp/refresh.py").read_text()
    drawing = source.partition("Two numbers")[0]
    picture = (ROOT / "docs/refresh.svg").read_text()
    drawn = set(re.findall(r"\bT\d+\b", drawing))
    states = set(re.findall(r"\b(?:IDLE|CALLING|[A-Z_]{4,})\b", drawing))
    assert drawn <= set(re.findall(r"\bT\d+\b", picture))
    assert states == set(re.findall(r'class="n">([A-Z_]+)<', picture))
    assert re.findall(r"^\| (T\d+) \|", REFRESH, re.MULTILINE) == [f"T{n}" for n in range(1, 20)]


def test_each_promise_has_a_test_that_bears_its_number() -> None:
    """Each number in docs/promises.md stands in the name of a test, and no other does."""
    promised = set(re.findall(r"\*\*(M\d+[ab]?)\*\*", (ROOT / "docs/promises.md").read_text()))
    names = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"def test_((?:M\d+[ab]?_)+)", names)
    assert {number for numbers in named for number in numbers.split("_") if number} == promised
