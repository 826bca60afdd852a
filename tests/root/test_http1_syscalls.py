"""Every system call that moves a socket's bytes, and the ways round them all."""

from __future__ import annotations

import itertools
import os
import re
import socket
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    SERVER,
    Exchange,
    Process,
    Watch,
    assert_exact,
    assert_sound,
    compile_c,
    run,
    running,
    seen,
    unique,
)
from tests.root.wire import DECOY, Wire, get_head, head, ok, receive

SENDS = ("write", "writev", "sendto", "sendmsg", "sendmmsg", "sendfile", "manyiov")
RECEIVES = ("read", "readv", "recvfrom", "recvmsg", "recvmmsg")


def printed_port(process: Process, log: Path) -> int:
    """The port a workload prints first."""
    match = process.wait_for(lambda: re.match(r"(\d+)\n", log.read_text()), "its port")
    return int(match[1])


@pytest.mark.kernels("write", "sendmsg")
@pytest.mark.parametrize("send", SENDS)
def test_each_way_out_with_each_way_in(watch: Watch, tmp_path: Path, send: str) -> None:
    """Requests leave by `send` and answers by the next way; receives take turns on both sides."""
    ways = compile_c("ways")
    path, count = unique(), 25
    expected = []
    answer = SENDS[(SENDS.index(send) + 1) % len(SENDS)]
    for n, server_in in enumerate(RECEIVES):
        client_in = RECEIVES[(n + 2) % len(RECEIVES)]
        log = tmp_path / f"serve{n}"
        server = Process([ways, "serve", answer, server_in, str(count)], log)
        with running(server):
            port = printed_port(server, log)
            out = run([ways, "get", str(port), f"{path}/{n}", send, client_in, str(count)])
            assert server.popen.wait(10) == 0
        for line in out.splitlines():
            where, status, sent, received = line.split()
            expected.append(Exchange(where, int(status), "POST", int(sent), int(received)))
    assert len(expected) == count * len(RECEIVES)
    spans = watch.exact(path, expected)
    assert {span.resource["service.name"] for span in spans} == {"ways"}


PLANS = ("pupp", "prp", "psp", "puuuppp", "upp", "prspusrp")


@pytest.mark.kernels("pupp")
@pytest.mark.parametrize("plan", PLANS)
def test_io_uring_is_seen_or_a_gap_that_is_counted_and_left_behind(
    watch: Watch, tmp_path: Path, plan: str
) -> None:
    """With hooks at system calls, the server shows what went by these, and the client all."""
    path, log = unique(), tmp_path / "uring"
    server = Process([compile_c("uring"), plan], log)
    watch.allowed |= {"gap", "orphan"}
    with running(server):
        port = printed_port(server, log)
        with Client(port) as client:
            for n in range(len(plan)):
                client.ask(f"{path}/{n}")
        assert server.popen.wait(10) == 0
    whole = [Exchange(f"{path}/{n}", 200, "GET", 0, 2) for n in range(len(plan))]
    if watch.tracer.hooks() == "fentry":
        watch.exact(path, whole)
        return
    # A request after one whose answer went unseen must be right, its own way being plain.
    plain = [whole[n] for n, way in enumerate(plan) if way == "p"]
    spans = watch.under(path, len(plan) + len(plain))
    assert_exact(spans.of(CLIENT), whole, (CLIENT,))
    assert_sound(spans.of(SERVER))
    got = spans.of(SERVER)
    assert set(plain) <= {seen(span) for span in got}, got.show()
    for span in got:
        n = int(span.path.rsplit("/", 1)[1])
        assert plan[n] not in "ur", f"its request was never seen: {span}"
        if plan[n] == "s":
            assert span.status is None, f"its answer was never seen: {span}"
            assert span.error or span.attributes.get("wirespan.incomplete"), span
    assert len({span.path for span in got}) == len(got)
    if plan[0] == "p":
        assert watch.lost()["gap"] + watch.lost()["orphan"] >= 1


class Client:
    """One keep-alive connection and plain calls."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=15)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def ask(self, path: str) -> None:
        self.sock.sendall(get_head(path))
        data = b""
        while not data.endswith(b"\r\n\r\n" + data[-2:]):
            part = self.sock.recv(4096)
            assert part, "closed"
            data += part


class Middle:
    """A proxy on one thread: front and back connections, bytes passed on by copy or splice."""

    def __init__(self) -> None:
        self.front, self.back = Wire(), Wire()
        self.pipe = os.pipe()

    def __enter__(self) -> Middle:
        return self

    def __exit__(self, *_: object) -> None:
        for wire in (self.front, self.back):
            wire.__exit__()
        for fd in self.pipe:
            os.close(fd)

    def splice(self, source: int, target: int, count: int) -> None:
        while count:
            moved = os.splice(source, self.pipe[1], min(count, 65536))
            count -= moved
            while moved:
                moved -= os.splice(self.pipe[0], target, moved)

    def exchange(self, path: str, body: bytes, *, spliced: str) -> None:
        """spliced: "nothing", "all", or "body" of the response."""
        request, answer = get_head(path), ok(body)
        start = len(answer) - len(body)
        self.front.client.sendall(request)
        if spliced == "all":
            self.splice(self.front.server.fileno(), self.back.client.fileno(), len(request))
        else:
            self.back.client.sendall(receive(self.front.server, len(request)))
        assert receive(self.back.server, len(request)) == request
        self.back.server.sendall(answer)
        if spliced == "all":
            self.splice(self.back.client.fileno(), self.front.server.fileno(), len(answer))
        else:
            self.front.server.sendall(receive(self.back.client, start))
            if spliced == "body":
                self.splice(self.back.client.fileno(), self.front.server.fileno(), len(body))
            else:
                self.front.server.sendall(receive(self.back.client, len(body)))
        assert receive(self.front.client, len(answer)) == answer


def test_spliced_bodies_are_measured(watch: Watch) -> None:
    """Body bytes that go by unseen are known by number, so nothing is lost."""
    path = unique()
    bodies = [DECOY * (n * 30 % 101) for n in range(10)]
    with Middle() as middle:
        for n, body in enumerate(bodies):
            middle.exchange(f"{path}/{n}", body, spliced="body" if n % 3 else "nothing")
    exchanges = [Exchange(f"{path}/{n}", 200, "GET", 0, len(b)) for n, b in enumerate(bodies)]
    watch.exact(path, exchanges * 2)


def test_spliced_heads_are_a_gap_that_is_counted_and_left_behind(watch: Watch) -> None:
    path, plan = unique(), ("nothing", "all", "nothing", "all", "all", "nothing", "nothing")
    watch.allowed |= {"gap", "orphan"}
    with Middle() as middle:
        front, back = middle.front.ports(), middle.back.ports()
        for n, spliced in enumerate(plan):
            middle.exchange(f"{path}/{n}", b"body", spliced=spliced)
    whole = [Exchange(f"{path}/{n}", 200, "GET", 0, 4) for n in range(len(plan))]
    plain = [whole[n] for n, spliced in enumerate(plan) if spliced == "nothing"]
    spans = watch.under(path, 2 * len(whole) + 2 * len(plain))
    assert_exact(spans.at(*front).of(CLIENT), whole, (CLIENT,))
    assert_exact(spans.at(*back).of(SERVER), whole, (SERVER,))
    assert_exact(spans.at(*front).of(SERVER), plain, (SERVER,))
    assert_exact(spans.at(*back).of(CLIENT), plain, (CLIENT,))
    assert watch.lost()["gap"] >= 2


def test_chunked_body_that_went_by_unseen(watch: Watch) -> None:
    """Chunk data may be opaque; where a chunk line was in it, the exchange says it is cut."""
    path = unique()
    watch.allowed |= {"gap", "orphan"}
    body = b"a" * 3000 + b"\r\n" + b"bb8\r\n" + b"b" * 3000 + b"\r\n0\r\n\r\n"
    with Middle() as middle:
        for n in range(3):
            middle.back.request(get_head(f"{path}/{n}"))
            start = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"bb8\r\n"
            middle.back.response(start)
            middle.back.server.sendall(body)
            middle.splice(middle.back.client.fileno(), middle.front.server.fileno(), len(body))
            receive(middle.front.client, len(body))
        middle.back.request(get_head(f"{path}/after"))
        middle.back.response(ok(b"ok"))
    spans = watch.under(path, 8)
    whole = [Exchange(f"{path}/{n}", 200, "GET", 0, 6000) for n in range(3)]
    whole.append(Exchange(f"{path}/after", 200, "GET", 0, 2))
    assert_exact(spans.of(SERVER), whole, (SERVER,))
    got = {span.path: span for span in spans.of(CLIENT)}
    assert len(got) == len(spans.of(CLIENT)), "each at most once"
    assert seen(got[f"{path}/after"]) == whole[-1]
    for n in range(3):
        if span := got.get(f"{path}/{n}"):
            assert span.attributes.get("wirespan.incomplete") or seen(span) == whole[n], span


def test_vectors_cut_at_every_place(watch: Watch) -> None:
    """sendmsg with the cut moved one byte at a time through head and body of both messages."""
    path = unique()
    expected = []
    with Wire() as wire:
        request = get_head(f"{path}/0000", "Content-Length: 3", method="PUT") + b"req"
        answer = ok(b"answer")
        for n, at in enumerate(itertools.chain(range(1, len(request)), (1, 2))):
            message = request.replace(b"0000", b"%04d" % n)
            wire.client.sendmsg([message[:at], message[at : at + 4], b"", message[at + 4 :]])
            receive(wire.server, len(message))
            at = at % (len(answer) - 1) + 1
            wire.server.sendmsg([answer[:at], answer[at:]])
            receive(wire.client, len(answer))
            expected.append(Exchange(f"{path}/{n:04d}", 200, "PUT", 3, 6))
    watch.exact(path, expected)
