"""Spans to export in tests, and what the exporter's counts must add up to."""

from __future__ import annotations

import numpy as np

from tracer.export import ExportStats
from tracer.export_config import Limits
from tracer.spans import KIND_SERVER, STATUS_UNSET, Resource, Shape, SpanBatch, Text, TextColumn

# Retries without long waits; what is submitted goes out at once.
QUICK = Limits(delay_s=0.0, backoff_initial_s=0.01, backoff_max_s=0.02)
SHAPES = (
    Shape(Resource((("service.name", "web"),)), "GET /", KIND_SERVER, STATUS_UNSET, "", (), (), ()),
    Shape(
        Resource((("service.name", "db"),)), "GET /{id}", KIND_SERVER, STATUS_UNSET, "", (), (),
        (TextColumn("url.path", "", "path"),),
    ),
)  # fmt: skip


def batch(first: int, count: int, text_bytes: int = 0) -> SpanBatch:
    """Make spans with ids `first`, `first` + 1, ...; of the second shape if they have a text."""
    ids = np.arange(first, first + count, dtype="<u8")
    cells = ids[:, None].view(np.uint8).reshape(count, 8)
    path = Text(np.full((count, text_bytes), 0x61, np.uint8), np.full(count, text_bytes, np.uint16))
    return SpanBatch(
        np.hstack([cells, cells]),
        cells,
        np.zeros((count, 8), np.uint8),
        ids,
        ids,
        np.full(count, int(text_bytes > 0), np.int32),
        SHAPES,
        {},
        {"path": path},
    )


def ids(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


def dropped(stats: ExportStats) -> dict[str, int]:
    return {reason: count for reason, count in stats.dropped.items() if count}


def balanced(stats: ExportStats) -> bool:
    gone = stats.exported_spans + sum(stats.dropped.values())
    return stats.submitted_spans == gone + stats.queued_spans
