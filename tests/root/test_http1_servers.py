"""Real servers and clients: spans on both sides equal what the client counted."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.harness import (
    BUILD,
    CLIENT,
    ROOT,
    SERVER,
    WORKLOADS,
    Exchange,
    Process,
    Spans,
    Watch,
    assert_exact,
    assert_sound,
    free_port,
    get,
    listening,
    run,
    running,
    seen,
    unique,
)
from tests.root.load import load
from tests.root.nginx import FILE_BYTES, HELLO, Nginx
from tests.root.test_http1_syscalls import printed_port


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path_factory.mktemp("nginx"))
    yield nginx
    nginx.stop()


@pytest.fixture(scope="session")
def gohttp() -> Path:
    """The net/http workload, built with the standard library alone."""
    program = BUILD / "gohttp"
    BUILD.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go") or str(ROOT / ".venv" / "bin" / "go")
    run([go, "build", "-o", program, "."], timeout=300, cwd=WORKLOADS / "gohttp")
    return program


def listed(out: str) -> list[Exchange]:
    """Exchanges from a workload's lines: path method status sent received."""
    rows = [line.split() for line in out.splitlines()]
    return [Exchange(p, int(s), m, int(sent), int(got)) for p, m, s, sent, got in rows]


def test_ten_thousand_on_one_connection(watch: Watch, nginx: Nginx) -> None:
    path = unique()
    done = load(nginx.port, path, 10_000, 1)
    assert done == [Exchange(f"{path}/{n}", 200, "GET", 0, HELLO) for n in range(10_000)]
    spans = watch.exact(path, done)
    assert len(nginx.logged(path)) == 10_000
    for kind in (CLIENT, SERVER):
        order = sorted(spans.of(kind), key=lambda span: span.start)
        assert [span.path for span in order] == [exchange.path for exchange in done]
        for before, after in itertools.pairwise(order):
            assert before.end <= after.start, f"they cannot overlap:\n{before}\n{after}"


@pytest.mark.parametrize(("connections", "requests"), [(64, 10_000), (512, 10_000)])
def test_many_connections(watch: Watch, nginx: Nginx, connections: int, requests: int) -> None:
    path = unique()
    done = load(nginx.port, path, requests, connections)
    watch.exact(path, done)


def test_a_thousand_short_connections(watch: Watch, nginx: Nginx) -> None:
    path = unique()
    for n in range(1000):
        assert get(nginx.port, f"{path}/{n}") == 200
    watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, HELLO) for n in range(1000)])


def test_curl_processes_that_live_a_few_milliseconds(watch: Watch, nginx: Nginx) -> None:
    path, count = unique(), 400
    urls = "\n".join(f"http://127.0.0.1:{nginx.port}{path}/{n}" for n in range(count))
    argv = ["xargs", "-P", "2", "-n", "1", "curl", "-sS", "--fail", "-o", "/dev/null"]
    subprocess.run(argv, input=urls, text=True, check=True, timeout=120)
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, HELLO) for n in range(count)])
    clients = spans.of(CLIENT)
    assert {span.resource["service.name"] for span in clients} == {"curl"}
    assert len({span.resource["process.pid"] for span in clients}) == count
    assert {span.resource["service.name"] for span in spans.of(SERVER)} == {"nginx"}


BRIEF = "import sys, urllib.request as http; http.urlopen(sys.argv[1]).read()"


def test_a_process_that_lives_for_a_moment_names_itself(watch: Watch, nginx: Nginx) -> None:
    """Its environment is read while it is there, however long nothing had happened before."""
    path = unique()
    for turn in range(4):
        time.sleep(1.5)  # the tracer's visits to the ring have become rare
        names = {**os.environ, "OTEL_SERVICE_NAME": f"brief-{turn}"}
        url = f"http://127.0.0.1:{nginx.port}{path}/{turn}"
        run([sys.executable, "-c", BRIEF, url], env=names)
    spans = watch.under(path, 8)
    names_seen = sorted(span.resource["service.name"] for span in spans.of(CLIENT))
    assert names_seen == [f"brief-{turn}" for turn in range(4)]


def test_wrk(watch: Watch, nginx: Nginx) -> None:
    """wrk prints the responses it read and leaves up to one request a connection unread.

    So the server's side equals nginx's own log to the last request, and the client's side
    what wrk counted, give or take those in flight when its time was up.
    """
    path, connections = unique(), 64
    url = f"http://127.0.0.1:{nginx.port}{path}/wrk"
    out = run(["wrk", "-t", "2", "-c", str(connections), "-d", "1s", url])
    match = re.search(r"(\d+) requests in", out)
    assert match, out
    counted = int(match[1])
    nginx.process.wait_for(lambda: len(nginx.logged(path)) >= counted, "nginx's log")
    spans = watch.under(path, 2 * counted)
    # nginx logs a request when it is done with it, which may be after wrk has gone.
    nginx.process.wait_for(
        lambda: len(watch.now(path).of(SERVER)) == len(nginx.logged(path)),
        "as many server spans as nginx has logged",
    )
    spans = watch.under(path, len(spans))
    assert_sound(spans)
    whole = {kind: [s for s in spans.of(kind) if not s.error] for kind in (CLIENT, SERVER)}
    assert counted <= len(whole[CLIENT]) <= counted + connections
    assert counted <= len(whole[SERVER]) <= counted + connections
    assert len(spans.of(CLIENT)) - counted <= connections
    for kind in (CLIENT, SERVER):
        assert {seen(s) for s in whole[kind]} == {Exchange(f"{path}/wrk", 200, "GET", 0, HELLO)}
        assert all(s.status in (None, 200) for s in spans.of(kind))


def test_nginx_statuses_methods_files_and_uploads(watch: Watch, nginx: Nginx) -> None:
    path = unique()
    upload = b"u" * (10 << 20)
    connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=15)
    expected = []
    try:
        for method, name, body in (
            ("GET", "hello", b""),
            ("HEAD", "hello", b""),
            ("GET", "missing", b""),
            ("GET", "broken", b""),
            ("PUT", "put", upload),
            ("PUT", "put", upload),
            ("GET", "file", b""),
            ("HEAD", "file", b""),
            ("GET", "hello", b""),
        ):
            connection.request(method, f"{path}/{name}", body=body or None)
            response = connection.getresponse()
            size = len(response.read())
            where = f"{path}/{name}"
            expected.append(Exchange(where, response.status, method, len(body), size))
        connection.request("GET", f"{path}/file", headers={"Range": "bytes=100-299"})
        response = connection.getresponse()
        assert (response.status, len(response.read())) == (206, 200)
        expected.append(Exchange(f"{path}/file", 206, "GET", 0, 200))
    finally:
        connection.close()
    assert [e.status for e in expected[4:6]] == [201, 204]
    assert expected[6].response_body == FILE_BYTES
    spans = watch.exact(path, expected)
    for span in spans:
        failed = span.status >= (500 if span.kind == SERVER else 400)
        assert (span.error == str(span.status)) == failed, span
        assert (span.raw["status"] == "ERROR") == failed, span


@pytest.mark.kernels("IPv6", "unix")
@pytest.mark.parametrize("where", ["IPv6", "unix"])
def test_nginx_and_curl_elsewhere(watch: Watch, nginx: Nginx, where: str) -> None:
    path, count = unique(), 20
    for n in range(count):
        argv = ["curl", "-sS", "-o", "/dev/null"]
        if where == "unix":
            argv += ["--unix-socket", str(nginx.socket), f"http://localhost{path}/{n}"]
        else:
            argv += [f"http://[::1]:{nginx.port}{path}/{n}"]
        run(argv)
    spans = watch.exact(path, [Exchange(f"{path}/{n}", 200, "GET", 0, HELLO) for n in range(count)])
    if where == "unix":
        for span in spans:
            assert span.attributes["network.transport"] == "unix", span
            if span.kind == CLIENT:
                assert span.attributes["network.peer.address"] == str(nginx.socket), span


def test_python_http_server_of_the_command_line(watch: Watch, tmp_path: Path) -> None:
    """HTTP/1.0: each exchange has a connection of its own, and its close ends listings."""
    path, port = unique(), free_port()
    (tmp_path / path[1:]).mkdir()
    (tmp_path / path[1:] / "a.txt").write_bytes(b"a" * 1234)
    argv = [sys.executable, "-m", "http.server", str(port), "-b", "127.0.0.1", "-d", tmp_path]
    server = Process(argv, tmp_path / "log")
    expected = []
    with running(server):
        server.wait_for(lambda: listening(port), "http.server listens")
        for n in range(30):
            url = f"http://127.0.0.1:{port}{path}/" + ("a.txt" if n % 3 else f"none{n}")
            out = run(["curl", "-s", "-w", "%{http_code} %{size_download}", "-o", "/dev/null", url])
            status, size = map(int, out.split())
            expected.append(Exchange(url.split(str(port), 1)[1], status, "GET", 0, size))
    spans = watch.exact(path, expected)
    assert {exchange.status for exchange in expected} == {200, 404}
    names = {span.resource["service.name"] for span in spans.of(SERVER)}
    assert names == {"http.server"}, "python -m http.server is http.server, not python"


def keep_alive(port: int, plans: list[tuple[str, str, bytes]]) -> list[Exchange]:
    """Each (method, target, body) in turn on one http.client connection."""
    done = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
    try:
        for method, target, body in plans:
            connection.request(method, target, body=body or None)
            response = connection.getresponse()
            size = len(response.read())
            path = target.split("?")[0]
            done.append(Exchange(path, response.status, method, len(body), size))
    finally:
        connection.close()
    return done


def test_python_http_server_with_keep_alive(watch: Watch, tmp_path: Path) -> None:
    path, log = unique(), tmp_path / "log"
    server = Process([sys.executable, WORKLOADS / "pyhttp.py"], log)
    methods = ("GET", "POST", "HEAD", "PUT", "DELETE")
    with running(server):
        port = printed_port(server, log)
        plans = [
            (methods[n % 5], f"{path}/{n}", b"b" * (n * 37) if n % 2 else b"") for n in range(300)
        ]
        expected = keep_alive(port, plans)
    spans = watch.exact(path, expected)
    assert {span.resource["service.name"] for span in spans.of(SERVER)} == {"pyhttp"}


@pytest.mark.parametrize("worker", ["sync", "gthread"])
def test_gunicorn(watch: Watch, tmp_path: Path, worker: str) -> None:
    """sync closes after each answer; gthread keeps connections and answers from a pool."""
    path, port, sock = unique(), free_port(), tmp_path / "sock"
    argv = [sys.executable, "-m", "gunicorn", "-k", worker, "-w", "2", "--threads", "2"]
    argv += ["-b", f"127.0.0.1:{port}", "-b", f"unix:{sock}", "--log-level", "warning"]
    if worker == "sync":
        argv[argv.index("--threads") : argv.index("--threads") + 2] = []
    argv += ["--worker-tmp-dir", str(tmp_path), "--chdir", str(WORKLOADS), "wsgi:app"]
    server = Process(argv, tmp_path / "log")
    plans = []
    for n in range(120):
        stream = "&stream=1" if n % 4 == 0 else ""
        target = f"{path}/{n}?status={(200, 404, 503)[n % 3]}&size={n * 41 % 3000}{stream}"
        plans.append(("POST" if n % 2 else "GET", target, b"b" * (n * 50) if n % 2 else b""))
    with running(server):
        server.wait_for(lambda: listening(port), "gunicorn listens")
        if worker == "sync":
            expected = [done for plan in plans for done in keep_alive(port, [plan])]
        else:
            expected = keep_alive(port, plans[:60]) + keep_alive(port, plans[60:])
        for n in range(10):
            url = f"http://local{path}/unix/{n}?size=33"
            run(["curl", "-sS", "--fail", "-o", "/dev/null", "--unix-socket", sock, url])
            expected.append(Exchange(f"{path}/unix/{n}", 200, "GET", 0, 33))
    watch.exact(path, expected)


@pytest.mark.parametrize("connections", [1, 16])
def test_node(watch: Watch, tmp_path: Path, connections: int) -> None:
    path, log, script = unique(), tmp_path / "log", WORKLOADS / "node_http.js"
    server = Process(["node", script, "serve"], log)
    with running(server):
        port = printed_port(server, log)
        url = f"http://127.0.0.1:{port}{path}"
        expected = listed(run(["node", script, "get", url, "1000", str(connections)]))
    assert len(expected) == 1000
    watch.exact(path, expected)


@pytest.mark.parametrize("connections", [1, 64, 512])
def test_go(watch: Watch, tmp_path: Path, gohttp: Path, connections: int) -> None:
    path, log = unique(), tmp_path / "log"
    server = Process([gohttp, "serve"], log, stdin=subprocess.PIPE)
    with running(server):
        assert server.popen.stdin is not None
        port = printed_port(server, log)
        url = f"http://127.0.0.1:{port}{path}"
        expected = listed(run([gohttp, "get", url, "3000", str(connections)]))
        server.popen.stdin.close()
    assert len(expected) == 3000
    watch.exact(path, expected)


HAPROXY = """
global
    maxconn 1000
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 15s
    timeout server 15s
    {options}
frontend front
    bind 127.0.0.1:{front}
    default_backend back
backend back
    server nginx 127.0.0.1:{back}
"""


@pytest.mark.parametrize("options", ["http-reuse always", "http-reuse never", "splice"])
def test_haproxy_in_the_middle(watch: Watch, nginx: Nginx, tmp_path: Path, options: str) -> None:
    """Client, haproxy's both sides and nginx: four spans for each request."""
    path, front = unique(), free_port()
    splice = "option splice-request\n    option splice-response"
    text = HAPROXY.format(
        front=front, back=nginx.port, options=splice if options == "splice" else options
    )
    (tmp_path / "cfg").write_text(text)
    process = Process(["haproxy", "-W", "-f", tmp_path / "cfg"], tmp_path / "log")
    with running(process):
        process.wait_for(lambda: listening(front), "haproxy listens")
        expected = load(front, f"{path}/many", 1000, 16)
        big = [
            ("GET", f"{path}/file", b""),
            ("PUT", f"{path}/put", b"u" * (3 << 20)),
            ("GET", f"{path}/after", b""),
        ]
        expected += keep_alive(front, big * 3)
    spans = watch.under(path, 4 * len(expected))
    middle = Spans(s for s in spans if s.resource["service.name"] == "haproxy")
    server = spans.of(SERVER)
    server = Spans(s for s in server if s.resource["service.name"] == "nginx")
    client = spans.process(os.getpid())
    assert len(spans) == len(client) + len(middle) + len(server), spans.show()
    assert_exact(client, expected, (CLIENT,))
    assert_exact(middle, expected)
    assert_exact(server, expected, (SERVER,))
