"""Store and query API together, for a tracer or collector without a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from collector.api import Api
from collector.http_server import DEFAULT_ADDRESS, Server
from collector.model import Span
from collector.query import Queries
from collector.store import Limits, Store, to_stderr

DEFAULT_DIRECTORY = "/var/lib/wirespan"


class Embedded:
    """`start`, then `submit` from any thread, then `close`.

    address: of the query API, HOST:PORT, port 0 for any, "" for none.
    """

    def __init__(
        self,
        directory: str | Path = DEFAULT_DIRECTORY,
        limits: Limits | None = None,
        address: str = DEFAULT_ADDRESS,
        message: Callable[[str], None] = to_stderr,
    ) -> None:
        self.store = Store(directory, limits or Limits(), message)
        self.queries = Queries(self.store)
        self._address = address
        self._server: Server | None = None

    @property
    def address(self) -> str:
        """Where queries are answered; "" where they are not."""
        return self._server.address if self._server is not None else ""

    def start(self) -> None:
        """Open the store and listen; raises WirespanError, then nothing is left open."""
        server = Server(Api(self.queries).answer, self._address) if self._address else None
        try:
            self.store.start()
        except BaseException:
            if server is not None:
                server.close()
            raise
        if server is not None:
            server.start()
        self._server = server

    def submit(self, spans: Sequence[Span]) -> None:
        """Take spans without blocking; what does not fit is counted."""
        self.store.submit(spans)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until what was submitted can be asked for."""
        return self.store.flush(timeout_s)

    def losses(self) -> Mapping[str, int]:
        """Count what was lost, by the names of collector.store.LOSSES."""
        return self.store.losses()

    def counts(self) -> Mapping[str, int]:
        """Count what was stored and what is there."""
        return self.store.counts()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop listening, write what waits, close the store."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.store.close(timeout_s)
