"""tornado, server and AsyncHTTPClient.

MODE, words: "queue" for a client that makes 10 requests at once, its default, and keeps others in
a queue; "after" to make the first call alone, and then the others at once.
"""

from __future__ import annotations

import asyncio

from contract import MODE, POOL, PORT, ready, targets
from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, RequestHandler

WORDS = set(MODE.split())


class Front(RequestHandler):
    async def get(self, id: str) -> None:
        client = AsyncHTTPClient()
        urls = targets(id, self.get_query_argument("d"))
        if "after" in WORDS:
            await client.fetch(urls.pop(0))
        await asyncio.gather(*(client.fetch(url) for url in urls))
        self.finish(id)


async def main() -> None:
    AsyncHTTPClient.configure(None, max_clients=10 if "queue" in WORDS else POOL)
    app = Application([(r"/t/(\w+)", Front)], log_function=lambda _: None)
    app.listen(PORT, "127.0.0.1", backlog=1024)
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
