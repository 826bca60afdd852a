"""Exchanges with known durations, for tests of what measures them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracer.spans import (
    KIND_CLIENT,
    KIND_SERVER,
    STATUS_ERROR,
    STATUS_UNSET,
    AttributeValue,
    Resource,
    Shape,
    SpanBatch,
)

OWN = Resource((("service.name", "wirespan"),))
NOW = 1_790_000_000 * 10**9
SECOND = 10**9


def http(
    service: str,
    server: bool = True,
    path: str = "/users/{id}",
    method: str = "GET",
    status: int = 200,
    **others: AttributeValue,
) -> Shape:
    """A shape as tracer.protocols.http1_shape makes them."""
    failed = status >= (500 if server else 400)
    attributes: dict[str, AttributeValue] = {"http.request.method": method}
    attributes |= {"url.scheme": "http"} if server else {"url.template": path}
    attributes |= {
        "server.address": "shop.example",
        "server.port": 80,
        "client.address": "10.0.0.9",
        "network.protocol.version": "1.1",
        "http.response.status_code": status,
    }
    attributes |= {"error.type": str(status)} if failed else {}
    attributes |= {key.replace("_", "."): value for key, value in others.items()}
    return Shape(
        Resource((("service.name", service), ("process.pid", 7))),
        f"{method} {path}",
        KIND_SERVER if server else KIND_CLIENT,
        STATUS_ERROR if failed else STATUS_UNSET,
        "",
        tuple(attributes.items()),
        (),
        (),
    )


@dataclass(frozen=True)
class Row:
    shape: int
    duration_ns: int = 1_000_000
    span: int = 0
    parent: int = 0


def batch(rows: Sequence[Row], shapes: Sequence[Shape]) -> SpanBatch:
    """Make a batch; span ids are numbers, and a row's trace id is its span id twice."""

    def words(values: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array(values, dtype="<u8")[:, np.newaxis].view(np.uint8)

    span = words([row.span for row in rows])
    start = np.full(len(rows), NOW, dtype=np.uint64)
    return SpanBatch(
        trace_id=np.hstack([span, span]),
        span_id=span,
        parent_span_id=words([row.parent for row in rows]),
        start_ns=start,
        end_ns=start + np.array([row.duration_ns for row in rows], dtype=np.uint64),
        shape=np.array([row.shape for row in rows], dtype=np.int32),
        shapes=shapes,
        ints={},
        texts={},
    )
