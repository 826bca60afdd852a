"""HTTP/1.1 framing over real sockets: where messages end, however their bytes are cut."""

from __future__ import annotations

import itertools
import os
import random
import threading
from pathlib import Path

import pytest

from tests.root.harness import (
    CLIENT,
    SERVER,
    Exchange,
    Watch,
    assert_exact,
    assert_sound,
    seen,
    unique,
)
from tests.root.wire import (
    DECOY,
    Script,
    Wire,
    at_random,
    carry,
    chunked,
    each,
    get_head,
    head,
    ok,
    receive,
)

MIB = 1 << 20


@pytest.mark.kernels("0")
@pytest.mark.parametrize("seed", range(6))
def test_random_exchanges_cut_anywhere(watch: Watch, seed: int) -> None:
    rng, path = random.Random(seed), unique()
    expected = []
    with Wire(chunk=rng.choice((3, 64, 65536))) as wire:
        for n in range(80):
            script = Script(rng, f"{path}/{n}")
            script.play(wire, at_random(rng))
            expected.append(script.exchange)
    watch.exact(path, expected)


def test_byte_by_byte_both_ways(watch: Watch) -> None:
    rng, path = random.Random(99), unique()
    expected = []
    with Wire() as wire:
        for n in range(25):
            script = Script(rng, f"{path}/{n}", most=300)
            script.play(wire, each(1))
            expected.append(script.exchange)
    watch.exact(path, expected)


@pytest.mark.parametrize("chunk", [1, 7])
def test_received_in_small_pieces(watch: Watch, chunk: int) -> None:
    """One send each way, drained by many receives: the cuts of the two sides differ."""
    rng, path = random.Random(chunk), unique()
    expected = []
    with Wire(chunk=chunk) as wire:
        for n in range(20):
            script = Script(rng, f"{path}/{n}", most=600)
            script.play(wire)
            expected.append(script.exchange)
    watch.exact(path, expected)


@pytest.mark.parametrize("answers", ["one send", "a send each", "byte by byte", "random cuts"])
def test_ten_pipelined_in_one_send(watch: Watch, answers: str) -> None:
    rng, path = random.Random(answers), unique()
    scripts = [Script(rng, f"{path}/{n}", most=500) for n in range(30)]
    with Wire(chunk=rng.choice((11, 65536))) as wire:
        for ten in (scripts[0:10], scripts[10:20], scripts[20:30]):
            wire.request(b"".join(script.requests for script in ten))
            if answers == "a send each":
                for script in ten:
                    wire.response(script.responses)
                continue
            sizes = {"byte by byte": each(1), "random cuts": at_random(rng)}.get(answers)
            wire.response(b"".join(script.responses for script in ten), sizes)
    spans = watch.exact(path, [script.exchange for script in scripts])
    for kind in (CLIENT, SERVER):
        ends = [span.path for span in sorted(spans.of(kind), key=lambda span: span.end)]
        assert ends == [script.exchange.path for script in scripts], "responses are in order"


def test_pipeline_deeper_than_is_kept(watch: Watch) -> None:
    """What finds no room is counted; what is reported keeps its own response."""
    path, depth = unique(), 400
    watch.allowed.add("pipeline_full")
    with Wire() as wire:
        wire.request(b"".join(get_head(f"{path}/{n}") for n in range(depth)))
        wire.response(b"".join(ok(b"x" * n, 230 + n % 60) for n in range(depth)))
        wire.request(get_head(f"{path}/after"))
        wire.response(ok(b"last"))
    spans = watch.under(path, 2 * depth + 2)
    assert_sound(spans)
    truth = {
        f"{path}/{n}": Exchange(f"{path}/{n}", 230 + n % 60, "GET", 0, n) for n in range(depth)
    }
    truth[f"{path}/after"] = Exchange(f"{path}/after", 200, "GET", 0, 4)
    for kind in (CLIENT, SERVER):
        got = [seen(span) for span in spans.of(kind)]
        assert len({exchange.path for exchange in got}) == len(got), "each at most once"
        assert all(exchange == truth[exchange.path] for exchange in got)
        assert f"{path}/after" in {exchange.path for exchange in got}
    assert len(spans) + watch.lost()["pipeline_full"] == 2 * (depth + 1)


def test_closed_by_the_server_ends_the_body(watch: Watch) -> None:
    """RFC 9112 section 6.3: no length and no transfer coding, so the close is the end."""
    rng, path = random.Random(5), unique()
    expected = []
    for n, version in enumerate(("1.0", "1.1", "1.0", "1.1", "1.1")):
        with Wire() as wire:
            body = (b"x" * rng.randrange(5000) + DECOY) * (n + 1)
            wire.request(head(f"GET {path}/{n} HTTP/{version}", "Host: wire.test"))
            wire.response(head(f"HTTP/{version} 200 OK", "Connection: close"))
            wire.response(body, at_random(rng))
            if n % 2:
                wire.server.shutdown(1)
            else:
                wire.server.close()
            assert wire.client.recv(10) == b""
            expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, len(body)))
    spans = watch.exact(path, expected)
    assert not [span for span in spans if span.error], "the close is no error here"


def test_http10_keep_alive(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        for n in range(5):
            request = f"GET {path}/{n} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode()
            wire.request(request)
            fields = ("Content-Length: 3", "Connection: keep-alive")
            wire.response(head("HTTP/1.0 200 OK", *fields) + b"abc")
    watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 3) for n in range(5)])


@pytest.mark.parametrize("sizes", [None, 1, 700], ids=["one send", "bytes", "700 bytes"])
def test_request_line_of_8_kb_is_cut_and_says_so(watch: Watch, sizes: int | None) -> None:
    path = unique()
    with Wire() as wire:
        for n in range(3):
            long = f"{path}/{n}/" + "a" * 8000
            cuts = each(sizes) if sizes else None
            wire.request(get_head(long, "Content-Length: 4", method="POST") + b"four", cuts)
            wire.response(ok(b"fine", 201), cuts)
        wire.request(get_head(f"{path}/short"))
        wire.response(ok(b"ok"))
    spans = watch.under(path, 8)
    assert_sound(spans)
    for kind in (CLIENT, SERVER):
        *cut, short = sorted(spans.of(kind), key=lambda span: span.start)
        assert [span.path[len(path) :][:4] for span in cut] == ["/0/a", "/1/a", "/2/a"]
        for span in cut:
            assert len(span.path) >= 128 and set(span.path[len(path) + 3 :]) == {"a"}
            assert span.truncated & {"url.path", "url.full"}, span
            sizes_seen = (span.status, span.method, span.request_body, span.response_body)
            assert sizes_seen == (201, "POST", 4, 4), span
        assert seen(short) == Exchange(f"{path}/short", 200, "GET", 0, 2)
        assert not short.truncated


def test_query_of_8_kb_leaves_the_path_whole(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        wire.request(get_head(path + "?token=" + "s3cret" * 1300))
        wire.response(ok(b"ok"))
    spans = watch.exact(path, [Exchange(path, 200, "GET", 0, 2)])
    for span in spans:
        assert "url.path" not in span.truncated
        assert "s3cret" not in str(span), "queries are masked unless asked for"


def test_heads_of_60_kb(watch: Watch) -> None:
    """The field that frames the body stands behind 60 KB of others, in one send and in many."""
    rng, path = random.Random(8), unique()
    filler = [f"X-Filler-{n}: " + "v" * 1000 for n in range(60)]
    expected = []
    with Wire() as wire:
        for n in range(4):
            sizes = at_random(rng) if n % 2 else None
            last = "Content-Length: 10" if n < 2 else "Transfer-Encoding: chunked"
            body = b"0123456789" if n < 2 else chunked(rng, b"0123456789")
            wire.request(get_head(f"{path}/{n}", *filler, last, method="PUT") + body, sizes)
            wire.response(head("HTTP/1.1 200 OK", *filler, last) + body, sizes)
            expected.append(Exchange(f"{path}/{n}", 200, "PUT", 10, 10))
    watch.exact(path, expected)


def test_upgrade_ends_http_on_the_connection(watch: Watch) -> None:
    """After 101 the bytes are another protocol's, even where they read like HTTP."""
    path = unique()
    ask = ("Connection: Upgrade", "Upgrade: websocket")
    decoy = get_head(f"{path}/decoy")
    for together in (False, True):
        with Wire() as wire:
            wire.request(get_head(f"{path}/before"))
            wire.response(ok())
            wire.request(get_head(f"{path}/chat", *ask))
            switch = head("HTTP/1.1 101 Switching Protocols", *ask)
            if together:
                wire.response(switch + ok(b"decoy"))
            else:
                wire.response(switch)
            for _ in range(20):
                wire.request(decoy)
                wire.response(ok(b"decoy"))
                wire.response(decoy)
                wire.request(ok(b"decoy"))
    pairs = [Exchange(f"{path}/before"), Exchange(f"{path}/chat", 101)] * 2
    watch.exact(path, pairs)


def test_upgrade_not_taken_up_goes_on(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        for n in range(3):
            wire.request(get_head(f"{path}/{n}", "Connection: Upgrade", "Upgrade: h2c"))
            wire.response(ok(b"plain"))
    watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 5) for n in range(3)])


def test_connect_makes_a_tunnel(watch: Watch) -> None:
    path = unique()
    with Wire() as wire:
        wire.request(head("CONNECT example.test:443 HTTP/1.1", "Host: example.test:443"))
        body = b"say who"
        refused = head("HTTP/1.1 407 No", f"Content-Length: {len(body)}") + body
        wire.response(refused)
        wire.request(head("CONNECT example.test:443 HTTP/1.1", "Host: example.test:443"))
        # RFC 9110 section 9.3.6: Content-Length in a 2xx to CONNECT is ignored.
        wire.response(head("HTTP/1.1 200 Connection established", "Content-Length: 5"))
        for _ in range(10):
            wire.request(get_head(f"{path}/decoy"))
            wire.response(ok(b"decoy"))
        ports = wire.ports()
    spans = watch.at(ports, 4)
    assert_sound(spans)
    for kind in (CLIENT, SERVER):
        got = [(span.method, span.status) for span in spans.of(kind)]
        assert got == [("CONNECT", 407), ("CONNECT", 200)], spans.show()
    assert len(spans) == 4


def test_interim_responses_before_the_final_one(watch: Watch) -> None:
    path = unique()
    hints = head("HTTP/1.1 103 Early Hints", "Link: </a>") + head("HTTP/1.1 102 Processing")
    with Wire() as wire:
        for n, sizes in enumerate((None, each(1), each(20))):
            wire.request(get_head(f"{path}/{n}"))
            wire.response(hints * 3 + ok(b"done"), sizes)
    watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, 4) for n in range(3)])


def test_answered_before_the_request_was_whole(watch: Watch) -> None:
    """An early 413: one span, and when the rest has come the connection is in step again."""
    path = unique()
    with Wire() as wire:
        wire.request(get_head(f"{path}/early", "Content-Length: 1000", method="POST") + b"x" * 10)
        wire.response(ok(b"too large", 413))
        wire.request(b"y" * 990)
        wire.request(get_head(f"{path}/next"))
        wire.response(ok(b"ok"))
    spans = watch.under(path, 4)
    assert_sound(spans)
    for kind in (CLIENT, SERVER):
        got = [(s.path, s.status, s.response_body) for s in spans.of(kind)]
        assert got == [(f"{path}/early", 413, 9), (f"{path}/next", 200, 2)], spans.show()


def test_forms_of_the_request_target(watch: Watch) -> None:
    """RFC 9112 section 3.2: absolute-form; section 2.2: an empty line before a request."""
    path = unique()
    with Wire() as wire:
        wire.request(get_head(f"http://other.test:8080{path}/absolute?q=1"))
        wire.response(ok())
        wire.request(b"\r\n" + get_head(f"{path}/after-empty-line"))
        wire.response(b"HTTP/1.1 200\r\nContent-Length:0\r\n\r\n")
        wire.request(get_head(f"{path}/odd", method="BREW"))
        wire.response(ok(status=418))
    expected = [
        Exchange(f"{path}/absolute"),
        Exchange(f"{path}/after-empty-line"),
        Exchange(f"{path}/odd", 418, "BREW"),
    ]
    watch.exact(path, expected)


def test_upload_and_download_of_10_mb_by_one_blocking_send(watch: Watch) -> None:
    path, size = unique(), 10 * MIB
    up = get_head(f"{path}/up", f"Content-Length: {size}", method="PUT") + bytes(size)
    down = ok(bytes(size))
    with Wire() as wire:
        for client_data, server_data in ((up, ok()), (get_head(f"{path}/down"), down)):
            for sock, peer, data in (
                (wire.client, wire.server, client_data),
                (wire.server, wire.client, server_data),
            ):
                sock.settimeout(None)
                sender = threading.Thread(target=sock.sendall, args=(data,))
                sender.start()
                receive(peer, len(data))
                sender.join()
        wire.request(get_head(f"{path}/after"))
        wire.response(ok())
    expected = [
        Exchange(f"{path}/up", 200, "PUT", size, 0),
        Exchange(f"{path}/down", 200, "GET", 0, size),
        Exchange(f"{path}/after"),
    ]
    watch.exact(path, expected)


@pytest.mark.parametrize("coding", ["length", "chunked", "close"])
def test_sendfile_of_5_mb(watch: Watch, tmp_path: Path, coding: str) -> None:
    path, size = unique(), 5 * MIB
    source = tmp_path / "body"
    source.write_bytes(DECOY * (size // len(DECOY)) + b"x" * (size % len(DECOY)))
    expected = []
    with Wire() as wire, source.open("rb") as file:
        for n in range(1 if coding == "close" else 3):
            wire.request(get_head(f"{path}/{n}"))
            framing = {"length": f"Content-Length: {size}", "chunked": "Transfer-Encoding: chunked"}
            wire.response(head("HTTP/1.1 200 OK", framing.get(coding, "Connection: close")))
            if coding == "chunked":
                wire.response(f"{size:x}\r\n".encode())
            wire.server.settimeout(None)
            sender = threading.Thread(target=wire.server.sendfile, args=(file, 0, size))
            sender.start()
            receive(wire.client, size)
            sender.join()
            if coding == "chunked":
                wire.response(b"\r\n0\r\n\r\n")
            expected.append(Exchange(f"{path}/{n}", 200, "GET", 0, size))
        if coding == "close":
            wire.server.close()
            assert wire.client.recv(1) == b""
        else:
            wire.request(get_head(f"{path}/after"))
            wire.response(ok())
            expected.append(Exchange(f"{path}/after"))
    watch.exact(path, expected)


def test_head_sent_by_sendfile_is_a_gap_not_a_guess(watch: Watch, tmp_path: Path) -> None:
    """A response wholly out of a file: its sender's head is unseen, its receiver's is not."""
    path = unique()
    source = tmp_path / "response"
    source.write_bytes(ok(b"from a file"))
    watch.allowed |= {"gap", "orphan"}
    with Wire() as wire, source.open("rb") as file:
        wire.request(get_head(f"{path}/file"))
        os.sendfile(wire.server.fileno(), file.fileno(), 0, source.stat().st_size)
        receive(wire.client, source.stat().st_size)
        for n in range(3):
            wire.request(get_head(f"{path}/{n}"))
            wire.response(ok(b"seen"))
    spans = watch.under(path, 8)
    later = [Exchange(f"{path}/{n}", 200, "GET", 0, 4) for n in range(3)]
    file_span = Exchange(f"{path}/file", 200, "GET", 0, 11)
    assert_exact(spans.of(CLIENT), [file_span, *later], (CLIENT,))
    got = spans.of(SERVER)
    assert set(later) <= {seen(span) for span in got}, got.show()
    unsure = [span for span in got if span.path == f"{path}/file"]
    assert len(unsure) <= 1 and all(span.status is None for span in unsure)
    assert watch.lost()["gap"] >= 1


def test_many_connections_interleaved(watch: Watch) -> None:
    """Steps of 50 conversations dealt out at random: no connection's state leaks to another."""
    rng, path = random.Random(50), unique()
    with Wire() as wire:
        ends = [(wire.client, wire.server)] + [wire.connect() for _ in range(49)]
        todo, expected = [], []
        for k in range(len(ends)):
            scripts = [Script(rng, f"{path}/{k}/{n}", most=2000) for n in range(8)]
            expected += [script.exchange for script in scripts]
            todo.append([step for script in scripts for step in script.steps])
        sizes = at_random(rng)
        while live := [k for k, steps in enumerate(todo) if steps]:
            k = rng.choice(live)
            side, data = todo[k].pop(0)
            piece, rest = data[: (cut := next(sizes))], data[cut:]
            if rest:
                todo[k].insert(0, (side, rest))
            source, target = ends[k] if side == "request" else reversed(ends[k])
            carry(source, target, piece)
        for client, server in ends[1:]:
            client.close()
            server.close()
    watch.exact(path, expected)


def test_peeked_and_discarded_bytes_count_once(watch: Watch) -> None:
    """MSG_PEEK shows bytes that come again; MSG_TRUNC drops a body without copying it."""
    peek, trunc = 2, 0x20
    path = unique()
    with Wire() as wire:
        for n in range(5):
            body = b"b" * 5000
            request = get_head(f"{path}/{n}", "Content-Length: 5000", method="POST")
            wire.client.sendall(request + body)
            for size in itertools.chain((1, 10), [len(request)] * 2):
                assert wire.server.recv(size, peek)
            assert receive(wire.server, len(request)) == request
            left = len(body)
            while left:
                left -= len(wire.server.recv(left, trunc)) or left
            answer = ok(b"done")
            wire.server.sendall(answer)
            assert wire.client.recv(4, peek)
            assert wire.client.recv(4096, peek)
            receive(wire.client, len(answer))
    watch.exact(path, [Exchange(f"{path}/{n}", 200, "POST", 5000, 4) for n in range(5)])
