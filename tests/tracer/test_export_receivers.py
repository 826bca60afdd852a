"""The exporter against real gRPC and HTTP receivers on the loopback."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import grpc
import pytest
from google.rpc.status_pb2 import Status

from tests.tracer.exporting import QUICK, balanced, batch, dropped, ids
from tests.tracer.receivers import (
    SERVE,
    WAIT_S,
    Answer,
    Pem,
    Receiver,
    free_port,
    http_receiver,
    partial_success,
)
from tracer.errors import UsageError
from tracer.export import Exporter, Transport, connect
from tracer.export_config import ExportConfig, Limits, user_agent
from tracer.export_reply import NOT_OTLP, Reply, Verdict, hinted
from tracer.export_tls import client_context
from tracer.otlp import Encoder


class Watched:
    """A real transport that tells when it has sent, and what came of it."""

    def __init__(self, inner: Transport) -> None:
        self.prepare, self.abort, self.close = inner.prepare, inner.abort, inner.close
        self.inner = inner
        self.replies: list[Reply] = []
        self.changed = threading.Condition()

    def send(self, body: bytes, timeout_s: float | None) -> Reply:
        reply = self.inner.send(body, timeout_s)
        with self.changed:
            self.replies.append(reply)
            self.changed.notify_all()
        return reply

    def wait(self, sends: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.replies) >= sends, WAIT_S)


def to(protocol: str, port: int, **changes: object) -> ExportConfig:
    made = ExportConfig.from_environment(
        {}, endpoint=f"http://127.0.0.1:{port}", protocol=protocol, limits=QUICK
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=list(SERVE))
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
def port(protocol: str, receiver: Receiver) -> Iterator[int]:
    with SERVE[protocol](receiver) as bound:
        yield bound


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pem, Pem]:
    directory = tmp_path_factory.mktemp("pem")
    return Pem.make(directory, "receiver"), Pem.make(directory, "client")


def test_a_certificate_and_its_key_are_told_apart(pems: tuple[Pem, Pem]) -> None:
    trusted, own = pems
    for chain, key, authority, message in (
        (own.key, own.certificate, trusted.certificate, f"OTLP client certificate: {own.key} hol"),
        (own.certificate, own.certificate, trusted.certificate, "OTLP client key: "),
        (own.certificate, own.key, trusted.key, f"OTLP certificate: {trusted.key} holds a private"),
    ):
        config = ExportConfig.from_environment(
            {}, endpoint="https://localhost:1", certificate=str(authority),
            client_key=str(key), client_certificate=str(chain),
        )  # fmt: skip
        with pytest.raises(UsageError, match=re.escape(message)):
            client_context(config)


def retryable(protocol: str) -> Answer:
    return Answer(grpc.StatusCode.UNAVAILABLE if protocol == "grpc" else 503, "later")


def refusal(protocol: str) -> Answer:
    body = Status(message="bad data").SerializeToString()
    if protocol == "grpc":
        return Answer(grpc.StatusCode.INVALID_ARGUMENT, "bad data")
    return Answer(400, body=body)


def test_spans_arrive(protocol: str, receiver: Receiver, port: int) -> None:
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 5))
    receiver.wait(lambda: len(receiver.spans) == 5)
    exporter.submit(batch(6, 3, text_bytes=20))
    receiver.wait(lambda: len(receiver.spans) == 8)
    assert exporter.close()
    assert receiver.spans == ids(1, 8)
    stats = exporter.stats()
    assert (stats.submitted_spans, stats.exported_spans, stats.queued_spans) == (8, 8, 0)
    assert stats.requests == len(receiver.accepted)
    assert (stats.retries, dropped(stats), stats.last_error, stats.queued_bytes) == (0, {}, "", 0)
    first = receiver.accepted[0]
    assert first.headers["user-agent"].startswith(user_agent())
    if protocol != "grpc":
        assert first.path == "/v1/traces"
        assert first.headers["content-type"] == "application/x-protobuf"
        assert "content-encoding" not in first.headers
        assert receiver.connections == 1, "the connection is kept"


def test_headers_and_gzip(protocol: str, receiver: Receiver, port: int) -> None:
    headers = (("x-token", "a b=c"), ("x-empty", ""))
    exporter = Exporter(to(protocol, port, headers=headers, gzip=True))
    exporter.submit(batch(1, 2000, text_bytes=100))
    assert exporter.close(WAIT_S)
    assert receiver.spans == ids(1, 2000)
    (request,) = receiver.accepted
    assert (request.headers["x-token"], request.headers["x-empty"]) == ("a b=c", "")
    if protocol != "grpc":
        assert request.headers["content-encoding"] == "gzip"
        assert request.size < 2000 * 30


def test_a_retryable_answer_is_retried(protocol: str, receiver: Receiver, port: int) -> None:
    receiver.script.extend([retryable(protocol)] * 3)
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 4))
    receiver.wait(lambda: len(receiver.accepted) == 1)
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert [r.spans for r in receiver.refused] == [ids(1, 4)] * 3
    assert receiver.spans == ids(1, 4)
    assert (stats.exported_spans, stats.requests, stats.retries) == (4, 4, 3)
    assert dropped(stats) == {}
    assert "UNAVAILABLE: later" in stats.last_error or "HTTP 503" in stats.last_error


def test_a_refusal_is_not_retried(protocol: str, receiver: Receiver, port: int) -> None:
    receiver.script.append(refusal(protocol))
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 4))
    receiver.wait(lambda: len(receiver.refused) == 1)
    exporter.submit(batch(5, 2))
    assert exporter.close(WAIT_S)
    assert receiver.spans == ids(5, 2)
    stats = exporter.stats()
    assert (stats.exported_spans, stats.retries, dropped(stats)) == (2, 0, {"rejected": 4})
    assert "bad data" in stats.last_error


def test_partial_success_is_counted(protocol: str, receiver: Receiver, port: int) -> None:
    receiver.script.append(Answer(body=partial_success(3, "too  old\n")))
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 10))
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert (stats.exported_spans, stats.requests, dropped(stats)) == (7, 1, {"rejected": 3})
    assert stats.last_error == "partial success: too old"


@pytest.mark.parametrize(("claimed", "rejected"), [(0, 0), (99, 10), (-5, 0)])
def test_odd_partial_successes(
    protocol: str, receiver: Receiver, port: int, claimed: int, rejected: int
) -> None:
    receiver.script.append(Answer(body=partial_success(claimed, "a warning")))
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 10))
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert stats.exported_spans == 10 - rejected
    assert stats.dropped["rejected"] == rejected
    assert "a warning" in stats.last_error
    assert balanced(stats)


def test_an_answer_that_is_no_otlp_is_remarked(
    protocol: str, receiver: Receiver, port: int
) -> None:
    receiver.script.append(Answer(body=b"\xff\xff not a message"))
    exporter = Exporter(to(protocol, port))
    exporter.submit(batch(1, 1))
    assert exporter.close(WAIT_S)
    assert exporter.stats().exported_spans == 1
    assert "not OTLP" in exporter.stats().last_error


def test_the_default_limit_is_what_grpc_receivers_take(receiver: Receiver) -> None:
    """More than 4 MiB would be refused for good."""
    with SERVE["grpc"](receiver) as port:
        exporter = Exporter(replace(to("grpc", port), limits=Limits(delay_s=0.0)))
        exporter.submit(batch(1, 8192, text_bytes=900))
        assert exporter.close(WAIT_S)
    assert sorted(receiver.spans) == ids(1, 8192)
    assert len(receiver.accepted) >= 2


def test_down_then_up(protocol: str, receiver: Receiver) -> None:
    port = free_port()
    config = to(protocol, port)
    transport = Watched(connect(config))
    exporter = Exporter(config, transport=transport)
    exporter.submit(batch(1, 5))
    transport.wait(3)
    exporter.submit(batch(6, 5))
    assert exporter.stats().queued_spans == 10
    assert exporter.stats().last_error
    with SERVE[protocol](receiver, port):
        receiver.wait(lambda: len(receiver.spans) == 10)
        assert exporter.close(WAIT_S)
    assert receiver.spans == ids(1, 10)
    assert exporter.stats().exported_spans == 10


def test_up_down_up(protocol: str, receiver: Receiver) -> None:
    """A receiver that restarts: the kept connection is gone."""
    with SERVE[protocol](receiver) as port:
        config = to(protocol, port)
        transport = Watched(connect(config))
        exporter = Exporter(config, transport=transport)
        exporter.submit(batch(1, 1))
        transport.wait(1)
        receiver.wait(lambda: receiver.spans == [1])
        # Only then can the server's handler see the end of the connection.
        if protocol != "grpc":
            receiver.script.append(Answer(close=True))
            exporter.submit(batch(2, 1))
            receiver.wait(lambda: receiver.spans == [1, 2])
    before = len(transport.replies)
    exporter.submit(batch(3, 1))
    transport.wait(before + 2)
    with SERVE[protocol](receiver, port):
        receiver.wait(lambda: 3 in receiver.spans)
        assert exporter.close(WAIT_S)
    assert dropped(exporter.stats()) == {}


def test_slow_receivers_run_into_the_timeout(protocol: str, receiver: Receiver, port: int) -> None:
    receiver.script.append(Answer(hang=True))
    exporter = Exporter(to(protocol, port, timeout_s=0.2))
    exporter.submit(batch(1, 3))
    receiver.wait(lambda: len(receiver.refused) == 1 and len(receiver.accepted) == 1)
    receiver.release.set()
    assert exporter.close(WAIT_S)
    stats = exporter.stats()
    assert (stats.exported_spans, stats.retries) == (3, 1)
    assert "DEADLINE_EXCEEDED" in stats.last_error or "no answer within" in stats.last_error


def test_close_cuts_a_request_off(protocol: str, receiver: Receiver, port: int) -> None:
    receiver.script.append(Answer(hang=True))
    exporter = Exporter(to(protocol, port, timeout_s=None))
    exporter.submit(batch(1, 3))
    receiver.wait(lambda: len(receiver.refused) == 1)
    exporter.submit(batch(4, 2))
    assert exporter.close(0.05)
    stats = exporter.stats()
    assert dropped(stats) == {"closed": 5}
    assert (stats.queued_spans, stats.queued_bytes) == (0, 0)


def test_tls(protocol: str, receiver: Receiver, pems: tuple[Pem, Pem]) -> None:
    server, client = pems
    with SERVE[protocol](receiver, pem=server, client=client) as port:
        exporter = Exporter(
            ExportConfig.from_environment(
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://localhost:{port}",
                    "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                    "OTEL_EXPORTER_OTLP_CERTIFICATE": str(server.certificate),
                    "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(client.key),
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(client.certificate),
                },
                limits=QUICK,
            )
        )
        exporter.submit(batch(1, 5000, text_bytes=300))
        assert exporter.close(WAIT_S)
    assert receiver.spans == ids(1, 5000)


def test_an_unknown_authority_is_not_trusted(
    protocol: str, receiver: Receiver, pems: tuple[Pem, Pem]
) -> None:
    server, other = pems
    with SERVE[protocol](receiver, pem=server) as port:
        config = replace(
            to(protocol, port), secure=True, certificate=str(other.certificate),
            limits=replace(QUICK, retry_s=0.0),
        )  # fmt: skip
        exporter = Exporter(config)
        exporter.submit(batch(1, 1))
        assert exporter.close(WAIT_S)
    assert receiver.spans == []
    assert dropped(exporter.stats()) in ({"failed": 1}, {"closed": 1})
    assert "certificate" in exporter.stats().last_error.lower() or protocol == "grpc"


def test_bad_tls_files_are_usage_errors(
    protocol: str, pems: tuple[Pem, Pem], tmp_path: Path
) -> None:
    server, client = pems
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate\n")
    secure = replace(to(protocol, 1), secure=True)
    for config, name in [
        (replace(secure, certificate=str(tmp_path / "missing.pem")), "missing.pem"),
        (replace(secure, certificate=str(junk)), "junk.pem"),
        (
            replace(secure, client_key=str(junk), client_certificate=str(client.certificate)),
            "junk.pem",
        ),
        (
            replace(secure, client_key=str(server.key), client_certificate=str(client.certificate)),
            str(client.certificate),
        ),
    ]:
        with pytest.raises(UsageError) as raised:
            Exporter(config)
        assert name in str(raised.value)
        assert raised.value.hint


# Which answers are retried: OTLP's tables


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_grpc_codes(receiver: Receiver, code: grpc.StatusCode) -> None:
    may_retry = code.name in (
        "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS",
    )  # fmt: skip
    receiver.script.append(Answer(code, "why"))
    with SERVE["grpc"](receiver) as port:
        transport = connect(to("grpc", port))
        reply = transport.send(Encoder().encode(batch(1, 1)), WAIT_S)
        transport.close()
    assert reply.verdict is (Verdict.RETRY if may_retry else Verdict.REJECTED)
    assert reply.message == f"{code.name}: why"
    assert reply.retry_after_s is None


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_grpc_throttling(receiver: Receiver, code: grpc.StatusCode) -> None:
    receiver.script.append(Answer(code, retry_s=2.5))
    with SERVE["grpc"](receiver) as port:
        transport = connect(to("grpc", port))
        reply = transport.send(Encoder().encode(batch(1, 1)), WAIT_S)
        transport.close()
    assert (reply.verdict, reply.retry_after_s) == (Verdict.RETRY, 2.5)


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 408, 413, 429, 500, 501, 502, 503, 504])
def test_http_codes(receiver: Receiver, code: int) -> None:
    body = b"<p>sorry\x00</p>\n" * 10_000
    receiver.script.append(Answer(code, body=body, content_type="text/html; charset=utf-8"))
    with http_receiver(receiver) as port:
        transport = connect(to("http/protobuf", port))
        reply = transport.send(Encoder().encode(batch(1, 1)), WAIT_S)
        transport.close()
    assert reply.verdict is (Verdict.RETRY if code in (429, 502, 503, 504) else Verdict.REJECTED)
    assert f"HTTP {code}" in reply.message
    assert reply.message.isprintable()
    assert len(reply.message) <= 300


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("text/html", b"<p>log in</p>", NOT_OTLP),
        ("application/x-protobuf", b"<p>log in</p>", NOT_OTLP),
        ("text/plain", b"", ""),
        ("application/json", b"{}", ""),
    ],
)
def test_http_answers_that_are_not_otlp(
    receiver: Receiver, content_type: str, body: bytes, message: str
) -> None:
    receiver.script.append(Answer(200, body=body, content_type=content_type))
    with http_receiver(receiver) as port:
        transport = connect(to("http/protobuf", port))
        reply = transport.send(Encoder().encode(batch(1, 1)), WAIT_S)
        transport.close()
    assert (reply.verdict, reply.message) == (Verdict.ACCEPTED, message)


def test_failed_connections_say_what_to_do() -> None:
    assert "https://" in hinted("the connection was closed", False)
    assert "CLIENT_CERTIFICATE" in hinted("the connection was closed", True)
    assert "http://" in hinted("[SSL: WRONG_VERSION_NUMBER] wrong version number", True)
    assert hinted("Connection refused", True) == "Connection refused"


def test_http_retry_after(receiver: Receiver) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    values = ["7", " 0", "soon", "-1", soon, past, "Wed, 21 Oct 2015 07:28:00"]
    receiver.script.extend(Answer(429, retry_after=value) for value in values)
    body = Encoder().encode(batch(1, 1))
    with http_receiver(receiver) as port:
        transport = connect(to("http/protobuf", port))
        waits = [transport.send(body, WAIT_S).retry_after_s for _ in values]
        transport.close()
    assert waits[4] is not None
    assert 0 < waits.pop(4) <= 100  # type: ignore[operator]
    assert waits == [7.0, 0.0, None, None, 0.0, 0.0]


def test_http_connections_that_receivers_end_are_made_anew(receiver: Receiver) -> None:
    """Ended silently after an answer, announced, and in place of an answer."""
    receiver.script.extend([Answer(close=True), Answer(), Answer(drop=True)])
    body = Encoder().encode(batch(1, 1))
    with http_receiver(receiver) as port:
        transport = connect(to("http/protobuf", port))
        verdicts = [transport.send(body, WAIT_S).verdict for _ in range(4)]
        transport.close()
    # The third was sent again at once, for its connection had been used before.
    assert verdicts == [Verdict.ACCEPTED] * 4
    assert receiver.connections == 3


def test_http_a_receiver_that_hangs_up_is_retried(receiver: Receiver) -> None:
    receiver.script.append(Answer(drop=True))
    with http_receiver(receiver) as port:
        transport = connect(to("http/protobuf", port))
        reply = transport.send(Encoder().encode(batch(1, 1)), WAIT_S)
        transport.close()
    assert reply.verdict is Verdict.RETRY


def test_http_to_a_port_of_grpc_says_so(receiver: Receiver) -> None:
    with SERVE["grpc"](receiver) as port:
        transport = connect(to("http/protobuf", port))
        reply = transport.send(transport.prepare(b""), WAIT_S)
        transport.close()
    assert reply.verdict is Verdict.RETRY
    assert "not HTTP/1" in reply.message and "--otlp-protocol grpc" in reply.message


def test_http_the_timeout_is_for_the_whole_answer() -> None:
    """A receiver that sends a byte now and then does not start the time anew."""
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-filler: ")
            while not stop.wait(0.01):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        transport = connect(to("http/protobuf", listener.getsockname()[1]))
        reply = transport.send(Encoder().encode(batch(1, 1)), 0.2)
        transport.close()
        stop.set()
        thread.join(WAIT_S)
    assert reply == Reply(Verdict.RETRY, "no answer within 0.2 s")
