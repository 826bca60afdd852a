"""Settings of gunicorn for flask_service:app."""

import os
from typing import Any

bind = f"127.0.0.1:{os.environ['PORT']}"
worker_class = os.environ.get("WORKER", "gthread")
workers = 2
threads = 64
worker_connections = 1000
keepalive = 75
preload_app = False


def when_ready(server: Any) -> None:
    print("ready", flush=True)
