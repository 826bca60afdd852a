"""The file of --ready-file: it is there while the work is on, for whoever waits for it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import WirespanError


def check(name: str) -> None:
    """Raise WirespanError where a ready file can't be: before any work is done."""
    if not name:
        return
    if Path(name).is_dir():
        raise _unwritable(name, "is a directory")
    if not Path(name).absolute().parent.is_dir():
        raise _unwritable(name, "no such directory")


@contextlib.contextmanager
def kept(name: str, text: str) -> Iterator[None]:
    """Have the file with the text while the body runs; "" for none.

    It appears whole or not at all. Raises WirespanError where it can't be written.
    """
    if not name:
        yield
        return
    path = Path(name)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise _unwritable(name, error.strerror or str(error)) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _unwritable(name: str, why: str) -> WirespanError:
    return WirespanError(f"cannot write the ready file {name}: {why}", "see --ready-file")
