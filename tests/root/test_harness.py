"""The harness's own waiting."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.root.harness import Exchange, Watch, assert_exact, get, unique, wait_until


@contextlib.contextmanager
def restless() -> Iterator[None]:
    """Traffic of which at any moment some waits: clients that never read, so servers' sides do."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        over = threading.Event()

        def talk() -> None:
            while not over.wait(0.05):
                client = stack.enter_context(socket.create_connection(listener.getsockname()))
                client.sendall(b"GET /restless HTTP/1.1\r\nHost: restless\r\n\r\n")
                server, _ = listener.accept()
                stack.enter_context(server)
                server.recv(4096)
                server.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def test_traffic_of_others_keeps_nothing_from_settling(watch: Watch) -> None:
    path = unique()
    with restless():
        tracer = watch.tracer
        wait_until(lambda: tracer.counts()["held_spans"] > 5, "others' spans wait")
        assert get(tracer.barrier().port, path) == 204
        assert_exact(watch.under(path, 2), [Exchange(path, 204)])
        assert tracer.counts()["held_spans"] > 5, "they never stopped"
