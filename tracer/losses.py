"""Everything that can be lost or passed over, each with a name and a meaning for users.

KERNEL is keyed by the enumerators of `enum flow_loss` in ebpf/flow.h; a test keeps both
equal. USER is what this process itself can lose; its keys are the short names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Loss(NamedTuple):
    """A counter of losses: its short name, and one line on what one more of it means."""

    name: str
    meaning: str


KERNEL: Mapping[str, Loss] = {
    "FLOW_LOSS_RING_FULL": Loss(
        "ring_full", "a record found no room in the ring buffer: one span less"
    ),
    "FLOW_LOSS_CONNS_FULL": Loss(
        "conns_full", "a connection found no room in the table of connections: none of its spans"
    ),
    "FLOW_LOSS_PIPELINE_FULL": Loss(
        "pipeline_full", "a connection had too many requests awaiting a response: one span less"
    ),
    "FLOW_LOSS_GAP": Loss(
        "gap", "bytes went by unseen where the parser needed them: the exchanges they held"
    ),
    "FLOW_LOSS_UNREADABLE": Loss(
        "unreadable", "an application's buffer could not be read: treated like bytes unseen"
    ),
    "FLOW_LOSS_TOO_MANY_PARTS": Loss(
        "too_many_parts", "one system call carried more pieces than a program may walk"
    ),
    "FLOW_LOSS_ORPHAN": Loss(
        "orphan", "a response came for which no request had been seen: one span less"
    ),
    "FLOW_LOSS_INVALID": Loss("invalid", "a message was not what its protocol allows"),
    "FLOW_LOSS_PENDING_FULL": Loss(
        "pending_full", "a send that awaited its result found no room in the table for those"
    ),
    "FLOW_LOSS_STREAMS_FULL": Loss(
        "streams_full", "an HTTP/2 stream found no room in the table of streams: one span less"
    ),
    "FLOW_LOSS_NOTE_FULL": Loss(
        "note_full",
        "text, header fields, a link or an exec found no room in the ring: spans lack it",
    ),
    "FLOW_LOSS_SHED": Loss(
        "shed", "overload: a span of a trace that was let go before it cost anything (--max-cpu)"
    ),
}

USER: Mapping[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("hook_missed", "a program was not run, for it ran on that CPU already: what passed"),
        Loss("reader_full", "a record found no room between ring and span maker: one span less"),
        Loss("feed_failed", "a record was in a batch that could not be made into spans"),
        Loss("unknown_record", "a record of a kind, protocol or side this version doesn't know"),
        Loss(
            "hpack_failed",
            "an HTTP/2 header block could not be decoded: its connection's later fields",
        ),
        Loss(
            "stream_forgotten", "an HTTP/2 stream's header fields found no room: they are unknown"
        ),
        Loss("time_reversed", "an exchange's times were out of order: its duration is given as 0"),
        Loss(
            "link_late", "the exchange that a client's span was made for came too late: no parent"
        ),
        Loss("link_split", "a span had left under another trace id before its trace was known"),
        Loss("link_refused", "a client's span began before what it was said to be made for"),
        Loss(
            "link_doubtful",
            "a call of a pool's thread that then woke two who serve: none is linked",
        ),
        Loss(
            "link_overlooked", "too many processes began at once to look at: no links in this one"
        ),
        Loss("link_full", "a span had to leave before its trace was known: too many waited"),
        Loss("sampled_off", "a span was let go, for the sampler is always_off"),
        Loss("sampled_ratio", "a span of a trace that the ratio to be kept left out"),
        Loss("sampled_rate", "a span of a trace that was too many for the rate to be kept"),
        Loss("sampled_parent", "a span of a trace whose parent says that it is not sampled"),
        Loss("output_full", "a span found no room before standard output: not printed"),
        Loss("tail_full", "a span found no room before a `wirespan tail`: not shown there"),
        Loss("export_queue_full", "a span found no room in the export queue: not exported"),
        Loss("export_failed", "a span's export failed until its retries were used up"),
        Loss("export_rejected", "the backend refused a span for good"),
        Loss("export_encode", "a span could not be serialised: a defect of this program"),
        Loss("export_unsent", "a span was still unsent when the tracer stopped"),
        Loss(
            "metrics_overflow",
            "an exchange was counted under otel.metric.overflow: there are too many series",
        ),
        Loss("store_queue_full", "a span found no room before the store: not stored"),
        Loss(
            "store_failed",
            "a span could not be written, the disk being full for example: not stored",
        ),
        Loss("store_corrupt", "a file of the store, or its log, could not be read: set aside"),
        Loss("store_unwritten", "a span still waited for the store when the tracer stopped"),
    )
}

LOSSES: Mapping[str, Loss] = {**KERNEL, **USER}
