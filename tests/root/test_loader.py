"""Loading, configuring, attaching, refusing and leaving nothing behind, in the real kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.root.compile import ROOT, compile_bpf
from tracer.errors import KernelError, LayoutError, UsageError
from tracer.kernel import sys as kernel_sys
from tracer.kernel.filters import Filters, cgroup2_mounts, entries
from tracer.kernel.loader import Kernel, Settings

WRITE, IDENTITY = 1000, 1002
PERCPU_ARRAY = 6  # enum bpf_map_type
_PROG_GET_NEXT_ID, _MAP_GET_NEXT_ID = 11, 12


def ids(command: int) -> set[int]:
    """Every program or map in the kernel."""
    found: set[int] = set()
    last = 0
    while True:
        attributes = kernel_sys._packed("=III", last, 0, 0)
        try:
            kernel_sys._bpf(command, attributes)
        except FileNotFoundError:
            return found
        last = struct.unpack_from("=I", attributes.raw, 4)[0]
        found.add(last)


def bpf_fds() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return [target for target in found if "bpf" in target or "perf_event" in target]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After each test, none of its programs is in the kernel any more."""
    programs = ids(_PROG_GET_NEXT_ID)
    yield
    assert bpf_fds() == []
    # Others on this host may load theirs meanwhile: look for ours by name.
    gone(lambda: (named("enter_getprio") | named("enter_there")) - programs)


def gone(left: Callable[[], set[int]]) -> None:
    """Wait until nothing is left: the kernel frees programs and maps after a grace period."""
    deadline = time.monotonic() + 10
    while found := left():
        assert time.monotonic() < deadline, f"{found} are still there"
        time.sleep(0.01)


def named(name: str) -> set[int]:
    """Ids of the programs in the kernel so named."""
    found = set()
    for number in ids(_PROG_GET_NEXT_ID):
        try:
            fd = kernel_sys._bpf(13, kernel_sys._packed("=III", number, 0, 0))
        except FileNotFoundError:
            continue
        try:
            if kernel_sys.program_info(fd).name == name:
                found.add(number)
        finally:
            os.close(fd)
    return found


@pytest.fixture
def start() -> Iterator[Callable[..., Kernel]]:
    kernels: list[Kernel] = []

    def begin(filters: Filters | None = None, settings: Settings | None = None) -> Kernel:
        kernel = Kernel(compile_bpf("writer"), filters, settings)
        kernels.append(kernel)
        kernel.load()
        return kernel

    yield begin
    for kernel in kernels:
        kernel.close()


def call(operation: int, count: int = 1) -> None:
    ctypes.CDLL(None).getpriority(operation, count)


def test_sizes(start: Callable[..., Kernel]) -> None:
    kernel = start(settings=Settings(ring_bytes=1 << 20, max_connections=100))
    maps = {found.name: found for found in kernel.maps()}
    assert (maps["records"].type, maps["records"].max_entries) == ("ringbuf", 1 << 20)
    assert maps["records"].bytes >= 1 << 20
    assert (maps["conns"].type, maps["conns"].max_entries) == ("hash", 100)
    assert maps["losses"].type == "percpu_array"
    assert kernel.ring.bytes == 1 << 20


def test_declared_sizes_stay(start: Callable[..., Kernel]) -> None:
    maps = {found.name: found.max_entries for found in start().maps()}
    assert maps["conns"] == 4096 and maps["filter_ports"] == 2


def test_programs_and_statistics(start: Callable[..., Kernel]) -> None:
    kernel = start()
    assert [program.attached for program in kernel.programs()] == [False, False]
    kernel.attach()
    fd = kernel_sys.enable_stats()
    try:
        for _ in range(100):
            call(WRITE)
    finally:
        os.close(fd)
    programs = {program.name: program for program in kernel.programs()}
    assert programs.keys() == {"enter_getprio", "exit_getprio"}
    program = programs["enter_getprio"]
    assert program.kind == "tracepoint" and program.attached
    assert program.hook == "tracepoint/syscalls/sys_enter_getpriority"
    # Anything else on this host may call getpriority too.
    assert program.run_count >= 100 and program.run_ns > 0
    call(WRITE)
    again = {program.name: program for program in kernel.programs()}
    assert again["enter_getprio"].run_count == program.run_count


def test_counters_start_at_nothing(start: Callable[..., Kernel]) -> None:
    kernel = start()
    assert set(kernel.losses().values()) == {0}
    assert kernel.losses().keys() == kernel.layout.members("flow_loss", "FLOW_LOSS_").keys()
    assert "FLOW_COUNTS" not in kernel.counts()


def test_counters_add_up_over_cpus(start: Callable[..., Kernel]) -> None:
    kernel = start(settings=Settings(ring_bytes=1 << 20))
    kernel.attach()
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            call(WRITE, 3)
    finally:
        os.sched_setaffinity(0, allowed)
    assert kernel.counts()["FLOW_COUNT_EXCHANGES"] == 3 * len(allowed)


def test_filters_are_in_the_kernel(start: Callable[..., Kernel]) -> None:
    filters = Filters(
        ports=(80, 81, 82), exclude_ports=(82,), pids=(1,), exclude_exes=("nginx", sys.executable)
    )
    kernel = start(filters)
    expected = entries(filters)
    sizes = {found.name: found.max_entries for found in kernel.maps()}
    assert sizes["filter_ports"] == 3  # grown, for the object declares room for two
    assert sizes["filter_pids"] == 2
    for name, keys in expected.maps.items():
        fd = kernel._bpf[name].get_fd()
        for key, value in keys.items():
            assert kernel_sys.map_lookup(fd, key, 1) == bytes([value])
    with pytest.raises(FileNotFoundError):
        kernel_sys.map_lookup(kernel._bpf["filter_ports"].get_fd(), b"\x53\0", 1)


def test_knobs_and_keys_are_what_the_kernel_sees(start: Callable[..., Kernel]) -> None:
    # The kernel itself tells the file and cgroup of this process: do our keys name the same?
    mounts = cgroup2_mounts()
    own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].split("\n")[0]
    cgroups = (own,) if mounts else ()
    filters = Filters(exes=(sys.executable,), cgroups=cgroups, exclude_ports=(1,))
    kernel = start(filters, Settings(knobs={"cfg_mark": 77}))
    kernel.attach()
    call(IDENTITY)
    with kernel.ring.batch(1) as records:
        [record] = records.copy()
    expected = entries(filters)
    key = struct.pack("=QII", record["conn_id"], record["netns"], 0)
    assert expected.maps["filter_exe_files"] == {key: 1}
    if mounts:
        assert expected.maps["filter_cgroups"] == {struct.pack("=Q", record["cgroup_id"]): 1}
    assert record["flags"] == expected.mask == 16 | 2 | (64 if mounts else 0)
    assert record["kind"] == 77


def test_knobs_that_do_not_exist_or_fit(start: Callable[..., Kernel]) -> None:
    with pytest.raises(LayoutError, match="no variable cfg_absent"):
        start(settings=Settings(knobs={"cfg_absent": 1}))
    with pytest.raises(UsageError, match="256 does not fit cfg_mark"):
        start(settings=Settings(knobs={"cfg_mark": 256}))


def test_nothing_runs_before_attach_and_after_close(start: Callable[..., Kernel]) -> None:
    kernel = start()
    call(WRITE)
    assert kernel.ring.fill() == 0.0
    kernel.attach()
    call(WRITE)
    assert kernel.ring.fill() > 0.0
    kernel.close()
    call(WRITE)
    kernel.close()
    assert bpf_fds() == []


def test_close_frees_every_map(start: Callable[..., Kernel]) -> None:
    kernel = start()
    kernel.attach()
    own = set()
    for found in kernel.maps():
        info = Path(f"/proc/self/fdinfo/{kernel._bpf[found.name].get_fd()}").read_text()
        own.add(int(info.rpartition("map_id:")[2].split()[0]))
    assert len(own) == len(kernel.maps()) and own <= ids(_MAP_GET_NEXT_ID)
    kernel.close()
    gone(lambda: own & ids(_MAP_GET_NEXT_ID))


def test_two_at_once(start: Callable[..., Kernel]) -> None:
    first, second = start(), start()
    first.attach()
    second.attach()
    call(WRITE, 3)
    for kernel in (first, second):
        with kernel.ring.batch(10) as records:
            assert len(records) == 3
    first.close()
    call(WRITE, 2)
    with second.ring.batch(10) as records:
        assert len(records) == 2


def test_verifier_rejection_names_its_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    kernel = Kernel(compile_bpf("rejected"), settings=Settings(log_directory=logs))
    with pytest.raises(KernelError, match="the verifier rejected enter_wild") as caught:
        kernel.load()
    [log] = logs.iterdir()
    assert str(log) in str(caught.value)
    assert "invalid mem access" in log.read_text()
    kernel.close()
    assert capfd.readouterr() == ("", "")


def test_log_where_the_directory_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = Settings(log_directory=tmp_path / "file")
    with pytest.raises(KernelError) as caught:
        Kernel(compile_bpf("rejected"), settings=settings).load()
    log = Path(str(caught.value).rpartition(" ")[2])
    assert log.name.startswith("wirespan-load-")
    assert "invalid mem access" in log.read_text()
    log.unlink()


def test_an_event_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with Kernel(compile_bpf("unattachable")) as kernel:
        kernel.load()
        with pytest.raises(KernelError) as caught:
            kernel.attach()
        message = str(caught.value)
        assert "cannot attach enter_nowhere to tracepoint/syscalls/sys_enter_nowhere" in message
        assert "no such event" in message and "nothing is attached" in message
        assert "tracefs" in caught.value.hint
        assert not any(program.attached for program in kernel.programs())
    assert capfd.readouterr() == ("", "")


def test_too_large_for_memory(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(max_connections=1 << 22, log_directory=tmp_path)
    object_path = tmp_path / "writer.bpf.o"
    object_path.write_bytes(compile_bpf("writer").read_bytes())
    kernel = Kernel(object_path, settings=settings)
    # A size that no kernel allows, where options can't ask for one.
    object.__setattr__(kernel.settings, "max_connections", (1 << 31) + 1)
    with pytest.raises(KernelError, match="cannot load programs: ") as caught:
        kernel.load()
    assert str(tmp_path) in caught.value.hint
    kernel.close()
    assert capfd.readouterr() == ("", "")


def unprivileged(code: str, *capabilities: str) -> subprocess.CompletedProcess[str]:
    """Run Python as nobody, with these capabilities only."""
    assert shutil.which("setpriv"), "no setpriv (util-linux)"
    wanted = ",".join(f"+{name}" for name in capabilities)
    command = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    if wanted:
        command += [f"--inh-caps={wanted}", f"--ambient-caps={wanted}"]
    return subprocess.run(
        [*command, sys.executable, "-B", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": "/tmp"},
    )


LOAD = """
import sys
from tracer.errors import WirespanError
from tracer.kernel.loader import Kernel
try:
    with Kernel({path!r}) as kernel:
        kernel.load()
        kernel.attach()
        print("attached")
except WirespanError as error:
    print(error, "|", error.hint)
"""


@pytest.fixture
def readable_object() -> str:
    path = compile_bpf("writer")
    path.chmod(0o644)
    return str(path)


def test_without_rights(readable_object: str) -> None:
    done = unprivileged(LOAD.format(path=readable_object))
    assert done.stderr == ""
    assert "this user may not load eBPF programs | run as root" in done.stdout


def test_capabilities_but_no_way_into_tracefs(readable_object: str) -> None:
    if os.stat("/sys/kernel/tracing").st_mode & 0o007:
        pytest.skip("tracefs is open to everyone on this host")
    done = unprivileged(LOAD.format(path=readable_object), "bpf", "perfmon")
    assert done.stderr == ""
    assert "cannot attach enter_getprio" in done.stdout
    assert "CAP_DAC_READ_SEARCH" in done.stdout


def test_capabilities_suffice(readable_object: str) -> None:
    done = unprivileged(LOAD.format(path=readable_object), "bpf", "perfmon", "dac_read_search")
    assert (done.stdout, done.stderr) == ("attached\n", "")


@pytest.mark.parametrize("refusal", [None, errno.EINVAL, 524])
def test_counters_are_sums_over_cpus_by_one_call_or_by_many(
    monkeypatch: pytest.MonkeyPatch, refusal: int | None
) -> None:
    """An older kernel refuses to look up in batches; the numbers are the same."""
    if refusal is not None:

        def refuse(*arguments: object) -> bytes:
            raise OSError(refusal, "no batches")

        monkeypatch.setattr(kernel_sys, "_lookup_batch", refuse)
    cpus = kernel_sys.possible_cpus()
    fd = kernel_sys.map_create(PERCPU_ARRAY, 4, 8, 5)
    try:
        for index in range(5):
            values = [index * 100 + cpu for cpu in range(cpus)]
            kernel_sys.map_update(fd, struct.pack("=I", index), struct.pack(f"={cpus}Q", *values))
        expected = [sum(index * 100 + cpu for cpu in range(cpus)) for index in range(5)]
        assert kernel_sys.percpu_sums(fd, 5, cpus) == expected
        assert kernel_sys.percpu_sums(fd, 3, cpus) == expected[:3]
    finally:
        os.close(fd)


def test_a_descriptor_that_is_none_is_no_lack_of_batches() -> None:
    with pytest.raises(OSError) as refusal:
        kernel_sys.percpu_sums(1 << 20, 1, kernel_sys.possible_cpus())
    assert refusal.value.errno == errno.EBADF
