"""Facts in, whether the rollout of a Deployment has to stand still out.

A new pod that is ready for the kubelet may still speak no MCP. As long as older pods answer the
handshake that it fails, the rollout is paused, so that they keep serving. Pure: nothing here makes
a request; what the last handshake said and which pods there are comes with the facts.
"""

from __future__ import annotations

from collections.abc import Iterator

from gitops_mcp.base import objects
from gitops_mcp.base.model import Context, Facts
from gitops_mcp.base.names import PAUSE_MANAGER
from gitops_mcp.base.objects import LiveObject
from gitops_mcp.base.reasons import DISPROVEN
from gitops_mcp.decide import managedfields

HOLD = {"paused": True, "minReadySeconds": 2**31 - 2, "progressDeadlineSeconds": 2**31 - 1}
"""What a pause writes into a Deployment's spec. Paused alone is not enough: once all its new pods
are available, the old ones are taken away all the same (measured). So new pods have to be ready for
as long as the API can say, which it takes only below the deadline."""

_ENDED = ("Failed", "Succeeded")


def paused(deployment: LiveObject | None) -> bool:
    """Is the rollout paused by us? What a person pauses is theirs to resume."""
    return deployment is not None and managedfields.owns(
        deployment, "spec", "paused", manager=PAUSE_MANAGER
    )


def failing_pod(facts: Facts, context: Context) -> str | None:
    """The name of a new pod that fails the handshake while older ones of another template pass it;
    "" where there is none, None where nobody can say yet."""
    deployment = facts.children.get("Deployment")
    since = _template_since(deployment)
    pods = list(_alive(facts.pods))
    young = {objects.uid(pod) for pod in pods if objects.created(pod) >= since}
    probe = facts.probe
    health = objects.part(facts.cr, "spec", "health")
    if not young or health.get("mode", "handshake") != "handshake":
        return ""  # what failed is of a former template, or nobody wants to know any more
    if probe is None or not context.probes:
        return None
    if probe.reason not in DISPROVEN:
        return "" if young <= probe.passed else None
    proven = {_template(pod) for pod in pods if objects.uid(pod) in probe.passed - young}
    disproven = {uid for uid in young & (probe.pods - probe.passed) if probe.of(uid) in DISPROVEN}
    failing = [pod for pod in pods if objects.uid(pod) in disproven]
    kept = [pod for pod in failing if proven - {_template(pod)}]
    if kept:
        return min(str(pod["metadata"]["name"]) for pod in kept)
    return "" if failing or young <= probe.passed else None


def _template_since(deployment: LiveObject | None) -> str:
    """When the pod template was last written (RFC 3339, whole seconds), whoever did. Pods of an
    earlier second are of a former one, or were there before a change that concerns no pod."""
    times = [
        str(entry.get("time", ""))
        for entry in objects.managed_fields(deployment)
        if "f:template" in objects.part(entry, "fieldsV1", "f:spec")
    ]
    return max(times, default="")


def _alive(pods: tuple[LiveObject, ...]) -> Iterator[LiveObject]:
    for pod in pods:
        ended = objects.status(pod).get("phase") in _ENDED
        if not ended and not objects.is_deleting(pod):
            yield pod


def _template(pod: LiveObject) -> str:
    return objects.text(pod, "metadata", "labels", "pod-template-hash")
