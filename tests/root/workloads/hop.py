"""A service of a chain, a thread a connection, or the load on its front.

hop.py serve ADDRESS:PORT [NEXT]: answers each GET when NEXT (ADDRESS:PORT) has answered the
    same path; on a connection of its own for each thread. Prints "ready".
hop.py load ADDRESS:PORT PREFIX COUNT CONNECTIONS [RATE]: GETs of PREFIX/0 to PREFIX/COUNT-1,
    RATE a second in all; prints the paths that were answered with 200.
"""

from __future__ import annotations

import http.client
import http.server
import sys
import threading
import time


class Peer(threading.local):
    """A connection for each thread, made again where the peer has closed it."""

    def __init__(self, address: str) -> None:
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.connection: http.client.HTTPConnection | None = None

    def get(self, path: str) -> int:
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            self.connection.request("GET", path)
            response = self.connection.getresponse()
            response.read()
            return response.status
        except OSError:
            self.connection.close()
            self.connection = None
            return 502


def serve(address: str, after: str) -> None:
    peer = Peer(after) if after else None

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            status = peer.get(self.path) if peer else 200
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: object) -> None:
            pass

    host, _, port = address.rpartition(":")
    server = http.server.ThreadingHTTPServer((host, int(port)), Handler)
    print("ready", flush=True)
    server.serve_forever()


def load(address: str, prefix: str, count: int, connections: int, rate: float) -> None:
    numbers, taking, peer = iter(range(count)), threading.Lock(), Peer(address)
    start = time.monotonic()

    def work() -> None:
        while True:
            with taking:
                n = next(numbers, None)
            if n is None:
                return
            if rate:
                time.sleep(max(0.0, start + n / rate - time.monotonic()))
            if peer.get(f"{prefix}/{n}") == 200:
                print(f"{prefix}/{n}\n", end="", flush=True)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if sys.argv[1] == "serve":
    serve(sys.argv[2], (sys.argv[3:] or [""])[0])
else:
    load(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:6]), float((sys.argv[6:] or [0])[0]))
