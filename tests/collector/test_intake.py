"""The two ways in, with real exporters, and with clients that mean no good."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import re
import resource
import socket
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import h2.connection
import h2.exceptions
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from collector import intake_grpc
from collector.address import Address
from collector.collector import Collector, Settings
from collector.decode import MalformedError
from collector.intake import Intake, IntakeConfig, Tls, read_tokens, server_context
from collector.intake_http import TooLargeError, unpack
from collector.limits import Limits
from tests.collector.otlp_messages import Keep, message, request
from tests.tracer.receivers import Pem
from tracer.errors import UsageError, WirespanError
from tracer.export import connect
from tracer.export_config import ExportConfig
from tracer.export_grpc import GrpcTransport
from tracer.export_reply import METHODS, Verdict
from tracer.export_tls import invalid

ANY = Address("127.0.0.1", 0)
CONTENT = {"content-type": "application/x-protobuf"}
BODY = request([message(1, 2)])


class Stubborn(Keep):
    """A sink that wants nothing."""

    is_full = True

    def full(self) -> bool:
        return self.is_full


class Running:
    def __init__(self, config: IntakeConfig, sink: Keep) -> None:
        self.sink = sink
        self.collector = Collector([sink], Settings(Limits(hold_s=0.05, max_hold_s=0.05)))
        self.intake = Intake(self.collector, config)
        self.http, self.grpc = self.intake.ports["http"], self.intake.ports["grpc"]

    def wait(self, count: int) -> None:
        end = time.monotonic() + 5
        while len(self.sink.spans) < count and time.monotonic() < end:
            time.sleep(0.02)
        assert len(self.sink.spans) == count

    def sent_away(self, counts: dict[str, int]) -> None:
        """What was sent away comes to this; a client may know before it is counted."""
        end = time.monotonic() + 5
        while +Counter(self.intake.counts()) != counts and time.monotonic() < end:
            time.sleep(0.02)
        assert +Counter(self.intake.counts()) == counts

    def post(
        self, body: bytes, headers: dict[str, str] | None = None, path: str = "/v1/traces"
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=10)
        try:
            connection.request("POST", path, body, CONTENT | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def raw(self, data: bytes, timeout: float = 5) -> bytes:
        with socket.create_connection(("127.0.0.1", self.http), timeout) as sock:
            sock.sendall(data)
            out = b""
            while part := sock.recv(65536):
                out += part
            return out


@contextmanager
def running(sink: Keep | None = None, **settings: object) -> Iterator[Running]:
    config = IntakeConfig(grpc=ANY, http=ANY, **settings)  # type: ignore[arg-type]
    run = Running(config, sink or Keep())
    try:
        yield run
    finally:
        run.intake.close()
        run.collector.close()


@pytest.mark.parametrize("way", ["grpc", "grpc-gzip", "http", "http-gzip"])
def test_spans_of_a_real_sdk(way: str) -> None:
    with running() as run:
        exporter: SpanExporter
        if way.startswith("grpc"):
            kind = grpc.Compression.Gzip if "gzip" in way else None
            exporter = GrpcExporter(f"127.0.0.1:{run.grpc}", insecure=True, compression=kind)
        else:
            packed = Compression.Gzip if "gzip" in way else Compression.NoCompression
            url = f"http://127.0.0.1:{run.http}/v1/traces"
            exporter = HttpExporter(url, compression=packed)
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("outer"), tracer.start_as_current_span("inner") as inner:
            inner.set_attribute("answer", 42)
        provider.shutdown()
        run.wait(2)
        by_name = {span.name: span for span in run.sink.spans}
        assert by_name["inner"].parent_span_id == by_name["outer"].span_id
        assert by_name["inner"].trace_id == by_name["outer"].trace_id
        assert by_name["inner"].attributes["answer"] == 42


def test_json_and_partial_success() -> None:
    with running() as run:
        spans = [{"traceId": "01" * 16, "spanId": "02" * 8, "name": "x", "kind": 2},
                 {"traceId": "00" * 16, "spanId": "02" * 8}]  # fmt: skip
        document = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
        kind = {"content-type": "application/json; charset=utf-8"}
        status, answer, _ = run.post(json.dumps(document).encode(), kind)
        assert status == 200
        assert json.loads(answer)["partialSuccess"]["rejectedSpans"] == "1"
        run.wait(1)


def test_chunked_expect_and_keep_alive() -> None:
    with running() as run:
        head = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
        chunked = head + b"transfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
        for at in range(0, len(BODY), 7):
            part = BODY[at : at + 7]
            chunked += f"{len(part):x};x=y\r\n".encode() + part + b"\r\n"
        chunked += b"0\r\ntrailer: 1\r\n\r\n"
        last = head + f"connection: close\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + BODY
        answer = run.raw(chunked + last)
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        run.wait(1)  # the second was a duplicate
        assert run.collector.counts()["duplicate"] == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /v1/traces HTTP/1.1\r\n\r\n", 405),
        (b"POST /other HTTP/1.1\r\n\r\n", 404),
        (b"POST /v1/traces HTTP/1.1\r\ncontent-type: text/plain\r\n\r\n", 415),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENT\r\n\r\n", 411),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTcontent-length: -1\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTcontent-length: 99999999\r\n\r\n", 413),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTcontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTtransfer-encoding: chunked\r\n"
         b"content-length: 2\r\n\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTtransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTtransfer-encoding: chunked\r\n\r\nfffffff\r\n", 413),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTcontent-encoding: br\r\n\r\n", 415),
        (b"POST /v1/traces HTTP/1.1\r\nCONTENTexpect: x\r\ncontent-length: 2\r\n\r\n", 417),
    ],
)  # fmt: skip
def test_bad_requests(data: bytes, status: int) -> None:
    with running() as run:
        data = data.replace(b"CONTENT", b"content-type: application/x-protobuf\r\n")
        answer = run.raw(data)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        counted = "oversized" if status in (413, 431) else "unfit"
        run.sent_away({counted: 1})
        assert run.post(BODY)[0] == 200


def test_what_is_not_otlp() -> None:
    with running() as run:
        assert run.post(b"\xff\xff\xff")[0] == 400
        channel = grpc.insecure_channel(f"127.0.0.1:{run.grpc}")
        with channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(METHODS["traces"])(b"\xff\xff\xff")
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert run.collector.counts()["malformed"] == 2


def test_bombs() -> None:
    bomb = gzip.compress(bytes(300 << 20), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with running() as run:
        assert run.post(bomb, {"content-encoding": "gzip"})[0] == 413
        assert run.post(b"no gzip", {"content-encoding": "gzip"})[0] == 400
        channel = grpc.insecure_channel(
            f"127.0.0.1:{run.grpc}",
            [("grpc.max_send_message_length", -1)],
            grpc.Compression.Gzip,
        )
        with channel, pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(METHODS["traces"])(b"\x0a" * (40 << 20))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        run.sent_away({"oversized": 1, "unfit": 2})
        assert run.post(BODY)[0] == 200
    # The client's own 40 MB are in it.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000


def test_unpack() -> None:
    whole = gzip.compress(b"a" * 50) + gzip.compress(b"b" * 50)
    assert unpack(whole, 100) == b"a" * 50 + b"b" * 50
    with pytest.raises(TooLargeError):
        unpack(whole, 99)
    for bad in (whole[:-1], b"\x1f\x8b", b"no", gzip.compress(b"") * 1000):
        with pytest.raises(MalformedError):
            unpack(bad, 100)


def test_slow_clients_are_sent_away_and_hold_nobody_up() -> None:
    with running(read_s=0.5, idle_s=1.0) as run:
        head = b"POST /v1/traces HTTP/1.1\r\ncontent-type: application/x-protobuf\r\n"
        starts = [b"P", head, head + b"content-length: 100\r\n\r\nx"] * 20
        socks = [socket.create_connection(("127.0.0.1", run.http), 5) for _ in starts]
        for sock, data in zip(socks, starts, strict=True):
            sock.sendall(data)
        channel = grpc.insecure_channel(f"127.0.0.1:{run.grpc}")
        silent = channel.stream_unary(METHODS["traces"]).future(iter(_Never()))
        began = time.monotonic()
        assert run.post(BODY)[0] == 200
        assert send(_grpc(run.grpc)) is Verdict.ACCEPTED
        assert time.monotonic() - began < 2
        for sock in socks:
            assert sock.recv(100).startswith(b"HTTP/1.1 408 ")
            sock.close()
        assert silent.exception(5).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        channel.close()
        run.sent_away({"slow": len(starts) + 1})


class _Never:
    """An iterator that gives nothing for a while."""

    def __iter__(self) -> _Never:
        return self

    def __next__(self) -> bytes:
        time.sleep(2)
        raise StopIteration


def send(config: ExportConfig) -> Verdict:
    transport = connect(config)
    try:
        return transport.send(BODY, 5).verdict
    finally:
        transport.close()


def _grpc(port: int, headers: tuple[tuple[str, str], ...] = ()) -> ExportConfig:
    return ExportConfig("grpc", f"127.0.0.1:{port}", headers=headers)


def test_too_many_connections() -> None:
    with running(max_connections=3) as run:
        socks = [socket.create_connection(("127.0.0.1", run.http), 5) for _ in range(3)]
        time.sleep(0.1)
        answer = run.raw(b"")
        assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nretry-after: 1\r\n" in answer
        for sock in socks:
            sock.close()
        run.sent_away({"crowded": 1})


def test_too_many_connections_that_say_nothing_of_tls(tmp_path: Path) -> None:
    """They count before their handshake is through, which may never come."""
    pem = Pem.make(tmp_path, "localhost")
    tls = Tls(str(pem.certificate), str(pem.key))
    with running(tls=tls, max_connections=3) as run, contextlib.ExitStack() as stack:
        socks = []
        for _ in range(5):
            socks.append(stack.enter_context(socket.create_connection(("127.0.0.1", run.http), 5)))
            time.sleep(0.05)
        assert [sock.recv(1) for sock in socks[3:]] == [b"", b""]
        run.sent_away({"crowded": 2})
        socks[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert socks[0].recv(1) in (b"", b"\x15")  # closed, perhaps with an alert
        run.sent_away({"crowded": 2, "handshake": 1})


def test_handshakes_that_take_too_long(tmp_path: Path) -> None:
    pem = Pem.make(tmp_path, "localhost")
    with running(tls=Tls(str(pem.certificate), str(pem.key)), read_s=0.3) as run:
        with socket.create_connection(("127.0.0.1", run.http), 5) as sock:
            assert sock.recv(1) == b""
        run.sent_away({"handshake": 1})


def test_too_many_connections_of_grpc() -> None:
    with running(max_connections=3) as run, contextlib.ExitStack() as stack:
        own = [("grpc.use_local_subchannel_pool", 1)]
        for number in range(6):
            channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{run.grpc}", own))
            try:
                channel.unary_unary(METHODS["traces"])(BODY, timeout=3)
                taken = True
            except grpc.RpcError as error:
                taken = False
                assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert taken == (number < 3)


@pytest.mark.parametrize("sent", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 9])
def test_grpc_connections_that_never_begin_are_closed(sent: bytes) -> None:
    with running(read_s=0.5) as run:
        with socket.create_connection(("127.0.0.1", run.grpc), 5) as sock:
            sock.sendall(sent)
            began = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
            assert time.monotonic() - began < 4
        assert send(_grpc(run.grpc)) is Verdict.ACCEPTED


def _unfinished(port: int, calls: int, size: int) -> tuple[socket.socket, int]:
    """Open calls, none of whose messages ends; return the connection and how much it took."""
    wire = h2.connection.H2Connection()
    wire.initiate_connection()
    sock = socket.create_connection(("127.0.0.1", port), 5)
    sock.settimeout(1)
    left = {}
    for number in range(calls):
        headers = [(":method", "POST"), (":scheme", "http"), (":path", METHODS["traces"])]
        headers += [(":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc")]
        wire.send_headers(2 * number + 1, headers)
        wire.send_data(2 * number + 1, struct.pack(">?I", False, size))
        left[2 * number + 1] = size - 1
    sock.sendall(wire.data_to_send())
    taken = 0
    with contextlib.suppress(TimeoutError, h2.exceptions.ProtocolError):
        while data := sock.recv(1 << 16):
            wire.receive_data(data)
            for stream, rest in left.items():
                room = min(rest, wire.local_flow_control_window(stream))
                for at in range(0, room, wire.max_outbound_frame_size):
                    part = min(room - at, wire.max_outbound_frame_size)
                    wire.send_data(stream, bytes(part))
                    taken += part
                left[stream] -= room
            sock.sendall(wire.data_to_send())
    return sock, taken


@contextmanager
def _held(port: int, connections: int, size: int) -> Iterator[int]:
    """Hold 16 unfinished messages on each of some connections; gives how much was taken."""
    with ThreadPoolExecutor(connections) as pool:
        held = list(pool.map(lambda _: _unfinished(port, 16, size), range(connections)))
    with contextlib.ExitStack() as stack:
        for sock, _ in held:
            stack.enter_context(sock)
        yield sum(taken for _, taken in held)


def test_unfinished_messages_of_grpc_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_grpc, "TURN_S", 60.0)
    size = 1 << 20
    with running(max_message_bytes=size) as run, _held(run.grpc, 3, size) as taken:
        # All of those that are read, a window of the others.
        assert 16 * (size - 64) < taken < 16 * size + 48 * (70 << 10)


def test_unfinished_messages_of_grpc_hold_nobody_up_for_long() -> None:
    size = 1 << 20
    with running(max_message_bytes=size, read_s=20) as run, _held(run.grpc, 3, size):
        assert send(_grpc(run.grpc)) is Verdict.ACCEPTED


def test_a_full_sink_makes_senders_try_again() -> None:
    sink = Stubborn()
    with running(sink) as run:
        status, _, headers = run.post(BODY)
        assert (status, headers["retry-after"]) == (429, "1")
        reply = GrpcTransport(_grpc(run.grpc)).send(BODY, 5)
        assert reply.verdict is Verdict.RETRY
        assert reply.retry_after_s == 1.0
        sink.is_full = False
        assert run.post(BODY)[0] == 200
        run.wait(1)
        assert run.collector.counts()["refused"] == 2


def test_pending_bytes_are_bounded() -> None:
    with running(max_pending_bytes=100) as run:
        status, _, headers = run.post(b"x" * 101)
        assert (status, headers["retry-after"]) == (429, "1")
        assert run.post(BODY[:50])[0] == 400


@pytest.mark.parametrize("line", ["sch\u00f6n", "a b", "a\0b", "\ufeffabc"])
def test_a_file_of_what_is_no_token(tmp_path: Path, line: str) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(b"good-1._~+/==\n\n")
    assert read_tokens(str(file)) == (b"good-1._~+/==",)
    file.write_text(f"good\n{line}\n", "utf-8")
    with pytest.raises(UsageError, match=":2 is no token"):
        read_tokens(str(file))


def test_tokens() -> None:
    with running(tokens=(b"first", b"second")) as run:
        assert run.post(BODY)[0] == 401
        assert run.post(BODY, {"authorization": "Bearer wrong"})[0] == 401
        assert run.post(BODY, {"authorization": "bearer second"})[0] == 200
        for token, verdict in (("wrong", Verdict.REJECTED), ("first", Verdict.ACCEPTED)):
            headers = (("authorization", f"Bearer {token}"),)
            assert send(_grpc(run.grpc, headers)) is verdict
        run.sent_away({"unauthorized": 3})


def test_an_answer_is_otlp() -> None:
    with running() as run:
        _, answer, headers = run.post(request([message(0, 1), message(1, 1)]))
        assert headers["content-type"] == "application/x-protobuf"
        partial = ExportTraceServiceResponse.FromString(answer).partial_success
        assert partial.rejected_spans == 1


def test_addresses_in_use_and_files_that_are_none() -> None:
    with running() as run, Collectorless() as collector:
        for name, port in (("http", run.http), ("grpc", run.grpc)):
            taken = Address("127.0.0.1", port)
            with pytest.raises(WirespanError, match=f"cannot listen on 127.0.0.1:{port}"):
                Intake(collector, IntakeConfig(**{name: taken}))
        with pytest.raises(UsageError, match="cannot use"):
            Intake(collector, IntakeConfig(http=ANY, tls=Tls("/none", "/none")))


class Collectorless:
    """A collector without sinks."""

    def __enter__(self) -> Collector:
        self._collector = Collector([])
        return self._collector

    def __exit__(self, *_: object) -> None:
        self._collector.close()


def test_many_at_once() -> None:
    with running() as run:
        bodies = [request([message(n, n)]) for n in range(1, 201)]
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda body: run.post(body)[0], bodies))
        assert set(statuses) == {200}
        run.wait(200)


def test_a_certificate_and_its_key_are_told_apart(tmp_path: Path) -> None:
    pem = Pem.make(tmp_path, "localhost")
    certificate, key = str(pem.certificate), str(pem.key)
    for tls, told, hint in (
        (Tls(key, certificate), f"--tls-certificate: {key} holds a private key", "are swapped"),
        (Tls(certificate, certificate), f"--tls-key: {certificate} holds a certificate", "name"),
        (Tls(certificate, key, key), f"--tls-client-ca: {key} holds a private key", "name"),
        (Tls(certificate, str(tmp_path / "none")), "No such file", "PEM"),
    ):
        with pytest.raises(UsageError, match=re.escape(told)) as wrong:
            server_context(tls)
        assert hint in wrong.value.hint


def test_a_certificate_that_nobody_trusts_any_more(tmp_path: Path) -> None:
    pem = Pem.make(tmp_path, "localhost")
    old = tmp_path / "old.pem"
    subprocess.run(
        ["openssl", "x509", "-in", pem.certificate, "-signkey", pem.key,
         "-days", "-1", "-out", old],
        check=True, capture_output=True,
    )  # fmt: skip
    for certificate, why in ((pem.certificate, ""), (old, "certificate has expired")):
        for client in ("", str(certificate)):  # asks for a sender's, too
            tls = Tls(str(certificate), str(pem.key), client)
            assert invalid(server_context(tls), tls.certificate) == why


def test_tls_and_client_certificates(tmp_path: Path) -> None:
    server, client = Pem.make(tmp_path, "localhost"), Pem.make(tmp_path, "sender")
    tls = Tls(str(server.certificate), str(server.key), str(client.certificate))
    with running(tls=tls) as run:
        for protocol, endpoint in (
            ("grpc", f"https://localhost:{run.grpc}"),
            ("http/protobuf", f"https://localhost:{run.http}"),
        ):
            config = ExportConfig.from_environment(
                {}, endpoint=endpoint, protocol=protocol, certificate=str(server.certificate),
                client_key=str(client.key), client_certificate=str(client.certificate),
            )  # fmt: skip
            stranger = replace(config, client_key=None, client_certificate=None)
            assert send(config) is Verdict.ACCEPTED
            assert send(stranger) is Verdict.RETRY
