"""The services that are compared, and where each is reached in each way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pymysql

from bench.compare import parts
from bench.mariadb import MariaDb
from bench.nginx import Nginx
from bench.processes import Child, answers, free_port
from bench.sink import Sink

NONE, EMPTY, WIRESPAN = "none", "empty programs", "wirespan"
OTEL, ENVOY = "OTel SDK", "Envoy"
WAYS = (NONE, EMPTY, WIRESPAN, OTEL, ENVOY)

NGINX, FLASK, FASTAPI = "nginx", "Flask", "FastAPI"
GRPC_GO, MARIADB = "grpc-go", "MariaDB"

START_S = 60.0
# How long spans are kept for a batch, as in wirespan. The SDK's and Envoy's defaults are 5 s:
# that saves nothing where there is load, and rounds would have to wait for it.
DELAY_MS = 500
# The instrumentation of FastAPI has spans of their own for the two messages of an answer.
OTEL_SPANS = {FLASK: 1, FASTAPI: 3}
SERVICES = Path(__file__).parent / "services"
ITEMS = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service is reached in one way.

    app: pids whose CPU time, with that of their children, is the application's; added: those
    of what stands before it. spans: that each request must have at the receiver.
    """

    port: int
    app: tuple[int, ...]
    added: tuple[int, ...] = ()
    spans: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """What is loaded. workers: requests under way at any time; rate: requests/s, moderate."""

    name: str
    kind: str
    workers: int
    rate: int
    places: dict[str, Place] = field(default_factory=dict)

    def everywhere(self, port: int, app: int) -> None:
        """Have it reached at one port where nothing stands before it or in it."""
        for way in (NONE, EMPTY):
            self.places[way] = Place(port, (app,))
        # The load's side has one too.
        self.places[WIRESPAN] = Place(port, (app,), spans=2)


@contextmanager
def running(directory: Path, sink: Sink, load: Path) -> Iterator[list[Service]]:
    """Start all services, in every way there is of each; end them.

    load: the program of parts.load(). Raises BenchError where one does not start.
    """
    python, envoy = parts.python(), parts.envoy()
    nginx = Service(NGINX, "http", 32, 4000)
    flask = Service(FLASK, "http", 16, 400)
    fastapi = Service(FASTAPI, "http", 16, 400)
    grpc = Service(GRPC_GO, "grpc", 32, 1500)
    mariadb = Service(MARIADB, "mysql", 16, 1500)
    with ExitStack() as stack:
        web = stack.enter_context(Nginx(directory / "nginx"))
        nginx.everywhere(web.port, web.pid)
        for service in (flask, fastapi):
            plain = stack.enter_context(PythonService(service.name, python))
            service.everywhere(plain.port, plain.pid)
            traced = stack.enter_context(PythonService(service.name, python, sink.endpoint))
            service.places[OTEL] = Place(traced.port, (traced.pid,), spans=OTEL_SPANS[service.name])
        for service in (nginx, flask, fastapi):
            behind = service.places[NONE]
            proxy = stack.enter_context(Envoy(envoy, directory, behind.port, sink.port))
            service.places[ENVOY] = Place(proxy.port, behind.app, (proxy.pid,), spans=1)
        echo = stack.enter_context(Echo(load))
        grpc.everywhere(echo.port, echo.pid)
        database = stack.enter_context(MariaDb(directory / "mariadb"))
        _fill(database.port)
        mariadb.everywhere(database.port, database.pid)
        yield [nginx, flask, fastapi, grpc, mariadb]


class PythonService(Child):
    """Flask under gunicorn (one worker, 8 threads) or FastAPI under uvicorn.

    endpoint: where OpenTelemetry's auto-instrumentation is to send spans; "" for none of it.
    """

    def __init__(self, name: str, python: Path, endpoint: str = "") -> None:
        self.port = free_port()
        programs = python / "bin"
        argv: list[str | Path]
        if name == FLASK:
            argv = [programs / "gunicorn", "--chdir", SERVICES, "--bind", f"127.0.0.1:{self.port}"]
            argv += ["--worker-class", "gthread", "--workers", "1", "--threads", "8"]
            argv += ["--keep-alive", "75", "--no-control-socket", "flask_service:app"]
        else:
            argv = [programs / "uvicorn", "--app-dir", SERVICES, "--host", "127.0.0.1"]
            argv += ["--port", str(self.port), "--no-access-log", "--log-level", "warning"]
            argv += ["fastapi_service:app"]
        env = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        if endpoint:
            argv = [programs / "opentelemetry-instrument", *argv]
            env |= {
                "OTEL_SERVICE_NAME": name,
                "OTEL_TRACES_EXPORTER": "otlp",
                "OTEL_METRICS_EXPORTER": "none",
                "OTEL_LOGS_EXPORTER": "none",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
                "OTEL_BSP_SCHEDULE_DELAY": str(DELAY_MS),
            }
        super().__init__(argv, env=env)
        try:
            self.wait_for(lambda: answers(self.port), "it listens", START_S)
        except BaseException:
            self.stop()
            raise


class Envoy(Child):
    """A sidecar with one worker before the service at `port`, sending spans to `receiver`."""

    def __init__(self, program: Path, directory: Path, port: int, receiver: int) -> None:
        self.port = free_port()
        text = (SERVICES / "envoy.yaml").read_text(encoding="utf-8")
        for name, value in (
            ("port", self.port),
            ("service_port", port),
            ("receiver_port", receiver),
            ("delay_ms", DELAY_MS),
        ):
            text = text.replace("{{" + name + "}}", str(value))
        path = directory / f"envoy-{port}.yaml"
        path.write_text(text, encoding="utf-8")
        options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
        super().__init__([program, "--config-path", path, *options])
        try:
            self.wait_for(lambda: answers(self.port), "it listens", START_S)
        except BaseException:
            self.stop()
            raise


class Echo(Child):
    """The gRPC service."""

    def __init__(self, load: Path) -> None:
        super().__init__([load, "serve"])
        try:
            self.wait_for(lambda: "\n" in self.said(), "it listens", START_S)
            self.port = int(self.said().split()[0].rpartition(":")[2])
        except BaseException:
            self.stop()
            raise


def _fill(port: int) -> None:
    """Make the table that is asked."""
    rows = ",".join(f"({number},'item {number}')" for number in range(ITEMS))
    with (
        pymysql.connect(host="127.0.0.1", port=port, user="bench", autocommit=True) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("CREATE DATABASE bench")
        cursor.execute("CREATE TABLE bench.items (id INT PRIMARY KEY, name VARCHAR(20))")
        cursor.execute(f"INSERT INTO bench.items VALUES {rows}")
