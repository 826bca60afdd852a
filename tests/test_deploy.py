"""What deploy/ grants is what tracing takes, and no more; `make deploy-check` checks the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tracer.kernel.privileges import TRACING

DEPLOY = Path(__file__).parents[1] / "deploy"
MANIFESTS = ("kubernetes/base/daemonset.yaml", "kubernetes/chart/templates/daemonset.yaml")


def test_the_unit_grants_three_capabilities() -> None:
    unit = (DEPLOY / "systemd" / "wirespan.service").read_text()
    for setting in ("CapabilityBoundingSet", "AmbientCapabilities"):
        (granted,) = re.findall(rf"^{setting}=(.*)$", unit, re.MULTILINE)
        assert set(granted.split()) == set(TRACING)
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "RestrictNamespaces=yes"):
        assert line in unit.splitlines()


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_grant_three_capabilities_and_only_let_read(name: str) -> None:
    text = (DEPLOY / name).read_text()
    (granted,) = re.findall(r"^ +add: \[(.*)\]$", text, re.MULTILINE)
    assert {"CAP_" + word.strip(' "') for word in granted.split(",")} == set(TRACING)
    assert re.search(r'^ +drop: \["ALL"\]$', text, re.MULTILINE)
    for line in ("privileged: false", "allowPrivilegeEscalation: false",
                 "readOnlyRootFilesystem: true", "hostPID: true"):  # fmt: skip
        assert re.search(rf"^ +{line}$", text, re.MULTILINE), line
    hosts = re.findall(r"- name: (\w+)\n +hostPath:", text)
    mounts = dict(re.findall(r"- name: (\w+)\n +mountPath: \S+\n( +readOnly: true)?", text))
    assert hosts and all(mounts[host] for host in hosts)
