"""An HTTP/1.1 server whose connections change hands: `handover.py WAY COUNT`.

Prints its port, accepts one connection and answers COUNT requests on it, each by the process
or descriptor that WAY makes: fork (a child for every request), mid (the parent reads the
request, a child answers), exec (an inherited descriptor in a new program), scm (passed over
a Unix socket with SCM_RIGHTS), dup (a new number each time, the old one closed), threads (one
thread reads, another writes). Answers 200 with the request's own path as the body.
"""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import threading


def read_request(conn: socket.socket) -> bytes:
    """The path of the next request, which has no body."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        part = conn.recv(1000)
        if not part:
            raise SystemExit("closed")
        data += part
    return data.split(b" ", 2)[1]


def answer(conn: socket.socket, path: bytes) -> None:
    conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(path), path))


def child(work: object, *args: object) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            work(*args)  # type: ignore[operator]
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def serve_one(conn: socket.socket) -> None:
    answer(conn, read_request(conn))


def by_exec(conn: socket.socket) -> None:
    subprocess.run(
        [sys.executable, __file__, "one", str(conn.fileno())], pass_fds=[conn.fileno()], check=True
    )


def by_scm(conn: socket.socket, count: int) -> None:
    """Two processes by turns; each gets the connection anew, and the sender keeps none."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        conn.close()
        for _ in range(count // 2):
            _, fds, _, _ = socket.recv_fds(there, 1, 1)
            with socket.socket(fileno=fds[0]) as passed:
                serve_one(passed)
                socket.send_fds(there, [b"x"], [passed.fileno()])
        os._exit(0)
    there.close()
    for _ in range(count // 2):
        serve_one(conn)
        socket.send_fds(here, [b"x"], [conn.fileno()])
        conn.close()
        _, fds, _, _ = socket.recv_fds(here, 1, 1)
        conn = socket.socket(fileno=fds[0])
    os.waitpid(pid, 0)


def by_threads(conn: socket.socket, count: int) -> None:
    paths: queue.Queue[bytes] = queue.Queue()

    def write() -> None:
        for _ in range(count):
            answer(conn, paths.get())

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(count):
        paths.put(read_request(conn))
    writer.join()


def main(way: str, count: int) -> None:
    if way == "one":
        serve_one(socket.socket(fileno=count))
        return
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    conn, _ = listener.accept()
    conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if way == "scm":
        by_scm(conn, count)
        return
    if way == "threads":
        by_threads(conn, count)
        return
    for _ in range(count):
        if way == "fork":
            child(serve_one, conn)
        elif way == "mid":
            child(answer, conn, read_request(conn))
        elif way == "exec":
            by_exec(conn)
        elif way == "dup":
            fresh = conn.dup()
            conn.close()
            conn = fresh
            serve_one(conn)


main(sys.argv[1], int(sys.argv[2]))
