"""What the API server adds to a built-in kind when it reads one: a table by type.

Each entry of `DEFAULTS` receives a decoded struct of that type, whose children already have their
defaults, and fills in what is absent; it never removes or checks anything. `OMITTED_ZEROS` are
the numbers and booleans that the Go types leave out of JSON when they are zero (most are
pointers, whose zero is a value).
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from gitops_mcp.sandbox import quantity

Struct = dict[str, Any]

CORE = "io.k8s.api.core.v1."
APPS = "io.k8s.api.apps.v1."
EXTENSIONS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."
META = "io.k8s.apimachinery.pkg.apis.meta.v1."

OMITTED_ZEROS: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        CORE + "Container": "stdin stdinOnce tty",
        CORE + "ContainerPort": "hostPort",
        CORE + "ContainerStateTerminated": "signal",
        CORE + "Event": "count",
        CORE + "EventSeries": "count",
        CORE + "NFSVolumeSource": "readOnly",
        CORE + "NodeSpec": "unschedulable",
        CORE + "PersistentVolumeClaimVolumeSource": "readOnly",
        CORE + "PodCondition": "observedGeneration",
        CORE + "PodSpec": "hostNetwork hostPID hostIPC",
        CORE + "PodStatus": "observedGeneration",
        CORE + "Probe": "initialDelaySeconds timeoutSeconds periodSeconds successThreshold"
        " failureThreshold",
        CORE + "ServicePort": "nodePort",
        CORE + "ServiceSpec": "healthCheckNodePort publishNotReadyAddresses",
        CORE + "VolumeMount": "readOnly",
        APPS + "DeploymentSpec": "minReadySeconds paused",
        APPS + "DeploymentStatus": "observedGeneration replicas updatedReplicas readyReplicas"
        " availableReplicas unavailableReplicas",
        APPS + "ReplicaSetSpec": "minReadySeconds",
        APPS + "ReplicaSetStatus": "fullyLabeledReplicas readyReplicas availableReplicas"
        " observedGeneration",
        "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus": "currentReplicas",
        "io.k8s.api.events.v1.Event": "deprecatedCount",
        "io.k8s.api.policy.v1.PodDisruptionBudgetStatus": "observedGeneration",
        EXTENSIONS + "CustomResourceColumnDefinition": "priority",
        EXTENSIONS + "CustomResourceDefinitionSpec": "preserveUnknownFields",
        EXTENSIONS + "CustomResourceDefinitionVersion": "deprecated",
        EXTENSIONS + "JSONSchemaProps": "exclusiveMaximum exclusiveMinimum uniqueItems nullable"
        " x-kubernetes-embedded-resource x-kubernetes-int-or-string",
        META + "Condition": "observedGeneration",
        META + "ObjectMeta": "generation",
    }.items()
}

KEPT_EMPTY = frozenset({"holderIdentity", "default"})
"""Optional strings that are pointers (or any JSON): the empty one is a value."""


ALWAYS: dict[str, Struct] = {
    CORE + "Event": {
        "eventTime": None,
        "firstTimestamp": None,
        "lastTimestamp": None,
        "reportingComponent": "",
        "reportingInstance": "",
    },
    "io.k8s.api.events.v1.Event": {
        "deprecatedFirstTimestamp": None,
        "deprecatedLastTimestamp": None,
    },
    EXTENSIONS + "CustomResourceDefinitionStatus": {"conditions": None},
}
"""Optional fields that the Go types write even when they are empty."""


def fill(**values: Any) -> Callable[[Struct], None]:
    """A rule that sets each absent field to its constant."""

    def apply(struct: Struct) -> None:
        for key, value in values.items():
            struct.setdefault(key, dict(value) if isinstance(value, dict) else value)

    return apply


def _container(container: Struct) -> None:
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image", "").rpartition("/")[2]
    tag = image.partition("@")[0].partition(":")[2]
    latest = tag in ("", "latest") and "@" not in image
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")


def _pod_spec(spec: Struct) -> None:
    fill(
        restartPolicy="Always",
        dnsPolicy="ClusterFirst",
        schedulerName="default-scheduler",
        terminationGracePeriodSeconds=30,
        securityContext={},
    )(spec)
    for one, other in (
        ("serviceAccountName", "serviceAccount"),
        ("serviceAccount", "serviceAccountName"),
    ):
        if one in spec:
            spec.setdefault(other, spec[one])


def _pod(pod: Struct) -> None:
    spec = pod.get("spec", {})
    spec.setdefault("enableServiceLinks", True)
    for container in spec.get("containers", []):
        resources = container.get("resources", {})
        if limits := resources.get("limits"):
            resources["requests"] = {**limits, **resources.get("requests", {})}


def _resources(resources: Struct) -> None:
    for kind in ("limits", "requests"):
        for name, text in resources.get(kind, {}).items():
            resources[kind][name] = quantity.rounded(text)


def _volume(volume: Struct) -> None:
    if len(volume) == 1:
        volume["emptyDir"] = {}


def _rolling_update(strategy: Struct) -> None:
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxSurge", "25%")
        rolling.setdefault("maxUnavailable", "25%")


def _service_spec(spec: Struct) -> None:
    if spec.setdefault("sessionAffinity", "None") == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", 10800)
    kind = spec.setdefault("type", "ClusterIP")
    if kind != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if kind in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if kind == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _service_port(port: Struct) -> None:
    if port.get("targetPort") in (None, 0, "") and "port" in port:
        port["targetPort"] = port["port"]


def _secret(secret: Struct) -> None:
    secret.setdefault("type", "Opaque")
    for key, value in secret.pop("stringData", {}).items():
        secret.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()


def _namespace(namespace: Struct) -> None:
    metadata = namespace.setdefault("metadata", {})
    name = metadata.get("name", "")
    metadata.setdefault("labels", {}).setdefault("kubernetes.io/metadata.name", name)


def _policy_types(spec: Struct) -> None:
    spec.setdefault("policyTypes", ["Ingress", "Egress"] if "egress" in spec else ["Ingress"])


def _crd_spec(spec: Struct) -> None:
    spec.setdefault("conversion", {"strategy": "None"})
    names = spec.get("names", {})
    if kind := names.get("kind"):
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", f"{kind}List")


DEFAULTS: dict[str, Callable[[Struct], None]] = {
    CORE + "Container": _container,
    CORE + "ConfigMapVolumeSource": fill(defaultMode=420),
    CORE + "DownwardAPIVolumeSource": fill(defaultMode=420),
    CORE + "HTTPGetAction": fill(path="/", scheme="HTTP"),
    CORE + "HostPathVolumeSource": fill(type=""),
    CORE + "Namespace": _namespace,
    CORE + "NamespaceStatus": fill(phase="Active"),
    CORE + "ObjectFieldSelector": fill(apiVersion="v1"),
    CORE + "PersistentVolumeClaimSpec": fill(volumeMode="Filesystem"),
    CORE + "Pod": _pod,
    CORE + "PodSpec": _pod_spec,
    CORE + "PodStatus": fill(phase="Pending"),
    CORE + "Probe": fill(
        timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3
    ),
    CORE + "ProjectedVolumeSource": fill(defaultMode=420),
    CORE + "ResourceRequirements": _resources,
    CORE + "Secret": _secret,
    CORE + "SecretVolumeSource": fill(defaultMode=420),
    CORE + "ServiceAccountTokenProjection": fill(expirationSeconds=3600),
    CORE + "ServicePort": _service_port,
    CORE + "ServiceSpec": _service_spec,
    CORE + "Volume": _volume,
    CORE + "VolumeResourceRequirements": _resources,
    APPS + "DeploymentSpec": fill(replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600),
    APPS + "DeploymentStrategy": _rolling_update,
    APPS + "ReplicaSetSpec": fill(replicas=1),
    "io.k8s.api.admissionregistration.v1.MatchResources": fill(
        matchPolicy="Equivalent", namespaceSelector={}, objectSelector={}
    ),
    "io.k8s.api.admissionregistration.v1.RuleWithOperations": fill(scope="*"),
    "io.k8s.api.admissionregistration.v1.NamedRuleWithOperations": fill(scope="*"),
    "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicySpec": fill(failurePolicy="Fail"),
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerSpec": fill(minReplicas=1),
    "io.k8s.api.discovery.v1.EndpointPort": fill(name="", protocol="TCP"),
    "io.k8s.api.networking.v1.NetworkPolicySpec": _policy_types,
    "io.k8s.api.rbac.v1.RoleRef": fill(apiGroup="rbac.authorization.k8s.io"),
    EXTENSIONS + "CustomResourceDefinitionSpec": _crd_spec,
}
