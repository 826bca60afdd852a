"""What every front service of this folder is told, and how it says that it listens."""

from __future__ import annotations

import os

PORT = int(os.environ["PORT"])
UPSTREAM = os.environ["UPSTREAM"]
CALLS = int(os.environ.get("CALLS", "1"))
MODE = os.environ.get("MODE", "")
# No caller waits for a connection, except where a variant says so.
POOL = 512


def targets(id: str, delays: str) -> list[str]:
    """Return the URLs to call for a request; delays: the value of its "d"."""
    each = delays.split(",")
    return [f"{UPSTREAM}/u/{id}/{call}?d={each[call]}" for call in range(CALLS)]


def ready() -> None:
    """Say that requests may come."""
    print("ready", flush=True)
