"""Rarer ways of opening, filling and leaving a connection."""

from __future__ import annotations

import mmap
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    ROOT,
    SERVER,
    Exchange,
    Tracer,
    Watch,
    assert_exact,
    assert_sound,
    get,
    run,
    seen,
    unique,
    wait_until,
)
from tests.root.load import load
from tests.root.nginx import HELLO, Nginx
from tests.root.wire import DECOY, Wire, get_head, head, ok, receive

TCP_FASTOPEN_CONNECT = 30


@pytest.mark.parametrize("way", ["MSG_FASTOPEN", "TCP_FASTOPEN_CONNECT"])
@pytest.mark.parametrize("server_option", [False, True], ids=["client", "both"])
def test_first_bytes_sent_by_the_call_that_connects(
    watch: Watch, way: str, server_option: bool
) -> None:
    """TCP Fast Open: there is no connection yet, nor a sequence number, when the send begins."""
    path, expected = unique(), []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if server_option:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        address = listener.getsockname()
        for n in range(6):
            first = get_head(f"{path}/{n}/first")
            with socket.socket() as client:
                if way == "MSG_FASTOPEN":
                    client.sendto(first, socket.MSG_FASTOPEN, address)
                else:
                    client.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
                    client.connect(address)
                    client.sendall(first)
                server, _ = listener.accept()
                with server:
                    for name in ("first", "second"):
                        request = get_head(f"{path}/{n}/{name}")
                        if name != "first":
                            client.sendall(request)
                        assert receive(server, len(request)) == request
                        server.sendall(ok(b"fast"))
                        receive(client, len(ok(b"fast")))
                        expected.append(Exchange(f"{path}/{n}/{name}", 200, "GET", 0, 4))
    watch.exact(path, expected)


def test_client_that_has_said_all(watch: Watch) -> None:
    """A half-closed connection: the server sees the end of the stream, and answers all the same."""
    path = unique()
    for n in range(5):
        with Wire() as wire:
            wire.request(get_head(f"{path}/{n}"))
            wire.client.shutdown(socket.SHUT_WR)
            assert wire.server.recv(1) == b""
            wire.response(ok(b"still here"))
            wire.server.close()
            assert wire.client.recv(1) == b""
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 10) for n in range(5)])
    assert not [span for span in spans if span.error]


@pytest.mark.parametrize("way", ["dup2", "close_range", "shutdown", "exec"])
def test_ways_to_leave_without_close(watch: Watch, way: str) -> None:
    """What is not close(2) ends a connection too, and with it the exchange under way."""
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path))
        fd = wire.client.fileno()
        if way == "dup2":
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, fd)
            os.close(null)
        elif way == "close_range":
            os.closerange(fd, fd + 1)
            wire.client.detach()
        elif way == "shutdown":
            wire.client.shutdown(socket.SHUT_RDWR)
        elif way == "exec":
            # A child takes the connection over, then becomes another program, which lacks it.
            code = "import os, sys; os.set_inheritable(int(sys.argv[1]), False); "
            code += "os.execv('/bin/true', ['true'])"
            argv = [sys.executable, "-c", code, str(fd)]
            run(argv, pass_fds=[fd])
            wire.client.close()
        assert wire.server.recv(1) == b""
        if way == "dup2":
            os.close(wire.client.detach())
    spans = watch.exact(path, [Exchange(path, None)])
    assert all(span.error for span in spans), spans.show()


@pytest.mark.parametrize("pieces", [30, 300, 1020])
def test_chunks_in_very_many_pieces_of_one_call(watch: Watch, pieces: int) -> None:
    """Each chunk is three iovecs, as event loops write them: up to IOV_MAX in one call."""
    path, expected = unique(), []
    with Wire() as wire:
        for n in range(4):
            parts = [head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked")]
            for k in range(pieces // 3):
                parts += [b"%x\r\n" % (k % 20 + 1), b"c" * (k % 20 + 1), b"\r\n"]
            parts.append(b"0\r\n\r\n")
            size = sum(k % 20 + 1 for k in range(pieces // 3))
            wire.request(get_head(f"{path}/{n}"))
            total = sum(map(len, parts))
            assert wire.server.sendmsg(parts) == total
            receive(wire.client, total)
            expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, size))
        wire.request(get_head(f"{path}/after"))
        wire.response(ok())
        expected.append(Exchange(f"{path}/after"))
    watch.exact(path, expected)


@pytest.mark.parametrize("what", ["body", "message"])
def test_sent_from_memory_that_is_not_there(watch: Watch, tmp_path: Path, what: str) -> None:
    """A mapped file whose pages nobody has touched: a program cannot fault them in.

    A body need not be read. A head that could not be is counted, and its span says no status.
    """
    path, body = unique(), (DECOY * 3000)[: 50 * mmap.PAGESIZE]
    data = body if what == "body" else ok(body)
    source = tmp_path / "data"
    source.write_bytes(data)
    expected = []
    with Wire() as wire, source.open("rb") as file:
        for n in range(4):
            wire.request(get_head(f"{path}/{n}"))
            with mmap.mmap(file.fileno(), len(data), access=mmap.ACCESS_READ) as pages:
                start = [] if what == "message" else [ok(body)[: -len(body)]]
                wire.server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                assert wire.server.sendmsg([*start, pages]) == len(ok(body))
            receive(wire.client, len(ok(body)))
            expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, len(body)))
        wire.request(get_head(f"{path}/after"))
        wire.response(ok())
        expected.append(Exchange(f"{path}/after"))
    if what == "body":
        watch.exact(path, expected)
        return
    watch.allowed.add("unreadable")
    spans = watch.under(path, 2 * len(expected))
    assert_exact(spans.of(CLIENT), expected, (CLIENT,))
    server = spans.of(SERVER)
    assert_sound(server)
    assert sorted(s.path for s in server) == sorted(e.path for e in expected)
    unsure = [s for s in server if seen(s) not in expected]
    assert all(s.status is None and "after" not in s.path for s in unsure), server.show()
    assert len(unsure) == watch.lost()["unreadable"]


def test_in_other_namespaces(watch: Watch) -> None:
    """Another network and pid namespace: the same loopback addresses, other sockets."""
    path, count = unique(), 20
    code = (
        "import sys; from tests.root.wire import Wire, get_head, ok\n"
        "with Wire() as wire:\n"
        f"    for n in range({count}):\n"
        f"        wire.request(get_head(f'{path}/{{n}}')); wire.response(ok(b'far'))\n"
    )
    script = 'ip link set lo up && exec "$@"'
    argv = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "sh", "-ec", script, "-"]
    run([*argv, sys.executable, "-c", code], cwd=ROOT)
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 3) for n in range(count)])
    assert len({span.resource["process.pid"] for span in spans}) == 1
    assert spans[0].resource["process.pid"] > 10, "the pid that the host knows"


@pytest.mark.kernels()
def test_records_that_found_no_room_are_counted(
    start_tracer: Callable[..., Tracer], tmp_path: Path
) -> None:
    """A tracer that gets no processor time: what it could not take is counted to the last one."""
    nginx = Nginx(tmp_path / "nginx")
    try:
        tracer = start_tracer("--ring-size", "64K", "--port", str(nginx.port))
        path, count = unique(), 3000
        tracer.process.popen.send_signal(signal.SIGSTOP)
        load(nginx.port, path, count, 4)
        tracer.process.popen.send_signal(signal.SIGCONT)
        wait_until(lambda: tracer.status().ring.fill == 0, "the ring is empty")
        tracer.settle(lambda mark: get(nginx.port, mark))
        spans = tracer.spans().under(path)
        assert_sound(spans)
        assert {seen(s) for s in spans} <= {
            Exchange(f"{path}/{n}", 200, "GET", 0, HELLO) for n in range(count)
        }
        lost = tracer.losses()
        assert lost["ring_full"] > 0, "the test itself must overfill the ring"
        assert len(spans) + lost["ring_full"] == 2 * count, lost
        assert set(lost) <= {"ring_full", "note_full"}
        # And it is well again.
        again = unique()
        expected = load(nginx.port, again, 30, 2)  # the ring holds 97 records
        tracer.settle(lambda mark: get(nginx.port, mark))
        assert_exact(tracer.spans().under(again), expected)
    finally:
        nginx.stop()


def test_connections_beyond_the_table(start_tracer: Callable[..., Tracer]) -> None:
    """More connections at a time than are followed: those left out are counted, none is wrong."""
    rng, path = random.Random(3), unique()
    with Wire() as wire:
        tracer = start_tracer("--max-connections", "32", "--port", str(wire.port))
        ends = [(wire.client, wire.server)] + [wire.connect() for _ in range(99)]
        truth = set()
        for n in range(4):
            for k, (client, server) in enumerate(rng.sample(ends, len(ends))):
                request, answer = get_head(f"{path}/{n}/{k}"), ok(b"k" * k, 230 + k % 70)
                client.sendall(request)
                receive(server, len(request))
                server.sendall(answer)
                receive(client, len(answer))
                truth.add(Exchange(f"{path}/{n}/{k}", 230 + k % 70, "GET", 0, k))
        for client, server in ends[1:]:
            client.close()
            server.close()

        def once_more(where: str) -> None:
            """There is room again now."""
            client, server = wire.connect()
            with client, server:
                client.sendall(get_head(where))
                receive(server, len(get_head(where)))
                server.sendall(ok())
                receive(client, len(ok()))

        tracer.settle(once_more)
    spans = tracer.spans().under(path)
    assert_sound(spans)
    assert {seen(span) for span in spans} <= truth
    for kind in (CLIENT, SERVER):
        paths = [span.path for span in spans.of(kind)]
        assert len(paths) == len(set(paths)), "each at most once"
    assert tracer.losses()["conns_full"] > 0
    assert tracer.process.alive()
