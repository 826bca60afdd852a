"""The upstream service: it answers a path after the delay that the request asks for.

    python -m bench.truth.upstream PORT

GET /u/ID/K?d=MS is answered with ID after MS ms. So is /t/ID?d=MS, which is what a proxy in
front of it passes on as it came. Requests on one connection are answered in order.
"""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import parse_qs, urlsplit

BACKLOG = 1024


async def serve(port: int) -> None:
    """Listen on 127.0.0.1 until cancelled."""
    server = await asyncio.start_server(_talk, "127.0.0.1", port, backlog=BACKLOG)
    async with server:
        print("ready", flush=True)
        await server.serve_forever()


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await _head(reader):
            url = urlsplit(head.split(" ", 2)[1])
            delays = parse_qs(url.query).get("d", ["0"])[0].split(",")
            await asyncio.sleep(float(delays[0]) / 1000)
            body = url.path.split("/")[2].encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> str:
    """Read a request's head; "" at the end of the connection. Bodies are not expected."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return ""
    return head.decode("latin-1")


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
