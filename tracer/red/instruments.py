"""Which metric a span is measured by, and under which attributes: the OpenTelemetry names.

Decisions where the conventions leave room:

- `http.route` of a server is the route folded from the path (tracer.routes), which the
  convention reserves for what a framework states, for fear of its cardinality: that is
  bounded here. A client's has the same name as on its span, `url.template`.
- A database server's own side has no metric in the conventions: it is measured by
  `wirespan.db.server.operation.duration`, with the attributes of a client's.
- Pairs of services are named as by the OpenTelemetry Collector's servicegraph connector,
  which tools know (in Prometheus its durations have `_seconds` behind their names).

Sources: semantic conventions 1.45, http/http-metrics, rpc/rpc-metrics, db/database-metrics:
https://opentelemetry.io/docs/specs/semconv/;
https://github.com/open-telemetry/opentelemetry-collector-contrib (connector/servicegraphconnector).
"""

from __future__ import annotations

from typing import NamedTuple

from tracer.spans import KIND_SERVER, STATUS_ERROR, AttributeValue, Shape

Attributes = tuple[tuple[str, AttributeValue], ...]

SERVICE = "service.name"
OVERFLOW: Attributes = (("otel.metric.overflow", True),)


class Instrument(NamedTuple):
    """A histogram of durations in seconds.

    attributes: of a span, those that tell its series from others.
    total: the counter, if any, that says the histogram's count once more.
    failed_total: likewise, of the series that are of failures alone.
    """

    name: str
    description: str
    attributes: tuple[str, ...]
    total: str = ""
    failed_total: str = ""


_HTTP = (
    "http.request.method",
    "http.response.status_code",
    "error.type",
    "network.protocol.version",
)
_RPC = ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type")
_DB = (
    "db.system.name",
    "db.namespace",
    "db.collection.name",
    "db.operation.name",
    "db.stored_procedure.name",
    "db.query.summary",
    "db.response.status_code",
    "error.type",
    "server.address",
    "server.port",
)
# A server's own name is what clients choose to call it by: left out, as the conventions advise.
_SERVER = ("server.address", "server.port")

HTTP_SERVER = Instrument(
    "http.server.request.duration",
    "Duration of HTTP server requests.",
    (*_HTTP, "url.scheme", "http.route"),
)
HTTP_CLIENT = Instrument(
    "http.client.request.duration",
    "Duration of HTTP client requests.",
    (*_HTTP, *_SERVER, "url.template"),
)
RPC_SERVER = Instrument(
    "rpc.server.call.duration",
    "Measures the duration of an incoming Remote Procedure Call (RPC).",
    _RPC,
)
RPC_CLIENT = Instrument(
    "rpc.client.call.duration",
    "Measures the duration of an outgoing Remote Procedure Call (RPC).",
    (*_RPC, *_SERVER),
)
DB_CLIENT = Instrument(
    "db.client.operation.duration", "Duration of database client operations.", _DB
)
DB_SERVER = Instrument(
    "wirespan.db.server.operation.duration",
    "Duration of database operations as their server saw them.",
    _DB,
)
_PAIR = ("client", "server", "connection_type", "failed")
GRAPH_SERVER = Instrument(
    "traces_service_graph_request_server",
    "Time for a request between two services as seen from the server",
    _PAIR,
    "traces_service_graph_request_total",
    "traces_service_graph_request_failed_total",
)
GRAPH_CLIENT = Instrument(
    "traces_service_graph_request_client",
    "Time for a request between two services as seen from the client",
    _PAIR,
)
INSTRUMENTS = (
    HTTP_SERVER,
    HTTP_CLIENT,
    RPC_SERVER,
    RPC_CLIENT,
    DB_CLIENT,
    DB_SERVER,
    GRAPH_SERVER,
    GRAPH_CLIENT,
)


def measured(shape: Shape) -> tuple[Instrument, Attributes]:
    """Return what measures the spans of a shape, and the attributes of their series."""
    known = dict(shape.attributes)
    server = shape.kind == KIND_SERVER
    if "rpc.system.name" in known:
        instrument = RPC_SERVER if server else RPC_CLIENT
    elif "db.system.name" in known:
        instrument = DB_SERVER if server else DB_CLIENT
    else:
        instrument = HTTP_SERVER if server else HTTP_CLIENT
        # Required; a request that wasn't seen whole may lack it.
        known.setdefault("http.request.method", "_OTHER")
        route = shape.name.partition(" ")[2]
        known.pop("url.template", None)
        if route.startswith("/"):
            known["http.route" if server else "url.template"] = route
    return instrument, tuple((key, known[key]) for key in instrument.attributes if key in known)


def failed(shape: Shape) -> bool:
    """Whether the spans of a shape are errors."""
    return shape.status == STATUS_ERROR


def service_of(shape: Shape) -> str:
    """Return the name of the service that made the spans of a shape."""
    return next((str(v) for key, v in shape.resource.attributes if key == SERVICE), "")


def connection_type(shape: Shape) -> str:
    """Return what the service graph calls the kind of connection, "" for calls."""
    return "database" if any(key == "db.system.name" for key, _ in shape.attributes) else ""


def pair(client: str, server: str, connection: str, failure: bool) -> Attributes:
    """Return the attributes of a pair of services."""
    return tuple(zip(_PAIR, (client, server, connection, failure), strict=True))
