"""An ASGI application for hypercorn: reads the body, answers ?status= and ?size= in its manner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

Message = dict[str, Any]


async def app(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """With ?wait= it answers after that many milliseconds; the body goes out in pieces."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    while (await receive()).get("more_body"):
        pass
    query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
    size = int(query.get("size", 0))
    await asyncio.sleep(int(query.get("wait", 0)) / 1000)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % size)]
    status = int(query.get("status", 200))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for at in range(0, size, 7000):
        piece = b"a" * min(7000, size - at)
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


async def lifespan(
    receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    while True:
        step = (await receive())["type"]
        await send({"type": f"{step}.complete"})
        if step == "lifespan.shutdown":
            return
