"""Which requests of a load have spans, counted in the bytes of OTLP requests.

Strings lie in OTLP as they are, so the paths are found without parsing: millions of spans
can be counted. A server's span has the path alone (url.path), a client's has it behind the
address (url.full).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(slots=True)
class Seen:
    """Spans by number of the request: shape (n,) each. beyond: spans of no such request."""

    server: NDArray[np.uint32]
    client: NDArray[np.uint32]
    beyond: int = 0

    @classmethod
    def none(cls, requests: int) -> Seen:
        """No spans of so many requests."""
        return cls(np.zeros(requests, np.uint32), np.zeros(requests, np.uint32))

    def add(self, bodies: Iterable[bytes], prefix: str) -> None:
        """Count spans of paths under /PREFIX/ in serialised requests."""
        pattern = re.compile(rb"(:\d+)?/%s/(\d{8})" % prefix.encode())
        for body in bodies:
            numbers: tuple[list[int], list[int]] = ([], [])
            for address, number in pattern.findall(body):
                numbers[bool(address)].append(int(number))
            for into, found in zip((self.server, self.client), numbers, strict=True):
                known = np.array(found, np.int64)
                self.beyond += int((known >= len(into)).sum())
                np.add.at(into, known[known < len(into)], 1)

    def of(self, requests: int) -> Seen:
        """The same of the first so many requests, where there were no more."""
        beyond = int(self.server[requests:].sum() + self.client[requests:].sum())
        return Seen(self.server[:requests], self.client[:requests], self.beyond + beyond)

    @property
    def spans(self) -> int:
        """How many there are."""
        return int(self.server.sum() + self.client.sum())

    def missing(self) -> int:
        """Sides of requests without a span."""
        return int((self.server == 0).sum() + (self.client == 0).sum())

    def doubled(self) -> int:
        """Spans beyond the first of each side of each request, and those of no request."""
        return self.spans + self.missing() - 2 * len(self.server) + self.beyond


def count(bodies: Iterable[bytes], prefix: str, requests: int) -> Seen:
    """Count spans of paths under /PREFIX/ in serialised requests. requests: how many were made."""
    seen = Seen.none(requests)
    seen.add(bodies, prefix)
    return seen
