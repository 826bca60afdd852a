"""Flask between nginx and a gRPC service in Go: `front.py NGINX...` runs the three.

    GRPC        the Go program
    FLASK_PORT  where Flask listens and nginx's command line looks for it
    MYSQL       the database, which only the Go program asks

Each request is one call of the gRPC service. The process turns into nginx in the end, whose end
is that of the others.
"""

from __future__ import annotations

import os
import subprocess
import sys

END_WITH_US = ("setpriv", "--pdeathsig", "TERM")
# Held, as an object no longer used closes its pipe.
_services: list[subprocess.Popen[str]] = []


def _serve(address: str, port: int) -> None:
    # Only the process that serves has to load them.
    import grpc
    from flask import Flask, request
    from werkzeug.serving import WSGIRequestHandler, make_server

    channel = grpc.insecure_channel(address)
    call = channel.unary_unary("/wirespan.truth.Calls/Call")
    app = Flask(__name__)

    @app.get("/t/<name>")
    def front(name: str) -> str:
        delay = request.args.get("d", "0").split(",")[0]
        call(f"{name} 0 {delay}".encode(), timeout=30)
        return name

    class KeepAlive(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Say nothing."""

    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=KeepAlive)
    print("ready", flush=True)
    server.serve_forever()


def _start(argv: list[str], **env: str) -> str:
    """Start a service and return the first line it prints."""
    service = subprocess.Popen(
        [*END_WITH_US, *argv], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    )
    assert service.stdout
    line = service.stdout.readline().strip()
    if not line:
        sys.exit(f"{argv[0]} ended at once")
    # nginx has no use for it, but were it closed, the service would end at its next word.
    os.set_inheritable(service.stdout.fileno(), True)
    _services.append(service)
    return line


def main() -> None:
    """Run as the module says."""
    if sys.argv[1] == "flask":
        _serve(sys.argv[2], int(os.environ["FLASK_PORT"]))
        return
    address = _start([os.environ["GRPC"]], MODE="grpc-server", PORT="0")
    _start([sys.executable, __file__, "flask", address])
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
