"""The command `wirespan`: arguments in, exit code out.

What a command needs is imported when it runs: `--help` must not wait for numpy and gRPC,
and a tracer must not carry what it does not use.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence

from collector.commands import QueryOptions
from collector.options import CollectOptions
from tracer.errors import WirespanError
from tracer.options import (
    DoctorOptions,
    Options,
    RunOptions,
    StatusOptions,
    TailOptions,
    parse,
)
from tracer.replay.options import ReplayOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    # Closed by whoever started it: what would be written there is not wanted.
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        code = _dispatch(parse(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except WirespanError as error:
        report(error)
        return error.exit_code
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more while it exits.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        report(WirespanError(f"cannot write to standard output: {error.strerror}"))
        return 1
    except KeyboardInterrupt:
        return 130  # as a shell reports SIGINT


def report(error: WirespanError) -> None:
    """Print what failed and what to do on standard error."""
    print(f"wirespan: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def _dispatch(options: Options) -> int:
    match options:
        case RunOptions():
            from tracer import startup
            from tracer.kernel import memory

            # Until the agent handles it: what is in temporary files shall go.
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

            memory.keep_small()
            # First: what the agent imports starts threads, which would keep their rights.
            taken = startup.begin(options)
            from tracer import agent

            return agent.run(options, taken)
        case ReplayOptions():
            from tracer.replay import command

            return command.run(options)
        case CollectOptions():
            # gRPC's library prints a line for each bad header that anybody sends.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
            from collector import command as collecting

            return collecting.collect(options)
        case QueryOptions():
            from collector import commands

            return commands.run(options)
        case StatusOptions():
            from tracer import client

            return client.status(options.socket, options.json)
        case TailOptions():
            from tracer import client

            return client.tail(options.socket, options.filter, options.output)
        case DoctorOptions():
            from tracer.doctor import doctor
            from tracer.installed import fitting

            return doctor(fitting(), options.json, sys.stdout)
        case _:
            from tracer.installed import version

            print(f"wirespan {version()}")
            return 0


if __name__ == "__main__":
    sys.exit(main())
