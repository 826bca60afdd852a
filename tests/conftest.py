"""When tests that need BPF run, and in which order.

Where BPF cannot be had, tests marked `root` are skipped and say why. In CI (environment
variable CI=true) nothing may be skipped, for any reason: there a skip is a failure.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

# Numbers of capabilities, linux/capability.h.
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39


def effective_capabilities(status: str) -> int:
    """The capability mask in the text of /proc/PID/status."""
    for line in status.splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


@functools.cache
def why_no_bpf() -> str:
    """Why this process cannot load and attach eBPF programs; empty where it can."""
    held = effective_capabilities(Path("/proc/self/status").read_text())
    if not held >> CAP_SYS_ADMIN & 1 and not (held >> CAP_BPF & held >> CAP_PERFMON & 1):
        return "needs root, or CAP_BPF and CAP_PERFMON"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "kernel has no BTF (/sys/kernel/btf/vmlinux)"
    if not Path("/sys/kernel/tracing/events/syscalls").is_dir():
        return "no system call tracepoints (is tracefs mounted on /sys/kernel/tracing?)"
    return ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put tests that use Jaeger last: it may still be under construction.

    With `-m kernels`, of parametrised tests only the sets that the marker names are kept.
    """
    if config.option.markexpr == "kernels":
        items[:] = [item for item in items if chosen_for_kernels(item)]
    items.sort(key=lambda item: "jaeger" in getattr(item, "fixturenames", ()))


def chosen_for_kernels(item: pytest.Item) -> bool:
    mark, call = item.get_closest_marker("kernels"), getattr(item, "callspec", None)
    return mark is not None and (call is None or call.id in mark.args)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and (reason := why_no_bpf()):
        pytest.skip(reason)


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_if_skipped(report)
    return report
