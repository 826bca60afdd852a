"""An older kernel, in a guest: the short pass of `make kernels` (bench/kernels)."""

from __future__ import annotations

import sys

import pytest

from bench.kernels import guest, images

# The oldest that the programs are made for. Emulated, it takes some 40 s to say so.
KERNEL, LIMIT_S = "6.1", 300

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_programs_load_on_an_older_kernel() -> None:
    (source,) = [each for each in images.SOURCES if each.name == KERNEL]
    image = images.fetch(source, lambda text: print(text, file=sys.stderr))
    answer = guest.boot(image, tests=False, limit_s=LIMIT_S)
    assert answer.release.startswith(KERNEL)
    assert answer.works, {name: check for name, check in answer.checks.items() if check["remedy"]}
