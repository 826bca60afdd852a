"""Boot other kernels and see what works there: `make kernels`."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.files import save
from bench.kernels import guest, images, page
from bench.processes import BenchError, ended_by_signals
from tracer.installed import version

PAGE = Path("docs/reference/kernels.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 tracing works on all, 1 not, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__)
    names = [source.name for source in images.SOURCES]
    parser.add_argument("kernel", nargs="*", help=f"only these: {', '.join(names)} (default: all)")
    parser.add_argument("--load-only", action="store_true", help="run no tests there")
    parser.add_argument("--write", action="store_true", help=f"put the results into {PAGE}")
    options = parser.parse_args(arguments)
    if unknown := set(options.kernel) - set(names):
        parser.error(f"no such kernel: {', '.join(sorted(unknown))}")
    answers = []
    try:
        with ended_by_signals():
            for source in images.SOURCES:
                if not options.kernel or source.name in options.kernel:
                    answers.append(_ask(source, not options.load_only))
    except KeyboardInterrupt:
        return 130
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = page.page(now, version(), answers)
    print(text)
    if options.write:
        save(PAGE, text, _say)
    good = [not isinstance(answer, str) and answer.works for _, _, answer in answers]
    return 0 if all(good) else 1


def _ask(source: images.Source, tests: bool) -> tuple[str, images.Image | None, guest.Answer | str]:
    image = None
    try:
        image = images.fetch(source, _say)
        _say(f"{source.name}: Linux {image.release} boots")
        return source.name, image, guest.boot(image, tests=tests)
    except BenchError as error:
        return source.name, image, str(error)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
