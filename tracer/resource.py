"""Where a process runs: the host, its cgroup, its container.

Attribute names are those of the OpenTelemetry resource semantic conventions. Spans come from no
SDK that runs in the traced process, so they carry `telemetry.distro.*` (the instrumentation
agent) and no `telemetry.sdk.*`, which would claim an SDK and its language for that process.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from tracer.errors import UsageError
from tracer.installed import version
from tracer.kernel import sys
from tracer.spans import AttributeValue

Attributes = tuple[tuple[str, AttributeValue], ...]

DISTRIBUTION = "wirespan"

# What names one service. In the tracer's own environment it names the tracer, not what it traces.
_ONE_SERVICE = ("service.name", "service.version", "service.instance.id")

# host.arch has a list of its own; what is not on it is passed on as the kernel calls it.
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm32",
    "armv7l": "arm32",
    "i386": "x86",
    "i686": "x86",
    "ppc64le": "ppc64",
}

_MAX_CONFIG_BYTES = 1 << 20
_MACHINE_IDS = ("etc/machine-id", "var/lib/dbus/machine-id")


def parse_attributes(text: str) -> dict[str, str]:
    """Parse the value of OTEL_RESOURCE_ATTRIBUTES.

    Raises ValueError, which says why, when any part of it is wrong: a value that cannot be read
    whole is to be discarded whole.
    Source: OpenTelemetry specification, Resource SDK, "Specifying resource information via an
    environment variable".
    """
    attributes = {}
    for member in text.split(","):
        if not member.strip():
            continue
        key, equals, value = member.partition("=")
        key = _percent_decode(key.strip())
        if not equals or not key:
            raise ValueError(f"{member.strip()!r} is not key=value")
        attributes[key] = _percent_decode(value.strip())
    return attributes


def _percent_decode(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError(f"{text!r} has a % that encodes nothing")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{text!r} does not encode UTF-8") from error


def host_attributes(environ: Mapping[str, str], root: str = "/") -> Attributes:
    """Return what all spans of this host share.

    Attributes in `environ`'s OTEL_RESOURCE_ATTRIBUTES come with every span and win over what is
    detected, except those that name a service.
    Raises UsageError when that variable cannot be read.
    """
    attributes = _detected(root)
    attributes.update(_own_attributes(environ))
    for key in _ONE_SERVICE:
        attributes.pop(key, None)
    return tuple(attributes.items())


def tracer_attributes(environ: Mapping[str, str], root: str = "/") -> Attributes:
    """Return the resource of the tracer itself, for its own metrics.

    Its service is called `wirespan` unless `environ` has OTEL_SERVICE_NAME, or service.name in
    OTEL_RESOURCE_ATTRIBUTES.
    Raises UsageError when that variable cannot be read.
    """
    attributes: dict[str, AttributeValue] = {"service.name": DISTRIBUTION}
    attributes["service.version"] = version()
    attributes.update(_detected(root))
    attributes.update(_own_attributes(environ))
    if name := environ.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    return tuple(attributes.items())


def _own_attributes(environ: Mapping[str, str]) -> dict[str, str]:
    try:
        return parse_attributes(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    except ValueError as error:
        raise UsageError(
            f"cannot read OTEL_RESOURCE_ATTRIBUTES: {error}",
            "write key=value,key=value; percent-encode , = and % within a key or value",
        ) from error


def _detected(root: str) -> dict[str, AttributeValue]:
    kernel = os.uname()
    attributes: dict[str, AttributeValue] = {"host.name": kernel.nodename}
    for path in _MACHINE_IDS:
        if machine_id := read_file(os.path.join(root, path), 64).strip().decode("ascii", "replace"):
            attributes["host.id"] = machine_id
            break
    attributes["host.arch"] = _ARCHITECTURES.get(kernel.machine, kernel.machine)
    attributes["os.type"] = kernel.sysname.lower()
    attributes["os.version"] = kernel.release
    attributes["telemetry.distro.name"] = DISTRIBUTION
    attributes["telemetry.distro.version"] = version()
    return attributes


def read_file(path: str, limit: int, dir_fd: int | None = None) -> bytes:
    """Return at most `limit` bytes of a regular file, b"" where that is not possible.

    It never waits: a FIFO or a device in a regular file's place counts as not there.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, dir_fd=dir_fd)
    except (OSError, ValueError):
        return b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return b""
        parts = []
        while limit > 0 and (part := os.read(fd, limit)):
            parts.append(part)
            limit -= len(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(fd)


# --- /proc

_MAX_TEXT_BYTES = 16 << 10
_MAX_ENVIRONMENT_BYTES = 256 << 10
_MAX_ATTRIBUTES_BYTES = 8 << 10
_MAX_PACKAGE_BYTES = 64 << 10
_MAX_PACKAGE_LEVELS = 4

# HOSTNAME is a pod's name, and of use only where there is a pod.
_ENVIRONMENT = (b"OTEL_SERVICE_NAME", b"OTEL_RESOURCE_ATTRIBUTES", b"HOSTNAME")


def declared_attributes(text: str) -> dict[str, str]:
    """Parse another process's OTEL_RESOURCE_ATTRIBUTES, {} if it is wrong or beyond 8 KiB."""
    try:
        return parse_attributes(text) if len(text) <= _MAX_ATTRIBUTES_BYTES else {}
    except ValueError:
        return {}


class ProcDirectory:
    """/proc/PID, held open; whatever cannot be read is empty."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        name = path.rstrip("/").rpartition("/")[2]
        self._pid = int(name) if name.isdecimal() else 0
        # After the name, which may hold anything: state, ppid, ... (proc_pid_stat(5)).
        self._stat = self.text("stat").rpartition(")")[2].split()

    def __enter__(self) -> ProcDirectory:
        return self

    def __exit__(self, *error: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def text(self, name: str) -> str:
        return self._bytes(name, _MAX_TEXT_BYTES).decode("utf-8", "replace")

    def _bytes(self, name: str, limit: int) -> bytes:
        return read_file(name, limit, self._fd) if self._fd >= 0 else b""

    def executable(self) -> str:
        """Return the path of the executable, also if that file has been deleted."""
        return self.link("exe").removesuffix(" (deleted)")

    def alias(self, exe: str, command: str) -> str:
        """Return the path of a link to `exe` if the command called it by that, else `exe`."""
        word = command.partition(" ")[0]
        path = word if word[:1] == "/" else f"{exe.rpartition('/')[0]}/{word.rpartition('/')[2]}"
        try:
            files = [os.stat(name, dir_fd=self._fd) for name in (f"root{path}", "exe")]
        except (OSError, ValueError):
            return exe
        return path if os.path.samestat(*files) else exe

    def link(self, name: str) -> str:
        try:
            target = os.readlink(name, dir_fd=self._fd) if self._fd >= 0 else ""
        except OSError:
            return ""
        return target.encode("utf-8", "surrogateescape").decode("utf-8", "replace")

    def start_ticks(self) -> int:
        """Return field 22 of stat, in clock ticks since boot; -1 if there is none."""
        return int(self._stat[19]) if len(self._stat) > 19 else -1

    def parent(self) -> int:
        return int(self._stat[1]) if len(self._stat) > 1 else 0

    def arguments(self) -> list[str]:
        return [word for word in self.text("cmdline").split("\0") if word]

    def environment(self) -> dict[str, str]:
        """Return the few variables that are wanted; no other is kept."""
        found = {}
        for entry in self._environment().split(b"\0"):
            name, equals, value = entry.partition(b"=")
            if equals and name in _ENVIRONMENT:
                found[name.decode()] = value.decode("utf-8", "replace").strip()
        return found

    def _environment(self) -> bytes:
        """Return it as it was at exec: from a file that is its owner's alone, or from memory."""
        raw = self._bytes("environ", _MAX_ENVIRONMENT_BYTES)
        if raw or len(self._stat) < 49:
            return raw
        # proc_pid_stat(5): env_start and env_end, fields 50 and 51; 0 where not for us.
        start, end = int(self._stat[47]), int(self._stat[48])
        try:
            return sys.read_process(self._pid, start, min(end - start, _MAX_ENVIRONMENT_BYTES))
        except OSError:
            return b""

    def package(self, directory: str) -> str:
        """Return the name in the nearest package.json, seen through the process's own root."""
        for _ in range(_MAX_PACKAGE_LEVELS):
            if not directory.startswith("/"):
                break
            try:
                manifest = json.loads(
                    self._bytes(f"root{directory}/package.json", _MAX_PACKAGE_BYTES) or b"null"
                )
            except (ValueError, RecursionError):
                manifest = None
            name = manifest.get("name") if isinstance(manifest, dict) else None
            if isinstance(name, str) and name:
                return name.rpartition("/")[2]
            directory = os.path.dirname(directory) if directory != "/" else ""
        return ""


class Users:
    """Names of this host's users, read from passwd(5) again when that has changed.

    Not through the name service switch: a directory server that is slow would stop tracing.
    """

    def __init__(self, path: str = "/etc/passwd") -> None:
        self._path = path
        self._changed_ns = -1
        self._names: dict[str, str] = {}

    def name(self, uid: str) -> str:
        """Return the name of a numeric user id, "" where passwd has none."""
        try:
            changed_ns = os.stat(self._path).st_mtime_ns
        except OSError:
            changed_ns = 0
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns
            lines = read_file(self._path, _MAX_CONFIG_BYTES).decode("utf-8", "replace").splitlines()
            entries = [line.split(":") for line in reversed(lines) if line.count(":") >= 6]
            self._names = {entry[2]: entry[0] for entry in entries}
        return self._names.get(uid, "")


# --- cgroups


@dataclass(frozen=True, slots=True)
class Placement:
    """What a process's cgroup says about it; "" is not known or none.

    unit: systemd service, without `.service`, instance and escapes.
    container_id: as the runtime gave it, mostly 64 hex digits.
    container_name: only where the cgroup is named after it (LXC, systemd-nspawn).
    runtime: `container.runtime.name`.
    pod_uid: UID of the Kubernetes pod.
    """

    unit: str = ""
    container_id: str = ""
    container_name: str = ""
    runtime: str = ""
    pod_uid: str = ""


_CONTAINER = re.compile(
    r"(?:^|(?P<owner>[a-z][a-z-]*)[-:])(?P<id>[0-9a-f]{64})(?:\.scope|\.service)?$"
)
_ECS_CONTAINER = re.compile(r"[0-9a-f]{32}-\d{6,}")
_LXC = re.compile(r"/lxc(?:\.payload)?[./]([^/]+)")
_NSPAWN = re.compile(r"/systemd-nspawn@([^/]+)\.service/payload(?:/|$)")
_POD = re.compile(
    r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})"
    r"(?:\.slice|[/:]|$)"
)
_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
}

# Units whose processes are other people's: what they start is not what they are.
_HOSTING_UNITS = re.compile(
    r"user|ssh|sshd|(?:serial-|console-|container-)?getty|autovt|display-manager|gdm3?|lightdm|sddm"
    r"|systemd-nspawn|systemd-logind|lxc(?:-.*)?|lxd|incus(?:-.*)?|libvirtd|virt.*d"
    r"|docker|dockerd|containerd|podman(?:-.*)?|crio|cri-o|kubelet|k3s(?:-.*)?|k0s.*|rke2-.*|nomad"
    r"|snap\.(?:docker|lxd|microk8s)\..*"
    r"|crond?|cronie|anacron|atd|rc-local|cloud-(?:init|final|config).*|google-startup-scripts"
    r"|supervisord?|pm2-.*|circusd?|runit|runsvdir|s6.*|xinetd|inetd|openbsd-inetd"
    r"|gitlab-runner|actions\.runner\..*|github-runner.*|buildkite-agent|jenkins-agent|woodpecker-.*"
    r"|teamcity-agent|azagent.*|vsts\.agent\..*|tmux.*|screen|emergency|rescue|debug-shell"
    r"|run-[ru].*|run-p\d+-i\d+|app-.*|dbus-:.*|dbus(?:-broker)?"
)


def placement(cgroup: str) -> Placement:
    """Read the text of /proc/PID/cgroup.

    Of the hierarchies, the unified one counts first, then systemd's own, then version 1
    controllers; the first that says anything is taken.
    Source: cgroups(7), "/proc files"; systemd.unit(5) for names of units.
    """
    lines = [line.split(":", 2) for line in cgroup.splitlines() if line.count(":") >= 2]
    lines.sort(key=lambda line: 0 if line[0] == "0" else 1 if line[1] == "name=systemd" else 2)
    found = (_placement_of(path) for _, _, path in lines)
    return next((place for place in found if place != Placement()), Placement())


def _placement_of(path: str) -> Placement:
    unit = container_id = container_name = runtime = ""
    previous = ""
    for segment in path.split("/"):
        if match := _CONTAINER.search(segment):
            owner = match["owner"] or previous
            if not owner.endswith("conmon"):
                container_id, runtime = match["id"], _RUNTIMES.get(owner, "")
        elif "/ecs/" in path and _ECS_CONTAINER.fullmatch(segment):
            container_id = segment
        elif segment.endswith(".service"):
            unit = unit_name(segment)
        previous = segment
    for pattern, name in ((_LXC, "lxc"), (_NSPAWN, "systemd-nspawn")):
        if not container_id and (match := pattern.search(path)):
            container_name, runtime = match[1], name
    pod = _POD.search(path)
    return Placement(
        unit, container_id, container_name, runtime, pod[1].replace("_", "-") if pod else ""
    )


def unit_name(unit: str) -> str:
    r"""Return what a systemd service is called, "" if it merely hosts what others start.

    `nginx.service` is nginx, all instances of `worker@.service` are worker, `\x2d` is `-`.
    """
    name = unit.removesuffix(".service").partition("@")[0]
    name = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)
    return "" if _HOSTING_UNITS.fullmatch(name) else name


# --- containers

_OCI_BUNDLES = (
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{id}/config.json",
    "run/containers/storage/overlay-containers/{id}/userdata/config.json",
    "var/lib/containers/storage/overlay-containers/{id}/userdata/config.json",
)
_DOCKER_CONFIG = "var/lib/docker/containers/{id}/config.v2.json"
_PODMAN_INDEX = "var/lib/containers/storage/overlay-containers/containers.json"

_DOCKER_LABELS = ("com.docker.compose.service", "com.docker.swarm.service.name")

# Annotations of an OCI bundle: containerd's CRI plugin, then CRI-O.
_ANNOTATIONS = {
    "k8s.pod.name": ("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    "k8s.namespace.name": ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
    "k8s.container.name": ("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
}

# Names that Kubernetes makes up draw on letters and digits that spell no words.
_GENERATED = "[bcdfghjklmnpqrstvwxz2456789]"
_POD_SUFFIX = re.compile(
    rf"(?:-{_GENERATED}{{6,10}}-{_GENERATED}{{5}}"  # Deployment: replica set, pod
    rf"|-\d{{8,10}}-{_GENERATED}{{5}}"  # CronJob: minute, pod
    rf"|-{_GENERATED}{{5}}"  # DaemonSet, Job, ReplicaSet
    r"|-\d{1,4})$"  # StatefulSet: ordinal
)


def workload_name(pod: str) -> str:
    """Return the name of what a Kubernetes pod is a replica of, as far as its name tells.

    A service's name has to be the same for all its instances.
    """
    match = _POD_SUFFIX.search(pod, 1)
    return pod[: match.start()] if match else pod


@dataclass(frozen=True, slots=True)
class Container:
    """What is known about a container by name.

    service: what a service that runs in it is best called, "" if nothing tells.
    attributes: container.name and k8s.* names, those that are known.
    """

    service: str
    attributes: Mapping[str, str]


_UNKNOWN = Container("", {})


class Containers:
    """What container runtimes have written down about their containers, by container id.

    Only names are taken from those files; they hold environment variables as well.
    """

    def __init__(self, root: str = "/", capacity: int = 1024) -> None:
        self._root = root
        self._cached = lru_cache(capacity)(self._find)

    def find(self, container_id: str) -> Container:
        """Look for the files of containerd, CRI-O, Docker and Podman about a container."""
        return self._cached(container_id)

    def _find(self, container_id: str) -> Container:
        for template in _OCI_BUNDLES:
            annotations = self._load(template, container_id).get("annotations")
            if isinstance(annotations, dict) and (names := _kubernetes_names(annotations)):
                return Container(workload_name(names.get("k8s.pod.name", "")), names)
        docker = self._load(_DOCKER_CONFIG, container_id)
        config = docker.get("Config")
        labels = config.get("Labels") if isinstance(config, dict) else None
        name = _text(docker.get("Name")).strip("/")
        if name:
            known = labels if isinstance(labels, dict) else {}
            services = (_text(known.get(label)) for label in _DOCKER_LABELS)
            return Container(next(filter(None, services), name), {"container.name": name})
        for entry in self._load(_PODMAN_INDEX, container_id).get("", ()):
            if isinstance(entry, dict) and entry.get("id") == container_id:
                listed = entry.get("names")
                if isinstance(listed, list) and listed and (name := _text(listed[0])):
                    return Container(name, {"container.name": name})
        return _UNKNOWN

    def _load(self, template: str, container_id: str) -> dict[str, Any]:
        """Read a JSON object; a list comes as the member "" of one, what is amiss as {}."""
        path = os.path.join(self._root, template.format(id=container_id))
        try:
            value = json.loads(read_file(path, _MAX_CONFIG_BYTES) or b"{}")
        except (ValueError, RecursionError):
            return {}
        if isinstance(value, list):
            return {"": value}
        return value if isinstance(value, dict) else {}


def _kubernetes_names(annotations: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: name
        for key, aliases in _ANNOTATIONS.items()
        for alias in aliases
        if (name := _text(annotations.get(alias)))
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
