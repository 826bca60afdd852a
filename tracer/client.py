"""`wirespan status` and `wirespan tail`: the other end of the control socket."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import grpc
from google.protobuf.json_format import MessageToJson

from proto.wirespan.v1 import control_pb2, control_pb2_grpc
from tracer import match
from tracer.errors import UsageError, WirespanError

STATUS_TIMEOUT_S = 10.0
FORMATS = {"text": control_pb2.FORMAT_TEXT, "json": control_pb2.FORMAT_JSON}


def status(socket_path: str, as_json: bool) -> int:
    """Print what the tracer says of itself. Raises WirespanError where none answers."""
    with _stub(socket_path) as stub:
        reply: control_pb2.StatusReply = stub.Status(
            control_pb2.StatusRequest(), timeout=STATUS_TIMEOUT_S
        )
    if as_json:
        print(
            MessageToJson(
                reply, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
            )
        )
    else:
        print("\n".join(status_lines(reply)))
    return 0


def tail(socket_path: str, wanted: str, output: str) -> int:
    """Print spans until interrupted or until the tracer ends.

    Raises UsageError for a bad filter, WirespanError where no tracer answers.
    """
    match.parse(wanted)  # a bad filter is bad whether or not a tracer answers
    request = control_pb2.TailRequest(filter=wanted, format=FORMATS[output])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may be any bytes
    dropped = 0
    with _stub(socket_path) as stub:
        replies = stub.Tail(request)
        try:
            for reply in replies:
                for line in reply.lines:
                    print(line)
                sys.stdout.flush()
                if reply.dropped > dropped:
                    dropped = reply.dropped
                    print(f"wirespan: {dropped} spans dropped: too slow a reader", file=sys.stderr)
        except KeyboardInterrupt:
            return 0
        finally:
            replies.cancel()
    print("wirespan: the tracer has ended", file=sys.stderr)
    return 0


@contextmanager
def _stub(socket_path: str) -> Iterator[control_pb2_grpc.ControlStub]:
    """Connect; gRPC's errors become ours."""
    _check_socket(socket_path)
    with grpc.insecure_channel(f"unix:{os.path.abspath(socket_path)}") as channel:
        try:
            yield control_pb2_grpc.ControlStub(channel)
        except grpc.RpcError as error:
            raise _explain(error, socket_path) from None


def _check_socket(socket_path: str) -> None:
    try:
        is_socket = stat.S_ISSOCK(os.stat(socket_path).st_mode)
    except FileNotFoundError:
        raise _nobody(socket_path) from None
    except OSError as error:
        raise WirespanError(
            f"cannot open {socket_path}: {error.strerror}", "run as the user that runs the tracer"
        ) from None
    if not is_socket:
        raise WirespanError(f"cannot open {socket_path}: not a socket", "see --control-socket")
    if not os.access(socket_path, os.R_OK | os.W_OK):
        raise WirespanError(
            f"cannot open {socket_path}: permission denied", "run as the user that runs the tracer"
        )


def _nobody(socket_path: str) -> WirespanError:
    return WirespanError(
        f"no tracer answers on {socket_path}", "start one: wirespan run (or see --control-socket)"
    )


def _explain(error: grpc.RpcError, socket_path: str) -> WirespanError:
    code = error.code()
    details = error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        message, _, hint = details.partition("\n")
        return UsageError(message, hint)
    if code is grpc.StatusCode.UNAVAILABLE:
        return _nobody(socket_path)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return WirespanError(
            f"the tracer on {socket_path} does not answer", "it may be stopped or overloaded"
        )
    return WirespanError(f"the tracer on {socket_path} refused: {details or code.name}")


def status_lines(reply: control_pb2.StatusReply) -> Iterator[str]:
    """Lay a status out as tables."""
    process = reply.process
    version = reply.version or "(not installed)"
    yield f"wirespan {version}, pid {reply.pid}, up {_duration(reply.uptime_seconds)}"
    yield (
        f"uses {_bytes(process.rss_bytes)} of memory, {process.cpu_fraction:.1%} of a core now, "
        f"{process.cpu_seconds:.1f} s of CPU so far"
    )
    yield f"traces {' '.join(reply.filters) or 'this whole host'}"
    yield f"keeps {reply.sampling or 'every trace'}"
    yield from _export_lines(reply.export)
    yield from _store_lines(reply.store)

    attached = sum(program.attached for program in reply.programs)
    yield ""
    yield f"programs ({attached} attached)"
    timed = any(program.run_count for program in reply.programs)
    yield from _table(
        (
            program.name,
            program.hook or program.kind,
            _state(program),
            f"{program.run_count} runs" if timed else "",
            f"{program.run_ns / program.run_count:.0f} ns each" if program.run_count else "",
        )
        for program in reply.programs
    )
    yield ""
    yield f"maps ({_bytes(sum(each.bytes for each in reply.maps))})"
    yield from _table(
        (each.name, each.type, f"{each.max_entries} entries", _bytes(each.bytes))
        for each in reply.maps
    )
    yield ""
    yield f"ring {_bytes(reply.ring.bytes)}, {reply.ring.fill:.1%} full; " + (
        f"buffer {_bytes(reply.ring.buffer_bytes)}, {reply.ring.buffer_fill:.1%} full"
    )
    yield ""
    window = max((rate.window_seconds for rate in reply.rates), default=0.0)
    yield f"counts (rate over the last {window:.0f} s)"
    rates = {rate.name: rate.per_second for rate in reply.rates}
    yield from _table(
        (count.name, str(count.value), f"{rates.get(count.name, 0.0):.1f}/s")
        for count in reply.counts
    )
    yield ""
    lost = sum(loss.value for loss in reply.losses)
    yield "losses" if lost else "losses: none"
    yield from _table((loss.name, str(loss.value), loss.meaning) for loss in reply.losses)


def _state(program: control_pb2.Program) -> str:
    if program.attached:
        return "attached"
    # A section without a place in it: other programs call this one.
    return "not attached" if "/" in program.hook else "called by others"


def _export_lines(export: control_pb2.Export) -> Iterator[str]:
    if not export.endpoint:
        yield "exports nothing: no OTLP endpoint is set"
        return
    yield f"exports to {export.endpoint} by {export.protocol}"
    yield from _table((count.name, str(count.value)) for count in export.counts)
    if export.last_error:
        yield f"  last error: {export.last_error}"


def _store_lines(store: control_pb2.Store) -> Iterator[str]:
    if not store.directory:
        yield f"stores nothing: {store.failure}" if store.failure else "stores nothing"
        return
    asked = f", queries on http://{store.query_address}" if store.query_address else ""
    yield f"stores spans in {store.directory}{asked}"
    yield from _table(
        (count.name, _bytes(count.value) if count.name.endswith("_bytes") else str(count.value))
        for count in store.counts
    )


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Align columns; those that look like numbers to the right."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if cell[:1].isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        yield f"  {line}".rstrip()


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
