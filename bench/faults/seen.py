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


@dataclass(frozen=True, slots=True)
class Seen:
    """Spans by number of the request: shape (n,) each. beyond: spans of no such request."""

    server: NDArray[np.uint32]
    client: NDArray[np.uint32]
    beyond: int

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.server + other.server, self.client + other.client, self.beyond + other.beyond
        )

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
    pattern = re.compile(rb"(:\d+)?/%s/(\d{8})" % prefix.encode())
    seen = Seen(np.zeros(requests, np.uint32), np.zeros(requests, np.uint32), 0)
    beyond = 0
    for body in bodies:
        numbers: tuple[list[int], list[int]] = ([], [])
        for address, number in pattern.findall(body):
            numbers[bool(address)].append(int(number))
        for into, found in zip((seen.server, seen.client), numbers, strict=True):
            known = np.array(found, np.int64)
            beyond += int((known >= requests).sum())
            into += np.bincount(known[known < requests], minlength=requests).astype(np.uint32)
    return Seen(seen.server, seen.client, beyond)
