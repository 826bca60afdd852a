"""The corpus, and connections of HTTP/2, as inputs of the libFuzzer target, to begin from.

python -m tests.host.seeds PROTOCOL DIRECTORY writes one file for each case.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.host.case import corpus
from tests.host.lib import Segment
from tests.host.test_http2_frames import INVALID, SCENARIOS, START

MOST = 0xFFFF  # what the two bytes of a length can say


def encode(segments: Sequence[Segment], cuts: int, old: bool = False) -> bytes:
    """An input of fuzz_connection.c; cuts: 32 bits that say how it cuts the segments again."""
    parts = [cuts.to_bytes(4, "little"), bytes([old])]
    for segment in segments:
        operation = bytes([segment.server | segment.kind << 1])
        for begin in range(0, max(1, len(segment.data)), MOST):
            data = segment.data[begin : begin + MOST]
            length = min(segment.unseen or len(data), MOST)
            parts += [operation, length.to_bytes(2, "little"), data]
    return b"".join(parts)


def connections(protocol: str) -> Iterator[tuple[str, Sequence[Segment], bool]]:
    """Name, segments, and whether the connection is older than the tracer."""
    if protocol != "http2":
        for case in corpus(protocol):
            yield case.name, case.segments, case.old
        return
    for name, (segments, _) in SCENARIOS.items():
        yield name, segments, False
        yield f"{name}, old", segments[1:], True
    for name, wrong in INVALID.items():
        yield name, [START, Segment(False, wrong)], False


def write(protocol: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, segments, old in connections(protocol):
        cuts = zlib.crc32(name.encode())
        (directory / name.replace(" ", "-")).write_bytes(encode(segments, cuts, old))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
