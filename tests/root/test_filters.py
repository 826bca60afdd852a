"""--port, --exe, --pid and --cgroup, and their exclude forms: decided in the kernel."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
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
    assert_exact,
    get,
    run,
    running,
    unique,
    wait_until,
)
from tests.root.nginx import HELLO, Nginx
from tests.root.test_http1_syscalls import printed_port

Start = Callable[..., Tracer]

# Ask for a path twice: as this program, and as curl in the same process.
THEN_CURL = """
import http.client, os, sys
port, path = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port))
connection.request("GET", path + "/before")
connection.getresponse().read()
connection.close()
url = f"http://127.0.0.1:{port}{path}/after"
os.execvp("curl", ["curl", "-sS", "--fail", "-o", "/dev/null", url])
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nginx, Nginx]]:
    """Two servers alike, of one executable."""
    first, second = (Nginx(tmp_path_factory.mktemp(name), workers=1) for name in ("a", "b"))
    yield first, second
    first.stop()
    second.stop()


def curl(port: int, path: str) -> None:
    run(["curl", "-sS", "--fail", "-o", "/dev/null", f"http://127.0.0.1:{port}{path}"])


def exchanges(tracer: Tracer) -> int:
    """Records of exchanges that entered the ring."""
    return {count.name: count.value for count in tracer.status().counts}["exchanges"]


@pytest.mark.parametrize("form", ["port", "exclude-port", "two ports"])
def test_port(start_tracer: Start, two: tuple[Nginx, Nginx], form: str) -> None:
    a, b = two
    options = {
        "port": ["--port", str(a.port)],
        "exclude-port": ["--exclude-port", str(b.port)],
        "two ports": ["--port", str(a.port), "--port", str(b.port)],
    }[form]
    tracer = start_tracer(*options)
    path, count = unique(), 20
    for n in range(count):
        assert get(a.port, f"{path}/a/{n}") == get(b.port, f"{path}/b/{n}") == 200
    tracer.settle(lambda mark: get(a.port, mark))
    spans = tracer.spans()
    seen_a = [Exchange(f"{path}/a/{n}", 200, "GET", 0, HELLO) for n in range(count)]
    seen_b = [Exchange(f"{path}/b/{n}", 200, "GET", 0, HELLO) for n in range(count)]
    assert_exact(spans.under(f"{path}/a"), seen_a)
    assert_exact(spans.under(f"{path}/b"), seen_b if form == "two ports" else [])
    if form == "port":
        assert len(spans) == exchanges(tracer) == 2 * count + 2, "filtered in the kernel"


def test_port_included_and_excluded(start_tracer: Start, two: tuple[Nginx, Nginx]) -> None:
    """Excluding wins."""
    a, b = two
    ports = [str(a.port), str(b.port)]
    tracer = start_tracer("--port", ports[0], "--port", ports[1], "--exclude-port", ports[1])
    path = unique()
    get(b.port, f"{path}/b")
    get(a.port, f"{path}/a")
    tracer.settle(lambda mark: get(a.port, mark))
    assert_exact(tracer.spans().under(path), [Exchange(f"{path}/a", 200, "GET", 0, HELLO)])


@pytest.mark.parametrize("form", ["exe", "exclude-exe"])
def test_exe(start_tracer: Start, two: tuple[Nginx, Nginx], form: str) -> None:
    """curl is started anew for each request: each process is known from its first byte."""
    a, _ = two
    program = str(Path(shutil.which("curl") or "curl").resolve())
    tracer = start_tracer(f"--{form}", program)
    path, count = unique(), 15
    for n in range(count):
        curl(a.port, f"{path}/curl/{n}")
        assert get(a.port, f"{path}/python/{n}") == 200
    by_curl = [Exchange(f"{path}/curl/{n}", 200, "GET", 0, HELLO) for n in range(count)]
    by_python = [Exchange(f"{path}/python/{n}", 200, "GET", 0, HELLO) for n in range(count)]
    if form == "exe":
        tracer.settle(lambda mark: curl(a.port, mark), (CLIENT,))
        spans = tracer.spans()
        assert_exact(spans.under(path), by_curl, (CLIENT,))
        assert len(spans) == exchanges(tracer) == count + 1, "filtered in the kernel"
    else:
        tracer.settle()
        spans = tracer.spans()
        assert_exact(spans.under(f"{path}/curl"), by_curl, (SERVER,))
        assert_exact(spans.under(f"{path}/python"), by_python)


def test_exe_that_was_running_already(start_tracer: Start, two: tuple[Nginx, Nginx]) -> None:
    a, b = two
    tracer = start_tracer("--exe", str(Path(shutil.which("nginx") or "nginx").resolve()))
    path = unique()
    get(a.port, f"{path}/a")
    get(b.port, f"{path}/b")
    tracer.settle(lambda mark: get(a.port, mark), (SERVER,))
    both = [Exchange(f"{path}/{name}", 200, "GET", 0, HELLO) for name in "ab"]
    assert_exact(tracer.spans().under(path), both, (SERVER,))


def test_exe_is_asked_again_after_exec(start_tracer: Start, two: tuple[Nginx, Nginx]) -> None:
    """What was found of a process says nothing of its next image."""
    a, _ = two
    tracer = start_tracer("--exclude-exe", str(Path(sys.executable).resolve()))
    path = unique()
    run([sys.executable, "-c", THEN_CURL, str(a.port), path])
    tracer.settle(lambda mark: curl(a.port, mark))
    spans = tracer.spans()
    before, after = (
        [Exchange(f"{path}/{when}", 200, "GET", 0, HELLO)] for when in ("before", "after")
    )
    assert_exact(spans.under(f"{path}/before"), before, (SERVER,))
    assert_exact(spans.under(f"{path}/after"), after)


@pytest.mark.parametrize("form", ["pid", "exclude-pid"])
def test_pid(start_tracer: Start, tmp_path: Path, form: str) -> None:
    """One of two processes that run the same program."""
    logs = [tmp_path / "one", tmp_path / "two"]
    servers = [Process([sys.executable, WORKLOADS / "pyhttp.py"], log) for log in logs]
    with running(*servers):
        one, two = (printed_port(*both) for both in zip(servers, logs, strict=True))
        tracer = start_tracer(f"--{form}", str(servers[0].pid))
        path, count = unique(), 10
        for n in range(count):
            get(one, f"{path}/one/{n}")
            get(two, f"{path}/two/{n}")
        if form == "pid":
            tracer.settle(lambda mark: get(one, mark), (SERVER,))
        else:
            tracer.settle()
        spans = tracer.spans()
    to_one = [Exchange(f"{path}/one/{n}", 200, "GET", 0, 10) for n in range(count)]
    to_two = [Exchange(f"{path}/two/{n}", 200, "GET", 0, 10) for n in range(count)]
    if form == "pid":
        assert_exact(spans.under(path), to_one, (SERVER,))
        assert {s.resource["process.pid"] for s in spans} == {servers[0].pid}
    else:
        assert_exact(spans.under(f"{path}/one"), to_one, (CLIENT,))
        assert_exact(spans.under(f"{path}/two"), to_two)


@pytest.mark.parametrize("form", ["pid", "exclude-pid"])
def test_pid_stands_for_its_children_too(
    start_tracer: Start, two: tuple[Nginx, Nginx], tmp_path: Path, form: str
) -> None:
    """A shell that starts a curl for each URL it reads: none of them was there before."""
    a, _ = two
    loop = 'while read url; do curl -sS --fail -o /dev/null "$url"; done'
    shell = Process(["sh", "-c", loop], tmp_path / "sh", stdin=subprocess.PIPE)
    with running(shell):
        pipe = shell.popen.stdin
        assert pipe is not None

        def from_shell(path: str) -> None:
            pipe.write(f"http://127.0.0.1:{a.port}{path}\n".encode())
            pipe.flush()

        tracer = start_tracer(f"--{form}", str(shell.pid))
        path, count = unique(), 10
        for n in range(count):
            curl(a.port, f"{path}/outside/{n}")
            from_shell(f"{path}/inside/{n}")
        inside = [Exchange(f"{path}/inside/{n}", 200, "GET", 0, HELLO) for n in range(count)]
        outside = [Exchange(f"{path}/outside/{n}", 200, "GET", 0, HELLO) for n in range(count)]
        if form == "pid":
            tracer.settle(from_shell, (CLIENT,))
            assert_exact(tracer.spans().under(path), inside, (CLIENT,))
        else:
            tracer.settle(from_shell, (SERVER,))
            tracer.settle()
            spans = tracer.spans()
            assert_exact(spans.under(f"{path}/inside"), inside, (SERVER,))
            assert_exact(spans.under(f"{path}/outside"), outside)
        pipe.close()


def cgroup2() -> Path:
    """Where the cgroup v2 hierarchy is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise AssertionError("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none DIRECTORY")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own with one inside it; both are removed."""
    outer = cgroup2() / f"wirespan-test-{os.getpid()}"
    inner = outer / "inner"
    inner.mkdir(parents=True)
    yield outer
    for group in (inner, outer):
        wait_until(lambda group=group: not (group / "cgroup.procs").read_text(), "it is empty")
        with contextlib.suppress(FileNotFoundError):
            group.rmdir()


def curl_in(group: Path, port: int, path: str) -> None:
    """curl that joins the cgroup before it is itself."""
    url = f"http://127.0.0.1:{port}{path}"
    script = f'echo $$ > "{group}/cgroup.procs" && exec curl -sS --fail -o /dev/null "{url}"'
    run(["sh", "-c", script])


@pytest.mark.parametrize("form", ["cgroup", "exclude-cgroup"])
def test_cgroup(start_tracer: Start, two: tuple[Nginx, Nginx], cgroup: Path, form: str) -> None:
    """The group itself and those under it; the rest of the host is outside."""
    a, _ = two
    tracer = start_tracer(f"--{form}", f"/{cgroup.name}")
    path, count = unique(), 5
    inside = []
    for n in range(count):
        curl_in(cgroup, a.port, f"{path}/in/outer{n}")
        curl_in(cgroup / "inner", a.port, f"{path}/in/inner{n}")
        curl(a.port, f"{path}/out/{n}")
        inside += [Exchange(f"{path}/in/{k}{n}", 200, "GET", 0, HELLO) for k in ("outer", "inner")]
    outside = [Exchange(f"{path}/out/{n}", 200, "GET", 0, HELLO) for n in range(count)]
    if form == "cgroup":
        tracer.settle(lambda mark: curl_in(cgroup, a.port, mark), (CLIENT,))
        spans = tracer.spans()
        assert_exact(spans.under(path), inside, (CLIENT,))
        assert len(spans) == exchanges(tracer) == 2 * count + 1, "filtered in the kernel"
    else:
        tracer.settle()
        spans = tracer.spans()
        assert_exact(spans.under(f"{path}/in"), inside, (SERVER,))
        assert_exact(spans.under(f"{path}/out"), outside)


def test_kinds_of_filters_must_all_hold(start_tracer: Start, two: tuple[Nginx, Nginx]) -> None:
    a, b = two
    program = str(Path(shutil.which("curl") or "curl").resolve())
    tracer = start_tracer("--exe", program, "--port", str(a.port))
    path = unique()
    get(a.port, f"{path}/python")
    curl(b.port, f"{path}/b")
    curl(a.port, f"{path}/a")
    tracer.settle(lambda mark: curl(a.port, mark), (CLIENT,))
    expected = [Exchange(f"{path}/a", 200, "GET", 0, HELLO)]
    assert_exact(tracer.spans().under(path), expected, (CLIENT,))
