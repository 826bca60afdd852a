"""Answers of kernels as the page docs/reference/kernels.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.kernels.guest import Answer
from bench.kernels.images import Image
from bench.markdown import paragraphs

TITLE = "# Kernels"


def page(
    date: str, wirespan: str, answers: Sequence[tuple[str, Image | None, Answer | str]]
) -> str:
    """Write the page. answers: name, image (None: the kernel of this machine) and what came of it,
    in words where nothing did."""
    rows = []
    words = []
    for name, image, answer in answers:
        where = f"Debian {image.source.suite}, {image.version}" if image else "this machine"
        if isinstance(answer, str):
            rows.append((name, where, "-", "no answer", "-"))
            words.append(f"- **{name}**: {answer}")
            continue
        passed = sum(not why for why in answer.tests.values())
        tests = f"{passed} of {len(answer.tests)}" if answer.tests else "not run"
        works = "yes" if answer.works else "**no**"
        rows.append((name, where, answer.release, works, tests))
        words += _words(name, answer)
    head = ("kernel", "from", "release", "programs load", "tests passed")
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return (
        paragraphs(
            TITLE,
            f"Written by `make kernels`, {date}, wirespan {wirespan}. Each kernel boots in an "
            "emulated guest that shares this machine's files; `wirespan doctor` loads the programs "
            "there, and the root tests marked `kernels` run where it could.",
            "\n".join(lines),
            "## What is missing, and why",
            "\n".join(words) or "Nothing.",
        )
        + "\n"
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _words(name: str, answer: Answer) -> list[str]:
    lines = []
    for check, found in answer.checks.items():
        if _matters(found):
            lines.append(f"- **{name}**, {check}: {found['seen']}; {found['consequence']}")
    lines += [f"- **{name}**, `{test}`: {why}" for test, why in answer.tests.items() if why]
    return lines


def _matters(found: Mapping[str, str]) -> bool:
    return found["status"] in ("missing", "limited")
