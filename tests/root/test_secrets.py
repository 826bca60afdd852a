"""Secrets in every place of every protocol are in nothing that the tracer gives out or keeps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import psycopg
import pymysql
import pytest
import redis

from tests.root.databases import USER, MySql, PostgreSql, Redis
from tests.root.harness import (
    CLIENT,
    ROOT,
    SERVER,
    Tracer,
    free_port,
    run,
    wait_until,
    wirespan_command,
)
from tests.root.otlp import HttpBackend

SERVICE = "wirespan.test.Secrets"


class Secrets:
    """Makes a secret for each place, and knows them all."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.places.setdefault(place, f"hush{len(self.places):03d}{place}")

    def found(self, data: bytes) -> list[str]:
        """The places whose secrets are in these bytes, as they are or in UTF-16."""
        return [
            place
            for place, secret in self.places.items()
            if secret.encode() in data or secret.encode("utf-16-le") in data
        ]


def http1(secret: Secrets) -> None:
    """A request and its answer with secrets wherever HTTP/1 has room."""
    answer = (
        f"HTTP/1.1 302 Found\r\nSet-Cookie: s={secret('h1setcookie')}\r\n"
        f"Location: http://u:{secret('h1locuser')}@x/?t={secret('h1location')}\r\n"
        f"Content-Length: 30\r\n\r\n{secret('h1answer'):<30}"
    ).encode()
    fields = [
        f"Authorization: Bearer {secret('h1authorization')}",
        f"Proxy-Authorization: Basic {secret('h1proxyauth')}",
        f"Cookie: session={secret('h1cookie')}",
        f"X-Api-Key: {secret('h1apikey')}",
        f"Referer: http://x/?t={secret('h1referer')}",
    ]
    targets = [
        f"/p?token={secret('h1query')}&{secret('h1flag')}",
        f"http://{secret('h1user')}:{secret('h1password')}@x.example/p?k={secret('h1absquery')}",
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])

        def serve() -> None:
            conn, _ = listener.accept()
            with conn, conn.makefile("rb") as lines:
                for _ in targets:
                    while lines.readline().strip():
                        pass
                    lines.read(30)
                    conn.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(("127.0.0.1", port)) as conn:
            for target in targets:
                head = [f"POST {target} HTTP/1.1", "Host: x.example", *fields, "Content-Length: 30"]
                body = f"{secret('h1body'):<30}"
                conn.sendall(("\r\n".join(head) + "\r\n\r\n" + body).encode())
                got = b""
                while len(got) < len(answer):
                    got += conn.recv(65536)
        thread.join()


def http2(secret: Secrets) -> None:
    """The same over HTTP/2 by prior knowledge."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])

        def serve() -> None:
            conn, _ = listener.accept()
            with conn:
                peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
                peer.initiate_connection()
                conn.sendall(peer.data_to_send())
                while data := conn.recv(65536):
                    for event in peer.receive_data(data):
                        if isinstance(event, h2.events.StreamEnded):
                            fields = [(":status", "200"), ("set-cookie", secret("h2setcookie"))]
                            peer.send_headers(event.stream_id, fields)
                            peer.send_data(event.stream_id, secret("h2answer").encode(), True)
                    conn.sendall(peer.data_to_send())

        thread = threading.Thread(target=serve)
        thread.start()
        with socket.create_connection(("127.0.0.1", port)) as conn:
            peer = h2.connection.H2Connection()
            peer.initiate_connection()
            for stream in (1, 3):
                fields = [
                    (":method", "POST"), (":scheme", "http"),
                    (":authority", f"{secret('h2user')}:{secret('h2password')}@x.example"),
                    (":path", f"/p?token={secret('h2query')}&{secret('h2flag')}"),
                    ("authorization", f"Bearer {secret('h2authorization')}"),
                    ("cookie", f"session={secret('h2cookie')}"),
                    ("x-api-key", secret("h2apikey")),
                ]  # fmt: skip
                peer.send_headers(stream, fields)
                peer.send_data(stream, secret("h2body").encode(), True)
                conn.sendall(peer.data_to_send())
                ended = False
                while not ended:
                    events = peer.receive_data(conn.recv(65536))
                    ended = any(isinstance(event, h2.events.StreamEnded) for event in events)
                    conn.sendall(peer.data_to_send())
        thread.join()


def grpc_calls(secret: Secrets) -> None:
    """A call that fails, its message quoting a secret."""

    def handle(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-token", secret("grpctrailer")),))
        context.abort(grpc.StatusCode.NOT_FOUND, f"no account '{secret('grpcmessage')}' here")
        raise AssertionError

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(handle)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Get": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        metadata = (
            ("authorization", f"Bearer {secret('grpcauthorization')}"),
            ("cookie", secret("grpccookie")),
        )
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/{SERVICE}/Get")(secret("grpcbody").encode(), 10, metadata)
    server.stop(None).wait()


def mysql(secret: Secrets, server: MySql) -> None:
    """Text and prepared statements, a failure that quotes."""
    own: dict[str, Any] = {
        "host": "127.0.0.1", "port": server.port, "user": USER, "database": "shop",
        "ssl_disabled": True,
    }  # fmt: skip
    with closing(pymysql.connect(**own)) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT '{secret('mytext')}', \"{secret('mydouble')}\" /* {secret('mycomment')} */"
        )
        cursor.execute("CREATE TEMPORARY TABLE t (s VARCHAR(99) PRIMARY KEY)")
        cursor.execute(f"INSERT INTO t VALUES ('{secret('myrow')}')")
        cursor.execute("SELECT s FROM t")
        for statement in (
            f"INSERT INTO t VALUES ('{secret('myrow')}')",
            f"SELECT broken FROM WHERE '{secret('mysyntax')}",
        ):
            with suppress(pymysql.MySQLError):
                cursor.execute(statement)
        # By statements of SQL, the literals of which are its arguments.
        cursor.execute(f"PREPARE p FROM 'SELECT ?, \\'{secret('myprepared')}\\''")
        cursor.execute(f"SET @a = '{secret('myvariable')}'")
        cursor.execute("EXECUTE p USING @a")
    from mysql import connector

    with closing(connector.connect(**own, use_pure=True)) as other:
        with closing(other.cursor(prepared=True)) as prepared:
            prepared.execute(f"SELECT %s, '{secret('mystatement')}'", (secret("myargument"),))
            prepared.fetchall()
    with suppress(pymysql.MySQLError):
        pymysql.connect(**{**own, "user": "ann", "password": secret("mypassword")})


def postgresql(secret: Secrets, server: PostgreSql) -> None:
    """Simple and extended queries, COPY, failures that quote."""
    dsn = f"host=127.0.0.1 port={server.port} user={USER} dbname=postgres sslmode=disable"
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"SELECT '{secret('pgsimple')}', $q${secret('pgdollar')}$q$ -- {secret('pgcomment')}"
        )
        connection.execute("SELECT %s::text", (secret("pgargument"),), prepare=True)
        connection.execute(f"SELECT %s, '{secret('pgliteral')}'", (1,))
        connection.execute("CREATE TEMPORARY TABLE t (s text PRIMARY KEY)")
        with connection.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            copy.write_row((secret("pgcopy"),))
        for statement in (
            f"SELECT '{secret('pgnumber')}'::int",
            f"INSERT INTO t VALUES ('{secret('pgcopy')}')",
            f"SELECT FROM WHERE '{secret('pgsyntax')}'",
        ):
            with suppress(psycopg.Error):
                connection.execute(statement)
    with suppress(psycopg.Error):
        psycopg.connect(f"{dsn.replace(USER, 'ann')} password={secret('pgpassword')}").close()


def redis_commands(secret: Secrets, server: Redis) -> None:
    """Keys, values, a login and commands that fail."""
    with closing(redis.Redis(port=server.port)) as client:
        client.set(secret("rediskey"), secret("redisvalue"))
        client.get(secret("rediskey"))
        with client.pipeline() as pipeline:
            pipeline.hset("h", secret("redisfield"), secret("redispiped")).hgetall("h").execute()
        client.eval(f"return '{secret('redisscript')}'", 0, secret("redisargument"))
        for command in (
            ("AUTH", secret("redisuser"), secret("redispassword")),
            ("NOSUCH", secret("redisunknown")),
            ("INCR", secret("rediskey")),
        ):
            with suppress(redis.RedisError):
                client.execute_command(*command)


class Keeping(HttpBackend):
    """A backend that keeps what came, as it was when it was unpacked."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: list[bytes] = []

    def take(self, request: Any) -> None:
        super().take(request)
        self.raw.append(request.SerializeToString())


def test_secrets_stay_where_they_are(start_tracer: Callable[..., Tracer], tmp_path: Path) -> None:
    secret, backend, api = Secrets(), Keeping(), f"127.0.0.1:{free_port()}"
    store, given = tmp_path / "store", tmp_path / "given"
    given.mkdir()
    tracer = start_tracer(
        "--store", str(store), "--query-address", api, "--otlp-endpoint", backend.url(),
        "--otlp-protocol", "http/protobuf", "--otlp-compression", "none",
        "--pid", str(os.getpid()),
        env={"OTEL_METRIC_EXPORT_INTERVAL": "500"},
    )  # fmt: skip
    at = ("--control-socket", str(tracer.control))
    tails = []
    for kind in ("text", "json"):
        out = (given / f"tail.{kind}").open("wb")
        argv = [*wirespan_command(), "tail", "--output", kind, *at]
        tails.append((subprocess.Popen(argv, stdout=out, stderr=out, cwd=ROOT), out))
    wait_until(lambda: tracer.status().tail_subscribers == len(tails), "the tails are there")

    def sent(protocol: str, send: Callable[[], object]) -> None:
        """Send, and see that it was traced: by masking, not by blindness, is nothing found."""
        mark = tracer.mark()
        send()
        tracer.settle()
        seen = [span for span in tracer.since(mark) if not span.path.startswith("/barrier/")]
        assert {span.kind for span in seen} == {CLIENT, SERVER}, f"{protocol}: {seen}"

    sent("HTTP/1", lambda: http1(secret))
    sent("HTTP/2", lambda: http2(secret))
    sent("gRPC", lambda: grpc_calls(secret))
    with ExitStack() as stack:
        mariadb, postgres, kept = MySql("mariadb"), PostgreSql(), Redis()
        for server in (mariadb, postgres, kept):
            stack.callback(server.stop)
        sent("MySQL", lambda: mysql(secret, mariadb))
        sent("PostgreSQL", lambda: postgresql(secret, postgres))
        sent("Redis", lambda: redis_commands(secret, kept))
    tracer.settle()
    spans = tracer.spans()
    told = json.dumps([dict(span.raw) for span in spans])
    assert "REDACTED" in told and "SELECT ?" in told and "no account ?" in told, told[:3000]

    wait_until(lambda: set(backend.ids()) >= {s.raw["span_id"] for s in spans}, "all exported")
    wait_until(lambda: backend.metrics, "metrics exported")
    (given / "otlp").write_bytes(b"".join(backend.raw))
    (given / "status").write_text(run([*wirespan_command(), "status", *at], cwd=ROOT))
    (given / "status.json").write_text(
        run([*wirespan_command(), "status", "--json", *at], cwd=ROOT)
    )
    where = ("--query-address", api)
    for word, *more in (("traces", "--limit", "200"), ("traces", "--limit", "200", "--json")):
        text = run([*wirespan_command(), word, *more, *where], cwd=ROOT)
        (given / f"{word}{len(more)}").write_text(text)
    run(["gcore", "-o", given / "core", str(tracer.process.pid)], timeout=60)
    for process, out in tails:
        process.terminate()
        process.wait(10)
        out.close()
    tracer.stop()
    shutil.copy(tracer.output, given / "output")
    (given / "stderr").write_text(tracer.stderr())
    shutil.copytree(store, given / "store")
    backend.close()

    for name in ("otlp", "output", "tail.text", "tail.json", "status", "stderr"):
        assert (given / name).stat().st_size, name
    leaks = {}
    for path in sorted(given.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            if places := secret.found(data):
                leaks[str(path.relative_to(given))] = places
    assert len(secret.places) > 45
    assert not leaks, leaks
