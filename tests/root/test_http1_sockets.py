"""Kinds of sockets, and what can happen to a connection and to those who hold it."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    SERVER,
    WORKLOADS,
    Exchange,
    Process,
    Tracer,
    Watch,
    assert_exact,
    assert_sound,
    running,
    unique,
)
from tests.root.test_http1_syscalls import printed_port
from tests.root.wire import DECOY, Script, Wire, at_random, carry, get_head, head, ok, receive


@contextlib.contextmanager
def pair(listener: socket.socket, address: object) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect to `listener` at `address`; gives (client, server)."""
    with listener, socket.socket(listener.family, socket.SOCK_STREAM) as client:
        client.connect(address)  # type: ignore[arg-type]
        server, _ = listener.accept()
        with server:
            if listener.family != socket.AF_UNIX:
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client, server


def play(client: socket.socket, server: socket.socket, path: str, count: int) -> list[Exchange]:
    """`count` random exchanges on the connection; returns what they were."""
    rng, expected = random.Random(path), []
    for n in range(count):
        script = Script(rng, f"{path}/{n}", most=2000)
        for side, data in script.steps:
            ends = (client, server) if side == "request" else (server, client)
            carry(*ends, data, at_random(rng))
        expected.append(script.exchange)
    return expected


@pytest.mark.parametrize(
    ("address", "network"),
    [("127.0.0.1", "ipv4"), ("127.0.0.7", "ipv4"), ("::1", "ipv6"), ("::ffff:127.0.0.1", "ipv4")],
    ids=["IPv4", "other IPv4", "IPv6", "v4-mapped"],
)
def test_families(watch: Watch, address: str, network: str) -> None:
    path = unique()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen()
    with pair(listener, listener.getsockname()) as (client, server):
        here, there = client.getsockname(), client.getpeername()
        expected = play(client, server, path, 20)
    spans = watch.exact(path, expected)
    for span in spans:
        told, peer = span.attributes, there if span.kind == CLIENT else here
        assert told["network.type"] == network, span
        assert told["network.transport"] == "tcp", span
        assert told["network.peer.address"] == peer[0].removeprefix("::ffff:"), span
        assert told["network.peer.port"] == peer[1], span


def test_v4_client_of_a_dual_stack_server(watch: Watch) -> None:
    """The server's socket is AF_INET6 and the peer's AF_INET: both name the IPv4 address."""
    path = unique()
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::ffff:127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as client:
            server, _ = listener.accept()
            with server:
                expected = play(client, server, path, 10)
    for span in watch.exact(path, expected):
        assert span.attributes["network.peer.address"] == "127.0.0.1", span
        assert span.attributes["network.type"] == "ipv4", span


@pytest.mark.parametrize("kind", ["path", "abstract", "pair"])
def test_unix_stream_sockets(watch: Watch, tmp_path: Path, kind: str) -> None:
    path = unique()
    if kind == "pair":
        client, server = socket.socketpair()
        with client, server:
            expected = play(client, server, path, 20)
    else:
        name = str(tmp_path / "s") if kind == "path" else "\0" + path
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(name)
        listener.listen()
        with pair(listener, name) as (client, server):
            expected = play(client, server, path, 20)
    spans = watch.exact(path, expected)
    for span in spans:
        assert span.attributes["network.transport"] == "unix", span
        assert "network.peer.port" not in span.attributes, span


@pytest.mark.parametrize("way", ["fork", "mid", "exec", "scm", "dup", "threads"])
def test_connections_that_change_hands(watch: Watch, tmp_path: Path, way: str) -> None:
    path, log, count = unique(), tmp_path / "handover", 10
    server = Process([sys.executable, WORKLOADS / "handover.py", way, str(count)], log)
    expected = []
    with running(server):
        port = printed_port(server, log)
        with socket.create_connection(("127.0.0.1", port), timeout=15) as client:
            for n in range(count):
                where = f"{path}/{n}"
                client.sendall(get_head(where))
                receive(client, len(ok(where.encode())) - len("Fine") + len("OK"))
                expected.append(Exchange(where, 200, "GET", 0, len(where)))
            assert server.popen.wait(10) == 0, server.said()
    watch.exact(path, expected)


def test_reader_and_writer_in_different_threads_pipelined(watch: Watch) -> None:
    """Each side reads in one thread while it writes in another, with many in flight."""
    path, count = unique(), 600
    rng = random.Random(4)
    answers = [ok(b"z" * rng.randrange(4000), 230 + n % 50) for n in range(count)]
    arrived = threading.Semaphore(0)
    answered = threading.Semaphore(0)
    with Wire() as wire:

        def send() -> None:
            for n in range(count):
                if n >= 8:  # at most eight in flight
                    answered.acquire()
                wire.client.sendall(get_head(f"{path}/{n:04d}"))

        def receive_requests() -> None:
            for _ in range(count):
                receive(wire.server, len(get_head(f"{path}/0000")))
                arrived.release()

        def answer() -> None:
            for data in answers:
                arrived.acquire()
                wire.server.sendall(data)

        threads = [threading.Thread(target=work) for work in (send, receive_requests, answer)]
        for thread in threads:
            thread.start()
        for data in answers:
            receive(wire.client, len(data))
            answered.release()
        for thread in threads:
            thread.join()
    sizes = [len(data.split(b"\r\n\r\n", 1)[1]) for data in answers]
    truth = [
        Exchange(f"{path}/{n:04d}", 230 + n % 50, "GET", 0, size) for n, size in enumerate(sizes)
    ]
    watch.exact(path, truth)


def trickle(source: socket.socket, target: socket.socket, data: bytes, step: int) -> int:
    """Non-blocking sends of all that is left, again and again; returns how many were cut short.

    The target is read `step` bytes at a time, and only when the source can send no more.
    """
    short, done, taken = 0, 0, 0
    source.setblocking(False)
    while taken < len(data):
        if done < len(data):
            try:
                sent = source.send(memoryview(data)[done:])
                short += sent < len(data) - done
                done += sent
                continue
            except BlockingIOError:
                short += 1
        part = target.recv(step)
        assert part == data[taken : taken + len(part)]
        taken += len(part)
    source.setblocking(True)
    return short


@pytest.mark.parametrize("coding", ["length", "chunked"])
@pytest.mark.parametrize("step", [500, 30_000])
def test_sends_cut_short_and_tried_again(watch: Watch, coding: str, step: int) -> None:
    """A send that takes part of its buffer, or none (EAGAIN), is repeated with the rest."""
    rng, path = random.Random(step), unique()
    expected, short = [], 0
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.socket() as client:
        for sock in (listener, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            for n in range(6):
                body = (DECOY + rng.randbytes(300)) * 700
                chunks = [body[k : k + 1777] for k in range(0, len(body), 1777)]
                if coding == "length":
                    fields, data = f"Content-Length: {len(body)}", body
                else:
                    fields = "Transfer-Encoding: chunked"
                    data = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
                up = get_head(f"{path}/{n}", fields, method="POST") + data
                down = head("HTTP/1.1 200 OK", fields) + data
                short += trickle(client, server, up, step)
                short += trickle(server, client, down, step)
                expected.append(Exchange(f"{path}/{n}", 200, "POST", len(body), len(body)))
    assert short > 100, "the test itself must see sends cut short"
    watch.exact(path, expected)


def test_head_sent_again_after_eagain(watch: Watch) -> None:
    """A full buffer refuses a whole head; the same bytes, then other bytes, are sent later."""
    path = unique()
    with Wire() as wire:
        wire.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        size = 3_000_000
        wire.request(get_head(f"{path}/fill", f"Content-Length: {size}", method="POST"))
        wire.client.setblocking(False)
        sent = 0
        while sent < size:
            try:
                sent += wire.client.send(bytes(min(size - sent, 65536)))
            except BlockingIOError:
                break
        with contextlib.suppress(BlockingIOError):
            sent += wire.client.send(bytes(min(size - sent, 1)))
        # Nothing fits now. What is refused here was never sent.
        refused = 0
        for _ in range(3):
            try:
                sent += wire.client.send(bytes(size - sent))
            except BlockingIOError:
                refused += 1
        assert refused and sent < size
        receive(wire.server, sent)
        wire.client.setblocking(True)
        wire.client.settimeout(15)
        sender = threading.Thread(target=wire.client.sendall, args=(bytes(size - sent),))
        sender.start()
        receive(wire.server, size - sent)
        sender.join()
        wire.response(ok())
        for n in range(3):
            wire.request(get_head(f"{path}/{n}"))
            wire.response(ok())
    after = [Exchange(f"{path}/{n}") for n in range(3)]
    watch.exact(path, [Exchange(f"{path}/fill", 200, "POST", size, 0), *after])


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def lose(wire: Wire, how: str) -> None:
    """End the connection, whose request was answered not at all or in part, in one of many ways."""
    if how == "client closes":
        wire.client.close()
        assert wire.server.recv(10) == b""
    elif how == "client resets":
        reset(wire.client)
        with pytest.raises(ConnectionResetError):
            wire.server.recv(10)
    elif how == "client gives up waiting":
        timeout = struct.pack("ll", 0, 50_000)
        wire.client.settimeout(None)
        wire.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        with pytest.raises(BlockingIOError):
            wire.client.recv(10)
        wire.client.close()
        assert wire.server.recv(10) == b""
    elif how == "server closes":
        wire.server.close()
        assert wire.client.recv(10) == b""
    elif how == "server resets":
        reset(wire.server)
        with pytest.raises(ConnectionResetError):
            wire.client.recv(10)
    elif how == "server writes to a closed client":
        reset(wire.client)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            wire.server.sendall(ok(b"too late"))
            raise AssertionError("the send went through")


LOSSES = (
    "client closes",
    "client resets",
    "client gives up waiting",
    "server closes",
    "server resets",
    "server writes to a closed client",
)


@pytest.mark.parametrize("how", LOSSES)
def test_no_response_is_an_error_without_a_status(watch: Watch, how: str) -> None:
    path = unique()
    expected = []
    for n in range(5):
        with Wire() as wire:
            wire.request(get_head(f"{path}/{n}/first"))
            wire.response(ok())
            wire.request(get_head(f"{path}/{n}/lost", "Content-Length: 2", method="PUT") + b"ab")
            lose(wire, how)
        expected += [Exchange(f"{path}/{n}/first"), Exchange(f"{path}/{n}/lost", None, "PUT", 2)]
    spans = watch.exact(path, expected)
    for span in spans:
        assert bool(span.error) == span.path.endswith("lost"), span
        assert (span.raw["status"] == "ERROR") == bool(span.error), span


@pytest.mark.parametrize("how", ["server closes", "server resets", "client closes"])
def test_lost_inside_the_response(watch: Watch, how: str) -> None:
    """The status was sent, so it is told; that the body broke off is the error."""
    path = unique()
    for n in range(3):
        with Wire() as wire:
            wire.request(get_head(f"{path}/{n}"))
            wire.response(head("HTTP/1.1 200 OK", "Content-Length: 1000") + b"x" * 400)
            lose(wire, how)
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 400) for n in range(3)])
    assert all(span.error for span in spans), spans.show()


@pytest.mark.parametrize("how", ["server closes", "client resets"])
def test_lost_with_several_in_flight(watch: Watch, how: str) -> None:
    path = unique()
    with Wire() as wire:
        wire.request(b"".join(get_head(f"{path}/{n}") for n in range(6)))
        wire.response(ok() * 2)
        lose(wire, how)
    answers = [Exchange(f"{path}/{n}", 200 if n < 2 else None) for n in range(6)]
    spans = watch.exact(path, answers)
    assert all(bool(s.error) == (s.status is None) for s in spans), spans.show()


def test_closed_inside_a_request(watch: Watch) -> None:
    """Half a head is no request; half a body is one that got no response."""
    path = unique()
    with Wire() as wire:
        wire.request(get_head(f"{path}/half")[:-10])
        lose(wire, "client closes")
    with Wire() as wire:
        start = get_head(f"{path}/body", "Content-Length: 100", method="POST")
        wire.request(start + b"x" * 40)
        lose(wire, "client closes")
    spans = watch.under(path, 2)
    assert_sound(spans)
    got = spans.under(f"{path}/body")
    assert sorted(span.kind for span in got) == [CLIENT, SERVER], spans.show()
    assert all(span.error and span.status is None for span in got), got.show()
    assert all(span.status is None for span in spans), spans.show()


def test_killed_client(watch: Watch, tmp_path: Path) -> None:
    """SIGKILL closes the socket from the kernel: no system call of the client's tells."""
    path = unique()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}{path}"
        client = Process(["curl", "-s", url], tmp_path / "curl")
        with running(client):
            server, _ = listener.accept()
            with server:
                assert b"\r\n\r\n" in server.recv(4096)
                client.popen.kill()
                client.popen.wait()
                assert server.recv(1) == b""
    spans = watch.exact(path, [Exchange(path, None)])
    assert all(span.error for span in spans), spans.show()
    assert spans.of(CLIENT)[0].resource["service.name"] == "curl"


def test_connection_timed_out(watch: Watch) -> None:
    """TCP_USER_TIMEOUT, with a peer whose window stays shut: ETIMEDOUT before a response."""
    path, size = unique(), 50_000_000
    with Wire() as wire:
        wire.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 400)
        wire.client.settimeout(None)
        wire.request(get_head(path, f"Content-Length: {size}", method="PUT"))
        with pytest.raises(TimeoutError):
            while True:
                wire.client.sendall(bytes(65536))
        wire.client.close()
        spans = watch.under(path, 1)
        client = spans.of(CLIENT)
        assert len(client) == 1, spans.show()
        assert client[0].error and client[0].status is None, client.show()
    assert len(watch.under(path, 2)) == 2


@pytest.mark.parametrize("in_flight", ["nothing", "a request", "a body"])
def test_open_before_the_tracer(start_tracer: Callable[..., Tracer], in_flight: str) -> None:
    """A connection older than the tracer is right from its next request on."""
    rng, path = random.Random(in_flight), unique()
    with Wire() as wire:
        for n in range(3):
            wire.request(get_head(f"{path}/before/{n}"))
            wire.response(ok())
        answer = ok(rng.randbytes(100_000))
        if in_flight != "nothing":
            wire.request(get_head(f"{path}/before/flight"))
        if in_flight == "a body":
            wire.response(answer[:30_000])
        tracer = start_tracer()
        watch = Watch(tracer)
        if in_flight == "a request":
            wire.response(ok(b"late"))
        elif in_flight == "a body":
            wire.response(answer[30_000:], at_random(rng))
        expected = play(wire.client, wire.server, f"{path}/after", 20)
    spans = watch.under(path, 40)
    assert_exact(spans, expected)
