"""aiohttp, server and client: calls at once by gather.

MODE, words: "uvloop" for that event loop; "pool" for a client of 4 connections; "handoff" to
have one worker task, fed by an asyncio.Queue, make all calls of all requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from contract import MODE, POOL, PORT, ready, targets

WORDS = set(MODE.split())
SESSION = web.AppKey("session", aiohttp.ClientSession)
Job = tuple[str, "asyncio.Future[None]"]
QUEUE = web.AppKey("queue", asyncio.Queue)


async def call(session: aiohttp.ClientSession, url: str) -> None:
    async with session.get(url) as response:
        response.raise_for_status()
        await response.read()


async def front(request: web.Request) -> web.Response:
    id, app = request.match_info["id"], request.app
    urls = targets(id, request.query["d"])
    if "handoff" in WORDS:
        jobs = [(url, asyncio.get_running_loop().create_future()) for url in urls]
        for job in jobs:
            app[QUEUE].put_nowait(job)
        await asyncio.gather(*(done for _, done in jobs))
    else:
        await asyncio.gather(*(call(app[SESSION], url) for url in urls))
    return web.Response(text=id)


async def work(app: web.Application) -> None:
    while True:
        url, done = await app[QUEUE].get()
        await call(app[SESSION], url)
        done.set_result(None)


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    app[QUEUE] = asyncio.Queue()
    connector = aiohttp.TCPConnector(limit=4 if "pool" in WORDS else POOL)
    async with aiohttp.ClientSession(connector=connector) as app[SESSION]:
        workers = [asyncio.create_task(work(app)) for _ in range(32)]
        yield
        for each in workers:
            each.cancel()


async def main() -> None:
    app = web.Application()
    app.router.add_get("/t/{id}", front)
    app.cleanup_ctx.append(lifespan)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", PORT, backlog=1024).start()
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    if "uvloop" in WORDS:
        import uvloop

        uvloop.run(main())
    else:
        asyncio.run(main())
