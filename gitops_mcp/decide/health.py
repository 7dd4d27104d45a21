"""Live objects in, their health out: is the workload serving, and if not, why not.

Receives a server's Deployment, pods and Service as the API server returned them; returns one
condition each. Judges by numbers, since a Deployment's own conditions still speak of the former
template when its status already speaks of the new generation; the pods and those conditions only
say *why*. Never reads a clock, and never repeats what a program wrote: its output may hold secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from gitops_mcp.base import objects
from gitops_mcp.base.model import Condition
from gitops_mcp.base.names import JsonObject
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import Reason
from gitops_mcp.base.wording import clipped

LONGEST: Final = 400
"""Characters of another program's message that a condition repeats."""
_READ: Final = 4096
"""Characters of it that are read: who may write a pod's status may write a megabyte."""

# --- what a text speaks of --------------------------------------------------------------------

TROUBLES: Final[Mapping[str, re.Pattern[str]]] = {
    "image": re.compile(
        r"image-?\s*pull|ErrImage|InvalidImageName|ImageInspectError|RegistryUnavailable"
        r"|SignatureValidationFailed|manifest (unknown|.* not found)|pull access denied"
        r"|(failed|unable) to (pull|resolve) (and unpack )?(image|reference)",
        re.IGNORECASE,
    ),
    "resources": re.compile(
        r"OOM-?Kill|out of memory|OutOf(cpu|memory|pods|ephemeral)|Evicted|exceeded quota"
        r"|insufficient (cpu|memory|pods|ephemeral-storage|\S+/\S+)|too many pods"
        r"|(memory|disk|PID) ?pressure|no space left|ResourcesExhausted",
        re.IGNORECASE,
    ),
    "transport": re.compile(
        r"connection (refused|reset|timed out|was lost)|no route to host|no such host"
        r"|network is unreachable|i/o timeout|deadline exceeded while|TLS handshake|x509"
        r"|server misbehaving|unexpected EOF|dial (tcp|udp)|no (answer|connection) in time",
        re.IGNORECASE,
    ),
}
"""What kinds of trouble there are, and the words (of kubelets, runtimes, registries and HTTP
clients, reasons as well as messages) that tell them, in any case."""


def troubles(*texts: str) -> frozenset[str]:
    """The kinds of TROUBLES that the texts (reasons, messages) speak of."""
    heads = [text[:_READ] for text in texts]
    return frozenset(
        kind for kind, words in TROUBLES.items() if any(words.search(text) for text in heads)
    )


# --- the Deployment ---------------------------------------------------------------------------


def deployment(live: LiveObject | None, pods: Sequence[LiveObject], *, replicas: int) -> Condition:
    """DeploymentReady. ``pods`` are those that carry the server's labels, ``replicas`` how many it
    should have: they count when all are updated, ready and available, and no other is left."""
    if live is None:
        return _false(Reason.DEPLOYMENT_NOT_FOUND, "the Deployment does not exist")
    if objects.is_deleting(live):
        return _false(Reason.DEPLOYMENT_NOT_READY, "the Deployment is being deleted")
    counts = {key: objects.number(live, "status", key) for key in _COUNTS}
    seen = _seen(live)
    if seen and all(count == replicas for count in counts.values()):
        if replicas == 0:
            return Condition.of(Reason.SCALED_TO_ZERO, "scaled to zero")
        return Condition.of(Reason.DEPLOYMENT_READY, _ready(counts, replicas))
    if not seen:
        return _false(Reason.ROLLOUT_IN_PROGRESS, "the last change has not been taken up yet")
    why = _pod_trouble(pods) or _controller_trouble(live)
    if why is not None:
        return _false(why[0], f"{_ready(counts, replicas)}: {why[1]}")
    return _unfinished(live, counts, replicas)


def stalled(live: LiveObject | None) -> bool:
    """Whether the Deployment controller has given up the rollout of what stands in the spec."""
    return (
        live is not None
        and _seen(live)
        and objects.condition(live, "Progressing").get("reason") == "ProgressDeadlineExceeded"
    )


def _seen(live: LiveObject) -> bool:
    """Whether the status speaks of the spec as it stands."""
    return objects.number(live, "status", "observedGeneration") >= objects.generation(live)


_COUNTS: Final = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")


def _false(reason: Reason, message: str) -> Condition:
    return Condition.of(reason, message, "DeploymentReady")


def _ready(counts: Mapping[str, int], replicas: int) -> str:
    return f"{counts['readyReplicas']}/{replicas} replicas ready"


def _unfinished(live: LiveObject, counts: Mapping[str, int], replicas: int) -> Condition:
    """On its way, as far as anybody can tell."""
    paused = " (the Deployment is paused)" if live["spec"].get("paused") else ""
    updated, total = counts["updatedReplicas"], counts["replicas"]
    old = total - min(updated, replicas)
    if updated < replicas:
        text = f"{updated} of {replicas} replicas updated"
        if old:
            text += f", {old} old to go"
        return _false(Reason.ROLLOUT_IN_PROGRESS, text + paused)
    if old:
        return _false(Reason.ROLLOUT_IN_PROGRESS, f"{old} of {total} replicas to go{paused}")
    text = _ready(counts, replicas)
    if counts["readyReplicas"] == replicas:
        text += f", {counts['availableReplicas']} long enough to count"
    return _false(Reason.DEPLOYMENT_NOT_READY, text + paused)


def _controller_trouble(live: LiveObject) -> tuple[Reason, str] | None:
    """What the Deployment controller says that holds it up, as ``(reason, message)``."""
    failure = objects.condition(live, "ReplicaFailure")
    if failure.get("status") == "True":
        return Reason.REPLICA_CREATE_FAILED, clipped(objects.text(failure, "message"), LONGEST)
    if stalled(live):
        return Reason.PROGRESS_DEADLINE_EXCEEDED, "no progress within the Deployment's deadline"
    return None


# --- its pods ---------------------------------------------------------------------------------


def _pod_trouble(pods: Sequence[LiveObject]) -> tuple[Reason, str] | None:
    """What keeps the newest template's pods from being ready, as ``(reason, message)``."""
    newest = _newest(pods)
    for find in _FINDERS:
        for pod in newest:
            found = find(pod)
            if found is not None:
                return found
    return None


def _newest(pods: Sequence[LiveObject]) -> list[LiveObject]:
    """The pods of the template that was rolled out last, in the order of their names.

    Pods that are going away say nothing about those to come, nor do failed ones (of an eviction,
    say) that have been replaced.
    """
    staying = [pod for pod in pods if not objects.is_deleting(pod)]
    alive = [pod for pod in staying if _phase(pod) not in ("Failed", "Succeeded")] or staying
    latest = max(alive, key=objects.created, default=None)
    return sorted(
        (pod for pod in alive if latest is not None and _template(pod) == _template(latest)),
        key=lambda pod: str(pod["metadata"]["name"]),
    )


def _phase(pod: LiveObject) -> str:
    return objects.text(pod, "status", "phase")


def _template(pod: LiveObject) -> str:
    return objects.text(pod, "metadata", "labels", "pod-template-hash")


def _containers(pod: LiveObject) -> Iterator[JsonObject]:
    """The statuses of the containers that are not ready, init containers first."""
    for key in ("initContainerStatuses", "containerStatuses"):
        for container in objects.items(pod, "status", key):
            if not container.get("ready"):
                yield container


def _waiting(pod: LiveObject) -> Iterator[tuple[JsonObject, str, str]]:
    for container in _containers(pod):
        waiting = objects.part(container, "state", "waiting")
        yield container, objects.text(waiting, "reason"), objects.text(waiting, "message")


def _image(pod: LiveObject) -> tuple[Reason, str] | None:
    for container, reason, message in _waiting(pod):
        if "image" in troubles(reason):
            detail = next((words for told, words in _REGISTRY.items() if told(message)), "")
            image = container.get("image", "")
            return Reason.IMAGE_PULL_FAILED, f"image {image} cannot be pulled{detail}"
    return None


# The kubelet alternates between two messages for one failure: what is made of them must not.
_REGISTRY: Final[Mapping[Callable[[str], Any], str]] = {
    re.compile(r"unauthori[sz]ed|denied|forbidden|no basic auth", re.I).search: (
        ": the registry refuses access (imagePullSecrets?)"
    ),
    re.compile(r"not found|unknown|no match for platform", re.I).search: (
        ": the registry has no such image"
    ),
    re.compile(r"invalid reference|couldn't parse|InvalidImageName", re.I).search: (
        ": that is no image name"
    ),
    lambda message: "transport" in troubles(message): ": the registry cannot be reached",
}


def _configuration(pod: LiveObject) -> tuple[Reason, str] | None:
    for container, reason, message in _waiting(pod):
        if reason.lower() in ("createcontainerconfigerror", "createcontainererror"):
            return (
                Reason.CONTAINER_CONFIG_ERROR,
                f"container {container['name']}: {clipped(str(message), LONGEST)}",
            )
    return None


def _exit(container: JsonObject) -> JsonObject | None:
    """The container's present or last end."""
    ends = (objects.part(container, state, "terminated") for state in ("state", "lastState"))
    return next(filter(None, ends), None)


def _memory(pod: LiveObject) -> tuple[Reason, str] | None:
    for container in _containers(pod):
        end = _exit(container)
        if "resources" in troubles(objects.text(end, "reason")):
            name, code = container["name"], objects.at(end, "exitCode")
            return (
                Reason.RESOURCES_EXHAUSTED,
                f"container {name} was out of memory (exit code {code})",
            )
    status = objects.status(pod)
    if "resources" in troubles(str(status.get("reason", ""))):
        return (
            Reason.RESOURCES_EXHAUSTED,
            f"pod {status['reason']}: {clipped(str(status.get('message', '')), LONGEST)}",
        )
    return None


def _crash(pod: LiveObject) -> tuple[Reason, str] | None:
    for container, reason, _ in _waiting(pod):
        end = _exit(container)
        # Also while it runs again and is not ready yet: else the reason would come and go.
        if end is None and reason.lower() not in ("crashloopbackoff", "runcontainererror"):
            continue
        if end is not None and end.get("exitCode") == 0 and _initialised(pod, container):
            continue
        text = f"container {container['name']} keeps ending"
        if end is not None:
            text += f" with exit code {end.get('exitCode')} ({end.get('reason', 'no reason')})"
        return Reason.CRASH_LOOPING, text
    return None


def _initialised(pod: LiveObject, container: JsonObject) -> bool:
    """Whether it is an init container that has done its work."""
    return container in objects.items(pod, "status", "initContainerStatuses")


def _unschedulable(pod: LiveObject) -> tuple[Reason, str] | None:
    scheduled = objects.condition(pod, "PodScheduled")
    if (scheduled.get("status"), scheduled.get("reason")) == ("False", "Unschedulable"):
        return Reason.UNSCHEDULABLE, clipped(objects.text(scheduled, "message"), LONGEST)
    return None


_FINDERS: Final = (_image, _configuration, _memory, _crash, _unschedulable)
"""In the order in which they are worth telling: the first one found names the reason."""


# --- the Service ------------------------------------------------------------------------------


def service(live: LiveObject | None, *, networked: bool) -> Condition:
    """ServiceReady: whether the Service has what its type promises."""
    if not networked:
        message = "this transport has no network endpoint"
        return Condition.of(Reason.SERVICE_NOT_REQUIRED, message)
    if live is None:
        return Condition.of(Reason.SERVICE_NOT_FOUND, "the Service does not exist")
    if objects.is_deleting(live):
        message = "the Service is being deleted"
        return Condition.of(Reason.SERVICE_NOT_READY, message)
    kind = live["spec"].get("type", "ClusterIP")
    missing, has = _PROMISES.get(kind, _PROMISES["ClusterIP"])
    if not has(live):
        message = f"the {kind} Service has no {missing} yet"
        return Condition.of(Reason.SERVICE_NOT_READY, message)
    return Condition.of(Reason.SERVICE_READY, f"the {kind} Service is ready")


def _has_address(live: LiveObject) -> bool:
    return bool(live["spec"].get("clusterIP"))


def _has_node_ports(live: LiveObject) -> bool:
    return all(port.get("nodePort") for port in objects.items(live, "spec", "ports"))


def _has_ingress(live: LiveObject) -> bool:
    return bool(objects.part(live, "status", "loadBalancer").get("ingress"))


_PROMISES: Final[Mapping[str, tuple[str, Callable[[LiveObject], bool]]]] = {
    "ClusterIP": ("address", _has_address),
    "NodePort": ("node port for every port", _has_node_ports),
    "LoadBalancer": ("ingress", _has_ingress),
}
