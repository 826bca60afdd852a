"""The ready file: whole or not at all, gone at the end, and told of before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import ready
from tracer.errors import WirespanError


def test_it_is_there_while_the_work_is_on(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    ready.check(str(path))
    with ready.kept(str(path), "4711\n"):
        assert path.read_text() == "4711\n" and list(tmp_path.iterdir()) == [path]
    assert not list(tmp_path.iterdir())
    ready.check("")
    with ready.kept("", "x"):
        assert not list(tmp_path.iterdir())


def test_where_it_cannot_be(tmp_path: Path) -> None:
    for name, why in ((tmp_path, "is a directory"), (tmp_path / "no" / "file", "no such dir")):
        with pytest.raises(WirespanError, match=why) as raised:
            ready.check(str(name))
        assert raised.value.hint == "see --ready-file"
        with pytest.raises(WirespanError, match="cannot write"), ready.kept(str(name), "x"):
            raise AssertionError("never begun")
    assert not list(tmp_path.iterdir())
