"""What ``uninstall`` prints to be deleted, on a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from commandline import runner

from gitops_mcp.base.names import API_VERSION, FIELD_MANAGER, KIND, LABEL_MANAGED_BY, JsonObject
from gitops_mcp.cli import install
from gitops_mcp.cluster.kube import Cluster

pytest_plugins = ["clusters"]


def body(kind: str, name: str, version: str = "v1", **metadata: object) -> JsonObject:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **metadata}}


@pytest.mark.parametrize("keep", [["--keep-servers"], []])
def test_no_namespace_is_deleted_that_holds_a_server(
    keep: list[str], sandboxed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(str(sandboxed))
    for name in ("agents", "servers", "children", "theirs"):
        labels = {install.LABEL_APP: install.APP} if name != "theirs" else {}
        cluster.apply(body("Namespace", name, labels=labels))
    server = body(KIND, "web", API_VERSION, namespace="servers")
    cluster.apply(server | {"spec": {"image": "example.com/web:1", "transport": "stdio"}})
    ours = {LABEL_MANAGED_BY: FIELD_MANAGER}
    child = body("Service", "orphan", namespace="children", labels=ours)
    cluster.apply(child | {"spec": {"ports": [{"port": 1}]}})
    cluster.close()

    ended = runner(capsys)("uninstall", "--kubeconfig", sandboxed, *keep)

    assert ended.code == 0, ended.err
    deleted = [line for line in ended.out.splitlines() if "delete namespace" in line]
    assert deleted == ["kubectl delete namespace agents"]
    for name in ("servers", "children"):
        assert f"namespace {name} holds servers, and stays" in ended.err
