"""How many files this process may have open: programs, maps, links and probes are files too."""

from __future__ import annotations

import resource

from tracer.errors import WirespanError

# What a tracer has open on a host with some runtimes to probe, and some to spare; what it asks
# for where it may have more: each Go program takes a dozen uprobes.
LEAST, WANTED = 256, 16_384


def make_room(least: int = LEAST, wanted: int = WANTED) -> None:
    """Raise this process's limit as far as it may. Raises WirespanError where that is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    room = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if room > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (room, hard))
    if room < least:
        raise WirespanError(
            f"cannot start: this process may have {room} files open, it needs {least}",
            f"raise the limit: ulimit -n {wanted}, or LimitNOFILE={wanted} in a systemd unit",
        )
