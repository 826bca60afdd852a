"""A private nginx: its own directory, port, log and pid."""

from __future__ import annotations

from pathlib import Path

from tests.root.harness import Process, free_port, listening

CONF = """
daemon off;
master_process on;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 2048; }}
http {{
    log_format counted '$status $request_method $uri';
    access_log {directory}/access.log counted;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 100m;
    keepalive_requests 1000000;
    sendfile on;
    default_type text/plain;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        listen [::1]:{port};
        listen unix:{directory}/sock;
        root {directory}/root;
        location / {{ return 200 "hello from nginx\\n"; }}
        location ~ /missing {{ return 404 "no\\n"; }}
        location ~ /broken {{ return 500 "bad\\n"; }}
        location ~ /file {{ rewrite ^ /five break; }}
        location ~ /put {{ dav_methods PUT; create_full_put_path on; }}
        {extra}
    }}
}}
"""

HELLO = len("hello from nginx\n")
FILE_BYTES = 5 << 20


class Nginx:
    """A running nginx; any path answers `hello`, unless file, put, missing or broken is in it.

    A PUT under put is read whole before its answer, as `hello` does not do.
    extra: more of its configuration, in which PORT stands for its own port.
    """

    def __init__(self, directory: Path, workers: int = 2, extra: str = "") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        # Workers run as another user, who has to reach the files and the socket.
        directory.chmod(0o755)
        self.directory, self.port = directory, free_port()
        self.socket = directory / "sock"
        (directory / "root").mkdir()
        (directory / "root" / "five").write_bytes(b"5" * FILE_BYTES)
        conf = directory / "nginx.conf"
        extra = extra.replace("PORT", str(self.port))
        text = CONF.format(directory=directory, port=self.port, workers=workers, extra=extra)
        conf.write_text("user root;\n" + text)
        argv = ["nginx", "-p", str(directory), "-c", str(conf), "-e", "stderr"]
        self.process = Process(argv, directory / "log")
        try:
            self.process.wait_for(lambda: listening(self.port), "nginx listens")
        except BaseException:
            self.process.stop()
            raise

    def logged(self, prefix: str = "/") -> list[tuple[int, str, str]]:
        """What nginx itself counted under `prefix`: (status, method, path)."""
        lines = (self.directory / "access.log").read_text().splitlines()
        rows = [line.split(" ", 2) for line in lines]
        return [(int(a), b, c) for a, b, c in rows if c.startswith(prefix)]

    def stop(self) -> None:
        self.process.stop()
