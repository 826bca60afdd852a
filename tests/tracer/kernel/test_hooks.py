"""Which hooks a kernel has: told from what it knows, refuses, and how it is preempted."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.kernel import hooks

DYNAMIC = "#1 SMP PREEMPT_DYNAMIC Debian"


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Path]:
    """Make a host: files by path, and what its kernel's types know beside the hooks."""

    def make(files: dict[str, str] | None = None, also: str = "", without: str = "") -> Path:
        known = (*hooks.names(), "BPF_FUNC_loop", *also.split())
        known = tuple(name for name in known if name != without)
        types = tmp_path / "sys/kernel/btf/vmlinux"
        types.parent.mkdir(parents=True)
        types.write_bytes(b"\0" + b"\0".join(map(str.encode, known)) + b"\0")
        for path, text in (files or {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return make


def lacking(root: Path, refused: int = errno.EINVAL) -> str:
    return hooks.lacking(root, lambda: refused)


def test_what_the_object_hooks_is_known_by_its_name() -> None:
    names = hooks.names()
    assert {"tcp_recvmsg", "security_socket_sendmsg", "btf_trace_sock_send_length"} <= set(names)
    assert all("/" not in name for name in names)


def test_a_kernel_that_has_all(host: Callable[..., Path]) -> None:
    assert lacking(host({"proc/sys/kernel/version": "#1 SMP Debian"})) == ""


@pytest.mark.parametrize(
    ("refused", "says"), [(errno.EPERM, "refuses"), (errno.ENOSYS, "has no fentry programs")]
)
def test_a_kernel_that_takes_none(host: Callable[..., Path], refused: int, says: str) -> None:
    assert says in lacking(host(), refused)


@pytest.mark.parametrize("name", ["tcp_recvmsg", "btf_trace_sock_send_length"])
def test_what_is_missing_is_named(host: Callable[..., Path], name: str) -> None:
    assert lacking(host(without=name)) == f"this kernel has no {name}"


def test_an_old_kernel(host: Callable[..., Path]) -> None:
    """The object for hooks in functions is not made for it."""
    assert "older than Linux 5.17" in lacking(host(without="BPF_FUNC_loop"))


def test_no_types(tmp_path: Path) -> None:
    assert "can't be read" in lacking(tmp_path)


MODELS = {
    "full, says debugfs": (
        {"sys/kernel/debug/sched/preempt": "none voluntary (full) lazy\n"},
        "full",
    ),
    "voluntary, says debugfs": ({"sys/kernel/debug/sched/preempt": "none (voluntary) full\n"}, ""),
    "by the command line": ({"proc/cmdline": "ro preempt=full quiet\n"}, "full"),
    "voluntary by the command line": ({"proc/cmdline": "preempt=voluntary\n"}, ""),
    "as built": ({"boot/config-6.9": "\nCONFIG_PREEMPT_VOLUNTARY=y\n"}, ""),
    "lazy as built": ({"boot/config-6.9": "\nCONFIG_PREEMPT_LAZY=y\n"}, "unknown"),
    "nothing known": ({}, "unknown"),
}


@pytest.mark.parametrize(("files", "model"), MODELS.values(), ids=MODELS.keys())
def test_how_a_kernel_is_preempted(
    host: Callable[..., Path], files: dict[str, str], model: str
) -> None:
    said = {"proc/sys/kernel/version": DYNAMIC, "proc/sys/kernel/osrelease": "6.9\n", **files}
    root = host(said)
    assert hooks.preemption(root) == model
    assert (f"preempt={model}" in lacking(root)) == bool(model)


@pytest.mark.parametrize("version", ["#1 SMP PREEMPT Debian", "#1 SMP PREEMPT_RT Debian"])
def test_a_kernel_that_is_always_preempted(host: Callable[..., Path], version: str) -> None:
    assert "preempt=full" in lacking(host({"proc/sys/kernel/version": version}))


def test_where_programs_can_forbid_it_any_model_will_do(host: Callable[..., Path]) -> None:
    root = host({"proc/sys/kernel/version": "#1 SMP PREEMPT"}, also=" ".join(hooks._HOLDS))
    assert lacking(root) == ""
