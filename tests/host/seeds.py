"""The corpus as inputs of the libFuzzer targets, to begin from.

python -m tests.host.seeds PROTOCOL DIRECTORY writes one file for each case.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

from tests.host.case import corpus
from tests.host.lib import Segment

MOST = 0xFFFF  # what the two bytes of a length can say


def encode(segments: Sequence[Segment], cuts: int) -> bytes:
    """An input of fuzz_http1.c; cuts: 32 bits that say how it cuts the segments again."""
    parts = [cuts.to_bytes(4, "little")]
    for segment in segments:
        operation = bytes([segment.server | segment.kind << 1])
        for begin in range(0, max(1, len(segment.data)), MOST):
            data = segment.data[begin : begin + MOST]
            length = min(segment.unseen or len(data), MOST)
            parts += [operation, length.to_bytes(2, "little"), data]
    return b"".join(parts)


def write(protocol: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for case in corpus(protocol):
        cuts = zlib.crc32(case.name.encode())
        (directory / case.name).write_bytes(encode(case.segments, cuts))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
