"""Live objects to health: tables of real shapes."""

from __future__ import annotations

from typing import Any

import paths
import pytest
import yaml

from gitops_mcp.base.model import Condition
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.decide import health

DATA = paths.DATA / "health"
NOW = "2026-01-01T00:00:00Z"


def cases(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load((DATA / name).read_text())
    return rows


def container(name: str, row: dict[str, Any]) -> JsonObject:
    state: JsonObject = {"running": {"startedAt": NOW}}
    found: JsonObject = {"name": name, "image": row.get("image", "web"), "ready": False}
    if "waiting" in row:
        reason, message = row["waiting"]
        state = {"waiting": {"reason": reason, "message": message}}
    if "ended" in row:
        code, reason = row["ended"]
        end = {"exitCode": code, "reason": reason, "message": row.get("wrote", "")}
        found |= {"lastState": {"terminated": end}, "restartCount": 4}
    return {**found, "state": state}


def pod(row: dict[str, Any]) -> LiveObject:
    status: JsonObject = {
        "phase": row.get("phase", "Pending"),
        "containerStatuses": [container("mcp-server", row)],
    }
    if "init" in row:
        status["initContainerStatuses"] = [container("init", row["init"])]
    if "unschedulable" in row:
        del status["containerStatuses"]
        status["conditions"] = [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": row["unschedulable"],
            }
        ]
    status |= {key: row[key] for key in ("reason", "message") if key in row}
    metadata = {
        "name": row["name"],
        "creationTimestamp": row.get("created", NOW),
        "labels": {"pod-template-hash": row.get("template", "one")},
    }
    if row.get("going"):
        metadata["deletionTimestamp"] = NOW
    return LiveObject({"metadata": metadata, "status": status})


def deployment(row: dict[str, Any]) -> LiveObject | None:
    """Without a word about it, one whose pods are all made and not ready."""
    if not row.keys() & {"ready", "status", "pods"}:
        return None
    count = row.get("ready", row["replicas"])
    status: JsonObject = {"observedGeneration": 1, "replicas": count, "updatedReplicas": count}
    if "ready" in row:
        status |= {"readyReplicas": count, "availableReplicas": count}
    return LiveObject(
        {
            "metadata": {"generation": 1, **row.get("metadata", {})},
            "spec": row.get("spec", {}),
            "status": {k: v for k, v in row.get("status", status).items() if v != 0},
        }
    )


@pytest.mark.parametrize("row", cases("deployments.yaml"), ids=lambda row: row["case"])
def test_a_deployment_is_judged_by_its_numbers_and_its_pods_say_why(row: dict[str, Any]) -> None:
    live = deployment(row)
    found = health.deployment(
        live, [pod(item) for item in row.get("pods", ())], replicas=row["replicas"]
    )
    assert Condition("DeploymentReady", *row["is"]) == found
    assert row.get("stalled", False) == health.stalled(live)


@pytest.mark.parametrize("row", cases("services.yaml"), ids=lambda row: row["case"])
def test_a_service_is_ready_when_it_has_what_its_type_promises(row: dict[str, Any]) -> None:
    live = LiveObject({"metadata": {}, **row["live"]}) if "live" in row else None
    found = health.service(live, networked=row.get("networked", True))
    assert Condition("ServiceReady", *row["is"]) == found


def test_a_long_message_is_cut() -> None:
    live = deployment({"replicas": 1, "pods": []})
    row = {"name": "a", "waiting": ["CreateContainerConfigError", "x" * 5000]}
    found = health.deployment(live, [pod(row)], replicas=1)
    assert len(found.message) < 500
    assert found.message.endswith("…")


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("ImagePullBackOff", {"image"}),
        ("ERRIMAGEPULL", {"image"}),
        ("rpc error: Failed to pull image: manifest unknown", {"image"}),
        ("failed to pull image: dial tcp: lookup registry: No Such Host", {"image", "transport"}),
        ("oomkilled", {"resources"}),
        ("0/3 nodes are available: 3 INSUFFICIENT CPU.", {"resources"}),
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", {"resources"}),
        ("pods is forbidden: Exceeded Quota: few", {"resources"}),
        ("node had condition: [DiskPressure]", {"resources"}),
        ("OutOfcpu", {"resources"}),
        ("connect: Connection Refused", {"transport"}),
        ("x509: certificate signed by unknown authority", {"transport"}),
        ("CrashLoopBackOff", set()),
        ('secret "imagine" not found', set()),
        ("", set()),
    ],
)
def test_trouble_is_told_from_words_in_any_case(text: str, kinds: set[str]) -> None:
    assert kinds == health.troubles(text)
    assert kinds == health.troubles("Running", text)
