"""The control service of a running tracer: gRPC on a Unix socket that only its user can open.

proto/wirespan/v1/control.proto says what is asked and answered. Its messages are loaded with the
first call: a tracer that nobody asks need not carry protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from tracer import match
from tracer.control_server import Refused, Server
from tracer.errors import UsageError
from tracer.sinks import TAIL_SUBSCRIBERS, Render, TailHub

if TYPE_CHECKING:
    from proto.wirespan.v1 import control_pb2

SERVICE = "/wirespan.v1.Control"
# Of the enum Format, whose 0 stands for TEXT.
TEXT, JSON = 1, 2
# One for each tail, and some for status.
CALLS = TAIL_SUBSCRIBERS + 2
# How often a tail without traffic looks whether its caller is still there, in seconds.
TAIL_POLL_S = 0.5
# Spans a message: it stays far below gRPC's limit of 4 MiB.
TAIL_CHUNK = 200


class Control:
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

    def status(self, request: bytes, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """What is loaded, attached, counted and lost at this moment."""
        yield self._status().SerializeToString()

    def tail(self, request: bytes, wanted: Callable[[], bool]) -> Iterator[bytes]:
        """Spans as their exchanges end, until the caller cancels or the tracer stops.

        INVALID_ARGUMENT: the filter, with a hint after a line end. RESOURCE_EXHAUSTED:
        too many tails.
        """
        from google.protobuf.message import DecodeError

        from proto.wirespan.v1 import control_pb2

        try:
            asked = control_pb2.TailRequest.FromString(request)
            matching = match.parse(asked.filter)
            render = self._renders[asked.format or TEXT]
        except UsageError as error:
            raise Refused("INVALID_ARGUMENT", f"{error}\n{error.hint}") from None
        except (DecodeError, KeyError):
            raise Refused("INVALID_ARGUMENT", "no TailRequest that is known here") from None
        subscriber = self._hub.subscribe(matching)
        if subscriber is None:
            raise Refused("RESOURCE_EXHAUSTED", f"{TAIL_SUBSCRIBERS} tails are running already")
        try:
            # The caller knows by this empty message that no later exchange escapes it.
            yield b""
            while wanted() and not subscriber.ended:
                batch = subscriber.next(TAIL_POLL_S)
                if batch is None:
                    continue
                lines = list(render(batch))
                for start in range(0, len(lines), TAIL_CHUNK):
                    yield control_pb2.TailReply(
                        lines=lines[start : start + TAIL_CHUNK], dropped=subscriber.dropped
                    ).SerializeToString()
        finally:
            self._hub.unsubscribe(subscriber)


class ControlServer(Server):
    """Serves `control` on a socket, whose path must be free."""

    def __init__(self, socket_path: str, control: Control) -> None:
        methods = {f"{SERVICE}/Status": control.status, f"{SERVICE}/Tail": control.tail}
        super().__init__(socket_path, methods, CALLS)
