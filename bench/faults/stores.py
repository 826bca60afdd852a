"""Faults of the embedded store: no room on its disk, files that can't be read."""

from __future__ import annotations

import errno
import json
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from bench.faults.load import Load, Made
from bench.faults.scene import Fault, Scene, status_of
from bench.processes import BenchError, free_port
from bench.traced import Status, Tracer

GROUP = "the store"
DISK_BYTES = 24 << 20
# Of these, what is taken from the start and given back in the end: room to go on in, however
# much the store had written by the time that the disk was filled.
SPARE_BYTES = 8 << 20
# What a full disk must leave of an answer, and how long it takes to go on.
LOSSES = (
    *("store_failed", "store_queue_full", "store_unwritten"),
    *("ring_full", "reader_full", "shed"),
)
ON_A_DISK = f'mount -t tmpfs -o size={DISK_BYTES} wirespan-faults "$0" && exec "$@"'


def _ask(address: str, path: str) -> Any:
    """Ask the query API. Raises BenchError."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as reply:
            return json.load(reply)["data"]
    except OSError as error:
        raise BenchError(f"the query API failed: {path}: {error}") from None


def take_room(path: Path, most: int | None = None) -> int:
    """Write at the end of a file: `most` bytes, or until its disk has no room. Returns its size.

    Unbuffered: a buffer with a rest that found no room would try it again as it is closed.
    """
    with path.open("ab", buffering=0) as file:
        try:
            while most is None or file.tell() < most:
                file.write(bytes(1 << 16))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        return file.tell()


def _await(scene: Scene, load: Load, condition: Callable[[], bool], timeout: float = 20.0) -> bool:
    """Let the load run until something has come true; whether it has."""
    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end:
        scene.run_for(0.2, load)
    return condition()


def _settled(scene: Scene, tracer: Tracer, made: Made) -> Status:
    """The status once all spans are stored or lost, or nothing moves any more."""
    end = time.monotonic() + 30
    while True:
        status = scene.settled(tracer)
        known = status.stored["store_spans"] + _lost(status)
        if known >= 2 * len(made) or time.monotonic() > end:
            return status


def _lost(status: Status) -> int:
    return sum(status.losses.get(name, 0) for name in LOSSES)


def _accounted(scene: Scene, status: Status, sides: int) -> None:
    stored = status.stored["store_spans"]
    scene.outcome.spans += stored
    scene.outcome.lost |= {name: n for name, n in status.losses.items() if n}
    scene.check(
        "stored + losses = exchanges, exactly",
        stored + _lost(status) == sides,
        f"{sides} sides, {stored} stored, lost {dict(scene.outcome.lost)}",
    )


def full(scene: Scene) -> None:
    disk, address = scene.directory / "disk", f"127.0.0.1:{free_port()}"
    disk.mkdir()
    # A mount of its own namespace, which goes with the tracer.
    within = ("unshare", "--mount", "sh", "-c", ON_A_DISK, str(disk))
    store = ("--store", str(disk / "store"), "--query-address", address)
    tracer = scene.tracer("", *store, within=within)
    inside = Path(f"/proc/{tracer.pid}/root{disk}")
    filler = inside / "filler"
    scene.check("there was room", take_room(filler, SPARE_BYTES) >= SPARE_BYTES)
    load = scene.load()
    scene.run_for(2.0, load)
    _await(scene, load, lambda: status_of(tracer).stored["store_spans"] > 0)
    scene.figure("of the disk, taken", f"{take_room(filler) >> 20} of {DISK_BYTES >> 20} MiB")
    scene.run_for(scene.seconds, load)
    was_full = _await(scene, load, lambda: status_of(tracer).losses["store_failed"] > 0)
    scene.check("it was full", was_full, "" if was_full else status_of(tracer).losses)
    scene.check("it is said", "space" in tracer.said().lower(), tracer.said()[-300:])
    scene.check("what is stored can be read meanwhile", bool(_ask(address, "/api/services")))
    filler.unlink()
    before = status_of(tracer).stored["store_spans"]
    _await(scene, load, lambda: status_of(tracer).stored["store_spans"] > before)
    scene.run_for(1.0, load)
    made = load.end()
    status = _settled(scene, tracer, made)
    scene.check("it goes on by itself", status.stored["store_spans"] > before)
    scene.unharmed(made)
    _accounted(scene, status, 2 * len(made))
    scene.check("the tracer still runs", tracer.popen.poll() is None)


def corrupt(scene: Scene) -> None:
    store, address = scene.directory / "store", f"127.0.0.1:{free_port()}"
    words = ("--store", str(store), "--store-size", "64M", "--query-address", address)
    first = scene.tracer("", *words)
    load = scene.load()
    scene.run_for(2.0, load)
    made = load.end()
    _accounted(scene, _settled(scene, first, made), 2 * len(made))
    scene.unharmed(made)
    first.stop(signal.SIGTERM)
    harmed = sorted(store.glob("spans-*.duckdb"))
    for path in harmed:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\xa5" * 4096)
            file.seek(0)
            file.write(b"\xa5" * 4096)
    second = scene.tracer("", *words)
    load = scene.load()
    scene.run_for(scene.seconds, load)
    # While it runs: what is being written, and all that may be read.
    for path in store.glob("spans-*.duckdb"):
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xa5" * 512)
    _ask(address, "/api/services")
    scene.run_for(1.0, load)
    made = load.end()
    status = scene.settled(second)
    scene.unharmed(made)
    scene.check("it is said", "corrupt" in second.said(), second.said()[-300:])
    scene.check("it is counted", status.losses["store_corrupt"] >= len(harmed) > 0)
    scene.check("what was harmed is set aside", len(list(store.glob("*.corrupt"))) >= len(harmed))
    scene.outcome.lost |= {name: n for name, n in status.losses.items() if n}
    scene.check("the tracer still runs", second.popen.poll() is None)
    code = second.stop(signal.SIGTERM)
    scene.check("it ends well", code == 0, code)
    # And a third one finds everything that can be read, and writes on.
    third = scene.tracer("", *words)
    load = scene.load()
    scene.run_for(1.0, load)
    made = load.end()
    _accounted(scene, _settled(scene, third, made), 2 * len(made))
    third.stop(signal.SIGTERM)
    scene.figure("spans that can be read in the end", f"{_rows(store):,}")


def _rows(store: Path) -> int:
    total = 0
    for path in store.glob("spans-*.duckdb"):
        try:
            with duckdb.connect(str(path), read_only=True) as database:
                found = database.execute("SELECT count(*) FROM spans").fetchone()
        except duckdb.Error:
            continue
        total += found[0] if found else 0
    return total


FAULTS = (
    Fault(
        "disk-full",
        GROUP,
        "no room on the store's disk, then room again",
        "it is said, what could not be stored is counted exactly, what was stored can be read, and "
        "it goes on by itself",
        (3, 60),
        full,
    ),
    Fault(
        "store-corrupt",
        GROUP,
        "every file of the store overwritten at its begin and in its middle, then the one in use",
        "it is said and counted, what was harmed is set aside, and it goes on",
        (2, 30),
        corrupt,
    ),
)
