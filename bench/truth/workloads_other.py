"""Workloads of the other runtimes: Go, Java, Node, proxies, and one through several of them.

They call as their libraries do by default, but for limits that would have them wait or open
connections without need at the concurrency of the runs.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.mariadb import MariaDb
from bench.processes import BenchError, free_port
from bench.truth.workload import Command, Service, Workload

SERVICES = Path(__file__).parent / "services"
ROOT = Path(__file__).resolve().parents[2]
NODE_PRELOAD = ROOT / "deploy" / "node" / "wirespan.cjs"
JAVA_AGENT = ROOT / "scripts" / "java_agent.sh"
THREADS, EXECUTORS, GO, NODE = "threads", "executors", "go", "node"
PRELOAD, NETTY, PROXIES, DEPTH = "preload", "netty", "proxies", "depth"
# Right links at least, wrong ones at most.
TARGETS = {
    THREADS: (0.999, 0.0),
    EXECUTORS: (0.99, 0.001),
    GO: (0.999, 0.0),
    NODE: (0.97, 0.001),
    PRELOAD: (0.999, 0.001),
    NETTY: (0.99, 0.001),
    PROXIES: (0.999, 0.0),
    DEPTH: (0.99, 0.001),
}
BUILD_S = 600.0

# Configurations written; they are removed when we end.
_directories: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def _built(part: str) -> str:
    """Return where services/build.sh put `part`; BenchError with what it said if it fails.

    "agent" is the JVM's, which is built by a script of its own.
    """
    script = [str(JAVA_AGENT)] if part == "agent" else [str(SERVICES / "build.sh"), part]
    done = subprocess.run(script, capture_output=True, text=True, timeout=BUILD_S)
    if done.returncode:
        raise BenchError(f"cannot build {part}: {done.stderr.strip()[-500:]}")
    return done.stdout.split()[-1]


def _needs(*programs: str, parts: str = "", modules: str = "") -> Callable[[], None]:
    """Make a build that looks for programs and Python modules, and then builds parts."""

    def build() -> None:
        missing = [name for name in programs if shutil.which(name) is None]
        missing += [name for name in modules.split() if importlib.util.find_spec(name) is None]
        if missing:
            raise BenchError(f"not installed: {', '.join(missing)}")
        for part in parts.split():
            _built(part)

    return build


def _row(
    family: str,
    name: str,
    command: Callable[[int, str], Command],
    build: Callable[[], None],
    *,
    calls: int = 1,
    right: float | None = None,
    ready: bool = True,
    upstream: Callable[[Path], contextlib.AbstractContextManager[Service]] | None = None,
) -> Workload:
    """Make a row; right: the target, None for the family's."""
    least, most = TARGETS[family]
    return Workload(
        name,
        family,
        command,
        least if right is None else right,
        most,
        calls=calls,
        build=build,
        ready=ready,
        upstream=upstream,
    )


@contextlib.contextmanager
def _mariadb(directory: Path) -> Iterator[Service]:
    """Run a MariaDB that lets anyone in."""
    with MariaDb(directory) as server:
        yield Service(server.port, server.pid, f"mysql://127.0.0.1:{server.port}")


def _data_source(upstream: str) -> str:
    """Name the database at mysql://HOST:PORT as go-sql-driver does."""
    return f"truth@tcp({upstream.removeprefix('mysql://')})/"


def _go(mode: str) -> Callable[[int, str], Command]:
    def command(port: int, upstream: str) -> Command:
        database = {"MYSQL": _data_source(upstream)} if upstream.startswith("mysql") else {}
        return [_built("go")], {"MODE": mode, **database}

    return command


def _java(
    program: str, mode: str, transport: str = "", *, serving: str = "fixed", agent: bool = False
) -> Callable[[int, str], Command]:
    def command(port: int, upstream: str) -> Command:
        classes = _built("java")
        java = virtual_java() if "virtual" in (mode, serving) else "java"
        argv = [str(java), "-cp", f"{classes}/*:{classes}", program]
        told = {"JAVA_TOOL_OPTIONS": f"-javaagent:{_built('agent')}"} if agent else {}
        return argv, {"MODE": mode, "TRANSPORT": transport, "SERVING": serving, **told}

    return command


def javas() -> dict[int, Path]:
    """Return the JDKs of this host: version -> its `java`."""
    found = {}
    for release in sorted(Path("/usr/lib/jvm").glob("*/release")):
        said = re.search(r'^JAVA_VERSION="(\d+)', release.read_text(), re.MULTILINE)
        if said:
            found[int(said[1])] = release.parent / "bin" / "java"
    return found


def virtual_java() -> Path | None:
    """Return a `java` of this host that numbers virtual threads (24), None if there is none."""
    return next((java for version, java in javas().items() if version >= 24), None)


def _needs_virtual() -> None:
    _JAVA()
    if virtual_java() is None:
        raise BenchError("not installed: Java 24 or later")


def _node(mode: str, *, preload: bool = False) -> Callable[[int, str], Command]:
    told = {"NODE_OPTIONS": f"--require {NODE_PRELOAD}"} if preload else {}

    def command(port: int, upstream: str) -> Command:
        return ["node", str(SERVICES / "node" / "front.js")], {"MODE": mode, **told}

    return command


def _configured(file: str, **values: str | int) -> Path:
    """Write a proxy's configuration to a directory of its own."""
    _directories.append(tempfile.TemporaryDirectory(prefix="wirespan-truth-proxy-"))
    directory = Path(_directories[-1].name)
    # Workers may be of another user.
    directory.chmod(0o755)
    text = (SERVICES / "proxies" / file).read_text(encoding="utf-8")
    for name, value in {"directory": directory, **values}.items():
        text = text.replace("{{" + name + "}}", str(value))
    path = directory / file
    path.write_text(text, encoding="utf-8")
    return path


# How each is told to ask the upstream for /u/ID/0 instead of /t/ID.
REWRITES = {
    "nginx": "rewrite ^/t/(.*)$ /u/$1/0 break;",
    "haproxy": r"http-request replace-path ^/t/(.*)$ /u/\1/0",
    "envoy": r', regex_rewrite: {pattern: {regex: "^/t/(.*)$"}, substitution: "/u/\\1/0"}',
}


def _nginx(port: int, upstream: str, rewrite: str = "") -> list[str]:
    """Return the command line of an nginx on `port` before the HTTP service at a URL."""
    server = upstream.removeprefix("http://")
    path = _configured("nginx.conf", port=port, upstream=server, rewrite=rewrite)
    return ["nginx", "-p", str(path.parent), "-c", str(path), "-e", "stderr"]


def _proxy(name: str, *, rewrites: bool = False) -> Callable[[int, str], Command]:
    rewrite = REWRITES[name] if rewrites else ""

    def command(port: int, upstream: str) -> Command:
        if name == "nginx":
            return _nginx(port, upstream, rewrite), {}
        server = upstream.removeprefix("http://")
        if name == "haproxy":
            path = _configured("haproxy.cfg", port=port, upstream=server, rewrite=rewrite)
            return ["haproxy", "-db", "-q", "-f", str(path)], {}
        host, _, number = server.partition(":")
        path = _configured(
            "envoy.yaml", port=port, upstream_host=host, upstream_port=number, rewrite=rewrite
        )
        argv = [_built("envoy"), "--config-path", str(path), "--concurrency", "2"]
        return [*argv, "--disable-hot-restart", "--log-level", "error"], {}

    return command


def _depth(port: int, upstream: str) -> Command:
    """nginx, behind it Flask, which calls grpc-go, which asks the database."""
    between = free_port()
    nginx = _nginx(port, f"http://127.0.0.1:{between}")
    script = str(SERVICES / "depth" / "front.py")
    set_ = {"MYSQL": _data_source(upstream), "GRPC": _built("go"), "FLASK_PORT": str(between)}
    return [sys.executable, script, *nginx], set_


_GO, _JAVA = _needs("go", parts="go"), _needs("java", "javac", "mvn", parts="java")
_AGENT = _needs("java", "javac", "mvn", parts="java agent")
_NODE = _needs("node")
_MARIADB = ("mariadbd", "mariadb-install-db")

WORKLOADS: tuple[Workload, ...] = (
    _row(GO, "go-http", _go("http"), _GO),
    _row(GO, "go-errgroup-3", _go("errgroup"), _GO, calls=3),
    _row(GO, "go-grpc", _go("grpc"), _GO),
    _row(GO, "go-sql", _go("sql"), _needs("go", *_MARIADB, parts="go"), upstream=_mariadb),
    _row(EXECUTORS, "go-worker", _go("worker"), _GO),
    _row(EXECUTORS, "go-worker-buffered-3", _go("buffered"), _GO, calls=3, right=0.0),
    _row(THREADS, "java-httpclient", _java("Threads", "httpclient"), _JAVA),
    _row(THREADS, "java-urlconnection", _java("Threads", "urlconnection"), _JAVA),
    _row(
        THREADS,
        "java-forkjoin",
        _java("Threads", "httpclient", serving="forkjoin"),
        _JAVA,
        right=0.0,
    ),
    _row(
        THREADS,
        "java-virtual",
        _java("Threads", "httpclient", serving="virtual"),
        _needs_virtual,
    ),
    _row(
        THREADS,
        "java-virtual-urlconnection-3",
        _java("Threads", "urlconnection", serving="virtual"),
        _needs_virtual,
        calls=3,
    ),
    _row(EXECUTORS, "java-executor", _java("Threads", "executor"), _JAVA),
    _row(
        EXECUTORS,
        "java-virtual-executor",
        _java("Threads", "executor", serving="virtual"),
        _needs_virtual,
        right=0.0,
    ),
    _row(
        EXECUTORS,
        "java-to-virtual-3",
        _java("Threads", "virtual"),
        _needs_virtual,
        calls=3,
        right=0.0,
    ),
    _row(EXECUTORS, "java-async-3", _java("Threads", "async"), _JAVA, calls=3, right=0.0),
    _row(NETTY, "netty", _java("Loops", "own", "epoll"), _JAVA),
    _row(NETTY, "netty-nio", _java("Loops", "own", "nio"), _JAVA),
    _row(NETTY, "netty-shared-pool", _java("Loops", "shared", "epoll"), _JAVA),
    _row(NODE, "node", _node("agent"), _NODE),
    _row(NODE, "node-3", _node("agent"), _NODE, calls=3),
    _row(NODE, "node-parallel-3", _node("parallel"), _NODE, calls=3),
    _row(NODE, "node-fetch", _node("fetch"), _NODE),
    _row(NODE, "node-8-sockets", _node("sockets"), _NODE, right=0.0),
    _row(NODE, "node-timer", _node("timer"), _NODE, right=0.0),
    _row(PRELOAD, "node-preload", _node("agent", preload=True), _NODE),
    _row(PRELOAD, "node-timer-preload", _node("timer", preload=True), _NODE),
    _row(PRELOAD, "node-8-sockets-preload", _node("sockets", preload=True), _NODE),
    _row(PRELOAD, "node-fetch-preload", _node("fetch", preload=True), _NODE),
    *(
        _row(PRELOAD, f"{name}-agent", _java(*mode, agent=True), _AGENT, calls=calls)
        for name, mode, calls in (
            ("java-httpclient", ("Threads", "httpclient"), 1),
            ("java-urlconnection", ("Threads", "urlconnection"), 1),
            ("java-executor", ("Threads", "executor"), 1),
            ("java-async-3", ("Threads", "async"), 3),
            ("netty", ("Loops", "own", "epoll"), 1),
            ("netty-nio", ("Loops", "own", "nio"), 1),
            ("netty-shared-pool", ("Loops", "shared", "epoll"), 1),
            ("netty-shared-3", ("Loops", "shared", "nio"), 3),
        )
    ),
    _row(PROXIES, "nginx", _proxy("nginx"), _needs("nginx"), ready=False),
    _row(PROXIES, "nginx-rewrite", _proxy("nginx", rewrites=True), _needs("nginx"), ready=False),
    _row(PROXIES, "haproxy", _proxy("haproxy"), _needs("haproxy"), ready=False),
    _row(
        PROXIES, "haproxy-rewrite", _proxy("haproxy", rewrites=True), _needs("haproxy"), ready=False
    ),
    _row(PROXIES, "envoy", _proxy("envoy"), _needs(parts="envoy"), ready=False),
    _row(
        PROXIES, "envoy-rewrite", _proxy("envoy", rewrites=True), _needs(parts="envoy"), ready=False
    ),
    _row(
        DEPTH,
        "nginx-flask-grpc-mysql",
        _depth,
        _needs("nginx", "go", *_MARIADB, parts="go", modules="flask grpc"),
        ready=False,
        upstream=_mariadb,
    ),
)
