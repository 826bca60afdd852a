"""FastAPI or Starlette under uvicorn or hypercorn, calling with httpx.

MODE, words: "uvloop" for that event loop; "httptools" for that parser; "sync" for an endpoint
on Starlette's threads, with httpx's blocking client; "to_thread" for an asynchronous endpoint
that has a thread make the blocking call; "executor" for one that has a thread do so that is told
no context; "pool" for a client of 4 connections; "sleep" to sleep
first; "task" for a task of its own for each call; "background" to answer first, and call then;
"reset" for uvicorn to begin each request in an empty context rather than in a copy;
"hypercorn" for that server, and "trio" for it on that event loop.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import httpx
import hypercorn
import hypercorn.asyncio
import hypercorn.trio
import trio
import uvicorn
from contract import MODE, POOL, PORT, ready, targets
from fastapi import BackgroundTasks, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

WORDS = set(MODE.split())
LIMITS = httpx.Limits(
    max_connections=4 if "pool" in WORDS else POOL, max_keepalive_connections=POOL
)


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    global client
    async with httpx.AsyncClient(limits=LIMITS, timeout=30) as client:
        yield


client: httpx.AsyncClient
blocking = httpx.Client(limits=LIMITS, timeout=30)
api = FastAPI(lifespan=lifespan)


async def background(urls: list[str]) -> None:
    for url in urls:
        (await client.get(url)).raise_for_status()


@api.get("/t/{id}", response_class=PlainTextResponse)
async def front(id: str, d: str, later: BackgroundTasks) -> str:
    urls = targets(id, d)
    if "background" in WORDS:
        later.add_task(background, urls)
        return id
    if "sleep" in WORDS:
        await asyncio.sleep(0.002)
    if "to_thread" in WORDS:
        await asyncio.gather(*(asyncio.to_thread(blocking.get, url) for url in urls))
    elif "executor" in WORDS:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, blocking.get, url) for url in urls))
    elif "task" in WORDS:
        for task in [asyncio.create_task(client.get(url)) for url in urls]:
            (await task).raise_for_status()
    elif "trio" in WORDS:
        async with anyio.create_task_group() as group:
            for url in urls:
                group.start_soon(client.get, url)
    elif len(urls) == 1:
        (await client.get(urls[0])).raise_for_status()
    else:
        await asyncio.gather(*(client.get(url) for url in urls))
    return id


def front_sync(request: Request) -> PlainTextResponse:
    id = request.path_params["id"]
    for url in targets(id, request.query_params["d"]):
        blocking.get(url).raise_for_status()
    return PlainTextResponse(id)


class Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        ready()


def serve_by_hypercorn() -> None:
    listening = socket.create_server(("127.0.0.1", PORT), backlog=1024)
    config = hypercorn.Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.accesslog = config.errorlog = None
    ready()  # whoever connects now waits
    if "trio" in WORDS:
        trio.run(hypercorn.trio.serve, api, config)
    else:
        asyncio.run(hypercorn.asyncio.serve(api, config))


if __name__ == "__main__":
    if "hypercorn" in WORDS:
        serve_by_hypercorn()
        sys.exit()
    config = uvicorn.Config(
        Starlette(routes=[Route("/t/{id}", front_sync)]) if "sync" in WORDS else api,
        host="127.0.0.1",
        port=PORT,
        loop="uvloop" if "uvloop" in WORDS else "asyncio",
        http="httptools" if "httptools" in WORDS else "h11",
        log_level="warning",
        access_log=False,
        backlog=1024,
        reset_contextvars="reset" in WORDS,
    )
    Server(config).run()
