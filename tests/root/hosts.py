"""Hosts made of network namespaces on a bridge, each with a cgroup for what runs on it.

    a 10.231.0.11 ─┐
    b 10.231.0.12 ─┼─ bridge (10.231.0.1) in a namespace of its own, the hub
    c 10.231.0.13 ─┘

All share one kernel. A tracer of one host keeps to that host's cgroup.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.root.harness import ROOT, WORKLOADS, Process, run, wait_until, wirespan_command
from tests.root.test_e2e_jaeger import Jaeger

NAMES = ("a", "b", "c")
HUB = "10.231.0.1"
ADDRESS = {name: f"10.231.0.{11 + n}" for n, name in enumerate(NAMES)}
# Addresses that nobody has: the hub knows who is meant.
VIRTUAL = {name: f"10.231.9.{11 + n}" for n, name in enumerate(NAMES)}
PORT = 8080

NAT = """
table ip wirespan_test {{
    chain before {{
        type nat hook prerouting priority dstnat;
        {rules}
    }}
    chain after {{
        type nat hook postrouting priority srcnat;
        ct status dnat masquerade
    }}
}}
"""


def need(*commands: str) -> None:
    """Skip the test where a command is missing."""
    for command in commands:
        if not shutil.which(command):
            pytest.skip(f"{command} is not installed (see scripts/packages.sh)")


class Hosts:
    """The namespaces, the bridge, the cgroups, and every process started on them."""

    def __init__(self, directory: Path) -> None:
        need("ip", "nsenter")
        self.directory = directory
        self._tag = f"ws{os.getpid()}"
        self._cgroups = {name: _cgroup2() / f"{self._tag}-{name}" for name in NAMES}
        self._processes: list[Process] = []
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        hub = self._namespace("hub")
        for namespace in (hub, *map(self._namespace, NAMES)):
            run(["ip", "netns", "add", namespace])
            run(["ip", "-n", namespace, "link", "set", "lo", "up"])
        run(["ip", "-n", hub, "link", "add", "bridge", "type", "bridge"])
        run(["ip", "-n", hub, "address", "add", f"{HUB}/24", "dev", "bridge"])
        run(["ip", "-n", hub, "link", "set", "bridge", "up"])
        for name in NAMES:
            inside = self._namespace(name)
            run(["ip", "-n", hub, "link", "add", f"to-{name}", "type", "veth",
                 "peer", "name", "eth0", "netns", inside])  # fmt: skip
            run(["ip", "-n", hub, "link", "set", f"to-{name}", "master", "bridge", "up"])
            run(["ip", "-n", inside, "address", "add", f"{ADDRESS[name]}/24", "dev", "eth0"])
            run(["ip", "-n", inside, "link", "set", "eth0", "up"])
            run(["ip", "-n", inside, "route", "add", "default", "via", HUB])
            self._cgroups[name].mkdir()

    def translate(self) -> None:
        """Let the hub pass on what is sent to VIRTUAL addresses: DNAT, and SNAT to its own."""
        need("nft")
        self.run("hub", ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        rules = "; ".join(f"ip daddr {VIRTUAL[name]} dnat to {ADDRESS[name]}" for name in NAMES)
        self.run("hub", ["nft", "-f", "-"], input=NAT.format(rules=rules))

    def run(self, name: str, argv: Sequence[str | Path], input: str | None = None) -> str:
        """Run a short command on a host; returns its output."""
        done = subprocess.run(
            [*self._enter(name), *map(str, argv)],
            input=input, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout

    def start(
        self,
        name: str,
        log: str,
        argv: Sequence[str | Path],
        env: Mapping[str, str] | None = None,
        traced: bool = False,
    ) -> Process:
        """Start a program on a host, in its cgroup if it is to be traced."""
        words: list[str | Path] = [*self._enter(name), *argv]
        if traced:
            script = f'echo $$ > "{self._cgroups[name]}/cgroup.procs" && exec "$@"'
            words = ["sh", "-c", script, "sh", *words]
        process = Process(words, self.directory / f"{log}.log", env=env, without="OTEL_", cwd=ROOT)
        self._processes.append(process)
        return process

    def serve(self, name: str, after: str = "") -> Process:
        """Start a service of the chain; after: the address of the next one."""
        argv: list[str | Path] = [
            sys.executable,
            WORKLOADS / "hop.py",
            "serve",
            f"{ADDRESS[name]}:{PORT}",
        ]
        if after:
            argv.append(f"{after}:{PORT}")
        env = {"OTEL_SERVICE_NAME": f"service-{name}"}
        service = self.start(name, f"service-{name}", argv, env, traced=True)
        service.wait_for(lambda: "ready" in service.said(), f"the service of {name} listens")
        return service

    def load(
        self, prefix: str, count: int, connections: int, rate: float = 0, wait: bool = True
    ) -> Process:
        """Send requests from a to the service of a."""
        argv: list[str | Path] = [
            sys.executable, WORKLOADS / "hop.py", "load", f"{ADDRESS['a']}:{PORT}", prefix,
            str(count), str(connections), str(rate),
        ]  # fmt: skip
        log = f"load{prefix.replace('/', '-')}"
        load = self.start("a", log, argv, {"OTEL_SERVICE_NAME": "load"}, traced=True)
        if wait:
            finish(load)
        return load

    def trace(self, name: str, endpoint: str, env: Mapping[str, str] | None = None) -> Process:
        """Start a tracer of the host's cgroup; returns when it is ready."""
        number = sum(f"tracer-{name}" in process.log.name for process in self._processes)
        ready = self.directory / f"tracer-{name}-{number}.ready"
        argv: list[str | Path] = [
            *wirespan_command(), "run", "--output", "none", "--stitch", "collector",
            "--cgroup", f"/{self._cgroups[name].name}", "--otlp-endpoint", endpoint,
            "--otlp-protocol", "grpc", "--ready-file", ready,
            "--control-socket", self.directory / f"{name}.sock",
        ]  # fmt: skip
        own = {"OTEL_RESOURCE_ATTRIBUTES": f"host.name={name},host.id={name}"}
        tracer = self.start(name, f"tracer-{name}-{number}", argv, {**own, **(env or {})})
        tracer.wait_for(ready.exists, f"the tracer of {name} is ready", 120.0)
        return tracer

    def collect(self, port: int, *flags: str) -> Process:
        """Start a collector on the hub at `port`; returns when it is ready."""
        number = sum("collector" in process.log.name for process in self._processes)
        ready = self.directory / f"collector-{number}.ready"
        argv: list[str | Path] = [
            *wirespan_command(), "collect", "--listen-grpc", f"{HUB}:{port}",
            "--listen-http", "none", "--open-intake", "--ready-file", ready, *flags,
        ]  # fmt: skip
        collector = self.start("hub", f"collector-{number}", argv)
        collector.wait_for(ready.exists, "the collector is ready", 60.0)
        return collector

    def jaeger(self, program: Path) -> HubJaeger:
        """Start Jaeger on the hub."""
        wrapper = self.directory / "jaeger"
        enter = " ".join(self._enter("hub"))
        wrapper.write_text(f'#!/bin/sh\nexec {enter} {program} "$@"\n')
        wrapper.chmod(0o755)
        jaeger = HubJaeger(self, str(wrapper), self.directory)
        self._processes.append(jaeger.process)
        return jaeger

    def otel_collector(self, program: Path, jaeger: Jaeger, port: int) -> Process:
        """Start an OpenTelemetry Collector on the hub, with the documented configuration.

        program: Jaeger's, which is one: the same service with the same receivers,
            processors and exporters, and Jaeger's own besides.
        """
        env = {
            "OTELCOL_LISTEN": f"127.0.0.1:{port}",
            "JAEGER_ENDPOINT": f"127.0.0.1:{jaeger.ports['OTLP_GRPC']}",
        }
        config = ROOT / "deploy" / "otel-collector.yaml"
        argv: list[str | Path] = [program, "--config", config]
        process = self.start("hub", "otel-collector", argv, env)

        def listens() -> bool:
            # Of its namespace, not ours.
            sockets = Path(f"/proc/{process.pid}/net/tcp").read_text()
            return f":{port:04X} 00000000:0000 0A" in sockets

        process.wait_for(listens, "the OpenTelemetry Collector listens", 60.0)
        return process

    def close(self) -> None:
        """End all processes, then take the hosts apart."""
        for process in reversed(self._processes):
            if process.alive():
                process.popen.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.stop(timeout=30.0)
        for cgroup in self._cgroups.values():
            if cgroup.exists():
                _empty(cgroup)
                cgroup.rmdir()
        for name in ("hub", *NAMES):
            if Path("/run/netns", self._namespace(name)).exists():
                run(["ip", "netns", "delete", self._namespace(name)])

    def _namespace(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _enter(self, name: str) -> list[str]:
        # Not `ip netns exec`: that mounts another /sys, without cgroups.
        return ["nsenter", f"--net=/run/netns/{self._namespace(name)}", "--"]


class HubJaeger(Jaeger):
    """Jaeger on the hub's loopback."""

    def __init__(self, hosts: Hosts, program: str, directory: Path) -> None:
        self._hosts = hosts
        super().__init__(program, directory)

    def ask(self, port: str, target: str) -> tuple[int, bytes]:
        url = f"http://127.0.0.1:{self.ports[port]}{target}"
        curl = ["curl", "-s", "--max-time", "30", "-w", "\n%{http_code}", url]
        try:
            body, _, status = self._hosts.run("hub", curl).rpartition("\n")
        except AssertionError as error:
            raise OSError(str(error)) from None
        return int(status), body.encode()


def finish(process: Process) -> None:
    """Wait until a load has ended well."""
    assert process.popen.wait(120) == 0, process.said()


def _empty(cgroup: Path) -> None:
    procs = cgroup / "cgroup.procs"
    wait_until(lambda: not procs.read_text(), f"{cgroup} is empty")


def _cgroup2() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(place)
    pytest.skip("no cgroup v2 hierarchy is mounted")
