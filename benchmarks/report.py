"""Tables of contenders, as text, Markdown and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Line:
    """One contender: the number that its target is about, and the cells that are shown.

    value: None when there is none that counts, which misses the target.
    """

    name: str
    value: float | None
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """One row of the numbers to reach. targets: the most that a contender's value may be."""

    title: str
    heads: list[str]
    lines: list[Line]
    targets: dict[str, float]

    @property
    def missed(self) -> bool:
        return not all(self.reached(line) for line in self.lines)

    def reached(self, line: Line) -> bool:
        """Whether the line has no target, or is not above it."""
        target = self.targets.get(line.name)
        return target is None or (line.value is not None and line.value <= target)

    def verdict(self, line: Line) -> str:
        if line.name not in self.targets:
            return ""
        target = self.targets[line.name]
        return f"{'ok' if self.reached(line) else 'MISSED'}: target ≤ {target:g}"

    def cells(self) -> list[list[str]]:
        """All cells, the head line first."""
        lines = [[line.name, *line.cells, self.verdict(line)] for line in self.lines]
        return [["", *self.heads, ""], *lines]


def not_measured(title: str, name: str, why: Exception) -> Table:
    """A row that could not be measured, and so is missed."""
    return Table(title, [""], [Line(name, None, [f"not measured: {why}"])], {name: 0.0})


def as_text(tables: Sequence[Table]) -> str:
    return "\n\n".join(_table_text(table) for table in tables)


def _table_text(table: Table) -> str:
    rows = table.cells()
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([table.title, "", *(f"  {line}" for line in lines)])


def as_markdown(tables: Sequence[Table]) -> str:
    return "\n\n".join(_table_markdown(table) for table in tables)


def _table_markdown(table: Table) -> str:
    head, *rows = table.cells()
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([f"**{table.title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def as_json(tables: Sequence[Table], where: str) -> dict[str, Any]:
    return {
        "where": where,
        "tables": [
            {
                "title": table.title,
                "missed": table.missed,
                "contenders": [
                    {
                        "name": line.name,
                        "value": None if line.value is None else round(line.value, 3),
                        "target": table.targets.get(line.name),
                        **dict(zip(table.heads, line.cells, strict=True)),
                    }
                    for line in table.lines
                ],
            }
            for table in tables
        ],
    }
