"""What both ways in share: bounds, the bearer token, and the thread their servers run in.

One event loop serves both, so that a slow client costs a few hundred bytes and no thread.
Requests are decoded by two other threads. What is being received or waits for those is
bounded in bytes; beyond that, senders are asked to try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceResponse,
)

from collector.address import Address
from collector.collector import BusyError, Taken
from tracer import descriptors
from tracer.errors import UsageError, WirespanError
from tracer.export_tls import CERTIFICATE, KEY, mistaken

_Made = TypeVar("_Made")

MAX_MESSAGE_BYTES = 16 << 20
_TOKEN = re.compile(rb"(?:[A-Za-z0-9._~+/-]+=*)?")  # RFC 6750 section 2.1; a line may be empty
MAX_PENDING_BYTES = 64 << 20
DECODERS = 2
START_S = 30.0
STOP_S = 3.0

# google.rpc.Code: https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAUTHENTICATED = 3, 8, 16


# What is sent away here, before a Target hears of it, and what one more of each means.
MEANINGS: Mapping[str, str] = {
    "unauthorized": "requests without a token that is known: refused",
    "oversized": "requests too large, as sent or as unpacked: refused; those of OTLP/gRPC are "
    "among the unfit",
    "slow": "requests that took too long to arrive: given up",
    "crowded": "connections beyond the most at one time: sent away; OTLP/HTTP only, the library "
    "of OTLP/gRPC does not tell",
    "handshake": "connections whose TLS handshake failed or took too long; likewise",
    "restarted": "times the server of OTLP/gRPC had to be started anew, a request having ended it: "
    "calls under way were cut off, and come again",
    "unfit": "requests that are no export: another path or type, broken HTTP or gzip, a "
    "call cut off",
}


class Target(Protocol):
    """Where requests go: a Collector."""

    def offer(self, request: bytes, json: bool = False) -> Taken:
        """Take a request; raises MalformedError or BusyError."""

    def count_refused(self) -> None:
        """Count a request that was turned away and may come again."""


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files of a server; client_ca: who must have signed a client's certificate, or ""."""

    certificate: str
    key: str
    client_ca: str = ""


@dataclass(frozen=True, slots=True)
class IntakeConfig:
    """Where to listen, and the bounds. None: not listening by that protocol.

    tokens: bearer tokens of which a sender must show one; none: anybody may send.
    read_s: how long a request may take to arrive; idle_s: an HTTP connection without one.
    """

    grpc: Address | None = None
    http: Address | None = None
    tokens: tuple[bytes, ...] = ()
    tls: Tls | None = None
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_pending_bytes: int = MAX_PENDING_BYTES
    max_connections: int = 512
    read_s: float = 10.0
    idle_s: float = 60.0


class Gate:
    """Lets requests through to the target. All but `allowed` is for the loop's thread."""

    def __init__(self, target: Target, config: IntakeConfig) -> None:
        self.config = config
        self._target = target
        self._decoders = ThreadPoolExecutor(DECODERS, "wirespan-decode")
        self._pending_bytes = 0
        self._sent_away: Counter[str] = Counter()

    def count(self, name: str) -> None:
        """Count what was sent away; name: of MEANINGS."""
        self._sent_away[name] += 1

    def counts(self) -> dict[str, int]:
        """Numbers since the start, by the names of MEANINGS; for any thread."""
        return {name: self._sent_away[name] for name in MEANINGS}

    def allowed(self, authorization: str | bytes) -> bool:
        """Whether the value of an `authorization` header shows a token, where one is needed."""
        if not self.config.tokens:
            return True
        raw = authorization.encode() if isinstance(authorization, str) else authorization
        scheme, _, token = raw.partition(b" ")
        # All are compared, each in a time that tells nothing of it.
        matches = [hmac.compare_digest(token.strip(), known) for known in self.config.tokens]
        return scheme.lower() == b"bearer" and any(matches)

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Reserve bytes for a request; raises BusyError."""
        if self._pending_bytes + size > self.config.max_pending_bytes:
            self._target.count_refused()
            raise BusyError("too many requests are under way")
        self._pending_bytes += size
        try:
            yield
        finally:
            self._pending_bytes -= size

    async def work(self, made: Callable[[], _Made]) -> _Made:
        """Have something made in a decoding thread: never more at a time than there are."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, made)

    async def offer(self, request: bytes, json: bool = False) -> Taken:
        """Hand a request over to a decoding thread."""
        return await self.work(lambda: self._target.offer(request, json))

    def close(self) -> None:
        """Finish what is being decoded."""
        self._decoders.shutdown(cancel_futures=True)


def response(taken: Taken) -> ExportTraceServiceResponse:
    """Make the answer to an accepted request, with a partial success where it was one."""
    if not taken.rejected:
        return ExportTraceServiceResponse()
    return ExportTraceServiceResponse(
        partial_success=ExportTracePartialSuccess(
            rejected_spans=taken.rejected, error_message=taken.reason
        )
    )


def failure(code: int, message: str, retry_s: float | None = None) -> Status:
    """Make a google.rpc.Status; retry_s: when to come again."""
    status = Status(code=code, message=message)
    if retry_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(retry_s * 1000))
        detail = AnyMessage()
        detail.Pack(RetryInfo(retry_delay=delay))
        status.details.append(detail)
    return status


def read_tokens(path: str) -> tuple[bytes, ...]:
    """Read a file of bearer tokens, one a line; raises UsageError."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "see --token-file") from None
    tokens = tuple(line.strip() for line in lines if line.strip())
    if not tokens:
        raise UsageError(f"{path}: no token in it", "write one a line")
    for number, line in enumerate(lines, 1):
        if not _TOKEN.fullmatch(line.strip()):
            raise UsageError(
                f"{path}:{number} is no token",
                "letters, digits and -._~+/ in ASCII, = at the end (RFC 6750)",
            )
    return tokens


def server_context(tls: Tls) -> ssl.SSLContext:
    """Make a server's TLS context; raises UsageError."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, lambda: "")
        if tls.client_ca:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        files = [
            ("--tls-certificate", tls.certificate, CERTIFICATE),
            ("--tls-key", tls.key, KEY),
            ("--tls-client-ca", tls.client_ca, CERTIFICATE),
        ]
        paths = ", ".join(path for _, path, _ in files if path)
        wrong = UsageError(f"cannot use {paths}: {reason}", "they must be PEM files")
        raise (mistaken(files) or wrong) from None
    return context


class Server(Protocol):
    """A way in; both calls are made in the loop."""

    async def start(self) -> int:
        """Listen; returns the port. Raises OSError or RuntimeError."""

    async def stop(self) -> None:
        """Take no more requests, finish those under way."""


class Intake:
    """The servers that `config` asks for, running from construction to `close`.

    Raises WirespanError where an address cannot be listened on, UsageError for bad files.
    """

    def __init__(self, target: Target, config: IntakeConfig) -> None:
        if config.tls:
            server_context(config.tls)
        # The usual limit is for programs that use select(2), and less than all connections.
        descriptors.make_room()
        self._gate = Gate(target, config)
        self._servers: list[Server] = []
        self.ports: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self.on_escape(lambda context: self._loop.default_exception_handler(context))
        self._thread = threading.Thread(target=self._serve, name="wirespan-intake", daemon=True)
        self._thread.start()
        try:
            self._call(self._start(config), START_S)
        except TimeoutError:
            self.close()
            raise WirespanError(
                f"the OTLP intake did not come up within {START_S:.0f} s",
                "this machine is very busy: try again",
            ) from None
        except BaseException:
            self.close()
            raise

    def counts(self) -> dict[str, int]:
        """Numbers since the start, by the names of MEANINGS."""
        return self._gate.counts()

    def on_escape(self, tell: Callable[[dict[str, Any]], None]) -> None:
        """Have `tell` called with what goes wrong in the loop without anybody waiting for it."""

        def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            # What ends the library's server is told twice; once is counted: "restarted".
            if not isinstance(context.get("exception"), UnicodeDecodeError):
                tell(context)

        self._loop.set_exception_handler(handle)

    def close(self) -> None:
        """Stop listening, answer what is under way, end."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(TimeoutError):
            self._call(self._stop(), 2 * STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_S)
        self._gate.close()
        if not self._thread.is_alive():
            self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, work: Coroutine[Any, Any, None], timeout_s: float) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    async def _start(self, config: IntakeConfig) -> None:
        if config.http:
            from collector.intake_http import HttpServer

            await self._listen("http", HttpServer(self._gate), config.http)
        if config.grpc:
            from collector.intake_grpc import GrpcServer

            await self._listen("grpc", GrpcServer(self._gate), config.grpc)

    async def _listen(self, name: str, server: Server, address: Address) -> None:
        try:
            self.ports[name] = await server.start()
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or "the address is in use or not ours"
            raise WirespanError(
                f"cannot listen on {address} for OTLP/{name}: {reason}",
                f"see --listen-{name}; `ss -ltnp` tells who listens there",
            ) from None
        self._servers.append(server)

    async def _stop(self) -> None:
        await asyncio.gather(*(server.stop() for server in self._servers))
