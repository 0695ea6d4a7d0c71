"""Tables of the reference, as Markdown, made of the code each time the documentation is built."""

import ast
import re
from argparse import SUPPRESS, Action
from collections.abc import Iterable, Iterator
from inspect import cleandoc, getsource
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

from django.core.management import load_command_class
from django.core.management.base import BaseCommand
from django.dispatch import Signal

from oidc_rp import checks, conf, refusals, signals, urls

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
HINTS_OF_MANY_WORDS = frozenset({"E003", "E004"})
"""Checks of so many options that their hints say little without the option."""


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; head: its columns, with | between them."""
    columns = head.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


# Settings


def provider_settings() -> str:
    """Every option of a provider: sentence, value and default, from conf.OPTIONS."""
    rows = (
        (
            f"`{name}`" + ("" if name in conf.OWN_OPTIONS else " *"),
            f"{field.metadata['sentence']}<br>*{_wish(field.metadata['read'])}*{_default(field)}",
        )
        for name, field in conf.OPTIONS.items()
    )
    return table("option|what it says; *its value*; default", rows)


def _default(field: "conf.Field[Any]") -> str:
    text = default_of(field)
    if text in ("", "required"):
        return text and f"; {text}"
    return f"; default {text}"


def _wish(read: Any) -> str:
    """What the reader of an option wants, in the words with which it refuses everything else."""
    try:
        read(object())
    except ValueError as error:
        return str(error)
    raise AssertionError(f"{read} takes anything")


def default_of(field: "conf.Field[Any]") -> str:
    if field.default_factory is not conf.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is conf.MISSING:
        return "required"
    if field.default is None or field.default in ("", frozenset(), ()):
        return ""
    return f"`{list(field.default) if isinstance(field.default, tuple) else field.default!r}`"


def site_settings() -> str:
    """What is said once for the whole site: conf.TOP_OPTIONS, with the README's sentences."""
    rows = _readme_rows(r"[A-Z_]+")
    return table(
        "setting|what it says",
        ((f"`{name}`", rows[name]) for name in sorted(conf.TOP_OPTIONS)),
    )


def _readme_rows(name: str) -> dict[str, str]:
    """The README's table rows of two columns whose first is such a name."""
    return dict(re.findall(rf"^\| `({name})` \| (.+) \|$", README, re.MULTILINE))


# Codes


def refusals_told() -> str:
    """What a person reads for each code, from refusals.EXPLANATIONS."""
    rows = (
        (f"`{code}`" if "." in code else f"`{code}.*`", told.sentence, told.advice)
        for code, told in sorted(refusals.EXPLANATIONS.items())
    )
    return table("code|what the page says|and advises", rows)


def codes() -> str:
    """What each code means to an operator: the README's table, which a test holds to the code."""
    found = README.partition("<!-- codes -->\n")[2].partition("<!-- /codes -->")[0]
    return found.replace("](docs/", "](../")


# Signals, URLs, commands


def signals_sent() -> str:
    """Every signal with its docstring."""
    rows = ((f"`{name}`", " ".join(text.split())) for name, text in _texts_below(signals))
    told = {name: text for name, text in rows if isinstance(vars(signals)[name[1:-1]], Signal)}
    return table("signal|when, and with which arguments", told.items())


def _texts_below(module: ModuleType) -> Iterator[tuple[str, str]]:
    """The names that a module assigns and the text that stands right below each."""
    body = ast.parse(getsource(module)).body
    for item, below in pairwise(body):
        if isinstance(item, ast.Assign) and isinstance(below, ast.Expr):
            yield ast.unparse(item.targets[0]), cleandoc(ast.literal_eval(below.value))


def url_names() -> str:
    """Every URL below the include, with its name and the docstring of its view."""
    rows = (
        (
            f"`oidc_rp:{item.name}`",
            f"`{item.pattern}`".replace("<slug:slug>", "<slug>"),
            cleandoc(item.callback.view_class.__doc__).partition("\n\n")[0],
        )
        for item in urls.urlpatterns
    )
    return table("name|path|what it does", rows)


def commands() -> str:
    """Every command with its help and its own options."""
    found = sorted((ROOT / "oidc_rp/management/commands").glob("[!_]*.py"))
    return "\n".join(_command(path.stem) for path in found)


def _command(name: str) -> str:
    command = load_command_class("oidc_rp", name)
    common = {item.dest for item in BaseCommand().create_parser("", "")._actions}
    own = [
        item
        for item in command.create_parser("manage.py", name)._actions
        if item.dest not in common and item.help != SUPPRESS
    ]
    text = f"## `manage.py {name}`\n\n{command.help}\n"
    rows = ((f"`{_usage(item)}`", (item.help or "") % vars(item)) for item in own)
    return text + ("\n" + table("option|what it says", rows) if own else "")


def _usage(action: Action) -> str:
    if not action.option_strings:
        return f"[{action.dest}]"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(action.option_strings) + value


# System checks


def system_checks() -> str:
    """Every check: what is wrong, as the README says, which a test holds to the code; its hints."""
    hints: dict[str, dict[str, None]] = {}
    for module in (conf, checks):
        for check_id, hint in _hints(module):
            hints.setdefault(check_id, {})[hint] = None
    for check_id in HINTS_OF_MANY_WORDS:
        hints[check_id] = {"It says what the option is for, or where it belongs.": None}
    rows = (
        (f"`{name}`", "<br>".join([sentence, *hints.get(name.partition(".")[2], ())]))
        for name, sentence in _readme_rows(r"oidc_rp\.[EW]\d{3}").items()
    )
    return table("id|what is wrong, and what the hint says", rows)


def _hints(module: ModuleType) -> Iterator[tuple[str, str]]:
    """(id, hint) of every Error, Warning and Mistake whose hint is a text of the source."""
    for function in ast.walk(ast.parse(getsource(module))):
        if not isinstance(function, ast.FunctionDef):
            continue
        texts: dict[str, str | None] = {}
        for node in _in_order(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                texts[node.targets[0].id] = _text(node.value, module, texts)
            elif isinstance(node, ast.Call):
                values = [*node.args, *(keyword.value for keyword in node.keywords)]
                told = [_text(value, module, texts) for value in values]
                ids = [t for t in told if t and re.fullmatch(r"(oidc_rp\.)?[EW]\d{3}", t)]
                if ids and (hint := _hint_of(node, module, texts)):
                    yield ids[0].removeprefix("oidc_rp."), hint


def _in_order(function: ast.FunctionDef) -> list[ast.AST]:
    nodes = [node for node in ast.walk(function) if hasattr(node, "lineno")]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def _hint_of(call: ast.Call, module: ModuleType, texts: dict[str, str | None]) -> str | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
    value = named[0] if named else call.args[2] if len(call.args) > 2 else None
    return _text(value, module, texts) if value is not None else None


def _text(value: ast.AST, module: ModuleType, texts: dict[str, str | None]) -> str | None:
    """The text that an expression yields, as far as that stands in the source; else None."""
    if isinstance(value, ast.Name):
        found = texts.get(value.id, vars(module).get(value.id))
        return found if isinstance(found, str) else None
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return str(getattr(vars(module).get(value.value.id), value.attr, "")) or None
    if isinstance(value, ast.JoinedStr):
        parts = [_part(part, module, texts) for part in value.values]
        return None if None in parts else "".join(part or "" for part in parts)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def _part(part: ast.AST, module: ModuleType, texts: dict[str, str | None]) -> str | None:
    if not isinstance(part, ast.FormattedValue):
        return _text(part, module, texts)
    number = vars(module).get(ast.unparse(part.value))
    if isinstance(number, int):
        return str(number)
    found = _text(part.value, module, texts)
    return repr(found) if found and part.conversion == ord("r") else found


# Promises


def promises() -> str:
    """Every promise with the tests that bear its number."""
    found = promise_tests()
    text = (ROOT / "docs/promises.md").read_text()
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return "\n".join(
        f"### {heading}\n\n" + "\n".join(_promise_lines(body, found))
        for heading, body in zip(parts[1::2], parts[2::2], strict=True)
    )


def _promise_lines(body: str, found: dict[str, list[str]]) -> Iterator[str]:
    for number, sentence in re.findall(r"^- \*\*(M\d+[ab]?)\*\* (.+)$", body, re.MULTILINE):
        promise = re.sub(r"\]\((?!https?:)", "](../", sentence)
        yield f"- **{number}** {promise}\n"
        yield from (f"  - `{test}`" for test in found[number])
        yield ""


def promise_tests() -> dict[str, list[str]]:
    """Number of a promise -> the tests that bear it, as pytest names them."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = re.findall(r"def (test_(?:M\d+[ab]?_)+\w*)", path.read_text())
        for name in dict.fromkeys(names):
            for number in re.findall(r"(M\d+[ab]?)_", name):
                where = path.relative_to(ROOT / "tests")
                found.setdefault(number, []).append(f"{where}::{name}")
    return found
