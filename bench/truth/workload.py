"""What one workload of `make truth` is: a front service that calls an upstream service.

The front service finds in its environment

    PORT      where to listen, on 127.0.0.1
    UPSTREAM  http://127.0.0.1:N
    CALLS     upstream calls a request (default 1)
    MODE      which variant to be, where the program has several

answers GET /t/ID?d=A,B,... with ID once it has made CALLS calls GET $UPSTREAM/u/ID/K?d=D, where K
counts from 0 and D is the K-th of the delays in ms, and prints the line "ready" on standard
output once it listens. What it does not need to be told it must not use: ID tells who is right.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Argument vector, and what is set in the environment beyond ours; PORT, UPSTREAM and CALLS are
# set by the run.
Command = tuple[list[str], dict[str, str]]


@dataclass(frozen=True, slots=True)
class Service:
    """A running upstream service. url: what a front service finds in UPSTREAM."""

    port: int
    pid: int
    url: str


@dataclass(frozen=True, slots=True)
class Workload:
    """A row of the table.

    name: of letters, digits and dashes; family: the heading it stands under.
    calls: upstream calls a request.
    build: makes what `command` runs, or raises bench.processes.BenchError with the reason why it
        cannot be here (a missing toolchain); None where there is nothing to make.
    command: port, upstream URL -> how the front service is started. It is asked anew for each
        run. A file that it needs (a proxy's configuration) it may write to a directory of its
        own.
    ready: it prints "ready"; False for programs that cannot, which are ready once the port
        answers to a connection.
    right_target, wrong_target: of upstream spans, from 0 to 1: at least, and at most.
    truth: where a span's ID stands; "path": in url.path, or, where there is none, in
        db.query.text as the name of the result's column, `/u/ID/K`.
    header: the load's requests name a trace of their own in this header, which must then be that
        of all their spans; "" for none.
    own_spans: the front service traces itself, too, and prints its spans as the tracer does. A
        way up may lead over them, to its own server span.
    upstream: starts another upstream service than HTTP's in a directory and ends it in the end;
        it must be a child of this process, as only those are traced.
    """

    name: str
    family: str
    command: Callable[[int, str], Command]
    right_target: float
    wrong_target: float
    calls: int = 1
    build: Callable[[], None] | None = None
    ready: bool = True
    truth: Literal["path"] = "path"
    header: Literal["", "traceparent", "b3", "uber-trace-id", "sw8"] = ""
    own_spans: bool = False
    upstream: Callable[[Path], AbstractContextManager[Service]] | None = None
