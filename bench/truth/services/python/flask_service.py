"""Flask and requests, on werkzeug's threads or under gunicorn.

MODE: "" calls from the thread that serves; "executor" hands the calls to a pool of threads and
waits; "callback" has the pool's thread make the call when a timer of another thread fires;
"short" opens a connection for each call; "traced" has spans of its own (own_spans.py);
"waitress" serves by that, where one thread reads what others answer.
"""

from __future__ import annotations

import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Timer

import requests
from contract import MODE, POOL, PORT, ready, targets
from flask import Flask, request
from requests.adapters import HTTPAdapter
from werkzeug.serving import WSGIRequestHandler, make_server

app = Flask(__name__)
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=POOL))
executor = ThreadPoolExecutor(32)


def call(url: str, headers: dict[str, str] | None = None) -> None:
    get = requests.get if MODE == "short" else session.get
    get(url, headers=headers).raise_for_status()


def later(url: str) -> Future[None]:
    done: Future[None] = Future()

    def hand_over() -> None:
        executor.submit(call, url).add_done_callback(lambda _: done.set_result(None))

    Timer(0.002, hand_over).start()
    return done


@app.get("/t/<id>")
def front(id: str) -> str:
    urls = targets(id, request.args["d"])
    if MODE == "executor":
        for each in [executor.submit(call, url) for url in urls]:
            each.result()
    elif MODE == "callback":
        for each in [later(url) for url in urls]:
            each.result()
    elif MODE == "traced":
        import own_spans

        with own_spans.server(request.path, request.headers):
            for url in urls:
                with own_spans.client(url) as headers:
                    call(url, headers)
    else:
        for url in urls:
            call(url)
    return id


def serve_by_waitress() -> None:
    import waitress

    listening = socket.create_server(("127.0.0.1", PORT), backlog=1024)
    ready()  # whoever connects now waits
    waitress.serve(app, sockets=[listening], threads=64, connection_limit=1000)


if __name__ == "__main__":
    if MODE == "waitress":
        serve_by_waitress()
        sys.exit()
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    WSGIRequestHandler.log_request = lambda *_, **__: None  # type: ignore[method-assign]
    server = make_server("127.0.0.1", PORT, app, threaded=True)
    ready()
    server.serve_forever()
