"""The program `wirespan`, also as `python -m tracer`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; returns the exit code."""
    try:
        from tracer import cli
    except KeyboardInterrupt:  # while it is being imported: some 0.1 s
        return 130
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
