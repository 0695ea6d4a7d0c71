"""The Sphinx side of the pages: links out of docs/, and the tables of from_code.py."""

import re
from typing import Any

import from_code
from docutils.nodes import Node
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PLACES = {
    "../README.md#when-a-login-is-refused": "/reference/codes.md",
    "../README.md#system-checks": "/reference/checks.md",
    "../README.md#settings": "/reference/settings.md",
    "../README.md#signals": "/reference/signals.md",
}
"""Links that lead out of docs/ where the pages are read as files, and where they lead here."""


class FromCode(SphinxDirective):
    """What a function of from_code.py returns, in the place of the directive."""

    required_arguments = 1

    def run(self) -> list[Node]:
        text = getattr(from_code, self.arguments[0])()
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def follow_links(_app: Sphinx, _docname: str, source: list[str]) -> None:
    """Lead links out of docs/ to the page that has the same here; others become plain text."""
    source[0] = re.sub(r"\[([^]\n]+)\]\((\.\./[A-Z][^)]*)\)", _led, source[0])


def _led(link: re.Match[str]) -> str:
    place = PLACES.get(link[2])
    return f"[{link[1]}]({place})" if place else link[1]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("from-code", FromCode)
    app.connect("source-read", follow_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
