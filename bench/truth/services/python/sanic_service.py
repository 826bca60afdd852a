"""Sanic, calling with httpx."""

from __future__ import annotations

import asyncio
import sys

import httpx
from contract import POOL, PORT, ready, targets
from sanic import Request, Sanic
from sanic.response import HTTPResponse, text

# What it says goes to standard output, where it would stand for "ready".
sys.stdout, out = sys.stderr, sys.stdout
app = Sanic("front")
client: httpx.AsyncClient


@app.before_server_start
async def begin(_: Sanic) -> None:
    global client
    limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)
    client = httpx.AsyncClient(limits=limits, timeout=30)


@app.after_server_start
async def began(_: Sanic) -> None:
    sys.stdout = out
    ready()


@app.get("/t/<id:str>")
async def front(request: Request, id: str) -> HTTPResponse:
    urls = targets(id, request.args.get("d"))
    await asyncio.gather(*(client.get(url) for url in urls))
    return text(id)


if __name__ == "__main__":
    app.run("127.0.0.1", PORT, single_process=True, access_log=False, motd=False, backlog=1024)
