"""Results that are kept in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.processes import BenchError


def save(path: Path, text: str, say: Callable[[str], None]) -> None:
    """Write a file and its directory, and say so. Raises BenchError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BenchError(f"cannot write {path}: {error.strerror}") from None
    say(f"wrote {path}")
