"""The host, cgroups and containers, as resource attributes."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import UsageError
from tracer.resource import (
    Containers,
    Placement,
    Users,
    declared_attributes,
    host_attributes,
    parse_attributes,
    placement,
    read_file,
    tracer_attributes,
    unit_name,
    workload_name,
)

ID = "0123456789abcdef" * 4
OTHER_ID = "fedcba9876543210" * 4
POD = "8f2c1b3a-0d4e-4f5a-9b6c-7d8e9f0a1b2c"
POD_UNIT = "kubepods-burstable-pod" + POD.replace("-", "_") + ".slice"


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        (" a = b , c=d ,", {"a": "b", "c": "d"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=%2C%3D%25", {"a": ",=%"}),
        ("a=caf%C3%A9,b%3Dc=d", {"a": "café", "b=c": "d"}),
        ("a=", {"a": ""}),
        ("a=1,a=2", {"a": "2"}),
    ],
)
def test_attributes_are_parsed(text: str, attributes: dict[str, str]) -> None:
    assert parse_attributes(text) == attributes
    assert declared_attributes(text) == attributes


@pytest.mark.parametrize("text", ["a", "=b", "a=b,c", "a=%", "a=%zz", "a=%FF"])
def test_what_is_wrong_in_part_is_discarded_whole(text: str) -> None:
    with pytest.raises(ValueError, match=r"key=value|encode"):
        parse_attributes(text)
    assert declared_attributes(text) == {}
    with pytest.raises(UsageError, match="OTEL_RESOURCE_ATTRIBUTES") as caught:
        host_attributes({"OTEL_RESOURCE_ATTRIBUTES": text})
    assert "percent-encode" in caught.value.hint


def test_huge_attributes_of_others_are_passed_over() -> None:
    assert declared_attributes("a=" + "b" * 10_000) == {}


def test_host(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("00112233445566778899aabbccddeeff\n")
    found = dict(host_attributes({}, str(tmp_path)))
    assert found["host.name"] == platform.node()
    assert found["host.id"] == "00112233445566778899aabbccddeeff"
    assert found["os.type"] == "linux"
    assert found["os.version"] == platform.release()
    assert found["telemetry.distro.name"] == "wirespan"
    assert not any(key.startswith(("service.", "telemetry.sdk.")) for key in found)
    if platform.machine() == "x86_64":
        assert found["host.arch"] == "amd64"


def test_a_host_without_machine_id(tmp_path: Path) -> None:
    assert "host.id" not in dict(host_attributes({}, str(tmp_path)))
    (tmp_path / "var/lib/dbus").mkdir(parents=True)
    (tmp_path / "var/lib/dbus/machine-id").write_text("aa\n")
    assert dict(host_attributes({}, str(tmp_path)))["host.id"] == "aa"


def test_own_environment_applies_to_all_but_names_only_the_tracer() -> None:
    environ = {
        "OTEL_SERVICE_NAME": "my-tracer",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=staging,service.namespace=shop,"
        "service.name=other,service.version=9,service.instance.id=x,host.name=box",
    }
    host = dict(host_attributes(environ))
    assert host["deployment.environment.name"] == "staging"
    assert host["service.namespace"] == "shop"
    assert host["host.name"] == "box"
    assert not {"service.name", "service.version", "service.instance.id"} & set(host)
    tracer = dict(tracer_attributes(environ))
    assert tracer["service.name"] == "my-tracer"
    assert tracer["service.version"] == "9"
    assert tracer["deployment.environment.name"] == "staging"
    del environ["OTEL_SERVICE_NAME"]
    assert dict(tracer_attributes(environ))["service.name"] == "other"
    assert dict(tracer_attributes({}))["service.name"] == "wirespan"


def v2(path: str) -> str:
    return f"0::{path}\n"


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("", Placement()),
        ("nonsense", Placement()),
        (v2("/"), Placement()),
        (v2("/system.slice/nginx.service"), Placement("nginx")),
        (v2("/system.slice/system-worker.slice/worker@3.service"), Placement("worker")),
        (v2(r"/system.slice/my\x2dapp.service/sub"), Placement("my-app")),
        (v2("/user.slice/user-0.slice/session-1.scope"), Placement()),
        (v2("/user.slice/user-1000.slice/user@1000.service/init.scope"), Placement()),
        (
            v2("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service"),
            Placement("shop"),
        ),
        (v2("/init.scope"), Placement()),
        (v2("/system.slice/ssh.service"), Placement()),
        (v2("/system.slice/cron.service"), Placement()),
        (v2("/system.slice/containerd.service"), Placement()),
        (v2("/system.slice/actions.runner.acme-shop.box.service"), Placement()),
        (v2("/system.slice/run-u42.service"), Placement()),
        # Docker: systemd and cgroupfs drivers
        (v2(f"/system.slice/docker-{ID}.scope"), Placement("", ID, "", "docker")),
        (v2(f"/docker/{ID}"), Placement("", ID, "", "docker")),
        (
            f"12:pids:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/docker.service\n",
            Placement("", ID, "", "docker"),
        ),
        (v2(f"/docker/{ID}/docker/{OTHER_ID}"), Placement("", OTHER_ID, "", "docker")),
        (v2(f"/docker/{ID}/system.slice/nginx.service"), Placement("nginx", ID, "", "docker")),
        # Kubernetes
        (
            v2(f"/kubepods.slice/kubepods-burstable.slice/{POD_UNIT}/cri-containerd-{ID}.scope"),
            Placement("", ID, "", "containerd", POD),
        ),
        (v2(f"/kubepods/besteffort/pod{POD}/{ID}"), Placement("", ID, "", "", POD)),
        (
            v2(f"/system.slice/containerd.service/{POD_UNIT}:cri-containerd:{ID}"),
            Placement("", ID, "", "containerd", POD),
        ),
        (
            v2(f"/kubepods.slice/{POD_UNIT}/crio-{ID}.scope/container"),
            Placement("", ID, "", "cri-o", POD),
        ),
        (v2(f"/kubepods.slice/{POD_UNIT}/crio-conmon-{ID}.scope"), Placement(pod_uid=POD)),
        # Podman
        (v2(f"/machine.slice/libpod-{ID}.scope/container"), Placement("", ID, "", "podman")),
        (v2(f"/machine.slice/libpod-conmon-{ID}.scope"), Placement()),
        (
            v2(f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
            Placement("", ID, "", "podman"),
        ),
        (
            v2(f"/system.slice/web.service/libpod-payload-{ID}"),
            Placement("web", ID, "", "podman"),
        ),
        # others
        (
            f"5:memory:/ecs/{ID[:32]}/{ID[:32]}-1234567890\n",
            Placement("", f"{ID[:32]}-1234567890"),
        ),
        (v2("/lxc.payload.box/system.slice/nginx.service"), Placement("nginx", "", "box", "lxc")),
        (
            v2("/machine.slice/systemd-nspawn@box.service/payload/init.scope"),
            Placement("", "", "box", "systemd-nspawn"),
        ),
        # version 1 hierarchies
        (
            "9:memory:/user.slice\n1:name=systemd:/system.slice/nginx.service\n0::/\n",
            Placement("nginx"),
        ),
    ],
)
def test_cgroups(cgroup: str, expected: Placement) -> None:
    assert placement(cgroup) == expected


@given(st.text(max_size=200))
def test_any_cgroup_is_read(text: str) -> None:
    placement(text)
    placement(f"0::/{text}")
    unit_name(text)


@pytest.mark.parametrize(
    ("pod", "workload"),
    [
        ("web-7d9c5b8f6d-x2x4z", "web"),
        ("shop-api-5c6f7d8b9-k2zpt", "shop-api"),
        ("agent-x2x4z", "agent"),
        ("db-0", "db"),
        ("report-28391020-x2x4z", "report"),
        ("web", "web"),
        ("redis-cache", "redis-cache"),
        ("", ""),
        ("-0", "-0"),
    ],
)
def test_workloads(pod: str, workload: str) -> None:
    assert workload_name(pod) == workload


def write(root: Path, path: str, content: object) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(json.dumps(content))


def test_names_from_containerd_and_crio(tmp_path: Path) -> None:
    write(
        tmp_path,
        f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
        {
            "process": {"env": ["SECRET=x"]},
            "annotations": {
                "io.kubernetes.cri.sandbox-name": "web-7d9c5b8f6d-x2x4z",
                "io.kubernetes.cri.sandbox-namespace": "shop",
                "io.kubernetes.cri.container-name": "nginx",
            },
        },
    )
    write(
        tmp_path,
        f"run/containers/storage/overlay-containers/{OTHER_ID}/userdata/config.json",
        {"annotations": {"io.kubernetes.pod.name": "db-0"}},
    )
    containers = Containers(str(tmp_path))
    found = containers.find(ID)
    assert found.service == "web"
    assert found.attributes == {
        "k8s.pod.name": "web-7d9c5b8f6d-x2x4z",
        "k8s.namespace.name": "shop",
        "k8s.container.name": "nginx",
    }
    assert containers.find(OTHER_ID).service == "db"
    assert containers.find(ID) is found


def test_names_from_docker_and_podman(tmp_path: Path) -> None:
    docker = f"var/lib/docker/containers/{ID}/config.v2.json"
    write(tmp_path, docker, {"Name": "/shop-web-1", "Config": {"Env": ["SECRET=x"]}})
    podman = "var/lib/containers/storage/overlay-containers/containers.json"
    write(tmp_path, podman, [{"id": OTHER_ID, "names": ["box"]}, {"id": "x"}])
    found = Containers(str(tmp_path)).find(ID)
    assert (found.service, found.attributes) == ("shop-web-1", {"container.name": "shop-web-1"})
    assert Containers(str(tmp_path)).find(OTHER_ID).service == "box"
    labels = {"com.docker.compose.service": "web"}
    write(tmp_path, docker, {"Name": "/shop-web-1", "Config": {"Labels": labels}})
    assert Containers(str(tmp_path)).find(ID).service == "web"


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[]", "7", '{"Name": 7}', '{"Name": "/"}', "[[[" * 9999]
)
def test_broken_container_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / f"var/lib/docker/containers/{ID}/config.v2.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert Containers(str(tmp_path)).find(ID).attributes == {}


def test_users(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    users = Users(str(passwd))
    assert users.name("0") == ""
    passwd.write_text("root:x:0:0::/:/bin/sh\nalias:x:0:0::/:/bin/sh\n#\nbad:line\n")
    assert users.name("0") == "root"
    assert users.name("7") == ""
    passwd.write_text("lp:x:7:7:printer:/:/bin/sh\n")
    os.utime(passwd, ns=(1, 1))
    assert users.name("7") == "lp"


def test_reading_never_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"abcdef")
    assert read_file(str(tmp_path / "fifo"), 10) == b""
    assert read_file(str(tmp_path), 10) == b""
    assert read_file(str(tmp_path / "none"), 10) == b""
    assert read_file("with\0nul", 10) == b""
    assert read_file(str(tmp_path / "file"), 4) == b"abcd"
    assert read_file("/proc/self/environ", 0) == b""
