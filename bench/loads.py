"""Loads of gRPC and MySQL, each a process of its own: `python -m bench.loads KIND PORT SECONDS`.

Small calls from several threads, each of which waits for its answer. Values differ from call
to call, as they do in life: statements have literals in them, calls have deadlines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from bench.processes import Child

THREADS = 8
ROWS = 10_000
SERVICE, METHOD = "bench.Items", "Get"
PAYLOAD = b"\x0a\x10sixteen bytes..."


def child(kind: str, port: int, seconds: float) -> Child:
    """Start a load."""
    return Child([sys.executable, "-m", "bench.loads", kind, str(port), str(seconds)])


def serve_grpc(port: int, seconds: float) -> None:
    """Answer each call with what it brought."""
    import grpc

    server = grpc.server(ThreadPoolExecutor(THREADS))
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination(seconds)


def call_grpc(port: int, seconds: float) -> None:
    """Call over two connections, each shared by threads."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options) for _ in range(2)]

    def one(number: int) -> Callable[[int], object]:
        call = channels[number % 2].unary_unary(f"/{SERVICE}/{METHOD}", None, None)
        return lambda turn: call(PAYLOAD, timeout=5, wait_for_ready=True)

    _threads(one, seconds)
    for channel in channels:
        channel.close()


def ask_mysql(port: int, seconds: float) -> None:
    """Read and write rows of one table by their key."""
    import pymysql

    def connect() -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True)

    with connect() as setup, setup.cursor() as cursor:
        cursor.execute("CREATE DATABASE IF NOT EXISTS bench")
        cursor.execute("CREATE TABLE bench.items (id INT PRIMARY KEY, name CHAR(20)) ENGINE=MEMORY")
        rows = ",".join(f"({number},'name {number}')" for number in range(ROWS))
        cursor.execute(f"INSERT INTO bench.items VALUES {rows}")

    def one(number: int) -> Callable[[int], object]:
        cursor = connect().cursor()

        def ask(turn: int) -> None:
            key = (number * 1009 + turn * 7) % ROWS
            if turn % 4:
                cursor.execute("SELECT id, name FROM bench.items WHERE id = %s", (key,))
            else:
                cursor.execute("UPDATE bench.items SET name = %s WHERE id = %s", (turn, key))

        return ask

    _threads(one, seconds)


def _threads(make: Callable[[int], Callable[[int], object]], seconds: float) -> None:
    """Run what `make` gives, over and over, in each of THREADS threads; raises what they do."""
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        one, turn = make(number), 0
        while time.monotonic() < end:
            one(turn)
            turn += 1

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(THREADS)]:
            done.result()


def main() -> int:
    """Run the load that the arguments name."""
    kind, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    {"serve-grpc": serve_grpc, "grpc": call_grpc, "mysql": ask_mysql}[kind](port, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
