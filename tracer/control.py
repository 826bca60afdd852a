"""The control service of a running tracer: gRPC on a Unix socket that only its user can open.

proto/wirespan/v1/control.proto says what is asked and answered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import grpc

from proto.wirespan.v1 import control_pb2, control_pb2_grpc
from tracer import match
from tracer.errors import UsageError, WirespanError
from tracer.sinks import TAIL_SUBSCRIBERS, Render, TailHub

# One thread for each tail, and some for status.
THREADS = TAIL_SUBSCRIBERS + 2
# How often a tail without traffic looks whether its caller is still there, in seconds.
TAIL_POLL_S = 0.5
# Spans a message: it stays far below gRPC's limit of 4 MiB.
TAIL_CHUNK = 200
STOP_GRACE_S = 1.0

Context = grpc.ServicerContext


class Control(control_pb2_grpc.ControlServicer):
    """Answers calls.

    status: makes the whole answer. renders: how spans become lines, by format.
    """

    def __init__(
        self,
        status: Callable[[], control_pb2.StatusReply],
        hub: TailHub,
        renders: Mapping[int, Render],
    ) -> None:
        self._status = status
        self._hub = hub
        self._renders = renders

    def Status(
        self, request: control_pb2.StatusRequest, context: Context
    ) -> control_pb2.StatusReply:
        """What is loaded, attached, counted and lost at this moment."""
        return self._status()

    def Tail(
        self, request: control_pb2.TailRequest, context: Context
    ) -> Iterator[control_pb2.TailReply]:
        """Spans as their exchanges end, until the caller cancels or the tracer stops.

        INVALID_ARGUMENT: the filter, with a hint after a line end. RESOURCE_EXHAUSTED:
        too many tails.
        """
        try:
            wanted = match.parse(request.filter)
        except UsageError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{error}\n{error.hint}")
        render = self._renders[request.format or control_pb2.FORMAT_TEXT]
        subscriber = self._hub.subscribe(wanted)
        if subscriber is None:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{TAIL_SUBSCRIBERS} tails are running already"
            )
        try:
            # The caller knows by this empty message that no later exchange escapes it.
            yield control_pb2.TailReply()
            while context.is_active() and not subscriber.ended:
                batch = subscriber.next(TAIL_POLL_S)
                if batch is None:
                    continue
                lines = list(render(batch))
                for start in range(0, len(lines), TAIL_CHUNK):
                    yield control_pb2.TailReply(
                        lines=lines[start : start + TAIL_CHUNK], dropped=subscriber.dropped
                    )
        finally:
            self._hub.unsubscribe(subscriber)


class ControlServer:
    """Serves `control` on a socket, whose path must be free."""

    def __init__(self, socket_path: str, control: Control) -> None:
        self._path = socket_path
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="control"),
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=THREADS,
        )
        control_pb2_grpc.add_ControlServicer_to_server(control, self._server)

    def start(self) -> None:
        """Listen. Raises WirespanError where the socket can't be made."""
        # Nobody may connect between bind and chmod.
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            os.chmod(self._path, 0o600)
        except (RuntimeError, OSError) as error:
            raise WirespanError(
                f"cannot listen on {self._path}: {error}", "name another place by --control-socket"
            ) from None
        finally:
            os.umask(before)
        self._server.start()

    def close(self) -> None:
        """Stop listening and end every call."""
        self._server.stop(STOP_GRACE_S).wait(STOP_GRACE_S * 2)
