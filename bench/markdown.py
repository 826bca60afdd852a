"""Prose and tables in Markdown that read well as plain text too."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

COLUMNS = 96


def wrap(text: str, indent: str = "") -> str:
    """Fill lines; indent: before each but the first."""
    return textwrap.fill(
        text, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def paragraphs(*parts: str) -> str:
    """Join parts; those that are plain prose are wrapped."""
    return "\n\n".join(part if part[:1] in "#-|!" else wrap(part) for part in parts)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose columns line up; all but the first to the right."""
    return "\n".join(_lines(header, rows))


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    widths = [max(3, width) for width in widths]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    yield line(header)
    yield f"| {'-' * widths[0]} | {' | '.join('-' * (w - 1) + ':' for w in widths[1:])} |"
    yield from map(line, rows)
