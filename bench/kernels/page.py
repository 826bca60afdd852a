"""Answers of kernels as the page docs/reference/kernels.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.kernels.guest import SLOW, Answer
from bench.kernels.images import Image
from bench.markdown import paragraphs

TITLE = "# Kernels"
# What the tests show, by how their names begin.
CORE = {
    "HTTP/1 (nginx, curl)": "test_http1_servers::test_nginx_and_curl_elsewhere",
    "HTTP/1 (each system call)": "test_http1_syscalls::",
    "HTTP/1 (cut anywhere)": "test_http1_framing::",
    "gRPC": "test_grpc::",
    "MySQL": "test_mysql::",
    "linking by thread": "test_link::test_links[gunicorn-gthread]",
    "linking by asyncio context": "test_link::test_links[aiohttp-gather-3]",
    "losses are counted": "test_http1_edges::test_records_that_found_no_room",
}


def page(
    wirespan: str,
    answers: Sequence[tuple[str, Image | None, Answer | str]],
    arm: tuple[Image | None, Mapping[str, Any] | str] | None = None,
) -> str:
    """Write the page. answers: name, image (None: the kernel of this machine) and what came of it,
    in words where nothing did; arm: the same of 64-bit Arm, None: it wasn't tried."""
    rows = []
    words = []
    found = {name: answer for name, _, answer in answers if isinstance(answer, Answer)}
    for name, image, answer in answers:
        where = (
            f"Debian {image.source.suite}, {image.version}" if image else "this machine, no guest"
        )
        if isinstance(answer, str):
            rows.append((name, where, "-", "no answer", "-", "-", "-"))
            words.append(f"- **{name}**: {answer}")
            continue
        passed = sum(not why for why in answer.tests.values())
        tests = f"{passed} of {len(answer.tests)}" if answer.tests else "not run"
        works = "yes" if answer.works else "**no**"
        took = f"{answer.seconds:.0f} s"
        rows.append((name, where, answer.release, works, tests, took, answer.date))
        words += _words(name, answer)
    head = ("kernel", "from", "release", "programs load", "tests passed", "all took", "run")
    core = [(what, *(_cell(a, begins) for a in found.values())) for what, begins in CORE.items()]
    return (
        paragraphs(
            TITLE,
            f"Written by `make kernels`, wirespan {wirespan}. Each kernel but this "
            "machine's own boots in an emulated guest that shares this machine's files; `wirespan "
            "doctor` loads the programs there, and where it can, the root tests marked `kernels` "
            f"run: the same ones, given {SLOW} times as long in a guest and nothing else.",
            _table(head, rows),
            "## What works",
            _table(("", *found), core),
            "## What is missing, and why",
            "\n".join(words) or "Nothing.",
            "## 64-bit Arm",
            _arm(*arm) if arm else "Not tried in this run.",
        )
        + "\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(answer: Answer, begins: str) -> str:
    """What the tests with such names came to."""
    whys = [why for name, why in answer.tests.items() if name.startswith(begins)]
    if not whys:
        return "not run" if answer.works else "**no**"
    return "**no**" if any(whys) else "yes"


def _arm(image: Image | None, found: Mapping[str, Any] | str) -> str:
    """What the guest of another machine said (bench/kernels/arm64/main.go)."""
    if isinstance(found, str) or image is None:
        return f"No answer: {found}"
    where = f"Debian {image.source.suite}, {image.version} ({found['release']})"
    if found["error"]:
        return f"{where}: **no**: {found['error']}"
    seen = ", ".join(f"{count} of {what}" for what, count in sorted(found["seen"].items()))
    return (
        f"{where}, emulated: all {found['programs']} programs load, those at "
        f"{', '.join(sorted(found['attached']))} attach, and of {found['made']} HTTP requests "
        f"exchanges were seen so: {seen or 'none'}. The loader there is a small one of our own: "
        "`wirespan` itself has not run on arm64, for its files here are this machine's, and there "
        "is no built pylibbpf for arm64 to be had. Contexts of CPython and Go are looked at on "
        "x86-64 alone."
    )


def _words(name: str, answer: Answer) -> list[str]:
    lines = []
    for check, found in answer.checks.items():
        if _matters(found):
            lines.append(f"- **{name}**, {check}: {found['seen']}; {found['consequence']}")
    lines += [f"- **{name}**, `{test}`: {why}" for test, why in answer.tests.items() if why]
    if answer.late:
        lines.append(f"- **{name}**: the tests did not end in time")
    return lines


def _matters(found: Mapping[str, str]) -> bool:
    return found["status"] in ("missing", "limited")
