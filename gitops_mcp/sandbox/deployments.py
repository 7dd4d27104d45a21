"""What the Deployment controller would do: pure functions over one Deployment and its ReplicaSets.

Receives objects as plain dicts and the time; returns a rollout step (ReplicaSets to create, resize
or drop) or a status. It never reads or writes the store. The rules, their order and the places
where a condition lies for a moment are those of kube-controller-manager 1.36.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Object = dict[str, Any]

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
}
# the alphabet of names that Kubernetes makes up: no vowels, no look-alikes
_SAFE = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True)
class Scale:
    """Give one ReplicaSet, by name, another size."""

    name: str
    replicas: int


def stamp(moment: datetime) -> str:
    """RFC 3339 with whole seconds: what `metav1.Time` keeps."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> datetime:
    """The inverse of `stamp`."""
    return datetime.fromisoformat(text)


# --- reading --------------------------------------------------------------------------------


def size(rs: Object) -> int:
    """The desired replicas of a Deployment or ReplicaSet."""
    return int(rs["spec"].get("replicas", 1))


def count(rs: Object | None, field: str) -> int:
    """A number of a status; absent is zero."""
    return int((rs or {}).get("status", {}).get(field) or 0)


def revision(obj: Object) -> int:
    """The rollout revision that an object is annotated with; 0 without one."""
    return int(obj["metadata"].get("annotations", {}).get(REVISION, 0))


def age(rs: Object) -> tuple[str, str]:
    """Sort key: oldest first."""
    return rs["metadata"].get("creationTimestamp", ""), rs["metadata"]["name"]


def template_hash(template: Mapping[str, Any], collisions: int = 0) -> str:
    """The value of the pod-template-hash label: equal templates have equal hashes."""
    text = json.dumps([template, collisions], sort_keys=True)
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
    return "".join(_SAFE[int(digit) % len(_SAFE)] for digit in str(number))


def new_replica_set(deployment: Object, owned: Sequence[Object]) -> Object | None:
    """The ReplicaSet whose template is the Deployment's present one."""
    wanted = deployment["spec"]["template"]
    for rs in sorted(owned, key=age):
        template = deepcopy(rs["spec"]["template"])
        labels = template.get("metadata", {}).get("labels", {})
        labels.pop(HASH_LABEL, None)
        if template == wanted:
            return rs
    return None


def condition(obj_or_status: Mapping[str, Any], kind: str) -> Object | None:
    """The condition of a type, from an object or a status."""
    status = obj_or_status.get("status", obj_or_status)
    found = (one for one in status.get("conditions", ()) if one["type"] == kind)
    return next(found, None)


def is_ready(pod: Object) -> bool:
    """Whether a pod's Ready condition is True."""
    found = condition(pod, "Ready")
    return found is not None and found["status"] == "True"


def fenceposts(deployment: Object) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods; both 0 with Recreate."""
    strategy = deployment["spec"].get("strategy", {})
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    desired = size(deployment)
    surge = _resolve(rolling.get("maxSurge", "25%"), desired, math.ceil)
    unavailable = _resolve(rolling.get("maxUnavailable", "25%"), desired, math.floor)
    if surge == 0 and unavailable == 0:
        unavailable = 1
    return surge, min(unavailable, desired)


def _resolve(value: int | str, total: int, rounded: Any) -> int:
    if isinstance(value, int):
        return value
    return int(rounded(int(value.rstrip("%")) * total / 100))


# --- rollout --------------------------------------------------------------------------------


def initial_size(deployment: Object, owned: Iterable[Object], new_size: int = 0) -> int:
    """How large the new ReplicaSet, now of `new_size`, may be among all that exist."""
    desired = size(deployment)
    if deployment["spec"].get("strategy", {}).get("type") == "Recreate":
        return desired
    surge, _ = fenceposts(deployment)
    free = desired + surge - sum(map(size, owned))
    return new_size + min(free, desired - new_size) if free > 0 else new_size


def replica_set(deployment: Object, owned: Sequence[Object], number: int) -> Object:
    """The new ReplicaSet for the present template, to be created."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    digest = template_hash(spec["template"], count(deployment, "collisionCount"))
    template = deepcopy(spec["template"])
    template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = digest
    selector = deepcopy(spec["selector"])
    selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
    body: Object = {
        "metadata": {
            "name": f"{metadata['name']}-{digest}",
            "namespace": metadata["namespace"],
            "labels": dict(template["metadata"]["labels"]),
            "annotations": replica_set_annotations(deployment, number),
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {
            "replicas": initial_size(deployment, owned),
            "selector": selector,
            "template": template,
        },
    }
    if seconds := spec.get("minReadySeconds"):
        body["spec"]["minReadySeconds"] = seconds
    return body


def replica_set_annotations(deployment: Object, number: int) -> dict[str, str]:
    """The annotations that the new ReplicaSet takes over or is given."""
    copied = {
        key: value
        for key, value in deployment["metadata"].get("annotations", {}).items()
        if key not in _NOT_COPIED
    }
    return {**copied, REVISION: str(number), **size_annotations(deployment)}


def size_annotations(deployment: Object) -> dict[str, str]:
    """What tells a scaling from a rollout later on."""
    desired = size(deployment)
    return {DESIRED: str(desired), MAXIMUM: str(desired + fenceposts(deployment)[0])}


def controller_reference(owner: Object) -> Object:
    """The owner reference of an object that `owner` controls."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_scaled(deployment: Object, owned: Iterable[Object]) -> bool:
    """Whether the Deployment's size changed since its active ReplicaSets were last sized."""
    desired = str(size(deployment))
    return any(
        size(rs) > 0 and rs["metadata"].get("annotations", {}).get(DESIRED, desired) != desired
        for rs in owned
    )


def scale(deployment: Object, new: Object | None, old: Sequence[Object]) -> list[Scale]:
    """Bring the ReplicaSets to a changed size of the Deployment, a rollout in proportion."""
    desired = size(deployment)
    every = [*([new] if new else []), *old]
    active = [rs for rs in every if size(rs) > 0]
    if len(active) <= 1:
        only = active[0] if active else new or max(old, key=age, default=None)
        return [Scale(only["metadata"]["name"], desired)] if only and size(only) != desired else []
    if new and size(new) == desired == count(new, "availableReplicas"):
        return [Scale(rs["metadata"]["name"], 0) for rs in old if size(rs) > 0]
    if deployment["spec"].get("strategy", {}).get("type") == "Recreate":
        return []
    return _in_proportion(deployment, active)


def _in_proportion(deployment: Object, active: Sequence[Object]) -> list[Scale]:
    surge, _ = fenceposts(deployment)
    allowed = size(deployment) + surge if size(deployment) > 0 else 0
    total = sum(map(size, active))
    left = allowed - total
    # larger first; among equals the newer grows and the older shrinks first
    ordered = sorted(sorted(active, key=age, reverse=left > 0), key=size, reverse=True)
    sizes = {}
    for rs in ordered:
        before = int(rs["metadata"].get("annotations", {}).get(MAXIMUM, total)) or total
        share = round(size(rs) * allowed / before) - size(rs)
        share = max(min(share, left), 0) if left > 0 else min(max(share, left), 0)
        left -= share
        sizes[rs["metadata"]["name"]] = size(rs) + share
    first = ordered[0]["metadata"]["name"]
    sizes[first] = max(sizes[first] + left, 0)
    # Also those whose size stays: that they were sized for this size of the Deployment is noted.
    return [Scale(rs["metadata"]["name"], sizes[rs["metadata"]["name"]]) for rs in ordered]


def roll(deployment: Object, new: Object, old: Sequence[Object]) -> list[Scale]:
    """The next step of a rolling update: first the new set grows, else the old ones shrink."""
    desired = size(deployment)
    if size(new) > desired:
        return [Scale(new["metadata"]["name"], desired)]
    grown = initial_size(deployment, [new, *old], size(new))
    if grown != size(new):
        return [Scale(new["metadata"]["name"], grown)]
    _, unavailable = fenceposts(deployment)
    minimum = desired - unavailable
    missing = size(new) - count(new, "availableReplicas")
    room = size(new) + sum(map(size, old)) - minimum - missing
    if room <= 0:
        return []
    sizes = {rs["metadata"]["name"]: size(rs) for rs in old}
    ordered = sorted(old, key=age)
    for rs in ordered:  # pods that are not available cost nothing
        drop = min(room, max(size(rs) - count(rs, "availableReplicas"), 0))
        sizes[rs["metadata"]["name"]] -= drop
        room -= drop
    spare = count(new, "availableReplicas") - minimum
    spare += sum(count(rs, "availableReplicas") for rs in old)
    for rs in ordered:
        drop = min(max(spare, 0), sizes[rs["metadata"]["name"]])
        sizes[rs["metadata"]["name"]] -= drop
        spare -= drop
    return [
        Scale(rs["metadata"]["name"], sizes[rs["metadata"]["name"]])
        for rs in ordered
        if sizes[rs["metadata"]["name"]] != size(rs)
    ]


def outdated(deployment: Object, old: Sequence[Object]) -> list[str]:
    """Names of old, empty ReplicaSets beyond the history limit."""
    surplus = len(old) - int(deployment["spec"].get("revisionHistoryLimit", 10))
    oldest = sorted(old, key=revision)[: max(surplus, 0)]
    return [rs["metadata"]["name"] for rs in oldest if size(rs) == 0 and count(rs, "replicas") == 0]


# --- status ---------------------------------------------------------------------------------


def status(deployment: Object, new: Object | None, old: Sequence[Object], now: datetime) -> Object:
    """The counted part of a Deployment's status and its Available condition."""
    every = [*([new] if new else []), *old]
    available = sum(count(rs, "availableReplicas") for rs in every)
    counts = {
        "observedGeneration": deployment["metadata"]["generation"],
        "replicas": sum(count(rs, "replicas") for rs in every),
        "updatedReplicas": count(new, "replicas"),
        "readyReplicas": sum(count(rs, "readyReplicas") for rs in every),
        "availableReplicas": available,
        "unavailableReplicas": max(sum(map(size, every)) - available, 0),
        "collisionCount": count(deployment, "collisionCount"),
    }
    result: Object = {key: value for key, value in counts.items() if value}
    result["terminatingReplicas"] = sum(count(rs, "terminatingReplicas") for rs in every)
    result["conditions"] = list(deployment.get("status", {}).get("conditions", ()))
    enough = available >= size(deployment) - fenceposts(deployment)[1]
    does = "has" if enough else "does not have"
    set_condition(
        result,
        "Available",
        "True" if enough else "False",
        "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        f"Deployment {does} minimum availability.",
        now,
    )
    return result


def rollout_status(
    deployment: Object, new: Object | None, old: Sequence[Object], now: datetime, speed: float
) -> Object:
    """The whole status of a rollout: `status`, and how the rollout itself is going."""
    result = status(deployment, new, old, now)
    current = condition(deployment, "Progressing")
    if deadline(deployment) is None:
        drop_condition(result, "Progressing")
    elif not _was_complete(result, current):
        _progress(deployment, result, new, now, speed)
    failures = (condition(rs, "ReplicaFailure") for rs in [*([new] if new else []), *old])
    failure = next(filter(None, failures), None)
    if failure is None:
        drop_condition(result, "ReplicaFailure")
    else:
        texts = failure["status"], failure["reason"], failure["message"]
        set_condition(result, "ReplicaFailure", *texts, now)
    return result


def _was_complete(result: Object, current: Object | None) -> bool:
    # the reason outlives its rollout: with equal counts a new one is not looked at yet
    same = result.get("replicas", 0) == result.get("updatedReplicas", 0)
    return same and current is not None and current["reason"] == "NewReplicaSetAvailable"


def _progress(
    deployment: Object, result: Object, new: Object | None, now: datetime, speed: float
) -> None:
    current = condition(deployment, "Progressing")
    name = deployment["metadata"]["name"]
    what = f'ReplicaSet "{new["metadata"]["name"]}"' if new else f'Deployment "{name}"'
    if complete(deployment, result):
        text = f"{what} has successfully progressed."
        set_condition(result, "Progressing", "True", "NewReplicaSetAvailable", text, now)
    elif _moved(deployment.get("status", {}), result):
        drop_condition(result, "Progressing")  # each progress restarts the deadline's clock
        text = f"{what} is progressing."
        set_condition(result, "Progressing", "True", "ReplicaSetUpdated", text, now, old=current)
    elif timed_out(deployment, current, now, speed):
        text = f"{what} has timed out progressing."
        set_condition(result, "Progressing", "False", "ProgressDeadlineExceeded", text, now)


def complete(deployment: Object, result: Object) -> bool:
    """Whether every replica is of the present template and available."""
    desired = size(deployment)
    fields = ("updatedReplicas", "replicas", "availableReplicas")
    return (
        all(result.get(field, 0) == desired for field in fields)
        and result.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    )


def _moved(before: Object, after: Object) -> bool:
    def outdated_pods(one: Object) -> int:
        return int(one.get("replicas", 0) - one.get("updatedReplicas", 0))

    return outdated_pods(after) < outdated_pods(before) or any(
        after.get(field, 0) > before.get(field, 0)
        for field in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )


def deadline(deployment: Object) -> int | None:
    """progressDeadlineSeconds; None where there is no deadline."""
    seconds = int(deployment["spec"].get("progressDeadlineSeconds", 600))
    return None if seconds == 2**31 - 1 else seconds


def timed_out(deployment: Object, current: Object | None, now: datetime, speed: float) -> bool:
    """Whether the rollout made no progress for longer than its deadline."""
    if current is None or current["reason"] == "NewReplicaSetAvailable":
        return False
    if current["reason"] == "ProgressDeadlineExceeded":
        return True
    return time_left(deployment, current, now, speed) < 0


def time_left(deployment: Object, current: Object, now: datetime, speed: float) -> float:
    """Simulated seconds until the deadline of the rollout that `current` (Progressing) tells of.

    Conditions keep whole seconds: a fast clock must not take the cut-off part for time passed.
    """
    passed = (now - parse(current["lastUpdateTime"])).total_seconds() - (1 - 1 / speed)
    return (deadline(deployment) or 0) - passed * speed


def set_condition(
    result: Object,
    kind: str,
    value: str,
    reason: str,
    message: str,
    now: datetime,
    *,
    old: Object | None = None,
) -> None:
    """Put a condition into a status; nothing changes where status and reason stay the same.

    `old` is the condition that is replaced, where it is no longer in the status.
    """
    present = condition(result, kind)
    if present and (present["status"], present["reason"]) == (value, reason):
        return
    known = present or old
    same = known is not None and known["status"] == value
    drop_condition(result, kind)
    result["conditions"].append(
        {
            "type": kind,
            "status": value,
            "lastUpdateTime": stamp(now),
            "lastTransitionTime": known["lastTransitionTime"] if known and same else stamp(now),
            "reason": reason,
            "message": message,
        }
    )


def drop_condition(result: Object, kind: str) -> None:
    """Take a condition out of a status."""
    result["conditions"] = [one for one in result["conditions"] if one["type"] != kind]
