"""The table of workloads: Python's here, those of other runtimes beside it.

Targets are those the linking is built to; what no evidence can tell has 0 as its target of right
links, and the target of wrong ones all the same.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from bench.processes import BenchError
from bench.truth.workload import Command, Workload

if importlib.util.find_spec("bench.truth.workloads_other"):
    OTHER = importlib.import_module("bench.truth.workloads_other").WORKLOADS
else:
    OTHER = ()
SERVICES = Path(__file__).parent / "services" / "python"
THREADS, EXECUTORS, LOOPS, HEADERS = "threads", "executors", "event loops", "trace headers"
MIXED = "services that trace themselves"
# Right links at least, wrong ones at most.
TARGETS = {
    THREADS: (0.999, 0.0),
    EXECUTORS: (0.99, 0.001),
    LOOPS: (0.999, 0.001),
    HEADERS: (0.999, 0.0),
    MIXED: (0.999, 0.0),
}


def _installed(*modules: str) -> Callable[[], None]:
    def check() -> None:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise BenchError(f"not installed: {', '.join(missing)}")

    return check


def _script(name: str, mode: str = "") -> Callable[[int, str], Command]:
    def command(port: int, upstream: str) -> Command:
        return [sys.executable, str(SERVICES / f"{name}.py")], {"MODE": mode}

    return command


def _gunicorn(worker: str) -> Callable[[int, str], Command]:
    def command(port: int, upstream: str) -> Command:
        argv = [sys.executable, "-m", "gunicorn", "--chdir", str(SERVICES)]
        argv += ["--config", str(SERVICES / "gunicorn_conf.py"), "flask_service:app"]
        return argv, {"WORKER": worker}

    return command


def _python(
    family: str,
    name: str,
    command: Callable[[int, str], Command],
    modules: str,
    *,
    calls: int = 1,
    right: float | None = None,
    header: Literal["", "traceparent", "b3", "uber-trace-id", "sw8"] = "",
    own_spans: bool = False,
) -> Workload:
    """Make a row; right: the target, None for the family's."""
    least, most = TARGETS[family]
    return Workload(
        name,
        family,
        command,
        least if right is None else right,
        most,
        calls=calls,
        build=_installed(*modules.split()),
        header=header,
        own_spans=own_spans,
    )


# Modules that services import.
FLASK = "flask requests"
GUNICORN, WAITRESS, SANIC = f"{FLASK} gunicorn", f"{FLASK} waitress", "httpx sanic"
ASGI = "fastapi httpx hypercorn trio uvicorn"
ASGI_UVLOOP = f"{ASGI} httptools uvloop"
PACKAGES = (
    *("flask", "werkzeug", "gunicorn", "gevent", "requests"),
    *("fastapi", "starlette", "uvicorn", "hypercorn", "httpx", "uvloop", "httptools", "trio"),
    *("aiohttp", "tornado", "sanic", "waitress"),
)

PYTHON = (
    _python(THREADS, "flask", _script("flask_service"), FLASK),
    _python(THREADS, "flask-short-connections", _script("flask_service", "short"), FLASK),
    _python(THREADS, "gunicorn-gthread", _gunicorn("gthread"), GUNICORN),
    _python(THREADS, "waitress", _script("flask_service", "waitress"), WAITRESS, right=0.0),
    _python(EXECUTORS, "starlette-sync", _script("asgi_service", "sync"), ASGI),
    _python(EXECUTORS, "flask-executor", _script("flask_service", "executor"), FLASK),
    _python(EXECUTORS, "flask-executor-3", _script("flask_service", "executor"), FLASK, calls=3),
    _python(EXECUTORS, "fastapi-to-thread", _script("asgi_service", "to_thread"), ASGI),
    _python(EXECUTORS, "fastapi-executor", _script("asgi_service", "executor"), ASGI),
    _python(EXECUTORS, "flask-timer", _script("flask_service", "callback"), FLASK, right=0.0),
    _python(LOOPS, "fastapi-httpx", _script("asgi_service"), ASGI),
    _python(
        LOOPS, "fastapi-httpx-uvloop", _script("asgi_service", "uvloop httptools"), ASGI_UVLOOP
    ),
    _python(LOOPS, "fastapi-httpx-sleep", _script("asgi_service", "sleep"), ASGI),
    _python(LOOPS, "fastapi-httpx-tasks", _script("asgi_service", "task"), ASGI, calls=3),
    _python(LOOPS, "fastapi-httpx-reset", _script("asgi_service", "reset"), ASGI),
    _python(LOOPS, "fastapi-httpx-reset-3", _script("asgi_service", "reset task"), ASGI, calls=3),
    _python(LOOPS, "fastapi-hypercorn", _script("asgi_service", "hypercorn"), ASGI),
    _python(LOOPS, "fastapi-trio", _script("asgi_service", "hypercorn trio"), ASGI),
    _python(LOOPS, "fastapi-trio-3", _script("asgi_service", "hypercorn trio"), ASGI, calls=3),
    _python(LOOPS, "fastapi-httpx-4-connections", _script("asgi_service", "pool"), ASGI),
    _python(LOOPS, "fastapi-httpx-background", _script("asgi_service", "background"), ASGI),
    _python(LOOPS, "aiohttp", _script("aiohttp_service"), "aiohttp"),
    _python(LOOPS, "aiohttp-gather-3", _script("aiohttp_service"), "aiohttp", calls=3),
    _python(LOOPS, "aiohttp-uvloop", _script("aiohttp_service", "uvloop"), "aiohttp uvloop"),
    _python(LOOPS, "aiohttp-4-connections", _script("aiohttp_service", "pool"), "aiohttp", calls=3),
    _python(LOOPS, "aiohttp-queue", _script("aiohttp_service", "handoff"), "aiohttp", right=0.0),
    _python(LOOPS, "sanic", _script("sanic_service"), SANIC),
    _python(LOOPS, "sanic-gather-3", _script("sanic_service"), SANIC, calls=3),
    _python(LOOPS, "tornado", _script("tornado_service"), "tornado"),
    _python(LOOPS, "tornado-3", _script("tornado_service", "after"), "tornado", calls=3),
    _python(LOOPS, "tornado-10-clients", _script("tornado_service", "queue"), "tornado"),
    _python(
        LOOPS, "tornado-10-clients-3", _script("tornado_service", "queue after"), "tornado", calls=3
    ),
    _python(LOOPS, "gunicorn-gevent", _gunicorn("gevent"), f"{GUNICORN} gevent", right=0.0),
    _python(HEADERS, "traceparent", _script("flask_service"), FLASK, header="traceparent"),
    _python(HEADERS, "b3", _script("flask_service"), FLASK, header="b3"),
    _python(HEADERS, "uber-trace-id", _script("flask_service"), FLASK, header="uber-trace-id"),
    _python(HEADERS, "sw8", _script("flask_service"), FLASK, header="sw8"),
    _python(MIXED, "flask-sdk", _script("flask_service", "traced"), FLASK, own_spans=True),
    _python(
        MIXED,
        "flask-sdk-traceparent",
        _script("flask_service", "traced"),
        FLASK,
        header="traceparent",
        own_spans=True,
    ),
)

WORKLOADS: tuple[Workload, ...] = (*PYTHON, *OTHER)


def versions() -> dict[str, str]:
    """Return the versions of the Python packages that are here, by name."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def chosen(patterns: Sequence[str]) -> list[Workload]:
    """Return the workloads whose name or family any of the shell patterns matches; all for none.

    Raises BenchError for a pattern that matches nothing.
    """
    if not patterns:
        return list(WORKLOADS)
    found: set[str] = set()
    for pattern in patterns:
        names = {
            each.name
            for each in WORKLOADS
            if fnmatch.fnmatchcase(each.name, pattern) or fnmatch.fnmatchcase(each.family, pattern)
        }
        if not names:
            raise BenchError(f"no workload is called {pattern!r} (--list names them)")
        found |= names
    return [each for each in WORKLOADS if each.name in found]
