"""Line charts side by side, as SVG. Must not know what the lines mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WIDTH, _HEIGHT = 960, 680
_LEFT, _TOP, _GAP_X, _GAP_Y = 70, 100, 84, 64
_PANEL_WIDTH: Final = (_WIDTH - _LEFT - 20 - _GAP_X) // 2
_PANEL_HEIGHT: Final = (_HEIGHT - _TOP - 60 - _GAP_Y) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line and how it is drawn."""

    name: str
    colour: str
    dashed: bool
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Lines that are looked at together."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """At most four panels with the same scales, both from 0 on. The lines of the first are the legend of all."""

    title: str
    subtitle: str
    x_axis: str
    y_axis: str
    x_most: float
    x_step: float
    y_step: float
    panels: tuple[Panel, ...]


def svg(chart: Chart) -> str:
    """The picture."""
    highest = max(y for panel in chart.panels for line in panel.lines for _, y in line.points)
    y_most = chart.y_step * (int(highest / chart.y_step) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="17">{chart.title}</text>',
        f'<text x="{_LEFT}" y="46" fill="#555">{chart.subtitle}</text>',
    ]
    for row, line in enumerate(chart.panels[0].lines):
        x = _LEFT + 210 * row
        parts += [_polyline(line, [(x, 64), (x + 34, 64)]), f'<text x="{x + 42}" y="68">{line.name}</text>']
    for number, panel in enumerate(chart.panels):
        left = _LEFT + number % 2 * (_PANEL_WIDTH + _GAP_X)
        top = _TOP + number // 2 * (_PANEL_HEIGHT + _GAP_Y)
        parts += _panel(chart, panel, left, top, y_most)
    return "\n".join([*parts, "</svg>", ""])


def _panel(chart: Chart, panel: Panel, left: float, top: float, y_most: float) -> list[str]:
    bottom, right = top + _PANEL_HEIGHT, left + _PANEL_WIDTH
    parts = [f'<text x="{left}" y="{top - 10}" font-weight="bold">{panel.title}</text>']
    for step in range(round(y_most / chart.y_step) + 1):
        y = bottom - _PANEL_HEIGHT * step * chart.y_step / y_most
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{"#ddd" if step else "#555"}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{step * chart.y_step:.1f}</text>')
    for step in range(int(chart.x_most / chart.x_step) + 1):
        x = left + _PANEL_WIDTH * step * chart.x_step / chart.x_most
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#555"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{step * chart.x_step:,.0f}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 34}" text-anchor="middle" fill="#555">{chart.x_axis}</text>')
    middle = (top + bottom) / 2
    parts.append(
        f'<text x="{left - 38}" y="{middle}" text-anchor="middle" fill="#555" transform="rotate(-90 {left - 38} {middle})">'
        f"{chart.y_axis}</text>"
    )
    for line in panel.lines:
        places = [(left + _PANEL_WIDTH * x / chart.x_most, bottom - _PANEL_HEIGHT * y / y_most) for x, y in line.points]
        parts.append(_polyline(line, places))
    return parts


def _polyline(line: Line, places: Sequence[tuple[float, float]]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash = ' stroke-dasharray="6 4"' if line.dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>'
