"""The load: a number of requests in flight over as many keep-alive connections.

Each request has an ID of its own in its path, GET /t/ID?d=A,B,..., and random delays for the
upstream calls that it causes, so that requests overtake each other.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.processes import BenchError
from bench.truth.headers import named

MAX_DELAY_MS = 30
# Of our ends. No service calls from there, which tells the spans of what we ask from those of
# what the services do: the same number of a port may serve both at once.
ADDRESS = "127.0.0.2"
# Times what an emulated machine is given (bench/kernels).
REQUEST_S = 30.0 * float(os.environ.get("WIRESPAN_TEST_SLOW", "1"))


@dataclass(frozen=True, slots=True)
class Done:
    """What was sent. ids: of requests answered as they should be; failed: why others were not."""

    ids: tuple[str, ...]
    failed: tuple[str, ...]
    seconds: float


def run(
    port: int, *, requests: int, concurrency: int, calls: int, seed: int, header: str = ""
) -> Done:
    """Send `requests` requests of `calls` calls each to 127.0.0.1:`port`.

    header: in which each names a trace of its own, "" for none.

    Raises BenchError where none is answered.
    """
    chance = random.Random(seed)
    tag = f"{chance.getrandbits(24):06x}"
    ids = [f"{tag}{number:06x}" for number in range(requests)]
    heads = iter([(each, _head(each, calls, named(header, each).line, chance)) for each in ids])
    start = time.monotonic()
    answers = asyncio.run(_all(port, heads, concurrency))
    seconds = time.monotonic() - start
    done = tuple(id for id, failure in answers if not failure)
    failed = tuple(failure for _, failure in answers if failure)
    if not done:
        raise BenchError(f"no request was answered: {failed[0]}")
    return Done(done, failed, seconds)


def _head(id: str, calls: int, header: str, chance: random.Random) -> str:
    delays = ",".join(str(chance.randint(0, MAX_DELAY_MS)) for _ in range(calls))
    return f"GET /t/{id}?d={delays} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"


async def _all(
    port: int, heads: Iterator[tuple[str, str]], concurrency: int
) -> Sequence[tuple[str, str]]:
    """Return each ID with what went wrong, "" for nothing."""
    answers: list[tuple[str, str]] = []
    await asyncio.gather(*(_worker(port, heads, answers) for _ in range(concurrency)))
    return answers


async def _worker(
    port: int,
    heads: Iterator[tuple[str, str]],
    answers: list[tuple[str, str]],
) -> None:
    """Take the next request as soon as the last one is answered, until none is left."""
    connection: _Connection | None = None
    try:
        for id, head in heads:
            try:
                if connection is None:
                    connection = await _Connection.open(port)
                status, body = await asyncio.wait_for(connection.get(head), REQUEST_S)
                good = status == 200 and body.strip() == id.encode()
                failure = "" if good else f"/t/{id}: {status} {body[:80]!r}"
                keep = connection.keep
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                failure, keep = f"/t/{id}: {error!r}", False
            answers.append((id, failure))
            if not keep and connection:
                connection.writer.close()
                connection = None
    finally:
        if connection:
            connection.writer.close()


class _Connection:
    """One connection to the front service. keep: it may be used again."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.keep = reader, writer, True

    @classmethod
    async def open(cls, port: int) -> _Connection:
        opened = await asyncio.open_connection("127.0.0.1", port, local_addr=(ADDRESS, 0))
        return cls(*opened)

    async def get(self, head: str) -> tuple[int, bytes]:
        """Send a request and return the status and the body of its response."""
        self.writer.write(head.encode())
        await self.writer.drain()
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status = lines[0].split(" ")[:2]
        fields = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip().lower()
        self.keep = version == "HTTP/1.1" and fields.get("connection") != "close"
        if "content-length" in fields:
            body = await self.reader.readexactly(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            body = await self._chunks()
        else:
            body, self.keep = await self.reader.read(), False
        return int(status), body

    async def _chunks(self) -> bytes:
        body = b""
        while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return body
