"""Right, orphan and wrong by concurrency, as bars that fill up to 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from bench.plot import TEXT
from bench.truth.run import Run

WIDTH, LEFT, RIGHT, TOP, BAR, GAP, FOOT = 720, 230, 70, 64, 12, 10, 12
COLORS = {"right": "#3a9d5d", "orphan": "#b3bac5", "wrong": "#d43d3d"}
# A share that is there at all is seen.
LEAST = 2.0


def chart(runs: Sequence[Run]) -> str:
    """Draw a group of bars for each workload, in the order given, one for each concurrency."""
    parts: list[str] = []
    y = float(TOP)
    for name, group in groupby(runs, lambda run: run.name):
        rows = list(group)
        parts.append(_text(LEFT - 40, y + len(rows) * BAR / 2 + 4, name, "end"))
        for run in rows:
            parts += _bar(run, y)
            y += BAR
        y += GAP
    legend = LEFT
    for name, color in COLORS.items():
        parts.append(f'<rect x="{legend}" y="34" width="12" height="12" fill="{color}"/>')
        parts.append(_text(legend + 18, 45, name))
        legend += 40 + 8 * len(name)
    height = y + FOOT
    title = "Upstream spans that lead to their own request, by requests in flight"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" font-family="sans-serif" font-size="12" '
        f'fill="{TEXT}" role="img">\n<title>{escape(title)}</title>\n'
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _bar(run: Run, y: float) -> list[str]:
    counts = run.counts
    full = WIDTH - LEFT - RIGHT
    widths = {
        name: max(LEAST, counts.share(number) * full) if number else 0.0
        for name, number in (
            ("right", counts.right),
            ("orphan", counts.orphan),
            ("wrong", counts.wrong),
        )
    }
    # What was widened to be seen is taken from the widest.
    widest = max(widths, key=widths.__getitem__)
    widths[widest] -= sum(widths.values()) - (full if counts.upstream else 0)
    parts = [_text(LEFT - 8, y + BAR - 2, str(run.concurrency), "end", 10)]
    x = float(LEFT)
    for name, width in widths.items():
        if width > 0:
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 1:.0f}" width="{width:.1f}" height="{BAR - 2}" '
                f'fill="{COLORS[name]}"/>'
            )
            x += width
    label = f"{100 * counts.share(counts.right):.1f} %"
    return [*parts, _text(LEFT + full + 8, y + BAR - 2, label, size=10)]


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
