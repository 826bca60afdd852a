"""The record's layout as BTF tells it: the literal table, and what gcc makes of flow.h."""

from __future__ import annotations

import itertools
import re
import shutil
import struct
import subprocess
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest

from tests.root.compile import ROOT, clang, compile_bpf
from tracer.errors import LayoutError
from tracer.kernel.layout import Layout, global_offsets, load_layout, read_object, struct_dtype

# Every field of struct flow_record: offset and size in bytes. A change here is a change
# of what crosses from the kernel, and wants a reason in its commit.
RECORD = {
    "start_ns": (0, 8),
    "request_end_ns": (8, 8),
    "first_byte_ns": (16, 8),
    "end_ns": (24, 8),
    "conn_id": (32, 8),
    "request_body_bytes": (40, 8),
    "response_body_bytes": (48, 8),
    "task_start_ns": (56, 8),
    "cgroup_id": (64, 8),
    "rows_returned": (72, 8),
    "rows_affected": (80, 8),
    "parent": (88, 8),
    "request_seq": (96, 4),
    "response_seq": (100, 4),
    "tgid": (104, 4),
    "request_tid": (108, 4),
    "response_tid": (112, 4),
    "netns": (116, 4),
    "flags": (120, 4),
    "status": (124, 4),
    "code": (128, 4),
    "stream_id": (132, 4),
    "request_messages": (136, 4),
    "response_messages": (140, 4),
    "local_addr": (144, 16),
    "remote_addr": (160, 16),
    "comm": (176, 16),
    "family": (192, 2),
    "local_port": (194, 2),
    "remote_port": (196, 2),
    "kind": (198, 1),
    "protocol": (199, 1),
    "role": (200, 1),
    "end": (201, 1),
    "method": (202, 1),
    "version": (203, 1),
    "truncated": (204, 2),
    "text_len": (206, 2),
    "calls": (208, 4),
    "evidence": (212, 1),
    "level": (213, 1),
    "lot": (214, 2),
    "fields": (216, 32),
    "text": (248, 432),
}
RECORD_BYTES = 680


@pytest.fixture(scope="module")
def writer() -> Path:
    return compile_bpf("writer")


@pytest.fixture(scope="module")
def layout(writer: Path) -> Layout:
    return load_layout(writer)


def build(tmp_path: Path, source: str) -> Path:
    """Compile a few lines of eBPF C."""
    text = tmp_path / "sample.bpf.c"
    text.write_text(source)
    target = tmp_path / "sample.bpf.o"
    command = [clang(), "-g", "-O2", "-target", "bpf", "-c", str(text), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def test_table(layout: Layout) -> None:
    fields = layout.record.fields
    assert fields is not None
    assert {name: (info[1], info[0].itemsize) for name, info in fields.items()} == RECORD
    assert layout.record.itemsize == RECORD_BYTES


def test_c_compiler_agrees(layout: Layout, tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "no C compiler"
    names = layout.record.names or ()
    lines = "\n".join(
        f'printf("{name} %zu %zu\\n", offsetof(struct flow_record, {name}), '
        f"sizeof(((struct flow_record *)0)->{name}));"
        for name in names
    )
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdio.h>\n#include <flow.h>\n"
        f'int main(void) {{ {lines} printf("= %zu 0\\n", sizeof(struct flow_record)); }}'
    )
    program = tmp_path / "offsets"
    subprocess.run([compiler, f"-I{ROOT / 'ebpf'}", str(source), "-o", str(program)], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    told = {line.split()[0]: int(line.split()[1]) for line in printed.splitlines()}
    fields = layout.record.fields
    assert fields is not None
    assert told.pop("=") == layout.record.itemsize
    assert told == {name: info[1] for name, info in fields.items()}


def test_fields_of_the_header_all_arrive(layout: Layout) -> None:
    header = (ROOT / "ebpf" / "flow.h").read_text()
    body = re.search(r"struct flow_record \{(.*?)\n\};", header, re.DOTALL)
    assert body
    names = re.findall(r"^\t(?:struct )?\w+ (\w+)", body[1], re.MULTILINE)
    assert tuple(names) == layout.record.names


def test_kinds_of_arrays(layout: Layout) -> None:
    record = layout.record
    assert record["comm"] == np.dtype("S16")
    assert record["text"] == np.dtype((np.uint8, (432,)))
    assert record["local_addr"] == np.dtype((np.uint8, (16,)))
    assert record["fields"] == np.dtype(([("off", "<u2"), ("len", "<u2")], (8,)))
    assert record["start_ns"] == np.dtype("<u8")
    assert record["kind"] == np.dtype("u1")


def test_nothing_hides_between_fields(layout: Layout) -> None:
    end = 0
    for offset, size in RECORD.values():
        assert offset == end
        end += size
    assert end == RECORD_BYTES


def test_enums_match_the_header(layout: Layout) -> None:
    header = (ROOT / "ebpf" / "flow.h").read_text()
    assert set(layout.enums) >= {"flow_loss", "flow_count"}
    for name, enum in layout.enums.items():
        body = re.search(rf"enum {name} \{{(.*?)\n\}};", header, re.DOTALL)
        assert body
        expected = {
            member: int(value) for member, value in re.findall(r"(FLOW_\w+) = (\d+)", body[1])
        }
        assert issubclass(enum, IntEnum)
        assert {key: int(value) for key, value in enum.__members__.items()} == expected


def test_members_leave_out_the_closing_count(layout: Layout) -> None:
    members = layout.members("flow_loss", "FLOW_LOSS_")
    assert members["FLOW_LOSS_RING_FULL"] == 0
    assert "FLOW_LOSSES" not in members
    assert len(members) == layout.enums["flow_loss"].__members__["FLOW_LOSSES"]
    with pytest.raises(LayoutError, match="no enum flow_absent"):
        layout.members("flow_absent", "")


def test_globals_are_found_in_their_sections(writer: Path) -> None:
    data, bss = global_offsets(writer), global_offsets(writer, ".bss")
    assert {"cfg_writer", "cfg_mark"} <= data.keys()
    assert {"cfg_self_tgid", "cfg_filters", "written"} <= bss.keys()
    places = sorted((spot.offset, spot.size) for spot in data.values())
    assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(places))
    assert data["cfg_writer"].size == 4 and data["cfg_mark"].size == 1
    with pytest.raises(LayoutError, match=r"no section \.absent"):
        global_offsets(writer, ".absent")


def test_programs_and_helpers(writer: Path) -> None:
    obj = read_object(writer)
    assert obj.programs == {
        "enter_getprio": "tracepoint/syscalls/sys_enter_getpriority",
        "exit_getprio": "tracepoint/syscalls/sys_exit_getpriority",
    }
    # bpf_map_lookup_elem, get_current_pid_tgid, ringbuf_reserve, _submit, _discard
    assert {1, 14, 131, 132, 133} <= obj.helpers


def test_integers_signs_bools_and_nested_arrays(tmp_path: Path) -> None:
    path = build(
        tmp_path,
        """
        enum level { LOW = -1, HIGH = 2 };
        struct inner { short a[3]; unsigned char b; };
        struct sample {
            long long s64; unsigned long long u64; int s32; unsigned u32; enum level e;
            signed char s8; unsigned char u8; _Bool flag; char letter;
            struct inner grid[2][3];
            char word[64]; char heap[65];
        };
        struct pointing { void *p; };
        struct union_inside { union { int a; long b; } u; };
        struct bits { unsigned a : 3; unsigned b : 29; };
        struct whole_bits { unsigned a : 32; };
        struct real { float f; };
        struct sample *a; struct pointing *b; struct union_inside *c; struct bits *d;
        struct whole_bits *e; struct real *f;
        """,
    )
    btf = read_object(path).btf
    sample = struct_dtype(btf, "sample")
    assert {name: sample[name].str for name in ("s64", "u64", "s32", "u32", "e")} == {
        "s64": "<i8",
        "u64": "<u8",
        "s32": "<i4",
        "u32": "<u4",
        "e": "<i4",
    }
    assert sample["s8"] == np.int8
    assert sample["u8"] == np.uint8
    assert sample["flag"] == np.bool_
    assert sample["letter"] == np.int8
    assert sample["word"] == np.dtype("S64")
    assert sample["heap"] == np.dtype((np.uint8, (65,)))
    assert sample["grid"].shape == (2, 3)
    inner = sample["grid"].base
    assert inner["a"] == np.dtype(("<i2", (3,)))
    assert inner.itemsize == 8
    for name, what in (
        ("pointing", "pointing.p is a ptr"),
        ("union_inside", "union_inside.u is a union"),
        ("bits", "bits.[ab] is a bit-field"),
        ("whole_bits", "whole_bits.a is a bit-field"),
        ("real", "real.f is a float"),
        ("absent", "no struct absent"),
    ):
        with pytest.raises(LayoutError, match=what):
            struct_dtype(btf, name)


def test_missing_record(tmp_path: Path) -> None:
    path = build(tmp_path, "int number = 1;")
    with pytest.raises(LayoutError, match="no struct flow_record") as caught:
        load_layout(path)
    assert "file scope" in caught.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"#!/bin/sh\n" * 20, b"\x7fELF\x01\x01\x01" + bytes(100)]
)
def test_no_object(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "nothing.o"
    path.write_bytes(data)
    with pytest.raises(LayoutError, match=r"nothing\.o is not a 64-bit little-endian ELF"):
        load_layout(path)


def test_absent_object_and_host_object(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="cannot read"):
        load_layout(tmp_path / "absent.o")
    with pytest.raises(LayoutError, match="not an eBPF object"):
        load_layout(Path("/proc/self/exe"))


def test_damaged_objects_are_refused_by_name(writer: Path, tmp_path: Path) -> None:
    whole = writer.read_bytes()
    section = read_object(writer).section(".BTF")
    table = struct.unpack_from("<Q", whole, 40)[0]

    def damaged(place: int, value: bytes) -> Path:
        path = tmp_path / "damaged.o"
        path.write_bytes(whole[:place] + value + whole[place + len(value) :])
        return path

    for path in (
        damaged(section.offset, b"\0\0"),  # magic
        damaged(section.offset + 12, struct.pack("<I", 1 << 30)),  # length of the types
        damaged(section.offset + 20, struct.pack("<I", 0)),  # length of the strings
        damaged(40, struct.pack("<Q", 1 << 40)),  # place of the section table
        damaged(table + 64, struct.pack("<I", 1 << 30)),  # name of a section
    ):
        with pytest.raises(LayoutError):
            load_layout(path)
