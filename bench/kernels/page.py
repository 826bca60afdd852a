"""Answers of kernels as the page docs/reference/kernels.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.kernels.cost import MEASURES
from bench.kernels.guest import COSTS, ROOT, SLOW, Answer
from bench.kernels.images import Image
from bench.markdown import paragraphs

TITLE = "# Kernels"
Entry = tuple[str, Image | None, Answer | str]
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
    answers: Sequence[Entry],
    arm: tuple[Image | None, Mapping[str, Any] | str] | None = None,
) -> str:
    """Write the page. answers: name, image (None: the kernel of this machine) and what came of it,
    in words where nothing did; arm: the same of 64-bit Arm, None: it wasn't tried."""
    rows = []
    words = []
    found = {
        f"{name}, {hooks}" if hooks else name: (answer, hooks)
        for name, _, answer in answers
        if isinstance(answer, Answer)
        for hooks in answer.hooks or [""]
    }
    for name, image, answer in answers:
        where = (
            f"Debian {image.source.suite}, {image.version}" if image else "this machine, no guest"
        )
        if isinstance(answer, str):
            rows.append((name, where, "-", "no answer", "-", "-"))
            words.append(f"- **{name}**: {answer}")
            continue
        tests = ", ".join(_passed(answer, hooks) for hooks in answer.hooks) or "not run"
        works = "yes" if answer.works else "**no**"
        runs = ", ".join(f"{date} ({took:,} s)" for date, took in sorted({*answer.runs.values()}))
        rows.append((name, where, answer.release, works, tests, runs))
        words += _words(name, answer)
    head = ("kernel", "from", "release", "programs load", "tests passed", "run (and took)")
    core = [
        (what, *(_cell(*each, begins) for each in found.values())) for what, begins in CORE.items()
    ]
    return (
        paragraphs(
            TITLE,
            f"Written by `make kernels`, wirespan {wirespan}. Each kernel but this "
            "machine's own boots in an emulated guest that shares this machine's files; `wirespan "
            "doctor` loads the programs there, and where it can, the root tests marked `kernels` "
            f"run: the same ones, given {SLOW} times as long in a guest and nothing else, by each "
            "kind of hooks that the kernel has (`wirespan run --hooks`). Links by contexts are "
            "tried with `--keep-capability CAP_SYS_ADMIN` before Linux 6.6, which asks for that.",
            _table(head, rows),
            "## What works",
            _table(("", *found), core),
            "## What hooks cost",
            "One run each, one after the other (`python -m bench.kernels.cost`). "
            "In a guest they are nanoseconds of an emulated processor, to be compared with each "
            "other only.",
            _costs(answers),
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


def _passed(answer: Answer, hooks: str) -> str:
    whys = [why for name, why in answer.tests.items() if name.startswith(f"{hooks} ")]
    return f"{sum(not why for why in whys)} of {len(whys)} by {hooks}"


def _costs(answers: Sequence[Entry]) -> str:
    rows = [
        (name, way, *(f"{measured[key]:,.0f}" if key in measured else "-" for key in MEASURES))
        for name, _, answer in answers
        if isinstance(answer, Answer)
        for way, measured in answer.costs.items()
    ]
    return _table(("kernel", "hooks", *MEASURES.values()), rows) if rows else "Not measured."


def _cell(answer: Answer, hooks: str, begins: str) -> str:
    """What the tests with such names came to, by some hooks."""
    whys = [why for name, why in answer.tests.items() if name.startswith(f"{hooks} {begins}")]
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
            seen = found["seen"].replace(f"{ROOT}/", "")
            lines.append(f"- **{name}**, {check}: {seen}; {found['consequence']}")
    lines += [f"- **{name}**, `{test}`: {why}" for test, why in answer.tests.items() if why]
    for part in answer.unended:
        what = "the measurement of costs" if part == COSTS else f"the tests by {part}"
        lines.append(f"- **{name}**: {what} did not end in the time given, or failed")
    return lines


def _matters(found: Mapping[str, str]) -> bool:
    return found["status"] in ("missing", "limited")
