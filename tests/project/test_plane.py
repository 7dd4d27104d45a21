"""The rig itself: what other tests rely on when they start a real control plane."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import paths
import plane as rig
import pytest

pytest_plugins = ["clusters"]


def deployment(name: str, **annotations: str) -> dict[str, object]:
    template = {
        "metadata": {"labels": {"app": name}, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "example.com/x"}]},
    }
    selector = {"matchLabels": {"app": name}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": selector, "template": template},
    }


DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"


def available(plane: rig.Plane, name: str, count: int) -> bool:
    for _ in range(200):
        status, answer = plane.request("GET", f"{DEPLOYMENTS}/{name}")
        if status == 200 and answer["status"].get("availableReplicas", 0) == count:
            return True
        time.sleep(0.05)
    return False


def test_a_deployment_becomes_available_and_its_requests_are_counted(plane: rig.Plane) -> None:
    plane.requests()
    assert plane.request("POST", DEPLOYMENTS, deployment("counted"))[0] == 201
    assert available(plane, "counted", 2)
    counts = plane.counts(user="admin")
    assert counts["create", "deployments"] == 1
    assert {resource for _, resource in counts} == {"deployments"}


def test_a_token_user_may_do_what_it_was_granted_and_nothing_else(plane: rig.Plane) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    assert plane.request("GET", path, user="alice")[0] == 403
    plane.grant("alice", [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}])
    deadline = time.monotonic() + 60  # the authorizer sees a grant through a watch
    while plane.request("GET", path, user="alice")[0] == 403 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert plane.request("GET", path, user="alice")[0] == 200
    assert plane.request("GET", path, user="bob")[0] == 403


def test_objects_outlive_a_restart_of_the_api_server(plane: rig.Plane) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}}
    path = "/api/v1/namespaces/default/configmaps"
    assert plane.request("POST", path, body)[0] == 201
    plane.stop_apiserver()
    with pytest.raises(OSError, match="refused"):
        plane.request("GET", path)
    plane.compact()
    plane.start_apiserver()
    assert plane.request("GET", f"{path}/kept")[0] == 200


def test_a_plane_ends_with_the_process_that_started_it(plane: rig.Plane) -> None:
    assert plane.url  # only where the plane can run at all
    code = (
        "import signal, plane; p = plane.Plane(users=()); p.__enter__(); "
        "print(p.port, p.home, flush=True); signal.pause()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=paths.TESTS, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    port, home = child.stdout.readline().split()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    deadline = time.monotonic() + 60
    while alive(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(home) == []
    assert int(port) > 0
    shutil.rmtree(home)


def test_a_plane_for_the_curious_is_used_as_it_says_and_ends_with_ctrl_c(plane: rig.Plane) -> None:
    assert plane.url  # only where the plane can run at all
    command = [sys.executable, rig.__file__, "run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        export = process.stdout.readline()
        name, _, kubeconfig = export.strip().removeprefix("export ").partition("=")
        assert name == "KUBECONFIG"
        kubectl = [str(plane.bin / "kubectl"), f"--kubeconfig={kubeconfig}", "get", "nodes"]
        nodes = subprocess.run(kubectl, capture_output=True, text=True, check=True).stdout
        assert " Ready " in nodes
        process.send_signal(signal.SIGINT)
        assert process.wait(200) == 0
    assert not Path(kubeconfig).exists()


@pytest.mark.parametrize(("word", "refusal"), [("", rig.Unavailable), ("require", RuntimeError)])
def test_without_go_tests_are_skipped_but_fail_where_the_plane_is_required(
    word: str, refusal: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITOPS_MCP_PLANE_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("GITOPS_MCP_PLANE", word)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(refusal):
        rig.Plane()


def test_what_is_built_needs_no_go(
    plane: rig.Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plane.url  # only where the plane can run at all
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert rig.build() == plane.bin
    monkeypatch.setenv("GITOPS_MCP_PLANE_DIR", str(tmp_path))
    with pytest.raises(rig.Unavailable, match="no Go toolchain"):
        rig.build()


def alive(home: str) -> list[str]:
    """The processes whose working directory is a plane's."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if os.readlink(process).startswith(home):
                found.append(process.parts[2])
        except OSError:
            continue
    return found
