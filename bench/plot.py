"""A small bar chart as SVG, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import Figure

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, FOOT = 720, 150, 130, 64, 22, 18, 44
COLORS = ("#8a94a6", "#2f7ed8", "#e07b39", "#8e5bb5")
TEXT = "#5b6472"


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a figure, and the number of its series."""

    figure: Figure
    series: int


def bars(
    title: str, unit: str, series: Sequence[str], groups: Sequence[tuple[str, list[Bar]]]
) -> str:
    """Draw groups of horizontal bars from 0, with a line over each from low to high.

    What is below 0 has no room, but its number is written.
    """
    most = max(bar.figure.high for _, group in groups for bar in group) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / most
    parts: list[str] = []
    y = TOP
    for name, group in groups:
        middle = y + len(group) * BAR / 2
        parts.append(_text(LEFT - 10, middle + 4, name, "end"))
        for bar in group:
            parts.append(_bar(bar, y, scale))
            y += BAR
        y += GAP
    legend = LEFT
    for number, name in enumerate(series):
        parts.append(f'<rect x="{legend}" y="34" width="12" height="12" fill="{COLORS[number]}"/>')
        parts.append(_text(legend + 18, 45, name))
        legend += 40 + 8 * len(name)
    parts.append(_text(LEFT, y + 16, f"{unit}; bars are medians, lines go from lowest to highest"))
    height = y + FOOT
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13" '
        f'fill="{TEXT}" role="img">'
    )
    heading = f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>'
    return "\n".join((head, f"<title>{escape(title)}</title>", heading, *parts, "</svg>")) + "\n"


def _bar(bar: Bar, y: float, scale: float) -> str:
    figure, middle = bar.figure, y + BAR / 2
    low, high = LEFT + max(0.0, figure.low) * scale, LEFT + max(0.0, figure.high) * scale
    width = max(0.0, figure.median) * scale
    return (
        f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="{BAR - 4}" '
        f'fill="{COLORS[bar.series]}"/>'
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} '
        f'{middle - 4}v8" stroke="{TEXT}" fill="none"/>'
        + _text(max(high, LEFT + width) + 8, middle + 4, f"{figure.median:.2f}")
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'
