"""The chart of the herd, as an SVG that is readable in light and in dark."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 960, 612
PLOT_WIDTH, PLOT_HEIGHT = 380, 290
TOP, LEFTS = 122, (74, 548)
FIRST, LAST = 10.0, 5000.0
"""Milliseconds at the two ends of the axis of time, which is logarithmic."""

TICKS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
CLASSES = "abcde"
_STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
    .title { font-size: 19px; font-weight: 650 } .panel { font-size: 15px; font-weight: 600 }
    .axis, .subtitle, .note { fill: #59636e } .tick { fill: #59636e; font-size: 12px }
    .paper { fill: #ffffff } .grid { stroke: #d1d9e0; stroke-width: 1 }
    path { fill: none; stroke-width: 2; stroke-linejoin: round } path.a { stroke-width: 3.5 }
    .a { stroke: #0969da } .b { stroke: #cf222e; stroke-dasharray: 9 4 }
    .c { stroke: #9a6700 } .d { stroke: #8250df; stroke-dasharray: 3 3 }
    .e { stroke: #59636e; stroke-dasharray: 12 3 3 3 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc } .axis, .subtitle, .note, .tick { fill: #9198a1 }
      .paper { fill: #0d1117 } .grid { stroke: #30363d }
      .a { stroke: #4493f8 } .b { stroke: #f85149 } .c { stroke: #d29922 } .d { stroke: #ab7df8 }
      .e { stroke: #9198a1 }
    }"""


@dataclass(frozen=True)
class Line:
    """One way: the milliseconds after which each good answer came, and how many calls there were.

    note: what became of the others.
    """

    milliseconds: Sequence[float]
    calls: int
    note: str


@dataclass(frozen=True)
class Panel:
    title: str
    lines: Mapping[str, Line]


def draw(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """Return the chart of two panels: for each way the share of callers answered by a moment."""
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">',
        f"<style>{_STYLE}\n  </style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="10"/>',
        _text(24, 38, title, "title"),
        _text(24, 62, subtitle, "subtitle"),
    ]
    for left, panel in zip(LEFTS, panels, strict=True):
        parts += _panel(left, panel, names)
    parts += _legend(names, panels)
    return "\n  ".join(parts) + "\n</svg>\n"


def _panel(left: float, panel: Panel, names: Sequence[str]) -> Iterator[str]:
    bottom = TOP + PLOT_HEIGHT
    yield _text(left, TOP - 18, panel.title, "panel")
    for percent in (0, 25, 50, 75, 100):
        y = _y(percent / 100)
        yield f'<path class="grid" d="M{left} {y:.1f}h{PLOT_WIDTH}"/>'
        yield _text(left - 8, y + 4, f"{percent} %", "tick", anchor="end")
    for tick in TICKS:
        x = left + _x(tick)
        yield f'<path class="grid" d="M{x:.1f} {bottom}v5"/>'
        yield _text(x, bottom + 20, f"{tick:,}", "tick", anchor="middle")
    middle = left + PLOT_WIDTH / 2
    yield _text(middle, bottom + 40, "waiting time of a caller, ms (log scale)", "axis", "middle")
    x, y = left - 50, TOP + PLOT_HEIGHT / 2
    yield _text(x, y, "callers served", "axis", "middle", f' transform="rotate(-90 {x} {y})"')
    for name in reversed(panel.lines):  # ours is on top
        yield _curve(left, panel.lines[name], CLASSES[names.index(name)])


def _curve(left: float, line: Line, style: str) -> str:
    """How many are served by each moment; it ends at the right, as those who failed stay so."""
    served = sorted(line.milliseconds)
    begin = left + _x(served[0] if served else FIRST)
    steps, before = [f"M{begin:.0f} {_y(0):.1f}"], f"{begin:.0f}"
    for number, milliseconds in enumerate(served, 1):
        x = f"{left + _x(milliseconds):.0f}"
        y = f"{_y(number / line.calls):.1f}"
        if x != before:
            steps.append(f"H{x}")
        steps.append(f"V{y}")
        before = x
    return f'<path class="{style}" d="{_merged(steps)}H{left + PLOT_WIDTH}"/>'


def _merged(steps: Sequence[str]) -> str:
    """Leave out a vertical step that another one follows."""
    pairs = zip(steps, [*steps[1:], "H"], strict=True)
    return "".join(step for step, after in pairs if step[0] != "V" or after[0] != "V")


def _legend(names: Sequence[str], panels: Sequence[Panel]) -> Iterator[str]:
    y, columns = TOP + PLOT_HEIGHT + 76, (350, LEFTS[1] + 80)
    for left, panel in zip(columns, panels, strict=True):
        yield _text(left, y, panel.title.partition(",")[0], "axis")
    for name, style in zip(names, CLASSES, strict=False):
        y += 20
        yield f'<path class="{style}" d="M24 {y - 4}h34"/>'
        yield _text(70, y, name)
        for left, panel in zip(columns, panels, strict=True):
            if name in panel.lines:
                yield _text(left, y, panel.lines[name].note, "note")


def _x(milliseconds: float) -> float:
    inside = min(max(milliseconds, FIRST), LAST)
    return PLOT_WIDTH * math.log(inside / FIRST) / math.log(LAST / FIRST)


def _y(share: float) -> float:
    return TOP + PLOT_HEIGHT * (1 - share)


def _text(
    x: float, y: float, text: str, style: str = "", anchor: str = "start", more: str = ""
) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:g}" y="{y:g}"{kind} text-anchor="{anchor}"{more}>{escape(text)}</text>'
