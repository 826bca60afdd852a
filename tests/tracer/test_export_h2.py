"""OTLP/gRPC without gRPC's library, against receivers that do what real ones do now and then."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes, Settings

from tests.tracer.receivers import Receiver, grpc_receiver, partial_success
from tracer.export import connect
from tracer.export_config import ExportConfig
from tracer.export_grpc import GrpcTransport
from tracer.export_h2 import MAX_ANSWER, H2Transport, _address, reaches
from tracer.export_reply import Reply, Verdict
from tracer.grpc_wire import PREFIX

WAIT_S = 20.0
HEAD = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]
ACCEPTED = Reply(Verdict.ACCEPTED)


class Peer:
    """One connection of a receiver; a script says what it does."""

    def __init__(self, sock: socket.socket, window: int) -> None:
        self.sock = sock
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        first = {SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = Settings(client=False, initial_values=first)
        self.h2.initiate_connection()
        self.flush()
        self.headers: dict[str, str] = {}
        self.body = b""
        self.ended = self.reset = self.gone = False

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def step(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            self.gone = True
            return
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self.headers, self.body, self.ended = dict(event.headers), b"", False
                self.stream_id = event.stream_id
            elif isinstance(event, DataReceived):
                self.body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended = True
            elif isinstance(event, StreamReset):
                self.reset = True
            elif isinstance(event, ConnectionTerminated):
                self.gone = True
        self.flush()

    def request(self) -> bytes:
        """Wait for the whole of a request; returns its message."""
        while not (self.ended or self.gone):
            self.step()
        assert self.ended
        self.ended = False
        _, length = PREFIX.unpack_from(self.body)
        assert len(self.body) == PREFIX.size + length
        return self.body[PREFIX.size :]

    def answer(self, message: bytes = b"", trailers: list[tuple[str, str]] = OK) -> None:
        self.h2.send_headers(self.stream_id, HEAD)
        self.h2.send_data(self.stream_id, PREFIX.pack(False, len(message)) + message)
        self.h2.send_headers(self.stream_id, trailers, end_stream=True)
        self.flush()

    def only(self, headers: list[tuple[str, str]]) -> None:
        self.h2.send_headers(self.stream_id, headers, end_stream=True)
        self.flush()


@dataclass
class Seen:
    requests: list[bytes] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)


@contextlib.contextmanager
def receiver(*scripts: Callable[[Peer, Seen], None], window: int = 1 << 16) -> Iterator[Setup]:
    """Listen; each connection that comes is the next script's."""
    seen = Seen()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                for script in scripts:
                    sock, _ = listener.accept()
                    with sock:
                        sock.settimeout(WAIT_S)
                        script(Peer(sock, window), seen)
            except BaseException as error:
                seen.failures.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        transport = H2Transport(ExportConfig("grpc", f"127.0.0.1:{port}", timeout_s=WAIT_S))
        try:
            yield Setup(transport, seen, thread)
        finally:
            transport.close()
            listener.close()
            thread.join(WAIT_S)
    assert not thread.is_alive()
    assert not seen.failures, seen.failures


@dataclass
class Setup:
    transport: H2Transport
    seen: Seen
    thread: threading.Thread

    def send(self, body: bytes = b"spans") -> Reply:
        return self.transport.send(self.transport.prepare(body), WAIT_S)


def take(peer: Peer, seen: Seen) -> None:
    seen.requests.append(peer.request())


def serve(peer: Peer, seen: Seen) -> None:
    take(peer, seen)
    peer.answer()


def until_gone(peer: Peer, seen: Seen) -> None:
    with contextlib.suppress(ConnectionError):
        while not peer.gone:
            peer.step()


def test_an_answer_counts_though_the_receiver_goes_away_meanwhile() -> None:
    def leave(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        # As grpc-go does when a connection is too old: first it takes all, then what is there.
        peer.h2.send_headers(peer.stream_id, HEAD)
        goaway(peer, (1 << 31) - 1)
        goaway(peer, peer.stream_id)
        peer.h2.send_data(peer.stream_id, PREFIX.pack(False, 0))
        peer.h2.send_headers(peer.stream_id, OK, end_stream=True)
        peer.flush()
        until_gone(peer, seen)

    def goaway(peer: Peer, last: int) -> None:
        # h2 itself would take the connection for closed.
        frame = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + last.to_bytes(4, "big") + bytes(4)
        peer.flush()
        peer.sock.sendall(frame)

    with receiver(leave, serve) as setup:
        assert setup.send(b"first") == ACCEPTED
        assert setup.send(b"second") == ACCEPTED
    assert setup.seen.requests == [b"first", b"second"]


def test_what_the_receiver_never_looked_at_is_sent_again_at_once() -> None:
    def refuse(peer: Peer, seen: Seen) -> None:
        peer.request()
        peer.h2.close_connection(last_stream_id=0)
        peer.flush()
        until_gone(peer, seen)

    with receiver(refuse, serve) as setup:
        assert setup.send() == ACCEPTED
    assert setup.seen.requests == [b"spans"]


def test_a_connection_that_ended_while_idle_is_no_failure() -> None:
    with receiver(serve, serve, serve) as setup:
        for number in range(3):
            assert setup.send(b"%d" % number) == ACCEPTED
            # The script has ended, and with it the connection; its end has to be here.
            setup.transport._wire.sock.settimeout(WAIT_S)  # type: ignore[union-attr]
            while setup.transport._wire.sock.recv(1, socket.MSG_PEEK):  # type: ignore[union-attr]
                setup.transport._wire.receive()  # type: ignore[union-attr]
    assert setup.seen.requests == [b"0", b"1", b"2"]


def test_a_connection_serves_many_requests_and_pings_are_answered() -> None:
    def many(peer: Peer, seen: Seen) -> None:
        for _ in range(50):
            serve(peer, seen)
            peer.h2.ping(b"12345678")
            peer.flush()
        until_gone(peer, seen)

    with receiver(many) as setup:
        for number in range(50):
            assert setup.send(b"%d" % number) == ACCEPTED
        setup.transport.close()
    assert setup.seen.requests == [b"%d" % number for number in range(50)]


@pytest.mark.parametrize("window", [1, 1000, 65_535, 1 << 20])
def test_no_more_is_sent_than_there_is_room_for(window: int) -> None:
    body = bytes(range(256)) * (4 if window == 1 else 2000)
    with receiver(serve, window=window) as setup:
        reply = setup.send(body)
    assert reply == ACCEPTED, reply.message
    assert setup.seen.requests == [body]


def test_a_receiver_that_knows_its_answer_early_is_sent_no_more() -> None:
    def early(peer: Peer, seen: Seen) -> None:
        while not peer.headers:
            peer.step()
        peer.only([*HEAD, ("grpc-status", "8"), ("grpc-message", "too large")])
        while not (peer.reset or peer.gone):
            peer.step()
        assert len(peer.body) < 3 << 20
        serve(peer, seen)

    with receiver(early) as setup:
        reply = setup.send(bytes(4 << 20))
        assert (reply.verdict, reply.message) == (
            Verdict.REJECTED,
            "RESOURCE_EXHAUSTED: too large",
        )
        assert setup.send(b"next") == ACCEPTED
    assert setup.seen.requests == [b"next"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ErrorCodes.REFUSED_STREAM, "UNAVAILABLE"),
        (ErrorCodes.CANCEL, "CANCELLED"),
        (ErrorCodes.ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"),
        (ErrorCodes.INTERNAL_ERROR, "INTERNAL"),
        (0x99, "INTERNAL"),
    ],
)
def test_a_stream_that_is_reset(error: int, code: str) -> None:
    def reset(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        peer.h2.reset_stream(peer.stream_id, error)
        peer.flush()
        until_gone(peer, seen)

    with receiver(reset) as setup:
        assert setup.send().message.startswith(f"{code}: stream reset: ")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([(":status", "503")], "UNAVAILABLE: HTTP status 503"),
        ([(":status", "404"), ("content-type", "text/html")], "UNIMPLEMENTED: HTTP status 404"),
        (HEAD, "UNKNOWN: no grpc-status"),
        ([*HEAD, ("grpc-status", "99")], "UNKNOWN: "),
        ([*HEAD, ("grpc-status", "x")], "UNKNOWN: "),
        (
            [*HEAD, ("grpc-status", "3"), ("grpc-message", "50%25 of %C3%A4pfel%0A")],
            "INVALID_ARGUMENT: 50% of äpfel",
        ),
    ],
)
def test_answers_without_a_message(headers: list[tuple[str, str]], message: str) -> None:
    def say(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        peer.only(headers)
        until_gone(peer, seen)

    with receiver(say) as setup:
        assert setup.send().message == message


def test_a_receiver_asks_for_time() -> None:
    delay = Duration()
    delay.FromMilliseconds(1500)
    status = Status()
    status.details.add().Pack(RetryInfo(retry_delay=delay))
    details = b64encode(status.SerializeToString()).decode().rstrip("=")

    def ask(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        peer.only([*HEAD, ("grpc-status", "8"), ("grpc-status-details-bin", details)])
        until_gone(peer, seen)

    with receiver(ask) as setup:
        reply = setup.send()
    assert (reply.verdict, reply.retry_after_s) == (Verdict.RETRY, 1.5)


def test_an_answer_that_is_compressed() -> None:
    def squeeze(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        body = gzip.compress(partial_success(2, "why"))
        peer.h2.send_headers(peer.stream_id, [*HEAD, ("grpc-encoding", "gzip")])
        peer.h2.send_data(peer.stream_id, PREFIX.pack(True, len(body)) + body)
        peer.h2.send_headers(peer.stream_id, OK, end_stream=True)
        peer.flush()
        until_gone(peer, seen)

    with receiver(squeeze) as setup:
        assert setup.send() == Reply(Verdict.ACCEPTED, "partial success: why", 2)


@pytest.mark.parametrize("body", [b"", b"\x00\x00", b"\x01\x00\x00\x00\x03abc"])
def test_an_answer_that_cannot_be_read(body: bytes) -> None:
    def mumble(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        peer.h2.send_headers(peer.stream_id, HEAD)
        peer.h2.send_data(peer.stream_id, body)
        peer.h2.send_headers(peer.stream_id, OK, end_stream=True)
        peer.flush()
        until_gone(peer, seen)

    with receiver(mumble) as setup:
        reply = setup.send()
    assert reply.verdict is Verdict.REJECTED
    assert reply.message.startswith("INTERNAL: the answer can't be read")


def test_an_answer_without_end_is_not_kept() -> None:
    def flood(peer: Peer, seen: Seen) -> None:
        take(peer, seen)
        peer.h2.send_headers(peer.stream_id, HEAD)
        left = 64 * MAX_ANSWER
        peer.h2.send_data(peer.stream_id, PREFIX.pack(False, left))
        while left:
            room = min(left, 16_384, peer.h2.local_flow_control_window(peer.stream_id))
            if room:
                peer.h2.send_data(peer.stream_id, bytes(room))
                peer.flush()
                left -= room
            else:
                peer.step()
        peer.h2.send_headers(peer.stream_id, OK, end_stream=True)
        peer.flush()
        until_gone(peer, seen)

    with receiver(flood) as setup:
        reply = setup.send()
    assert reply.verdict is Verdict.ACCEPTED
    assert "not OTLP" in reply.message


def test_a_peer_that_speaks_something_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1 << 16)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 4)

        thread = threading.Thread(target=serve)
        thread.start()
        transport = H2Transport(ExportConfig("grpc", f"127.0.0.1:{port}"))
        reply = transport.send(b"", WAIT_S)
        transport.close()
        thread.join(WAIT_S)
    assert reply.verdict is Verdict.RETRY
    assert reply.message.startswith(f"UNAVAILABLE: 127.0.0.1:{port}: ")


def test_nobody_listens() -> None:
    transport = H2Transport(ExportConfig("grpc", "127.0.0.1:1"))
    reply = transport.send(b"", WAIT_S)
    assert reply == Reply(Verdict.RETRY, "UNAVAILABLE: 127.0.0.1:1: Connection refused")
    transport = H2Transport(ExportConfig("grpc", "no-such-host.invalid:4317"))
    reply = transport.send(b"", WAIT_S)
    assert reply.verdict is Verdict.RETRY
    assert reply.message.startswith("UNAVAILABLE: no-such-host.invalid:4317: ")


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "receiver.sock"
    seen = Seen()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(WAIT_S)
                serve(Peer(sock, 1 << 16), seen)

        thread = threading.Thread(target=accept)
        thread.start()
        transport = H2Transport(ExportConfig("grpc", f"unix:{path}"))
        assert transport.send(b"spans", WAIT_S) == ACCEPTED
        transport.close()
        thread.join(WAIT_S)
    assert seen.requests == [b"spans"]


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("localhost:4317", ("localhost", 4317)),
        ("[::1]:4317", ("::1", 4317)),
        ("dns:localhost:1", ("localhost", 1)),
        ("dns:///localhost:1", ("localhost", 1)),
        ("unix:relative", "relative"),
        ("unix:/run/a", "/run/a"),
        ("unix:///run/a", "/run/a"),
        ("unix-abstract:a", "\0a"),
    ],
)
def test_targets(target: str, address: str | tuple[str, int]) -> None:
    assert _address(target)[0] == address
    assert reaches(ExportConfig("grpc", target), {})


@pytest.mark.parametrize(
    "target",
    ["xds:///a", "vsock:1:2", "dns://8.8.8.8/a:1", "ipv4:1.2.3.4:5,6.7.8.9:5", "dns:a", "::1:4"],
)
def test_the_library_takes_what_only_it_knows(target: str) -> None:
    assert not reaches(ExportConfig("grpc", target), {})


def test_proxies_are_the_library_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with grpc_receiver(Receiver()) as port:
        config = ExportConfig("grpc", f"127.0.0.1:{port}")
        assert isinstance(connect(config), H2Transport)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
        for made in (config, replace(config, signal="metrics")):
            transport = connect(made)
            assert isinstance(transport, GrpcTransport)
            assert transport.send(b"", WAIT_S) == ACCEPTED
            transport.close()
