"""A front service of the linking tests; bench/truth/workload.py says what one is asked.

MODE  fork   three children of fork serve, who never exec; the parent forks at once
      tids   a thread for each connection, all with the number of the first one where it is free
      pool   a ThreadPoolExecutor makes the calls
      hand   threads of our own make the calls, which get them over a queue.Queue
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

CHILDREN = 3
# proc(5): the next process or thread of this namespace gets the number after this one.
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

MODE = os.environ["MODE"]
pool = ThreadPoolExecutor(CHILDREN)
handed: queue.Queue[tuple[str, Future[None]]] = queue.Queue()


def call(target: str) -> None:
    with urllib.request.urlopen(target) as response:
        response.read()


def take() -> None:
    while True:
        target, done = handed.get()
        call(target)
        done.set_result(None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        id = url.path.rpartition("/")[2]
        delay = parse_qs(url.query)["d"][0]
        target = f"{os.environ['UPSTREAM']}/u/{id}/0?d={delay}"
        if MODE == "pool":
            pool.submit(call, target).result()
        elif MODE == "hand":
            done: Future[None] = Future()
            handed.put((target, done))
            done.result()
        else:
            call(target)
        self.send_response(200)
        self.send_header("Content-Length", str(len(id)))
        self.end_headers()
        self.wfile.write(id.encode())

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


class SameNumbers(Server):
    """Says how often a thread had the number of one before it, on standard output."""

    seen: ClassVar[set[int]] = set()
    first = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.first and LAST_PID.exists():
            LAST_PID.write_text(str(self.first - 1))
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        number = threading.get_native_id()
        if number in self.seen:
            print(f"again {number}", flush=True)
        self.seen.add(number)
        self.first = self.first or number
        super().process_request_thread(request, client_address)


def main() -> None:
    server = (SameNumbers if MODE == "tids" else Server)(
        ("127.0.0.1", int(os.environ["PORT"])), Handler
    )
    if MODE == "hand":
        for _ in range(CHILDREN):
            threading.Thread(target=take, daemon=True).start()
    if MODE == "fork":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        children = []
        for _ in range(CHILDREN):
            children.append(os.fork())
            if not children[-1]:
                break
        if all(children):
            print("ready", flush=True)
            try:
                # Whoever ends us wants them to end, too.
                signal.sigwait({signal.SIGTERM})
            finally:
                for pid in children:
                    os.kill(pid, signal.SIGTERM)
                    os.waitpid(pid, 0)
            return
    else:
        print("ready", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    server.serve_forever()


if __name__ == "__main__":
    main()
