"""From the kernel to real Jaeger and back through its query API."""

from __future__ import annotations

import http.client
import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.root.harness import ROOT, Process, Tracer, free_port, run, unique, wait_until
from tests.root.nginx import FILE_BYTES, HELLO, Nginx

PORTS = ("OTLP_GRPC", "OTLP_HTTP", "QUERY_HTTP", "QUERY_GRPC", "HEALTH")
COUNT = 60  # requests by curl


class Jaeger:
    """Jaeger with spans in memory, all of its ports on loopback and its own."""

    def __init__(self, program: str, directory: Path) -> None:
        self.ports = {name: free_port() for name in PORTS}
        env = {f"JAEGER_{name}_PORT": str(port) for name, port in self.ports.items()}
        config = ROOT / "tests" / "jaeger" / "config.yaml"
        self.process = Process(
            [program, "--config", config], directory / "jaeger.log", env=env, without="OTEL_"
        )
        try:
            self.process.wait_for(self.healthy, "Jaeger is ready", 60.0)
        except BaseException:
            self.process.stop()
            raise

    def healthy(self) -> bool:
        try:
            return self.ask("HEALTH", "/status")[0] == 200
        except OSError:
            return False

    def ask(self, port: str, target: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[port], timeout=15)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def query(self, what: str, **parameters: str | int) -> list[Any]:
        """The `data` of an answer of the query API."""
        status, body = self.ask("QUERY_HTTP", f"/api/{what}?{urlencode(parameters)}")
        assert status == 200, body
        return json.loads(body)["data"] or []

    def spans(self, service: str) -> list[dict[str, Any]]:
        """All spans of a service, each with its tags and process tags as dictionaries."""
        found = []
        for trace in self.query("traces", service=service, limit=10_000, lookback="1h"):
            for span in trace["spans"]:
                process = trace["processes"][span["processID"]]
                if process["serviceName"] != service:
                    continue
                span["tag"] = {tag["key"]: tag["value"] for tag in span["tags"]}
                span["resource"] = {tag["key"]: tag["value"] for tag in process["tags"]}
                found.append(span)
        return found


@pytest.fixture(scope="module")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Built, or waited for, by scripts/jaeger.sh: 12 minutes where nothing is cached."""
    built = subprocess.run(
        [ROOT / "scripts" / "jaeger.sh"], stdout=subprocess.PIPE, text=True, timeout=3000
    )
    assert built.returncode == 0
    jaeger = Jaeger(built.stdout.strip(), tmp_path_factory.mktemp("jaeger"))
    yield jaeger
    jaeger.process.stop()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_nginx_and_curl_as_jaeger_shows_them(
    start_tracer: Callable[..., Tracer], jaeger: Jaeger, tmp_path: Path, protocol: str
) -> None:
    nginx = Nginx(tmp_path / "nginx", workers=1)
    try:
        ports = {"grpc": "OTLP_GRPC", "http/protobuf": "OTLP_HTTP"}
        port = jaeger.ports[ports[protocol]]
        tracer = start_tracer(
            env={
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
                "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
                "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            }
        )
        path = unique()
        names = ("hello", "missing", "broken", "file")
        sent: Counter[tuple[str, int, int]] = Counter()
        for n in range(COUNT):
            where = f"{path}/users/{n}/{names[n % 4]}"
            url = f"http://127.0.0.1:{nginx.port}{where}?token=s3cret"
            written = "%{http_code} %{size_download}"
            out = run(["curl", "-sS", "-o", "/dev/null", "-w", written, url])
            status, size = map(int, out.split())
            sent[where, status, size] += 1
        assert {size for _, _, size in sent} == {HELLO, 3, 4, FILE_BYTES}

        def arrived(service: str) -> list[dict[str, Any]]:
            found = [s for s in jaeger.spans(service) if path in json.dumps(s["tag"])]
            return found if len(found) >= COUNT else []

        curl = wait_until(lambda: arrived("curl"), "curl's spans in Jaeger", 30.0)
        server = wait_until(lambda: arrived("nginx"), "nginx's spans in Jaeger", 30.0)
        printed = tracer.collect(lambda spans: spans.under(path), 2 * COUNT)
        assert tracer.losses() == {}
    finally:
        nginx.stop()

    ids = Counter(span["spanID"] for span in curl + server)
    assert ids == Counter(str(span.raw["span_id"]) for span in printed)
    assert len(ids) == 2 * COUNT == len(curl) + len(server)
    check_server_side(server, sent, nginx, path)
    check_client_side(curl, sent, nginx, path)
    for span in curl + server:
        assert "s3cret" not in json.dumps(span), "queries are masked"
        assert span["resource"]["deployment.environment.name"] == "test"
        assert span["resource"]["host.name"]
        status = span["tag"]["http.response.status_code"]
        failed = status >= (500 if span in server else 400)
        assert span["tag"].get("error", False) is failed, span
        assert span["tag"].get("error.type", None) == (str(status) if failed else None), span


def check_server_side(
    spans: list[dict[str, Any]], sent: Counter[tuple[str, int, int]], nginx: Nginx, path: str
) -> None:
    got: Counter[tuple[str, int, int]] = Counter()
    for span in spans:
        tag = span["tag"]
        size = tag["http.response.body.size"]
        got[tag["url.path"], tag["http.response.status_code"], size] += 1
        assert tag["span.kind"] == "server", span
        assert tag["http.request.method"] == "GET", span
        assert tag["url.scheme"] == "http", span
        assert tag["server.address"] == "127.0.0.1" and tag["server.port"] == nginx.port, span
        assert tag["client.address"] == "127.0.0.1", span
        assert tag["network.peer.address"] == "127.0.0.1", span
        assert tag["network.protocol.version"] == "1.1", span
        assert tag["user_agent.original"].startswith("curl/"), span
        assert 0 <= tag["wirespan.time_to_first_byte_ns"] < 10**9, span
        assert span["resource"]["process.executable.name"] == "nginx", span
    assert got == sent
    names = {span["operationName"] for span in spans}
    assert len(names) <= 8, f"identifiers in paths make no names: {names}"
    assert all(name.startswith("GET /") for name in names), names


def check_client_side(
    spans: list[dict[str, Any]], sent: Counter[tuple[str, int, int]], nginx: Nginx, path: str
) -> None:
    got: Counter[tuple[str, int, int]] = Counter()
    start = f"http://127.0.0.1:{nginx.port}"
    for span in spans:
        tag = span["tag"]
        assert tag["url.full"].startswith(f"{start}{path}/users/"), span
        where = tag["url.full"].removeprefix(start).split("?")[0]
        size = tag["http.response.body.size"]
        got[where, tag["http.response.status_code"], size] += 1
        assert tag["span.kind"] == "client", span
        assert tag["http.request.method"] == "GET", span
        assert tag["server.address"] == "127.0.0.1" and tag["server.port"] == nginx.port, span
        assert tag["network.peer.address"] == "127.0.0.1", span
        assert tag["network.peer.port"] == nginx.port, span
        assert span["resource"]["process.executable.name"] == "curl", span
        assert span["resource"]["process.pid"] > 1, span
    assert got == sent
