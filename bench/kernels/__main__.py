"""Boot other kernels and see what works there: `make kernels`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.files import save
from bench.kernels import arm64, guest, images, page
from bench.processes import BenchError, ended_by_signals
from tracer.installed import version

PAGE = Path("docs/reference/kernels.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 tracing works on all, 1 not, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    names = [*(source.name for source in images.SOURCES), guest.HERE, images.ARM64.name]
    parser.add_argument("kernel", nargs="*", help=f"only these: {', '.join(names)} (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--load-only", action="store_true", help="run no tests there")
    what.add_argument(
        "--only",
        action="append",
        choices=guest.PARTS,
        help="of the tests only those by these hooks, or costs; may be given again",
    )
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE}")
    parser.add_argument(
        "--kept", action="store_true", help="with what earlier runs came to on the other kernels"
    )
    options = parser.parse_args(arguments)
    if unknown := set(options.kernel) - set(names):
        parser.error(f"no such kernel: {', '.join(sorted(unknown))}")
    chosen = options.kernel or names
    parts = () if options.load_only else options.only or guest.PARTS
    answers: list[page.Entry] = []
    arm = None
    try:
        with ended_by_signals():
            for source in images.SOURCES:
                if source.name in chosen:
                    answers.append(_ask(source, parts))
                elif options.kept and (found := guest.kept(source.name)):
                    answers.append((source.name, images.fetch(source, _say), found))
            if guest.HERE in chosen:
                answers.append((guest.HERE, None, _here(parts)))
            elif options.kept and (found := guest.kept(guest.HERE)):
                answers.append((guest.HERE, None, found))
            if images.ARM64.name in chosen:
                arm = _arm()
            elif options.kept and (said := arm64.kept()):
                arm = images.fetch(images.ARM64, _say), said
    except KeyboardInterrupt:
        return 130
    text = page.page(version(), answers, arm)
    print(text)
    if options.write:
        save(PAGE, text, _say)
    good = [not isinstance(answer, str) and answer.good for _, _, answer in answers]
    if arm:
        good.append(not isinstance(arm[1], str) and arm64.good(arm[1]))
    return 0 if all(good) else 1


def _ask(source: images.Source, parts: Sequence[str]) -> page.Entry:
    image = None
    try:
        image = images.fetch(source, _say)
        _say(f"{source.name}: Linux {image.release} boots")
        return source.name, image, guest.boot(image, parts)
    except BenchError as error:
        return source.name, image, str(error)


def _here(parts: Sequence[str]) -> guest.Answer | str:
    _say(f"{guest.HERE}: this machine, without a guest")
    try:
        return guest.here(parts)
    except BenchError as error:
        return str(error)


def _arm() -> tuple[images.Image | None, dict[str, Any] | str]:
    image = None
    try:
        image = images.fetch(images.ARM64, _say)
        _say(f"{images.ARM64.name}: Linux {image.release} boots")
        return image, arm64.boot(image)
    except BenchError as error:
        return image, str(error)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
