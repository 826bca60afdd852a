"""Go programs built here: facts with and without DWARF, against the Go tools' own words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tracer.runtimes import dwarf, golang
from tracer.runtimes.elf import ElfError
from tracer.runtimes.proc import opened

SOURCE = """package main

import (
	"fmt"
	"net/http"
)

func main() {
	done := make(chan int)
	go func() {
		_, err := http.Get("http://127.0.0.1:1/")
		fmt.Println(err)
		done <- 1
	}()
	<-done
}
"""
ROUND_TRIP = "net/http.(*persistConn).roundTrip"
GO = shutil.which("go")

pytestmark = pytest.mark.skipif(GO is None, reason="no Go here")


def toolchains() -> list[str]:
    """The installed Go, and others already in the module cache: nothing is downloaded."""
    if GO is None:
        return []
    cache = subprocess.run([GO, "env", "GOMODCACHE"], capture_output=True, text=True).stdout
    folders = Path(cache.strip(), "golang.org").glob("toolchain@v0.0.1-go*")
    names = sorted({folder.name.split("-")[1] for folder in folders})
    return ["local", *(re.sub(r"\.linux$", "", name) for name in names)]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> object:
    directory = tmp_path_factory.mktemp("go")
    (directory / "go.mod").write_text("module example.com/facts\n\ngo 1.18\n")
    (directory / "main.go").write_text(SOURCE)

    def built(toolchain: str, name: str, *flags: str) -> Path:
        path = directory / f"{toolchain}-{name}"
        if not path.exists():
            environment = {**os.environ, "GOTOOLCHAIN": toolchain, "GOFLAGS": "-buildvcs=false"}
            subprocess.run(
                [str(GO), "build", *flags, "-o", str(path), "."],
                cwd=directory,
                env={**environment, "GOPROXY": "off"},
                check=True,
            )
        return path

    return built


def facts(path: Path) -> golang.Go:
    with opened(path) as elf:
        found = golang.image(elf)
    assert found is not None
    return found


@pytest.mark.parametrize("toolchain", toolchains())
def test_stripped_programs_tell_the_same(build: object, toolchain: str) -> None:
    assert callable(build)
    program = build(toolchain, "whole")
    whole = facts(program)
    bare = facts(build(toolchain, "bare", "-ldflags=-s -w"))
    assert whole.evidence["members"].startswith("table of Go 1.")
    assert bare.evidence == whole.evidence
    with opened(program) as elf:
        truth = dwarf.members(elf, golang.WANTED_MEMBERS)
    assert len(truth) >= len(golang.WANTED_MEMBERS) - 6 - (whole.version < (1, 21))
    assert {key: whole.members[key] for key in truth} == truth
    assert bare.version == whole.version
    assert (bare.goid, bare.parent_goid, bare.tls_g) == (whole.goid, whole.parent_goid, whole.tls_g)
    assert {key: bare.members[key] for key in whole.members} == dict(whole.members)
    assert set(bare.functions) == set(whole.functions) >= {ROUND_TRIP, "runtime.send"}
    for name, function in whole.functions.items():
        other = bare.functions[name]
        assert other.cheap - other.entry == function.cheap - function.entry
        assert [at - other.entry for at in other.returns] == [
            at - function.entry for at in function.returns
        ]
    if whole.version >= (1, 21):
        assert whole.parent_goid is not None
        assert whole.functions[ROUND_TRIP].cheap > whole.functions[ROUND_TRIP].entry


def test_dwarf_only_where_no_table_is(build: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(build)
    whole, bare = build("local", "whole"), build("local", "bare", "-ldflags=-s -w")
    known = facts(whole)
    monkeypatch.setattr(golang, "NEWEST", (1, 18))
    found = facts(whole)
    assert found.evidence["members"] == "DWARF"
    assert (found.goid, found.parent_goid) == (known.goid, known.parent_goid)
    with pytest.raises(golang.Unfit, match=r"without DWARF: 1\.18 is the newest known"):
        facts(bare)


@pytest.mark.parametrize("flags", [(), ("-buildmode=pie",)], ids=["fixed", "pie"])
@pytest.mark.parametrize("name", [ROUND_TRIP, "runtime.send", "runtime.recv"])
def test_returns_are_the_disassemblers(build: object, flags: tuple[str, ...], name: str) -> None:
    assert callable(build)
    path = build("local", "-".join(("whole", *flags)), *flags)
    function = facts(path).functions[name]
    listing = subprocess.run(
        [str(GO), "tool", "objdump", "-s", f"^{re.escape(name)}$", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    with opened(path) as elf:
        code = {
            elf.file_offset(int(row[1], 16)): row[3]
            for row in rows
            if len(row) > 3 and row[1].startswith("0x")
        }
    assert set(function.returns) == {at for at, what in code.items() if what == "RET"}
    assert function.entry == next(iter(code))
    assert code[function.cheap] == "PUSHQ"


def test_modules_and_what_is_not_go(build: object, tmp_path: Path) -> None:
    assert callable(build)
    with opened(build("local", "whole")) as elf:
        found = golang.build_info(elf)
    assert found is not None and found[0].startswith("go1.") and "example.com/facts" in found[1]
    with opened("/proc/self/exe") as elf:
        assert golang.image(elf) is None


def test_a_damaged_program(build: object, tmp_path: Path) -> None:
    assert callable(build)
    raw = build("local", "bare", "-ldflags=-s -w").read_bytes()
    for share in range(1, 8):
        path = tmp_path / f"cut-{share}"
        path.write_bytes(raw[: len(raw) * share // 8])
        try:
            with opened(path) as elf:
                golang.image(elf)
        except (ElfError, golang.Unfit):
            continue
        # The end of such a file holds nothing that is read.


def test_tables_by_version() -> None:
    assert golang.grpc_members(1, 39) == {} == golang.grpc_members(2, 0)
    client = ("google.golang.org/grpc/internal/transport.http2Client", "conn")
    assert [golang.grpc_members(1, minor)[client] for minor in (51, 52, 76)] == [64, 128, 128]
