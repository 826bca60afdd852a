"""httpx over HTTP/2 by prior knowledge: many requests at once on one connection.

    httpx2.py URL REQUESTS CONCURRENCY     prints: path method status sent received

Request n asks for a status, a size and a wait that depend on n; every third has a body.
"""

from __future__ import annotations

import asyncio
import sys

import httpx


async def main(url: str, requests: int, concurrency: int) -> None:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    turn = asyncio.Semaphore(concurrency)

    async def one(client: httpx.AsyncClient, n: int) -> str:
        body = b"b" * (n % 9 * 5000) if n % 3 == 0 else b""
        method = "POST" if body else "GET"
        params = {"status": (200, 404, 503)[n % 3], "size": n * 997 % 30000, "wait": n * 7 % 20}
        async with turn:
            answer = await client.request(method, f"{url}/{n}", params=params, content=body)
        assert answer.http_version == "HTTP/2", answer.http_version
        return f"{answer.url.path} {method} {answer.status_code} {len(body)} {len(answer.content)}"

    async with httpx.AsyncClient(http1=False, http2=True, limits=limits, timeout=30) as client:
        for line in await asyncio.gather(*(one(client, n) for n in range(requests))):
            print(line)


asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
