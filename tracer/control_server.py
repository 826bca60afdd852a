"""gRPC's server side for a few callers on a Unix socket that only its user can open.

Each connection has a thread that reads it, each call one that answers it. A call's messages are
read whole before it is answered: there are no calls here that take more than one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error

from tracer import grpc_wire
from tracer.errors import WirespanError
from tracer.grpc_wire import CONTENT_TYPE, PREFIX, Wire

MAX_REQUEST = 64 << 10
MAX_CONNECTIONS = 32
STOP_S = 2.0
# What keeps a caller from being taken in for a while, and how long until the next try.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED)
PAUSE_S = 0.1

# Takes a request's message and whether the caller is still there; gives the answer's messages.
Method = Callable[[bytes, Callable[[], bool]], Iterator[bytes]]


class Refused(Exception):
    """A call ends with a status other than OK; code: as gRPC names it."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(details)
        self.code = code


class Server:
    """Serves `methods`, by path, on a socket, whose path must be free. calls: at a time."""

    def __init__(self, path: str, methods: Mapping[str, Method], calls: int) -> None:
        self._path = path
        self._methods = methods
        self._free = threading.Semaphore(calls)
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._connections: dict[_Connection, None] = {}  # the oldest first
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def start(self) -> None:
        """Listen. Raises WirespanError where the socket can't be made."""
        self._socket = socket.socket(socket.AF_UNIX)
        # Nobody may connect between bind and chmod.
        before = os.umask(0o177)
        try:
            self._socket.bind(self._path)
            os.chmod(self._path, 0o600)
            self._socket.listen()
        except OSError as error:
            self._socket.close()
            raise WirespanError(
                f"cannot listen on {self._path}: {error.strerror or error}",
                "name another place by --control-socket",
            ) from None
        finally:
            os.umask(before)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and end every call."""
        if self._socket is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(STOP_S)
            with contextlib.suppress(OSError):
                os.unlink(self._path)
        self._socket.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.end(STOP_S / max(1, len(connections)))

    def _accept(self) -> None:
        assert self._socket is not None
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in _PASSING:
                    return  # closed
                time.sleep(PAUSE_S)  # the caller waits in line
                continue
            with self._lock:
                if len(self._connections) >= MAX_CONNECTIONS and not self._make_room():
                    sock.close()
                    continue
                connection = _Connection(sock, self._methods, self._free, self._gone)
                self._connections[connection] = None
            connection.start()

    def _make_room(self) -> bool:
        """Hang up on one that asks nothing; tells whether there was one. Under the lock."""
        idle = next((each for each in self._connections if each.idle), None)
        if idle is not None:
            del self._connections[idle]
            idle.hang_up()
        return idle is not None

    def _gone(self, connection: _Connection) -> None:
        with self._lock:
            self._connections.pop(connection, None)


class _Call:
    """A call under way: what came of its request, and whether the caller still wants it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.request = bytearray()
        self.wanted = True
        self.asked = False


class _Connection:
    """One caller."""

    def __init__(
        self,
        sock: socket.socket,
        methods: Mapping[str, Method],
        free: threading.Semaphore,
        gone: Callable[[_Connection], None],
    ) -> None:
        self._sock = sock
        self._methods = methods
        self._free = free
        self._gone = gone
        # Guards the wire and the calls; notified when there may be room to send, or no need.
        self._changed = threading.Condition()
        self._calls: dict[int, _Call] = {}
        self._threads: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self._read, name="control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return not self._threads

    def hang_up(self) -> None:
        """End the connection; never blocks."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def end(self, timeout: float) -> None:
        """Let calls that end say so, then hang up; in `timeout` seconds at most."""
        with self._changed:
            threads = list(self._threads)
        for thread in threads:
            thread.join(timeout / len(threads))
        self.hang_up()
        self._thread.join(timeout)

    def _read(self) -> None:
        try:
            with self._changed:
                self._wire = Wire(self._sock, client=False)
            while True:
                data = self._sock.recv(grpc_wire.RECEIVE_BYTES)
                with self._changed:
                    for event in self._wire.take(data):
                        self._take(event)
                    self._wire.flush()
                    self._changed.notify_all()
        except (OSError, H2Error):
            pass  # a caller that went away, or speaks no HTTP/2
        finally:
            with self._changed:
                for call in self._calls.values():
                    call.wanted = False
                self._changed.notify_all()
            self._sock.close()
            self._gone(self)

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            headers = dict(event.headers or ())
            path = headers.get(b":path", b"").decode("ascii", "replace")
            self._calls[event.stream_id or 0] = _Call(path)
        call = self._calls.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, DataReceived):
            size, stream_id = event.flow_controlled_length or 0, event.stream_id or 0
            self._wire.h2.acknowledge_received_data(size, stream_id)
            if call:
                # What is cut off here can't be read, and so is refused.
                call.request += (event.data or b"")[: MAX_REQUEST - len(call.request)]
        elif isinstance(event, StreamReset) and call:
            call.wanted = False
        elif isinstance(event, StreamEnded) and call and not call.asked:
            call.asked = True
            thread = threading.Thread(
                target=self._answer, args=(event.stream_id or 0, call), name="call", daemon=True
            )
            self._threads.add(thread)
            thread.start()

    def _answer(self, stream_id: int, call: _Call) -> None:
        begun = False
        try:
            code, details = "OK", ""
            try:
                with self._room():
                    method = self._methods.get(call.path)
                    if method is None:
                        raise Refused("UNIMPLEMENTED", f"no method {call.path}")
                    for body in _heard(method(_request(call), lambda: call.wanted)):
                        if not begun:
                            self._head(stream_id, call)
                            begun = True
                        self._send(stream_id, call, PREFIX.pack(False, len(body)) + body)
            except Refused as error:
                code, details = error.code, str(error)
            except Exception as error:
                if isinstance(error, OSError | H2Error):
                    raise
                code, details = "INTERNAL", f"{type(error).__name__}: {error}"
            self._end(stream_id, call, grpc_wire.trailers(code, details), begun)
        except (OSError, H2Error):
            pass  # gone, and nobody to tell
        finally:
            with self._changed:
                self._calls.pop(stream_id, None)
                self._threads.discard(threading.current_thread())

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        if not self._free.acquire(blocking=False):
            raise Refused("RESOURCE_EXHAUSTED", "too many calls at a time")
        try:
            yield
        finally:
            self._free.release()

    def _head(self, stream_id: int, call: _Call) -> None:
        with self._changed:
            if call.wanted:
                self._wire.h2.send_headers(stream_id, _HEAD)
                self._wire.flush()

    def _send(self, stream_id: int, call: _Call, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            with self._changed:
                self._changed.wait_for(lambda: not call.wanted or self._wire.room(stream_id))
                if not call.wanted:
                    return
                room = self._wire.room(stream_id)
                self._wire.send(stream_id, view[:room])
            view = view[room:]

    def _end(
        self, stream_id: int, call: _Call, trailers: list[tuple[str, str]], begun: bool
    ) -> None:
        with self._changed:
            if not call.wanted:
                with contextlib.suppress(H2Error):
                    self._wire.h2.reset_stream(stream_id, ErrorCodes.CANCEL)
                return
            headers = trailers if begun else [*_HEAD, *trailers]
            self._wire.h2.send_headers(stream_id, headers, end_stream=True)
            self._wire.flush()


def _heard(bodies: Iterator[bytes]) -> Iterator[bytes]:
    """Have the caller hear of a method's own errors, which are not those of sending to him."""
    try:
        yield from bodies
    except (OSError, H2Error) as error:
        raise Refused("INTERNAL", f"{type(error).__name__}: {error}") from None


_HEAD = [(":status", "200"), ("content-type", CONTENT_TYPE)]


def _request(call: _Call) -> bytes:
    try:
        return grpc_wire.message(bytes(call.request), MAX_REQUEST)
    except ValueError as error:
        raise Refused("INVALID_ARGUMENT", f"the request can't be read: {error}") from None
