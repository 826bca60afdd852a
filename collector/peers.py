"""The other collectors: where stubs go.

Every collector knows all others, and each span may be sent to any of them. A peer that
cannot be reached is tried for as long as its stubs can still be of use; nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from collector.forward import Forwarder
from collector.intake import Tls
from tracer.errors import UsageError
from tracer.export_config import ExportConfig, Limits

QUEUE_BYTES = 32 << 20
# A stub that comes when the trees it ties have been given out is of no use.
LIMITS = Limits(delay_s=0.05, backoff_initial_s=0.1, backoff_max_s=1.0, retry_s=5.0)
TIMEOUT_MS = 3_000


def connect(
    endpoints: Sequence[str], tokens: Sequence[bytes] = (), tls: Tls | None = None
) -> dict[str, Forwarder]:
    """Return a sink for each peer (http://HOST:PORT or https://HOST:PORT); raises UsageError.

    tokens: our own, the first of which is shown to peers. tls: our own files: with a client
    authority, peers must be signed by it, and we show our certificate.
    """
    headers = f"authorization={quote('Bearer ' + tokens[0].decode('ascii'))}" if tokens else None
    mutual = tls if tls and tls.client_ca else None
    peers: dict[str, Forwarder] = {}
    for endpoint in endpoints:
        secure = mutual if endpoint.startswith("https:") else None
        try:
            config = ExportConfig.from_environment(
                {},
                endpoint=endpoint,
                protocol="grpc",
                headers=headers,
                timeout=TIMEOUT_MS,
                certificate=secure.client_ca if secure else None,
                client_key=secure.key if secure else None,
                client_certificate=secure.certificate if secure else None,
                limits=LIMITS,
            )
        except UsageError:  # the rest of it was checked as our own
            raise UsageError(
                f"--peer: {endpoint!r} is not a gRPC endpoint",
                "write http://HOST:PORT, or https://HOST:PORT",
            ) from None
        peers[endpoint] = Forwarder(config, queue_bytes=QUEUE_BYTES)
    return peers
