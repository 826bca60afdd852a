"""tornado, server and AsyncHTTPClient."""

from __future__ import annotations

import asyncio

from contract import POOL, PORT, ready, targets
from tornado.httpclient import AsyncHTTPClient
from tornado.web import Application, RequestHandler


class Front(RequestHandler):
    async def get(self, id: str) -> None:
        client = AsyncHTTPClient()
        urls = targets(id, self.get_query_argument("d"))
        await asyncio.gather(*(client.fetch(url) for url in urls))
        self.finish(id)


async def main() -> None:
    AsyncHTTPClient.configure(None, max_clients=POOL)
    app = Application([(r"/t/(\w+)", Front)], log_function=lambda _: None)
    app.listen(PORT, "127.0.0.1", backlog=1024)
    ready()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
