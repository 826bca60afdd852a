"""Headers in which requests name a trace of their own, as an instrumented client's do."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from typing import NamedTuple

from tracer.link.headers import remote_parent


class Named(NamedTuple):
    """A request's header, and the ids in hexadecimal that its spans must have by it.

    line: with its end, "" for a request that names no trace; trace, parent: then "" too.
    """

    line: str
    trace: str
    parent: str


def named(header: str, request: str) -> Named:
    """Make the header called `header` for the request with an ID; none where that is "".

    SkyWalking's ids are no numbers; which ones stand for them is the tracer's own choice.
    """
    if not header:
        return Named("", "", "")
    digest = hashlib.sha256(request.encode()).hexdigest()
    trace, parent = digest[:32], digest[32:48]
    if header == "sw8":
        text = b64encode(digest.encode()).decode()
        place = b64encode(b"front").decode()
        value = f"1-{text}-{text}-3-{place}-{place}-{place}-{place}"
        ids = remote_parent(value.encode())
        trace, parent = (ids[0].hex(), ids[1].hex()) if ids else ("", "")
    else:
        value = {
            "traceparent": f"00-{trace}-{parent}-01",
            "b3": f"{trace}-{parent}-1",
            "uber-trace-id": f"{trace}:{parent}:0:1",
        }[header]
    return Named(f"{header}: {value}\r\n", trace, parent)
