"""OTLP/gRPC by gRPC's library, where tracer.export_h2 does not reach: proxies, xds, vsock.

Imported only there, for the library takes 20 MB of memory.
Source: https://opentelemetry.io/docs/specs/otlp/#otlpgrpc.
"""

from __future__ import annotations

from typing import cast

import grpc

from tracer.export_config import ExportConfig, user_agent
from tracer.export_reply import METHODS, Reply, accepted, of_status
from tracer.export_tls import client_context, read


class GrpcTransport:
    """A channel to a receiver; reconnects by itself. `send` is for one thread."""

    def __init__(self, config: ExportConfig) -> None:
        backoff_ms = int(config.limits.backoff_max_s * 1000)
        options = [
            ("grpc.primary_user_agent", user_agent()),
            # Retries are the exporter's: the library would neither count nor bound them.
            ("grpc.enable_retries", 0),
            # By default a channel waits up to two minutes before it connects again.
            ("grpc.initial_reconnect_backoff_ms", max(100, min(1000, backoff_ms))),
            ("grpc.min_reconnect_backoff_ms", max(100, min(1000, backoff_ms))),
            ("grpc.max_reconnect_backoff_ms", max(100, backoff_ms)),
        ]
        if config.secure:
            client_context(config)
            credentials = grpc.ssl_channel_credentials(
                *(
                    read(path) if path is not None else None
                    for path in (config.certificate, config.client_key, config.client_certificate)
                )
            )
            self._channel = grpc.secure_channel(config.endpoint, credentials, options)
        else:
            self._channel = grpc.insecure_channel(config.endpoint, options)
        self._export = self._channel.unary_unary(METHODS[config.signal], None, None)
        self._metadata = config.headers
        self._compression = grpc.Compression.Gzip if config.gzip else grpc.Compression.NoCompression

    def prepare(self, body: bytes) -> bytes:
        """Give `body` as it is: the library compresses, outside Python."""
        return body

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        """Send a prepared request and wait for the answer."""
        try:
            answer = self._export(
                body,
                timeout=timeout_s,
                metadata=self._metadata,
                compression=self._compression,
            )
        except grpc.RpcError as error:
            return _failure(error)
        return accepted(answer)

    def abort(self) -> None:
        """End the call under way, from any thread; nothing can be sent any more."""
        self._channel.close()

    def close(self) -> None:
        """Give the connection up; the last call of the thread that sends."""
        self._channel.close()


def _failure(error: grpc.RpcError) -> Reply:
    # What a blocking call raises is a call as well.
    call = cast(grpc.Call, error)
    details = b""
    for key, value in call.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            details = value
    return of_status(call.code().name, call.details() or "", details)
