"""The ReplicaSet controller: the name of a ReplicaSet in, its pods and status written."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from gitops_mcp.sandbox import deployments, pods
from gitops_mcp.sandbox.access import MANAGER, RETRY, Access
from gitops_mcp.sandbox.deployments import Object, condition, is_ready, parse, size, stamp
from gitops_mcp.sandbox.errors import ApiError
from gitops_mcp.sandbox.kinds import PODS, REPLICA_SETS


class ReplicaSets:
    """The controller of all ReplicaSets of one store."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._ready: dict[str, datetime] = {}
        """Per pod uid, since when it is ready: finer than a second."""

    def forget(self, uid: str) -> None:
        """A pod has gone."""
        self._ready.pop(uid, None)

    def handle(self, namespace: str, name: str) -> float | None:
        """Bring one object up to date; returns the simulated seconds until only time changes it."""
        rs = self._access.store.get(REPLICA_SETS, namespace, name)
        if rs is None:
            return None
        owned = self._access.claim(PODS, REPLICA_SETS, rs)
        active = [pod for pod in owned if _is_active(pod)]
        failure = None
        if "deletionTimestamp" not in rs["metadata"]:
            failure = self._resize(rs, active)
        waits = {pod["metadata"]["uid"]: self._until_available(rs, pod) for pod in active}
        available = sum(wait is not None and wait <= 0 for wait in waits.values())
        status = status_of(rs, owned, available, failure, self._access.now())
        self._access.write_status(REPLICA_SETS, rs, status)
        if failure:
            return RETRY
        return min((wait for wait in waits.values() if wait is not None and wait > 0), default=None)

    def _resize(self, rs: Object, active: Sequence[Object]) -> tuple[str, str] | None:
        """Create or delete pods; (reason, message) of a failure to create."""
        namespace = rs["metadata"]["namespace"]
        for _ in range(size(rs) - len(active)):
            try:
                if pods.simulated(rs["spec"]["template"]) == "create-failure":
                    raise ApiError(403, "Forbidden", "exceeded quota: simulated")
                pod = self._access.store.create(PODS, pod_of(rs), manager=MANAGER)
            except ApiError as error:
                text = f"Error creating: {error}"
                self._access.event(rs, "Warning", "FailedCreate", text, "replicaset-controller")
                return "FailedCreate", str(error)
            text = f"Created pod: {pod['metadata']['name']}"
            self._access.event(rs, "Normal", "SuccessfulCreate", text, "replicaset-controller")
        for pod in surplus(active, len(active) - size(rs)):
            self._access.store.delete(PODS, namespace, pod["metadata"]["name"])
            text = f"Deleted pod: {pod['metadata']['name']}"
            self._access.event(rs, "Normal", "SuccessfulDelete", text, "replicaset-controller")
        return None

    def _until_available(self, rs: Object, pod: Object) -> float | None:
        """Simulated seconds until a pod counts as available; None while it is not ready."""
        uid = pod["metadata"]["uid"]
        ready = condition(pod, "Ready")
        if ready is None or ready["status"] != "True":
            self._ready.pop(uid, None)
            return None
        since = parse(ready["lastTransitionTime"])
        if (self._access.now() - since).total_seconds() < 1:  # just now: seconds are too coarse
            since = self._access.now()
        return float(rs["spec"].get("minReadySeconds", 0)) - self._access.since(
            self._ready.setdefault(uid, since)
        )


def _is_active(pod: Object) -> bool:
    phase = pod.get("status", {}).get("phase")
    return "deletionTimestamp" not in pod["metadata"] and phase not in {"Succeeded", "Failed"}


def pod_of(rs: Object) -> Object:
    """A new pod of a ReplicaSet; the server makes up the rest of its name."""
    template = rs["spec"]["template"]
    given = template.get("metadata", {})
    metadata = {
        "generateName": f"{rs['metadata']['name']}-",
        "namespace": rs["metadata"]["namespace"],
        **{key: given[key] for key in ("labels", "annotations", "finalizers") if key in given},
        "ownerReferences": [deployments.controller_reference(rs)],
    }
    return {"metadata": metadata, "spec": template["spec"]}


def surplus(active: Sequence[Object], number: int) -> list[Object]:
    """The pods to delete first: not placed, not running, not ready, cheap, restarted, young."""

    def worth(pod: Object) -> tuple[Any, ...]:
        phases = {"Pending": 0, "Unknown": 1}
        annotations = pod["metadata"].get("annotations", {})
        cost = annotations.get("controller.kubernetes.io/pod-deletion-cost", "0")
        statuses = pod.get("status", {}).get("containerStatuses", ())
        return (
            bool(pod["spec"].get("nodeName")),
            phases.get(pod.get("status", {}).get("phase", "Pending"), 2),
            is_ready(pod),
            int(cost) if cost.lstrip("-").isdigit() else 0,
            -max((one["restartCount"] for one in statuses), default=0),
        )

    youngest = sorted(active, key=lambda pod: pod["metadata"]["creationTimestamp"], reverse=True)
    return sorted(youngest, key=worth)[: max(number, 0)]


def status_of(
    rs: Object,
    owned: list[Object],
    available: int,
    failure: tuple[str, str] | None,
    now: datetime,
) -> Object:
    """A ReplicaSet's status, counted over the pods that were there before this pass's writes."""
    active = [pod for pod in owned if _is_active(pod)]
    wanted = rs["spec"]["template"].get("metadata", {}).get("labels", {}).items()
    counts = {
        "fullyLabeledReplicas": sum(wanted <= pod["metadata"]["labels"].items() for pod in active),
        "readyReplicas": sum(map(is_ready, active)),
        "availableReplicas": available,
    }
    result: Object = {
        "replicas": len(active),
        **{key: value for key, value in counts.items() if value},
        "terminatingReplicas": sum("deletionTimestamp" in pod["metadata"] for pod in owned),
        "observedGeneration": rs["metadata"]["generation"],
    }
    if failure:
        reason, message = failure
        known = condition(rs, "ReplicaFailure")
        result["conditions"] = [
            known
            or {
                "type": "ReplicaFailure",
                "status": "True",
                "lastTransitionTime": stamp(now),
                "reason": reason,
                "message": message,
            }
        ]
    return result
