"""A private nginx with one worker, and its own count of requests."""

from __future__ import annotations

import http.client
import re
from pathlib import Path

from bench.processes import BenchError, Child, cpu_ns, free_port

# The digits are for bench.pipeline, which makes distinct paths of them.
PATH = "/items/00000000"

CONF = """
user root;
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests 2000000000;
    keepalive_time 7d;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{ return 200 "hello from nginx\\n"; }}
        location = /stub_status {{ stub_status; }}
    }}
}}
"""


class Nginx(Child):
    """Serves a small static answer for any path on 127.0.0.1:`port`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.port = free_port()
        conf = directory / "nginx.conf"
        conf.write_text(CONF.format(directory=directory, port=self.port), encoding="utf-8")
        super().__init__(["nginx", "-p", directory, "-c", conf, "-e", "stderr"])
        try:
            self.wait_for(self._serves, "it serves")
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            self.worker = int(children[0])
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{PATH}"

    def _serves(self) -> bool:
        try:
            self.requests()
        except OSError:
            return False
        return True

    def requests(self) -> int:
        """How many requests it has begun to process; the one that asks is counted too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/stub_status")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        found = re.search(r"^\s*\d+\s+\d+\s+(\d+)\s*$", text, re.M)
        if not found:
            raise BenchError("this nginx has no stub_status")
        return int(found[1])

    def worker_cpu_ns(self) -> int:
        """CPU time of the worker so far."""
        return cpu_ns(self.worker)
