"""OTLP/HTTP: one POST a request over one kept connection.

Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

import gzip
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit

from tracer.export_config import ExportConfig, user_agent
from tracer.export_reply import NOT_OTLP, Reply, Verdict, accepted, hinted, shorten, status_message
from tracer.export_tls import client_context

RETRYABLE = frozenset({429, 502, 503, 504})
# A server is there and knows nothing of what is sent.
UNKNOWN = frozenset({404, 405, 501})
CONTENT_TYPE = "application/x-protobuf"
# An answer is a few bytes; of a longer one no more than this is read.
MAX_ANSWER = 64 << 10
# Most likely a gRPC server, whose first words are a frame of HTTP/2.
NO_HTTP = "the answer is not HTTP/1; a port for OTLP/gRPC takes --otlp-protocol grpc"
# Level 1 takes a third of the time of the default and leaves 1.2 times the bytes.
GZIP_LEVEL = 1


class HttpTransport:
    """A connection to a receiver; made anew when it ends. `send` is for one thread."""

    def __init__(self, config: ExportConfig) -> None:
        url = urlsplit(config.endpoint)
        assert url.hostname is not None
        self._path = url._replace(scheme="", netloc="").geturl() or "/"
        self._headers = {
            **dict(config.headers),
            "content-type": CONTENT_TYPE,
            "user-agent": user_agent(),
        }
        self._gzip = config.gzip
        self._secure = config.secure
        if config.gzip:
            self._headers["content-encoding"] = "gzip"
        self._connection: http.client.HTTPConnection
        if config.secure:
            context = client_context(config)
            self._connection = http.client.HTTPSConnection(url.hostname, url.port, context=context)
        else:
            self._connection = http.client.HTTPConnection(url.hostname, url.port)
        self._deadline: float | None = None
        self._connection.response_class = cast(Any, self._response)
        self._aborted = False

    def prepare(self, body: bytes) -> bytes:
        """Compress `body` if so configured; zlib lets other threads run meanwhile."""
        return gzip.compress(body, GZIP_LEVEL, mtime=0) if self._gzip else body

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        """Send a prepared request and wait for the answer, `timeout_s` for all of it."""
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        reused = self._connection.sock is not None
        try:
            try:
                return self._post(body)
            except (ConnectionError, ssl.SSLEOFError):
                # Receivers close connections that were idle: that is no failure of theirs.
                if not reused or self._aborted:
                    raise
                self._connection.close()
                return self._post(body)
        except TimeoutError:
            self._connection.close()
            return Reply(Verdict.RETRY, f"no answer within {timeout_s} s")
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            return Reply(Verdict.RETRY, f"TLS: {hinted(shorten(error.verify_message), True)}")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            # Its subclass is an end without an answer.
            no_http = type(error) is http.client.BadStatusLine
            text = NO_HTTP if no_http else hinted(shorten(text), self._secure)
            return Reply(Verdict.RETRY, text)

    def abort(self) -> None:
        """End the request under way, from any thread; nothing can be sent any more."""
        self._aborted = True
        sock = self._connection.sock
        if sock is not None:
            try:
                # Of the plain socket: a TLS one would talk to its peer first.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more, which was the aim

    def close(self) -> None:
        """Give the connection up; the last call of the thread that sends."""
        self._connection.close()

    def _post(self, body: bytes) -> Reply:
        connection = self._connection
        connection.timeout = self._remaining()
        if connection.sock is not None:
            connection.sock.settimeout(connection.timeout)
        connection.request("POST", self._path, body, self._headers)
        with connection.getresponse() as response:
            answer = response.read(MAX_ANSWER)
            if not response.isclosed():
                connection.close()
            return _reply(response, answer)

    def _remaining(self) -> float | None:
        if self._deadline is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def _response(self, sock: socket.socket, **arguments: Any) -> http.client.HTTPResponse:
        return http.client.HTTPResponse(cast(Any, _Timed(sock, self._remaining)), **arguments)


class _Timed(io.RawIOBase):
    """What HTTPResponse needs of a socket, with one deadline for all reads.

    A socket's own timeout starts anew with every byte of a slow receiver.
    """

    def __init__(self, sock: socket.socket, remaining: Callable[[], float | None]) -> None:
        self._sock = sock
        # Keeps the socket open while there is something to read, as http.client relies on.
        self._file = sock.makefile("rb", buffering=0)
        self._remaining = remaining

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._remaining())
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _reply(response: http.client.HTTPResponse, answer: bytes) -> Reply:
    typed = response.getheader("content-type", CONTENT_TYPE).partition(";")[0].strip()
    is_protobuf = typed.lower() == CONTENT_TYPE
    if 200 <= response.status < 300:
        if is_protobuf:
            return accepted(answer)
        # OTLP's other form says the same in JSON; a page, of a login or a proxy, says nothing.
        otlp = not answer.strip() or typed.lower() == "application/json"
        return Reply(Verdict.ACCEPTED, "" if otlp else NOT_OTLP)
    text = status_message(answer) if is_protobuf else shorten(answer.decode("utf-8", "replace"))
    message = shorten(f"HTTP {response.status} {response.reason}: {text}")
    if response.status in RETRYABLE:
        after = response.getheader("retry-after")
        return Reply(Verdict.RETRY, message, retry_after_s=_retry_after_s(after))
    return Reply(Verdict.REJECTED, message, unknown_signal=response.status in UNKNOWN)


def _retry_after_s(value: str | None) -> float | None:
    """Read Retry-After, seconds or a date: https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
