"""OTLP/gRPC in: TraceService.Export.

The call is served as one whose request is a stream, which on the wire is the same: so a
client that opens calls and sends nothing meets our time limit, and the token is looked at
before a byte of the request is kept. The library bounds messages before and after
decompression (a test makes sure of it).
Source: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from collector.address import Address
from collector.collector import BusyError
from collector.decode import MalformedError
from collector.intake import (
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    STOP_S,
    Gate,
    failure,
    response,
)

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
# Of one connection; the others wait, which costs their sender nothing.
MAX_STREAMS = 16
MAX_CALLS = 512
MAX_METADATA_BYTES = 16 << 10
# Requests that are read at a time. Of the others the library takes no more than a window of
# 64 KiB, for it opens the window where somebody waits for the message.
MAX_READS = 16
# How long one is read while all of these are in use, in seconds.
TURN_S = 1.0


class GrpcServer:
    """Listens where the gate's configuration says."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._reads = asyncio.Semaphore(MAX_READS)
        self._server = self._made()
        self._watcher: asyncio.Task[None] | None = None

    def _made(self) -> aio.Server:
        config = self._gate.config
        server = aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_connection_idle_ms", math.ceil(config.idle_s * 10_000)),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.max_allowed_incoming_connections", config.max_connections),
                # Of TLS and of HTTP/2's preface and settings.
                ("grpc.server_handshake_timeout_ms", math.ceil(config.read_s * 1_000)),
                # Exporters with keep-alive of their own must not be turned away for it.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                # It would make windows larger than 64 KiB.
                ("grpc.http2.bdp_probe", 0),
                # A second collector on the same port would take half of the requests.
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        handler = grpc.stream_unary_rpc_method_handler(self._export)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),)
        )
        return server

    async def start(self) -> int:
        """Listen; returns the port. Raises RuntimeError."""
        address = self._gate.config.grpc
        assert address is not None
        port = await self._listen(address)
        self._watcher = asyncio.create_task(self._watch(Address(address.host, port)))
        return port

    async def _watch(self, address: Address) -> None:
        """Listen again whenever the library's server has ended by itself.

        One path that is not UTF-8, from anybody, ends that of grpcio 1.85: it decodes paths
        in the loop that accepts calls, outside of any call.
        """
        while True:
            with contextlib.suppress(UnicodeDecodeError):
                await self._server.wait_for_termination()
                return
            self._gate.count("restarted")
            await self._end(0.0)
            self._server = self._made()
            await self._listen(address)

    async def _listen(self, address: Address) -> int:
        config, target = self._gate.config, str(address)
        if config.tls is None:
            port = self._server.add_insecure_port(target)
        else:
            key, chain = Path(config.tls.key), Path(config.tls.certificate)
            ca = Path(config.tls.client_ca).read_bytes() if config.tls.client_ca else None
            credentials = grpc.ssl_server_credentials(
                [(key.read_bytes(), chain.read_bytes())], ca, ca is not None
            )
            port = self._server.add_secure_port(target, credentials)
        if port == 0:
            raise RuntimeError("not bound")
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Take no more calls, finish those under way."""
        self._stopping = True
        await self._end(STOP_S)
        if self._watcher:
            await self._watcher

    async def _end(self, within_s: float) -> None:
        """End the server when its calls are over, after `within_s` by force.

        In this order: a call that outlives its server writes to memory that is freed.
        """
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=within_s)
            for call in late:
                call.cancel()
            if late:
                await asyncio.wait(late, timeout=STOP_S)
        with contextlib.suppress(TimeoutError, UnicodeDecodeError):
            async with asyncio.timeout(STOP_S):
                await self._server.stop(None)

    async def _export(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        call = asyncio.current_task()
        assert call is not None
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        if self._stopping:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the collector stops")
        metadata = dict(context.invocation_metadata() or ())
        if not self._gate.allowed(metadata.get("authorization", "")):
            self._gate.count("unauthorized")
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed")
        try:
            async with asyncio.timeout(self._gate.config.read_s):
                request = await self._read(requests)
        except TimeoutError:
            self._gate.count("slow")
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request came too slowly")
        except StopAsyncIteration:
            self._gate.count("unfit")
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a call without a request")
        except asyncio.CancelledError:  # cut off, or too large for the library
            self._gate.count("unfit")
            raise
        try:
            with self._gate.room(len(request)):
                taken = await self._gate.offer(request)
        except MalformedError as error:
            status = failure(INVALID_ARGUMENT, str(error))
            _explain(context, status)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message)
        except BusyError as error:
            # Without RetryInfo, this code would make senders drop the request.
            status = failure(RESOURCE_EXHAUSTED, str(error), error.retry_s)
            _explain(context, status)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, status.message)
        return response(taken).SerializeToString()

    async def _read(self, requests: AsyncIterator[bytes]) -> bytes:
        """Read a request when its turn has come.

        Raises TimeoutError if it is slow while there is no other turn to be had.
        """
        async with self._reads:
            reading = asyncio.ensure_future(anext(requests))
            try:
                while not (await asyncio.wait((reading,), timeout=TURN_S))[0]:
                    if self._reads.locked():
                        raise TimeoutError
                return reading.result()
            finally:
                reading.cancel()


def _explain(context: Any, status: Any) -> None:
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
