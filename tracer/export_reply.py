"""What a receiver's answer means: accepted, try again, or never.

Source: https://opentelemetry.io/docs/specs/otlp/ (OTLP/gRPC Response, OTLP/HTTP Response).
Generated classes are imported only where an answer has content: most have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# By signal.
METHODS = {
    "traces": "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    "metrics": "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
# Codes of gRPC after which a request may be sent again.
RETRYABLE = frozenset(
    {
        "CANCELLED",
        "DEADLINE_EXCEEDED",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNAVAILABLE",
        "DATA_LOSS",
    }
)
# What of a receiver's words is kept.
MAX_MESSAGE = 300
NOT_OTLP = "the answer is not OTLP: is this the right endpoint?"
# What a connection fails with, and what may be the matter; the first that fits.
_CLIENT = "it may want a client certificate: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, _CLIENT_KEY"
TLS_HINTS = (
    ("WRONG_VERSION_NUMBER", "it speaks no TLS: write http://, or --insecure"),
    ("UNKNOWN_CA", "it does not trust who signed OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
    ("CERTIFICATE_REQUIRED", _CLIENT),
    ("closed", _CLIENT),
    ("EOF occurred", _CLIENT),
    ("reset by peer", _CLIENT),
    ("self-signed", "--otlp-certificate names the file of the authority to trust"),
    ("local issuer", "--otlp-certificate names the file of the authority to trust"),
)
PLAIN_HINTS = (
    ("closed", "it may speak TLS: https://"),
    ("reset by peer", "it may speak TLS: https://"),
)


class Verdict(Enum):
    ACCEPTED = "accepted"
    RETRY = "retry"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, or the lack of one.

    rejected_spans: of an accepted request, as its partial success says; of metrics: points.
    retry_after_s: what the receiver asks to wait before the next request; None: nothing.
    unknown_signal: the receiver does not take this kind of request at all.
    """

    verdict: Verdict
    message: str = ""
    rejected_spans: int = 0
    retry_after_s: float | None = None
    unknown_signal: bool = False


def accepted(body: bytes) -> Reply:
    """Read an ExportTraceServiceResponse; a partial success is never sent again.

    An ExportMetricsServiceResponse has the same fields but for their names.
    """
    if not body:
        return Reply(Verdict.ACCEPTED)
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceResponse,
    )

    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return Reply(Verdict.ACCEPTED, NOT_OTLP)
    message = ""
    if partial.rejected_spans or partial.error_message:
        message = f"partial success: {partial.error_message or 'no reason given'}"
    return Reply(Verdict.ACCEPTED, shorten(message), partial.rejected_spans)


def of_status(code: str, message: str, details: bytes = b"") -> Reply:
    """Say what a status of gRPC other than OK means; details: a google.rpc.Status, b"" for none."""
    retry_after_s = retry_info_s(details) if details else None
    # Exhausted resources recover only where the receiver says when.
    exhausted = code == "RESOURCE_EXHAUSTED" and retry_after_s is not None
    text = f"{code}: {shorten(message)}"
    if code in RETRYABLE or exhausted:
        return Reply(Verdict.RETRY, text, retry_after_s=retry_after_s)
    return Reply(Verdict.REJECTED, text, unknown_signal=code == "UNIMPLEMENTED")


def hinted(text: str, secure: bool) -> str:
    """Add what to do about a connection that failed, where that can be told."""
    for sign, hint in TLS_HINTS if secure else PLAIN_HINTS:
        if sign in text:
            return f"{text}: {hint}"
    return text


def status_message(body: bytes) -> str:
    """Read the message of a google.rpc.Status; "" where `body` is none."""
    from google.protobuf.message import DecodeError
    from google.rpc.status_pb2 import Status

    try:
        return shorten(Status.FromString(body).message)
    except DecodeError:
        return ""


def retry_info_s(body: bytes) -> float | None:
    """Find a google.rpc.RetryInfo among the details of a google.rpc.Status, in seconds."""
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    info = RetryInfo()
    try:
        for detail in Status.FromString(body).details:
            if detail.Unpack(info):
                delay_s: float = info.retry_delay.seconds + info.retry_delay.nanos / 1e9
                return max(0.0, delay_s)
    except DecodeError:
        pass
    return None


def shorten(message: str) -> str:
    """Make one printable line of bounded length of what a receiver said."""
    line = " ".join(message.split())
    return "".join(c for c in line if c.isprintable())[:MAX_MESSAGE]
